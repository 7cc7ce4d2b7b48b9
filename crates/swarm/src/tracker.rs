//! Who is whose neighbour: the tracker's part of a seed.
//!
//! The overlay is the union of random rings (Law and Siu, "Distributed Construction of Random
//! Expander Networks", INFOCOM 2003): each node stands in each ring, and those before and behind
//! it are its neighbours. Every node has the same degree, which matters more than which
//! neighbours it has: stragglers are the nodes with few. A newcomer is put at a random place of
//! each ring, dials the two nodes there, and the edge it broke is dropped. While the swarm is
//! small it is a full mesh.
//!
//! Nodes say where they stand, and each rack has rings of its own. As long as there is one rack, that
//! is all. When there are several, a rack of up to [`RACK_MESH_MAX`] nodes is a full mesh, so that
//! each of its nodes knows what the whole rack holds; and rings through the whole swarm join the
//! racks: [`FAR_RINGS`] for everybody, more for those who find few near neighbours when they come.
//! Only the edges between two racks count there. A rack that outgrows the mesh gives up all edges
//! but those of its rings.
//!
//! A rack is a name that a node gives itself: a hint. The worst that a wrong one does is to join
//! nodes that are far from each other. Nodes without a name count as one rack.

use crate::id::NodeId;
use crate::limits::{DEGREE, FAR_RINGS, RACK_MESH_MAX};
use crate::ring::Ring;
use crate::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};

const RINGS: usize = DEGREE / 2;

/// Places tried for a newcomer in a ring through the whole swarm, in search of one between two
/// nodes of other racks: where half of the nodes are of its rack, 7 of 8 newcomers find one.
const FAR_DRAWS: usize = 8;

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
    rack: Option<String>,
    /// Where it stands in `live`.
    place: usize,
}

#[derive(Debug, Default)]
struct Rack {
    /// All in it, in no particular order.
    members: BTreeSet<u32>,
    rings: [Ring; RINGS],
    /// All are neighbours of all; the rings are kept for when there are too many.
    is_mesh: bool,
}

/// Edges between members, by their numbers.
type Edges = BTreeSet<(u32, u32)>;

/// All nodes of a swarm. Members are numbers: indexes in `members`. Those of the departed are reused.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    members: Vec<Member>,
    by_node: BTreeMap<NodeId, u32>,
    live: Vec<u32>,
    departed: Vec<u32>,
    racks: BTreeMap<Option<String>, Rack>,
    /// The rings through the whole swarm; none before there is a second rack.
    far: Option<[Ring; RINGS]>,
}

impl Tracker {
    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    /// Puts a node into the overlay.
    pub(crate) fn join(&mut self, node: NodeId, rack: Option<&str>, rng: &mut Rng) -> Rewiring {
        if self.by_node.contains_key(&node) {
            return Rewiring::default();
        }
        let everybody = (self.live.len() <= DEGREE).then(|| self.live.clone());
        let (mut dial, mut drop) = (Edges::new(), Edges::new());
        let new = self.admit(node, rack.map(str::to_owned));
        let near = self.join_rack(new, &mut dial, &mut drop, rng);
        if self.far.is_none() && self.racks.len() > 1 {
            self.begin_far(new, &mut dial, rng);
        }
        self.join_far(new, near, &mut dial, &mut drop, rng);
        if let Some(others) = everybody {
            dial.extend(others.into_iter().map(|other| (new, other)));
            drop.clear();
        }
        drop.retain(|(a, b)| !self.are_neighbours(*a, *b));
        self.rewiring(dial, drop)
    }

    /// Takes a node out; those around it become neighbours.
    pub(crate) fn leave(&mut self, node: NodeId) -> Rewiring {
        let Some(old) = self.by_node.remove(&node) else {
            return Rewiring::default();
        };
        let mut dial = Edges::new();
        let rack_name = self.members[old as usize].rack.take();
        if let Some(rack) = self.racks.get_mut(&rack_name) {
            rack.members.remove(&old);
            for ring in &mut rack.rings {
                let joined = ring.remove(old);
                dial.extend(joined.filter(|_| !rack.is_mesh));
            }
            if rack.members.is_empty() {
                self.racks.remove(&rack_name);
            }
        }
        for ring in self.far.iter_mut().flatten() {
            let joined = ring.remove(old);
            let members = &self.members;
            let rack = |member: u32| &members[member as usize].rack;
            dial.extend(joined.filter(|(a, b)| rack(*a) != rack(*b)));
        }
        if self.racks.len() <= 1 {
            self.far = None;
        }
        let place = self.members[old as usize].place;
        self.live.swap_remove(place);
        if let Some(moved) = self.live.get(place) {
            self.members[*moved as usize].place = place;
        }
        self.departed.push(old);
        self.rewiring(dial, Edges::new())
    }

    /// Up to `count` distinct nodes, `except` one, by chance.
    pub(crate) fn sample(&self, count: usize, except: NodeId, rng: &mut Rng) -> Vec<NodeId> {
        let mut chosen = BTreeSet::new();
        for _ in 0..count * 2 {
            if self.live.is_empty() || chosen.len() == count {
                break;
            }
            let node = self.name(self.live[rng.below(self.live.len())]);
            if node != except {
                chosen.insert(node);
            }
        }
        chosen.into_iter().collect()
    }

