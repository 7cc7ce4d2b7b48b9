//! Prints how the named cases go: `cargo run --release -p rootswarm-sim --example table [NAME…]`.
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use rootswarm_sim::{Outcome, cases, run};

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    println!("{}", Outcome::heading());
    for plan in cases::all() {
        if !names.is_empty() && !names.iter().any(|name| plan.name.contains(name.as_str())) {
            continue;
        }
        let began = std::time::Instant::now();
        let outcome = run(&plan, seed.unwrap_or(1));
        println!(
            "{} {:5.1}s",
            outcome.row(&plan.name),
            began.elapsed().as_secs_f64()
        );
        for violation in outcome.violations.iter().take(5) {
            println!("    {violation}");
        }
        if std::env::var("SOMETIMES").is_ok() {
            for (what, count) in outcome.sometimes.iter() {
                println!("    {count:8} {what}");
            }
            println!(
                "    requests {} declined {} dup {} ctlmsg/node {:.0} queue {}",
                outcome.requests,
                outcome.declined,
                outcome.duplicates,
                outcome.control_messages_per_node,
                outcome.downlink_queue_bytes_max
            );
        }
    }
}
