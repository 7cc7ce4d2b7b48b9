//! One connection at work: control frames both ways, a stream of its own for each chunk.
//!
//! A link decides nothing. It turns what arrives into [`Event`]s for the driver of its swarm and
//! carries out what the driver says. Bulk bytes go from the store's map to quinn without a copy;
//! arriving ones are verified and stored off the reactor.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use rootswarm_image::{ChunkIndex, Verifier};
use rootswarm_swarm::limits::FRAME_BYTES_MAX;
use rootswarm_swarm::{
    ChunkOutcome, CloseReason, ConnId, DecodeError, Hello, Message, NodeId, Role, UploadOutcome,
    Wire, decode_hello, decode_message, encode_hello, encode_message,
};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::chunk_buffers::ChunkBuffers;
use crate::conduct::Conduct;
use crate::control_first::ControlFirst;
use crate::framing::{self, FrameError};
use crate::inbox::{Inbox, Moving};
use crate::limiter::RateLimiter;
use crate::parting::part;
use crate::places::Place;
use crate::reading_pace::{ChunksExchanged, ReadingPace};
use crate::socket::canonical;
use crate::store::{ChunkSource, ChunkStore, Ended, PIECE_BYTES, StoreError, Took};
use crate::tls;
use crate::upload::{Outgoing, Upload};

/// The application code with which a connection is closed for a [`CloseReason`].
pub const CLOSE_SWARM: VarInt = VarInt::from_u32(0x7377);

/// Control frames waiting for one connection. A peer that lets more pile up does not read.
const CONTROL_QUEUE: usize = 1024;

/// Control frames written in one go.
const CONTROL_BATCH: usize = 64;

/// From a connection to its first frame.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// Control frames go before chunks, which have 0 and less.
const CONTROL_PRIORITY: i32 = 1;

/// What a link tells its driver.
#[derive(Debug)]
pub(crate) enum Event {
    Hello {
        conn: ConnId,
        hello: Hello,
    },
    Message {
        conn: ConnId,
        message: Message,
    },
    ChunkStarted {
        conn: ConnId,
        index: ChunkIndex,
    },
    ChunkEnded {
        conn: ConnId,
        index: ChunkIndex,
        outcome: ChunkOutcome,
    },
    UploadEnded {
        conn: ConnId,
        index: ChunkIndex,
        outcome: UploadOutcome,
    },
    /// Nothing leaves for an upload's receiver; said once.
    UploadStalled {
        conn: ConnId,
        index: ChunkIndex,
    },
    Gone {
        conn: ConnId,
    },
    /// The store refused a verified chunk: this machine's fault, and the end of the download.
    StoreFailed {
        reason: String,
    },
}

/// What all links of one swarm share.
pub(crate) struct Shared {
    pub(crate) role: Role,
    pub(crate) verifier: Verifier,
    pub(crate) source: Arc<dyn ChunkSource>,
    /// None where nothing is ever received: on a seed.
    pub(crate) sink: Option<ChunkStore>,
    pub(crate) limiter: Arc<RateLimiter>,
    /// Payload handed to QUIC, chunks that were broken off included.
    pub(crate) bytes_uploaded: AtomicU64,
    pub(crate) events: mpsc::Sender<Event>,
    /// What chunks are received in.
    pub(crate) buffers: ChunkBuffers,
    /// Who breaks the protocol is put down here.
    pub(crate) conduct: Arc<Conduct>,
}

/// A connection whose TLS is done and whose control stream is open, in either direction.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) connection: Connection,
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    /// The epoch of a node's certificate; seeds have none.
    pub(crate) epoch: Option<u32>,
    pub(crate) addr: SocketAddr,
    pub(crate) dialed: bool,
    pub(crate) control: (SendStream, RecvStream),
    /// The other side's first frame; a dialer has not read it yet.
    pub(crate) hello: Option<Hello>,
    /// Its place among those that are let in; one that was dialed needs none.
    pub(crate) place: Option<Place>,
}

