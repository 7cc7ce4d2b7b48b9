//! The tables of a plan as they are written: fields and units, nothing about what makes sense.

use crate::quantity::{Rate, Size, Time};
use serde::Deserialize;
use toml::{Table, Value};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) about: String,
    pub(super) nodes: i64,
    pub(super) image: Size,
    pub(super) chunk: Chunk,
    pub(super) links: Links,
    pub(super) racks: Option<RacksTable>,
    #[serde(default)]
    pub(super) arrivals: ArrivalsTable,
    #[serde(default)]
    pub(super) holders: HoldersTable,
    #[serde(default)]
    pub(super) hosts: Hosts,
    #[serde(default)]
    pub(super) faults: Vec<Table>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) expect: ExpectTable,
}

#[derive(Clone, Copy)]
pub(super) enum Chunk {
    Auto,
    Size(Size),
}

impl<'de> Deserialize<'de> for Chunk {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        if text == "auto" {
            return Ok(Chunk::Auto);
        }
        let size = text.parse().map(Chunk::Size);
        size.map_err(|error| serde::de::Error::custom(format!("{error}, or \"auto\"")))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Links {
    pub(super) node: Rate,
    pub(super) seed: Rate,
    pub(super) latency: Option<Time>,
    pub(super) jitter: Option<Time>,
    pub(super) loss: Option<f64>,
    pub(super) efficiency: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RacksTable {
    pub(super) count: i64,
    pub(super) oversubscription: f64,
    pub(super) known: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ArrivalsTable {
    pub(super) within: Option<Time>,
    pub(super) late: Option<Late>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Late {
    pub(super) nodes: i64,
    pub(super) at: Time,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HoldersTable {
    pub(super) complete: Option<i64>,
    pub(super) share: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Hosts {
    pub(super) handshake: Option<Time>,
    pub(super) join: Option<Size>,
    pub(super) dial_timeout: Option<Time>,
    pub(super) idle_timeout: Option<Time>,
    pub(super) window: Option<Size>,
    pub(super) ack_delay: Option<Time>,
    pub(super) burst: Option<Size>,
    pub(super) verify_per_s: Option<Size>,
    pub(super) verify_delay: Option<Time>,
    pub(super) timer: Option<Time>,
    pub(super) turn: Option<Time>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Limits {
    pub(super) run: Option<Time>,
    pub(super) linger: Option<Time>,
    pub(super) waste: Option<f64>,
    pub(super) seed_copies: Option<f64>,
    pub(super) last_over_median: Option<f64>,
    pub(super) few_neighbours: Option<Time>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ExpectTable {
    pub(super) p99: Option<Value>,
    pub(super) last: Option<Value>,
    pub(super) seed_copies: Option<f64>,
    pub(super) rack_copies: Option<f64>,
    pub(super) duplicates: Option<f64>,
    pub(super) control: Option<f64>,
}

/// When a fault strikes, as written: one of the three.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WhenText {
    /// So long after the start.
    At(Time),
    /// After this share of T*.
    Bound(f64),
    /// Once the seed has sent so many copies.
    SeedCopies(f64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct SeedKilled {
    pub(super) when: WhenText,
    pub(super) back_after: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Vanish {
    pub(super) share: Option<f64>,
    pub(super) first: Option<i64>,
    pub(super) when: WhenText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Freeze {
    pub(super) share: Option<f64>,
    pub(super) first: Option<i64>,
    pub(super) when: WhenText,
    #[serde(rename = "for")]
    pub(super) lasting: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Corrupt {
    pub(super) share: f64,
    pub(super) chunks: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Lie {
    pub(super) share: f64,
    pub(super) silent: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LostDials {
    pub(super) share: f64,
    pub(super) nodes: Option<f64>,
    pub(super) until: Option<Time>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Firewall {
    pub(super) share: f64,
    pub(super) answers: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Slow {
    pub(super) share: Option<f64>,
    pub(super) first: Option<i64>,
    pub(super) factor: f64,
}
