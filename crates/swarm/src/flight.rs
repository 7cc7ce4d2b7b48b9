//! The chunks on their way to this node: whom they were asked of, since when, until when.

use crate::id::ConnId;
use crate::limits;
use crate::time::Instant;
use rootswarm_image::ChunkIndex;
use std::time::Duration;

/// How a chunk came to be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This node asked for it.
    Pull,
    /// A seed sent it unasked.
    Push,
}

/// One chunk on its way from one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) conn: ConnId,
    pub(crate) index: ChunkIndex,
    pub(crate) origin: Origin,
    pub(crate) from_seed: bool,
    pub(crate) since: Instant,
    pub(crate) deadline: Instant,
    pub(crate) started: bool,
}

/// All chunks under way. At most two flights carry the same chunk, and only in the endgame; three where
/// peers give next to nothing, the third from a seed.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: Vec<Flight>,
    /// The earliest deadline: it is asked for at every turn.
    next_deadline: Option<Instant>,
}

impl Flights {
    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.flights.iter()
    }

    pub(crate) fn add(&mut self, flight: Flight) {
        debug_assert!(self.find(flight.conn, flight.index).is_none());
        self.flights.push(flight);
        let first = self.next_deadline.unwrap_or(flight.deadline);
        self.next_deadline = Some(first.min(flight.deadline));
    }

    pub(crate) fn find(&self, conn: ConnId, index: ChunkIndex) -> Option<&Flight> {
        let position = self.position(conn, index)?;
        Some(&self.flights[position])
    }

    /// A chunk has begun to arrive, and has until `deadline`; one that is begun anew gets no more
    /// time than it had. Says whether it was under way.
    pub(crate) fn start(&mut self, conn: ConnId, index: ChunkIndex, deadline: Instant) -> bool {
        let Some(position) = self.position(conn, index) else {
            return false;
        };
        let flight = &mut self.flights[position];
        if std::mem::replace(&mut flight.started, true) {
            return true;
        }
        let old = std::mem::replace(&mut flight.deadline, deadline);
        self.has_left(old);
        self.next_deadline = self.next_deadline.map(|first| first.min(deadline));
        true
    }

    fn position(&self, conn: ConnId, index: ChunkIndex) -> Option<usize> {
        self.flights
            .iter()
            .position(|flight| flight.conn == conn && flight.index == index)
    }

    fn take(&mut self, position: usize) -> Flight {
        let flight = self.flights.swap_remove(position);
        self.has_left(flight.deadline);
        flight
    }

    /// A deadline counts no longer.
    fn has_left(&mut self, deadline: Instant) {
        if self.next_deadline == Some(deadline) {
            self.next_deadline = self.flights.iter().map(|flight| flight.deadline).min();
        }
    }

    pub(crate) fn remove(&mut self, conn: ConnId, index: ChunkIndex) -> Option<Flight> {
        let position = self.position(conn, index)?;
        Some(self.take(position))
    }

    /// Takes out every flight for which `condition` holds, in a fixed order.
    pub(crate) fn extract(&mut self, condition: impl Fn(&Flight) -> bool) -> Vec<Flight> {
        if !self.flights.iter().any(&condition) {
            return Vec::new();
        }
        let (out, keep) = self.flights.drain(..).partition(|flight| condition(flight));
        self.flights = keep;
        self.next_deadline = self.flights.iter().map(|flight| flight.deadline).min();
        out
    }

    pub(crate) fn of_chunk(&self, index: ChunkIndex) -> impl Iterator<Item = &Flight> {
        self.flights
            .iter()
            .filter(move |flight| flight.index == index)
    }

    pub(crate) fn pushes_from(&self, conn: ConnId) -> usize {
        self.flights
            .iter()
            .filter(|f| f.conn == conn && f.origin == Origin::Push)
            .count()
    }

    /// Requests whose time is over wait on, for half a second at a time, behind a chunk that has begun to
    /// come from the same connection, if that is one of `patient` ones; for `longest` at most.
    pub(crate) fn wait_behind_others(
        &mut self,
        now: Instant,
        longest: Duration,
        patient: impl Fn(ConnId) -> bool,
    ) {
        let is_late = |flight: &Flight| {
            !flight.started && flight.deadline <= now && now.since(flight.since) < longest
        };
        for position in 0..self.flights.len() {
            let flight = self.flights[position];
            let mut others = self.flights.iter();
            if is_late(&flight)
                && patient(flight.conn)
                && others.any(|other| other.conn == flight.conn && other.started)
            {
                self.flights[position].deadline = now + limits::ANSWER_TIMEOUT_MIN;
                self.has_left(flight.deadline);
            }
        }
    }

    /// A chunk has come from this connection, and the next one is about to begin: what is still to begin there
    /// has until `at` at least, unless it was asked for `longest` ago.
    pub(crate) fn next_begins_by(
        &mut self,
        conn: ConnId,
        at: Instant,
        now: Instant,
        longest: Duration,
    ) {
        for position in 0..self.flights.len() {
            let flight = self.flights[position];
            let waits = flight.conn == conn && !flight.started && flight.deadline < at;
            if waits && now.since(flight.since) < longest {
                self.flights[position].deadline = at;
                self.has_left(flight.deadline);
            }
        }
    }

    /// One flight whose deadline has passed.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Option<Flight> {
        let position = self
            .flights
            .iter()
            .position(|flight| flight.deadline <= now)?;
        Some(self.take(position))
    }

    /// Those from peers.
    pub(crate) fn of_peers(&self) -> usize {
        self.flights.iter().filter(|it| !it.from_seed).count()
    }

    /// Flights that have begun and are not older than `patience`, and those that have not and are
    /// not older than `answer`.
    pub(crate) fn punctual(
        &self,
        now: Instant,
        patience: Duration,
        answer: Duration,
        seeds: bool,
    ) -> usize {
        let limit = |flight: &Flight| if flight.started { patience } else { answer };
        self.flights
            .iter()
            .filter(|flight| seeds || !flight.from_seed)
            .filter(|flight| now.since(flight.since) < limit(flight))
            .count()
    }

    /// Whether one from this peer is older than `patience`.
    pub(crate) fn is_stuck(&self, conn: ConnId, now: Instant, patience: Duration) -> bool {
        self.flights
            .iter()
            .any(|flight| flight.conn == conn && now.since(flight.since) >= patience)
    }

    /// When the next flight gets older than `patience`.
    pub(crate) fn next_overdue(&self, now: Instant, patience: Duration) -> Option<Instant> {
        let due = self.flights.iter().map(|flight| flight.since + patience);
        due.filter(|at| *at > now).min()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// The flights that are alone with their chunk and older than `age`, oldest first: what the
    /// endgame asks for a second time. To whom peers bring next to nothing, also the older of two that
    /// no seed has been asked for.
    pub(crate) fn stragglers(&self, now: Instant, age: Duration, is_short: bool) -> Vec<Flight> {
        let is_asked_again = |flight: &Flight| {
            let mut others = self
                .of_chunk(flight.index)
                .filter(|it| it.conn != flight.conn);
            match (others.next(), others.next()) {
                (None, _) => true,
                (Some(other), None) if is_short && !flight.from_seed && !other.from_seed => {
                    (flight.since, flight.conn) < (other.since, other.conn)
                }
                _ => false,
            }
        };
        let mut old: Vec<Flight> = self
            .flights
            .iter()
            .filter(|flight| now.since(flight.since) >= age && is_asked_again(flight))
            .copied()
            .collect();
        old.sort_by_key(|flight| (flight.since, flight.index));
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// The deadline that is kept is the earliest there is, whatever comes, starts and goes.
    #[test]
    fn the_next_deadline_is_the_earliest() {
        let (mut flights, mut rng) = (Flights::default(), Rng::new(1));
        for step in 0..2_000u64 {
            let (conn, index) = (ConnId(rng.between(0, 4)), ChunkIndex(rng.below(5) as u32));
            let deadline = Instant(step + rng.between(1, 40));
            match rng.below(5) {
                0 | 1 if flights.find(conn, index).is_none() => flights.add(Flight {
                    conn,
                    index,
                    origin: Origin::Pull,
                    from_seed: false,
                    since: Instant(step),
                    deadline,
                    started: false,
                }),
                2 => {
                    flights.start(conn, index, deadline);
                }
                3 => {
                    flights.take_expired(Instant(step));
                }
                _ if step % 7 == 0 => {
                    flights.extract(|flight| flight.conn == conn);
                }
                _ => {
                    flights.remove(conn, index);
                }
            }
            let earliest = flights.flights.iter().map(|flight| flight.deadline).min();
            assert_eq!(flights.next_deadline(), earliest, "step {step}");
        }
    }
}
