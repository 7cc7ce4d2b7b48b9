//! Upload slots and the short queue before them. What does not fit is declined at once.

use crate::id::ConnId;
use rootswarm_image::ChunkIndex;
use std::collections::VecDeque;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// A slot was free: start the upload.
    Start,
    /// It waits for a slot.
    Wait,
    /// Both are full, or this very upload is under way: say `Busy`.
    Decline,
}

/// The uploads of one node.
#[derive(Debug)]
pub(crate) struct Uploads {
    slots: usize,
    queue_max: usize,
    active: Vec<(ConnId, ChunkIndex)>,
    waiting: VecDeque<(ConnId, ChunkIndex)>,
}

impl Uploads {
    pub(crate) fn new(slots: usize, queue_max: usize) -> Self {
        Self {
            slots: slots.max(1),
            queue_max,
            active: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    pub(crate) fn free_slots(&self) -> usize {
        self.slots.saturating_sub(self.active.len())
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn to(&self, conn: ConnId) -> usize {
        self.active.iter().filter(|(to, _)| *to == conn).count()
    }

    pub(crate) fn is_active(&self, conn: ConnId, index: ChunkIndex) -> bool {
        self.active.contains(&(conn, index))
    }

    pub(crate) fn request(&mut self, conn: ConnId, index: ChunkIndex) -> Admission {
        let upload = (conn, index);
        if self.active.contains(&upload) || self.waiting.contains(&upload) {
            return Admission::Decline;
        }
        if self.free_slots() > 0 {
            self.active.push(upload);
            Admission::Start
        } else if self.waiting.len() < self.queue_max {
            self.waiting.push_back(upload);
            Admission::Wait
        } else {
            Admission::Decline
        }
    }

    /// Takes a request out of the queue; one that has started goes on.
    pub(crate) fn cancel(&mut self, conn: ConnId, index: ChunkIndex) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| *waiting != (conn, index));
        before != self.waiting.len()
    }

    /// An upload is over.
    pub(crate) fn ended(&mut self, conn: ConnId, index: ChunkIndex) {
        if let Some(position) = self
            .active
            .iter()
            .position(|active| *active == (conn, index))
        {
            self.active.swap_remove(position);
        }
    }

    /// The connection is gone, and with it all that was for it. Returns what was under way.
    pub(crate) fn forget(&mut self, conn: ConnId) -> Vec<ChunkIndex> {
        self.waiting.retain(|(to, _)| *to != conn);
        let (gone, keep): (Vec<_>, Vec<_>) = self.active.drain(..).partition(|(to, _)| *to == conn);
        self.active = keep;
        gone.into_iter().map(|(_, index)| index).collect()
    }

    /// The next waiting request, if a slot is free for it.
    pub(crate) fn start_next(&mut self) -> Option<(ConnId, ChunkIndex)> {
        if self.free_slots() == 0 {
            return None;
        }
        let upload = self.waiting.pop_front()?;
        self.active.push(upload);
        Some(upload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_then_queue_then_busy() {
        let mut uploads = Uploads::new(2, 1);
        let (a, b) = (ConnId(1), ConnId(2));
        assert_eq!(uploads.request(a, ChunkIndex(0)), Admission::Start);
        assert_eq!(
            uploads.request(a, ChunkIndex(0)),
            Admission::Decline,
            "asked twice"
        );
        assert_eq!(uploads.request(a, ChunkIndex(1)), Admission::Start);
        assert_eq!(uploads.request(b, ChunkIndex(0)), Admission::Wait);
        assert_eq!(uploads.request(b, ChunkIndex(1)), Admission::Decline);
        assert_eq!(uploads.start_next(), None, "no slot yet");
        uploads.ended(a, ChunkIndex(1));
        assert_eq!(uploads.start_next(), Some((b, ChunkIndex(0))));
        assert!(!uploads.cancel(b, ChunkIndex(0)), "started uploads go on");
        assert_eq!(uploads.forget(a), [ChunkIndex(0)]);
        assert_eq!((uploads.free_slots(), uploads.to(b)), (1, 1));
    }
}
