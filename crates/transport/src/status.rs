//! What a running swarm shows: the snapshot behind progress lines and `rootswarm status`.

use rootswarm_image::ImageId;
use rootswarm_swarm::{NodeId, Report, Role};
use serde::Serialize;

/// Where a download stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Chunks are missing.
    Fetching,
    /// Every chunk is here and verified.
    Complete,
    /// This machine could not store a chunk; says why.
    Failed(String),
}

/// One side's view of the swarm of one image. Sizes in bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SwarmStatus {
    /// The image's id, in hex.
    pub image: String,
    /// Chunks of the image.
    pub chunks_total: u32,
    /// Chunks held.
    pub chunks_have: u32,
    /// The image's length.
    pub bytes_total: u64,
    /// Bytes held.
    pub bytes_have: u64,
    /// Bytes that came from seeds.
    pub bytes_from_seed: u64,
    /// Bytes that came from peers.
    pub bytes_from_peers: u64,
    /// Payload handed to the network, chunks that were broken off included.
    pub bytes_uploaded: u64,
    /// Verified bytes that were held already.
    pub duplicate_bytes: u64,
    /// Connected nodes, seeds not counted.
    pub peers: u32,
    /// Whether a seed is connected.
    pub seed_connected: bool,
    /// Time since the last chunk arrived, in milliseconds.
    pub idle_ms: u64,
    /// From taking part to the first chunk that arrived from another node, in milliseconds, once one
    /// did.
    pub first_chunk_ms: Option<u64>,
    /// Requests that were declined by busy peers.
    pub declined: u64,
    /// Requests and chunks that were given up.
    pub failures: u64,
    /// Nodes that sent bytes which do not belong to the image.
    pub banned: Vec<BannedNode>,
    /// The connected nodes.
    pub nodes: Vec<NodeInfo>,
    /// With how many nodes this one has no connection, whoever dials, as a seed said.
    pub cut_off_from: u32,
}

/// A node that is not talked to any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BannedNode {
    /// Its identity, shortened.
    pub node: String,
    /// Where it was.
    pub addr: String,
    /// What it did.
    pub reason: String,
}

/// A connected node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeInfo {
    /// Its identity, shortened.
    pub node: String,
    /// The whole of it.
    #[serde(skip)]
    pub id: NodeId,
    /// Its observed address.
    pub addr: String,
    /// Whether it is a seed.
    pub is_seed: bool,
    /// Where it says it stands: any text of at most 64 bytes.
    pub rack: Option<String>,
    /// Chunks it is known to hold.
    pub chunks_have: u32,
    /// Whether it holds them all.
    pub is_complete: bool,
    /// Age of the connection in milliseconds.
    pub connected_ms: u64,
    /// From connecting to holding everything, in milliseconds, once it does.
    pub complete_after_ms: Option<u64>,
    /// With how many nodes it has no connection, whoever dials, and not for their fault (at a seed).
    pub cut_off_from: u32,
    /// Nodes said of late that it does not answer them; then it is told to dial them (at a seed).
    pub is_hard_to_reach: bool,
}

impl SwarmStatus {
    pub(crate) fn new(image: ImageId, bytes_total: u64) -> SwarmStatus {
        SwarmStatus {
            image: image.to_string(),
            bytes_total,
            ..SwarmStatus::default()
        }
    }

    pub(crate) fn update(&mut self, report: &Report) {
        let millis =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.chunks_total = report.chunks_total;
        self.chunks_have = report.chunks_have;
        self.declined = report.declined;
        self.failures = report.failures;
        self.cut_off_from = report.cut_off_from;
        self.peers = report
            .peers
            .iter()
            .map(|peer| u32::from(peer.role == Role::Peer))
            .sum();
        self.seed_connected = report.peers.iter().any(|peer| peer.role == Role::Seed);
        self.banned = report
            .bans
            .iter()
            .map(|ban| BannedNode {
                node: ban.node.to_string(),
                addr: ban.addr.to_string(),
                reason: ban.reason.clone(),
            })
            .collect();
        self.nodes = report
            .peers
            .iter()
            .map(|peer| NodeInfo {
                node: peer.node.to_string(),
                id: peer.node,
                addr: peer.addr.to_string(),
                is_seed: peer.role == Role::Seed,
                rack: peer.rack.clone(),
                chunks_have: peer.chunks_have,
                is_complete: peer.is_complete,
                connected_ms: millis(peer.connected_for),
                complete_after_ms: peer.complete_after.map(millis),
                cut_off_from: peer.cut_off_from,
                is_hard_to_reach: peer.is_hard_to_reach,
            })
            .collect();
    }
}
