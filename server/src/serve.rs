//! A running server: publishes what it was told to, serves what is in the state directory, picks up
//! what is published meanwhile, and drains when it is told to end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rootswarm_image::{HostPort, ImageId, ImageName, SwarmKey};
use rootswarm_transport::mirror::MirrorError;
use rootswarm_transport::seed::{DECIDING, StartError};
use rootswarm_transport::socket::BindError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::admission::{Admission, Configured, Looser};
use crate::catalogue::{Catalogue, Damage, Snapshot};
use crate::config::Settings;
use crate::exit::Exit;
use crate::http::{self, OPENING, READING, Shared};
use crate::mirror::{Mirror, MirrorOf};
use crate::network::{advertised_host, root_url};
use crate::policy::{PolicyError, Remembered};
use crate::progress;
use crate::publish::{self, PublishError, Unchanged};
use crate::revocation::{Contents, RevocationError, RevocationList};
use crate::state::{StateDir, StateError};
use crate::status::{self, FORMAT, StatusDocument};
use crate::swarm_side::SwarmSide;
use crate::token::Tokens;

/// How often the state directory is looked at: three `stat` calls.
const POLL: Duration = Duration::from_secs(1);

/// How often the file of revocations is looked at: one `stat` call. A node that is revoked gets no
/// byte more after this.
const REVOCATION_POLL: Duration = Duration::from_millis(100);

/// How long uploads that are under way may take once the server was told to end. A node whose
/// upload is cut off asks its other peers.
const DRAIN: Duration = Duration::from_secs(5);

/// How long nodes that fetch an image which was replaced or removed may go on with it. They end on
/// the image they began with; one that hangs does not keep the old copy's space for ever.
const RETIRE: Duration = Duration::from_secs(600);

/// …and for so long at least: a node that was let in a moment ago may not be connected yet.
const RETIRE_AFTER: Duration = Duration::from_secs(5);

/// Reads of boot files, decisions about tokens and looks at the state directory at a time: what a disk
/// has use for. Each thread's stack counts as 2 MiB against a limit like the unit's.
const MAX_BLOCKING_THREADS: usize = 64;

