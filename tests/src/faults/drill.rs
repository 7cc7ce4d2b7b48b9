//! The same download with and without a fault.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Added, Failure};
use crate::netns::NetnsError;
use crate::network::{Network, all_finish};
use crate::scratch::Scratch;
use crate::source;
use crate::swarm::{Agent, STOP_GRACE, Seed};

/// Several times what any drill takes without a fault.
const QUIET_LIMIT: Duration = Duration::from_secs(120);

/// Nodes, links and image of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drill {
    /// How many nodes.
    pub nodes: u8,
    /// Their links, both ways; `None` is not shaped.
    pub node_mbit: Option<u64>,
    /// The seed's.
    pub seed_mbit: Option<u64>,
    /// The image's length.
    pub image_bytes: u64,
}

/// A download under way. The agents go on serving when they have the image.
#[derive(Debug)]
pub struct Running {
    /// Dropped in this order: programs before the namespaces that they are in.
    pub agents: Vec<Agent>,
    /// The seed, which publishes the image as `debian`.
    pub seed: Seed,
    /// The image's rooturl, pinned.
    pub url: String,
    /// Where they are.
    pub network: Network,
    /// What every node must end with.
    pub image: PathBuf,
    /// When the nodes were started.
    pub start: Instant,
    drill: Drill,
}

/// What each drill took without a fault.
static WITHOUT: Mutex<BTreeMap<Drill, Duration>> = Mutex::new(BTreeMap::new());

impl Drill {
    /// Lays out the network, starts the seed and the nodes. `prepare` may inject what has to be there
    /// before the programs start.
    ///
    /// # Errors
    /// When something cannot be made or started.
    pub fn begin(
        self,
        directory: &Path,
        prepare: impl FnOnce(&Network) -> Result<(), Failure>,
    ) -> Result<Running, Failure> {
        self.start(directory, prepare, true)
    }

    /// [`Drill::begin`] with a seed that has published the image and ended again.
    ///
    /// # Errors
    /// As there.
    pub fn begin_without_seed(
        self,
        directory: &Path,
        prepare: impl FnOnce(&Network) -> Result<(), Failure>,
    ) -> Result<Running, Failure> {
        self.start(directory, prepare, false)
    }

    fn start(
        self,
        directory: &Path,
        prepare: impl FnOnce(&Network) -> Result<(), Failure>,
        is_seed_there: bool,
    ) -> Result<Running, Failure> {
        let image = directory.join("source");
        source::write(&image, self.image_bytes, 1)?;
        let network = self.lay_out()?;
        prepare(&network)?;
        let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
        let url = seed.url("debian")?;
        if !is_seed_there {
            seed.process.terminate(STOP_GRACE)?;
        }
        let start = Instant::now();
        let agents = network.fetch_all(directory, &url)?;
        Ok(Running {
            agents,
            seed,
            url,
            network,
            image,
            start,
            drill: self,
        })
    }

    /// Its seed and nodes, where no program runs yet.
    ///
    /// # Errors
    /// As [`Network::lay_out`].
    pub fn lay_out(self) -> Result<Network, NetnsError> {
        Network::lay_out_any(self.nodes, self.node_mbit, self.seed_mbit)
    }

    /// How long it takes without a fault. Measured once in a process.
    ///
    /// # Errors
    /// When it fails even so.
    pub fn without(self) -> Result<Duration, Failure> {
        let known = |map: &BTreeMap<_, _>| map.get(&self).copied();
        // What is in the map is whole even if somebody panicked beside it.
        let lock = || {
            WITHOUT
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
        };
        if let Some(took) = known(&lock()) {
            return Ok(took);
        }
        let need_bytes = self.need_bytes();
        let scratch = Scratch::create("drill", need_bytes, &std::env::temp_dir())?;
        let mut running = self.begin(scratch.path(), |_| Ok(()))?;
        let took = running.finish(QUIET_LIMIT)?;
        lock().insert(self, took);
        Ok(took)
    }

    /// What its files take.
    pub const fn need_bytes(self) -> u64 {
        self.image_bytes * (self.nodes as u64 + 3)
    }
}

impl Running {
    /// Waits until every node has the image, each for at most `limit`, and compares the copies.
    /// Returns the time from the nodes' start to the last one's end.
    ///
    /// # Errors
    /// When a node ends without it, is late, or has something else.
    pub fn finish(&mut self, limit: Duration) -> Result<Duration, Failure> {
        for agent in &mut self.agents {
            agent.wait_complete(limit)?;
        }
        let took = self.start.elapsed();
        all_finish(&mut self.agents, &self.image, limit)?;
        Ok(took)
    }

    /// [`Running::finish`], held against the same download without the fault.
    ///
    /// # Errors
    /// As there.
    pub fn finish_compared(&mut self, limit: Duration) -> Result<Added, Failure> {
        let with = self.finish(limit)?;
        Ok(Added {
            with,
            without: self.drill.without()?,
        })
    }
}
