//! The real world under the swarm: QUIC, TLS identity, stores.

pub mod identity;
pub mod limiter;
pub mod socket;
pub mod store;
pub mod tls;
pub mod trust;
pub mod tuning;
