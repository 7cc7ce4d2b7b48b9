//! One attempt at a connection to a member: up to an open control stream, with the node that was meant.
//!
//! Whom to dial and how often is the swarm's to decide, what a certificate has to say is `tls`'s, and
//! the finished connection's life is `link`'s.

use std::net::SocketAddr;

use quinn::{Connection, Endpoint};
use rootswarm_swarm::{NodeId, Role};
use tokio::time::timeout;

use crate::link::{self, HELLO_TIMEOUT, LinkError, Opened};
use crate::tls::{self, Dialer};
use crate::trust::PeerIdentity;

/// Connects to a node or seed and opens the control stream.
pub(crate) async fn open(
    endpoint: &Endpoint,
    dialer: &Dialer,
    addr: SocketAddr,
    expected: Option<NodeId>,
    role: Role,
) -> Result<Opened, OpenError> {
    let (connection, peer) = dialer.connect(endpoint, addr, role).await?;
    if let Some(expected) = expected.filter(|expected| *expected != peer.node_id) {
        connection.close(link::CLOSE_SWARM, b"you are not the node I was told of");
        return Err(OpenError::OtherNode {
            expected,
            found: peer.node_id,
        });
    }
    Ok(greet(connection, peer, addr).await?)
}

/// Opens the control stream of a connection to a member, who is known by now.
pub(crate) async fn greet(
    connection: Connection,
    peer: PeerIdentity,
    addr: SocketAddr,
) -> Result<Opened, LinkError> {
    let control = timeout(HELLO_TIMEOUT, link::open_control(&connection))
        .await
        .map_err(|_| LinkError::Silent)??;
    Ok(Opened {
        connection,
        node: peer.node_id,
        role: peer.role,
        epoch: peer.epoch,
        addr,
        dialed: true,
        control,
        hello: None,
        place: None,
    })
}

/// Why a dial did not make a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Connect(#[from] tls::ConnectError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("node {found} answered where node {expected} was expected")]
    OtherNode { expected: NodeId, found: NodeId },
}

impl OpenError {
    /// Whether somebody is there who answered, if only to refuse.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            OpenError::Connect(error) => error.is_refusal(),
            OpenError::Link(_) | OpenError::OtherNode { .. } => true,
        }
    }

    /// Whether the other side does not take this node's certificate.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            OpenError::Connect(error) => error.is_refusal(),
            OpenError::Link(error) => error.is_refusal(),
            OpenError::OtherNode { .. } => false,
        }
    }
}