// Each kind of work has its own, so that none waits for another; what is left is for what there is one of:
// the look at the state directory, at revocations and interfaces, a mirror's writes, the status, names.
const _: () = assert!(DECIDING + OPENING + READING + 16 <= MAX_BLOCKING_THREADS);

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Publishing what the command line or the configuration names.
    #[error("cannot publish {name}: {source}")]
    Publish {
        /// As what.
        name: ImageName,
        /// Why not.
        source: PublishError,
    },
    /// Another server runs on the same state directory.
    #[error("state directory {} is already served by another process", .0.display())]
    AlreadyServed(PathBuf),
    /// The port is taken.
    #[error(
        "address {address} for {what} is already in use (another `rootswarm serve`? choose one with {option})"
    )]
    AddressInUse {
        /// `the swarm (udp)` or `http (tcp)`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The option that chooses another.
        option: &'static str,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// `the swarm (udp)` or `http (tcp)`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// Everything that is published is damaged.
    #[error("nothing can be served, {count} of {count} published images are damaged: {first}")]
    AllDamaged {
        /// How many.
        count: usize,
        /// The first.
        first: Box<Damage>,
    },
    /// A mirror without the key.
    #[error("cannot mirror {of}: {} is missing (copy swarm.key from that host's state directory, mode 0600)", key.display())]
    MirrorKey {
        /// The seed to mirror.
        of: Box<MirrorOf>,
        /// Where its key must be.
        key: PathBuf,
    },
    /// A mirror that was told to publish something.
    #[error("a mirror publishes what {of} does: take NAME=FILE and [images] away, or --mirror")]
    MirrorPublishes {
        /// The seed to mirror.
        of: Box<MirrorOf>,
    },
    /// The seed to mirror is this one.
    #[error(
        "cannot mirror {of}: it is this very seed (name the other host, or leave --mirror out)"
    )]
    MirrorsItself {
        /// The seed to mirror.
        of: Box<MirrorOf>,
    },
    /// The seed to mirror has another key.
    #[error("cannot mirror {of}: {source} (copy swarm.key from that host's state directory)")]
    MirrorTrust {
        /// The seed to mirror.
        of: Box<MirrorOf>,
        /// What was found.
        source: Box<MirrorError>,
    },
    /// A mirror that would let in whom the seed to mirror does not.
    #[error(
        "this mirror would be looser than {of}: {source} (take admission and allow out of this host's configuration: they come with the mirroring)"
    )]
    MirrorLooser {
        /// The seed to mirror.
        of: Box<MirrorOf>,
        /// In what.
        source: Looser,
    },
    /// What is remembered of the seed to mirror.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The revocations.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The swarm's endpoint.
    #[error(transparent)]
    Seed(#[from] StartError),
    /// The process could not get what it needs to run.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl ServeError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            ServeError::State(e) => e.exit(),
            ServeError::Publish { source, .. } => source.exit(),
            ServeError::AlreadyServed(_) | ServeError::AddressInUse { .. } => Exit::AddressInUse,
            ServeError::Seed(StartError::Bind(BindError::AddressInUse { .. })) => {
                Exit::AddressInUse
            }
            // An address that is not this host's, a port that needs root.
            ServeError::Listen { .. } => Exit::BadInput,
            ServeError::AllDamaged { .. } => Exit::Damaged,
            ServeError::MirrorKey { .. }
            | ServeError::MirrorTrust { .. }
            | ServeError::MirrorLooser { .. } => Exit::Refused,
            ServeError::Policy(PolicyError::State(error)) => error.exit(),
            ServeError::Policy(PolicyError::Damaged { .. }) => Exit::Damaged,
            ServeError::MirrorPublishes { .. } | ServeError::MirrorsItself { .. } => Exit::BadInput,
            ServeError::Revocation(error) => error.exit(),
            ServeError::Seed(_) | ServeError::Start(_) => Exit::Unexpected,
        }
    }

    fn listen(
        what: &'static str,
        address: SocketAddr,
        option: &'static str,
    ) -> impl FnOnce(io::Error) -> ServeError {
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::AddressInUse {
                what,
                address,
                option,
            },
            _ => ServeError::Listen {
                what,
                address,
                source,
            },
        }
    }
}

/// Serves until SIGTERM or SIGINT. Ready lines go to standard output.
pub fn serve(settings: Settings) -> Result<(), ServeError> {
    let state = StateDir::open(&settings.state)?;
    let Some(_served) = state.lock_for_serving()? else {
        return Err(ServeError::AlreadyServed(settings.state));
    };
    // Both ports are tried before minutes are spent on hashing.
    let http = TcpListener::bind(settings.http).map_err(ServeError::listen(
        "http (tcp)",
        settings.http,
        "--http",
    ))?;
    UdpSocket::bind(settings.listen).map_err(ServeError::listen(
        "the swarm (udp)",
        settings.listen,
        "--listen",
    ))?;
    if let Some(of) = &settings.mirror {
        let of = Box::new(of.clone());
        if !settings.images.is_empty() {
            return Err(ServeError::MirrorPublishes { of });
        }
        if !state.has_key() {
            let key = state.root().join("swarm.key");
            return Err(ServeError::MirrorKey { of, key });
        }
    }
    let key = Arc::new(state.key()?);
    state.check_guarded()?;
    let mirrors = settings.mirror.as_ref().map(ToString::to_string);
    state.set_mirrors(mirrors.as_deref())?;
    if settings.mirror.is_none() {
        state.renew_tags(&key)?;
    }
    publish_named(&state, &key, &settings)?;
    let catalogue = Arc::new(Catalogue::new(state, key.public(), settings.verify));
    load(&catalogue)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .build()
        .map_err(ServeError::Start)?;
    let served = runtime.block_on(Server::run(settings, key, catalogue, http));
    // What is still in a blocking call (hashing a new copy) is not waited for.
    runtime.shutdown_background();
    served
}

