//! The connections of one node and what is known of the nodes behind them.

use crate::id::{ConnId, NodeId, Role};
use crate::limits::{
    BUSY_DOUBLINGS, BUSY_PATIENCE, FAILURE_BACKOFF, FAILURE_BACKOFF_MAX, IN_FLIGHT, PEERS_MAX,
    SEED_PEERS_MAX,
};
use crate::message::Wire;
use crate::time::Instant;
use rootswarm_image::{Bitfield, ChunkIndex};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Requests outstanding at one peer: as many as a node keeps in flight on a fast link.
const OUTSTANDING_MAX: usize = IN_FLIGHT * 2;

/// One connected node. What every announcement and every look at all peers reads comes first and
/// fits into the first two cache lines: most of what a large simulation costs is waiting for them.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Peer {
    pub(crate) conn: ConnId,
    pub(crate) have: Bitfield,
    /// Chunks that it is not offered: those it holds, and those that it declined because they were under
    /// way to it, which it will announce soon.
    pub(crate) not_needed: Bitfield,
    pub(crate) role: Role,
    /// A peer, or a seed that knows where it stands, of this node's rack.
    pub(crate) is_near: bool,
    /// Its hello came: chunks may be exchanged.
    pub(crate) active: bool,
    /// It wants to hear what this node holds.
    pub(crate) wants_haves: bool,
    /// A seed hands chunks to it (seeds only).
    pub(crate) is_fed: bool,
    /// It was offered chunks and has not answered yet.
    pub(crate) is_offered: bool,
    /// What it last reported as held; kept where its haves are not asked for.
    pub(crate) progress: u32,
    /// Chunks that were sent to it are overdue, and it has said nothing since they were begun.
    pub(crate) is_silent: bool,
    /// When it last said anything.
    pub(crate) heard_at: Instant,
    /// Requests of ours that it has not finished.
    pub(crate) outstanding: usize,
    /// How many it may have; a seed's say, which has more or fewer slots to spare.
    pub(crate) outstanding_max: usize,
    /// Since it last sent a chunk that was asked for, a seed keeps a part of its slots for this node until
    /// then (seeds only).
    pub(crate) served_until: Option<Instant>,
    /// Chunk streams that it may still begin: one for each request that ever went to it.
    pub(crate) streams_due: u32,
    /// It is not asked, and nothing is pushed to it, before this.
    pub(crate) backoff_until: Instant,
    /// It is not offered anything before this.
    pub(crate) offer_after: Instant,
    pub(crate) connected_at: Instant,
    /// Of how many of the node's last arrivals it has heard (see `node/announcing`).
    pub(crate) told: usize,
    /// What it held when its hello came.
    pub(crate) held_at_first: u32,
    /// Chunks that it was offered; none unless `is_offered`.
    pub(crate) offered: Vec<ChunkIndex>,
    /// Pushed chunks whose bytes it acknowledged, but which it has not announced: its network has
    /// them, its store may not. In the order of their arrival there.
    pub(crate) unconfirmed: Vec<(ChunkIndex, Instant)>,
    /// It has announced a chunk that was pushed to it.
    pub(crate) has_confirmed: bool,
    failures: u32,
    /// How many pushes in a row it has refused.
    pub(crate) refusals: u32,
    declines: u32,
    pub(crate) complete_since: Option<Instant>,
    pub(crate) node: NodeId,
    pub(crate) addr: SocketAddr,
    /// Where it says it stands.
    pub(crate) rack: Option<String>,
    /// This side dialed.
    pub(crate) dialed: bool,
    /// What is spoken with it.
    pub(crate) wire: Wire,
    /// It sends from another address than the one from which it connected.
    pub(crate) has_moved: bool,
    /// Others do not reach it, as they said (seeds only).
    pub(crate) hard_to_reach_until: Instant,
    /// With how many nodes it has no connection, as it was told (seeds only).
    pub(crate) cut_off_told: u32,
    pub(crate) asked_for_peers_at: Option<Instant>,
    /// How often it has asked for peers since the last answer.
    pub(crate) asked_in_vain: u32,
}

