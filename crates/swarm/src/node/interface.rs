//! What passes between a node and its owner: what it is made from, what it is told, what it wants done.
//!
//! Words only. What follows from an [`Input`] and when an [`Output`] comes is [`super::Node`]'s to
//! decide; what an `Output` costs and how it is carried out is the owner's.

use crate::id::{ConnId, NodeId, Role};
use crate::message::{Hello, Message, Revocations, Wire};
use rootswarm_image::{Bitfield, ChunkIndex, Geometry, ImageId};
use std::net::SocketAddr;

/// What a node is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's identity.
    pub node: NodeId,
    /// Its part.
    pub role: Role,
    /// The image.
    pub image: ImageId,
    /// The image's chunks; at most [`crate::limits::CHUNKS_MAX`].
    pub geometry: Geometry,
    /// The chunks held at the start.
    pub have: Bitfield,
    /// Where it stands.
    pub rack: Option<String>,
    /// Seeds the generator that spreads load. Not a secret.
    pub rng_seed: u64,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A connection is up and the node behind it proved its identity.
    Connected {
        /// Its name from here on.
        conn: ConnId,
        /// Who.
        node: NodeId,
        /// Its observed address: what others will be told.
        addr: SocketAddr,
        /// Seed or peer, as its certificate says.
        role: Role,
        /// Whether this side dialed.
        dialed: bool,
        /// What both sides speak on it.
        wire: Wire,
    },
    /// The first frame came.
    Hello {
        /// From where.
        conn: ConnId,
        /// What it says; its image is this node's.
        hello: Hello,
    },
    /// A control frame came.
    Message {
        /// From where.
        conn: ConnId,
        /// What it says.
        message: Message,
    },
    /// The connection is gone.
    Disconnected {
        /// Which.
        conn: ConnId,
    },
    /// A dial asked for by [`Output::Dial`] did not make a connection.
    DialFailed {
        /// To whom.
        node: NodeId,
        /// Somebody answered, who would not have it or was somebody else.
        answered: bool,
    },
    /// This side's address under a connection is none of this host's any more: who dialed it hears
    /// nothing.
    LocalGone {
        /// Which.
        conn: ConnId,
    },
    /// The other side sends from another address than the one from which it connected.
    RemoteMoved {
        /// Which.
        conn: ConnId,
    },
    /// The header of a chunk stream came.
    ChunkStarted {
        /// From where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// A chunk stream ended.
    ChunkEnded {
        /// From where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
        /// How.
        outcome: ChunkOutcome,
    },
    /// A chunk was verified and stored that came by another way than the swarm.
    ChunkStored {
        /// Which.
        index: ChunkIndex,
    },
    /// A reader waits for this chunk: it goes before all others.
    Want {
        /// Which.
        index: ChunkIndex,
    },
    /// To a seed: whose admission was taken back. It is told to all nodes.
    Revoke(Revocations),
    /// An upload that [`Output::Upload`] began is over.
    UploadEnded {
        /// To where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
        /// How.
        outcome: UploadOutcome,
    },
    /// Nothing leaves for the receiver of an upload that [`Output::Upload`] began, although the network
    /// would take it: it does not read.
    UploadStalled {
        /// To where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// Time has passed.
    Timeout,
}

/// How the arrival of a chunk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkOutcome {
    /// It matches its hash and is in the store.
    Verified,
    /// It does not match its hash: its sender is banned.
    Corrupt,
    /// It broke off or fell silent.
    Broken,
}

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// The receiver acknowledged every byte.
    Delivered,
    /// The receiver stopped it, or it was cancelled.
    Refused,
    /// The connection failed under it, or time ran out.
    Failed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send the first frame.
    Hello {
        /// To where.
        conn: ConnId,
        /// What it says.
        hello: Hello,
    },
    /// Send a control frame.
    Send {
        /// To where.
        conn: ConnId,
        /// What it says.
        message: Message,
    },
    /// Open a stream and send a chunk; report [`Input::UploadEnded`].
    Upload {
        /// To where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// Break off an upload; it ends as [`UploadOutcome::Refused`].
    CancelUpload {
        /// To where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// Stop the arrival of a chunk. Its end is not reported, unless it was verified already.
    StopChunk {
        /// From where.
        conn: ConnId,
        /// Which chunk.
        index: ChunkIndex,
    },
    /// Connect to a node and see that it is the one named; report [`Input::Connected`] or
    /// [`Input::DialFailed`].
    Dial {
        /// Who.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
    },
    /// Close a connection. No input for it is expected any more.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// A seed said whose admission was taken back; certificates are the owner's to judge.
    Revoked(Revocations),
    /// Every chunk is held. Comes once.
    Complete,
}

/// Why a node closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// There is a better connection to the same node.
    #[error("duplicate connection")]
    Duplicate,
    /// As many connections as allowed.
    #[error("no room for more peers")]
    Full,
    /// It sent a chunk that does not match its hash.
    #[error("banned: it sent a chunk that does not match its hash")]
    Banned,
    /// It said something that no honest node says.
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    /// It let too many requests down in a row.
    #[error("too many unanswered requests")]
    Unresponsive,
    /// Its admission was taken back.
    #[error("revoked: its admission was taken back")]
    Revoked,
    /// Both hold everything.
    #[error("both sides are complete")]
    Done,
    /// The tracker rewired the overlay.
    #[error("no longer a neighbour")]
    Rewired,
    /// One side's address has changed.
    #[error("an address has changed: connect anew")]
    Moved,
}

impl CloseReason {
    /// Whether the other side did what no honest node does.
    #[must_use]
    pub fn is_offence(self) -> bool {
        matches!(self, CloseReason::Banned | CloseReason::Protocol(_))
    }
}
