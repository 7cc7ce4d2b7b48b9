//! What has come for a host, and the turns in which it takes it.
//!
//! A driver does not run once for each packet: it is woken, takes what has come, and sleeps. So what a
//! host is to hear of waits in its inbox with the time from which it can be had, and the host takes turns
//! on a grid of its own, [`crate::Plan::turn_us`] wide; without one, each thing has its turn at its own
//! time. A frozen host takes none, and finds everything when it goes on.
//!
//! In a large run nearly all the time is spent waiting for memory, and a host that takes five things in
//! one turn is fetched from there once.

use super::wire::Body;
use super::{Event, State, World};
use crate::nic::UploadKey;
use rootswarm_swarm::{Input, UploadOutcome};

/// One thing, and from when on it can be had.
#[derive(Debug)]
pub(crate) struct Item {
    pub(super) at_ns: u64,
    pub(super) what: Arrival,
}

/// What a host is to hear of.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A control packet towards this side of its connection.
    Control { side: u8, body: Body },
    /// The header of a chunk.
    ChunkStarted(UploadKey),
    /// All of a chunk is here, and verified.
    Verified(UploadKey),
    /// An upload of its own has ended.
    UploadOver {
        upload: UploadKey,
        outcome: UploadOutcome,
    },
}

impl World<'_> {
    /// Something comes for a host at this time. The dead get nothing.
    pub(crate) fn hand(&mut self, host: usize, at_ns: u64, what: Arrival) {
        if self.states[host] == State::Dead {
            return;
        }
        self.inboxes[host].push(Item { at_ns, what });
        self.plan_turn(host, at_ns);
    }

    /// Sees that the host takes a turn at this time, or at the next point of its grid.
    pub(super) fn plan_turn(&mut self, host: usize, at_ns: u64) {
        if self.states[host] != State::Alive {
            return;
        }
        let at_ns = at_ns.max(self.now_ns);
        // A turn that is planned for no later has it too.
        if at_ns >= self.turn_ns[host] {
            return;
        }
        let at_ns = self.turn_at(host, at_ns);
        if at_ns < self.turn_ns[host] {
            self.turn_ns[host] = at_ns;
            self.events.push(at_ns, Event::Turn(host as u32));
        }
    }

    fn turn_at(&self, host: usize, at_ns: u64) -> u64 {
        let grid_ns = self.plan.turn_us * 1000;
        if grid_ns == 0 {
            return at_ns;
        }
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4): the grids of all hosts are spread evenly.
        let phase_ns = (host as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % grid_ns;
        at_ns.saturating_sub(phase_ns).div_ceil(grid_ns) * grid_ns + phase_ns
    }

    /// A host's turn: all that can be had, in the order in which it came, and its timer.
    pub(crate) fn turn(&mut self, host: usize) {
        if self.states[host] != State::Alive || self.turn_ns[host] != self.now_ns {
            return;
        }
        self.turn_ns[host] = u64::MAX;
        let spare = std::mem::take(&mut self.taken);
        let mut items = std::mem::replace(&mut self.inboxes[host], spare);
        // Stable: what comes at one instant keeps its order.
        items.sort_by_key(|item| item.at_ns);
        self.in_turn = true;
        self.read_ahead_of_turn(host, &items);
        for item in items.drain(..) {
            if item.at_ns <= self.now_ns {
                self.take(host, item.what);
            } else {
                self.plan_turn(host, item.at_ns);
                self.inboxes[host].push(item);
            }
        }
        self.taken = items;
        if self.wake_ns[host] <= self.now_ns {
            self.wake(host);
        }
        self.in_turn = false;
        self.keep_timer(host);
    }

    fn take(&mut self, host: usize, what: Arrival) {
        match what {
            Arrival::Control { side, body } => self.told(host, usize::from(side), body),
            Arrival::ChunkStarted(key) => self.chunk_started(key),
            Arrival::Verified(key) => self.verified(key),
            Arrival::UploadOver { upload, outcome } => self.upload_over(upload, outcome),
        }
    }

    fn wake(&mut self, host: usize) {
        self.wake_ns[host] = u64::MAX;
        let now = self.now();
        if self.hosts[host].node.next_timeout() <= now {
            self.input(host, Input::Timeout);
            let next = self.hosts[host].node.next_timeout();
            self.checkers.timed_out(host, now, next);
        }
    }

    /// Sees that the node is woken when it wants to be, on the grid of the plan's timers.
    pub(crate) fn keep_timer(&mut self, host: usize) {
        if self.in_turn || self.states[host] != State::Alive {
            return;
        }
        let grid_ns = self.plan.timer_us.max(1) * 1000;
        let due_ns = self.hosts[host].node.next_timeout().0 * 1000;
        // One more turn of the grid if it is due on the spot: time must pass.
        let due_ns = due_ns.max(self.now_ns + 1).div_ceil(grid_ns) * grid_ns;
        self.wake_ns[host] = due_ns.min(self.wake_ns[host]);
        // Also when it was due then before: the turn that was planned may have been an earlier one.
        self.plan_turn(host, self.wake_ns[host]);
    }

    /// What waited for a host that goes on can be had.
    pub(super) fn take_up(&mut self, host: usize) {
        self.turn_ns[host] = u64::MAX;
        self.wake_ns[host] = u64::MAX;
        self.keep_timer(host);
        let first_ns = self.inboxes[host].iter().map(|item| item.at_ns).min();
        if let Some(at_ns) = first_ns {
            self.plan_turn(host, at_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Plan, run};

    /// Turns delay each answer, and nothing else: the same nodes get the same image with hardly any
    /// delay. A turn that is never planned would stop them for good.
    #[test]
    fn turns_cost_a_little_time_and_nothing_else() {
        let with = |turn_us| {
            let mut plan = Plan::new("turns", 12, 1_000.0, 1_000.0).image(64 << 20, 256 << 10);
            plan.turn_us = turn_us;
            let outcome = run(&plan, 1);
            assert_eq!((outcome.unfinished, outcome.violations.len()), (0, 0));
            outcome
        };
        let (at_once, in_turns) = (with(0), with(1_000));
        let (first_s, then_s) = (at_once.quantile_s(1.0), in_turns.quantile_s(1.0));
        assert!(then_s > first_s, "{then_s} s, {first_s} s without turns");
        assert!(then_s < first_s * 1.1, "{then_s} s, {first_s} s without");
        assert!(in_turns.events < at_once.events);
    }
}
