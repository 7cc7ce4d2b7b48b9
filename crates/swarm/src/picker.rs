//! Which chunk next: the piece picker. Rarest first among what a peer can give.
//!
//! It knows what this node holds, what is under way, and how many neighbours announced each
//! chunk. It does not know peers: the caller brings the bit field of the one it wants to ask.

use crate::replicas::Replicas;
use crate::rng::Rng;
use rootswarm_image::{Bitfield, ChunkIndex};

/// So many degrees of rarity are tried one after the other before all chunks are compared at once.
const RARITIES_TRIED: usize = 3;

/// The state of every chunk of one image on one node.
#[derive(Debug)]
pub(crate) struct Picker {
    have: Bitfield,
    in_flight: Bitfield,
    /// Neighbours, seeds not counted, that announced each chunk.
    replicas: Replicas,
    /// Chunks that a reader waits for, in its order: these go before anything else.
    wanted: Vec<ChunkIndex>,
}

impl Picker {
    pub(crate) fn new(have: Bitfield) -> Self {
        let chunks = have.len();
        Self {
            have,
            in_flight: Bitfield::new(chunks),
            replicas: Replicas::new(chunks),
            wanted: Vec::new(),
        }
    }

    /// The set of all chunks; it shares this node's own once that is complete.
    pub(crate) fn everything(&self) -> Bitfield {
        match self.have.is_full() {
            true => self.have.clone(),
            false => Bitfield::full(self.have.len()),
        }
    }

    pub(crate) fn have(&self) -> &Bitfield {
        &self.have
    }

    pub(crate) fn has(&self, index: ChunkIndex) -> bool {
        self.have.get(index)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.have.is_full()
    }

    /// Whether every missing chunk is under way: the endgame.
    pub(crate) fn nothing_left_to_ask(&self) -> bool {
        self.have.count() + self.in_flight.count() >= self.have.len()
    }

    pub(crate) fn replicas(&self, index: ChunkIndex) -> u16 {
        self.replicas.of(index)
    }

    /// A neighbour announced the chunk.
    pub(crate) fn announced(&mut self, index: ChunkIndex) {
        self.replicas.increment(index);
    }

    /// A neighbour that had announced the chunk is gone. Says whether it was the last.
    pub(crate) fn withdrawn(&mut self, index: ChunkIndex) -> bool {
        self.replicas.decrement(index);
        self.replicas.of(index) == 0
    }

    pub(crate) fn begin(&mut self, index: ChunkIndex) {
        self.in_flight.set(index);
    }

    pub(crate) fn abandon(&mut self, index: ChunkIndex) {
        self.in_flight.clear(index);
    }

    /// The chunk is held now. Says whether that is news.
    pub(crate) fn complete(&mut self, index: ChunkIndex) -> bool {
        self.in_flight.clear(index);
        self.wanted.retain(|wanted| *wanted != index);
        let news = !self.have.get(index);
        self.have.set(index);
        news
    }

    /// A reader waits for the chunk.
    pub(crate) fn want(&mut self, index: ChunkIndex) {
        if !self.has(index) && !self.wanted.contains(&index) {
            self.wanted.push(index);
        }
    }

