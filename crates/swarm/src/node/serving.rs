//! Uploads: answers to requests, and the chunks a seed pushes.

use super::{Node, Output, UploadOutcome};
use crate::id::{ConnId, Role};
use crate::limits;
use crate::message::Message;
use crate::time::Instant;
use rootswarm_image::ChunkIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// A node that stopped a push has a reason, most likely the chunk: its haves will tell.
const REFUSED_BACKOFF: Duration = Duration::from_millis(20);

impl Node {
    pub(super) fn requested(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        let beyond = match self.end_offer(conn) {
            Some(_) => Some(limits::OFFERS_AHEAD),
            None => self.slots_beyond(conn),
        };
        let held = self.geometry.contains(index) && self.picker.has(index);
        let waits = self.role == Role::Seed && self.seeding.first_copies_wait(&self.picker);
        if held
            && !waits
            && beyond.is_some_and(|beyond| self.uploads.begin(conn, index, beyond, now))
        {
            self.outputs.push_back(Output::Upload { conn, index });
        } else {
            self.send(conn, Message::Busy(index));
            self.may_offer_to(conn, now);
        }
    }

    pub(super) fn cancelled(&mut self, conn: ConnId, index: ChunkIndex) {
        if self.uploads.is_active(conn, index) {
            self.outputs.push_back(Output::CancelUpload { conn, index });
        }
    }

    pub(super) fn upload_ended(
        &mut self,
        conn: ConnId,
        index: ChunkIndex,
        outcome: UploadOutcome,
        now: Instant,
    ) {
        if self.role == Role::Seed {
            self.look_at_all();
        }
        let is_delivered = outcome == UploadOutcome::Delivered;
        self.uploads.ended(conn, index, is_delivered, now);
        self.may_offer_to(conn, now);
        if let Some(peer) = self.peers.get_mut(conn) {
            match outcome {
                UploadOutcome::Delivered => {
                    self.counters.uploaded += 1;
                    peer.delivered();
                    // Its network has the chunk. It counts as held once the peer announces it, so
                    // that a peer that verifies slowly is not pushed more than it can take.
                    // Who is not fed does not announce, and has asked for it.
                    if self.role == Role::Seed && (peer.have.get(index) || !peer.is_fed) {
                        self.seeding.arrived(index);
                    }
                    if self.role == Role::Seed && !peer.have.get(index) {
                        peer.unconfirmed.push((index, now));
                        return;
                    }
                }
                UploadOutcome::Refused => peer.backoff_until = now + REFUSED_BACKOFF,
                UploadOutcome::Failed => {
                    self.counters.failures += 1;
                    peer.failed(now);
                }
            }
            self.note_completion(conn, now);
        }
        if self.role == Role::Seed {
            self.seeding.ended(index, &self.picker);
        }
    }

    /// Pushed chunks that were not announced in time go out again, to whomever.
    pub(super) fn give_up_unconfirmed(&mut self, now: Instant) {
        let patience = (self.uploads.patience() * 2)
            .clamp(limits::CONFIRM_TIMEOUT_MIN, limits::CONFIRM_TIMEOUT);
        let mut lost = Vec::new();
        for peer in self
            .peers
            .iter_mut()
            .filter(|peer| !peer.unconfirmed.is_empty())
        {
            peer.unconfirmed.retain(|(index, since)| {
                let late = now.since(*since) >= patience;
                if late {
                    lost.push(*index);
                }
                !late
            });
            if !lost.is_empty() && !peer.has_confirmed {
                self.leeches.took(peer.addr.ip(), now);
            }
        }
        if !lost.is_empty() {
            self.look_at_all();
        }
        for index in lost {
            self.seeding.ended(index, &self.picker);
        }
    }

    /// A seed's pushes: chunks that no node is known to hold, to the nodes with the fewest under way.
    pub(super) fn feed(&mut self, now: Instant) {
        self.feed_again_at = None;
        if self.role != Role::Seed {
            return;
        }
        // A receiver that is stuck with a chunk no other node holds: somebody else gets it too.
        for index in self.uploads.newly_overdue(now) {
            self.seeding.ended(index, &self.picker);
        }
        while self.uploads.free_slots(0, now) > 0 && self.seeding.may_push(&self.picker) {
            let Some(conn) = self.hungriest(now) else {
                if !self
                    .peers
                    .iter()
                    .any(|peer| peer.is_fed && !peer.is_complete())
                {
                    self.seeding.nobody_to_push_to();
                }
                let resting = self
                    .peers
                    .iter()
                    .filter(|peer| peer.is_fed && peer.backoff_until > now);
                self.feed_again_at = resting.map(|peer| peer.backoff_until).min();
                break;
            };
            let nodes = self.peers.len();
            let next = self
                .peers
                .get(conn)
                .and_then(|peer| self.seeding.begin_next(&self.picker, &peer.have, nodes));
            let Some(index) = next else {
                break;
            };
            if !self.uploads.begin(conn, index, 0, now) {
                // It is this very receiver that is stuck with it: `hungriest` leaves such out.
                self.seeding.ended(index, &self.picker);
                break;
            }
            self.outputs.push_back(Output::Upload { conn, index });
        }
        let overdue = self.uploads.next_overdue(now);
        self.feed_again_at = self.feed_again_at.into_iter().chain(overdue).min();
    }

