//! Half of the nodes are lost in the middle of a download.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::{Drill, Failure, Fault, Outcome, Running};
use crate::netns::NODE_INTERFACE;
use crate::network::{all_finish, wait_for_share};
use crate::swarm::Agent;

const DRILL: Drill = Drill {
    nodes: 6,
    node_mbit: 20,
    seed_mbit: 20,
    image_bytes: 12_000_000,
};
const LOST: usize = DRILL.nodes as usize / 2;
/// What the nodes hold when they are lost.
const SHARE: f64 = 0.4;
const LIMIT: Duration = Duration::from_secs(120);

pub(super) const VANISHED: Fault = Fault {
    name: "peers: half vanish",
    need_bytes: DRILL.need_bytes(),
    inject: vanished,
};

pub(super) const FROZEN: Fault = Fault {
    name: "peers: half freeze",
    need_bytes: DRILL.need_bytes(),
    inject: frozen,
};

pub(super) const UNPLUGGED: Fault = Fault {
    name: "peers: half lose their link",
    need_bytes: DRILL.need_bytes(),
    inject: unplugged,
};

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
