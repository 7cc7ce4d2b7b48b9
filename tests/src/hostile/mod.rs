//! A client that speaks the protocol and misbehaves, in every way that has a name.
//!
//! An [`Attack`] is one way, against the seed or against the nodes. A [`Campaign`] keeps one up
//! from a machine (an address) of its own until it is dropped, under a new key whenever it is
//! thrown out, and counts how often it fired: a defence that held against nothing proves nothing.
//! What must hold meanwhile is for the tests to say.

pub mod arena;
mod attack;
#[cfg(target_arch = "x86_64")]
pub mod captive;
mod flood;
mod idle;
mod member;
mod siege;
#[cfg(target_arch = "x86_64")]
pub mod takeover;
mod version;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rootswarm_swarm::Role;
use tokio::runtime::Runtime;

pub use attack::Answering;
pub use flood::{Reflection, reflect};
pub use idle::{Hold, Strangers};
pub use member::{Outlaw, OutlawError, Prey};
pub use siege::{Siege, besiege};
pub use version::old_versions;

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Claims every chunk and answers requests in one of the wrong ways.
    Serve(Answering),
    /// Chunks that nobody asked for, garbage in them.
    Unasked,
    /// Streams by the thousand, each with a header and a byte.
    Streams,
    /// Streams that nobody will read, filled as far as they go.
    Pinned,
    /// Frames that announce 4 GiB.
    Oversize,
    /// Frames that end in the middle, or never.
    Truncated,
    /// Frames of random bytes.
    Random,
    /// Frames with counts of 2^64.
    Claims,
    /// Offers without end.
    Offers,
    /// Asks for peers without end.
    WantPeers,
    /// Announces chunks without end, in frames of the largest size.
    Haves,
    /// Asks for chunks and calls them off, without end.
    Requests,
    /// Asks for every chunk and reads none, with windows of a few bytes.
    SlowReader,
    /// Connections that never say hello.
    Silent,
    /// First packets of handshakes that never go on.
    Handshakes,
    /// Joins, one after the other, each under a new key.
    Joins,
    /// Joins that say nothing, from many addresses.
    IdleJoins,
    /// HTTP connections that say nothing, from many addresses.
    IdleHttp,
    /// Protocol names of other versions.
    Versions,
}

/// Whom an attack is against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The seed.
    Seed,
    /// The nodes that download, all of them that the seed names.
    Nodes,
}

impl Target {
    fn role(self) -> Role {
        match self {
            Target::Seed => Role::Seed,
            Target::Nodes => Role::Peer,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Target::Seed => "seed",
            Target::Nodes => "nodes",
        })
    }
}

impl Attack {
    /// Every attack with those it makes sense against.
    pub const ALL: &[(Attack, &[Target])] = {
        const NODES: &[Target] = &[Target::Nodes];
        const SEED: &[Target] = &[Target::Seed];
        const BOTH: &[Target] = &[Target::Seed, Target::Nodes];
        &[
            (Attack::Serve(Answering::Garbage), NODES),
            (Attack::Serve(Answering::OtherImage), NODES),
            (Attack::Serve(Answering::Nothing), NODES),
            (Attack::Serve(Answering::Trickle), NODES),
            (Attack::Serve(Answering::Endless), NODES),
            (Attack::Serve(Answering::Half), NODES),
            (Attack::Serve(Answering::Everywhere), NODES),
            (Attack::Unasked, BOTH),
            (Attack::Streams, BOTH),
            (Attack::Pinned, BOTH),
            (Attack::Oversize, BOTH),
            (Attack::Truncated, BOTH),
            (Attack::Random, BOTH),
            (Attack::Claims, BOTH),
            (Attack::Offers, BOTH),
            (Attack::WantPeers, BOTH),
            (Attack::Haves, BOTH),
            (Attack::Requests, BOTH),
            (Attack::SlowReader, BOTH),
            (Attack::Silent, BOTH),
            (Attack::Handshakes, BOTH),
            (Attack::Joins, SEED),
            (Attack::IdleJoins, SEED),
            (Attack::IdleHttp, SEED),
            (Attack::Versions, BOTH),
        ]
    };

