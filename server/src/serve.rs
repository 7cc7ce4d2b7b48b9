//! A running server: publishes what it was told to, serves what is in the state directory, picks up
//! what is published meanwhile, and drains when it is told to end.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rootswarm_image::{SwarmKey, SwarmPublicKey};
use rootswarm_transport::seed::DECIDING;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::admission::{Admission, Configured};
use crate::advertised::{self, Advertised};
use crate::catalogue::Catalogue;
use crate::config::Settings;
use crate::follow::Follower;
use crate::follow_revoked;
use crate::http::{self, ADMITTING, OPENING, READING, Shared};
use crate::limits::{
    BLOCKING_THREADS_MAX, CHECKS_AT_ONCE, PUBLISHED_AT_ONCE, THREAD_STACK_BYTES, worker_threads,
};
use crate::mirror::Mirror;
use crate::own_key;
use crate::policy::Remembered;
use crate::revocation::{RevocationError, RevocationList};
pub use crate::serve_error::ServeError;
use crate::state::StateDir;
use crate::status::{self, FORMAT, StatusDocument};
use crate::swarm_side::SwarmSide;
use crate::token::Tokens;

/// How often is looked whether an address to listen on is there.
const ADDRESS_POLL: Duration = Duration::from_millis(250);

/// How often is looked meanwhile whether somebody asks for the status.
const CONTROL_POLL: Duration = Duration::from_millis(50);

/// How long the line that says where the server listens waits for what is published to be served, so
/// that a server which has nothing to serve says only that.
const LOADING_PATIENCE: Duration = Duration::from_secs(3);

/// How long uploads that are under way may take once the server was told to end. A node whose
/// upload is cut off asks its other peers.
const DRAIN: Duration = Duration::from_secs(5);

// Each kind of work has its own threads, so that none waits for another; what is left is for what there
// is one of: the look at the state directory, at revocations and interfaces, a mirror's writes, names, and
// the readers of the status.
const _: () = assert!(
    DECIDING + OPENING + ADMITTING + READING + CHECKS_AT_ONCE + PUBLISHED_AT_ONCE + 16
        <= BLOCKING_THREADS_MAX
);

/// Serves until SIGTERM or SIGINT. Ready lines go to standard output.
pub fn serve(settings: Settings) -> Result<(), ServeError> {
    let state = StateDir::open_to_serve(&settings.state)?.keeping(settings.keep);
    let Some(_served) = state.lock_for_serving()? else {
        return Err(ServeError::AlreadyServed(settings.state));
    };
    let http = listen_when_there(&settings, &state)?;
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
        state.clone().keeping_all().renew_tags(&key)?;
    }
    let catalogue = Arc::new(Catalogue::new(state, key.public(), settings.verify));
    for (name, _) in &settings.images {
        catalogue.publishing_name(name, true);
    }
    catalogue.take_in_unnamed()?;
    catalogue.reload()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(worker_threads())
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_stack_size(THREAD_STACK_BYTES)
        .build()
        .map_err(ServeError::Start)?;
    let served = runtime.block_on(run(settings, key, catalogue, http));
    // What is still in a blocking call (hashing a new copy) is not waited for.
    runtime.shutdown_background();
    served
}

/// Listens on both addresses. One that no interface has yet, as at boot, is waited for, and so is one
/// that is still being checked for duplicates (IPv6). Meanwhile the control socket says that, so that nobody
/// who publishes waits for a server that cannot serve.
fn listen_when_there(settings: &Settings, state: &StateDir) -> Result<TcpListener, ServeError> {
    let mut waiting = None;
    loop {
        // Both are tried before anything is read or hashed.
        let http = TcpListener::bind(settings.http).map_err(ServeError::listen(
            "http (tcp)",
            settings.http,
            "--http",
        ));
        let swarm = UdpSocket::bind(settings.listen).map_err(ServeError::listen(
            "the swarm (udp)",
            settings.listen,
            "--listen",
        ));
        match http.and_then(|http| swarm.map(|_free| http)) {
            Err(ServeError::Listen {
                what,
                address,
                source,
            }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
                let control = waiting.get_or_insert_with(|| {
                    tracing::warn!(
                        "waiting for {}: {what} is to listen on it, and no interface has it yet",
                        address.ip()
                    );
                    let path = state.control_socket();
                    status::listen_early(&path).map_err(|error| {
                        tracing::error!("no status: cannot listen on {}: {error}", path.display());
                    })
                });
                let begin = Instant::now();
                while begin.elapsed() < ADDRESS_POLL {
                    if let Ok(control) = control {
                        let document = waiting_document(settings, address);
                        status::answer_those_who_wait(control, &document);
                    }
                    std::thread::sleep(CONTROL_POLL);
                }
            }
            other => return other,
        }
    }
}

/// What a server says that waits for this address.
fn waiting_document(settings: &Settings, address: SocketAddr) -> StatusDocument {
    let told = advertised::told(settings.host.as_ref(), settings.listen);
    StatusDocument {
        format: FORMAT,
        host: told.host.to_string(),
        no_address: told.doubt,
        swarm_key: None,
        http: settings.http.to_string(),
        pid: std::process::id(),
        uptime_s: 0,
        upload_limit_bytes_per_s: settings.upload_limit.map(|rate| rate.bytes_per_s()),
        images: Vec::new(),
        loading: settings
            .images
            .iter()
            .map(|(name, _)| name.to_string())
            .collect(),
        waiting_for: Some(address.ip().to_string()),
        revocations: None,
    }
}

