//! How an image is cut: which bytes are chunk 17, and how many chunks there are.
//!
//! Arithmetic only; what the bytes hash to is in `tree`.

use crate::limits::MAX_CHUNK_COUNT;
use crate::{ChunkIndex, ChunkSize};

/// The length of an image and the size of its chunks: all of them are full but the last, which
/// holds the rest and is never empty. An image of length 0 has no chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    length: u64,
    chunk_size: ChunkSize,
    chunk_count: u32,
}

/// An image that cannot be cut with the given chunk size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// More chunks than any image may have.
    #[error(
        "image of {length} bytes in chunks of {chunk_size} has {found} chunks: expected at most \
         {MAX_CHUNK_COUNT} (use larger chunks)"
    )]
    TooManyChunks {
        /// The length of the image in bytes.
        length: u64,
        /// The size of its chunks.
        chunk_size: ChunkSize,
        /// The chunks it would have.
        found: u64,
    },
}

impl Geometry {
    /// Cuts an image of `length` bytes into chunks of `chunk_size`.
    pub const fn new(length: u64, chunk_size: ChunkSize) -> Result<Geometry, GeometryError> {
        let count = length.div_ceil(chunk_size.bytes());
        if count > MAX_CHUNK_COUNT as u64 {
            return Err(GeometryError::TooManyChunks {
                length,
                chunk_size,
                found: count,
            });
        }
        // At most MAX_CHUNK_COUNT: it fits.
        Ok(Geometry {
            length,
            chunk_size,
            chunk_count: count as u32,
        })
    }

    /// The length of the image in bytes.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The size of every chunk but the last.
    pub const fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// How many chunks there are.
    pub const fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// The bytes in this chunk; 0 if the image has no such chunk.
    pub const fn chunk_len(&self, index: ChunkIndex) -> u32 {
        let rest = self.length.saturating_sub(self.offset(index));
        let full = self.chunk_size.bytes();
        // A chunk is at most 2^24 bytes: it fits.
        (if rest < full { rest } else { full }) as u32
    }

    /// Where this chunk begins, in bytes from the start of the image.
    ///
    /// Cannot overflow, whatever the index: 2^32 chunks of 2^24 bytes are 2^56.
    pub const fn offset(&self, index: ChunkIndex) -> u64 {
        (index.0 as u64) << self.chunk_size.log2()
    }

    /// Whether the image has such a chunk.
    pub const fn contains(&self, index: ChunkIndex) -> bool {
        index.0 < self.chunk_count
    }

    /// All chunks, in order.
    pub fn indices(
        &self,
    ) -> impl ExactSizeIterator<Item = ChunkIndex> + DoubleEndedIterator + use<> {
        (0..self.chunk_count as usize).map(|index| ChunkIndex(index as u32))
    }
}
