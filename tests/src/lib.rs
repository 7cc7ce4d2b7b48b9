//! What tests, demo and bench share: network namespaces, child processes and the lab that compares
//! rootswarm with other tools.
//!
//! Everything here is a guard: dropping it ends or removes what it stands for, also after a panic,
//! and the [`keeper`] does it for a process that was killed. What is tested is not here but in
//! `tests/tests/`.

pub mod bad_cable;
pub mod bench;
pub mod cargo;
pub mod cgroup;
pub mod crowd;
pub mod faults;
pub mod hostile;
pub mod keeper;
pub mod last_landed;
pub mod members;
pub mod netns;
pub mod network;
pub mod packages;
pub mod process;
pub mod reaching;
pub mod scenario;
pub mod scratch;
pub mod sieve;
pub mod source;
pub mod swarm;
pub mod vm;
