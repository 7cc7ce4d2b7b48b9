//! A set of chunks, one bit each.
//!
//! The scheduler asks it millions of times a second, so it is an array of words with a running
//! count: a question about one chunk is a shift and a mask, `count` and `is_full` are reads, and
//! the iterators skip 64 chunks at a time where there is nothing to find.
//!
//! Which set of chunks it is (had, wanted, in flight) is for its user to know.

use std::fmt;
use std::sync::Arc;

use crate::ChunkIndex;

/// A set of the chunks of an image of `len` chunks.
///
/// An index that is not below `len` is in no set: [`get`](Bitfield::get) says `false` and
/// [`set`](Bitfield::set) does nothing, so an index from the network cannot do harm here. It is
/// still the caller's bug not to have refused it, and debug builds assert so in `set` and `clear`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bitfield {
    len: u32,
    count: u32,
    /// Bit `i % 64` of word `i / 64` is chunk `i`. Bits from `len` on are 0, always. Shared with clones
    /// until one of them changes: a seed knows ten thousand nodes that have nothing, or everything.
    words: Arc<[u64]>,
}

/// Bytes that are no bitfield of the given length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitfieldError {
    /// Not one bit for each chunk, rounded up to a byte.
    #[error("bitfield has {found} bytes: expected {expected} for {len} chunks")]
    Length {
        /// The chunks it should be about.
        len: u32,
        /// The bytes that takes.
        expected: usize,
        /// The bytes there are.
        found: usize,
    },
    /// A bit for a chunk that the image does not have.
    #[error("bitfield has chunk {found}: expected none from {len} on")]
    StrayBit {
        /// The chunks it should be about.
        len: u32,
        /// The first chunk beyond them.
        found: u32,
    },
}

impl Bitfield {
    /// The empty set.
    pub fn new(len: u32) -> Bitfield {
        Bitfield {
            len,
            count: 0,
            words: vec![0; word_count(len)].into(),
        }
    }

    /// The set of all chunks.
    pub fn full(len: u32) -> Bitfield {
        let mut words = vec![u64::MAX; word_count(len)];
        if let Some(last) = words.last_mut() {
            *last = last_word_mask(len);
        }
        Bitfield {
            len,
            count: len,
            words: words.into(),
        }
    }

