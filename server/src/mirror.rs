//! `serve --mirror swarm://HOST`: keeps this state directory in step with another seed's.
//!
//! Both hold the same swarm key. Every second the mirror asks what there is ([`Primary::listing`]):
//! signed tags, removed names, tokens, revocations, and whom the primary lets in. What is missing is fetched through the swarm as a
//! node fetches it, one image at a time, verified chunk by chunk, and published whole under the tag that
//! the primary signed; a download that was cut off goes on with the chunks that are there. Everything is written as commands write it, so that the server beside this picks
//! it up as usual, and so that the mirror is a whole seed whenever the primary is gone.
//!
//! **Tokens.** A one-time token must not admit two machines, so while the primary can be reached the
//! mirror leaves them to it. While it cannot, the mirror admits by them, keeps who used which, and
//! tells the primary when it is back. What cannot be excluded is a network that is cut in two with a
//! seed and a bearer of the same token on either side.
//!
//! **Admission.** The mirror lets in nobody whom its primary would not ([`crate::policy`]), and nobody at
//! all before it knows. A primary of a release that does not tell (`rootswarm-mirror/1`) is taken to ask
//! for tokens if it has any, or ever had some while it was mirrored; where it has none, what this host's
//! admin configured holds, with a warning. One that has told once must go on to prove that it holds the
//! swarm key, which only `rootswarm-mirror/2` has it do.
//!
//! **Doubt.** Only what the primary says it removed is removed, and no tag is replaced by an older one:
//! a primary that lost its state does not take the mirror's with it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rootswarm_image::{HostPort, ImageId, Manifest, SWARM_PORT, SignedTag, SwarmKey};
use rootswarm_transport::mirror::{MirrorError, MirrorVersion, Primary};
use rootswarm_transport::node::{Node, NodeConfig, SeedTrust, StartError};
use rootswarm_transport::seed::{Listing, NodeId};
use rootswarm_transport::store::{ChunkStore, StoreError};
use rootswarm_transport::tuning::Tuning;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::address_race::{first_that_answers, interleave};
use crate::admission::Admission;
use crate::policy::{Allow, Remembered};
use crate::publish::Workspace;
use crate::revocation::RevocationList;
use crate::state::{StateDir, StateError};
use crate::token::{self, Tokens};

/// How often the primary is asked.
const POLL: Duration = Duration::from_secs(1);

/// A download without a new chunk for so long is ended, and gone on with after [`RETRY`].
const STALLED: Duration = Duration::from_secs(60);

/// An image that could not be fetched is left alone for so long.
const RETRY: Duration = Duration::from_secs(20);

/// How long the mirror goes on serving, as a node, what it has just fetched; then it is its seed.
const LEAVE: Duration = Duration::from_secs(2);

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

/// Whether the primary can be reached, as far as is known; shared with admission.
#[derive(Clone, Debug)]
pub struct Reach(Arc<AtomicBool>);

impl Default for Reach {
    /// Until an attempt has failed, it can.
    fn default() -> Reach {
        Reach(Arc::new(AtomicBool::new(true)))
    }
}

impl Reach {
    /// Whether one-time tokens are the primary's to take.
    pub fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What the last attempt came to.
    pub(crate) fn set(&self, there: bool) {
        self.0.store(there, Ordering::Relaxed);
    }
}

/// Why the mirror is not in step at the moment.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("host {host} has no address: {source}")]
    Resolve { host: String, source: io::Error },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Primary(#[from] MirrorError),
    #[error("{0}")]
    Local(String),
    #[error("it is this very seed")]
    Itself,
}

