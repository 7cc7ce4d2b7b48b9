//! What to fetch from other racks, and what they get: `locality`'s rules, applied to connections.

use super::Node;
use crate::id::{ConnId, Role};
use crate::limits;
use crate::locality::Errand;
use crate::peers::Peer;
use crate::time::Instant;
use rootswarm_image::ChunkIndex;

impl Node {
    /// Whether it matters to this node where a chunk comes from.
    pub(super) fn minds_racks(&self, now: Instant) -> bool {
        self.locality.matters() && !self.is_cut_off(now)
    }

    /// The first peer of another rack, from one drawn by chance, that has something this node should
    /// bring into its own.
    pub(super) fn choose_outside(
        &mut self,
        errand: Errand,
        now: Instant,
    ) -> Option<(ConnId, ChunkIndex)> {
        if !self.locality.matters() {
            return None;
        }
        self.look_around(now);
        let count = self.peers.len();
        let start = self.rng.below(count);
        let (per_peer, patience) = (self.per_peer(), self.patience());
        for step in 0..count {
            let peer = self.peers.at((start + step) % count);
            let conn = peer.conn;
            if !peer.is_near
                && self.may_ask(peer, per_peer, patience, now)
                && let Some(index) = self.errand(conn, errand)
            {
                return Some((conn, index));
            }
        }
        None
    }

    /// What to bring from this peer, which is not near, as far as is known since the last look.
    pub(super) fn errand(&mut self, conn: ConnId, errand: Errand) -> Option<ChunkIndex> {
        let peer = self.peers.get(conn)?;
        loop {
            let errands = self.locality.errands(&peer.have, errand, &self.picker)?;
            let index = self.picker.pick(&errands, &mut self.rng)?;
            if !self.peers.iter().any(|peer| holds_near(peer, index)) {
                return Some(index);
            }
            // It has been announced since.
            self.locality.is_held_near(index);
        }
    }

    /// Whether a chunk may come from outside.
    pub(super) fn may_bring(&mut self, index: ChunkIndex, now: Instant) -> bool {
        if !self.minds_racks(now) {
            return true;
        }
        self.look_around(now);
        self.locality.may_bring(index) && !self.peers.iter().any(|peer| holds_near(peer, index))
    }

    /// Whether a chunk that this peer offers may be taken from it.
    pub(super) fn may_take(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) -> bool {
        let is_near = self.peers.get(conn).is_some_and(|peer| peer.is_near);
        is_near || self.may_bring(index, now)
    }

    /// Whether nothing has come for so long that racks do not count any more. Between once and three
    /// times the patience, another time for each node: not all of a rack at once.
    pub(super) fn is_cut_off(&self, now: Instant) -> bool {
        let patience = (self.chunk_time * limits::CUT_OFF_CHUNKS).max(limits::CUT_OFF_MIN);
        let own = u32::from(self.node.0[0]);
        now.since(self.last_arrival) >= patience + patience * own / 128
    }

    /// How many slots beyond the usual a request may take, or nothing if it has to be declined. The
    /// first few of other racks take no slot from anybody: each brings a chunk for all in its rack.
    /// Beyond half of the slots they wait for those near by, or a pair of nodes would hear of each
    /// other what both could have had from far away.
    pub(super) fn slots_beyond(&self, conn: ConnId) -> Option<usize> {
        let is_far = |conn| {
            let peer = self.peers.get(conn);
            peer.is_some_and(|peer| !peer.is_near && peer.role == Role::Peer)
        };
        if self.role == Role::Seed || !self.locality.matters() || !is_far(conn) {
            return Some(0);
        }
        let under_way = self.uploads.receivers().filter(|conn| is_far(*conn));
        if under_way.count() < self.uploads.slots().div_ceil(2) {
            return Some(limits::SLOTS_FOR_OTHER_RACKS);
        }
        let mut near = self.peers.iter().filter(|peer| peer.is_near);
        near.all(Peer::is_complete).then_some(0)
    }

    /// Brings what is known of the rack up to date.
    pub(super) fn look_around(&mut self, now: Instant) {
        if !self.locality.is_stale(now) {
            return;
        }
        let active = || self.peers.iter().filter(|peer| peer.active);
        let near = active().filter(|peer| peer.is_near && peer.is_credible());
        let outside = active().filter(|peer| !peer.is_near && peer.role == Role::Peer);
        let patience = (self.chunk_time * limits::TAKE_OVER_CHUNKS).max(limits::TAKE_OVER_MIN);
        let step = self.chunk_time / 2;
        self.locality.look(
            near.map(|peer| (peer.node, &peer.have)),
            outside.map(|peer| &peer.have),
            &self.picker,
            (patience, step),
            now,
        );
    }
}

fn holds_near(peer: &Peer, index: ChunkIndex) -> bool {
    peer.active && peer.is_near && peer.is_credible() && peer.have.get(index)
}
