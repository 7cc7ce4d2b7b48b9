//! `serve --mirror swarm://HOST`: keeps this state directory in step with another seed's.
//!
//! Both hold the same swarm key. Every second the mirror asks what there is ([`Primary::listing`]):
//! signed tags, removed names, tokens, revocations, and whom the primary lets in. What is missing is fetched through the swarm as a
//! node fetches it, one image at a time, verified chunk by chunk, and published whole under the tag that
//! the primary signed; a download that was cut off goes on with the chunks that are there. Everything is written as commands write it, so that the server beside this picks
//! it up as usual, and so that the mirror is a whole seed whenever the primary is gone.
//!
//! **Tokens.** A one-time token must not admit two machines, so while the primary can be reached the
//! mirror leaves them to it, also while it is too busy to answer, or while something is wrong here
//! ([`Reach`]). While it cannot, the mirror admits by them, keeps who used which, and
//! tells the primary when it is back. What cannot be excluded is a network that is cut in two with a
//! seed and a bearer of the same token on either side.
//!
//! **Faults here.** What cannot be read or written here is said, and holds up nothing else: tokens,
//! revocations, admission and tags are taken over each for itself.
//!
//! **Admission.** The mirror lets in nobody whom its primary would not ([`crate::policy`]), and nobody at
//! all before it knows. A primary of a release that does not tell (`rootswarm-mirror/1`) is taken to ask
//! for tokens if it has any, or ever had some while it was mirrored; where it has none, what this host's
//! admin configured holds, with a warning. One that has told once must go on to prove that it holds the
//! swarm key, which only `rootswarm-mirror/2` has it do.
//!
//! **Doubt.** Only what the primary says it removed is removed, and no tag is replaced by an older one:
//! a primary that lost its state does not take the mirror's with it.

mod download;
mod following;
mod reach;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rootswarm_image::{HostPort, ImageId, SWARM_PORT, SignedTag, SwarmKey};
use rootswarm_transport::mirror::{MirrorError, MirrorVersion, Primary};
use rootswarm_transport::node::{Node, NodeConfig, SeedTrust, StartError};
use rootswarm_transport::seed::{Listing, NodeId};
use rootswarm_transport::tuning::Tuning;
use tokio::task::{JoinHandle, spawn_blocking};

use self::download::{Download, Failed, NotMirrored};
use self::following::apply;
pub use self::reach::Reach;
use self::reach::{SyncError, verdict};
use crate::address_race::{first_that_answers, interleave};
use crate::admission::Admission;
use crate::ahead;
use crate::policy::{Allow, Remembered};
use crate::revocation::RevocationList;
use crate::state::StateDir;
use crate::token::{self, Tokens};

/// How often the primary is asked.
const POLL: Duration = Duration::from_secs(1);

/// The seed that is mirrored: `swarm://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorOf(HostPort);

impl FromStr for MirrorOf {
    type Err = String;

    fn from_str(text: &str) -> Result<MirrorOf, String> {
        let host = text
            .strip_prefix("swarm://")
            .ok_or_else(|| format!("bad seed {text:?}: expected swarm://HOST[:PORT]"))?;
        let host = host.strip_suffix('/').unwrap_or(host);
        host.parse()
            .map(MirrorOf)
            .map_err(|error: rootswarm_image::HostPortError| error.to_string())
    }
}

impl fmt::Display for MirrorOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swarm://{}", self.0)
    }
}

/// Keeps a state directory in step.
pub struct Mirror {
    of: MirrorOf,
    key: Arc<SwarmKey>,
    state: StateDir,
    tokens: Tokens,
    revoked: RevocationList,
    remembered: Remembered,
    reach: Reach,
    bind: Option<IpAddr>,
    upload_limit_bytes_per_s: Option<u64>,
    fetching: Option<(SignedTag, JoinHandle<Result<(), NotMirrored>>)>,
    /// Images that could not be fetched.
    failed: BTreeMap<ImageId, Failed>,
    said: Option<String>,
    /// What is newer here than what the primary said last.
    newer: Vec<SignedTag>,
    /// How often the primary was asked.
    turn: usize,
    /// What the seed of this very process goes by.
    itself: Option<NodeId>,
    /// The primary's addresses, as its name was last resolved.
    addresses: Vec<SocketAddr>,
}

