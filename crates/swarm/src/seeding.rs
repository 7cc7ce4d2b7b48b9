//! The seed's policy: every chunk once before any chunk twice.
//!
//! A seed whose uplink is as fast as its nodes' has no byte to spare: the last chunk leaves it
//! for the first time when an ideal swarm is done. So it does not wait to be asked. It pushes
//! chunks that no node holds, and only those; it answers requests once there are none left. The
//! rule needs no phases: when the last holder of a chunk leaves, the chunk is again one that no
//! node holds.
//!
//! What a node announces is a hint. One liar that claims the whole image would otherwise end the first
//! round before it began: with a tenth of 100 nodes lying, the last honest one came at 3.4 of the bound
//! instead of 1.3. So a chunk that this seed has not seen arrive anywhere goes out too, after those that
//! nobody claims, unless it is claimed by more than a third of all nodes, as after a restart.
//!
//! A seed that is much faster than its nodes has bytes to spare when the first round ends: then they
//! lack most of the image, and it helps on (see `offering`): with as much as makes a difference to so
//! many. One that is not is from then on one uplink among many, and a holder of last resort: helping 300
//! nodes that arrive within 10 s it sent 0.4 copies more, and nobody was done sooner.

use crate::picker::Picker;
use crate::rng::Rng;
use crate::time::Instant;
use rootswarm_image::{Bitfield, ChunkIndex};
use std::collections::VecDeque;
use std::time::Duration;

/// A seed is faster than its nodes if they hold less than this when each chunk has left it once.
const FASTER_BELOW_PERCENT: u64 = 75;

/// Such a seed helps on until they hold this much. In the simulator 16 nodes of a tenth of its rate end at
/// 1.085 of the bound with 75 %, at 1.077 with 90 % (1.57 copies), at 1.074 with 95 % (1.64) and at 1.073
/// with 99 %. Without it their own uplinks are full in the last second, and some links idle.
const HELPED_BELOW_PERCENT: u64 = 95;

/// Claimed chunks looked at for one push.
const DOUBTS_LOOKED_AT: usize = 64;

/// Fewer nodes than these are not believed, whatever their share.
const WITNESSES_MIN: usize = 3;

/// The chunks that no node holds and that are not on their way to one.
#[derive(Debug)]
pub(crate) struct Seeding {
    /// In the order in which they go out, last first; entries may have become stale.
    unsent: Vec<ChunkIndex>,
    /// Claimed by some node, but never seen to arrive at one.
    doubted: VecDeque<ChunkIndex>,
    /// In `unsent`.
    listed: Bitfield,
    /// In `doubted`; perhaps in both.
    doubting: Bitfield,
    /// Delivered by this seed, and then announced by the node that it was sent to.
    arrived: Bitfield,
    pushing: Bitfield,
    /// A doubted chunk may have to be pushed: there is a new one, or the last search found one.
    is_doubting: bool,
    /// Some chunk had no holder when last asked whether to help on.
    was_first_round: bool,
    /// When the last first round ended, the nodes had got chunks much more slowly than this seed had sent
    /// the image.
    is_faster: bool,
    /// When that round began.
    round_began: Instant,
    /// First copies that went out since help was last counted anew, and uploads before the first of them.
    pushed: u32,
    pushed_from: u64,
    /// More uploads than these are help: those with which each first copy is delivered.
    helped_from: u64,
}

impl Seeding {
    pub(crate) fn new(chunks: u32, rng: &mut Rng) -> Self {
        let mut unsent: Vec<ChunkIndex> = (0..chunks).map(ChunkIndex).collect();
        rng.shuffle(&mut unsent);
        Self {
            unsent,
            doubted: VecDeque::new(),
            listed: Bitfield::full(chunks),
            doubting: Bitfield::new(chunks),
            arrived: Bitfield::new(chunks),
            pushing: Bitfield::new(chunks),
            is_doubting: false,
            was_first_round: false,
            is_faster: false,
            round_began: Instant::ZERO,
            pushed: 0,
            pushed_from: 0,
            helped_from: 0,
        }
    }

