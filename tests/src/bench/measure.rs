//! One run: seed ready, all nodes started at once, every finish timed, every copy compared.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::netns::{NODE_INTERFACE, NetnsError};
use crate::process::{Process, ProcessError};
use crate::scratch::{Scratch, ScratchError};
use crate::source;
use crate::vm::binaries::Binaries;

use super::tool::{Done, Seed};
use super::{Case, Lab, Tool};

/// Finish times are this fine: 1 % of the shortest run, and no load on two cores.
const FINISH_POLL: Duration = Duration::from_millis(5);
/// Memory is sampled this often.
const MEMORY_POLL: Duration = Duration::from_millis(250);
/// What a run may take beyond the time in which the seed alone could serve every node, twice over.
const SLACK: Duration = Duration::from_secs(60);
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab cannot be laid out.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A program cannot be started or did not do what it should.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No room for the copies.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// A file cannot be written.
    #[error("cannot write below {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program ended with a failure.
    #[error("{label} ended ({status}); its last lines:\n{tail}")]
    Tool {
        /// Its label.
        label: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// This project is to be measured and was not built.
    #[error("rootswarm cannot be measured: its programs were not built")]
    NotBuilt,
    /// The seed printed an address that holds no pin.
    #[error("the seed's `{url}` has no `@blake3:…`")]
    SeedUrl {
        /// What it printed.
        url: String,
    },
    /// A torrent that was just made cannot be read.
    #[error("`aria2c --show-files` shows no info hash: {shown}")]
    Torrent {
        /// What it showed.
        shown: String,
    },
    /// Not every node finished in time.
    #[error(
        "{done} of {nodes} nodes have the image after {waited_s:.0} s; the slowest says:\n{tail}"
    )]
    Unfinished {
        /// How many did.
        done: usize,
        /// Of how many.
        nodes: usize,
        /// How long they were given.
        waited_s: f64,
        /// The end of the log of one that did not.
        tail: String,
    },
    /// A node holds other bytes than the seed.
    #[error("node {node} holds another image than the seed")]
    Damaged {
        /// Which node.
        node: usize,
    },
}

/// The file that is moved.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

impl Image {
    /// Takes an existing file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self, BenchError> {
        let metadata = std::fs::metadata(path).map_err(|source| BenchError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Image {
            path: path.to_owned(),
            bytes: metadata.len(),
        })
    }

    /// Writes `bytes` pseudo-random bytes, the same in every run. They do not compress, as a
    /// squashfs does not.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn generate(path: &Path, bytes: u64) -> Result<Self, BenchError> {
        source::write(path, bytes, 0).map_err(|error| BenchError::Write {
            path: path.to_owned(),
            source: error,
        })?;
        Ok(Image {
            path: path.to_owned(),
            bytes,
        })
    }
}

/// What one run showed.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The shape of the swarm.
    pub case: Case,
    /// What moved the image.
    pub tool: Tool,
    /// The image's length.
    pub image_bytes: u64,
    /// The fluid bound, where the links were shaped.
    pub bound_s: Option<f64>,
    /// When each node had the whole image, from the moment the first was started, ascending.
    pub node_s: Vec<f64>,
    /// When the last one had it.
    pub last_s: f64,
    /// `last_s` over the bound.
    pub last_over_bound: Option<f64>,
    /// Bytes on the wire that left the seed until then (headers included) over the image's length.
    pub seed_copies: f64,
    /// The seed's CPU time from the start of the nodes to the last finish.
    pub seed_cpu_s: f64,
    /// All nodes' CPU time until then.
    pub nodes_cpu_s: f64,
    /// The seed's largest sample of its own memory (what it maps is not counted).
    pub seed_rss_anon_peak_bytes: u64,
    /// The largest resident set of a node.
    pub node_rss_peak_bytes: u64,
    /// The largest sample of a node's own memory (the image it maps is not counted).
    pub node_rss_anon_peak_bytes: u64,
}

struct Fetching {
    process: Process,
    directory: PathBuf,
    finished_s: Option<f64>,
    rss_peak_bytes: u64,
    rss_anon_peak_bytes: u64,
}

/// Runs `tool` once in a fresh lab. What it writes goes to `scratch` and is removed again.
/// `binaries` are needed for [`Tool::Rootswarm`] only.
///
/// # Errors
/// When the lab cannot be made, a program fails, a node does not finish, or a copy differs.
pub fn run(
    case: &Case,
    tool: Tool,
    image: &Image,
    scratch: &Scratch,
    binaries: Option<&Binaries>,
) -> Result<Outcome, BenchError> {
    let root = scratch.path().join("run");
    let result = measure(case, tool, image, &root, binaries);
    let removed = std::fs::remove_dir_all(&root);
    let outcome = result?;
    removed.map_err(|source| BenchError::Write { path: root, source })?;
    Ok(outcome)
}

