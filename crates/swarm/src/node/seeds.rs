//! What to ask of seeds: a chunk now and then while peers are about to bring the rest, and as much as of
//! any holder while they are not.
//!
//! A seed is a holder of last resort, because what it sends twice it could have sent to somebody who
//! lacks it altogether. But whether peers bring a chunk is known only when they do: see `supply`.

use super::Node;
use crate::id::{ConnId, Role};
use crate::limits;
use crate::locality::Errand;
use crate::supply::Prospects;
use crate::time::Instant;
use rootswarm_image::ChunkIndex;
use std::time::Duration;

impl Node {
    /// While peers bring next to nothing, asks seeds for all that there is room for. What was asked of
    /// peers does not count: it may never come.
    pub(super) fn ask_seeds(&mut self, now: Instant) {
        let missing = self.missing(now);
        if missing > 0 {
            if self.picker.nothing_left_to_ask() {
                self.endgame(now);
            }
            while self.flights.len() < limits::IN_FLIGHT_MAX
                && let Some((conn, index)) = self.choose_seed(missing, now)
            {
                self.ask(conn, index, now);
            }
        }
    }

    /// What peers bring is judged again although nothing happened.
    pub(super) fn judge_supply_again(&mut self) {
        let judge_at = self.supply.judge_at();
        let look_at = self.look_again_at.unwrap_or(judge_at);
        self.look_again_at = Some(look_at.min(judge_at));
    }

    /// How many chunks to keep asked of a seed for what peers do not bring.
    pub(super) fn missing(&mut self, now: Instant) -> usize {
        let (peers, flights, room) = (&self.peers, &self.flights, self.room());
        let patience = (self.chunk_time * 2).max(limits::FLIGHT_PATIENCE_MIN);
        self.supply.missing(now, || Prospects {
            is_alone: !peers
                .iter()
                .any(|peer| peer.role == Role::Peer && peer.active),
            is_awaiting: flights.iter().any(|flight| {
                flight.started && !flight.from_seed && now.since(flight.since) < patience
            }),
            room,
        })
    }

    /// Where chunks take long, the next one from a neighbour is as far away. With a fixed patience,
    /// emulated machines (chunks of 100 ms and more) drew 2.5 copies for four nodes from the seed.
    pub(super) fn seed_patience(&self) -> Duration {
        self.chunk_time.max(limits::SEED_PATIENCE)
    }

    /// A seed with fewer than `most` requests of this node, and what to ask it for; from one drawn by
    /// chance, because one of several may be dead.
    pub(super) fn choose_seed(
        &mut self,
        most: usize,
        now: Instant,
    ) -> Option<(ConnId, ChunkIndex)> {
        let patience = self.patience();
        let start = self.rng.below(self.peers.len());
        let seed = self.peers.from(start).find(|peer| {
            peer.active
                && peer.role == Role::Seed
                && peer.outstanding < most.min(peer.outstanding_max)
                && peer.backoff_until <= now
                && (peer.outstanding == 0 || !self.flights.is_stuck(peer.conn, now, patience))
        })?;
        if !seed.is_near && self.minds_racks(now) {
            let errands = self
                .locality
                .errands(&seed.have, Errand::Duty, &self.picker)?;
            return Some((seed.conn, self.picker.pick(&errands, &mut self.rng)?));
        }
        Some((seed.conn, self.picker.pick(&seed.have, &mut self.rng)?))
    }

    /// A seed declined a request. While it is sending others it has no slot for more: each chunk that
    /// comes makes room for one. If not, it is left alone for a while.
    pub(super) fn seed_declined(&mut self, conn: ConnId, now: Instant) {
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        // Who got a chunk a moment ago has a part of the slots.
        let is_served = peer.served_until.is_some_and(|until| now < until);
        let (low, high) = match is_served {
            true => limits::BUSY_BACKOFF_US,
            false => limits::SEED_BUSY_BACKOFF_US,
        };
        let wait_us = self.rng.between(low, high);
        peer.outstanding_max = peer.outstanding.max(1);
        if peer.outstanding == 0 {
            peer.backoff_until = Instant(now.0 + (wait_us << peer.declined()));
        }
    }
}
