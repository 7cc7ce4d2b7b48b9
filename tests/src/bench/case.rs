//! What is measured: how many nodes, how fast their links and the seed's, and the least time that
//! any scheme can take.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const MBIT: u64 = 1_000_000;

/// The image of the case `quick`: so small that what is measured is getting started.
const QUICK_BYTES: u64 = 1_000_000;

/// One shape of swarm. `None` is a link that is not shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// One node, an image of 1 MB, nothing shaped.
const QUICK: Case = Case {
    nodes: 1,
    node_bit_per_s: None,
    seed_bit_per_s: None,
    image_bytes: Some(QUICK_BYTES),
};

/// The text is no case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "case `{0}`: expected NODESxMBIT[/SEEDMBIT] with whole numbers above 0, NODESxmax for links that \
     are not shaped, or quick for 1 MB to one node, such as 8x100, 16x50/500 or 4xmax"
)]
pub struct ParseCaseError(String);

/// The cases whose figures are known for other tools.
pub fn default_cases() -> Vec<Case> {
    let case = |nodes, node_mbit: u64, seed_mbit: u64| Case {
        nodes,
        node_bit_per_s: Some(node_mbit * MBIT),
        seed_bit_per_s: Some(seed_mbit * MBIT),
        image_bytes: None,
    };
    vec![
        case(8, 100, 100),
        case(24, 50, 50),
        case(16, 50, 500),
        case(1, 1000, 1000),
        Case {
            nodes: 4,
            node_bit_per_s: None,
            seed_bit_per_s: None,
            image_bytes: None,
        },
        QUICK,
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

    /// The fluid bound of Kumar and Ross: no scheme gets `bytes` to every node sooner. `None` when
    /// the links are not shaped.
    pub fn fluid_bound_s(&self, bytes: u64) -> Option<f64> {
        let bits = (bytes * 8) as f64;
        let (node, seed) = (self.node_bit_per_s? as f64, self.seed_bit_per_s? as f64);
        let nodes = f64::from(self.nodes);
        Some(
            (bits / seed)
                .max(bits / node)
                .max(nodes * bits / (seed + nodes * node)),
        )
    }
}

impl Case {
    /// In words, for people.
    pub fn description(&self) -> String {
        let nodes = match self.nodes {
            1 => "1 node".to_owned(),
            nodes => format!("{nodes} nodes"),
        };
        match (self.node_bit_per_s, self.seed_bit_per_s) {
            _ if self.is_quick() => "1 MB to 1 idle node".to_owned(),
            (Some(node), Some(seed)) => {
                format!("{nodes} of {}, seed {}", rate(node), rate(seed))
            }
            _ => format!("{nodes}, links not shaped"),
        }
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
        match (self.node_bit_per_s, self.seed_bit_per_s) {
            _ if self.is_quick() => f.pad("quick"),
            (Some(node), Some(seed)) if node == seed => write!(f, "{}x{}", self.nodes, node / MBIT),
            (Some(node), Some(seed)) => write!(f, "{}x{}/{}", self.nodes, node / MBIT, seed / MBIT),
            _ => write!(f, "{}xmax", self.nodes),
        }
    }
}

impl FromStr for Case {
    type Err = ParseCaseError;

    fn from_str(text: &str) -> Result<Self, ParseCaseError> {
        let positive = |number: &str| number.parse::<u32>().ok().filter(|number| *number > 0);
        let rate = |mbit: &str| positive(mbit).map(|mbit| u64::from(mbit) * MBIT);
        let parse = || {
            if text == "quick" {
                return Some(QUICK);
            }
            let (nodes, rates) = text.split_once('x')?;
            let nodes = positive(nodes)?;
            if rates == "max" {
                return Some(Case {
                    nodes,
                    node_bit_per_s: None,
                    seed_bit_per_s: None,
                    image_bytes: None,
                });
            }
            let (node, seed) = rates.split_once('/').unwrap_or((rates, rates));
            let (node_bit_per_s, seed_bit_per_s) = (Some(rate(node)?), Some(rate(seed)?));
            Some(Case {
                nodes,
                node_bit_per_s,
                seed_bit_per_s,
                image_bytes: None,
            })
        };
        parse().ok_or_else(|| ParseCaseError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_round_trip_and_nonsense_is_refused() {
        for case in default_cases() {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        for text in [
            "", "8", "x100", "0x100", "8x0", "8x-1", "8xfast", "8x100/", "8x100/0", "-1x5",
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
