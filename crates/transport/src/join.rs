//! Joining: how a machine that has only a key becomes a member of the swarm.
//!
//! On a connection with ALPN `rootswarm-join/4` (or 3) the newcomer opens one bidirectional stream and
//! sends a request frame: its public key, the proof that it holds the key (bound to this very
//! connection), and which image it wants. The seed answers with a frame that grants (certificate,
//! signed tag) or refuses, and after a grant with one that says where the manifest is to be had:
//! here, or from a member (see `handing_on`). On the same connection the node is a member then. This
//! file holds those frames, the only ones outside `rootswarm_swarm`'s codec; their layout is in JOIN.md.
//! Who may join is decided by the seed's `Directory`.

use std::net::SocketAddr;

use rootswarm_image::{ImageId, ImageName};
use rootswarm_swarm::{NodeId, bounded_sequence};
use serde::{Deserialize, Serialize};

use crate::identity::{NodePublicKey, PROOF_BYTES};

/// The longest request: the fixed fields are 200 bytes, a name 64, a token and a rack name.
pub const REQUEST_BYTES_MAX: usize = 2048;

/// The longest answer: a certificate of about 400 bytes and a signed tag of about 250.
pub const ANSWER_BYTES_MAX: usize = 8192;

/// The longest frame that says where the manifest is: a number, a node's id and an address.
pub const SOURCE_BYTES_MAX: usize = 64;

/// A newcomer's frame after [`Source::Member`]: the seed is to send the manifest itself after all.
pub const SEND_IT: &[u8] = &[1];

/// The longest token.
pub const TOKEN_BYTES_MAX: usize = 256;

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<ANSWER_BYTES_MAX>,
> = bincode::config::standard().with_limit::<ANSWER_BYTES_MAX>();

/// What a node asks of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// The image's name.
    pub name: ImageName,
    /// The id it must have.
    pub pin: Option<ImageId>,
    /// What admits the node where the seed wants a token.
    pub token: Option<String>,
    /// Where the node stands.
    pub rack: Option<String>,
}

/// Why a seed does not let a node join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such image.
    #[error("the seed has no image of that name (see `rootswarm images` there)")]
    UnknownImage,
    /// The host may not join; says why.
    #[error("not admitted: {0}")]
    NotAdmitted(String),
    /// The name means another image now.
    #[error("the pin does not match: the seed's image of that name is {current}")]
    PinMismatch {
        /// What the name means at the seed.
        current: ImageId,
    },
    /// Come again: too many at once, or a mirror that leaves one-time tokens to its primary.
    #[error(
        "the seed cannot answer this now: it is busy, or a mirror that leaves one-time tokens to its primary"
    )]
    Busy,
}

/// Why a frame of the join protocol was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JoinFrameError {
    /// Not a frame of this protocol version.
    #[error("malformed join frame: {0}")]
    Malformed(String),
    /// A field beyond its bound.
    #[error("join frame: {0} is too long")]
    TooLong(&'static str),
}

#[derive(Serialize, Deserialize)]
struct WireRequest {
    public_key: [u8; 32],
    #[serde(deserialize_with = "bounded_sequence::<_, u8, PROOF_BYTES>")]
    proof: Vec<u8>,
    name: String,
    pin: Option<[u8; 32]>,
    token: Option<String>,
    rack: Option<String>,
    holds: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
enum WireSource {
    Held,
    Follows,
    Member { node: [u8; 32], address: SocketAddr },
}

#[derive(Serialize, Deserialize)]
enum WireAnswer {
    Granted {
        #[serde(deserialize_with = "bounded_sequence::<_, u8, ANSWER_BYTES_MAX>")]
        certificate: Vec<u8>,
        #[serde(deserialize_with = "bounded_sequence::<_, u8, ANSWER_BYTES_MAX>")]
        tag: Vec<u8>,
    },
    UnknownImage,
    NotAdmitted(String),
    PinMismatch {
        current: [u8; 32],
    },
    Busy,
}

/// A seed's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The node may join; neither part has been checked yet.
    Granted {
        /// The node's certificate, in DER.
        certificate: Vec<u8>,
        /// The signed tag of the image.
        tag: Vec<u8>,
    },
    /// It may not.
    Refused(Refusal),
}

/// Where a newcomer that was granted its request finds the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It said that it has it.
    Held,
    /// Its bytes follow on this stream, up to its end.
    Follows,
    /// This member has it. If nothing comes of that, the newcomer says [`SEND_IT`].
    Member {
        /// Who.
        node: NodeId,
        /// Where the seed sees it.
        address: SocketAddr,
    },
}

