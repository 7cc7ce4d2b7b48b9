//! Nodes joined by perfect wires: what each rule does, and what is refused.
//!
//! [`Bench`] is one node whose peers are played by the test; `wires` joins real nodes.

mod announcements;
mod long_chunks;
mod offers;
mod racks;
mod reaching;
mod revocation;
mod rewiring;
mod starving;
mod surplus;
mod wires;

use super::{ChunkOutcome, CloseReason, Config, Input, Node, Output, UploadOutcome};
use crate::id::{ConnId, NodeId, Role};
use crate::limits;
use crate::message::{ChunkRun, DialOutcome, Have, Hello, Message, PeerAddress, Wire};
use crate::time::Instant;
use rootswarm_image::{Bitfield, ChunkIndex, ChunkSize, Geometry, ImageId};
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

const CHUNKS: u32 = 20;

fn id(number: u64) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    NodeId(bytes)
}

fn addr(number: u64) -> SocketAddr {
    ([10, 0, 0, number as u8], 7400).into()
}

fn image() -> ImageId {
    ImageId::from_bytes([1; 32])
}

fn node(number: u64, role: Role, have: Bitfield) -> Node {
    let size = ChunkSize::from_bytes(256 * 1024).unwrap();
    let config = Config {
        node: id(number),
        role,
        image: image(),
        geometry: Geometry::new(u64::from(CHUNKS) * size.bytes(), size).unwrap(),
        have,
        rack: None,
        rng_seed: number,
    };
    Node::new(config, Instant::ZERO)
}

fn some(chunks: &[u32]) -> Bitfield {
    let mut have = Bitfield::new(CHUNKS);
    for index in chunks {
        have.set(ChunkIndex(*index));
    }
    have
}

fn hello(have: Have) -> Hello {
    Hello {
        image: image(),
        have,
        rack: None,
    }
}

fn run(first: u32, count: u32) -> Vec<ChunkRun> {
    vec![ChunkRun {
        first: ChunkIndex(first),
        count,
    }]
}

/// Node 5, and a test that plays the others.
struct Bench {
    node: Node,
    now: Instant,
}

impl Bench {
    fn new(role: Role, have: Bitfield) -> Self {
        Self {
            node: node(5, role, have),
            now: Instant(1_000),
        }
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.node.handle(self.now, input);
        std::iter::from_fn(|| self.node.poll_output()).collect()
    }

    fn connect(&mut self, conn: u64, role: Role, dialed: bool) -> Vec<Output> {
        let (conn, node, addr) = (ConnId(conn), id(conn), addr(conn));
        self.input(Input::Connected {
            conn,
            node,
            addr,
            role,
            dialed,
            wire: Wire::V4,
        })
    }

    /// Node `conn`, which did not dial and holds `have`.
    fn meet(&mut self, conn: u64, role: Role, have: Have) -> Vec<Output> {
        self.connect(conn, role, true);
        let conn = ConnId(conn);
        self.input(Input::Hello {
            conn,
            hello: hello(have),
        })
    }

    fn say(&mut self, conn: u64, message: Message) -> Vec<Output> {
        let conn = ConnId(conn);
        self.input(Input::Message { conn, message })
    }

    fn started(&mut self, conn: u64, index: u32) -> Vec<Output> {
        let (conn, index) = (ConnId(conn), ChunkIndex(index));
        self.input(Input::ChunkStarted { conn, index })
    }

    fn ended(&mut self, conn: u64, index: u32, outcome: ChunkOutcome) -> Vec<Output> {
        self.input(Input::ChunkEnded {
            conn: ConnId(conn),
            index: ChunkIndex(index),
            outcome,
        })
    }

    fn later(&mut self, delay: Duration) -> Vec<Output> {
        self.now = self.now + delay;
        let outputs = self.input(Input::Timeout);
        assert!(self.node.next_timeout() > self.now, "a timeout in vain");
        outputs
    }
}

/// `(conn, chunk)` of each request.
fn requests(outputs: &[Output]) -> Vec<(u64, u32)> {
    let request = |output: &Output| match output {
        Output::Send {
            conn,
            message: Message::Request(index),
        } => Some((conn.0, index.0)),
        _ => None,
    };
    outputs.iter().filter_map(request).collect()
}

fn closes(outputs: &[Output]) -> Vec<(u64, CloseReason)> {
    let close = |output: &Output| match output {
        Output::Close { conn, reason } => Some((conn.0, *reason)),
        _ => None,
    };
    outputs.iter().filter_map(close).collect()
}

