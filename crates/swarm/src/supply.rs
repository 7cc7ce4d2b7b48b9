//! What peers give a node, measured: whether it has to count on a seed.
//!
//! What peers announce is a hint. A finished node behind a firewall announces the whole image and
//! gives nothing; one that was killed announces what it had until its connection ends. A node that
//! believed them asked the seed for 32 chunks a second while peers were "about to" bring the rest:
//! 17 s for 71 MB instead of 0.1. So what counts is what has arrived from peers of late, beside what
//! one chunk took that arrived quickly, which says what this node could take. A node to which peers
//! bring less than [`SHORT_BELOW_PERCENT`] of that is short, and asks a seed for what is missing.
//!
//! One chunk alone may have come more quickly than chunks can come one after the other: where the
//! processor sets the pace, or others share the link. So what a node gets in all while a seed gives it
//! what it asks for bounds what it could take. Four emulated machines that believed their quickest
//! chunk took 2.4 copies from the seed.
//!
//! Nobody else is told: to say that one is short gains nothing, because a seed answers requests
//! whatever their reason, each address's part of its slots at a time.

use crate::limits::{FLIGHT_PATIENCE_MIN, SUPPLY_ALONE, SUPPLY_JUDGED_EVERY, SUPPLY_WINDOW};
use crate::time::Instant;
use std::time::Duration;

/// So much of what could arrive has to come from peers, in per cent. With a quarter, the second of two
/// nodes that met nobody but each other and dead ones ended at 1.39 of the bound beside a seed of ten times
/// its rate, with a half at up to 1.32, with this at 1.06. Flash crowds draw no more copies with any.
const SHORT_BELOW_PERCENT: u32 = 67;

/// A node could take more than it got in all while it asked a seed, but not much more: in per cent.
const REACHED_PERCENT: u32 = 125;

/// What a node knows of its peers when it judges what they bring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prospects {
    /// Nobody is connected but seeds.
    pub(crate) is_alone: bool,
    /// A chunk is on its way from a peer, and has not been for long.
    pub(crate) is_awaiting: bool,
    /// Chunks kept in flight.
    pub(crate) room: usize,
}

/// Chunks that came, counted by halves of a window.
#[derive(Clone, Copy, Debug, Default)]
struct Half {
    from_peers: u32,
    in_all: u32,
}

/// What came of late, and what could have come.
#[derive(Debug)]
pub(crate) struct Supply {
    /// When the present half began, and the one before it.
    present_began: Instant,
    past_began: Instant,
    present: Half,
    past: Half,
    /// When a chunk last came from a peer, or this node began.
    last: Instant,
    /// The shortest time from a request to the end of its chunk.
    quickest: Option<Duration>,
    /// The time for each chunk at which chunks could come, as far as that was found by asking a seed too. It
    /// is believed less and less, because what kept them may be over.
    reached: Duration,
    /// Since when a seed is asked for what is missing.
    missing_since: Option<Instant>,
    judge_at: Instant,
    /// Requests that seeds may have of this node because peers bring too little.
    missing: usize,
}

