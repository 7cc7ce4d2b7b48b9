//! Announcements: who hears when of a chunk that arrived.
//!
//! Haves are most of the control traffic: sixteen and more neighbours hear of each chunk. Those that
//! lack it, and a seed, hear at once. Those that hold it need to know only that it is not worth offering:
//! they hear with the next announcement that goes to them, or a little later. And of small chunks, with
//! which announcements weigh most, one that several neighbours hold already is no news to anybody: that
//! it can be had from one more may wait as well.

use super::Node;
use crate::id::{ConnId, Role};
use crate::limits;
use crate::message::{ChunkRun, Message};
use crate::time::Instant;
use rootswarm_image::ChunkIndex;
use std::time::Duration;

/// What arrived and has not been announced to everybody.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// In the order of arrival, and whether those who lack it are to hear at once. Each peer has heard
    /// of the first [`told`](crate::peers::Peer::told) of them.
    arrived: Vec<(ChunkIndex, bool)>,
    /// When those hear that are to hear at once.
    soon: Option<Instant>,
    /// When everybody hears.
    later: Option<Instant>,
}

impl Announcements {
    /// What a peer has heard of that is told everything now: with its hello, or because it asked.
    pub(super) fn all(&self) -> usize {
        self.arrived.len()
    }

    /// When the next ones are due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.soon.into_iter().chain(self.later).min()
    }
}

impl Node {
    /// A chunk has arrived that is to be announced.
    pub(super) fn note_arrival(&mut self, index: ChunkIndex, now: Instant) {
        let is_urgent = self.geometry.chunk_size().bytes() >= limits::HAVE_SMALL_BYTES
            || self.picker.replicas(index) <= limits::HAVE_URGENT_REPLICAS;
        let (soon, later) = (now + self.have_batch(), now + self.have_delay());
        let announcements = &mut self.announcements;
        announcements.arrived.push((index, is_urgent));
        announcements.later.get_or_insert(later);
        if is_urgent {
            announcements.soon.get_or_insert(soon);
        }
    }

    /// How long chunks are collected before they are announced: about one chunk at the pace at which
    /// they arrive, eight being under way.
    fn have_batch(&self) -> Duration {
        (self.chunk_time / 8).clamp(limits::HAVE_BATCH_MIN, limits::HAVE_BATCH_MAX)
    }

    /// How long those wait for an announcement that do not need it: about four chunks.
    fn have_delay(&self) -> Duration {
        (self.chunk_time / 2).clamp(limits::HAVE_DELAY_MIN, limits::HAVE_DELAY_MAX)
    }

    /// Tells the neighbours what is due to be told.
    pub(super) fn announce(&mut self, now: Instant) {
        let is_for_all = self.announcements.later.is_some_and(|at| at <= now);
        self.announcements.soon = None;
        let arrived = std::mem::take(&mut self.announcements.arrived);
        // Most hear of the same chunks: those that have heard of all before them.
        let mut told: Vec<(usize, Vec<ConnId>)> = Vec::new();
        for peer in self.peers.iter_mut() {
            let from =
                std::mem::replace(&mut peer.told, if is_for_all { 0 } else { arrived.len() });
            let lacks = |index| peer.role == Role::Seed || !peer.have.get(index);
            let hears = peer.wants_haves && (peer.role == Role::Seed || !peer.is_complete());
            let fresh = &arrived[from..];
            let is_due = is_for_all || fresh.iter().any(|(index, urgent)| *urgent && lacks(*index));
            if !hears || fresh.is_empty() {
                continue;
            }
            if !is_due {
                peer.told = from;
                continue;
            }
            match told.iter_mut().find(|(known, _)| *known == from) {
                Some((_, conns)) => conns.push(peer.conn),
                None => told.push((from, vec![peer.conn])),
            }
        }
        for (from, conns) in told {
            let mut fresh: Vec<ChunkIndex> =
                arrived[from..].iter().map(|(index, _)| *index).collect();
            fresh.sort_unstable();
            for message in have_messages(fresh.into_iter()) {
                for conn in &conns {
                    self.send(*conn, message.clone());
                }
            }
        }
        if is_for_all {
            self.announcements.later = None;
        } else {
            self.announcements.arrived = arrived;
        }
    }

    /// Tells the neighbours everything, at the end.
    pub(super) fn announce_to_all(&mut self, now: Instant) {
        self.announcements.later = Some(now);
        self.announce(now);
    }

    pub(super) fn announce_everything(&mut self, conn: ConnId) {
        let all = self.announcements.all();
        if let Some(peer) = self.peers.get_mut(conn) {
            peer.told = all;
        }
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
