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
        (bytes as f64 * self.ns_per_byte).ceil() as u64
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
    /// Uploads that have something to send and window to send it, in turn.
    pub(crate) ring: VecDeque<UploadKey>,
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

    /// The process that sent is gone, and what it queued with it.
    pub(crate) fn silence(&mut self) {
        self.ring.clear();
    }
}

/// A burst that is arriving.
#[derive(Clone, Copy, Debug)]
struct Inflow {
    last_ns: u64,
    /// The link's time that arrives in a nanosecond.
    slope: f64,
}

/// What arrives at a host, or at a rack, in the order of arrival.
#[derive(Debug)]
pub(crate) struct Port {
    rate: Rate,
    /// All that has begun to arrive has been received by then.
    free_ns: u64,
    arriving: Vec<Inflow>,
    /// What `arriving` adds up to at any time before `valid_until_ns`: the part to come is
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
            arriving: Vec::new(),
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

    /// A burst begins to arrive and goes on doing so for `inflow_ns`.
    pub(crate) fn burst(&mut self, bytes: u64, inflow_ns: u64, now_ns: u64) -> Passage {
        let wait_ns = self.backlog_ns(now_ns);
        let work_ns = self.rate.time_ns(bytes);
        let last_ns = now_ns + inflow_ns;
        if self.free_ns <= now_ns {
            // Nothing that arrived before counts any more, at whatever pace it goes on arriving.
            self.arriving.clear();
            self.add_up();
        } else if now_ns >= self.valid_until_ns {
            self.arriving.retain(|inflow| inflow.last_ns > now_ns);
            self.add_up();
        }
        self.free_ns = self.free_ns.max(now_ns) + work_ns;
        if last_ns > now_ns {
            let inflow = Inflow {
                last_ns,
                slope: work_ns as f64 / inflow_ns as f64,
            };
            self.arriving.push(inflow);
            self.add(inflow);
        }
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
            let to_come = |inflow: &Inflow| inflow.last_ns.saturating_sub(at_ns) as f64;
            let each = self.arriving.iter();
            each.map(|inflow| inflow.slope * to_come(inflow)).sum()
        };
        committed_ns.saturating_sub(to_come_ns.ceil() as u64)
    }

    fn add_up(&mut self) {
        (self.slope, self.offset, self.valid_until_ns) = (0.0, 0.0, u64::MAX);
        for place in 0..self.arriving.len() {
            self.add(self.arriving[place]);
        }
    }

    fn add(&mut self, inflow: Inflow) {
        self.slope += inflow.slope;
        self.offset += inflow.slope * inflow.last_ns as f64;
        self.valid_until_ns = self.valid_until_ns.min(inflow.last_ns);
    }

    /// The host's memory of what waits in the network's queues is gone.
    pub(crate) fn clear(&mut self) {
        self.arriving.clear();
        self.add_up();
        self.free_ns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
