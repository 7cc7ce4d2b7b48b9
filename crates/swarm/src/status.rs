//! What a node can tell about itself: counts for status displays, tests and checkers.

use crate::id::{NodeId, Role};
use std::net::SocketAddr;
use std::time::Duration;

/// A snapshot of one node.
#[derive(Clone, Debug)]
pub struct Report {
    /// Chunks of the image.
    pub chunks_total: u32,
    /// Chunks held and verified.
    pub chunks_have: u32,
    /// Chunks on their way here.
    pub in_flight: usize,
    /// Chunks that came from seeds.
    pub chunks_from_seed: u64,
    /// Chunks that came from peers.
    pub chunks_from_peers: u64,
    /// Verified chunks that were held already: the price of the endgame and of crossed pushes.
    pub chunks_duplicate: u64,
    /// Chunks delivered to others.
    pub chunks_uploaded: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests that were declined.
    pub declined: u64,
    /// Requests and chunks that were given up because time ran out or the stream broke.
    pub failures: u64,
    /// The connected nodes. One counts once it has said hello: QUIC calls a connection made before the other
    /// side has looked at this one's certificate.
    pub peers: Vec<PeerReport>,
    /// The nodes that were banned, in order.
    pub bans: Vec<Ban>,
    /// With how many nodes this one has no connection, whoever dials, as its seeds say.
    pub cut_off_from: u32,
}

/// What a node knows of one connected node.
#[derive(Clone, Debug)]
pub struct PeerReport {
    /// Its identity.
    pub node: NodeId,
    /// Its observed address.
    pub addr: SocketAddr,
    /// Seed or peer.
    pub role: Role,
    /// Where it says it stands.
    pub rack: Option<String>,
    /// Chunks it is known to hold.
    pub chunks_have: u32,
    /// Whether it holds them all.
    pub is_complete: bool,
    /// Age of the connection.
    pub connected_for: Duration,
    /// From connecting to holding everything, once it does.
    pub complete_after: Option<Duration>,
    /// With how many nodes it has no connection, whoever dials, and not for their fault (at a seed).
    pub cut_off_from: u32,
    /// Others have said that it does not answer them (at a seed).
    pub is_hard_to_reach: bool,
}

/// A node that will not be talked to again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ban {
    /// Who.
    pub node: NodeId,
    /// Where it was.
    pub addr: SocketAddr,
    /// What it did.
    pub reason: String,
}
