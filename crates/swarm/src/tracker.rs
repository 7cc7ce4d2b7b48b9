//! Who is whose neighbour: the tracker's part of a seed.
//!
//! The overlay is the union of random rings (Law and Siu, "Distributed Construction of Random
//! Expander Networks", INFOCOM 2003): each node stands in each ring, and those before and behind
//! it are its neighbours. Every node has the same degree, which matters more than which
//! neighbours it has: stragglers are the nodes with few. A newcomer is put at a random place of
//! each ring, dials the two nodes there, and the edge it broke is dropped. While the swarm is
//! small it is a full mesh.

use crate::id::NodeId;
use crate::limits::DEGREE;
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

const RINGS: usize = DEGREE / 2;

/// What a join or a leave changes in the overlay.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewiring {
    /// `(who, whom)`: edges to make.
    pub(crate) dial: Vec<(NodeId, NodeId)>,
    /// `(who, whom)`: edges to give up.
    pub(crate) drop: Vec<(NodeId, NodeId)>,
}

#[derive(Debug)]
struct Member {
    node: NodeId,
    /// Where it stands in `live`.
    place: usize,
    before: [usize; RINGS],
    behind: [usize; RINGS],
}

/// The rings. Members are named by their index in `members`; indexes of the departed are reused.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    members: Vec<Member>,
    by_node: BTreeMap<NodeId, usize>,
    live: Vec<usize>,
    departed: Vec<usize>,
}

impl Tracker {
    #[cfg(test)]
    fn len(&self) -> usize {
        self.live.len()
    }

    /// Puts a node into the rings.
    pub(crate) fn join(&mut self, node: NodeId, rng: &mut Rng) -> Rewiring {
        if self.by_node.contains_key(&node) {
            return Rewiring::default();
        }
        let new = self.departed.pop().unwrap_or(self.members.len());
        let member = Member {
            node,
            place: self.live.len(),
            before: [new; RINGS],
            behind: [new; RINGS],
        };
        if new == self.members.len() {
            self.members.push(member);
        } else {
            self.members[new] = member;
        }
        let mut broken = Vec::new();
        if !self.live.is_empty() {
            for ring in 0..RINGS {
                let before = self.live[rng.below(self.live.len())];
                let behind = self.members[before].behind[ring];
                self.members[before].behind[ring] = new;
                self.members[behind].before[ring] = new;
                self.members[new].before[ring] = before;
                self.members[new].behind[ring] = behind;
                broken.push((before, behind));
            }
        }
        let mesh = self.live.len() <= DEGREE;
        let neighbours: BTreeSet<usize> = if mesh {
            self.live.iter().copied().collect()
        } else {
            self.neighbours(new)
        };
        self.live.push(new);
        self.by_node.insert(node, new);

        let name = |member: usize| self.members[member].node;
        let mut rewiring = Rewiring::default();
        rewiring
            .dial
            .extend(neighbours.into_iter().map(|other| (node, name(other))));
        if !mesh {
            let edges: BTreeSet<_> = broken.into_iter().filter(|(a, b)| a != b).collect();
            let gone = edges
                .into_iter()
                .filter(|(a, b)| !self.neighbours(*a).contains(b));
            rewiring.drop.extend(gone.map(|(a, b)| (name(a), name(b))));
        }
        rewiring
    }

    /// Takes a node out; those around it become neighbours.
    pub(crate) fn leave(&mut self, node: NodeId) -> Rewiring {
        let Some(old) = self.by_node.remove(&node) else {
            return Rewiring::default();
        };
        let mut joined = BTreeSet::new();
        for ring in 0..RINGS {
            let (before, behind) = (
                self.members[old].before[ring],
                self.members[old].behind[ring],
            );
            self.members[before].behind[ring] = behind;
            self.members[behind].before[ring] = before;
            if before != behind {
                joined.insert((before, behind));
            }
        }
        let place = self.members[old].place;
        self.live.swap_remove(place);
        if let Some(moved) = self.live.get(place) {
            self.members[*moved].place = place;
        }
        self.departed.push(old);
        let name = |member: usize| self.members[member].node;
        let dial = joined
            .into_iter()
            .map(|(a, b)| (name(a), name(b)))
            .collect();
        Rewiring {
            dial,
            drop: Vec::new(),
        }
    }

