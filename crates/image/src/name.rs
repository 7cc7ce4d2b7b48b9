//! Names of images.
//!
//! A name is a key that is looked up in a catalogue. This file keeps it harmless wherever it is
//! printed; nothing in this crate makes a path of it, and nothing elsewhere may.

use std::fmt;
use std::str::FromStr;

use crate::limits::MAX_NAME_BYTES;

/// The name of an image: 1 to 64 of `a-z 0-9 . _ -`, but neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

/// A text that is no image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageNameError {
    /// Nothing at all.
    #[error("image name is empty: expected 1 to {MAX_NAME_BYTES} of a-z 0-9 . _ -")]
    Empty,
    /// Too long.
    #[error("image name has {found} bytes: expected at most {MAX_NAME_BYTES}")]
    TooLong {
        /// Its length in bytes.
        found: usize,
    },
    /// A character that no name has.
    #[error("image name {name:?} has the character {found:?}: expected only a-z 0-9 . _ -")]
    Character {
        /// The text, which is at most 64 bytes long.
        name: String,
        /// The first character that does not belong.
        found: char,
    },
    /// `.` or `..`
    #[error("image name {found:?} is a directory: expected another name")]
    Dots {
        /// The text.
        found: String,
    },
}

impl ImageName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<ImageName, ImageNameError> {
        if text.is_empty() {
            return Err(ImageNameError::Empty);
        }
        if text.len() > MAX_NAME_BYTES {
            return Err(ImageNameError::TooLong { found: text.len() });
        }
        let allowed = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
        if let Some(found) = text.chars().find(|c| !allowed(c)) {
            return Err(ImageNameError::Character {
                name: text.to_owned(),
                found,
            });
        }
        if matches!(text, "." | "..") {
            return Err(ImageNameError::Dots {
                found: text.to_owned(),
            });
        }
        Ok(ImageName(text.to_owned()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
