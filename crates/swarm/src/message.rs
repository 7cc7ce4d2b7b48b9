//! What nodes say to each other on the control stream. The bytes are in `codec` and WIRE.md.

use crate::id::NodeId;
use rootswarm_image::{ChunkIndex, ImageId};
use std::net::SocketAddr;

/// The versions of WIRE.md that are spoken. TLS settles which one a connection speaks, before its first
/// frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wire {
    /// Without the messages that say who can be reached.
    V3,
    /// All there is.
    V4,
}

/// The first frame in each direction of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The image this connection is about: a connection serves one image.
    pub image: ImageId,
    /// What the sender holds.
    pub have: Have,
    /// Where the sender stands, for locality. At most [`crate::limits::RACK_BYTES_MAX`] bytes.
    pub rack: Option<String>,
}

/// What a node holds when a connection starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Have {
    /// Nothing yet.
    Nothing,
    /// Every chunk.
    Everything,
    /// One bit per chunk, chunk 0 in the lowest bit of the first byte, spare bits zero.
    Bits(Vec<u8>),
}

/// A run of consecutive chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRun {
    /// The first chunk.
    pub first: ChunkIndex,
    /// How many chunks, at least 1.
    pub count: u32,
}

/// How to reach a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Who must answer there: the connection is refused when its certificate says otherwise.
    pub node: NodeId,
    /// The address that a third node observed.
    pub addr: SocketAddr,
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The sender now holds these chunks too.
    Have(Vec<ChunkRun>),
    /// Please send this chunk. Answered by a chunk stream, or by `Busy`.
    Request(ChunkIndex),
    /// The request is declined: all upload slots and queue places are taken, or the chunk is
    /// not (or no longer) held. Ask elsewhere, or again a little later.
    Busy(ChunkIndex),
    /// The request is withdrawn.
    Cancel(ChunkIndex),
    /// Nodes that the sender knows of (peer exchange). Hints.
    Peers(Vec<PeerAddress>),
    /// From the tracker: dial these. They are the receiver's neighbours in the overlay.
    Dial(Vec<PeerAddress>),
    /// From the tracker: these are no longer the receiver's neighbours.
    Drop(Vec<NodeId>),
    /// Asks for `Peers`: the sender has fewer neighbours than it should.
    WantPeers,
    /// Whether the receiver should announce its chunks here. A tracker that has enough
    /// neighbours says `false` and learns of the rest from `Progress` alone.
    WantHaves(bool),
    /// To the tracker, once a second: how many chunks the sender holds.
    Progress(u32),
    /// The sender has a slot free and holds these chunks, rarest first, of which the receiver is
    /// not known to hold any. Answered by a `Request` for one of them, `NoRoom` or `NotNeeded`. At
    /// most [`crate::limits::OFFER_CHUNKS`].
    Offer(Vec<ChunkIndex>),
    /// The offer is declined: as much as is allowed is under way to the sender of this.
    NoRoom,
    /// The offer is declined: all of these chunks are held already, or under way.
    NotNeeded,
    /// From a seed: whose admission was taken back.
    Revoked(Revocations),
    /// To the tracker: what became of the sender's dials to these. At most
    /// [`crate::limits::ADDRESSES_MAX`]. Since version 4.
    Dialed {
        /// What.
        outcome: DialOutcome,
        /// Of whom.
        nodes: Vec<NodeId>,
    },
    /// From the tracker: connect to these, even if nothing is missing here, for they cannot connect to
    /// the receiver. Since version 4.
    Call(Vec<PeerAddress>),
    /// From the tracker: with how many nodes the receiver has no connection, whoever dials. Since
    /// version 4.
    CutOff(u32),
}

impl Message {
    /// The first version that has this message.
    pub fn wire(&self) -> Wire {
        match self {
            Message::Dialed { .. } | Message::Call(_) | Message::CutOff(_) => Wire::V4,
            _ => Wire::V3,
        }
    }
}

/// What became of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DialOutcome {
    /// There is no answer yet, later than answers use to come.
    Unanswered,
    /// No answer came.
    GivenUp,
    /// There is a connection after all, whoever dialed; said of those who were reported as given up.
    Connected,
}

/// Whose admission was taken back: the whole list, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Grows with each change: an older list never replaces a newer one. 0 is "never changed".
    pub version: u64,
    /// The installation's epoch, which outlaws the certificates of those before the previous one.
    pub epoch: u32,
    /// Nodes that are out although their certificate's epoch is not; at most
    /// [`crate::limits::REVOKED_MAX`].
    pub nodes: Vec<NodeId>,
}
