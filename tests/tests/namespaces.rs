//! What goes wrong on real networks: seeds and peers that vanish, cables that are pulled, slow
//! links, firewalls, loss. Each node is in a network namespace of its own. Needs root.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use rootswarm_tests::netns::{Bridge, Link, Namespace, NetnsError};
use rootswarm_tests::scenario::scenario;
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Agent, Place, Seed, SwarmError};
use rustix::process::Signal;

const MB: u64 = 1_000_000;
const MBIT: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);
/// Several times what each scenario takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A namespace with its cable.
struct Site {
    namespace: Namespace,
    link: Link,
}

impl Site {
    fn place(&self) -> Place<'_> {
        Place::inside(&self.namespace, self.link.address())
    }
}

/// A seed and nodes around one switch. Each scenario has its own.
struct Network {
    seed: Site,
    nodes: Vec<Site>,
    _bridge: Bridge,
}

impl Network {
    fn lay_out(nodes: u8, node_mbit: u64, seed_mbit: u64) -> Result<Self, NetnsError> {
        let bridge = Bridge::create("switch")?;
        let site = |label: &str, host, rate_mbit: u64| {
            let namespace = Namespace::create(label)?;
            let link = bridge.attach(&namespace, Ipv4Addr::new(10, 79, 0, host), 24)?;
            link.shape(rate_mbit * MBIT)?;
            Ok::<_, NetnsError>(Site { namespace, link })
        };
        let seed = site("seed", 1, seed_mbit)?;
        let nodes = (0..nodes).map(|number| site(&format!("node{number}"), 10 + number, node_mbit));
        let nodes = nodes.collect::<Result<_, _>>()?;
        Ok(Network {
            seed,
            nodes,
            _bridge: bridge,
        })
    }

    fn fetch_all(&self, directory: &Path, url: &str) -> Result<Vec<Agent>, SwarmError> {
        let fetch = |(number, site): (usize, &Site)| {
            Agent::fetch(
                site.place(),
                directory,
                &format!("node{number}"),
                url,
                &["--stay"],
            )
        };
        self.nodes.iter().enumerate().map(fetch).collect()
    }
}

fn sum(agents: &[Agent], key: &str) -> Result<u64, SwarmError> {
    agents.iter().map(|agent| agent.count(key)).sum()
}

/// Every agent holds the image within the limit.
fn all_finish(agents: &mut [Agent], image: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for agent in agents {
        agent.wait_complete(LIMIT)?;
        let label = agent.process.label();
        assert!(
            source::same(image, agent.output())?,
            "{label} holds another image"
        );
    }
    Ok(())
}

