//! The queue of what happens next, in a total order: a calendar.
//!
//! Time only moves on and most of what is planned is due within milliseconds, so the near future is
//! a wheel of slots: planning is a push to the slot's end, and a slot is sorted once, when its time
//! has come. What is due later waits in a heap until the wheel reaches that far.

use crate::world::Event;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A slot spans 2^12 ns, about 4 us: at ten thousand nodes a hundred events or so.
const SLOT_BITS: u32 = 12;

/// Slots of the wheel: 8 ms. Latency, the bursts of a fast link and most timers fit within, and
/// with ten thousand nodes the wheel fits into the cache.
const SLOTS: u64 = 1 << 11;

#[derive(Clone, Copy)]
struct Entry {
    /// From the beginning of its slot.
    after_ns: u32,
    event: Event,
}

// Four to a cache line: a large run is bound by its memory traffic.
const _: () = assert!(size_of::<Entry>() == 16);

/// What is due beyond the wheel. Ordered by time and then by when it was planned.
#[derive(Clone, Copy)]
struct Far {
    at_ns: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Far {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Far {}

impl PartialOrd for Far {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Far {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.sequence).cmp(&(other.at_ns, other.sequence))
    }
}

/// Events by time; those of one instant happen in the order in which they were planned.
pub(crate) struct Events {
    /// The slot whose time it is: sorted, and taken from the front.
    current: Vec<Entry>,
    taken: usize,
    /// Its number, counted from the beginning of time.
    cursor: u64,
    wheel: Vec<Vec<Entry>>,
    /// A bit for each slot of the wheel that is not empty.
    occupied: Vec<u64>,
    far: BinaryHeap<Reverse<Far>>,
    planned: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            current: Vec::new(),
            taken: 0,
            cursor: 0,
            wheel: (0..SLOTS).map(|_| Vec::new()).collect(),
            occupied: vec![0; SLOTS as usize / 64],
            far: BinaryHeap::new(),
            planned: 0,
        }
    }
}

impl Events {
    /// Plans an event. One that is due in the past happens next.
    pub(crate) fn push(&mut self, at_ns: u64, event: Event) {
        self.planned += 1;
        let slot = at_ns >> SLOT_BITS;
        if slot <= self.cursor {
            let after_ns = at_ns.saturating_sub(self.cursor << SLOT_BITS) as u32;
            let rest = &self.current[self.taken..];
            let place = self.taken + rest.partition_point(|entry| entry.after_ns <= after_ns);
            self.current.insert(place, Entry { after_ns, event });
        } else if slot < self.cursor + SLOTS {
            self.put(at_ns, event);
        } else {
            let sequence = self.planned;
            self.far.push(Reverse(Far {
                at_ns,
                sequence,
                event,
            }));
        }
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Event)> {
        if self.taken == self.current.len() && !self.turn() {
            return None;
        }
        let entry = self.current[self.taken];
        self.taken += 1;
        let at_ns = (self.cursor << SLOT_BITS) + u64::from(entry.after_ns);
        Some((at_ns, entry.event))
    }

    /// What happens next, as far as it is in order already.
    pub(crate) fn upcoming(&self) -> impl Iterator<Item = Event> + '_ {
        self.current[self.taken..].iter().map(|entry| entry.event)
    }

    /// How many events were planned so far.
    pub(crate) fn planned(&self) -> u64 {
        self.planned
    }

    fn put(&mut self, at_ns: u64, event: Event) {
        let place = ((at_ns >> SLOT_BITS) % SLOTS) as usize;
        let after_ns = (at_ns % (1 << SLOT_BITS)) as u32;
        self.wheel[place].push(Entry { after_ns, event });
        self.occupied[place / 64] |= 1 << (place % 64);
    }

    /// Moves on to the next slot that holds anything. Says whether there was one.
    fn turn(&mut self) -> bool {
        self.current.clear();
        self.taken = 0;
        let far = self.far.peek().map(|Reverse(far)| far.at_ns >> SLOT_BITS);
        let Some(next) = self.next_slot().into_iter().chain(far).min() else {
            return false;
        };
        self.cursor = next;
        // Before anything can be planned for these slots directly: so equal times keep the order
        // in which they were planned.
        while let Some(Reverse(far)) = self.far.peek().copied() {
            if far.at_ns >> SLOT_BITS >= self.cursor + SLOTS {
                break;
            }
            self.far.pop();
            self.put(far.at_ns, far.event);
        }
        let place = (next % SLOTS) as usize;
        std::mem::swap(&mut self.current, &mut self.wheel[place]);
        self.occupied[place / 64] &= !(1 << (place % 64));
        // Stable: see above.
        self.current.sort_by_key(|entry| entry.after_ns);
        true
    }

    /// The first occupied slot of the wheel after the cursor.
    fn next_slot(&self) -> Option<u64> {
        let start = (self.cursor + 1) % SLOTS;
        let (first, bit) = ((start / 64) as usize, start % 64);
        let words = self.occupied.len();
        for step in 0..=words {
            let word = (first + step) % words;
            let mask = match step {
                0 => u64::MAX << bit,
                // All the way round: what lies before the start in its word.
                _ if step == words => !(u64::MAX << bit),
                _ => u64::MAX,
            };
            let bits = self.occupied[word] & mask;
            if bits != 0 {
                let place = word as u64 * 64 + u64::from(bits.trailing_zeros());
                return Some(self.cursor + 1 + (place + SLOTS - start) % SLOTS);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rootswarm_swarm::Rng;

    /// Against the definition: by time, then by the order of planning; what is planned while
    /// others are taken out included.
    #[test]
    fn takes_out_what_a_sorted_list_would() {
        let mut rng = Rng::new(1);
        let mut events = Events::default();
        let mut oracle: Vec<(u64, u32)> = Vec::new();
        let (mut now, mut number) = (0, 0u32);
        for step in 0..12_000 {
            if step % 3 != 2 && number < 6_000 {
                for _ in 0..1 + rng.below(2) {
                    let reach = [1, 3, 4_000, 300_000, 8_000_000, 9_000_000, 5_000_000_000];
                    let reach = reach[rng.below(reach.len())];
                    let at = now + rng.between(0, reach);
                    events.push(at, Event::Turn(number));
                    oracle.push((at, number));
                    number += 1;
                }
            } else if let Some((at, event)) = events.pop() {
                let first = oracle.iter().enumerate().min_by_key(|(_, entry)| **entry);
                let (place, expected) = first.map(|(place, entry)| (place, *entry)).unwrap();
                oracle.swap_remove(place);
                let Event::Turn(number) = event else { panic!() };
                assert_eq!((at, number), expected);
                now = at;
            }
        }
        oracle.sort_unstable();
        for expected in oracle {
            let Some((at, Event::Turn(number))) = events.pop() else {
                panic!("missing: {expected:?}");
            };
            assert_eq!((at, number), expected);
        }
        assert!(events.pop().is_none());
        assert_eq!(events.planned(), u64::from(number));
    }
}
