//! What to ask of whom: the receiver's side.
//!
//! The receiver bounds what is in flight and spreads it over its peers; a sender that has no
//! room declines at once. So queues stay short everywhere, and a chunk that leaves the seed for
//! the first time is passed on within a few chunk times. Peers are asked in an order drawn by
//! chance: always choosing the best one sends everybody to the same.

use super::{ChunkOutcome, CloseReason, Node, Output};
use crate::flight::{Flight, Origin};
use crate::id::{ConnId, Role};
use crate::limits;
use crate::locality::Errand;
use crate::message::{ChunkRun, Message};
use crate::peers::Peer;
use crate::time::Instant;
use rootswarm_image::ChunkIndex;
use std::time::Duration;

/// What the picker should look at, the least first. To look at all peers costs more than anything else
/// that a node does, and while it starves nearly nothing that happens makes more than one of them useful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Look {
    #[default]
    Nothing,
    /// The peers in `news_of` and the chunks in `freed`.
    News,
    /// The peers whose time of being left alone has ended since the last look at such.
    Rested,
    All,
}

impl Node {
    pub(super) fn look_at_all(&mut self) {
        self.look = Look::All;
    }

    /// Something happened that can only have made this peer more useful. A node that does not starve
    /// looks at everybody once there is room in flight.
    fn look_at(&mut self, conn: ConnId) {
        if self.role == Role::Peer && self.starved_since.is_some() {
            self.look = self.look.max(Look::News);
            self.news_of.push(conn);
        } else {
            self.look_at_all();
        }
    }

    /// The same for a chunk that is no longer under way.
    fn look_for(&mut self, index: ChunkIndex) {
        if self.role == Role::Peer && self.starved_since.is_some() {
            self.look = self.look.max(Look::News);
            self.freed.push(index);
        } else {
            self.look_at_all();
        }
    }

    /// A timer of this node, or of its owner, has fired.
    pub(super) fn timed_out(&mut self, now: Instant) {
        if self.role == Role::Seed || self.starved_since.is_none() {
            return self.look_at_all();
        }
        if self.look_again_at.is_some_and(|at| at <= now) {
            // Now and then at everybody: what makes peers useful is time, too.
            let is_long_ago = now.since(self.looked_at) >= limits::SEED_PATIENCE;
            let look = if is_long_ago || self.picker.nothing_left_to_ask() {
                Look::All
            } else {
                Look::Rested
            };
            self.look = self.look.max(look);
        }
    }

    /// Fills the room in flight.
    pub(super) fn request_chunks(&mut self, look: Look, now: Instant) {
        let mut news_of = std::mem::take(&mut self.news_of);
        let mut freed = std::mem::take(&mut self.freed);
        if self.role == Role::Seed || self.picker.is_complete() {
            self.sate();
        } else {
            // First: peers that give nothing would be asked in turn for what a seed could bring.
            self.ask_seeds(now);
            if look == Look::News {
                self.follow_news(&news_of, &freed, now);
            } else {
                self.look_and_fill(look, now);
            }
            self.judge_supply_again();
        }
        // Emptied, their memory is used again.
        news_of.clear();
        freed.clear();
        (self.news_of, self.freed) = (news_of, freed);
    }

    fn look_and_fill(&mut self, look: Look, now: Instant) {
        let rested_since = (look == Look::Rested).then_some(self.rested_at);
        self.fill(rested_since, now);
        // As is known after having looked in vain; with room left nobody has anything.
        self.rested_at = now;
        if look == Look::All {
            self.looked_at = now;
        }
        self.settle(now);
    }

    fn has_room_to_ask(&self, now: Instant) -> bool {
        self.has_room(self.room() - limits::KEPT_FOR_OFFERS, now)
    }

    fn fill(&mut self, rested_since: Option<Instant>, now: Instant) {
        while self.has_room_to_ask(now) {
            let chosen = self
                .choose_outside(Errand::Duty, now)
                .or_else(|| self.choose(rested_since, now))
                .or_else(|| self.choose_outside(Errand::TakenOver, now));
            let Some((conn, index)) = chosen else {
                return;
            };
            self.ask(conn, index, now);
        }
    }

    /// The room is full, or nobody has anything to fill it with.
    fn settle(&mut self, now: Instant) {
        if self.has_room_to_ask(now) {
            return self.starve(now);
        }
        self.sate();
        // All that is in flight may be stuck with peers that fell silent.
        self.look_again_at = self.flights.next_overdue(now, self.patience());
    }

