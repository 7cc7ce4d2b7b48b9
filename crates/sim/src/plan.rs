//! What is simulated: sizes, links, arrivals, faults. Plain data; what it does is `world`'s.

use crate::faults::{Fault, When, Who};

/// One host's network card, in bits per second on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Towards the network.
    pub up_bits: f64,
    /// From the network.
    pub down_bits: f64,
}

impl Link {
    /// The same rate both ways.
    pub const fn mbit(rate: f64) -> Link {
        Link {
            up_bits: rate * 1e6,
            down_bits: rate * 1e6,
        }
    }
}

/// When the nodes start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// All within this time, evenly by chance: a rack that is switched on.
    Within {
        /// The time.
        spread_us: u64,
    },
    /// All but the last few together; those few later.
    Late {
        /// How many are late.
        nodes: usize,
        /// When they start.
        at_us: u64,
    },
}

/// Who holds what before the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Holders {
    /// Only the seed holds anything.
    Seed,
    /// The first few nodes hold everything.
    Complete(usize),
    /// Every node holds a part by chance, as after a restart.
    Share(f64),
}

/// How the nodes stand: racks, each behind one shared link to the core, both ways. The seed stands
/// at the core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Racks {
    /// Racks; nodes stand in them in equal numbers, the first nodes in the first and so on: nodes that
    /// come late fill the last.
    pub count: usize,
    /// The sum of a rack's node links over its link to the core: 4 for 4:1. At least 1.
    pub oversubscription: f64,
    /// Whether a node knows its rack (`rootswarm.rack=`).
    pub known: bool,
}

/// A bug of our own, planted to see whether a checker finds it. No file can ask for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The verifier takes every chunk for good.
    BlindVerifier,
    /// The verifier finds corrupt chunks and says only that they broke off.
    MutedVerifier,
}

/// One experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its name: what `cargo xtask sim` calls it.
    pub name: String,
    /// What it is about, in one line.
    pub about: String,
    /// Nodes, the seed not counted.
    pub nodes: usize,
    /// The image's length.
    pub image_bytes: u64,
    /// The chunk size: a power of two.
    pub chunk_bytes: u64,
    /// The seed's link.
    pub seed_link: Link,
    /// Every node's link.
    pub node_link: Link,
    /// The racks; without them every host is at the core.
    pub racks: Option<Racks>,
    /// When nodes start.
    pub arrivals: Arrivals,
    /// Who holds what at the start.
    pub holders: Holders,
    /// The share of a link's bits that is payload: the rest is headers and acknowledgements.
    pub efficiency: f64,
    /// One way, between any two hosts.
    pub latency_us: u64,
    /// Up to this much is added to each packet's latency.
    pub jitter_us: u64,
    /// The share of packets that a link loses, drawn by chance.
    pub loss: f64,
    /// From a dial to the connection, beside one round trip.
    pub handshake_us: u64,
    /// What a seed sends until a node is a member: a handshake, a certificate, a tag and addresses. The
    /// manifest comes on top, from it or from a member.
    pub join_bytes: u64,
    /// Until a dial that meets nobody is given up.
    pub dial_timeout_us: u64,
    /// Until a connection to a host that fell silent is given up.
    pub idle_us: u64,
    /// What an upload may have under way and not acknowledged.
    pub window_bytes: u64,
    /// An acknowledgement of a chunk's last byte may be late by this much.
    pub ack_delay_us: u64,
    /// Uploads take turns on a link in bursts of this size. A finer one makes a run slower, hardly
    /// another: from 16 to 128 KiB the median and p99 of 200 nodes with 1 MiB chunks differ by less
    /// than 1 %, the last node by 1.9 %.
    pub burst_bytes: u64,
    /// Bytes per second that one host verifies, one chunk at a time.
    pub verify_bytes_per_s: f64,
    /// How much later the node hears of it: threads and queues in between.
    pub verify_us: u64,
    /// Timers fire on a grid of this width, as the reactor's do.
    pub timer_us: u64,
    /// A host takes what has come for it in turns on a grid of this width, as a driver does that is woken
    /// once for a batch; 0 for a turn for each thing at its own time.
    pub turn_us: u64,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// A planted bug; see [`Defect`].
    pub defect: Option<Defect>,
    /// The run ends here, whatever is missing.
    pub limit_us: u64,
    /// How long the run goes on after everybody is done: a swarm at rest must be quiet.
    pub linger_us: u64,
    /// Duplicate and discarded bytes allowed, as a share of all that had to arrive.
    pub waste_max: f64,
    /// Copies of the image that may leave the seed; 0 for no such rule.
    pub seed_copies_max: f64,
    /// Every live node must be done within this many medians; 0 for no such rule.
    pub last_over_median_max: f64,
    /// No node that lacks chunks is left with fewer than four neighbours for longer, while at least four
    /// others have room for it.
    pub few_neighbours_us: u64,
    /// What the run is held to when it is judged.
    pub expect: Expect,
}

/// Figures that a run should reach. Missing one is no violation: the swarm did what it must, only
/// not as well as it should.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Expect {
    /// 99 % of the nodes are done within this many of their bounds.
    pub p99: Option<f64>,
    /// All nodes are.
    pub last: Option<f64>,
    /// Images' worth of chunk bytes that leave the seed.
    pub seed_copies: Option<f64>,
    /// Images' worth of chunk bytes that enter any one rack over the core.
    pub rack_copies: Option<f64>,
    /// Chunk bytes that arrive and are not needed, as a share of those that are.
    pub duplicates: Option<f64>,
    /// Control bytes that a node sends, as a share of the image.
    pub control: Option<f64>,
}

