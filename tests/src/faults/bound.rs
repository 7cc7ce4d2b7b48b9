//! How much longer a download may take with a fault than without it.
//!
//! Only `cargo xtask faults` judges: the tests that cargo runs hold no time against anybody.

use std::fmt;
use std::time::Duration;

use super::Added;

/// The longest that the last node may take with a fault, by what its twin without the fault took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// For so long no byte can reach the node, whatever it does.
    pub down: Duration,
    /// And so many times as long as without the fault.
    pub factor: f64,
}

/// What is wrong with a row that is beyond its bound.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Beyond {
    /// It is too slow.
    #[error(
        "expected the last node within {:.1} s ({bound} of {:.1} s without the fault), found {:.1} s",
        bound.limit(added.without).as_secs_f64(),
        added.without.as_secs_f64(),
        added.with.as_secs_f64()
    )]
    Slow {
        /// What was expected.
        bound: Bound,
        /// What was found.
        added: Added,
    },
    /// It has a bound, and nothing was measured.
    #[error("expected the times with and without the fault, found none")]
    NotMeasured,
}

impl Bound {
    /// So many times as long as without the fault.
    pub const fn times(factor: f64) -> Bound {
        Bound {
            down: Duration::ZERO,
            factor,
        }
    }

    /// The same for a node whose link is down for so many seconds.
    pub const fn after(down_s: u64, factor: f64) -> Bound {
        Bound {
            down: Duration::from_secs(down_s),
            factor,
        }
    }

    /// The longest that the last node may take when it takes `without` without the fault.
    pub fn limit(self, without: Duration) -> Duration {
        self.down + without.mul_f64(self.factor)
    }

    /// Whether what a row measured is within the bound.
    ///
    /// # Errors
    /// When it is not, or when there is nothing to judge.
    pub fn judge(self, added: Option<Added>) -> Result<(), Beyond> {
        let added = added.ok_or(Beyond::NotMeasured)?;
        if added.with > self.limit(added.without) {
            return Err(Beyond::Slow { bound: self, added });
        }
        Ok(())
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.down.is_zero() {
            write!(f, "{} s + ", self.down.as_secs())?;
        }
        write!(f, "{} x", self.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(with_ms: u64, without_ms: u64) -> Added {
        Added {
            with: Duration::from_millis(with_ms),
            without: Duration::from_millis(without_ms),
        }
    }

    #[test]
    fn what_is_within_a_bound_and_what_is_beyond() {
        let cases = [
            // As fast, faster, and just at the bound.
            (Bound::times(2.0), added(4_000, 4_000), true),
            (Bound::times(2.0), added(3_900, 4_000), true),
            (Bound::times(2.0), added(8_000, 4_000), true),
            (Bound::times(2.0), added(8_001, 4_000), false),
            (Bound::times(1.5), added(7_000, 4_000), false),
            // The collapse at an MTU of 9000: one node, 4 nodes, 4 nodes of 200 Mbit.
            (Bound::times(4.0), added(54_900, 300), false),
            (Bound::times(4.0), added(17_500, 750), false),
            (Bound::times(4.0), added(17_500, 4_200), false),
            // A link that is down adds the time for which it is, once.
            (Bound::after(60, 2.0), added(67_900, 4_000), true),
            (Bound::after(60, 2.0), added(68_100, 4_000), false),
            (Bound::after(1, 2.0), added(9_000, 4_000), true),
            (Bound::after(1, 2.0), added(10_000, 4_000), false),
            // A twin that took no time bounds all but the time of the fault.
            (Bound::times(2.0), added(1, 0), false),
            (Bound::after(1, 2.0), added(1_000, 0), true),
        ];
        for (bound, added, is_within) in cases {
            let expected = match is_within {
                true => Ok(()),
                false => Err(Beyond::Slow { bound, added }),
            };
            assert_eq!(bound.judge(Some(added)), expected, "{bound}: {added}");
        }
    }

    #[test]
    fn a_bound_without_a_measurement_is_not_kept() {
        let judged = Bound::times(100.0).judge(None);
        assert_eq!(judged, Err(Beyond::NotMeasured));
    }

    #[test]
    fn who_is_beyond_says_what_was_expected_and_what_was_found() {
        let cases = [
            (
                Bound::times(4.0),
                added(54_900, 300),
                "expected the last node within 1.2 s (4 x of 0.3 s without the fault), found 54.9 s",
            ),
            (
                Bound::after(10, 1.5),
                added(20_000, 5_000),
                "expected the last node within 17.5 s (10 s + 1.5 x of 5.0 s without the fault), \
                 found 20.0 s",
            ),
        ];
        for (bound, added, line) in cases {
            let beyond = bound.judge(Some(added)).expect_err("beyond the bound");
            assert_eq!(beyond.to_string(), line);
        }
    }
}