fn publish_named(state: &StateDir, key: &SwarmKey, settings: &Settings) -> Result<(), ServeError> {
    for (name, source) in &settings.images {
        let request = publish::Request {
            name,
            source,
            chunk_size: settings.chunk_size,
            unchanged: Unchanged::Keep,
        };
        let published =
            publish::publish(state, key, &request, &*progress::to_stderr(name.as_str())).map_err(
                |source| ServeError::Publish {
                    name: name.clone(),
                    source,
                },
            )?;
        if published.not_squashfs {
            tracing::warn!(
                "{} is no squashfs: it can be fetched, and no node can boot it",
                source.display()
            );
        }
    }
    Ok(())
}

/// The first look. Some damaged images do not keep the others from being served; all of them do.
fn load(catalogue: &Catalogue) -> Result<(), ServeError> {
    let mut damages = catalogue.reload()?;
    if catalogue.snapshot().images().next().is_none() && !damages.is_empty() {
        let count = damages.len();
        return Err(ServeError::AllDamaged {
            count,
            first: Box::new(damages.swap_remove(0)),
        });
    }
    report(&damages);
    Ok(())
}

fn report(damages: &[Damage]) {
    for damage in damages {
        tracing::error!("{damage}");
    }
}

/// Tells the swarm of revocations as soon as the admin, or the mirror, has written them down.
/// `held` is what the swarm was told at start: an older file does not take its place.
async fn follow_revocations(revoked: RevocationList, mut held: Contents, swarm: Arc<SwarmSide>) {
    // Watched by what a rename changes; one that was written before the first look was read at start,
    // and once more is harmless.
    let stamp = |list: &RevocationList| {
        let found = std::fs::metadata(list.path()).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec()))
    };
    let mut seen = None;
    let mut told = String::new();
    let mut poll = tokio::time::interval(REVOCATION_POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        poll.tick().await;
        let (list, before) = (revoked.clone(), held.clone());
        let look = move || {
            let now = stamp(&list);
            (now != seen).then(|| (now, list.put_back(&before)))
        };
        // A disk that hangs holds this up, and nothing else.
        let Ok(Some((now, loaded))) = tokio::task::spawn_blocking(look).await else {
            continue;
        };
        match loaded {
            Ok((contents, line)) => {
                if let Some(line) = line {
                    tracing::error!("{line}");
                }
                held = contents;
                seen = now;
                told = String::new();
                swarm.revoke(held.to_wire()).await;
            }
            // Looked at again, as a lock that is held passes; said once.
            Err(error) => {
                let line = format!("the last revocations go on to hold: {error}");
                if line != told {
                    tracing::error!("{line}");
                }
                told = line;
            }
        }
    }
}

struct Server {
    catalogue: Arc<Catalogue>,
    swarm: Arc<SwarmSide>,
    host: HostPort,
    /// What ready lines were printed for.
    announced: BTreeMap<ImageName, ImageId>,
    /// Images that are not in the catalogue any more, and since when.
    retiring: BTreeMap<ImageId, Instant>,
    /// What was reported already: the directory is read again for every change.
    reported: BTreeSet<String>,
}

