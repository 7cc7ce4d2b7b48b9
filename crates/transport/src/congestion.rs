//! How much a connection keeps in flight: enough to fill the link, not the queues before it.
//!
//! A controller that goes on until packets are lost (Cubic, NewReno) fills the queues of both links
//! on the way: 50 ms each on a switch port. Every request and every announcement then waits behind
//! them, every chunk that was lost in part is sent in part again, and the swarm's scheduler works
//! with news of 100 ms ago. [`DelayBound`] watches the round trip instead and holds the time that
//! packets stand in queues near [`QUEUE_TARGET`], as LEDBAT (RFC 6817) does, but as an equal among
//! equals: all traffic of a swarm is of this kind. Loss is obeyed too, for switches whose buffers
//! are shallower than the target.
//!
//! Pacing and loss detection are quinn's.

#[cfg(test)]
mod link;
#[cfg(test)]
mod table;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

/// The time that packets may stand in the queues of a path, there and back together. A burst of 10
/// packets is 2.4 ms at 50 Mbit/s and a handful of uploads take turns; a chunk of 256 KiB is 42 ms,
/// beside which a request that waits this long is quick. See TUNING.md for 10 to 80 ms.
const QUEUE_TARGET: Duration = Duration::from_millis(15);

/// What one packet carries with an MTU of 1500 and IPv6.
const ETHERNET_PAYLOAD_BYTES: u64 = 1_452;

/// Packets in flight before anything is known: 46 kB, what a gigabit link moves in 0.4 ms.
const INITIAL_PACKETS: u64 = 32;

/// What a window grows by in a round trip, at most, once the queue has been seen: four packets of
/// Ethernet's size, and no more with jumbo packets. With four of those, three uploads overflowed a
/// switch port of 50 Mbit/s again and again, and lost bursts of large packets are what quinn takes
/// for an MTU black hole: it went back to 1,200 bytes (`cargo xtask faults "links: MTU 9000"`).
const GROWTH_BYTES: u64 = 4 * ETHERNET_PAYLOAD_BYTES;

/// What a queue that is too long leaves of a window. The round trip is that of data one way and of
/// acknowledgements back, so that a link which is busy only in the other direction looks crowded
/// too, and a queue may be all somebody else's: with two packets for a floor, a node's downlink
/// idled for 10 % of the time (16 nodes of 50 Mbit/s). 24 packets of Ethernet's size: eight uploads
/// of them are 45 ms at 50 Mbit/s, less than a switch port holds. Jumbo packets do not make it more,
/// for the reason given at [`GROWTH_BYTES`].
const KEPT_BYTES: u64 = 24 * ETHERNET_PAYLOAD_BYTES;

/// After a loss the queue's length is known, if not in milliseconds, and finding it again costs packets: for
/// this long a window grows by [`CAREFUL_GROWTH`] in a round trip at most. Before, a queue that is shorter than the
/// target lost half of what was sent.
const CAREFUL: Duration = Duration::from_secs(1);

/// Of the window, or a tenth of a packet.
const CAREFUL_GROWTH: f64 = 1.0 / 32.0;

/// A round is no shorter than this after a loss. Where round trips are 50 µs, growth in each would be hundreds
/// of losses a second.
const CAREFUL_ROUND: Duration = Duration::from_millis(5);

/// What losses leave at least.
const FLOOR_PACKETS: u64 = 2;

/// A loss with no more of a queue than this standing is not a queue's, but a cable's or an interface's. Of a
/// gigabit link it is 62 kB, and few ports hold less. Where longer queues have stood it is a third of those.
/// With losses obeyed to the floor, one batch of packets in a hundred lost left a node a quarter of 100 Mbit/s,
/// and one in twenty a thirtieth, where TCP has 0.9 (TUNING.md).
const NO_QUEUE: Duration = Duration::from_micros(500);

/// …unless so much is lost: a queue that is shorter than that loses a large part of each burst.
const NOISE_MOST: f64 = 0.1;

/// Over how many packets the share of those that are lost is taken.
const NOISE_PACKETS: u64 = 100;

/// What a loss leaves of a window: Cubic's factor (RFC 9438).
const LOSS_FACTOR: f64 = 0.7;

/// The most that a window loses in one round trip to a queue that is too long.
const SHRINK_MOST: f64 = 0.25;

/// Makes a [`DelayBound`] for each connection.
#[derive(Debug, Default)]
pub(crate) struct DelayBoundConfig;

impl ControllerFactory for DelayBoundConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(DelayBound::new(now, current_mtu))
    }
}

