//! The queue of what happens next, in a total order.

use crate::world::Event;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

struct Entry {
    at_ns: u64,
    /// Events of one instant happen in the order in which they were planned.
    sequence: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // Turned round: the heap hands out the greatest first.
        (other.at_ns, other.sequence).cmp(&(self.at_ns, self.sequence))
    }
}

/// Events by time.
#[derive(Default)]
pub(crate) struct Events {
    heap: BinaryHeap<Entry>,
    sequence: u64,
}

impl Events {
    pub(crate) fn push(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.heap.push(Entry {
            at_ns,
            sequence: self.sequence,
            event,
        });
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|entry| (entry.at_ns, entry.event))
    }

    /// How many events were planned so far.
    pub(crate) fn planned(&self) -> u64 {
        self.sequence
    }
}
