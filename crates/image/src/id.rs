//! The identity of an image: its BLAKE3 hash.

use std::fmt;
use std::str::FromStr;

use crate::hex::{self, HexFault};

/// The BLAKE3 hash of the whole image, as `b3sum FILE` prints it: 64 lower-case hexadecimal
/// digits.
///
/// It is compared in variable time: an id is public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId([u8; 32]);

/// A text that is no image id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image id: expected 64 lower-case hexadecimal digits as b3sum prints them, found {fault}")]
pub struct ImageIdError {
    fault: HexFault,
}

impl ImageId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> ImageId {
        ImageId(bytes)
    }

    /// The hash itself.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageId({self})")
    }
}

impl FromStr for ImageId {
    type Err = ImageIdError;

    fn from_str(text: &str) -> Result<ImageId, ImageIdError> {
        hex::parse(text)
            .map(ImageId)
            .map_err(|fault| ImageIdError { fault })
    }
}
