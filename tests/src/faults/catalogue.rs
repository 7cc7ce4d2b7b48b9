//! What a seed's operator does while machines boot: publishes and boots at once, publishes anew while
//! nodes hold yesterday's pin or download slowly, starts the seed before its address and sources are there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::disk::{rootswarm, text};
use super::{Failure, Fault, Outcome};
use crate::netns::NODE_INTERFACE;
use crate::network::{Network, all_finish, wait_for_share};
use crate::source;
use crate::swarm::{Agent, STOP_GRACE, Seed};

const IMAGE_BYTES: u64 = 8_000_000;
const LIMIT: Duration = Duration::from_secs(120);
/// What a node says that is refused, now or for good.
const REFUSALS: [&str; 3] = ["no image of that name", "pin does not match", "is busy"];

pub(super) const AT_ONCE: Fault = Fault {
    name: "catalogue: published and fetched at once",
    need_bytes: 8 * IMAGE_BYTES,
    bound: None,
    inject: at_once,
};

pub(super) const YESTERDAYS_PIN: Fault = Fault {
    name: "catalogue: yesterday's pin, seed restarted",
    need_bytes: 12 * IMAGE_BYTES,
    bound: None,
    inject: yesterdays_pin,
};

pub(super) const SLOW_DOWNLOAD: Fault = Fault {
    name: "catalogue: published anew in a slow download",
    need_bytes: 12 * IMAGE_BYTES,
    bound: None,
    inject: slow_download,
};

pub(super) const COMES_LATE: Fault = Fault {
    name: "catalogue: address and source come late",
    need_bytes: 6 * IMAGE_BYTES,
    bound: None,
    inject: comes_late,
};

/// Publishes a new image of `bytes` bytes and returns its file and its pinned rooturl, as the command
/// printed it.
fn publish(
    seed: &Seed,
    directory: &Path,
    number: u64,
    bytes: u64,
    options: &[&str],
) -> Result<(PathBuf, String), Failure> {
    let file = directory.join(format!("image{number}"));
    source::write(&file, bytes, number)?;
    let words = [&["publish", "-q"], options, &["debian", text(&file)?]].concat();
    let (status, said) = rootswarm(seed.state(), &words, &directory.join("publish.log"))?;
    if !status.success() {
        return Err(format!("publishing number {number}: {status}: {said}").into());
    }
    let url = said.lines().find(|line| line.starts_with("swarm://"));
    let url = url.ok_or("publish printed no rooturl")?.to_owned();
    Ok((file, url))
}

/// An agent is started the moment `publish` returns, for a new name and for one that means something else
/// by now; none may be refused.
fn at_once(directory: &Path) -> Result<Outcome, Failure> {
    let network = Network::lay_out(1, 1000, 1000)?;
    let seed = Seed::start_empty(network.seed.place(), directory, &[])?;
    let mut fired = 0;
    for (number, bytes) in (1..).zip([100_000, IMAGE_BYTES, 96, 3_000_001, IMAGE_BYTES, 1_000_000])
    {
        let (file, url) = publish(&seed, directory, number, bytes, &[])?;
        let label = format!("node{number}");
        let place = network.nodes[0].place();
        let mut agents = vec![Agent::fetch(place, directory, &label, &url, &[])?];
        all_finish(&mut agents, &file, LIMIT)?;
        let said = agents[0].process.output()?;
        if let Some(words) = REFUSALS.iter().find(|words| said.contains(**words)) {
            return Err(format!("{bytes} bytes: the node was told `{words}` first").into());
        }
        fired += 1;
    }
    Ok(Outcome {
        fired,
        unit: "images published",
        outcome: "each was fetched the moment the command returned, none refused".to_owned(),
        added: None,
    })
}

