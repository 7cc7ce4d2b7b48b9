//! Who fetches what from whom: the sans-IO heart of rootswarm.
//!
//! [`Node`] is one machine's part in the swarm of one image. The seed and the agent run the same
//! type; [`Role`] tells them apart. It has no socket, no clock, no randomness of its own and no
//! task. It handles chunk indexes and sizes, never payload bytes, so that one process can run
//! ten thousand of them (crate `rootswarm-sim`) while the very same code decides on the wire
//! (crate `rootswarm-transport`).
//!
//! # The contract
//!
//! The owner of a `Node` does three things, always with the present time as an argument:
//!
//! 1. [`Node::handle`] with each [`Input`], in the order in which things happened;
//! 2. [`Node::poll_output`] until it returns `None`, carrying out each [`Output`];
//! 3. [`Node::handle`] with [`Input::Timeout`] once the clock reaches [`Node::next_timeout`]
//!    (earlier is harmless).
//!
//! Time never runs backwards; a connection gets no input after [`Input::Disconnected`].
//!
//! # Architecture invariants
//!
//! - Nothing in this crate reads a clock, opens a socket, spawns, or draws entropy: time, the
//!   generator's seed and identities are arguments. `clippy.toml` beside `Cargo.toml` bans the
//!   ways to do so, and CI proves with `cargo tree` that no runtime, socket or QUIC crate is below it.
//! - The same inputs give the same outputs, bit for bit: no iteration over a hash map.
//! - Every queue, set and message is bounded; the bounds are in [`limits`].
//! - What a peer says is a hint. A lie costs time, never correctness: chunks are verified
//!   before [`ChunkOutcome::Verified`] is ever reported here.
#![forbid(unsafe_code)]

mod askers;
mod breadth;
mod codec;
mod flight;
mod id;
mod leeches;
pub mod limits;
mod locality;
mod membership;
mod message;
mod node;
mod peers;
mod picker;
mod replicas;
mod ring;
mod rng;
mod seeding;
mod sequence;
mod status;
mod supply;
mod time;
mod tracker;
mod uploads;

pub use codec::{DecodeError, decode_hello, decode_message, encode_hello, encode_message};
pub use id::{ConnId, NodeId, Role};
pub use message::{ChunkRun, DialOutcome, Have, Hello, Message, PeerAddress, Revocations, Wire};
pub use node::{ChunkOutcome, CloseReason, Config, Input, Node, Output, UploadOutcome};
pub use rng::Rng;
pub use sequence::bounded_sequence;
pub use status::{Ban, PeerReport, Report};
pub use time::Instant;
