//! The real world under the swarm: QUIC, TLS identity, stores.

mod driver;
mod framing;
pub mod identity;
mod join;
pub mod limiter;
mod link;
pub mod node;
pub mod seed;
pub mod socket;
pub mod status;
pub mod store;
pub mod tls;
pub mod trust;
pub mod tuning;