impl Supply {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            present_began: now,
            past_began: now,
            present: Half::default(),
            past: Half::default(),
            last: now,
            quickest: None,
            reached: Duration::ZERO,
            missing_since: None,
            judge_at: now,
            missing: 0,
        }
    }

    /// A chunk came that this node lacked.
    pub(crate) fn arrived(&mut self, from_seed: bool, now: Instant) {
        self.present.in_all = self.present.in_all.saturating_add(1);
        if !from_seed {
            self.present.from_peers = self.present.from_peers.saturating_add(1);
            self.last = now;
        }
    }

    /// A chunk, whoever sent it, has come so long after the request for it.
    pub(crate) fn took(&mut self, time: Duration) {
        let time = time.max(Duration::from_micros(1));
        self.quickest = Some(self.quickest.unwrap_or(time).min(time));
    }

    /// Whether peers were found to bring too little, the last time it was judged.
    pub(crate) fn was_short(&self) -> bool {
        self.missing > 0
    }

    /// When it is worth asking again.
    pub(crate) fn judge_at(&self) -> Instant {
        self.judge_at
    }

    /// How many chunks to keep asked of seeds, of the room in flight, for what peers do not bring; as it was
    /// found [`SUPPLY_JUDGED_EVERY`] ago or less.
    pub(crate) fn missing(&mut self, now: Instant, prospects: impl FnOnce() -> Prospects) -> usize {
        if now >= self.judge_at {
            self.judge_at = now + SUPPLY_JUDGED_EVERY;
            self.missing = self.judge(now, prospects());
            self.missing_since = match self.missing {
                0 => None,
                _ => Some(self.missing_since.unwrap_or(now)),
            };
        }
        self.missing
    }

    fn judge(&mut self, now: Instant, prospects: Prospects) -> usize {
        let room = prospects.room;
        // Chunks that share the link begin and end together: twice the time that all of them take.
        let each = self.quickest.unwrap_or_default().max(self.reached);
        let shared = each * 2 * room as u32;
        let half = shared.max(SUPPLY_WINDOW) / 2;
        if now.since(self.present_began) >= half {
            self.note_reached(now);
            (self.past, self.past_began) = (self.present, self.present_began);
            (self.present, self.present_began) = (Half::default(), now);
        }
        let silent = now.since(self.last);
        if prospects.is_alone {
            return if silent >= SUPPLY_ALONE { room } else { 0 };
        }
        if silent >= FLIGHT_PATIENCE_MIN && !prospects.is_awaiting {
            return room;
        }
        let span = now.since(self.past_began);
        if self.quickest.is_none() || span < half {
            return 0;
        }
        let found = self.present.from_peers.saturating_add(self.past.from_peers);
        let enough_us = span.as_micros() * u128::from(SHORT_BELOW_PERCENT) / 100;
        let found_us = each.as_micros() * u128::from(found);
        let missing_us = enough_us.saturating_sub(found_us);
        (missing_us * room as u128).div_ceil(enough_us.max(1)) as usize
    }

    /// A half of the window is over. What came in both says what could come, if a seed was asked all along.
    fn note_reached(&mut self, now: Instant) {
        self.reached = self.reached * 15 / 16;
        let in_all = self.present.in_all.saturating_add(self.past.in_all);
        if self
            .missing_since
            .is_some_and(|since| since <= self.past_began)
            && in_all > 0
        {
            self.reached = now.since(self.past_began) * 100 / (in_all * REACHED_PERCENT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 8;

    fn ms(ms: u64) -> Instant {
        Instant(ms * 1000)
    }

    /// Whether a node is found short at some time within `until_ms`, that gets a chunk from a peer each
    /// `every_ms`, and whose link takes one in `quickest_ms`.
    fn becomes_short(every_ms: u64, quickest_ms: u64, until_ms: u64) -> Option<u64> {
        let mut supply = Supply::new(ms(0));
        supply.took(Duration::from_millis(quickest_ms));
        (1..until_ms).find(|at| {
            if every_ms > 0 && at % every_ms == 0 {
                supply.arrived(false, ms(*at));
            }
            let prospects = Prospects {
                is_alone: false,
                is_awaiting: every_ms > 0,
                room: ROOM,
            };
            supply.missing(ms(*at), || prospects) > 0
        })
    }

    #[test]
    fn what_is_next_to_nothing_follows_from_the_link() {
        // (a chunk each so many ms, one takes, whether that is short)
        let cases = [
            (1, 1, false),
            (3, 1, true),
            (5, 1, true),
            (100, 1, true),
            (0, 1, true),
            (10, 10, false),
            (12, 10, false),
            (20, 10, true),
            (50, 10, true),
            (100, 100, false),
            (1_000, 100, true),
        ];
        for (every_ms, quickest_ms, is_short) in cases {
            let found = becomes_short(every_ms, quickest_ms, 10_000);
            assert_eq!(found.is_some(), is_short, "{every_ms} {quickest_ms}");
        }
        // Where nothing at all comes, it is known soon whatever the link.
        for quickest_ms in [1, 10, 300, 2_000] {
            let at = becomes_short(0, quickest_ms, 1_000);
            assert!(at.is_some_and(|at| at <= 230), "{quickest_ms}: {at:?}");
        }
    }

    #[test]
    fn who_knows_nobody_waits_for_nobody() {
        let mut supply = Supply::new(ms(0));
        let alone = || Prospects {
            is_alone: true,
            room: ROOM,
            ..Prospects::default()
        };
        assert_eq!(supply.missing(ms(1), alone), 0);
        let at = Instant::ZERO + SUPPLY_ALONE;
        assert!(supply.missing(at, alone) > 0);
        supply.arrived(false, at);
        assert_eq!(supply.missing(at + SUPPLY_JUDGED_EVERY, alone), 0);
    }

    /// Peers that stop are noticed; those that go on after a pause are, too.
    #[test]
    fn what_was_is_forgotten() {
        let mut supply = Supply::new(ms(0));
        supply.took(Duration::from_millis(1));
        let mut short = Vec::new();
        for at in 1..3_000 {
            let is_quiet = (1_000..2_000).contains(&at);
            if !is_quiet {
                supply.arrived(false, ms(at));
            }
            let prospects = Prospects {
                is_awaiting: !is_quiet,
                is_alone: false,
                room: ROOM,
            };
            if supply.missing(ms(at), || prospects) > 0 {
                short.push(at);
            }
        }
        let (first, last) = (short.first().copied(), short.last().copied());
        assert!(
            first.is_some_and(|at| (1_000..1_300).contains(&at)),
            "{first:?}"
        );
        assert!(
            last.is_some_and(|at| (2_000..2_300).contains(&at)),
            "{last:?}"
        );
    }

    /// Its first chunk took 10 ms; from then on it takes one each 40 ms, whoever sends them, as where the
    /// processor sets the pace. Those who are asked for more bring more.
    #[test]
    fn who_cannot_take_more_does_not_ask_for_more() {
        const EACH_MS: u64 = 40;
        let mut supply = Supply::new(ms(0));
        supply.took(Duration::from_millis(10));
        let (mut from_seed, mut in_all, mut due) = (0, 0, 0.0);
        for at in 1..60_000 {
            let prospects = Prospects {
                is_alone: false,
                is_awaiting: true,
                room: ROOM,
            };
            let missing = supply.missing(ms(at), || prospects);
            if at % EACH_MS == 0 {
                due += missing as f64 / (ROOM + missing) as f64;
                let is_seeds = due >= 1.0;
                due -= f64::from(u8::from(is_seeds));
                from_seed += u32::from(is_seeds);
                in_all += 1;
                supply.arrived(is_seeds, ms(at));
            }
        }
        assert!(from_seed * 6 < in_all, "{from_seed} of {in_all}");
    }

    /// What kept chunks from coming is over: the seed is asked again, and for all that peers do not bring.
    #[test]
    fn what_was_reached_is_not_believed_for_ever() {
        let mut supply = Supply::new(ms(0));
        supply.took(Duration::from_millis(10));
        let mut last_missing = 0;
        for at in 1..20_000 {
            // Peers bring half of what the link takes; until ten seconds nobody brings more.
            let is_slow = at < 10_000;
            let prospects = Prospects {
                is_alone: false,
                is_awaiting: true,
                room: ROOM,
            };
            last_missing = supply.missing(ms(at), || prospects);
            if at % 20 == 0 {
                supply.arrived(false, ms(at));
                if !is_slow && last_missing > 0 {
                    supply.arrived(true, ms(at));
                }
            }
        }
        assert!(last_missing > 0);
    }
}
