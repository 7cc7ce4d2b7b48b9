//! The node's side: join a swarm, fetch its image, serve it to others.
//!
//! [`Node::join`] is one attempt, bounded in time; when and how often to try is the caller's.
//! [`Node::start`] then keeps the connection to the seeds up by itself for as long as the swarm
//! runs: a seed that comes back finds its nodes again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::Endpoint;
use rootswarm_image::{Bitfield, ImageId, Manifest, Tag, TagError};
use rootswarm_swarm::Role;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::addresses::AddressWatch;
use crate::conduct::Conduct;
use crate::driver::{self, Command, Setup};
use crate::endpoint;
pub use crate::endpoint::StartError;
use crate::handing_on;
use crate::http_proof;
use crate::identity::{Identity, NodeKey};
pub use crate::join::{JoinRequest, Refusal};
use crate::joining::{self, Admission};
use crate::limiter::RateLimiter;
use crate::link::{self, Opened};
use crate::places::{Limits, Place, Places};
use crate::retries::RetryKey;
use crate::seed_keeper::SeedKeepers;
use crate::socket::{Bind, canonical};
pub use crate::status::{Phase, SwarmStatus};
use crate::store::{ChunkSource, ChunkStore};
pub use crate::swarm_handle::{SwarmError, SwarmHandle};
use crate::tls::{Dialer, Listener, Purpose};
pub use crate::trust::SeedTrust;
use crate::trust::{PeerIdentity, SwarmTrust, TrustError};
use crate::tuning::Tuning;

/// For reaching one seed.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// For a peer to say who it is and what it wants.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(4);

/// Handshakes from peers under way at once. A node does not know the seed's allow-list: what it knows of
/// strangers is whether they say anything.
const NEWCOMERS: Limits = Limits {
    all: 64,
    // Some may be behind one address, and some of those may be given up already.
    address: 16,
    subnet: Some(48),
    grace: Duration::from_secs(1),
};

/// Peers' connections from one address: a fraction of the most that a node has, so that one machine with many
/// keys is not all that a node sees of the swarm.
const PEERS: Limits = Limits {
    // How many there are in all is the swarm's to say.
    all: usize::MAX,
    address: 20,
    subnet: Some(usize::MAX),
    grace: Duration::ZERO,
};

/// Handshakes that peers at one address may make in a row: each makes one in its boot, some a second one
/// when both dialed at once.
const HANDSHAKES: u32 = 32;
/// In which one more is allowed.
const HANDSHAKE_FADES: Duration = Duration::from_secs(2);

/// Above this many, strangers must prove their address first: a round trip more, and whoever floods a
/// node from forged addresses holds no more places than this.
const VALIDATE_ABOVE: usize = 16;

/// What those count as who have not proven their address: forging one takes no place from who is there.
const UNPROVEN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

const _: () = assert!(NEWCOMERS.address == VALIDATE_ABOVE);

/// What a node is made from.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The address to listen on and to dial from; by default every one.
    pub bind: Option<IpAddr>,
    /// The UDP port; 0 is any.
    pub port: u16,
    /// How seeds are trusted.
    pub trust: SeedTrust,
    /// The most payload to send, in bytes per second.
    pub upload_limit_bytes_per_s: Option<u64>,
    /// The network's properties.
    pub tuning: Tuning,
}

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is nobody to ask.
    #[error("no seed to join: the rooturl names no address")]
    NoSeeds,
    /// No answer, or it broke off.
    #[error("cannot reach the seed {seed}: {reason}")]
    Unreachable {
        /// Which.
        seed: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// The seed is not the one that is trusted.
    #[error("the seed {seed} is not trusted: {source}")]
    Trust {
        /// Which.
        seed: SocketAddr,
        /// Why.
        source: TrustError,
    },
    /// The seed refused this node.
    #[error("the seed {seed} refused: {refusal}")]
    Refused {
        /// Which.
        seed: SocketAddr,
        /// Its words.
        refusal: Refusal,
    },
    /// The name means another image than the one that is pinned.
    #[error("the pin does not match: {expected} was asked for, the seed {seed} has {found}")]
    PinMismatch {
        /// Which seed.
        seed: SocketAddr,
        /// The pin.
        expected: ImageId,
        /// What the seed has under that name.
        found: ImageId,
    },
    /// The tag's signature or name does not hold.
    #[error("the seed {seed} sent a tag that does not hold: {source}")]
    Tag {
        /// Which seed.
        seed: SocketAddr,
        /// Why.
        source: TagError,
    },
    /// The seed speaks another version, or nonsense.
    #[error("the seed {seed} answered with something else: {reason}")]
    Protocol {
        /// Which seed.
        seed: SocketAddr,
        /// What.
        reason: String,
    },
    /// Some seeds refused and the others did not answer: it is too early to give up.
    #[error("{refused}; {network}")]
    Undecided {
        /// The first refusal.
        refused: Box<JoinError>,
        /// Why another seed said nothing.
        network: Box<JoinError>,
    },
    /// This machine's side.
    #[error(transparent)]
    Local(#[from] StartError),
}

impl JoinError {
    /// Whether another attempt may end differently without anybody changing anything. Somebody may
    /// change something, though: a boot makes another attempt after most of the other errors too.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            JoinError::Unreachable { .. }
                | JoinError::Undecided { .. }
                | JoinError::Refused {
                    refusal: Refusal::Busy,
                    ..
                }
        )
    }
}

