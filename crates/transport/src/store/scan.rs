//! Reads a file through and says which chunks in it are those of the image.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rootswarm_image::{Bitfield, ChunkIndex, Manifest, Verifier};

/// Verifies every chunk in `file`, on all cores.
///
/// It reads rather than maps, because these bytes are not known to be anything yet: a disk that
/// cannot read them is then an error, not a SIGBUS. Memory: one chunk for each core.
///
/// That all chunks are good says the same as hashing the whole: a [`Manifest`] exists only if its
/// hashes merge to the id of the image.
pub(super) fn verified_chunks(file: &File, manifest: &Arc<Manifest>) -> io::Result<Bitfield> {
    let geometry = manifest.geometry();
    let chunks = geometry.chunk_count();
    let verifier = Verifier::new(manifest.clone());
    let next = AtomicU32::new(0);
    let found = Mutex::new(Ok(Bitfield::new(chunks)));

    let work = || {
        let mut buffer = Vec::new();
        loop {
            let index = ChunkIndex(next.fetch_add(1, Ordering::Relaxed));
            if !geometry.contains(index) {
                return;
            }
            buffer.resize(geometry.chunk_len(index) as usize, 0);
            let read = file.read_exact_at(&mut buffer, geometry.offset(index));
            let good = read.map(|()| verifier.verify(index, buffer.as_slice()).is_ok());
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            match (good, found.as_mut()) {
                (Ok(true), Ok(have)) => {
                    have.set(index);
                }
                (Ok(false), Ok(_)) => {}
                (_, Err(_)) => return,
                (Err(error), Ok(_)) => {
                    *found = Err(error);
                    return;
                }
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let others = cores.min(chunks as usize).saturating_sub(1);
    std::thread::scope(|scope| {
        for _ in 0..others {
            // Without a thread this one does its share.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}
