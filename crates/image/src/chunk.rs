//! The two numbers a chunk is known by: its index in the image, and the size all chunks share.
//!
//! Where a chunk lies in a given image is [`Geometry`](crate::Geometry)'s business.

use std::fmt;

use crate::limits::{
    DEFAULT_CHUNK_SIZE_LOG2, MAX_CHUNK_SIZE_LOG2, MIN_CHUNK_SIZE_LOG2, TARGET_CHUNK_COUNT,
};

/// The number of a chunk in its image, from 0. Not a byte offset and not a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u32);

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of every chunk of an image but the last: a power of two from 64 KiB to 16 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize {
    log2: u8,
}

/// A chunk size that is not a power of two from 64 KiB to 16 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkSizeError {
    /// The exponent is out of range.
    #[error(
        "chunk size 2^{found} bytes: expected 2^{MIN_CHUNK_SIZE_LOG2} to 2^{MAX_CHUNK_SIZE_LOG2}"
    )]
    Log2 {
        /// The exponent that was found.
        found: u8,
    },
    /// The size is no power of two, or out of range.
    #[error(
        "chunk size {found} bytes: expected a power of two from {} to {}",
        1_u64 << MIN_CHUNK_SIZE_LOG2,
        1_u64 << MAX_CHUNK_SIZE_LOG2
    )]
    Bytes {
        /// The size that was found.
        found: u64,
    },
}

impl ChunkSize {
    /// 64 KiB.
    pub const MIN: ChunkSize = ChunkSize {
        log2: MIN_CHUNK_SIZE_LOG2,
    };
    /// 16 MiB.
    pub const MAX: ChunkSize = ChunkSize {
        log2: MAX_CHUNK_SIZE_LOG2,
    };
    /// 128 KiB, the size for images up to 256 MiB.
    pub const DEFAULT: ChunkSize = ChunkSize {
        log2: DEFAULT_CHUNK_SIZE_LOG2,
    };

    /// The chunk size of 2^`log2` bytes.
    pub const fn from_log2(log2: u8) -> Result<ChunkSize, ChunkSizeError> {
        if log2 < MIN_CHUNK_SIZE_LOG2 || log2 > MAX_CHUNK_SIZE_LOG2 {
            return Err(ChunkSizeError::Log2 { found: log2 });
        }
        Ok(ChunkSize { log2 })
    }

    /// The chunk size of `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Result<ChunkSize, ChunkSizeError> {
        if !bytes.is_power_of_two()
            || bytes < ChunkSize::MIN.bytes()
            || bytes > ChunkSize::MAX.bytes()
        {
            return Err(ChunkSizeError::Bytes { found: bytes });
        }
        // A power of two up to 2^24: its exponent fits.
        Ok(ChunkSize {
            log2: bytes.trailing_zeros() as u8,
        })
    }

    /// The chunk size an image of `length` bytes is published with: the smallest from 128 KiB up
    /// that makes at most 2,048 chunks of it, and 16 MiB for what is longer than 32 GiB.
    ///
    /// | length up to | chunk size | chunks   |
    /// |--------------|------------|----------|
    /// | 256 MiB      | 128 KiB    | ≤ 2,048  |
    /// | 512 MiB      | 256 KiB    | ≤ 2,048  |
    /// | 1 GiB        | 512 KiB    | ≤ 2,048  |
    /// | 2 GiB        | 1 MiB      | ≤ 2,048  |
    /// | 4 GiB        | 2 MiB      | ≤ 2,048  |
    /// | 8 GiB        | 4 MiB      | ≤ 2,048  |
    /// | 16 GiB       | 8 MiB      | ≤ 2,048  |
    /// | 32 GiB       | 16 MiB     | ≤ 2,048  |
    /// | 64 GiB       | 16 MiB     | ≤ 4,096  |
    /// | 1 TiB        | 16 MiB     | ≤ 65,536, the most there may be |
    ///
    /// Both halves of the rule are [`limits`](crate::limits): small chunks spread early, since a
    /// node can pass on only what it has whole; few chunks keep bitfields, manifests and the
    /// scheduler's loops small.
    pub const fn for_length(length: u64) -> ChunkSize {
        let mut log2 = DEFAULT_CHUNK_SIZE_LOG2;
        while log2 < MAX_CHUNK_SIZE_LOG2 && length > TARGET_CHUNK_COUNT << log2 {
            log2 += 1;
        }
        ChunkSize { log2 }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.log2
    }

    /// The exponent: the size is 2^`log2` bytes.
    pub const fn log2(self) -> u8 {
        self.log2
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.log2 {
            log2 @ 20.. => write!(f, "{} MiB", 1 << (log2 - 20)),
            log2 => write!(f, "{} KiB", 1 << (log2 - 10)),
        }
    }
}
