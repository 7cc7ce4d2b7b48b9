//! Where one chunk of a [`ChunkStore`] grows: its own range of the file, and the hash of what was
//! written there so far.
//!
//! A chunk of up to 16 MiB is not kept in memory until it is whole. Its bytes are written where they
//! belong as they come, hashed as they are written, and the chunk counts as held when that hash is the
//! manifest's: what is in the range before that is nobody's to see, because a store hands out no range
//! that it does not hold, and nothing is mounted before it holds all.
//!
//! Several senders may be sending the same chunk, and one of them may lie. All write into one place:
//!
//! - Where somebody was already, a sender's bytes are compared with what is there. As long as they are
//!   the same nothing is written twice, and whoever is furthest ahead carries on.
//! - Where they differ one of the two lies, and nothing says who. The one that sends faster has the
//!   place: it is proven right or wrong sooner, and whoever trickles cannot keep a chunk back. The other
//!   has sent for nothing, which is what a liar may cost.
//! - Who has sent the last byte of a chunk whose hash is wrong has sent or agreed with every byte of it:
//!   it is the one to blame, and nobody else is.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rootswarm_image::{ChunkError, ChunkIndex, GrowingChunk, Verifier};

use super::ram::ChunkStore;
use super::{StoreError, Written, scan};

/// A chunk's place while somebody is at it.
#[derive(Debug)]
pub(super) struct Place {
    /// The beginning that is in the file.
    written: u32,
    /// Its hash.
    hash: GrowingChunk,
    /// Counts changes of owner, and where the last one began anew.
    generation: u64,
    forked_at: u32,
    /// Who wrote last, since when it sends. Nobody if it is gone.
    leader: Option<(u64, Instant)>,
    /// The next sender's number.
    next_sender: u64,
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Took {
    /// It is there.
    Taken,
    /// Another sender says otherwise and is faster: nothing of this one is needed any more.
    Displaced,
    /// The chunk is held, and these are not its bytes.
    Differs,
    /// More than the chunk has.
    TooLong,
}

/// What became of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It is held.
    Held(Written),
    /// It is not the chunk, and this sender sent every byte of it.
    Corrupt(ChunkError),
    /// There are too few bytes, or another sender has the place.
    Broken,
}

/// One sender's part in a chunk. Dropping it is giving up.
#[derive(Debug)]
pub struct Arriving {
    store: ChunkStore,
    index: ChunkIndex,
    length: u32,
    place: Arc<Mutex<Place>>,
    /// What this sender has sent: all of it is in the place, or in the chunk that is held.
    sent: u32,
    sender: u64,
    generation: u64,
    since: Instant,
    buffer: Vec<u8>,
}

impl Place {
    pub(super) fn new(hash: GrowingChunk) -> Place {
        Place {
            written: 0,
            hash,
            generation: 0,
            forked_at: 0,
            leader: None,
            next_sender: 0,
        }
    }

    /// From the beginning up to `kept` it stays, from there on it is `sender`'s.
    fn fork(&mut self, kept: u32, hash: GrowingChunk, leader: Option<(u64, Instant)>) {
        self.generation += 1;
        self.forked_at = kept;
        self.written = kept;
        self.hash = hash;
        self.leader = leader;
    }
}

