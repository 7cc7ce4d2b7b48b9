//! Takes the bytes of a chunk from its stream, as many as are wanted at a time.
//!
//! What they are is not looked at here, nor how many there should be in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quinn::RecvStream;
use rootswarm_swarm::limits::CHUNK_SILENCE;
use tokio::time::timeout;

/// Pieces taken from the stream in one go: there is one in each packet, and one wake-up brings a batch
/// of 10 to 40.
const PIECES: usize = 32;

/// What chunks' streams of one connection have brought, all together: one that waits behind another is not
/// silent. A seed sends one after the other, and the second may have begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moving(Arc<AtomicU64>);

/// The bytes of a chunk, as they come.
pub(crate) struct Inbox<'a> {
    stream: &'a mut RecvStream,
    /// Where chunks may wait behind each other.
    moving: Option<Moving>,
    /// What came with the last piece and belongs to the next.
    rest: Bytes,
}

impl Inbox<'_> {
    pub(crate) fn new(stream: &mut RecvStream, moving: Option<Moving>) -> Inbox<'_> {
        Inbox {
            stream,
            moving,
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
            let before = self.moved();
            let read = timeout(CHUNK_SILENCE, self.stream.read_chunks(&mut pieces)).await;
            let count = match read {
                Ok(read) => read.ok()?,
                Err(_) if self.moved() != before => continue,
                Err(_) => return None,
            };
            if let Some(Moving(moved)) = &self.moving {
                moved.fetch_add(1, Ordering::Relaxed);
            }
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

    fn moved(&self) -> u64 {
        let moving = self.moving.as_ref();
        moving.map_or(0, |Moving(moved)| moved.load(Ordering::Relaxed))
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use quinn::Endpoint;
    use rootswarm_image::SwarmKey;
    use rootswarm_swarm::Role;

    use super::*;
    use crate::identity::{Identity, NodeKey, SwarmCa};
    use crate::retries::RetryKey;
    use crate::tls::{Dialer, Listener};
    use crate::tuning::Tuning;

    /// One chunk has begun and waits for the other, which takes longer than a silence may.
    #[tokio::test]
    async fn a_chunk_that_waits_behind_another_is_not_silent() {
        let ca = SwarmCa::new(Arc::new(SwarmKey::generate().unwrap()));
        let node = || {
            let key = NodeKey::generate().unwrap();
            let certificate = ca.issue_node(&key.public(), 1).unwrap().to_vec();
            Identity::node(&key, certificate, &ca.public()).unwrap()
        };
        let (tuning, retries) = (Tuning::default(), RetryKey::random().unwrap());
        let config = Listener::server_config(&node(), &tuning, &retries).unwrap();
        let loopback = (Ipv4Addr::LOCALHOST, 0).into();
        let receiver = Endpoint::server(config, loopback).unwrap();
        let address = receiver.local_addr().unwrap();
        let accepted = tokio::spawn({
            let receiver = receiver.clone();
            async move { receiver.accept().await.unwrap().await.unwrap() }
        });
        let sender = Endpoint::client(loopback).unwrap();
        let dialer = Dialer::data(node(), &tuning);
        let (sending, _) = dialer.connect(&sender, address, Role::Peer).await.unwrap();
        let receiving = accepted.await.unwrap();

        const STEPS: usize = 12;
        let step = CHUNK_SILENCE / 4;
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = sending.open_uni().await.unwrap();
            stream.write_all(b"x").await.unwrap();
            streams.push((stream, receiving.accept_uni().await.unwrap()));
        }
        let [(mut first, mut one), (mut second, mut two)] = streams.try_into().unwrap();
        let moving = Some(Moving::default());
        let (mut moves, mut waits) = (Vec::new(), Vec::new());
        let mut moves_in = Inbox::new(&mut one, moving.clone());
        let mut waits_in = Inbox::new(&mut two, moving);
        let (moved, waited, ()) = tokio::join!(
            moves_in.fill(&mut moves, STEPS + 1),
            waits_in.fill(&mut waits, 2),
            async {
                for _ in 0..STEPS {
                    tokio::time::sleep(step).await;
                    first.write_all(b"x").await.unwrap();
                }
                second.write_all(b"x").await.unwrap();
            }
        );
        assert_eq!((moved, waited), (Some(STEPS + 1), Some(2)));

        // And when nothing moves any more it is.
        let begun = std::time::Instant::now();
        assert_eq!(waits_in.fill(&mut Vec::new(), 1).await, None);
        assert!(begun.elapsed() < CHUNK_SILENCE + Duration::from_secs(20));
    }
}
