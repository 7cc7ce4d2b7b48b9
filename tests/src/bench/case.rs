//! What is measured: how many nodes, how fast their links and the seed's, and the least time that
//! any scheme can take.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const MBIT: u64 = 1_000_000;

/// The image of the case `quick`: so small that what is measured is getting started.
const QUICK_BYTES: u64 = 1_000_000;

/// What is otherwise than that all nodes begin at once, with links alike, and stay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// One node's link has a tenth of the rate; it is not waited for.
    Slow,
    /// One node is killed at half of the bound.
    Killed,
    /// The nodes come evenly spread over so many seconds; each node's time is its own.
    Over(u16),
}

/// One shape of swarm. `None` is a link that is not shaped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Nodes that fetch, the seed not counted.
    pub nodes: u32,
    /// Each node's link, each way.
    pub node_bit_per_s: Option<u64>,
    /// The seed's link, each way.
    pub seed_bit_per_s: Option<u64>,
    /// The length of an image of its own, where the case does not move the run's.
    #[serde(default)]
    pub image_bytes: Option<u64>,
    /// The largest packet on all links, in bytes of IP; `None` is Ethernet's 1,500.
    #[serde(default)]
    pub mtu_bytes: Option<u16>,
    /// What a shaped link queues, in milliseconds, behind a bucket of two packets; `None` is what the lab's
    /// links queue and let through at once otherwise.
    #[serde(default)]
    pub queue_ms: Option<u16>,
    /// What goes wrong.
    #[serde(default)]
    pub trouble: Trouble,
}

/// One node, an image of 1 MB, nothing shaped.
const QUICK: Case = Case {
    nodes: 1,
    node_bit_per_s: None,
    seed_bit_per_s: None,
    image_bytes: Some(QUICK_BYTES),
    mtu_bytes: None,
    queue_ms: None,
    trouble: Trouble::None,
};

/// The text is no case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "case `{0}`: expected NODESxMBIT[/SEEDMBIT] with whole numbers above 0, NODESxmax for links that \
     are not shaped, or quick for 1 MB to one node, such as 8x100, 16x50/500 or 4xmax; then, where links are \
     otherwise, @MTU (1280 to 9000) and ~MS for what they queue (1 to 1000); then, where several nodes have \
     shaped links, +slow, +killed or +overSECONDS (1 to 600)"
)]
pub struct ParseCaseError(String);

/// The cases whose figures are known for other tools.
pub fn default_cases() -> Vec<Case> {
    let case = |nodes, node_mbit: u64, seed_mbit: u64| Case {
        nodes,
        node_bit_per_s: Some(node_mbit * MBIT),
        seed_bit_per_s: Some(seed_mbit * MBIT),
        ..Case::default()
    };
    vec![
        case(8, 100, 100),
        case(24, 50, 50),
        case(16, 50, 500),
        case(1, 1000, 1000),
        Case {
            nodes: 4,
            ..Case::default()
        },
        QUICK,
    ]
}

/// Cases in which simple schemes, and jumbo packets, break: in one node's place, in time, in number.
pub fn hard_cases() -> Vec<Case> {
    let case = |nodes, node_mbit: u64, seed_mbit: u64| Case {
        nodes,
        node_bit_per_s: Some(node_mbit * MBIT),
        seed_bit_per_s: Some(seed_mbit * MBIT),
        ..Case::default()
    };
    let jumbo = |case: Case| Case {
        mtu_bytes: Some(9000),
        ..case
    };
    let with = |trouble, case: Case| Case { trouble, ..case };
    vec![
        jumbo(case(8, 100, 100)),
        jumbo(case(1, 1000, 1000)),
        jumbo(Case {
            nodes: 1,
            ..Case::default()
        }),
        jumbo(Case {
            nodes: 4,
            ..Case::default()
        }),
        case(40, 20, 200),
        with(Trouble::Slow, case(8, 50, 50)),
        with(Trouble::Killed, case(8, 50, 50)),
        with(Trouble::Over(10), case(8, 50, 50)),
        with(Trouble::Over(20), case(24, 50, 50)),
        Case {
            queue_ms: Some(15),
            ..case(3, 20, 20)
        },
    ]
}

impl Case {
    /// What this case moves: an image of its own, or the run's of `run_bytes`.
    pub fn image_bytes(&self, run_bytes: u64) -> u64 {
        self.image_bytes.unwrap_or(run_bytes)
    }

    /// Whether it shows how long getting started takes, and nothing else.
    pub fn is_quick(&self) -> bool {
        *self == QUICK
    }

    /// The time in which a seed that serves every node by itself could do it; no scheme without
    /// peers is faster. `None` when the links are not shaped.
    pub fn unicast_bound_s(&self, bytes: u64) -> Option<f64> {
        let bits = (bytes * 8) as f64;
        let (node, seed) = (self.node_bit_per_s? as f64, self.seed_bit_per_s? as f64);
        Some((f64::from(self.nodes) * bits / seed).max(bits / node))
    }