/// A machine that may join swarms.
pub struct Node {
    pub(crate) endpoint: Endpoint,
    opened: endpoint::Opened,
    addresses: AddressWatch,
    pub(crate) key: Arc<NodeKey>,
    pub(crate) trust: SwarmTrust,
    pub(crate) tuning: Tuning,
    limiter: Arc<RateLimiter>,
    pub(crate) retries: RetryKey,
}

/// Admitted, and told what the image is.
pub struct Joined {
    /// What the name means, as signed by the swarm key.
    pub tag: Tag,
    /// The image's chunks; they merge to the tag's id.
    pub manifest: Arc<Manifest>,
    pub(crate) identity: Identity,
    pub(crate) seeds: Vec<SocketAddr>,
    pub(crate) request: JoinRequest,
    /// The connection to the seed that answered.
    pub(crate) admission: Option<Admission>,
}

impl Joined {
    /// The seed that let this node in, by its certificate.
    #[must_use]
    pub fn seed(&self) -> Option<PeerIdentity> {
        self.admission.as_ref().map(|admission| admission.seed)
    }
}

impl Node {
    /// Takes no seed whose certificate is of an earlier epoch: the one in which the initrd was built.
    #[must_use]
    pub fn since_epoch(mut self, least_epoch: u32) -> Node {
        self.trust = self.trust.since_epoch(least_epoch);
        self
    }

    /// Makes a key and a socket.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(config: NodeConfig) -> Result<Node, StartError> {
        let key = Arc::new(NodeKey::generate()?);
        let bind = match config.bind {
            Some(ip) => Bind::Address(SocketAddr::new(ip, config.port)),
            None => Bind::Any { port: config.port },
        };
        let opened = endpoint::open(bind, &config.tuning, None, None)?;
        Ok(Node {
            endpoint: opened.endpoint.clone(),
            opened,
            addresses: AddressWatch::begin(),
            key,
            trust: SwarmTrust::new(config.trust),
            tuning: config.tuning,
            limiter: Arc::new(RateLimiter::new(config.upload_limit_bytes_per_s)),
            retries: RetryKey::random()?,
        })
    }

    /// What this node shows with a token to a seed's HTTP side, which then knows it when it joins
    /// ([`http_proof::SESSION`]).
    #[must_use]
    pub fn http_session(&self, token: &str) -> String {
        http_proof::of_session(&self.key, token)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.opened.address
    }

    /// Asks each seed once, each a little after the one before it, until one lets this node join.
    ///
    /// # Errors
    /// The first seed's [`JoinError`] that is not a matter of the network, if all of them answered;
    /// [`JoinError::Undecided`] if some did not; else the last seed's.
    pub async fn join(
        &self,
        seeds: &[SocketAddr],
        request: &JoinRequest,
    ) -> Result<Joined, JoinError> {
        joining::first_of(self, seeds, request).await
    }

    /// Fetches the image into `store` and serves it meanwhile and afterwards.
    ///
    /// # Errors
    /// The TLS configuration.
    pub fn start(self, joined: Joined, store: ChunkStore) -> Result<SwarmHandle, StartError> {
        let have = store.have();
        let source = Arc::new(store.clone());
        self.run(joined, have, source, Some(store))
    }

    /// Takes part as a peer that already has the image, wherever it is kept.
    ///
    /// # Errors
    /// The TLS configuration.
    pub fn serve(
        self,
        joined: Joined,
        source: Arc<dyn ChunkSource>,
    ) -> Result<SwarmHandle, StartError> {
        let have = Bitfield::full(joined.manifest.geometry().chunk_count());
        self.run(joined, have, source, None)
    }

    fn run(
        self,
        joined: Joined,
        have: Bitfield,
        source: Arc<dyn ChunkSource>,
        store: Option<ChunkStore>,
    ) -> Result<SwarmHandle, StartError> {
        let dialer = Dialer::data(joined.identity.clone(), &self.tuning);
        self.endpoint
            .set_server_config(Some(Listener::server_config(
                &joined.identity,
                &self.tuning,
                &self.retries,
            )?));
        let conduct = Conduct::new(HANDSHAKES, HANDSHAKE_FADES);
        let handle = driver::spawn(Setup {
            node: joined.identity.node_id(),
            role: Role::Peer,
            manifest: joined.manifest.clone(),
            have,
            source,
            sink: store.clone(),
            rack: joined.request.rack.clone(),
            gate: joined.identity.gate().clone(),
            limiter: self.limiter.clone(),
            conduct: conduct.clone(),
            dialer: Some((self.endpoint.clone(), dialer)),
        });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(accept(
            self.endpoint.clone(),
            Door {
                image: *joined.manifest.id(),
                manifest: Bytes::from(joined.manifest.encode()),
                peers: Places::new(PEERS),
                conduct,
            },
            handle.commands.clone(),
        ));
        let endpoint = self.endpoint.clone();
        let node = Arc::new(self);
        let (moved, moves) = watch::channel(());
        tasks.spawn(follow_addresses(
            node.clone(),
            handle.commands.clone(),
            moved,
        ));
        let mut seeds = SeedKeepers::new(
            node,
            joined.identity,
            joined.request,
            joined.manifest,
            handle.commands.clone(),
            moves,
        );
        seeds.keep(&joined.seeds, joined.admission);
        Ok(SwarmHandle {
            handle,
            endpoint,
            store,
            seeds,
            tasks,
        })
    }
}