/// The driver's end of a link.
pub(crate) struct Link {
    connection: Connection,
    control: mpsc::Sender<Vec<u8>>,
    uploads: BTreeMap<ChunkIndex, AbortHandle>,
    /// The next upload's priority: each has less than the one before.
    priority: i32,
    arrivals: Arc<Mutex<BTreeMap<ChunkIndex, AbortHandle>>>,
    tasks: JoinSet<()>,
    conn: ConnId,
    address: SocketAddr,
    /// The other side dialed, and may move.
    was_dialed_to: bool,
    /// Since when it has been sending from elsewhere; said once.
    moved: Option<Option<Instant>>,
    exchanged: ChunksExchanged,
    control_first: Arc<ControlFirst>,
    shared: Arc<Shared>,
    /// Held for as long as this is.
    _place: Option<Place>,
}

impl Link {
    /// Starts the tasks of a connection.
    pub(crate) fn start(conn: ConnId, opened: Opened, greeted: bool, shared: Arc<Shared>) -> Link {
        let (control, queue) = mpsc::channel(CONTROL_QUEUE);
        let (send, receive) = opened.control;
        let address = opened.addr;
        let exchanged = ChunksExchanged::default();
        let arrivals = Arc::new(Mutex::new(BTreeMap::new()));
        let mut tasks = JoinSet::new();
        let control_first = Arc::new(ControlFirst::default());
        tasks.spawn(write_control(send, queue, control_first.clone()));
        let reader = ControlReader {
            conn,
            wire: tls::wire(&opened.connection),
            peer: (opened.role == Role::Peer).then_some(address.ip()),
            shared: shared.clone(),
            greeted,
            pace: ReadingPace::new(exchanged.clone()),
        };
        let connection = opened.connection.clone();
        tasks.spawn(async move { reader.run(receive, connection).await });
        // Nobody may open a chunk's stream to a seed: no task of each of ten thousand nodes waits for one.
        if shared.role == Role::Peer {
            let acceptor = Acceptor {
                conn,
                connection: opened.connection.clone(),
                shared: shared.clone(),
                arrivals: arrivals.clone(),
                exchanged: exchanged.clone(),
                moving: (opened.role == Role::Seed).then(Moving::default),
            };
            tasks.spawn(acceptor.run());
        }
        Link {
            connection: opened.connection,
            control,
            uploads: BTreeMap::new(),
            priority: 0,
            arrivals,
            tasks,
            conn,
            address,
            was_dialed_to: !opened.dialed,
            moved: None,
            exchanged,
            control_first,
            shared,
            _place: opened.place,
        }
    }

    /// Uploads under way.
    pub(crate) fn uploads(&self) -> usize {
        self.uploads
            .values()
            .filter(|task| !task.is_finished())
            .count()
    }

    pub(crate) fn hello(&self, hello: &Hello) {
        self.enqueue(encode_hello(hello));
    }

    pub(crate) fn send(&self, message: &Message) {
        self.enqueue(encode_message(message));
    }

    fn enqueue(&self, frame: Vec<u8>) {
        if self.control.try_send(frame).is_err() {
            // It does not read its control stream, or it is gone already.
            part(
                &self.connection,
                CLOSE_SWARM,
                b"control frames are not read",
            );
        }
    }

    pub(crate) fn upload(&mut self, index: ChunkIndex) {
        self.uploads.retain(|_, task| !task.is_finished());
        let (connection, shared, conn) = (self.connection.clone(), self.shared.clone(), self.conn);
        let exchanged = self.exchanged.clone();
        let after_control = self.control_first.subscribe();
        let priority = self.priority;
        // No connection lasts for 2^31 chunks; the last ones would share what they have.
        self.priority = priority.saturating_sub(1);
        // Here, and not in the tasks, of which a later one may begin sooner: the receiver sees all streams
        // before one that it sees, and does not wait for ever for the first byte of each.
        let opened = Outgoing::open_now(&connection);
        let task = self.tasks.spawn(async move {
            let upload = Upload::new(conn, &connection, &shared, index, priority);
            let outcome = upload.run(opened, after_control).await;
            if outcome == UploadOutcome::Delivered {
                exchanged.one();
            }
            let _ = shared
                .events
                .send(Event::UploadEnded {
                    conn,
                    index,
                    outcome,
                })
                .await;
        });
        self.uploads.insert(index, task);
        while self.tasks.try_join_next().is_some() {}
    }

