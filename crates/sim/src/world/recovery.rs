//! Lost packets: what is sent again, and how a sender slows down.
//!
//! A simple model of QUIC's recovery (RFC 9002). Each of the two links on the way loses its share of
//! the packets by chance. Their sender knows a round trip and an acknowledgement's delay after it
//! sent them, sends what was in them again and halves the connection's window, once a round trip
//! and to two packets at least; each window's worth of acknowledged bytes widens it by a packet, up
//! to the plan's. A window begins at the plan's: there is no slow start, with or without loss.
//! Control packets come later by as much, and those behind them on their stream wait.

use super::chunk::Burst;
use super::{Event, World, chance};
use crate::faults::Happening;
use crate::nic::UploadKey;

/// Payload of a packet at an MTU of 1,500.
const PACKET_BYTES: u32 = 1_350;

/// RFC 9002, 7.2: kMinimumWindow.
const WINDOW_MIN_BYTES: u32 = 2 * PACKET_BYTES;

/// Repetitions of one packet: more are not to be expected before the connection is given up.
const REPEATS_MAX: u32 = 8;

/// The congestion window of one side of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    bytes: u32,
    halved_ns: u64,
}

impl World<'_> {
    /// Draws which packets of a burst get lost that has left by `left_ns`. Returns their bytes.
    pub(super) fn lose_packets(
        &mut self,
        upload: UploadKey,
        to: u32,
        bytes: u32,
        left_ns: u64,
    ) -> u32 {
        if self.plan.loss <= 0.0 {
            return 0;
        }
        let share = self.path_loss();
        let packets = bytes.div_ceil(PACKET_BYTES);
        let lost = (0..packets)
            .filter(|_| chance(&mut self.rng, share))
            .count() as u32;
        if lost == 0 {
            return 0;
        }
        (0..lost).for_each(|_| self.sometimes.note(Happening::PacketLost));
        let lost_bytes = (lost * PACKET_BYTES).min(bytes);
        let known_ns = left_ns + self.detection_ns();
        let place = self.bursts.put(Burst {
            upload,
            to,
            bytes: lost_bytes,
            inflow_us: 0,
            is_inner: false,
        });
        self.events.push(known_ns, Event::BytesLost(place));
        lost_bytes
    }

    /// A sender learns that some of what it sent did not arrive.
    pub(crate) fn bytes_lost(&mut self, place: u32) {
        let Some(lost) = self.bursts.take(place) else {
            return;
        };
        let key = lost.upload;
        let Some(upload) = self.upload(key) else {
            return;
        };
        if upload.sender_done {
            return;
        }
        let (conn, host) = (upload.conn, upload.from as usize);
        upload.sent -= lost.bytes;
        self.halve_window(conn, host);
        self.resume(key);
    }

    /// How much later a control packet comes because it, and what repeats it, got lost.
    pub(super) fn repeats_ns(&mut self) -> u64 {
        if self.plan.loss <= 0.0 {
            return 0;
        }
        let (share, mut late_ns) = (self.path_loss(), 0);
        for _ in 0..REPEATS_MAX {
            if !chance(&mut self.rng, share) {
                break;
            }
            self.sometimes.note(Happening::PacketLost);
            late_ns += self.detection_ns();
        }
        late_ns
    }

    /// What a host may have under way on an upload; `acked` bytes more are known to have arrived.
    pub(super) fn window_bytes(&mut self, conn: u32, host: usize, acked: u32) -> u32 {
        let most = self.plan.window_bytes.max(self.plan.burst_bytes) as u32;
        if self.plan.loss <= 0.0 {
            return most;
        }
        let window = self.window(conn, host);
        let wider = u64::from(PACKET_BYTES) * u64::from(acked) / u64::from(window.bytes);
        window.bytes = (window.bytes + wider as u32).min(most);
        window.bytes
    }

    fn halve_window(&mut self, conn: u32, host: usize) {
        let round_trip_ns = (2 * self.plan.latency_us + self.plan.jitter_us) * 1000;
        let now_ns = self.now_ns;
        let window = self.window(conn, host);
        if now_ns >= window.halved_ns + round_trip_ns {
            window.halved_ns = now_ns;
            window.bytes = (window.bytes / 2).max(WINDOW_MIN_BYTES);
        }
    }

    fn window(&mut self, conn: u32, host: usize) -> &mut Window {
        let side = self.conns[conn as usize].side_of(host);
        let first = Window {
            bytes: self.plan.window_bytes.max(self.plan.burst_bytes) as u32,
            halved_ns: 0,
        };
        let count = self.windows.len().max(conn as usize + 1);
        self.windows.resize(count, [first; 2]);
        &mut self.windows[conn as usize][side]
    }

    /// Lost on one link or on the other.
    fn path_loss(&self) -> f64 {
        1.0 - (1.0 - self.plan.loss) * (1.0 - self.plan.loss)
    }

    fn detection_ns(&mut self) -> u64 {
        let round_trip_ns = self.latency_ns() + self.latency_ns();
        round_trip_ns + self.rng.between(0, self.plan.ack_delay_us) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::PACKET_BYTES;
    use crate::{Plan, run};

    fn lossy(loss: f64) -> Plan {
        let mut plan = Plan::new("lossy", 1, 100.0, 100.0).image(32 << 20, 256 << 10);
        plan.loss = loss;
        plan
    }

    /// One node: everything comes from the seed, so all that got lost was sent again by it.
    #[test]
    fn what_gets_lost_is_sent_again() {
        let plan = lossy(0.01);
        let outcome = run(&plan, 1);
        assert_eq!((outcome.unfinished, outcome.violations.len()), (0, 0));
        let lost = outcome.sometimes.count("packet lost") as f64;
        let sent = outcome.seed_copies * plan.image_bytes as f64 / f64::from(PACKET_BYTES);
        // Two links; control packets are few beside the chunks'.
        let share = lost / sent;
        assert!((0.017..0.023).contains(&share), "{share}");
        assert!((outcome.seed_copies * (1.0 - share) - 1.0).abs() < 0.01);
        assert_eq!(outcome.waste, 0.0);
    }

    /// Loss costs time in proportion, and without it nothing is repeated.
    #[test]
    fn the_more_loss_the_slower() {
        let times = [0.0, 0.001, 0.01, 0.05].map(|loss| run(&lossy(loss), 1).quantile_s(1.0));
        assert!(times.is_sorted(), "{times:?}");
        let clean = run(&lossy(0.0), 1);
        assert_eq!(clean.sometimes.count("packet lost"), 0);
    }
}