    /// The fluid bound of Kumar and Ross: no scheme gets `bytes` to every node sooner; of nodes that come one after
    /// the other, to each of them after it has come. `None` when the links are not shaped.
    pub fn fluid_bound_s(&self, bytes: u64) -> Option<f64> {
        let bits = (bytes * 8) as f64;
        let (node, seed) = (self.node_bit_per_s? as f64, self.seed_bit_per_s? as f64);
        let nodes = f64::from(self.nodes);
        let one = (bits / seed).max(bits / node);
        Some(match self.trouble {
            Trouble::Over(_) => one,
            _ => one.max(nodes * bits / (seed + nodes * node)),
        })
    }

    /// The node that is slow, or is killed: the one in the middle, which has as many before it as behind where
    /// that matters.
    pub fn victim(&self) -> Option<usize> {
        let middle = self.nodes as usize / 2;
        match self.trouble {
            Trouble::Slow | Trouble::Killed => Some(middle),
            Trouble::None | Trouble::Over(_) => None,
        }
    }

    /// When a node is started, in seconds from the first one's start.
    pub fn start_s(&self, number: usize) -> f64 {
        match self.trouble {
            Trouble::Over(seconds) => {
                let last = self.nodes.saturating_sub(1).max(1);
                f64::from(seconds) * number as f64 / f64::from(last)
            }
            _ => 0.0,
        }
    }

    /// The rate of a node's link, each way.
    pub fn rate_of(&self, number: usize) -> Option<u64> {
        let slower = match (self.trouble, self.victim()) {
            (Trouble::Slow, Some(victim)) if victim == number => 10,
            _ => 1,
        };
        self.node_bit_per_s.map(|rate| rate / slower)
    }
}

impl Case {
    /// In words, for people.
    pub fn description(&self) -> String {
        let nodes = match self.nodes {
            1 => "1 node".to_owned(),
            nodes => format!("{nodes} nodes"),
        };
        let mut text = match (self.node_bit_per_s, self.seed_bit_per_s) {
            _ if self.is_quick() => "1 MB to 1 idle node".to_owned(),
            (Some(node), Some(seed)) => {
                format!("{nodes} of {}, seed {}", rate(node), rate(seed))
            }
            _ => format!("{nodes}, links not shaped"),
        };
        if let Some(mtu) = self.mtu_bytes {
            text += &format!(", MTU {mtu}");
        }
        if let Some(queue) = self.queue_ms {
            text += &format!(", queues of {queue} ms");
        }
        text += &match self.trouble {
            Trouble::None => String::new(),
            Trouble::Slow => ", one of them at a tenth: the others".to_owned(),
            Trouble::Killed => ", one of them killed half-way: the others".to_owned(),
            Trouble::Over(seconds) => format!(", come over {seconds} s: a node's own time"),
        };
        text
    }
}

fn rate(bit_per_s: u64) -> String {
    let mbit = bit_per_s / MBIT;
    match mbit % 1000 {
        0 => format!("{} Gbit", mbit / 1000),
        _ => format!("{mbit} Mbit"),
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = match (self.node_bit_per_s, self.seed_bit_per_s) {
            _ if self.is_quick() => "quick".to_owned(),
            (Some(node), Some(seed)) if node == seed => format!("{}x{}", self.nodes, node / MBIT),
            (Some(node), Some(seed)) => {
                format!("{}x{}/{}", self.nodes, node / MBIT, seed / MBIT)
            }
            _ => format!("{}xmax", self.nodes),
        };
        if let Some(mtu) = self.mtu_bytes {
            text += &format!("@{mtu}");
        }
        if let Some(queue) = self.queue_ms {
            text += &format!("~{queue}");
        }
        text += &match self.trouble {
            Trouble::None => String::new(),
            Trouble::Slow => "+slow".to_owned(),
            Trouble::Killed => "+killed".to_owned(),
            Trouble::Over(seconds) => format!("+over{seconds}"),
        };
        f.pad(&text)
    }
}

/// A whole number, not less nor more than that.
fn within(text: &str, least: u16, most: u16) -> Option<u16> {
    let number = text.parse::<u16>().ok()?;
    (least..=most).contains(&number).then_some(number)
}

impl FromStr for Case {
    type Err = ParseCaseError;

