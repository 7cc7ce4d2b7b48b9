//! The seed is killed in the middle of a download, and started again where it is needed.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rootswarm_image::ChunkSize;
use rustix::process::Signal;

use super::{Drill, Failure, Fault, Outcome, Running};
use crate::network::wait_for_share;
use crate::swarm::{Agent, Seed};

const DRILL: Drill = Drill {
    nodes: 6,
    node_mbit: Some(20),
    seed_mbit: Some(60),
    image_bytes: 12_000_000,
};
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// What a node says that waits for chunks nobody has, or for anybody at all.
const WAITING: [&str; 2] = ["no seed is connected", "neither the seed nor a peer"];

pub(super) const KILLED_10: Fault = Fault {
    name: "seeds: killed at 10 %",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: |directory| killed(directory, 0.1),
};

pub(super) const KILLED_50: Fault = Fault {
    name: "seeds: killed at 50 %",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: |directory| killed(directory, 0.5),
};

pub(super) const KILLED_90: Fault = Fault {
    name: "seeds: killed at 90 %",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: |directory| killed(directory, 0.9),
};

/// Kills it when the nodes hold this share of what they will hold in the end.
fn killed(directory: &Path, share: f64) -> Result<Outcome, Failure> {
    let mut running = DRILL.begin(directory, |_| Ok(()))?;
    wait_for_share(&mut running.agents, DRILL.image_bytes, share, LIMIT)?;
    let status = running.seed.process.kill()?;
    // Of this signal: a seed that had ended by itself was not killed.
    let killed = u64::from(status.signal() == Some(Signal::KILL.as_raw()));
    let complete = running.agents.iter().filter(|agent| agent.is_complete());
    let incomplete = running.agents.len() - complete.count();
    if incomplete == 0 {
        return Err("every node had the image before the seed was killed".into());
    }
    let said = said_so_far(&running)?;
    let outcome = match settle(&mut running, &said)? {
        Settled::Complete => format!("{incomplete} nodes finish among themselves"),
        Settled::Waiting { held } => {
            running.seed = Seed::start(running.network.seed.place(), directory, &[], &[])?;
            let back = Instant::now();
            running.finish(LIMIT)?;
            format!(
                "{incomplete} nodes share the {} % there are, wait, say so; done {:.1} s after the \
                 seed is back",
                held * 100 / DRILL.image_bytes,
                back.elapsed().as_secs_f64()
            )
        }
    };
    let added = running.finish_compared(LIMIT)?;
    Ok(Outcome {
        fired: killed,
        unit: "seeds killed",
        outcome,
        added: Some(added),
    })
}

/// What became of nodes without a seed.
enum Settled {
    /// All have the image.
    Complete,
    /// None can go on: all hold the same bytes, which are not all.
    Waiting {
        /// How many.
        held: u64,
    },
}

/// The lengths of the agents' logs.
fn said_so_far(running: &Running) -> Result<Vec<usize>, Failure> {
    let length = |agent: &Agent| Ok(agent.process.output()?.len());
    running.agents.iter().map(length).collect()
}

/// Waits until every node either has the image, or holds all that is left of it in the swarm and has
/// said, after `said` bytes of its log, that it waits.
///
/// The nodes' own files are read, so a swarm that stops sharing although it holds the whole image is
/// not taken for one that cannot go on.
fn settle(running: &mut Running, said: &[usize]) -> Result<Settled, Failure> {
    let start = Instant::now();
    loop {
        if running.agents.iter().all(Agent::is_complete) {
            return Ok(Settled::Complete);
        }
        let (mut waiting, mut have) = (0, Vec::new());
        for (agent, said) in running.agents.iter_mut().zip(said) {
            if let Some(status) = agent.process.try_wait()? {
                let label = agent.process.label();
                return Err(
                    format!("{label} gave up ({status}): {}", agent.process.tail(1)).into(),
                );
            }
            let output = agent.process.output()?;
            let new = output.get(*said..).unwrap_or_default();
            waiting += usize::from(WAITING.iter().any(|words| new.contains(words)));
            have.push(chunks_held(agent, &running.image)?);
        }
        let chunks = have.iter().map(Vec::len).max().unwrap_or_default();
        let union: Vec<bool> = (0..chunks)
            .map(|index| have.iter().any(|have| have.get(index) == Some(&true)))
            .collect();
        if waiting == running.agents.len()
            && union.contains(&false)
            && have.iter().all(|have| *have == union)
        {
            return Ok(Settled::Waiting {
                held: held_bytes(&union),
            });
        }
        if start.elapsed() >= LIMIT {
            let held: Vec<u64> = have.iter().map(|have| held_bytes(have)).collect();
            return Err(format!(
                "without the seed, {waiting} of {} nodes say that they wait; they hold {held:?} bytes, \
                 together {} of {}",
                running.agents.len(),
                held_bytes(&union),
                DRILL.image_bytes
            )
            .into());
        }
        std::thread::sleep(POLL);
    }
}

const CHUNK_BYTES: u64 = ChunkSize::for_length(DRILL.image_bytes).bytes();

/// The last chunk is shorter.
fn held_bytes(have: &[bool]) -> u64 {
    let starts = (0..).step_by(CHUNK_BYTES as usize);
    let held = have.iter().zip(starts).filter(|(have, _)| **have);
    held.map(|(_, start)| CHUNK_BYTES.min(DRILL.image_bytes.saturating_sub(start)))
        .sum()
}

/// Which chunks of `image` an agent's file holds. A missing one is a hole, and the image has none.
fn chunks_held(agent: &Agent, image: &Path) -> io::Result<Vec<bool>> {
    let mut part = agent.output().as_os_str().to_owned();
    part.push(".part");
    let mut held = match File::open(PathBuf::from(part)) {
        Ok(file) => file,
        // It was renamed: whole.
        Err(error) if error.kind() == ErrorKind::NotFound => File::open(agent.output())?,
        Err(error) => return Err(error),
    };
    let mut image = File::open(image)?;
    let mut chunks = Vec::new();
    loop {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        image.by_ref().take(CHUNK_BYTES).read_to_end(&mut theirs)?;
        held.by_ref().take(CHUNK_BYTES).read_to_end(&mut ours)?;
        if theirs.is_empty() {
            return Ok(chunks);
        }
        chunks.push(ours == theirs);
    }
}