    /// Its name, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Attack::Serve(Answering::Garbage) => "garbage chunks",
            Attack::Serve(Answering::OtherImage) => "another image's chunks",
            Attack::Serve(Answering::Nothing) => "lies about haves",
            Attack::Serve(Answering::Trickle) => "trickling chunks",
            Attack::Serve(Answering::Endless) => "endless chunks",
            Attack::Serve(Answering::Half) => "half chunks",
            Attack::Serve(Answering::Everywhere) => "one chunk, many streams",
            Attack::Unasked => "unasked chunks",
            Attack::Streams => "thousands of streams",
            Attack::Pinned => "streams never read",
            Attack::Oversize => "frames of 4 GiB",
            Attack::Truncated => "truncated frames",
            Attack::Random => "random frames",
            Attack::Claims => "claims of 2^64",
            Attack::Offers => "endless offers",
            Attack::WantPeers => "endless want-peers",
            Attack::Haves => "endless haves",
            Attack::Requests => "requests and cancels",
            Attack::SlowReader => "a reader that never reads",
            Attack::Silent => "connections without hello",
            Attack::Handshakes => "handshake flood",
            Attack::Joins => "join flood",
            Attack::IdleJoins => "joins that say nothing",
            Attack::IdleHttp => "idle http",
            Attack::Versions => "other versions",
        }
    }
}

/// What an attack knows and counts.
pub(crate) struct Scene {
    pub(crate) attack: Attack,
    pub(crate) target: Target,
    pub(crate) prey: Prey,
    pub(crate) from: IpAddr,
    fired: AtomicU64,
}

impl Scene {
    pub(crate) fn fire(&self) {
        self.fired.fetch_add(1, Ordering::Relaxed);
    }

    /// The addresses to attack.
    pub(crate) async fn victims(&self, outlaw: &Outlaw) -> Result<Vec<SocketAddr>, OutlawError> {
        match self.target {
            Target::Seed => Ok(vec![self.prey.seed]),
            Target::Nodes => attack::ask_for_nodes(outlaw, &self.prey).await,
        }
    }
}

/// An attack that goes on until this is dropped.
pub struct Campaign {
    scene: Arc<Scene>,
    runtime: Option<Runtime>,
}

impl Campaign {
    /// Begins an attack from the address `from`.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn begin(
        attack: Attack,
        target: Target,
        prey: &Prey,
        from: IpAddr,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let scene = Arc::new(Scene {
            attack,
            target,
            prey: prey.clone(),
            from,
            fired: AtomicU64::new(0),
        });
        runtime.spawn(attack::keep_up(scene.clone()));
        Ok(Campaign {
            scene,
            runtime: Some(runtime),
        })
    }

    /// How often it has fired.
    pub fn fired(&self) -> u64 {
        self.scene.fired.load(Ordering::Relaxed)
    }

    /// Whether it is there to hold what honest nodes need when they come.
    pub fn holds_places(&self) -> bool {
        matches!(self.scene.attack, Attack::IdleJoins | Attack::IdleHttp)
    }

    /// Waits, some seconds at most, until it has what it can get: it does not get more in half a second.
    pub fn settle(&self) {
        const STEP: Duration = Duration::from_millis(500);
        let mut before = 0;
        for _ in 0..10 {
            std::thread::sleep(STEP);
            let now = self.fired();
            if now > 0 && now - before <= now / 20 {
                return;
            }
            before = now;
        }
    }

    /// Waits until it has fired.
    pub fn wait_fired(&self, limit: Duration) -> bool {
        let start = std::time::Instant::now();
        while self.fired() == 0 {
            if start.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
