//! The overlay as the nodes see it, who do as they are told and no more.

use super::*;
use crate::rng::Rng;
use proptest::prelude::*;

fn id(number: usize) -> NodeId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    NodeId(bytes)
}

/// A tracker, and the edges that follow from what it says.
struct Bench {
    tracker: Tracker,
    rng: Rng,
    edges: BTreeMap<NodeId, BTreeSet<NodeId>>,
    racks: BTreeMap<NodeId, Option<String>>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self {
            tracker: Tracker::default(),
            rng: Rng::new(seed),
            edges: BTreeMap::new(),
            racks: BTreeMap::new(),
        }
    }

    fn join(&mut self, node: NodeId, rack: Option<&str>) {
        self.edges.entry(node).or_default();
        self.racks.insert(node, rack.map(str::to_owned));
        let rewiring = self.tracker.join(node, rack, &mut self.rng);
        self.apply(&rewiring);
    }

    fn leave(&mut self, node: NodeId) {
        for other in self.edges.remove(&node).unwrap_or_default() {
            self.edges.entry(other).or_default().remove(&node);
        }
        self.racks.remove(&node);
        let rewiring = self.tracker.leave(node);
        self.apply(&rewiring);
    }

    fn apply(&mut self, rewiring: &Rewiring) {
        for (a, b) in &rewiring.dial {
            assert!(a != b && self.edges.contains_key(a) && self.edges.contains_key(b));
            self.edges.entry(*a).or_default().insert(*b);
            self.edges.entry(*b).or_default().insert(*a);
        }
        for (a, b) in &rewiring.drop {
            self.edges.entry(*a).or_default().remove(b);
            self.edges.entry(*b).or_default().remove(a);
        }
    }

    fn is_connected(&self) -> bool {
        let mut seen = BTreeSet::new();
        let mut stack: Vec<_> = self.edges.keys().take(1).copied().collect();
        while let Some(node) = stack.pop() {
            if seen.insert(node) {
                stack.extend(&self.edges[&node]);
            }
        }
        seen.len() == self.edges.len()
    }

    /// Of each node, how many neighbours it has in its rack and outside.
    fn degrees(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.edges.iter().map(|(node, others)| {
            let is_near = |other: &&NodeId| self.racks[*other] == self.racks[node];
            let near = others.iter().filter(is_near).count();
            (near, others.len() - near)
        })
    }

    /// The least and the most near neighbours, and the same for far ones.
    fn spread(&self) -> [usize; 4] {
        let near = || self.degrees().map(|(near, _)| near);
        let far = || self.degrees().map(|(_, far)| far);
        [
            near().min().unwrap(),
            near().max().unwrap(),
            far().min().unwrap(),
            far().max().unwrap(),
        ]
    }
}

fn rack(number: usize) -> String {
    format!("rack-{number}")
}

#[test]
fn small_swarms_are_a_full_mesh() {
    for racks in [1, 3, DEGREE + 1] {
        let mut bench = Bench::new(1);
        for number in 0..=DEGREE {
            bench.join(id(number), Some(&rack(number % racks)));
        }
        assert!(bench.edges.values().all(|others| others.len() == DEGREE));
    }
}

#[test]
fn large_swarms_have_an_even_degree_and_hold_together() {
    // One rack is none, whether its name is known or not.
    for (seed, rack) in [(0, None), (1, None), (2, Some("10.0.0.0/8"))] {
        let mut bench = Bench::new(seed);
        for number in 0..1000 {
            bench.join(id(number), rack);
        }
        let [least, most, _, far] = bench.spread();
        assert!(
            least >= DEGREE - 5 && most <= DEGREE * 2 && far == 0,
            "seed {seed}: {least}..{most}, {far} far"
        );
        assert!(bench.is_connected(), "seed {seed}");

        for number in (0..1000).step_by(2) {
            bench.leave(id(number));
        }
        assert_eq!(bench.tracker.live.len(), 500);
        assert!(bench.is_connected(), "seed {seed}, after half left");
        assert!(
            bench
                .edges
                .values()
                .all(|others| others.len() >= DEGREE / 2)
        );
    }
}

/// 25 racks of 40: everybody knows its whole rack, and always some outside.
#[test]
fn racks_are_meshes_with_some_edges_between_them() {
    for seed in 0..3 {
        let mut bench = Bench::new(seed);
        for number in 0..1000 {
            bench.join(id(number), Some(&rack(number % 25)));
        }
        let [least, most, far_least, far_most] = bench.spread();
        assert_eq!((least, most), (39, 39), "seed {seed}");
        assert!(
            far_least >= FAR_RINGS && far_most <= 2 * DEGREE,
            "seed {seed}: {far_least}..{far_most} far"
        );
        let far: usize = bench.degrees().map(|(_, far)| far).sum();
        assert!(far <= 1000 * (2 * FAR_RINGS + 2), "{far} far in all");
        assert!(bench.is_connected());

        // A rack that is switched on later is no worse off.
        for number in 1000..1040 {
            bench.join(id(number), Some("late"));
        }
        for (near, far) in bench.degrees().skip(1000) {
            assert!(near == 39 && far >= FAR_RINGS, "{near} near, {far} far");
        }
    }
}