impl Mirror {
    /// A mirror that writes into `state`, and what it learns of admission into `remembered`. `listen` is
    /// where the server beside it listens.
    pub fn new(
        of: MirrorOf,
        key: Arc<SwarmKey>,
        state: StateDir,
        listen: SocketAddr,
        upload_limit_bytes_per_s: Option<u64>,
        remembered: Remembered,
    ) -> Mirror {
        Mirror {
            of,
            key,
            remembered,
            tokens: Tokens::of_mirror(state.clone()),
            revoked: RevocationList::new(state.clone()),
            state,
            reach: Reach::default(),
            bind: (!listen.ip().is_unspecified()).then(|| listen.ip()),
            upload_limit_bytes_per_s,
            fetching: None,
            failed: BTreeMap::new(),
            said: None,
            newer: Vec::new(),
            turn: 0,
            itself: None,
            addresses: Vec::new(),
        }
    }

    /// The seed that is mirrored.
    pub fn of(&self) -> &MirrorOf {
        &self.of
    }

    /// Whether the primary can be reached.
    pub fn reach(&self) -> Reach {
        self.reach.clone()
    }

    /// Meets the primary once, and learns whom it lets in.
    ///
    /// # Errors
    /// Only when it answered and holds another swarm key: nothing will ever come of that. One that
    /// is not there may come later.
    pub async fn meet(&mut self) -> Result<(), MirrorError> {
        let met = async {
            let primary = self.connect().await?;
            let listing = self.ask(&primary).await?;
            primary.close();
            self.learn(&Arc::new(listing), primary.version()).await
        };
        match met.await {
            Ok(()) => {}
            Err(SyncError::Primary(error @ MirrorError::Trust { .. })) => return Err(error),
            Err(error) => {
                tracing::warn!("{} cannot be mirrored yet: {error}", self.of);
                self.conclude_alone().await;
            }
        }
        Ok(())
    }

