//! The manifest of an image: its length, the size of its chunks, and the hash of each chunk.
//!
//! A manifest proves itself: its hashes merge into the id of the image. So [`Manifest::decode`]
//! takes bytes from anybody, and the id from somebody trusted.

use crate::codec::{self, MANIFEST_VERSION, ManifestHeader};
use crate::limits::{HASH_BYTES, MANIFEST_HEADER_BYTES};
use crate::tree::{self, ChunkHash};
use crate::{ChunkIndex, ChunkSize, ChunkSizeError, Geometry, GeometryError, ImageId};

/// The chunk hashes of one image, which merge into its id.
#[derive(Clone, PartialEq, Eq)]
pub struct Manifest {
    geometry: Geometry,
    id: ImageId,
    hashes: Vec<ChunkHash>,
}

/// Bytes that are not the manifest that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Shorter than the fixed header.
    #[error("manifest of {found} bytes is cut off: expected at least {MANIFEST_HEADER_BYTES}")]
    Truncated {
        /// The length in bytes.
        found: usize,
    },
    /// A version this program cannot read.
    #[error(
        "manifest has version {found}: expected {MANIFEST_VERSION} (seed and node must run \
         releases that share a version)"
    )]
    Version {
        /// Its version.
        found: u8,
    },
    /// No such chunk size.
    #[error("manifest: {0}")]
    ChunkSize(#[from] ChunkSizeError),
    /// Too many chunks.
    #[error("manifest: {0}")]
    Geometry(#[from] GeometryError),
    /// A number of hashes that is not the number of chunks.
    #[error("manifest claims {found} chunk hashes: expected {expected} for its image length")]
    HashCount {
        /// The chunks of an image of the manifest's length and chunk size.
        expected: u32,
        /// The hashes it claims to hold.
        found: u64,
    },
    /// Bytes missing, or bytes left over.
    #[error("manifest has {found} bytes: expected {expected} for its number of chunks")]
    Length {
        /// What the number of chunks takes.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// The right hashes under a wrong length or chunk size.
    #[error(
        "manifest is of {found_length} bytes in chunks of {found_chunk_size}: expected \
         {expected_length} in chunks of {expected_chunk_size} as the signed tag says"
    )]
    OtherGeometry {
        /// The length of the tagged image in bytes.
        expected_length: u64,
        /// The chunk size that was tagged.
        expected_chunk_size: ChunkSize,
        /// The length in the manifest.
        found_length: u64,
        /// The chunk size in the manifest.
        found_chunk_size: ChunkSize,
    },
    /// A manifest in good order, of another image, or a forged one.
    #[error("manifest merges to image {found}: expected {expected}")]
    OtherImage {
        /// The id that was asked for.
        expected: ImageId,
        /// What the hashes merge to.
        found: ImageId,
    },
}

impl Manifest {
    /// The manifest of the image with these chunk hashes, in order. The id follows from them.
    pub fn new(geometry: Geometry, hashes: Vec<[u8; 32]>) -> Result<Manifest, ManifestError> {
        if hashes.len() != geometry.chunk_count() as usize {
            return Err(ManifestError::HashCount {
                expected: geometry.chunk_count(),
                found: hashes.len() as u64,
            });
        }
        let id = tree::merge(&geometry, &hashes);
        Ok(Manifest {
            geometry,
            id,
            hashes,
        })
    }

    /// The length of the image and the size of its chunks.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The id of the image: what the hashes merge to.
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// The hash of one chunk: its subtree chaining value, or the plain hash of an only chunk.
    ///
    /// # Panics
    /// If the image has no such chunk, as indexing a slice would; see [`Geometry::contains`].
    pub fn chunk_hash(&self, index: ChunkIndex) -> &[u8; 32] {
        &self.hashes[index.0 as usize]
    }

    /// The manifest in bytes: 18, and 32 for each chunk.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(encoded_len(&self.geometry));
        bytes.extend_from_slice(&codec::encode_manifest_header(ManifestHeader {
            version: MANIFEST_VERSION,
            chunk_size_log2: self.geometry.chunk_size().log2(),
            length: self.geometry.length(),
            hash_count: u64::from(self.geometry.chunk_count()),
        }));
        bytes.extend_from_slice(self.hashes.as_flattened());
        bytes
    }

    /// Reads a manifest that anybody may have sent, and refuses it unless its hashes merge to
    /// `expected`.
    ///
    /// Allocates no more than the bytes that are there, whatever they claim.
    ///
    /// Merging proves each hash, and with it each byte of the image. It does not prove the length
    /// beyond the number of chunks, nor the chunk size: a sender can lie about them, with the
    /// effect that no last chunk, or none at all, ever verifies. That is no more than he does by
    /// sending nothing, and it spoils no byte; but where there is a signed tag, use
    /// [`Tag::decode_manifest`](crate::Tag::decode_manifest), which refuses such a manifest.
    pub fn decode(bytes: &[u8], expected: &ImageId) -> Result<Manifest, ManifestError> {
        let truncated = ManifestError::Truncated { found: bytes.len() };
        // The version alone decides how the rest reads, so it is judged before anything else.
        match bytes.first() {
            Some(&MANIFEST_VERSION) => {}
            Some(&found) => return Err(ManifestError::Version { found }),
            None => return Err(truncated),
        }
        let (header, body) = bytes
            .split_first_chunk()
            .and_then(|(header, body)| Some((codec::decode_manifest_header(header)?, body)))
            .ok_or(truncated)?;
        let chunk_size = ChunkSize::from_log2(header.chunk_size_log2)?;
        let geometry = Geometry::new(header.length, chunk_size)?;
        if header.hash_count != u64::from(geometry.chunk_count()) {
            return Err(ManifestError::HashCount {
                expected: geometry.chunk_count(),
                found: header.hash_count,
            });
        }
        if bytes.len() != encoded_len(&geometry) {
            return Err(ManifestError::Length {
                expected: encoded_len(&geometry),
                found: bytes.len(),
            });
        }
        let (hashes, _) = body.as_chunks::<HASH_BYTES>();
        let id = tree::merge(&geometry, hashes);
        if id != *expected {
            return Err(ManifestError::OtherImage {
                expected: *expected,
                found: id,
            });
        }
        Ok(Manifest {
            geometry,
            id,
            hashes: hashes.to_vec(),
        })
    }

    /// The bytes the manifest of an image of this length takes: what to allow a sender who was
    /// asked for it.
    pub fn max_encoded_len(length: u64, chunk_size: ChunkSize) -> Result<usize, GeometryError> {
        Geometry::new(length, chunk_size).map(|geometry| encoded_len(&geometry))
    }
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manifest")
            .field("id", &self.id)
            .field("geometry", &self.geometry)
            .finish_non_exhaustive()
    }
}

fn encoded_len(geometry: &Geometry) -> usize {
    MANIFEST_HEADER_BYTES + geometry.chunk_count() as usize * HASH_BYTES
}
