//! The image a node is assembling: a file that fills with verified chunks, on tmpfs for a node
//! that boots (this is the RAM image, which is then mounted) or on disk for `fetch`.
//!
//! Mounting it, renaming it when it is whole, and sizing its tmpfs are left to others.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rootswarm_image::{Bitfield, ChunkIndex, Manifest, VerifiedChunk};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::{ChunkSource, StoreError, map, scan};

/// An image that is being assembled. Cheap to clone; clones are the same store.
///
/// **Invariants.** A chunk's range of the file is written once, and handed out only afterwards. A
/// chunk counts as held when verified bytes were written over the whole of its range
/// ([`ChunkStore::write`]), or when what was found there was verified ([`ChunkStore::resume`]); from
/// then on nobody else writes the file, which is locked. A store that holds every chunk is therefore
/// the image, whole: a [`Manifest`] exists only if its hashes merge to the image's id.
#[derive(Clone, Debug)]
pub struct ChunkStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    manifest: Arc<Manifest>,
    map: Bytes,
    /// Held for a few instructions, never over a read or a write.
    state: Mutex<State>,
    /// Some chunk is no longer being written.
    written: Condvar,
}

#[derive(Debug)]
struct State {
    have: Bitfield,
    /// Chunks that a thread is writing at this moment: at most one for each thread that writes.
    writing: Vec<ChunkIndex>,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is new, and can be handed out now.
    Stored,
    /// It had been there already; nothing was written.
    AlreadyHeld,
}

impl ChunkStore {
    /// Makes an empty store at `path`, replacing what is there. The file has its full length from
    /// the start, and all its space where that costs nothing, so that an image that does not fit
    /// is refused here, before the download, and not in the middle of it.
    ///
    /// The file is readable by its owner only: a root image holds password hashes and host keys.
    pub fn create(
        path: impl AsRef<Path>,
        manifest: Arc<Manifest>,
    ) -> Result<ChunkStore, StoreError> {
        let path = path.as_ref();
        // Removed, not truncated: an older store that still has it mapped keeps its own file.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("replace", path)(error));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(StoreError::io("create", path))?;
        let have = Bitfield::new(manifest.geometry().chunk_count());
        ChunkStore::prepare(path, file, manifest, have).inspect_err(|_| {
            // It holds nothing; the error that matters is the one being returned.
            let _ = fs::remove_file(path);
        })
    }

    /// Continues with the file at `path`: verifies on all cores what is in it and keeps every
    /// chunk that is good, whoever wrote it. [`ChunkStore::have`] says which.
    pub fn resume(
        path: impl AsRef<Path>,
        manifest: Arc<Manifest>,
    ) -> Result<ChunkStore, StoreError> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(StoreError::io("open", path))?;
        lock(path, &file)?;
        let expected_bytes = manifest.geometry().length();
        let found_bytes = file.metadata().map_err(StoreError::io("stat", path))?.len();
        if found_bytes != expected_bytes {
            return Err(StoreError::WrongLength {
                path: path.to_owned(),
                expected_bytes,
                found_bytes,
            });
        }
        let have = scan::verified_chunks(&file, &manifest).map_err(StoreError::io("read", path))?;
        ChunkStore::prepare(path, file, manifest, have)
    }

    fn prepare(
        path: &Path,
        file: File,
        manifest: Arc<Manifest>,
        have: Bitfield,
    ) -> Result<ChunkStore, StoreError> {
        lock(path, &file)?;
        let length = manifest.geometry().length();
        file.set_len(length)
            .map_err(StoreError::io("set the length of", path))?;
        allocate(path, &file, length)?;
        let map = map::map_file(&file, length).map_err(StoreError::io("map", path))?;
        Ok(ChunkStore(Arc::new(Inner {
            path: path.to_owned(),
            file,
            manifest,
            map,
            state: Mutex::new(State {
                have,
                writing: Vec::new(),
            }),
            written: Condvar::new(),
        })))
    }

    /// Stores a verified chunk. When this returns without an error the chunk can be handed out,
    /// whichever thread wrote it.
    ///
    /// It is written with `pwrite`, not through the map: a full disk or a broken one is then an
    /// error instead of a SIGBUS, and the kernel need not zero or read the pages first. The copy
    /// is the one that moves the chunk out of the network buffers, and the only one.
    pub fn write<B: AsRef<[u8]>>(&self, chunk: VerifiedChunk<B>) -> Result<Written, StoreError> {
        let inner = &*self.0;
        let index = chunk.index();
        if chunk.image() != inner.manifest.id() {
            return Err(StoreError::OtherImage {
                index,
                expected: *inner.manifest.id(),
                found: *chunk.image(),
            });
        }
        let mut state = inner.state();
        while state.writing.contains(&index) {
            state = inner
                .written
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.have.get(index) {
            return Ok(Written::AlreadyHeld);
        }
        state.writing.push(index);
        drop(state);

        // The verifier accepts only the chunk's exact length, so this ends inside the file.
        let offset = inner.manifest.geometry().offset(index);
        let written = inner.file.write_all_at(chunk.bytes(), offset);
        let result = written.map_err(|error| {
            if error.kind() == io::ErrorKind::StorageFull {
                no_space(&inner.path, &inner.file, u64::from(inner.chunk_len(index)))
            } else {
                StoreError::io("write", &inner.path)(error)
            }
        });

        let mut state = inner.state();
        state.writing.retain(|writing| *writing != index);
        if result.is_ok() {
            state.have.set(index);
        }
        drop(state);
        inner.written.notify_all();
        result.map(|()| Written::Stored)
    }

    /// Which chunks are there.
    #[must_use]
    pub fn have(&self) -> Bitfield {
        self.0.state().have.clone()
    }

    /// Whether this chunk is there.
    #[must_use]
    pub fn contains(&self, index: ChunkIndex) -> bool {
        self.0.manifest.geometry().contains(index) && self.0.state().have.get(index)
    }

    /// Whether all chunks are there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.0.state().have.is_full()
    }

    /// The image.
    #[must_use]
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.0.manifest
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether the image is whole: by the invariant of this type each of its bytes was verified.
    pub fn ensure_complete(&self) -> Result<(), StoreError> {
        let chunks = self.0.manifest.geometry().chunk_count();
        match self.have().count() {
            have if have == chunks => Ok(()),
            have => Err(StoreError::Incomplete {
                path: self.0.path.clone(),
                have,
                chunks,
            }),
        }
    }

    /// Reads the whole file again and verifies it, on all cores: what is on the disk now, whatever
    /// happened to it since it was written.
    pub fn verify_whole(&self) -> Result<(), StoreError> {
        self.ensure_complete()?;
        let inner = &*self.0;
        let chunks = inner.manifest.geometry().chunk_count();
        let good = scan::verified_chunks(&inner.file, &inner.manifest)
            .map_err(StoreError::io("read", &inner.path))?;
        match good.iter_missing().next() {
            None => Ok(()),
            Some(first) => Err(StoreError::Damaged {
                path: inner.path.clone(),
                first,
                damaged: chunks - good.count(),
                chunks,
            }),
        }
    }

    /// Waits until all that was written is on the disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.0
            .file
            .sync_data()
            .map_err(StoreError::io("sync", &self.0.path))
    }
}