async fn run(
    settings: Settings,
    key: Arc<SwarmKey>,
    catalogue: Arc<Catalogue>,
    http: TcpListener,
) -> Result<(), ServeError> {
    let state = catalogue.state().clone();
    let remembered = Remembered::load(state.clone())?;
    let mut mirror = settings.mirror.clone().map(|of| {
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
    if let Some(mirror) = &mut mirror {
        admission = admission.of_mirror(mirror.reach());
        let of = mirror.of().clone();
        let of = || Box::new(of.clone());
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
    if let Some(line) = revoked.mend()? {
        tracing::error!("{line}");
    }
    let held = match revoked.load_current() {
        // Its first seed has the newer list, as soon as it answers.
        Err(behind @ RevocationError::Behind { .. }) if mirror.is_some() => {
            tracing::error!("{behind}");
            revoked.load()?
        }
        found => {
            let found = found?;
            revoked.remember_newer(&found)?;
            found
        }
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Start)?;
    http.set_nonblocking(true).map_err(ServeError::Start)?;
    let http = tokio::net::TcpListener::from_std(http).map_err(ServeError::Start)?;
    let http_address = http.local_addr().map_err(ServeError::Start)?;

    let swarm = SwarmSide::bind(
        &settings,
        key.clone(),
        catalogue.clone(),
        admission.clone(),
        held.to_wire(),
    )
    .await?;
    let swarm = Arc::new(swarm);
    let listen = SocketAddr::new(settings.listen.ip(), swarm.local_addr().port());
    let host = Advertised::new(settings.host.clone(), listen);
    let own_key = key.public();
    let mut beside = tokio::task::JoinSet::new();
    let (epochs, new_epochs) = watch::channel(held.epoch);
    let tokens = admission.tokens().clone();
    let following = follow_revoked::follow(revoked, held, tokens, swarm.clone(), epochs);
    beside.spawn(following);
    if mirror.is_none() {
        // A mirror's names are signed by its first seed.
        let renewing = follow_revoked::renew_tags(state.clone(), key.clone(), new_epochs);
        beside.spawn(renewing);
    }
    beside.spawn(admission.clone().follow_interfaces());
    beside.spawn(host.clone().follow());
    beside.spawn(own_key::watch(state.clone(), own_key));
    let (loaded, is_loaded) = oneshot::channel();
    let follower = Follower::new(
        &settings,
        key,
        catalogue.clone(),
        swarm.clone(),
        host.clone(),
        loaded,
    );
    let control_task = spawn_control(&settings, &catalogue, &swarm, host, own_key, http_address);

    let (stop, stopped) = watch::channel(false);
    let shared = Shared {
        catalogue,
        admission: admission.clone(),
        limiter: swarm.limiter(),
        members: (own_key, swarm.gate()),
    };
    let http_task = tokio::spawn(http::server::run(
        http,
        http::router(shared),
        admission.clone(),
        stopped,
        DRAIN,
    ));
    // In a task of its own: reading the state directory must not hold up the end.
    let mut follower = tokio::spawn(follower.run());
    let where_it_listens = format!(
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
    let announcing = async move {
        // Nothing is loaded where there is nothing to serve: that has a line of its own.
        if let Ok(Ok(())) | Err(_) = tokio::time::timeout(LOADING_PATIENCE, is_loaded).await {
            tracing::info!("{where_it_listens}");
        }
        std::future::pending::<()>().await
    };

    let of = mirror.as_ref().map(|mirror| Box::new(mirror.of().clone()));
    let (ended, mut mirror_ended) = oneshot::channel();
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
    let mut served = Ok(());
    let nothing_to_serve = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = &mut follower => Some(error.unwrap_or_else(|error| {
            ServeError::Start(io::Error::other(error))
        })),
        Ok(()) = &mut mirror_ended => {
            if let Some(of) = of {
                // The next start without --mirror finds a state directory that is no mirror's.
                let noted = state.set_mirrors(None).map_err(ServeError::from);
                served = noted.and(Err(ServeError::MirrorsItself { of }));
            }
            None
        }
        () = announcing => None,
    };
    if let Some(error) = nothing_to_serve {
        let _ = std::fs::remove_file(state.control_socket());
        return Err(error);
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
    settings: &Settings,
    catalogue: &Arc<Catalogue>,
    swarm: &Arc<SwarmSide>,
    host: Advertised,
    key: SwarmPublicKey,
    http: SocketAddr,
) -> Option<tokio::task::JoinHandle<()>> {
    let path = catalogue.state().control_socket();
    let listener = match status::listen(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("no status: cannot listen on {}: {error}", path.display());
            return None;
        }
    };
    let (catalogue, swarm) = (catalogue.clone(), swarm.clone());
    let http = http.to_string();
    let limit = settings.upload_limit.map(|rate| rate.bytes_per_s());
    let started = Instant::now();
    Some(tokio::spawn(status::answer(listener, move || {
        let snapshot = catalogue.snapshot();
        let told = host.now();
        StatusDocument {
            format: FORMAT,
            host: told.host.to_string(),
            no_address: told.doubt,
            swarm_key: Some(key.to_string()),
            http: http.clone(),
            pid: std::process::id(),
            uptime_s: started.elapsed().as_secs(),
            upload_limit_bytes_per_s: limit,
            images: swarm.status(&snapshot),
            loading: snapshot.loading().map(ToString::to_string).collect(),
            waiting_for: None,
            revocations: Some(swarm.revocations()),
        }
    })))
}
