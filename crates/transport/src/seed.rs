//! The seed's side: an endpoint that admits nodes and runs one swarm for each image.
//!
//! Who may join and what a name means now is asked of a [`Directory`]; which chunk goes where is
//! decided by `rootswarm_swarm`. This file accepts connections, answers joins, and hands data
//! connections to the swarm of the image they name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, ServerConfig, VarInt};
use rootswarm_image::{Bitfield, ImageId, Manifest, SignedTag, SwarmKey};
use rootswarm_swarm::Role;
use rootswarm_swarm::limits::SEED_NEIGHBOURS_MAX;
pub use rootswarm_swarm::{NodeId, Revocations};
use tokio::time::timeout;

use crate::blocking::Blocking;
use crate::driver::{self, Command, Handle, Setup};
use crate::endpoint;
pub use crate::endpoint::StartError;
use crate::framing;
use crate::handouts::{self, Holder};
use crate::identity::{Identity, SwarmCa};
use crate::join::{self, Answer, REQUEST_BYTES_MAX, SEND_IT, Source};
pub use crate::join::{JoinRequest, Refusal};
use crate::limiter::RateLimiter;
use crate::link::{self, Opened};
use crate::mirror;
pub use crate::mirror::Listing;
use crate::places::{Limits, Place, Places};
use crate::resets::{self, ResetKey};
use crate::retries::RetryKey;
use crate::revoking;
pub use crate::revoking::REVOKED_NAMED_MAX;
use crate::seed_door::{SeedDoor, Verdict};
use crate::socket::{Bind, canonical};
use crate::status::SwarmStatus;
use crate::store::{ChunkSource, FileStore};
use crate::tls::{Listener, Purpose, TlsError};
use crate::trust::{Gate, PeerIdentity, TrustError};
use crate::tuning::Tuning;

/// Strangers must always prove their address first: one round trip on a LAN, once in a boot. Otherwise
/// whoever forges addresses makes a seed send more than three times what it got (quinn looks before
/// each datagram whether the limit is reached: 3,738 bytes for 1,200), and holds handshakes open.
const VALIDATE_ABOVE: usize = 0;

/// Members' connections. Each costs some 40 kB with what it may leave unread; a machine has one for each
/// image it fetches. No subnet and no address has all of them.
const MEMBERS: Limits = Limits {
    all: 16_384,
    address: 64,
    subnet: Some(12_288),
    grace: Duration::ZERO,
};

/// Threads that decide about joins at a time: each may wait for a disk or for a lock.
pub const DECIDING: usize = 8;

/// How long a newcomer waits for the decision before it is told to ask again: less than it waits itself
/// where it shows a token (`joining::ANSWER_HEAD_START_TOKEN`).
const DECISION_TIMEOUT: Duration = Duration::from_secs(3);

/// For a whole join, and for a data connection to name its image.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The application code with which a seed closes a connection for an image it does not have.
const CLOSE_NO_IMAGE: VarInt = VarInt::from_u32(0x6e69);

/// Who may join, and what names mean.
pub trait Directory: Send + Sync + 'static {
    /// Whether anybody at `address` may have anything at all. Asked for every first packet, on the
    /// reactor: it must wait for nothing.
    ///
    /// # Errors
    /// The refusal that a node there is told.
    fn allows(&self, address: IpAddr) -> Result<(), Refusal> {
        let _ = address;
        Ok(())
    }

    /// Decides about `node`, which asks from `from` and has proved that it holds its key. It may ask
    /// again when an answer was lost on its way. Asked on a thread that may wait, of which there are
    /// few: who is not answered within three seconds is told to ask again.
    ///
    /// # Errors
    /// The refusal that the node is told.
    fn join(&self, from: SocketAddr, node: NodeId, request: &JoinRequest)
    -> Result<Grant, Refusal>;

    /// What a mirror is told, which has proved that it holds the swarm key; `report` is what it has
    /// to tell.
    ///
    /// # Errors
    /// Why it is told nothing, for its log.
    fn mirror(&self, report: &[u8]) -> Result<Listing, String> {
        let _ = report;
        Err("this seed keeps no catalogue for mirrors".to_owned())
    }
}

/// A node may join.
#[derive(Clone, Debug)]
pub struct Grant {
    /// What the name means now; its image has been added with [`Seed::add_image`].
    pub tag: SignedTag,
}

/// What a seed is made from.
#[derive(Clone)]
pub struct SeedConfig {
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// The installation's swarm key.
    pub key: Arc<SwarmKey>,
    /// The epoch of the certificates it issues, to begin with.
    pub epoch: u32,
    /// The most payload it sends, in bytes per second.
    pub upload_limit_bytes_per_s: Option<u64>,
    /// The network's properties.
    pub tuning: Tuning,
}

