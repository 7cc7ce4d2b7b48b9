//! Faults, injected for real into the real programs, and what came of each.
//!
//! A [`Fault`] is a row of the table that `cargo xtask faults` prints. Its function injects the fault
//! into programs of its own, counts how often it really fired, holds the programs to what must happen
//! and says what did. To add a row: write `pub(super) const NAME: Fault` in the file of its group and
//! name it in [`ALL`] or, where it needs a virtual machine, in [`MACHINES`]. A row that must not only
//! survive but be compared uses a [`Drill`]: the same download with and without the fault, in one run.
//! How much longer it may take is the row's [`Bound`], which the command holds it to, and no test.
//!
//! [`boots`] is no row: many machines in a row over cables that lose packets (`cargo xtask boots`).

mod bad_cables;
pub mod boots;
mod bound;
mod catalogue;
mod disk;
mod door;
mod drill;
mod joins;
mod links;
pub mod machines;
mod memory;
mod peers;
pub mod power;
mod reach;
mod refusals;
mod seeds;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

pub use bound::{Beyond, Bound};
pub use drill::{Drill, Running};

/// What fails a row: one line.
pub type Failure = Box<dyn Error>;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its name on the command line and in the table: `group: what`.
    pub name: &'static str,
    /// Free space it needs in its directory, in bytes.
    pub need_bytes: u64,
    /// How much longer the last node may take than without it, where that is a question: for
    /// [`Fault::judge`] alone.
    pub bound: Option<Bound>,
    /// Injects it, with an empty directory of its own.
    pub inject: fn(&Path) -> Result<Outcome, Failure>,
}

/// What came of a fault.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How often it fired: counted where it was injected, never assumed. None fails the row.
    pub fired: u64,
    /// What was counted, in the plural: "packets dropped", "nodes killed".
    pub unit: &'static str,
    /// What happened, in a few words.
    pub outcome: String,
    /// How much longer the last node took than without the fault, where that is a question.
    pub added: Option<Added>,
}

/// The times of the last node with and without a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Added {
    /// Without.
    pub without: Duration,
    /// With.
    pub with: Duration,
}

impl std::fmt::Display for Added {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (with, without) = (self.with.as_secs_f64(), self.without.as_secs_f64());
        write!(f, "{:+.1} s on {without:.1} s", with - without)
    }
}

/// The rows in virtual machines, last in the table: a minute or some each.
pub const MACHINES: &[Fault] = &[
    machines::MODULE_MISSING,
    machines::IMAGE_LARGER_THAN_RAM,
    machines::CLOCKS,
    machines::FIRST_SEED_DESTROYED,
    machines::SEED_AWAY,
    machines::AGENT_DIES,
    power::POWER_OFF,
];

/// Every other row, in the order of the table.
pub const ALL: &[Fault] = &[
    links::LOSS_1,
    links::LOSS_5,
    links::LOSS_3_NOT_SHAPED,
    links::MTU_9000,
    links::MTU_9000_NOT_SHAPED,
    links::MTU_1500,
    links::MTU_1280,
    links::BLACK_HOLE,
    links::BLACK_HOLE_LATE,
    links::DOWN_1,
    links::DOWN_10,
    links::DOWN_60,
    bad_cables::DELAY,
    bad_cables::REORDER,
    bad_cables::DUPLICATE,
    bad_cables::CORRUPT,
    bad_cables::ALL_AT_ONCE,
    joins::TWICE,
    joins::LATE,
    joins::MISSING,
    joins::SEED_LATE,
    joins::ONE_ADDRESS,
    refusals::PASSING,
    refusals::SEED_AWAY,
    seeds::KILLED_10,
    seeds::KILLED_50,
    seeds::KILLED_90,
    peers::VANISHED,
    peers::FROZEN,
    peers::UNPLUGGED,
    reach::MOVED,
    reach::FLAPS,
    reach::FIREWALLS,
    reach::CLOSED,
    peers::UNREACHABLE,
    peers::KILLED_MIDWAY,
    memory::IMAGE_TOO_LARGE,
    disk::SOURCE_REPLACED,
    disk::COPY_DAMAGED,
    disk::PUBLISHED_IN_A_LOOP,
    disk::STATE_FULL,
    door::LOCKED,
    door::HELD_JOINS,
    door::HELD_HTTP,
    catalogue::AT_ONCE,
    catalogue::YESTERDAYS_PIN,
    catalogue::SLOW_DOWNLOAD,
    catalogue::COMES_LATE,
];

