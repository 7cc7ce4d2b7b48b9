//! The target for what a peer can make a node decide: frames and chunk streams in any order.
//!
//! The input is a script for up to eight connections. What reaches the node is what the transport
//! would let through (a frame that decodes, a chunk that the image has, the outcome of what was
//! really under way), so that whatever breaks here a peer can break from afar.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use rootswarm_image::{Bitfield, ChunkIndex, ChunkSize, Geometry, ImageId};
use rootswarm_swarm::{
    ChunkOutcome, ChunkRun, Config, ConnId, DialOutcome, Have, Hello, Input, Instant, Message,
    Node, NodeId, Output, PeerAddress, Role, UploadOutcome, Wire, decode_hello, decode_message,
    limits,
};

const CHUNKS: u32 = 300;
const CONNECTIONS: u8 = 8;
/// A step may produce a frame for each peer and a chunk for each slot, and some more.
const OUTPUTS_MAX: usize = 4096;

fn image() -> ImageId {
    ImageId::from_bytes([1; 32])
}

/// The script, read from the front; zeros when it is over.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn index(&mut self) -> ChunkIndex {
        // Mostly chunks that there are.
        ChunkIndex(u32::from(u16::from_le_bytes([self.byte(), self.byte()])) % (CHUNKS + 2))
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

fn id(number: u8) -> NodeId {
    NodeId([number; 32])
}

fn address(number: u8) -> PeerAddress {
    PeerAddress {
        node: id(number),
        addr: SocketAddr::from(([10, 0, 0, number], 7400)),
    }
}

struct World {
    node: Node,
    now: Instant,
    is_seed: bool,
    open: BTreeSet<ConnId>,
    next_conn: u64,
    arriving: BTreeSet<(ConnId, ChunkIndex)>,
    uploading: BTreeSet<(ConnId, ChunkIndex)>,
    dialing: BTreeSet<NodeId>,
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script(input);
    let setup = script.byte();
    let is_seed = setup & 1 == 1;
    let size = ChunkSize::from_bytes(64 * 1024).expect("a chunk size");
    let have = if is_seed || setup & 2 == 2 {
        Bitfield::full(CHUNKS)
    } else {
        Bitfield::new(CHUNKS)
    };
    let config = Config {
        node: id(100),
        role: if is_seed { Role::Seed } else { Role::Peer },
        image: image(),
        geometry: Geometry::new(u64::from(CHUNKS) * 65_536 - 7, size).expect("a geometry"),
        have,
        rack: Some("r1".into()),
        rng_seed: u64::from(setup),
    };
    let mut world = World {
        node: Node::new(config, Instant::ZERO),
        now: Instant(1),
        is_seed,
        open: BTreeSet::new(),
        next_conn: 0,
        arriving: BTreeSet::new(),
        uploading: BTreeSet::new(),
        dialing: BTreeSet::new(),
    };
    while !script.0.is_empty() {
        world.step(&mut script);
    }
    world.finish();
}

impl World {
    fn step(&mut self, script: &mut Script<'_>) {
        let what = script.byte();
        let conn = self.pick(script.byte());
        match (what % 16, conn) {
            (0, _) => self.connect(script),
            (1, Some(conn)) => {
                let hello = match script.byte() % 3 {
                    0 => Hello {
                        image: image(),
                        have: Have::Everything,
                        rack: None,
                    },
                    1 => Hello {
                        image: image(),
                        have: Have::Bits(script.bytes(CHUNKS.div_ceil(8) as usize)),
                        rack: Some("r2".into()),
                    },
                    _ => {
                        let length = usize::from(script.byte());
                        match decode_hello(&script.bytes(length)) {
                            // The transport sorts connections by their image.
                            Ok(hello) => Hello {
                                image: image(),
                                ..hello
                            },
                            Err(_) => return self.disconnect(conn),
                        }
                    }
                };
                self.tell(Input::Hello { conn, hello });
            }
            (2, Some(conn)) => {
                let length = usize::from(script.byte());
                match decode_message(&script.bytes(length)) {
                    Ok(message) => self.tell(Input::Message { conn, message }),
                    // The transport ends a connection with a frame that it cannot read.
                    Err(_) => self.disconnect(conn),
                }
            }
            (3..=8, Some(conn)) => {
                let message = Self::message(what, script);
                self.tell(Input::Message { conn, message });
            }
            (9, Some(conn)) if !self.is_seed => {
                let index = script.index();
                if index.0 < CHUNKS {
                    self.arriving.insert((conn, index));
                    self.tell(Input::ChunkStarted { conn, index });
                }
            }
            (10, _) => {
                let outcome = match script.byte() % 3 {
                    0 => ChunkOutcome::Verified,
                    1 => ChunkOutcome::Corrupt,
                    _ => ChunkOutcome::Broken,
                };
                if let Some((conn, index)) = self.arriving.pop_first() {
                    self.tell(Input::ChunkEnded {
                        conn,
                        index,
                        outcome,
                    });
                }
            }
            (11, _) => {
                let outcome = match script.byte() % 4 {
                    0 => UploadOutcome::Delivered,
                    1 => UploadOutcome::Refused,
                    2 => UploadOutcome::Failed,
                    _ => {
                        if let Some((conn, index)) = self.uploading.first().copied() {
                            self.tell(Input::UploadStalled { conn, index });
                        }
                        return;
                    }
                };
                if let Some((conn, index)) = self.uploading.pop_first() {
                    self.tell(Input::UploadEnded {
                        conn,
                        index,
                        outcome,
                    });
                }
            }
            (12, Some(conn)) => match script.byte() % 8 {
                0 => self.tell(Input::LocalGone { conn }),
                1 => self.tell(Input::RemoteMoved { conn }),
                _ => self.disconnect(conn),
            },
            (13, _) => {
                if let Some(node) = self.dialing.pop_first() {
                    self.tell(Input::DialFailed {
                        node,
                        answered: script.byte() & 1 == 1,
                    });
                }
            }
            (14, _) => {
                let index = script.index();
                if index.0 < CHUNKS && !self.is_seed {
                    self.tell(Input::Want { index });
                }
            }
            _ => {
                // From a fraction of a millisecond to some seconds.
                self.now = Instant(self.now.0 + (1 << (script.byte() % 23)));
                self.tell(Input::Timeout);
            }
        }
    }

