//! Racks: what crosses the core, who brings it, and what a wrong name cannot do.

use super::*;
use crate::locality::Locality;

/// What a node of rack `r` says.
fn greeting(rack: &str, have: Have) -> Hello {
    Hello {
        rack: (!rack.is_empty()).then(|| rack.to_owned()),
        ..hello(have)
    }
}

/// Node 5 in rack `a`.
fn bench(role: Role, have: Bitfield) -> Bench {
    let mut bench = Bench::new(role, have);
    bench.node.locality = Locality::new(id(5), Some("a".to_owned()));
    bench
}

impl Bench {
    fn meet_in(&mut self, conn: u64, role: Role, rack: &str, have: Have) -> Vec<Output> {
        self.connect(conn, role, true);
        self.input(Input::Hello {
            conn: ConnId(conn),
            hello: greeting(rack, have),
        })
    }

    /// Lets `how_long` pass in steps in which a node that starves looks again.
    fn starve(&mut self, how_long: Duration) -> Vec<Output> {
        let until = self.now + how_long;
        let mut outputs = Vec::new();
        while self.now < until {
            outputs.extend(self.later(Duration::from_millis(5)));
        }
        outputs
    }
}

fn far_share(asked: &[(u64, u32)], far: u64) -> Vec<u32> {
    let from_far = asked.iter().filter(|(conn, _)| *conn == far);
    from_far.map(|(_, index)| *index).collect()
}

/// Of what a complete node of another rack holds, a node brings its part. It takes over the rest when
/// nobody else brings that.
#[test]
fn a_node_brings_its_part_and_takes_over_the_rest() {
    let mut bench = bench(Role::Peer, some(&[]));
    let near: Vec<u64> = (10..14).collect();
    for conn in &near {
        let outputs = bench.meet_in(*conn, Role::Peer, "a", Have::Nothing);
        assert_eq!(requests(&outputs), []);
    }
    let mut asked = requests(&bench.meet_in(20, Role::Peer, "b", Have::Everything));
    let mut brought = Vec::new();
    // Whatever is asked comes at once.
    while let Some((conn, index)) = asked.pop() {
        assert_eq!(conn, 20);
        brought.push(index);
        asked.extend(requests(&bench.started(conn, index)));
        asked.extend(requests(&bench.ended(conn, index, ChunkOutcome::Verified)));
    }
    assert!((1..=12).contains(&brought.len()), "{brought:?}");

    // What a near neighbour announces is asked of it.
    let missing = (0..CHUNKS).find(|index| !brought.contains(index)).unwrap();
    let outputs = bench.say(10, Message::Have(run(missing, 1)));
    assert_eq!(requests(&outputs), [(10, missing)]);
    bench.started(10, missing);
    bench.ended(10, missing, ChunkOutcome::Verified);

    let outputs = bench.starve(limits::TAKE_OVER_MIN * 4);
    let taken = far_share(&requests(&outputs), 20);
    assert!(!taken.is_empty() && taken.iter().all(|index| !brought.contains(index)));
}

/// Where all are near, or all are far, nobody's rack matters.
#[test]
fn alone_or_among_its_own_a_node_asks_anybody() {
    for racks in [["a", "a"], ["b", "c"], ["", "b"]] {
        let mut bench = bench(Role::Peer, some(&[]));
        let first = Have::Bits(some(&[0, 1]).to_bytes());
        let second = Have::Bits(some(&[2, 3]).to_bytes());
        let mut asked = requests(&bench.meet_in(10, Role::Peer, racks[0], first));
        asked.extend(requests(&bench.meet_in(11, Role::Peer, racks[1], second)));
        asked.sort_unstable();
        assert_eq!(asked, [(10, 0), (10, 1), (11, 2), (11, 3)], "{racks:?}");
    }
}

/// A near neighbour that says it holds everything and gives nothing holds up its rack for a moment,
/// not for ever: neither one that declines nor one that is silent.
#[test]
fn a_liar_in_the_rack_is_seen_through() {
    for declines in [true, false] {
        let mut bench = bench(Role::Peer, some(&[]));
        let mut asked = requests(&bench.meet_in(10, Role::Peer, "a", Have::Everything));
        asked.extend(requests(&bench.meet_in(
            20,
            Role::Peer,
            "b",
            Have::Everything,
        )));
        let mut from_far = 0;
        let ticks = 5_000 / 5;
        for _ in 0..ticks {
            let (far, near): (Vec<_>, Vec<_>) =
                asked.into_iter().partition(|(conn, _)| *conn == 20);
            asked = Vec::new();
            for (conn, index) in near.into_iter().filter(|_| declines) {
                let busy = Message::Busy(ChunkIndex(index));
                asked.extend(requests(&bench.say(conn, busy)));
            }
            for (conn, index) in far {
                from_far += 1;
                asked.extend(requests(&bench.started(conn, index)));
                asked.extend(requests(&bench.ended(conn, index, ChunkOutcome::Verified)));
            }
            asked.extend(requests(&bench.later(Duration::from_millis(5))));
        }
        assert!(bench.node.is_complete(), "declines: {declines}, {from_far}");
    }
}

