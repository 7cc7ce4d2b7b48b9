//! Mixtures of faults by chance: another small swarm for each seed.

use crate::faults::{Fault, When, Who};
use crate::plan::{Arrivals, Holders, Plan, Racks};
use rootswarm_swarm::Rng;

const MIB: u64 = 1 << 20;

/// A small swarm with a mixture of faults, all drawn from `seed`. Whatever is drawn, every node
/// that is not itself at fault can finish: the seed is there, or comes back.
pub fn mixed(seed: u64) -> Plan {
    let mut rng = Rng::new(seed ^ 0x006d_6978);
    let mbit = [20.0, 100.0, 1_000.0][rng.below(3)];
    let seed_factor = [0.1, 1.0, 1.0, 10.0][rng.below(4)];
    let nodes = 2 + rng.below(14);
    let chunk = [MIB / 16, MIB / 8, MIB / 4][rng.below(3)];
    let bytes = rng.between(chunk, 12 * MIB);
    let mut plan = Plan::new(crate::MIXED, nodes, mbit, mbit * seed_factor).image(bytes, chunk);
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
    plan.loss = [0.0, 0.0, 0.0, 0.01, 0.05][rng.below(5)];
    if nodes >= 4 && rng.below(4) == 0 {
        plan.racks = Some(Racks {
            count: 2 + rng.below(2),
            oversubscription: [1.0, 4.0][rng.below(2)],
            known: rng.below(2) == 0,
        });
    }
    plan.limit_us = 300_000_000;
    plan.linger_us = 12_000_000;
    // Faults strike within the time that the swarm needs without them.
    let busy_us = (plan.bound_us() / plan.efficiency * 1.2) as u64 + 20_000;
    let mut faults = Vec::new();
    for kind in 0..9 {
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
            1 => Fault::Vanish {
                who: Who::Share(share),
                when,
            },
            2 => Fault::Freeze {
                who: Who::Share(share),
                when,
                for_us: None,
            },
            3 => Fault::Freeze {
                who: Who::Share(share),
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
            6 => Fault::LostDials {
                share,
                nodes: 1.0,
                until_us: u64::MAX,
            },
            7 => Fault::Slow {
                who: Who::Share(share),
                factor: [0.2, 0.5][rng.below(2)],
            },
            _ => Fault::Firewall {
                share,
                answers: true,
            },
        });
    }
    // A dozen chunks, frozen peers and pushes that overtake requests: the share says little.
    plan.waste_max = 2.0;
    plan.faults = faults;
    plan
}
