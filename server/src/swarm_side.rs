//! The swarm's side of the server: the seed, and the answers to what it asks.
//!
//! The wire, the tracker and the scheduler are the transport's. Here the catalogue and the
//! admission rules decide about joins, and the seed's figures become the status document's.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rootswarm_image::{ImageId, SignedTag, SwarmKey};
use rootswarm_transport::limiter::RateLimiter;
use rootswarm_transport::seed::{
    Directory, Grant, JoinRequest, Listing, NodeId, Refusal, Revocations, Seed, SeedConfig,
    StartError,
};
use rootswarm_transport::status::{NodeInfo, SwarmStatus};
use rootswarm_transport::trust::Gate;
use rootswarm_transport::tuning::Tuning;
use tokio::sync::RwLock;

use crate::admission::{Admission, NotAdmitted};
use crate::ahead;
use crate::catalogue::{Catalogue, Copy, Found, Published, Snapshot};
use crate::config::Settings;
use crate::node_name::node_hex;
use crate::revocation::RevocationList;
use crate::state::StateDir;
use crate::status::{ImageEntry, NodeEntry};
use crate::token::{Tokens, now_unix_s};

/// Who may join, and what names mean: what the seed asks.
pub struct Tracker {
    catalogue: Arc<Catalogue>,
    admission: Arc<Admission>,
}

impl Tracker {
    /// Answers from this catalogue by these rules.
    pub fn new(catalogue: Arc<Catalogue>, admission: Arc<Admission>) -> Tracker {
        Tracker {
            catalogue,
            admission,
        }
    }
}

impl Directory for Tracker {
    fn allows(&self, address: IpAddr) -> Result<(), Refusal> {
        let checked = self.admission.check_address(address);
        checked.map_err(|reason| Refusal::NotAdmitted(reason.to_string()))
    }

    /// Admission comes first, so that a stranger does not learn which names there are; the token is
    /// used up last, so that a misspelt name does not cost it.
    fn join(
        &self,
        from: SocketAddr,
        node: NodeId,
        request: &JoinRequest,
    ) -> Result<Grant, Refusal> {
        let refused = |reason: NotAdmitted| match reason.may_pass() {
            // It is to ask again: the primary, or this seed once the primary is gone.
            true => Refusal::Busy,
            false => Refusal::NotAdmitted(reason.to_string()),
        };
        self.admission.check_address(from.ip()).map_err(refused)?;
        let token = request.token.as_deref();
        self.admission.check_token(token, node).map_err(refused)?;
        let snapshot = self.catalogue.snapshot();
        let published = match snapshot.find(&request.name, request.pin) {
            Found::Image(published) => published,
            Found::Loading => return Err(Refusal::Busy),
            Found::Other(current) => return Err(Refusal::PinMismatch { current }),
            Found::Unknown => return Err(Refusal::UnknownImage),
        };
        self.admission.consume_token(token, node).map_err(refused)?;
        Ok(Grant {
            tag: published.tag.clone(),
        })
    }

    fn mirror(&self, report: &[u8]) -> Result<Listing, String> {
        let policy = self.admission.to_mirror();
        let policy = policy.ok_or("this seed is a mirror itself and has learnt nothing yet")?;
        let (state, tokens) = (self.catalogue.state(), self.admission.tokens());
        for line in ahead::heed(state, report) {
            tracing::warn!("{line}");
        }
        let mut listing = listing(state, tokens, report)?;
        listing.policy = Some(policy.text().into_bytes());
        Ok(listing)
    }
}

/// What a mirror is told; `report` names the tokens that were used up there. The tokens are kept as this
/// seed keeps them: one that is a mirror itself has to tell its own first seed which were used.
fn listing(state: &StateDir, tokens: &Tokens, report: &[u8]) -> Result<Listing, String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let tokens = tokens
        .to_mirror(report, now_unix_s())
        .map_err(|e| said(&e))?;
    let revoked = RevocationList::new(state.clone()).to_mirror();
    let tags = state.read_tags().map_err(|e| said(&e))?;
    Ok(Listing {
        tokens,
        revoked: revoked.map_err(|e| said(&e))?,
        tags: tags
            .into_iter()
            .filter_map(|(_, tag)| Some(tag.ok()?.encode()))
            .collect(),
        retired: state.read_retired().iter().map(SignedTag::encode).collect(),
        older: state
            .all_generations()
            .map_err(|e| said(&e))?
            .iter()
            .map(SignedTag::encode)
            .collect(),
        rolled_back: state.rolled_back_for_mirror(),
        ..Listing::default()
    })
}

