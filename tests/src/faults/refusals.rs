//! Refusals that pass: an image that is published after the nodes have asked for it, and a seed that
//! is away for longer than they are patient.

use std::path::Path;
use std::time::{Duration, Instant};

use super::links::{LIMIT, QUICK_DRILL, finished};
use super::{Failure, Fault, Outcome};
use crate::network::{Site, all_finish, sum};
use crate::process::Process;
use crate::source;
use crate::swarm::{Agent, STOP_GRACE, Seed, programs};

const POLL: Duration = Duration::from_millis(50);
/// What a node says that was told of another image, or of none.
const REFUSED: [&str; 2] = ["the pin does not match", "no image of that name"];
/// How long nodes are patient that are to give up, and how often each must.
const SHORT_S: &str = "4";
const GIVE_UPS: usize = 2;
/// "Gave up (network)".
const GAVE_UP: i32 = 4;

pub(super) const PASSING: Fault = Fault {
    name: "join: image published after the nodes asked",
    need_bytes: 2 * QUICK_DRILL.need_bytes(),
    bound: None,
    inject: passing,
};

pub(super) const SEED_AWAY: Fault = Fault {
    name: "join: seed away longer than ROOTDELAY",
    need_bytes: QUICK_DRILL.need_bytes(),
    bound: None,
    inject: seed_away,
};

fn refusals(agents: &[Agent]) -> Result<Vec<usize>, Failure> {
    let count = |agent: &Agent| -> Result<usize, Failure> {
        let output = agent.process.output()?;
        let is_refusal = |line: &&str| REFUSED.iter().any(|part| line.contains(part));
        Ok(output.lines().filter(is_refusal).count())
    };
    agents.iter().map(count).collect()
}

/// Nodes with tomorrow's pin: each is refused, by name or by pin, until the image is there.
fn passing(directory: &Path) -> Result<Outcome, Failure> {
    let (old, new) = (directory.join("old"), directory.join("source"));
    source::write(&old, QUICK_DRILL.image_bytes / 2, 1)?;
    source::write(&new, QUICK_DRILL.image_bytes, 2)?;
    let pin = blake3::hash(&std::fs::read(&new)?);
    let drill = QUICK_DRILL;
    let network = drill.lay_out()?;
    let seed = Seed::start(network.seed.place(), directory, &[("debian", &old)], &[])?;
    let mut agents = Vec::new();
    for (number, site) in network.nodes.iter().enumerate() {
        // One asks for a name that is not there at all.
        let name = ["debian", "fresh"][number % 2];
        let url = format!("swarm://{}/{name}@blake3:{pin}", seed.address);
        let label = format!("node{number}");
        agents.push(Agent::fetch(
            site.place(),
            directory,
            &label,
            &url,
            &["--stay"],
        )?);
    }
    let start = Instant::now();
    while refusals(&agents)?.iter().any(|count| *count < 2) {
        for agent in &mut agents {
            if let Some(status) = agent.process.try_wait()? {
                let tail = agent.process.tail(3);
                return Err(format!("a node ended at a refusal ({status}): {tail}").into());
            }
        }
        if start.elapsed() > LIMIT {
            return Err("the nodes are not refused".into());
        }
        std::thread::sleep(POLL);
    }
    for name in ["debian", "fresh"] {
        let mut command = network.seed.place().command(&programs()?.server);
        command.args(["publish", "--quiet", "--state"]);
        command.arg(seed.state()).arg(name).arg(&new);
        let log = directory.join(format!("publish-{name}.log"));
        let mut publish = Process::spawn("publish", command, &log)?;
        let status = publish.wait(LIMIT)?;
        if !status.success() {
            return Err(format!("publish: {}", publish.tail(3)).into());
        }
    }
    let there = Instant::now();
    all_finish(&mut agents, &new, LIMIT)?;
    Ok(Outcome {
        fired: refusals(&agents)?.iter().sum::<usize>() as u64,
        unit: "refusals",
        outcome: format!(
            "{} nodes have it {:.1} s after it was published, {} bytes by http",
            agents.len(),
            there.elapsed().as_secs_f64(),
            sum(&agents, "bytes_from_http")?
        ),
        added: None,
    })
}

/// As after a power cut: the nodes are up before the seed, give up, and are started again as `panic=`
/// does it, until it is there. One never gives up.
fn seed_away(directory: &Path) -> Result<Outcome, Failure> {
    let mut running = QUICK_DRILL.begin_without_seed(directory, |_| Ok(()))?;
    for agent in &mut running.agents {
        agent.process.terminate(STOP_GRACE)?;
    }
    let fetch = |number: usize, site: &Site| -> Result<Agent, Failure> {
        let patience = if number == 0 { "forever" } else { SHORT_S };
        let label = format!("away{number}");
        let options = ["--stay", "--timeout", patience];
        Ok(Agent::fetch(
            site.place(),
            directory,
            &label,
            &running.url,
            &options,
        )?)
    };
    let mut agents = Vec::new();
    for (number, site) in running.network.nodes.iter().enumerate() {
        agents.push(fetch(number, site)?);
    }
    let mut gave_up = vec![0; agents.len()];
    let start = Instant::now();
    while gave_up[1..].iter().any(|times| *times < GIVE_UPS) {
        for (number, site) in running.network.nodes.iter().enumerate() {
            let Some(status) = agents[number].process.try_wait()? else {
                continue;
            };
            if number == 0 || status.code() != Some(GAVE_UP) {
                let tail = agents[number].process.tail(3);
                return Err(format!("node {number} ended ({status}): {tail}").into());
            }
            gave_up[number] += 1;
            agents[number] = fetch(number, site)?;
        }
        if start.elapsed() > LIMIT {
            return Err(format!("nodes gave up {gave_up:?} times").into());
        }
        std::thread::sleep(POLL);
    }
    let published = [("debian", running.image.as_path())];
    running.seed = Seed::start(running.network.seed.place(), directory, &published, &[])?;
    let there = Instant::now();
    // One may just have been giving up.
    while !agents.iter().all(Agent::is_complete) {
        for (number, site) in running.network.nodes.iter().enumerate() {
            if agents[number].process.try_wait()?.is_some() && !agents[number].is_complete() {
                gave_up[number] += 1;
                agents[number] = fetch(number, site)?;
            }
        }
        if there.elapsed() > LIMIT {
            return Err("the nodes do not find the seed".into());
        }
        std::thread::sleep(POLL);
    }
    all_finish(&mut agents, &running.image, LIMIT)?;
    running.agents = agents;
    Ok(Outcome {
        fired: gave_up.iter().sum::<usize>() as u64,
        unit: "boots given up",
        outcome: format!(
            "{}, {:.1} s after the seed",
            finished(&running)?,
            there.elapsed().as_secs_f64()
        ),
        added: None,
    })
}