    /// A starving node asks those of whom there is news, and for the chunks that are free again.
    fn follow_news(&mut self, peers: &[ConnId], freed: &[ChunkIndex], now: Instant) {
        let requests = self.counters.requests;
        for conn in peers {
            while self.has_room_to_ask(now)
                && let Some(index) = self.pick_from(*conn, now)
            {
                self.ask(*conn, index, now);
            }
        }
        for index in freed {
            if self.has_room_to_ask(now)
                && self.picker.needs(*index)
                && let Some(conn) = self.choose_for(*index, now)
            {
                self.ask(conn, *index, now);
            }
        }
        // Whether the room is full now, and whether all is under way, must be known at once.
        if self.counters.requests > requests || !self.has_room_to_ask(now) {
            self.settle(now);
        }
    }

    fn pick_from(&mut self, conn: ConnId, now: Instant) -> Option<ChunkIndex> {
        let (per_peer, patience) = (self.per_peer(), self.patience());
        let peer = self.peers.get(conn)?;
        if !self.may_ask(peer, per_peer, patience, now) {
            return None;
        }
        if !peer.is_near && self.minds_racks(now) {
            self.look_around(now);
            return self
                .errand(conn, Errand::Duty)
                .or_else(|| self.errand(conn, Errand::TakenOver));
        }
        self.picker.pick(&peer.have, &mut self.rng)
    }

    /// The first peer, from one drawn by chance, that may be asked and holds this chunk.
    fn choose_for(&mut self, index: ChunkIndex, now: Instant) -> Option<ConnId> {
        let count = self.peers.len();
        let start = self.rng.below(count);
        let (per_peer, patience) = (self.per_peer(), self.patience());
        let only_near = !self.may_bring(index, now);
        self.peers
            .from(start)
            .filter(|peer| peer.is_near || !only_near)
            .find(|peer| self.may_ask(peer, per_peer, patience, now) && peer.have.get(index))
            .map(|peer| peer.conn)
    }

    /// Whether a request may go to this peer now.
    pub(super) fn may_ask(
        &self,
        peer: &Peer,
        per_peer: usize,
        patience: Duration,
        now: Instant,
    ) -> bool {
        peer.active
            && peer.role == Role::Peer
            && peer.outstanding < per_peer
            && peer.backoff_until <= now
            && (peer.outstanding == 0 || !self.flights.is_stuck(peer.conn, now, patience))
    }

    /// Whether fewer than `room` chunks are in flight. Within reason, what is overdue does not
    /// count, because a peer that fell silent must not take the place of others until its deadline;
    /// and neither does what has not begun in [`limits::PROMPT_ANSWER`], because on links with long
    /// queues half of the requests are on their way, and their places would lie idle meanwhile.
    pub(super) fn has_room(&self, room: usize, now: Instant) -> bool {
        // What is asked of seeds because peers give next to nothing must not keep these from giving more.
        let seeds = !self.supply.was_short();
        let in_flight = match seeds {
            true => self.flights.len(),
            false => self.flights.of_peers(),
        };
        in_flight < room
            || (in_flight < room * 2
                && self
                    .flights
                    .punctual(now, self.patience(), limits::PROMPT_ANSWER, seeds)
                    < room)
    }

    /// How much to keep in flight.
    pub(super) fn room(&self) -> usize {
        if self.chunk_time < limits::FAST_CHUNK {
            limits::IN_FLIGHT * 2
        } else {
            limits::IN_FLIGHT
        }
    }

    /// A flight that lasts longer is overdue.
    pub(super) fn patience(&self) -> Duration {
        (self.chunk_time * 4).max(limits::FLIGHT_PATIENCE_MIN)
    }

    fn sate(&mut self) {
        self.starved_since = None;
        self.look_again_at = None;
    }

    /// The first peer, from one drawn by chance, that may be asked and can give something; of those
    /// alone that were left alone until after `rested_since`, if that is given.
    fn choose(
        &mut self,
        rested_since: Option<Instant>,
        now: Instant,
    ) -> Option<(ConnId, ChunkIndex)> {
        if self.picker.nothing_left_to_ask() {
            return None;
        }
        let count = self.peers.len();
        let start = self.rng.below(count);
        let (per_peer, patience) = (self.per_peer(), self.patience());
        let minds_racks = self.minds_racks(now);
        for peer in self.peers.from(start) {
            if rested_since.is_none_or(|since| peer.backoff_until > since)
                && (peer.is_near || !minds_racks)
                && self.may_ask(peer, per_peer, patience, now)
                && let Some(index) = self.picker.pick(&peer.have, &mut self.rng)
            {
                return Some((peer.conn, index));
            }
        }
        None
    }

