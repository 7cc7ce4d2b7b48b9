//! Where images lie: published copies on the seed, the image being assembled on a node.
//!
//! | | [`FileStore`] | [`ChunkStore`] |
//! |---|---|---|
//! | what | a whole published copy | an image that is being fetched |
//! | who | the seed | a node (on tmpfs), `fetch` (on disk) |
//! | written | never | with verified chunks, and with pieces that count for nothing until all of their chunk are verified |
//!
//! Both map the file and hand out slices of the map: a chunk on its way to a peer is never copied,
//! and on a node there is one copy of the image in RAM, the one that is mounted.
//!
//! Which chunk is wanted, and what a full or damaged store means for the boot, is decided by the
//! callers. All of this blocks on the file: from async code call what is said to read or verify
//! much (`create`, `resume`, `verify`, `sync`) on a thread for blocking work.

mod file;
mod map;
mod place;
mod ram;
mod scan;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rootswarm_image::{ChunkIndex, ImageId};

pub use file::FileStore;
pub use place::{Arriving, Ended, Took};
pub use ram::{ChunkStore, Written};

/// What is read, hashed and written in one go. A chunk that is longer is never in memory as a whole.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Whatever chunks can be read from.
pub trait ChunkSource: Send + Sync {
    /// The chunk, if it is here. No copy; keeping the slice keeps the file mapped.
    fn chunk(&self, index: ChunkIndex) -> Option<Bytes>;
}

/// Why a store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The image does not fit.
    #[error(
        "no room for the image: {path} needs {needed_bytes} bytes, its file system has \
         {available_bytes} left"
    )]
    NoSpace {
        /// The file that was to hold it.
        path: PathBuf,
        /// The length of the image, less what was there already.
        needed_bytes: u64,
        /// What the file system said after the failure.
        available_bytes: u64,
    },
    /// The file is not this image: it has another length.
    #[error(
        "{path} has {found_bytes} bytes, the image has {expected_bytes}: it is damaged or another image"
    )]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The image's length.
        expected_bytes: u64,
        /// The file's length.
        found_bytes: u64,
    },
    /// Another process is assembling an image in this file.
    #[error("{path} is being written by another process: wait for it, or choose another file")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// Some chunk does not have the hash it should have.
    #[error("{path} is damaged: {damaged} of {chunks} chunks, the first is chunk {first}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The first damaged chunk.
        first: ChunkIndex,
        /// How many are damaged.
        damaged: u32,
        /// How many there are.
        chunks: u32,
    },
    /// The whole was to be verified before it was there.
    #[error("{path} is not complete: {have} of {chunks} chunks")]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// How many chunks it holds.
        have: u32,
        /// How many there are.
        chunks: u32,
    },
    /// A chunk of another image.
    #[error("chunk {index} of image {found} does not belong into image {expected}")]
    OtherImage {
        /// The chunk.
        index: ChunkIndex,
        /// The image of this store.
        expected: ImageId,
        /// The image that the chunk was verified against.
        found: ImageId,
    },
}

impl StoreError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io {
            action,
            path,
            source,
        }
    }
}

#[cfg(test)]
mod tests;
