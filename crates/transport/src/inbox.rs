//! Takes the bytes of a chunk from its stream, as many as are wanted at a time.
//!
//! What they are is not looked at here, nor how many there should be in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BufMut as _;
use quinn::RecvStream;
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::limits::CHUNK_SILENCE;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

/// Before a chunk's bytes: its index and its length, 32 bits each, big-endian.
const CHUNK_HEADER_BYTES: usize = 8;

/// What chunks' streams of one connection have brought, all together: one that waits behind another is not
/// silent. A seed sends one after the other, and the second may have begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moving(Arc<AtomicU64>);

/// The bytes of a chunk, as they come.
pub(crate) struct Inbox<'a> {
    stream: &'a mut RecvStream,
    /// Where chunks may wait behind each other.
    moving: Option<Moving>,
}

impl Inbox<'_> {
    pub(crate) fn new(stream: &mut RecvStream, moving: Option<Moving>) -> Inbox<'_> {
        Inbox { stream, moving }
    }

    /// Adds to `bytes` until it has `length`. How many it has then: fewer at the end of the stream.
    /// Nothing when it breaks off or falls silent.
    ///
    /// No more than that is taken from the stream: what is taken is memory of this process, and the sender may
    /// send as much again. quinn puts together what waits there, so that a piece of it may be as long as the
    /// window.
    pub(crate) async fn fill(&mut self, bytes: &mut Vec<u8>, length: usize) -> Option<usize> {
        bytes.reserve_exact(length);
        while bytes.len() < length {
            let before = self.moved();
            // As many packets as there are, under one lock.
            let mut room = bytes.limit(length - bytes.len());
            let read = timeout(CHUNK_SILENCE, self.stream.read_buf(&mut room)).await;
            let count = match read {
                Ok(read) => read.ok()?,
                Err(_) if self.moved() != before => continue,
                Err(_) => return None,
            };
            if let Some(Moving(moved)) = &self.moving {
                moved.fetch_add(1, Ordering::Relaxed);
            }
            if count == 0 {
                break;
            }
        }
        Some(bytes.len())
    }

    /// The chunk's index and its length as the header has them; nothing if it does not come.
    ///
    /// It may come long after its stream: a stream is there as soon as a later one is, and what was asked for
    /// first is sent first, whichever was opened first.
    pub(crate) async fn header(&mut self) -> Option<(ChunkIndex, u32)> {
        let mut header = Vec::new();
        self.fill(&mut header, CHUNK_HEADER_BYTES).await?;
        let (index, length) = header.split_first_chunk()?;
        let length = length.try_into().ok()?;
        Some((
            ChunkIndex(u32::from_be_bytes(*index)),
            u32::from_be_bytes(length),
        ))
    }

    fn moved(&self) -> u64 {
        let moving = self.moving.as_ref();
        moving.map_or(0, |Moving(moved)| moved.load(Ordering::Relaxed))
    }

    /// Whether nothing more comes.
    pub(crate) async fn ends(&mut self) -> bool {
        let more = timeout(CHUNK_SILENCE, self.stream.read_chunk(usize::MAX, true)).await;
        matches!(more, Ok(Ok(None)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::connected::connected;

    /// A reader that is late takes what it wants, so that the sender goes on by as much and not by a window.
    #[tokio::test]
    async fn no_more_is_taken_than_is_wanted() {
        for (at_once, wanted) in [(1_200, 1), (100, 700), (50_000, 1_000), (1 << 20, 3_000)] {
            let ([sending, receiving], _ends) = connected().await;
            let mut stream = sending.open_uni().await.unwrap();
            let piece = vec![7; at_once];
            let mut sent = stream.write(&piece).await.unwrap();
            let mut incoming = receiving.accept_uni().await.unwrap();
            let quiet = Duration::from_millis(200);
            while let Ok(written) = timeout(quiet, stream.write(&piece)).await {
                sent += written.unwrap();
            }
            // Less than what has the receiver give more room, an eighth of the window.
            assert!(sent > 50_000, "{at_once}: {sent}");
            let mut inbox = Inbox::new(&mut incoming, None);
            let mut bytes = Vec::new();
            assert_eq!(inbox.fill(&mut bytes, wanted).await, Some(wanted));
            let more = timeout(quiet, stream.write(&piece)).await;
            assert!(more.is_err(), "{at_once}: {more:?} after {sent}");
            // The rest is there.
            stream.reset(0u32.into()).ok();
            assert_eq!(bytes, vec![7; wanted]);
        }
    }

    /// What is asked for in pieces of any length is what was sent, to its end.
    #[tokio::test]
    async fn pieces_of_any_length_are_the_whole() {
        let ([sending, receiving], _ends) = connected().await;
        for (length, piece) in [
            (0, 7),
            (1, 1),
            (70_001, 999),
            (300_000, 1 << 18),
            (500_000, 40_000),
        ] {
            let sent: Vec<u8> = (0..length).map(|place| (place % 251) as u8).collect();
            let mut stream = sending.open_uni().await.unwrap();
            let writing = async {
                stream.write_all(&sent).await.unwrap();
                stream.finish().unwrap();
            };
            let reading = async {
                let mut incoming = receiving.accept_uni().await.unwrap();
                let mut inbox = Inbox::new(&mut incoming, None);
                let mut whole = Vec::new();
                loop {
                    let mut bytes = Vec::new();
                    let found = inbox.fill(&mut bytes, piece).await.unwrap();
                    assert_eq!(found, bytes.len());
                    whole.extend(bytes);
                    if found < piece {
                        break;
                    }
                }
                (whole, inbox.ends().await)
            };
            let ((), (whole, ended)) = tokio::join!(writing, reading);
            assert!(whole == sent && ended, "{length} in pieces of {piece}");
        }
    }

    /// One chunk waits for the other, which takes longer than a silence may. It has begun, or only its stream is
    /// there because the other's is: whoever asks for two gets them in that order, in whichever order their
    /// streams were opened.
    #[tokio::test]
    async fn a_chunk_that_waits_behind_another_is_not_silent() {
        let ([sending, receiving], _ends) = connected().await;
        const STEPS: usize = 12;
        let step = CHUNK_SILENCE / 4;
        let header = [0, 0, 0, 3, 0, 0, 1, 0];
        for begun in [0, 5] {
            let mut waits = sending.open_uni().await.unwrap();
            let mut moves = sending.open_uni().await.unwrap();
            waits.write_all(&header[..begun]).await.unwrap();
            moves.write_all(&header).await.unwrap();
            let mut one = receiving.accept_uni().await.unwrap();
            let mut two = receiving.accept_uni().await.unwrap();
            let moving = Some(Moving::default());
            let mut waits_in = Inbox::new(&mut one, moving.clone());
            let mut moves_in = Inbox::new(&mut two, moving);
            let found = (ChunkIndex(3), 256);
            assert_eq!(moves_in.header().await, Some(found), "{begun}");
            let mut moved = Vec::new();
            let (moved, waited, ()) =
                tokio::join!(moves_in.fill(&mut moved, STEPS), waits_in.header(), async {
                    for _ in 0..STEPS {
                        tokio::time::sleep(step).await;
                        moves.write_all(b"x").await.unwrap();
                    }
                    waits.write_all(&header[begun..]).await.unwrap();
                });
            assert_eq!((moved, waited), (Some(STEPS), Some(found)), "{begun}");

            // And when nothing moves any more it is.
            let began = std::time::Instant::now();
            assert_eq!(waits_in.fill(&mut Vec::new(), 1).await, None);
            assert!(began.elapsed() < CHUNK_SILENCE + Duration::from_secs(20));
        }
    }
}
