//! Thousands of members at one seed, driven by one process: ten thousand agents do not fit a machine.
//!
//! Each member is real as far as the seed can see: it has a key of its own, joins over QUIC and TLS,
//! stays on the connection it joined on, says hello, keeps alive, and reads all that it is sent. It
//! stores nothing and talks to no other member. A crowd of them is either *idle*, as booted nodes are,
//! or *fetching*: it says that it has nothing, asks the seed for chunks, reads what comes and announces
//! it. They come from as many loopback addresses as the seed's limit for one address makes necessary.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime};
use rootswarm_image::{ChunkIndex, ImageId, Manifest, SignedTag};
use rootswarm_swarm::{ChunkRun, Have, Hello, Message, Role, encode_hello, encode_message};
use rootswarm_transport::identity::NodeKey;
use rootswarm_transport::join::{self, Answer, JoinRequest, SignedRequest, Source};
use rootswarm_transport::tls::Dialer;
use rootswarm_transport::trust::{SeedTrust, SwarmTrust};
use rootswarm_transport::tuning::Tuning;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::hostile::{OutlawError, Prey};

/// Members at one address: a seed takes 64.
const PER_ADDRESS: usize = 60;

/// Joins under way: what a seed of one core answers within a quarter of a second.
const JOINING: usize = 128;

/// For anything that the seed answers at once, on a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// What members do once they have joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// They have the image.
    Idle,
    /// They have nothing yet, ask for it and announce what comes.
    Fetching,
}

/// Members, until dropped.
pub struct Members {
    shared: Arc<Shared>,
    count: usize,
    runtime: Option<Runtime>,
}

struct Shared {
    prey: Prey,
    conduct: Conduct,
    /// Those who are in.
    joined: AtomicUsize,
    /// Attempts that failed; each is made again.
    failed: AtomicUsize,
    /// Connections that ended.
    lost: AtomicUsize,
    chunks: AtomicU64,
    joining: Semaphore,
}

