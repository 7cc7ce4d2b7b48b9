//! Upload slots: how many chunks go out at once. What does not fit is declined at once.
//!
//! The number of slots follows what happens. It starts low, so that the first chunks of a swarm
//! leave whole one after the other instead of all together at the end of a long first round, and
//! grows by one with each chunk delivered in good time. Uploads that are slow because the link is
//! make it shrink, very fast ones double its maximum, and a seed tries whether still more bring more
//! (see `breadth`). One that is much slower than the others,
//! because its receiver is slow or gone, no longer counts.

use crate::breadth::Breadth;
use crate::id::ConnId;
use crate::limits;
use crate::time::Instant;
use rootswarm_image::ChunkIndex;
use std::time::Duration;

/// One upload under way.
#[derive(Clone, Copy, Debug)]
struct Active {
    conn: ConnId,
    index: ChunkIndex,
    since: Instant,
    /// Its receiver did not read, before there was a measure for what is late.
    stalled: bool,
    /// It was reported by [`Uploads::newly_overdue`].
    reported: bool,
    /// Its receiver has said nothing since it began: it takes no slot.
    silent: bool,
}

/// An upload that has become overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overdue {
    pub(crate) conn: ConnId,
    pub(crate) index: ChunkIndex,
    pub(crate) since: Instant,
}

impl Active {
    fn is_overdue(&self, patience: Duration, now: Instant) -> bool {
        self.stalled || now.since(self.since) >= patience
    }
}

/// The uploads of one node.
#[derive(Debug)]
pub(crate) struct Uploads {
    slots: usize,
    slots_max: usize,
    /// An upload that took longer was one of too many.
    slow: Duration,
    /// What is late before any upload has ended.
    patience_first: Duration,
    /// Smoothed time from an upload's start to its end.
    typical: Duration,
    active: Vec<Active>,
    /// A seed's: where it may have more than the usual.
    breadth: Option<Breadth>,
}

impl Uploads {
    /// At most `slots_max` at once, of chunks of `chunk_bytes`.
    pub(crate) fn new(slots_max: usize, chunk_bytes: u64) -> Self {
        let slots_max = slots_max.max(1);
        Self {
            slots: limits::UPLOAD_SLOTS_FIRST.min(slots_max),
            slots_max,
            slow: limits::chunk_timeout(chunk_bytes) / 8,
            patience_first: limits::for_chunks_of(chunk_bytes, limits::UPLOAD_PATIENCE_FIRST),
            typical: Duration::ZERO,
            active: Vec::new(),
            breadth: None,
        }
    }

    /// The same, with more at once where that brings more.
    pub(crate) fn of_seed(slots_max: usize, chunk_bytes: u64) -> Self {
        Self {
            breadth: Some(Breadth::new()),
            ..Self::new(slots_max, chunk_bytes)
        }
    }

    /// Free slots, when there are `beyond` more of them than usual.
    pub(crate) fn free_slots(&self, beyond: usize, now: Instant) -> usize {
        (self.slots + beyond).saturating_sub(self.counted(now))
    }

    /// Uploads that take a slot. The overdue ones are let off up to as many as there are slots: a
    /// bound all the same.
    fn counted(&self, now: Instant) -> usize {
        let patience = self.patience();
        let silent = self.active.iter().filter(|upload| upload.silent).count();
        let overdue = self
            .active
            .iter()
            .filter(|upload| !upload.silent && upload.is_overdue(patience, now));
        let silent_off = silent.min(limits::SILENT_UPLOADS_MAX);
        self.active.len() - silent_off - overdue.count().min(self.slots_max)
    }