impl Fault {
    /// Injects it in `directory`.
    ///
    /// # Errors
    /// When the programs do not do what they must, or the fault never fired.
    pub fn run(&self, directory: &Path) -> Result<Outcome, Failure> {
        let outcome = (self.inject)(directory)?;
        if outcome.fired == 0 {
            return Err(format!("the fault never fired: 0 {}", outcome.unit).into());
        }
        Ok(outcome)
    }

    /// Whether what it cost is within its bound. For the command, on a machine with little else to do:
    /// a test that cargo runs does not ask.
    ///
    /// # Errors
    /// When it is beyond it.
    pub fn judge(&self, outcome: &Outcome) -> Result<(), Beyond> {
        self.bound
            .map_or(Ok(()), |bound| bound.judge(outcome.added))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different() {
        let rows = || ALL.iter().chain(MACHINES).map(|fault| fault.name);
        let mut names: Vec<&str> = rows().collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows().count());
    }

    #[test]
    fn every_row_of_links_and_cables_has_a_bound() {
        let is_of_a_link = |name: &str| name.starts_with("links:") || name.starts_with("cables:");
        for fault in ALL.iter().filter(|fault| is_of_a_link(fault.name)) {
            let bound = fault.bound.expect(fault.name);
            assert!(bound.factor >= 1.0, "{}: {bound}", fault.name);
        }
    }

    #[test]
    fn a_row_is_judged_by_its_own_bound() {
        let fault = |bound| Fault {
            name: "test",
            need_bytes: 0,
            bound,
            inject: |_| Err("not injected".into()),
        };
        let outcome = |added| Outcome {
            fired: 1,
            unit: "tests",
            outcome: String::new(),
            added,
        };
        let slow = Some(Added {
            with: Duration::from_secs(10),
            without: Duration::from_secs(4),
        });
        for (bound, added, is_within) in [
            (None, None, true),
            (None, slow, true),
            (Some(Bound::times(3.0)), slow, true),
            (Some(Bound::times(2.0)), slow, false),
            (Some(Bound::after(2, 2.0)), slow, true),
            (Some(Bound::times(2.0)), None, false),
        ] {
            let judged = fault(bound).judge(&outcome(added));
            assert_eq!(judged.is_ok(), is_within, "{bound:?}, {added:?}");
        }
    }

    #[test]
    fn a_fault_that_did_not_fire_proves_nothing() {
        let fault = |fired| Fault {
            name: "test",
            need_bytes: 0,
            bound: None,
            inject: match fired {
                true => |_| {
                    Ok(Outcome {
                        fired: 1,
                        unit: "tests",
                        outcome: String::new(),
                        added: None,
                    })
                },
                false => |_| {
                    Ok(Outcome {
                        fired: 0,
                        unit: "tests",
                        outcome: String::new(),
                        added: None,
                    })
                },
            },
        };
        assert!(fault(true).run(Path::new("/")).is_ok());
        let error = fault(false).run(Path::new("/")).expect_err("nothing fired");
        assert_eq!(error.to_string(), "the fault never fired: 0 tests");
    }

    #[test]
    fn added_time_says_what_it_is_added_to() {
        let added = |with, without| Added {
            with: Duration::from_millis(with),
            without: Duration::from_millis(without),
        };
        assert_eq!(added(7_500, 5_000).to_string(), "+2.5 s on 5.0 s");
        assert_eq!(added(4_900, 5_000).to_string(), "-0.1 s on 5.0 s");
    }
}