/// A seed that says nothing of where it stands is outside; one of the same rack is not.
#[test]
fn a_seed_outside_is_asked_for_what_is_ones_own() {
    for (rack, least, most) in [
        ("a", CHUNKS, CHUNKS),
        ("", 0, CHUNKS - 1),
        ("b", 0, CHUNKS - 1),
    ] {
        let mut bench = bench(Role::Peer, some(&[]));
        for conn in 10..13 {
            bench.meet_in(conn, Role::Peer, "a", Have::Nothing);
        }
        bench.meet_in(20, Role::Peer, "b", Have::Nothing);
        let mut asked = requests(&bench.meet_in(30, Role::Seed, rack, Have::Everything));
        let mut brought = 0;
        // Not so long that the node thinks itself cut off.
        let tick = limits::SEED_PATIENCE;
        for _ in 0..limits::CUT_OFF_MIN.as_millis() / tick.as_millis() + u128::from(CHUNKS) * 3 {
            if bench.now.since(bench.node.last_arrival) + tick >= limits::CUT_OFF_MIN {
                break;
            }
            for (conn, index) in std::mem::take(&mut asked) {
                assert_eq!(conn, 30);
                brought += 1;
                bench.started(conn, index);
                asked.extend(requests(&bench.ended(conn, index, ChunkOutcome::Verified)));
            }
            asked.extend(requests(&bench.later(tick)));
        }
        assert!((least..=most).contains(&brought), "{rack:?}: {brought}");
        // Then it takes what it can get.
        for _ in 0..200 {
            for (conn, index) in std::mem::take(&mut asked) {
                bench.started(conn, index);
                asked.extend(requests(&bench.ended(conn, index, ChunkOutcome::Verified)));
            }
            asked.extend(requests(&bench.later(tick)));
        }
        assert!(bench.node.is_complete(), "{rack:?}");
    }
}

/// Offers go to those near by; an offer from outside is taken if the chunk is this node's to bring.
#[test]
fn offers_stay_in_the_rack() {
    let mut sender = bench(Role::Peer, some(&(0..CHUNKS).collect::<Vec<_>>()));
    let offers = |outputs: &[Output]| -> Vec<u64> {
        let offer = |output: &Output| match output {
            Output::Send {
                conn,
                message: Message::Offer(_),
            } => Some(conn.0),
            _ => None,
        };
        outputs.iter().filter_map(offer).collect()
    };
    // Alone, it offers to whom it can.
    assert_eq!(
        offers(&sender.meet_in(20, Role::Peer, "b", Have::Nothing)),
        [20]
    );
    assert_eq!(
        offers(&sender.meet_in(10, Role::Peer, "a", Have::Nothing)),
        [10]
    );
    assert_eq!(
        offers(&sender.meet_in(21, Role::Peer, "b", Have::Nothing)),
        []
    );

    let mut receiver = bench(Role::Peer, some(&[]));
    for conn in 10..13 {
        receiver.meet_in(conn, Role::Peer, "a", Have::Nothing);
    }
    receiver.meet_in(20, Role::Peer, "b", Have::Nothing);
    let mut taken = 0;
    for index in (0..CHUNKS).map(ChunkIndex) {
        let outputs = receiver.say(20, Message::Offer(vec![index]));
        match requests(&outputs).as_slice() {
            [] => assert!(outputs.contains(&send(20, Message::NotNeeded))),
            asked => {
                assert_eq!(asked, [(20, index.0)]);
                taken += 1;
                receiver.started(20, index.0);
                receiver.ended(20, index.0, ChunkOutcome::Verified);
            }
        }
    }
    assert!((1..CHUNKS).contains(&taken), "{taken}");
}

/// Requests of other racks are served beside those near by, but never take more than half of the
/// slots from them.
#[test]
fn other_racks_are_served_beside() {
    let mut bench = bench(Role::Peer, some(&(0..CHUNKS).collect::<Vec<_>>()));
    bench.meet_in(10, Role::Peer, "a", Have::Nothing);
    bench.meet_in(20, Role::Peer, "b", Have::Nothing);
    let slots = limits::UPLOAD_SLOTS_FIRST;
    let mut granted = [0, 0];
    for index in (0..CHUNKS).map(ChunkIndex) {
        granted[0] += uploads(&bench.say(20, Message::Request(index))).len();
    }
    assert_eq!(granted[0], slots.div_ceil(2), "half of the slots");
    for index in (0..CHUNKS).map(ChunkIndex) {
        granted[1] += uploads(&bench.say(10, Message::Request(index))).len();
    }
    assert!(granted[1] >= slots - granted[0], "{granted:?}");
    // One more of another rack, whatever the others take.
    for index in 0..granted[0] as u32 {
        let (conn, index, outcome) = (ConnId(20), ChunkIndex(index), UploadOutcome::Refused);
        bench.input(Input::UploadEnded {
            conn,
            index,
            outcome,
        });
    }
    let outputs = bench.say(20, Message::Request(ChunkIndex(19)));
    assert_eq!(uploads(&outputs), [(20, 19)]);
}

/// A seed feeds its first nodes, and of each rack that comes later one more.
#[test]
fn a_late_rack_is_fed() {
    let mut seed = Bench::new(Role::Seed, some(&(0..CHUNKS).collect::<Vec<_>>()));
    let early = limits::SEED_NEIGHBOURS as u64;
    let mut refused = 0;
    for conn in 100..100 + early + 10 {
        let outputs = seed.meet_in(conn, Role::Peer, "early", Have::Nothing);
        let refusal = send(conn, Message::WantHaves(false));
        refused += usize::from(outputs.contains(&refusal));
    }
    assert_eq!(refused, 10);
    let mut fed = Vec::new();
    for conn in 300..305 {
        let outputs = seed.meet_in(conn, Role::Peer, "late", Have::Nothing);
        fed.push(!outputs.contains(&send(conn, Message::WantHaves(false))));
    }
    assert_eq!(fed, [true, false, false, false, false]);
    // It is gone: another one of its rack has its place.
    let outputs = seed.input(Input::Disconnected { conn: ConnId(300) });
    assert!(outputs.contains(&send(301, Message::WantHaves(true))));
    let report = seed.node.report(seed.now);
    let late = report
        .peers
        .iter()
        .filter(|peer| peer.rack.as_deref() == Some("late"));
    assert_eq!(late.count(), 4);
}
