//! The other world under the swarm: a deterministic simulator.
//!
//! It runs the real [`rootswarm_swarm::Node`], the type that decides on the wire, with thousands
//! of nodes in one process: discrete events, links as queues, no clock, no task. The same
//! [`Plan`] and seed give the same run, event by event; [`Outcome::trace_hash`] says so.
//!
//! [`run`] is the whole interface: a plan goes in, figures and violations come out. `PLANS.md` says
//! how plans are written and run (`cargo xtask sim`), and how a run is run again.
//!
//! - `plan`: what is simulated; `plan_file` reads it from TOML, field by field, `quantity` the
//!   units in it, and `plans` finds those that have a name (`plans/*.toml`);
//! - `mixed`: small swarms with mixtures of faults by chance;
//! - `world`: the hosts, the connections and what the transport would do;
//! - `nic`: the links, as arithmetic;
//! - `events`: the queue of what happens next, a calendar; `slots` what its events carry;
//! - `faults`: what goes wrong on purpose, and proof that it did;
//! - `checkers`: what must never happen, watched from outside the world;
//! - `metrics`: how long it took, over the bound of the fluid model;
//! - `progress`: where the nodes were over time.
//!
//! The links are lossless queues unless the plan says what they lose; how that is made good is in
//! `world/recovery`, what racks share in `world/rack`.
//!
//! Not modelled: slow start and the search for a link's rate (each upload has a window), buffers
//! that overflow, CPU time other than verification's, and traffic that is not the swarm's.
#![forbid(unsafe_code)]

mod checkers;
mod events;
mod faults;
mod metrics;
mod mixed;
mod nic;
mod plan;
mod plan_file;
mod plans;
mod progress;
mod quantity;
mod slots;
mod world;

pub use checkers::Violation;
pub use faults::{Fault, Sometimes, When, Who};
pub use metrics::{Miss, Outcome};
pub use mixed::mixed;
pub use plan::{Arrivals, Defect, Expect, Holders, Link, Plan, Racks};
pub use plan_file::{Override, PlanError, parse as parse_plan};
pub use plans::{MIXED, Source, directory as plans_directory, named_plans};
pub use progress::Sample;

/// Runs a plan. The run follows from the two arguments alone.
pub fn run(plan: &Plan, seed: u64) -> Outcome {
    world::World::new(plan, seed).run()
}