fn uploads(outputs: &[Output]) -> Vec<(u64, u32)> {
    let upload = |output: &Output| match output {
        Output::Upload { conn, index } => Some((conn.0, index.0)),
        _ => None,
    };
    outputs.iter().filter_map(upload).collect()
}

fn stop(conn: u64, index: u32) -> Output {
    Output::StopChunk {
        conn: ConnId(conn),
        index: ChunkIndex(index),
    }
}

fn send(conn: u64, message: Message) -> Output {
    Output::Send {
        conn: ConnId(conn),
        message,
    }
}

/// What no honest node says ends the connection, with the reason.
#[test]
fn protocol_violations() {
    let address = PeerAddress {
        node: id(9),
        addr: addr(9),
    };
    for (message, reason) in [
        (Message::Have(run(19, 2)), "a have beyond the image"),
        (Message::Have(run(20, 1)), "a have beyond the image"),
        (Message::Have(run(0, 0)), "a have beyond the image"),
        (Message::Have(run(u32::MAX, 2)), "a have beyond the image"),
        (Message::Dial(vec![address]), "a seed's message from a peer"),
        (Message::Drop(vec![id(9)]), "a seed's message from a peer"),
        (Message::WantHaves(true), "a seed's message from a peer"),
        (Message::Call(vec![address]), "a seed's message from a peer"),
        (Message::CutOff(1), "a seed's message from a peer"),
        (
            Message::Dialed {
                outcome: DialOutcome::GivenUp,
                nodes: vec![id(9)],
            },
            "a report for a seed",
        ),
    ] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.meet(1, Role::Peer, Have::Nothing);
        let outputs = bench.say(1, message.clone());
        assert_eq!(
            closes(&outputs),
            [(1, CloseReason::Protocol(reason))],
            "{message:?}"
        );
        assert_eq!(bench.say(1, Message::WantPeers), [], "it is gone");
    }
    // The last chunk is still within.
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(1, Role::Peer, Have::Nothing);
    assert_eq!(closes(&bench.say(1, Message::Have(run(19, 1)))), []);
}

#[test]
fn hellos_that_are_refused() {
    let other = Hello {
        image: ImageId::from_bytes([2; 32]),
        ..hello(Have::Nothing)
    };
    let short = hello(Have::Bits(vec![0; 2]));
    let stray = hello(Have::Bits(vec![0, 0, 0xf0]));
    for refused in [other, short, stray] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.connect(1, Role::Peer, true);
        let (conn, hello) = (ConnId(1), refused);
        let outputs = bench.input(Input::Hello { conn, hello });
        assert_eq!(closes(&outputs).len(), 1);
    }
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.connect(1, Role::Peer, true);
    let early = closes(&bench.say(1, Message::WantPeers));
    assert_eq!(
        early,
        [(1, CloseReason::Protocol("a message before hello"))]
    );
    bench.meet(2, Role::Peer, Have::Nothing);
    let (conn, hello) = (ConnId(2), hello(Have::Nothing));
    let twice = bench.input(Input::Hello { conn, hello });
    assert_eq!(closes(&twice).len(), 1);
}

/// Of two connections that crossed, both sides keep the one that the smaller id dialed; of two
/// from the same side, the newer.
#[test]
fn duplicate_connections() {
    for (other, first_dialed, second_dialed, closed_first) in [
        (9, true, false, false), // ours stays: 5 < 9
        (9, false, true, true),
        (1, true, false, true), // theirs stays: 1 < 5
        (1, false, true, false),
        (1, true, true, true),
        (9, false, false, true),
    ] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        let mut connect = |conn, dialed| {
            bench.input(Input::Connected {
                conn: ConnId(conn),
                node: id(other),
                addr: addr(other),
                role: Role::Peer,
                dialed,
                wire: Wire::V4,
            })
        };
        connect(100, first_dialed);
        let closed = closes(&connect(101, second_dialed));
        let expected = if closed_first { 100 } else { 101 };
        assert_eq!(
            closed,
            [(expected, CloseReason::Duplicate)],
            "{other} {first_dialed} {second_dialed}"
        );
    }
}

#[test]
fn itself_and_too_many_are_sent_away() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    assert_eq!(closes(&bench.connect(5, Role::Peer, true)).len(), 1);
    for conn in 100..100 + limits::PEERS_MAX as u64 {
        assert_eq!(closes(&bench.connect(conn, Role::Peer, false)), []);
    }
    let full = closes(&bench.connect(99, Role::Peer, false));
    assert_eq!(full, [(99, CloseReason::Full)]);
    assert_eq!(closes(&bench.connect(98, Role::Seed, true)), [], "a seed");
}

