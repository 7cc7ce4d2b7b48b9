//! What a driver shows: the status of its swarm, now and then.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rootswarm_swarm::NodeId;
use tokio::time::Instant as Clock;

use super::Driver;

/// How old a published status may be; with more peers it is made less often.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// See [`STATUS_EVERY`].
const STATUS_EVERY_LARGE: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn status_every(&self) -> Duration {
        if self.links.len() > 100 {
            STATUS_EVERY_LARGE
        } else {
            STATUS_EVERY
        }
    }

    pub(super) fn publish_if_due(&mut self) {
        if self.published_at.elapsed() >= self.status_every() {
            self.look_for_moved();
            self.learn_what_is_stored();
            self.carry_out();
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        self.published_at = Clock::now();
        let report = self.node.report(self.now());
        let hard_to_reach: BTreeSet<NodeId> = report
            .peers
            .iter()
            .filter(|peer| peer.is_hard_to_reach)
            .map(|peer| peer.node)
            .collect();
        if !hard_to_reach.is_empty() || self.marked {
            self.marked = !hard_to_reach.is_empty();
            self.handouts.mark(&hard_to_reach);
        }
        let geometry = self.shared.verifier.manifest().geometry();
        let missing: u64 = match report.chunks_total - report.chunks_have {
            0 => 0,
            _ => self
                .node
                .have()
                .iter_missing()
                .map(|index| u64::from(geometry.chunk_len(index)))
                .sum(),
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.bytes_have = geometry.length() - missing;
        status.bytes_from_seed = self.tally.from_seed;
        status.bytes_from_peers = self.tally.from_peers;
        status.duplicate_bytes = self.tally.duplicate;
        status.bytes_uploaded = self.shared.bytes_uploaded.load(Ordering::Relaxed);
        status.idle_ms = millis(self.progress_at.elapsed());
        let first_chunk_at = self.tally.first_chunk_at;
        status.first_chunk_ms = first_chunk_at.map(|at| millis(at.duration_since(self.origin)));
        status.update(&report);
    }
}
