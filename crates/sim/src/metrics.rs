//! How a run went: times over the bound, copies sent by the seed, waste and control traffic.

use crate::checkers::Violation;
use crate::faults::Sometimes;
use crate::plan::Expect;
use crate::progress::Sample;
use crate::world::{SEED, World};

/// What one host sent and received.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) chunk_bytes_sent: u64,
    pub(crate) chunk_bytes_received: u64,
    pub(crate) control_bytes: u64,
    pub(crate) control_messages: u64,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From each node's start to its end, in seconds, ascending; only honest nodes that fetched.
    pub finished_s: Vec<f64>,
    /// Nodes that should have finished and did not.
    pub unfinished: usize,
    /// When the last node was done, from the start of the run.
    pub last_end_s: f64,
    /// The same times over each node's own bound, ascending: what the seed, the uplinks of all and
    /// its own downlink allow, at the rate of the links.
    pub ratios: Vec<f64>,
    /// T*, the bound of the fluid model, at the rate of the links: see [`Plan::bound_us`].
    ///
    /// [`Plan::bound_us`]: crate::Plan::bound_us
    pub bound_s: f64,
    /// The share of a link's rate that is left for payload: no ratio can be less than one over it.
    pub efficiency: f64,
    /// Images' worth of chunk bytes that left the seed.
    pub seed_copies: f64,
    /// Images' worth of chunk bytes that entered each rack over the core; empty without racks.
    pub rack_copies: Vec<f64>,
    /// Chunk bytes that arrived and were not needed, as a share of what was.
    pub waste: f64,
    /// Where the nodes were over time.
    pub progress: Vec<Sample>,
    /// Control bytes sent, the seed's included, over the number of nodes.
    pub control_bytes_per_node: f64,
    /// Control messages sent, counted in the same way.
    pub control_messages_per_node: f64,
    /// [`Outcome::control_bytes_per_node`] as a share of the image.
    pub control_share: f64,
    /// Requests sent by all nodes.
    pub requests: u64,
    /// Requests declined.
    pub declined: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Verified chunks that were held already.
    pub duplicates: u64,
    /// Bans, over all nodes.
    pub bans: usize,
    /// The longest queue before a node's downlink, in bytes.
    pub downlink_queue_bytes_max: u64,
    /// How often each kind of thing happened.
    pub sometimes: Sometimes,
    /// What must not have happened.
    pub violations: Vec<Violation>,
    /// A hash over every event.
    pub trace_hash: u64,
    /// Events in all.
    pub events: u64,
}

impl Outcome {
    /// The time within which this share of the nodes was done, from each one's start.
    pub fn quantile_s(&self, share: f64) -> f64 {
        quantile(&self.finished_s, share)
    }

    /// Within how many of their bounds this share of the nodes was done.
    pub fn ratio(&self, share: f64) -> f64 {
        quantile(&self.ratios, share)
    }

    /// The figures that this run missed.
    pub fn misses(&self, expect: &Expect) -> Vec<Miss> {
        // No number where nobody counted.
        let most_copies = self.rack_copies.iter().copied().fold(f64::NAN, f64::max);
        let figures = [
            ("p99", self.ratio(0.99), expect.p99),
            ("last", self.ratio(1.0), expect.last),
            ("seed copies", self.seed_copies, expect.seed_copies),
            ("rack copies", most_copies, expect.rack_copies),
            ("duplicates", self.waste, expect.duplicates),
            ("control", self.control_share, expect.control),
        ];
        figures
            .into_iter()
            .filter_map(|(what, found, most)| {
                let most = most?;
                // A figure that is no number reaches nothing.
                (found.is_nan() || found > most).then_some(Miss { what, found, most })
            })
            .collect()
    }
}

/// A figure that a run should have reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Miss {
    /// Which.
    pub what: &'static str,
    /// What it was.
    pub found: f64,
    /// What it should have been at most.
    pub most: f64,
}

/// Of values in ascending order; no number if there are none.
fn quantile(ascending: &[f64], share: f64) -> f64 {
    let last = ascending.len().saturating_sub(1);
    let position = (share * last as f64).round() as usize;
    ascending.get(position).copied().unwrap_or(f64::NAN)
}

