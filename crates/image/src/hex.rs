//! Lower-case hexadecimal for 32-byte values: ids and public keys.
//!
//! One spelling only. Ids end up in URLs, directory names and logs, where two spellings of one
//! value would be two values.

use std::fmt;

/// The length of 32 bytes in hexadecimal.
pub(crate) const DIGITS: usize = 64;

/// Why a text is not 32 bytes in lower-case hexadecimal. Its `Display` is the part of a sentence
/// that follows "found".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HexFault {
    Length(usize),
    Character(char),
}

impl fmt::Display for HexFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HexFault::Length(found) => write!(f, "{found} characters"),
            HexFault::Character(found) => write!(f, "the character {found:?}"),
        }
    }
}

pub(crate) fn write(bytes: &[u8; 32], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(crate) fn parse(text: &str) -> Result<[u8; 32], HexFault> {
    if let Some(other) = text.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(HexFault::Character(other));
    }
    let digits = text.as_bytes();
    if digits.len() != DIGITS {
        return Err(HexFault::Length(digits.len()));
    }
    let value = |digit: u8| {
        if digit <= b'9' {
            digit - b'0'
        } else {
            digit - b'a' + 10
        }
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Ok(bytes)
}