/// What a node lacks in its rack it has outside.
#[test]
fn those_with_few_near_neighbours_have_more_far_ones() {
    for (size, least) in [(1, DEGREE - 5), (4, DEGREE - 6), (8, DEGREE - 4)] {
        let mut bench = Bench::new(1);
        for number in 0..400 {
            bench.join(id(number), Some(&rack(number / size)));
        }
        let degrees: Vec<usize> = bench.degrees().map(|(near, far)| near + far).collect();
        let (fewest, most) = (degrees.iter().min().unwrap(), degrees.iter().max().unwrap());
        assert!(
            *fewest >= least && *most <= 2 * DEGREE + size,
            "racks of {size}: {fewest}..{most}"
        );
    }
    // One that stands alone, beside many that stand together.
    let mut bench = Bench::new(1);
    for number in 0..500 {
        bench.join(id(number), None);
    }
    bench.join(id(500), Some("elsewhere"));
    let (near, far) = bench.degrees().last().unwrap();
    assert!(near == 0 && far >= DEGREE - 4, "{near} near, {far} far");
    let others = bench.degrees().take(500);
    assert!(others.map(|(near, _)| near).all(|near| near >= DEGREE - 5));
}

#[test]
fn a_rack_that_outgrows_the_mesh_gives_it_up() {
    let mut bench = Bench::new(1);
    for number in 0..RACK_MESH_MAX * 2 {
        bench.join(id(number), Some(&rack(number % 2)));
    }
    let [least, most, ..] = bench.spread();
    assert_eq!((least, most), (RACK_MESH_MAX - 1, RACK_MESH_MAX - 1));
    for number in RACK_MESH_MAX * 2..400 {
        bench.join(id(number), Some(&rack(number % 2)));
    }
    let [least, most, far_least, far_most] = bench.spread();
    assert!(
        least >= DEGREE - 6 && most <= DEGREE,
        "{least}..{most} near"
    );
    assert!(far_least >= 1 && far_most <= 2 * DEGREE, "{far_least} far");
    assert!(bench.is_connected());
}

/// A rack that was alone becomes a mesh when there is a second one, unless it is too large.
#[test]
fn the_second_rack_changes_the_first() {
    for (nodes, expected) in [(40, 39..=39), (60, DEGREE - 6..=DEGREE * 2)] {
        let mut bench = Bench::new(1);
        for number in 0..nodes {
            bench.join(id(number), None);
        }
        let [_, most, ..] = bench.spread();
        assert!(most <= DEGREE * 2);
        bench.join(id(nodes), Some("second"));
        for (near, _) in bench.degrees().take(nodes) {
            assert!(expected.contains(&near), "{nodes} nodes: {near}");
        }
        // And when it is gone and another one comes.
        bench.leave(id(nodes));
        assert!(bench.tracker.far.is_none());
        bench.join(id(nodes + 1), Some("third"));
        let (near, far) = bench.degrees().last().unwrap();
        assert!(near == 0 && far >= DEGREE - 4, "{near} near, {far} far");
    }
}

#[test]
fn joining_twice_and_leaving_twice_change_nothing() {
    let (mut tracker, mut rng) = (Tracker::default(), Rng::new(1));
    tracker.join(id(1), None, &mut rng);
    tracker.join(id(2), Some("a"), &mut rng);
    let again = tracker.join(id(2), Some("b"), &mut rng);
    assert_eq!(again, Rewiring::default());
    tracker.leave(id(2));
    assert_eq!(tracker.leave(id(2)), Rewiring::default());
    assert_eq!(tracker.sample(5, id(1), &mut rng), []);
    assert_eq!(tracker.sample(5, id(9), &mut rng), [id(1)]);
    tracker.leave(id(1));
    assert!(tracker.live.is_empty() && tracker.racks.is_empty());
    let first = tracker.join(id(3), None, &mut rng);
    assert_eq!(first, Rewiring::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever comes and goes, and whatever they call their racks: the swarm holds together, nobody
    /// has more neighbours than it takes, and every edge that the tracker counts on is there.
    #[test]
    fn holds_together(
        moves in proptest::collection::vec((0usize..120, 0usize..6, any::<bool>()), 0..250),
        names in 1usize..6,
        seed in any::<u64>(),
    ) {
        let mut bench = Bench::new(seed);
        for (node, name, comes) in moves {
            let (node, known) = (id(node), bench.racks.contains_key(&id(node)));
            // Most of them in one rack, so that it outgrows the mesh now and then.
            let name = if name >= names { 0 } else { name };
            let name = (name > 0).then(|| rack(name));
            match (comes || bench.racks.len() < 60, known) {
                (true, false) => bench.join(node, name.as_deref()),
                (false, true) => bench.leave(node),
                _ => {}
            }
            let most = bench.edges.values().map(BTreeSet::len).max().unwrap_or(0);
            prop_assert!(most <= crate::limits::PEERS_MAX, "{} neighbours", most);
        }
        prop_assert!(bench.is_connected());
        for a in &bench.tracker.live {
            for b in &bench.tracker.live {
                let expected = a != b && bench.tracker.are_neighbours(*a, *b);
                let (a, b) = (bench.tracker.name(*a), bench.tracker.name(*b));
                prop_assert!(!expected || bench.edges[&a].contains(&b));
            }
        }
    }
}
