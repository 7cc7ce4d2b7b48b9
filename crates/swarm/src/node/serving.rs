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

/// Who has said nothing for so long, or for as long as makes an upload overdue, is pushed to after the
/// others: nodes that fetch announce what they got, and those that get nothing ask.
const QUIET: Duration = Duration::from_millis(500);

impl Node {
    pub(super) fn requested(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        let beyond = match self.end_offer(conn) {
            Some(_) => Some(limits::OFFERS_AHEAD),
            None => self.slots_beyond(conn),
        };
        let held = self.geometry.contains(index) && self.picker.has(index);
        let asked_beyond = match self.role {
            Role::Seed => self.may_answer(conn, now),
            Role::Peer => Some(0),
        };
        let beyond = beyond.zip(asked_beyond).map(|(one, other)| one + other);
        if held && beyond.is_some_and(|beyond| self.uploads.begin(conn, index, beyond, now)) {
            self.outputs.push_back(Output::Upload { conn, index });
        } else {
            self.send(conn, Message::Busy(index));
            self.may_offer_to(conn, now);
        }
    }

    /// Whether a seed has time for a request from this connection: no first copy waits, and its address
    /// has not more than its part of the slots. If so, returns for how many uploads beyond the slots: a
    /// node asks for the next chunk when it has one, before the seed hears that it has, so that each
    /// address may have one more. With parts of two, four nodes that got nothing from peers had half of
    /// their rate from a seed of ten times as much.
    fn may_answer(&mut self, conn: ConnId, now: Instant) -> Option<usize> {
        let address = self.peers.get(conn)?.addr.ip();
        let askers = self.askers.asked(address, now).max(1);
        if self.seeding.first_copies_wait(&self.picker) {
            return None;
        }
        let slots = self.uploads.slots();
        let part = (slots / askers).max(limits::SEED_PER_NODE) + 1;
        let peers = &self.peers;
        let to_address = self.uploads.receivers().filter(|conn| {
            let peer = peers.get(*conn);
            peer.is_some_and(|peer| peer.addr.ip() == address)
        });
        (to_address.count() < part).then_some(askers.min(slots))
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
                    peer.refusals = 0;
                    peer.heard_at = now;
                    if std::mem::take(&mut peer.is_silent) {
                        self.uploads.set_silent(conn, false);
                    }
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
                UploadOutcome::Refused => {
                    peer.backoff_until = now + REFUSED_BACKOFF;
                    self.count_refusal(conn, now);
                }
                UploadOutcome::Failed => {
                    self.count_failure(conn, now);
                }
            }
            self.note_completion(conn, now);
        }
        if self.role == Role::Seed {
            self.seeding.ended(index, &self.picker);
        }
    }

    /// Pushes cost the one who refuses them nothing, and keep from the others what is theirs: first copies
    /// wait, and with them all that is asked for. Who refuses one after the other comes last.
    fn count_refusal(&mut self, conn: ConnId, now: Instant) {
        let Some(peer) = self.peers.get_mut(conn).filter(|peer| peer.is_fed) else {
            return;
        };
        peer.refusals += 1;
        if peer.refusals >= limits::REFUSALS_MAX {
            (peer.refusals, peer.is_fed) = (0, false);
            self.leeches.took(peer.addr.ip(), now);
            self.send(conn, Message::WantHaves(false));
            self.feed_another(now);
        }
    }

    /// Something with this peer broke off, or was not answered. Returns how many such failures in a row
    /// there were.
    pub(super) fn count_failure(&mut self, conn: ConnId, now: Instant) -> u32 {
        self.counters.failures += 1;
        let is_seed = self.role == Role::Seed;
        self.peers.get_mut(conn).map_or(0, |peer| {
            let same = (is_seed || peer.role == Role::Seed) && peer.backoff_until > now;
            if same {
                peer.failures()
            } else {
                peer.failed(now)
            }
        })
    }

    /// Pushed chunks that were not announced in time go out again, to whomever.
    pub(super) fn give_up_unconfirmed(&mut self, now: Instant) {
        let patience = (self.uploads.patience() * 2).clamp(
            limits::CONFIRM_TIMEOUT_MIN,
            self.for_chunks(limits::CONFIRM_TIMEOUT),
        );
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
        for index in self.note_silent(now) {
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

    /// Looks for uploads that have become overdue, and returns what they are of. Receivers that have said
    /// nothing since those began are most likely gone, long before their connections end: they take no
    /// slots any more, and a seed feeds others in their place.
    pub(super) fn note_silent(&mut self, now: Instant) -> Vec<ChunkIndex> {
        let overdue = self.uploads.newly_overdue(now);
        for upload in &overdue {
            let Some(peer) = self.peers.get_mut(upload.conn) else {
                continue;
            };
            if peer.heard_at > upload.since {
                continue;
            }
            self.uploads.set_silent(upload.conn, true);
            self.may_offer_more = true;
            if !std::mem::replace(&mut peer.is_silent, true) && peer.is_fed {
                self.feed_another(now);
            }
        }
        overdue.into_iter().map(|upload| upload.index).collect()
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
        let quiet = self.quiet_after();
        let mut best: Option<((bool, bool, usize), ConnId)> = None;
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
            // Of hundreds that lost power together, none is tried before those who speak.
            let is_quiet = now.since(peer.heard_at) > quiet;
            let is_leech = self.leeches.is_one(peer.addr.ip(), now);
            let rank = (is_leech, is_quiet, under_way);
            if under_way < per_address
                && ahead < ahead_max
                && best.is_none_or(|(first, _)| rank < first)
                && !to_address.is_stuck
            {
                best = Some((rank, peer.conn));
                if rank == (false, false, 0) {
                    break;
                }
            }
        }
        best.map(|(_, conn)| conn)
    }

    /// Who has said nothing for longer is quiet.
    pub(super) fn quiet_after(&self) -> Duration {
        self.uploads.patience().max(QUIET)
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
