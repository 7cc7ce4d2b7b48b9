//! Nodes that are lost: half of them in the middle of a download, or one before the next comes, which
//! must not wait for what it still seems to hold.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Added, Drill, Failure, Fault, Outcome, Running};
use crate::netns::NODE_INTERFACE;
use crate::network::{Network, all_finish, wait_for_share};
use crate::source;
use crate::swarm::{Agent, Seed};

const DRILL: Drill = Drill {
    nodes: 6,
    node_mbit: Some(20),
    seed_mbit: Some(20),
    image_bytes: 12_000_000,
};
const LOST: usize = DRILL.nodes as usize / 2;
/// What the nodes hold when they are lost.
const SHARE: f64 = 0.4;
const LIMIT: Duration = Duration::from_secs(120);

pub(super) const VANISHED: Fault = Fault {
    name: "peers: half vanish",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: vanished,
};

pub(super) const FROZEN: Fault = Fault {
    name: "peers: half freeze",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: frozen,
};

pub(super) const UNPLUGGED: Fault = Fault {
    name: "peers: half lose their link",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: unplugged,
};

/// What the next node fetches, over links of 1 Gbit, from a seed of 2.
const NEXT_BYTES: u64 = 71_000_000;
const FIRST_BIT_PER_S: u64 = 100_000_000;

pub(super) const UNREACHABLE: Fault = Fault {
    name: "peers: one that nobody can dial",
    need_bytes: NEXT_BYTES * 6,
    bound: None,
    inject: |directory| {
        after(directory, "packets dropped", 1.0, |network, _| {
            network.nodes[0].wall_off()?;
            Ok(())
        })
    },
};

pub(super) const KILLED_MIDWAY: Fault = Fault {
    name: "peers: killed midway",
    need_bytes: NEXT_BYTES * 6,
    bound: None,
    inject: |directory| {
        after(directory, "nodes killed", 0.3, |_, first| {
            first.process.kill()?;
            Ok(())
        })
    },
};

/// A node fetches, alone, and is lost when it holds `share` of the image. What the next one takes is held
/// against what the first would have taken.
fn after(
    directory: &Path,
    unit: &'static str,
    share: f64,
    lose: impl FnOnce(&Network, &mut Agent) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let image = directory.join("source");
    source::write(&image, NEXT_BYTES, 1)?;
    let network = Network::lay_out(3, 1_000, 2_000)?;
    let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
    let url = seed.url("debian")?;
    let fetch = |number: usize, more: &[&str]| {
        let label = format!("node{number}");
        Agent::fetch(network.nodes[number].place(), directory, &label, &url, more)
    };
    let began = Instant::now();
    // It leaves no trace but the time that it took.
    let mut alone = fetch(2, &[])?;
    alone.wait_complete(LIMIT)?;
    let without = began.elapsed();
    alone.process.wait(LIMIT)?;

    if share < 1.0 {
        // So slow that it is seen in the middle.
        network.nodes[0].link.shape(FIRST_BIT_PER_S)?;
    }
    let mut first = fetch(0, &["--stay"])?;
    let least = (NEXT_BYTES as f64 * share) as u64;
    first.wait_until("its share", LIMIT, |agent| {
        Ok(agent.count("bytes_have")? >= least)
    })?;
    if share < 1.0 && first.is_complete() {
        return Err("the first node had the image before it was lost".into());
    }
    lose(&network, &mut first)?;
    let began = Instant::now();
    let mut next = fetch(1, &["--stay"])?;
    next.wait_complete(LIMIT)?;
    let with = began.elapsed();
    all_finish(&mut [next], &image, LIMIT)?;
    let fired = match first.process.try_wait()? {
        Some(_) => 1,
        None => network.nodes[0].walled_off()?,
    };
    // Chunks that trickle in at 32 a second take 17 s.
    if with > without + Duration::from_secs(5) {
        return Err(format!("the next node took {:.1} s", with.as_secs_f64()).into());
    }
    Ok(Outcome {
        fired,
        unit,
        outcome: format!(
            "the next node has the image after {:.1} s",
            with.as_secs_f64()
        ),
        added: Some(Added { without, with }),
    })
}

/// A download in its middle. The nodes that will be lost, which are the first, are apart.
fn under_way(directory: &Path) -> Result<(Running, Vec<Agent>), Failure> {
    let mut running = DRILL.begin(directory, |_| Ok(()))?;
    wait_for_share(&mut running.agents, DRILL.image_bytes, SHARE, LIMIT)?;
    let rest = running.agents.split_off(LOST);
    let lost = std::mem::replace(&mut running.agents, rest);
    let done = |agent: &Agent| agent.is_complete();
    if lost.iter().chain(&running.agents).any(done) {
        return Err("a node had the image before the others were lost".into());
    }
    Ok((running, lost))
}

fn vanished(directory: &Path) -> Result<Outcome, Failure> {
    let (mut running, mut lost) = under_way(directory)?;
    let mut fired = 0;
    for agent in &mut lost {
        agent.process.kill()?;
        fired += u64::from(agent.process.try_wait()?.is_some() && !agent.is_complete());
    }
    let added = running.finish_compared(LIMIT)?;
    Ok(Outcome {
        fired,
        unit: "nodes killed",
        outcome: format!("the other {} have the image", running.agents.len()),
        added: Some(added),
    })
}

fn frozen(directory: &Path) -> Result<Outcome, Failure> {
    let (mut running, mut lost) = under_way(directory)?;
    for agent in &mut lost {
        agent.process.signal(Signal::STOP)?;
    }
    let added = running.finish_compared(LIMIT)?;
    let mut fired = 0;
    for agent in &mut lost {
        fired += u64::from(is_stopped(agent)? && !agent.is_complete());
        agent.process.signal(Signal::CONT)?;
    }
    all_finish(&mut lost, &running.image, LIMIT)?;
    Ok(Outcome {
        fired,
        unit: "nodes stopped",
        outcome: format!(
            "the other {} have the image; the {LOST} once they wake up",
            running.agents.len()
        ),
        added: Some(added),
    })
}

/// As the kernel sees it.
fn is_stopped(agent: &Agent) -> Result<bool, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.process.pid()))?;
    Ok(stat
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T')))
}

fn unplugged(directory: &Path) -> Result<Outcome, Failure> {
    let (mut running, mut lost) = under_way(directory)?;
    for site in &running.network.nodes[..LOST] {
        site.namespace.ip(["link", "del", NODE_INTERFACE])?;
    }
    let added = running.finish_compared(LIMIT)?;
    let mut fired = 0;
    for (agent, site) in lost.iter().zip(&running.network.nodes) {
        fired += u64::from(site.namespace.traffic(NODE_INTERFACE).is_err() && !agent.is_complete());
    }
    let network = &mut running.network;
    for site in &mut network.nodes[..LOST] {
        let address = site.link.address();
        site.link = network.bridge.attach(&site.namespace, address, 24)?;
    }
    all_finish(&mut lost, &running.image, LIMIT)?;
    Ok(Outcome {
        fired,
        unit: "links deleted",
        outcome: format!(
            "the other {} have the image; the {LOST} once they have a link again",
            running.agents.len()
        ),
        added: Some(added),
    })
}