impl Plan {
    /// Nodes that start together do so within this time: a rack that is switched on.
    pub const TOGETHER_US: u64 = 10_000;

    /// `nodes` nodes with links of `node_mbit` and a seed with `seed_mbit`; a 96.3 MB image in
    /// chunks of 256 KiB; no faults.
    pub fn new(name: &str, nodes: usize, node_mbit: f64, seed_mbit: f64) -> Plan {
        Plan {
            name: name.to_owned(),
            about: String::new(),
            nodes,
            image_bytes: 96_300_000,
            chunk_bytes: 256 << 10,
            seed_link: Link::mbit(seed_mbit),
            node_link: Link::mbit(node_mbit),
            racks: None,
            arrivals: Arrivals::Within {
                spread_us: Self::TOGETHER_US,
            },
            holders: Holders::Seed,
            efficiency: 0.95,
            latency_us: 100,
            jitter_us: 100,
            loss: 0.0,
            handshake_us: 2_000,
            join_bytes: 3_650,
            dial_timeout_us: 2_000_000,
            idle_us: 8_000_000,
            window_bytes: window_for(256 << 10),
            ack_delay_us: 2_000,
            burst_bytes: BURST_BYTES,
            verify_bytes_per_s: 3e9,
            verify_us: 300,
            timer_us: 1_000,
            turn_us: 0,
            faults: Vec::new(),
            defect: None,
            limit_us: 600_000_000,
            linger_us: 0,
            waste_max: 0.01,
            seed_copies_max: 0.0,
            last_over_median_max: 0.0,
            few_neighbours_us: u64::MAX,
            expect: Expect::default(),
        }
    }

    /// The same with another image.
    pub fn image(mut self, bytes: u64, chunk_bytes: u64) -> Plan {
        self.image_bytes = bytes;
        self.chunk_bytes = chunk_bytes;
        self.window_bytes = window_for(chunk_bytes);
        self
    }

    /// The same with faults. Faults cost duplicates and time, so the bounds on both are wider.
    pub fn faults(mut self, faults: Vec<Fault>) -> Plan {
        self.faults = faults;
        self.waste_max = self.waste_max.max(0.25);
        self
    }

    /// What the fluid model needs at least: T* = max(F/us, F/d, N·F/(us+N·u)) (Kumar and Ross
    /// 2006), in microseconds. At the rate of the links: what headers take is the swarm's to bear,
    /// as in the lab.
    pub fn bound_us(&self) -> f64 {
        let shared_us = self.shared_bound_us();
        let slowest = self.slow().map_or(1.0, |(_, factor)| factor);
        shared_us.max(self.own_bound_us(slowest))
    }

    /// The part of the bound that all nodes have in common: the seed sends each byte once, and all
    /// uplinks together send each byte to each node.
    pub fn shared_bound_us(&self) -> f64 {
        let bits = self.image_bytes as f64 * 8.0;
        let nodes = self.nodes as f64;
        let (us, u) = (self.seed_link.up_bits, self.node_link.up_bits);
        let slow = self
            .slow()
            .map_or(0.0, |(share, factor)| share * (1.0 - factor));
        (bits / us).max(nodes * bits / (us + nodes * u * (1.0 - slow))) * 1e6
    }

    /// The part that is a node's own: the image through its downlink, which has this share of the
    /// plan's rate.
    pub fn own_bound_us(&self, factor: f64) -> f64 {
        let bits = self.image_bytes as f64 * 8.0;
        bits / (self.node_link.down_bits * factor) * 1e6
    }

    fn slow(&self) -> Option<(f64, f64)> {
        self.faults.iter().find_map(|fault| match fault {
            Fault::Slow { who, factor } => {
                let share = who.count(self.nodes) as f64 / self.nodes.max(1) as f64;
                Some((share, *factor))
            }
            _ => None,
        })
    }

    /// What is counted when the plan's faults strike, by the names in [`Sometimes`]: each should
    /// have happened in a run.
    ///
    /// [`Sometimes`]: crate::Sometimes
    pub fn counters(&self) -> impl Iterator<Item = &'static str> + '_ {
        let lost = (self.loss > 0.0).then_some("packet lost");
        let struck = self.faults.iter().map(|fault| match fault {
            Fault::SeedKilled {
                back_after_us: Some(_),
                ..
            } => "seed back",
            Fault::SeedKilled { .. } => "seed killed",
            // Those that came first, at a time of the plan's choice: it may be when they are done.
            Fault::Vanish {
                who: Who::First(_),
                when: When::AtUs(_),
            } => "vanished",
            Fault::Vanish { .. } => "vanished while fetching",
            Fault::Freeze {
                for_us: Some(_), ..
            } => "thawed",
            Fault::Freeze { .. } => "frozen",
            Fault::Corrupt { .. } => "corrupt chunk",
            Fault::Lie { .. } => "lie",
            Fault::LostDials { .. } => "lost dial",
            Fault::Firewall { .. } => "firewalled dial",
            Fault::Slow { .. } => "slow node",
        });
        struck.chain(lost)
    }
}

/// About the ten datagrams that a connection hands to the kernel in one call. Longer ones save events
/// and cost the swarm: with 64 KiB, 300 nodes take 1.104 of the bound instead of 1.090, with 128 KiB 1.118.
pub(crate) const BURST_BYTES: u64 = 16 << 10;

/// A chunk: the transport's stream windows hold several.
pub(crate) fn window_for(chunk_bytes: u64) -> u64 {
    chunk_bytes.max(256 << 10)
}
