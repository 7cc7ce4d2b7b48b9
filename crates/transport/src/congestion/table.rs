//! What the controller makes of links: one table of cases.

use std::fmt::Write as _;
use std::time::Duration;

use super::link::{Ends, Pair, Passed, Wire};
use crate::tuning::{CONNECTION_WINDOW_BYTES, SEND_WINDOW_BYTES, peer_window_bytes};

/// What of a link is used at least, in bytes of IP.
const SHARE: f64 = 0.93;

/// Where both directions carry data, and each one's queue is in the other's round trips.
const SHARE_BOTH_WAYS: f64 = 0.85;

/// How long the two directions may take to find out what is whose.
const BOTH_WAYS_SETTLE: Duration = Duration::from_secs(3);

/// What a queue may be, unless two packets of each connection are more.
const TARGET: Duration = Duration::from_millis(15);

/// The most that is sent in a case after it has been measured.
const MEASURED_BYTES_MAX: u64 = 50_000_000;

/// A link, and what is asked of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    mtu: u16,
    mbit: u64,
    round_trip: Duration,
    queue: Duration,
    connections: usize,
    both_ways: bool,
    share: f64,
    /// A queue's mean length at most, if that is another one than [`Case::target`].
    wait: Option<Duration>,
    /// Of all packets, at most.
    lost: f64,
    /// What the cable loses of all packets, each way.
    noise: f64,
}

const fn case(mtu: u16, mbit: u64, round_trip_us: u64, queue_us: u64, connections: usize) -> Case {
    Case {
        mtu,
        mbit,
        round_trip: Duration::from_micros(round_trip_us),
        queue: Duration::from_micros(queue_us),
        connections,
        both_ways: false,
        share: SHARE,
        wait: None,
        lost: 0.0,
        noise: 0.0,
    }
}

impl Case {
    const fn noisy(mut self, noise: f64) -> Case {
        self.noise = noise;
        self
    }

    const fn both_ways(mut self) -> Case {
        self.both_ways = true;
        self.share = SHARE_BOTH_WAYS;
        self
    }

    /// With a figure of its own, for the reason given there.
    const fn takes(mut self, share: f64) -> Case {
        self.share = share;
        self
    }

    /// The same for its queue.
    const fn waits(mut self, millis: u64) -> Case {
        self.wait = Some(Duration::from_millis(millis));
        self
    }

    /// A queue that is shorter than the target is found by losses: with a figure of its own.
    const fn loses(mut self, lost: f64) -> Case {
        self.lost = lost;
        self
    }

    fn bytes_in(&self, time: Duration) -> f64 {
        self.mbit as f64 * 1e6 / 8.0 * time.as_secs_f64()
    }

    fn time_for(&self, bytes: f64) -> Duration {
        Duration::from_secs_f64(bytes / (self.mbit as f64 * 1e6 / 8.0))
    }

    /// Two packets of each connection.
    fn least_queue_bytes(&self) -> f64 {
        2.0 * self.connections as f64 * f64::from(self.mtu)
    }

    fn target(&self) -> Duration {
        TARGET.max(self.time_for(self.least_queue_bytes()))
    }

    fn receive_window_bytes(&self) -> u32 {
        match self.connections {
            1 => CONNECTION_WINDOW_BYTES,
            several => peer_window_bytes(several),
        }
    }

    /// What may come through in a second: what the link takes, or what the windows leave.
    fn bound(&self) -> f64 {
        let each = SEND_WINDOW_BYTES.min(self.receive_window_bytes().into());
        let windows = each as f64 * self.connections as f64 / self.round_trip.as_secs_f64();
        windows.min(self.mbit as f64 * 1e6 / 8.0)
    }

    fn run(&self) -> Figures {
        let queue_bytes = self.bytes_in(self.queue).max(self.least_queue_bytes());
        let wire = Wire {
            bits_per_second: self.mbit * 1_000_000,
            delay: self.round_trip / 2,
            queue_bytes: queue_bytes as usize,
            noise: self.noise,
        };
        let ends = Ends {
            mtu: self.mtu,
            connections: self.connections,
            both_ways: self.both_ways,
            receive_window_bytes: self.receive_window_bytes(),
        };
        let mut pair = Pair::new(ends, [wire; 2]);
        // And what the paths' MTU is has been found.
        let found = pair.now + Duration::from_secs(1);
        pair.run_until(|pair| pair.now >= found);
        pair.forget();
        pair.send();
        let mut settled = pair.now + 20 * self.round_trip;
        if self.both_ways {
            settled += BOTH_WAYS_SETTLE;
        }
        let packets = 200 * self.connections;
        pair.run_until(|pair| pair.now >= settled && pair.passed()[0].packets >= packets);
        pair.forget();
        // Long enough for what goes up and down in some round trips.
        let least = match self.both_ways {
            true => Duration::from_secs(1),
            false => Duration::from_millis(100),
        };
        let long = (40 * (self.round_trip + self.target()))
            .max(self.time_for(400.0 * self.connections as f64 * f64::from(self.mtu)))
            .max(least)
            .min(self.time_for(MEASURED_BYTES_MAX as f64));
        let begun = pair.now;
        pair.run_until(|pair| pair.now >= begun + long);
        let took = (pair.now - begun).as_secs_f64();
        let figure = |passed: &Passed| Way {
            share: passed.bytes as f64 / took / self.bound(),
            wait: passed.mean_wait(),
            lost: passed.dropped as f64 / (passed.packets + passed.dropped).max(1) as f64,
        };
        let [there, back] = pair.passed();
        Figures {
            ways: match self.both_ways {
                true => vec![figure(there), figure(back)],
                false => vec![figure(there)],
            },
        }
    }
}

