//! One run: seed ready, all nodes started at once, every finish timed, every copy compared.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::netns::NODE_INTERFACE;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::source;
use crate::vm::binaries::Binaries;

pub use super::error::BenchError;
use super::tool::{Done, First, Seed, SeedPlace, Start};
use super::{Case, Lab, Tool, Trouble};

/// The file in the seed's directory whose appearance begins the run for programs that wait.
pub(super) const GO: &str = "go";
/// What a program that waits for [`GO`] makes in its directory.
const READY: &str = "ready";

/// Finish times are this fine with few nodes: `quick` takes some 20 ms.
const POLL_FEW: Duration = Duration::from_millis(1);
/// And with more: 0.1 % of the shortest run, and no load on two cores.
const POLL_MANY: Duration = Duration::from_millis(5);
/// Up to here nodes are few.
const FEW_NODES: u32 = 4;
/// Memory is sampled this often.
const MEMORY_POLL: Duration = Duration::from_millis(100);
/// What a run may take beyond a multiple of its bound.
const SLACK_S: f64 = 60.0;
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Interpreters that start all at once on two cores.
const READY_LIMIT: Duration = Duration::from_secs(60);

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The shape of the swarm.
    pub case: Case,
    /// What moved the image.
    pub tool: Tool,
    /// Which run of this case it was, from 1: the tools of one run follow each other.
    pub run: u32,
    /// The image's length.
    pub image_bytes: u64,
    /// The fluid bound, where the links were shaped.
    pub bound_s: Option<f64>,
    /// When each node had the whole image, from the moment the first was started, ascending; where nodes come
    /// one after the other, from its own start. One that is slow or killed on purpose is not among them.
    pub node_s: Vec<f64>,
    /// When the last one had it.
    pub last_s: f64,
    /// `last_s` over the bound.
    pub last_over_bound: Option<f64>,
    /// When each node had the first bytes it could use, ascending; empty where that does not show.
    pub first_byte_s: Vec<f64>,
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

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// The shape of the swarm.
    pub case: Case,
    /// What moves the image.
    pub tool: Tool,
    /// Which run of this case it is, from 1.
    pub run: u32,
    /// What is moved.
    pub image: &'a Image,
    /// Needed for [`Tool::Rootswarm`] only.
    pub binaries: Option<&'a Binaries>,
    /// When it is given up; `None` is several times what the tool needs at most.
    pub timeout: Option<Duration>,
}

/// A node that is still to be started.
struct Due {
    number: usize,
    command: Command,
    directory: PathBuf,
}

struct Fetching {
    process: Process,
    directory: PathBuf,
    /// From the moment the first was started.
    start_s: f64,
    /// Whether the run ends without it: the one that is slow, or killed.
    is_victim: bool,
    cpu_before_s: f64,
    finished_s: Option<f64>,
    first_byte_s: Option<f64>,
    rss_peak_bytes: u64,
    rss_anon_peak_bytes: u64,
}

/// Runs one trial in a fresh lab. What it writes goes to `scratch` and is removed again.
///
/// # Errors
/// When the lab cannot be made, a program fails, a node does not finish, or a copy differs.
pub fn run(trial: &Trial<'_>, scratch: &Scratch) -> Result<Outcome, BenchError> {
    let root = scratch.path().join("run");
    let result = measure(trial, &root);
    let removed = std::fs::remove_dir_all(&root);
    let outcome = result?;
    removed.map_err(|source| BenchError::Write { path: root, source })?;
    Ok(outcome)
}

