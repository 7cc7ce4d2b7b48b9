//! Hashes a whole image on several cores, and so makes its manifest.
//!
//! Workers claim chunks one at a time from a shared counter, so that a core that is busy with
//! something else holds nobody up. The source is a slice, or a file that is read at positions.
//! A mapping of a file that somebody else may truncate must not be hashed as a slice: touching
//! the lost pages kills the process. [`hash_file`] notices it instead.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::tree::{self, ChunkHash};
use crate::{ChunkIndex, ChunkSize, Geometry, GeometryError, Manifest};

/// Why an image was not hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It has too many chunks.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A directory, a device, a pipe.
    #[error("source is not a regular file: expected a squashfs image in a file")]
    NotAFile,
    /// Somebody truncated the file or appended to it meanwhile.
    #[error(
        "source changed while it was read: expected {expected} bytes, found {found} (publish it \
         when whoever writes it is done)"
    )]
    SourceChanged {
        /// Its length at the start.
        expected: u64,
        /// Its length later.
        found: u64,
    },
    /// The file could not be read.
    #[error("cannot read source at byte {offset}: {source}")]
    Read {
        /// Where, from the start of the file.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// As many threads as this process may run at once.
pub fn all_cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Hashes an image in memory, on at most `threads` threads.
///
/// `progress` is called after each chunk with the bytes done so far: from any of the threads, but
/// never from two at once, with a number that only grows and in the end is the length. An empty
/// image makes no call.
pub fn hash_image(
    source: &[u8],
    chunk_size: ChunkSize,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Manifest, HashError> {
    let geometry = Geometry::new(source.len() as u64, chunk_size)?;
    hash_chunks(&geometry, threads, progress, || {
        move |index| {
            let offset = geometry.offset(index) as usize;
            let chunk = &source[offset..offset + geometry.chunk_len(index) as usize];
            Ok(tree::chunk_hash(&geometry, index, chunk))
        }
    })
}

/// Hashes an image in a file, as [`hash_image`] does, with one buffer of a chunk for each thread.
///
/// The length is read before and after, and every chunk must be there: a file that shrinks or
/// grows meanwhile gives [`HashError::SourceChanged`]. One that is rewritten in place at the same
/// length does not show it here, but the manifest is then of bytes that nobody can vouch for:
/// hash a copy of your own.
///
/// The position of the file is neither used nor moved.
pub fn hash_file(
    source: &File,
    chunk_size: ChunkSize,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Manifest, HashError> {
    let length = length_of(source)?;
    let geometry = Geometry::new(length, chunk_size)?;
    let manifest = hash_chunks(&geometry, threads, progress, || {
        let mut buffer = Vec::new();
        move |index| {
            let offset = geometry.offset(index);
            buffer.resize(geometry.chunk_len(index) as usize, 0);
            source.read_exact_at(&mut buffer, offset).map_err(|error| {
                match (error.kind(), length_of(source)) {
                    // The end came early: report the length that explains it.
                    (io::ErrorKind::UnexpectedEof, Ok(found)) => HashError::SourceChanged {
                        expected: length,
                        found,
                    },
                    _ => HashError::Read {
                        offset,
                        source: error,
                    },
                }
            })?;
            Ok(tree::chunk_hash(&geometry, index, &buffer))
        }
    })?;
    match length_of(source)? {
        found if found == length => Ok(manifest),
        found => Err(HashError::SourceChanged {
            expected: length,
            found,
        }),
    }
}

fn length_of(file: &File) -> Result<u64, HashError> {
    let metadata = file
        .metadata()
        .map_err(|source| HashError::Read { offset: 0, source })?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(HashError::NotAFile),
    }
}

/// Runs the workers that `make_worker` makes, one for each thread, until each chunk was hashed by
/// one of them or one of them failed.
fn hash_chunks<W>(
    geometry: &Geometry,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
    make_worker: impl Fn() -> W,
) -> Result<Manifest, HashError>
where
    W: FnMut(ChunkIndex) -> Result<ChunkHash, HashError> + Send,
{
    let count = geometry.chunk_count();
    let next = AtomicU32::new(0);
    let done = Mutex::new(0);
    let run = |mut hash_chunk: W| {
        let mut hashed = Vec::new();
        loop {
            // At most one step too far for each thread: far from the end of a u32.
            let index = ChunkIndex(next.fetch_add(1, Ordering::Relaxed));
            if !geometry.contains(index) {
                return Ok(hashed);
            }
            match hash_chunk(index) {
                Ok(hash) => hashed.push((index, hash)),
                Err(error) => {
                    // Nobody needs to start on another chunk.
                    next.store(count, Ordering::Relaxed);
                    return Err(error);
                }
            }
            // Held during the call, so that what `progress` sees only grows.
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += u64::from(geometry.chunk_len(index));
            progress(*done);
        }
    };
    let threads = threads.get().min(count as usize);
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let worker = make_worker();
                scope.spawn(|| run(worker))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join()).collect()
    });
    let mut hashes = vec![[0; 32]; count as usize];
    for result in results {
        // A worker panics only if `progress` does: its caller's panic goes back to its caller.
        let hashed = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        for (index, hash) in hashed {
            hashes[index.0 as usize] = hash;
        }
    }
    // One hash for each chunk of the geometry, so the count is right.
    Ok(Manifest::new(*geometry, hashes).expect("one hash for each chunk"))
}
