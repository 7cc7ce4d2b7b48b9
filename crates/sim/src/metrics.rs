//! How a run went: times over the bound, copies sent by the seed, waste and control traffic.

use crate::checkers::Violation;
use crate::faults::Sometimes;
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
    /// From each node's start to its end, in seconds, ascending; only nodes that fetched.
    pub finished_s: Vec<f64>,
    /// Nodes that should have finished and did not.
    pub unfinished: usize,
    /// When the last node was done, from the start of the run.
    pub last_end_s: f64,
    /// The bound of the fluid model at the payload's rate.
    pub bound_s: f64,
    /// Images' worth of chunk bytes that left the seed.
    pub seed_copies: f64,
    /// Chunk bytes that arrived and were not needed, as a share of what was.
    pub waste: f64,
    /// Control bytes sent, mean over the nodes.
    pub control_bytes_per_node: f64,
    /// Control messages sent, mean over the nodes.
    pub control_messages_per_node: f64,
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
    /// The time within which this share of the nodes was done.
    pub fn quantile_s(&self, share: f64) -> f64 {
        let last = self.finished_s.len().saturating_sub(1);
        let position = (share * last as f64).round() as usize;
        self.finished_s.get(position).copied().unwrap_or(f64::NAN)
    }

    /// The last node's time over the bound.
    pub fn ratio(&self) -> f64 {
        self.quantile_s(1.0) / self.bound_s
    }

    /// One line for a table.
    pub fn row(&self, name: &str) -> String {
        format!(
            "{name:28} {:6.3} {:6.3} {:6.3}  {:6.2} {:7.4} {:8.1} {:6.2} {:6.2} {:5} {:4} {:9}",
            self.quantile_s(0.5) / self.bound_s,
            self.quantile_s(0.99) / self.bound_s,
            self.ratio(),
            self.seed_copies,
            self.waste,
            self.control_bytes_per_node / 1e3,
            self.requests as f64 / self.finished_s.len().max(1) as f64,
            self.declined as f64 / self.requests.max(1) as f64,
            self.failures,
            self.unfinished,
            self.events,
        )
    }

    /// The heading of [`Outcome::row`].
    pub fn heading() -> String {
        format!(
            "{:28} {:>6} {:>6} {:>6}  {:>6} {:>7} {:>8} {:>6} {:>6} {:>5} {:>4} {:>9}",
            "case",
            "p50",
            "p99",
            "last",
            "copies",
            "waste",
            "ctl kB",
            "req/n",
            "busy",
            "fail",
            "left",
            "events"
        )
    }
}

pub(crate) fn conclude(mut world: World<'_>) -> Outcome {
    let plan = world.plan;
    let now = world.now();
    let (mut times, mut ends, mut unfinished) = (Vec::new(), Vec::new(), 0);
    let (mut requests, mut declined, mut failures, mut duplicates, mut bans) = (0, 0, 0, 0, 0);
    let mut received = 0u64;
    let mut needed = 0u64;
    let mut queue_max = 0;
    for number in SEED + 1..world.hosts.len() {
        let host = &world.hosts[number];
        if let Some(at_ns) = host.finished_ns {
            times.push((at_ns - host.started_ns) as f64 / 1e9);
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
        bound_s: plan.bound_us() / 1e6,
        seed_copies: world.traffic[SEED].chunk_bytes_sent as f64 / plan.image_bytes as f64,
        waste,
        control_bytes_per_node: control as f64 / nodes,
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
    let (median, last) = (outcome.quantile_s(0.5), outcome.quantile_s(1.0));
    if plan.last_over_median_max > 0.0 && last > median * plan.last_over_median_max {
        let what = format!("the last node took {last:.3} s, the median {median:.3} s");
        world.checkers.violated(SEED, what);
    }
    outcome.violations = world.checkers.into_violations();
    outcome
}
