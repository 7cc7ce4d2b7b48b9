//! The seed's policy: every chunk once before any chunk twice.
//!
//! A seed whose uplink is as fast as its nodes' has no byte to spare: the last chunk leaves it
//! for the first time when an ideal swarm is done. So it does not wait to be asked. It pushes
//! chunks that no node holds, and only those; it answers requests once there are none left. The
//! rule needs no phases: when the last holder of a chunk leaves, the chunk is again one that no
//! node holds.
//!
//! A seed that is much faster than its nodes has bytes to spare when the first round ends: then they
//! lack most of the image, and it helps on (see `offering`). One that is not is from then on one uplink
//! among many, and a holder of last resort: helping 300 nodes that arrive within 10 s it sent 0.4 copies
//! more, and nobody was done sooner.

use crate::picker::Picker;
use crate::rng::Rng;
use rootswarm_image::{Bitfield, ChunkIndex};

/// The chunks that no node holds and that are not on their way to one.
#[derive(Debug)]
pub(crate) struct Seeding {
    /// In the order in which they go out, last first; entries may have become stale.
    unsent: Vec<ChunkIndex>,
    listed: Bitfield,
    pushing: Bitfield,
    /// Some chunk had no holder when last asked whether to help on.
    was_first_round: bool,
    /// When the last first round ended, the nodes lacked much.
    is_faster: bool,
}

impl Seeding {
    pub(crate) fn new(chunks: u32, rng: &mut Rng) -> Self {
        let mut unsent: Vec<ChunkIndex> = (0..chunks).map(ChunkIndex).collect();
        rng.shuffle(&mut unsent);
        Self {
            unsent,
            listed: Bitfield::full(chunks),
            pushing: Bitfield::new(chunks),
            was_first_round: false,
            is_faster: false,
        }
    }

    /// Whether to offer second copies, when the nodes lack much of the image as `lacks_much` says.
    pub(crate) fn helps_on(&mut self, picker: &Picker, lacks_much: impl FnOnce() -> bool) -> bool {
        if self.is_first_round(picker) {
            self.was_first_round = true;
            return false;
        }
        let ends = std::mem::take(&mut self.was_first_round);
        if !ends && !self.is_faster {
            return false;
        }
        let lacks_much = lacks_much();
        if ends {
            self.is_faster = lacks_much;
        }
        lacks_much
    }

    /// Whether some chunk has no holder yet: requests for second copies have to wait.
    pub(crate) fn is_first_round(&mut self, picker: &Picker) -> bool {
        self.drop_stale(picker);
        !self.unsent.is_empty()
    }

    /// The next chunk to push, which then counts as on its way.
    pub(crate) fn begin_next(&mut self, picker: &Picker) -> Option<ChunkIndex> {
        self.drop_stale(picker);
        let index = self.unsent.pop()?;
        self.listed.clear(index);
        self.pushing.set(index);
        Some(index)
    }

    /// A push is over. Unless it, or somebody else, brought the chunk to a node, it goes out again.
    pub(crate) fn ended(&mut self, index: ChunkIndex, picker: &Picker) {
        self.pushing.clear(index);
        self.reconsider(index, picker);
    }

    /// The number of nodes that hold the chunk has changed.
    pub(crate) fn reconsider(&mut self, index: ChunkIndex, picker: &Picker) {
        let orphan = picker.replicas(index) == 0 && !self.pushing.get(index);
        if orphan && !self.listed.get(index) {
            self.listed.set(index);
            self.unsent.push(index);
        }
    }

    fn drop_stale(&mut self, picker: &Picker) {
        while let Some(index) = self.unsent.last().copied() {
            if picker.replicas(index) == 0 {
                return;
            }
            self.unsent.pop();
            self.listed.clear(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn once_each_then_only_orphans() {
        let mut picker = Picker::new(Bitfield::full(50));
        let mut seeding = Seeding::new(50, &mut Rng::new(1));
        let mut sent = BTreeSet::new();
        while let Some(index) = seeding.begin_next(&picker) {
            assert!(sent.insert(index), "{index} twice");
            picker.announced(index);
            seeding.ended(index, &picker);
        }
        assert_eq!(sent.len(), 50);
        assert!(!seeding.is_first_round(&picker));

        // The holder of one chunk leaves; a push of it that fails brings it back once more.
        assert!(picker.withdrawn(ChunkIndex(7)));
        seeding.reconsider(ChunkIndex(7), &picker);
        seeding.reconsider(ChunkIndex(7), &picker);
        assert!(seeding.is_first_round(&picker));
        assert_eq!(seeding.begin_next(&picker), Some(ChunkIndex(7)));
        assert_eq!(
            seeding.begin_next(&picker),
            None,
            "listed once, and now on its way"
        );
        seeding.ended(ChunkIndex(7), &picker);
        assert_eq!(seeding.begin_next(&picker), Some(ChunkIndex(7)));
    }

    #[test]
    fn only_a_seed_that_was_faster_than_its_nodes_helps_on() {
        let mut picker = Picker::new(Bitfield::full(1));
        let mut seeding = Seeding::new(1, &mut Rng::new(1));
        for lacked_much in [true, false] {
            assert!(!seeding.helps_on(&picker, || true), "the first round");
            picker.announced(ChunkIndex(0));
            assert_eq!(seeding.helps_on(&picker, || lacked_much), lacked_much);
            // Newcomers, later.
            assert_eq!(seeding.helps_on(&picker, || true), lacked_much);
            assert!(!seeding.helps_on(&picker, || false), "they hold most");
            assert!(picker.withdrawn(ChunkIndex(0)));
            seeding.reconsider(ChunkIndex(0), &picker);
        }
    }

    #[test]
    fn a_chunk_that_arrived_otherwise_is_not_sent() {
        let mut picker = Picker::new(Bitfield::full(2));
        let mut seeding = Seeding::new(2, &mut Rng::new(1));
        picker.announced(ChunkIndex(0));
        picker.announced(ChunkIndex(1));
        assert_eq!(seeding.begin_next(&picker), None);
    }
}
