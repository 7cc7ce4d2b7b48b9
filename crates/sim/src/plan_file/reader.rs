//! What the tables of a plan mean: each value's range checked, and the plan built from them.

use super::PlanError;
use super::tables::{
    ArrivalsTable, Chunk, Corrupt, ExpectTable, File, Firewall, Freeze, HoldersTable, Hosts, Lie,
    Limits, Links, LostDials, RacksTable, SeedKilled, Slow, Vanish, WhenText,
};
use crate::faults::{Fault, When, Who};
use crate::plan::{Arrivals, Expect, Holders, Link, Plan, Racks, window_for};
use crate::quantity::{Rate, Size, Time};
use rootswarm_image::{ChunkSize, Geometry};
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::path::Path;
use toml::{Table, Value};

/// Nodes of one swarm: as many as a seed keeps connections to.
const NODES_MAX: u64 = rootswarm_swarm::limits::SEED_PEERS_MAX as u64;

/// Nothing in a plan lasts longer than a day.
const TIME_MAX_US: u64 = 24 * 3_600_000_000;

/// Where nothing goes wrong, nobody is left with few neighbours for longer.
const FEW_NEIGHBOURS_US: u64 = 5_000_000;

/// Turns tables into what they mean, and knows the file's name for what it refuses.
pub(super) struct Reader<'a> {
    pub(super) path: &'a Path,
}

