//! What a seed tells its nodes of the overlay: whom to dial at once, from whom to part in time.

use super::*;

/// The first node's number.
const FIRST: u64 = 100;

/// A seed and what it has told its nodes.
struct Site {
    bench: Bench,
    /// As told: who, whom.
    edges: BTreeSet<(NodeId, NodeId)>,
    parting_messages: usize,
}

impl Site {
    fn new() -> Site {
        Site {
            bench: Bench::new(Role::Seed, Bitfield::full(CHUNKS)),
            edges: BTreeSet::new(),
            parting_messages: 0,
        }
    }

    fn join(&mut self, number: u64) {
        let outputs = self.bench.connect(number, Role::Peer, false);
        self.take(outputs);
        let (conn, hello) = (ConnId(number), hello(Have::Nothing));
        let outputs = self.bench.input(Input::Hello { conn, hello });
        self.take(outputs);
    }

    fn later(&mut self, how_long: Duration) {
        let outputs = self.bench.later(how_long);
        self.take(outputs);
    }

    fn take(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let Output::Send { conn, message } = output else {
                continue;
            };
            let who = id(conn.0);
            match message {
                Message::Dial(addresses) => {
                    for whom in addresses.into_iter().map(|address| address.node) {
                        self.edges.extend([(who, whom), (whom, who)]);
                    }
                }
                Message::Drop(nodes) => {
                    self.parting_messages += 1;
                    for whom in nodes {
                        self.edges.remove(&(who, whom));
                    }
                }
                _ => {}
            }
        }
    }

    /// What the nodes were told is what the tracker counts on. Those who came first know each other beside
    /// that: a small swarm is a full mesh, and nobody breaks it.
    fn check(&self) {
        let expected: BTreeSet<_> = self.bench.node.tracker.edges().into_iter().collect();
        let lost: Vec<_> = expected.difference(&self.edges).collect();
        assert!(lost.is_empty(), "{lost:?}");
        let first: BTreeSet<_> = (FIRST..=FIRST + limits::DEGREE as u64).map(id).collect();
        let beside = self.edges.difference(&expected);
        let strange: Vec<_> = beside
            .filter(|(a, b)| !first.contains(a) || !first.contains(b))
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
    }

    fn degrees(&self) -> Vec<usize> {
        let edges: Vec<_> = self.edges.iter().collect();
        edges.chunk_by(|a, b| a.0 == b.0).map(<[_]>::len).collect()
    }
}

/// One at a time: each hears of what it has to give up, and of no more.
#[test]
fn partings_are_told_in_time_and_once_for_all() {
    let mut site = Site::new();
    for number in FIRST..FIRST + 40 {
        site.join(number);
    }
    // The last ones have broken edges that nobody was told of yet.
    let before = site.parting_messages;
    let pending: usize = site.degrees().iter().sum();
    site.later(limits::PARTINGS_AFTER);
    assert!(site.parting_messages > before);
    let settled: usize = site.degrees().iter().sum();
    assert!(settled < pending, "{settled} of {pending}");
    site.check();
    // It is all that there was to say.
    let told = site.parting_messages;
    site.later(limits::PARTINGS_AFTER * 2);
    assert_eq!(site.parting_messages, told);
}

/// Nobody waits for the time to pass when hundreds come at once, and a message says much.
#[test]
fn a_crowd_is_told_before_it_has_too_many_neighbours() {
    let mut site = Site::new();
    let mut most = 0;
    for number in FIRST..FIRST + 600 {
        site.join(number);
        most = most.max(site.degrees().into_iter().max().unwrap_or(0));
    }
    assert!(most < limits::PEERS_MAX / 2, "{most} neighbours");
    // One at a time they were sixteen for each newcomer.
    assert!(site.parting_messages < 600 * 6, "{}", site.parting_messages);
    site.later(limits::PARTINGS_AFTER);
    site.check();
}

/// An edge that was broken and is made again before anybody was told of it stays.
#[test]
fn an_edge_that_is_made_again_is_not_given_up() {
    let mut site = Site::new();
    for number in FIRST..FIRST + 25 {
        site.join(number);
    }
    let gone: Vec<u64> = (FIRST + 10..FIRST + 25).collect();
    for number in gone {
        let conn = ConnId(number);
        let outputs = site.bench.input(Input::Disconnected { conn });
        site.take(outputs);
        site.edges.retain(|(a, b)| ![*a, *b].contains(&id(number)));
    }
    site.later(limits::PARTINGS_AFTER);
    site.check();
}
