//! How many uploads a seed has under way beyond the usual: as many as bring it more.
//!
//! With the usual number a seed fills its own link, unless those it sends to are busy: ten times
//! as fast as its nodes, whose links were full of what they sent each other, it stood at a third of its
//! rate, and everything that waits for the first copies waited three times as long: of forty nodes four
//! that could reach nobody else ended at 1.40 of the bound, now at 1.21 (plan `late-dials`). No upload
//! can tell which of its two links is the slow one, but their number can: on a link that is full more
//! uploads bring no more. So it is tried, and what does not bring more is taken back.

use crate::time::Instant;

/// The most beyond the usual number.
pub(crate) const BEYOND_MAX: usize = 24;

/// Each trial lasts until every upload that fits has ended twice.
const TURNS: u32 = 2;

/// More is half as many again, fewer is two thirds. What pays brings this part of the difference.
const PAYS: f64 = 0.4;

/// After a trial that changed nothing so many turns pass without one, twice as many after each further one.
const REST: u32 = 8;
const REST_MAX: u32 = 64;

/// Unless the link does less than this part of what it did then: it has room.
const FELL: f64 = 0.65;

/// A number of uploads that is tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Beyond the usual, before.
    from: usize,
    /// All at once, before.
    at_once: usize,
    /// Uploads a second, before.
    rate: f64,
}

/// The uploads that a seed has beyond the usual number.
#[derive(Debug)]
pub(crate) struct Breadth {
    beyond: usize,
    trial: Option<Trial>,
    began: Option<Instant>,
    ended: u32,
    rest: u32,
    next_rest: u32,
    /// Uploads a second when they were last as many as pays.
    settled: f64,
    fewer_next: bool,
}

impl Breadth {
    pub(crate) fn new() -> Breadth {
        Breadth {
            beyond: 0,
            trial: None,
            began: None,
            ended: 0,
            rest: REST,
            next_rest: REST,
            settled: 0.0,
            fewer_next: false,
        }
    }

    /// So many more than usual.
    pub(crate) fn beyond(&self) -> usize {
        self.beyond
    }

    /// The link is slow: the usual number is too many.
    pub(crate) fn none(&mut self) {
        *self = Breadth::new();
    }

    /// One of `at_once` uploads has brought its chunk. Where not all that may be were under way
    /// (`was_full`), their number was not what held it up, and nothing is learned.
    pub(crate) fn delivered(&mut self, at_once: usize, was_full: bool, now: Instant) {
        let Some(began) = self.began.filter(|_| was_full) else {
            (self.began, self.ended) = (Some(now), 0);
            return;
        };
        self.ended += 1;
        let took = now.since(began).as_secs_f64();
        if (self.ended as usize) < TURNS as usize * at_once || took <= 0.0 {
            return;
        }
        let rate = f64::from(self.ended) / took;
        (self.began, self.ended) = (Some(now), 0);
        if let Some(trial) = self.trial.take() {
            let wanted = at_once as f64 / trial.at_once as f64 - 1.0;
            let brought = rate / trial.rate - 1.0;
            // More has to bring more, unless the link has room in any case; fewer may not bring much less.
            let has_room = wanted > 0.0 && trial.rate < self.settled * FELL;
            if brought < if has_room { 0.0 } else { wanted * PAYS } {
                self.beyond = trial.from;
                self.rest = self.next_rest;
                self.next_rest = (self.next_rest * 2).min(REST_MAX);
                self.settled = trial.rate.max((self.settled + trial.rate) / 2.0);
                return;
            }
            self.next_rest = REST;
            self.settled = self.settled.max(rate);
            self.fewer_next = self.beyond < trial.from;
        } else if self.rest > 0 && rate >= self.settled * FELL {
            self.settled = self.settled.max(rate);
            self.rest -= 1;
            return;
        }
        self.try_another(at_once, rate);
    }

    fn try_another(&mut self, at_once: usize, rate: f64) {
        let from = self.beyond;
        let has_room = rate < self.settled * FELL;
        let is_fewer = self.fewer_next && from > 0 && !has_room || from == BEYOND_MAX;
        self.beyond = if is_fewer {
            from.saturating_sub(at_once / 3)
        } else {
            (from + at_once.div_ceil(2)).min(BEYOND_MAX)
        };
        self.fewer_next = !is_fewer;
        self.trial = Some(Trial {
            from,
            at_once,
            rate,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: usize = 8;

    /// Uploads a second that a link brings in `seconds`, each of which its receiver takes at `each`, while
    /// it can do `most` itself. Returns how many there were beyond the usual, on average in the last half.
    fn run(breadth: &mut Breadth, from: f64, seconds: f64, each: f64, most: f64) -> f64 {
        let (mut now, mut at_once) = (from, USUAL + breadth.beyond());
        let (mut beyond, mut counted) = (0.0, 0.0);
        while now < from + seconds {
            let took = 1.0 / (at_once as f64 * each).min(most);
            now += took;
            breadth.delivered(at_once, true, Instant((now * 1e6) as u64));
            at_once = (at_once + 1).min(USUAL + breadth.beyond());
            if now > from + seconds / 2.0 {
                beyond += breadth.beyond() as f64 * took;
                counted += took;
            }
        }
        beyond / counted
    }

    /// The table: what a receiver takes, what the link can do, and how many more there are in the end.
    #[test]
    fn as_many_as_the_link_has_room_for() {
        let cases = [
            // Full with the usual ones, and with fewer.
            (10.0, 80.0, 0.0..0.5),
            (50.0, 80.0, 0.0..0.5),
            (10.0, 20.0, 0.0..0.5),
            // Half as many again fill it, twice as many, and no number that there may be.
            (10.0, 120.0, 3.0..8.0),
            (10.0, 160.0, 6.0..13.0),
            (2.0, 1_000.0, 20.0..24.1),
            (0.3, 1_000.0, 20.0..24.1),
        ];
        for (each, most, expected) in cases {
            let mut breadth = Breadth::new();
            let beyond = run(
                &mut breadth,
                0.0,
                4_000.0 / f64::min(most, each * 8.0),
                each,
                most,
            );
            assert!(expected.contains(&beyond), "{each} of {most}: {beyond}");
        }
    }

    /// The receivers were idle at first: no trial paid then, and the next would come late.
    #[test]
    fn a_link_that_does_much_less_than_it_did_has_room() {
        let mut breadth = Breadth::new();
        assert!(run(&mut breadth, 0.0, 60.0, 50.0, 90.0) < 0.5);
        // Much sooner than the next trial was due.
        assert!(run(&mut breadth, 60.0, 4.0, 3.0, 90.0) > 8.0);
        // They are idle again.
        assert!(run(&mut breadth, 64.0, 120.0, 50.0, 90.0) < 4.0);
    }

    #[test]
    fn where_not_all_are_under_way_nothing_is_learned() {
        let mut breadth = Breadth::new();
        for turn in 0..10_000 {
            breadth.delivered(USUAL, turn % 12 != 0, Instant(turn * 1_000));
        }
        assert_eq!(breadth.beyond(), 0);
    }
}
