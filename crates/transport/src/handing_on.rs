//! The manifest, handed on from member to newcomer.
//!
//! Each node needs the hashes of all chunks before it can verify the first one: 23 kB for an image of
//! 96 MB, 61 kB for one of 1 GB. From a seed alone that would be 6 % of an image for a thousand nodes
//! and 60 % for ten thousand, at the very time when it has the first chunks to send. But the list needs
//! no trust: whoever sends it, it merges to the id that the seed's tag names or is refused. So a seed
//! sends it to a few, and names to everybody else a member that has it (see `handouts`).
//!
//! This file is both ends of that: a connection with ALPN `rootswarm-manifest/1`, one bidirectional
//! stream, the image's id one way and the manifest's bytes the other.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint, VarInt};
use rootswarm_image::{ImageId, Manifest, Tag};
use rootswarm_swarm::{NodeId, Role};
use tokio::time::timeout;

use crate::framing;
use crate::tls::Dialer;

/// How long a member has to itself before the seed is asked as well: a handshake and the largest
/// manifest on a fast link, twenty kilobytes on a slow or busy one.
pub(crate) const HEAD_START: Duration = Duration::from_millis(300);

/// An image's id.
const ID_BYTES: usize = 32;

/// Asks a member for the manifest of the image that `tag` names.
///
/// # Errors
/// Why nothing came of it, for the log: the seed can still be asked.
pub(crate) async fn ask(
    endpoint: &Endpoint,
    dialer: &Dialer,
    (node, address): (NodeId, SocketAddr),
    tag: &Tag,
) -> Result<Manifest, String> {
    let said = |error: &dyn std::fmt::Display| format!("{address}: {error}");
    let (connection, peer) = dialer
        .connect(endpoint, address, Role::Peer)
        .await
        .map_err(|error| said(&error))?;
    if peer.node_id != node {
        return Err(format!("{address} is {}, not {node}", peer.node_id));
    }
    let most = Manifest::max_encoded_len(tag.length, tag.chunk_size).map_err(|e| said(&e))?;
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| said(&e))?;
        framing::write_frame(&mut send, tag.id.as_bytes())
            .await
            .map_err(|e| said(&e))?;
        send.finish().map_err(|e| said(&e))?;
        receive.read_to_end(most).await.map_err(|e| said(&e))
    };
    let bytes = exchange.await;
    connection.close(VarInt::from_u32(0), b"thanks");
    tag.decode_manifest(&bytes?).map_err(|error| said(&error))
}

/// Hands `manifest` on to a member that asks for it, and waits until it has all of it.
///
/// # Errors
/// What the member said instead, or why it could not be answered.
pub(crate) async fn serve(
    connection: &Connection,
    image: &ImageId,
    manifest: Bytes,
    patience: Duration,
) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let exchange = async {
        let (mut send, mut receive) = connection.accept_bi().await.map_err(|e| said(&e))?;
        let asked = framing::read_frame(&mut receive, ID_BYTES)
            .await
            .map_err(|e| said(&e))?;
        if asked != image.as_bytes() {
            return Err("it asked for the manifest of another image".to_owned());
        }
        send.write_chunk(manifest).await.map_err(|e| said(&e))?;
        send.finish().map_err(|e| said(&e))?;
        connection.closed().await;
        Ok(())
    };
    let result = timeout(patience, exchange).await;
    let result = result.unwrap_or_else(|_| Err("it took the manifest too slowly".to_owned()));
    if let Err(reason) = &result {
        connection.close(crate::link::CLOSE_SWARM, reason.as_bytes());
    }
    result
}
