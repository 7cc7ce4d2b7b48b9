//! Nodes that cannot be dialed, and nodes that move.

use super::*;

/// What was said of dials: to whom, what became of them, of whom.
fn reports(outputs: &[Output]) -> Vec<(u64, DialOutcome, Vec<NodeId>)> {
    let report = |output: &Output| match output {
        Output::Send {
            conn,
            message: Message::Dialed { outcome, nodes },
        } => Some((conn.0, *outcome, nodes.clone())),
        _ => None,
    };
    outputs.iter().filter_map(report).collect()
}

fn dials(outputs: &[Output]) -> Vec<(NodeId, SocketAddr)> {
    let dial = |output: &Output| match output {
        Output::Dial { node, addr } => Some((*node, *addr)),
        _ => None,
    };
    outputs.iter().filter_map(dial).collect()
}

/// `(who, whom)` of each order.
type Orders = Vec<(u64, NodeId)>;

/// As told by Dial and by Call.
fn orders(outputs: &[Output]) -> (Orders, Orders) {
    let (mut dial, mut call) = (Vec::new(), Vec::new());
    for output in outputs {
        if let Output::Send { conn, message } = output {
            let (list, addresses) = match message {
                Message::Dial(addresses) => (&mut dial, addresses),
                Message::Call(addresses) => (&mut call, addresses),
                _ => continue,
            };
            list.extend(addresses.iter().map(|address| (conn.0, address.node)));
        }
    }
    (dial, call)
}

fn named(number: u64) -> PeerAddress {
    PeerAddress {
        node: id(number),
        addr: addr(number),
    }
}

impl Bench {
    fn connect_on(&mut self, conn: u64, number: u64, role: Role, dialed: bool, wire: Wire) {
        let (conn, node, addr) = (ConnId(conn), id(number), addr(number));
        self.input(Input::Connected {
            conn,
            node,
            addr,
            role,
            dialed,
            wire,
        });
    }

    fn greet(&mut self, conn: u64, have: Have) -> Vec<Output> {
        let conn = ConnId(conn);
        let hello = hello(have);
        self.input(Input::Hello { conn, hello })
    }
}

/// What a node says of dials that are not answered, and to whom: seeds that know the words.
#[test]
fn dials_without_an_answer_are_reported() {
    for (wire, how_many) in [(Wire::V4, 1), (Wire::V4, 16), (Wire::V4, 3), (Wire::V3, 3)] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.connect_on(1, 1, Role::Seed, true, wire);
        bench.greet(1, Have::Everything);
        let others: Vec<u64> = (10..10 + how_many).collect();
        let told = Message::Dial(others.iter().map(|number| named(*number)).collect());
        assert_eq!(dials(&bench.say(1, told)).len(), others.len());
        let early = bench.later(limits::UNANSWERED_AFTER - Duration::from_millis(1));
        assert_eq!(reports(&early), []);
        let ids: Vec<NodeId> = others.iter().map(|number| id(*number)).collect();
        let expect = |outcome, nodes: &[NodeId]| match wire {
            Wire::V3 => vec![],
            Wire::V4 => vec![(1, outcome, nodes.to_vec())],
        };
        let late = bench.later(Duration::from_millis(1));
        assert_eq!(reports(&late), expect(DialOutcome::Unanswered, &ids));
        for node in &ids {
            bench.input(Input::DialFailed {
                node: *node,
                answered: false,
            });
        }
        let after = bench.later(limits::DIAL_REPORTS_AFTER);
        assert_eq!(reports(&after), expect(DialOutcome::GivenUp, &ids));
        // One of them dials; a seed that comes later hears of the others.
        bench.connect_on(10, 10, Role::Peer, false, Wire::V4);
        bench.greet(10, Have::Nothing);
        let after = bench.later(limits::DIAL_REPORTS_AFTER);
        assert_eq!(reports(&after), expect(DialOutcome::Connected, &ids[..1]));
        bench.connect_on(2, 2, Role::Seed, true, Wire::V4);
        bench.greet(2, Have::Everything);
        let after = reports(&bench.later(limits::DIAL_REPORTS_AFTER));
        let to_second: Vec<_> = after.iter().filter(|report| report.0 == 2).collect();
        match ids.len() {
            1 => assert!(to_second.is_empty(), "{to_second:?}"),
            _ => assert_eq!(to_second[0].2, ids[1..]),
        }
    }
    // Who refuses, or is somebody else, has answered.
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(1, Role::Seed, Have::Everything);
    bench.say(1, Message::Dial(vec![named(10)]));
    bench.input(Input::DialFailed {
        node: id(10),
        answered: true,
    });
    assert_eq!(reports(&bench.later(limits::UNANSWERED_AFTER)), []);
}

