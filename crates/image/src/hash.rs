//! Hashes a whole image on several cores, and so makes its manifest.
//!
//! Workers claim chunks one at a time from a shared counter, so that a core that is busy with
//! something else holds nobody up. The source is a slice, or a file that is read at positions.
//! A mapping of a file that somebody else may truncate must not be hashed as a slice: touching
//! the lost pages kills the process. [`hash_file`] notices it instead.
//!
//! Files are read in pieces, by a bounded number of threads: what this takes of memory depends
//! neither on the chunks' size nor on how many cores there are.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::limits::{HASH_PIECE_BYTES, HASH_STACK_BYTES, HASH_THREADS_MAX};
use crate::tree::{self, ChunkHash, ChunkHasher};
use crate::{Bitfield, ChunkIndex, ChunkSize, Geometry, GeometryError, Manifest};

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

/// As many threads as hashing has use for: one for each core that this process may run on, and at
/// most [`HASH_THREADS_MAX`].
pub fn all_cores() -> NonZeroUsize {
    let most = const { NonZeroUsize::new(HASH_THREADS_MAX).expect("not zero") };
    thread::available_parallelism().map_or(NonZeroUsize::MIN, |cores| cores.min(most))
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

/// Hashes an image in a file, as [`hash_image`] does, with one buffer of [`HASH_PIECE_BYTES`] for
/// each thread, of which there are at most [`HASH_THREADS_MAX`] whatever is asked for.
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
        let mut piece = Vec::new();
        move |index| {
            chunk_in_file(source, &geometry, index, &mut piece).map_err(|(offset, error)| {
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
            })
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

/// Which chunks of `file` are those of the image, found by reading it on at most `threads` threads,
/// with the memory of [`hash_file`].
///
/// It reads rather than maps, because these bytes are not known to be anything yet: a disk that
/// cannot read them is then an error, not a SIGBUS. That all chunks are good says the same as hashing
/// the whole: a [`Manifest`] exists only if its hashes merge to the id of the image.
///
/// # Errors
/// What the system said when it could not read all of it; a file that is shorter than the image is
/// such a case.
pub fn verified_chunks(
    file: &File,
    manifest: &Manifest,
    threads: NonZeroUsize,
) -> io::Result<Bitfield> {
    let geometry = *manifest.geometry();
    let good = Mutex::new(Bitfield::new(geometry.chunk_count()));
    let worker = || {
        let mut piece = Vec::new();
        let good = &good;
        move |index| {
            let hash = chunk_in_file(file, &geometry, index, &mut piece)
                .map_err(|(offset, source)| HashError::Read { offset, source })?;
            if hash == *manifest.chunk_hash(index) {
                good.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .set(index);
            }
            Ok(())
        }
    };
    match each_chunk(&geometry, threads, &|_| {}, worker) {
        Ok(_) => Ok(good.into_inner().unwrap_or_else(PoisonError::into_inner)),
        Err(HashError::Read { source, .. }) => Err(source),
        Err(other) => Err(io::Error::other(other)),
    }
}

/// Reads and hashes one chunk by pieces; on failure, where in the file it was.
fn chunk_in_file(
    file: &File,
    geometry: &Geometry,
    index: ChunkIndex,
    piece: &mut Vec<u8>,
) -> Result<ChunkHash, (u64, io::Error)> {
    let mut hasher = ChunkHasher::new(geometry, index);
    let (mut offset, mut rest) = (geometry.offset(index), geometry.chunk_len(index) as usize);
    let longest = rest.min(HASH_PIECE_BYTES);
    if piece.len() < longest {
        // Rust ends the process when an allocation fails; this one is only refused.
        piece
            .try_reserve_exact(longest - piece.len())
            .map_err(|error| (offset, io::Error::new(io::ErrorKind::OutOfMemory, error)))?;
        piece.resize(longest, 0);
    }
    while rest > 0 {
        let length = rest.min(HASH_PIECE_BYTES);
        let piece = &mut piece[..length];
        file.read_exact_at(piece, offset)
            .map_err(|error| (offset, error))?;
        hasher.update(piece);
        offset += length as u64;
        rest -= length;
    }
    Ok(hasher.finish())
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

/// Hashes each chunk and puts the hashes in order.
fn hash_chunks<W>(
    geometry: &Geometry,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
    make_worker: impl Fn() -> W,
) -> Result<Manifest, HashError>
where
    W: FnMut(ChunkIndex) -> Result<ChunkHash, HashError> + Send,
{
    let hashed = each_chunk(geometry, threads, progress, make_worker)?;
    let mut hashes = vec![[0; 32]; geometry.chunk_count() as usize];
    for (index, hash) in hashed.into_iter().flatten() {
        hashes[index.0 as usize] = hash;
    }
    // One hash for each chunk of the geometry, so the count is right.
    Ok(Manifest::new(*geometry, hashes).expect("one hash for each chunk"))
}

/// What one thread found, chunk by chunk.
type Found<T> = Vec<(ChunkIndex, T)>;

/// Runs the workers that `make_worker` makes, one for each thread, until each chunk was taken by
/// one of them or one of them failed.
fn each_chunk<T, W>(
    geometry: &Geometry,
    threads: NonZeroUsize,
    progress: &(dyn Fn(u64) + Sync),
    make_worker: impl Fn() -> W,
) -> Result<Vec<Found<T>>, HashError>
where
    T: Send,
    W: FnMut(ChunkIndex) -> Result<T, HashError> + Send,
{
    let count = geometry.chunk_count();
    let next = AtomicU32::new(0);
    let done = Mutex::new(0);
    let run = |mut work: W| {
        let mut found = Vec::new();
        loop {
            // At most one step too far for each thread: far from the end of a u32.
            let index = ChunkIndex(next.fetch_add(1, Ordering::Relaxed));
            if !geometry.contains(index) {
                return Ok(found);
            }
            match work(index) {
                Ok(result) => found.push((index, result)),
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
    let others = threads.get().min(HASH_THREADS_MAX).min(count as usize);
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (1..others)
            .map_while(|_| {
                let worker = make_worker();
                // Without a thread (a limit on them, or on memory) those that there are do its share.
                thread::Builder::new()
                    .stack_size(HASH_STACK_BYTES)
                    .spawn_scoped(scope, || run(worker))
                    .ok()
            })
            .collect();
        let own = run(make_worker());
        // A worker panics only if `progress` does: its caller's panic goes back to its caller.
        let others = workers.into_iter().map(|worker| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        std::iter::once(own).chain(others).collect()
    });
    results.into_iter().collect()
}