    /// Breaks an upload off. Says whether there was one; its end is then the caller's to report.
    pub(crate) fn cancel_upload(&mut self, index: ChunkIndex) -> bool {
        match self.uploads.remove(&index) {
            Some(task) if !task.is_finished() => {
                task.abort();
                true
            }
            _ => false,
        }
    }

    pub(crate) fn stop_chunk(&self, index: ChunkIndex) {
        if let Some(task) = self
            .arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&index)
        {
            // Dropping the stream tells the sender to stop.
            task.abort();
        }
    }

    /// Where the other side is, or was when it connected.
    pub(crate) fn address(&self) -> IpAddr {
        self.address.ip()
    }

    /// The address of this host that the other side dialed.
    pub(crate) fn local_address(&self) -> Option<IpAddr> {
        let local = self.connection.local_ip().filter(|_| self.was_dialed_to);
        local.map(|address| address.to_canonical())
    }

    /// Whether the other side has been sending from another address than it dialed from for so long. Said
    /// once.
    pub(crate) fn has_moved(&mut self, patience: Duration) -> bool {
        if !self.was_dialed_to || canonical(self.connection.remote_address()) == self.address {
            return false;
        }
        match *self.moved.get_or_insert_with(|| Some(Instant::now())) {
            Some(since) if since.elapsed() >= patience => {
                self.moved = Some(None);
                true
            }
            _ => false,
        }
    }

    /// What the other side may have in flight that has not been read.
    pub(crate) fn set_window(&self, bytes: u32) {
        self.connection.set_receive_window(VarInt::from_u32(bytes));
    }

    pub(crate) fn close(self, reason: CloseReason) {
        // Whoever is not trusted any more may be let in again, and is told so.
        let code = match reason {
            CloseReason::Revoked => tls::CLOSE_UNTRUSTED,
            _ => CLOSE_SWARM,
        };
        part(&self.connection, code, reason.to_string().as_bytes());
    }
}

/// Opens the control stream of a connection that this side dialed.
pub(crate) async fn open_control(
    connection: &Connection,
) -> Result<(SendStream, RecvStream), LinkError> {
    let (send, receive) = timeout(HELLO_TIMEOUT, connection.open_bi())
        .await
        .map_err(|_| LinkError::Silent)??;
    // It fails only on a stream that is closed already, which the first write reports.
    let _ = send.set_priority(CONTROL_PRIORITY);
    Ok((send, receive))
}

/// Accepts the control stream of a connection that the other side dialed, and its first frame.
pub(crate) async fn accept_control(
    connection: &Connection,
) -> Result<((SendStream, RecvStream), Hello), LinkError> {
    let accept = async {
        let (send, mut receive) = connection.accept_bi().await?;
        let _ = send.set_priority(CONTROL_PRIORITY);
        let frame = framing::read_frame(&mut receive, FRAME_BYTES_MAX).await?;
        Ok(((send, receive), decode_hello(&frame)?))
    };
    timeout(HELLO_TIMEOUT, accept)
        .await
        .map_err(|_| LinkError::Silent)?
}

/// Why a connection did not become a link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No control stream or no first frame in time.
    #[error("no hello within {} s", HELLO_TIMEOUT.as_secs())]
    Silent,
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] quinn::ConnectionError),
    /// The first frame could not be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The first frame is no hello.
    #[error(transparent)]
    Decode(#[from] rootswarm_swarm::DecodeError),
}

impl LinkError {
    /// Whether the other side has ended the connection because it does not take this node's certificate.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, LinkError::Connection(error) if tls::refusal(error).is_some())
    }

    /// Whether no honest program says such a thing: QUIC has already ruled out damage on the way.
    pub(crate) fn breaks_protocol(&self) -> bool {
        match self {
            LinkError::Decode(_) | LinkError::Frame(FrameError::TooLong { .. }) => true,
            // An honest one ends like this when it is killed.
            LinkError::Silent
            | LinkError::Connection(_)
            | LinkError::Frame(FrameError::Truncated | FrameError::Closed | FrameError::Read(_)) => {
                false
            }
        }
    }
}

async fn write_control(
    mut stream: SendStream,
    mut queue: mpsc::Receiver<Vec<u8>>,
    control_first: Arc<ControlFirst>,
) {
    // Nothing is kept between two batches: most of a seed's nodes are told something once a minute.
    loop {
        let mut frames = Vec::new();
        if queue.recv_many(&mut frames, CONTROL_BATCH).await == 0 {
            return;
        }
        let mut batch = Vec::new();
        for frame in frames {
            framing::push_frame(&mut batch, &frame);
        }
        if control_first.write(&mut stream, &batch).await.is_err() {
            // The reader reports the end of the connection.
            return;
        }
    }
}