/// A seed has the one that does not answer dial, and from then on names it to both sides at once.
#[test]
fn a_seed_calls_who_does_not_answer() {
    for (wire, calls) in [(Wire::V4, true), (Wire::V3, false)] {
        let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
        seed.connect_on(100, 100, Role::Peer, false, wire);
        seed.greet(100, Have::Everything);
        seed.meet(101, Role::Peer, Have::Nothing);
        let unanswered = |nodes: &[u64]| Message::Dialed {
            outcome: DialOutcome::Unanswered,
            nodes: nodes.iter().map(|number| id(*number)).collect(),
        };
        // Of itself, of a stranger, of the seed: nothing comes of it.
        let (dial, call) = orders(&seed.say(101, unanswered(&[101, 77, 5])));
        assert_eq!((dial, call), (vec![], vec![]));
        let (dial, call) = orders(&seed.say(101, unanswered(&[100])));
        let expected = |whom: u64| match calls {
            true => vec![(100, id(whom))],
            false => vec![],
        };
        assert_eq!((dial, call), (vec![], expected(101)));
        // What that one says in its turn is no mark on the other.
        let (_, call) = orders(&seed.say(100, unanswered(&[101])));
        assert_eq!(call, [(101, id(100))]);
        let report = seed.node.report(seed.now);
        let marked = report.peers.iter().filter(|peer| peer.is_hard_to_reach);
        assert_eq!(marked.map(|peer| peer.node).collect::<Vec<_>>(), [id(100)]);
        // The next one is named to it in the same turn.
        seed.connect(102, Role::Peer, false);
        let (dial, call) = orders(&seed.greet(102, Have::Nothing));
        assert!(dial.contains(&(102, id(100))), "{dial:?}");
        assert_eq!(call, expected(102));
        // Nobody has complained for a while.
        seed.later(limits::HARD_TO_REACH);
        seed.connect(103, Role::Peer, false);
        let (dial, call) = orders(&seed.greet(103, Have::Nothing));
        assert!(dial.contains(&(103, id(100))) && call.is_empty());
    }
}

/// A node with everything waits for others to dial it, unless it is called.
#[test]
fn a_complete_node_dials_who_calls() {
    for have in [Bitfield::full(CHUNKS), some(&[]), some(&[3, 7])] {
        let is_complete = have.is_full();
        let mut bench = Bench::new(Role::Peer, have);
        bench.meet(1, Role::Seed, Have::Everything);
        let told = dials(&bench.say(1, Message::Dial(vec![named(10)])));
        assert_eq!(told.is_empty(), is_complete);
        let called = dials(&bench.say(1, Message::Call(vec![named(20), named(21)])));
        assert_eq!(called.len(), 2, "{called:?}");
        // Once for each call, however it ends; a call that comes in the meantime is the same one.
        assert_eq!(dials(&bench.say(1, Message::Call(vec![named(20)]))), []);
        for node in [id(20), id(21)] {
            bench.input(Input::DialFailed {
                node,
                answered: false,
            });
        }
        let again = dials(&bench.later(Duration::from_secs(20)));
        let callers = again.iter().filter(|(node, _)| *node != id(10));
        assert_eq!(callers.count() == 0, is_complete, "{again:?}");
    }
}

