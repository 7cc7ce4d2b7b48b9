//! One chunk on its way out: its header and its bytes on a stream, at the pace of the rate limit.
//!
//! The bytes go from the store's map to QUIC without a copy. Whether the receiver takes anything at all
//! is watched: QUIC says only that a write waits, not whether for the network, for the receiver or for the
//! chunks before it, which go first. So it is looked at what leaves for this receiver in all.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{ConnId, UploadOutcome, limits};
use tokio::time::{Instant, sleep};

use crate::control_first::AfterControl;
use crate::link::{Event, Shared};

/// How long nothing at all may leave for an upload's receiver, and how long the acknowledgement of the last
/// byte may take after that: the queues on the way are in it.
const SILENCE: Duration = Duration::from_secs(10);

/// While a step waits, it is looked this often at what leaves.
const WATCH_EVERY: Duration = Duration::from_millis(50);

/// A connection that sends less between two looks, with bytes to send, waits for its receiver and not
/// for the network: less than a packet, 0.2 Mbit/s.
const STALLED_BYTES: u64 = 1200;

/// An upload may wait, the time that a rate limit takes not counted, for as long as so many chunks may take
/// at the lowest useful rate: those before it, too. A receiver that trickles has no stream for ever.
const CHUNKS_BEFORE_IT: u32 = limits::UPLOAD_SLOTS as u32;

/// A chunk's stream. quinn sends what was written to a stream that is dropped, to its last byte: megabytes of a
/// chunk that was called off. So this one is reset.
#[derive(Debug)]
pub(crate) struct Outgoing(SendStream);

impl Outgoing {
    /// A stream, if the receiver allows one more at this moment.
    pub(crate) fn open_now(connection: &Connection) -> Option<Outgoing> {
        let opening = pin!(connection.open_uni());
        match opening.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(stream)) => Some(Outgoing(stream)),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }

    /// One chunk is finished before the next: two half chunks help nobody.
    fn set_priority(&self, priority: i32) {
        // It fails only on a stream that is closed already, which the first write reports.
        let _ = self.0.set_priority(priority);
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // It fails only where all was acknowledged already.
        let _ = self.0.reset(VarInt::from_u32(0));
    }
}

/// One chunk for one connection.
pub(crate) struct Upload<'a> {
    conn: ConnId,
    connection: &'a Connection,
    shared: &'a Shared,
    index: ChunkIndex,
    priority: i32,
    /// How long it may still wait.
    patience: Duration,
    /// All of it is written, or it was said that its receiver does not read.
    is_reported: bool,
}

impl<'a> Upload<'a> {
    pub(crate) fn new(
        conn: ConnId,
        connection: &'a Connection,
        shared: &'a Shared,
        index: ChunkIndex,
        priority: i32,
    ) -> Self {
        Upload {
            conn,
            connection,
            shared,
            index,
            priority,
            patience: Duration::ZERO,
            is_reported: false,
        }
    }

    /// Sends the chunk, on the stream that is open for it or on one of its own, until it is acknowledged or
    /// cannot be.
    pub(crate) async fn run(
        mut self,
        opened: Option<Outgoing>,
        after_control: AfterControl,
    ) -> UploadOutcome {
        let Some(bytes) = self.shared.source.chunk(self.index) else {
            return UploadOutcome::Refused;
        };
        match self.send(opened, bytes, after_control).await {
            Some(outcome) => outcome,
            None => UploadOutcome::Failed,
        }
    }

    async fn send(
        &mut self,
        opened: Option<Outgoing>,
        mut bytes: Bytes,
        mut after_control: AfterControl,
    ) -> Option<UploadOutcome> {
        self.patience = limits::chunk_timeout(bytes.len() as u64) * CHUNKS_BEFORE_IT;
        let connection = self.connection;
        let mut outgoing = match opened {
            Some(outgoing) => outgoing,
            None => Outgoing(self.watch(connection.open_uni()).await?.ok()?),
        };
        outgoing.set_priority(self.priority);
        let stream = &mut outgoing.0;
        let length = u32::try_from(bytes.len()).ok()?;
        let header = [self.index.0.to_be_bytes(), length.to_be_bytes()].concat();
        self.watch(stream.write_all(&header)).await?.ok()?;
        let quantum = self.shared.limiter.quantum_bytes();
        while !bytes.is_empty() {
            let mut piece = bytes.split_to(quantum.min(bytes.len()));
            let piece_len = piece.len();
            self.shared.limiter.take(piece_len).await;
            while !piece.is_empty() {
                let write = after_control.write(stream, &mut piece);
                match self.watch(write).await? {
                    Ok(()) => {}
                    Err(quinn::WriteError::Stopped(_)) => return Some(UploadOutcome::Refused),
                    Err(_) => return None,
                }
            }
            self.shared
                .bytes_uploaded
                .fetch_add(piece_len as u64, Ordering::Relaxed);
        }
        stream.finish().ok()?;
        self.is_reported = true;
        match self.watch(stream.stopped()).await?.ok()? {
            None => Some(UploadOutcome::Delivered),
            Some(_) => Some(UploadOutcome::Refused),
        }
    }