/// The seed, until it is shut down.
pub struct SwarmSide {
    seed: RwLock<Option<Seed>>,
    local_addr: SocketAddr,
    seed_id: NodeId,
    limiter: Arc<RateLimiter>,
    gate: Gate,
    /// The version of the list that holds.
    revocations: AtomicU64,
    rates: Mutex<Rates>,
}

impl SwarmSide {
    /// Listens, and admits whom the rules admit.
    pub async fn bind(
        settings: &Settings,
        key: Arc<SwarmKey>,
        catalogue: Arc<Catalogue>,
        admission: Arc<Admission>,
        revoked: Revocations,
    ) -> Result<SwarmSide, StartError> {
        let config = SeedConfig {
            listen: settings.listen,
            key,
            epoch: revoked.epoch,
            upload_limit_bytes_per_s: settings.upload_limit.map(|rate| rate.bytes_per_s()),
            tuning: Tuning::for_host(),
        };
        let seed = Seed::bind(config, Arc::new(Tracker::new(catalogue, admission))).await?;
        let revocations = AtomicU64::new(revoked.version);
        seed.revoke(revoked).await;
        Ok(SwarmSide {
            local_addr: seed.local_addr(),
            seed_id: seed.id(),
            limiter: seed.limiter(),
            gate: seed.gate(),
            seed: RwLock::new(Some(seed)),
            revocations,
            rates: Mutex::default(),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What the seed of this process goes by.
    pub fn seed_id(&self) -> NodeId {
        self.seed_id
    }

    /// The limit that all image bytes share.
    pub fn limiter(&self) -> Arc<RateLimiter> {
        self.limiter.clone()
    }

    /// Offers a copy to the swarm; nothing happens if it is offered already.
    pub async fn add(&self, copy: &Copy) {
        if let Some(seed) = &*self.seed.read().await {
            seed.add_image(copy.manifest().clone(), copy.store().clone());
        }
    }

    /// Takes an image out of the swarm; uploads under way have `grace` to finish.
    pub async fn remove(&self, id: &ImageId, grace: Duration) {
        if let Some(seed) = &*self.seed.read().await {
            seed.remove_image(id, grace).await;
        }
    }

    /// Takes admissions back, here and at all nodes.
    pub async fn revoke(&self, list: Revocations) {
        let version = list.version;
        if let Some(seed) = &*self.seed.read().await {
            seed.revoke(list).await;
        }
        self.revocations.store(version, Ordering::Relaxed);
    }

    /// The version of the list of revocations that holds.
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::Relaxed)
    }

    /// Whom it lets in.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// How many nodes are still fetching this image.
    pub async fn fetching(&self, id: &ImageId) -> usize {
        let id = id.to_string();
        let seed = self.seed.read().await;
        let Some(seed) = &*seed else { return 0 };
        let nodes = seed
            .status()
            .into_iter()
            .filter(|status| status.image == id)
            .flat_map(|status| status.nodes);
        nodes
            .filter(|node| !node.is_seed && !node.is_complete)
            .count()
    }

    /// Looks at how much each node has, for the rates. To be called about once a second.
    pub async fn sample(&self) {
        if let Some(seed) = &*self.seed.read().await {
            let status = seed.status();
            self.rates
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .sample(&status, Instant::now());
        }
    }

    /// The swarm of each image, for the status document.
    pub fn status(&self, snapshot: &Snapshot) -> Vec<ImageEntry> {
        // Held for writing only while the seed is being shut down.
        let Ok(seed) = self.seed.try_read() else {
            return Vec::new();
        };
        let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let swarms = seed.as_ref().map(Seed::status).unwrap_or_default();
        let mut entries: Vec<ImageEntry> = swarms
            .iter()
            .map(|swarm| entry(swarm, snapshot, &rates))
            .collect();
        // What is current comes first.
        let order = |it: &ImageEntry| (it.names.is_empty(), it.names.clone(), it.older_of.clone());
        entries.sort_by(|a, b| order(a).cmp(&order(b)).then(a.id.cmp(&b.id)));
        entries
    }

    /// Lets uploads under way finish within `grace`, then closes.
    pub async fn shutdown(&self, grace: Duration) {
        let seed = self.seed.write().await.take();
        if let Some(seed) = seed {
            seed.shutdown(grace).await;
        }
    }
}

fn entry(swarm: &SwarmStatus, snapshot: &Snapshot, rates: &Rates) -> ImageEntry {
    let named = |id: &ImageId| id.to_string() == swarm.image;
    let copies = if swarm.bytes_total == 0 {
        0.0
    } else {
        swarm.bytes_uploaded as f64 / swarm.bytes_total as f64
    };
    let mut nodes: Vec<NodeEntry> = swarm
        .nodes
        .iter()
        .filter(|node| !node.is_seed)
        .map(|node| NodeEntry {
            node: node.node.clone(),
            id: node_hex(&node.id),
            address: node.addr.clone(),
            rack: node.rack.clone(),
            chunks_have: node.chunks_have,
            complete: node.is_complete,
            complete_after_ms: node.complete_after_ms,
            rate_bytes_per_s: rates.of(swarm, node),
            cut_off_from: node.cut_off_from,
            hard_to_reach: node.is_hard_to_reach,
        })
        .collect();
    nodes.sort_by(|a, b| a.address.cmp(&b.address));
    let tags = || {
        let here = |it: &&Published| named(it.copy.id());
        snapshot.images().filter(here).map(|it| it.tag.unverified())
    };
    ImageEntry {
        names: tags().map(|tag| tag.name.to_string()).collect(),
        versions: tags()
            .map(|tag| (tag.name.to_string(), tag.version))
            .collect(),
        older_of: snapshot
            .older()
            .filter(|it| named(it.copy.id()))
            .map(|it| it.tag.unverified().name.to_string())
            .collect(),
        id: swarm.image.clone(),
        length_bytes: swarm.bytes_total,
        chunks: swarm.chunks_total,
        uploaded_bytes: swarm.bytes_uploaded,
        seed_copies: copies,
        banned: swarm
            .banned
            .iter()
            .map(|ban| format!("{} {}: {}", ban.node, ban.addr, ban.reason))
            .collect(),
        nodes,
    }
}

/// How fast each node's share grew between the last two looks.
#[derive(Debug, Default)]
struct Rates {
    /// By image, then by node.
    last: HashMap<String, HashMap<NodeId, Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    chunks: u32,
    chunks_per_s: f64,
}

impl Rates {
    fn sample(&mut self, swarms: &[SwarmStatus], now: Instant) {
        let mut next = HashMap::with_capacity(swarms.len());
        for swarm in swarms {
            let before = self.last.get(&swarm.image);
            let look = |node: &NodeInfo| {
                let last = before.and_then(|before| before.get(&node.id));
                let chunks_per_s = last.map_or(0.0, |last| {
                    let elapsed = now.duration_since(last.at).as_secs_f64().max(0.001);
                    f64::from(node.chunks_have.saturating_sub(last.chunks)) / elapsed
                });
                let sample = Sample {
                    at: now,
                    chunks: node.chunks_have,
                    chunks_per_s,
                };
                (node.id, sample)
            };
            next.insert(swarm.image.clone(), swarm.nodes.iter().map(look).collect());
        }
        // Nodes that are gone are gone from here too.
        self.last = next;
    }