    /// Chunks in flight from one peer: two, or more when there are few peers, but never more
    /// than a sender takes in.
    pub(super) fn per_peer(&self) -> usize {
        (self.room() / self.peers.len().max(1)).clamp(limits::PER_PEER_MIN, limits::UPLOAD_SLOTS)
    }

    pub(super) fn ask(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        let answer = (self.chunk_time * 4 * self.leniency).clamp(
            limits::ANSWER_TIMEOUT_MIN,
            self.for_chunks(limits::ANSWER_TIMEOUT),
        );
        self.picker.begin(index);
        let from_seed = self.peers.is_seed(conn);
        self.flights.add(Flight {
            conn,
            index,
            origin: Origin::Pull,
            from_seed,
            since: now,
            deadline: now + answer,
            started: false,
        });
        if let Some(peer) = self.peers.get_mut(conn) {
            peer.outstanding += 1;
            peer.streams_due += 1;
        }
        self.counters.requests += 1;
        self.send(conn, Message::Request(index));
    }

    /// There is room in flight that no peer can fill: in the endgame, ask a second peer for
    /// what takes long; otherwise, with some patience, ask a seed.
    fn starve(&mut self, now: Instant) {
        let since = *self.starved_since.get_or_insert(now);
        if self.picker.nothing_left_to_ask() {
            self.endgame(now);
        } else if now.since(since) >= self.seed_patience()
            && let Some((conn, index)) = self.choose_seed(limits::PER_PEER_MIN, now)
        {
            self.starved_since = Some(now);
            self.ask(conn, index, now);
        }
        self.look_again_at = Some(self.next_look(now));
    }

    /// When a starving node looks again although nothing happened: when a peer that declined may
    /// be asked again, when its patience ends, or, in the endgame, soon.
    fn next_look(&self, now: Instant) -> Instant {
        let own = if self.picker.nothing_left_to_ask() {
            limits::STARVED_TICK
        } else {
            self.seed_patience()
        };
        let backoffs = self.peers.iter().map(|peer| peer.backoff_until);
        backoffs
            .filter(|until| *until > now)
            .fold(now + own, Instant::min)
    }

    /// Asks a second peer for a chunk that is on its way for much longer than chunks use to be
    /// (Cohen 2003, "endgame mode"). The slower of the two is cancelled. To whom peers bring next to
    /// nothing asks a seed; another peer only if there is none to ask, and then a seed as the third.
    pub(super) fn endgame(&mut self, now: Instant) {
        let is_short = self.missing(now) > 0;
        let overdue = (self.chunk_time * 3).max(Duration::from_millis(30));
        for slow in self.flights.stragglers(now, overdue, is_short) {
            let is_alone = self.flights.of_chunk(slow.index).count() == 1;
            let other = if is_short {
                let seed = self.second_for(&slow, Some(Role::Seed), overdue, is_short, now);
                seed.or_else(|| {
                    let peer = || self.second_for(&slow, Some(Role::Peer), overdue, is_short, now);
                    is_alone.then(peer).flatten()
                })
            } else {
                self.second_for(&slow, None, overdue, is_short, now)
            };
            if let Some(conn) = other {
                self.ask(conn, slow.index, now);
            }
        }
    }

    /// Whom to ask for what is late, from one drawn by chance: of this role alone, if one is given.
    fn second_for(
        &mut self,
        slow: &Flight,
        role: Option<Role>,
        overdue: Duration,
        is_short: bool,
        now: Instant,
    ) -> Option<ConnId> {
        let (most, seeds_most) = match is_short && role == Some(Role::Seed) {
            true => (limits::IN_FLIGHT_MAX, self.room()),
            false => (limits::IN_FLIGHT * 2, limits::PER_PEER_MIN),
        };
        if self.flights.len() >= most {
            return None;
        }
        let minds_racks = self.locality.matters();
        // Near neighbours first, then other racks, then a seed.
        let delay = |peer: &Peer| match peer.role {
            Role::Seed if is_short => 1,
            Role::Seed => 3,
            Role::Peer if minds_racks && !peer.is_near => 2,
            Role::Peer => 1,
        };
        let start = self.rng.below(self.peers.len());
        let other = self.peers.from(start).find(|peer| {
            peer.active
                && role.is_none_or(|role| peer.role == role)
                && peer.conn != slow.conn
                && peer.have.get(slow.index)
                && self.flights.find(peer.conn, slow.index).is_none()
                && match peer.role {
                    Role::Seed => peer.outstanding < seeds_most.min(peer.outstanding_max),
                    Role::Peer => peer.outstanding < limits::PER_PEER_MIN,
                }
                && peer.backoff_until <= now
                && now.since(slow.since) >= overdue * delay(peer)
        });
        other.map(|peer| peer.conn)
    }