    fn message(what: u8, script: &mut Script<'_>) -> Message {
        match what % 16 {
            3 => Message::Request(script.index()),
            4 => Message::Have(vec![ChunkRun {
                first: script.index(),
                count: u32::from(script.byte()),
            }]),
            5 => Message::Offer(vec![script.index(), script.index()]),
            6 => match script.byte() % 4 {
                0 => Message::Busy(script.index()),
                1 => Message::Cancel(script.index()),
                2 => Message::NoRoom,
                _ => Message::NotNeeded,
            },
            7 => match script.byte() % 8 {
                0 | 4 => Message::WantPeers,
                1 => Message::WantHaves(script.byte() & 1 == 1),
                2 => Message::Progress(u32::from(script.byte()) << (script.byte() % 25)),
                3 => Message::Drop(vec![id(script.byte())]),
                5 => Message::Call(vec![address(script.byte())]),
                6 => Message::CutOff(u32::from(script.byte())),
                _ => Message::Dialed {
                    outcome: match script.byte() % 3 {
                        0 => DialOutcome::Unanswered,
                        1 => DialOutcome::GivenUp,
                        _ => DialOutcome::Connected,
                    },
                    nodes: vec![id(script.byte()), id(script.byte())],
                },
            },
            _ => {
                let addresses = vec![address(script.byte()), address(script.byte())];
                match script.byte() & 1 {
                    0 => Message::Peers(addresses),
                    _ => Message::Dial(addresses),
                }
            }
        }
    }

    fn pick(&self, byte: u8) -> Option<ConnId> {
        let open = self.open.len();
        self.open
            .iter()
            .nth(usize::from(byte) % open.max(1))
            .copied()
    }

    fn connect(&mut self, script: &mut Script<'_>) {
        if self.open.len() >= usize::from(CONNECTIONS) {
            return;
        }
        let flags = script.byte();
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.open.insert(conn);
        let number = script.byte();
        self.tell(Input::Connected {
            conn,
            node: id(number),
            addr: address(number).addr,
            role: if flags & 3 == 3 && !self.is_seed {
                Role::Seed
            } else {
                Role::Peer
            },
            dialed: flags & 4 == 4 && !self.is_seed,
            wire: if flags & 8 == 8 { Wire::V3 } else { Wire::V4 },
        });
    }

    fn disconnect(&mut self, conn: ConnId) {
        self.forget(conn);
        self.tell(Input::Disconnected { conn });
    }

    fn forget(&mut self, conn: ConnId) {
        self.open.remove(&conn);
        self.arriving.retain(|(whose, _)| *whose != conn);
        self.uploading.retain(|(whose, _)| *whose != conn);
    }

    fn tell(&mut self, input: Input) {
        self.node.handle(self.now, input);
        let mut outputs = 0;
        while let Some(output) = self.node.poll_output() {
            outputs += 1;
            assert!(outputs < OUTPUTS_MAX, "one input made {outputs} outputs");
            match output {
                Output::Upload { conn, index } => {
                    assert!(index.0 < CHUNKS, "an upload of chunk {index}");
                    assert!(self.node.have().get(index), "an upload of what is lacking");
                    assert!(self.open.contains(&conn), "an upload to nobody");
                    let is_new = self.uploading.insert((conn, index));
                    assert!(is_new, "chunk {index} is on its way there already");
                }
                Output::CancelUpload { conn, index } => {
                    if self.uploading.remove(&(conn, index)) {
                        // As the driver does: it is told of the end at once.
                        self.node.handle(
                            self.now,
                            Input::UploadEnded {
                                conn,
                                index,
                                outcome: UploadOutcome::Refused,
                            },
                        );
                    }
                }
                Output::StopChunk { conn, index } => {
                    self.arriving.remove(&(conn, index));
                }
                Output::Dial { node, .. } => {
                    assert!(!self.is_seed, "a seed dials nobody");
                    self.dialing.insert(node);
                }
                Output::Close { conn, .. } => self.forget(conn),
                Output::Hello { .. }
                | Output::Send { .. }
                | Output::Revoked(_)
                | Output::Complete => {}
            }
        }
    }

    fn finish(&self) {
        let report = self.node.report(self.now);
        assert!(report.peers.len() <= usize::from(CONNECTIONS));
        assert!(report.in_flight <= limits::IN_FLIGHT_MAX + 8 * limits::PUSHES_MAX);
        assert!(report.bans.len() <= limits::BANS_MAX);
        assert!(self.node.next_timeout() <= self.now + limits::HOUSEKEEPING);
    }
}
