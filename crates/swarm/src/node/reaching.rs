//! Who can be reached by whom: past firewalls that let answers through, and after a change of address.
//!
//! A host that drops what it has not asked for cannot be dialed, but it can dial. A node whose dial is not
//! answered says so to its seeds. A seed then has the other one dial as well, and from then on names that
//! node to both sides at once. Each dials from the port that it listens on, so that the packets of one open
//! the way for those of the other, whichever of them has such a firewall. What remains without a connection
//! is counted, so that people can be told which hosts drop everything.
//!
//! Addresses that are named to others are those from which a connection was made, which QUIC has validated.
//! One that a connection moved to later is not: its owner connects anew, or is made to.

use super::{CloseReason, Node};
use crate::id::{ConnId, NodeId, Role};
use crate::limits::{
    ADDRESSES_MAX, CUT_OFF_PAIRS_MAX, DIAL_REPORTS_AFTER, FRESH, HARD_TO_REACH, KNOWN_MAX,
    UNANSWERED_AFTER,
};
use crate::message::{DialOutcome, Message, PeerAddress, Wire};
use crate::time::Instant;
use std::collections::BTreeSet;

/// What is known of failed dials.
#[derive(Debug, Default)]
pub(super) struct Reaching {
    /// When the dials under way are looked at, and what is to be said is said.
    report_at: Option<Instant>,
    /// Nodes whose dials were given up and with which there is still no connection.
    given_up: BTreeSet<NodeId>,
    /// What became of dials, and has not been said.
    unsaid: BTreeSet<(DialOutcome, NodeId)>,
    /// What a seed said last: with how many nodes there is no connection.
    cut_off_from: u32,
    /// At a seed: pairs without a connection, each in both orders.
    pairs: BTreeSet<(NodeId, NodeId)>,
    /// They have changed since nodes were told.
    has_news: bool,
}

impl Reaching {
    /// When there is something to report.
    pub(super) fn due(&self) -> Option<Instant> {
        self.report_at
    }

    /// With how many nodes this one has no connection, as a seed said.
    pub(super) fn cut_off_from(&self) -> u32 {
        self.cut_off_from
    }

    /// With how many nodes `node` has no connection where it is to blame: its share in the pairs is not
    /// smaller than the other's. A host that drops everything fails with all, each of which fails with it
    /// alone.
    pub(super) fn blamed(&self, node: NodeId) -> u32 {
        let own = self.others(node).count();
        let is_to_blame = self
            .others(node)
            .any(|other| self.others(other).count() <= own);
        match is_to_blame {
            true => u32::try_from(own).unwrap_or(u32::MAX),
            false => 0,
        }
    }

    fn others(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let all = (node, NodeId([0; 32]))..=(node, NodeId([0xff; 32]));
        self.pairs.range(all).map(|(_, other)| *other)
    }

    fn cut(&mut self, a: NodeId, b: NodeId) {
        if self.pairs.len() < CUT_OFF_PAIRS_MAX && self.pairs.insert((a, b)) {
            self.pairs.insert((b, a));
            self.has_news = true;
        }
    }

    fn join(&mut self, a: NodeId, b: NodeId) {
        if self.pairs.remove(&(a, b)) {
            self.pairs.remove(&(b, a));
            self.has_news = true;
        }
    }

    /// A seed lost sight of a node.
    pub(super) fn left(&mut self, node: NodeId) {
        let others: Vec<NodeId> = self.others(node).collect();
        for other in others {
            self.join(node, other);
        }
    }

    fn say(&mut self, outcome: DialOutcome, node: NodeId, at: Instant) {
        self.unsaid.insert((outcome, node));
        self.report_by(at);
    }

    fn report_by(&mut self, at: Instant) {
        self.report_at = Some(self.report_at.map_or(at, |earlier| earlier.min(at)));
    }
}

impl Node {
    /// Dials have begun: an answer that is late is reported.
    pub(super) fn watch_dials(&mut self, now: Instant) {
        self.reaching.report_by(now + UNANSWERED_AFTER);
    }