    /// Whether to offer second copies, when this seed has uploaded so many chunks, may give `most` as help
    /// for each copy that has to leave it, and the nodes that are fed hold so much, in per cent: of the
    /// image, or of what they would hold if they had got all of it in a given time from when they came.
    pub(crate) fn helps_on(
        &mut self,
        picker: &Picker,
        uploaded: u64,
        most: u64,
        now: Instant,
        held_percent: impl Fn(Option<Duration>) -> u64,
    ) -> bool {
        if self.first_copies_wait(picker) {
            if self.pushed == 0 {
                self.pushed_from = uploaded;
                self.round_began = now;
            }
            self.was_first_round = true;
            return false;
        }
        let ends = std::mem::take(&mut self.was_first_round);
        // Some chunks that went out again because their holders left are no reason to help with all.
        if ends && self.pushed > picker.have().len() / 2 {
            self.helped_from = self.pushed_from + u64::from(self.pushed);
            self.pushed = 0;
        }
        let may_help = self.helped(uploaded) < most;
        if !(ends || self.is_faster && may_help) {
            return false;
        }
        if ends {
            // Those that came later lack more, and are no slower for it.
            let round = now.since(self.round_began);
            self.is_faster = held_percent(Some(round)) < FASTER_BELOW_PERCENT;
        }
        self.is_faster && may_help && held_percent(None) < HELPED_BELOW_PERCENT
    }

    /// Of so many uploads, those since the first round, as help or because somebody asked.
    pub(crate) fn helped(&self, uploaded: u64) -> u64 {
        uploaded.saturating_sub(self.helped_from)
    }

    /// Whether some chunk has no holder yet: requests for second copies have to wait.
    pub(crate) fn is_first_round(&mut self, picker: &Picker) -> bool {
        self.drop_stale(picker);
        !self.unsent.is_empty()
    }

    /// Whether second copies have to wait: some chunk has no holder yet, or none but those
    /// who only say so. A liar that claims the whole image would otherwise have the uplink spent on
    /// second copies before the first have left.
    pub(crate) fn first_copies_wait(&mut self, picker: &Picker) -> bool {
        self.is_first_round(picker) || self.is_doubting && !self.doubted.is_empty()
    }

    /// Whether there may be something to push.
    pub(crate) fn may_push(&mut self, picker: &Picker) -> bool {
        self.is_first_round(picker) || !self.doubted.is_empty()
    }

    /// Whoever asks, now, need not wait for what could be pushed.
    pub(crate) fn nobody_to_push_to(&mut self) {
        self.is_doubting = false;
    }

    /// The next chunk to push to a node that holds `held`, one of `nodes`; the chunk then counts as on
    /// its way.
    pub(crate) fn begin_next(
        &mut self,
        picker: &Picker,
        held: &Bitfield,
        nodes: usize,
    ) -> Option<ChunkIndex> {
        self.drop_stale(picker);
        let index = match self.unsent.pop() {
            Some(index) => index,
            None => {
                let doubted = self.next_doubted(picker, held, nodes);
                self.is_doubting = doubted.is_some();
                doubted?
            }
        };
        self.listed.clear(index);
        self.pushing.set(index);
        self.pushed = self.pushed.saturating_add(1);
        Some(index)
    }

    fn next_doubted(
        &mut self,
        picker: &Picker,
        held: &Bitfield,
        nodes: usize,
    ) -> Option<ChunkIndex> {
        for _ in 0..self.doubted.len().min(DOUBTS_LOOKED_AT) {
            let index = self.doubted.pop_front()?;
            let witnesses = usize::from(picker.replicas(index));
            let is_believed = witnesses >= WITNESSES_MIN && witnesses * 3 > nodes;
            if self.arrived.get(index) || self.pushing.get(index) {
                self.doubting.clear(index);
            } else if held.get(index) || is_believed {
                self.doubted.push_back(index);
            } else {
                self.doubting.clear(index);
                return Some(index);
            }
        }
        None
    }