    /// What an earlier release mirrored here says about a primary that is away: if it had tokens, it asks
    /// for them. Otherwise nobody is let in before it was met.
    async fn conclude_alone(&self) {
        if self.remembered.policy().is_some() {
            return;
        }
        let (remembered, tokens) = (self.remembered.clone(), self.tokens.clone());
        let concluded = blocking(
            move || match tokens.is_empty().map_err(|e| e.to_string())? {
                true => Ok(false),
                false => remembered.conclude(true).map_err(|e| e.to_string()),
            },
        );
        match concluded.await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(
                "nobody is let in before {} was met once, as it is not known whom it lets in (or \
                 take over: serve without --mirror)",
                self.of
            ),
            Err(error) => tracing::error!("nobody is let in: {error}"),
        }
    }

    /// Tells which seed must not be mirrored: the one beside it.
    pub fn is_beside(&mut self, seed: NodeId) {
        self.itself = Some(seed);
    }

    /// Keeps in step for ever; comes back only if the primary is the seed beside it.
    pub async fn run(mut self, admission: Arc<Admission>) {
        loop {
            let error = match self.session(&admission).await {
                Ok(never) => match never {},
                Err(SyncError::Itself) => return,
                Err(error) => error,
            };
            self.say(Some(format!(
                "{} is not mirrored at the moment: {error}",
                self.of
            )));
            tokio::time::sleep(POLL).await;
        }
    }

    /// Says what has changed, once.
    fn say(&mut self, what: Option<String>) {
        if self.said != what {
            match &what {
                Some(what) => tracing::warn!("{what}"),
                None => tracing::info!("{} is mirrored", self.of),
            }
            self.said = what;
        }
    }

    /// Where a primary at `seed` is dialed from: the address that the server beside this listens on, if
    /// it is one of that family.
    fn bind_towards(&self, seed: SocketAddr) -> Option<IpAddr> {
        self.bind.filter(|bind| bind.is_ipv4() == seed.is_ipv4())
    }

    /// Connects anew, which alone tells whether the primary can be reached: a connection that breaks, or
    /// a question without an answer, may mean that it is busy.
    async fn connect(&mut self) -> Result<Primary, SyncError> {
        let connected = self.dial().await;
        self.reach.learn(&connected);
        connected
    }

    /// The primary's addresses; the last ones while no name is resolved here.
    async fn resolve(&mut self) -> Result<Vec<SocketAddr>, SyncError> {
        let host = self.of.0.host.to_string();
        let bare = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = self.of.0.port_or(SWARM_PORT);
        let found = tokio::net::lookup_host((bare, port)).await.map(interleave);
        match found {
            Ok(found) if !found.is_empty() => self.addresses = found,
            _ if !self.addresses.is_empty() => {}
            failed => {
                let source = failed.err().unwrap_or(io::ErrorKind::NotFound.into());
                return Err(SyncError::Resolve { host, source });
            }
        }
        Ok(self.addresses.clone())
    }

    async fn dial(&mut self) -> Result<Primary, SyncError> {
        let addresses = self.resolve().await?;
        let dialed = first_that_answers(&addresses, |seed| {
            let (bind, key) = (self.bind_towards(seed), self.key.clone());
            let limit = self.upload_limit_bytes_per_s;
            async move {
                let node = node(bind, &key, limit).await?;
                Ok(Primary::connect(&node, seed, key).await?)
            }
        });
        let primary = dialed.await.map_err(verdict)?;
        // By its key, which each process makes anew: whatever the name, and whatever is between.
        if self.itself == Some(primary.seed_id()) {
            primary.close();
            return Err(SyncError::Itself);
        }
        Ok(primary)
    }

    /// Asks for everything, and tells which one-time tokens were used here, and which tags are newer.
    async fn ask(&self, primary: &Primary) -> Result<Listing, SyncError> {
        let tokens = self.tokens.clone();
        // Tokens that cannot be read are said where they are to be taken over.
        let report = blocking(move || tokens.report_used()).await;
        let mut report = report.unwrap_or_default();
        report.extend(ahead::report(&self.newer, self.turn));
        Ok(primary.listing(report).await?)
    }

    /// Remembers whom the primary lets in, as far as it tells.
    async fn learn(&self, listing: &Arc<Listing>, version: MirrorVersion) -> Result<(), SyncError> {
        let (remembered, tokens) = (self.remembered.clone(), self.tokens.clone());
        let listing = listing.clone();
        let learnt = blocking(move || {
            let said = |error: &dyn fmt::Display| error.to_string();
            match &listing.policy {
                Some(text) => remembered.adopt(text).map_err(|e| said(&e)),
                None => {
                    let text = String::from_utf8_lossy(&listing.tokens);
                    let has_tokens = token::parse(&text).is_ok_and(|found| !found.is_empty())
                        || !tokens.is_empty().map_err(|e| said(&e))?;
                    remembered.conclude(has_tokens).map_err(|e| said(&e))
                }
            }
        });
        let was_told = self.remembered.policy().is_some_and(|it| it.was_told());
        if was_told && version < MirrorVersion::Two {
            let policy = self.state.root().join("policy");
            return Err(SyncError::EarlierVersion { policy });
        }
        let changed = learnt.await?;
        if changed && let Some(policy) = self.remembered.policy() {
            let from = match &policy.allow {
                Allow::Listed(networks) => format!(" from {} networks", networks.len()),
                Allow::Interfaces(_) => " from its networks and this host's".to_owned(),
                Allow::Unknown => String::new(),
            };
            tracing::info!("{} has admission {}{from}", self.of, policy.mode);
        }
        Ok(())
    }

    /// What is to be said of admission here, if anything.
    fn doubt(&self, admission: &Admission) -> Option<String> {
        if let Err(looser) = admission.check_not_looser() {
            return Some(format!(
                "this mirror is configured looser than {}, which decides: {looser}",
                self.of
            ));
        }
        let policy = self.remembered.policy()?;
        let mode = admission.mode()?;
        (!policy.was_told()).then(|| {
            format!(
                "{} is of a release that does not tell whom it lets in: here admission is {mode}, \
                 and the allow-list is this host's (update it)",
                self.of
            )
        })
    }

    async fn session(
        &mut self,
        admission: &Admission,
    ) -> Result<std::convert::Infallible, SyncError> {
        let primary = Arc::new(self.connect().await?);
        loop {
            let listing = Arc::new(self.ask(&primary).await?);
            self.turn = self.turn.wrapping_add(1);
            let learnt = match self.learn(&listing, primary.version()).await {
                Err(SyncError::Local(fault)) => Some(fault),
                learnt => {
                    learnt?;
                    None
                }
            };
            let applied = {
                let (state, key) = (self.state.clone(), self.key.clone());
                let (tokens, revoked) = (self.tokens.clone(), self.revoked.clone());
                blocking(move || Ok(apply(&listing, &state, &key, &tokens, &revoked))).await?
            };
            self.newer = applied.newer;
            let fault = learnt.into_iter().chain(applied.faults).next();
            let fault =
                fault.map(|it| format!("not all of {} is mirrored at the moment: {it}", self.of));
            let doubts = self.doubt(admission).into_iter().chain(applied.doubts);
            self.say(in_one_line(fault.into_iter().chain(doubts).collect()));
            self.fetch(&primary, applied.missing).await;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Begins the next download, if none is under way.
    async fn fetch(&mut self, primary: &Arc<Primary>, missing: Vec<SignedTag>) {
        if let Some((tag, task)) = self.fetching.take_if(|(_, task)| task.is_finished()) {
            let tag = tag.unverified();
            let ended = task.await;
            let ended = ended.unwrap_or_else(|error| Err(NotMirrored::Failed(error.to_string())));
            match ended {
                Ok(()) => {
                    tracing::info!("mirrored {}: image {}", tag.name, tag.id);
                    self.failed.remove(&tag.id);
                }
                Err(reason) => {
                    let failed = self.failed.entry(tag.id).or_default();
                    if let Some(line) = failed.again(reason) {
                        tracing::error!("cannot mirror {}: {line}", tag.name);
                    }
                }
            }
        }
        self.failed
            .retain(|id, _| missing.iter().any(|tag| tag.unverified().id == *id));
        if self.fetching.is_some() {
            return;
        }
        let wanted: Vec<ImageId> = missing.iter().map(|tag| tag.unverified().id).collect();
        let state = self.state.clone();
        let kept = blocking(move || state.keep_partials(&wanted).map_err(|e| e.to_string()));
        if let Err(error) = kept.await {
            tracing::warn!("downloads that were begun are in the way: {error}");
        }
        let rested = |tag: &SignedTag| {
            let failed = self.failed.get(&tag.unverified().id);
            failed.is_none_or(Failed::is_over)
        };
        // Those that did not fail go first: one full disk does not stop what still fits.
        let tried = |tag: &SignedTag| self.failed.contains_key(&tag.unverified().id);
        let Some(tag) = missing.into_iter().filter(rested).min_by_key(tried) else {
            return;
        };
        let revoked = self.revoked.clone();
        let epoch = blocking(move || Ok(revoked.load().map(|found| found.epoch)));
        let epoch = epoch.await.ok().and_then(Result::ok);
        let download = Download {
            primary: primary.clone(),
            state: self.state.clone(),
            key: self.key.clone(),
            tag: tag.clone(),
            epoch: epoch.unwrap_or(crate::state::FIRST_EPOCH),
            bind: self.bind_towards(primary.address()),
            upload_limit_bytes_per_s: self.upload_limit_bytes_per_s,
        };
        self.fetching = Some((tag, tokio::spawn(download.run())));
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.fetching {
            task.abort();
        }
    }
}

async fn node(
    bind: Option<IpAddr>,
    key: &SwarmKey,
    upload_limit_bytes_per_s: Option<u64>,
) -> Result<Node, StartError> {
    Node::bind(NodeConfig {
        bind,
        port: 0,
        trust: SeedTrust::Key(key.public()),
        upload_limit_bytes_per_s,
        tuning: Tuning::for_host(),
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, SyncError> {
    let done = spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| Err(error.to_string()));
    done.map_err(SyncError::Local)
}

/// How many of several things that are wrong are said; the rest is counted.
const SAID: usize = 3;

/// What is wrong, if anything is.
fn in_one_line(wrong: Vec<String>) -> Option<String> {
    let more = match wrong.len().saturating_sub(SAID) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let said = &wrong[..wrong.len().min(SAID)];
    (!said.is_empty()).then(|| format!("{}{more}", said.join("; ")))
}

#[cfg(test)]
mod tests;