    /// What to ask of a peer that holds `theirs`: a chunk that a reader waits for, or else the
    /// one with the fewest replicas, ties broken by chance (Cohen, "Incentives Build Robustness
    /// in BitTorrent", 2003).
    pub(crate) fn pick(&self, theirs: &Bitfield, rng: &mut Rng) -> Option<ChunkIndex> {
        let free = |index: &&ChunkIndex| theirs.get(**index) && !self.in_flight.get(**index);
        if let Some(wanted) = self.wanted.iter().find(free) {
            return Some(*wanted);
        }
        let mut best: Option<(u16, ChunkIndex)> = None;
        let mut ties = 0usize;
        for (position, word) in self.candidates(theirs) {
            if word == 0 {
                continue;
            }
            let fewest = best.map_or(u16::MAX, |(fewest, _)| fewest);
            let Some((replicas, rarest)) = self.replicas.rarest(position, word, fewest) else {
                continue;
            };
            if replicas < fewest {
                ties = 0;
            }
            // One of all ties, each as likely: of those in this word, if it is drawn before those
            // of the words before it.
            let here = rarest.count_ones() as usize;
            ties += here;
            let draw = rng.below(ties);
            if draw < here {
                let bit = nth_one(rarest, draw);
                best = Some((replicas, ChunkIndex(position as u32 * 64 + bit)));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Whether the chunk is neither held nor under way.
    pub(crate) fn needs(&self, index: ChunkIndex) -> bool {
        !self.have.get(index) && !self.in_flight.get(index)
    }

    /// The rarest of the chunks that are held here and that are missing in at least one of `fields`.
    ///
    /// What is rarest here is nearly always missing somewhere. So the rarest are looked for first, and
    /// then in the fields, of which then only a few words are read: they are what is not in a cache.
    pub(crate) fn rarest_lacked(&self, fields: &[&Bitfield]) -> Rarest {
        let mut rest = self.have.words().to_vec();
        for _ in 0..RARITIES_TRIED {
            let mut rarest = self.rarest_of(&rest);
            for (position, ties) in &rarest.words {
                rest[*position] &= !ties;
            }
            rarest.keep_lacked(fields);
            if !rarest.words.is_empty() {
                return rarest;
            }
        }
        let mut held_by_all = vec![u64::MAX; rest.len()];
        for field in fields {
            for (all, word) in held_by_all.iter_mut().zip(field.words()) {
                *all &= word;
            }
        }
        for (rest, all) in rest.iter_mut().zip(held_by_all) {
            *rest &= !all;
        }
        self.rarest_of(&rest)
    }

    /// The rarest of these chunks.
    fn rarest_of(&self, chunks: &[u64]) -> Rarest {
        let mut found = Rarest {
            replicas: u16::MAX,
            words: Vec::new(),
        };
        for (position, chunks) in chunks.iter().copied().enumerate() {
            if chunks == 0 {
                continue;
            }
            if let Some((replicas, ties)) = self.replicas.rarest(position, chunks, found.replicas) {
                if replicas < found.replicas {
                    found.replicas = replicas;
                    found.words.clear();
                }
                found.words.push((position, ties));
            }
        }
        found
    }

    /// Whether a chunk is held here and missing in `theirs`.
    pub(crate) fn lacks_any(&self, theirs: &Bitfield) -> bool {
        self.lacking(theirs).next().is_some()
    }

    /// Up to `count` of those chunks, rarest first; ties fall as `salt` has it.
    pub(crate) fn rarest_lacking(
        &self,
        theirs: &Bitfield,
        count: usize,
        salt: u32,
    ) -> Vec<ChunkIndex> {
        let mut rarest: Vec<(u16, u32, ChunkIndex)> = Vec::with_capacity(count + 1);
        for (position, mut word) in self.lacking(theirs) {
            while word != 0 {
                let is_full = rarest.len() == count;
                let last = rarest.last().filter(|_| is_full);
                let most = last.map_or(u16::MAX, |last| last.0);
                let Some((replicas, ties)) = self.replicas.rarest(position, word, most) else {
                    break;
                };
                word &= !ties;
                let mut rest = ties;
                while rest != 0 {
                    let index = ChunkIndex(position as u32 * 64 + rest.trailing_zeros());
                    rest &= rest - 1;
                    // Multiplicative hashing (Knuth, TAOCP 3, 6.4): as good as a shuffle, without
                    // one.
                    let tie = (index.0 ^ salt).wrapping_mul(0x9e37_79b1);
                    let entry = (replicas, tie, index);
                    let place = rarest.partition_point(|other| *other < entry);
                    if place < count {
                        rarest.insert(place, entry);
                        rarest.truncate(count);
                    }
                }
            }
        }
        rarest.into_iter().map(|(_, _, index)| index).collect()
    }

    /// The words, with their positions, of the chunks that are held here and missing in `theirs`, where
    /// there are any.
    fn lacking<'a>(&'a self, theirs: &'a Bitfield) -> impl Iterator<Item = (usize, u64)> + 'a {
        let words = self.have.words().iter().zip(theirs.words());
        words
            .map(|(mine, theirs)| mine & !theirs)
            .enumerate()
            .filter(|(_, word)| *word != 0)
    }

    fn candidates<'a>(&'a self, theirs: &'a Bitfield) -> impl Iterator<Item = (usize, u64)> + 'a {
        let mine = self.have.words().iter().zip(self.in_flight.words());
        theirs
            .words()
            .iter()
            .zip(mine)
            .map(|(theirs, (have, in_flight))| theirs & !have & !in_flight)
            .enumerate()
    }
}

/// Chunks that are equally rare.
#[derive(Debug)]
pub(crate) struct Rarest {
    replicas: u16,
    /// Where they are, and which of the 64 there.
    words: Vec<(usize, u64)>,
}

impl Rarest {
    /// Keeps those that are missing in at least one of `fields`.
    fn keep_lacked(&mut self, fields: &[&Bitfield]) {
        self.words.retain_mut(|(position, ties)| {
            let words = fields.iter().map(|field| field.words()[*position]);
            *ties &= !words.fold(u64::MAX, |all, word| all & word);
            *ties != 0
        });
    }

    /// Whether at least one of them is missing in `field`.
    pub(crate) fn is_lacked_in(&self, field: &Bitfield) -> bool {
        self.words
            .iter()
            .any(|(position, ties)| ties & !field.words()[*position] != 0)
    }
}

/// The position of a word's `number`th one, counted from 0, of which it has more than that.
fn nth_one(word: u64, number: usize) -> u32 {
    (0..number)
        .fold(word, |rest, _| rest & rest.wrapping_sub(1))
        .trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn bits(set: &[bool]) -> Bitfield {
        let mut bits = Bitfield::new(set.len() as u32);
        for (index, _) in set.iter().enumerate().filter(|(_, set)| **set) {
            bits.set(ChunkIndex(index as u32));
        }
        bits
    }

    proptest! {
        /// Against the definition: the pick is held by the peer, missing here, not under way,
        /// and none such has fewer replicas.
        #[test]
        fn picks_a_rarest(
            chunks in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u16..4), 1..300),
            seed in any::<u64>(),
        ) {
            let column = |pick: fn(&(bool, bool, bool, u16)) -> bool| chunks.iter().map(pick).collect::<Vec<_>>();
            let mut picker = Picker::new(bits(&column(|c| c.0)));
            for (index, chunk) in chunks.iter().enumerate() {
                (0..chunk.3).for_each(|_| picker.announced(ChunkIndex(index as u32)));
                if chunk.1 && !chunk.0 {
                    picker.begin(ChunkIndex(index as u32));
                }
            }
            let theirs = bits(&column(|c| c.2));
            let fewest = chunks.iter().filter(|c| !c.0 && !c.1 && c.2).map(|c| c.3).min();
            let picked = picker.pick(&theirs, &mut Rng::new(seed));
            match picked {
                None => prop_assert_eq!(fewest, None),
                Some(index) => {
                    let chunk = chunks[index.0 as usize];
                    prop_assert!(!chunk.0 && !chunk.1 && chunk.2);
                    prop_assert_eq!(Some(chunk.3), fewest);
                }
            }
        }
    }

    proptest! {
        /// Against the definition: held here, missing in the other field, and nothing that is left out
        /// has fewer replicas.
        #[test]
        fn lacks_the_rarest(
            chunks in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u16..4), 1..300),
            salt in any::<u32>(),
        ) {
            let mut picker = Picker::new(bits(&chunks.iter().map(|c| c.0).collect::<Vec<_>>()));
            for (index, chunk) in chunks.iter().enumerate() {
                (0..chunk.3).for_each(|_| picker.announced(ChunkIndex(index as u32)));
            }
            let fields = [bits(&chunks.iter().map(|c| c.1).collect::<Vec<_>>()), bits(&chunks.iter().map(|c| c.2).collect::<Vec<_>>())];
            let lacks = |field: usize, c: &(bool, bool, bool, u16)| c.0 && ![c.1, c.2][field];
            let fewest = |fields: &[usize]| chunks.iter().filter(|c| fields.iter().any(|field| lacks(*field, c))).map(|c| c.3).min();

            let rarest = picker.rarest_lacked(&fields.iter().collect::<Vec<_>>());
            for (field, theirs) in fields.iter().enumerate() {
                let expected = fewest(&[field]).is_some() && fewest(&[field]) == fewest(&[0, 1]);
                prop_assert_eq!(rarest.is_lacked_in(theirs), expected);

                let mut expected: Vec<u16> = chunks.iter().filter(|c| lacks(field, c)).map(|c| c.3).collect();
                expected.sort_unstable();
                prop_assert_eq!(picker.lacks_any(theirs), !expected.is_empty());
                let found = picker.rarest_lacking(theirs, 3, salt);
                let replicas: Vec<u16> = found.iter().map(|index| chunks[index.0 as usize].3).collect();
                prop_assert_eq!(&replicas[..], &expected[..expected.len().min(3)]);
                for index in &found {
                    prop_assert!(lacks(field, &chunks[index.0 as usize]));
                }
                let distinct: std::collections::BTreeSet<_> = found.iter().collect();
                prop_assert_eq!(distinct.len(), found.len());
            }
        }
    }

    #[test]
    fn ties_are_spread_evenly() {
        let picker = Picker::new(Bitfield::new(4));
        let mut rng = Rng::new(1);
        let mut hits = [0; 4];
        for _ in 0..4000 {
            hits[picker.pick(&Bitfield::full(4), &mut rng).unwrap().0 as usize] += 1;
        }
        assert!(
            hits.iter().all(|hits| (900..1100).contains(hits)),
            "{hits:?}"
        );
    }

    #[test]
    fn a_waiting_reader_goes_first() {
        let mut picker = Picker::new(Bitfield::new(10));
        (0..3).for_each(|_| picker.announced(ChunkIndex(7)));
        picker.want(ChunkIndex(7));
        let mut rng = Rng::new(1);
        assert_eq!(
            picker.pick(&Bitfield::full(10), &mut rng),
            Some(ChunkIndex(7))
        );
        picker.begin(ChunkIndex(7));
        assert_ne!(
            picker.pick(&Bitfield::full(10), &mut rng),
            Some(ChunkIndex(7))
        );
        picker.abandon(ChunkIndex(7));
        assert!(picker.complete(ChunkIndex(7)));
        assert!(!picker.complete(ChunkIndex(7)));
        assert!(picker.wanted.is_empty());
    }
}
