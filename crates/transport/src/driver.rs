//! Runs one `rootswarm_swarm::Node` in the real world: the only clock of the swarm.
//!
//! One task owns the node. Links and dials report to it through bounded queues, it hands their
//! reports to the node and carries out what the node decides. It also counts bytes, because the
//! node counts chunks. What is decided, and how bytes travel, lies elsewhere.

mod moving;
mod publishing;
mod untold;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::Endpoint;
use rootswarm_image::{Bitfield, ChunkIndex, Manifest, Verifier};
use rootswarm_swarm::{
    ChunkOutcome, CloseReason, Config, ConnId, Input, Instant, Message, Node, NodeId, Output,
    Revocations, Role, UploadOutcome,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant as Clock, timeout};

use crate::chunk_buffers::ChunkBuffers;
use crate::conduct::Conduct;
use crate::dialing;
use crate::handouts::Handouts;
use crate::limiter::RateLimiter;
use crate::link::{Event, Link, Opened, Shared};
use crate::status::{Phase, SwarmStatus};
use crate::store::{ChunkSource, ChunkStore};
use crate::tls::{self, Dialer};
use crate::trust::Gate;
use crate::tuning::{CONNECTION_WINDOW_BYTES, CONNECTION_WINDOW_BYTES_FIRST, peer_window_bytes};
use untold::Untold;

/// Events that wait for the driver. When it is full the links wait, and flow control with them. The
/// largest is a `Have` of 2,048 runs, 16 KiB: 4 MiB if all of them are.
const EVENTS: usize = 256;

/// Commands that wait for the driver.
const COMMANDS: usize = 256;

/// Events taken in per wake-up.
const BATCH: usize = 64;

/// A dial that takes longer has failed: LAN round trips are below a millisecond.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// What others tell the driver.
pub(crate) enum Command {
    /// A connection is ready.
    Attach(Box<Opened>),
    /// A dial came to nothing; whether somebody answered.
    DialFailed(NodeId, bool),
    /// A chunk reached the store by another way.
    Stored(ChunkIndex),
    /// A reader waits for a chunk.
    Want(ChunkIndex),
    /// A seed's admin took admissions back.
    Revoke(Revocations),
    /// This host's addresses may have changed.
    AddressesChanged,
    /// The node has a new certificate to dial with.
    Renewed(Dialer),
    /// Start no more uploads; end when those under way have ended, or at the deadline.
    Drain(Clock),
}

/// What a driver is made from.
pub(crate) struct Setup {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) have: Bitfield,
    pub(crate) source: Arc<dyn ChunkSource>,
    pub(crate) sink: Option<ChunkStore>,
    pub(crate) rack: Option<String>,
    /// Whose certificates are accepted; shared with TLS.
    pub(crate) gate: Gate,
    pub(crate) limiter: Arc<RateLimiter>,
    /// Who is let in; shared with what accepts connections.
    pub(crate) conduct: Arc<Conduct>,
    /// How to reach peers; a seed reaches nobody.
    pub(crate) dialer: Option<(Endpoint, Dialer)>,
}

/// The outside's end of a driver.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) status: Arc<Mutex<SwarmStatus>>,
    /// The nodes that are connected.
    pub(crate) handouts: Arc<Handouts>,
}

impl Handle {
    pub(crate) fn status(&self) -> SwarmStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends the driver: uploads under way are finished within `grace`.
    pub(crate) async fn shutdown(&self, grace: Duration) {
        let deadline = Clock::now() + grace;
        if self.commands.send(Command::Drain(deadline)).await.is_ok() {
            // A second more than the driver takes at most.
            let _ =
                tokio::time::timeout_at(deadline + Duration::from_secs(1), self.commands.closed())
                    .await;
        }
    }
}

