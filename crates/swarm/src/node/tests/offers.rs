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

/// A seed that has handed out everything once helps on, as long as its nodes lack much.
#[test]
fn a_seed_offers_after_the_first_round_while_its_nodes_lack_much() {
    let meet_both = |first: std::ops::Range<u32>, second: std::ops::Range<u32>| {
        let mut seed = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
        let mut outputs = seed.meet(1, Role::Peer, bits(&first.collect::<Vec<_>>()));
        outputs.extend(seed.meet(2, Role::Peer, bits(&second.collect::<Vec<_>>())));
        offers(&outputs)
    };
    assert_eq!(meet_both(0..10, 10..19), [], "one chunk has no holder");
    assert_eq!(meet_both(0..17, 3..20), [], "most of it is there");
    // The first one still has a push under way.
    let offered = meet_both(0..10, 10..20);
    assert!(
        matches!(&offered[..], [(2, chunks)] if chunks.iter().all(|index| *index < 10)),
        "{offered:?}"
    );
}
