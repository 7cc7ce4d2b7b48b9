//! What a node may fetch from outside its rack: about one copy for all that stand there.
//!
//! From its near neighbours a node fetches whatever it lacks. From outside it fetches only what no
//! near neighbour holds, and of those that lack a chunk one has the duty to: the one whose identity
//! weighs most for this chunk (highest random weight: Thaler and Ravishankar, "Using Name-Based
//! Mappings to Increase Hit Rates", 1998). Everybody finds the same one without a word. It may be
//! dead, slow, or not know anybody who holds the chunk, so whoever sees the chunk outside for long
//! while it does not come takes over, one after the other in the order of weights. And a node to
//! which nothing comes any more minds no rack: what a near neighbour says it holds may be a lie.
//!
//! This file does not know connections: the caller says which nodes are near, what they hold, and
//! what is held outside.

use crate::id::NodeId;
use crate::picker::Picker;
use crate::time::Instant;
use rootswarm_image::{Bitfield, ChunkIndex};
use std::time::Duration;

/// How long what neighbours hold is not looked at anew.
const REFRESH: Duration = Duration::from_millis(10);

/// A near neighbour that counts, with what it holds.
pub(crate) type Near<'a> = (NodeId, &'a Bitfield);

/// Why a chunk may be fetched from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// It is this node's to bring.
    Duty,
    /// Whose it is has not brought it in time, and now it is this node's turn.
    TakenOver,
}

/// One node's view of its rack.
#[derive(Debug)]
pub(crate) struct Locality {
    me: NodeId,
    rack: Option<String>,
    /// Connected nodes of other racks.
    far: usize,
    /// Connected nodes of this rack.
    near: usize,
    /// The near neighbours that count, in the order of the connections.
    counted: Vec<NodeId>,
    /// What they hold, as it was at the last look.
    held_near: Bitfield,
    duty: Bitfield,
    taken_over: Bitfield,
    /// Since when each chunk has been seen outside and not near, in milliseconds, plus one; 0 if it
    /// has not been. Empty while nothing outside is known.
    seen_ms: Vec<u32>,
    look_at: Instant,
}

impl Locality {
    pub(crate) fn new(me: NodeId, rack: Option<String>) -> Self {
        Self {
            me,
            rack,
            far: 0,
            near: 0,
            counted: Vec::new(),
            held_near: Bitfield::new(0),
            duty: Bitfield::new(0),
            taken_over: Bitfield::new(0),
            seen_ms: Vec::new(),
            look_at: Instant::ZERO,
        }
    }

    /// Where this node stands.
    pub(crate) fn rack(&self) -> Option<&str> {
        self.rack.as_deref()
    }

    /// Whether a node that says this of itself stands in the same rack. Nodes that do not know where
    /// they stand are taken to stand together.
    pub(crate) fn is_near(&self, rack: Option<&str>) -> bool {
        self.rack() == rack
    }

    /// A peer said hello.
    pub(crate) fn met(&mut self, is_near: bool) {
        *self.side(is_near) += 1;
    }

    /// A peer that had said hello is gone.
    pub(crate) fn parted(&mut self, is_near: bool) {
        *self.side(is_near) -= 1;
    }

    fn side(&mut self, is_near: bool) -> &mut usize {
        if is_near {
            &mut self.near
        } else {
            &mut self.far
        }
    }

    /// Whether it matters where a chunk comes from: there are others here, and others elsewhere.
    pub(crate) fn matters(&self) -> bool {
        self.near > 0 && self.far > 0
    }

