//! Runs mixtures of faults and prints those that went wrong:
//! `cargo run --release -p rootswarm-sim --example mixed [FIRST [COUNT]]`.
#![allow(clippy::print_stdout, reason = "what went wrong is what it is for")]

use rootswarm_sim::{Sometimes, cases, run};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse().ok());
    let (first, count) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(1_000));
    let (mut sometimes, mut failed) = (Sometimes::default(), 0);
    let mut slowest: Vec<(f64, u64)> = Vec::new();
    for seed in first..first + count {
        let plan = cases::mixed(seed);
        let outcome = run(&plan, seed);
        sometimes.add(&outcome.sometimes);
        slowest.push((outcome.last_end_s - outcome.bound_s, seed));
        if count == 1 {
            println!("{plan:?}\n{:?}", outcome.finished_s);
        }
        if !outcome.violations.is_empty() {
            failed += 1;
            println!("seed {seed}: {plan:?}");
            for violation in outcome.violations.iter().take(4) {
                println!("    {violation}");
            }
        }
    }
    println!("{failed} of {count} went wrong");
    slowest.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!(
        "longest beyond the bound, in seconds, and seed: {:.1?}",
        &slowest[..slowest.len().min(10)]
    );
    for (what, count) in sometimes.iter() {
        println!("{count:9} {what}");
    }
}