/// A running seed.
pub struct Seed {
    inner: Arc<Inner>,
    local_addr: SocketAddr,
    acceptor: tokio::task::JoinHandle<()>,
}

struct Inner {
    endpoint: Endpoint,
    listener: Listener,
    tuning: Tuning,
    retries: RetryKey,
    /// For who comes when there are more nodes than it hands chunks to; with the epoch of the certificate
    /// in it.
    tracking: RwLock<(u32, Arc<ServerConfig>)>,
    identity: Identity,
    ca: SwarmCa,
    revocations: RwLock<Revocations>,
    directory: Arc<dyn Directory>,
    limiter: Arc<RateLimiter>,
    door: SeedDoor,
    members: Arc<Places>,
    deciding: Blocking,
    images: RwLock<BTreeMap<ImageId, Image>>,
}

#[derive(Clone)]
struct Image {
    manifest: Bytes,
    swarm: Handle,
}

impl Seed {
    /// Listens and serves whatever is added.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(
        config: SeedConfig,
        directory: Arc<dyn Directory>,
    ) -> Result<Seed, StartError> {
        let place = resets::this_place(config.listen);
        let resets = ResetKey::of(&config.key, &place);
        let retries = RetryKey::of(&config.key, &place);
        let ca = SwarmCa::new(config.key);
        let identity = Identity::seed(&ca, config.epoch)?;
        let (server, tracking) = server_configs(&identity, &config.tuning, &retries)?;
        let bind = Bind::Address(config.listen);
        let opened = endpoint::open(bind, &config.tuning, Some(server), Some(resets))?;
        let (endpoint, local_addr) = (opened.endpoint, opened.address);
        let inner = Arc::new(Inner {
            endpoint,
            listener: Listener::new(VALIDATE_ABOVE),
            tuning: config.tuning,
            retries,
            tracking: RwLock::new((config.epoch, tracking)),
            identity,
            ca,
            revocations: RwLock::default(),
            directory,
            limiter: Arc::new(RateLimiter::new(config.upload_limit_bytes_per_s)),
            door: SeedDoor::new(),
            members: Places::new(MEMBERS),
            deciding: Blocking::new(DECIDING, DECISION_TIMEOUT),
            images: RwLock::new(BTreeMap::new()),
        });
        let acceptor = tokio::spawn(accept(inner.clone()));
        Ok(Seed {
            inner,
            local_addr,
            acceptor,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What it goes by: a key that each process makes anew.
    pub fn id(&self) -> NodeId {
        self.inner.identity.node_id()
    }

    /// Whom it lets in; the HTTP side asks the same.
    pub fn gate(&self) -> Gate {
        self.inner.identity.gate().clone()
    }

    /// The limit on what is sent; the HTTP side takes from the same.
    pub fn limiter(&self) -> Arc<RateLimiter> {
        self.inner.limiter.clone()
    }

    /// Begins to serve an image. Does nothing if it is served already.
    pub fn add_image(&self, manifest: Arc<Manifest>, store: FileStore) {
        self.add_source(manifest, Arc::new(store));
    }

    fn add_source(&self, manifest: Arc<Manifest>, source: Arc<dyn ChunkSource>) {
        let mut images = self
            .inner
            .images
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        images.entry(*manifest.id()).or_insert_with(|| {
            let encoded = Bytes::from(manifest.encode());
            let swarm = driver::spawn(Setup {
                node: self.inner.identity.node_id(),
                role: Role::Seed,
                have: Bitfield::full(manifest.geometry().chunk_count()),
                manifest,
                source,
                sink: None,
                rack: None,
                gate: self.inner.identity.gate().clone(),
                limiter: self.inner.limiter.clone(),
                conduct: self.inner.door.conduct().clone(),
                dialer: None,
            });
            let revocations = self.inner.revocations();
            if revocations.version > 0 {
                // Its queue is new and empty.
                let _ = swarm.commands.try_send(Command::Revoke(revocations));
            }
            Image {
                manifest: encoded,
                swarm,
            }
        });
    }

    /// Takes admissions back: no certificate of these nodes or of an epoch before the previous one is
    /// accepted any more, their connections end, and all other nodes are told to do the same. A list
    /// that is no newer than the last one changes nothing. When the epoch has passed on, this seed makes
    /// itself a new key with a certificate of the new epoch: the old one's ends as the nodes' do.
    pub async fn revoke(&self, list: Revocations) {
        if let Err(error) = self.inner.renew(list.epoch) {
            tracing::error!("no certificate of epoch {}: {error}", list.epoch);
        }
        let list = revoking::sign(&list, self.inner.ca.key());
        {
            let revocations = &self.inner.revocations;
            let mut current = revocations.write().unwrap_or_else(PoisonError::into_inner);
            if list.version <= current.version {
                return;
            }
            self.inner.identity.gate().apply(&list);
            *current = list.clone();
        }
        let swarms: Vec<Handle> = {
            let images = &self.inner.images;
            let images = images.read().unwrap_or_else(PoisonError::into_inner);
            images.values().map(|image| image.swarm.clone()).collect()
        };
        for swarm in swarms {
            // It fails only for a swarm that has ended.
            let _ = swarm.commands.send(Command::Revoke(list.clone())).await;
        }
    }

    /// Ends the swarm of an image: uploads under way are finished within `grace`.
    pub async fn remove_image(&self, id: &ImageId, grace: Duration) {
        let removed = self
            .inner
            .images
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
        if let Some(image) = removed {
            image.swarm.shutdown(grace).await;
        }
    }

    /// Each image's swarm as the seed sees it.
    pub fn status(&self) -> Vec<SwarmStatus> {
        let images = self
            .inner
            .images
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        images.values().map(|image| image.swarm.status()).collect()
    }

    /// Finishes the uploads under way within `grace`, then closes.
    pub async fn shutdown(self, grace: Duration) {
        self.acceptor.abort();
        let images = std::mem::take(
            &mut *self
                .inner
                .images
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let swarms: Vec<_> = images.into_values().map(|image| image.swarm).collect();
        let mut draining = tokio::task::JoinSet::new();
        for swarm in swarms {
            draining.spawn(async move { swarm.shutdown(grace).await });
        }
        while draining.join_next().await.is_some() {}
        self.inner
            .endpoint
            .close(VarInt::from_u32(0), b"the seed ends");
        let _ = timeout(Duration::from_secs(1), self.inner.endpoint.wait_idle()).await;
    }
}

async fn accept(inner: Arc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        let from = canonical(incoming.remote_address());
        let is_allowed = inner.directory.allows(from.ip()).is_ok();
        let is_proven = incoming.remote_address_validated();
        let place = match inner.door.judge(from.ip(), is_allowed, is_proven) {
            Verdict::Enter(place) => place,
            Verdict::Prove => {
                // It fails only for a client that has been validated already.
                let _ = incoming.retry();
                continue;
            }
            Verdict::Ignore => {
                incoming.ignore();
                continue;
            }
            Verdict::Refuse => {
                incoming.refuse();
                continue;
            }
        };
        tokio::spawn(let_in(inner.clone(), incoming, from, place));
    }
}

/// Takes a newcomer in, for as long as it has its place.
async fn let_in(inner: Arc<Inner>, incoming: Incoming, from: SocketAddr, place: Place) {
    place.idle();
    let serving = async {
        match timeout(JOIN_TIMEOUT, welcome(&inner, incoming, &place)).await {
            Ok(None) => {}
            Ok(Some(mirror)) => return Some(mirror),
            Err(error) => {
                tracing::debug!(%from, %error, "newcomer took too long");
                inner.door.gave_up(&place);
            }
        }
        None
    };
    let mirror = tokio::select! {
        mirror = serving => mirror,
        () = place.taken_back() => {
            tracing::debug!(%from, "newcomer said nothing, and others wait");
            inner.door.gave_up(&place);
            None
        }
    };
    if let Some(mirror) = mirror
        && let Err(reason) = serve_mirror(&inner, &mirror, place).await
    {
        tracing::info!(%from, %reason, "mirror not served");
        mirror.close(link::CLOSE_SWARM, reason.as_bytes());
    }
}

/// Takes a newcomer in. One that says it is a mirror is handed back: it may take longer.
async fn welcome(inner: &Arc<Inner>, incoming: Incoming, place: &Place) -> Option<Connection> {
    let from = canonical(incoming.remote_address());
    // To try the path's MTU takes a full packet each: 15 MB for 10,000 nodes, most of which never get a
    // chunk from a seed.
    let config = (inner.members() >= SEED_NEIGHBOURS_MAX).then(|| {
        let tracking = inner.tracking.read();
        tracking.unwrap_or_else(PoisonError::into_inner).1.clone()
    });
    match inner.listener.accept_with(incoming, config).await {
        Ok(None) => {}
        Ok(Some((connection, Purpose::Mirror))) => return Some(connection),
        Ok(Some((connection, Purpose::Join))) => {
            match answer(inner, &connection, from, place).await {
                // It stays, as a member.
                Ok(Some(peer)) => attach(inner, connection, peer, from).await,
                Ok(None) => {}
                Err(reason) => {
                    tracing::info!(%from, %reason, "join failed");
                    connection.close(link::CLOSE_SWARM, reason.as_bytes());
                }
            }
        }
        Ok(Some((connection, Purpose::Data(peer)))) => attach(inner, connection, peer, from).await,
        Ok(Some((connection, Purpose::Manifest))) => {
            connection.close(
                link::CLOSE_SWARM,
                b"a seed hands the manifest to newcomers only",
            );
        }
        Err(error) => tracing::info!(%error, "connection refused"),
    }
    None
}

/// Serves one join request. Who was granted it has proved on this connection that it holds the key
/// which its certificate is for, and is a member on it from here on.
async fn answer(
    inner: &Inner,
    connection: &Connection,
    from: SocketAddr,
    place: &Place,
) -> Result<Option<PeerIdentity>, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|e| said(&e))?;
    let frame = framing::read_frame(&mut receive, REQUEST_BYTES_MAX)
        .await
        .map_err(|e| said(&e))?;
    place.busy();
    let signed = join::decode_request(&frame).map_err(|e| said(&e))?;
    signed
        .key
        .verify_proof(connection, &signed.proof)
        .map_err(|e| said(&e))?;
    let node = signed.key.node_id();

    let gate = inner.identity.gate();
    // Before the directory is asked, so that it costs no token.
    let decision = if gate.is_revoked(&node) {
        Err(Refusal::NotAdmitted(
            TrustError::Revoked { node }.to_string(),
        ))
    } else {
        decide(inner, from, node, &signed.request).await
    };
    let decision = decision.and_then(|grant| {
        let images = inner.images.read().unwrap_or_else(PoisonError::into_inner);
        match images.get(&grant.tag.unverified().id) {
            Some(image) => Ok((grant, image.clone())),
            None => Err(Refusal::UnknownImage),
        }
    });
    let (grant, image) = match decision {
        Ok(granted) => granted,
        Err(refusal) => {
            tracing::info!(%from, %node, name = %signed.request.name, %refusal, "not admitted");
            let answer = join::encode_answer(&Answer::Refused(refusal));
            framing::write_frame(&mut send, &answer)
                .await
                .map_err(|e| said(&e))?;
            send.finish().map_err(|e| said(&e))?;
            // It has been said; an honest node leaves once it has read it.
            place.idle();
            connection.closed().await;
            return Ok(None);
        }
    };
    let epoch = gate.epoch();
    let certificate = inner
        .ca
        .issue_node(&signed.key, epoch)
        .map_err(|e| said(&e))?;
    tracing::info!(%from, %node, name = %signed.request.name, "admitted");
    let holds = signed.holds == Some(grant.tag.unverified().id);
    let answer = join::encode_answer(&Answer::Granted {
        certificate: certificate.to_vec(),
        tag: grant.tag.encode(),
    });
    framing::write_frame(&mut send, &answer)
        .await
        .map_err(|e| said(&e))?;
    if holds {
        framing::write_frame(&mut send, &join::encode_source(&Source::Held))
            .await
            .map_err(|e| said(&e))?;
    } else {
        point_out(&image, &mut send, &mut receive, place)
            .await
            .map_err(|e| said(&e))?;
    }
    Ok(Some(PeerIdentity {
        node_id: node,
        public_key: signed.key,
        role: Role::Peer,
        epoch: Some(epoch),
    }))
}