fn measure(trial: &Trial<'_>, root: &Path) -> Result<Outcome, BenchError> {
    let Trial {
        case, tool, image, ..
    } = *trial;
    let make = |name: &str| {
        let path = root.join(name);
        let made = std::fs::create_dir_all(&path);
        made.map(|()| path.clone())
            .map_err(|source| BenchError::Write { path, source })
    };
    let lab = Lab::lay_out(&case)?;
    let seed_directory = make("seed")?;
    let mut seed = tool.seed(&SeedPlace {
        node: &lab.seed,
        image: &image.path,
        directory: &seed_directory,
        nodes: &lab.nodes,
        slowest_bit_per_s: case
            .seed_bit_per_s
            .into_iter()
            .chain((0..lab.nodes.len()).filter_map(|number| case.rate_of(number)))
            .min(),
        mtu_bytes: case.mtu_bytes.unwrap_or(1500),
        binaries: trial.binaries,
    })?;
    let seed_cpu_before_s = seed.process.usage()?.cpu_s;
    let sent_before_bytes = lab.seed.namespace.traffic(NODE_INTERFACE)?.tx_bytes;

    let due = lab.nodes.iter().enumerate().map(|(number, node)| {
        let directory = make(&format!("node{number}"))?;
        let command = seed.fetch(node, &directory);
        Ok(Due {
            number,
            command,
            directory,
        })
    });
    let mut due = due.collect::<Result<VecDeque<_>, BenchError>>()?;
    let go = seed_directory.join(GO);
    let is_spread = matches!(case.trouble, Trouble::Over(_));
    let start_of = tool.start();
    if is_spread && start_of == Start::OnGo {
        // Nobody waits for those that come later.
        let_go(&go)?;
    }
    let mut start = Instant::now();
    let mut nodes = Vec::with_capacity(due.len());
    let waits = match start_of {
        Start::AtOnce => false,
        Start::OnGo => !is_spread,
        Start::Together(..) => true,
    };
    if waits {
        while let Some(next) = due.pop_front() {
            let at = start + Duration::from_secs_f64(case.start_s(next.number));
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            nodes.push(spawn(trial, next)?);
        }
        let released = release(start_of, &mut nodes, &go)?;
        if !is_spread {
            start = released;
        }
    }
    let seed_rss_anon_peak_bytes = watch(trial, start, &mut seed, &mut nodes, &mut due)?;

    // The counters first: a seed that goes on talking is not to be blamed for what comes now.
    let sent_bytes = lab.seed.namespace.traffic(NODE_INTERFACE)?.tx_bytes - sent_before_bytes;
    let seed_cpu_s = seed.process.usage()?.cpu_s - seed_cpu_before_s;
    let mut nodes_cpu_s = 0.0;
    for node in &mut nodes {
        nodes_cpu_s += node.process.usage()?.cpu_s - node.cpu_before_s;
    }
    for node in &mut nodes {
        if let First::Says(name, read) = tool.first() {
            let said = std::fs::read_to_string(node.directory.join(name)).unwrap_or_default();
            node.first_byte_s = read(&said);
        }
        node.process.terminate(STOP_GRACE)?;
    }
    seed.process.terminate(STOP_GRACE)?;
    let whole = nodes.iter().enumerate();
    for (number, node) in whole.filter(|(_, node)| !node.is_victim) {
        let copy = node.directory.join("image");
        let same = source::same(&image.path, &copy);
        if !same.map_err(|source| BenchError::Read { path: copy, source })? {
            return Err(BenchError::Damaged { node: number });
        }
    }

    let ascending = |of: fn(&Fetching) -> Option<f64>| {
        let mut values: Vec<f64> = nodes.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let node_s = ascending(|node| node.finished_s.map(|at| at - node.start_s));
    let last_s = node_s.last().copied().unwrap_or_default();
    let bound_s = case.fluid_bound_s(image.bytes);
    let peak = |of: fn(&Fetching) -> u64| nodes.iter().map(of).max().unwrap_or_default();
    Ok(Outcome {
        case,
        tool,
        run: trial.run,
        image_bytes: image.bytes,
        bound_s,
        last_s,
        last_over_bound: bound_s.map(|bound_s| last_s / bound_s),
        first_byte_s: ascending(|node| node.first_byte_s.filter(|_| !node.is_victim)),
        seed_copies: sent_bytes as f64 / image.bytes as f64,
        seed_cpu_s,
        nodes_cpu_s,
        seed_rss_anon_peak_bytes,
        node_rss_peak_bytes: peak(|node| node.rss_peak_bytes),
        node_rss_anon_peak_bytes: peak(|node| node.rss_anon_peak_bytes),
        node_s,
    })
}

fn spawn(trial: &Trial<'_>, due: Due) -> Result<Fetching, BenchError> {
    let Trial { case, tool, .. } = *trial;
    let Due {
        number,
        command,
        directory,
    } = due;
    let label = format!("{tool} node {number}");
    Ok(Fetching {
        process: Process::spawn(&label, command, &directory.join("log"))?,
        directory,
        start_s: case.start_s(number),
        is_victim: case.victim() == Some(number),
        cpu_before_s: 0.0,
        finished_s: None,
        first_byte_s: None,
        rss_peak_bytes: 0,
        rss_anon_peak_bytes: 0,
    })
}

fn let_go(go: &Path) -> Result<(), BenchError> {
    std::fs::write(go, "").map_err(|source| BenchError::Write {
        path: go.to_owned(),
        source,
    })
}

/// Lets the waiting programs go, once they all wait. Returns that moment.
fn release(start: Start, nodes: &mut [Fetching], go: &Path) -> Result<Instant, BenchError> {
    for node in nodes.iter_mut() {
        let ready = node.directory.join(READY);
        let pid = node.process.pid();
        let is_ready = |_: &str| {
            let ready = match start {
                Start::Together(table, port) => listens(pid, table, port),
                Start::OnGo | Start::AtOnce => ready.exists(),
            };
            ready.then_some(())
        };
        node.process.wait_for_output(READY, READY_LIMIT, is_ready)?;
        node.cpu_before_s = node.process.usage()?.cpu_s;
    }
    let start = Instant::now();
    let_go(go)?;
    Ok(start)
}

/// Whether somebody listens on a port where this process is.
fn listens(pid: u32, table: &str, port: u16) -> bool {
    let path = format!("/proc/{pid}/net/{table}");
    let table = std::fs::read_to_string(path).unwrap_or_default();
    // ADDRESS:PORT REMOTE:PORT: nobody is at the other end.
    table.contains(&format!(":{port:04X} 00000000:0000 "))
}

/// Starts those who are due, and waits until every node is done, noting times and memory. Returns the seed's
/// memory peak.
fn watch(
    trial: &Trial<'_>,
    start: Instant,
    seed: &mut Seed,
    nodes: &mut Vec<Fetching>,
    due: &mut VecDeque<Due>,
) -> Result<u64, BenchError> {
    let case = trial.case;
    let limit = trial.timeout.unwrap_or_else(|| limit(trial));
    let poll = if case.nodes <= FEW_NODES {
        POLL_FEW
    } else {
        POLL_MANY
    };
    let all = case.nodes as usize - usize::from(case.victim().is_some());
    let mut dies_s = case
        .fluid_bound_s(trial.image.bytes)
        .filter(|_| case.trouble == Trouble::Killed)
        .map(|bound_s| bound_s / 2.0);
    let mut seed_peak_bytes = 0;
    let mut next_sample = start;
    loop {
        let now = Instant::now();
        let elapsed = now - start;
        let is_due = |next: &Due| elapsed.as_secs_f64() >= case.start_s(next.number);
        while due.front().is_some_and(is_due)
            && let Some(next) = due.pop_front()
        {
            nodes.push(spawn(trial, next)?);
        }
        if dies_s.take_if(|at| elapsed.as_secs_f64() >= *at).is_some() {
            for node in nodes.iter_mut().filter(|node| node.is_victim) {
                node.process.kill()?;
            }
        }
        let sample = now >= next_sample;
        let mut done = 0;
        for node in nodes.iter_mut().filter(|node| !node.is_victim) {
            if node.finished_s.is_none() {
                look(trial.tool, elapsed, node)?;
            }
            done += usize::from(node.finished_s.is_some());
            if sample && let Ok(usage) = node.process.usage() {
                node.rss_peak_bytes = node.rss_peak_bytes.max(usage.rss_peak_bytes);
                node.rss_anon_peak_bytes = node.rss_anon_peak_bytes.max(usage.rss_anon_bytes);
            }
        }
        if sample {
            next_sample = now + MEMORY_POLL;
            seed_peak_bytes = seed_peak_bytes.max(seed.process.usage()?.rss_anon_bytes);
        }
        if done == all {
            return Ok(seed_peak_bytes);
        }
        if sample && let Some(status) = seed.process.try_wait()? {
            let expected = trial.tool.seed_ends() && status.success();
            if !expected {
                let (label, tail) = (seed.process.label().to_owned(), seed.process.tail(20));
                return Err(BenchError::Tool {
                    label,
                    status,
                    tail,
                });
            }
        }
        if elapsed > limit {
            let mut late = nodes.iter().filter(|node| !node.is_victim);
            let late = late.find(|node| node.finished_s.is_none());
            return Err(BenchError::Unfinished {
                done,
                nodes: all,
                waited_s: limit.as_secs_f64(),
                tail: late.map(|node| node.process.tail(20)).unwrap_or_default(),
            });
        }
        std::thread::sleep(poll);
    }
}

/// Notes how far a node is; a program that ends in another way than it should is an error.
fn look(tool: Tool, elapsed: Duration, node: &mut Fetching) -> Result<(), BenchError> {
    let appeared = |name: &str| node.directory.join(name).exists();
    if node.first_byte_s.is_none() {
        let begun = match tool.first() {
            First::Unknown | First::Says(..) => false,
            First::File(name) => appeared(name),
            First::Grows => {
                let image = std::fs::metadata(node.directory.join("image"));
                image.is_ok_and(|image| image.len() > 0)
            }
        };
        node.first_byte_s = begun.then_some(elapsed.as_secs_f64());
    }
    let ended = node.process.try_wait()?;
    let finished = match tool.done() {
        Done::Exits => ended.is_some_and(|status| status.success()),
        Done::File(name) => appeared(name),
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

/// Twice what a seed alone would need for all where the tool has no peers, ten times the bound
/// where it has, and some slack.
fn limit(trial: &Trial<'_>) -> Duration {
    let bytes = trial.image.bytes;
    let needed_s = if trial.tool.is_unicast() {
        trial
            .case
            .unicast_bound_s(bytes)
            .map(|alone_s| 2.0 * alone_s)
    } else {
        trial
            .case
            .fluid_bound_s(bytes)
            .map(|bound_s| 10.0 * bound_s)
    };
    let arrivals_s = match trial.case.trouble {
        Trouble::Over(seconds) => f64::from(seconds),
        _ => 0.0,
    };
    Duration::from_secs_f64(SLACK_S + arrivals_s + needed_s.unwrap_or_default())
}
