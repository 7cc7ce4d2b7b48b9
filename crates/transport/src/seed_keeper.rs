//! Keeps a node's connections to its seeds: a seed that comes back finds its nodes again, and one that
//! has moved is found where its name leads now. Looking names up is left to the caller.
//!
//! A node whose own address changes connects anew from the new one, at once. The seed names to others the
//! address from which a connection was made, because that one has been validated; one that a connection
//! moved to has not.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rootswarm_image::Manifest;
use rootswarm_swarm::Role;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::addresses::source_of;
use crate::dialing::{self, OpenError};
use crate::driver::Command;
use crate::http_proof;
use crate::identity::Identity;
use crate::join::JoinRequest;
use crate::joining::{Admission, Attempt};
use crate::link::Opened;
use crate::node::{CONNECT_TIMEOUT, Node};
use crate::tls::{self, Dialer, Listener};

/// Between attempts to reach a seed that was lost, doubled each time up to [`RECONNECT_MAX`].
const RECONNECT: Duration = Duration::from_millis(500);
/// See [`RECONNECT`].
const RECONNECT_MAX: Duration = Duration::from_secs(10);

/// One keeper for each address at which there is a seed.
pub(crate) struct SeedKeepers {
    node: Arc<Node>,
    identity: Identity,
    /// What the keepers share: the identity that one of them got last.
    latest: Arc<Mutex<Identity>>,
    request: JoinRequest,
    manifest: Arc<Manifest>,
    commands: mpsc::Sender<Command>,
    moves: watch::Receiver<()>,
    running: BTreeMap<SocketAddr, AbortHandle>,
    tasks: JoinSet<()>,
}

