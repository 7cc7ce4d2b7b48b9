//! An image over HTTP, chunk by chunk: each one verified before it counts, so that a server or a proxy
//! that damages one costs one chunk. Nothing of a chunk is kept in memory: it is written and hashed at
//! its place as it comes.
//!
//! Used where a manifest is known: for pinned `http://` rooturls at a seed, and as the fallback of
//! a swarm that cannot be reached.

use std::ops::Range;
use std::sync::Arc;

use rootswarm_image::{ChunkIndex, Manifest};
use rootswarm_transport::store::{ChunkStore, Ended, Took, Written};

use crate::fetch::FetchError;
use crate::http::{HttpClient, Target};
use crate::http_error::HttpError;
use crate::progress::Snapshot;

/// Where chunks go.
pub trait ChunkSink {
    /// What they are written and verified in.
    fn store(&self) -> &ChunkStore;
    /// This chunk is held by now, because of what was written through this sink.
    fn stored(&mut self, index: ChunkIndex, length: u64);
    /// How things stand now.
    fn snapshot(&self) -> Snapshot;
}

/// A store that only HTTP fills.
#[derive(Debug)]
pub struct StoreSink {
    store: ChunkStore,
    /// Stored through this sink.
    pub bytes_stored: u64,
}

impl StoreSink {
    /// Fills `store`.
    pub fn new(store: ChunkStore) -> StoreSink {
        StoreSink {
            store,
            bytes_stored: 0,
        }
    }
}

impl ChunkSink for StoreSink {
    fn store(&self) -> &ChunkStore {
        &self.store
    }

    fn stored(&mut self, _: ChunkIndex, length: u64) {
        self.bytes_stored += length;
    }

    fn snapshot(&self) -> Snapshot {
        let geometry = *self.store.manifest().geometry();
        let missing: u64 = self
            .store
            .have()
            .iter_missing()
            .map(|index| u64::from(geometry.chunk_len(index)))
            .sum();
        Snapshot {
            bytes_total: geometry.length(),
            bytes_have: geometry.length() - missing,
            bytes_from_http: self.bytes_stored,
            ..Snapshot::default()
        }
    }
}

/// The first stretch of consecutive chunks.
pub fn first_run(mut chunks: impl Iterator<Item = ChunkIndex>) -> Option<Range<u32>> {
    let first = chunks.next()?.0;
    let mut end = first + 1;
    for chunk in chunks {
        if chunk.0 != end {
            break;
        }
        end += 1;
    }
    Some(first..end)
}

/// How often the same chunk may come damaged in a row.
const MAX_DAMAGED: u32 = 3;

/// Fetches what `sink` is missing from `target`, which holds the whole image; returns when nothing
/// is missing any more. An error leaves the sink as far as it came: call again to go on.
pub async fn fill(
    client: &HttpClient,
    target: &Target,
    manifest: &Arc<Manifest>,
    sink: &mut dyn ChunkSink,
    on_progress: &mut dyn FnMut(Snapshot),
) -> Result<(), FetchError> {
    let mut damaged = 0;
    while let Some(run) = first_run(sink.store().have().iter_missing()) {
        match one_run(client, target, manifest, run, sink, on_progress).await? {
            None => damaged = 0,
            Some(source) => {
                damaged += 1;
                if damaged == MAX_DAMAGED {
                    let url = target.to_string();
                    return Err(FetchError::DamagedChunk {
                        url,
                        source,
                        tries: damaged,
                    });
                }
            }
        }
    }
    Ok(())
}

/// One request for a run of chunks. Ends early when somebody else filled the rest, and with the
/// error of the first damaged chunk.
async fn one_run(
    client: &HttpClient,
    target: &Target,
    manifest: &Manifest,
    run: Range<u32>,
    sink: &mut dyn ChunkSink,
    on_progress: &mut dyn FnMut(Snapshot),
) -> Result<Option<rootswarm_image::ChunkError>, FetchError> {
    let geometry = *manifest.geometry();
    let last = ChunkIndex(run.end - 1);
    let start = geometry.offset(ChunkIndex(run.start));
    let end = geometry.offset(last) + u64::from(geometry.chunk_len(last));
    let mut response = client.get(target, Some(start..end), None).await?;
    // A server without ranges sends the whole file: what comes before the run is passed over.
    let mut skip = start - response.start.min(start);
    if response.start > start {
        let url = response.url().to_owned();
        let found = format!("those from {}", response.start);
        return Err(HttpError::OtherRange {
            url,
            asked: start,
            found,
        }
        .into());
    }
    let mut index = ChunkIndex(run.start);
    let mut chunk = sink.store().arriving(index)?;
    while let Some(piece) = response.next().await? {
        let passed = skip.min(piece.len() as u64);
        skip -= passed;
        // `passed` is at most the piece's length, which is a usize.
        let mut rest = &piece[passed as usize..];
        while !rest.is_empty() {
            let wanted = chunk.missing() as usize;
            let (now, later) = rest.split_at(wanted.min(rest.len()));
            rest = later;
            match chunk.push(now)? {
                Took::Taken => {}
                // Another source has the chunk by now, or sends it faster.
                Took::Differs | Took::Displaced | Took::TooLong => return Ok(None),
            }
            if chunk.missing() > 0 {
                break;
            }
            match chunk.finish()? {
                Ended::Corrupt(error) => return Ok(Some(error)),
                Ended::Held(Written::Stored) => {
                    sink.stored(index, u64::from(geometry.chunk_len(index)));
                    on_progress(sink.snapshot());
                }
                Ended::Held(Written::AlreadyHeld) | Ended::Broken => {
                    on_progress(sink.snapshot());
                    return Ok(None);
                }
            }
            index = ChunkIndex(index.0 + 1);
            if index.0 == run.end {
                return Ok(None);
            }
            chunk = sink.store().arriving(index)?;
        }
    }
    let (url, found) = (
        response.url().to_owned(),
        geometry.offset(index) + u64::from(geometry.chunk_len(index) - chunk.missing()),
    );
    Err(HttpError::CutOff {
        url,
        expected: end,
        found,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs() {
        let run = |chunks: &[u32]| first_run(chunks.iter().map(|c| ChunkIndex(*c)));
        assert_eq!(run(&[]), None);
        assert_eq!(run(&[4]), Some(4..5));
        assert_eq!(run(&[0, 1, 2, 7, 8]), Some(0..3));
    }
}
