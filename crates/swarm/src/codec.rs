//! Control frames to bytes and back: the only file of this crate that knows bincode.
//!
//! The format is frozen in WIRE.md. The types below *are* the format and exist for nothing else;
//! the rest of the crate works with [`Message`] and [`Hello`]. A frame is decoded under a limit,
//! must be used up to the last byte, and every count in it is checked before it is believed.

use crate::id::NodeId;
use crate::limits::{
    ADDRESSES_MAX, CHUNKS_MAX, FRAME_BYTES_MAX, HAVE_RUNS_MAX, OFFER_CHUNKS, RACK_BYTES_MAX,
    REVOKED_MAX,
};
use crate::message::{ChunkRun, DialOutcome, Have, Hello, Message, PeerAddress, Revocations};
use crate::sequence::bounded_sequence;
use rootswarm_image::{ChunkIndex, ImageId};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<FRAME_BYTES_MAX>,
> = bincode::config::standard().with_limit::<FRAME_BYTES_MAX>();

/// A bit for each of the most chunks there may be.
const BITS_BYTES_MAX: usize = CHUNKS_MAX as usize / 8;

/// Why a frame was refused. The peer that sent it is disconnected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than any legal frame.
    #[error("control frame of {found} bytes: at most {FRAME_BYTES_MAX} are allowed")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not a frame of this protocol version.
    #[error("malformed control frame: {0}")]
    Malformed(String),
    /// A message that the connection's version does not have.
    #[error("control frame of a later version than this connection speaks")]
    OtherVersion,
    /// A legal frame with something behind it.
    #[error("control frame with {0} bytes behind its end")]
    Trailing(usize),
    /// A count or length beyond its bound.
    #[error("control frame with {what} of {found}: at most {most} are allowed")]
    OutOfBounds {
        /// Which field.
        what: &'static str,
        /// What it says.
        found: usize,
        /// Its bound.
        most: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct WireHello {
    image: [u8; 32],
    have: WireHave,
    rack: Option<String>,
}

#[derive(Serialize, Deserialize)]
enum WireHave {
    Nothing,
    Everything,
    Bits(#[serde(deserialize_with = "bounded_sequence::<_, u8, BITS_BYTES_MAX>")] Vec<u8>),
}

#[derive(Serialize, Deserialize)]
struct WireRun {
    first: u32,
    count: u32,
}

#[derive(Serialize, Deserialize)]
enum WireIp {
    V4([u8; 4]),
    V6([u8; 16]),
}

#[derive(Serialize, Deserialize)]
struct WireAddress {
    node: [u8; 32],
    ip: WireIp,
    port: u16,
}

#[derive(Serialize, Deserialize)]
enum WireMessage {
    Have(#[serde(deserialize_with = "bounded_sequence::<_, WireRun, HAVE_RUNS_MAX>")] Vec<WireRun>),
    Request(u32),
    Busy(u32),
    Cancel(u32),
    Peers(
        #[serde(deserialize_with = "bounded_sequence::<_, WireAddress, ADDRESSES_MAX>")]
        Vec<WireAddress>,
    ),
    Dial(
        #[serde(deserialize_with = "bounded_sequence::<_, WireAddress, ADDRESSES_MAX>")]
        Vec<WireAddress>,
    ),
    Drop(
        #[serde(deserialize_with = "bounded_sequence::<_, [u8; 32], ADDRESSES_MAX>")] Vec<[u8; 32]>,
    ),
    WantPeers,
    WantHaves(bool),
    Progress(u32),
    Offer(#[serde(deserialize_with = "bounded_sequence::<_, u32, OFFER_CHUNKS>")] Vec<u32>),
    NoRoom,
    NotNeeded,
    Revoked {
        version: u64,
        epoch: u32,
        #[serde(deserialize_with = "bounded_sequence::<_, [u8; 32], REVOKED_MAX>")]
        nodes: Vec<[u8; 32]>,
    },
    Dialed {
        outcome: WireOutcome,
        #[serde(deserialize_with = "bounded_sequence::<_, [u8; 32], ADDRESSES_MAX>")]
        nodes: Vec<[u8; 32]>,
    },
    Call(
        #[serde(deserialize_with = "bounded_sequence::<_, WireAddress, ADDRESSES_MAX>")]
        Vec<WireAddress>,
    ),
    CutOff(u32),
}

#[derive(Serialize, Deserialize)]
enum WireOutcome {
    Unanswered,
    GivenUp,
    Connected,
}

/// The bytes of a hello frame, without the length in front.
pub fn encode_hello(hello: &Hello) -> Vec<u8> {
    encode(&WireHello {
        image: *hello.image.as_bytes(),
        have: match &hello.have {
            Have::Nothing => WireHave::Nothing,
            Have::Everything => WireHave::Everything,
            Have::Bits(bits) => WireHave::Bits(bits.clone()),
        },
        rack: hello.rack.clone(),
    })
}

/// Reads a hello frame.
///
/// # Errors
/// Anything but exactly one legal hello.
pub fn decode_hello(frame: &[u8]) -> Result<Hello, DecodeError> {
    let wire: WireHello = decode(frame)?;
    if let Some(rack) = &wire.rack {
        bound("a rack name", rack.len(), RACK_BYTES_MAX)?;
    }
    let have = match wire.have {
        WireHave::Nothing => Have::Nothing,
        WireHave::Everything => Have::Everything,
        WireHave::Bits(bits) => {
            bound("a bit field", bits.len(), BITS_BYTES_MAX)?;
            Have::Bits(bits)
        }
    };
    Ok(Hello {
        image: ImageId::from_bytes(wire.image),
        have,
        rack: wire.rack,
    })
}

/// The bytes of a control frame, without the length in front.
pub fn encode_message(message: &Message) -> Vec<u8> {
    encode(&match message {
        Message::Have(runs) => WireMessage::Have(
            runs.iter()
                .map(|run| WireRun {
                    first: run.first.0,
                    count: run.count,
                })
                .collect(),
        ),
        Message::Request(index) => WireMessage::Request(index.0),
        Message::Busy(index) => WireMessage::Busy(index.0),
        Message::Cancel(index) => WireMessage::Cancel(index.0),
        Message::Peers(addresses) => WireMessage::Peers(to_wire(addresses)),
        Message::Dial(addresses) => WireMessage::Dial(to_wire(addresses)),
        Message::Drop(nodes) => WireMessage::Drop(nodes.iter().map(|node| node.0).collect()),
        Message::WantPeers => WireMessage::WantPeers,
        Message::WantHaves(on) => WireMessage::WantHaves(*on),
        Message::Progress(count) => WireMessage::Progress(*count),
        Message::Offer(chunks) => WireMessage::Offer(chunks.iter().map(|index| index.0).collect()),
        Message::NoRoom => WireMessage::NoRoom,
        Message::NotNeeded => WireMessage::NotNeeded,
        Message::Revoked(list) => WireMessage::Revoked {
            version: list.version,
            epoch: list.epoch,
            nodes: list.nodes.iter().map(|node| node.0).collect(),
        },
        Message::Dialed { outcome, nodes } => WireMessage::Dialed {
            outcome: match outcome {
                DialOutcome::Unanswered => WireOutcome::Unanswered,
                DialOutcome::GivenUp => WireOutcome::GivenUp,
                DialOutcome::Connected => WireOutcome::Connected,
            },
            nodes: nodes.iter().map(|node| node.0).collect(),
        },
        Message::Call(addresses) => WireMessage::Call(to_wire(addresses)),
        Message::CutOff(count) => WireMessage::CutOff(*count),
    })
}

/// Reads a control frame of the newest version. Whether the connection's version has such a message
/// ([`Message::wire`]) is the caller's to ask.
///
/// # Errors
/// Anything but exactly one legal message.
pub fn decode_message(frame: &[u8]) -> Result<Message, DecodeError> {
    Ok(match decode::<WireMessage>(frame)? {
        WireMessage::Have(runs) => {
            bound("have runs", runs.len(), HAVE_RUNS_MAX)?;
            let run = |run: WireRun| ChunkRun {
                first: ChunkIndex(run.first),
                count: run.count,
            };
            Message::Have(runs.into_iter().map(run).collect())
        }
        WireMessage::Request(index) => Message::Request(ChunkIndex(index)),
        WireMessage::Busy(index) => Message::Busy(ChunkIndex(index)),
        WireMessage::Cancel(index) => Message::Cancel(ChunkIndex(index)),
        WireMessage::Peers(addresses) => Message::Peers(from_wire(addresses)?),
        WireMessage::Dial(addresses) => Message::Dial(from_wire(addresses)?),
        WireMessage::Drop(nodes) => {
            bound("dropped nodes", nodes.len(), ADDRESSES_MAX)?;
            Message::Drop(nodes.into_iter().map(NodeId).collect())
        }
        WireMessage::WantPeers => Message::WantPeers,
        WireMessage::WantHaves(on) => Message::WantHaves(on),
        WireMessage::Progress(count) => Message::Progress(count),
        WireMessage::Offer(chunks) => {
            bound("offered chunks", chunks.len(), OFFER_CHUNKS)?;
            Message::Offer(chunks.into_iter().map(ChunkIndex).collect())
        }
        WireMessage::NoRoom => Message::NoRoom,
        WireMessage::NotNeeded => Message::NotNeeded,
        WireMessage::Revoked {
            version,
            epoch,
            nodes,
        } => {
            bound("revoked nodes", nodes.len(), REVOKED_MAX)?;
            Message::Revoked(Revocations {
                version,
                epoch,
                nodes: nodes.into_iter().map(NodeId).collect(),
            })
        }
        WireMessage::Dialed { outcome, nodes } => {
            bound("dialed nodes", nodes.len(), ADDRESSES_MAX)?;
            Message::Dialed {
                outcome: match outcome {
                    WireOutcome::Unanswered => DialOutcome::Unanswered,
                    WireOutcome::GivenUp => DialOutcome::GivenUp,
                    WireOutcome::Connected => DialOutcome::Connected,
                },
                nodes: nodes.into_iter().map(NodeId).collect(),
            }
        }
        WireMessage::Call(addresses) => Message::Call(from_wire(addresses)?),
        WireMessage::CutOff(count) => Message::CutOff(count),
    })
}

fn to_wire(addresses: &[PeerAddress]) -> Vec<WireAddress> {
    let wire = |address: &PeerAddress| WireAddress {
        node: address.node.0,
        ip: match address.addr.ip() {
            IpAddr::V4(ip) => WireIp::V4(ip.octets()),
            IpAddr::V6(ip) => WireIp::V6(ip.octets()),
        },
        port: address.addr.port(),
    };
    addresses.iter().map(wire).collect()
}

fn from_wire(wire: Vec<WireAddress>) -> Result<Vec<PeerAddress>, DecodeError> {
    bound("addresses", wire.len(), ADDRESSES_MAX)?;
    let address = |wire: WireAddress| {
        let ip = match wire.ip {
            WireIp::V4(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
            WireIp::V6(octets) => IpAddr::V6(Ipv6Addr::from(octets)),
        };
        PeerAddress {
            node: NodeId(wire.node),
            addr: SocketAddr::new(ip, wire.port),
        }
    };
    Ok(wire.into_iter().map(address).collect())
}

fn bound(what: &'static str, found: usize, most: usize) -> Result<(), DecodeError> {
    if found > most {
        return Err(DecodeError::OutOfBounds { what, found, most });
    }
    Ok(())
}

fn encode<T: Serialize>(wire: &T) -> Vec<u8> {
    // Encoding into memory fails only on a type without a length, of which there is none here,
    // or past the limit, which the callers' bounds (limits.rs) exclude.
    bincode::serde::encode_to_vec(wire, CONFIG).unwrap_or_default()
}

fn decode<T: for<'a> Deserialize<'a>>(frame: &[u8]) -> Result<T, DecodeError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong { found: frame.len() });
    }
    let (wire, used) = bincode::serde::decode_from_slice(frame, CONFIG)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match frame.len() - used {
        0 => Ok(wire),
        trailing => Err(DecodeError::Trailing(trailing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Wire;
    use proptest::prelude::*;

    fn address(byte: u8, ip: &str) -> PeerAddress {
        PeerAddress {
            node: NodeId([byte; 32]),
            addr: ip.parse().unwrap(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The frozen bytes of WIRE.md. A change here is a new protocol version.
    #[test]
    fn golden_bytes() {
        let id = "01".repeat(32);
        let node = "07".repeat(32);
        let run = ChunkRun {
            first: ChunkIndex(300),
            count: 2,
        };
        let cases: Vec<(Message, String)> = vec![
            (Message::Have(vec![run]), "0001fb2c0102".into()),
            (Message::Request(ChunkIndex(5)), "0105".into()),
            (Message::Busy(ChunkIndex(250)), "02fa".into()),
            (Message::Cancel(ChunkIndex(251)), "03fbfb00".into()),
            (
                Message::Peers(vec![address(7, "10.0.0.1:7400")]),
                format!("0401{node}000a000001fbe81c"),
            ),
            (
                Message::Dial(vec![address(7, "[fe80::1]:9")]),
                format!("0501{node}01fe80000000000000000000000000000109"),
            ),
            (Message::Drop(vec![NodeId([7; 32])]), format!("0601{node}")),
            (Message::WantPeers, "07".into()),
            (Message::WantHaves(true), "0801".into()),
            (Message::Progress(70_000), "09fc70110100".into()),
            (
                Message::Offer(vec![ChunkIndex(5), ChunkIndex(300)]),
                "0a0205fb2c01".into(),
            ),
            (Message::NoRoom, "0b".into()),
            (Message::NotNeeded, "0c".into()),
            (
                Message::Revoked(Revocations {
                    version: 300,
                    epoch: 3,
                    nodes: vec![NodeId([7; 32])],
                }),
                format!("0dfb2c010301{node}"),
            ),
        ];
        let nodes = vec![NodeId([7; 32])];
        let dialed = |outcome, nodes: &[NodeId]| Message::Dialed {
            outcome,
            nodes: nodes.to_vec(),
        };
        let since_4: Vec<(Message, String)> = vec![
            (
                dialed(DialOutcome::Unanswered, &nodes),
                format!("0e0001{node}"),
            ),
            (
                dialed(DialOutcome::GivenUp, &nodes),
                format!("0e0101{node}"),
            ),
            (dialed(DialOutcome::Connected, &[]), "0e0200".into()),
            (
                Message::Call(vec![address(7, "10.0.0.1:7401")]),
                format!("0f01{node}000a000001fbe91c"),
            ),
            (Message::CutOff(3), "1003".into()),
        ];
        for (wire, cases) in [(Wire::V3, cases), (Wire::V4, since_4)] {
            for (message, bytes) in cases {
                assert_eq!(message.wire(), wire, "{message:?}");
                assert_eq!(hex(&encode_message(&message)), bytes, "{message:?}");
                assert_eq!(decode_message(&encode_message(&message)), Ok(message));
            }
        }
        let image = ImageId::from_bytes([1; 32]);
        let hellos = [
            (
                Hello {
                    image,
                    have: Have::Nothing,
                    rack: None,
                },
                format!("{id}0000"),
            ),
            (
                Hello {
                    image,
                    have: Have::Everything,
                    rack: None,
                },
                format!("{id}0100"),
            ),
            (
                Hello {
                    image,
                    have: Have::Bits(vec![5]),
                    rack: Some("r1".into()),
                },
                format!("{id}02010501027231"),
            ),
        ];
        for (hello, bytes) in hellos {
            assert_eq!(hex(&encode_hello(&hello)), bytes, "{hello:?}");
            assert_eq!(decode_hello(&encode_hello(&hello)), Ok(hello));
        }
    }

    #[test]
    fn refuses() {
        let too_many = vec![address(1, "10.0.0.1:1"); ADDRESSES_MAX + 1];
        let runs = vec![
            ChunkRun {
                first: ChunkIndex(0),
                count: 1
            };
            HAVE_RUNS_MAX + 1
        ];
        let long_rack = Hello {
            image: ImageId::from_bytes([0; 32]),
            have: Have::Nothing,
            rack: Some("r".repeat(65)),
        };
        assert!(matches!(
            decode_message(&encode_message(&Message::Peers(too_many))),
            Err(DecodeError::OutOfBounds {
                what: "addresses",
                found: 65,
                most: 64
            })
        ));
        assert!(matches!(
            decode_message(&encode_message(&Message::Have(runs))),
            Err(DecodeError::OutOfBounds {
                what: "have runs",
                ..
            })
        ));
        assert!(matches!(
            decode_hello(&encode_hello(&long_rack)),
            Err(DecodeError::OutOfBounds {
                what: "a rack name",
                ..
            })
        ));
        assert_eq!(decode_message(&[7, 0]), Err(DecodeError::Trailing(1)));
        assert!(matches!(
            decode_message(&[]),
            Err(DecodeError::Malformed(_))
        ));
        assert!(matches!(
            decode_message(&[200]),
            Err(DecodeError::Malformed(_))
        ));
        // Lengths of 2^62: refused by the limit. What a claim may cost in memory is held to a bound
        // by the fuzz targets and their corpora (tests/fuzz).
        for tag in [0, 4, 5, 6, 15] {
            let claim = [&[tag, 0xfd][..], &(1u64 << 62).to_le_bytes()].concat();
            assert!(
                matches!(decode_message(&claim), Err(DecodeError::Malformed(_))),
                "tag {tag}"
            );
        }
        assert_eq!(
            decode_message(&vec![0; FRAME_BYTES_MAX + 1]),
            Err(DecodeError::TooLong {
                found: FRAME_BYTES_MAX + 1
            })
        );
    }

    #[test]
    fn the_largest_legal_frames_fit() {
        let bits = Have::Bits(vec![0xff; CHUNKS_MAX as usize / 8]);
        let hello = Hello {
            image: ImageId::from_bytes([9; 32]),
            have: bits,
            rack: Some("r".repeat(64)),
        };
        assert_eq!(decode_hello(&encode_hello(&hello)), Ok(hello));
        let run = ChunkRun {
            first: ChunkIndex(u32::MAX),
            count: u32::MAX,
        };
        let have = Message::Have(vec![run; HAVE_RUNS_MAX]);
        assert_eq!(decode_message(&encode_message(&have)), Ok(have));
        let dial = Message::Dial(vec![address(255, "[ffff::ffff]:65535"); ADDRESSES_MAX]);
        assert_eq!(decode_message(&encode_message(&dial)), Ok(dial));
    }

    proptest! {
        /// Whatever arrives, decoding ends without a panic, and what it accepts it re-encodes.
        #[test]
        fn any_bytes(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode_message(&frame) {
                prop_assert_eq!(decode_message(&encode_message(&message)), Ok(message));
            }
            if let Ok(hello) = decode_hello(&frame) {
                prop_assert_eq!(decode_hello(&encode_hello(&hello)), Ok(hello));
            }
        }
    }
}