struct ControlReader {
    conn: ConnId,
    wire: Wire,
    /// Where a peer is. Seeds are vouched for by the swarm key.
    peer: Option<IpAddr>,
    shared: Arc<Shared>,
    greeted: bool,
    pace: ReadingPace,
}

impl ControlReader {
    async fn run(mut self, mut stream: RecvStream, connection: Connection) {
        let reason = loop {
            match self.step(&mut stream).await {
                Ok(event) => {
                    if self.shared.events.send(event).await.is_err() {
                        break "the swarm has ended".to_owned();
                    }
                }
                Err(error) => {
                    if let Some(address) = self.peer.filter(|_| error.breaks_protocol()) {
                        tracing::info!(%address, %error, "a peer broke the protocol");
                        self.shared.conduct.broke_protocol(address);
                    }
                    break error.to_string();
                }
            }
        };
        tracing::debug!(conn = self.conn.0, %reason, "link ended");
        part(&connection, CLOSE_SWARM, reason.as_bytes());
        let gone = Event::Gone { conn: self.conn };
        let _ = self.shared.events.send(gone).await;
    }

    async fn step(&mut self, stream: &mut RecvStream) -> Result<Event, LinkError> {
        let conn = self.conn;
        if self.greeted {
            let frame = framing::read_frame(stream, FRAME_BYTES_MAX).await?;
            let message = decode_message(&frame)?;
            if message.wire() > self.wire {
                return Err(DecodeError::OtherVersion.into());
            }
            self.pace.read(&message, frame.len()).await;
            return Ok(Event::Message { conn, message });
        }
        let frame = timeout(HELLO_TIMEOUT, framing::read_frame(stream, FRAME_BYTES_MAX))
            .await
            .map_err(|_| LinkError::Silent)??;
        self.greeted = true;
        Ok(Event::Hello {
            conn,
            hello: decode_hello(&frame)?,
        })
    }
}

struct Acceptor {
    conn: ConnId,
    connection: Connection,
    shared: Arc<Shared>,
    arrivals: Arc<Mutex<BTreeMap<ChunkIndex, AbortHandle>>>,
    exchanged: ChunksExchanged,
    /// A seed's chunks may wait behind each other.
    moving: Option<Moving>,
}

impl Acceptor {
    /// Takes chunk streams. How many may be open at once is bounded by the transport's stream
    /// limit, and their bytes by its windows.
    async fn run(self) {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.connection.accept_uni() => match accepted {
                    Ok(stream) => {
                        let arrival = Arrival {
                            conn: self.conn,
                            shared: self.shared.clone(),
                            arrivals: self.arrivals.clone(),
                            exchanged: self.exchanged.clone(),
                            moving: self.moving.clone(),
                        };
                        let (announce, start) = tokio::sync::oneshot::channel();
                        let task = streams.spawn(arrival.run(stream, start));
                        // The task registers itself by this handle, so that it can be stopped.
                        let _ = announce.send(task);
                    }
                    Err(_) => return,
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }
}

struct Arrival {
    conn: ConnId,
    shared: Arc<Shared>,
    arrivals: Arc<Mutex<BTreeMap<ChunkIndex, AbortHandle>>>,
    exchanged: ChunksExchanged,
    moving: Option<Moving>,
}

impl Arrival {
    async fn run(
        self,
        mut stream: RecvStream,
        handle: tokio::sync::oneshot::Receiver<AbortHandle>,
    ) {
        let Ok(handle) = handle.await else { return };
        let Some(index) = self.header(&mut stream).await else {
            return;
        };
        let older = self
            .arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(index, handle);
        if let Some(older) = older {
            // The same chunk twice at a time: the first was called off and its reset is on its way,
            // or the sender wants to be given a buffer for each. There is one.
            older.abort();
        }
        let conn = self.conn;
        let events = &self.shared.events;
        if events
            .send(Event::ChunkStarted { conn, index })
            .await
            .is_err()
        {
            return;
        }
        let outcome = self.take(&mut stream, index).await;
        self.arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&index);
        if outcome == ChunkOutcome::Verified {
            self.exchanged.one();
        }
        let _ = events
            .send(Event::ChunkEnded {
                conn,
                index,
                outcome,
            })
            .await;
    }

