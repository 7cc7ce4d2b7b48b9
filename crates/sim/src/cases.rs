//! The cases that have a name: what the scheduler is tuned and held to.

use crate::faults::{Fault, When};
use crate::plan::{Arrivals, Holders, Plan};

const MIB: u64 = 1 << 20;

/// Every named case, in the order of the table.
pub fn all() -> Vec<Plan> {
    let mut plans = without_faults();
    plans.extend(with_faults());
    plans
}

/// Cases in which nothing goes wrong.
pub fn without_faults() -> Vec<Plan> {
    vec![
        Plan::new("8 nodes", 8, 100.0, 100.0),
        Plan::new("24 nodes", 24, 50.0, 50.0),
        Plan::new("16 nodes, seed 10x", 16, 50.0, 500.0),
        Plan::new("1 node", 1, 1_000.0, 1_000.0),
        Plan::new("2 nodes", 2, 1_000.0, 1_000.0),
        Plan::new("4 nodes, 10 Gbit", 4, 10_000.0, 10_000.0).image(1_000_000_000, MIB / 2),
        Plan::new("8 nodes, 1 Gbit", 8, 1_000.0, 1_000.0),
        Plan::new("100 nodes", 100, 100.0, 100.0),
        Plan::new("400 nodes, 1 Gbit", 400, 1_000.0, 1_000.0),
        Plan::new("100 nodes, 1 GB", 100, 1_000.0, 1_000.0).image(1_000_000_000, MIB / 2),
        Plan {
            arrivals: Arrivals::Late {
                nodes: 1,
                at_us: 60_000_000,
            },
            ..Plan::new("late joiner, seed 1 Mbit", 9, 100.0, 1.0).image(16 * MIB, MIB / 4)
        },
        Plan {
            arrivals: Arrivals::Within {
                spread_us: 10_000_000,
            },
            ..Plan::new("50 nodes within 10 s", 50, 100.0, 100.0)
        },
        Plan {
            holders: Holders::Complete(1),
            ..Plan::new("full peer, seed 1 Mbit", 4, 100.0, 1.0)
        },
        Plan {
            holders: Holders::Share(0.5),
            ..Plan::new("8 nodes with a half each", 8, 100.0, 100.0)
        },
    ]
}

/// Cases in which something does.
pub fn with_faults() -> Vec<Plan> {
    let killed = |copies, back_after_us| Fault::SeedKilled {
        when: When::SeedCopies(copies),
        back_after_us,
    };
    vec![
        Plan::new("seed killed at 1.0", 8, 100.0, 200.0).faults(vec![killed(1.0, None)]),
        Plan::new("seed killed at 0.5, back", 8, 100.0, 100.0)
            .faults(vec![killed(0.5, Some(3_000_000))]),
        Plan::new("half vanish", 16, 100.0, 100.0).faults(vec![Fault::Vanish {
            share: 0.5,
            when: When::AtUs(4_000_000),
        }]),
        Plan::new("half freeze", 16, 100.0, 100.0).faults(vec![Fault::Freeze {
            share: 0.5,
            when: When::AtUs(4_000_000),
            for_us: None,
        }]),
        Plan::new("half freeze, thaw", 16, 100.0, 100.0).faults(vec![Fault::Freeze {
            share: 0.5,
            when: When::AtUs(4_000_000),
            for_us: Some(3_000_000),
        }]),
        Plan::new("a corrupter", 8, 100.0, 100.0).faults(vec![Fault::Corrupt {
            share: 0.125,
            chunks: 1.0,
        }]),
        Plan::new("30 % liars", 16, 100.0, 100.0).faults(vec![Fault::Lie {
            share: 0.3,
            silent: false,
        }]),
        Plan::new("30 % silent liars", 16, 100.0, 100.0).faults(vec![Fault::Lie {
            share: 0.3,
            silent: true,
        }]),
        Plan::new("lost dials", 24, 100.0, 100.0).faults(vec![Fault::LostDials { share: 0.2 }]),
        Plan::new("slow nodes", 24, 100.0, 100.0).faults(vec![Fault::Slow {
            share: 0.25,
            factor: 0.2,
        }]),
    ]
}
