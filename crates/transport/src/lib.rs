//! The real world under the swarm: sockets, QUIC, TLS, stores and the only clock.
//!
//! `rootswarm_swarm` decides, this crate carries out. Data flows through it like this:
//!
//! ```text
//! socket ─ tls ─ join ──▶ who may speak: identity, trust; the manifest, from whom
//!             └─ link ──▶ control frames ─▶ driver ─▶ rootswarm_swarm::Node
//!                    └──▶ chunk streams ─▶ verifier ─▶ store
//! ```
//!
//! A seed is a [`seed::Seed`], a node a [`node::Node`], and what a second seed asks of the first
//! a [`mirror::Primary`]; the rest is theirs.
//!
//! # Architecture invariants
//!
//! - No data connection without both sides' certificates, verified by webpki against the swarm key
//!   ([`tls`], [`trust`]).
//! - Only a `VerifiedChunk` reaches a store ([`store::ChunkStore::write`]).
//! - Hashing and storing never run on the reactor.
//! - Bulk bytes are not copied on their way out: a store hands out slices of its map.
//! - Every queue and every wait has a bound; what exceeds it ends a chunk or a connection, never
//!   the process.

mod addresses;
pub mod blocking;
mod chunk_buffers;
mod conduct;
mod congestion;
#[cfg(test)]
mod connected;
mod connection_ids;
mod control_first;
mod dialing;
mod driver;
mod endpoint;
mod framing;
mod handing_on;
mod handouts;
pub mod http_proof;
pub mod identity;
mod inbox;
pub mod join;
mod joining;
pub mod limiter;
mod link;
pub mod mirror;
pub mod node;
mod outbox;
mod parting;
pub mod places;
mod reading_pace;
mod resets;
pub mod retries;
mod revoking;
pub mod seed;
mod seed_door;
mod seed_keeper;
pub mod socket;
pub mod status;
pub mod store;
mod swarm_handle;
pub mod tls;
pub mod trust;
pub mod tuning;
mod udp;
mod upload;
