//! Takes the bytes of a chunk from its stream, as many as are wanted at a time.
//!
//! What they are is not looked at here, nor how many there should be in all.

use bytes::Bytes;
use quinn::RecvStream;
use rootswarm_swarm::limits::CHUNK_SILENCE;
use tokio::time::timeout;

/// Pieces taken from the stream in one go: there is one in each packet, and one wake-up brings a batch
/// of 10 to 40.
const PIECES: usize = 32;

/// The bytes of a chunk, as they come.
pub(crate) struct Inbox<'a> {
    stream: &'a mut RecvStream,
    /// What came with the last piece and belongs to the next.
    rest: Bytes,
}

impl Inbox<'_> {
    pub(crate) fn new(stream: &mut RecvStream) -> Inbox<'_> {
        Inbox {
            stream,
            rest: Bytes::new(),
        }
    }

    /// Adds to `bytes` until it has `length`. How many it has then: fewer at the end of the stream.
    /// Nothing when it breaks off or falls silent.
    pub(crate) async fn fill(&mut self, bytes: &mut Vec<u8>, length: usize) -> Option<usize> {
        bytes.reserve_exact(length);
        let mut pieces = [const { Bytes::new() }; PIECES];
        loop {
            let room = length - bytes.len();
            let now = self.rest.split_to(room.min(self.rest.len()));
            bytes.extend_from_slice(&now);
            if bytes.len() == length {
                return Some(length);
            }
            let count = timeout(CHUNK_SILENCE, self.stream.read_chunks(&mut pieces))
                .await
                .ok()?
                .ok()?;
            let Some(count) = count else {
                return Some(bytes.len());
            };
            for piece in &mut pieces[..count] {
                // Taken, so that quinn's buffer behind it is free again.
                let piece = std::mem::take(piece);
                let room = length - bytes.len();
                if piece.len() <= room {
                    bytes.extend_from_slice(&piece);
                } else if self.rest.is_empty() {
                    bytes.extend_from_slice(&piece[..room]);
                    self.rest = piece.slice(room..);
                } else {
                    // Two packets beyond the end of what is wanted: one buffer for both.
                    self.rest = [&self.rest[..], &piece].concat().into();
                }
            }
        }
    }

    /// Whether nothing more comes.
    pub(crate) async fn ends(&mut self) -> bool {
        if !self.rest.is_empty() {
            return false;
        }
        let more = timeout(CHUNK_SILENCE, self.stream.read_chunk(usize::MAX, true)).await;
        matches!(more, Ok(Ok(None)))
    }
}