    /// Waits for `step` as long as anything leaves for this receiver, and says so once if nothing does.
    async fn watch<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        let began = Instant::now();
        let mut looked: Option<Look> = None;
        let mut moved = Look::now(self.connection, began);
        loop {
            tokio::select! {
                biased;
                done = &mut step => {
                    self.patience = self.patience.saturating_sub(began.elapsed());
                    return Some(done);
                }
                () = sleep(WATCH_EVERY) => {}
            }
            let now = Look::now(self.connection, Instant::now());
            let before = looked.replace(now);
            if !self.is_reported
                && before.is_some_and(|before| now.sent_bytes - before.sent_bytes < STALLED_BYTES)
            {
                self.report().await;
            }
            if now.sent_bytes - moved.sent_bytes >= STALLED_BYTES {
                moved = now;
            }
            if now.at - moved.at >= SILENCE || now.at - began >= self.patience {
                return None;
            }
        }
    }

    async fn report(&mut self) {
        self.is_reported = true;
        let (conn, index) = (self.conn, self.index);
        tracing::debug!(conn = conn.0, %index, "an upload's receiver does not read");
        let stalled = Event::UploadStalled { conn, index };
        // It fails only when the swarm has ended.
        let _ = self.shared.events.send(stalled).await;
    }
}

/// What a connection has sent by when.
#[derive(Clone, Copy)]
struct Look {
    sent_bytes: u64,
    at: Instant,
}

impl Look {
    fn now(connection: &Connection, at: Instant) -> Look {
        let sent_bytes = connection.stats().udp_tx.bytes;
        Look { sent_bytes, at }
    }
}

#[cfg(test)]
mod tests {
    use quinn::{ReadError, ReadExactError};

    use super::*;
    use crate::connected::connected;

    /// What was written and not sent yet is not sent any more, nor what was sent and not acknowledged; what was
    /// acknowledged to its end is there.
    #[tokio::test]
    async fn a_chunk_that_is_called_off_leaves_no_more_bytes() {
        for (length, is_finished) in [(1, false), (9_000, false), (3_000_000, false), (700, true)] {
            let ([sending, receiving], _ends) = connected().await;
            let mut outgoing = Outgoing::open_now(&sending).expect("one of many");
            let written = outgoing.0.write(&vec![7; length]).await.unwrap();
            let mut stream = receiving.accept_uni().await.unwrap();
            if is_finished {
                outgoing.0.finish().unwrap();
                let mut bytes = vec![0; length];
                stream.read_exact(&mut bytes).await.unwrap();
                assert_eq!(stream.read_chunk(1, true).await.unwrap(), None);
                outgoing.0.stopped().await.unwrap();
                drop(outgoing);
                continue;
            }
            let sent = sending.stats().udp_tx.bytes;
            drop(outgoing);
            // It would bring an end after so many bytes otherwise.
            let end = stream.read_exact(&mut vec![0; written + 1]).await;
            let reset = ReadError::Reset(VarInt::from_u32(0));
            assert_eq!(end, Err(ReadExactError::ReadError(reset)), "{length}");
            let after = sending.stats().udp_tx.bytes - sent;
            assert!(after < 200_000, "{length}: {after} bytes of {written}");
        }
    }

    /// Whichever task runs first.
    #[tokio::test]
    async fn streams_are_opened_in_the_order_of_the_requests() {
        let ([sending, _receiving], _ends) = connected().await;
        let streams: Vec<_> = (0..4).map_while(|_| Outgoing::open_now(&sending)).collect();
        let ids: Vec<_> = streams.iter().map(|stream| stream.0.id().index()).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
    }
}
