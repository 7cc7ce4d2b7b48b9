//! Honest programs under attack: a seed and nodes, each with a bound on its memory, that must come
//! through.
//!
//! The programs are the real ones, on the loopback, each at an address of its own. Rates are held
//! down by their own limits, so that what an attack costs is the swarm's time and not the processor's.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Attack, Campaign, OutlawError, Prey, Target};
use crate::cgroup::{CgroupError, MemoryBound};
use crate::process::ProcessError;
use crate::source;
use crate::swarm::{Agent, Place, SWARM_PORT, Seed, SwarmError};

/// What a seed may use, whatever is done to it.
pub const SEED_BYTES_MAX: u64 = 256 << 20;
/// What an agent may use beside the image.
pub const AGENT_BYTES_MAX: u64 = 64 << 20;

const POLL: Duration = Duration::from_millis(25);

/// What is attacked.
#[derive(Clone, Debug)]
pub struct Arena {
    /// Honest nodes.
    pub nodes: usize,
    /// The image's length.
    pub image_bytes: u64,
    /// What the seed, and each node, may send: `--upload-limit`.
    pub rate: &'static str,
    /// How long everything may take.
    pub limit: Duration,
    /// How long the attacks go on after every node has the image.
    pub siege: Duration,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Seconds from each node's start to its verified image, sorted.
    pub fetch_s: Vec<f64>,
    /// Each attack, and how often it fired.
    pub fired: Vec<(Attack, Target, u64)>,
    /// The most memory of its own that the seed had.
    pub seed_anon_bytes: u64,
    /// The same of the node that had most.
    pub agent_anon_bytes: u64,
    /// The most that the seed's control group was charged, page cache included.
    pub seed_charged_bytes: u64,
    /// Nodes that were banned by somebody honest.
    pub banned: usize,
}

impl Outcome {
    /// The middle of the nodes' times.
    pub fn median_s(&self) -> f64 {
        self.fetch_s[self.fetch_s.len() / 2]
    }
}

/// Why an honest program did not come through.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// A program failed, or was killed for its memory.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// The same.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// There is no bound on memory.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// There is no attack.
    #[error("the attack could not begin: {0}")]
    Outlaw(#[from] OutlawError),
    /// A file or a thread.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It took too long.
    #[error(
        "after {limit_s} s {unfinished} of {nodes} nodes have no image, and did not fire: {silent}"
    )]
    Late {
        /// The limit.
        limit_s: u64,
        /// Nodes without an image.
        unfinished: usize,
        /// All of them.
        nodes: usize,
        /// Attacks that did nothing.
        silent: String,
    },
    /// A node has something else.
    #[error("{label} ended with other bytes than the image's")]
    OtherBytes {
        /// Which.
        label: String,
    },
    /// More memory than it may have.
    #[error("{label} had {found} bytes of memory: at most {most} are allowed")]
    Memory {
        /// Which.
        label: String,
        /// What it had.
        found: u64,
        /// The bound.
        most: u64,
    },
}