impl ChunkSource for ChunkStore {
    fn chunk(&self, index: ChunkIndex) -> Option<Bytes> {
        let range = map::range(self.0.manifest.geometry(), index)?;
        self.0
            .state()
            .have
            .get(index)
            .then(|| self.0.map.slice(range))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; should it, the bits are still true.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chunk_len(&self, index: ChunkIndex) -> u32 {
        self.manifest.geometry().chunk_len(index)
    }
}

/// Two processes that assemble an image in one file would each hand out what the other writes.
fn lock(path: &Path, file: &File) -> Result<(), StoreError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Busy {
            path: path.to_owned(),
        }),
        // A network file system without locks: the operator's responsibility.
        Err(Errno::NOLCK | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(StoreError::io("lock", path)(error.into())),
    }
}

/// Reserves the space of the whole file, or sees that it is there. Chunks that are there already
/// keep theirs.
///
/// On tmpfs reserving means zeroing every page, half a second for a gigabyte during which nothing
/// is fetched, only to overwrite them: there it is enough to look. `pwrite` says so when somebody
/// else takes the space meanwhile.
fn allocate(path: &Path, file: &File, length: u64) -> Result<(), StoreError> {
    if length == 0 {
        return Ok(());
    }
    if is_tmpfs(file) {
        return look_for_space(path, file, length);
    }
    loop {
        return match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            Err(Errno::INTR) => continue,
            Err(Errno::NOSPC) => Err(no_space(path, file, length)),
            // The file system cannot reserve.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => look_for_space(path, file, length),
            Err(error) => Err(StoreError::io("allocate", path)(error.into())),
        };
    }
}

/// Whether it would fit now. If it no longer does later, `pwrite` says so.
fn look_for_space(path: &Path, file: &File, length: u64) -> Result<(), StoreError> {
    let needed_bytes = length.saturating_sub(allocated_bytes(file));
    match available_bytes(file) {
        Some(available) if available < needed_bytes => Err(no_space(path, file, length)),
        _ => Ok(()),
    }
}

fn is_tmpfs(file: &File) -> bool {
    // TMPFS_MAGIC of linux/magic.h.
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type == 0x0102_1994)
}

fn no_space(path: &Path, file: &File, length: u64) -> StoreError {
    StoreError::NoSpace {
        path: path.to_owned(),
        needed_bytes: length.saturating_sub(allocated_bytes(file)),
        available_bytes: available_bytes(file).unwrap_or(0),
    }
}

fn allocated_bytes(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    // The unit of st_blocks is 512 bytes on every file system.
    file.metadata()
        .map_or(0, |metadata| metadata.blocks() * 512)
}

fn available_bytes(file: &File) -> Option<u64> {
    let stat = rustix::fs::fstatvfs(file).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}
