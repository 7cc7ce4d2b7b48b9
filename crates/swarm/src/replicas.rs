//! How many neighbours announced each chunk, in a form that answers "which are the rarest of these"
//! for 64 chunks at a time.
//!
//! The counts are bit-sliced: plane `b` of a group holds bit `b` of the counts of its 64 chunks. To
//! find the smallest count in a set is then to walk the planes from the highest and to keep those
//! that have a zero there, if there are any: a handful of instructions, whatever the size of the
//! set. A node asks that of every peer for every chunk that it offers or asks for.

use rootswarm_image::ChunkIndex;

/// Planes of a group: a cache line.
const PLANES: usize = 8;

/// Counts go up to so much: more than a seed has connections.
const MOST: u32 = (1 << (2 * PLANES)) - 1;

const _: () = assert!(crate::limits::SEED_PEERS_MAX <= MOST as usize);

/// 64 chunks: one plane of their counts after the other.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Group([u64; PLANES]);

/// A count for each chunk of an image.
#[derive(Debug)]
pub(crate) struct Replicas {
    low: Box<[Group]>,
    /// The planes above; none until a count exceeds 255, which only a seed's do.
    high: Box<[Group]>,
    /// Planes from here on are zero everywhere.
    used: usize,
}

impl Replicas {
    pub(crate) fn new(chunks: u32) -> Self {
        Self {
            low: vec![Group::default(); chunks.div_ceil(64) as usize].into(),
            high: [].into(),
            used: 0,
        }
    }

    pub(crate) fn of(&self, index: ChunkIndex) -> u16 {
        let (group, mask) = place(index);
        let planes = self.planes(group).enumerate();
        planes
            .filter(|(_, plane)| **plane & mask != 0)
            .fold(0, |count, (bit, _)| count | 1 << bit)
    }

    /// The planes of a group, the lowest first.
    fn planes(&self, group: usize) -> impl DoubleEndedIterator<Item = &u64> {
        let high = self.high.get(group).map_or(&[][..], |high| &high.0);
        let high = &high[..self.used.saturating_sub(PLANES).min(high.len())];
        let low = &self.low[group].0[..self.used.min(PLANES)];
        low.iter().chain(high)
    }

    /// One more; the largest count stays as it is.
    pub(crate) fn increment(&mut self, index: ChunkIndex) {
        let (group, mask) = place(index);
        for (bit, plane) in self.low[group].0.iter_mut().enumerate() {
            *plane ^= mask;
            if *plane & mask != 0 {
                self.used = self.used.max(bit + 1);
                return;
            }
        }
        if self.high.is_empty() {
            self.high = vec![Group::default(); self.low.len()].into();
        }
        for (bit, plane) in self.high[group].0.iter_mut().enumerate() {
            *plane ^= mask;
            if *plane & mask != 0 {
                self.used = self.used.max(PLANES + bit + 1);
                return;
            }
        }
        // All ones became all zeros.
        let planes = self.low[group].0.iter_mut();
        planes
            .chain(&mut self.high[group].0)
            .for_each(|plane| *plane |= mask);
    }

    /// One less; zero stays as it is.
    pub(crate) fn decrement(&mut self, index: ChunkIndex) {
        let (group, mask) = place(index);
        if self.of(index) == 0 {
            return;
        }
        let high = self
            .high
            .get_mut(group)
            .map_or(&mut [][..], |high| &mut high.0);
        for plane in self.low[group].0.iter_mut().chain(high) {
            *plane ^= mask;
            if *plane & mask == 0 {
                return;
            }
        }
    }

    /// The smallest count among the chunks in `set`, and those that have it, unless it is above `most`.
    /// `set` is not empty: bit `i` is chunk `64 * group + i`. The highest planes come first, so what is
    /// far above is found out at once.
    #[inline]
    pub(crate) fn rarest(&self, group: usize, set: u64, most: u16) -> Option<(u16, u64)> {
        let (mut fewest, mut rarest) = (0, set);
        if self.used > PLANES
            && let Some(high) = self.high.get(group)
        {
            let planes = &high.0[..self.used - PLANES];
            sift(planes, PLANES, &mut fewest, &mut rarest, most)?;
        }
        let planes = &self.low[group].0[..self.used.min(PLANES)];
        sift(planes, 0, &mut fewest, &mut rarest, most)?;
        Some((fewest, rarest))
    }
}

/// Keeps those of `rarest` that have the fewest in these planes, of which the first stands for bit
/// `first`; nothing if that makes more than `most`.
#[inline]
fn sift(planes: &[u64], first: usize, fewest: &mut u16, rarest: &mut u64, most: u16) -> Option<()> {
    for (bit, plane) in planes.iter().enumerate().rev() {
        let below = *rarest & !plane;
        if below != 0 {
            *rarest = below;
            continue;
        }
        *fewest |= 1 << (first + bit);
        if *fewest > most {
            return None;
        }
    }
    Some(())
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