/// The window of one connection.
#[derive(Clone, Debug)]
pub(crate) struct DelayBound {
    packet_bytes: u64,
    window_bytes: u64,
    /// Growing by all that is acknowledged, until the queue is seen for the first time.
    is_starting: bool,
    samples: Samples,
    /// The shortest round trip ever: the path without its queues.
    base: Option<Duration>,
    /// The shortest round trip since the round began: what a scheduler added is not in it.
    shortest: Option<Duration>,
    round_ends: Instant,
    /// The window was used up at some time in this round.
    was_full: bool,
    /// Losses of what was sent before are one event.
    recovery_since: Instant,
    has_lost: bool,
    /// Of all that was sent, in bytes, weighted by how long ago it was.
    lost_share: f64,
    /// What was queued in the last round that ended, at least.
    queued: Duration,
    /// The longest queue that stood for a round, as far as it was not seen to be shorter.
    deepest: Duration,
}

/// Round trips without the time for which the peer held an acknowledgement back.
///
/// A controller is never told that time. quinn takes it off (RFC 9002, 5.3) before a round trip goes into
/// its estimate, seven parts old and one part new: from two estimates the new part follows. It is
/// known one acknowledgement late. The largest packet of an acknowledgement that was not held back says the
/// same at once, so that the shorter of both is taken.
#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    estimate: Option<Duration>,
    has_any: bool,
}

impl Samples {
    /// What went into the estimate since the last call, to some nanoseconds.
    fn next(&mut self, estimate: Duration) -> Option<Duration> {
        let before = self.estimate.replace(estimate)?;
        if before == estimate {
            return None;
        }
        // The first one is the estimate; before it there was a guess.
        if !std::mem::replace(&mut self.has_any, true) {
            return Some(estimate);
        }
        let old = before.saturating_mul(7);
        Some(estimate.saturating_mul(8).saturating_sub(old))
    }
}

impl DelayBound {
    fn new(now: Instant, current_mtu: u16) -> DelayBound {
        let packet_bytes = u64::from(current_mtu);
        DelayBound {
            packet_bytes,
            window_bytes: INITIAL_PACKETS * packet_bytes,
            is_starting: true,
            samples: Samples::default(),
            base: None,
            shortest: None,
            round_ends: now,
            was_full: false,
            recovery_since: now,
            has_lost: false,
            lost_share: 0.0,
            queued: Duration::ZERO,
            deepest: Duration::ZERO,
        }
    }

    /// Whether a loss was a short while ago.
    fn is_careful(&self, now: Instant) -> bool {
        self.has_lost && now < self.recovery_since + CAREFUL
    }

    /// A packet that was sent at `sent` has arrived.
    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        self.took(now.saturating_duration_since(sent));
        self.count(bytes, false);
        self.was_full |= !app_limited;
        if self.is_starting && !app_limited {
            self.window_bytes += bytes;
        }
    }

    /// A round trip took this long.
    fn took(&mut self, took: Duration) {
        self.base = Some(self.base.map_or(took, |base| base.min(took)));
        self.shortest = Some(self.shortest.map_or(took, |shortest| shortest.min(took)));
    }

    /// Takes note that so many bytes were lost, or were not.
    fn count(&mut self, bytes: u64, was_lost: bool) {
        let all = (NOISE_PACKETS * self.packet_bytes) as f64;
        let weight = (bytes as f64 / all).min(1.0);
        let share = if was_lost { 1.0 } else { 0.0 };
        self.lost_share += (share - self.lost_share) * weight;
    }

    /// Whether what is lost now is lost whatever the window: few packets, and no queue to speak of.
    fn is_noise(&self) -> bool {
        let queued = match (self.base, self.shortest) {
            (Some(base), Some(shortest)) => self.queued.min(shortest.saturating_sub(base)),
            _ => self.queued,
        };
        queued <= NO_QUEUE.max(self.deepest / 3) && self.lost_share <= NOISE_MOST
    }

    fn floor_bytes(&self) -> u64 {
        FLOOR_PACKETS * self.packet_bytes
    }

    /// A round trip has passed in which `shortest` was the shortest one.
    fn end_round(&mut self, now: Instant, queued: Duration, shortest: Duration) {
        let target = QUEUE_TARGET;
        if queued > target {
            // Of this connection's own part of what is too much, half goes.
            let excess = (queued - target).as_secs_f64() / shortest.as_secs_f64().max(1e-6);
            let keep = 1.0 - (excess / 2.0).min(SHRINK_MOST);
            // Not below what keeps it alive among others, nor up to that if a loss has said less.
            let least = KEPT_BYTES.max(self.floor_bytes()).min(self.window_bytes);
            self.window_bytes = scaled(self.window_bytes, keep).max(least);
        } else if self.was_full {
            let room = 1.0 - queued.as_secs_f64() / target.as_secs_f64();
            let wanted = scaled(GROWTH_BYTES, room);
            // Short of what keeps it alive because of losses that say nothing.
            let is_low = self.window_bytes < KEPT_BYTES && self.is_noise();
            let most = match self.is_careful(now) && !is_low {
                true => scaled(self.window_bytes, CAREFUL_GROWTH).max(self.packet_bytes / 10),
                false => wanted,
            };
            self.window_bytes += wanted.min(most);
        }
    }
}