    /// Whether [`Locality::look`] should be called.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        now >= self.look_at
    }

    /// Takes in what the near neighbours and those outside hold at `now`. A chunk that has been seen
    /// outside for `patience` is taken over by the one that weighs second most, and by each next one
    /// `step` later.
    pub(crate) fn look<'a>(
        &mut self,
        near: impl Iterator<Item = Near<'a>>,
        outside: impl Iterator<Item = &'a Bitfield>,
        picker: &Picker,
        (patience, step): (Duration, Duration),
        now: Instant,
    ) {
        self.look_at = now + REFRESH;
        let chunks = picker.have().len();
        self.held_near = Bitfield::new(chunks);
        let mut counted = Vec::with_capacity(self.counted.len());
        for (node, have) in near {
            counted.push(node);
            self.held_near.union_with(have);
        }
        if self.seen_ms.is_empty() {
            self.seen_ms = vec![0; chunks as usize];
            self.duty = Bitfield::full(chunks);
        }
        self.share_duties(counted);
        let mut held_outside = Bitfield::new(chunks);
        for have in outside {
            held_outside.union_with(have);
        }
        self.taken_over = Bitfield::new(chunks);
        let now_ms = u32::try_from(now.0 / 1_000).unwrap_or(u32::MAX - 1);
        for index in held_outside.iter_difference(&self.held_near) {
            if self.duty.get(index) || !picker.needs(index) {
                continue;
            }
            let seen_ms = &mut self.seen_ms[index.0 as usize];
            if *seen_ms == 0 {
                *seen_ms = now_ms + 1;
                continue;
            }
            let waited = Duration::from_millis(u64::from(now_ms.saturating_sub(*seen_ms - 1)));
            if waited >= patience && waited >= patience + step * (self.rank(index) - 1) {
                self.taken_over.set(index);
            }
        }
    }

    /// Works out this node's duties among these near neighbours.
    fn share_duties(&mut self, counted: Vec<NodeId>) {
        if self.counted == counted {
            return;
        }
        let is_more = counted.starts_with(&self.counted);
        let news = if is_more {
            &counted[self.counted.len()..]
        } else {
            self.duty = Bitfield::full(self.duty.len());
            &counted
        };
        let lost: Vec<ChunkIndex> = self
            .duty
            .iter_set()
            .filter(|index| {
                let own = weight(self.me, *index);
                news.iter().any(|other| weight(*other, *index) > own)
            })
            .collect();
        for index in lost {
            self.duty.clear(index);
        }
        self.counted = counted;
    }

    /// How many weigh more for the chunk than this node; at least 1 where it has no duty.
    fn rank(&self, index: ChunkIndex) -> u32 {
        let own = weight(self.me, index);
        let heavier = self
            .counted
            .iter()
            .filter(|other| weight(**other, index) > own);
        u32::try_from(heavier.count()).unwrap_or(u32::MAX).max(1)
    }

    /// Whether the chunk may be fetched from outside.
    pub(crate) fn may_bring(&self, index: ChunkIndex) -> bool {
        !self.held_near.get(index) && (self.duty.get(index) || self.taken_over.get(index))
    }

    /// Which of `theirs`, who are outside, may be fetched and are needed; `None` if none.
    pub(crate) fn errands(
        &self,
        theirs: &Bitfield,
        errand: Errand,
        picker: &Picker,
    ) -> Option<Bitfield> {
        let allowed = match errand {
            Errand::Duty => &self.duty,
            Errand::TakenOver => &self.taken_over,
        };
        let rows = theirs.words().iter().zip(allowed.words());
        let rows = rows.zip(self.held_near.words().iter().zip(picker.have().words()));
        let mut errands: Option<Bitfield> = None;
        for (position, ((theirs, allowed), (near, have))) in rows.enumerate() {
            let mut rest = theirs & allowed & !near & !have;
            while rest != 0 {
                let index = ChunkIndex(position as u32 * 64 + rest.trailing_zeros());
                rest &= rest - 1;
                if picker.needs(index) {
                    let chunks = picker.have().len();
                    errands
                        .get_or_insert_with(|| Bitfield::new(chunks))
                        .set(index);
                }
            }
        }
        errands
    }

    /// A near neighbour holds the chunk, which the last look did not show.
    pub(crate) fn is_held_near(&mut self, index: ChunkIndex) {
        self.held_near.set(index);
    }
}