    fn of(&self, swarm: &SwarmStatus, node: &NodeInfo) -> u64 {
        let chunk_bytes = swarm.bytes_total as f64 / f64::from(swarm.chunks_total.max(1));
        self.last
            .get(&swarm.image)
            .and_then(|nodes| nodes.get(&node.id))
            .map_or(0, |sample| (sample.chunks_per_s * chunk_bytes) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::token::Use;

    /// A machine is let in by the mirror of a mirror while the first seed is away, and not asked about for
    /// longer than a used token is kept: the first seed hears of it all the same.
    #[test]
    fn a_mirror_that_is_mirrored_hands_on_which_tokens_were_used() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let states = dirs.each_ref().map(|it| StateDir::open(it.path()).unwrap());
        let [first, middle, last] = [
            Tokens::new(states[0].clone()),
            Tokens::of_mirror(states[1].clone()),
            Tokens::of_mirror(states[2].clone()),
        ];
        let now = now_unix_s();
        let hour = Some(Duration::from_secs(3600));
        let token = first.create(Use::OneTime, hour, "", now - 300).unwrap();
        let exchange = |state: &StateDir, from: &Tokens, to: &Tokens| {
            let report = to.report_used().unwrap();
            let listing = listing(state, from, &report).unwrap();
            to.adopt(&listing.tokens, now).unwrap();
        };
        exchange(&states[0], &first, &middle);
        exchange(&states[1], &middle, &last);
        let (node, other) = (NodeId([1; 32]), NodeId([2; 32]));
        assert!(last.consume(Some(&token), node, now - 200).unwrap().is_ok());
        exchange(&states[1], &middle, &last);
        exchange(&states[0], &first, &middle);
        for tokens in [&first, &middle, &last] {
            let admitted = tokens.consume(Some(&token), other, now).unwrap();
            assert!(admitted.is_err(), "{tokens:?}");
        }
    }
}