    /// A dial came to nothing.
    pub(super) fn dial_failed(&mut self, node: NodeId, answered: bool, now: Instant) {
        self.membership.failed(node, now, &mut self.rng);
        self.may_dial = true;
        let is_connected = self.peers.conn_of(node).is_some();
        let has_room = self.reaching.given_up.len() < KNOWN_MAX;
        if !answered && !is_connected && has_room && self.reaching.given_up.insert(node) {
            let at = now + DIAL_REPORTS_AFTER;
            self.reaching.say(DialOutcome::GivenUp, node, at);
        }
    }

    /// There is a connection with a node, whoever dialed.
    pub(super) fn reached(&mut self, node: NodeId, now: Instant) {
        if self.reaching.given_up.remove(&node) {
            self.reaching.unsaid.remove(&(DialOutcome::GivenUp, node));
            let at = now + DIAL_REPORTS_AFTER;
            self.reaching.say(DialOutcome::Connected, node, at);
        }
    }

    /// A seed that is new here has heard nothing of earlier dials.
    pub(super) fn met_seed(&mut self, now: Instant) {
        let at = now + DIAL_REPORTS_AFTER;
        for node in self.reaching.given_up.clone() {
            self.reaching.say(DialOutcome::GivenUp, node, at);
        }
    }

    /// Tells the seeds what has become of dials, and looks when to do so next.
    pub(super) fn report_dials(&mut self, now: Instant) {
        let (late, next) = self.membership.unanswered(now);
        for node in late {
            self.reaching.unsaid.insert((DialOutcome::Unanswered, node));
        }
        self.reaching.report_at = next;
        let unsaid = std::mem::take(&mut self.reaching.unsaid);
        let seeds = self
            .peers
            .iter()
            .filter(|peer| peer.active && peer.role == Role::Seed && peer.wire >= Wire::V4);
        let seeds: Vec<ConnId> = seeds.map(|peer| peer.conn).collect();
        let unsaid: Vec<(DialOutcome, NodeId)> = unsaid.into_iter().collect();
        for said in unsaid.chunk_by(|a, b| a.0 == b.0) {
            for said in said.chunks(ADDRESSES_MAX) {
                let outcome = said[0].0;
                let nodes: Vec<NodeId> = said.iter().map(|(_, node)| *node).collect();
                for conn in &seeds {
                    let nodes = nodes.clone();
                    self.send(*conn, Message::Dialed { outcome, nodes });
                }
            }
        }
    }

    /// At a seed: a node says what became of its dials.
    pub(super) fn told_of_dials(
        &mut self,
        conn: ConnId,
        outcome: DialOutcome,
        nodes: &[NodeId],
        now: Instant,
    ) {
        let Some(who) = self.peers.get(conn).map(|peer| peer.node) else {
            return;
        };
        if self.role != Role::Seed {
            let reason = CloseReason::Protocol("a report for a seed");
            return self.close(conn, reason, now);
        }
        // What a node says that does not hear answers itself says nothing of others.
        let is_sound = !self.is_hard_to_reach(who, now);
        for whom in nodes {
            let known = self.peers.conn_of(*whom);
            let Some(other) = known.and_then(|conn| self.peers.get_mut(conn)) else {
                continue;
            };
            if *whom == who || other.role != Role::Peer {
                continue;
            }
            match outcome {
                DialOutcome::Unanswered => {
                    if is_sound {
                        other.hard_to_reach_until = now + HARD_TO_REACH;
                    }
                    self.call(*whom, &[who]);
                }
                DialOutcome::GivenUp => self.reaching.cut(who, *whom),
                DialOutcome::Connected => self.reaching.join(who, *whom),
            }
        }
    }

