//! The figures of a simulation for programs.

use rootswarm_sim::Source;
use serde_json::{Value, json};

use super::Run;

/// All runs.
pub fn json(runs: &[Run], source: &Source) -> Value {
    let runs: Vec<Value> = runs.iter().map(|run| one(run, source)).collect();
    json!({ "runs": runs })
}

fn one(run: &Run, source: &Source) -> Value {
    let (plan, outcome) = (&run.plan, &run.outcome);
    let progress: Vec<Value> = outcome
        .progress
        .iter()
        .map(|at| json!([at.at_s, at.slowest, at.median, at.fastest, at.seed_copies]))
        .collect();
    let misses: Vec<Value> = outcome
        .misses(&plan.expect)
        .iter()
        .map(|miss| json!({ "figure": miss.what, "found": miss.found, "most": miss.most }))
        .collect();
    let happened: serde_json::Map<String, Value> = outcome
        .sometimes
        .iter()
        .map(|(what, count)| (what.to_owned(), json!(count)))
        .collect();
    let violations: Vec<String> = outcome.violations.iter().map(ToString::to_string).collect();
    json!({
        "plan": plan.name,
        "seed": run.seed,
        "command": source.replay(run.seed),
        "nodes": plan.nodes,
        "image_bytes": plan.image_bytes,
        "chunk_bytes": plan.chunk_bytes,
        "node_bit_per_s": plan.node_link.up_bits,
        "seed_bit_per_s": plan.seed_link.up_bits,
        "efficiency": plan.efficiency,
        "bound_s": outcome.bound_s,
        "p50_over_bound": outcome.ratio(0.5),
        "p99_over_bound": outcome.ratio(0.99),
        "last_over_bound": outcome.ratio(1.0),
        "last_end_s": outcome.last_end_s,
        "node_s": outcome.finished_s,
        "unfinished": outcome.unfinished,
        "seed_copies": outcome.seed_copies,
        "rack_copies": outcome.rack_copies,
        "duplicate_share": outcome.waste,
        "control_bytes_per_node": outcome.control_bytes_per_node,
        "control_share": outcome.control_share,
        "requests": outcome.requests,
        "declined": outcome.declined,
        "failures": outcome.failures,
        "events": outcome.events,
        "wall_s": run.wall_s,
        "trace_hash": format!("{:016x}", outcome.trace_hash),
        "happened": happened,
        "violations": violations,
        "misses": misses,
        "progress_columns": ["at_s", "slowest", "median", "fastest", "seed_copies"],
        "progress": progress,
    })
}