/// Starts a driver on the present runtime.
pub(crate) fn spawn(setup: Setup) -> Handle {
    let (events, event_queue) = mpsc::channel(EVENTS);
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let complete = setup.have.is_full();
    let phase = if complete {
        Phase::Complete
    } else {
        Phase::Fetching
    };
    let (phase_sender, phase) = watch::channel(phase);
    let origin = Clock::now();
    let geometry = *setup.manifest.geometry();
    let rng_seed = seed_from_kernel(setup.node);
    let node = Node::new(
        Config {
            node: setup.node,
            role: setup.role,
            image: *setup.manifest.id(),
            geometry,
            have: setup.have,
            rack: setup.rack,
            rng_seed,
        },
        Instant::ZERO,
    );
    let status = Arc::new(Mutex::new(SwarmStatus::new(
        *setup.manifest.id(),
        geometry.length(),
    )));
    let handouts = Handouts::new(!rng_seed);
    let driver = Driver {
        node,
        origin,
        shared: Arc::new(Shared {
            role: setup.role,
            verifier: Verifier::new(setup.manifest),
            source: setup.source,
            sink: setup.sink,
            limiter: setup.limiter,
            bytes_uploaded: AtomicU64::new(0),
            events,
            buffers: ChunkBuffers::default(),
            conduct: setup.conduct,
        }),
        links: BTreeMap::new(),
        roles: BTreeMap::new(),
        proven: BTreeSet::new(),
        members: BTreeMap::new(),
        handouts: handouts.clone(),
        marked: false,
        gate: setup.gate,
        next_conn: 0,
        dialer: setup.dialer,
        dials: JoinSet::new(),
        uploads: 0,
        draining: None,
        phase: phase_sender,
        status: status.clone(),
        tally: Tally::default(),
        progress_at: origin,
        published_at: origin,
        untold: Untold::new(origin),
        weak_commands: commands.downgrade(),
    };
    tokio::spawn(driver.run(event_queue, command_queue));
    Handle {
        commands,
        phase,
        status,
        handouts,
    }
}

