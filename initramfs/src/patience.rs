//! How long to go on, and how long to wait between tries.
//!
//! A boot gives up after ROOTDELAY *without progress*: a slow download is no reason to stop. `0` is
//! every seed and every way once, `forever` is until it works. Waits grow and carry jitter, so that a
//! thousand nodes that were switched on together do not come back together; they grow further where
//! somebody answers, because an answer costs him a handshake, than where nobody does.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait; half of it at least is really waited.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait for somebody who does not answer. A server that comes back is found within this.
const LONGEST_SILENT: Duration = Duration::from_secs(8);
/// The longest wait for another answer. A thousand nodes that are refused ask 44 times a second.
const LONGEST_ANSWERED: Duration = Duration::from_secs(30);
/// What a transfer may stand still for where nobody is to be waited for ([`ONCE`]).
const TRANSFER_MIN: Duration = Duration::from_secs(15);

/// Without waiting: every seed and every way once.
pub const ONCE: Duration = Duration::ZERO;
/// Without giving up.
pub const FOREVER: Duration = Duration::MAX;

/// How soon the next try makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nobody answered, or somebody who said "come again".
    Silent,
    /// Somebody answered, and will mostly say the same again.
    Answered,
    /// Somebody said when to come again.
    Asked(Duration),
}

impl Pace {
    fn longest(self) -> Duration {
        match self {
            Pace::Silent | Pace::Asked(_) => LONGEST_SILENT,
            Pace::Answered => LONGEST_ANSWERED,
        }
    }
}

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

    /// The same for a transfer that has begun: it has a moment to go on in any case.
    pub fn of_transfer(limit: Duration) -> Patience {
        Patience::new(if limit == ONCE { TRANSFER_MIN } else { limit })
    }

    /// Something arrived: patience is full again and the next wait is short.
    pub fn progressed(&mut self) {
        self.last_progress = Instant::now();
        self.wait = FIRST_WAIT;
    }

    /// Something arrived by another way: patience is full again, and whoever is asked here is asked no sooner.
    pub fn progressed_elsewhere(&mut self) {
        self.last_progress = Instant::now();
    }

    /// Whether the limit has passed.
    pub fn is_exhausted(&self) -> bool {
        self.last_progress.elapsed() >= self.limit
    }

    /// The limit, for the error line.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// What is left of it; `None` is for ever.
    pub fn left(&self) -> Option<Duration> {
        let left = self.limit.saturating_sub(self.last_progress.elapsed());
        (self.limit != FOREVER).then_some(left)
    }

    /// Waits before the next try, longer each time; `false`, at the limit, when there is none.
    pub async fn wait(&mut self, pace: Pace) -> bool {
        let left = self.left().unwrap_or(FOREVER);
        if left.is_zero() {
            return false;
        }
        let longest = pace.longest();
        let mut wait = jittered(self.wait.min(longest));
        if let Pace::Asked(asked) = pace {
            // Not all of those who were told the same at once.
            wait += asked;
        }
        self.wait = (self.wait * 2).min(longest.max(self.wait));
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

    async fn waits(patience: &mut Patience, pace: Pace, count: usize) -> Vec<Duration> {
        let mut waits = Vec::new();
        for _ in 0..count {
            let before = Instant::now();
            assert!(patience.wait(pace).await);
            waits.push(before.elapsed());
        }
        waits
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_up_to_the_limit_and_progress_resets_them() {
        for (pace, longest, count) in [
            (Pace::Silent, LONGEST_SILENT, 8),
            (Pace::Answered, LONGEST_ANSWERED, 9),
        ] {
            let mut patience = Patience::new(Duration::from_secs(200));
            let waits = waits(&mut patience, pace, count).await;
            for (index, wait) in waits.iter().enumerate() {
                let full = (FIRST_WAIT * (1 << index)).min(longest);
                assert!(
                    *wait >= full / 2 - Duration::from_millis(2),
                    "{index}: {wait:?} of {full:?}"
                );
                assert!(
                    *wait <= full + Duration::from_millis(2),
                    "{index}: {wait:?} of {full:?}"
                );
            }
            while patience.wait(pace).await {}
            assert!(patience.is_exhausted());
            patience.progressed();
            assert!(!patience.is_exhausted());
            let before = Instant::now();
            assert!(patience.wait(pace).await);
            assert!(before.elapsed() <= FIRST_WAIT + Duration::from_millis(2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_asked_to_come_again_does_so_then_and_not_before() {
        let asked = Duration::from_secs(20);
        let mut patience = Patience::new(Duration::from_secs(300));
        for wait in waits(&mut patience, Pace::Asked(asked), 9).await {
            assert!(wait >= asked && wait <= asked + LONGEST_SILENT + Duration::from_millis(2));
        }
    }

    /// What a seed that says no pays for a node in ROOTDELAY: its handshakes.
    #[tokio::test(start_paused = true)]
    async fn who_is_refused_asks_rarely() {
        let mut patience = Patience::new(Duration::from_secs(180));
        let mut asked = 1;
        while patience.wait(Pace::Answered).await {
            asked += 1;
        }
        assert!((8..=18).contains(&asked), "{asked} times");
    }

    /// A seed that was silent for long, and then refuses, is not asked more often for it; one that
    /// refused for long and then is silent is looked for at the pace of the silent.
    #[tokio::test(start_paused = true)]
    async fn paces_may_alternate() {
        let mut patience = Patience::new(FOREVER);
        waits(&mut patience, Pace::Answered, 12).await;
        let silent = waits(&mut patience, Pace::Silent, 3).await;
        assert!(
            silent
                .iter()
                .all(|wait| *wait <= LONGEST_SILENT + Duration::from_millis(2))
        );
        let answered = waits(&mut patience, Pace::Answered, 3).await;
        assert!(
            answered
                .iter()
                .all(|wait| *wait >= LONGEST_SILENT / 2 - Duration::from_millis(2))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn once_never_waits_and_forever_never_gives_up() {
        let mut once = Patience::new(ONCE);
        assert!(once.is_exhausted());
        let before = Instant::now();
        assert!(!once.wait(Pace::Silent).await);
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert!(!Patience::of_transfer(ONCE).is_exhausted());

        let mut forever = Patience::new(FOREVER);
        assert_eq!(forever.left(), None);
        waits(&mut forever, Pace::Answered, 2_000).await;
        assert!(before.elapsed() > Duration::from_secs(12 * 3600));
        assert!(!forever.is_exhausted());
    }

    #[test]
    fn jitter_differs() {
        let some = (0..20)
            .map(|_| jittered(Duration::from_secs(8)))
            .collect::<Vec<_>>();
        assert!(some.iter().any(|wait| *wait != some[0]), "{some:?}");
    }
}