    fn from_str(text: &str) -> Result<Self, ParseCaseError> {
        parse(text).ok_or_else(|| ParseCaseError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Case> {
    let positive = |number: &str| number.parse::<u32>().ok().filter(|number| *number > 0);
    let rate = |mbit: &str| positive(mbit).map(|mbit| u64::from(mbit) * MBIT);
    let cut = |text: &'_ str, at| match text.split_once(at) {
        Some((before, behind)) => (before.to_owned(), Some(behind.to_owned())),
        None => (text.to_owned(), None),
    };
    let (rest, trouble) = cut(text, '+');
    let (rest, queue) = cut(&rest, '~');
    let (swarm, mtu) = cut(&rest, '@');
    if swarm == "quick" {
        return (swarm == text).then_some(QUICK);
    }
    let (nodes, rates) = swarm.split_once('x')?;
    let mut case = Case {
        nodes: positive(nodes)?,
        ..Case::default()
    };
    if rates != "max" {
        let (node, seed) = rates.split_once('/').unwrap_or((rates, rates));
        case.node_bit_per_s = Some(rate(node)?);
        case.seed_bit_per_s = Some(rate(seed)?);
    } else if trouble.is_some() || queue.is_some() {
        return None;
    }
    if let Some(mtu) = mtu {
        case.mtu_bytes = Some(within(&mtu, 1280, 9000)?);
    }
    if let Some(queue) = queue {
        case.queue_ms = Some(within(&queue, 1, 1000)?);
    }
    case.trouble = match trouble.as_deref() {
        None => Trouble::None,
        _ if case.nodes < 2 => return None,
        Some("slow") => Trouble::Slow,
        Some("killed") => Trouble::Killed,
        Some(over) => Trouble::Over(within(over.strip_prefix("over")?, 1, 600)?),
    };
    Some(case)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_round_trip_and_nonsense_is_refused() {
        for case in [default_cases(), hard_cases()].concat() {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        for text in [
            "2x10/5@1280~1+over600",
            "3xmax@9000",
            "8x50~50+slow",
            "8x50@4000+killed",
        ] {
            let case: Case = text.parse().expect("a case");
            assert_eq!(case.to_string(), text);
        }
        for text in [
            "",
            "8",
            "x100",
            "0x100",
            "8x0",
            "8x-1",
            "8xfast",
            "8x100/",
            "8x100/0",
            "-1x5",
            "8x100@",
            "8x100@1279",
            "8x100@9001",
            "8x100~0",
            "8x100~",
            "8x100+",
            "8x100+fast",
            "8x100+over",
            "8x100+over0",
            "8x100+over601",
            "4xmax+slow",
            "4xmax~10",
            "1x100+killed",
            "quick@9000",
            "8x100~10@1500",
            "8x100+slow+killed",
        ] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }

    #[test]
    fn cases_have_words() {
        let check = |case: &str, words: &str| {
            let case: Case = case.parse().expect("a case");
            assert_eq!(case.description(), words);
        };
        check("16x50/500", "16 nodes of 50 Mbit, seed 500 Mbit");
        check("1x1000", "1 node of 1 Gbit, seed 1 Gbit");
        check("4xmax", "4 nodes, links not shaped");
        check("quick", "1 MB to 1 idle node");
        check("4xmax@9000", "4 nodes, links not shaped, MTU 9000");
        check(
            "8x50~15+over10",
            "8 nodes of 50 Mbit, seed 50 Mbit, queues of 15 ms, come over 10 s: a node's own time",
        );
    }

    #[test]
    fn one_is_slow_or_killed_or_all_come_one_after_the_other() {
        let check = |case: &str, victim: Option<usize>, rates: [u64; 3], starts_s: [f64; 3]| {
            let case: Case = case.parse().expect("a case");
            assert_eq!(case.victim(), victim);
            for number in 0..3 {
                assert_eq!(case.rate_of(number), Some(rates[number] * MBIT), "{case}");
                assert_eq!(case.start_s(number), starts_s[number], "{case}");
            }
        };
        check("3x50", None, [50; 3], [0.0; 3]);
        check("3x50+slow", Some(1), [50, 5, 50], [0.0; 3]);
        check("3x50+killed", Some(1), [50; 3], [0.0; 3]);
        check("3x50+over10", None, [50; 3], [0.0, 5.0, 10.0]);
    }

    #[test]
    fn the_bound_is_the_largest_of_its_three_terms() {
        let check = |case: &str, bytes, expected: Option<f64>| {
            let case: Case = case.parse().expect("a case");
            assert_eq!(case.fluid_bound_s(bytes), expected, "{case}");
        };
        const MB: u64 = 1_000_000;
        // As fast as one link: 100 MB over 100 Mbit.
        check("8x100", 100 * MB, Some(8.0));
        // A fast seed does not help a slow node.
        check("16x50/500", 100 * MB, Some(16.0));
        // A slow seed has to send one copy.
        check("4x100/50", 100 * MB, Some(16.0));
        check("1x1000", 125 * MB, Some(1.0));
        check("4xmax", MB, None);
        check("quick", MB, None);
        // A node's own time, whoever comes beside it.
        check("8x100/50", 100 * MB, Some(16.0));
        check("8x100/25+over10", 100 * MB, Some(32.0));
    }

    #[test]
    fn a_seed_alone_sends_every_copy() {
        let check = |case: &str, expected: Option<f64>| {
            let case: Case = case.parse().expect("a case");
            assert_eq!(case.unicast_bound_s(100_000_000), expected, "{case}");
        };
        check("24x50", Some(384.0));
        // The seed could serve all; a node's own link is the limit.
        check("2x50/500", Some(16.0));
        check("4xmax", None);
    }
}