impl SeedKeepers {
    pub(crate) fn new(
        node: Arc<Node>,
        identity: Identity,
        request: JoinRequest,
        manifest: Arc<Manifest>,
        commands: mpsc::Sender<Command>,
        moves: watch::Receiver<()>,
    ) -> SeedKeepers {
        SeedKeepers {
            node,
            latest: Arc::new(Mutex::new(identity.clone())),
            identity,
            request,
            manifest,
            commands,
            moves,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// The seeds are at these addresses from now on. Those that were there before go on, and so does a
    /// connection that is up, wherever it leads.
    pub(crate) fn keep(&mut self, seeds: &[SocketAddr], mut admission: Option<Admission>) {
        self.running.retain(|seed, task| {
            let stays = seeds.contains(seed);
            if !stays {
                task.abort();
            }
            stays
        });
        while self.tasks.try_join_next().is_some() {}
        for seed in seeds.iter().copied() {
            if self.running.contains_key(&seed) {
                continue;
            }
            let keeper = SeedKeeper {
                node: self.node.clone(),
                seed,
                admission: admission.take_if(|it| it.address == seed),
                identity: self
                    .latest
                    .try_lock()
                    .map_or_else(|_| self.identity.clone(), |latest| latest.clone()),
                latest: self.latest.clone(),
                request: self.request.clone(),
                manifest: self.manifest.clone(),
                commands: self.commands.clone(),
                moves: self.moves.clone(),
            };
            self.running.insert(seed, self.tasks.spawn(keeper.run()));
        }
    }
}

impl SeedKeepers {
    /// What the node shows to a seed's HTTP side as a member; `None` while it is being let in anew.
    pub(crate) fn http_member(&self) -> Option<String> {
        let latest = self.latest.try_lock().ok()?;
        let certificate = latest.certificate()?;
        Some(http_proof::of_member(&self.node.key, certificate))
    }
}

/// Keeps the connection to one seed.
pub(crate) struct SeedKeeper {
    node: Arc<Node>,
    seed: SocketAddr,
    /// The connection on which this seed let the node in, if it did.
    admission: Option<Admission>,
    identity: Identity,
    /// What the keepers of all seeds share: the identity that one of them got last.
    latest: Arc<Mutex<Identity>>,
    request: JoinRequest,
    manifest: Arc<Manifest>,
    commands: mpsc::Sender<Command>,
    /// Says when this host's addresses may have changed.
    moves: watch::Receiver<()>,
}

/// What became of a connection.
enum Ended {
    /// It was up for so long, or there was none. `refused`: this node's certificate is not taken.
    Lost { after: Duration, refused: bool },
    /// It was made from an address that is not the one to use any more.
    Outdated,
}

impl SeedKeeper {
    async fn run(mut self) {
        let mut wait = RECONNECT;
        let mut was_refused = false;
        loop {
            // How a connection ended does not always tell: this side may have closed it first. Not at once:
            // a thousand nodes may have been told to join again.
            if was_refused || self.identity.is_over() {
                self.renew().await;
            }
            if !self.identity.is_over() {
                match self.stay_connected().await {
                    Ended::Lost { after, refused } => {
                        was_refused = refused;
                        if after > RECONNECT_MAX {
                            wait = RECONNECT;
                        }
                    }
                    Ended::Outdated => {
                        wait = RECONNECT;
                        continue;
                    }
                }
            }
            if self.commands.is_closed() {
                return;
            }
            wait = match self.pause(jittered(wait)).await {
                true => RECONNECT,
                false => (wait * 2).min(RECONNECT_MAX),
            };
        }
    }

    /// Connects, for as long as the connection lasts.
    async fn stay_connected(&mut self) -> Ended {
        let (mut after, mut refused) = (Duration::ZERO, false);
        // Asked before: what changes meanwhile is noticed as a change.
        let source = self.source();
        match timeout(CONNECT_TIMEOUT, self.open()).await {
            Ok(Ok(opened)) => {
                let connection = opened.connection.clone();
                // It takes the place of an earlier one that is still open.
                let attach = Command::Attach(Box::new(opened));
                if self.commands.send(attach).await.is_err() {
                    return Ended::Lost { after, refused };
                }
                let up = tokio::time::Instant::now();
                let Some(closed) = self.watch(&connection, source).await else {
                    tracing::debug!(seed = %self.seed, "this host's address has changed");
                    return Ended::Outdated;
                };
                after = up.elapsed();
                tracing::debug!(seed = %self.seed, %closed, "connection to the seed lost");
                refused = tls::refusal(&closed).is_some();
            }
            Ok(Err(error)) => {
                tracing::debug!(seed = %self.seed, %error, "cannot reach the seed");
                refused = error.is_refusal();
            }
            Err(_) => tracing::debug!(seed = %self.seed, "cannot reach the seed: no answer"),
        }
        Ended::Lost { after, refused }
    }

    /// Where this host would send from to the seed now.
    fn source(&self) -> Option<IpAddr> {
        source_of(self.seed, self.node.local_addr().ip())
    }

    /// Until the connection is lost, and why, or until it should be made anew. While there is no way to the
    /// seed it may still come back.
    async fn watch(
        &mut self,
        connection: &quinn::Connection,
        source: Option<IpAddr>,
    ) -> Option<quinn::ConnectionError> {
        loop {
            let now = self.source();
            if now.is_some() && now != source {
                return None;
            }
            tokio::select! {
                closed = connection.closed() => return Some(closed),
                Ok(()) = self.moves.changed() => {}
            }
        }
    }

    /// Waits for so long, or until there is a way to the seed that was not there. Says whether there is.
    async fn pause(&mut self, wait: Duration) -> bool {
        let before = self.source();
        let appears = async {
            while self.moves.changed().await.is_ok() {
                let now = self.source();
                if now.is_some() && now != before {
                    return;
                }
            }
            std::future::pending().await
        };
        timeout(wait, appears).await.is_ok()
    }

    /// Stays where it was let in, or dials.
    async fn open(&mut self) -> Result<Opened, OpenError> {
        if let Some(admission) = self.admission.take() {
            let Admission {
                address,
                connection,
                seed,
            } = admission;
            match dialing::greet(connection, seed, address).await {
                Ok(opened) => return Ok(opened),
                Err(error) if error.is_refusal() => return Err(error.into()),
                Err(error) => tracing::debug!(seed = %self.seed, %error, "could not stay"),
            }
        }
        let dialer = Dialer::data(self.identity.clone(), &self.node.tuning);
        dialing::open(&self.node.endpoint, &dialer, self.seed, None, Role::Seed).await
    }

    /// The seed does not take the certificate any more: takes the one that another keeper has got
    /// meanwhile, or joins anew, for the same image. A name that means another image by now does not
    /// matter to a boot that has begun.
    async fn renew(&mut self) {
        let latest = self.latest.clone();
        let mut latest = latest.lock().await;
        if !Arc::ptr_eq(&latest.certified, &self.identity.certified) {
            self.identity = latest.clone();
            return;
        }
        let request = JoinRequest {
            pin: Some(*self.manifest.id()),
            ..self.request.clone()
        };
        let attempt = Attempt::new(&self.node, self.seed, &[self.seed], &request)
            .holding(self.manifest.clone());
        let joined = match attempt.run(None).await {
            Ok((answer, _)) => answer.joined,
            Err(error) => {
                tracing::debug!(seed = %self.seed, %error, "not let in again");
                return;
            }
        };
        let identity = joined.identity.at_gate_of(&self.identity);
        let Node {
            tuning, retries, ..
        } = &*self.node;
        let Ok(server) = Listener::server_config(&identity, tuning, retries) else {
            return;
        };
        self.node.endpoint.set_server_config(Some(server));
        let dialer = Dialer::data(identity.clone(), &self.node.tuning);
        let _ = self.commands.send(Command::Renewed(dialer)).await;
        *latest = identity.clone();
        self.identity = identity;
    }
}

/// Between half and the whole of `wait`, so that a thousand nodes do not knock together.
fn jittered(wait: Duration) -> Duration {
    let share = getrandom::u32().map_or(0.5, |drawn| f64::from(drawn) / f64::from(u32::MAX));
    wait.mul_f64(0.5 + share / 2.0)
}