    /// The node that a chunk was sent to has it.
    pub(crate) fn arrived(&mut self, index: ChunkIndex) {
        self.arrived.set(index);
    }

    /// A push is over. Unless it, or somebody else, brought the chunk to a node, it goes out again.
    pub(crate) fn ended(&mut self, index: ChunkIndex, picker: &Picker) {
        self.pushing.clear(index);
        self.reconsider(index, picker);
    }

    /// The number of nodes that hold the chunk has changed.
    pub(crate) fn reconsider(&mut self, index: ChunkIndex, picker: &Picker) {
        if self.pushing.get(index) {
            return;
        }
        if picker.replicas(index) > 0 {
            self.doubt(index);
            return;
        }
        // Where it had arrived is gone.
        self.arrived.clear(index);
        if self.listed.set(index) {
            self.unsent.push(index);
        }
    }

    fn doubt(&mut self, index: ChunkIndex) {
        if !self.arrived.get(index) && self.doubting.set(index) {
            self.doubted.push_back(index);
            self.is_doubting = true;
        }
    }

    fn drop_stale(&mut self, picker: &Picker) {
        while let Some(index) = self.unsent.last().copied() {
            if picker.replicas(index) == 0 {
                return;
            }
            self.unsent.pop();
            self.listed.clear(index);
            self.doubt(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// For one of two nodes, which holds nothing.
    fn next(seeding: &mut Seeding, picker: &Picker) -> Option<ChunkIndex> {
        let chunks = picker.have().len();
        seeding.begin_next(picker, &Bitfield::new(chunks), 2)
    }

    #[test]
    fn once_each_then_only_orphans() {
        let mut picker = Picker::new(Bitfield::full(50));
        let mut seeding = Seeding::new(50, &mut Rng::new(1));
        let mut sent = BTreeSet::new();
        while let Some(index) = next(&mut seeding, &picker) {
            assert!(sent.insert(index), "{index} twice");
            picker.announced(index);
            seeding.arrived(index);
            seeding.ended(index, &picker);
        }
        assert_eq!(sent.len(), 50);
        assert!(!seeding.is_first_round(&picker));

        // The holder of one chunk leaves; a push of it that fails brings it back once more.
        assert!(picker.withdrawn(ChunkIndex(7)));
        seeding.reconsider(ChunkIndex(7), &picker);
        seeding.reconsider(ChunkIndex(7), &picker);
        assert!(seeding.is_first_round(&picker));
        assert_eq!(next(&mut seeding, &picker), Some(ChunkIndex(7)));
        assert_eq!(
            next(&mut seeding, &picker),
            None,
            "listed once, and now on its way"
        );
        seeding.ended(ChunkIndex(7), &picker);
        assert_eq!(next(&mut seeding, &picker), Some(ChunkIndex(7)));
    }

    #[test]
    fn only_a_seed_that_was_faster_than_its_nodes_helps_on() {
        let mut picker = Picker::new(Bitfield::full(1));
        let mut seeding = Seeding::new(1, &mut Rng::new(1));
        let mut uploaded = 0;
        for (at_its_end, is_faster) in [(74, true), (75, false), (74, true)] {
            let helps = |seeding: &mut Seeding, picker: &Picker, uploaded, held| {
                seeding.helps_on(picker, uploaded, 1, Instant::ZERO, |_| held)
            };
            assert!(
                !helps(&mut seeding, &picker, uploaded, 0),
                "the first round"
            );
            picker.announced(ChunkIndex(0));
            assert!(!helps(&mut seeding, &picker, uploaded, 0), "only said so");
            assert_eq!(next(&mut seeding, &picker), Some(ChunkIndex(0)));
            uploaded += 1;
            seeding.arrived(ChunkIndex(0));
            seeding.ended(ChunkIndex(0), &picker);
            assert_eq!(next(&mut seeding, &picker), None);
            assert_eq!(
                helps(&mut seeding, &picker, uploaded, at_its_end),
                is_faster
            );
            // Newcomers, later.
            assert_eq!(helps(&mut seeding, &picker, uploaded, 0), is_faster);
            assert_eq!(helps(&mut seeding, &picker, uploaded, 94), is_faster);
            assert!(
                !helps(&mut seeding, &picker, uploaded, 95),
                "they hold most"
            );
            // What helps is counted, and each round has its own.
            uploaded += 1;
            assert!(!helps(&mut seeding, &picker, uploaded, 0), "it has helped");
            assert!(picker.withdrawn(ChunkIndex(0)));
            seeding.reconsider(ChunkIndex(0), &picker);
        }
    }

    /// A chunk whose only holder comes and goes does not have the whole image sent again.
    #[test]
    fn a_round_of_one_chunk_is_no_reason_to_help_again() {
        let mut picker = Picker::new(Bitfield::full(8));
        let mut seeding = Seeding::new(8, &mut Rng::new(1));
        let mut uploaded = 0;
        let mut round = |seeding: &mut Seeding, picker: &mut Picker| {
            assert!(!seeding.helps_on(picker, uploaded, 8, Instant::ZERO, |_| 0));
            while let Some(index) = next(seeding, picker) {
                uploaded += 1;
                picker.announced(index);
                seeding.arrived(index);
                seeding.ended(index, picker);
            }
            while seeding.helps_on(picker, uploaded, 8, Instant::ZERO, |_| 0) {
                uploaded += 1;
            }
            uploaded
        };
        assert_eq!(
            round(&mut seeding, &mut picker),
            16,
            "a copy, and one as help"
        );
        for again in 1..=4 {
            picker.withdrawn(ChunkIndex(2));
            seeding.reconsider(ChunkIndex(2), &picker);
            assert_eq!(round(&mut seeding, &mut picker), 16 + again);
        }
    }

    /// The table: what is known of the only chunk, and whether it goes to a node that lacks it.
    #[test]
    fn a_claim_is_believed_when_many_make_it() {
        // (claims, of how many nodes, it arrived somewhere, it is pushed)
        let cases = [
            (0, 1, false, true),
            (1, 1, false, true),
            (2, 4, false, true),
            (3, 8, false, false),
            (3, 9, false, true),
            (10, 100, false, true),
            (34, 100, false, false),
            (1, 100, true, false),
        ];
        for (claims, nodes, arrived, pushed) in cases {
            let mut picker = Picker::new(Bitfield::full(1));
            let mut seeding = Seeding::new(1, &mut Rng::new(1));
            let index = ChunkIndex(0);
            for _ in 0..claims {
                picker.announced(index);
            }
            if arrived {
                seeding.arrived(index);
            }
            let case = format!("{claims} of {nodes}, {arrived}");
            let next = seeding.begin_next(&picker, &Bitfield::new(1), nodes);
            assert_eq!(next.is_some(), pushed, "{case}");
            if next.is_some() {
                assert_eq!(seeding.begin_next(&picker, &Bitfield::new(1), nodes), None);
                // It failed: again, to somebody who does not claim it himself.
                seeding.ended(index, &picker);
                if claims > 0 {
                    assert_eq!(seeding.begin_next(&picker, &Bitfield::full(1), nodes), None);
                }
                assert!(
                    seeding
                        .begin_next(&picker, &Bitfield::new(1), nodes)
                        .is_some()
                );
                picker.announced(index);
                seeding.arrived(index);
                seeding.ended(index, &picker);
                assert!(!seeding.may_push(&picker), "{case}: it arrived");
            }
        }
    }
}
