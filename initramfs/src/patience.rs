//! How long to go on, and how long to wait between tries.
//!
//! A boot gives up after ROOTDELAY *without progress*: a slow download is no reason to stop.
//! Waits grow and carry jitter, so that a thousand nodes that were switched on together do not
//! come back together.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait; half of it at least is really waited.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait. A server that comes back is found within this.
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// The time since the last progress, and the next wait.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    last_progress: Instant,
    wait: Duration,
}

impl Patience {
    /// Full patience from now on.
    pub fn new(limit: Duration) -> Patience {
        Patience {
            limit,
            last_progress: Instant::now(),
            wait: FIRST_WAIT,
        }
    }

    /// Something arrived: patience is full again and the next wait is short.
    pub fn progressed(&mut self) {
        self.last_progress = Instant::now();
        self.wait = FIRST_WAIT;
    }

    /// Whether the limit has passed.
    pub fn is_exhausted(&self) -> bool {
        self.last_progress.elapsed() >= self.limit
    }

    /// The limit, for the error line.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Waits before the next try, longer each time; `false`, at the limit, when there is none.
    pub async fn wait(&mut self) -> bool {
        let left = self.limit.saturating_sub(self.last_progress.elapsed());
        if left.is_zero() {
            return false;
        }
        let wait = jittered(self.wait);
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        tokio::time::sleep(wait.min(left)).await;
        !self.is_exhausted()
    }
}

/// Between half of it and all of it.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness all nodes wait the same, longest time: safe, only less smooth.
    if getrandom::fill(&mut random).is_err() {
        return wait;
    }
    let share = f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
    wait.mul_f64(0.5 + share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_up_to_the_limit_and_progress_resets_them() {
        let mut patience = Patience::new(Duration::from_secs(60));
        let mut waits = Vec::new();
        for _ in 0..8 {
            let before = Instant::now();
            assert!(patience.wait().await);
            waits.push(before.elapsed());
        }
        for (index, wait) in waits.iter().enumerate() {
            let full = (FIRST_WAIT * (1 << index)).min(LONGEST_WAIT);
            assert!(
                *wait >= full / 2 - Duration::from_millis(2),
                "{index}: {wait:?} of {full:?}"
            );
            assert!(
                *wait <= full + Duration::from_millis(2),
                "{index}: {wait:?} of {full:?}"
            );
        }
        while patience.wait().await {}
        assert!(patience.is_exhausted());
        patience.progressed();
        assert!(!patience.is_exhausted());
        let before = Instant::now();
        assert!(patience.wait().await);
        assert!(before.elapsed() <= FIRST_WAIT + Duration::from_millis(2));
    }

    #[test]
    fn jitter_differs() {
        let some = (0..20)
            .map(|_| jittered(Duration::from_secs(8)))
            .collect::<Vec<_>>();
        assert!(some.iter().any(|wait| *wait != some[0]), "{some:?}");
    }
}
