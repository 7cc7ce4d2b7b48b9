//! The links, as arithmetic: when what is sent has left, and when what arrives has been received.
//!
//! A link serves in the order of arrival and never stands idle while it has work, so it needs no
//! event of its own: the time until which it is busy says when the next piece is through.
//!
//! An uplink sends control packets before its uploads, as a QUIC endpoint does that gives its
//! control streams priority; but what has been handed to the card is not overtaken. Its uploads
//! take turns in bursts. A burst does not have to be here as a whole before it moves on: a downlink
//! as fast as the uplink before it receives it as fast as it is sent, and only where several
//! uplinks meet does a queue build up, in which control packets wait too.
//!
//! What is on its way to a link may be announced to it: the link then takes it by itself, at its time,
//! when it is next asked for anything. So most bursts need no event.

use std::collections::VecDeque;

/// What has been handed to the card at a time, and so what a control packet may have to wait for:
/// a quarter of the largest GSO batch.
const HANDED_OVER_BYTES: u64 = 16 << 10;

/// Names an upload of the world; the serial tells apart those that used one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UploadKey {
    pub(crate) slot: u32,
    pub(crate) serial: u32,
}

/// How fast a link is for payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    ns_per_byte: f64,
}

impl Rate {
    pub(crate) fn new(bits_per_s: f64, efficiency: f64) -> Self {
        Self {
            ns_per_byte: 8e9 / (bits_per_s * efficiency),
        }
    }

    pub(crate) fn time_ns(self, bytes: u64) -> u64 {
        round_up(bytes as f64 * self.ns_per_byte)
    }

    fn bytes(self, time_ns: u64) -> u64 {
        (time_ns as f64 / self.ns_per_byte) as u64
    }
}

/// What a host sends, in its order.
#[derive(Debug)]
pub(crate) struct Uplink {
    rate: Rate,
    handed_over_ns: u64,
    /// All that was accepted has left by then.
    free_ns: u64,
    /// All control packets have left by then.
    control_free_ns: u64,
    /// An event is planned that starts the next burst.
    pub(crate) is_pumping: bool,
    /// Uploads that have something to send and window to send it, in turn, each with the time from
    /// which it waits: when its last burst began to leave, or when it came.
    ring: VecDeque<(u64, UploadKey)>,
}

impl Uplink {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            handed_over_ns: rate.time_ns(HANDED_OVER_BYTES),
            free_ns: 0,
            control_free_ns: 0,
            is_pumping: false,
            ring: VecDeque::new(),
        }
    }

    /// The same link at another rate, before it was used.
    pub(crate) fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
        self.handed_over_ns = rate.time_ns(HANDED_OVER_BYTES);
    }

    /// Sends a control packet. Returns when it has left.
    pub(crate) fn control(&mut self, bytes: u64, now_ns: u64) -> u64 {
        let mut start_ns = now_ns.max(self.control_free_ns);
        if self.free_ns > start_ns {
            // A burst is going out: after the part of it that the card has.
            start_ns += (self.free_ns - start_ns) % self.handed_over_ns;
        }
        let work_ns = self.rate.time_ns(bytes);
        self.control_free_ns = start_ns + work_ns;
        self.free_ns = self.free_ns.max(start_ns) + work_ns;
        self.control_free_ns
    }

    /// Sends a burst as soon as all else has left.
    pub(crate) fn burst(&mut self, bytes: u64, now_ns: u64) -> Passage {
        let first_ns = now_ns.max(self.free_ns);
        self.free_ns = first_ns + self.rate.time_ns(bytes);
        Passage {
            first_ns,
            last_ns: self.free_ns,
        }
    }

    /// An upload has something to send from now on. Bursts may have been taken off the ring before
    /// their time; it stands behind those alone that have begun to leave.
    pub(crate) fn join(&mut self, upload: UploadKey, now_ns: u64) {
        let place = self
            .ring
            .partition_point(|(since_ns, _)| *since_ns <= now_ns);
        self.ring.insert(place, (now_ns, upload));
    }

    /// An upload has more to send after the burst that began to leave at this time, the last one so far.
    pub(crate) fn rejoin(&mut self, upload: UploadKey, since_ns: u64) {
        self.ring.push_back((since_ns, upload));
    }

    /// The upload whose turn it is.
    pub(crate) fn next(&mut self) -> Option<UploadKey> {
        self.ring.pop_front().map(|(_, upload)| upload)
    }

    /// Those that wait, in turn.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = UploadKey> + '_ {
        self.ring.iter().map(|(_, upload)| *upload)
    }

    /// The process that sent is gone, and what it queued with it.
    pub(crate) fn silence(&mut self) {
        self.ring.clear();
    }
}

