//! The tracker's orders: a seed tells nodes whom to dial, and from whom to part.
//!
//! To dial is urgent, to part is not: what a newcomer breaks in the rings is collected, and each node told
//! once of all that concerns it. When 10,000 nodes are switched on, each newcomer breaks eight edges, of which
//! sixteen nodes would be told, one message each: 15 MB, at the very time when the first chunks are to leave.

use super::Node;
use crate::id::NodeId;
use crate::limits::{ADDRESSES_MAX, PARTINGS_AFTER, PARTINGS_PER_NODE};
use crate::message::{Message, PeerAddress};
use crate::time::Instant;
use crate::tracker::Rewiring;
use std::collections::BTreeSet;

/// Edges to give up of which nobody has been told.
#[derive(Debug, Default)]
pub(super) struct Partings {
    /// `(who, whom)`, for both ends.
    edges: BTreeSet<(NodeId, NodeId)>,
}

impl Node {
    pub(super) fn rewire(&mut self, rewiring: Rewiring, now: Instant) {
        let mut dial: Vec<(NodeId, NodeId)> = rewiring
            .dial
            .into_iter()
            .filter_map(|(who, whom)| self.in_need(who, whom))
            .collect();
        dial.sort_unstable();
        for (who, whom) in &dial {
            // It was broken, and is made again before anybody was told.
            self.partings.edges.remove(&(*who, *whom));
            self.partings.edges.remove(&(*whom, *who));
        }
        for edges in dial.chunk_by(|a, b| a.0 == b.0) {
            let who = edges[0].0;
            let addresses: Vec<PeerAddress> = edges
                .iter()
                .filter_map(|(_, whom)| self.address_for(who, *whom))
                .collect();
            if let Some(conn) = self.peers.conn_of(who).filter(|_| !addresses.is_empty()) {
                self.send(conn, Message::Dial(addresses));
            }
        }
        // Who does not answer dials has to dial itself, and at the same time: then the packets of either
        // side are answers to those of the other.
        let mut calls: Vec<(NodeId, NodeId)> = dial
            .into_iter()
            .filter(|(_, whom)| self.is_hard_to_reach(*whom, now))
            .map(|(who, whom)| (whom, who))
            .collect();
        calls.sort_unstable();
        for edges in calls.chunk_by(|a, b| a.0 == b.0) {
            let callers: Vec<NodeId> = edges.iter().map(|(_, who)| *who).collect();
            self.call(edges[0].0, &callers);
        }
        // Both ends hear of it: the one that dialed would dial again.
        for (who, whom) in rewiring.drop {
            self.partings.edges.extend([(who, whom), (whom, who)]);
        }
        if self.partings.edges.len() >= PARTINGS_PER_NODE * self.peers.len() {
            self.tell_partings();
        } else if !self.partings.edges.is_empty() {
            self.part_at.get_or_insert(now + PARTINGS_AFTER);
        }
    }

    /// An edge with the one in front that has something to fetch: a complete node does not dial. Between
    /// two of them there is none.
    fn in_need(&self, who: NodeId, whom: NodeId) -> Option<(NodeId, NodeId)> {
        let is_complete = |node: NodeId| {
            let peer = self.peers.conn_of(node).and_then(|it| self.peers.get(it));
            peer.is_some_and(|peer| peer.is_complete())
        };
        match (is_complete(who), is_complete(whom)) {
            (true, true) => None,
            (true, false) => Some((whom, who)),
            (false, _) => Some((who, whom)),
        }
    }

    /// Tells each node from whom to part.
    pub(super) fn tell_partings(&mut self) {
        self.part_at = None;
        let edges: Vec<_> = std::mem::take(&mut self.partings.edges)
            .into_iter()
            .collect();
        for edges in edges.chunk_by(|a, b| a.0 == b.0) {
            let Some(conn) = self.peers.conn_of(edges[0].0) else {
                continue;
            };
            for edges in edges.chunks(ADDRESSES_MAX) {
                let others = edges.iter().map(|(_, whom)| *whom).collect();
                self.send(conn, Message::Drop(others));
            }
        }
    }

    /// The address at which `who` may reach `whom`, both connected here. A loopback address
    /// means something to those on the same loopback only.
    pub(super) fn address_for(&self, who: NodeId, whom: NodeId) -> Option<PeerAddress> {
        let asker = self.peers.get(self.peers.conn_of(who)?)?;
        let target = self.peers.get(self.peers.conn_of(whom)?)?;
        if target.has_moved {
            return None;
        }
        let useful = !target.addr.ip().is_loopback() || asker.addr.ip().is_loopback();
        (useful && who != whom).then_some(PeerAddress {
            node: whom,
            addr: target.addr,
        })
    }
}
