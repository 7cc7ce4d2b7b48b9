//! Uploads: answers to requests, and the chunks a seed pushes.

use super::{Node, Output, UploadOutcome};
use crate::id::{ConnId, Role};
use crate::limits;
use crate::message::Message;
use crate::time::Instant;
use crate::uploads::Admission;
use rootswarm_image::ChunkIndex;
use std::time::Duration;

/// A node that stopped a push has a reason, most likely the chunk: its haves will tell.
const REFUSED_BACKOFF: Duration = Duration::from_millis(20);

impl Node {
    pub(super) fn requested(&mut self, conn: ConnId, index: ChunkIndex, _now: Instant) {
        let held = self.geometry.contains(index) && self.picker.has(index);
        // While some chunk has no holder but this seed, second copies have to wait.
        let admission =
            if !held || (self.role == Role::Seed && self.seeding.is_first_round(&self.picker)) {
                Admission::Decline
            } else {
                self.uploads.request(conn, index)
            };
        match admission {
            Admission::Start => self.outputs.push_back(Output::Upload { conn, index }),
            Admission::Wait => {}
            Admission::Decline => self.send(conn, Message::Busy(index)),
        }
    }

    pub(super) fn cancelled(&mut self, conn: ConnId, index: ChunkIndex) {
        if !self.uploads.cancel(conn, index) && self.uploads.is_active(conn, index) {
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
        self.is_stale = true;
        self.uploads.ended(conn, index);
        if let Some(peer) = self.peers.get_mut(conn) {
            match outcome {
                UploadOutcome::Delivered => {
                    self.counters.uploaded += 1;
                    peer.delivered();
                    // Its own announcement follows within milliseconds; until then it must not
                    // look like a chunk that nobody holds.
                    if self.geometry.contains(index)
                        && peer.have.set(index)
                        && peer.role == Role::Peer
                    {
                        self.picker.announced(index);
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
        while let Some((conn, index)) = self.uploads.start_next() {
            self.outputs.push_back(Output::Upload { conn, index });
        }
    }

    /// A seed's pushes: chunks that no node holds, to the nodes with the fewest under way.
    pub(super) fn feed(&mut self, now: Instant) {
        self.feed_again_at = None;
        if self.role != Role::Seed {
            return;
        }
        while self.uploads.free_slots() > 0 && self.seeding.is_first_round(&self.picker) {
            let Some(conn) = self.hungriest(now) else {
                let resting = self
                    .peers
                    .iter()
                    .filter(|peer| peer.is_fed && peer.backoff_until > now);
                self.feed_again_at = resting.map(|peer| peer.backoff_until).min();
                return;
            };
            let Some(index) = self.seeding.begin_next(&self.picker) else {
                return;
            };
            match self.uploads.request(conn, index) {
                Admission::Start => self.outputs.push_back(Output::Upload { conn, index }),
                // Not with a free slot, and not for a chunk that was not on its way.
                Admission::Wait | Admission::Decline => {
                    self.uploads.cancel(conn, index);
                    self.seeding.ended(index, &self.picker);
                    return;
                }
            }
        }
    }

    /// The fed node with the fewest uploads under way, from one drawn by chance.
    fn hungriest(&mut self, now: Instant) -> Option<ConnId> {
        let count = self.peers.len();
        let fed = self.peers.iter().filter(|peer| peer.is_fed).count();
        let per_node = (self.uploads.slots() / fed.max(1)).max(limits::SEED_PER_NODE);
        let start = self.rng.below(count);
        let mut best: Option<(usize, ConnId)> = None;
        for step in 0..count {
            let peer = self.peers.at((start + step) % count);
            if !peer.is_fed || peer.is_complete() || peer.backoff_until > now {
                continue;
            }
            let under_way = self.uploads.to(peer.conn);
            if under_way < per_node && best.is_none_or(|(fewest, _)| under_way < fewest) {
                best = Some((under_way, peer.conn));
            }
        }
        best.map(|(_, conn)| conn)
    }
}