    /// The fed node with the fewest uploads under way to its address, from one drawn by chance. By
    /// address: one machine with many keys gets no more than a machine's part of this uplink, and holds
    /// no more of its slots.
    fn hungriest(&mut self, now: Instant) -> Option<ConnId> {
        let count = self.peers.len();
        let slots = self.uploads.slots();
        let fed = self.peers.iter().filter(|peer| peer.is_fed);
        // With more nodes, an address's part is the least there is.
        let places = fed.take(limits::PUSHES_MAX).map(|peer| peer.addr.ip());
        let places = places.collect::<BTreeSet<_>>().len().max(1);
        let per_address = (slots / places).max(limits::SEED_PER_NODE);
        // As long as it has not announced one that it got.
        let unproven = limits::PUSHES_MAX / places;
        let occupied = self.uploads_by_address(now);
        let start = self.rng.below(count);
        let mut best: Option<((bool, usize), ConnId)> = None;
        for peer in self.peers.from(start) {
            if !peer.is_fed || peer.is_complete() || peer.backoff_until > now {
                continue;
            }
            let to_address = occupied.get(&peer.addr.ip()).copied().unwrap_or_default();
            let under_way = to_address.uploads;
            let ahead = self.uploads.to(peer.conn) + peer.unconfirmed.len();
            let ahead_max = if peer.has_confirmed {
                limits::PUSHES_MAX
            } else {
                unproven
            };
            let rank = (self.leeches.is_one(peer.addr.ip(), now), under_way);
            if under_way < per_address
                && ahead < ahead_max
                && best.is_none_or(|(first, _)| rank < first)
                && !to_address.is_stuck
            {
                best = Some((rank, peer.conn));
                if rank == (false, 0) {
                    break;
                }
            }
        }
        best.map(|(_, conn)| conn)
    }

    fn uploads_by_address(&self, now: Instant) -> BTreeMap<IpAddr, Occupied> {
        let mut occupied: BTreeMap<IpAddr, Occupied> = BTreeMap::new();
        for conn in self.uploads.receivers() {
            let Some(peer) = self.peers.get(conn) else {
                continue;
            };
            let entry = occupied.entry(peer.addr.ip()).or_default();
            entry.uploads += 1;
            entry.is_stuck |= self.uploads.is_stuck(conn, now);
        }
        occupied
    }
}

/// What goes to one address.
#[derive(Clone, Copy, Debug, Default)]
struct Occupied {
    uploads: usize,
    /// One of them takes much longer than uploads do.
    is_stuck: bool,
}

#[cfg(test)]
mod tests {
    use crate::message::{ChunkRun, Have, Hello, Message};
    use crate::{
        Config, ConnId, Input, Instant, Node, NodeId, Output, Role, UploadOutcome, limits,
    };
    use rootswarm_image::{Bitfield, ChunkIndex, ChunkSize, Geometry, ImageId};

    fn pushed(seed: &mut Node) -> Vec<ChunkIndex> {
        let mut pushed = Vec::new();
        while let Some(output) = seed.poll_output() {
            if let Output::Upload { index, .. } = output {
                pushed.push(index);
            }
        }
        pushed
    }

    /// Bytes that QUIC acknowledged are not yet a chunk that is held: a node whose verification
    /// lags was once pushed more than it takes, refused the rest, and the seed took what had been
    /// acknowledged for delivered.
    #[test]
    fn a_node_that_verifies_slowly_is_not_flooded() {
        let size = ChunkSize::from_bytes(64 * 1024).unwrap();
        let geometry = Geometry::new(100 * 64 * 1024, size).unwrap();
        let image = ImageId::from_bytes([1; 32]);
        let have = Bitfield::full(100);
        let (node, role) = (NodeId([1; 32]), Role::Seed);
        let config = Config {
            node,
            role,
            image,
            geometry,
            have,
            rack: None,
            rng_seed: 1,
        };
        let mut seed = Node::new(config, Instant::ZERO);
        let (conn, mut now) = (ConnId(1), Instant(1_000));
        let addr = ([10, 0, 0, 2], 7400).into();
        let node = NodeId([2; 32]);
        seed.handle(
            now,
            Input::Connected {
                conn,
                node,
                addr,
                role: Role::Peer,
                dialed: false,
                wire: crate::message::Wire::V4,
            },
        );
        let hello = Hello {
            image,
            have: Have::Nothing,
            rack: None,
        };
        seed.handle(now, Input::Hello { conn, hello });

        let mut acknowledged = Vec::new();
        loop {
            let round = pushed(&mut seed);
            if round.is_empty() {
                break;
            }
            for index in round {
                acknowledged.push(index);
                let outcome = UploadOutcome::Delivered;
                seed.handle(
                    now,
                    Input::UploadEnded {
                        conn,
                        index,
                        outcome,
                    },
                );
            }
        }
        assert_eq!(acknowledged.len(), limits::PUSHES_MAX);

        // Each announcement makes room for one more.
        let run = ChunkRun {
            first: acknowledged[0],
            count: 1,
        };
        seed.handle(
            now,
            Input::Message {
                conn,
                message: Message::Have(vec![run]),
            },
        );
        let next = pushed(&mut seed);
        assert_eq!(next.len(), 1);
        let (index, outcome) = (next[0], UploadOutcome::Delivered);
        seed.handle(
            now,
            Input::UploadEnded {
                conn,
                index,
                outcome,
            },
        );

        // What is not announced in time goes out again.
        now = now + limits::CONFIRM_TIMEOUT + limits::HOUSEKEEPING;
        seed.handle(now, Input::Timeout);
        let again = pushed(&mut seed);
        assert!(!again.is_empty() && again.iter().all(|index| *index != acknowledged[0]));
    }
}
