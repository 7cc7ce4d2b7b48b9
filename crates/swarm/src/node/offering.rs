//! Offers: a sender with a free slot says so, to the one it helps most.
//!
//! An uplink that idles is lost, and only its owner knows that it idles. So a node with a free slot
//! offers the rarest chunk that a neighbour lacks, and among those that lack an equally rare one the
//! neighbour that has been fetching most slowly. In the simulator the last of 400 nodes (1 GB) ends at
//! 1.042 of the bound instead of 1.071, and 0.2 % after the median one instead of 2 %.
//!
//! Most slowly, not the one that holds least: where nodes arrive one after the other those hold least
//! that came last, and can be served by all. With them first, the slowest hundredth of 300 nodes that
//! arrive within 10 s took 1.190 of the bound from its own arrival, all of them among the first to
//! come; with the slowest first, 1.101.
//!
//! Whoever has more room than it is offered asks as before (see `fetching`).

use super::{CloseReason, Node};
use crate::id::{ConnId, Role};
use crate::limits;
use crate::message::Message;
use crate::peers::Peer;
use crate::time::Instant;
use rootswarm_image::{Bitfield, ChunkIndex};
use std::time::Duration;

/// How many chunks, of an image of `chunks`, a seed that feeds `fed` of `members` nodes hands out to help
/// on after a first round: see [`limits::SEED_HELPED_COPIES`] and what follows it.
fn most_helped(chunks: u64, fed: usize, members: usize) -> u64 {
    let few = chunks * fed as u64 / limits::SEED_HELPED_NODES_FEW;
    let many = chunks * limits::SEED_HELPED_NODES_MANY / (members as u64).max(1);
    few.min(many).min(chunks * limits::SEED_HELPED_COPIES)
}

impl Node {
    /// Offers chunks while slots are free.
    pub(super) fn offer(&mut self, now: Instant) {
        self.offer_again_at = None;
        let is_news = std::mem::take(&mut self.may_offer_more);
        self.end_unanswered(now);
        if self.picker.have().is_empty() || !self.may_offer(now) {
            return;
        }
        if let Some(since) = self.nobody_needs_since
            && !is_news
            && !self.has_rested(since, now)
        {
            self.nobody_needs_since = Some(now);
            return;
        }
        self.nobody_needs_since = None;
        while self.uploads.free_slots(limits::OFFERS_AHEAD, now) > self.offers.len() {
            let Some(conn) = self.neediest(now) else {
                // A seed's nodes, and whether it may offer at all, change in more ways.
                self.nobody_needs_since = (self.role == Role::Peer).then_some(now);
                return;
            };
            let salt = self.rng.next_u64() as u32;
            let Some(peer) = self.peers.get_mut(conn) else {
                return;
            };
            let chunks = self
                .picker
                .rarest_lacking(&peer.not_needed, limits::OFFER_CHUNKS, salt);
            let until = now + limits::OFFER_TIMEOUT;
            peer.is_offered = true;
            peer.offered.clone_from(&chunks);
            self.offers.push((conn, until));
            self.offer_later(until);
            self.send(conn, Message::Offer(chunks));
        }
    }

    /// A seed offers once every chunk has a holder, while the nodes it feeds still lack a twentieth
    /// of the image or more, it has not done so enough, and its link is faster than theirs (see `seeding`).
    fn may_offer(&mut self, now: Instant) -> bool {
        if self.role == Role::Peer {
            return true;
        }
        let chunks = u64::from(self.geometry.chunk_count());
        let peers = &self.peers;
        let fed = || peers.iter().filter(|peer| peer.is_fed);
        let held_percent = |within: Option<Duration>| {
            let (mut held, mut could_hold) = (0, 0);
            for peer in fed() {
                held += u64::from(peer.have.count());
                could_hold += match within {
                    Some(time) => peer.could_hold(chunks, time, now),
                    None => chunks,
                };
            }
            held * 100 / could_hold.max(1)
        };
        let (members, uploaded) = (self.tracker.len(), self.counters.uploaded);
        // Most of the time this is all that has to be known: a seed has thousands of peers to look at.
        let most = most_helped(chunks, members, members);
        let seeding = &mut self.seeding;
        seeding.helps_on(&self.picker, uploaded, most, now, held_percent)
            && seeding.helped(uploaded) < most_helped(chunks, fed().count(), members)
    }

    /// Whether somebody can be offered something who was left alone until after `since`. Sets the time
    /// at which the next one is.
    fn has_rested(&mut self, since: Instant, now: Instant) -> bool {
        let mut next: Option<Instant> = None;
        for peer in self.peers.iter().filter(|peer| self.may_be_offered(peer)) {
            let at = peer.offer_after;
            if at > now {
                next = Some(next.map_or(at, |first| first.min(at)));
            } else if at > since && self.picker.lacks_any(&peer.not_needed) {
                return true;
            }
        }
        self.offer_again_at = self.offer_again_at.into_iter().chain(next).min();
        false
    }

    fn may_be_offered(&self, peer: &Peer) -> bool {
        peer.active
            && peer.role == Role::Peer
            && (peer.is_fed || self.role == Role::Peer)
            && !peer.is_offered
            && !peer.is_complete()
            // Other racks ask for what they may take.
            && (peer.is_near || self.role == Role::Seed || !self.locality.matters())
            && self.uploads.to(peer.conn) == 0
    }