/// Asks the directory, which may have to wait for a disk or for a lock.
async fn decide(
    inner: &Inner,
    from: SocketAddr,
    node: NodeId,
    request: &JoinRequest,
) -> Result<Grant, Refusal> {
    // A stranger takes no thread from anybody.
    inner.directory.allows(from.ip())?;
    let (directory, request) = (inner.directory.clone(), request.clone());
    let decided = move || directory.join(from, node, &request);
    let decision = inner.deciding.run(decided).await;
    decision.unwrap_or(Err(Refusal::Busy))
}

/// Tells a newcomer where the manifest is, and sends it if it is here.
async fn point_out(
    image: &Image,
    send: &mut SendStream,
    receive: &mut RecvStream,
    place: &Place,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let is_small = image.manifest.len() <= handouts::SMALL_BYTES;
    let handout = match is_small {
        true => None,
        false => Some(image.swarm.handouts.next().await),
    };
    let holder = handout.as_ref().map_or(Holder::Seed, |it| it.holder);
    if let Holder::Member(node, address) = holder {
        let source = Source::Member { node, address };
        framing::write_frame(send, &join::encode_source(&source)).await?;
        place.idle();
        match framing::read_frame(receive, SEND_IT.len()).await {
            Ok(frame) if frame == SEND_IT => {
                place.busy();
                if let Some(handout) = &handout {
                    handout.came_to_nothing();
                }
            }
            Ok(_) => return Err("neither thanks nor a question".into()),
            // It has got it.
            Err(_) => return Ok(()),
        }
    } else {
        framing::write_frame(send, &join::encode_source(&Source::Follows)).await?;
    }
    send.write_chunk(image.manifest.clone()).await?;
    send.finish()?;
    // Its place is another's once it has everything.
    let _ = send.stopped().await;
    Ok(())
}