    pub(super) fn chunk_started(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        let role = peer.role;
        if role == Role::Peer {
            let Some(left) = peer.streams_due.checked_sub(1) else {
                return self.close(
                    conn,
                    CloseReason::Protocol("more chunks than requests"),
                    now,
                );
            };
            peer.streams_due = left;
        }
        let deadline = now + limits::chunk_timeout(self.geometry.chunk_size().bytes());
        if !self.geometry.contains(index) {
            return self.close(conn, CloseReason::Protocol("a chunk beyond the image"), now);
        }
        if self.flights.start(conn, index, deadline) {
            return;
        }
        // Not asked for. Seeds may push; from a peer it is the answer to a request that was
        // given up meanwhile.
        let crowded = self.flights.pushes_from(conn) >= limits::PUSHES_MAX;
        if self.picker.has(index) || role == Role::Peer || crowded {
            self.outputs.push_back(Output::StopChunk { conn, index });
            return;
        }
        // A push that crossed a request: the one that moves wins.
        if self.flights.of_chunk(index).any(|flight| flight.started) {
            self.outputs.push_back(Output::StopChunk { conn, index });
            return;
        }
        for flight in self.flights.extract(|flight| flight.index == index) {
            self.call_off(&flight);
        }
        self.picker.begin(index);
        let since = now;
        self.flights.add(Flight {
            conn,
            index,
            origin: Origin::Push,
            from_seed: true,
            since,
            deadline,
            started: true,
        });
    }

    pub(super) fn chunk_ended(
        &mut self,
        conn: ConnId,
        index: ChunkIndex,
        outcome: ChunkOutcome,
        now: Instant,
    ) {
        let flight = self.flights.remove(conn, index);
        if let Some(flight) = &flight {
            self.release(flight);
        }
        self.look_at(conn);
        match outcome {
            ChunkOutcome::Verified => {
                self.count_arrival(conn, index, now);
                self.leniency = 1;
                if let Some(flight) = flight.filter(|flight| flight.origin == Origin::Pull) {
                    // The smoothing of RFC 6298: an eighth of what is new.
                    self.chunk_time = (self.chunk_time * 7 + now.since(flight.since)) / 8;
                    self.supply.took(now.since(flight.since));
                    if flight.from_seed
                        && let Some(seed) = self.peers.get_mut(conn)
                    {
                        seed.served_until = Some(now + limits::ASKED_LATELY);
                        // It sends one after the other; for a moment none has begun.
                        let (at, longest) = (
                            now + limits::ANSWER_TIMEOUT_MIN,
                            self.for_chunks(limits::ANSWER_TIMEOUT),
                        );
                        self.flights.next_begins_by(conn, at, now, longest);
                    }
                }
                self.stored(index, now);
            }
            ChunkOutcome::Corrupt => self.ban(conn, index, now),
            ChunkOutcome::Broken if flight.is_some() => self.let_down(conn, now),
            ChunkOutcome::Broken => {}
        }
    }

    fn count_arrival(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        // Cut off, a node gets what it can from outside. That does not mean that its rack is there.
        if !self.is_cut_off(now) || self.peers.get(conn).is_some_and(|peer| peer.is_near) {
            self.last_arrival = now;
        }
        let from_seed = match self.peers.get_mut(conn) {
            Some(peer) => {
                peer.delivered();
                peer.role == Role::Seed
            }
            None => false,
        };
        if self.picker.has(index) {
            self.counters.duplicate += 1;
            return;
        }
        self.supply.arrived(from_seed, now);
        if from_seed {
            self.counters.from_seed += 1;
        } else {
            self.counters.from_peers += 1;
        }
    }

    /// The chunk is in the store.
    pub(super) fn stored(&mut self, index: ChunkIndex, now: Instant) {
        if !self.geometry.contains(index) || !self.picker.complete(index) {
            return;
        }
        for flight in self.flights.extract(|flight| flight.index == index) {
            self.call_off(&flight);
        }
        self.note_arrival(index, now);
        self.may_offer_chunk(index, now);
        if self.picker.is_complete() && !self.completed {
            self.completed = true;
            self.outputs.push_back(Output::Complete);
            self.announce_to_all(now);
        }
    }

    /// Ends a flight that is no longer wanted; it is out of the list already.
    fn call_off(&mut self, flight: &Flight) {
        self.release(flight);
        let (conn, index) = (flight.conn, flight.index);
        if flight.started {
            self.outputs.push_back(Output::StopChunk { conn, index });
        } else {
            self.send(conn, Message::Cancel(index));
        }
    }