/// Tells connections and keepers when this host's addresses may have changed. Which were lost is the
/// driver's to find out, and where a seed is reached from is its keeper's.
async fn follow_addresses(
    node: Arc<Node>,
    commands: mpsc::Sender<Command>,
    moved: watch::Sender<()>,
) {
    loop {
        node.addresses.changed().await;
        node.opened.announce_address();
        moved.send_replace(());
        if commands.send(Command::AddressesChanged).await.is_err() {
            return;
        }
    }
}

/// Lets peers in.
async fn accept(endpoint: Endpoint, door: Door, commands: mpsc::Sender<Command>) {
    let listener = Arc::new(Listener::new(VALIDATE_ABOVE));
    let newcomers = Places::new(NEWCOMERS);
    while let Some(incoming) = endpoint.accept().await {
        let from = canonical(incoming.remote_address());
        if !door.conduct.is_welcome(from.ip()) {
            incoming.refuse();
            continue;
        }
        let is_proven = incoming.remote_address_validated();
        let counted = match is_proven {
            true => from.ip(),
            false => UNPROVEN,
        };
        let Some(place) = newcomers.enter(counted) else {
            match is_proven {
                true => incoming.refuse(),
                // It fails only for one that is proven.
                false => drop(incoming.retry()),
            }
            continue;
        };
        let (listener, commands, door) = (listener.clone(), commands.clone(), door.clone());
        tokio::spawn(async move {
            place.idle();
            let welcome = welcome(&listener, incoming, from, &door, &commands, &place);
            tokio::select! {
                welcomed = timeout(WELCOME_TIMEOUT, welcome) => match welcomed {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%from, %error, "peer not let in"),
                    Err(_) => tracing::debug!(%from, "peer not let in: too slow"),
                },
                () = place.taken_back() => {
                    tracing::debug!(%from, "peer not let in: it said nothing, and others wait");
                }
            }
        });
    }
}

/// Who is let in.
#[derive(Clone)]
struct Door {
    /// Who wants this image.
    image: ImageId,
    /// Its manifest, for those who have just joined.
    manifest: Bytes,
    /// And is not one of too many from one address.
    peers: Arc<Places>,
    /// Nor one that comes too often.
    conduct: Arc<Conduct>,
}

async fn welcome(
    listener: &Listener,
    incoming: quinn::Incoming,
    from: SocketAddr,
    door: &Door,
    commands: &mpsc::Sender<Command>,
    place: &Place,
) -> Result<(), String> {
    let accepted = listener
        .accept(incoming)
        .await
        .map_err(|error| error.to_string())?;
    let Some((connection, purpose)) = accepted else {
        return Ok(());
    };
    door.conduct.came(from.ip());
    let peer = match purpose {
        Purpose::Data(peer) => peer,
        Purpose::Manifest => {
            let manifest = door.manifest.clone();
            place.busy();
            return handing_on::serve(&connection, &door.image, manifest, WELCOME_TIMEOUT).await;
        }
        // A node does not offer their protocols.
        Purpose::Join | Purpose::Mirror => {
            connection.close(link::CLOSE_SWARM, b"this is a node, not a seed");
            return Err("it took this node for a seed".to_owned());
        }
    };
    let Some(peer_place) = door.peers.enter(from.ip()) else {
        connection.close(link::CLOSE_SWARM, b"too many connections from this address");
        return Err("too many connections from its address".to_owned());
    };
    let (control, hello) = match link::accept_control(&connection).await {
        Ok(accepted) => accepted,
        Err(error) => {
            if error.breaks_protocol() {
                door.conduct.broke_protocol(from.ip());
            }
            connection.close(link::CLOSE_SWARM, error.to_string().as_bytes());
            return Err(error.to_string());
        }
    };
    if hello.image != door.image {
        connection.close(link::CLOSE_SWARM, b"this node serves another image");
        return Err(format!("it asked for image {}", hello.image));
    }
    let opened = Opened {
        connection,
        node: peer.node_id,
        role: peer.role,
        epoch: peer.epoch,
        addr: from,
        dialed: false,
        control,
        hello: Some(hello),
        place: Some(peer_place),
    };
    commands
        .send(Command::Attach(Box::new(opened)))
        .await
        .map_err(|_| "the swarm has ended".to_owned())
}

#[cfg(test)]
mod tests;
