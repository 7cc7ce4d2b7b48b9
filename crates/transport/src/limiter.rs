//! Keeps a sender within a rate.
//!
//! One [`RateLimiter`] stands for one uplink: all uploads of an endpoint take from it before they
//! write, in the order in which they asked. It knows nothing of connections or of what is sent,
//! and it does not slice: callers take [`RateLimiter::quantum_bytes`] at a time if they want a
//! smooth flow.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How much idle time may be made up for.
///
/// A timer of the kernel or the reactor fires up to 1-2 ms late; credit for those late
/// milliseconds is what keeps the mean at the limit. 10 ms of credit do that with room to spare,
/// and are at 1 Mbit/s a burst of 1,250 bytes: one packet.
const CREDIT: Duration = Duration::from_millis(10);

/// How long one quantum may occupy the uplink. Two uploads that alternate then wait no longer
/// than this for each other.
const QUANTUM: Duration = Duration::from_millis(5);

/// A quantum is not smaller than one full packet of payload (below that only the calls cost)…
const QUANTUM_MIN_BYTES: usize = 1200;

/// …and not larger than one GSO batch, the most that leaves the socket in one system call.
const QUANTUM_MAX_BYTES: usize = 64 * 1024;

/// A limit in bytes per second, shared by all who hold a reference.
#[derive(Debug)]
pub struct RateLimiter {
    limited: Option<Limited>,
}

#[derive(Debug)]
struct Limited {
    bytes_per_s: u64,
    /// When the uplink has sent all that was granted so far. Tokio's mutex queues its waiters in
    /// order, and it is held while waiting: that is what makes this fair.
    free_at: Mutex<Instant>,
}

impl RateLimiter {
    /// A limiter of this many bytes per second; `None` is no limit, and costs nothing.
    ///
    /// A limit of 0 would hold every sender for ever and is taken as 1 byte per second.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> RateLimiter {
        RateLimiter {
            limited: bytes_per_s.map(|bytes_per_s| Limited {
                bytes_per_s: bytes_per_s.max(1),
                free_at: Mutex::new(Instant::now()),
            }),
        }
    }

    /// The limit, if there is one.
    #[must_use]
    pub fn bytes_per_s(&self) -> Option<u64> {
        self.limited.as_ref().map(|limited| limited.bytes_per_s)
    }

    /// How much to take at a time so that the flow is smooth: 5 ms worth, within a packet and a
    /// GSO batch.
    #[must_use]
    pub fn quantum_bytes(&self) -> usize {
        match &self.limited {
            None => QUANTUM_MAX_BYTES,
            Some(limited) => {
                let bytes = u128::from(limited.bytes_per_s) * QUANTUM.as_millis() / 1000;
                usize::try_from(bytes)
                    .unwrap_or(QUANTUM_MAX_BYTES)
                    .clamp(QUANTUM_MIN_BYTES, QUANTUM_MAX_BYTES)
            }
        }
    }

    /// Waits until `bytes` may be sent.
    ///
    /// It returns when all that was granted before has had its time, so that what is granted now
    /// delays the next caller, not this one: any size can be taken, whatever the burst. A caller
    /// that gives up while waiting is charged nothing and lets the next one through.
    pub async fn take(&self, bytes: usize) {
        let Some(limited) = &self.limited else {
            return;
        };
        let mut free_at = limited.free_at.lock().await;
        let now = Instant::now();
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let start = (*free_at).max(earliest);
        if start > now {
            tokio::time::sleep_until(start).await;
        }
        *free_at = start + limited.duration_of(bytes);
    }
}

impl Limited {
    fn duration_of(&self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_s);
        // 2^64 ns are 584 years.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex as StdMutex;

    use super::*;

    /// Takes `pieces` times `bytes` and says how long it took in (paused) time.
    async fn elapsed(limiter: &RateLimiter, pieces: usize, bytes: usize) -> Duration {
        let start = Instant::now();
        for _ in 0..pieces {
            limiter.take(bytes).await;
        }
        start.elapsed()
    }

    /// Whether `found` is within 3 ms of `expected`: the paused clock steps in milliseconds.
    fn check_near(found: Duration, expected: Duration) {
        let apart = found.abs_diff(expected);
        assert!(
            apart <= Duration::from_millis(3),
            "took {found:?}, expected {expected:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_mean_is_the_limit_at_every_rate() {
        // (bytes per second, pieces, bytes each): the time is that of all pieces but the last,
        // less the credit of 10 ms only where the limiter had been idle (it had not).
        let cases = [
            (125_000_u64, 101_usize, 1_250_usize),
            (125_000, 11, 16 * 1024),
            (12_500_000, 1_001, 64 * 1024),
            (1_250_000_000, 5_001, 64 * 1024),
            (7, 3, 70),
        ];
        for (rate, pieces, bytes) in cases {
            let limiter = RateLimiter::new(Some(rate));
            let found = elapsed(&limiter, pieces, bytes).await;
            let expected =
                Duration::from_secs_f64((pieces - 1) as f64 * bytes as f64 / rate as f64);
            check_near(found, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_megabit_flows_smoothly() {
        let limiter = RateLimiter::new(Some(125_000));
        let quantum = limiter.quantum_bytes();
        assert_eq!(quantum, 1200);
        limiter.take(quantum).await;
        for _ in 0..50 {
            let gap = elapsed(&limiter, 1, quantum).await;
            assert!(
                gap <= Duration::from_millis(12),
                "a gap of {gap:?} at 1 Mbit/s"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_buys_ten_milliseconds_and_no_more() {
        let limiter = RateLimiter::new(Some(1_000_000));
        limiter.take(1).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        // 10 kB of credit, then 1 MB/s: 110 kB take 100 ms, of which the last piece is not waited for.
        let found = elapsed(&limiter, 111, 1_000).await;
        check_near(found, Duration::from_millis(100));
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_never_waits() {
        let limiter = RateLimiter::new(None);
        assert_eq!(limiter.bytes_per_s(), None);
        assert_eq!(elapsed(&limiter, 1000, usize::MAX).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_first_goes_first() {
        let limiter = Arc::new(RateLimiter::new(Some(1_000)));
        let order = Arc::new(StdMutex::new(Vec::new()));
        limiter.take(1_000).await;
        let mut tasks = Vec::new();
        for caller in 0..20 {
            let (limiter, order) = (limiter.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                // The odd ones want a hundred times more, and still wait only for their turn.
                limiter.take(if caller % 2 == 0 { 10 } else { 1_000 }).await;
                order.lock().unwrap().push(caller);
            }));
            tokio::task::yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_is_not_charged() {
        let limiter = RateLimiter::new(Some(1_000));
        limiter.take(1_000).await;
        let start = Instant::now();
        for _ in 0..5 {
            let gave_up =
                tokio::time::timeout(Duration::from_millis(10), limiter.take(1_000_000)).await;
            assert!(gave_up.is_err());
        }
        limiter.take(1).await;
        check_near(start.elapsed(), Duration::from_secs(1));
    }
}
