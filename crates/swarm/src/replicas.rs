//! How many neighbours announced each chunk, in a form that answers "which are the rarest of these"
//! for 64 chunks at a time.
//!
//! The counts are bit-sliced: plane `b` of a group holds bit `b` of the counts of its 64 chunks. To
//! find the smallest count in a set is then to walk the planes from the highest and to keep those
//! that have a zero there, if there are any: a handful of instructions, whatever the size of the
//! set. A node asks that of every peer for every chunk that it offers or asks for.

use rootswarm_image::ChunkIndex;

/// Counts go up to `2^PLANES - 1`: more than a seed has connections.
const PLANES: usize = 16;

const _: () = assert!(crate::limits::SEED_PEERS_MAX < 1 << PLANES);

/// 64 chunks. Two cache lines, the second of which is touched only if a count exceeds 255.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Group([u64; PLANES]);

/// A count for each chunk of an image.
#[derive(Debug)]
pub(crate) struct Replicas {
    groups: Box<[Group]>,
    /// Planes from here on are zero everywhere.
    used: usize,
}

impl Replicas {
    pub(crate) fn new(chunks: u32) -> Self {
        Self {
            groups: vec![Group::default(); chunks.div_ceil(64) as usize].into(),
            used: 0,
        }
    }

    pub(crate) fn of(&self, index: ChunkIndex) -> u16 {
        let (group, mask) = place(index);
        let planes = self.groups[group].0[..self.used].iter().enumerate();
        planes
            .filter(|(_, plane)| **plane & mask != 0)
            .fold(0, |count, (bit, _)| count | 1 << bit)
    }

    /// One more; the largest count stays as it is.
    pub(crate) fn increment(&mut self, index: ChunkIndex) {
        let (group, mask) = place(index);
        for (bit, plane) in self.groups[group].0.iter_mut().enumerate() {
            *plane ^= mask;
            if *plane & mask != 0 {
                self.used = self.used.max(bit + 1);
                return;
            }
        }
        // All ones became all zeros.
        (self.groups[group].0.iter_mut()).for_each(|plane| *plane |= mask);
    }

    /// One less; zero stays as it is.
    pub(crate) fn decrement(&mut self, index: ChunkIndex) {
        let (group, mask) = place(index);
        for plane in &mut self.groups[group].0 {
            *plane ^= mask;
            if *plane & mask == 0 {
                return;
            }
        }
        // All zeros became all ones.
        (self.groups[group].0.iter_mut()).for_each(|plane| *plane &= !mask);
    }

    /// The smallest count among the chunks in `set`, and those that have it, unless it is above `most`.
    /// `set` is not empty: bit `i` is chunk `64 * group + i`. The highest planes come first, so what is
    /// far above is found out at once.
    #[inline]
    pub(crate) fn rarest(&self, group: usize, set: u64, most: u16) -> Option<(u16, u64)> {
        let planes = &self.groups[group].0[..self.used];
        let (mut fewest, mut rarest) = (0, set);
        for (bit, plane) in planes.iter().enumerate().rev() {
            let below = rarest & !plane;
            if below != 0 {
                rarest = below;
                continue;
            }
            fewest |= 1 << bit;
            if fewest > most {
                return None;
            }
        }
        Some((fewest, rarest))
    }
}

fn place(index: ChunkIndex) -> (usize, u64) {
    ((index.0 / 64) as usize, 1 << (index.0 % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against plain counters.
        #[test]
        fn counts_like_counters(
            steps in proptest::collection::vec((0u32..100, 0u16..600, any::<bool>()), 1..60),
            set in any::<u64>(),
            most in 0u16..700,
        ) {
            let mut replicas = Replicas::new(100);
            let mut counters = [0u16; 100];
            for (chunk, times, up) in steps {
                let counter = &mut counters[chunk as usize];
                for _ in 0..times {
                    if up {
                        replicas.increment(ChunkIndex(chunk));
                        *counter += 1;
                    } else {
                        replicas.decrement(ChunkIndex(chunk));
                        *counter = counter.saturating_sub(1);
                    }
                }
                prop_assert_eq!(replicas.of(ChunkIndex(chunk)), *counter);
            }
            let set = set | 1;
            let members = (0..64u32).filter(|bit| set >> bit & 1 == 1);
            let fewest = members.clone().map(|bit| counters[bit as usize]).min().unwrap();
            let rarest = members.filter(|bit| counters[*bit as usize] == fewest);
            let expected = rarest.fold(0u64, |word, bit| word | 1 << bit);
            let found = replicas.rarest(0, set, most);
            prop_assert_eq!(found, (fewest <= most).then_some((fewest, expected)));
        }
    }

    #[test]
    fn counts_stay_within_their_range() {
        let mut replicas = Replicas::new(1);
        replicas.decrement(ChunkIndex(0));
        assert_eq!(replicas.of(ChunkIndex(0)), 0);
        for _ in 0..70_000 {
            replicas.increment(ChunkIndex(0));
        }
        assert_eq!(replicas.of(ChunkIndex(0)), u16::MAX);
    }
}