/// A request with the key and the proof that go with it.
#[derive(Debug, PartialEq, Eq)]
pub struct SignedRequest {
    /// The node's key.
    pub key: NodePublicKey,
    /// The signature that shows that the sender holds it, [`PROOF_BYTES`] long.
    pub proof: Vec<u8>,
    /// What is asked.
    pub request: JoinRequest,
    /// The image whose manifest the node has already, if any.
    pub holds: Option<ImageId>,
}

/// The bytes of a request frame, without the length in front.
pub fn encode_request(signed: &SignedRequest) -> Vec<u8> {
    encode(&WireRequest {
        public_key: signed.key.0,
        proof: signed.proof.clone(),
        name: signed.request.name.as_str().to_owned(),
        pin: signed.request.pin.map(|pin| *pin.as_bytes()),
        token: signed.request.token.clone(),
        rack: signed.request.rack.clone(),
        holds: signed.holds.map(|id| *id.as_bytes()),
    })
}

/// Reads a request frame of at most [`REQUEST_BYTES_MAX`] bytes.
///
/// # Errors
/// Anything but exactly one legal request.
pub fn decode_request(frame: &[u8]) -> Result<SignedRequest, JoinFrameError> {
    let wire: WireRequest = decode(frame)?;
    if wire.proof.len() != PROOF_BYTES {
        return Err(JoinFrameError::Malformed(format!(
            "a proof of {} bytes",
            wire.proof.len()
        )));
    }
    if wire
        .token
        .as_ref()
        .is_some_and(|token| token.len() > TOKEN_BYTES_MAX)
    {
        return Err(JoinFrameError::TooLong("the token"));
    }
    if wire
        .rack
        .as_ref()
        .is_some_and(|rack| rack.len() > rootswarm_swarm::limits::RACK_BYTES_MAX)
    {
        return Err(JoinFrameError::TooLong("the rack name"));
    }
    let name = wire
        .name
        .parse()
        .map_err(|error| JoinFrameError::Malformed(format!("{error}")))?;
    let pin = wire.pin.map(ImageId::from_bytes);
    let request = JoinRequest {
        name,
        pin,
        token: wire.token,
        rack: wire.rack,
    };
    Ok(SignedRequest {
        key: NodePublicKey(wire.public_key),
        proof: wire.proof,
        request,
        holds: wire.holds.map(ImageId::from_bytes),
    })
}

/// The bytes of an answer frame, without the length in front.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    encode(&match answer {
        Answer::Granted { certificate, tag } => WireAnswer::Granted {
            certificate: certificate.clone(),
            tag: tag.clone(),
        },
        Answer::Refused(Refusal::UnknownImage) => WireAnswer::UnknownImage,
        Answer::Refused(Refusal::NotAdmitted(reason)) => WireAnswer::NotAdmitted(reason.clone()),
        Answer::Refused(Refusal::PinMismatch { current }) => WireAnswer::PinMismatch {
            current: *current.as_bytes(),
        },
        Answer::Refused(Refusal::Busy) => WireAnswer::Busy,
    })
}

/// Reads an answer frame of at most [`ANSWER_BYTES_MAX`] bytes.
///
/// # Errors
/// Anything but exactly one legal answer.
pub fn decode_answer(frame: &[u8]) -> Result<Answer, JoinFrameError> {
    Ok(match decode(frame)? {
        WireAnswer::Granted { certificate, tag } => Answer::Granted { certificate, tag },
        WireAnswer::UnknownImage => Answer::Refused(Refusal::UnknownImage),
        WireAnswer::NotAdmitted(reason) => Answer::Refused(Refusal::NotAdmitted(reason)),
        WireAnswer::PinMismatch { current } => Answer::Refused(Refusal::PinMismatch {
            current: ImageId::from_bytes(current),
        }),
        WireAnswer::Busy => Answer::Refused(Refusal::Busy),
    })
}

/// The bytes of the frame that says where the manifest is, without the length in front.
pub fn encode_source(source: &Source) -> Vec<u8> {
    encode(&match source {
        Source::Held => WireSource::Held,
        Source::Follows => WireSource::Follows,
        Source::Member { node, address } => WireSource::Member {
            node: node.0,
            address: *address,
        },
    })
}

/// Reads such a frame of at most [`SOURCE_BYTES_MAX`] bytes.
///
/// # Errors
/// Anything but exactly one legal source.
pub fn decode_source(frame: &[u8]) -> Result<Source, JoinFrameError> {
    Ok(match decode(frame)? {
        WireSource::Held => Source::Held,
        WireSource::Follows => Source::Follows,
        WireSource::Member { node, address } => Source::Member {
            node: NodeId(node),
            address,
        },
    })
}