    /// This peer may be one to offer something. While nobody else is, it alone is looked at: to look
    /// at all of them at each chunk was a third of a large simulation's time.
    pub(super) fn may_offer_to(&mut self, conn: ConnId, now: Instant) {
        if self.nobody_needs_since.is_none() {
            self.may_offer_more = true;
            return;
        }
        let Some(peer) = self
            .peers
            .get(conn)
            .filter(|peer| self.may_be_offered(peer))
        else {
            return;
        };
        if peer.offer_after > now {
            self.offer_later(peer.offer_after);
        } else if self.picker.lacks_any(&peer.not_needed) {
            self.may_offer_more = true;
        }
    }

    /// This chunk is new here: there may be somebody who lacks it.
    pub(super) fn may_offer_chunk(&mut self, index: ChunkIndex, now: Instant) {
        self.may_offer_more |= self.nobody_needs_since.is_none()
            || self.peers.iter().any(|peer| {
                self.may_be_offered(peer) && peer.offer_after <= now && !peer.not_needed.get(index)
            });
    }

    fn offer_later(&mut self, at: Instant) {
        self.offer_again_at = Some(self.offer_again_at.map_or(at, |first| first.min(at)));
    }

    /// The peer that lacks the rarest chunk held here; of several the one that has been fetching most
    /// slowly since it came, and of those that have not begun the one that holds least; from one drawn
    /// by chance. Sets the time at which there may be another.
    fn neediest(&mut self, now: Instant) -> Option<ConnId> {
        let count = self.peers.len();
        let start = self.rng.below(count);
        let mut lackers: Vec<&Peer> = Vec::with_capacity(count);
        let mut later = self.offer_again_at;
        for peer in self.peers.from(start) {
            if !self.may_be_offered(peer) {
                continue;
            }
            if peer.offer_after > now {
                later = later.into_iter().chain([peer.offer_after]).min();
            } else {
                lackers.push(peer);
            }
        }
        let fields: Vec<&Bitfield> = lackers.iter().map(|peer| &peer.not_needed).collect();
        let rarest = self.picker.rarest_lacked(&fields);
        lackers.retain(|peer| rarest.is_lacked_in(&peer.not_needed));
        // Of those in equal need, the first.
        let neediest = lackers
            .into_iter()
            .min_by_key(|peer| (peer.pace(now), peer.have.count()));
        let neediest = neediest.map(|peer| peer.conn);
        self.offer_again_at = later;
        neediest
    }

    /// The receiver's side: takes the first of the chunks that it needs, if it has room.
    pub(super) fn offered(&mut self, conn: ConnId, chunks: &[ChunkIndex], now: Instant) {
        if chunks.iter().any(|index| !self.geometry.contains(*index)) {
            return self.close(
                conn,
                CloseReason::Protocol("an offer beyond the image"),
                now,
            );
        }
        let needed = chunks
            .iter()
            .copied()
            .find(|index| self.picker.needs(*index) && self.may_take(conn, *index, now));
        match needed {
            Some(index) if self.has_room(self.room(), now) => self.ask(conn, index, now),
            Some(_) => self.send(conn, Message::NoRoom),
            None => self.send(conn, Message::NotNeeded),
        }
    }

    pub(super) fn offer_declined(&mut self, conn: ConnId, not_needed: bool, now: Instant) {
        let Some(chunks) = self.end_offer(conn) else {
            return;
        };
        let (low, high) = limits::OFFER_BACKOFF_US;
        let wait_us = self.rng.between(low, high);
        if let Some(peer) = self.peers.get_mut(conn) {
            if not_needed {
                // There may be others that it needs: a third of the wait.
                peer.offer_after = Instant(now.0 + wait_us / 3);
                for index in chunks {
                    peer.not_needed.set(index);
                }
            } else {
                peer.offer_after = Instant(now.0 + wait_us);
            }
            let at = peer.offer_after;
            self.offer_later(at);
        }
    }

    /// What was offered to this peer and not answered, which no longer counts.
    pub(super) fn end_offer(&mut self, conn: ConnId) -> Option<Vec<ChunkIndex>> {
        let peer = self.peers.get_mut(conn)?;
        if !std::mem::take(&mut peer.is_offered) {
            return None;
        }
        let chunks = std::mem::take(&mut peer.offered);
        self.offers.retain(|(other, _)| *other != conn);
        // Where nobody else could be offered anything, this makes no difference to them.
        self.may_offer_more |= self.nobody_needs_since.is_none();
        Some(chunks)
    }

    fn end_unanswered(&mut self, now: Instant) {
        let peers = &mut self.peers;
        self.offers.retain(|(conn, until)| {
            let counts = *until > now;
            if !counts && let Some(peer) = peers.get_mut(*conn) {
                peer.is_offered = false;
                peer.offer_after = now + limits::OFFER_TIMEOUT;
            }
            counts
        });
        let next = self.offers.iter().map(|(_, until)| *until).min();
        self.offer_again_at = self.offer_again_at.into_iter().chain(next).min();
    }
}
