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
use std::collections::VecDeque;

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

/// What a host has not taken yet, in the order in which it can be had; what comes at one instant keeps
/// its order. Each host keeps its own memory: lists that went from host to host would all grow to what
/// the seed once needed.
#[derive(Debug, Default)]
pub(crate) struct Inbox(VecDeque<Item>);

impl Inbox {
    fn put(&mut self, item: Item) {
        // Most come last.
        let mut place = self.0.len();
        while place > 0 && self.0[place - 1].at_ns > item.at_ns {
            place -= 1;
        }
        self.0.insert(place, item);
    }

    /// How many can be had at this time.
    fn due(&self, now_ns: u64) -> usize {
        let is_due = |item: &&Item| item.at_ns <= now_ns;
        self.0.iter().take_while(is_due).count()
    }

    fn take(&mut self) -> Option<Item> {
        self.0.pop_front()
    }

    fn first_ns(&self) -> Option<u64> {
        self.0.front().map(|item| item.at_ns)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Item> {
        self.0.iter()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl World<'_> {
    /// Something comes for a host at this time. The dead get nothing.
    pub(crate) fn hand(&mut self, host: usize, at_ns: u64, what: Arrival) {
        if self.states[host] == State::Dead {
            return;
        }
        self.inboxes[host].put(Item { at_ns, what });
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
        self.in_turn = true;
        // What comes for the host from its own doing waits for another turn.
        let due = self.inboxes[host].due(self.now_ns);
        self.read_ahead_of_turn(host, due);
        for _ in 0..due {
            if let Some(item) = self.inboxes[host].take() {
                self.take(host, item.what);
            }
        }
        if let Some(at_ns) = self.inboxes[host].first_ns() {
            self.plan_turn(host, at_ns);
        }
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
        if let Some(at_ns) = self.inboxes[host].first_ns() {
            self.plan_turn(host, at_ns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::SEED;
    use crate::{Plan, run};
    use rootswarm_swarm::Rng;

    /// About an upload that never was: whoever takes it does nothing.
    fn nothing(at_ns: u64, serial: u32) -> Item {
        let what = Arrival::ChunkStarted(UploadKey { slot: 0, serial });
        Item { at_ns, what }
    }

    /// Against the definition: by time, then in the order in which it came.
    #[test]
    fn is_taken_as_a_stable_sort_would_have_it() {
        let mut rng = Rng::new(1);
        let (mut inbox, mut plain) = (Inbox::default(), Vec::new());
        let mut now_ns = 0;
        for serial in 0..3_000 {
            let at_ns = now_ns + rng.between(0, 20);
            inbox.put(nothing(at_ns, serial));
            plain.push((at_ns, serial));
            if rng.below(3) > 0 {
                continue;
            }
            now_ns += rng.between(0, 6);
            plain.sort_by_key(|(at_ns, _)| *at_ns);
            let due = plain.partition_point(|(at_ns, _)| *at_ns <= now_ns);
            assert_eq!(inbox.due(now_ns), due);
            for expected in plain.drain(..due) {
                let Some(Item {
                    at_ns,
                    what: Arrival::ChunkStarted(key),
                }) = inbox.take()
                else {
                    panic!("missing: {expected:?}");
                };
                assert_eq!((at_ns, key.serial), expected);
            }
            assert_eq!(
                inbox.first_ns(),
                plain.iter().map(|(at_ns, _)| *at_ns).min()
            );
        }
    }

    /// Inboxes once went from host to host, and all grew to what the seed's had been: 10,000 nodes took
    /// 8 GB.
    #[test]
    fn a_crowd_at_the_seed_leaves_no_memory_with_others() {
        let plan = Plan::new("crowd", 3, 1_000.0, 1_000.0).image(1 << 20, 256 << 10);
        let mut world = World::new(&plan, 1);
        world.states.fill(State::Alive);
        let mut turn_of = |host, things| {
            world.now_ns += 1_000_000;
            for _ in 0..things {
                let Item { at_ns, what } = nothing(world.now_ns, 1);
                world.hand(host, at_ns, what);
            }
            world.turn(host);
            assert_eq!(world.inboxes[host].first_ns(), None);
            world.inboxes[host].0.capacity()
        };
        assert!(turn_of(SEED, 10_000) >= 10_000);
        for host in 1..=3 {
            assert!(turn_of(host, 1) < 100);
        }
    }

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
