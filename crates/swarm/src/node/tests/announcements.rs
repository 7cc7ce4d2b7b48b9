//! Announcements: who hears when of a chunk that arrived.

use super::*;

fn haves(outputs: &[Output]) -> Vec<(u64, Vec<(u32, u32)>)> {
    let have = |output: &Output| match output {
        Output::Send {
            conn,
            message: Message::Have(runs),
        } => Some((
            conn.0,
            runs.iter().map(|run| (run.first.0, run.count)).collect(),
        )),
        _ => None,
    };
    outputs.iter().filter_map(have).collect()
}

/// A node of an image with chunks of this size that a seed feeds. Neighbours 1 to `neighbours` hold
/// chunk 3, number 20 holds nothing.
fn between(neighbours: u64, chunk_bytes: u64) -> Bench {
    let size = ChunkSize::from_bytes(chunk_bytes).unwrap();
    let config = Config {
        node: id(5),
        role: Role::Peer,
        image: image(),
        geometry: Geometry::new(u64::from(CHUNKS) * size.bytes(), size).unwrap(),
        have: some(&[]),
        rack: None,
        rng_seed: 5,
    };
    let (node, now) = (Node::new(config, Instant::ZERO), Instant(1_000));
    let mut bench = Bench { node, now };
    bench.meet(9, Role::Seed, Have::Everything);
    bench.meet(20, Role::Peer, Have::Nothing);
    for conn in (1..=neighbours).map(|number| number + 20) {
        let have = Have::Bits(some(&[3]).to_bytes());
        bench.meet(conn, Role::Peer, have);
    }
    bench
}

fn arrives(bench: &mut Bench, index: u32) {
    bench.started(9, index);
    let outputs = bench.ended(9, index, ChunkOutcome::Verified);
    assert_eq!(haves(&outputs), [], "haves are collected");
}

#[test]
fn who_holds_the_chunk_hears_later_or_with_the_next() {
    let mut bench = between(1, limits::HAVE_SMALL_BYTES);
    arrives(&mut bench, 3);
    let soon = bench.later(limits::HAVE_BATCH_MIN);
    assert_eq!(haves(&soon), [(9, vec![(3, 1)]), (20, vec![(3, 1)])]);
    // One that nobody holds: all hear, and neighbour 21 of both.
    arrives(&mut bench, 4);
    let mut told = haves(&bench.later(limits::HAVE_BATCH_MIN));
    told.sort();
    let new = vec![(4, 1)];
    assert_eq!(told, [(9, new.clone()), (20, new), (21, vec![(3, 2)])]);
    assert_eq!(haves(&bench.later(limits::HAVE_DELAY_MAX)), []);

    arrives(&mut bench, 2);
    bench.say(21, Message::Have(run(2, 1)));
    assert_eq!(haves(&bench.later(limits::HAVE_BATCH_MIN)).len(), 2);
    // Who comes now hears of it with the hello.
    let meets = bench.connect(30, Role::Peer, true);
    assert!(meets.iter().any(|output| matches!(
        output,
        Output::Hello { hello: Hello { have: Have::Bits(bits), .. }, .. } if *bits == some(&[2, 3, 4]).to_bytes()
    )));
    assert_eq!(
        haves(&bench.later(limits::HAVE_DELAY_MAX)),
        [(21, vec![(2, 1)])]
    );
    assert_eq!(haves(&bench.later(limits::HAVE_DELAY_MAX)), []);
}

#[test]
fn a_small_chunk_that_many_hold_is_announced_later() {
    let many = u64::from(limits::HAVE_URGENT_REPLICAS) + 1;
    let told_soon = |neighbours: u64, chunk_bytes: u64| {
        let mut bench = between(neighbours, chunk_bytes);
        arrives(&mut bench, 3);
        let soon = haves(&bench.later(limits::HAVE_BATCH_MIN)).len();
        let later = haves(&bench.later(limits::HAVE_DELAY_MAX)).len();
        assert_eq!(
            soon + later,
            neighbours as usize + 2,
            "everybody hears once"
        );
        soon
    };
    assert_eq!(told_soon(many, limits::HAVE_SMALL_BYTES / 2), 0);
    assert_eq!(told_soon(many - 1, limits::HAVE_SMALL_BYTES / 2), 2);
    assert_eq!(told_soon(many, limits::HAVE_SMALL_BYTES), 2);
}

/// A tracker that had enough neighbours and has a place for this one again.
#[test]
fn who_asks_for_everything_is_not_told_twice() {
    let mut bench = between(0, limits::HAVE_SMALL_BYTES);
    bench.say(9, Message::WantHaves(false));
    arrives(&mut bench, 3);
    let everything = bench.say(9, Message::WantHaves(true));
    assert_eq!(haves(&everything), [(9, vec![(3, 1)])]);
    let soon = bench.later(limits::HAVE_BATCH_MIN);
    assert_eq!(haves(&soon), [(20, vec![(3, 1)])]);
}