impl Controller for DelayBound {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        if let Some(sample) = self.samples.next(rtt.get()) {
            self.took(sample.max(rtt.min()));
        }
        self.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, now: Instant, _: u64, _: bool, _: Option<u64>) {
        let (Some(base), Some(shortest)) = (self.base, self.shortest) else {
            return;
        };
        let queued = shortest.saturating_sub(base);
        if self.is_starting && queued > QUEUE_TARGET / 2 {
            self.is_starting = false;
        }
        if now < self.round_ends {
            return;
        }
        if !self.is_starting {
            self.end_round(now, queued, shortest);
        }
        self.queued = queued;
        self.deepest = self.deepest.max(queued);
        self.shortest = None;
        self.was_full = false;
        let round = match self.is_careful(now) {
            true => shortest.max(CAREFUL_ROUND),
            false => shortest,
        };
        self.round_ends = now + round;
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent: bool,
        lost_bytes: u64,
    ) {
        self.count(lost_bytes, true);
        if sent <= self.recovery_since {
            return;
        }
        self.recovery_since = now;
        self.has_lost = true;
        self.is_starting = false;
        if self.lost_share > NOISE_MOST {
            self.deepest = self.deepest.min(self.queued);
        }
        let least = match self.is_noise() {
            true => KEPT_BYTES.max(self.floor_bytes()).min(self.window_bytes),
            false => self.floor_bytes(),
        };
        self.window_bytes = match is_persistent {
            true => self.floor_bytes(),
            false => scaled(self.window_bytes, LOSS_FACTOR).max(least),
        };
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.packet_bytes = u64::from(new_mtu);
        self.window_bytes = self.window_bytes.max(self.floor_bytes());
    }

    fn window(&self) -> u64 {
        self.window_bytes
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_PACKETS * self.packet_bytes
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// A share or a small multiple of a window; windows are far below 2^53.
fn scaled(bytes: u64, by: f64) -> u64 {
    (bytes as f64 * by) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET_BYTES: u64 = 1_400;

    /// A connection whose every round trip takes what a test says.
    struct Path {
        now: Instant,
        control: DelayBound,
    }

    impl Path {
        fn new() -> Path {
            let now = Instant::now();
            let mut path = Path {
                now,
                control: DelayBound::new(now, PACKET_BYTES as u16),
            };
            // Nothing queued yet: this is what the path takes by itself.
            path.round(0, true);
            path
        }

        fn packets(&self) -> u64 {
            self.control.window() / PACKET_BYTES
        }

        /// One window sent and acknowledged after 1 ms and `queued_ms`.
        fn round(&mut self, queued_ms: u64, is_full: bool) {
            let sent = self.now;
            self.now += Duration::from_millis(1 + queued_ms);
            for _ in 0..self.packets() {
                self.control.acked(self.now, sent, PACKET_BYTES, !is_full);
            }
            self.control.on_end_acks(self.now, 0, !is_full, None);
        }

        fn lose(&mut self, is_persistent: bool) {
            let sent = self.now;
            self.now += Duration::from_millis(1);
            self.control
                .on_congestion_event(self.now, sent, is_persistent, PACKET_BYTES);
        }
    }

    #[test]
    fn doubles_until_the_queue_is_seen_then_stands() {
        let mut path = Path::new();
        assert_eq!(path.packets(), 2 * INITIAL_PACKETS);
        path.round(0, true);
        assert_eq!(path.packets(), 4 * INITIAL_PACKETS);
        // Half of the target: the doubling ends with this round.
        path.round(8, true);
        let seen = path.control.window();
        for _ in 0..100 {
            path.round(15, true);
        }
        assert_eq!(path.control.window(), seen, "at the target");
        // Room again: the round that is under way ends, then it grows in each.
        for _ in 0..32 {
            path.round(0, true);
        }
        let grown = path.control.window() - seen;
        assert!(
            (GROWTH_BYTES..=32 * GROWTH_BYTES).contains(&grown),
            "{grown} bytes in 32 round trips"
        );
    }

    #[test]
    fn what_an_acknowledgement_was_held_back_for_is_not_in_a_round_trip() {
        // As quinn estimates: what comes in is what it was told, less the peer's delay.
        let (mut samples, mut estimate) = (Samples::default(), Duration::from_millis(10));
        assert_eq!(samples.next(estimate), None);
        for (at, micros) in [480, 520, 16_000, 900, 700, 25_000].into_iter().enumerate() {
            let took = Duration::from_micros(micros);
            estimate = match at {
                0 => took,
                _ => (7 * estimate + took) / 8,
            };
            let sample = samples.next(estimate).unwrap();
            let off = sample.abs_diff(took);
            assert!(off < Duration::from_nanos(10), "{sample:?}");
            assert_eq!(samples.next(estimate), None);
        }
    }

    #[test]
    fn an_unused_window_does_not_grow() {
        let mut path = Path::new();
        let before = path.packets();
        for queued_ms in [0, 0, 8, 0, 0] {
            path.round(queued_ms, false);
        }
        assert_eq!(path.packets(), before);
    }

    #[test]
    fn a_long_queue_leaves_what_keeps_a_connection_alive() {
        let mut path = Path::new();
        for _ in 0..4 {
            path.round(0, true);
        }
        for _ in 0..100 {
            path.round(40, true);
        }
        assert_eq!(path.control.window(), KEPT_BYTES);
    }

    #[test]
    fn jumbo_packets_change_neither_growth_nor_what_is_kept() {
        let mut path = Path::new();
        path.control.on_mtu_update(8_952);
        path.round(8, true);
        let before = path.control.window();
        for _ in 0..32 {
            path.round(0, true);
        }
        let grown = path.control.window() - before;
        assert!(
            (GROWTH_BYTES..=32 * GROWTH_BYTES).contains(&grown),
            "{grown} bytes in 32 round trips"
        );
        for _ in 0..4 {
            path.round(0, true);
        }
        for _ in 0..100 {
            path.round(40, true);
        }
        assert_eq!(path.control.window(), KEPT_BYTES);
    }

    #[test]
    fn losses_go_below_that_and_count_once_for_each_round_trip() {
        let mut path = Path::new();
        path.round(8, true);
        let before = path.packets();
        let sent = path.now;
        path.lose(false);
        let once = path.packets();
        assert_eq!(once, scaled(before, LOSS_FACTOR));
        path.control
            .on_congestion_event(path.now, sent, false, PACKET_BYTES);
        assert_eq!(path.packets(), once, "sent before the loss was known");
        for _ in 0..100 {
            path.now += Duration::from_millis(1);
            path.lose(false);
        }
        assert_eq!(path.packets(), FLOOR_PACKETS);
        // A queue does not raise it, room does: a little as long as the loss is not long ago.
        path.round(40, true);
        assert_eq!(path.packets(), FLOOR_PACKETS);
        for _ in 0..64 {
            path.round(0, true);
        }
        let careful = path.packets();
        assert!(
            (FLOOR_PACKETS..=FLOOR_PACKETS + 2).contains(&careful),
            "{careful}"
        );
        path.now += CAREFUL;
        for _ in 0..64 {
            path.round(0, true);
        }
        assert!(path.packets() > 32 * FLOOR_PACKETS, "{}", path.packets());
        path.now += Duration::from_millis(1);
        path.lose(true);
        assert_eq!(path.packets(), FLOOR_PACKETS, "persistent congestion");
    }

    /// One packet in so many, with so much of a queue: what is left of a window after a thousand round trips.
    #[test]
    fn a_cable_that_loses_packets_leaves_what_keeps_a_connection_alive() {
        let kept = KEPT_BYTES / PACKET_BYTES;
        for (each, queued_ms, is_kept) in [
            (100, 0, true),
            (30, 0, true),
            (20, 0, true),
            // Too many, whatever the queue.
            (5, 0, false),
            (2, 0, false),
            // A queue, and as long as any that was seen.
            (100, 8, false),
        ] {
            let mut path = Path::new();
            path.round(8, true);
            let mut sent = 0;
            for _ in 0..1_000 {
                path.round(queued_ms, true);
                sent += path.packets();
                while sent >= each {
                    sent -= each;
                    path.lose(false);
                }
            }
            let left = path.packets();
            assert_eq!(left >= kept, is_kept, "{each} {queued_ms}: {left}");
        }
    }

    #[test]
    fn a_larger_packet_raises_the_floor() {
        let mut path = Path::new();
        path.lose(true);
        path.control.on_mtu_update(8_952);
        assert_eq!(path.control.window(), FLOOR_PACKETS * 8_952);
    }
}