impl Members {
    /// Lets `count` members join, from addresses that begin with 127 and `net`.
    ///
    /// # Errors
    /// When there are no threads or sockets for it.
    pub fn begin(prey: &Prey, count: usize, conduct: Conduct, net: u8) -> std::io::Result<Members> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            prey: prey.clone(),
            conduct,
            joined: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
            chunks: AtomicU64::new(0),
            joining: Semaphore::new(JOINING),
        });
        let mut left = count;
        let mut number: u16 = 0;
        while left > 0 {
            number += 1;
            let [high, low] = number.to_be_bytes();
            let from = Ipv4Addr::new(127, net, high, low);
            let endpoint = runtime.block_on(async { endpoint(from.into()) })?;
            let here = left.min(PER_ADDRESS);
            left -= here;
            for _ in 0..here {
                runtime.spawn(be_member(shared.clone(), endpoint.clone()));
            }
        }
        Ok(Members {
            shared,
            count,
            runtime: Some(runtime),
        })
    }

    /// Waits until all of them are in.
    ///
    /// # Errors
    /// How far they came, when that takes longer than `limit`.
    pub fn wait_joined(&self, limit: Duration) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let joined = self.joined();
            if joined == self.count {
                return Ok(());
            }
            if start.elapsed() > limit {
                let failed = self.shared.failed.load(Ordering::Relaxed);
                return Err(format!(
                    "{joined} of {} members are in after {} s, {failed} attempts failed",
                    self.count,
                    limit.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many are in.
    pub fn joined(&self) -> usize {
        self.shared.joined.load(Ordering::Relaxed)
    }

    /// How many connections ended, whoever ended them.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Chunks that all of them got.
    pub fn chunks(&self) -> u64 {
        self.shared.chunks.load(Ordering::Relaxed)
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A socket at an address of its own, with short connection ids as a node's.
fn endpoint(from: IpAddr) -> std::io::Result<Endpoint> {
    let socket = UdpSocket::bind((from, 0))?;
    let config: EndpointConfig = Tuning::default().endpoint_config();
    Endpoint::new(config, None, socket, Arc::new(TokioRuntime))
}

async fn be_member(shared: Arc<Shared>, endpoint: Endpoint) {
    loop {
        let joined = {
            // It is never closed.
            let Ok(_turn) = shared.joining.acquire().await else {
                return;
            };
            timeout(PATIENCE, Member::join(&shared, &endpoint)).await
        };
        match joined {
            Ok(Ok(member)) => {
                shared.joined.fetch_add(1, Ordering::Relaxed);
                member.stay(&shared).await;
                shared.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(Err(_)) | Err(_) => {
                shared.failed.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

struct Member {
    connection: Connection,
    control: SendStream,
    inbox: RecvStream,
    chunks: u32,
}

fn other(error: impl std::fmt::Display) -> OutlawError {
    OutlawError::Other(error.to_string())
}

fn framed(frame: &[u8]) -> Vec<u8> {
    // Frames of the protocol are far below 4 GiB.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], frame].concat()
}

impl Member {
    async fn join(shared: &Shared, endpoint: &Endpoint) -> Result<Member, OutlawError> {
        let prey = &shared.prey;
        let key = NodeKey::generate().map_err(other)?;
        let dialer = Dialer::join(SwarmTrust::new(SeedTrust::FirstUse), &Tuning::default());
        let connecting = dialer.connect(endpoint, prey.seed, Role::Seed);
        let (connection, _) = connecting.await.map_err(other)?;
        let proof = key.prove(&connection).map_err(other)?;
        let request = SignedRequest {
            key: key.public(),
            proof: proof.to_vec(),
            request: JoinRequest {
                name: prey.name.clone(),
                pin: prey.pin,
                token: None,
                rack: None,
            },
            holds: None,
        };
        let (mut send, mut receive) = connection.open_bi().await.map_err(other)?;
        let request = framed(&join::encode_request(&request));
        send.write_all(&request).await.map_err(other)?;
        let frame = read_frame(&mut receive, join::ANSWER_BYTES_MAX).await?;
        let tag = match join::decode_answer(&frame).map_err(other)? {
            Answer::Refused(refusal) => return Err(OutlawError::Refused(refusal)),
            Answer::Granted { tag, .. } => SignedTag::decode(&tag).map_err(other)?,
        };
        let frame = read_frame(&mut receive, join::SOURCE_BYTES_MAX).await?;
        if let Source::Member { .. } = join::decode_source(&frame).map_err(other)? {
            // The members here serve nobody.
            send.write_all(&framed(join::SEND_IT))
                .await
                .map_err(other)?;
        }
        let bytes = receive.read_to_end(4 << 20).await.map_err(other)?;
        let manifest: Manifest = tag.unverified().decode_manifest(&bytes).map_err(other)?;
        // It has everything.
        let _ = send.finish();
        let chunks = manifest.geometry().chunk_count();
        let (control, inbox) = Member::hello(&connection, *manifest.id(), shared.conduct).await?;
        Ok(Member {
            connection,
            control,
            inbox,
            chunks,
        })
    }

    async fn hello(
        connection: &Connection,
        image: ImageId,
        conduct: Conduct,
    ) -> Result<(SendStream, RecvStream), OutlawError> {
        let (mut control, inbox) = connection.open_bi().await.map_err(other)?;
        let hello = Hello {
            image,
            have: match conduct {
                Conduct::Idle => Have::Everything,
                Conduct::Fetching => Have::Nothing,
            },
            rack: None,
        };
        let hello = framed(&encode_hello(&hello));
        control.write_all(&hello).await.map_err(other)?;
        Ok((control, inbox))
    }

    /// Until the connection ends.
    async fn stay(self, shared: &Shared) {
        let Member {
            connection,
            mut control,
            mut inbox,
            chunks,
        } = self;
        let hear = async { while let Ok(Some(_)) = inbox.read_chunk(64 << 10, true).await {} };
        let act = async {
            match shared.conduct {
                Conduct::Idle => std::future::pending().await,
                Conduct::Fetching => fetch(&connection, &mut control, chunks, shared).await,
            }
        };
        tokio::select! {
            () = hear => {}
            () = act => {}
            _ = connection.closed() => {}
        }
        let _ = connection.closed().await;
    }
}

/// Asks for one chunk after the other, and announces whatever came.
async fn fetch(connection: &Connection, control: &mut SendStream, chunks: u32, shared: &Shared) {
    let mut had = 0_u32;
    let mut next = 0;
    loop {
        let ask = encode_message(&Message::Request(ChunkIndex(next % chunks.max(1))));
        let progress = encode_message(&Message::Progress(had.min(chunks)));
        let said = [framed(&ask), framed(&progress)].concat();
        if control.write_all(&said).await.is_err() {
            return;
        }
        next += 1;
        // It is answered by a chunk, or by a frame that says busy; pushes come by themselves.
        while let Ok(Ok(mut stream)) =
            timeout(Duration::from_secs(2), connection.accept_uni()).await
        {
            let mut header = [0; 8];
            if stream.read_exact(&mut header).await.is_err() {
                continue;
            }
            while let Ok(Some(_)) = stream.read_chunk(64 << 10, true).await {}
            let index = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            had += 1;
            shared.chunks.fetch_add(1, Ordering::Relaxed);
            let run = ChunkRun {
                first: ChunkIndex(index),
                count: 1,
            };
            let have = framed(&encode_message(&Message::Have(vec![run])));
            if control.write_all(&have).await.is_err() {
                return;
            }
        }
    }
}

async fn read_frame(stream: &mut RecvStream, most: usize) -> Result<Vec<u8>, OutlawError> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await.map_err(other)?;
    let mut frame = vec![0; (u32::from_be_bytes(prefix) as usize).min(most)];
    stream.read_exact(&mut frame).await.map_err(other)?;
    Ok(frame)
}