impl Peer {
    pub(crate) fn new(
        conn: ConnId,
        node: NodeId,
        addr: SocketAddr,
        role: Role,
        dialed: bool,
        nothing: &Bitfield,
        now: Instant,
    ) -> Self {
        Self {
            conn,
            node,
            addr,
            role,
            rack: None,
            is_near: false,
            dialed,
            wire: Wire::V3,
            has_moved: false,
            hard_to_reach_until: Instant::ZERO,
            cut_off_told: 0,
            active: false,
            have: nothing.clone(),
            progress: 0,
            wants_haves: true,
            is_fed: false,
            unconfirmed: Vec::new(),
            has_confirmed: false,
            is_silent: false,
            heard_at: now,
            is_offered: false,
            offered: Vec::new(),
            offer_after: Instant::ZERO,
            not_needed: nothing.clone(),
            outstanding: 0,
            outstanding_max: OUTSTANDING_MAX,
            served_until: None,
            streams_due: 0,
            backoff_until: Instant::ZERO,
            failures: 0,
            refusals: 0,
            declines: 0,
            connected_at: now,
            told: 0,
            held_at_first: 0,
            complete_since: None,
            asked_for_peers_at: None,
            asked_in_vain: 0,
        }
    }

    /// How many chunks it is known to hold.
    pub(crate) fn chunks(&self) -> u32 {
        self.progress.max(self.have.count())
    }

    /// How fast it has been fetching since its hello, in chunks in 10^12 microseconds.
    pub(crate) fn pace(&self, now: Instant) -> u64 {
        let fetched = u64::from(self.chunks().saturating_sub(self.held_at_first));
        let micros = now.since(self.connected_at).as_micros() as u64;
        // At most 2^17 * 10^12: it fits.
        fetched * 1_000_000_000_000 / micros.max(1)
    }

    /// How many of an image's chunks it would hold now, if it had begun to get all of them within `time` when
    /// it came.
    pub(crate) fn could_hold(&self, chunks: u64, time: Duration, now: Instant) -> u64 {
        let time_us = time.as_micros().max(1) as u64;
        let here_us = (now.since(self.connected_at).as_micros() as u64).min(time_us);
        // At most 2^17 chunks, and a year of microseconds: it fits.
        (chunks * here_us / time_us)
            .max(u64::from(self.held_at_first))
            .min(chunks)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.chunks() >= self.have.len()
    }

    /// How often in a row it let a request down.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// It let a request down. Returns how often in a row.
    pub(crate) fn failed(&mut self, now: Instant) -> u32 {
        let wait = FAILURE_BACKOFF * 2u32.pow(self.failures.min(8));
        self.backoff_until = now + wait.min(FAILURE_BACKOFF_MAX);
        self.failures += 1;
        self.failures
    }

    /// It delivered, or took what was sent to it.
    pub(crate) fn delivered(&mut self) {
        self.failures = 0;
        self.declines = 0;
        self.outstanding_max = (self.outstanding_max + 1).min(OUTSTANDING_MAX);
    }

    /// Whether what it announces is taken for true: it does not let one request after the other down.
    pub(crate) fn is_credible(&self) -> bool {
        self.failures < 2 && self.declines < 4 * BUSY_PATIENCE
    }

    /// It declined a request. Returns how often to double the time for which it is left alone.
    pub(crate) fn declined(&mut self) -> u32 {
        self.declines += 1;
        (self.declines / BUSY_PATIENCE).min(BUSY_DOUBLINGS)
    }
}

/// All connected nodes, in a fixed order, found by connection or identity.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    list: Vec<Peer>,
    by_conn: Places,
    by_node: BTreeMap<NodeId, ConnId>,
}

impl Peers {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn at(&self, position: usize) -> &Peer {
        &self.list[position]
    }

