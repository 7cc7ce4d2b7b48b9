//! One chunk on its way out: its header and its bytes on a stream, at the pace of the rate limit.
//!
//! The bytes go from the store's map to QUIC without a copy. Whether the receiver takes anything at all
//! is watched: QUIC says only that a write waits, not whether for the network or for the receiver.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{ConnId, UploadOutcome};
use tokio::time::{sleep, timeout};

use crate::link::{Event, Shared};

/// From a chunk's last byte written to its acknowledgement; the queues on the way are in it.
const ACK_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a receiver may take nothing at all of an upload.
const SILENCE: Duration = Duration::from_secs(10);

/// While a write waits, it is looked this often at what leaves.
const WATCH_EVERY: Duration = Duration::from_millis(50);

/// A connection that sends less between two looks, with bytes to send, waits for its receiver and not
/// for the network: less than a packet, 0.2 Mbit/s.
const STALLED_BYTES: u64 = 1200;

/// One chunk for one connection.
pub(crate) struct Upload<'a> {
    conn: ConnId,
    connection: &'a Connection,
    shared: &'a Shared,
    index: ChunkIndex,
    /// What the connection had sent at the last look.
    sent_bytes: Option<u64>,
    is_reported: bool,
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        conn: ConnId,
        connection: &'a Connection,
        shared: &'a Shared,
        index: ChunkIndex,
    ) -> Self {
        Upload {
            conn,
            connection,
            shared,
            index,
            sent_bytes: None,
            is_reported: false,
        }
    }

    /// Sends the chunk, until it is acknowledged or cannot be.
    pub(crate) async fn run(mut self) -> UploadOutcome {
        let Some(bytes) = self.shared.source.chunk(self.index) else {
            return UploadOutcome::Refused;
        };
        match self.send(bytes).await {
            Some(outcome) => outcome,
            None => UploadOutcome::Failed,
        }
    }

    async fn send(&mut self, mut bytes: Bytes) -> Option<UploadOutcome> {
        let connection = self.connection;
        let opening = self.watch(connection.open_uni());
        let mut stream = opening.await?.ok()?;
        let length = u32::try_from(bytes.len()).ok()?;
        let header = [self.index.0.to_be_bytes(), length.to_be_bytes()].concat();
        self.watch(stream.write_all(&header)).await?.ok()?;
        let quantum = self.shared.limiter.quantum_bytes();
        while !bytes.is_empty() {
            let piece = bytes.split_to(quantum.min(bytes.len()));
            let piece_len = piece.len();
            self.shared.limiter.take(piece_len).await;
            match self.watch(stream.write_chunk(piece)).await? {
                Ok(()) => self
                    .shared
                    .bytes_uploaded
                    .fetch_add(piece_len as u64, Ordering::Relaxed),
                Err(quinn::WriteError::Stopped(_)) => return Some(UploadOutcome::Refused),
                Err(_) => return None,
            };
        }
        stream.finish().ok()?;
        match timeout(ACK_TIMEOUT, stream.stopped()).await {
            Ok(Ok(None)) => Some(UploadOutcome::Delivered),
            Ok(Ok(Some(_))) => Some(UploadOutcome::Refused),
            _ => None,
        }
    }

    /// Waits for `step`, not longer than [`SILENCE`], and says so once if meanwhile nothing leaves.
    async fn watch<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(timeout(SILENCE, step));
        self.sent_bytes = None;
        loop {
            tokio::select! {
                biased;
                done = &mut step => return done.ok(),
                () = sleep(WATCH_EVERY), if !self.is_reported => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let sent = self.connection.stats().udp_tx.bytes;
        let before = self.sent_bytes.replace(sent);
        if before.is_some_and(|before| sent - before < STALLED_BYTES) {
            self.is_reported = true;
            let (conn, index) = (self.conn, self.index);
            tracing::debug!(conn = conn.0, %index, "an upload's receiver does not read");
            let stalled = Event::UploadStalled { conn, index };
            // It fails only when the swarm has ended.
            let _ = self.shared.events.send(stalled).await;
        }
    }
}
