//! Offers: to whom, of what, and how they are answered.

use super::*;

fn offers(outputs: &[Output]) -> Vec<(u64, Vec<u32>)> {
    let offer = |output: &Output| match output {
        Output::Send {
            conn,
            message: Message::Offer(chunks),
        } => Some((conn.0, chunks.iter().map(|index| index.0).collect())),
        _ => None,
    };
    outputs.iter().filter_map(offer).collect()
}

fn said(outputs: &[Output]) -> Vec<Message> {
    let message = |output: &Output| match output {
        Output::Send { message, .. } => Some(message.clone()),
        _ => None,
    };
    outputs.iter().filter_map(message).collect()
}

fn bits(chunks: &[u32]) -> Have {
    Have::Bits(some(chunks).to_bytes())
}

/// A node that is sent chunk 3 by its seed, between one neighbour that holds much and one that
/// holds little.
fn with_a_new_chunk() -> (Bench, Vec<Output>) {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(9, Role::Seed, Have::Everything);
    bench.meet(1, Role::Peer, bits(&[10, 11, 12]));
    bench.meet(2, Role::Peer, bits(&[10]));
    bench.started(9, 3);
    let outputs = bench.ended(9, 3, ChunkOutcome::Verified);
    (bench, outputs)
}

#[test]
fn a_new_chunk_is_offered_first_to_who_holds_least() {
    let (_, outputs) = with_a_new_chunk();
    assert_eq!(offers(&outputs), [(2, vec![3]), (1, vec![3])]);
}

/// Neighbour 1 came long ago and holds more than 2, a newcomer that fetches much faster.
#[test]
fn a_new_chunk_is_offered_first_to_who_is_slow() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(9, Role::Seed, Have::Everything);
    bench.meet(1, Role::Peer, bits(&[10, 11]));
    bench.later(Duration::from_secs(10));
    bench.say(1, Message::Have(run(12, 5)));
    bench.meet(2, Role::Peer, bits(&[10]));
    bench.later(Duration::from_secs(1));
    bench.say(2, Message::Have(run(11, 3)));
    bench.started(9, 3);
    let outputs = bench.ended(9, 3, ChunkOutcome::Verified);
    assert_eq!(offers(&outputs), [(1, vec![3]), (2, vec![3])]);
}

#[test]
fn an_accepted_offer_is_an_upload_and_no_second_one_is_made() {
    let (mut bench, _) = with_a_new_chunk();
    let outputs = bench.say(2, Message::Request(ChunkIndex(3)));
    let (conn, index) = (ConnId(2), ChunkIndex(3));
    assert!(
        outputs.contains(&Output::Upload { conn, index }),
        "{outputs:?}"
    );
    assert_eq!(offers(&bench.later(Duration::from_millis(100))), []);
}

#[test]
fn who_declines_is_left_alone_and_not_offered_the_same_again() {
    let (mut bench, _) = with_a_new_chunk();
    assert_eq!(offers(&bench.say(2, Message::NoRoom)), []);
    let again = bench.later(Duration::from_micros(limits::OFFER_BACKOFF_US.1));
    assert_eq!(offers(&again), [(2, vec![3])], "there may be room by now");
    assert_eq!(offers(&bench.say(2, Message::NotNeeded)), []);
    assert_eq!(offers(&bench.later(Duration::from_millis(100))), []);
    // An answer to nothing.
    assert_eq!(bench.say(2, Message::NotNeeded), []);
}

#[test]
fn an_offer_that_nobody_answers_ends() {
    let (mut bench, _) = with_a_new_chunk();
    assert_eq!(offers(&bench.later(limits::OFFER_TIMEOUT)), []);
    let again = offers(&bench.later(limits::OFFER_TIMEOUT));
    assert_eq!(again, [(2, vec![3]), (1, vec![3])]);
}

#[test]
fn an_offer_is_taken_or_declined_with_the_reason() {
    let mut bench = Bench::new(Role::Peer, some(&[4]));
    bench.meet(1, Role::Peer, Have::Nothing);
    let offer = |chunks: &[u32]| Message::Offer(chunks.iter().copied().map(ChunkIndex).collect());
    let taken = said(&bench.say(1, offer(&[4, 6, 7])));
    assert_eq!(taken, [Message::Request(ChunkIndex(6))]);
    let known = said(&bench.say(1, offer(&[4, 6])));
    assert_eq!(known, [Message::NotNeeded]);
    for index in 7..7 + limits::IN_FLIGHT as u32 - 1 {
        let taken = said(&bench.say(1, offer(&[index])));
        assert_eq!(taken, [Message::Request(ChunkIndex(index))]);
    }
    assert_eq!(said(&bench.say(1, offer(&[19]))), [Message::NoRoom]);
    let beyond = bench.say(1, offer(&[CHUNKS]));
    assert!(matches!(
        beyond.as_slice(),
        [Output::Close {
            reason: CloseReason::Protocol("an offer beyond the image"),
            ..
        }]
    ));
}