    /// Gives a newcomer its number.
    fn admit(&mut self, node: NodeId, rack: Option<String>) -> u32 {
        let place = self.live.len();
        let member = Member { node, rack, place };
        let new = match self.departed.pop() {
            Some(free) => {
                self.members[free as usize] = member;
                free
            }
            None => {
                self.members.push(member);
                // A seed keeps far fewer connections than that.
                (self.members.len() - 1) as u32
            }
        };
        self.live.push(new);
        self.by_node.insert(node, new);
        new
    }

    /// Puts a newcomer among those of its rack. Returns how many near neighbours it finds.
    fn join_rack(&mut self, new: u32, dial: &mut Edges, drop: &mut Edges, rng: &mut Rng) -> usize {
        let rack_name = self.members[new as usize].rack.clone();
        let alone = self.racks.is_empty();
        let rack = self.racks.entry(rack_name).or_insert_with(|| Rack {
            is_mesh: !alone,
            ..Rack::default()
        });
        let broken = rack
            .rings
            .iter_mut()
            .filter_map(|ring| ring.insert(new, 1, |_| true, rng));
        let broken: Edges = broken.filter(|(a, b)| a != b).collect();
        if rack.is_mesh && rack.members.len() < RACK_MESH_MAX {
            dial.extend(rack.members.iter().map(|other| (new, *other)));
        } else if rack.is_mesh {
            rack.is_mesh = false;
            for a in &rack.members {
                drop.extend(rack.members.range(a + 1..).map(|b| (*a, *b)));
            }
        } else {
            drop.extend(broken);
        }
        let around = rack.rings.iter().flat_map(|ring| ring.neighbours(new));
        dial.extend(around.map(|other| (new, other)));
        rack.members.insert(new);
        match rack.is_mesh {
            true => rack.members.len() - 1,
            false => DEGREE.min(rack.members.len() - 1),
        }
    }

    /// There is a second rack, that of `new`: those who are there already take their places in the
    /// rings through the whole swarm, and their rack becomes a mesh if it may be one.
    fn begin_far(&mut self, new: u32, dial: &mut Edges, rng: &mut Rng) {
        let mut rings: [Ring; RINGS] = Default::default();
        for member in self.live.iter().filter(|member| **member != new) {
            for ring in &mut rings {
                ring.insert(*member, 1, |_| true, rng);
            }
        }
        self.far = Some(rings);
        for rack in self.racks.values_mut() {
            if !rack.is_mesh && rack.members.len() <= RACK_MESH_MAX {
                rack.is_mesh = true;
                for a in &rack.members {
                    dial.extend(rack.members.range(a + 1..).map(|b| (*a, *b)));
                }
            }
        }
    }

    /// Puts a newcomer with so many near neighbours into the rings through the whole swarm.
    fn join_far(
        &mut self,
        new: u32,
        near: usize,
        dial: &mut Edges,
        drop: &mut Edges,
        rng: &mut Rng,
    ) {
        let members = &self.members;
        let is_far = |other: u32| members[other as usize].rack != members[new as usize].rack;
        let count = (DEGREE.saturating_sub(near) / 2).clamp(FAR_RINGS, RINGS);
        for ring in self.far.iter_mut().flatten().take(count) {
            let Some((before, behind)) = ring.insert(new, FAR_DRAWS, is_far, rng) else {
                continue;
            };
            let far = [before, behind].into_iter().filter(|other| is_far(*other));
            dial.extend(far.map(|other| (new, other)));
            // Within a rack it was no edge, or not one of this ring.
            if members[before as usize].rack != members[behind as usize].rack {
                drop.insert((before, behind));
            }
        }
    }

    fn are_neighbours(&self, a: u32, b: u32) -> bool {
        let rack_name = &self.members[a as usize].rack;
        let is_near = *rack_name == self.members[b as usize].rack;
        let rings = match self.racks.get(rack_name) {
            Some(rack) if is_near && rack.is_mesh => return true,
            Some(rack) if is_near => rack.rings.as_slice(),
            _ => self.far.as_ref().map_or(&[][..], |rings| rings.as_slice()),
        };
        rings
            .iter()
            .any(|ring| ring.neighbours(a).any(|other| other == b))
    }

    /// Every edge that is there now, from either end.
    #[cfg(test)]
    pub(crate) fn edges(&self) -> Vec<(NodeId, NodeId)> {
        let pairs = self
            .live
            .iter()
            .flat_map(|a| self.live.iter().map(move |b| (*a, *b)));
        pairs
            .filter(|(a, b)| a != b && self.are_neighbours(*a, *b))
            .map(|(a, b)| (self.name(a), self.name(b)))
            .collect()
    }

    fn name(&self, member: u32) -> NodeId {
        self.members[member as usize].node
    }

    fn rewiring(&self, dial: Edges, drop: Edges) -> Rewiring {
        let names = |edges: Edges| {
            let names = edges.into_iter().map(|(a, b)| (self.name(a), self.name(b)));
            names.collect()
        };
        Rewiring {
            dial: names(dial),
            drop: names(drop),
        }
    }
}

#[cfg(test)]
mod tests;