/// A connection that the caller does not know of is dead; one that was just made is its own.
#[test]
fn a_call_from_who_is_connected() {
    for (age, closed) in [
        (Duration::ZERO, false),
        (limits::FRESH - Duration::from_millis(1), false),
        (limits::FRESH, true),
    ] {
        let mut bench = Bench::new(Role::Peer, Bitfield::full(CHUNKS));
        bench.meet(1, Role::Seed, Have::Everything);
        bench.connect(20, Role::Peer, false);
        bench.greet(20, Have::Nothing);
        bench.now = bench.now + age;
        let outputs = bench.say(1, Message::Call(vec![named(20)]));
        assert_eq!(closes(&outputs).len(), usize::from(closed), "{age:?}");
        assert_eq!(dials(&outputs).len(), usize::from(closed), "{age:?}");
    }
}

/// Who is named to people: the one with whom it is worst in any pair.
#[test]
fn blame() {
    // Pairs without a connection, and with how many each of 100 to 104 is said to have none.
    type Pairs = &'static [(u64, u64)];
    let cases: [(Pairs, [u32; 5]); 5] = [
        (&[], [0; 5]),
        (&[(100, 101)], [1, 1, 0, 0, 0]),
        (&[(100, 101), (102, 101), (103, 101)], [0, 3, 0, 0, 0]),
        // The same said by the one that drops everything, and by both.
        (&[(101, 100), (101, 102), (100, 101)], [0, 2, 0, 0, 0]),
        // Two such hosts, or two liars.
        (
            &[
                (100, 101),
                (100, 102),
                (100, 103),
                (104, 101),
                (104, 102),
                (104, 103),
            ],
            [3, 0, 0, 0, 3],
        ),
    ];
    for (pairs, expected) in cases {
        let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
        for number in 100..105 {
            seed.connect(number, Role::Peer, false);
            seed.greet(number, Have::Nothing);
        }
        let say = |seed: &mut Bench, who, whom, outcome| {
            let nodes = vec![id(whom)];
            seed.say(who, Message::Dialed { outcome, nodes });
        };
        for (who, whom) in pairs {
            say(&mut seed, *who, *whom, DialOutcome::GivenUp);
        }
        let told = seed.later(limits::HOUSEKEEPING);
        let mut counts = [0; 5];
        for output in &told {
            if let Output::Send {
                conn,
                message: Message::CutOff(count),
            } = output
            {
                counts[conn.0 as usize - 100] = *count;
            }
        }
        let blamed = |seed: &Bench| -> Vec<u32> {
            let report = seed.node.report(seed.now);
            report.peers.iter().map(|peer| peer.cut_off_from).collect()
        };
        assert_eq!(counts, expected, "{pairs:?}");
        assert_eq!(blamed(&seed), expected, "{pairs:?}");
        // They are connected after all, or gone.
        for (who, whom) in &pairs[pairs.len() / 2..] {
            say(&mut seed, *whom, *who, DialOutcome::Connected);
        }
        for (who, _) in &pairs[..pairs.len() / 2] {
            let conn = ConnId(*who);
            seed.input(Input::Disconnected { conn });
        }
        assert!(blamed(&seed).iter().all(|count| *count == 0), "{pairs:?}");
    }
}

/// The tracker names a neighbour at another address than before.
#[test]
fn a_neighbour_that_moved_is_followed() {
    let moved = PeerAddress {
        node: id(20),
        addr: addr(99),
    };
    for dialed in [true, false] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.meet(1, Role::Seed, Have::Everything);
        bench.connect(20, Role::Peer, dialed);
        bench.greet(20, Have::Everything);
        // The same address changes nothing.
        let same = bench.say(1, Message::Dial(vec![named(20)]));
        assert_eq!((closes(&same), dials(&same)), (vec![], vec![]));
        let outputs = bench.say(1, Message::Dial(vec![moved]));
        match dialed {
            true => {
                assert_eq!(closes(&outputs), [(20, CloseReason::Moved)]);
                assert_eq!(dials(&outputs), [(id(20), addr(99))]);
            }
            // It dialed itself, and goes on.
            false => assert_eq!((closes(&outputs), dials(&outputs)), (vec![], vec![])),
        }
    }
}

