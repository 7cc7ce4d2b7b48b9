//! The BLAKE3 tree between the chunks and the id of an image.
//!
//! BLAKE3 hashes a file as a binary tree. Because a chunk of ours is a power of two of bytes and
//! starts at a multiple of its size, it is a whole subtree, and its chaining value can be computed
//! from its bytes and its offset alone, by any node and in any order. Merging the chaining values
//! as BLAKE3 itself would gives the hash of the file, bit for bit what `b3sum` prints.
//!
//! One exception is BLAKE3's own: the root of the tree is finalised differently from the inner
//! nodes. An image of a single chunk *is* its root, so its only chunk hash is the plain hash.
//!
//! Reading files and using several cores is left to `hash`.

use blake3::Hasher;
use blake3::hazmat::{
    HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};

use crate::{ChunkIndex, Geometry, ImageId};

/// What a chunk hashes to: 32 bytes that depend on the bytes of the chunk and on where it lies.
pub(crate) type ChunkHash = [u8; 32];

/// Hashes one chunk. `bytes` must be exactly the chunk: its length is the caller's check.
pub(crate) fn chunk_hash(geometry: &Geometry, index: ChunkIndex, bytes: &[u8]) -> ChunkHash {
    debug_assert_eq!(bytes.len(), geometry.chunk_len(index) as usize);
    let mut hasher = ChunkHasher::new(geometry, index);
    hasher.update(bytes);
    hasher.finish()
}

/// Hashes one chunk as its bytes come, in pieces of any length: nobody has to hold a whole one.
#[derive(Clone, Debug)]
pub(crate) struct ChunkHasher {
    hasher: Hasher,
    is_root: bool,
}

impl ChunkHasher {
    pub(crate) fn new(geometry: &Geometry, index: ChunkIndex) -> ChunkHasher {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(geometry.offset(index));
        ChunkHasher {
            hasher,
            is_root: geometry.chunk_count() == 1,
        }
    }

    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
    }

    /// The hash of what was given, which must have been exactly the chunk.
    pub(crate) fn finish(&self) -> ChunkHash {
        match self.is_root {
            true => *self.hasher.finalize().as_bytes(),
            false => self.hasher.finalize_non_root(),
        }
    }
}

/// Merges all chunk hashes of an image into its id.
///
/// There must be as many as the image has chunks, which is the caller's check.
pub(crate) fn merge(geometry: &Geometry, hashes: &[ChunkHash]) -> ImageId {
    debug_assert_eq!(hashes.len(), geometry.chunk_count() as usize);
    let root = match hashes {
        [] => *blake3::hash(&[]).as_bytes(),
        [only] => *only,
        several => {
            let (left, right) = children(geometry, several, geometry.length());
            *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
        }
    };
    ImageId::from_bytes(root)
}

/// The two children of the subtree over `length` bytes that these hashes, two or more, cover.
fn children(geometry: &Geometry, hashes: &[ChunkHash], length: u64) -> (ChunkHash, ChunkHash) {
    // The left child is the largest power of two below the length: with two chunks or more, a
    // whole number of chunks, at least one and less than all of them.
    let left_length = left_subtree_len(length);
    let (left, right) = hashes.split_at((left_length >> geometry.chunk_size().log2()) as usize);
    (
        subtree(geometry, left, left_length),
        subtree(geometry, right, length - left_length),
    )
}

/// Recurses at most log2(`MAX_CHUNK_COUNT`) = 16 deep.
fn subtree(geometry: &Geometry, hashes: &[ChunkHash], length: u64) -> ChunkHash {
    match hashes {
        [only] => *only,
        several => {
            let (left, right) = children(geometry, several, length);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}
