//! Chunks that the store holds and the node has not heard of.
//!
//! Whoever stores a chunk says so: a link, or whoever fetches from elsewhere. But a link may end, and its tasks
//! with it, while a chunk is on its way to the disk, and the queue to the driver may be full. The node would go
//! on asking for a chunk that nobody lacks; and where nobody is left to be asked, HTTP finds nothing missing and
//! the download never ends.

use std::time::Duration;

use rootswarm_image::ChunkIndex;
use rootswarm_swarm::Input;
use tokio::time::Instant as Clock;

use super::Driver;

/// How often it is looked for such chunks; one that is found twice is one. What is on its way through the queue
/// takes milliseconds, and is to be counted by where it came from.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was found at the last look.
#[derive(Debug)]
pub(super) struct Untold {
    looked_at: Clock,
    chunks: Vec<ChunkIndex>,
}

impl Untold {
    pub(super) fn new(now: Clock) -> Untold {
        Untold {
            looked_at: now,
            chunks: Vec::new(),
        }
    }
}

impl Driver {
    /// Tells the node of what has been in the store for a while. To be called every now and then.
    pub(super) fn learn_what_is_stored(&mut self) {
        let Some(store) = &self.shared.sink else {
            return;
        };
        if self.node.have().is_full() || self.untold.looked_at.elapsed() < LOOK_EVERY {
            return;
        }
        let held = store.have();
        let found = held.iter_difference(self.node.have()).collect();
        self.untold.looked_at = Clock::now();
        let before = std::mem::replace(&mut self.untold.chunks, found);
        let still = |index: &ChunkIndex| self.untold.chunks.contains(index);
        let learnt: Vec<_> = before.into_iter().filter(still).collect();
        if !learnt.is_empty() {
            tracing::debug!(chunks = learnt.len(), "found in the store");
            self.progress_at = Clock::now();
        }
        for index in learnt {
            self.tell(Input::ChunkStored { index });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use rootswarm_image::{Bitfield, ChunkSize, Verifier, hash_image};
    use rootswarm_swarm::{NodeId, Role};

    use super::super::{Setup, spawn};
    use super::*;
    use crate::conduct::Conduct;
    use crate::limiter::RateLimiter;
    use crate::status::Phase;
    use crate::store::ChunkStore;
    use crate::trust::Gate;

    /// Chunks come into the store and nobody says so: some, all, the last one.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_told_is_found() {
        const CHUNK: usize = 64 << 10;
        let image: Vec<u8> = (0..7 * CHUNK + 5)
            .map(|place| (place % 253) as u8)
            .collect();
        let size = ChunkSize::from_bytes(CHUNK as u64).unwrap();
        let manifest = hash_image(&image[..], size, NonZeroUsize::MIN, &|_| {}).unwrap();
        let manifest = Arc::new(manifest);
        for told in [0, 1, 4, 7] {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("image");
            let store = ChunkStore::create(&path, manifest.clone()).unwrap();
            let handle = spawn(Setup {
                node: NodeId([1; 32]),
                role: Role::Peer,
                manifest: manifest.clone(),
                have: Bitfield::new(8),
                source: Arc::new(store.clone()),
                sink: Some(store.clone()),
                rack: None,
                gate: Gate::new(1),
                limiter: Arc::new(RateLimiter::new(None)),
                conduct: Conduct::new(1, Duration::from_secs(1)),
                dialer: None,
            });
            for (number, bytes) in image.chunks(CHUNK).enumerate() {
                let index = ChunkIndex(number as u32);
                let verifier = Verifier::new(manifest.clone());
                store.write(verifier.verify(index, bytes).unwrap()).unwrap();
                if number < told {
                    let said = super::super::Command::Stored(index);
                    handle.commands.send(said).await.unwrap();
                }
            }
            let mut phase = handle.phase.clone();
            let complete = phase.wait_for(|phase| matches!(phase, Phase::Complete));
            let within = tokio::time::timeout(LOOK_EVERY * 4, complete);
            within.await.expect("it learns").expect("it goes on");
        }
    }
}