    /// Bookkeeping for a flight that is out of the list.
    fn release(&mut self, flight: &Flight) {
        if flight.origin == Origin::Pull
            && let Some(peer) = self.peers.get_mut(flight.conn)
        {
            peer.outstanding = peer.outstanding.saturating_sub(1);
        }
        self.look_at(flight.conn);
        if self.flights.of_chunk(flight.index).next().is_none() {
            self.picker.abandon(flight.index);
            self.look_for(flight.index);
        }
    }

    /// Gives up what took too long.
    pub(super) fn expire(&mut self, now: Instant) {
        self.look_at_all();
        self.wait_behind_chunks(now);
        if self.flights.next_deadline().is_none_or(|at| at > now) {
            return;
        }
        // If nothing arrives at all it may be this node's own link. Asking again and again at the
        // old pace would fill it with chunks that are given up before they are through: wait twice
        // as long, as RFC 6298 does after a timeout, until one arrives.
        self.leniency = (self.leniency * 2).min(limits::LENIENCY_MAX);
        // One at a time: giving up a peer takes its other flights with it.
        while let Some(flight) = self.flights.take_expired(now) {
            self.call_off(&flight);
            self.let_down(flight.conn, now);
        }
    }

    /// What was asked of a seed comes after the chunks that are on their way from it, one stream after the
    /// other: as long as one of them moves (the transport ends those that do not) its answer is not late.
    fn wait_behind_chunks(&mut self, now: Instant) {
        let peers = &self.peers;
        let longest = self.for_chunks(limits::ANSWER_TIMEOUT);
        self.flights
            .wait_behind_others(now, longest, |conn| peers.is_seed(conn));
    }

    fn let_down(&mut self, conn: ConnId, now: Instant) {
        let failures = self.count_failure(conn, now);
        if failures >= limits::FAILURES_MAX {
            self.close(conn, CloseReason::Unresponsive, now);
        }
    }

    pub(super) fn declined(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        let waiting = self
            .flights
            .find(conn, index)
            .is_some_and(|flight| !flight.started);
        let Some(flight) = waiting.then(|| self.flights.remove(conn, index)).flatten() else {
            return;
        };
        self.counters.declined += 1;
        self.release(&flight);
        if self.peers.is_seed(conn) {
            self.seed_declined(conn, now);
        } else if let Some(peer) = self.peers.get_mut(conn) {
            let (low, high) = limits::BUSY_BACKOFF_US;
            let wait = self.rng.between(low, high) << peer.declined();
            peer.backoff_until = Instant(now.0 + wait);
        }
        if let Some(peer) = self.peers.get(conn)
            && peer.backoff_until > now
            && let Some(at) = &mut self.look_again_at
        {
            *at = peer.backoff_until.min(*at);
        }
    }

    pub(super) fn peer_has(&mut self, conn: ConnId, runs: &[ChunkRun], now: Instant) {
        let chunks = self.geometry.chunk_count();
        let beyond = |run: &ChunkRun| {
            run.count == 0
                || run
                    .first
                    .0
                    .checked_add(run.count)
                    .is_none_or(|end| end > chunks)
        };
        if runs.iter().any(beyond) {
            return self.close(conn, CloseReason::Protocol("a have beyond the image"), now);
        }
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        let mut is_news = self.role == Role::Seed;
        for run in runs {
            for index in (run.first.0..run.first.0 + run.count).map(ChunkIndex) {
                if peer.have.set(index) && peer.role == Role::Peer {
                    peer.not_needed.set(index);
                    self.picker.announced(index);
                }
                is_news |= self.picker.needs(index);
                // Only a seed has pushed anything, and for others it is one more thing to read.
                if self.role == Role::Seed
                    && let Some(at) = peer
                        .unconfirmed
                        .iter()
                        .position(|(known, _)| *known == index)
                {
                    peer.unconfirmed.swap_remove(at);
                    peer.has_confirmed = true;
                    self.leeches.confirmed(peer.addr.ip());
                    self.seeding.arrived(index);
                    self.seeding.ended(index, &self.picker);
                }
            }
        }
        if peer.have.is_full() {
            // Ten thousand nodes that have everything have it in common.
            peer.have = self.picker.everything();
            peer.not_needed = peer.have.clone();
        }
        self.note_completion(conn, now);
        // Time may have made room where there was none.
        if is_news || self.starved_since.is_none() {
            self.look_at(conn);
        }
    }
}