    /// All of them, from this position on and then those before it.
    pub(crate) fn from(&self, start: usize) -> impl Iterator<Item = &Peer> {
        let (before, after) = self.list.split_at(start.min(self.list.len()));
        after.iter().chain(before)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.list.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.list.iter_mut()
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Peer> {
        Some(&self.list[self.by_conn.find(conn, &self.list)?])
    }

    /// Whether a seed is behind this connection.
    pub(crate) fn is_seed(&self, conn: ConnId) -> bool {
        self.get(conn).is_some_and(|peer| peer.role == Role::Seed)
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Peer> {
        let position = self.by_conn.find(conn, &self.list)?;
        Some(&mut self.list[position])
    }

    pub(crate) fn conn_of(&self, node: NodeId) -> Option<ConnId> {
        self.by_node.get(&node).copied()
    }

    pub(crate) fn insert(&mut self, peer: Peer) {
        debug_assert!(self.get(peer.conn).is_none(), "a connection's name is new");
        self.by_node.insert(peer.node, peer.conn);
        self.list.push(peer);
        self.by_conn.note_last(&self.list);
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Peer> {
        let position = self.by_conn.find(conn, &self.list)?;
        let peer = self.list.swap_remove(position);
        self.by_conn.note_all(&self.list);
        if self.by_node.get(&peer.node) == Some(&conn) {
            self.by_node.remove(&peer.node);
        }
        Some(peer)
    }
}

/// Where each connection is in the list: a hash table with linear probing (Knuth, TAOCP 3, 6.4), of
/// places alone, because the peer there says which connection it is. So a look-up reads one cache line
/// beside the peer's.
#[derive(Debug, Default)]
struct Places {
    /// A power of two, at least twice as many as there are peers; or none.
    slots: Vec<u16>,
}

const NOBODY: u16 = u16::MAX;

const _: () = assert!(SEED_PEERS_MAX + PEERS_MAX < NOBODY as usize);

impl Places {
    fn find(&self, conn: ConnId, list: &[Peer]) -> Option<usize> {
        let mut slot = self.first(conn)?;
        loop {
            let place = self.slots[slot];
            if place == NOBODY {
                return None;
            }
            if list[usize::from(place)].conn == conn {
                return Some(usize::from(place));
            }
            slot = (slot + 1) % self.slots.len();
        }
    }

    /// The list has grown by one.
    fn note_last(&mut self, list: &[Peer]) {
        if list.len() * 2 > self.slots.len() {
            return self.note_all(list);
        }
        self.note(list.len() - 1, list);
    }

    fn note_all(&mut self, list: &[Peer]) {
        self.slots.clear();
        let slots = (list.len() * 2).next_power_of_two().max(32);
        self.slots.resize(slots, NOBODY);
        for place in 0..list.len() {
            self.note(place, list);
        }
    }

    fn note(&mut self, place: usize, list: &[Peer]) {
        let Some(mut slot) = self.first(list[place].conn) else {
            return;
        };
        while self.slots[slot] != NOBODY {
            slot = (slot + 1) % self.slots.len();
        }
        self.slots[slot] = place as u16;
    }

    /// Where to look first.
    fn first(&self, conn: ConnId) -> Option<usize> {
        let bits = self.slots.len().checked_ilog2()?;
        let hash = conn.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Some((hash >> (64 - bits)) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Against a plain list.
    #[test]
    fn finds_whom_a_list_would() {
        let mut rng = Rng::new(1);
        let (mut peers, mut plain) = (Peers::default(), Vec::new());
        for number in 0..2_000u64 {
            if plain.is_empty() || rng.below(100) < 53 {
                // As names are given: ascending, with gaps.
                let conn = ConnId(number * 3 + rng.below(3) as u64);
                let mut node = [0; 32];
                node[..8].copy_from_slice(&number.to_be_bytes());
                let addr = ([10, 0, 0, 1], 7400).into();
                let at = Instant::ZERO;
                peers.insert(Peer::new(
                    conn,
                    NodeId(node),
                    addr,
                    Role::Peer,
                    true,
                    &Bitfield::new(9),
                    at,
                ));
                plain.push((conn, NodeId(node)));
            } else {
                let (conn, node) = plain.swap_remove(rng.below(plain.len()));
                assert_eq!(peers.remove(conn).map(|peer| peer.node), Some(node));
                assert!(peers.remove(conn).is_none() && peers.get_mut(conn).is_none());
            }
            assert_eq!(peers.len(), plain.len());
            for (conn, node) in &plain {
                assert_eq!(peers.get(*conn).map(|peer| peer.node), Some(*node));
                assert_eq!(peers.conn_of(*node), Some(*conn));
            }
        }
    }

    /// Who came later lacks more, and is no slower for it.
    #[test]
    fn what_a_node_could_hold_counts_from_when_it_came() {
        let came = Instant(3_000_000);
        let (addr, nothing) = (([10, 0, 0, 1], 7400).into(), Bitfield::new(1_000));
        let mut peer = Peer::new(
            ConnId(1),
            NodeId([1; 32]),
            addr,
            Role::Peer,
            true,
            &nothing,
            came,
        );
        let round = Duration::from_secs(10);
        // (microseconds since it came, chunks it held then, chunks it could hold of a thousand)
        let cases = [
            (0, 0, 0),
            (1, 0, 0),
            (1_000_000, 0, 100),
            (10_000_000, 0, 1_000),
            (60_000_000, 0, 1_000),
            (1_000_000, 700, 700),
            (1_000_000, 1_000, 1_000),
        ];
        for (here_us, held, expected) in cases {
            peer.held_at_first = held;
            let now = came + Duration::from_micros(here_us);
            assert_eq!(
                peer.could_hold(1_000, round, now),
                expected,
                "{here_us} {held}"
            );
        }
        // A round that took no time, and a clock that has not moved.
        peer.held_at_first = 0;
        assert_eq!(peer.could_hold(1_000, Duration::ZERO, came), 0);
    }
}
