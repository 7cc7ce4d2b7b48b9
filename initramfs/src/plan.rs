//! What is to be fetched and what makes it trustworthy: the part of a plan that `boot` and
//! `fetch` share.
//!
//! Where the values come from (kernel command line, arguments, baked-in files) is decided by the
//! callers; that trust can only be tightened is decided here.

use std::net::IpAddr;
use std::time::Duration;

use rootswarm_image::{HttpUrl, ImageId, ImageName, RootUrl, SwarmPublicKey};

use crate::exit::{Classified, Exit};
use crate::minimum::Minimum;

/// One image to fetch.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchPlan {
    /// Where from.
    pub source: RootUrl,
    /// What the image is held to.
    pub trust: Trust,
    /// What was there when the initrd was built: an older tag does not say what a name means.
    pub minimum: Minimum,
    /// How long to go on without progress (ROOTDELAY).
    pub patience: Duration,
    /// Admission token.
    pub token: Option<String>,
    /// The rack this node stands in, as somebody named it; without a name its subnet is taken.
    pub rack: Option<String>,
    /// What this node gives away at most.
    pub upload_limit_bytes_per_s: Option<u64>,
    /// The local address to use.
    pub bind: Option<IpAddr>,
    /// The local UDP port; 0 is any.
    pub port: u16,
    /// Whether no other port will do when that one is taken.
    pub is_port_required: bool,
    /// The port of the seed's HTTP side.
    pub http_port: u16,
}

/// What an image is held to before a byte of it reaches a mount.
#[derive(Debug, Clone, PartialEq)]
pub enum Trust {
    /// The installation's key signs what the name means now; a pin narrows it to one image.
    Key {
        /// The swarm key.
        key: SwarmPublicKey,
        /// The only image that will do, when the rooturl names one.
        pin: Option<ImageId>,
    },
    /// One image, named by its hash.
    Pin(ImageId),
    /// Nothing. Only for plain http, as every older setup does it, and never silently.
    Unverified,
}

impl Trust {
    /// The image that alone will do, if one is named.
    pub fn pin(&self) -> Option<ImageId> {
        match self {
            Trust::Key { pin, .. } => *pin,
            Trust::Pin(pin) => Some(*pin),
            Trust::Unverified => None,
        }
    }
}

/// Why a rooturl is refused before anything is fetched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrustError {
    /// `swarm://` with nothing to hold the image to.
    #[error(
        "nothing says which image to trust: {url} has no pin and {key_place} is missing; \
         append @blake3:HEX to the rooturl or bake the swarm key into the initrd"
    )]
    NoAnchor {
        /// The rooturl.
        url: String,
        /// Where a key would have been found.
        key_place: String,
    },
    /// `http://` without a pin where verification is required.
    #[error("verification is required and {url} has no pin: append @blake3:HEX to the rooturl")]
    PinRequired {
        /// The rooturl.
        url: String,
    },
    /// The baked-in key must have signed the image, and there is none.
    #[error("a key is required and {key_place} is missing: bake the swarm key into the initrd")]
    NoRequiredKey {
        /// Where a key would have been found.
        key_place: String,
    },
    /// The baked-in key must have signed the image, and a web server's file has no signature.
    #[error(
        "the swarm key's signature is required and {url} has none: boot swarm://HOST/NAME, or \
         http://HOST:7480/images/NAME from a seed"
    )]
    KeyRequired {
        /// The rooturl.
        url: String,
    },
    /// Two keys that differ.
    #[error(
        "the swarm key on the command line is {given}, the baked-in one is {baked}: \
         the command line can narrow trust, never move it"
    )]
    OtherKey {
        /// From the command line.
        given: Box<SwarmPublicKey>,
        /// From the initrd.
        baked: Box<SwarmPublicKey>,
    },
}

impl Classified for TrustError {
    fn exit(&self) -> Exit {
        Exit::Refused
    }
}

/// The anchors that can be had: one the initrd carries, one the command line gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Anchors {
    /// The baked-in key: it alone can vouch for an image.
    pub baked: Option<SwarmPublicKey>,
    /// A key from the kernel command line. Whoever writes that line is not trusted more than the
    /// initrd, so it can only be required in addition: it never vouches for an image alone.
    pub given: Option<SwarmPublicKey>,
    /// Whether an unverified image is refused.
    pub require_verify: bool,
    /// Whether an image that the baked-in key did not sign is refused, pinned or not.
    pub require_key: bool,
    /// Where the baked-in key was looked for, for the error line.
    pub key_place: String,
}

/// What the image at `source` will be held to.
pub fn decide_trust(source: &RootUrl, anchors: &Anchors) -> Result<Trust, TrustError> {
    if let (Some(given), Some(baked)) = (&anchors.given, &anchors.baked)
        && given != baked
    {
        return Err(TrustError::OtherKey {
            given: Box::new(*given),
            baked: Box::new(*baked),
        });
    }
    if anchors.require_key {
        let Some(key) = anchors.baked else {
            return Err(TrustError::NoRequiredKey {
                key_place: anchors.key_place.clone(),
            });
        };
        let (RootUrl::Swarm { pin, .. } | RootUrl::Http { pin, .. }) = source;
        if let RootUrl::Http { url, .. } = source
            && name_at_seed(url).is_none()
        {
            return Err(TrustError::KeyRequired {
                url: source.to_string(),
            });
        }
        return Ok(Trust::Key { key, pin: *pin });
    }
    match source {
        RootUrl::Swarm { pin, .. } => match (&anchors.baked, &anchors.given, pin) {
            (Some(key), _, pin) => Ok(Trust::Key {
                key: *key,
                pin: *pin,
            }),
            (None, Some(key), Some(pin)) => Ok(Trust::Key {
                key: *key,
                pin: Some(*pin),
            }),
            (None, None, Some(pin)) => Ok(Trust::Pin(*pin)),
            (None, _, None) => Err(TrustError::NoAnchor {
                url: source.to_string(),
                key_place: anchors.key_place.clone(),
            }),
        },
        RootUrl::Http { pin: Some(pin), .. } => Ok(Trust::Pin(*pin)),
        RootUrl::Http { url, pin: None } if anchors.require_verify => {
            match (anchors.baked, name_at_seed(url)) {
                // A seed's HTTP side has the key's signature to show.
                (Some(key), Some(_)) => Ok(Trust::Key { key, pin: None }),
                _ => Err(TrustError::PinRequired {
                    url: source.to_string(),
                }),
            }
        }
        RootUrl::Http { pin: None, .. } => Ok(Trust::Unverified),
    }
}

/// The name of the image that `url` is at a seed's HTTP side, which also has its signed tag:
/// `http://HOST/images/NAME`.
pub fn name_at_seed(url: &HttpUrl) -> Option<ImageName> {
    url.path().strip_prefix("/images/")?.parse().ok()
}
