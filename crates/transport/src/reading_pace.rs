//! How fast one connection's control frames are read.
//!
//! A frame costs its reader more than its sender: it is decoded, decided about, perhaps answered. Who
//! sends them without end is not punished but read no faster than an honest node ever talks; QUIC's
//! flow control then holds the sender back, and no memory fills.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes of a frame that cost about as much as its being a frame at all.
const UNIT_BYTES: usize = 64;

/// Units a second. The most talkative honest peers, one of 16 at 10 Gbit/s, send 0.8 MB of control
/// frames a second if they use up the hundredth of all bytes that is the aim.
const UNITS_PER_S: u32 = 16_384;

/// Units in a row: the largest frame is 512 of them.
const BURST_UNITS: u32 = 4_096;

const UNIT: Duration = Duration::from_nanos(1_000_000_000 / UNITS_PER_S as u64);

/// What one connection has used up.
#[derive(Debug)]
pub(crate) struct ReadingPace {
    /// When all of it will have been earned.
    until: Instant,
}

impl ReadingPace {
    pub(crate) fn new() -> ReadingPace {
        ReadingPace {
            until: Instant::now(),
        }
    }

    /// Waits, after a frame of `bytes` bytes, until the next one may be read.
    pub(crate) async fn read(&mut self, bytes: usize) {
        let now = Instant::now();
        let units = u32::try_from(1 + bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        self.until = self.until.max(now) + UNIT * units;
        let burst = UNIT * BURST_UNITS;
        if self.until > now + burst {
            tokio::time::sleep_until(self.until - burst).await;
        }
    }
}

const _: () =
    assert!(rootswarm_swarm::limits::FRAME_BYTES_MAX / UNIT_BYTES < BURST_UNITS as usize / 4);

#[cfg(test)]
mod tests {
    use super::*;

    /// The table: frames of so many bytes, and the seconds that so many of them take to be read.
    #[tokio::test(start_paused = true)]
    async fn a_burst_is_free_and_the_rest_takes_its_time() {
        for (bytes, frames, seconds) in [
            (0, 4_096, 0.0),
            (63, 4_096, 0.0),
            (64, 2_048, 0.0),
            (0, 4_096 + 16_384, 1.0),
            (64, 2_048 + 16_384, 2.0),
            (32_768, 7, 0.0),
            (32_768, 8 + 319, 9.95),
        ] {
            let begin = Instant::now();
            let mut pace = ReadingPace::new();
            for _ in 0..frames {
                pace.read(bytes).await;
            }
            let took = begin.elapsed().as_secs_f64();
            assert!(
                (took - seconds).abs() < 0.05,
                "{frames} frames of {bytes} bytes took {took} s, not {seconds}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_silent_may_talk_again() {
        let mut pace = ReadingPace::new();
        for _ in 0..3 {
            let begin = Instant::now();
            for _ in 0..4_096 {
                pace.read(0).await;
            }
            assert!(begin.elapsed() < Duration::from_millis(5));
            tokio::time::advance(Duration::from_millis(250)).await;
        }
    }
}
