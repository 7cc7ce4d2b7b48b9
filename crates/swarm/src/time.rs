//! The swarm's notion of time: a count of microseconds that its owner supplies.

use std::ops::{Add, Sub};
use std::time::Duration;

/// Microseconds since an origin that the owner of a node chooses, the same for all its inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The origin. No input may be earlier.
    pub const ZERO: Instant = Instant(0);

    /// Time since `earlier`; zero when `earlier` lies in the future.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, delay: Duration) -> Instant {
        Instant(
            self.0
                .saturating_add(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, delay: Duration) -> Instant {
        Instant(
            self.0
                .saturating_sub(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)),
        )
    }
}
