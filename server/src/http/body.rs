//! Bodies in bounded pieces: slices of a mapped image through the rate limiter, or reads of a file.
//!
//! Each body has one task that makes the next piece when the connection has taken the last but one,
//! so that a response holds a few pieces whatever the image's size, and ends with its connection.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use rootswarm_transport::limiter::RateLimiter;
use tokio::sync::Semaphore;

/// Pieces in flight between the task and the connection: one being written, one ready.
const PIECES: usize = 2;

/// The most of a map that is handed to the connection at a time. Nothing is copied, so a piece is
/// only as large as keeps the calls from mattering.
const MAPPED_PIECE_BYTES: usize = 256 * 1024;

/// The same for reads, where a piece is memory: with 2 in flight and the one being read, a
/// connection holds 48 KiB, and all that there may be 96 MiB.
const READ_PIECE_BYTES: usize = 16 * 1024;

/// The bytes from `start` up to `end` of a mapped image, no faster than `limiter` lets them. If `ended` ends
/// meanwhile, the connection is cut; `held` is dropped when the body ends.
pub fn mapped(
    whole: Bytes,
    start: u64,
    end: u64,
    limiter: Arc<RateLimiter>,
    ended: impl Future<Output: Display + Send> + Send + 'static,
    held: impl Send + 'static,
) -> Body {
    let (mut sender, channel) = Channel::<Bytes, io::Error>::new(PIECES);
    // Offsets are within the map, whose length is a usize.
    let rest = whole.slice(start as usize..end as usize);
    tokio::spawn(async move {
        let _held = held;
        let cut = tokio::select! {
            () = send_pieces(rest, &limiter, &mut sender) => return,
            reason = ended => io::Error::other(reason.to_string()),
        };
        sender.abort(cut);
    });
    Body::new(channel)
}

async fn send_pieces(
    mut rest: Bytes,
    limiter: &RateLimiter,
    sender: &mut Sender<Bytes, io::Error>,
) {
    // A limited uplink wants small pieces, so that its uploads take fair turns.
    let piece_bytes = limiter
        .bytes_per_s()
        .map_or(MAPPED_PIECE_BYTES, |_| limiter.quantum_bytes());
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(piece_bytes));
        limiter.take(piece.len()).await;
        if sender.send_data(piece).await.is_err() {
            // The connection is gone.
            return;
        }
    }
}

/// The bytes from `start` up to `end` of a file. If it got shorter meanwhile, the connection is cut:
/// the length was promised. `readers` is how many threads may wait for the disk at a time.
pub fn read_from(file: File, start: u64, end: u64, readers: Arc<Semaphore>) -> Body {
    let (mut sender, channel) = Channel::<Bytes, io::Error>::new(PIECES);
    tokio::spawn(async move {
        if let Err(error) = send_reads(Arc::new(file), start, end, &readers, &mut sender).await {
            sender.abort(error);
        }
    });
    Body::new(channel)
}

async fn send_reads(
    file: Arc<File>,
    mut position: u64,
    end: u64,
    readers: &Arc<Semaphore>,
    sender: &mut Sender<Bytes, io::Error>,
) -> io::Result<()> {
    while position < end {
        // At most READ_PIECE_BYTES, which is a usize.
        let want = (end - position).min(READ_PIECE_BYTES as u64) as usize;
        let reader = file.clone();
        let thread = readers.clone().acquire_owned().await;
        let thread = thread.map_err(io::Error::other)?;
        let piece = tokio::task::spawn_blocking(move || {
            let _thread = thread;
            let mut buffer = vec![0; want];
            reader
                .read_exact_at(&mut buffer, position)
                .map(|()| Bytes::from(buffer))
        })
        .await??;
        position += piece.len() as u64;
        if sender.send_data(piece).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