/// Waits until all together hold `share` of what they will hold in the end.
fn wait_for_share(agents: &mut [Agent], bytes: u64, share: f64) -> Result<(), SwarmError> {
    let goal = (agents.len() as f64 * bytes as f64 * share) as u64;
    let start = Instant::now();
    while sum(agents, "bytes_have")? < goal {
        for agent in agents.iter_mut() {
            let ended = agent.process.try_wait()?;
            assert_eq!(
                ended,
                None,
                "{}: {}",
                agent.process.label(),
                agent.process.tail(20)
            );
        }
        assert!(
            start.elapsed() < LIMIT,
            "no {share} of the swarm's bytes after {LIMIT:?}"
        );
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[test]
fn a_swarm_that_holds_all_finishes_without_its_seed() {
    scenario(400 * MB, |directory| {
        const BYTES: u64 = 20 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(6, 20, 120)?;
        let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
        let url = seed.url("debian")?;
        let mut agents = network.fetch_all(directory, &url)?;

        // The seed sends each chunk once before any twice, so once one copy has come from it and is
        // verified, the nodes together hold all.
        let start = Instant::now();
        while sum(&agents, "bytes_from_seed")? < BYTES {
            assert!(
                start.elapsed() < LIMIT,
                "the seed did not send one copy in {LIMIT:?}"
            );
            std::thread::sleep(POLL);
        }
        let copies = seed.copies_sent("debian")?;
        seed.process.kill()?;
        let mut held = Vec::new();
        for agent in &agents {
            assert!(
                !agent.is_complete(),
                "too late: make the nodes' links slower"
            );
            held.push(agent.count("bytes_have")? as f64 / BYTES as f64);
        }
        let mean = held.iter().sum::<f64>() / held.len() as f64;
        assert!(
            (0.2..0.9).contains(&mean),
            "killed when the nodes held {held:.2?}"
        );
        assert!(copies < 1.5, "{copies} copies were sent before the kill");

        all_finish(&mut agents, &image)
    });
}

#[test]
fn half_of_the_peers_can_vanish() {
    scenario(400 * MB, |directory| {
        const BYTES: u64 = 12 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(6, 20, 20)?;
        let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
        let mut agents = network.fetch_all(directory, &seed.url("debian")?)?;
        wait_for_share(&mut agents, BYTES, 0.4)?;
        let mut rest = agents.split_off(3);
        for agent in &mut agents {
            agent.process.kill()?;
        }
        all_finish(&mut rest, &image)
    });
}

#[test]
fn half_of_the_peers_can_freeze() {
    scenario(400 * MB, |directory| {
        const BYTES: u64 = 12 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(6, 20, 20)?;
        let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
        let mut agents = network.fetch_all(directory, &seed.url("debian")?)?;
        wait_for_share(&mut agents, BYTES, 0.4)?;
        let mut rest = agents.split_off(3);
        for agent in &mut agents {
            agent.process.signal(Signal::STOP)?;
        }
        all_finish(&mut rest, &image)?;
        // Those that wake up again finish as well.
        for agent in &mut agents {
            agent.process.signal(Signal::CONT)?;
        }
        all_finish(&mut agents, &image)
    });
}

#[test]
fn a_pulled_cable_costs_time_and_nothing_else() {
    scenario(200 * MB, |directory| {
        const BYTES: u64 = 10 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(2, 20, 20)?;
        let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
        let mut agents = network.fetch_all(directory, &seed.url("debian")?)?;
        wait_for_share(&mut agents, BYTES, 0.3)?;
        let held = agents[0].count("bytes_have")?;
        network.nodes[0].link.set_up(false)?;
        // Longer than a connection stays alive without an answer.
        std::thread::sleep(12 * SECOND);
        assert!(
            !agents[0].is_complete(),
            "the cable was to be pulled earlier"
        );
        agents[1].wait_complete(LIMIT)?;
        network.nodes[0].link.set_up(true)?;
        all_finish(&mut agents, &image)?;
        let duplicate = agents[0].count("duplicate_bytes")?;
        assert!(
            duplicate < held,
            "{duplicate} of {held} bytes were fetched again"
        );
        Ok(())
    });
}

#[test]
fn a_late_node_is_served_by_its_peers() {
    scenario(200 * MB, |directory| {
        const BYTES: u64 = 12 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(4, 100, 100)?;
        let published = [("debian", image.as_path())];
        let mut seed = Seed::start(network.seed.place(), directory, &published, &[])?;
        let url = seed.url("debian")?;
        let stay = |number: usize| {
            let label = format!("node{number}");
            Agent::fetch(
                network.nodes[number].place(),
                directory,
                &label,
                &url,
                &["--stay"],
            )
        };
        let mut agents = vec![stay(0)?, stay(1)?, stay(2)?];
        all_finish(&mut agents, &image)?;

        // The seed comes back with 1 Mbit: alone it would need 96 s for one more copy.
        seed.process.terminate(rootswarm_tests::swarm::STOP_GRACE)?;
        let limited = ["--upload-limit", "1Mbit"];
        let seed = Seed::start(network.seed.place(), directory, &[], &limited)?;
        let start = Instant::now();
        while seed.status()?["images"][0]["nodes"]
            .as_array()
            .map_or(0, Vec::len)
            < agents.len()
        {
            assert!(
                start.elapsed() < LIMIT,
                "the nodes did not come back: {}",
                seed.status()?
            );
            std::thread::sleep(POLL);
        }

        let start = Instant::now();
        let mut late = vec![stay(3)?];
        all_finish(&mut late, &image)?;
        let took_s = start.elapsed().as_secs_f64();
        assert!(
            took_s < 30.0,
            "{took_s:.1} s for {BYTES} bytes from three peers"
        );
        late[0].wait_until("all bytes in the status", LIMIT, |agent| {
            Ok(agent.count("bytes_have")? == BYTES)
        })?;
        let from_peers = late[0].count("bytes_from_peers")?;
        assert!(
            from_peers > BYTES * 8 / 10,
            "only {from_peers} of {BYTES} bytes came from peers"
        );
        Ok(())
    });
}

#[test]
fn behind_a_firewall_that_drops_udp_the_image_comes_verified_over_http() {
    scenario(100 * MB, |directory| {
        const BYTES: u64 = 6 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(1, 100, 100)?;
        let published = [("debian", image.as_path())];
        let mut seed = Seed::start(network.seed.place(), directory, &published, &[])?;
        let url = seed.url("debian")?;
        network.nodes[0].namespace.block_udp()?;
        let mut agent = Agent::fetch(network.nodes[0].place(), directory, "node0", &url, &[])?;
        agent.wait_complete(LIMIT)?;
        assert!(source::same(&image, agent.output())?);
        agent.process.wait(LIMIT)?;
        assert_eq!(
            agent.count("bytes_from_http")?,
            BYTES,
            "{}",
            agent.status()?
        );
        assert!(
            agent.process.output()?.contains("fetching over http://"),
            "{}",
            agent.process.output()?
        );
        Ok(())
    });
}

#[test]
fn two_of_a_hundred_packets_lost_is_survived() {
    scenario(200 * MB, |directory| {
        const BYTES: u64 = 8 * MB;
        let image = directory.join("source");
        source::write(&image, BYTES, 1)?;
        let network = Network::lay_out(3, 50, 50)?;
        for site in &network.nodes {
            site.namespace.lose(0.02)?;
        }
        let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
        let mut agents = network.fetch_all(directory, &seed.url("debian")?)?;
        all_finish(&mut agents, &image)
    });
}