    /// The chunk's index, if the header is a legal one; otherwise the stream is stopped.
    async fn header(&self, stream: &mut RecvStream) -> Option<ChunkIndex> {
        let mut inbox = Inbox::new(stream, self.moving.clone());
        let (index, length) = inbox.header().await?;
        let geometry = self.shared.verifier.manifest().geometry();
        let legal = self.shared.sink.is_some()
            && geometry.contains(index)
            && geometry.chunk_len(index) == length;
        legal.then_some(index)
    }

    /// A chunk that fits into a piece is verified before it is written, as a whole. A longer one is
    /// written and hashed at its place, piece by piece, and counts for nothing until it is verified.
    async fn take(&self, stream: &mut RecvStream, index: ChunkIndex) -> ChunkOutcome {
        let length = self.shared.verifier.manifest().geometry().chunk_len(index) as usize;
        let mut inbox = Inbox::new(stream, self.moving.clone());
        let mut bytes = self.shared.buffers.take();
        if length <= PIECE_BYTES {
            let whole = inbox.fill(&mut bytes, length).await;
            return match whole == Some(length) && inbox.ends().await {
                true => self.store(index, bytes).await,
                false => {
                    self.shared.buffers.give_back(bytes);
                    ChunkOutcome::Broken
                }
            };
        }
        let begun = self.shared.sink.as_ref().map(|sink| sink.arriving(index));
        let Some(Ok(mut arriving)) = begun else {
            return ChunkOutcome::Broken;
        };
        while arriving.missing() > 0 {
            let wanted = PIECE_BYTES.min(arriving.missing() as usize);
            if inbox.fill(&mut bytes, wanted).await != Some(wanted) {
                break;
            }
            let pushed = tokio::task::spawn_blocking(move || {
                let took = arriving.push(&bytes);
                bytes.clear();
                (took, arriving, bytes)
            });
            let Ok((took, pushed, buffer)) = pushed.await else {
                return ChunkOutcome::Broken;
            };
            (arriving, bytes) = (pushed, buffer);
            let ended = match took {
                Ok(Took::Taken) => continue,
                Ok(Took::Displaced | Took::TooLong) => ChunkOutcome::Broken,
                Ok(Took::Differs) => ChunkOutcome::Corrupt,
                Err(error) => self.failed(&error).await,
            };
            self.shared.buffers.give_back(bytes);
            return ended;
        }
        self.shared.buffers.give_back(bytes);
        if arriving.missing() > 0 || !inbox.ends().await {
            return ChunkOutcome::Broken;
        }
        match tokio::task::spawn_blocking(move || arriving.finish()).await {
            Ok(Ok(Ended::Held(_))) => ChunkOutcome::Verified,
            Ok(Ok(Ended::Corrupt(_))) => ChunkOutcome::Corrupt,
            Ok(Ok(Ended::Broken)) | Err(_) => ChunkOutcome::Broken,
            Ok(Err(error)) => self.failed(&error).await,
        }
    }

    /// This machine's fault, and the end of the download.
    async fn failed(&self, error: &StoreError) -> ChunkOutcome {
        let event = Event::StoreFailed {
            reason: error.to_string(),
        };
        let _ = self.shared.events.send(event).await;
        ChunkOutcome::Broken
    }

    /// Verifies and stores, off the reactor.
    async fn store(&self, index: ChunkIndex, bytes: Vec<u8>) -> ChunkOutcome {
        let shared = self.shared.clone();
        let work = move || {
            let result = match (shared.verifier.verify(index, &bytes), &shared.sink) {
                (Err(_), _) => Ok(ChunkOutcome::Corrupt),
                (Ok(chunk), Some(sink)) => sink.write(chunk).map(|_| ChunkOutcome::Verified),
                (Ok(_), None) => Ok(ChunkOutcome::Broken),
            };
            shared.buffers.give_back(bytes);
            result
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => self.failed(&error).await,
            Err(_) => ChunkOutcome::Broken,
        }
    }
}