impl Server {
    async fn run(
        settings: Settings,
        key: Arc<SwarmKey>,
        catalogue: Arc<Catalogue>,
        http: TcpListener,
    ) -> Result<(), ServeError> {
        let state = catalogue.state().clone();
        let remembered = Remembered::load(state.clone())?;
        let mirror = settings.mirror.clone().map(|of| {
            let limit = settings.upload_limit.map(|rate| rate.bytes_per_s());
            Mirror::new(
                of,
                key.clone(),
                state.clone(),
                settings.listen,
                limit,
                remembered.clone(),
            )
        });
        let tokens = match mirror {
            Some(_) => Tokens::of_mirror(state.clone()),
            None => Tokens::new(state.clone()),
        };
        let configured = Configured {
            mode: settings.admission,
            allow: settings.allow.clone(),
        };
        let mut admission = Admission::new(configured, tokens).with(remembered);
        if let Some(mirror) = &mirror {
            admission = admission.of_mirror(mirror.reach());
            let of = || Box::new(mirror.of().clone());
            mirror.meet().await.map_err(|source| {
                let source = Box::new(source);
                ServeError::MirrorTrust { of: of(), source }
            })?;
            admission
                .check_not_looser()
                .map_err(|source| ServeError::MirrorLooser { of: of(), source })?;
        }
        let admission = Arc::new(admission);
        let revoked = RevocationList::new(state.clone());
        let held = match revoked.load_current() {
            // Its first seed has the newer list, as soon as it answers.
            Err(behind @ RevocationError::Behind { .. }) if mirror.is_some() => {
                tracing::error!("{behind}");
                revoked.load()?
            }
            found => found?,
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Start)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Start)?;
        http.set_nonblocking(true).map_err(ServeError::Start)?;
        let http = tokio::net::TcpListener::from_std(http).map_err(ServeError::Start)?;
        let http_address = http.local_addr().map_err(ServeError::Start)?;