/// The generator only spreads load, so the node's identity will do where the kernel refuses.
fn seed_from_kernel(node: NodeId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = node.0;
    getrandom::u64().unwrap_or(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

#[derive(Default)]
struct Tally {
    from_seed: u64,
    from_peers: u64,
    duplicate: u64,
    first_chunk_at: Option<Clock>,
}

struct Driver {
    node: Node,
    origin: Clock,
    shared: Arc<Shared>,
    links: BTreeMap<ConnId, Link>,
    roles: BTreeMap<ConnId, Role>,
    /// Those from which a chunk has come that matches its hash.
    proven: BTreeSet<ConnId>,
    /// The nodes' certificates: id and epoch.
    members: BTreeMap<ConnId, (NodeId, u32)>,
    /// The same, for those who are looking for a member.
    handouts: Arc<Handouts>,
    /// Some of them were marked as hard to reach.
    marked: bool,
    gate: Gate,
    next_conn: u64,
    dialer: Option<(Endpoint, Dialer)>,
    dials: JoinSet<()>,
    /// Uploads under way.
    uploads: usize,
    draining: Option<Clock>,
    phase: watch::Sender<Phase>,
    status: Arc<Mutex<SwarmStatus>>,
    tally: Tally,
    progress_at: Clock,
    published_at: Clock,
    untold: Untold,
    /// Weak, so that the driver ends when nobody holds its handle any more.
    weak_commands: mpsc::WeakSender<Command>,
}

impl Driver {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut commands: mpsc::Receiver<Command>,
    ) {
        self.publish();
        loop {
            self.carry_out();
            self.publish_if_due();
            if let Some(deadline) = self.draining
                && (self.uploads == 0 || deadline <= Clock::now())
            {
                break;
            }
            let wake = self.wake_at();
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                Some(event) = events.recv() => {
                    self.take_in(event);
                    for _ in 1..BATCH {
                        let Ok(event) = events.try_recv() else { break };
                        self.take_in(event);
                    }
                }
                Some(_) = self.dials.join_next() => {}
                () = tokio::time::sleep_until(wake) => self.tell(Input::Timeout),
            }
        }
        commands.close();
        self.publish();
        for (_, link) in std::mem::take(&mut self.links) {
            link.close(rootswarm_swarm::CloseReason::Done);
        }
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn wake_at(&self) -> Clock {
        let node = self.origin + Duration::from_micros(self.node.next_timeout().0);
        let status = self.published_at + self.status_every();
        let wake = node.min(status);
        self.draining.map_or(wake, |deadline| deadline.min(wake))
    }

    fn tell(&mut self, input: Input) {
        let now = self.now();
        self.node.handle(now, input);
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Hello { conn, hello } => self.tell(Input::Hello { conn, hello }),
            Event::Message {
                conn,
                message: Message::Request(index),
            } if self.draining.is_some() => {
                if let Some(link) = self.links.get(&conn) {
                    link.send(&Message::Busy(index));
                }
            }
            // A seed's connection may be that of whoever stole its TLS key. A node's is the node's offence.
            Event::Message {
                conn,
                message: Message::Revoked(list),
            } if self.roles.get(&conn) == Some(&Role::Seed) && !self.gate.believes(&list) => {
                tracing::warn!(
                    conn = conn.0,
                    "a seed sent revocations that the swarm key has not signed: not believed"
                );
            }
            Event::Message { conn, message } => self.tell(Input::Message { conn, message }),
            Event::ChunkStarted { conn, index } => self.tell(Input::ChunkStarted { conn, index }),
            Event::ChunkEnded {
                conn,
                index,
                outcome,
            } => {
                if outcome == ChunkOutcome::Verified {
                    if self.proven.insert(conn) {
                        self.share_windows();
                    }
                    self.count(conn, index);
                }
                self.tell(Input::ChunkEnded {
                    conn,
                    index,
                    outcome,
                });
            }
            Event::UploadEnded {
                conn,
                index,
                outcome,
            } => self.upload_ended(conn, index, outcome),
            Event::UploadStalled { conn, index } => {
                self.tell(Input::UploadStalled { conn, index });
            }
            Event::Gone { conn } => {
                self.tell(Input::Disconnected { conn });
                self.forget(conn);
            }
            Event::StoreFailed { reason } => {
                tracing::error!(%reason, "the image cannot be stored");
                self.phase.send_replace(Phase::Failed(reason));
            }
        }
        self.carry_out();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(opened) => self.attach(*opened),
            Command::DialFailed(node, answered) => {
                self.tell(Input::DialFailed { node, answered });
            }
            Command::Stored(index) => {
                self.progress_at = Clock::now();
                self.tell(Input::ChunkStored { index });
            }
            Command::Want(index) => self.tell(Input::Want { index }),
            Command::Revoke(list) => self.tell(Input::Revoke(list)),
            Command::Renewed(dialer) => {
                if let Some((_, old)) = &mut self.dialer {
                    *old = dialer;
                }
            }
            Command::AddressesChanged => self.drop_unaddressed(),
            Command::Drain(deadline) => self.draining = Some(deadline),
        }
    }

    fn attach(&mut self, mut opened: Opened) {
        if self.draining.is_some() {
            return;
        }
        // TLS has asked the gate too, but it may have closed since.
        if let Some(epoch) = opened.epoch {
            if let Err(refused) = self.gate.admit(&opened.node, epoch) {
                return opened
                    .connection
                    .close(tls::CLOSE_UNTRUSTED, refused.to_string().as_bytes());
            }
            self.members
                .insert(ConnId(self.next_conn), (opened.node, epoch));
        }
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        let (node, addr, role, dialed) = (opened.node, opened.addr, opened.role, opened.dialed);
        tracing::debug!(conn = conn.0, %node, %addr, ?role, dialed, "connected");
        let wire = tls::wire(&opened.connection);
        let hello = opened.hello.take();
        let greeted = hello.is_some();
        self.links.insert(
            conn,
            Link::start(conn, opened, greeted, self.shared.clone()),
        );
        self.roles.insert(conn, role);
        if role == Role::Peer {
            self.handouts.came(conn, node, addr);
        }
        self.share_windows();
        self.tell(Input::Connected {
            conn,
            node,
            addr,
            role,
            dialed,
            wire,
        });
        if let Some(hello) = hello {
            self.tell(Input::Hello { conn, hello });
        }
    }

    fn count(&mut self, conn: ConnId, index: ChunkIndex) {
        let bytes = u64::from(self.shared.verifier.manifest().geometry().chunk_len(index));
        if self.node.have().get(index) {
            self.tally.duplicate += bytes;
            return;
        }
        self.progress_at = Clock::now();
        self.tally.first_chunk_at.get_or_insert(self.progress_at);
        match self.roles.get(&conn) {
            Some(Role::Seed) => self.tally.from_seed += bytes,
            _ => self.tally.from_peers += bytes,
        }
    }

    fn upload_ended(&mut self, conn: ConnId, index: ChunkIndex, outcome: UploadOutcome) {
        tracing::trace!(conn = conn.0, %index, ?outcome, "upload ended");
        if self.links.contains_key(&conn) {
            self.uploads = self.uploads.saturating_sub(1);
            self.tell(Input::UploadEnded {
                conn,
                index,
                outcome,
            });
        }
    }

    fn forget(&mut self, conn: ConnId) -> Option<Link> {
        self.roles.remove(&conn);
        self.proven.remove(&conn);
        self.members.remove(&conn);
        self.handouts.left(conn);
        let link = self.links.remove(&conn)?;
        self.share_windows();
        self.uploads = self.uploads.saturating_sub(link.uploads());
        Some(link)
    }

    /// What has arrived and was not read is memory: the peers' parts of it follow their number. Who has
    /// sent no chunk yet keeps what its connection began with: two peers of twenty that filled such a
    /// part with control frames nobody reads took a tenth of a slow link from the others. A seed gets no
    /// chunks at all.
    fn share_windows(&self) {
        if self.shared.sink.is_none() {
            return;
        }
        let peers = self.roles.values().filter(|role| **role == Role::Peer);
        let part = peer_window_bytes(peers.count());
        for (conn, link) in &self.links {
            link.set_window(match self.roles.get(conn) {
                // It is vouched for by the swarm key.
                Some(Role::Seed) => CONNECTION_WINDOW_BYTES,
                _ if self.proven.contains(conn) => part,
                _ => CONNECTION_WINDOW_BYTES_FIRST,
            });
        }
    }

    /// Does what the node decided.
    fn carry_out(&mut self) {
        while let Some(output) = self.node.poll_output() {
            tracing::trace!(?output);
            match output {
                Output::Hello { conn, hello } => {
                    if let Some(link) = self.links.get(&conn) {
                        link.hello(&hello);
                    }
                }
                Output::Send { conn, message } => {
                    if let Some(link) = self.links.get(&conn) {
                        link.send(&message);
                    }
                }
                Output::Upload { conn, index } => {
                    if let Some(link) = self.links.get_mut(&conn) {
                        link.upload(index);
                        self.uploads += 1;
                    }
                }
                Output::CancelUpload { conn, index } => {
                    if self
                        .links
                        .get_mut(&conn)
                        .is_some_and(|link| link.cancel_upload(index))
                    {
                        self.upload_ended(conn, index, UploadOutcome::Refused);
                    }
                }
                Output::StopChunk { conn, index } => {
                    if let Some(link) = self.links.get(&conn) {
                        link.stop_chunk(index);
                    }
                }
                Output::Dial { node, addr } => self.dial(node, addr),
                Output::Close { conn, reason } => {
                    tracing::debug!(conn = conn.0, %reason, "closing");
                    if let Some(link) = self.forget(conn) {
                        if reason.is_offence() {
                            self.shared.conduct.broke_protocol(link.address());
                        }
                        link.close(reason);
                    }
                }
                Output::Revoked(list) => {
                    self.gate.apply(&list);
                    self.drop_outlawed();
                }
                Output::Complete => {
                    self.shared.buffers.close();
                    self.publish();
                    self.phase.send_replace(Phase::Complete);
                }
            }
        }
    }

    /// Parts from nodes whose certificate is not good any more.
    fn drop_outlawed(&mut self) {
        let members = self.members.iter();
        let outlawed: Vec<ConnId> = members
            .filter(|(_, (node, epoch))| self.gate.admit(node, *epoch).is_err())
            .map(|(conn, _)| *conn)
            .collect();
        for conn in outlawed {
            if let Some(link) = self.forget(conn) {
                self.tell(Input::Disconnected { conn });
                link.close(CloseReason::Revoked);
            }
        }
    }

    fn dial(&mut self, node: NodeId, addr: std::net::SocketAddr) {
        let (Some((endpoint, dialer)), Some(commands)) =
            (self.dialer.clone(), self.weak_commands.upgrade())
        else {
            return;
        };
        self.dials.spawn(async move {
            let command = match timeout(
                DIAL_TIMEOUT,
                dialing::open(&endpoint, &dialer, addr, Some(node), Role::Peer),
            )
            .await
            {
                Ok(Ok(opened)) => Command::Attach(Box::new(opened)),
                Ok(Err(error)) => {
                    tracing::debug!(%node, %addr, %error, "dial failed");
                    Command::DialFailed(node, error.is_answer())
                }
                Err(_) => {
                    tracing::debug!(%node, %addr, "dial timed out");
                    Command::DialFailed(node, false)
                }
            };
            let _ = commands.send(command).await;
        });
    }
}