#[derive(Debug)]
struct Way {
    share: f64,
    wait: Duration,
    lost: f64,
}

struct Figures {
    ways: Vec<Way>,
}

/// Runs them all, and says everything if one is not as it should be.
fn check(cases: &[Case]) {
    let (mut table, mut failed) = (String::new(), 0);
    for case in cases {
        let figures = case.run();
        let target = case.wait.unwrap_or(case.target());
        let is_good = figures
            .ways
            .iter()
            .all(|way| way.share >= case.share && way.wait <= target && way.lost <= case.lost);
        failed += usize::from(!is_good);
        let mark = if is_good { "  " } else { "* " };
        write!(
            table,
            "{mark}{:>5} {:>6} Mbit {:>6} us, queue {:>6} us, {} conn:",
            case.mtu,
            case.mbit,
            case.round_trip.as_micros(),
            case.queue.as_micros(),
            case.connections
        )
        .unwrap();
        for way in &figures.ways {
            write!(
                table,
                " {:.3} of {:.2}, wait {:.1} of {:.1} ms, lost {:.4} of {:.4};",
                way.share,
                case.share,
                way.wait.as_secs_f64() * 1e3,
                target.as_secs_f64() * 1e3,
                way.lost,
                case.lost
            )
            .unwrap();
        }
        writeln!(table).unwrap();
    }
    assert!(failed == 0, "{failed} of {}:\n{table}", cases.len());
}

/// Eight connections keep 24 packets each on a slow link (`KEPT_BYTES`): that is the queue. Fewer were worse in the
/// lab (TUNING.md).
#[test]
fn a_link_is_filled_and_its_queue_is_not() {
    check(&[
        // quinn paces in bursts of ten packets, 12 ms.
        case(1280, 10, 500, 50_000, 1).waits(26),
        case(1500, 10, 20_000, 50_000, 1).waits(19),
        case(9000, 10, 500, 50_000, 1),
        case(1280, 10, 5_000, 50_000, 8).waits(38),
        case(1500, 10, 500, 50_000, 8).waits(38),
        case(4000, 10, 500, 50_000, 8),
        case(9000, 10, 500, 50_000, 8).loses(0.001),
        case(1500, 20, 500, 25_000, 8).waits(23),
        case(1500, 20, 5_000, 50_000, 8).waits(41),
        case(9000, 20, 500, 50_000, 8),
        case(1500, 50, 500, 50_000, 1).waits(16),
        case(1280, 50, 50, 50_000, 8).waits(33),
        case(1500, 50, 500, 25_000, 8).waits(22),
        case(1500, 50, 20_000, 50_000, 8).waits(20),
        case(4000, 50, 500, 50_000, 8).waits(36),
        case(9000, 50, 500, 50_000, 8),
        case(1500, 100, 500, 50_000, 1).waits(16),
        case(1500, 100, 500, 50_000, 8).waits(20),
        case(9000, 100, 500, 50_000, 8).waits(19),
        case(9000, 100, 20_000, 50_000, 1),
        // The target holds for the shortest round trip of each round.
        case(1500, 200, 5_000, 50_000, 8).waits(16),
        case(9000, 200, 5_000, 50_000, 1),
        case(9000, 200, 500, 50_000, 8),
        case(1500, 1_000, 50, 50_000, 1),
        case(1500, 1_000, 500, 50_000, 8).waits(16),
        // After 20 round trips what the start had too much of is being shed.
        case(1500, 1_000, 20_000, 50_000, 1).waits(18),
        case(9000, 1_000, 20_000, 50_000, 8).waits(16),
        case(4000, 1_000, 5_000, 50_000, 8).waits(16),
        case(1500, 10_000, 50, 50_000, 1),
        case(9000, 10_000, 500, 50_000, 8),
        case(4000, 10_000, 5_000, 50_000, 1),
        // The bound is the peer's window, of which more is given an eighth at a time: 15/16 on average.
        case(9000, 10_000, 20_000, 50_000, 8).takes(0.89),
        case(9000, 40_000, 50, 50_000, 1),
        case(9000, 40_000, 500, 50_000, 8),
        case(9000, 40_000, 5_000, 50_000, 1),
    ]);
}