/// A burst that is arriving, or will be.
#[derive(Clone, Copy, Debug)]
struct Inflow {
    first_ns: u64,
    bytes: u32,
    /// From its first byte to its last.
    lasts_ns: u32,
}

impl Inflow {
    fn last_ns(self) -> u64 {
        self.first_ns + u64::from(self.lasts_ns)
    }
}

/// What arrives at a host, or at a rack, in the order of arrival.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Port {
    rate: Rate,
    /// All that has begun to arrive has been received by then.
    free_ns: u64,
    /// In the order of arrival: the first [`begun`](Self::begun) may still be arriving, the others are
    /// announced.
    inflows: Vec<Inflow>,
    begun: u32,
    /// What is arriving adds up to at any time before `valid_until_ns`: the part to come is
    /// `offset - slope * time`. So a control packet asks two numbers, not a list.
    slope: f64,
    offset: f64,
    valid_until_ns: u64,
    /// The longest queue that a burst met.
    pub(crate) queued_bytes_max: u64,
}

/// When the first and the last byte of a burst are through a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
}

impl Port {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            free_ns: 0,
            inflows: Vec::new(),
            begun: 0,
            slope: 0.0,
            offset: 0.0,
            valid_until_ns: u64::MAX,
            queued_bytes_max: 0,
        }
    }

    /// The same link at another rate, before it was used.
    pub(crate) fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
    }

    /// Reads what the next burst or packet will need. What is returned has no meaning.
    pub(crate) fn read_ahead(&self) -> u64 {
        let first = self.inflows.get(self.begun as usize);
        let read = first.map_or(0, |inflow| inflow.first_ns);
        read ^ self.inflows.last().map_or(0, |inflow| inflow.first_ns)
    }

    /// A burst will begin to arrive at this time, and go on doing so for `lasts_ns`.
    pub(crate) fn announce(&mut self, bytes: u64, lasts_ns: u64, first_ns: u64) {
        let inflow = inflow(bytes, lasts_ns, first_ns);
        // Most come last.
        let mut place = self.inflows.len();
        while place > self.begun as usize && self.inflows[place - 1].first_ns > first_ns {
            place -= 1;
        }
        self.inflows.insert(place, inflow);
    }

    /// Takes what was announced and has begun to arrive by now.
    #[inline]
    pub(crate) fn advance(&mut self, now_ns: u64) {
        while let Some(inflow) = self.inflows.get(self.begun as usize).copied()
            && inflow.first_ns <= now_ns
        {
            self.forget_gone(inflow.first_ns);
            self.begun += 1;
            self.take(inflow);
        }
    }

    /// A burst begins to arrive and goes on doing so for `lasts_ns`.
    pub(crate) fn burst(&mut self, bytes: u64, lasts_ns: u64, now_ns: u64) -> Passage {
        self.advance(now_ns);
        self.forget_gone(now_ns);
        let inflow = inflow(bytes, lasts_ns, now_ns);
        self.inflows.insert(self.begun as usize, inflow);
        self.begun += 1;
        self.take(inflow)
    }

    /// Bursts that are here as a whole no longer go on arriving.
    fn forget_gone(&mut self, now_ns: u64) {
        let begun = self.begun as usize;
        if begun == 0 {
            return;
        }
        if self.free_ns <= now_ns {
            // Nothing that arrived before counts any more, at whatever pace it goes on arriving.
            self.inflows.drain(..begun);
            self.begun = 0;
            self.add_up();
        } else if now_ns >= self.valid_until_ns {
            let mut place = 0;
            self.inflows.retain(|inflow| {
                place += 1;
                place > begun || inflow.last_ns() > now_ns
            });
            self.begun -= (place - self.inflows.len()) as u32;
            self.add_up();
        }
    }

    /// The burst before `begun`, which has begun to arrive and is not yet counted.
    fn take(&mut self, inflow: Inflow) -> Passage {
        let now_ns = inflow.first_ns;
        let wait_ns = self.backlog_ns(now_ns);
        let last_ns = inflow.last_ns();
        self.free_ns = self.free_ns.max(now_ns) + self.rate.time_ns(u64::from(inflow.bytes));
        self.add(inflow);
        let queued = self.rate.bytes(self.free_ns.saturating_sub(last_ns));
        self.queued_bytes_max = self.queued_bytes_max.max(queued);
        Passage {
            first_ns: now_ns + wait_ns,
            last_ns: self.free_ns.max(last_ns),
        }
    }

    /// A control packet arrives at `at_ns`, now or in a while. Returns when it is through. What begins to
    /// arrive meanwhile is not in its way.
    pub(crate) fn control(&mut self, bytes: u64, at_ns: u64) -> u64 {
        let wait_ns = self.backlog_ns(at_ns);
        // A link that is idle then has the time.
        if self.free_ns > at_ns {
            self.free_ns += self.rate.time_ns(bytes);
        }
        at_ns + wait_ns
    }

    /// The work that has arrived at `at_ns` and is not done: what the next packet waits for. Of bursts
    /// that are still arriving only the part that is here counts.
    fn backlog_ns(&self, at_ns: u64) -> u64 {
        let committed_ns = self.free_ns.saturating_sub(at_ns);
        if committed_ns == 0 {
            return 0;
        }
        let to_come_ns = if at_ns < self.valid_until_ns {
            self.offset - self.slope * at_ns as f64
        } else {
            let to_come = |inflow: &Inflow| inflow.last_ns().saturating_sub(at_ns) as f64;
            let each = self.inflows[..self.begun as usize].iter();
            each.map(|inflow| self.pace(*inflow) * to_come(inflow))
                .sum()
        };
        committed_ns.saturating_sub(round_up(to_come_ns))
    }

    fn add_up(&mut self) {
        (self.slope, self.offset, self.valid_until_ns) = (0.0, 0.0, u64::MAX);
        for place in 0..self.begun as usize {
            self.add(self.inflows[place]);
        }
    }

    fn add(&mut self, inflow: Inflow) {
        if inflow.lasts_ns == 0 {
            return;
        }
        let (pace, last_ns) = (self.pace(inflow), inflow.last_ns());
        self.slope += pace;
        self.offset += pace * last_ns as f64;
        self.valid_until_ns = self.valid_until_ns.min(last_ns);
    }

    /// The link's time that arrives in a nanosecond.
    fn pace(&self, inflow: Inflow) -> f64 {
        self.rate.time_ns(u64::from(inflow.bytes)) as f64 / f64::from(inflow.lasts_ns.max(1))
    }

    /// The host's memory of what waits in the network's queues is gone.
    pub(crate) fn clear(&mut self) {
        self.inflows.clear();
        self.begun = 0;
        self.add_up();
        self.free_ns = 0;
    }
}