/// How connections are taken, and how when there are many.
fn server_configs(
    identity: &Identity,
    tuning: &Tuning,
    retries: &RetryKey,
) -> Result<(ServerConfig, Arc<ServerConfig>), TlsError> {
    let server = Listener::server_config(identity, tuning, retries)?;
    let mut tracking = server.clone();
    tracking.transport_config(tuning.tracking_transport_config());
    Ok((server, Arc::new(tracking)))
}

impl Inner {
    /// A new key and its certificate, if the one at hand is of an earlier epoch.
    fn renew(&self, epoch: u32) -> Result<(), StartError> {
        let mut tracking = self
            .tracking
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if tracking.0 >= epoch {
            return Ok(());
        }
        let identity = Identity::seed(&self.ca, epoch)?.at_gate_of(&self.identity);
        let (server, many) = server_configs(&identity, &self.tuning, &self.retries)?;
        *tracking = (epoch, many);
        self.endpoint.set_server_config(Some(server));
        Ok(())
    }

    /// Nodes that are connected, of whatever image.
    fn members(&self) -> usize {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        images.values().map(|it| it.swarm.handouts.count()).sum()
    }

    fn revocations(&self) -> Revocations {
        let revocations = self.revocations.read();
        revocations.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves a mirror's requests, one stream each. Until it has proved that it is one, it is a newcomer
/// like any other: one of so many, and not for long.
async fn serve_mirror(
    inner: &Inner,
    connection: &Connection,
    newcomer: Place,
) -> Result<(), String> {
    let mut newcomer = Some(newcomer);
    loop {
        let key = inner.ca.public();
        let accepted = match &newcomer {
            Some(place) => tokio::select! {
                accepted = mirror::accept(connection, &key, JOIN_TIMEOUT) => accepted?,
                () = place.taken_back() => return Err("it did not say what it wants".to_owned()),
            },
            None => mirror::accept(connection, &key, mirror::SILENCE).await?,
        };
        let Some(request) = accepted else {
            return Ok(());
        };
        newcomer = None;
        let answer = match &request.ask {
            mirror::Ask::Listing(report) => {
                let (directory, report) = (inner.directory.clone(), report.clone());
                let version = request.version;
                let listed = move || directory.mirror(&report).map(|it| it.encode(version));
                let listed = inner.deciding.run(listed).await;
                listed.unwrap_or_else(|| Err("the seed is busy: ask again".to_owned()))
            }
            mirror::Ask::Manifest(id) => {
                let images = inner.images.read().unwrap_or_else(PoisonError::into_inner);
                let manifest = images.get(id).map(|image| image.manifest.clone());
                manifest
                    .map(|manifest| vec![manifest.to_vec()])
                    .ok_or_else(|| format!("image {id} is not served here"))
            }
        };
        request.answer(answer, inner.ca.key()).await?;
    }
}

async fn attach(inner: &Inner, connection: Connection, peer: PeerIdentity, from: SocketAddr) {
    let Some(place) = inner.members.enter(from.ip()) else {
        return connection.close(link::CLOSE_SWARM, b"too many connections from this address");
    };
    let (control, hello) = match link::accept_control(&connection).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::debug!(%from, %error, "no hello");
            if error.breaks_protocol() {
                inner.door.conduct().broke_protocol(from.ip());
            }
            return connection.close(link::CLOSE_SWARM, error.to_string().as_bytes());
        }
    };
    let swarm = {
        let images = inner.images.read().unwrap_or_else(PoisonError::into_inner);
        images.get(&hello.image).map(|image| image.swarm.clone())
    };
    let Some(swarm) = swarm else {
        return connection.close(CLOSE_NO_IMAGE, b"this image is not served here any more");
    };
    let opened = Opened {
        connection,
        node: peer.node_id,
        role: peer.role,
        epoch: peer.epoch,
        addr: from,
        dialed: false,
        control,
        hello: Some(hello),
        place: Some(place),
    };
    let _ = swarm.commands.send(Command::Attach(Box::new(opened))).await;
}
