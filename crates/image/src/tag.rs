//! Tags: the seed's signed statement of which image a name means now.
//!
//! A pin in the rooturl says which image to boot; without one, a tag under the swarm key that the
//! initrd bakes in does. A tag is signed together with a prefix that no other signed message has,
//! so a signature made for another purpose with the same key is never one for a tag.
//!
//! Whether a version is older than one that was seen before, and which epoch is current, is for
//! the user of the tag to judge: a node that boots has no memory.

use crate::codec::{self, TAG_VERSION, TagBody};
use crate::limits::{MAX_SIGNED_TAG_BYTES, SIGNATURE_BYTES};
use crate::{
    ChunkSize, ChunkSizeError, Geometry, GeometryError, ImageId, ImageName, ImageNameError,
    Manifest, ManifestError, SwarmKey, SwarmPublicKey,
};

/// In front of every tag that is signed. The zero byte ends it: no longer prefix begins with it.
const SIGNED_PREFIX: &[u8] = b"rootswarm tag v1\0";

/// Which image a name means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The name.
    pub name: ImageName,
    /// The image it means.
    pub id: ImageId,
    /// The length of the image in bytes: what a node must have room for, known before it asks for
    /// the manifest.
    pub length: u64,
    /// The chunk size of the image's manifest.
    pub chunk_size: ChunkSize,
    /// Grows with each publish of the name.
    pub version: u64,
    /// The epoch of the installation in which it was signed: what takes the place of a date, as
    /// clocks are wrong at boot.
    pub epoch: u32,
}

/// A tag with its signature, which was not necessarily checked: see [`verify`](SignedTag::verify).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTag {
    tag: Tag,
    signature: [u8; SIGNATURE_BYTES],
}

/// Bytes that are no tag, or a tag that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// No tag has so few or so many bytes, or its parts do not fill them.
    #[error(
        "signed tag of {found} bytes is damaged: expected at most {MAX_SIGNED_TAG_BYTES}, none \
         missing and none left over"
    )]
    Malformed {
        /// The length in bytes.
        found: usize,
    },
    /// A version this program cannot read.
    #[error(
        "signed tag has version {found}: expected {TAG_VERSION} (seed and node must run releases \
         that share a version)"
    )]
    Version {
        /// Its version.
        found: u8,
    },
    /// Its name is none.
    #[error("signed tag: {0}")]
    Name(#[from] ImageNameError),
    /// No such chunk size.
    #[error("signed tag: {0}")]
    ChunkSize(#[from] ChunkSizeError),
    /// More chunks than an image may have.
    #[error("signed tag: {0}")]
    Geometry(#[from] GeometryError),
    /// Not signed by this key.
    #[error(
        "tag of image {name} is not signed by {key}: this seed has another swarm key, or the tag \
         was altered (bake the key that `rootswarm key` prints into the initrd)"
    )]
    Signature {
        /// The name it claims to be about.
        name: ImageName,
        /// The key that was expected to have signed it.
        key: SwarmPublicKey,
    },
    /// Signed, but about another name.
    #[error("signed tag is about image {found}: expected {expected}")]
    OtherName {
        /// The name that was asked for.
        expected: ImageName,
        /// The name it is about.
        found: ImageName,
    },
}

impl Tag {
    /// How the image is cut.
    pub fn geometry(&self) -> Result<Geometry, GeometryError> {
        Geometry::new(self.length, self.chunk_size)
    }

    /// Reads the manifest of the tagged image, which anybody may have sent: refuses it unless it
    /// merges to the tagged id *and* is cut as the tag says, which merging alone does not prove
    /// (see [`Manifest::decode`]).
    pub fn decode_manifest(&self, bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let manifest = Manifest::decode(bytes, &self.id)?;
        let found = manifest.geometry();
        if (found.length(), found.chunk_size()) != (self.length, self.chunk_size) {
            return Err(ManifestError::OtherGeometry {
                expected_length: self.length,
                expected_chunk_size: self.chunk_size,
                found_length: found.length(),
                found_chunk_size: found.chunk_size(),
            });
        }
        Ok(manifest)
    }

    /// Signs the tag.
    pub fn sign(self, key: &SwarmKey) -> SignedTag {
        let signature = key.sign(&signed_message(&self));
        SignedTag {
            tag: self,
            signature,
        }
    }
}

impl SignedTag {
    /// The tag, if `key` signed it and it is about `expected_name`.
    pub fn verify(&self, key: &SwarmPublicKey, expected_name: &ImageName) -> Result<Tag, TagError> {
        if !key.verifies(&signed_message(&self.tag), &self.signature) {
            return Err(TagError::Signature {
                name: self.tag.name.clone(),
                key: *key,
            });
        }
        if self.tag.name != *expected_name {
            return Err(TagError::OtherName {
                expected: expected_name.clone(),
                found: self.tag.name.clone(),
            });
        }
        Ok(self.tag.clone())
    }

    /// What the tag claims: good for a message, or where a pin decides, never for trust.
    pub fn unverified(&self) -> &Tag {
        &self.tag
    }

    /// The tag and its signature in bytes, at most 190.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = codec::encode_tag(&body(&self.tag));
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads a tag that anybody may have sent. Its signature is *not* checked here: see
    /// [`verify`](SignedTag::verify).
    pub fn decode(bytes: &[u8]) -> Result<SignedTag, TagError> {
        let malformed = TagError::Malformed { found: bytes.len() };
        // The version alone decides how the rest reads, so it is judged before anything else.
        match bytes.first() {
            Some(&TAG_VERSION) => {}
            Some(&found) => return Err(TagError::Version { found }),
            None => return Err(malformed),
        }
        if bytes.len() > MAX_SIGNED_TAG_BYTES {
            return Err(malformed);
        }
        let (body, signature) = bytes
            .split_last_chunk()
            .and_then(|(body, signature)| Some((codec::decode_tag(body)?, *signature)))
            .ok_or(malformed)?;
        let tag = Tag {
            name: body.name.parse()?,
            id: ImageId::from_bytes(body.id),
            length: body.length,
            chunk_size: ChunkSize::from_log2(body.chunk_size_log2)?,
            version: body.tag_version,
            epoch: body.epoch,
        };
        tag.geometry()?;
        Ok(SignedTag { tag, signature })
    }
}

/// An encoding is unique, so signing the re-encoded tag is signing the bytes that were read.
fn signed_message(tag: &Tag) -> Vec<u8> {
    [SIGNED_PREFIX, &codec::encode_tag(&body(tag))].concat()
}

fn body(tag: &Tag) -> TagBody {
    TagBody {
        format_version: TAG_VERSION,
        name: tag.name.as_str().to_owned(),
        id: *tag.id.as_bytes(),
        length: tag.length,
        chunk_size_log2: tag.chunk_size.log2(),
        tag_version: tag.version,
        epoch: tag.epoch,
    }
}