/// What a seed offers to two nodes that begin with nothing, until each chunk has left it once; chunks
/// below `passed_on` have reached both by then.
fn offers_of_a_first_round(passed_on: u32) -> Vec<(u64, Vec<u32>)> {
    let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    let mut outputs: VecDeque<Output> = seed.meet(1, Role::Peer, Have::Nothing).into();
    outputs.extend(seed.meet(2, Role::Peer, Have::Nothing));
    let (mut pushed, mut offered) = (BTreeSet::new(), Vec::new());
    while let Some(output) = outputs.pop_front() {
        offered.extend(offers(std::slice::from_ref(&output)));
        let Output::Upload { conn, index } = output else {
            continue;
        };
        assert!(pushed.insert(index), "{index} left twice");
        assert!(offered.is_empty(), "chunks that have no holder go first");
        // Slow enough for one at a time: the others are known to have arrived.
        seed.now = seed.now + Duration::from_secs(2);
        let outcome = UploadOutcome::Delivered;
        outputs.extend(seed.input(Input::UploadEnded {
            conn,
            index,
            outcome,
        }));
        let other = 3 - conn.0;
        for holder in [conn.0, other] {
            if holder == conn.0 || index.0 < passed_on {
                outputs.extend(seed.say(holder, Message::Have(run(index.0, 1))));
            }
        }
    }
    assert_eq!(pushed.len(), CHUNKS as usize);
    offered
}

/// A seed that has handed out everything once helps on, as long as its nodes lack much.
#[test]
fn a_seed_offers_after_the_first_round_while_its_nodes_lack_much() {
    assert_eq!(offers_of_a_first_round(16), [], "most of it is there");
    assert_ne!(offers_of_a_first_round(0), []);
}

/// Two of twenty nodes claimed the whole image: the seed took its first round for over, and each of its
/// chunks left twice before the last one had left once. The honest nodes were 16 to 24 % later.
#[test]
fn a_liar_does_not_end_the_first_round() {
    let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    seed.meet(1, Role::Peer, Have::Everything);
    let mut outputs: VecDeque<Output> = seed.meet(2, Role::Peer, Have::Nothing).into();
    outputs.extend(seed.meet(3, Role::Peer, Have::Nothing));
    let mut pushed = BTreeSet::new();
    while let Some(output) = outputs.pop_front() {
        let all = pushed.len() == CHUNKS as usize;
        assert!(all || offers(std::slice::from_ref(&output)).is_empty());
        let Output::Upload { conn, index } = output else {
            continue;
        };
        assert!(pushed.insert(index), "{index} left twice");
        let is_upload = |output: &&Output| matches!(output, Output::Upload { .. });
        if pushed.len() + outputs.iter().filter(is_upload).count() < CHUNKS as usize {
            // Who asks for a second copy has to wait.
            let first = *pushed.first().unwrap();
            let asked = seed.say(5 - conn.0, Message::Request(first));
            let busy = |output: &Output| matches!(output, Output::Send { message: Message::Busy(of), .. } if *of == first);
            assert!(asked.iter().any(busy), "{asked:?}");
            outputs.extend(asked);
        }
        let outcome = UploadOutcome::Delivered;
        outputs.extend(seed.input(Input::UploadEnded {
            conn,
            index,
            outcome,
        }));
        outputs.extend(seed.say(conn.0, Message::Have(run(index.0, 1))));
    }
    assert_eq!(pushed.len(), CHUNKS as usize);
}

/// After a restart, a seed knows only what its nodes say. Who asks is not left to wait when there is
/// nobody that anything could be pushed to.
#[test]
fn a_seed_that_was_restarted_answers_whom_it_does_not_feed() {
    let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    seed.meet(1, Role::Peer, Have::Everything);
    seed.meet(2, Role::Peer, Have::Everything);
    seed.connect(3, Role::Peer, true);
    let outputs = seed.say(1, Message::Request(ChunkIndex(3)));
    assert!(
        outputs.contains(&Output::Upload {
            conn: ConnId(1),
            index: ChunkIndex(3)
        }),
        "{outputs:?}"
    );
}

/// What leaves a seed for nodes that begin with nothing, pass nothing on and take whatever is offered.
fn sent_to_slow_nodes(nodes: u64) -> u64 {
    let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    let mut outputs: VecDeque<Output> = VecDeque::new();
    for conn in 1..=nodes {
        outputs.extend(seed.meet(conn, Role::Peer, Have::Nothing));
    }
    let (mut sent, mut under_way) = (0, VecDeque::new());
    loop {
        // All are answered before any time passes.
        while let Some(output) = outputs.pop_front() {
            under_way.extend(uploads(std::slice::from_ref(&output)));
            for (conn, chunks) in offers(&[output]) {
                outputs.extend(seed.say(conn, Message::Request(ChunkIndex(chunks[0]))));
            }
        }
        let Some((conn, index)) = under_way.pop_front() else {
            return sent;
        };
        sent += 1;
        // Slow enough for one at a time.
        seed.now = seed.now + Duration::from_secs(2);
        outputs.extend(seed.input(Input::UploadEnded {
            conn: ConnId(conn),
            index: ChunkIndex(index),
            outcome: UploadOutcome::Delivered,
        }));
        outputs.extend(seed.say(conn, Message::Have(run(index, 1))));
    }
}

/// The table: for how many nodes, how many of 20 chunks leave as offers after each has left once; what
/// was offered while the last of them were under way comes on top. Four emulated machines once took two
/// copies and more.
#[test]
fn a_fast_seed_leaves_most_to_its_nodes() {
    for (nodes, beyond) in [(2, 2), (4, 5), (8, 10), (16, 20), (40, 20), (128, 10)] {
        let sent = sent_to_slow_nodes(nodes);
        let least = u64::from(CHUNKS) + beyond;
        let most = least + limits::OFFERS_AHEAD as u64;
        assert!((least..=most).contains(&sent), "{nodes} nodes: {sent}");
    }
}
