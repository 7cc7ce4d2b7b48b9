//! Neighbours beyond those that a node needs.

use super::*;

fn closed(outputs: &[Output]) -> BTreeSet<u64> {
    let closed = outputs.iter().filter_map(|output| match output {
        Output::Close {
            conn,
            reason: CloseReason::Rewired,
        } => Some(conn.0),
        _ => None,
    });
    closed.collect()
}

/// 30 neighbours, of which the tracker named the first eight and the last five dialed themselves.
fn crowded() -> Bench {
    let mut bench = Bench::new(Role::Peer, some(&[]));
    bench.meet(100, Role::Seed, Have::Everything);
    let named = (0..8).map(|number| PeerAddress {
        node: id(number + 10),
        addr: addr(number + 10),
    });
    bench.say(100, Message::Dial(named.collect()));
    for conn in 10..40 {
        bench.connect(conn, Role::Peer, conn < 35);
        let (conn, hello) = (ConnId(conn), hello(Have::Nothing));
        bench.input(Input::Hello { conn, hello });
    }
    bench
}

/// Only from those that it dialed itself and that nobody named, and from no more than there are too many.
#[test]
fn a_node_parts_from_neighbours_that_nobody_named() {
    let mut bench = crowded();
    let parted = closed(&bench.later(limits::HOUSEKEEPING_FIRST));
    assert_eq!(parted.len(), 30 - limits::NEIGHBOURS_KEPT);
    assert!(
        parted.iter().all(|conn| (18..35).contains(conn)),
        "{parted:?}"
    );
    assert!(closed(&bench.later(limits::HOUSEKEEPING)).is_empty());
}

/// Nobody is cut off within a chunk.
#[test]
fn a_neighbour_that_is_busy_for_it_stays() {
    let mut bench = crowded();
    bench.later(limits::HOUSEKEEPING_FIRST * 9 / 10);
    let asked = bench.say(20, Message::Have(run(0, CHUNKS)));
    assert!(asked.iter().any(|output| matches!(
        output,
        Output::Send {
            message: Message::Request(_),
            ..
        }
    )));
    let parted = closed(&bench.later(limits::HOUSEKEEPING_FIRST / 10));
    assert_eq!(parted.len(), 30 - limits::NEIGHBOURS_KEPT);
    assert!(!parted.contains(&20), "{parted:?}");
}
