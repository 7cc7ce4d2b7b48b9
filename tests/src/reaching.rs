//! Scenarios about who reaches whom: nodes whose address changes and nodes behind firewalls. Used by a test
//! suite (`tests/tests/reach.rs`) and by rows of `cargo xtask faults`.

use std::error::Error;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::netns::NODE_INTERFACE;
use crate::network::{Network, Site, all_finish, sum};
use crate::source;
use crate::swarm::{Agent, SWARM_PORT, Seed};

type Outcome<T> = Result<T, Box<dyn Error>>;

const MB: u64 = 1_000_000;
const POLL: Duration = Duration::from_millis(20);
/// Several times what anything here takes on a machine that is busy.
pub const LIMIT: Duration = Duration::from_secs(90);

/// What happens to a node's network, step by step.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// `ip ARGS` in its namespace.
    Ip(&'static str),
    /// Time passes.
    Wait(Duration),
}

/// A change of a node's addresses.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// What it is, for messages.
    pub name: &'static str,
    /// Whether seed and nodes talk IPv6.
    pub v6: bool,
    /// What happens.
    pub steps: &'static [Step],
    /// Where the node is then.
    pub at: &'static str,
}

use Step::{Ip, Wait};

/// Changes as DHCP clients, people and IPv6 make them. The node is at 10.79.0.10 or fd79::10 before.
pub const CHANGES: &[Change] = &[
    Change {
        name: "replaced",
        v6: false,
        steps: &[
            Ip("address del 10.79.0.10/24 dev eth0"),
            Ip("address add 10.79.0.77/24 dev eth0"),
        ],
        at: "10.79.0.77",
    },
    Change {
        name: "none for three seconds",
        v6: false,
        steps: &[
            Ip("address del 10.79.0.10/24 dev eth0"),
            Wait(Duration::from_secs(3)),
            Ip("address add 10.79.0.78/24 dev eth0"),
        ],
        at: "10.79.0.78",
    },
    Change {
        name: "a second one, then the first is removed",
        v6: false,
        steps: &[
            // A prefix of its own, or it would go with the first.
            Ip("address add 10.79.0.79/23 dev eth0"),
            Wait(Duration::from_millis(500)),
            Ip("address del 10.79.0.10/24 dev eth0"),
        ],
        at: "10.79.0.79",
    },
    Change {
        name: "a link that flaps",
        v6: false,
        steps: &[
            Ip("link set eth0 down"),
            Ip("link set eth0 up"),
            Wait(Duration::from_millis(300)),
            Ip("address flush dev eth0"),
            Ip("link set eth0 down"),
            Wait(Duration::from_millis(300)),
            Ip("link set eth0 up"),
            Ip("address add 10.79.0.80/24 dev eth0"),
            Wait(Duration::from_millis(100)),
            Ip("link set eth0 down"),
            Ip("link set eth0 up"),
            Ip("address flush dev eth0"),
            Ip("address add 10.79.0.81/24 dev eth0"),
        ],
        at: "10.79.0.81",
    },
    Change {
        name: "IPv6, replaced",
        v6: true,
        steps: &[
            Ip("-6 address del fd79::10/64 dev eth0"),
            Ip("-6 address add fd79::77/64 dev eth0 nodad"),
        ],
        at: "[fd79::77]",
    },
    Change {
        name: "IPv6 privacy: a new one, the old one deprecated",
        v6: true,
        steps: &[
            Ip("-6 address add fd79::78/64 dev eth0 nodad"),
            Ip("-6 address change fd79::10/64 dev eth0 preferred_lft 0 valid_lft 600"),
            // Which that takes away.
            Ip("-6 route replace fd79::/64 dev eth0"),
        ],
        at: "[fd79::78]",
    },
];

/// A seed with a slow cable, and nodes.
#[derive(Debug)]
pub struct Ground {
    /// Dropped before the namespaces that it is in.
    pub seed: Seed,
    /// The image's rooturl.
    pub url: String,
    /// The image.
    pub image: PathBuf,
    /// Where all are.
    pub network: Network,
    v6: bool,
}

