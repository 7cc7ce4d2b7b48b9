//! The image a node is assembling: a file that fills with verified chunks, on tmpfs for a node
//! that boots (this is the RAM image, which is then mounted) or on disk for `fetch`.
//!
//! Mounting it, renaming it when it is whole, and sizing its tmpfs are left to others.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rootswarm_image::{Bitfield, ChunkIndex, Manifest, VerifiedChunk, Verifier};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;

use super::place::{Arriving, Place};
use super::{ChunkSource, StoreError, map, scan};

/// An image that is being assembled. Cheap to clone; clones are the same store.
///
/// **Invariants.** A chunk's range of the file is handed out only when the chunk is held, and from then
/// on it is not written. A
/// chunk counts as held when verified bytes were written over the whole of its range
/// ([`ChunkStore::write`]), when the bytes written over it were verified as they were written
/// ([`ChunkStore::arriving`]), or when what was found there was ([`ChunkStore::resume`]); from
/// then on nobody else writes the file, which is locked. A store that holds every chunk is therefore
/// the image, whole: a [`Manifest`] exists only if its hashes merge to the image's id.
///
/// **What can be written.** There is one descriptor that can write, and the last chunk closes it: from
/// then on this process has no way to change the image, which may be mounted. The map comes from a
/// descriptor that only reads, so that the kernel refuses to make it writable (mprotect(2)) or to punch
/// a hole through it (madvise(2), MADV_REMOVE) at any time.
#[derive(Clone, Debug)]
pub struct ChunkStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// Reads only, and holds the lock.
    file: File,
    manifest: Arc<Manifest>,
    map: Bytes,
    /// Held for a few instructions, never over a read or a write.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    have: Bitfield,
    /// Chunks that are arriving, and from how many senders.
    places: BTreeMap<ChunkIndex, (usize, Arc<Mutex<Place>>)>,
    /// The way into the file; none once every chunk is held.
    writer: Option<Arc<File>>,
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
        let prepare = || {
            let reader = reopen(path, &file)?;
            lock(path, &reader)?;
            ChunkStore::prepare(path, file, reader, manifest, have)
        };
        prepare().inspect_err(|_| {
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
        let expected_bytes = manifest.geometry().length();
        let reader = reopen(path, &file)?;
        lock(path, &reader)?;
        let found_bytes = file.metadata().map_err(StoreError::io("stat", path))?.len();
        if found_bytes != expected_bytes {
            return Err(StoreError::WrongLength {
                path: path.to_owned(),
                expected_bytes,
                found_bytes,
            });
        }
        let have =
            scan::verified_chunks(&reader, &manifest).map_err(StoreError::io("read", path))?;
        ChunkStore::prepare(path, file, reader, manifest, have)
    }

    fn prepare(
        path: &Path,
        writer: File,
        reader: File,
        manifest: Arc<Manifest>,
        have: Bitfield,
    ) -> Result<ChunkStore, StoreError> {
        let length = manifest.geometry().length();
        writer
            .set_len(length)
            .map_err(StoreError::io("set the length of", path))?;
        allocate(path, &writer, length)?;
        let map = map::map_file(&reader, length).map_err(StoreError::io("map", path))?;
        let writer = (!have.is_full()).then(|| Arc::new(writer));
        Ok(ChunkStore(Arc::new(Inner {
            path: path.to_owned(),
            file: reader,
            manifest,
            map,
            state: Mutex::new(State {
                have,
                places: BTreeMap::new(),
                writer,
            }),
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
        // The verifier accepts only the chunk's exact length, so this ends inside the file.
        self.arriving(index)?.verified(chunk.bytes())
    }

    /// Begins to take a chunk in pieces: they are written at its place and hashed there, so that memory
    /// does not grow with its size.
    ///
    /// # Errors
    /// The image has no such chunk.
    pub fn arriving(&self, index: ChunkIndex) -> Result<Arriving, StoreError> {
        let inner = &*self.0;
        let hash = Verifier::new(inner.manifest.clone())
            .begin(index)
            .map_err(|error| StoreError::io("write", &inner.path)(io::Error::other(error)))?;
        let place = {
            let mut state = inner.state();
            let (senders, place) = state
                .places
                .entry(index)
                .or_insert_with(|| (0, Arc::new(Mutex::new(Place::new(hash)))));
            *senders += 1;
            place.clone()
        };
        Ok(Arriving::new(self.clone(), index, place))
    }

    /// A sender of this chunk is gone; with the last one what was not whole is forgotten.
    pub(super) fn leave(&self, index: ChunkIndex) {
        let mut state = self.0.state();
        if let Some((senders, _)) = state.places.get_mut(&index) {
            *senders -= 1;
            if *senders == 0 {
                state.places.remove(&index);
            }
        }
    }

    /// The way into the file, for one write; none once every chunk is held.
    pub(super) fn writer(&self) -> Option<Arc<File>> {
        self.0.state().writer.clone()
    }

    /// A descriptor that only reads.
    pub(super) fn reader(&self) -> &File {
        &self.0.file
    }

    /// Where a chunk begins.
    pub(super) fn offset(&self, index: ChunkIndex) -> u64 {
        self.0.manifest.geometry().offset(index)
    }

    /// Writes a part of a chunk, which the caller has the lock of.
    pub(super) fn write_at(
        &self,
        writer: &File,
        index: ChunkIndex,
        start: u32,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let inner = &*self.0;
        let at = self.offset(index) + u64::from(start);
        writer.write_all_at(bytes, at).map_err(|error| {
            if error.kind() == io::ErrorKind::StorageFull {
                no_space(&inner.path, writer, u64::from(inner.chunk_len(index)))
            } else {
                StoreError::io("write", &inner.path)(error)
            }
        })
    }

    /// From now on the chunk can be handed out: all its bytes were verified.
    pub(super) fn hold(&self, index: ChunkIndex) {
        let mut state = self.0.state();
        state.have.set(index);
        if state.have.is_full() {
            // Nobody is writing any more: every chunk is held, and each is written once.
            state.writer = None;
        }
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

/// The same file once more, for reading alone: a descriptor keeps the rights that it was opened with.
fn reopen(path: &Path, file: &File) -> Result<File, StoreError> {
    use std::os::unix::fs::MetadataExt;
    let reader = File::open(path).map_err(StoreError::io("open", path))?;
    let which = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino()));
    match (which(file), which(&reader)) {
        (Ok(a), Ok(b)) if a == b => Ok(reader),
        (Err(error), _) | (_, Err(error)) => Err(StoreError::io("stat", path)(error)),
        // Somebody put another file there in between.
        _ => Err(StoreError::Busy {
            path: path.to_owned(),
        }),
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
