//! The cases that have a name: what the scheduler is tuned and held to.

use crate::faults::{Fault, When};
use crate::plan::{Arrivals, Holders, Plan};
use rootswarm_swarm::Rng;

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
        Plan::new("1,000 nodes, 1 Gbit", 1_000, 1_000.0, 1_000.0),
        Plan::new("100 nodes, 1 GB", 100, 1_000.0, 1_000.0).image(1_000_000_000, MIB / 2),
        Plan::new("9 nodes, seed 1 Mbit", 9, 100.0, 1.0).image(16 * MIB, MIB / 4),
        // F/u is a hundredth of the bound, which is the seed's uplink alone.
        Plan {
            arrivals: Arrivals::Late {
                nodes: 1,
                at_us: 20_000_000,
            },
            holders: Holders::Complete(8),
            ..Plan::new("late joiner, seed 1 Mbit", 9, 100.0, 1.0)
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

/// A small swarm with a mixture of faults, all drawn from `seed`. Whatever is drawn, every node
/// that is not itself at fault can finish: the seed is there, or comes back.
pub fn mixed(seed: u64) -> Plan {
    let mut rng = Rng::new(seed ^ 0x006d_6978);
    let mbit = [20.0, 100.0, 1_000.0][rng.below(3)];
    let seed_factor = [0.1, 1.0, 1.0, 10.0][rng.below(4)];
    let nodes = 2 + rng.below(14);
    let chunk = [MIB / 16, MIB / 8, MIB / 4][rng.below(3)];
    let bytes = rng.between(chunk, 12 * MIB);
    let mut plan = Plan::new("mixed", nodes, mbit, mbit * seed_factor).image(bytes, chunk);
    plan.holders = match rng.below(4) {
        0 => Holders::Share(0.3),
        _ => Holders::Seed,
    };
    plan.arrivals = match rng.below(3) {
        0 => Arrivals::Late {
            nodes: 1,
            at_us: 3_000_000,
        },
        1 => Arrivals::Within {
            spread_us: 2_000_000,
        },
        _ => Arrivals::Within { spread_us: 10_000 },
    };
    plan.latency_us = [100, 100, 2_000][rng.below(3)];
    plan.jitter_us = [0, 100, 5_000][rng.below(3)];
    plan.limit_us = 300_000_000;
    plan.linger_us = 12_000_000;
    // Faults strike within the time that the swarm needs without them.
    let busy_us = (plan.bound_us() * 1.2) as u64 + 20_000;
    let mut faults = Vec::new();
    for kind in 0..7 {
        if rng.below(3) != 0 {
            continue;
        }
        let when = When::AtUs(rng.between(0, busy_us));
        let share = [0.15, 0.3, 0.5][rng.below(3)];
        faults.push(match kind {
            0 => Fault::SeedKilled {
                when,
                back_after_us: Some(rng.between(100_000, 10_000_000)),
            },
            1 => Fault::Vanish { share, when },
            2 => Fault::Freeze {
                share,
                when,
                for_us: None,
            },
            3 => Fault::Freeze {
                share,
                when,
                for_us: Some(rng.between(10_000, 12_000_000)),
            },
            4 => Fault::Corrupt {
                share: share.min(0.3),
                chunks: [0.1, 1.0][rng.below(2)],
            },
            5 => Fault::Lie {
                share: share.min(0.3),
                silent: rng.below(2) == 0,
            },
            _ => Fault::LostDials { share },
        });
    }
    // A dozen chunks, frozen peers and pushes that overtake requests: the share says little.
    plan.waste_max = 2.0;
    plan.faults = faults;
    plan
}
