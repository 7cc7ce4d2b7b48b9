//! The gate between bytes that came from somewhere and bytes of the image.
//!
//! [`VerifiedChunk`] has no constructor but [`Verifier::verify`], and stores accept nothing else:
//! writing unverified bytes does not compile.

use std::fmt;
use std::sync::Arc;

use crate::tree;
use crate::{ChunkIndex, ImageId, Manifest};

/// Checks chunks against the manifest of one image. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier {
    manifest: Arc<Manifest>,
}

/// Bytes that are not the chunk they were said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The image ends before it.
    #[error("chunk {index} does not exist: expected an index below {count}")]
    NoSuchChunk {
        /// The index that was given.
        index: ChunkIndex,
        /// The chunks the image has.
        count: u32,
    },
    /// Too few or too many bytes.
    #[error("chunk {index} has {found} bytes: expected {expected}")]
    Length {
        /// The chunk.
        index: ChunkIndex,
        /// Its length in the image.
        expected: u32,
        /// The bytes that were given.
        found: usize,
    },
    /// The right number of wrong bytes.
    #[error("chunk {index}: hash mismatch: expected {}, found {}",
        ImageId::from_bytes(*.expected), ImageId::from_bytes(*.found))]
    HashMismatch {
        /// The chunk.
        index: ChunkIndex,
        /// Its hash in the manifest.
        expected: [u8; 32],
        /// The hash of the bytes that were given.
        found: [u8; 32],
    },
}

impl Verifier {
    /// A verifier of the chunks of this image.
    pub fn new(manifest: Arc<Manifest>) -> Verifier {
        Verifier { manifest }
    }

    /// The manifest that is verified against.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Takes `bytes` for chunk `index` of the image if their hash says so. About 40 µs for
    /// 256 KiB.
    ///
    /// `B` must go on giving the same bytes (a `Vec` and `bytes::Bytes` do; a file mapping that
    /// others write to does not).
    pub fn verify<B: AsRef<[u8]>>(
        &self,
        index: ChunkIndex,
        bytes: B,
    ) -> Result<VerifiedChunk<B>, ChunkError> {
        let geometry = self.manifest.geometry();
        if !geometry.contains(index) {
            return Err(ChunkError::NoSuchChunk {
                index,
                count: geometry.chunk_count(),
            });
        }
        let slice = bytes.as_ref();
        let expected = geometry.chunk_len(index);
        if slice.len() != expected as usize {
            return Err(ChunkError::Length {
                index,
                expected,
                found: slice.len(),
            });
        }
        self.compare(index, tree::chunk_hash(geometry, index, slice))?;
        Ok(VerifiedChunk {
            image: *self.manifest.id(),
            index,
            bytes,
        })
    }

    /// The same for a chunk whose bytes come one piece after the other, so that memory does not grow
    /// with its size.
    ///
    /// # Errors
    /// The image has no such chunk.
    pub fn begin(&self, index: ChunkIndex) -> Result<GrowingChunk, ChunkError> {
        let geometry = self.manifest.geometry();
        if !geometry.contains(index) {
            return Err(ChunkError::NoSuchChunk {
                index,
                count: geometry.chunk_count(),
            });
        }
        Ok(GrowingChunk {
            hasher: tree::ChunkHasher::new(geometry, index),
            verifier: self.clone(),
            index,
            found: 0,
        })
    }

    fn compare(&self, index: ChunkIndex, found: [u8; 32]) -> Result<(), ChunkError> {
        let expected = *self.manifest.chunk_hash(index);
        match found == expected {
            true => Ok(()),
            false => Err(ChunkError::HashMismatch {
                index,
                expected,
                found,
            }),
        }
    }
}

/// The beginning of a chunk. It remembers a hash and no bytes: whoever keeps them elsewhere gives each
/// piece to both, the same bytes in the same order.
#[derive(Clone, Debug)]
pub struct GrowingChunk {
    verifier: Verifier,
    index: ChunkIndex,
    hasher: tree::ChunkHasher,
    found: usize,
}

impl GrowingChunk {
    /// Takes the next bytes.
    pub fn push(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.found += piece.len();
    }

    /// Whether all bytes so far, in their order, are the chunk.
    ///
    /// # Errors
    /// They are not.
    pub fn finish(&self) -> Result<(), ChunkError> {
        let (index, found) = (self.index, self.found);
        let expected = self.verifier.manifest.geometry().chunk_len(index);
        if found != expected as usize {
            return Err(ChunkError::Length {
                index,
                expected,
                found,
            });
        }
        self.verifier.compare(index, self.hasher.finish())
    }
}

/// A chunk whose bytes were found to be those of the image.
///
/// Only a [`Verifier`] makes one:
///
/// ```compile_fail,E0451
/// use rootswarm_image::{ChunkIndex, ImageId, VerifiedChunk};
///
/// let image = ImageId::from_bytes([0; 32]);
/// let forged = VerifiedChunk { image, index: ChunkIndex(0), bytes: b"never checked" };
/// ```
#[derive(Clone)]
pub struct VerifiedChunk<B> {
    image: ImageId,
    index: ChunkIndex,
    bytes: B,
}

impl<B> VerifiedChunk<B> {
    /// The image it belongs to. A store refuses the chunks of another one.
    pub fn image(&self) -> &ImageId {
        &self.image
    }

    /// Which chunk it is.
    pub fn index(&self) -> ChunkIndex {
        self.index
    }

    /// Gives up the proof and keeps the bytes.
    pub fn into_bytes(self) -> B {
        self.bytes
    }
}

impl<B: AsRef<[u8]>> VerifiedChunk<B> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B: AsRef<[u8]>> fmt::Debug for VerifiedChunk<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedChunk")
            .field("index", &self.index)
            .field("len", &self.bytes().len())
            .finish_non_exhaustive()
    }
}