#[test]
fn a_corrupt_chunk_bans_its_sender_for_good() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    let asked = requests(&bench.meet(1, Role::Peer, Have::Everything));
    assert_eq!(asked.len(), limits::IN_FLIGHT - limits::KEPT_FOR_OFFERS);
    bench.started(1, asked[0].1);
    let outputs = bench.ended(1, asked[0].1, ChunkOutcome::Corrupt);
    assert_eq!(closes(&outputs), [(1, CloseReason::Banned)]);
    let report = bench.node.report(bench.now);
    assert_eq!((report.in_flight, report.bans.len()), (0, 1));
    assert_eq!(report.bans[0].node, id(1));
    let again = closes(&bench.connect(1, Role::Peer, false));
    assert_eq!(again, [(1, CloseReason::Banned)]);
    let hint = PeerAddress {
        node: id(1),
        addr: addr(1),
    };
    bench.meet(2, Role::Peer, Have::Nothing);
    let outputs = bench.say(2, Message::Peers(vec![hint]));
    assert!(!outputs.iter().any(|o| matches!(o, Output::Dial { .. })));
}

#[test]
fn requests_are_answered_by_a_chunk_or_busy() {
    let mut bench = Bench::new(Role::Peer, some(&[3, 4, 5]));
    bench.meet(1, Role::Peer, Have::Nothing);
    let mut ask = |index| bench.say(1, Message::Request(ChunkIndex(index)));
    let busy = |index| [send(1, Message::Busy(ChunkIndex(index)))];
    assert_eq!(uploads(&ask(3)), [(1, 3)]);
    assert_eq!(ask(3), busy(3), "under way already");
    assert_eq!(ask(7), busy(7), "not held");
    assert_eq!(ask(u32::MAX), busy(u32::MAX), "not in the image");
    assert_eq!(uploads(&ask(4)), [(1, 4)]);
    assert_eq!(ask(5), busy(5), "no slot");
    let cancel = bench.say(1, Message::Cancel(ChunkIndex(3)));
    let (conn, index) = (ConnId(1), ChunkIndex(3));
    assert_eq!(cancel, [Output::CancelUpload { conn, index }]);
    assert_eq!(bench.say(1, Message::Cancel(ChunkIndex(9))), []);
    let outcome = UploadOutcome::Refused;
    bench.input(Input::UploadEnded {
        conn,
        index,
        outcome,
    });
    assert_eq!(
        uploads(&bench.say(1, Message::Request(ChunkIndex(5)))),
        [(1, 5)]
    );
}

#[test]
fn a_busy_peer_is_left_alone_for_a_moment() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    let asked = requests(&bench.meet(1, Role::Peer, Have::Bits(vec![1, 0, 0])));
    assert_eq!(asked, [(1, 0)]);
    assert_eq!(requests(&bench.say(1, Message::Busy(ChunkIndex(0)))), []);
    let wait = bench.node.next_timeout().since(bench.now);
    let (low, high) = limits::BUSY_BACKOFF_US;
    assert!(
        (low..=high).contains(&(wait.as_micros() as u64)),
        "{wait:?}"
    );
    assert_eq!(requests(&bench.later(wait)), [(1, 0)]);
    assert_eq!(
        requests(&bench.say(1, Message::Busy(ChunkIndex(9)))),
        [],
        "a Busy for what was not asked"
    );
    assert_eq!(bench.node.in_flight(), 1);
}

/// An unanswered request is withdrawn, its chunk asked of somebody else, and in the end the
/// peer is given up.
#[test]
fn a_silent_peer_is_given_up() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(1, Role::Peer, Have::Bits(vec![1, 0, 0]));
    let outputs = bench.later(limits::ANSWER_TIMEOUT_MIN);
    assert!(outputs.contains(&send(1, Message::Cancel(ChunkIndex(0)))));
    assert_eq!(requests(&outputs), [], "not the same peer at once");
    assert_eq!(
        requests(&bench.meet(2, Role::Peer, Have::Bits(vec![1, 0, 0]))),
        [(2, 0)]
    );
    bench.input(Input::Disconnected { conn: ConnId(2) });
    let mut closed = Vec::new();
    for _ in 0..600 {
        closed.extend(closes(&bench.later(Duration::from_millis(100))));
    }
    assert_eq!(closed, [(1, CloseReason::Unresponsive)]);
}