/// The next whole number; 0 for what is below. `f64::ceil` is a call on processors of any age.
fn round_up(value: f64) -> u64 {
    let whole = value as u64;
    whole + u64::from((whole as f64) < value)
}

/// With lengths that fit into 16 bytes: 4 s are more than a burst takes on the slowest link.
fn inflow(bytes: u64, lasts_ns: u64, first_ns: u64) -> Inflow {
    Inflow {
        first_ns,
        bytes: bytes as u32,
        lasts_ns: u32::try_from(lasts_ns).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rootswarm_swarm::Rng;

    /// 8 Mbit/s: a byte is a microsecond.
    fn rate() -> Rate {
        Rate::new(8e6, 1.0)
    }

    const KB_NS: u64 = 1_000_000;

    #[test]
    fn control_goes_before_bursts_but_not_before_what_the_card_has() {
        let mut up = Uplink::new(rate());
        let passage = up.burst(100_000, 0);
        assert_eq!((passage.first_ns, passage.last_ns), (0, 100 * KB_NS));
        // 90 kB are left: 5 times what the card has at a time and 8,080 bytes.
        let first = up.control(50, 10 * KB_NS);
        assert_eq!(first, (10_000 + 90_000 % 16_384 + 50) * 1_000);
        assert_eq!(up.control(50, 10 * KB_NS), first + 50_000);
        // They delay the burst behind.
        assert_eq!(up.burst(1_000, 50 * KB_NS).first_ns, 100 * KB_NS + 100_000);
    }

    #[test]
    fn one_sender_of_the_same_rate_meets_no_queue() {
        let mut down = Port::new(rate());
        let passage = down.burst(10_000, 10 * KB_NS, 5);
        assert_eq!((passage.first_ns, passage.last_ns), (5, 10 * KB_NS + 5));
        assert_eq!(down.control(60, 3 * KB_NS), 3 * KB_NS);
        assert_eq!(down.queued_bytes_max, 0);
    }

    #[test]
    fn two_senders_queue_and_control_waits_for_what_is_here() {
        let mut down = Port::new(rate());
        down.burst(10_000, 10 * KB_NS, 0);
        let second = down.burst(10_000, 10 * KB_NS, 0);
        assert_eq!((second.first_ns, second.last_ns), (0, 20 * KB_NS));
        // After 4 ms 8 kB have come and 4 kB have been received.
        assert_eq!(down.control(60, 4 * KB_NS), 8 * KB_NS);
        assert_eq!(down.queued_bytes_max, 10_000);
        // All is here after 10 ms; the rest takes 10 more and the packet's own time.
        let third = down.control(60, 15 * KB_NS);
        assert_eq!(third, 20 * KB_NS + 60_000);
    }

    #[test]
    fn a_slow_sender_does_not_hold_the_link() {
        let mut down = Port::new(rate());
        let slow = down.burst(10_000, 100 * KB_NS, 0);
        assert_eq!(slow.last_ns, 100 * KB_NS);
        let fast = down.burst(10_000, 10 * KB_NS, 0);
        assert_eq!(fast.last_ns, 20 * KB_NS);
    }

    /// Against the plain way: every burst taken at its own time. What is announced, at whatever moment
    /// before, makes no difference to any packet.
    #[test]
    fn announced_bursts_pass_as_if_taken_one_by_one() {
        let mut rng = Rng::new(1);
        for _ in 0..300 {
            let (mut down, mut plain) = (Port::new(rate()), Port::new(rate()));
            let mut bursts: Vec<(u64, u64, u64)> = (0..40)
                .map(|_| {
                    let bytes = rng.between(1, 16_384);
                    let lasts_ns = bytes * rng.between(0, 4_000);
                    (rng.between(1, 900 * KB_NS), bytes, lasts_ns)
                })
                .collect();
            let announced = bursts.clone();
            bursts.sort_by_key(|burst| burst.0);
            let mut to_announce: Vec<_> = announced
                .iter()
                .map(|burst| (burst.0.saturating_sub(rng.between(0, 30 * KB_NS)), *burst))
                .collect();
            to_announce.sort_by_key(|(at_ns, _)| *at_ns);
            let (mut to_announce, mut to_take) = (&to_announce[..], &bursts[..]);
            let mut now_ns = 0;
            while now_ns < 1_200 * KB_NS {
                now_ns += rng.between(0, 20 * KB_NS);
                while let Some(((at_ns, (first_ns, bytes, lasts_ns)), rest)) =
                    to_announce.split_first()
                    && *at_ns <= now_ns
                {
                    down.announce(*bytes, *lasts_ns, *first_ns);
                    to_announce = rest;
                }
                while let Some(((first_ns, bytes, lasts_ns), rest)) = to_take.split_first()
                    && *first_ns <= now_ns
                {
                    plain.burst(*bytes, *lasts_ns, *first_ns);
                    to_take = rest;
                }
                let at_ns = now_ns + rng.between(0, KB_NS);
                down.advance(now_ns);
                assert_eq!(down.control(60, at_ns), plain.control(60, at_ns));
                if rng.below(3) == 0 {
                    let found = down.burst(1_000, KB_NS, now_ns);
                    let expected = plain.burst(1_000, KB_NS, now_ns);
                    let ends = |passage: Passage| (passage.first_ns, passage.last_ns);
                    assert_eq!(ends(found), ends(expected));
                }
            }
            assert!(to_announce.is_empty() && to_take.is_empty());
            assert_eq!(down.queued_bytes_max, plain.queued_bytes_max);
        }
    }

    /// Uploads come at these times, each with so many bursts: what leaves when.
    fn serve(comes: &[(u64, u32)], in_rounds: bool) -> Vec<(u32, u64)> {
        let mut up = Uplink::new(rate());
        let mut left: Vec<u32> = comes.iter().map(|(_, bursts)| *bursts).collect();
        let mut served = Vec::new();
        let (mut free_ns, mut next) = (0, 0);
        loop {
            // Before the next one comes, whatever is due.
            let until_ns = comes.get(next).map_or(u64::MAX, |(at_ns, _)| *at_ns);
            while free_ns < until_ns && up.waiting().next().is_some() {
                let count = if in_rounds { up.waiting().count() } else { 1 };
                for _ in 0..count {
                    let key = up.next().unwrap();
                    let passage = up.burst(10_000, free_ns);
                    served.push((key.slot, passage.first_ns));
                    left[key.slot as usize] -= 1;
                    if left[key.slot as usize] > 0 {
                        up.rejoin(key, passage.first_ns);
                    }
                }
                free_ns = up.free_ns;
            }
            let Some((at_ns, _)) = comes.get(next) else {
                return served;
            };
            let (slot, serial) = (next as u32, 0);
            up.join(UploadKey { slot, serial }, *at_ns);
            free_ns = free_ns.max(*at_ns);
            next += 1;
        }
    }

    /// Against the plain way: one burst, and then whose turn it is. A round at a time, with newcomers put
    /// where they would stand, it is the same bursts at the same times.
    #[test]
    fn rounds_serve_as_if_burst_by_burst() {
        let mut rng = Rng::new(1);
        for _ in 0..300 {
            let mut at_ns = 0;
            let comes: Vec<(u64, u32)> = (0..20)
                .map(|_| {
                    at_ns += rng.between(1, 60 * KB_NS);
                    (at_ns, rng.between(1, 12) as u32)
                })
                .collect();
            assert_eq!(serve(&comes, true), serve(&comes, false));
        }
    }
}