fn locked(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    // Nothing panics while it is held.
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arriving {
    pub(super) fn new(store: ChunkStore, index: ChunkIndex, place: Arc<Mutex<Place>>) -> Arriving {
        let length = store.manifest().geometry().chunk_len(index);
        let (sender, generation) = {
            let mut place = locked(&place);
            place.next_sender += 1;
            // With nothing sent it agrees with everything.
            (place.next_sender, place.generation)
        };
        Arriving {
            store,
            index,
            length,
            place,
            sent: 0,
            sender,
            generation,
            since: Instant::now(),
            buffer: Vec::new(),
        }
    }

    /// Bytes that are still to come.
    #[must_use]
    pub fn missing(&self) -> u32 {
        self.length - self.sent
    }

    /// Takes the next bytes. Blocks on the file.
    ///
    /// # Errors
    /// The file cannot be written or read.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<Took, StoreError> {
        if piece.len() > self.missing() as usize {
            return Ok(Took::TooLong);
        }
        // All of it has come, whatever becomes of it.
        let received = self.sent + piece.len() as u32;
        let place = self.place.clone();
        let mut place = locked(&place);
        // Asked under the lock of the place, in which alone a chunk becomes held.
        let held = self.store.contains(self.index);
        if !self.follows(&place) {
            return Ok(Took::Displaced);
        }
        let there = if held { self.length } else { place.written };
        let common = (there - self.sent).min(piece.len() as u32);
        let (compared, rest) = piece.split_at(common as usize);
        match self.first_difference(compared)? {
            None => {
                self.sent += common;
                piece = rest;
            }
            Some(_) if held => return Ok(Took::Differs),
            Some(at) => {
                self.sent += at;
                piece = &piece[at as usize..];
                if self.is_slower_than_leader(received, &place) {
                    return Ok(Took::Displaced);
                }
                let hash = self.hash_again(self.sent)?;
                place.fork(self.sent, hash, Some((self.sender, self.since)));
                self.generation = place.generation;
            }
        }
        if piece.is_empty() {
            return Ok(Took::Taken);
        }
        let Some(writer) = self.store.writer() else {
            // Only of a store that holds every chunk.
            return Ok(Took::Displaced);
        };
        self.store.write_at(&writer, self.index, self.sent, piece)?;
        place.hash.push(piece);
        // At most the chunk's length: it fits.
        place.written += piece.len() as u32;
        place.leader = Some((self.sender, self.since));
        self.sent = place.written;
        Ok(Took::Taken)
    }

    /// Whether the place goes on from what this sender has sent.
    fn follows(&mut self, place: &Place) -> bool {
        let agrees = self.generation == place.generation
            // The last change of owner was beyond what it has said.
            || self.generation + 1 == place.generation && self.sent <= place.forked_at
            || self.sent == 0;
        if agrees {
            self.generation = place.generation;
        }
        agrees
    }

    fn is_slower_than_leader(&self, received: u32, place: &Place) -> bool {
        let Some((leader, since)) = place.leader else {
            return false;
        };
        if leader == self.sender {
            return false;
        }
        let pace =
            |bytes: u32, since: Instant| f64::from(bytes) / since.elapsed().as_secs_f64().max(1e-6);
        pace(received, self.since) < pace(place.written, since)
    }

    /// Where in `bytes`, which come next, the file says something else.
    fn first_difference(&mut self, bytes: &[u8]) -> Result<Option<u32>, StoreError> {
        let start = self.store.offset(self.index) + u64::from(self.sent);
        let mut rest = bytes;
        let mut same = 0;
        let mut differs = None;
        let range = start..start + bytes.len() as u64;
        scan::read_pieces(self.store.reader(), range, &mut self.buffer, |there| {
            let (now, later) = rest.split_at(there.len());
            rest = later;
            if differs.is_none() {
                differs = now.iter().zip(there).position(|(a, b)| a != b);
                same += differs.unwrap_or(now.len());
            }
        })
        .map_err(StoreError::io("read", self.store.path()))?;
        // A place in a chunk: it fits.
        Ok(differs.map(|_| same as u32))
    }

    fn hash_again(&mut self, length: u32) -> Result<GrowingChunk, StoreError> {
        let mut hash = self.fresh_hash()?;
        let start = self.store.offset(self.index);
        let range = start..start + u64::from(length);
        scan::read_pieces(self.store.reader(), range, &mut self.buffer, |piece| {
            hash.push(piece);
        })
        .map_err(StoreError::io("read", self.store.path()))?;
        Ok(hash)
    }

    fn fresh_hash(&self) -> Result<GrowingChunk, StoreError> {
        let verifier = Verifier::new(self.store.manifest().clone());
        let missing = |error: ChunkError| io::Error::other(error.to_string());
        verifier
            .begin(self.index)
            .map_err(missing)
            .map_err(StoreError::io("begin a chunk of", self.store.path()))
    }

    /// No more bytes come. When this says that the chunk is held, it can be handed out.
    ///
    /// # Errors
    /// The file.
    pub fn finish(mut self) -> Result<Ended, StoreError> {
        if self.missing() > 0 {
            return Ok(Ended::Broken);
        }
        let place = self.place.clone();
        let mut place = locked(&place);
        if !self.follows(&place) {
            return Ok(Ended::Broken);
        }
        if self.store.contains(self.index) {
            return Ok(Ended::Held(Written::AlreadyHeld));
        }
        if place.written < self.length {
            return Ok(Ended::Broken);
        }
        if let Err(error) = place.hash.finish() {
            let hash = self.fresh_hash()?;
            place.fork(0, hash, None);
            return Ok(Ended::Corrupt(error));
        }
        self.store.hold(self.index);
        Ok(Ended::Held(Written::Stored))
    }

    /// Writes a whole chunk that was verified elsewhere, whoever is at its place.
    pub(super) fn verified(self, bytes: &[u8]) -> Result<Written, StoreError> {
        let place = self.place.clone();
        let mut place = locked(&place);
        let Some(writer) = self
            .store
            .writer()
            .filter(|_| !self.store.contains(self.index))
        else {
            return Ok(Written::AlreadyHeld);
        };
        // Whoever was at it finds other bytes there, whether this ends well or not.
        let hash = self.fresh_hash()?;
        place.fork(0, hash, None);
        self.store.write_at(&writer, self.index, 0, bytes)?;
        drop(writer);
        self.store.hold(self.index);
        Ok(Written::Stored)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        {
            let mut place = locked(&self.place);
            if place
                .leader
                .is_some_and(|(sender, _)| sender == self.sender)
            {
                place.leader = None;
            }
        }
        self.store.leave(self.index);
    }
}