/// A push that crosses a request takes its place; what is held or already arriving is stopped.
/// Who asks as often as honest nodes do is answered; who asks all the time is thrown out.
#[test]
fn asks_for_peers_all_the_time() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(1, Role::Peer, Have::Nothing);
    bench.meet(2, Role::Peer, Have::Nothing);
    for _ in 0..3 * limits::ASKED_IN_VAIN_MAX {
        bench.later(limits::HOUSEKEEPING);
        assert_eq!(bench.say(1, Message::WantPeers).len(), 1);
        assert_eq!(bench.say(1, Message::WantPeers), [], "too soon");
    }
    for _ in 1..limits::ASKED_IN_VAIN_MAX {
        assert_eq!(closes(&bench.say(1, Message::WantPeers)), []);
    }
    let reason = CloseReason::Protocol("asks for peers all the time");
    assert_eq!(closes(&bench.say(1, Message::WantPeers)), [(1, reason)]);
}

#[test]
fn pushes() {
    let mut bench = Bench::new(Role::Peer, some(&[7]));
    bench.meet(1, Role::Seed, Have::Everything);
    assert_eq!(bench.started(1, 7), [stop(1, 7)], "held");
    let asked = requests(&bench.meet(2, Role::Peer, Have::Bits(vec![1, 0, 0])));
    assert_eq!(asked, [(2, 0)]);
    let crossed = bench.started(1, 0);
    assert!(crossed.contains(&send(2, Message::Cancel(ChunkIndex(0)))));
    assert_eq!(bench.started(2, 0), [stop(2, 0)], "called off");
    bench.ended(1, 0, ChunkOutcome::Verified);
    assert!(bench.node.have().get(ChunkIndex(0)));

    bench.say(2, Message::Have(run(1, 1)));
    bench.started(2, 1);
    assert_eq!(bench.started(1, 1), [stop(1, 1)], "the one that moves wins");
    bench.meet(3, Role::Peer, Have::Nothing);
    let reason = CloseReason::Protocol("more chunks than requests");
    assert_eq!(
        closes(&bench.started(3, 2)),
        [(3, reason)],
        "a peer does not push"
    );
    // Nor does it answer twice.
    assert_eq!(closes(&bench.started(2, 1)), [(2, reason)]);
    assert_eq!(closes(&bench.started(1, CHUNKS)).len(), 1);
}

/// What takes long at the end is asked of a second peer; the slower one is stopped.
#[test]
fn endgame() {
    let all_but_0: Vec<u32> = (1..CHUNKS).collect();
    let mut bench = Bench::new(Role::Peer, some(&all_but_0));
    bench.meet(1, Role::Peer, Have::Bits(vec![1, 0, 0]));
    bench.started(1, 0);
    bench.meet(2, Role::Peer, Have::Everything);
    assert_eq!(bench.node.in_flight(), 1);
    let asked = requests(&bench.later(Duration::from_millis(200)));
    assert_eq!(asked, [(2, 0)]);
    assert_eq!(requests(&bench.later(Duration::from_millis(20))), []);
    bench.started(2, 0);
    let outputs = bench.ended(2, 0, ChunkOutcome::Verified);
    assert!(outputs.contains(&stop(1, 0)) && outputs.contains(&Output::Complete));
    let late = bench.ended(1, 0, ChunkOutcome::Verified);
    assert!(!late.contains(&Output::Complete), "only once");
    assert_eq!(bench.node.report(bench.now).chunks_duplicate, 1);
}

#[test]
fn a_wanted_chunk_goes_first_and_others_ways_count() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.input(Input::Want {
        index: ChunkIndex(13),
    });
    bench.input(Input::Want {
        index: ChunkIndex(CHUNKS),
    });
    let asked = requests(&bench.meet(1, Role::Peer, Have::Everything));
    assert_eq!(asked[0], (1, 13));
    let stored = bench.input(Input::ChunkStored {
        index: ChunkIndex(13),
    });
    assert!(stored.contains(&send(1, Message::Cancel(ChunkIndex(13)))));
    assert!(bench.node.have().get(ChunkIndex(13)));
}

