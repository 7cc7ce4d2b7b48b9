//! How far the nodes are, over time: what a plot of a run is drawn from.

use crate::world::{SEED, World};

/// Samples kept at most: more than a plot has pixels for is no use.
const SAMPLES_MAX: usize = 512;

/// Samples within the bound; a run that takes long has every second one dropped, as often as need
/// be.
const SAMPLES_PER_BOUND: f64 = 200.0;

/// Where the nodes were at one moment, in shares of the image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// From the start of the run.
    pub at_s: f64,
    /// What the node with the least holds; nodes that are gone do not count.
    pub slowest: f64,
    /// What the node in the middle holds.
    pub median: f64,
    /// What the node with the most holds.
    pub fastest: f64,
    /// Images' worth of chunk bytes that have left the seed.
    pub seed_copies: f64,
}

/// The samples of a run.
#[derive(Debug)]
pub(crate) struct Progress {
    step_ns: u64,
    due_ns: u64,
    pub(crate) samples: Vec<Sample>,
    counts: Vec<u32>,
}

impl Progress {
    pub(crate) fn new(bound_us: f64) -> Self {
        Self {
            step_ns: ((bound_us * 1e3 / SAMPLES_PER_BOUND) as u64).max(1),
            due_ns: 0,
            samples: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Whether a sample is due before what happens at this time.
    pub(crate) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }
}

impl World<'_> {
    /// Notes where everybody is.
    pub(crate) fn sample(&mut self, at_ns: u64) {
        let chunks = f64::from(self.geometry.chunk_count());
        let progress = &mut self.progress;
        progress.counts.clear();
        let nodes = self.hosts[SEED + 1..].iter().filter(|host| !host.gone);
        let held = nodes.map(|host| host.node.have().count());
        progress.counts.extend(held);
        if progress.counts.is_empty() {
            return;
        }
        let middle = progress.counts.len() / 2;
        let (below, median, above) = progress.counts.select_nth_unstable(middle);
        let median = *median;
        let slowest = below.iter().min().copied().unwrap_or(median);
        let fastest = above.iter().max().copied().unwrap_or(median);
        let sent = self.traffic[SEED].chunk_bytes_sent as f64;
        progress.samples.push(Sample {
            at_s: at_ns as f64 / 1e9,
            slowest: f64::from(slowest) / chunks,
            median: f64::from(median) / chunks,
            fastest: f64::from(fastest) / chunks,
            seed_copies: sent / self.plan.image_bytes as f64,
        });
        if progress.samples.len() > SAMPLES_MAX {
            let mut number = 0;
            progress.samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            progress.step_ns *= 2;
        }
        progress.due_ns = at_ns + progress.step_ns;
    }
}
