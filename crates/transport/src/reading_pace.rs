//! How fast one connection's control frames are read.
//!
//! A frame costs its reader more than its sender: it is decoded, decided about, perhaps answered. Who
//! sends them without end is not punished but read no faster than an honest node ever talks; QUIC's
//! flow control then holds the sender back, and no memory fills.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rootswarm_swarm::Message;
use tokio::time::Instant;

/// Bytes of a frame that cost about as much as its being a frame at all.
const UNIT_BYTES: usize = 16;

/// Units a second that are free. A neighbour that exchanges no chunks with this node still announces its
/// own: a frame each 5 to 10 ms, with 12 to 24 chunks in it at 10 Gbit/s.
const UNITS_PER_S: u32 = 2_048;

/// Units that a chunk is worth which was exchanged, either way: offers, requests, answers, haves and what
/// others declined are 26 frames for each chunk at a node, with all its peers together.
const CHUNK_UNITS: u32 = 64;

/// What a frame counts that an honest node sends once a second at most: an eighth of a second.
const SELDOM_UNITS: u32 = UNITS_PER_S / 8;

/// Units in a row: the largest frame is 2,048 of them.
const BURST_UNITS: u32 = 4_096;

const UNIT: Duration = Duration::from_nanos(1_000_000_000 / UNITS_PER_S as u64);

/// What one connection has used up.
#[derive(Debug)]
pub(crate) struct ReadingPace {
    /// When all of it will have been earned.
    until: Instant,
    chunks: ChunksExchanged,
}

/// Chunks that a connection has exchanged and its reader has not counted yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChunksExchanged(Arc<AtomicU32>);

impl ChunksExchanged {
    /// One more, either way.
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl ReadingPace {
    pub(crate) fn new(chunks: ChunksExchanged) -> ReadingPace {
        ReadingPace {
            until: Instant::now(),
            chunks,
        }
    }

    /// Waits, after a message in a frame of `bytes` bytes, until the next one may be read.
    pub(crate) async fn read(&mut self, message: &Message, bytes: usize) {
        let now = Instant::now();
        let units = match message {
            Message::WantPeers
            | Message::WantHaves(_)
            | Message::Progress(_)
            | Message::Dialed { .. } => SELDOM_UNITS,
            _ => u32::try_from(1 + bytes / UNIT_BYTES).unwrap_or(u32::MAX),
        };
        let earned = self.chunks.0.swap(0, Ordering::Relaxed);
        let earned = UNIT * earned.saturating_mul(CHUNK_UNITS);
        let owed = self.until.saturating_duration_since(now);
        self.until = now + owed.saturating_sub(earned) + UNIT * units;
        let burst = UNIT * BURST_UNITS;
        if self.until > now + burst {
            tokio::time::sleep_until(self.until - burst).await;
        }
    }
}

const _: () = assert!(rootswarm_swarm::limits::FRAME_BYTES_MAX / UNIT_BYTES < BURST_UNITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its bytes only.
    const COMMON: Message = Message::NoRoom;

    /// The table: frames of so many bytes, and the seconds that so many of them take to be read.
    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_the_rest_takes_its_time() {
        for (message, bytes, frames, seconds) in [
            (COMMON, 0, 4_096, 0.0),
            (COMMON, 15, 4_096, 0.0),
            (COMMON, 16, 2_048, 0.0),
            (COMMON, 0, 4_096 + 2_048, 1.0),
            (COMMON, 16, 2_048 + 2_048, 2.0),
            (COMMON, 32_768, 1, 0.0),
            (COMMON, 32_768, 1 + 11, 10.0),
            (Message::WantPeers, 1, 16, 0.0),
            (Message::WantPeers, 1, 16 + 80, 10.0),
            (Message::WantHaves(true), 2, 16 + 80, 10.0),
            (Message::Progress(7), 2, 16 + 80, 10.0),
        ] {
            let begin = Instant::now();
            let mut pace = ReadingPace::new(ChunksExchanged::default());
            for _ in 0..frames {
                pace.read(&message, bytes).await;
            }
            let took = begin.elapsed().as_secs_f64();
            assert!(
                (took - seconds).abs() < 0.3,
                "{frames} frames of {message:?}, {bytes} bytes, took {took} s, not {seconds}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_silent_or_exchanged_chunks_may_talk_again() {
        let chunks = ChunksExchanged::default();
        let mut pace = ReadingPace::new(chunks.clone());
        for by_chunks in [false, true, false] {
            let begin = Instant::now();
            for _ in 0..4_096 {
                pace.read(&COMMON, 0).await;
            }
            assert!(begin.elapsed() < Duration::from_millis(5));
            if by_chunks {
                (0..64).for_each(|_| chunks.one());
            } else {
                tokio::time::advance(Duration::from_secs(2)).await;
            }
        }
    }
}