/// A round trip has both queues in it, and nothing tells them apart.
#[test]
fn a_queue_on_the_way_back_idles_no_link() {
    check(&BOTH_WAYS);
}

/// Data both ways. On fat links one direction is behind: its window grows by packets while the other's queue
/// stands at the target, which says "stay" to both.
const BOTH_WAYS: [Case; 9] = [
    case(1500, 10, 500, 50_000, 1)
        .both_ways()
        .takes(0.78)
        .waits(24),
    case(1500, 20, 500, 50_000, 8).both_ways().waits(39),
    case(1500, 50, 500, 50_000, 8).both_ways().waits(30),
    // Two packets of each connection are more than the target.
    case(9000, 50, 500, 50_000, 8).both_ways().takes(0.64),
    case(1500, 100, 500, 50_000, 8).both_ways(),
    case(9000, 200, 500, 50_000, 8).both_ways().takes(0.82),
    case(1500, 1_000, 500, 50_000, 1)
        .both_ways()
        .takes(0.26)
        .waits(16),
    case(1500, 1_000, 5_000, 50_000, 8)
        .both_ways()
        .takes(0.47)
        .waits(16),
    case(9000, 10_000, 500, 50_000, 8).both_ways().takes(0.68),
];

/// Queues of less than the target, down to two packets a connection, as a token bucket has them.
#[test]
fn short_queues_are_found_by_losses() {
    check(&[
        case(1500, 20, 500, 10_000, 8).loses(0.095),
        // A burst of ten packets into a queue of two: nothing but a window that fits, and then each acknowledgement
        // comes after the peer's delay.
        case(1500, 50, 500, 100, 1).loses(0.18).takes(0.03),
        case(9000, 50, 500, 100, 1).loses(0.025),
        case(1500, 50, 500, 100, 8).loses(0.025),
        case(9000, 50, 500, 100, 8).loses(0.001),
        case(1500, 50, 500, 5_000, 8).loses(0.03),
        case(1500, 100, 5_000, 1_000, 1).loses(0.008).takes(0.90),
        case(9000, 100, 500, 10_000, 8).loses(0.045),
        case(1500, 1_000, 500, 1_000, 1).loses(0.001),
        case(1500, 1_000, 500, 1_000, 8).loses(0.003),
        case(1500, 1_000, 20_000, 10_000, 1).loses(0.003),
        case(9000, 1_000, 5_000, 5_000, 8).loses(0.01),
        case(9000, 10_000, 50, 100, 1).loses(0.001),
        case(9000, 10_000, 500, 1_000, 8).loses(0.003),
        case(9000, 10_000, 5_000, 5_000, 8).loses(0.001),
        case(9000, 40_000, 50, 100, 8).loses(0.001),
        case(9000, 40_000, 500, 1_000, 1).loses(0.001),
        // quinn's bursts are 2 ms of the rate and ten packets at least. Where the path holds many times what the
        // queue does, a window is found whose bursts fit, and that is all that is used.
        case(1280, 100, 20_000, 300, 1).loses(0.2).takes(0.006),
        case(1280, 400, 20_000, 300, 1).loses(0.01).takes(0.13),
        case(4000, 1_000, 500, 100, 1).loses(0.001).takes(0.87),
        case(9000, 400, 20_000, 300, 8).loses(0.01),
        // So soon after the start its losses are among them.
        case(1280, 10_000, 50, 3_000, 8).loses(0.13),
    ]);
}

/// A bad cable, or an interface that drops: what is lost says nothing about the link. What is lost has to be sent
/// again, and is not counted.
#[test]
fn a_cable_that_loses_packets_is_filled() {
    check(&[
        case(1500, 100, 200, 50_000, 1).noisy(0.01),
        case(1500, 100, 200, 50_000, 1).noisy(0.03),
        // At times a tenth of what was sent last is gone.
        case(1500, 100, 200, 50_000, 1).noisy(0.05).takes(0.78),
        case(1500, 1_000, 200, 50_000, 1).noisy(0.01),
        case(1500, 1_000, 200, 50_000, 1).noisy(0.05).takes(0.78),
        // The window that is kept has four jumbo packets.
        case(9000, 1_000, 200, 50_000, 1).noisy(0.01).takes(0.5),
        // And it is a seventh of what such a path holds.
        case(9000, 10_000, 200, 50_000, 1).noisy(0.01).takes(0.2),
        case(1500, 20, 500, 50_000, 8).noisy(0.01).waits(18),
        case(1500, 50, 500, 50_000, 8).noisy(0.03),
        case(1500, 100, 5_000, 50_000, 8).noisy(0.01),
        case(1280, 100, 500, 10_000, 8).noisy(0.01),
        case(4000, 100, 500, 50_000, 1).noisy(0.02),
    ]);
}
