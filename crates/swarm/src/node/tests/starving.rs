//! Nodes that get nothing from peers, whatever those say, and seeds whose nodes fell silent.

use super::*;

const SEED: u64 = 100;

/// How a peer that holds everything treats a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peers {
    Silent,
    Busy,
}

/// How many chunks a node holds after so long with peers that hold everything and give nothing, and a seed
/// that sends each chunk within 10 ms.
fn held_after(peers: u64, treat: Peers, wait_ms: u64) -> u32 {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    let mut pending = bench.meet(SEED, Role::Seed, Have::Everything);
    for conn in 10..10 + peers {
        pending.extend(bench.meet(conn, Role::Peer, Have::Everything));
    }
    let mut on_their_way = BTreeSet::new();
    for _ in 0..wait_ms / 10 {
        bench.now = bench.now + Duration::from_millis(10);
        let mut outputs = std::mem::take(&mut pending);
        outputs.extend(bench.input(Input::Timeout));
        for index in std::mem::take(&mut on_their_way) {
            outputs.extend(bench.started(SEED, index));
            outputs.extend(bench.ended(SEED, index, ChunkOutcome::Verified));
        }
        for (conn, index) in requests(&outputs) {
            if conn == SEED {
                on_their_way.insert(index);
            } else if treat == Peers::Busy {
                pending.extend(bench.say(conn, Message::Busy(ChunkIndex(index))));
            }
        }
    }
    bench.node.have().count()
}

/// A firewall, a process that stands still, a machine without power, a liar: the seed was asked for a chunk
/// each 30 ms at most, and for none of those that had been asked of others.
#[test]
fn who_gets_nothing_from_peers_asks_the_seed_for_all_there_is_room_for() {
    for peers in [0, 1, 3, 16, 40] {
        for treat in [Peers::Silent, Peers::Busy] {
            let held = held_after(peers, treat, 450);
            assert_eq!(held, CHUNKS, "{peers} {treat:?}");
        }
    }
    // Before that is known, the seed is asked for a chunk now and then.
    for peers in [1, 3, 16] {
        let held = held_after(peers, Peers::Silent, 90);
        assert!(held <= 3, "{peers}: {held}");
    }
}

/// A seed that has no slot for more is asked for what it has slots for, without a pause.
#[test]
fn a_busy_seed_is_asked_for_less() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(SEED, Role::Seed, Have::Everything);
    let asked = requests(&bench.later(limits::SUPPLY_ALONE));
    assert_eq!(asked.len(), limits::IN_FLIGHT, "{asked:?}");
    // Three slots.
    for (_, index) in &asked[3..] {
        let busy = Message::Busy(ChunkIndex(*index));
        assert_eq!(requests(&bench.say(SEED, busy)), []);
    }
    for (_, index) in &asked[..3] {
        bench.started(SEED, *index);
        let outcome = ChunkOutcome::Verified;
        let next = requests(&bench.ended(SEED, *index, outcome));
        assert!((1..=2).contains(&next.len()), "{next:?}");
    }
    // One that has none at all is left alone for a while.
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(SEED, Role::Seed, Have::Everything);
    for (_, index) in requests(&bench.later(limits::SUPPLY_ALONE)) {
        let busy = Message::Busy(ChunkIndex(index));
        assert_eq!(requests(&bench.say(SEED, busy)), []);
    }
    let (low, _) = limits::SEED_BUSY_BACKOFF_US;
    let early = bench.later(Duration::from_micros(low / 2));
    assert_eq!(requests(&early), []);
    let later = bench.later(Duration::from_millis(400));
    assert_eq!(requests(&later).len(), 1, "one, to see");
}

/// A seed that is past its first round: three of its nodes hold everything, and are believed.
fn past_first_round() -> Bench {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    for conn in 1..=3 {
        bench.meet(conn, Role::Peer, Have::Everything);
    }
    bench
}

fn delivered(bench: &mut Bench, conn: u64, index: u32) -> Vec<Output> {
    bench.now = bench.now + Duration::from_millis(20);
    bench.input(Input::UploadEnded {
        conn: ConnId(conn),
        index: ChunkIndex(index),
        outcome: UploadOutcome::Delivered,
    })
}

fn ask(bench: &mut Bench, conn: u64, index: u32) -> bool {
    let answer = bench.say(conn, Message::Request(ChunkIndex(index)));
    let is_answered = uploads(&answer) == [(conn, index)];
    assert!(is_answered || answer.contains(&send(conn, Message::Busy(ChunkIndex(index)))));
    is_answered
}