/// How much a node weighs for a chunk. Identities are hashes already; the finaliser of SplitMix64
/// mixes the chunk in.
fn weight(node: NodeId, index: ChunkIndex) -> (u64, NodeId) {
    let mut first = [0; 8];
    first.copy_from_slice(&node.0[..8]);
    let mut z = u64::from_be_bytes(first) ^ u64::from(index.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31), node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: u32 = 400;
    const PATIENCE: Duration = Duration::from_millis(100);
    const STEP: Duration = Duration::from_millis(20);

    fn id(number: u64) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        NodeId(bytes)
    }

    fn some(chunks: impl IntoIterator<Item = u32>) -> Bitfield {
        let mut have = Bitfield::new(CHUNKS);
        for index in chunks {
            have.set(ChunkIndex(index));
        }
        have
    }

    /// A rack of `size` nodes that hold nothing, each with its view of the others.
    fn rack(size: u64) -> Vec<Locality> {
        let member = |number| {
            let mut member = Locality::new(id(number), Some("r".to_owned()));
            (1..size).for_each(|_| member.met(true));
            member.met(false);
            member
        };
        (0..size).map(member).collect()
    }

    /// `member` sees that `others` hold `held`, and that `outside` is held elsewhere.
    fn look(
        member: &mut Locality,
        others: &[u64],
        held: &Bitfield,
        outside: &Bitfield,
        now_ms: u64,
    ) {
        let near = others.iter().map(|other| (id(*other), held));
        let picker = Picker::new(Bitfield::new(CHUNKS));
        let now = Instant(now_ms * 1_000);
        member.look(
            near,
            std::iter::once(outside),
            &picker,
            (PATIENCE, STEP),
            now,
        );
    }

    fn errands(member: &Locality, theirs: &Bitfield, errand: Errand) -> Vec<u32> {
        let picker = Picker::new(Bitfield::new(CHUNKS));
        let errands = member.errands(theirs, errand, &picker);
        errands.map_or(Vec::new(), |chunks| {
            chunks.iter_set().map(|index| index.0).collect()
        })
    }

    /// Whatever order they come in, a rack agrees on one node for each chunk, and shares evenly.
    #[test]
    fn one_of_a_rack_has_the_duty() {
        let all = Bitfield::full(CHUNKS);
        let mut bringers = vec![0; CHUNKS as usize];
        for (number, member) in rack(10).iter_mut().enumerate() {
            let mut others: Vec<u64> = (0..10).filter(|other| *other != number as u64).collect();
            others.rotate_left(number / 2);
            let nothing = Bitfield::new(CHUNKS);
            look(member, &others[..3], &nothing, &all, 0);
            look(member, &others, &nothing, &all, 10);
            let duties = errands(member, &all, Errand::Duty);
            assert!((20..70).contains(&duties.len()), "{}", duties.len());
            for index in &duties {
                bringers[*index as usize] += 1;
                assert!(member.may_bring(ChunkIndex(*index)));
            }
            assert_eq!(errands(member, &all, Errand::TakenOver), []);
        }
        assert!(bringers.iter().all(|count| *count == 1), "{bringers:?}");
    }

    #[test]
    fn what_is_held_near_is_not_brought() {
        let all = Bitfield::full(CHUNKS);
        let held = some(0..300);
        let member = &mut rack(2)[0];
        look(member, &[1], &held, &all, 0);
        look(member, &[1], &held, &all, 1_000);
        let mut brought = errands(member, &all, Errand::Duty);
        brought.extend(errands(member, &all, Errand::TakenOver));
        brought.sort_unstable();
        assert_eq!(brought, (300..CHUNKS).collect::<Vec<_>>());
        let first = ChunkIndex(brought[0]);
        member.is_held_near(first);
        assert!(!member.may_bring(first));
        // Whoever held them is gone: all is this node's duty.
        look(member, &[], &held, &all, 1_010);
        assert_eq!(errands(member, &all, Errand::Duty).len(), CHUNKS as usize);
        assert_eq!(errands(member, &some([7]), Errand::Duty), [7]);
    }

    /// Nobody brings what they have the duty to: the others take over one after the other.
    #[test]
    fn a_duty_that_is_not_done_is_taken_over() {
        let (nothing, seen) = (Bitfield::new(CHUNKS), some(0..100));
        let all = Bitfield::full(CHUNKS);
        let mut taken = Vec::new();
        for (number, member) in rack(5).iter_mut().enumerate() {
            let others: Vec<u64> = (0..5).filter(|other| *other != number as u64).collect();
            look(member, &others, &nothing, &seen, 0);
            let mut counts = Vec::new();
            for at_ms in [90, 100, 120, 140, 160] {
                look(member, &others, &nothing, &seen, at_ms);
                counts.push(errands(member, &all, Errand::TakenOver).len());
            }
            let duties = errands(member, &seen, Errand::Duty).len();
            assert_eq!((counts[0], counts[4]), (0, 100 - duties), "{counts:?}");
            assert!(counts.is_sorted());
            taken.push(counts[1]);
        }
        // The second heaviest first: each chunk has one.
        assert_eq!(taken.iter().sum::<usize>(), 100);
    }

    #[test]
    fn racks_matter_where_there_are_several() {
        let mut one = Locality::new(id(1), None);
        assert!(one.is_near(None) && !one.is_near(Some("r")) && !one.matters());
        one.met(true);
        assert!(!one.matters(), "all are near");
        one.met(false);
        assert!(one.matters());
        one.parted(true);
        assert!(!one.matters(), "alone here");
    }
}
