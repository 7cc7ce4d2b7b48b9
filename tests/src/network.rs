//! A seed and nodes around one switch, each in a network namespace behind a shaped cable, and what
//! scenarios ask of them. The namespaces are [`crate::netns`]'s, the programs [`crate::swarm`]'s.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::netns::{Bridge, Link, Namespace, NetnsError};
use crate::process::ProcessError;
use crate::source;
use crate::swarm::{Agent, Place, SWARM_PORT, SwarmError};

const MBIT: u64 = 1_000_000;
const POLL: Duration = Duration::from_millis(50);

/// Why the nodes did not do what a scenario asks of them.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A program.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A copy of the image cannot be read.
    #[error("cannot compare {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A copy is not the image.
    #[error("{label} ended with other bytes than the image's")]
    OtherBytes {
        /// Whose.
        label: String,
    },
    /// A firewall is not there, or is another.
    #[error("no firewall, or another: {said} (firewalls need root and nftables)")]
    Firewall {
        /// What nftables said.
        said: String,
    },
    /// The nodes got no further.
    #[error("the nodes hold {found} of {expected} bytes after {limit_s} s")]
    Share {
        /// What they hold together.
        found: u64,
        /// What they were to hold.
        expected: u64,
        /// How long was waited.
        limit_s: u64,
    },
}

/// A namespace with its cable.
#[derive(Debug)]
pub struct Site {
    /// Where the program runs.
    pub namespace: Namespace,
    /// What connects it to the switch.
    pub link: Link,
}

impl Site {
    /// Where to start a program.
    pub fn place(&self) -> Place<'_> {
        Place::inside(&self.namespace, self.link.address())
    }

    /// A firewall that remembers nothing: of UDP only what comes from the seed's port passes. Nobody can
    /// dial this node, and nobody that it dials is heard.
    ///
    /// # Errors
    /// When nftables is missing or refuses.
    pub fn wall_off(&self) -> Result<(), NetworkError> {
        self.nft(&[&format!(
            "table inet walled {{ chain in {{ type filter hook input priority 0; iifname lo accept; \
             meta l4proto != udp accept; udp sport {SWARM_PORT} accept; counter drop; }}; }}"
        )])?;
        Ok(())
    }

    /// Packets that [`Site::wall_off`] has dropped.
    ///
    /// # Errors
    /// When nftables is missing, or there is no such firewall.
    pub fn walled_off(&self) -> Result<u64, NetworkError> {
        let rules = self.nft(&["list", "table", "inet", "walled"])?;
        let mut words = rules.split_whitespace();
        let count = words.find(|word| *word == "packets").and(words.next());
        let count = count.and_then(|count| count.parse().ok());
        count.ok_or(NetworkError::Firewall { said: rules })
    }

    fn nft(&self, args: &[&str]) -> Result<String, NetworkError> {
        let said = |said: String| NetworkError::Firewall { said };
        let output = self.namespace.command("nft").args(args).output();
        let output = output.map_err(|error| said(error.to_string()))?;
        if !output.status.success() {
            return Err(said(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A seed and nodes around one switch.
#[derive(Debug)]
pub struct Network {
    /// The seed's site, 10.79.0.1.
    pub seed: Site,
    /// The nodes', from 10.79.0.10.
    pub nodes: Vec<Site>,
    /// Dropped last: the cables end in it.
    pub bridge: Bridge,
}

impl Network {
    /// Lays the cables, with these rates in both directions.
    ///
    /// # Errors
    /// When a namespace, a cable or its shaping cannot be made.
    pub fn lay_out(nodes: u8, node_mbit: u64, seed_mbit: u64) -> Result<Self, NetnsError> {
        Self::lay_out_any(nodes, Some(node_mbit), Some(seed_mbit))
    }

    /// The same with cables that need not be shaped: `None` is as fast as the machine.
    ///
    /// # Errors
    /// As [`Network::lay_out`].
    pub fn lay_out_any(
        nodes: u8,
        node_mbit: Option<u64>,
        seed_mbit: Option<u64>,
    ) -> Result<Self, NetnsError> {
        let bridge = Bridge::create("switch")?;
        let site = |label: &str, host, rate_mbit: Option<u64>| {
            let namespace = Namespace::create(label)?;
            let link = bridge.attach(&namespace, Ipv4Addr::new(10, 79, 0, host), 24)?;
            if let Some(rate_mbit) = rate_mbit {
                link.shape(rate_mbit * MBIT)?;
            }
            Ok::<_, NetnsError>(Site { namespace, link })
        };
        let seed = site("seed", 1, seed_mbit)?;
        let nodes = (0..nodes).map(|number| site(&format!("node{number}"), 10 + number, node_mbit));
        let nodes = nodes.collect::<Result<_, _>>()?;
        Ok(Network {
            seed,
            nodes,
            bridge,
        })
    }

    /// Starts an agent at each node that fetches `url` and goes on serving.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn fetch_all(&self, directory: &Path, url: &str) -> Result<Vec<Agent>, SwarmError> {
        let fetch = |(number, site): (usize, &Site)| {
            let label = format!("node{number}");
            Agent::fetch(site.place(), directory, &label, url, &["--stay"])
        };
        self.nodes.iter().enumerate().map(fetch).collect()
    }
}

/// The sum of a number over the agents' status documents.
///
/// # Errors
/// When a document has no such number.
pub fn sum(agents: &[Agent], key: &str) -> Result<u64, SwarmError> {
    agents.iter().map(|agent| agent.count(key)).sum()
}

/// Waits until every agent holds the image, each for at most `limit`, and compares the copies.
///
/// # Errors
/// When one ends without it, is late, or holds something else.
pub fn all_finish(agents: &mut [Agent], image: &Path, limit: Duration) -> Result<(), NetworkError> {
    for agent in agents {
        agent.wait_complete(limit)?;
        let same = source::same(image, agent.output()).map_err(|source| NetworkError::Read {
            path: agent.output().to_owned(),
            source,
        })?;
        if !same {
            return Err(NetworkError::OtherBytes {
                label: agent.process.label().to_owned(),
            });
        }
    }
    Ok(())
}

/// Waits until all together hold `share` (0.0 to 1.0) of what they will hold in the end: each the
/// image's `bytes`.
///
/// # Errors
/// When one ends, or after `limit`.
pub fn wait_for_share(
    agents: &mut [Agent],
    bytes: u64,
    share: f64,
    limit: Duration,
) -> Result<(), NetworkError> {
    let expected = (agents.len() as f64 * bytes as f64 * share) as u64;
    let start = Instant::now();
    loop {
        let found = sum(agents, "bytes_have")?;
        if found >= expected {
            return Ok(());
        }
        for agent in agents.iter_mut() {
            if let Some(status) = agent.process.try_wait()? {
                return Err(ProcessError::Ended {
                    label: agent.process.label().to_owned(),
                    status,
                    awaited: format!("{expected} bytes at all nodes"),
                    tail: agent.process.tail(20),
                }
                .into());
            }
        }
        if start.elapsed() >= limit {
            return Err(NetworkError::Share {
                found,
                expected,
                limit_s: limit.as_secs(),
            });
        }
        std::thread::sleep(POLL);
    }
}
