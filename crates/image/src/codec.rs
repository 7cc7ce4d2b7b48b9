//! The bytes of manifests and tags (see `FORMAT.md`), and the only use of bincode in this crate.
//!
//! The types below *are* the format: their fields and their order are frozen. What the numbers
//! mean, and whether to believe them, is decided by the types that call this.
//!
//! bincode runs with fixed-width little-endian integers, so a value has exactly one encoding, and
//! with a limit, so that no length in the input is ever allocated before it is checked.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::{Deserialize, Serialize};

use crate::limits::{MANIFEST_HEADER_BYTES, MAX_TAG_BODY_BYTES};

/// The manifest version that is written, and the only one that is read.
pub(crate) const MANIFEST_VERSION: u8 = 1;

/// The tag version that is written, and the only one that is read.
pub(crate) const TAG_VERSION: u8 = 1;

/// What stands before the hashes. Together they are the encoding of the header's fields followed
/// by a `Vec<[u8; 32]>`; the hashes are kept apart so that they are copied, not parsed, and only
/// after `hash_count` was found true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestHeader {
    pub version: u8,
    pub chunk_size_log2: u8,
    pub length: u64,
    pub hash_count: u64,
}

fn config<const LIMIT: usize>() -> Configuration<LittleEndian, Fixint, Limit<LIMIT>> {
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>()
}

/// Writes the header into a buffer of exactly its size.
pub(crate) fn encode_manifest_header(header: ManifestHeader) -> [u8; MANIFEST_HEADER_BYTES] {
    let mut bytes = [0; MANIFEST_HEADER_BYTES];
    let written =
        bincode::serde::encode_into_slice(header, &mut bytes, config::<MANIFEST_HEADER_BYTES>());
    // Four integers of fixed width: the encoding has no other length and cannot fail.
    assert_eq!(written.ok(), Some(MANIFEST_HEADER_BYTES));
    bytes
}

/// Reads the header, all of whose bit patterns are valid.
pub(crate) fn decode_manifest_header(
    bytes: &[u8; MANIFEST_HEADER_BYTES],
) -> Option<ManifestHeader> {
    bincode::serde::decode_from_slice(bytes, config::<MANIFEST_HEADER_BYTES>())
        .ok()
        .map(|(header, _)| header)
}

/// A tag without its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TagBody {
    pub format_version: u8,
    pub name: String,
    pub id: [u8; 32],
    pub length: u64,
    pub chunk_size_log2: u8,
    pub tag_version: u64,
    pub epoch: u32,
}

/// Writes a tag whose name is an image name.
pub(crate) fn encode_tag(body: &TagBody) -> Vec<u8> {
    // bincode fails where a length is unknown or the limit is passed. A string knows its length,
    // and the limit is that of a name of the longest kind.
    bincode::serde::encode_to_vec(body, config::<MAX_TAG_BODY_BYTES>())
        .expect("a tag with a valid name is within the limit")
}

/// Reads a tag that fills `bytes`. Its name may still be anything of up to 64 bytes or so.
pub(crate) fn decode_tag(bytes: &[u8]) -> Option<TagBody> {
    let (body, read) =
        bincode::serde::decode_from_slice(bytes, config::<MAX_TAG_BODY_BYTES>()).ok()?;
    (read == bytes.len()).then_some(body)
}