    /// Has a node dial others that cannot dial it, if it knows such an order.
    pub(super) fn call(&mut self, who: NodeId, whom: &[NodeId]) {
        let conn = self.peers.conn_of(who);
        let Some(conn) = conn.filter(|conn| {
            let peer = self.peers.get(*conn);
            peer.is_some_and(|peer| peer.active && peer.wire >= Wire::V4)
        }) else {
            return;
        };
        let addresses: Vec<PeerAddress> = whom
            .iter()
            .filter_map(|whom| self.address_for(who, *whom))
            .collect();
        for addresses in addresses.chunks(ADDRESSES_MAX) {
            self.send(conn, Message::Call(addresses.to_vec()));
        }
    }

    /// Whether others have said of late that this node does not answer them.
    pub(super) fn is_hard_to_reach(&self, node: NodeId, now: Instant) -> bool {
        let peer = self
            .peers
            .conn_of(node)
            .and_then(|conn| self.peers.get(conn));
        peer.is_some_and(|peer| now < peer.hard_to_reach_until)
    }

    /// A seed says: these cannot connect to this node.
    pub(super) fn called(&mut self, addresses: Vec<PeerAddress>, now: Instant) {
        for address in addresses {
            let node = address.node;
            if let Some(conn) = self.peers.conn_of(node) {
                let peer = self.peers.get(conn);
                if peer.is_some_and(|peer| now.since(peer.connected_at) < FRESH) {
                    // It has got through meanwhile.
                    continue;
                }
                // The other side knows nothing of it any more.
                self.close(conn, CloseReason::Moved, now);
            }
            self.learn(address, true, now);
            self.membership.called(node, now);
        }
    }

    /// The tracker names a neighbour. If it is connected and was dialed at another address, it has moved, and
    /// that connection leads nowhere; on one that it dialed itself it may be heard from its new address.
    pub(super) fn follow(&mut self, address: PeerAddress, now: Instant) {
        let Some(conn) = self.peers.conn_of(address.node) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        if peer.role != Role::Peer || peer.addr == address.addr {
            return;
        }
        if peer.dialed {
            self.close(conn, CloseReason::Moved, now);
        } else {
            peer.addr = address.addr;
            peer.has_moved = false;
        }
    }

    /// At a node: with how many others it has no connection.
    pub(super) fn told_cut_off(&mut self, count: u32) {
        self.reaching.cut_off_from = count;
    }

    /// At a seed, once a second: tells those who are to blame for a lack of connections.
    pub(super) fn tell_cut_off(&mut self) {
        if !std::mem::take(&mut self.reaching.has_news) {
            return;
        }
        let mut news = Vec::new();
        for peer in self.peers.iter().filter(|peer| peer.wire >= Wire::V4) {
            let count = self.reaching.blamed(peer.node);
            if peer.active && peer.cut_off_told != count {
                news.push((peer.conn, count));
            }
        }
        for (conn, count) in news {
            if let Some(peer) = self.peers.get_mut(conn) {
                peer.cut_off_told = count;
                self.send(conn, Message::CutOff(count));
            }
        }
    }

    /// The address of this side under a connection is gone. Who dialed it cannot follow; this side can
    /// dial, if it needs anything.
    pub(super) fn local_gone(&mut self, conn: ConnId, now: Instant) {
        let Some(peer) = self.peers.get(conn) else {
            return;
        };
        let (node, addr, role) = (peer.node, peer.addr, peer.role);
        self.close(conn, CloseReason::Moved, now);
        if role == Role::Peer {
            self.learn(PeerAddress { node, addr }, false, now);
            self.membership.retry(node, now);
        }
    }

    /// The other side sends from another address than the one from which it connected. Nobody has
    /// validated that, so that it is named to nobody. A seed has its nodes connect anew.
    pub(super) fn remote_moved(&mut self, conn: ConnId, now: Instant) {
        match self.role {
            Role::Seed => self.close(conn, CloseReason::Moved, now),
            Role::Peer => {
                if let Some(peer) = self.peers.get_mut(conn) {
                    peer.has_moved = true;
                }
            }
        }
    }
}
