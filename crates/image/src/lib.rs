//! What an image is: chunks, hash tree, manifest, signature, verifier.
//!
//! An image is a file, in practice a squashfs, and its id is its BLAKE3 hash: exactly what
//! `b3sum FILE` prints. It is cut into chunks of a power of two ([`Geometry`]), and the hash of a
//! chunk is its subtree chaining value in the BLAKE3 tree of the whole file, so that the list of
//! chunk hashes ([`Manifest`]) merges into the id. Such a list needs no trust: whoever sends it,
//! it either merges to the id that was asked for, or it is refused.
//!
//! What the id of a *name* is comes from a pin in the [`RootUrl`] or from a [`SignedTag`] under
//! the installation's [`SwarmKey`].
//!
//! **Invariants.**
//! - [`Verifier::verify`] is the only way to a [`VerifiedChunk`], and stores take nothing else.
//! - Nothing that is decoded here allocates by a length that the sender claimed, or panics.
//! - An [`ImageName`] is a key of a catalogue, never a part of a path: nothing here builds a path.
//!
//! This crate does no I/O other than reading the file to be hashed ([`hash_file`]); who fetches
//! which chunk, where bytes are stored and how they travel is decided elsewhere. The bytes of
//! manifests and tags are frozen and documented in `FORMAT.md`.

#![forbid(unsafe_code)]

mod bitfield;
mod chunk;
mod codec;
mod geometry;
mod hash;
mod hex;
mod host;
mod id;
mod key;
pub mod limits;
mod manifest;
mod name;
mod root_url;
mod squashfs;
mod tag;
mod tree;
mod verifier;

pub use bitfield::{Bitfield, BitfieldError};
pub use chunk::{ChunkIndex, ChunkSize, ChunkSizeError};
pub use geometry::{Geometry, GeometryError};
pub use hash::{HashError, all_cores, hash_file, hash_image, verified_chunks};
pub use host::{Host, HostName, HostPort, HostPortError};
pub use id::{ImageId, ImageIdError};
pub use key::{SwarmKey, SwarmKeyError, SwarmPublicKey, SwarmPublicKeyError};
pub use manifest::{Manifest, ManifestError};
pub use name::{ImageName, ImageNameError};
pub use root_url::{HTTP_PORT, HttpUrl, NODE_PORT, RootUrl, RootUrlError, SWARM_PORT, WEB_PORT};
pub use squashfs::{
    SQUASHFS_HEADER_BYTES, SquashfsError, check_squashfs, is_squashfs, squashfs_len,
};
pub use tag::{SignedTag, Tag, TagError};
pub use verifier::{ChunkError, GrowingChunk, VerifiedChunk, Verifier};