    /// The receiver behind this connection has said nothing since before its uploads became overdue, or
    /// does again.
    pub(crate) fn set_silent(&mut self, conn: ConnId, silent: bool) {
        for upload in self.active.iter_mut().filter(|upload| upload.conn == conn) {
            upload.silent = silent;
        }
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// To whom each upload goes.
    pub(crate) fn receivers(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.active.iter().map(|upload| upload.conn)
    }

    /// How many go to this connection.
    pub(crate) fn to(&self, conn: ConnId) -> usize {
        self.active
            .iter()
            .filter(|upload| upload.conn == conn)
            .count()
    }

    pub(crate) fn is_active(&self, conn: ConnId, index: ChunkIndex) -> bool {
        self.position(conn, index).is_some()
    }

    /// Whether an upload to this connection takes much longer than uploads do.
    pub(crate) fn is_stuck(&self, conn: ConnId, now: Instant) -> bool {
        let patience = self.patience();
        self.active
            .iter()
            .any(|upload| upload.conn == conn && upload.is_overdue(patience, now))
    }

    /// The uploads that have become overdue, each once.
    pub(crate) fn newly_overdue(&mut self, now: Instant) -> Vec<Overdue> {
        let patience = self.patience();
        self.active
            .iter_mut()
            .filter(|upload| !upload.reported && upload.is_overdue(patience, now))
            .map(|upload| {
                upload.reported = true;
                Overdue {
                    conn: upload.conn,
                    index: upload.index,
                    since: upload.since,
                }
            })
            .collect()
    }

    /// When the next upload becomes overdue, if it does not end before.
    pub(crate) fn next_overdue(&self, now: Instant) -> Option<Instant> {
        let patience = self.patience();
        let waiting = self.active.iter().filter(|upload| !upload.stalled);
        let due = waiting.map(|upload| upload.since + patience);
        due.filter(|at| *at > now).min()
    }

    /// Begins an upload if a slot is free and this very upload is not under way. `beyond` more than
    /// the slots are for those who were offered a chunk.
    pub(crate) fn begin(
        &mut self,
        conn: ConnId,
        index: ChunkIndex,
        beyond: usize,
        now: Instant,
    ) -> bool {
        let may = self.free_slots(beyond, now) > 0 && !self.is_active(conn, index);
        if may {
            self.active.push(Active {
                conn,
                index,
                since: now,
                stalled: false,
                reported: false,
                silent: false,
            });
        }
        may
    }

    /// Nothing leaves for this receiver. It is overdue at once where nothing was delivered yet: those who
    /// come first to a fresh seed, and take nothing, would otherwise hold its first slots for as long as
    /// a very slow link may take. Later, what is late follows from how long uploads take: a slow link
    /// must not look like many receivers that do not read, or it would be given twice as much to do.
    pub(crate) fn stalled(&mut self, conn: ConnId, index: ChunkIndex) {
        if self.typical.is_zero()
            && let Some(position) = self.position(conn, index)
        {
            self.active[position].stalled = true;
        }
    }

    /// An upload is over.
    pub(crate) fn ended(
        &mut self,
        conn: ConnId,
        index: ChunkIndex,
        is_delivered: bool,
        now: Instant,
    ) {
        let Some(position) = self.position(conn, index) else {
            return;
        };
        let was_full = self.free_slots(0, now) == 0;
        let upload = self.active.swap_remove(position);
        if !is_delivered {
            return;
        }
        let took = now.since(upload.since);
        self.typical = if self.typical.is_zero() {
            took
        } else {
            (self.typical * 7 + took) / 8
        };
        let most = if self.typical < limits::FAST_CHUNK {
            self.slots_max * 2
        } else {
            self.slots_max
        };
        let mut beyond = 0;
        if let Some(breadth) = &mut self.breadth {
            if took > self.slow {
                breadth.none();
            } else if self.slots >= most {
                breadth.delivered(self.slots, was_full, now);
            }
            beyond = breadth.beyond();
        }
        self.slots = if took > self.slow {
            (self.slots / 2).max(1)
        } else {
            (self.slots + 1).min(most + beyond)
        };
    }

    /// The connection is gone, and with it all that was for it. Returns what was under way.
    pub(crate) fn forget(&mut self, conn: ConnId) -> Vec<ChunkIndex> {
        let (gone, keep): (Vec<_>, Vec<_>) = self
            .active
            .drain(..)
            .partition(|upload| upload.conn == conn);
        self.active = keep;
        gone.into_iter().map(|upload| upload.index).collect()
    }

    fn position(&self, conn: ConnId, index: ChunkIndex) -> Option<usize> {
        self.active
            .iter()
            .position(|upload| upload.conn == conn && upload.index == index)
    }

    /// An upload that lasts longer is overdue.
    pub(crate) fn patience(&self) -> Duration {
        if self.typical.is_zero() {
            return self.patience_first;
        }
        (self.typical * 4).max(limits::UPLOAD_PATIENCE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ConnId = ConnId(1);
    const B: ConnId = ConnId(2);

    fn ms(ms: u64) -> Instant {
        Instant(ms * 1000)
    }

    fn uploads(slots_max: usize) -> Uploads {
        // They may take 16 s each.
        Uploads::new(slots_max, 11 * limits::CHUNK_RATE_MIN)
    }

    #[test]
    fn slots_grow_with_deliveries_and_shrink_when_slow() {
        let mut uploads = uploads(3);
        assert!(uploads.begin(A, ChunkIndex(0), 0, ms(0)));
        assert!(!uploads.begin(A, ChunkIndex(0), 0, ms(0)), "asked twice");
        assert!(uploads.begin(A, ChunkIndex(1), 0, ms(0)));
        assert!(
            !uploads.begin(B, ChunkIndex(0), 0, ms(0)),
            "two slots at first"
        );
        uploads.ended(A, ChunkIndex(1), true, ms(50));
        assert_eq!((uploads.slots(), uploads.free_slots(0, ms(50))), (3, 2));
        uploads.ended(A, ChunkIndex(0), true, ms(50));
        assert_eq!(uploads.slots(), 3, "no more than allowed");
        assert!(uploads.begin(B, ChunkIndex(2), 0, ms(50)));
        uploads.ended(B, ChunkIndex(2), false, ms(60));
        assert_eq!(uploads.slots(), 3, "a refusal says nothing of the link");
        assert!(uploads.begin(B, ChunkIndex(2), 0, ms(60)));
        uploads.ended(B, ChunkIndex(2), true, ms(2_100));
        assert_eq!(
            uploads.slots(),
            1,
            "longer than an eighth of what a chunk may take"
        );
        uploads.ended(B, ChunkIndex(2), true, ms(2_100));
        assert_eq!(uploads.slots(), 1, "ended twice");
    }

    #[test]
    fn a_fast_link_gets_twice_the_slots() {
        let mut uploads = uploads(3);
        for index in (0..20).map(ChunkIndex) {
            assert!(uploads.begin(A, index, 0, ms(0)));
            uploads.ended(A, index, true, ms(1));
        }
        assert_eq!(uploads.slots(), 6);
        for index in (0..20).map(ChunkIndex) {
            assert!(uploads.begin(A, index, 0, ms(0)));
            uploads.ended(A, index, true, ms(20));
        }
        assert_eq!(uploads.slots(), 3);
    }

    /// Two that came first and took nothing held both first slots of a fresh seed for 4 s.
    #[test]
    fn who_takes_nothing_of_the_first_chunks_does_not_hold_a_slot() {
        let mut uploads = uploads(2);
        for index in (0..2).map(ChunkIndex) {
            assert!(uploads.begin(A, index, 0, ms(0)));
        }
        assert_eq!(uploads.free_slots(0, ms(100)), 0);
        uploads.stalled(A, ChunkIndex(1));
        uploads.stalled(B, ChunkIndex(7));
        assert!(uploads.is_stuck(A, ms(100)));
        let overdue = |uploads: &mut Uploads, now| -> Vec<ChunkIndex> {
            let overdue = uploads.newly_overdue(now).into_iter();
            overdue.map(|upload| upload.index).collect()
        };
        assert_eq!(overdue(&mut uploads, ms(100)), [ChunkIndex(1)]);
        assert_eq!(uploads.free_slots(0, ms(100)), 1);
        assert!(uploads.begin(B, ChunkIndex(2), 0, ms(100)));
        uploads.ended(B, ChunkIndex(2), true, ms(150));
        // From now on there is a measure.
        assert!(uploads.begin(B, ChunkIndex(3), 0, ms(150)));
        uploads.stalled(B, ChunkIndex(3));
        assert!(!uploads.is_stuck(B, ms(160)));
    }

    #[test]
    fn an_overdue_upload_frees_its_slot_once() {
        let mut uploads = uploads(2);
        for index in 0..2 {
            assert!(uploads.begin(A, ChunkIndex(index), 0, ms(0)));
        }
        let overdue = uploads.next_overdue(ms(0)).unwrap();
        assert_eq!(overdue, ms(0) + limits::UPLOAD_PATIENCE_FIRST);
        assert!(!uploads.is_stuck(A, ms(10)) && uploads.is_stuck(A, overdue));
        let found = uploads.newly_overdue(overdue);
        let indices: Vec<_> = found.iter().map(|upload| upload.index).collect();
        assert_eq!(indices, [ChunkIndex(0), ChunkIndex(1)]);
        assert_eq!(uploads.newly_overdue(overdue), [], "each once");
        assert_eq!(uploads.next_overdue(overdue), None);
        for index in 2..4 {
            assert!(uploads.begin(B, ChunkIndex(index), 0, overdue));
        }
        let later = overdue + Duration::from_secs(60);
        assert!(uploads.is_stuck(B, later));
        assert_eq!(
            uploads.free_slots(0, later),
            0,
            "no more than twice the slots"
        );
        assert_eq!(uploads.forget(A), [ChunkIndex(0), ChunkIndex(1)]);
        assert_eq!((uploads.to(A), uploads.to(B)), (0, 2));
    }

    /// Receivers that fell silent hold no slots, however many they are; those that speak again do.
    #[test]
    fn the_silent_take_no_slot() {
        for silent in [1, 2, 9, 40] {
            let mut uploads = uploads(2);
            for number in 0..silent {
                let conn = ConnId(10 + number);
                assert!(uploads.begin(conn, ChunkIndex(0), 0, ms(0)), "{number}");
                uploads.set_silent(conn, true);
            }
            assert_eq!(uploads.free_slots(0, ms(1)), 2);
            assert!(uploads.begin(A, ChunkIndex(0), 0, ms(1)));
            uploads.set_silent(ConnId(10), false);
            assert_eq!(uploads.free_slots(0, ms(1)), 0);
        }
    }
}