/// Of a connection whose other end is gone both sides know in the end: the newer one is kept, whoever
/// dialed.
#[test]
fn a_newer_connection_takes_the_place_of_one_that_is_dead() {
    for (other, first_dialed) in [(9, true), (1, false), (9, false), (1, true)] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.connect_on(100, other, Role::Peer, first_dialed, Wire::V4);
        bench.now = bench.now + limits::FRESH;
        let outputs = bench.input(Input::Connected {
            conn: ConnId(101),
            node: id(other),
            addr: addr(other),
            role: Role::Peer,
            dialed: !first_dialed,
            wire: Wire::V4,
        });
        assert_eq!(closes(&outputs), [(100, CloseReason::Duplicate)], "{other}");
    }
}

/// A complete node that comes anew, from another address or to a seed that was started anew, is not told
/// to dial: those who need it are.
#[test]
fn a_complete_node_that_comes_anew_is_named_to_those_in_need() {
    for nodes in [2, 5, 16] {
        let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
        for number in 100..100 + nodes {
            seed.connect(number, Role::Peer, false);
            let have = match number % 2 {
                0 => Have::Nothing,
                _ => Have::Everything,
            };
            seed.greet(number, have);
        }
        // The first of the complete ones, at another address.
        let outputs = seed.input(Input::Connected {
            conn: ConnId(200),
            node: id(101),
            addr: addr(99),
            role: Role::Peer,
            dialed: false,
            wire: Wire::V4,
        });
        assert_eq!(closes(&outputs), [(101, CloseReason::Duplicate)]);
        let outputs = seed.greet(200, Have::Everything);
        let (dial, _) = orders(&outputs);
        let in_need: Vec<_> = (100..100 + nodes)
            .step_by(2)
            .map(|it| (it, id(101)))
            .collect();
        assert_eq!(dial, in_need);
        let at = outputs.iter().find_map(|output| match output {
            Output::Send {
                message: Message::Dial(addresses),
                ..
            } => Some(addresses[0].addr),
            _ => None,
        });
        assert_eq!(at, Some(addr(99)));
    }
}

/// An address that a connection moved to is named to nobody before its owner has connected from it.
#[test]
fn only_validated_addresses_are_named() {
    let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    seed.meet(100, Role::Peer, Have::Nothing);
    let conn = ConnId(100);
    let outputs = seed.input(Input::RemoteMoved { conn });
    assert_eq!(closes(&outputs), [(100, CloseReason::Moved)]);

    let mut peer = Bench::new(Role::Peer, some(&[]));
    for conn in [100, 101, 102] {
        peer.meet(conn, Role::Peer, Have::Nothing);
    }
    let outputs = peer.input(Input::RemoteMoved { conn });
    assert_eq!(closes(&outputs), []);
    peer.now = peer.now + limits::HOUSEKEEPING;
    let answer = peer.say(102, Message::WantPeers);
    let named: Vec<NodeId> = answer
        .iter()
        .filter_map(|output| match output {
            Output::Send {
                message: Message::Peers(addresses),
                ..
            } => Some(addresses),
            _ => None,
        })
        .flatten()
        .map(|address| address.node)
        .collect();
    assert_eq!(named, [id(101)]);
}

/// Who dialed an address that is gone cannot follow: this side dials.
#[test]
fn a_node_that_moved_dials_those_who_had_dialed_it() {
    for have in [some(&[]), Bitfield::full(CHUNKS)] {
        let is_complete = have.is_full();
        let mut bench = Bench::new(Role::Peer, have);
        bench.meet(1, Role::Seed, Have::Everything);
        bench.connect(20, Role::Peer, false);
        bench.greet(20, Have::Nothing);
        let outputs = bench.input(Input::LocalGone { conn: ConnId(20) });
        assert_eq!(closes(&outputs), [(20, CloseReason::Moved)]);
        assert_eq!(dials(&outputs).len(), usize::from(!is_complete));
    }
}