/// Whoever asks first, and asks again for each chunk that came, does not keep the next one out.
#[test]
fn those_who_ask_a_seed_share_its_slots() {
    for others in [1, 2, 3] {
        let mut bench = past_first_round();
        for conn in 11..=11 + others {
            bench.meet(conn, Role::Peer, Have::Nothing);
        }
        // All slots there are, and one more that waits for the seed to hear of the one before it.
        for index in 0..8 {
            assert!(ask(&mut bench, 11, index));
            delivered(&mut bench, 11, index);
        }
        let most = limits::SEED_UPLOAD_SLOTS as u32;
        for index in 8..=8 + most {
            assert!(ask(&mut bench, 11, index), "{index}");
        }
        assert!(!ask(&mut bench, 11, 9 + most), "no slot");
        // Those who come next have their first at once, and their part as slots become free.
        for conn in 12..=11 + others {
            assert!(ask(&mut bench, conn, 0), "{conn} of {others} others");
            assert!(!ask(&mut bench, conn, 1), "no slot");
        }
        let part = most / (others as u32 + 1) + 1;
        for index in 8..8 + most - part {
            delivered(&mut bench, 11, index);
            assert!(!ask(&mut bench, 11, index), "{index}");
            for conn in 12..=11 + others {
                ask(&mut bench, conn, index % 8 + 1);
            }
        }
        for conn in 12..=11 + others {
            let to = bench.node.uploads.to(ConnId(conn));
            assert!(
                to >= 2 && to <= part as usize,
                "{conn}: {to}, {others} others"
            );
        }
    }
}

/// A hall that loses power: its nodes' connections live for seconds, and what was sent to them held all
/// slots. The next node gets its first chunks at once.
#[test]
fn nodes_that_fell_silent_are_not_fed_before_those_who_speak() {
    for silent in [1, 8, 64, 150] {
        let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
        let first = uploads(&bench.meet(1, Role::Peer, Have::Nothing));
        for conn in 2..=silent {
            bench.meet(conn, Role::Peer, Have::Nothing);
        }
        // How long uploads take is known.
        for (conn, index) in first {
            delivered(&mut bench, conn, index);
            bench.say(conn, Message::Have(run(index, 1)));
        }
        // All of them fall silent, some with chunks on their way.
        for _ in 0..10 {
            bench.later(Duration::from_millis(100));
        }
        let newcomer = 200;
        let mut fed = 0;
        let mut outputs = bench.meet(newcomer, Role::Peer, Have::Nothing);
        for _ in 0..50 {
            let sent = uploads(&std::mem::take(&mut outputs));
            for (_, index) in sent.into_iter().filter(|upload| upload.0 == newcomer) {
                fed += 1;
                outputs.extend(delivered(&mut bench, newcomer, index));
                outputs.extend(bench.say(newcomer, Message::Have(run(index, 1))));
            }
            outputs.extend(bench.later(Duration::from_millis(10)));
        }
        // All that the seed has, but what was sent to the others lately.
        assert!(fed >= 5, "{silent} silent: {fed} chunks");
    }
}

/// One machine with many keys that stops whatever is pushed to it, and says something now and then: it has
/// its part of the places of those who are fed, and nobody else is without chunks for it.
#[test]
fn one_address_does_not_have_all_places_of_the_fed() {
    for (keys, honest_first) in [(8, false), (64, false), (64, true), (200, false)] {
        let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
        let honest = 1_000;
        let mut outputs = Vec::new();
        if honest_first {
            outputs.extend(bench.meet(honest, Role::Peer, Have::Nothing));
        }
        for conn in 1..=keys {
            outputs.extend(bench.input(Input::Connected {
                conn: ConnId(conn),
                node: id(conn),
                addr: ([10, 9, 9, 9], 7401).into(),
                role: Role::Peer,
                dialed: true,
                wire: Wire::V4,
            }));
            outputs.extend(bench.input(Input::Hello {
                conn: ConnId(conn),
                hello: hello(Have::Nothing),
            }));
        }
        if !honest_first {
            outputs.extend(bench.meet(honest, Role::Peer, Have::Nothing));
        }
        let mut held = BTreeSet::new();
        for step in 0..500 {
            for (conn, index) in uploads(&std::mem::take(&mut outputs)) {
                if conn == honest {
                    held.insert(index);
                    outputs.extend(delivered(&mut bench, conn, index));
                    outputs.extend(bench.say(conn, Message::Have(run(index, 1))));
                } else {
                    let (conn, index) = (ConnId(conn), ChunkIndex(index));
                    let outcome = UploadOutcome::Refused;
                    outputs.extend(bench.input(Input::UploadEnded {
                        conn,
                        index,
                        outcome,
                    }));
                }
            }
            if step % 40 == 0 {
                for conn in 1..=keys {
                    outputs.extend(bench.say(conn, Message::Progress(0)));
                }
            }
            outputs.extend(bench.later(Duration::from_millis(10)));
        }
        assert_eq!(
            held.len(),
            CHUNKS as usize,
            "{keys} {honest_first}: {held:?}"
        );
    }
}