    /// Up to `count` distinct nodes, `except` one, by chance.
    pub(crate) fn sample(&self, count: usize, except: NodeId, rng: &mut Rng) -> Vec<NodeId> {
        let mut chosen = BTreeSet::new();
        for _ in 0..count * 2 {
            if self.live.is_empty() || chosen.len() == count {
                break;
            }
            let node = self.members[self.live[rng.below(self.live.len())]].node;
            if node != except {
                chosen.insert(node);
            }
        }
        chosen.into_iter().collect()
    }

    fn neighbours(&self, member: usize) -> BTreeSet<usize> {
        let m = &self.members[member];
        m.before
            .iter()
            .chain(&m.behind)
            .copied()
            .filter(|other| *other != member)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        NodeId(bytes)
    }

    /// The overlay as the nodes see it: they do as they are told, no more.
    #[derive(Default)]
    struct Graph(BTreeMap<NodeId, BTreeSet<NodeId>>);

    impl Graph {
        fn apply(&mut self, rewiring: &Rewiring) {
            for (a, b) in &rewiring.dial {
                self.0.entry(*a).or_default().insert(*b);
                self.0.entry(*b).or_default().insert(*a);
            }
            for (a, b) in &rewiring.drop {
                self.0.entry(*a).or_default().remove(b);
                self.0.entry(*b).or_default().remove(a);
            }
        }

        fn remove(&mut self, node: NodeId) {
            for other in self.0.remove(&node).unwrap_or_default() {
                self.0.entry(other).or_default().remove(&node);
            }
        }

        fn is_connected(&self) -> bool {
            let mut seen = BTreeSet::new();
            let mut stack: Vec<_> = self.0.keys().take(1).copied().collect();
            while let Some(node) = stack.pop() {
                if seen.insert(node) {
                    stack.extend(&self.0[&node]);
                }
            }
            seen.len() == self.0.len()
        }
    }

    #[test]
    fn small_swarms_are_a_full_mesh() {
        let (mut tracker, mut graph, mut rng) = (Tracker::default(), Graph::default(), Rng::new(1));
        for number in 0..=DEGREE {
            graph.apply(&tracker.join(id(number), &mut rng));
        }
        assert!(
            graph
                .0
                .values()
                .all(|neighbours| neighbours.len() == DEGREE)
        );
    }

    #[test]
    fn large_swarms_have_an_even_degree_and_hold_together() {
        for seed in 0..5 {
            let (mut tracker, mut graph, mut rng) =
                (Tracker::default(), Graph::default(), Rng::new(seed));
            for number in 0..1000 {
                graph.apply(&tracker.join(id(number), &mut rng));
            }
            let degrees: Vec<usize> = graph.0.values().map(BTreeSet::len).collect();
            let (least, most) = (
                *degrees.iter().min().unwrap(),
                *degrees.iter().max().unwrap(),
            );
            assert!(
                least >= DEGREE - 5 && most <= DEGREE * 2,
                "seed {seed}: {least}..{most}"
            );
            assert!(graph.is_connected(), "seed {seed}");

            for number in (0..1000).step_by(2) {
                graph.remove(id(number));
                graph.apply(&tracker.leave(id(number)));
            }
            assert_eq!(tracker.len(), 500);
            assert!(graph.is_connected(), "seed {seed}, after half left");
            assert!(
                graph
                    .0
                    .values()
                    .all(|neighbours| neighbours.len() >= DEGREE / 2)
            );
        }
    }

    #[test]
    fn joining_twice_and_leaving_twice_change_nothing() {
        let (mut tracker, mut rng) = (Tracker::default(), Rng::new(1));
        tracker.join(id(1), &mut rng);
        tracker.join(id(2), &mut rng);
        assert_eq!(tracker.join(id(2), &mut rng), Rewiring::default());
        tracker.leave(id(2));
        assert_eq!(tracker.leave(id(2)), Rewiring::default());
        assert_eq!(tracker.sample(5, id(1), &mut rng), []);
        assert_eq!(tracker.sample(5, id(9), &mut rng), [id(1)]);
        tracker.leave(id(1));
        assert_eq!(tracker.len(), 0);
        assert_eq!(tracker.join(id(3), &mut rng), Rewiring::default());
    }
}
