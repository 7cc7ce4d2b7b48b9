//! Taking admissions back: who may say so, whom it ends, who is told.

use super::*;
use crate::message::Revocations;

fn list(version: u64, nodes: &[u64]) -> Revocations {
    Revocations {
        version,
        epoch: 1,
        nodes: nodes.iter().map(|number| id(*number)).collect(),
    }
}

#[test]
fn only_a_seed_may_revoke() {
    let message = Message::Revoked(list(1, &[2]));
    for (role, closed) in [
        (
            Role::Peer,
            (1, CloseReason::Protocol("a seed's message from a peer")),
        ),
        (Role::Seed, (2, CloseReason::Revoked)),
    ] {
        let mut bench = Bench::new(Role::Peer, some(&[]));
        bench.meet(1, role, Have::Nothing);
        bench.meet(2, Role::Peer, Have::Nothing);
        let outputs = bench.say(1, message.clone());
        assert_eq!(closes(&outputs), [closed], "from {role:?}");
        let told = outputs.contains(&Output::Revoked(list(1, &[2])));
        assert_eq!(told, role == Role::Seed, "the certificates' part");
    }
}

#[test]
fn the_newest_list_counts_whoever_sends_it() {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(1, Role::Seed, Have::Everything);
    bench.meet(2, Role::Peer, Have::Nothing);
    bench.meet(3, Role::Peer, Have::Nothing);
    assert_eq!(
        closes(&bench.say(1, Message::Revoked(list(5, &[2])))),
        [(2, CloseReason::Revoked)]
    );
    for old in [list(4, &[3]), list(5, &[3])] {
        let outputs = bench.say(1, Message::Revoked(old));
        assert_eq!(closes(&outputs), []);
    }
    assert_eq!(
        closes(&bench.say(1, Message::Revoked(list(6, &[2, 3])))),
        [(3, CloseReason::Revoked)]
    );
    // A seed is not parted from, whatever a list says.
    assert_eq!(closes(&bench.say(1, Message::Revoked(list(7, &[1])))), []);
}

#[test]
fn a_seed_tells_everybody_and_those_who_come_later() {
    let mut bench = Bench::new(Role::Seed, Bitfield::full(CHUNKS));
    bench.meet(1, Role::Peer, Have::Nothing);
    bench.meet(2, Role::Peer, Have::Nothing);
    let outputs = bench.input(Input::Revoke(list(1, &[2])));
    assert_eq!(closes(&outputs), [(2, CloseReason::Revoked)]);
    let message = Message::Revoked(list(1, &[2]));
    assert!(outputs.contains(&send(1, message.clone())), "{outputs:?}");
    assert!(
        bench
            .meet(3, Role::Peer, Have::Nothing)
            .contains(&send(3, message))
    );
}