fn measure(
    case: &Case,
    tool: Tool,
    image: &Image,
    root: &Path,
    binaries: Option<&Binaries>,
) -> Result<Outcome, BenchError> {
    let make = |name: &str| {
        let path = root.join(name);
        let made = std::fs::create_dir_all(&path);
        made.map(|()| path.clone())
            .map_err(|source| BenchError::Write { path, source })
    };
    let lab = Lab::lay_out(case)?;
    let mut seed = tool.seed(&lab.seed, &image.path, &make("seed")?, binaries)?;
    let seed_cpu_before_s = seed.process.usage()?.cpu_s;
    let sent_before_bytes = lab.seed.namespace.traffic(NODE_INTERFACE)?.tx_bytes;

    let commands = lab.nodes.iter().enumerate().map(|(number, node)| {
        let directory = make(&format!("node{number}"))?;
        Ok((seed.fetch(node, &directory), directory))
    });
    let commands = commands.collect::<Result<Vec<_>, BenchError>>()?;
    let start = Instant::now();
    let mut nodes = Vec::with_capacity(commands.len());
    for (number, (command, directory)) in commands.into_iter().enumerate() {
        let process = Process::spawn(
            &format!("{tool} node {number}"),
            command,
            &directory.join("log"),
        )?;
        nodes.push(Fetching {
            process,
            directory,
            finished_s: None,
            rss_peak_bytes: 0,
            rss_anon_peak_bytes: 0,
        });
    }
    let seed_rss_anon_peak_bytes = watch(case, tool, image, start, &mut seed, &mut nodes)?;

    // The counters first: a seed that goes on talking is not to be blamed for what comes now.
    let sent_bytes = lab.seed.namespace.traffic(NODE_INTERFACE)?.tx_bytes - sent_before_bytes;
    let seed_cpu_s = seed.process.usage()?.cpu_s - seed_cpu_before_s;
    let mut nodes_cpu_s = 0.0;
    for node in &mut nodes {
        nodes_cpu_s += node.process.usage()?.cpu_s;
    }
    for node in &mut nodes {
        node.process.terminate(STOP_GRACE)?;
    }
    seed.process.terminate(STOP_GRACE)?;
    for (number, node) in nodes.iter().enumerate() {
        let copy = node.directory.join("image");
        let same = source::same(&image.path, &copy);
        if !same.map_err(|source| BenchError::Read { path: copy, source })? {
            return Err(BenchError::Damaged { node: number });
        }
    }

    let mut node_s: Vec<f64> = nodes.iter().filter_map(|node| node.finished_s).collect();
    node_s.sort_by(f64::total_cmp);
    let last_s = node_s.last().copied().unwrap_or_default();
    let bound_s = case.fluid_bound_s(image.bytes);
    let peak = |of: fn(&Fetching) -> u64| nodes.iter().map(of).max().unwrap_or_default();
    Ok(Outcome {
        case: *case,
        tool,
        image_bytes: image.bytes,
        bound_s,
        last_s,
        last_over_bound: bound_s.map(|bound_s| last_s / bound_s),
        seed_copies: sent_bytes as f64 / image.bytes as f64,
        seed_cpu_s,
        nodes_cpu_s,
        seed_rss_anon_peak_bytes,
        node_rss_peak_bytes: peak(|node| node.rss_peak_bytes),
        node_rss_anon_peak_bytes: peak(|node| node.rss_anon_peak_bytes),
        node_s,
    })
}

/// Waits until every node is done, noting times and memory. Returns the seed's memory peak.
fn watch(
    case: &Case,
    tool: Tool,
    image: &Image,
    start: Instant,
    seed: &mut Seed,
    nodes: &mut [Fetching],
) -> Result<u64, BenchError> {
    let limit = limit(case, image.bytes);
    let mut seed_peak_bytes = 0;
    let mut next_sample = start;
    loop {
        let now = Instant::now();
        let sample = now >= next_sample;
        let mut done = 0;
        for node in nodes.iter_mut() {
            if node.finished_s.is_none() {
                look(tool.done(), now - start, node)?;
            }
            done += usize::from(node.finished_s.is_some());
            if sample && let Ok(usage) = node.process.usage() {
                node.rss_peak_bytes = node.rss_peak_bytes.max(usage.rss_peak_bytes);
                node.rss_anon_peak_bytes = node.rss_anon_peak_bytes.max(usage.rss_anon_bytes);
            }
        }
        if done == nodes.len() {
            return Ok(seed_peak_bytes);
        }
        if sample {
            next_sample = now + MEMORY_POLL;
            if let Some(status) = seed.process.try_wait()? {
                let (label, tail) = (seed.process.label().to_owned(), seed.process.tail(20));
                return Err(BenchError::Tool {
                    label,
                    status,
                    tail,
                });
            }
            seed_peak_bytes = seed_peak_bytes.max(seed.process.usage()?.rss_anon_bytes);
        }
        if now - start > limit {
            let late = nodes.iter().find(|node| node.finished_s.is_none());
            return Err(BenchError::Unfinished {
                done,
                nodes: nodes.len(),
                waited_s: limit.as_secs_f64(),
                tail: late.map(|node| node.process.tail(20)).unwrap_or_default(),
            });
        }
        std::thread::sleep(FINISH_POLL);
    }
}

/// Notes when a node is done; a program that ends in another way is an error.
fn look(done: Done, elapsed: Duration, node: &mut Fetching) -> Result<(), BenchError> {
    let ended = node.process.try_wait()?;
    let finished = match done {
        Done::Exits => ended.is_some_and(|status| status.success()),
        Done::File(name) => node.directory.join(name).exists(),
    };
    if finished {
        node.finished_s = Some(elapsed.as_secs_f64());
    } else if let Some(status) = ended {
        return Err(BenchError::Tool {
            label: node.process.label().to_owned(),
            status,
            tail: node.process.tail(20),
        });
    }
    Ok(())
}

/// Twice what a seed alone would need for all, and some slack.
fn limit(case: &Case, bytes: u64) -> Duration {
    let slowest = match (case.node_bit_per_s, case.seed_bit_per_s) {
        (Some(node), Some(seed)) => node.min(seed),
        _ => return SLACK,
    };
    let alone_s = f64::from(case.nodes) * (bytes * 8) as f64 / slowest as f64;
    SLACK + Duration::from_secs_f64(2.0 * alone_s)
}
