//! The swarm key: one Ed25519 key per installation, which signs what names mean.
//!
//! Its public half is the one thing an initrd bakes in. Where the private half is kept (a file of
//! mode 0600 in the seed's state directory) and what else is certified with it is left to others.

use std::fmt;
use std::str::FromStr;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::hex::{self, HexFault};
use crate::limits::SIGNATURE_BYTES;

/// What a public key begins with where it is written as text.
const SCHEME: &str = "ed25519:";

/// The private key of an installation, with its PKCS#8 encoding.
///
/// `Debug` shows the public half only. The memory is not wiped on drop: who can read the seed's
/// memory can read its key file.
pub struct SwarmKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

/// Bytes that are no Ed25519 private key, or no randomness to make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwarmKeyError {
    /// The system gave no randomness.
    #[error("cannot make a swarm key: the system's random generator failed")]
    NoRandomness,
    /// The bytes are no key.
    #[error(
        "swarm key of {found} bytes is not an Ed25519 key in PKCS#8 form: {reason} (restore the \
         key file from a backup; a new key must be baked into the initrd again)"
    )]
    NotPkcs8 {
        /// The length of what was given.
        found: usize,
        /// What ring says of it, a word or two.
        reason: String,
    },
}

impl SwarmKey {
    /// Makes a new key from the system's randomness.
    pub fn generate() -> Result<SwarmKey, SwarmKeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| SwarmKeyError::NoRandomness)?;
        SwarmKey::from_pkcs8(document.as_ref())
    }

    /// Reads a key from PKCS#8 DER, version 2 as [`to_pkcs8`](SwarmKey::to_pkcs8) gives it or
    /// version 1 as `openssl genpkey -algorithm ed25519 -outform DER` does.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<SwarmKey, SwarmKeyError> {
        // "Maybe unchecked": version 1 has no public half to check the private one against.
        // Where there is one, ring does check it.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|rejected| {
            SwarmKeyError::NotPkcs8 {
                found: pkcs8.len(),
                reason: rejected.to_string(),
            }
        })?;
        Ok(SwarmKey {
            pair,
            pkcs8: pkcs8.to_vec(),
        })
    }

    /// The key as PKCS#8 DER. Secret.
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public half.
    pub fn public(&self) -> SwarmPublicKey {
        let bytes = self.pair.public_key().as_ref();
        // An Ed25519 public key has 32 bytes: RFC 8032, 5.1.5.
        SwarmPublicKey(
            bytes
                .try_into()
                .expect("an Ed25519 public key has 32 bytes"),
        )
    }

    /// Signs a message. Whoever calls this puts something in front of the message that no other
    /// kind of message begins with.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.pair.sign(message);
        // An Ed25519 signature has 64 bytes: RFC 8032, 5.1.6.
        signature
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmKey(of {})", self.public())
    }
}

/// The public half of a [`SwarmKey`]: `ed25519:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SwarmPublicKey([u8; 32]);

/// A text that is no swarm public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwarmPublicKeyError {
    /// It does not begin with `ed25519:`.
    #[error(
        "swarm public key {found:?}: expected ed25519: and 64 lower-case hexadecimal digits, as \
         `rootswarm key` prints it"
    )]
    Scheme {
        /// The text, or its beginning.
        found: String,
    },
    /// What follows is no key.
    #[error(
        "swarm public key: expected 64 lower-case hexadecimal digits after ed25519:, found {fault}"
    )]
    Digits {
        /// What is wrong with it.
        fault: String,
    },
}

impl SwarmPublicKey {
    /// The key with these bytes. Whether they are a point on the curve shows when a signature is
    /// verified: with one that is not, none is.
    pub const fn from_bytes(bytes: [u8; 32]) -> SwarmPublicKey {
        SwarmPublicKey(bytes)
    }

    /// The key as RFC 8032 encodes it.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the private half of this key signed `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for SwarmPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        hex::write(&self.0, f)
    }
}

impl fmt::Debug for SwarmPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmPublicKey({self})")
    }
}

impl FromStr for SwarmPublicKey {
    type Err = SwarmPublicKeyError;

    fn from_str(text: &str) -> Result<SwarmPublicKey, SwarmPublicKeyError> {
        let digits = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| SwarmPublicKeyError::Scheme {
                found: text.chars().take(hex::DIGITS + SCHEME.len()).collect(),
            })?;
        let fault = |fault: HexFault| SwarmPublicKeyError::Digits {
            fault: fault.to_string(),
        };
        hex::parse(digits).map(SwarmPublicKey).map_err(fault)
    }
}