impl Arena {
    /// Runs the programs under `attacks`, all of them at once, each `machines` times.
    ///
    /// # Errors
    /// When an honest program does not come through, or an attack never fired.
    pub fn run(
        &self,
        directory: &Path,
        attacks: &[(Attack, Target)],
        machines: usize,
    ) -> Result<Outcome, ArenaError> {
        let image = directory.join("source");
        source::write(&image, self.image_bytes, 1)?;
        // Dropped last: a group is removed when it is empty.
        let seed_bound = MemoryBound::new(SEED_BYTES_MAX)?;
        let agent_bound = || MemoryBound::new(AGENT_BYTES_MAX + self.image_bytes);
        let bounds = (0..self.nodes)
            .map(|_| agent_bound())
            .collect::<Result<Vec<_>, _>>()?;

        let options = ["--upload-limit", self.rate];
        let published = [("web", image.as_path())];
        let mut seed = Seed::start(Place::loopback(), directory, &published, &options)?;
        seed_bound.enclose(seed.process.pid())?;
        let url = seed.url("web")?;
        let prey = Prey::of(&url, SocketAddr::from((seed.address, SWARM_PORT)))?;

        let campaigns = attacks
            .iter()
            .flat_map(|attack| std::iter::repeat_n(attack, machines))
            .map(|(attack, target)| {
                let from = IpAddr::V4(Place::loopback().address);
                Campaign::begin(*attack, *target, &prey, from)
            })
            .collect::<Result<Vec<_>, _>>()?;
        for campaign in campaigns.iter().filter(|one| one.holds_places()) {
            campaign.settle();
        }
        let mut agents = Vec::new();
        for (number, bound) in bounds.iter().enumerate() {
            let label = format!("node{number}");
            let options = ["--stay", "--upload-limit", self.rate];
            let agent = Agent::fetch(Place::loopback(), directory, &label, &url, &options)?;
            bound.enclose(agent.process.pid())?;
            agents.push(agent);
        }

        let begin = Instant::now();
        let mut siege_ends = None;
        let (mut seed_anon_bytes, mut agent_anon_bytes) = (0, 0);
        loop {
            seed_anon_bytes = seed.process.usage()?.rss_anon_bytes.max(seed_anon_bytes);
            for agent in &mut agents {
                // What was killed for its memory, or gave up, says so here.
                if let Some(status) = agent.process.try_wait()? {
                    return Err(ProcessError::Ended {
                        label: agent.process.label().to_owned(),
                        status,
                        awaited: "the end of the attack".to_owned(),
                        tail: agent.process.tail(20),
                    }
                    .into());
                }
                let anon = agent.process.usage()?.rss_anon_bytes;
                agent_anon_bytes = anon.max(agent_anon_bytes);
            }
            if let Some(status) = seed.process.try_wait()? {
                return Err(ProcessError::Ended {
                    label: "seed".to_owned(),
                    status,
                    awaited: "the end of the attack".to_owned(),
                    tail: seed.process.tail(20),
                }
                .into());
            }
            let unfinished = agents.iter().filter(|agent| !agent.is_complete()).count();
            let silent = campaigns.iter().filter(|campaign| campaign.fired() == 0);
            let silent: Vec<&str> = silent.map(|one| one.scene.attack.name()).collect();
            if unfinished == 0 && silent.is_empty() {
                let end = *siege_ends.get_or_insert(Instant::now() + self.siege);
                if Instant::now() >= end {
                    break;
                }
            } else if begin.elapsed() > self.limit {
                return Err(ArenaError::Late {
                    limit_s: self.limit.as_secs(),
                    unfinished,
                    nodes: self.nodes,
                    silent: silent.join(", "),
                });
            }
            std::thread::sleep(POLL);
        }
        let fired = campaigns
            .iter()
            .map(|one| (one.scene.attack, one.scene.target, one.fired()))
            .collect();
        drop(campaigns);

        let (mut fetch_s, mut banned) = (Vec::new(), std::collections::BTreeSet::new());
        for agent in &agents {
            if !source::same(&image, agent.output())? {
                return Err(ArenaError::OtherBytes {
                    label: agent.process.label().to_owned(),
                });
            }
            let status = agent.status()?;
            fetch_s.push(status["fetch_seconds"].as_f64().unwrap_or(f64::NAN));
            for ban in status["banned"].as_array().into_iter().flatten() {
                banned.insert(ban[0].as_str().unwrap_or_default().to_owned());
            }
        }
        fetch_s.sort_by(f64::total_cmp);
        for (label, found, most) in [
            ("the seed", seed_anon_bytes, SEED_BYTES_MAX),
            ("a node", agent_anon_bytes, AGENT_BYTES_MAX),
        ] {
            if found > most {
                return Err(ArenaError::Memory {
                    label: label.to_owned(),
                    found,
                    most,
                });
            }
        }
        Ok(Outcome {
            fetch_s,
            fired,
            seed_anon_bytes,
            agent_anon_bytes,
            seed_charged_bytes: seed_bound.peak_bytes()?,
            banned: banned.len(),
        })
    }
}