fn encode<T: Serialize>(wire: &T) -> Vec<u8> {
    // Fails only past the limit; the other side then reads an empty frame and refuses it.
    bincode::serde::encode_to_vec(wire, CONFIG).unwrap_or_default()
}

fn decode<T: for<'a> Deserialize<'a>>(frame: &[u8]) -> Result<T, JoinFrameError> {
    let malformed =
        |error: bincode::error::DecodeError| JoinFrameError::Malformed(error.to_string());
    let (wire, used) = bincode::serde::decode_from_slice(frame, CONFIG).map_err(malformed)?;
    if used != frame.len() {
        return Err(JoinFrameError::Malformed(format!(
            "{} bytes behind its end",
            frame.len() - used
        )));
    }
    Ok(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn request() -> SignedRequest {
        SignedRequest {
            key: NodePublicKey([1; 32]),
            proof: vec![2; PROOF_BYTES],
            request: JoinRequest {
                name: "debian-12".parse().unwrap(),
                pin: Some(ImageId::from_bytes([3; 32])),
                token: None,
                rack: Some("r7".into()),
            },
            holds: None,
        }
    }

    /// The frozen bytes of JOIN.md.
    #[test]
    fn golden_bytes() {
        let (key, proof, pin) = ("01".repeat(32), "02".repeat(64), "03".repeat(32));
        let expected = format!("{key}40{proof}0964656269616e2d313201{pin}000102723700");
        assert_eq!(hex(&encode_request(&request())), expected);
        assert_eq!(decode_request(&encode_request(&request())), Ok(request()));
        let answers = [
            (
                Answer::Granted {
                    certificate: vec![9],
                    tag: vec![8, 7],
                },
                "000109020807".to_owned(),
            ),
            (Answer::Refused(Refusal::UnknownImage), "01".to_owned()),
            (
                Answer::Refused(Refusal::NotAdmitted("x".into())),
                "020178".to_owned(),
            ),
            (
                Answer::Refused(Refusal::PinMismatch {
                    current: ImageId::from_bytes([3; 32]),
                }),
                format!("03{pin}"),
            ),
            (Answer::Refused(Refusal::Busy), "04".to_owned()),
        ];
        for (answer, bytes) in answers {
            assert_eq!(hex(&encode_answer(&answer)), bytes, "{answer:?}");
            assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
        }
        let node = NodeId([4; 32]);
        let id = "04".repeat(32);
        let sources = [
            (Source::Held, "00".to_owned()),
            (Source::Follows, "01".to_owned()),
            (
                Source::Member {
                    node,
                    address: ([10, 0, 0, 7], 7400).into(),
                },
                format!("02{id}000a000007fbe81c"),
            ),
            (
                Source::Member {
                    node,
                    address: "[fd00::7]:1".parse().unwrap(),
                },
                format!("02{id}01fd{}0701", "00".repeat(14)),
            ),
        ];
        for (source, bytes) in sources {
            assert_eq!(hex(&encode_source(&source)), bytes, "{source:?}");
            assert!(bytes.len() / 2 <= SOURCE_BYTES_MAX);
            assert_eq!(decode_source(&encode_source(&source)), Ok(source));
        }
    }

    #[test]
    fn refuses() {
        let whole = encode_request(&request());
        for length in 0..whole.len() {
            assert!(decode_request(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(
            decode_request(&[&whole[..], &[0]].concat()).is_err(),
            "a byte too many"
        );
        let mut long = request();
        long.request.token = Some("t".repeat(TOKEN_BYTES_MAX + 1));
        assert_eq!(
            decode_request(&encode_request(&long)),
            Err(JoinFrameError::TooLong("the token"))
        );
        let mut long = request();
        long.request.rack = Some("r".repeat(65));
        assert_eq!(
            decode_request(&encode_request(&long)),
            Err(JoinFrameError::TooLong("the rack name"))
        );
        let mut short = request();
        short.proof.pop();
        assert!(matches!(
            decode_request(&encode_request(&short)),
            Err(JoinFrameError::Malformed(_))
        ));
        assert!(decode_answer(&[5]).is_err());
        let source = encode_source(&Source::Member {
            node: NodeId([4; 32]),
            address: ([10, 0, 0, 7], 7400).into(),
        });
        for length in 0..source.len() {
            assert!(decode_source(&source[..length]).is_err(), "{length} bytes");
        }
        assert!(decode_source(&[3]).is_err());
        assert!(
            decode_answer(&[0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0x40]).is_err(),
            "2^62 bytes"
        );
    }
}