pub(crate) fn conclude(mut world: World<'_>) -> Outcome {
    let plan = world.plan;
    let now = world.now();
    world.sample(world.now_ns);
    let (mut times, mut ends, mut unfinished) = (Vec::new(), Vec::new(), 0);
    let (mut ratios, shared_s) = (Vec::new(), plan.shared_bound_us() / 1e6);
    let (mut requests, mut declined, mut failures, mut duplicates, mut bans) = (0, 0, 0, 0, 0);
    let mut received = 0u64;
    let mut needed = 0u64;
    let mut queue_max = 0;
    for number in SEED + 1..world.hosts.len() {
        let host = &world.hosts[number];
        if host.corrupts > 0.0 || host.lies.is_some() {
            // Only the times of honest nodes count.
        } else if let Some(at_ns) = host.finished_ns {
            let time_s = (at_ns - host.started_ns) as f64 / 1e9;
            let own_s = plan.own_bound_us(host.factor) / 1e6;
            times.push(time_s);
            ratios.push(time_s / own_s.max(shared_s));
            ends.push(at_ns as f64 / 1e9);
        } else if !host.gone && !host.node.is_complete() {
            unfinished += 1;
            let have = host.node.have().count();
            world.checkers.unfinished(number, have);
        }
        let host = &world.hosts[number];
        let report = host.node.report(now);
        requests += report.requests;
        declined += report.declined;
        failures += report.failures;
        duplicates += report.chunks_duplicate;
        bans += report.bans.len();
        queue_max = queue_max.max(world.down[number].queued_bytes_max);
        if !host.gone {
            received += world.traffic[number].chunk_bytes_received;
            needed += (report.chunks_from_seed + report.chunks_from_peers) * plan.chunk_bytes;
        }
    }
    times.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    // The last chunk is shorter than the others: no reason to speak of negative waste.
    let waste = received.saturating_sub(needed) as f64 / needed.max(1) as f64;
    if waste > plan.waste_max && unfinished == 0 {
        let share = format!("waste of {:.4}: at most {}", waste, plan.waste_max);
        world.checkers.violated(SEED, share);
    }
    let nodes = plan.nodes.max(1) as f64;
    let control: u64 = world.traffic.iter().map(|it| it.control_bytes).sum();
    let messages: u64 = world.traffic.iter().map(|it| it.control_messages).sum();
    let mut outcome = Outcome {
        unfinished,
        last_end_s: ends.iter().copied().fold(0.0, f64::max),
        ratios,
        bound_s: plan.bound_us() / 1e6,
        efficiency: plan.efficiency,
        progress: world.progress.samples,
        seed_copies: world.traffic[SEED].chunk_bytes_sent as f64 / plan.image_bytes as f64,
        rack_copies: world
            .racks
            .iter()
            .map(|rack| rack.entered_bytes as f64 / plan.image_bytes as f64)
            .collect(),
        waste,
        control_bytes_per_node: control as f64 / nodes,
        control_share: control as f64 / nodes / plan.image_bytes as f64,
        control_messages_per_node: messages as f64 / nodes,
        requests,
        declined,
        failures,
        duplicates,
        bans,
        downlink_queue_bytes_max: queue_max,
        finished_s: times,
        trace_hash: world.trace.0,
        events: world.events.planned(),
        sometimes: world.sometimes,
        violations: Vec::new(),
    };
    let (copies, most) = (outcome.seed_copies, plan.seed_copies_max);
    if most > 0.0 && copies > most {
        let what = format!("the seed sent {copies:.3} copies: at most {most}");
        world.checkers.violated(SEED, what);
    }
    let (median, last) = (outcome.quantile_s(0.5), outcome.quantile_s(1.0));
    if plan.last_over_median_max > 0.0 && last > median * plan.last_over_median_max {
        let what = format!("the last node took {last:.3} s, the median {median:.3} s");
        world.checkers.violated(SEED, what);
    }
    outcome.violations = world.checkers.into_violations();
    outcome
}
