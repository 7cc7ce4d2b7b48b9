//! The scheduler in the simulator: how close to the bound, and what it survives.

use rootswarm_sim::{Fault, Outcome, Plan, Sometimes, When, cases, run};

fn case(name: &str) -> Plan {
    let found = cases::all().into_iter().find(|plan| plan.name == name);
    found.unwrap_or_else(|| panic!("no case {name}"))
}

fn check(plan: &Plan, seed: u64) -> Outcome {
    let outcome = run(plan, seed);
    assert!(
        outcome.violations.is_empty(),
        "{}, seed {seed}: {:#?}",
        plan.name,
        outcome.violations
    );
    assert_eq!(outcome.unfinished, 0);
    outcome
}

/// Bounds on the last node over T* and on the seed's copies, for some seeds each.
#[test]
fn without_faults_it_is_close_to_the_bound() {
    for (name, ratio_max, copies_max) in [
        ("8 nodes", 1.06, 1.05),
        ("24 nodes", 1.10, 1.05),
        ("16 nodes, seed 10x", 1.05, 1.05),
        ("1 node", 1.02, 1.0),
        ("2 nodes", 1.05, 1.02),
        ("4 nodes, 10 Gbit", 1.30, 1.05),
        ("8 nodes, 1 Gbit", 1.08, 1.05),
        ("9 nodes, seed 1 Mbit", 1.10, 1.05),
        ("late joiner, seed 1 Mbit", 0.0115, 0.02),
        ("50 nodes within 10 s", 1.12, 1.05),
        ("8 nodes with a half each", 0.60, 0.10),
        ("full peer, seed 1 Mbit", 0.05, 0.05),
    ] {
        for seed in 1..=2 {
            let outcome = check(&case(name), seed);
            let (ratio, copies) = (outcome.ratio(), outcome.seed_copies);
            assert!(
                ratio <= ratio_max,
                "{name}, seed {seed}: {ratio:.3} of the bound"
            );
            assert!(
                copies <= copies_max + 0.001,
                "{name}, seed {seed}: {copies:.3} copies from the seed"
            );
        }
    }
}

/// A hundred nodes: more than the seed feeds, and neighbours by the tracker's rings.
#[test]
fn a_hundred_nodes() {
    let mut plan = case("100 nodes");
    plan.image_bytes = 48 << 20;
    let outcome = check(&plan, 1);
    assert!(outcome.ratio() < 1.35, "{:.3}", outcome.ratio());
    assert!(outcome.seed_copies < 1.10, "{:.3}", outcome.seed_copies);
    // One percent of the image for control, at most.
    assert!(outcome.control_bytes_per_node < plan.image_bytes as f64 / 100.0);
}

/// Each case ends, keeps to the checkers' rules, and its fault has really struck.
#[test]
fn faults_are_survived() {
    for (name, within, struck) in [
        ("seed killed at 1.0", 1.2, "seed killed"),
        ("seed killed at 0.5, back", 2.5, "seed back"),
        ("half vanish", 1.6, "vanished while fetching"),
        ("half freeze", 1.6, "frozen"),
        ("half freeze, thaw", 1.8, "thawed"),
        ("a corrupter", 1.6, "corrupt chunk"),
        ("30 % liars", 3.0, "lie"),
        ("30 % silent liars", 3.5, "lie"),
        ("lost dials", 1.3, "lost dial"),
        ("slow nodes", 6.0, "slow node"),
    ] {
        let outcome = check(&case(name), 1);
        assert!(outcome.sometimes.count(struck) > 0, "{name}: no {struck}");
        let ratio = outcome.ratio();
        assert!(ratio <= within, "{name}: {ratio:.3} of the bound");
    }
}

/// Mixtures of faults by chance. Together they must have exercised every kind.
#[test]
fn mixed_faults() {
    let mut sometimes = Sometimes::default();
    for seed in 0..150 {
        let plan = cases::mixed(seed);
        let outcome = run(&plan, seed);
        assert!(
            outcome.violations.is_empty(),
            "seed {seed}: {plan:#?}\n{:#?}",
            outcome.violations
        );
        sometimes.add(&outcome.sometimes);
    }
    for what in [
        "busy",
        "cancel",
        "chunk broken",
        "chunk fell silent",
        "chunk stopped",
        "corrupt chunk",
        "frozen",
        "idle timeout",
        "lie",
        "lost dial",
        "request to the seed",
        "seed back",
        "thawed",
        "upload cancelled",
        "upload refused",
        "upload stalled",
        "vanished while fetching",
    ] {
        assert!(sometimes.count(what) > 0, "never: {what}");
    }
}

/// The canary: whoever takes a corrupt chunk must ban its sender, and a checker must see it if
/// nobody is banned.
#[test]
fn a_corrupter_is_caught() {
    let outcome = check(&case("a corrupter"), 3);
    assert!(outcome.sometimes.count("corrupt chunk") > 0);
    // One bad chunk each, and no second from the same sender.
    assert_eq!(
        outcome.bans as u64,
        outcome.sometimes.count("corrupt chunk")
    );
}

/// The checkers can fail: a swarm whose only source dies for good must be reported.
#[test]
fn a_swarm_that_cannot_finish_is_reported() {
    let mut plan = case("8 nodes");
    plan.limit_us = 20_000_000;
    plan = plan.faults(vec![Fault::SeedKilled {
        when: When::AtUs(1_000_000),
        back_after_us: None,
    }]);
    let outcome = run(&plan, 1);
    assert_eq!(outcome.unfinished, 8);
    assert_eq!(outcome.violations.len(), 8);
}

/// The same plan and seed are the same run; another seed is another.
#[test]
fn runs_are_reproducible() {
    for plan in [case("8 nodes"), cases::mixed(5), cases::mixed(17)] {
        let (first, second, other) = (run(&plan, 9), run(&plan, 9), run(&plan, 10));
        assert_eq!(first.trace_hash, second.trace_hash);
        assert_eq!(first.events, second.events);
        assert_eq!(first.finished_s, second.finished_s);
        assert_ne!(first.trace_hash, other.trace_hash);
    }
}