impl Ground {
    /// Lays it out, and publishes an image of so many bytes.
    ///
    /// # Errors
    /// When something cannot be made or started.
    pub fn lay_out(
        directory: &Path,
        nodes: u8,
        (node_mbit, seed_mbit): (u64, u64),
        bytes: u64,
        v6: bool,
    ) -> Outcome<Ground> {
        let image = directory.join("source");
        source::write(&image, bytes, 1)?;
        let network = Network::lay_out(nodes, node_mbit, seed_mbit)?;
        if v6 {
            for site in [&network.seed].into_iter().chain(&network.nodes) {
                let host = site.link.address().octets()[3];
                let host: String = format!("-6 address add fd79::{host}/64 dev eth0 nodad");
                site.namespace.ip(host.split(' '))?;
            }
        }
        let listen: IpAddr = match v6 {
            true => Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 1).into(),
            false => network.seed.link.address().into(),
        };
        let images = [("debian", image.as_path())];
        let mut seed = Seed::start_at(network.seed.place(), listen, directory, &images, &[])?;
        let url = seed.url("debian")?;
        Ok(Ground {
            seed,
            url,
            image,
            network,
            v6,
        })
    }

    /// Starts a node, with the image or without, that goes on serving.
    ///
    /// # Errors
    /// When it cannot be started, or has nothing although it should.
    pub fn node(&self, directory: &Path, number: usize, has_image: bool) -> Outcome<Agent> {
        let label = format!("node{number}");
        if has_image {
            Agent::provide(directory, &label, &self.image)?;
        }
        let place = self.network.nodes[number].place();
        let mut agent = Agent::fetch_unbound(place, directory, &label, &self.url, &["--stay"])?;
        if has_image {
            agent.wait_complete(LIMIT)?;
            self.wait_until_named(&self.address(number))?;
        }
        Ok(agent)
    }

    fn address(&self, number: usize) -> String {
        let address = self.network.nodes[number].link.address();
        match self.v6 {
            true => format!("[fd79::{}]", address.octets()[3]),
            false => address.to_string(),
        }
    }

    /// Waits until the seed knows a complete node at this address and on the usual port; says how long
    /// that took.
    ///
    /// # Errors
    /// When it does not come to know it.
    pub fn wait_until_named(&self, address: &str) -> Outcome<Duration> {
        let start = Instant::now();
        let expected = format!("{address}:7401");
        loop {
            let status = self.seed.status()?;
            let nodes = status["images"][0]["nodes"].as_array().cloned();
            let is_there = |node: &serde_json::Value| {
                node["address"] == expected.as_str() && node["complete"] == true
            };
            if nodes.unwrap_or_default().iter().any(is_there) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > LIMIT {
                return Err(format!("the seed knows no node at {expected}: {status}").into());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Does to a node's network what is said.
///
/// # Errors
/// When `ip` refuses.
pub fn change(site: &Site, steps: &[Step]) -> Outcome<()> {
    for step in steps {
        match step {
            Ip(args) => site.namespace.ip(args.split(' '))?,
            Wait(time) => std::thread::sleep(*time),
        }
    }
    Ok(())
}

/// A complete node moves, then another one comes. Returns after what time the seed knew the new address, and
/// what the newcomer took.
///
/// # Errors
/// When the newcomer does not get the image from the node that moved.
pub fn a_node_that_moved_serves(directory: &Path, case: &Change) -> Outcome<(Duration, Duration)> {
    const BYTES: u64 = 12 * MB;
    // From the seed alone it takes 24 s.
    let ground = Ground::lay_out(directory, 2, (100, 4), BYTES, case.v6)?;
    let moving = ground.node(directory, 0, true)?;
    change(&ground.network.nodes[0], case.steps)?;
    let known = ground.wait_until_named(case.at)?;
    if known > Duration::from_secs(10) {
        return Err(format!("{}: known after {known:?}", case.name).into());
    }
    let start = Instant::now();
    let mut late = vec![ground.node(directory, 1, false)?];
    all_finish(&mut late, &ground.image, LIMIT)?;
    let took = start.elapsed();
    late[0].wait_until("all bytes in the status", LIMIT, |agent| {
        Ok(agent.count("bytes_have")? == BYTES)
    })?;
    let from_peers = late[0].count("bytes_from_peers")?;
    if from_peers < BYTES * 8 / 10 {
        let (name, log) = (case.name, moving.process.tail(20));
        return Err(format!("{name}: {from_peers} of {BYTES} bytes from the peer:\n{log}").into());
    }
    Ok((known, took))
}

/// Every node of a swarm has a firewall; some are complete before the others come. Returns the packets that
/// were dropped and the copies that left the seed from then on.
///
/// # Errors
/// When a node does not finish.
pub fn firewalls(directory: &Path, case: &Firewalled) -> Outcome<(u64, f64)> {
    const BYTES: u64 = 12 * MB;
    let nodes = case.complete + case.late;
    let ground = Ground::lay_out(directory, nodes, (100, 10), BYTES, case.v6)?;
    for site in ground.network.nodes.iter().skip(usize::from(case.open)) {
        site.namespace.drop_unasked()?;
    }
    let node = |number: u8, has_image| ground.node(directory, usize::from(number), has_image);
    let complete = (0..case.complete).map(|number| node(number, true));
    let complete = complete.collect::<Outcome<Vec<_>>>()?;
    let before = ground.seed.copies_sent("debian")?;
    let late = (case.complete..nodes).map(|number| node(number, false));
    let mut late = late.collect::<Outcome<Vec<_>>>()?;
    all_finish(&mut late, &ground.image, LIMIT)?;
    let copies = ground.seed.copies_sent("debian")? - before;
    // In their status documents, which are brought up to date every two seconds.
    let start = Instant::now();
    while sum(&complete, "bytes_uploaded")? < BYTES / 2 {
        if start.elapsed() > LIMIT / 3 {
            let uploaded = sum(&complete, "bytes_uploaded")?;
            return Err(format!("{case:?}: the complete nodes gave {uploaded} bytes away").into());
        }
        std::thread::sleep(POLL);
    }
    let mut dropped = 0;
    for site in ground.network.nodes.iter().skip(usize::from(case.open)) {
        dropped += site.namespace.dropped()?;
    }
    Ok((dropped, copies))
}

/// How many nodes, and which of them have a firewall.
#[derive(Clone, Copy, Debug)]
pub struct Firewalled {
    /// Nodes that have the image before the others come.
    pub complete: u8,
    /// Nodes that come then, together.
    pub late: u8,
    /// The first nodes without a firewall.
    pub open: u8,
    /// Whether they talk IPv6.
    pub v6: bool,
}

/// A complete node drops everything but the seed's packets: it cannot be passed, and is named.
///
/// # Errors
/// When it is not, or a node does not finish.
pub fn one_that_drops_everything(directory: &Path, nodes: u8) -> Outcome<u64> {
    const BYTES: u64 = 6 * MB;
    let ground = Ground::lay_out(directory, nodes, (100, 100), BYTES, false)?;
    let closed = &ground.network.nodes[0];
    closed.namespace.drop_all_but(SWARM_PORT)?;
    let closed_node = ground.node(directory, 0, true)?;
    let rest = (1..nodes).map(|number| ground.node(directory, usize::from(number), false));
    let mut rest = rest.collect::<Outcome<Vec<_>>>()?;
    all_finish(&mut rest, &ground.image, LIMIT)?;
    let start = Instant::now();
    loop {
        let status = ground.seed.status()?;
        let entries = status["images"][0]["nodes"].as_array().cloned();
        let named: Vec<String> = entries
            .unwrap_or_default()
            .iter()
            .filter(|node| node["cut_off_from"].as_u64().unwrap_or(0) > 0)
            .map(|node| node["address"].to_string())
            .collect();
        let itself = closed_node.status()?["cut_off_from"].as_u64().unwrap_or(0);
        let is_named = named == [format!("\"{}:7401\"", closed.link.address())];
        if is_named && itself >= u64::from(nodes - 1).min(2) {
            break;
        }
        if start.elapsed() > LIMIT {
            return Err(format!("named: {named:?}; by itself {itself}: {status}").into());
        }
        std::thread::sleep(POLL);
    }
    Ok(closed.namespace.dropped()?)
}

/// A node moves in the middle of its download, others as well fetch from it. Returns what it held then and
/// what it got twice.
///
/// # Errors
/// When a node does not finish.
pub fn moved_in_the_middle(directory: &Path, steps: &[Step], v6: bool) -> Outcome<(u64, u64)> {
    const BYTES: u64 = 12 * MB;
    let ground = Ground::lay_out(directory, 3, (20, 20), BYTES, v6)?;
    let agents = (0..3).map(|number| ground.node(directory, number, false));
    let mut agents = agents.collect::<Outcome<Vec<_>>>()?;
    let start = Instant::now();
    while sum(&agents, "bytes_have")? < BYTES {
        if start.elapsed() > LIMIT {
            return Err("the nodes did not come to a third".into());
        }
        std::thread::sleep(POLL);
    }
    let held = agents[0].count("bytes_have")?;
    change(&ground.network.nodes[0], steps)?;
    if agents[0].is_complete() {
        return Err("too late: the node has the image".into());
    }
    all_finish(&mut agents, &ground.image, LIMIT)?;
    // What counts is that the interface is still the node's.
    ground.network.nodes[0].namespace.traffic(NODE_INTERFACE)?;
    Ok((held, agents[0].count("duplicate_bytes")?))
}