/// Three generations, a node for each, and the seed killed and started again in the middle.
fn yesterdays_pin(directory: &Path) -> Result<Outcome, Failure> {
    let network = Network::lay_out(3, 20, 60)?;
    let mut seed = Seed::start_empty(network.seed.place(), directory, &[])?;
    let mut published = Vec::new();
    for number in 1..=3 {
        published.push(publish(&seed, directory, number, IMAGE_BYTES, &[])?);
    }
    let start = |number: usize| {
        let place = network.nodes[number].place();
        let label = format!("node{number}");
        Agent::fetch(place, directory, &label, &published[number].1, &["--stay"])
    };
    // One has begun with each of the older ones; the third comes when the seed is back.
    let mut agents = vec![start(0)?, start(1)?];
    wait_for_share(&mut agents, IMAGE_BYTES, 0.2, LIMIT)?;
    seed.process.kill()?;
    let mut seed = Seed::start_empty(network.seed.place(), directory, &[])?;
    seed.url("debian")?;
    agents.push(start(2)?);
    let fired = agents.iter().take(2).filter(|agent| !agent.is_complete());
    let fired = fired.count() as u64;
    for (agent, (file, _)) in agents.iter_mut().zip(&published) {
        all_finish(std::slice::from_mut(agent), file, LIMIT)?;
    }
    // Who comes later with the oldest pin gets that image too.
    let place = network.nodes[2].place();
    let (file, url) = &published[0];
    let mut late = vec![Agent::fetch(place, directory, "late", url, &[])?];
    all_finish(&mut late, file, LIMIT)?;
    Ok(Outcome {
        fired,
        unit: "nodes in an older image's download",
        outcome: "each has the image of its pin, and so has one that comes later".to_owned(),
        added: None,
    })
}

/// Nothing older is kept, and the name is published anew again and again while a node fetches slowly.
fn slow_download(directory: &Path) -> Result<Outcome, Failure> {
    let network = Network::lay_out(1, 4, 1000)?;
    let seed = Seed::start_empty(network.seed.place(), directory, &["--keep", "1"])?;
    let (file, url) = publish(&seed, directory, 1, IMAGE_BYTES, &["--keep", "1"])?;
    let place = network.nodes[0].place();
    let mut agents = vec![Agent::fetch(place, directory, "node", &url, &[])?];
    wait_for_share(&mut agents, IMAGE_BYTES, 0.05, LIMIT)?;
    let id = url.rsplit_once("@blake3:").map_or("", |(_, id)| id);
    let copy = seed.state().join("images").join(id);
    let mut fired = 0;
    let begin = Instant::now();
    while !agents[0].is_complete() && fired < 20 {
        publish(&seed, directory, 2 + fired % 3, 1_000_000, &["--keep", "1"])?;
        fired += u64::from(!agents[0].is_complete());
        if !copy.exists() && !agents[0].is_complete() {
            return Err("the copy went while a node fetched it".into());
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    all_finish(&mut agents, &file, LIMIT)?;
    let took = begin.elapsed().as_secs_f64();
    drop(agents);
    while copy.exists() {
        if begin.elapsed() > 3 * LIMIT {
            return Err("a copy that nobody fetches and nothing names stays".into());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(Outcome {
        fired,
        unit: "images published meanwhile",
        outcome: format!("the node had its image after {took:.0} s; then the copy went"),
        added: None,
    })
}

/// The address comes two seconds after the seed is started, and the file that it is to publish does not.
fn comes_late(directory: &Path) -> Result<Outcome, Failure> {
    const SECONDS: u64 = 2;
    let network = Network::lay_out(1, 1000, 1000)?;
    let first = directory.join("first");
    source::write(&first, IMAGE_BYTES, 1)?;
    let place = network.seed.place();
    let mut seed = Seed::start(place, directory, &[("debian", &first)], &[])?;
    let url = seed.url("debian")?;
    seed.process.terminate(STOP_GRACE)?;
    // Neither the address nor the source of what is published is there.
    fs::remove_file(&first)?;
    let namespace = &network.seed.namespace;
    namespace.ip(["address", "flush", "dev", NODE_INTERFACE])?;
    let published: [(&str, &Path); 1] = [("debian", &first)];
    let mut seed = std::thread::scope(|scope| {
        let comes = scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(SECONDS));
            namespace.add_address(NODE_INTERFACE, place.address, 24)
        });
        let seed = Seed::start(place, directory, &published, &[]);
        let _ = comes.join();
        seed
    })?;
    let mut fired = 0;
    for words in [
        "waiting for",
        "debian stays what it is: cannot publish it anew",
    ] {
        let found = |output: &str| output.contains(words).then_some(());
        seed.process.wait_for_output(words, LIMIT, found)?;
        fired += 1;
    }
    let node = network.nodes[0].place();
    let mut agents = vec![Agent::fetch(node, directory, "node", &url, &[])?];
    let kept = directory.join("kept");
    source::write(&kept, IMAGE_BYTES, 1)?;
    all_finish(&mut agents, &kept, LIMIT)?;
    Ok(Outcome {
        fired,
        unit: "things that were missing",
        outcome: "waited for with a line; what is published is served".to_owned(),
        added: None,
    })
}