        let swarm = SwarmSide::bind(
            &settings,
            key,
            catalogue.clone(),
            admission.clone(),
            held.to_wire(),
        )
        .await?;
        let swarm = Arc::new(swarm);
        let listen = SocketAddr::new(settings.listen.ip(), swarm.local_addr().port());
        let host = settings
            .host
            .clone()
            .unwrap_or_else(|| advertised_host(listen));
        let mut server = Server {
            catalogue: catalogue.clone(),
            swarm: swarm.clone(),
            host,
            announced: BTreeMap::new(),
            retiring: BTreeMap::new(),
            reported: BTreeSet::new(),
        };

        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            catalogue,
            admission: admission.clone(),
            limiter: swarm.limiter(),
        };
        let http_task = tokio::spawn(http::server::run(
            http,
            http::router(shared),
            admission.clone(),
            stopped,
            DRAIN,
        ));
        let control_task = server.spawn_control(&settings, http_address);
        tracing::info!(
            "swarm on {}, http on {http_address}, admission {}, serving {}",
            swarm.local_addr(),
            admission
                .mode()
                .map_or("not known yet".to_owned(), |mode| mode.to_string()),
            admission
                .networks()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        );
        server.follow(&Snapshot::default()).await;

        let mut beside = tokio::task::JoinSet::new();
        beside.spawn(follow_revocations(revoked, held, swarm.clone()));
        beside.spawn(admission.clone().follow_interfaces());
        let of = mirror.as_ref().map(|mirror| Box::new(mirror.of().clone()));
        let (ended, mut mirror_ended) = tokio::sync::oneshot::channel();
        match mirror {
            Some(mut mirror) => {
                mirror.is_beside(swarm.seed_id());
                let admission = admission.clone();
                beside.spawn(async move {
                    mirror.run(admission).await;
                    // It fails only while this server ends.
                    let _ = ended.send(());
                });
            }
            None => drop(ended),
        }
        // In a task of its own: hashing a large new copy must not hold up the end.
        let follower = tokio::spawn(server.keep_up());
        let mut served = Ok(());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            Ok(()) = &mut mirror_ended => if let Some(of) = of {
                // The next start without --mirror finds a state directory that is no mirror's.
                let noted = state.set_mirrors(None).map_err(ServeError::from);
                served = noted.and(Err(ServeError::MirrorsItself { of }));
            },
        }
        follower.abort();
        beside.abort_all();
        tracing::info!(
            "draining for at most {} s; a second signal ends at once",
            DRAIN.as_secs()
        );
        // Only fails if the HTTP task is gone, which then needs no telling.
        let _ = stop.send(true);
        let drained = async {
            swarm.shutdown(DRAIN).await;
            let _ = http_task.await;
        };
        tokio::select! {
            () = drained => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some(control_task) = control_task {
            control_task.abort();
        }
        let _ = std::fs::remove_file(state.control_socket());
        served
    }

    /// Without a control socket the swarm is served all the same; only `rootswarm status` is blind.
    fn spawn_control(
        &self,
        settings: &Settings,
        http: SocketAddr,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let path = self.catalogue.state().control_socket();
        let listener = match status::listen(&path) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!("no status: cannot listen on {}: {error}", path.display());
                return None;
            }
        };
        let (catalogue, swarm) = (self.catalogue.clone(), self.swarm.clone());
        let (host, http) = (self.host.to_string(), http.to_string());
        let limit = settings.upload_limit.map(|rate| rate.bytes_per_s());
        let started = Instant::now();
        Some(tokio::spawn(status::answer(listener, move || {
            StatusDocument {
                format: FORMAT,
                host: host.clone(),
                http: http.clone(),
                pid: std::process::id(),
                uptime_s: started.elapsed().as_secs(),
                upload_limit_bytes_per_s: limit,
                images: swarm.status(&catalogue.snapshot()),
            }
        })))
    }

    /// Follows the state directory for ever.
    async fn keep_up(mut self) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            poll.tick().await;
            self.swarm.sample().await;
            self.refresh().await;
            self.retire().await;
        }
    }

    /// Looks at the state directory, and follows it if it changed.
    async fn refresh(&mut self) {
        let before = self.catalogue.snapshot();
        let catalogue = self.catalogue.clone();
        let look = move || catalogue.is_stale().then(|| catalogue.reload()).transpose();
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(damages))) => {
                let new: Vec<Damage> = damages
                    .into_iter()
                    .filter(|damage| self.reported.insert(damage.to_string()))
                    .collect();
                report(&new);
                self.follow(&before).await;
            }
            Ok(Err(error)) => tracing::error!("cannot read the state directory again: {error}"),
            Err(error) => tracing::error!("reading the state directory again failed: {error}"),
        }
    }

    /// Brings the swarm from what was served `before` to what the catalogue has now.
    async fn follow(&mut self, before: &Snapshot) {
        let now = self.catalogue.snapshot();
        for copy in now.copies() {
            self.retiring.remove(copy.id());
            self.swarm.add(copy).await;
        }
        for copy in before.copies().filter(|copy| now.copy(copy.id()).is_none()) {
            self.retiring.insert(*copy.id(), Instant::now());
        }
        self.announced.retain(|name, _| now.image(name).is_some());
        for published in now.images() {
            let tag = published.tag.unverified();
            if self.announced.insert(tag.name.clone(), tag.id) != Some(tag.id) {
                self.announce(&tag.name, tag.id);
            }
        }
    }

    /// Takes images that left the catalogue out of the swarm, once nobody fetches them any more.
    async fn retire(&mut self) {
        let now = Instant::now();
        let mut done = Vec::new();
        for (id, since) in &self.retiring {
            let age = now.duration_since(*since);
            if age >= RETIRE || (age >= RETIRE_AFTER && self.swarm.fetching(id).await == 0) {
                done.push(*id);
            }
        }
        for id in done {
            self.retiring.remove(&id);
            let swarm = self.swarm.clone();
            tokio::spawn(async move { swarm.remove(&id, DRAIN).await });
        }
    }

    fn announce(&self, name: &ImageName, id: ImageId) {
        let mut out = io::stdout().lock();
        let line = format!("ready {}\n", root_url(&self.host, name, Some(id)));
        // Who stopped reading does not want to know; nodes are served all the same.
        if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            tracing::warn!("cannot print {}: {error}", line.trim_end());
        }
    }
}