/// A seed pushes each chunk once and answers requests only when all have been sent.
#[test]
fn a_seed_sends_once_before_twice() {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    let mut queue: VecDeque<_> = uploads(&bench.meet(1, Role::Peer, Have::Nothing)).into();
    let early = bench.say(1, Message::Request(ChunkIndex(0)));
    assert_eq!(early, [send(1, Message::Busy(ChunkIndex(0)))]);
    let mut sent = BTreeSet::new();
    while let Some((conn, index)) = queue.pop_front() {
        assert!(sent.insert(index), "{index} twice");
        bench.now = bench.now + Duration::from_millis(2);
        let outputs = bench.input(Input::UploadEnded {
            conn: ConnId(conn),
            index: ChunkIndex(index),
            outcome: UploadOutcome::Delivered,
        });
        queue.extend(uploads(&outputs));
        let outputs = bench.say(1, Message::Have(run(index, 1)));
        queue.extend(uploads(&outputs));
    }
    assert_eq!(sent.len(), CHUNKS as usize);
    bench.meet(2, Role::Peer, Have::Nothing);
    let second = bench.say(2, Message::Request(ChunkIndex(0)));
    assert_eq!(uploads(&second), [(2, 0)]);
    // The only holder leaves: what nobody else holds goes out again.
    let orphans = uploads(&bench.input(Input::Disconnected { conn: ConnId(1) }));
    assert!(!orphans.is_empty() && orphans.iter().all(|(conn, _)| *conn == 2));
}

/// What a receiver is stuck with goes to another.
#[test]
fn a_stuck_push_goes_to_another() {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    let stuck = uploads(&bench.meet(1, Role::Peer, Have::Nothing));
    assert_eq!(stuck.len(), limits::UPLOAD_SLOTS_FIRST);
    assert_eq!(uploads(&bench.meet(2, Role::Peer, Have::Nothing)), []);
    let again = uploads(&bench.later(limits::UPLOAD_PATIENCE_FIRST));
    assert!(again.iter().all(|(conn, _)| *conn == 2));
    let chunks = |uploads: &[(u64, u32)]| -> BTreeSet<u32> {
        uploads.iter().map(|(_, index)| *index).collect()
    };
    assert_eq!(chunks(&again), chunks(&stuck));
}

/// Nodes that refuse whatever they are pushed hold all places among the fed: the one that came after them
/// has the image all the same, and soon.
#[test]
fn who_refuses_all_pushes_loses_his_place() {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    let first = 10;
    let honest = first + limits::SEED_NEIGHBOURS as u64;
    let mut queue = VecDeque::new();
    for conn in first..=honest {
        queue.extend(uploads(&bench.meet(conn, Role::Peer, Have::Nothing)));
    }
    let (began, mut held) = (bench.now, BTreeSet::new());
    while held.len() < CHUNKS as usize {
        let Some((conn, index)) = queue.pop_front() else {
            queue.extend(uploads(&bench.later(Duration::from_millis(5))));
            assert!(
                bench.now.since(began) < Duration::from_secs(5),
                "{} held",
                held.len()
            );
            continue;
        };
        let outcome = match conn == honest {
            true => UploadOutcome::Delivered,
            false => UploadOutcome::Refused,
        };
        let outputs = bench.input(Input::UploadEnded {
            conn: ConnId(conn),
            index: ChunkIndex(index),
            outcome,
        });
        queue.extend(uploads(&outputs));
        if conn == honest && held.insert(index) {
            queue.extend(uploads(&bench.say(conn, Message::Have(run(index, 1)))));
        }
    }
}

/// The tracker introduces newcomers, and tells both ends of an edge that it is no more.
#[test]
fn the_tracker_introduces() {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    bench.meet(1, Role::Peer, Have::Nothing);
    let outputs = bench.meet(2, Role::Peer, Have::Nothing);
    let address = PeerAddress {
        node: id(1),
        addr: addr(1),
    };
    assert!(outputs.contains(&send(2, Message::Dial(vec![address]))));

    let mut peer = Bench::new(Role::Peer, some(&[]));
    peer.meet(100, Role::Seed, Have::Everything);
    let dials = peer.say(100, Message::Dial(vec![address]));
    let (node, addr) = (id(1), addr(1));
    assert_eq!(dials, [Output::Dial { node, addr }]);
    assert_eq!(peer.say(100, Message::Dial(vec![address])), [], "once");
    peer.input(Input::DialFailed {
        node,
        answered: false,
    });
    peer.say(100, Message::Drop(vec![node]));
    peer.meet(1, Role::Peer, Have::Nothing);
    assert_eq!(
        closes(&peer.say(100, Message::Drop(vec![node]))),
        [],
        "not while it has few neighbours"
    );
}