/// What the failures at all of a primary's addresses come to: another swarm key only if nothing else was
/// found anywhere, because it is final.
fn verdict(mut failed: Vec<SyncError>) -> SyncError {
    let is_network =
        |error: &SyncError| !matches!(error, SyncError::Primary(MirrorError::Trust { .. }));
    let place = failed.iter().rposition(is_network).unwrap_or(0);
    failed.swap_remove(place)
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
    fetching: Option<(SignedTag, JoinHandle<Result<(), String>>)>,
    /// Images that could not be fetched: when, and what was said about it.
    failed: BTreeMap<ImageId, (Instant, String)>,
    said: Option<String>,
    /// What the seed of this very process goes by.
    itself: Option<NodeId>,
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
            itself: None,
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
    pub async fn meet(&self) -> Result<(), MirrorError> {
        let met = async {
            let primary = self.connect().await?;
            let listing = self.ask(&primary).await?;
            primary.close();
            self.learn(listing, primary.version()).await
        };
        match met.await {
            Ok(_) => {}
            Err(SyncError::Primary(error @ MirrorError::Trust { .. })) => return Err(error),
            Err(error) => {
                self.reach.set(false);
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
            self.reach.set(false);
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

    async fn connect(&self) -> Result<Primary, SyncError> {
        let name = self.of.0.host.to_string();
        let bare = name
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = self.of.0.port_or(SWARM_PORT);
        let unresolved = move |source| SyncError::Resolve { host: name, source };
        let found = tokio::net::lookup_host((bare, port)).await;
        let addresses = interleave(found.map_err(unresolved.clone())?);
        if addresses.is_empty() {
            return Err(unresolved(io::ErrorKind::NotFound.into()));
        }
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

    /// Asks for everything, and tells which one-time tokens were used here.
    async fn ask(&self, primary: &Primary) -> Result<Listing, SyncError> {
        let tokens = self.tokens.clone();
        let report = blocking(move || tokens.report_used()).await?;
        Ok(primary.listing(report).await?)
    }

    /// Remembers whom the primary lets in, as far as it tells; returns the listing.
    async fn learn(&self, listing: Listing, version: MirrorVersion) -> Result<Listing, SyncError> {
        let (remembered, tokens) = (self.remembered.clone(), self.tokens.clone());
        let learnt = blocking(move || {
            let said = |error: &dyn fmt::Display| error.to_string();
            let changed = match &listing.policy {
                Some(text) => remembered.adopt(text).map_err(|e| said(&e))?,
                None => {
                    let text = String::from_utf8_lossy(&listing.tokens);
                    let has_tokens = token::parse(&text).is_ok_and(|found| !found.is_empty())
                        || !tokens.is_empty().map_err(|e| said(&e))?;
                    remembered.conclude(has_tokens).map_err(|e| said(&e))?
                }
            };
            Ok((listing, changed))
        });
        let was_told = self.remembered.policy().is_some_and(|it| it.was_told());
        if was_told && version < MirrorVersion::Two {
            return Err(SyncError::Local(format!(
                "it speaks an earlier version of mirroring than it did before, in which it does not \
                 prove that it is the seed (if it was put back to an earlier release: remove {})",
                self.state.root().join("policy").display()
            )));
        }
        let (listing, changed) = learnt.await?;
        if changed && let Some(policy) = self.remembered.policy() {
            let from = match &policy.allow {
                Allow::Listed(networks) => format!(" from {} networks", networks.len()),
                Allow::Interfaces(_) => " from its networks and this host's".to_owned(),
                Allow::Unknown => String::new(),
            };
            tracing::info!("{} has admission {}{from}", self.of, policy.mode);
        }
        Ok(listing)
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
            let listing = self.ask(&primary).await?;
            let listing = self.learn(listing, primary.version()).await?;
            let applied = {
                let (state, key) = (self.state.clone(), self.key.clone());
                let (tokens, revoked) = (self.tokens.clone(), self.revoked.clone());
                blocking(move || apply(&listing, &state, &key, &tokens, &revoked)).await?
            };
            self.reach.set(true);
            let doubt = self.doubt(admission);
            self.say(doubt.into_iter().chain(applied.doubts).next());
            self.fetch(&primary, applied.missing).await;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Begins the next download, if none is under way.
    async fn fetch(&mut self, primary: &Arc<Primary>, missing: Vec<SignedTag>) {
        if let Some((tag, task)) = self.fetching.take_if(|(_, task)| task.is_finished()) {
            let tag = tag.unverified();
            let ended = task.await.unwrap_or_else(|error| Err(error.to_string()));
            match ended {
                Ok(()) => {
                    tracing::info!("mirrored {}: image {}", tag.name, tag.id);
                    self.failed.remove(&tag.id);
                }
                Err(reason) => {
                    let known = self.failed.get(&tag.id).map(|(_, said)| said);
                    if known != Some(&reason) {
                        tracing::error!("cannot mirror {}: {reason}", tag.name);
                    }
                    self.failed.insert(tag.id, (Instant::now(), reason));
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
            failed.is_none_or(|(at, _)| at.elapsed() >= RETRY)
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

/// What a listing came to.
#[derive(Debug, Default)]
struct Applied {
    /// Tags whose image is not here.
    missing: Vec<SignedTag>,
    /// What was not followed, and why.
    doubts: Vec<String>,
}

/// Follows a listing as far as that needs no download.
fn apply(
    listing: &Listing,
    state: &StateDir,
    key: &SwarmKey,
    tokens: &Tokens,
    revoked: &RevocationList,
) -> Result<Applied, String> {
    let said = |error: &dyn fmt::Display| error.to_string();
    let mut applied = Applied::default();
    let behind = revoked.adopt(&listing.revoked).map_err(|e| said(&e))?;
    applied.doubts.extend(behind);
    tokens.adopt(&listing.tokens).map_err(|e| said(&e))?;
    for bytes in &listing.tags {
        match follow(bytes, state, key) {
            Ok(None) => {}
            Ok(Some(tag)) => applied.missing.push(tag),
            Err(doubt) => applied.doubts.push(doubt),
        }
    }
    for bytes in &listing.retired {
        if let Err(doubt) = retire(bytes, state, key) {
            applied.doubts.push(doubt);
        }
    }
    Ok(applied)
}

fn verified(bytes: &[u8], key: &SwarmKey) -> Result<SignedTag, String> {
    let tag = SignedTag::decode(bytes).map_err(|error| error.to_string())?;
    tag.verify(&key.public(), &tag.unverified().name)
        .map_err(|error| error.to_string())?;
    Ok(tag)
}

/// Makes a tag of the primary's this state directory's, and returns it if its image is missing.
fn follow(bytes: &[u8], state: &StateDir, key: &SwarmKey) -> Result<Option<SignedTag>, String> {
    let signed = verified(bytes, key)?;
    let tag = signed.unverified();
    let _lock = state.lock().map_err(|error| error.to_string())?;
    // A damaged one counts as none.
    if state.read_tag(&tag.name).ok().flatten().as_ref() == Some(&signed) {
        return Ok(None);
    }
    // What was seen is remembered, also of a name that was removed: an old tag does not come back. To go
    // back the operator signs a new, higher version that names the old image.
    let (version, epoch) = state.newest(&tag.name);
    if version > tag.version || epoch > tag.epoch {
        return Err(format!(
            "the primary has version {} of {} in epoch {}, which is version {version} in epoch {epoch} \
             here and stays",
            tag.version, tag.name, tag.epoch
        ));
    }
    if !is_here(state, &signed) {
        return Ok(Some(signed));
    }
    state
        .write_tag(&signed)
        .and_then(|()| state.remove_unnamed_copies())
        .map_err(|error| error.to_string())?;
    Ok(None)
}

/// Whether the copy that a tag needs is here, cut as the tag says. Whether it is intact is checked by
/// the catalogue before it is served.
fn is_here(state: &StateDir, signed: &SignedTag) -> bool {
    let tag = signed.unverified();
    let place = state.copy(&tag.id);
    let manifest = std::fs::read(place.join("manifest")).ok();
    manifest.is_some_and(|bytes| tag.decode_manifest(&bytes).is_ok())
        && std::fs::metadata(place.join("image")).is_ok_and(|file| file.len() == tag.length)
}

/// Removes a name that the primary has removed.
fn retire(bytes: &[u8], state: &StateDir, key: &SwarmKey) -> Result<(), String> {
    let signed = verified(bytes, key)?;
    let tag = signed.unverified();
    let own = state.read_tag(&tag.name).ok().flatten();
    match own {
        Some(own) if own.unverified().version <= tag.version => match state.remove(&tag.name) {
            Ok(()) | Err(StateError::UnknownImage(_)) => Ok(()),
            Err(error) => Err(error.to_string()),
        },
        _ => Ok(()),
    }
}

/// One image on its way here.
struct Download {
    primary: Arc<Primary>,
    state: StateDir,
    key: Arc<SwarmKey>,
    tag: SignedTag,
    epoch: u32,
    bind: Option<IpAddr>,
    upload_limit_bytes_per_s: Option<u64>,
}

impl Download {
    async fn run(self) -> Result<(), String> {
        let tag = self.tag.unverified().clone();
        let said = |error: &dyn fmt::Display| error.to_string();
        let manifest = self.primary.manifest(&tag).await.map_err(|e| said(&e))?;
        let node = node(self.bind, &self.key, self.upload_limit_bytes_per_s);
        let node = node.await.map_err(|e| said(&e))?;
        let joined = self
            .primary
            .admit(&node, self.epoch, &tag, manifest.clone())
            .map_err(|e| said(&e))?;
        let opened = {
            let (state, manifest) = (self.state.clone(), manifest.clone());
            spawn_blocking(move || open(&state, manifest)).await
        };
        let (workspace, store) = opened.map_err(|e| said(&e))??;
        let swarm = node.start(joined, store.clone()).map_err(|e| said(&e))?;
        loop {
            match tokio::time::timeout(POLL, swarm.completed()).await {
                Ok(completed) => break completed.map_err(|e| said(&e))?,
                Err(_) if Duration::from_millis(swarm.status().idle_ms) > STALLED => {
                    return Err(format!("nothing came for {} s", STALLED.as_secs()));
                }
                Err(_) => {}
            }
        }
        swarm.shutdown(LEAVE).await;
        let (state, signed) = (self.state, self.tag);
        let publish = move || {
            store.ensure_complete().map_err(|e| e.to_string())?;
            store.sync().map_err(|e| e.to_string())?;
            drop(store);
            workspace
                .adopt(&state, &manifest, &signed)
                .map_err(|e| e.to_string())
        };
        spawn_blocking(publish).await.map_err(|e| said(&e))?
    }
}

/// Room for the whole image, taken now; with what an earlier attempt got of it, verified again.
fn open(state: &StateDir, manifest: Arc<Manifest>) -> Result<(Workspace, ChunkStore), String> {
    let workspace = Workspace::resume(state, manifest.id()).map_err(|error| error.to_string())?;
    let path = workspace.path().join("image");
    let store = match path.exists() {
        true => match ChunkStore::resume(&path, manifest.clone()) {
            // Cut off while room was taken for it.
            Err(StoreError::WrongLength { .. }) => ChunkStore::create(&path, manifest),
            resumed => resumed,
        },
        false => ChunkStore::create(&path, manifest),
    };
    Ok((workspace, store.map_err(|error| error.to_string())?))
}

#[cfg(test)]
mod tests;
