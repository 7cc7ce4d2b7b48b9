//! Telling the neighbours which chunks have arrived here: when, whom, in which messages.

use super::Node;
use crate::id::{ConnId, Role};
use crate::limits;
use crate::message::{ChunkRun, Message};
use rootswarm_image::ChunkIndex;
use std::time::Duration;

impl Node {
    /// How long chunks are collected before they are announced: about one chunk at the pace at which
    /// they arrive, eight being under way.
    pub(super) fn have_batch(&self) -> Duration {
        (self.chunk_time / 8).clamp(limits::HAVE_BATCH_MIN, limits::HAVE_BATCH_MAX)
    }

    /// Tells the neighbours what arrived since the last time.
    pub(super) fn announce(&mut self) {
        self.announce_at = None;
        let mut fresh = std::mem::take(&mut self.unannounced);
        if fresh.is_empty() {
            return;
        }
        fresh.sort_unstable();
        let listeners: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|peer| peer.wants_haves && (peer.role == Role::Seed || !peer.is_complete()))
            .map(|peer| peer.conn)
            .collect();
        for message in have_messages(fresh.into_iter()) {
            for conn in &listeners {
                self.send(*conn, message.clone());
            }
        }
    }

    pub(super) fn announce_everything(&mut self, conn: ConnId) {
        let held: Vec<ChunkIndex> = self.picker.have().iter_set().collect();
        for message in have_messages(held.into_iter()) {
            self.send(conn, message);
        }
    }
}

/// `Have` messages for chunks in ascending order.
fn have_messages(chunks: impl Iterator<Item = ChunkIndex>) -> Vec<Message> {
    let mut runs: Vec<ChunkRun> = Vec::new();
    for index in chunks {
        match runs.last_mut() {
            Some(run) if run.first.0 + run.count == index.0 => run.count += 1,
            _ => runs.push(ChunkRun {
                first: index,
                count: 1,
            }),
        }
    }
    runs.chunks(limits::HAVE_RUNS_MAX)
        .map(|runs| Message::Have(runs.to_vec()))
        .collect()
}