impl Reader<'_> {
    pub(super) fn refuse(&self, field: &str, reason: String) -> PlanError {
        PlanError::Field {
            path: self.path.to_owned(),
            field: field.to_owned(),
            reason,
        }
    }

    /// A table as a type; `place` is where the table stands.
    fn table<T: DeserializeOwned>(&self, table: Table, place: &str) -> Result<T, PlanError> {
        T::deserialize(table).map_err(|error: toml::de::Error| {
            // The keys on the way to the value are in the error's long form only.
            let long = error.to_string();
            let inner = long
                .rsplit_once("in `")
                .and_then(|(_, keys)| keys.trim_end().strip_suffix('`'));
            let field = match (place, inner) {
                ("", None) => "(top)".to_owned(),
                ("", Some(inner)) => inner.to_owned(),
                (place, None) => place.to_owned(),
                (place, Some(inner)) => format!("{place}.{inner}"),
            };
            self.refuse(&field, super::one_line(error.message()))
        })
    }

    fn within<T: PartialOrd + Display>(
        &self,
        field: &str,
        value: T,
        least: T,
        most: T,
    ) -> Result<T, PlanError> {
        // Written so that a value that compares with nothing (nan) is refused.
        if value >= least && value <= most {
            return Ok(value);
        }
        Err(self.refuse(field, format!("found {value}, expected {least} to {most}")))
    }

    fn count(&self, field: &str, value: i64, least: u64, most: u64) -> Result<usize, PlanError> {
        let value = i128::from(value);
        let value = self.within(field, value, i128::from(least), i128::from(most))?;
        Ok(value as usize)
    }

    fn share(&self, field: &str, value: f64) -> Result<f64, PlanError> {
        self.within(field, value, 0.0, 1.0)
    }

    fn time_us(&self, field: &str, value: Time, least_us: u64) -> Result<u64, PlanError> {
        if (least_us..=TIME_MAX_US).contains(&value.us) {
            return Ok(value.us);
        }
        let reason = format!("found {}us, expected {least_us}us to 24 h", value.us);
        Err(self.refuse(field, reason))
    }

    fn rate(&self, field: &str, value: Rate) -> Result<f64, PlanError> {
        let mbit = value.bits_per_s / 1e6;
        if (0.1..=400_000.0).contains(&mbit) {
            return Ok(value.bits_per_s);
        }
        let reason = format!("found {mbit} Mbit, expected 0.1 Mbit to 400 Gbit");
        Err(self.refuse(field, reason))
    }

    pub(super) fn plan(&self, table: Table) -> Result<Plan, PlanError> {
        let file: File = self.table(table, "")?;
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy();
        let nodes = self.count("nodes", file.nodes, 1, NODES_MAX)?;
        let node = self.rate("links.node", file.links.node)?;
        let seed = self.rate("links.seed", file.links.seed)?;
        let mut plan = Plan::new(&name, nodes, node / 1e6, seed / 1e6);
        let both = |bits| Link {
            up_bits: bits,
            down_bits: bits,
        };
        (plan.node_link, plan.seed_link) = (both(node), both(seed));
        plan.about = file.about;
        self.image(&mut plan, file.image, file.chunk)?;
        self.links(&mut plan, &file.links)?;
        self.hosts(&mut plan, &file.hosts)?;
        plan.racks = self.racks(file.racks, nodes)?;
        plan.arrivals = self.arrivals(&file.arrivals, nodes)?;
        plan.holders = self.holders(&file.holders, nodes)?;
        // Slow nodes are part of the bound, and the bound is what other faults are timed by.
        let (slow, others): (Vec<_>, Vec<_>) = file
            .faults
            .into_iter()
            .enumerate()
            .partition(|(_, fault)| fault.get("kind").and_then(Value::as_str) == Some("slow"));
        if slow.len() > 1 {
            let reason = format!("found {} of kind slow, expected at most one", slow.len());
            return Err(self.refuse("faults", reason));
        }
        for (number, fault) in slow.into_iter().chain(others) {
            let fault = self.fault(&plan, fault, &format!("faults[{number}]"))?;
            plan.faults.push(fault);
        }
        self.limits(&mut plan, &file.limits)?;
        plan.expect = self.expect(&plan, &file.expect)?;
        Ok(plan)
    }

    fn image(&self, plan: &mut Plan, image: Size, chunk: Chunk) -> Result<(), PlanError> {
        plan.image_bytes = self.within("image", image.bytes, 1, 1 << 40)?;
        let size = match chunk {
            Chunk::Auto => ChunkSize::for_length(plan.image_bytes),
            Chunk::Size(size) => ChunkSize::from_bytes(size.bytes)
                .map_err(|error| self.refuse("chunk", error.to_string()))?,
        };
        plan.chunk_bytes = size.bytes();
        plan.window_bytes = window_for(plan.chunk_bytes);
        let geometry = Geometry::new(plan.image_bytes, size);
        geometry.map_err(|error| self.refuse("chunk", error.to_string()))?;
        Ok(())
    }

    fn links(&self, plan: &mut Plan, links: &Links) -> Result<(), PlanError> {
        if let Some(latency) = links.latency {
            plan.latency_us = self.time_us("links.latency", latency, 1)?;
        }
        if let Some(jitter) = links.jitter {
            plan.jitter_us = self.time_us("links.jitter", jitter, 0)?;
        }
        if let Some(loss) = links.loss {
            plan.loss = self.within("links.loss", loss, 0.0, 0.5)?;
        }
        if let Some(efficiency) = links.efficiency {
            plan.efficiency = self.within("links.efficiency", efficiency, 0.1, 1.0)?;
        }
        Ok(())
    }

    fn hosts(&self, plan: &mut Plan, hosts: &Hosts) -> Result<(), PlanError> {
        let times = [
            (
                "hosts.handshake",
                hosts.handshake,
                0,
                &mut plan.handshake_us,
            ),
            (
                "hosts.dial-timeout",
                hosts.dial_timeout,
                1,
                &mut plan.dial_timeout_us,
            ),
            (
                "hosts.idle-timeout",
                hosts.idle_timeout,
                1,
                &mut plan.idle_us,
            ),
            (
                "hosts.ack-delay",
                hosts.ack_delay,
                0,
                &mut plan.ack_delay_us,
            ),
            (
                "hosts.verify-delay",
                hosts.verify_delay,
                0,
                &mut plan.verify_us,
            ),
            ("hosts.timer", hosts.timer, 1, &mut plan.timer_us),
            ("hosts.turn", hosts.turn, 0, &mut plan.turn_us),
        ];
        for (field, given, least_us, place) in times {
            if let Some(given) = given {
                *place = self.time_us(field, given, least_us)?;
            }
        }
        if let Some(join) = hosts.join {
            plan.join_bytes = self.within("hosts.join", join.bytes, 0, 1 << 20)?;
        }
        if let Some(window) = hosts.window {
            plan.window_bytes = self.within("hosts.window", window.bytes, 1 << 10, 1 << 30)?;
        }
        if let Some(burst) = hosts.burst {
            plan.burst_bytes = self.within("hosts.burst", burst.bytes, 1 << 10, 1 << 20)?;
        }
        if let Some(rate) = hosts.verify_per_s {
            let bytes = self.within("hosts.verify-per-s", rate.bytes, 1_000, 1 << 40)?;
            plan.verify_bytes_per_s = bytes as f64;
        }
        Ok(())
    }

    fn racks(&self, racks: Option<RacksTable>, nodes: usize) -> Result<Option<Racks>, PlanError> {
        let Some(racks) = racks else {
            return Ok(None);
        };
        Ok(Some(Racks {
            count: self.count("racks.count", racks.count, 1, nodes as u64)?,
            oversubscription: self.within(
                "racks.oversubscription",
                racks.oversubscription,
                1.0,
                1_000.0,
            )?,
            known: racks.known,
        }))
    }

    fn arrivals(&self, table: &ArrivalsTable, nodes: usize) -> Result<Arrivals, PlanError> {
        match (table.within, &table.late) {
            (Some(_), Some(_)) => {
                let reason = "found both within and late, expected one".to_owned();
                Err(self.refuse("arrivals", reason))
            }
            (None, Some(late)) => Ok(Arrivals::Late {
                nodes: self.count("arrivals.late.nodes", late.nodes, 1, nodes as u64)?,
                at_us: self.time_us("arrivals.late.at", late.at, 0)?,
            }),
            (within, None) => Ok(Arrivals::Within {
                spread_us: match within {
                    Some(within) => self.time_us("arrivals.within", within, 0)?,
                    None => Plan::TOGETHER_US,
                },
            }),
        }
    }

    fn holders(&self, table: &HoldersTable, nodes: usize) -> Result<Holders, PlanError> {
        match (table.complete, table.share) {
            (None, None) => Ok(Holders::Seed),
            (Some(complete), None) => {
                let most = nodes as u64;
                let complete = self.count("holders.complete", complete, 0, most)?;
                Ok(Holders::Complete(complete))
            }
            (None, Some(share)) => Ok(Holders::Share(self.share("holders.share", share)?)),
            (Some(_), Some(_)) => {
                let reason = "found both complete and share, expected one".to_owned();
                Err(self.refuse("holders", reason))
            }
        }
    }

    fn when(&self, plan: &Plan, when: WhenText, place: &str) -> Result<When, PlanError> {
        let field = |kind: &str| format!("{place}.when.{kind}");
        Ok(match when {
            WhenText::At(time) => When::AtUs(self.time_us(&field("at"), time, 0)?),
            WhenText::Bound(share) => {
                let share = self.within(&field("bound"), share, 0.0, 1_000.0)?;
                When::AtUs((share * plan.bound_us()) as u64)
            }
            WhenText::SeedCopies(copies) => {
                let most = plan.nodes as f64;
                When::SeedCopies(self.within(&field("seed-copies"), copies, 0.0, most)?)
            }
        })
    }

    fn who(
        &self,
        plan: &Plan,
        share: Option<f64>,
        first: Option<i64>,
        place: &str,
    ) -> Result<Who, PlanError> {
        match (share, first) {
            (Some(share), None) => {
                let share = self.share(&format!("{place}.share"), share)?;
                Ok(Who::Share(share))
            }
            (None, Some(first)) => {
                let field = format!("{place}.first");
                Ok(Who::First(self.count(
                    &field,
                    first,
                    1,
                    plan.nodes as u64,
                )?))
            }
            (Some(_), Some(_)) => {
                Err(self.refuse(place, "found both share and first, expected one".to_owned()))
            }
            (None, None) => Err(self.refuse(place, "missing field `share`, or `first`".to_owned())),
        }
    }

    fn fault(&self, plan: &Plan, mut table: Table, place: &str) -> Result<Fault, PlanError> {
        let share = |value| self.share(&format!("{place}.share"), value);
        let kind = match table.remove("kind") {
            Some(Value::String(kind)) => kind,
            Some(other) => {
                let reason = format!("found {}, expected a string", other.type_str());
                return Err(self.refuse(&format!("{place}.kind"), reason));
            }
            None => return Err(self.refuse(place, "missing field `kind`".to_owned())),
        };
        Ok(match kind.as_str() {
            "seed-killed" => {
                let it: SeedKilled = self.table(table, place)?;
                let back = |time| self.time_us(&format!("{place}.back-after"), time, 0);
                Fault::SeedKilled {
                    when: self.when(plan, it.when, place)?,
                    back_after_us: it.back_after.map(back).transpose()?,
                }
            }
            "vanish" => {
                let it: Vanish = self.table(table, place)?;
                Fault::Vanish {
                    who: self.who(plan, it.share, it.first, place)?,
                    when: self.when(plan, it.when, place)?,
                }
            }
            "freeze" => {
                let it: Freeze = self.table(table, place)?;
                let lasting = |time| self.time_us(&format!("{place}.for"), time, 0);
                Fault::Freeze {
                    who: self.who(plan, it.share, it.first, place)?,
                    when: self.when(plan, it.when, place)?,
                    for_us: it.lasting.map(lasting).transpose()?,
                }
            }
            "corrupt" => {
                let it: Corrupt = self.table(table, place)?;
                Fault::Corrupt {
                    share: share(it.share)?,
                    chunks: self.share(&format!("{place}.chunks"), it.chunks)?,
                }
            }
            "lie" => {
                let it: Lie = self.table(table, place)?;
                Fault::Lie {
                    share: share(it.share)?,
                    silent: it.silent,
                }
            }
            "lost-dials" => {
                let it: LostDials = self.table(table, place)?;
                let until = it
                    .until
                    .map(|until| self.time_us(&format!("{place}.until"), until, 1));
                Fault::LostDials {
                    share: share(it.share)?,
                    nodes: it.nodes.map_or(Ok(1.0), share)?,
                    until_us: until.transpose()?.unwrap_or(u64::MAX),
                }
            }
            "firewall" => {
                let it: Firewall = self.table(table, place)?;
                Fault::Firewall {
                    share: share(it.share)?,
                    answers: it.answers,
                }
            }
            "slow" => {
                let it: Slow = self.table(table, place)?;
                Fault::Slow {
                    who: self.who(plan, it.share, it.first, place)?,
                    factor: self.within(&format!("{place}.factor"), it.factor, 0.001, 1.0)?,
                }
            }
            other => {
                let reason = format!(
                    "found {other:?}, expected seed-killed, vanish, freeze, corrupt, lie, lost-dials, firewall or slow"
                );
                return Err(self.refuse(&format!("{place}.kind"), reason));
            }
        })
    }

    fn limits(&self, plan: &mut Plan, limits: &Limits) -> Result<(), PlanError> {
        if let Some(run) = limits.run {
            plan.limit_us = self.time_us("limits.run", run, 1)?;
        }
        if let Some(linger) = limits.linger {
            plan.linger_us = self.time_us("limits.linger", linger, 0)?;
        }
        plan.waste_max = match limits.waste {
            Some(waste) => self.within("limits.waste", waste, 0.0, 10.0)?,
            // Faults cost duplicates.
            None if plan.faults.is_empty() => 0.05,
            None => 0.25,
        };
        plan.seed_copies_max = match limits.seed_copies {
            Some(most) => self.within("limits.seed-copies", most, 0.0, 10_000.0)?,
            // One copy and repair; a seed with rate to spare may give more.
            None if plan.faults.is_empty() => 4.0,
            None => 0.0,
        };
        if let Some(most) = limits.last_over_median {
            plan.last_over_median_max =
                self.within("limits.last-over-median", most, 1.0, 1_000.0)?;
        }
        plan.few_neighbours_us = match limits.few_neighbours {
            Some(most) => self.time_us("limits.few-neighbours", most, 1_000_000)?,
            None if plan.faults.is_empty() => FEW_NEIGHBOURS_US,
            None => u64::MAX,
        };
        Ok(())
    }

    fn expect(&self, plan: &Plan, table: &ExpectTable) -> Result<Expect, PlanError> {
        let optional = |field: &str, value: Option<f64>| {
            let field = format!("expect.{field}");
            let checked = value.map(|value| self.within(&field, value, 0.0, 10_000.0));
            checked.transpose()
        };
        if table.rack_copies.is_some() && plan.racks.is_none() {
            let reason = "found in a plan without racks".to_owned();
            return Err(self.refuse("expect.rack-copies", reason));
        }
        let faulty = !plan.faults.is_empty() || plan.loss > 0.0;
        Ok(Expect {
            p99: self.by_nodes("expect.p99", table.p99.as_ref(), plan.nodes)?,
            last: self.by_nodes("expect.last", table.last.as_ref(), plan.nodes)?,
            seed_copies: optional("seed-copies", table.seed_copies)?,
            rack_copies: optional("rack-copies", table.rack_copies)?,
            duplicates: optional("duplicates", table.duplicates)?.or(Some(if faulty {
                0.05
            } else {
                0.01
            })),
            control: optional("control", table.control)?.or(Some(0.01)),
        })
    }

    /// A ratio, or one for each size of swarm: `{ 100 = 1.1, 1000 = 1.12 }` is 1.1 up to a hundred
    /// nodes and 1.12 for more.
    fn by_nodes(
        &self,
        field: &str,
        value: Option<&Value>,
        nodes: usize,
    ) -> Result<Option<f64>, PlanError> {
        let ratio = |field: &str, value: &Value| {
            let number = match value {
                Value::Float(number) => *number,
                Value::Integer(number) => *number as f64,
                other => {
                    let found = other.type_str();
                    let reason = format!("found {found}, expected a number, or a table of numbers");
                    return Err(self.refuse(field, reason));
                }
            };
            self.within(field, number, 0.0, 10_000.0)
        };
        let table = match value {
            None => return Ok(None),
            Some(Value::Table(table)) => table,
            Some(other) => return ratio(field, other).map(Some),
        };
        let mut sizes = Vec::new();
        for (size, value) in table {
            let size_nodes: usize = size.parse().map_err(|_| {
                self.refuse(
                    field,
                    format!("found the key {size:?}, expected a number of nodes"),
                )
            })?;
            sizes.push((size_nodes, ratio(&format!("{field}.{size}"), value)?));
        }
        sizes.sort_by_key(|(size, _)| *size);
        let fits = sizes.iter().find(|(size, _)| nodes <= *size);
        Ok(fits.or(sizes.last()).map(|(_, ratio)| *ratio))
    }
}