    /// How many chunks the image has, in the set or not.
    #[allow(
        clippy::len_without_is_empty,
        reason = "`is_empty` here asks for the set"
    )]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Adds a chunk. Whether it is new to the set.
    #[inline]
    pub fn set(&mut self, index: ChunkIndex) -> bool {
        debug_assert!(index.0 < self.len, "chunk {index} of {}", self.len);
        if index.0 >= self.len {
            return false;
        }
        let (word, mask) = place(index);
        let new = self.words[word] & mask == 0;
        if new {
            Arc::make_mut(&mut self.words)[word] |= mask;
            self.count += 1;
        }
        new
    }

    /// Removes a chunk. Whether it was in the set.
    #[inline]
    pub fn clear(&mut self, index: ChunkIndex) -> bool {
        debug_assert!(index.0 < self.len, "chunk {index} of {}", self.len);
        let was = self.get(index);
        if was {
            let (word, mask) = place(index);
            Arc::make_mut(&mut self.words)[word] &= !mask;
            self.count -= 1;
        }
        was
    }

    /// Whether the chunk is in the set.
    #[inline]
    pub fn get(&self, index: ChunkIndex) -> bool {
        let (word, mask) = place(index);
        self.words.get(word).is_some_and(|bits| bits & mask != 0)
    }

    /// How many chunks are in the set.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether no chunk is in the set.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every chunk is in the set. So is the set of the chunks of an empty image.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// The set as words: bit `i % 64` of word `i / 64` is chunk `i`, and bits past the last chunk
    /// are 0.
    #[inline]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds every chunk of `other`, a set for the same image.
    pub fn union_with(&mut self, other: &Bitfield) {
        debug_assert_eq!(self.len, other.len);
        let words = Arc::make_mut(&mut self.words);
        for (mine, theirs) in words.iter_mut().zip(other.words.iter()) {
            *mine |= theirs;
        }
        if let Some(last) = words.last_mut() {
            *last &= last_word_mask(self.len);
        }
        self.count = words.iter().map(|word| word.count_ones()).sum();
    }

    /// The chunks in the set, in order.
    pub fn iter_set(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        ones(self.words.iter().copied())
    }

    /// The chunks of the image that are not in the set, in order.
    pub fn iter_missing(&self) -> impl Iterator<Item = ChunkIndex> + '_ {
        let last = self.words.len().wrapping_sub(1);
        ones(self.words.iter().enumerate().map(move |(word, bits)| {
            let mask = if word == last {
                last_word_mask(self.len)
            } else {
                u64::MAX
            };
            !bits & mask
        }))
    }

    /// The chunks in this set that are not in `other`, in order: what a peer could give us.
    pub fn iter_difference<'a>(
        &'a self,
        other: &'a Bitfield,
    ) -> impl Iterator<Item = ChunkIndex> + 'a {
        debug_assert_eq!(self.len, other.len);
        ones(
            self.words
                .iter()
                .zip(other.words.iter())
                .map(|(mine, theirs)| mine & !theirs),
        )
    }

    /// The set in bytes, as it travels: bit `i % 8` of byte `i / 8` is chunk `i`, and the bits
    /// that fill the last byte are 0.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        bytes.truncate(byte_count(self.len));
        bytes
    }

    /// Reads what [`to_bytes`](Bitfield::to_bytes) wrote, for an image of `len` chunks; refuses
    /// any other number of bytes, before it allocates, and bits past the last chunk.
    pub fn from_bytes(len: u32, bytes: &[u8]) -> Result<Bitfield, BitfieldError> {
        let expected = byte_count(len);
        if bytes.len() != expected {
            return Err(BitfieldError::Length {
                len,
                expected,
                found: bytes.len(),
            });
        }
        let mut set = Bitfield::new(len);
        let words = Arc::make_mut(&mut set.words);
        for (word, part) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..part.len()].copy_from_slice(part);
            *word = u64::from_le_bytes(padded);
            set.count += word.count_ones();
        }
        if let Some(last) = set.words.last() {
            let stray = last & !last_word_mask(len);
            if stray != 0 {
                // A bit of the last word, so there is one, and `len` is not 0.
                let found = (len - 1) / 64 * 64 + stray.trailing_zeros();
                return Err(BitfieldError::StrayBit { len, found });
            }
        }
        Ok(set)
    }
}

impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitfield({} of {})", self.count, self.len)
    }
}

#[inline]
fn place(index: ChunkIndex) -> (usize, u64) {
    ((index.0 / 64) as usize, 1 << (index.0 % 64))
}

fn word_count(len: u32) -> usize {
    len.div_ceil(64) as usize
}

fn byte_count(len: u32) -> usize {
    len.div_ceil(8) as usize
}

/// The bits of the last word that stand for chunks.
fn last_word_mask(len: u32) -> u64 {
    match len % 64 {
        0 => u64::MAX,
        used => (1 << used) - 1,
    }
}

/// The positions of the ones in a sequence of words.
fn ones(words: impl Iterator<Item = u64>) -> impl Iterator<Item = ChunkIndex> {
    Ones {
        words: words.zip(0..),
        word: 0,
        position: 0,
    }
}

struct Ones<I> {
    words: I,
    /// What is left of the word at `position`.
    word: u64,
    position: u32,
}

impl<I: Iterator<Item = (u64, u32)>> Iterator for Ones<I> {
    type Item = ChunkIndex;

    #[inline]
    fn next(&mut self) -> Option<ChunkIndex> {
        while self.word == 0 {
            (self.word, self.position) = self.words.next()?;
        }
        let lowest = self.word.trailing_zeros();
        // Drops the lowest one.
        self.word &= self.word - 1;
        Some(ChunkIndex(self.position * 64 + lowest))
    }
}
