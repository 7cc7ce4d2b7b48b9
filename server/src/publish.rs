//! Publishing: a file becomes the seed's own read-only copy, a manifest, and a signed tag.
//!
//! The copy is made first and the copy is hashed, so that whatever happens to the source meanwhile,
//! the id is the hash of the bytes that will be served. A source that changed while it was copied
//! is refused all the same: half of an old image and half of a new one has a fine hash and does not
//! boot.
//!
//! Until the last two renames (the copy into `images/`, the tag into `tags/`) nothing that is
//! served has changed; a crash before leaves the old tag and a leftover that the next start sweeps.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rootswarm_image::{
    ChunkSize, HashError, ImageId, ImageName, Manifest, SignedTag, SquashfsError, SwarmKey, Tag,
    all_cores, check_squashfs, hash_file,
};

use crate::durable::{self, Lock};
use crate::exit::Exit;
use crate::progress::{Phase, Progress};
use crate::state::{StateDir, StateError};
use crate::units::Bytes;

/// Why an image was not published. Nothing of it is left, and what the name meant before it means
/// still.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The source cannot be opened or read.
    #[error("cannot {what} {}: {source}", path.display())]
    Source {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The source is a directory, a device, a pipe.
    #[error("{} is {kind}, expected a file that holds a squashfs image", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The source changed while it was copied.
    #[error("{} changed while it was read: {detail} (publish it again when it is complete)", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What changed.
        detail: String,
    },
    /// The superblock promises more bytes than there are.
    #[error("{} is cut off: its squashfs superblock says {expected} bytes, the file has {found} (publish it again when it is complete)", path.display())]
    CutOff {
        /// The file.
        path: PathBuf,
        /// What the superblock says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// No room for the copy.
    #[error("no space for a copy of {}: {} needed in {}, {} free (make room, or `rootswarm remove` an image)", path.display(), Bytes(*needed), state.display(), Bytes(*free))]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// The state directory.
        state: PathBuf,
        /// What the copy takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// Hashing failed: an I/O error on the copy, or too many chunks.
    #[error("cannot hash the copy of {}: {source}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Why.
        source: HashError,
    },
    /// The same image is there with other chunks.
    #[error(
        "image {id} is already published with chunks of {found} bytes, and one image is served with one chunk size (remove it first, or leave out --chunk-size {asked})"
    )]
    ChunkSize {
        /// The image.
        id: ImageId,
        /// What was asked for.
        asked: u64,
        /// What it is published with.
        found: u64,
    },
}

impl PublishError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            PublishError::State(e) => e.exit(),
            PublishError::Source { .. }
            | PublishError::NotAFile { .. }
            | PublishError::ChunkSize { .. } => Exit::BadInput,
            PublishError::Changed { .. } | PublishError::CutOff { .. } => Exit::SourceChanged,
            PublishError::DiskFull { .. } => Exit::Local,
            PublishError::Hash {
                source: HashError::Geometry(_),
                ..
            } => Exit::BadInput,
            PublishError::Hash { .. } => Exit::Local,
        }
    }
}

/// What to do when the name already means this very image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unchanged {
    /// Sign a new version: the admin said publish.
    NewVersion,
    /// Leave the tag as it is: a server that is started with NAME=FILE each day publishes once.
    Keep,
}

/// What to publish.
#[derive(Debug)]
pub struct Request<'a> {
    /// Under which name.
    pub name: &'a ImageName,
    /// Which file.
    pub source: &'a Path,
    /// In chunks of which size; `None` leaves it to the rule for its length.
    pub chunk_size: Option<ChunkSize>,
    /// What to do when nothing is new.
    pub unchanged: Unchanged,
}

/// What was published.
#[derive(Debug)]
pub struct Published {
    /// What the name means now.
    pub tag: Tag,
    /// Whether the file is no squashfs. It can be fetched, and no node can boot it.
    pub not_squashfs: bool,
}

/// Publishes one file.
pub fn publish(
    state: &StateDir,
    key: &SwarmKey,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Published, PublishError> {
    let source = Source::open(request.source)?;
    let not_squashfs = source.check_squashfs()?;
    let workspace = Workspace::new(state)?;
    let copied = copy_and_hash(state, &workspace, &source, request, progress);
    progress.end();
    let manifest = copied?;
    let tag = commit(state, key, &workspace, manifest, request)?;
    Ok(Published { tag, not_squashfs })
}

fn copy_and_hash(
    state: &StateDir,
    workspace: &Workspace,
    source: &Source,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Manifest, PublishError> {
    let image = workspace.path.join("image");
    let copy = source.copy_to(&image, state, progress)?;
    let length = source.stamp.length;
    let chunk_size = request
        .chunk_size
        .unwrap_or_else(|| ChunkSize::for_length(length));
    progress.begin(Phase::Hash, length);
    let manifest = hash_file(&copy, chunk_size, all_cores(), &|done| {
        progress.advance(done)
    })
    .map_err(|source| PublishError::Hash {
        path: request.source.to_owned(),
        source,
    })?;
    workspace.write_manifest(state, &manifest)?;
    Ok(manifest)
}

/// The last steps, in an order in which a crash leaves the old or the new.
fn commit(
    state: &StateDir,
    key: &SwarmKey,
    workspace: &Workspace,
    mut manifest: Manifest,
    request: &Request<'_>,
) -> Result<Tag, PublishError> {
    let id = *manifest.id();
    let place = state.copy(&id);
    let _lock = state.lock()?;
    let shared = match intact_copy(&place, &id) {
        Some(existing) => {
            let found = existing.geometry().chunk_size();
            if let Some(asked) = request.chunk_size.filter(|asked| *asked != found) {
                return Err(PublishError::ChunkSize {
                    id,
                    asked: asked.bytes(),
                    found: found.bytes(),
                });
            }
            manifest = existing;
            true
        }
        None => {
            workspace.move_to(&place, state)?;
            false
        }
    };
    let epoch = state.epoch()?;
    let current = state
        .read_tag(request.name)
        .ok()
        .flatten()
        .map(|tag| tag.unverified().clone());
    if let Some(tag) = current
        && shared
        && request.unchanged == Unchanged::Keep
        && (tag.id, tag.epoch) == (id, epoch)
    {
        return Ok(tag);
    }
    let tag = Tag {
        name: request.name.clone(),
        id,
        length: manifest.geometry().length(),
        chunk_size: manifest.geometry().chunk_size(),
        version: state.next_version(request.name)?,
        epoch,
    };
    name_the_copy(state, &tag.clone().sign(key))?;
    Ok(tag)
}

/// Writes the tag and removes what no tag names any more: the copy it replaces, or, when there was no
/// room left for the tag itself, the copy that was made for it.
fn name_the_copy(state: &StateDir, signed: &SignedTag) -> Result<(), StateError> {
    let written = state.write_tag(signed);
    let removed = state.remove_unnamed_copies();
    // Why it failed is worth more than what could not be tidied up then.
    written.and(removed)
}

/// The manifest of the copy at `place`, if that copy is what its directory says. It is hashed to
/// know: a damaged copy must not be the one that is kept.
fn intact_copy(place: &Path, id: &ImageId) -> Option<Manifest> {
    let manifest = Manifest::decode(&fs::read(place.join("manifest")).ok()?, id).ok()?;
    let image = File::open(place.join("image")).ok()?;
    let hashed = hash_file(
        &image,
        manifest.geometry().chunk_size(),
        all_cores(),
        &|_| {},
    )
    .ok()?;
    (hashed == manifest).then_some(manifest)
}

/// What would differ if somebody wrote to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        Ok(Stamp {
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

struct Source {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl Source {
    fn open(path: &Path) -> Result<Source, PublishError> {
        let failed = |what| {
            move |source| PublishError::Source {
                what,
                path: path.to_owned(),
                source,
            }
        };
        // Non-blocking, because opening a pipe would wait for somebody to write into it.
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(nonblocking)
            .open(path)
            .map_err(failed("open"))?;
        let kind = file.metadata().map_err(failed("read"))?.file_type();
        if !kind.is_file() {
            let kind = if kind.is_dir() {
                "a directory"
            } else {
                "no regular file"
            };
            return Err(PublishError::NotAFile {
                path: path.to_owned(),
                kind,
            });
        }
        let stamp = Stamp::of(&file).map_err(failed("read"))?;
        Ok(Source {
            path: path.to_owned(),
            file,
            stamp,
        })
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> PublishError + '_ {
        move |source| PublishError::Source {
            what,
            path: self.path.clone(),
            source,
        }
    }

    fn changed(&self, detail: String) -> PublishError {
        PublishError::Changed {
            path: self.path.clone(),
            detail,
        }
    }

    /// Whether the file is something else than a squashfs; an incomplete squashfs is an error.
    fn check_squashfs(&self) -> Result<bool, PublishError> {
        let mut header = Vec::new();
        (&self.file)
            .take(4096)
            .read_to_end(&mut header)
            .map_err(self.failed("read"))?;
        match check_squashfs(&header, self.stamp.length) {
            Ok(()) => Ok(false),
            Err(SquashfsError::NotSquashfs) => Ok(true),
            Err(SquashfsError::CutOff { expected, found }) => Err(PublishError::CutOff {
                path: self.path.clone(),
                expected,
                found,
            }),
        }
    }

    /// Makes the copy, by reference where the file system can, and leaves it synced and read-only.
    fn copy_to(
        &self,
        path: &Path,
        state: &StateDir,
        progress: &dyn Progress,
    ) -> Result<File, PublishError> {
        let copy = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map_err(StateError::io("make", path))?;
        if let Some(owner) = state.owner() {
            owner.give(&copy).map_err(StateError::io("make", path))?;
        }
        // A clone is instantaneous, takes no space, and is a snapshot.
        if rustix::fs::ioctl_ficlone(&copy, &self.file).is_err() {
            self.copy_bytes(&copy, path, state, progress)?;
        }
        let copied = copy.metadata().map_err(StateError::io("read", path))?.len();
        if copied != self.stamp.length {
            return Err(self.changed(format!(
                "{} bytes at first, {copied} later",
                self.stamp.length
            )));
        }
        let stamp = Stamp::of(&self.file).map_err(self.failed("read"))?;
        if stamp.length != self.stamp.length {
            return Err(self.changed(format!(
                "{} bytes at first, {} later",
                self.stamp.length, stamp.length
            )));
        }
        if stamp != self.stamp {
            return Err(self.changed("it was written to".to_owned()));
        }
        copy.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| copy.sync_all())
            .map_err(|e| self.copy_failed(e, path, state))?;
        Ok(copy)
    }

    fn copy_bytes(
        &self,
        copy: &File,
        path: &Path,
        state: &StateDir,
        progress: &dyn Progress,
    ) -> Result<(), PublishError> {
        let length = self.stamp.length;
        if free_bytes(state.root()).is_some_and(|free| free < length) {
            return Err(self.disk_full(state));
        }
        if length > 0 {
            // Takes the space now rather than fail at 90 %. Not every file system can.
            match rustix::fs::fallocate(copy, rustix::fs::FallocateFlags::empty(), 0, length) {
                Err(e) if e == rustix::io::Errno::NOSPC => return Err(self.disk_full(state)),
                _ => {}
            }
        }
        progress.begin(Phase::Copy, length);
        // Large enough that the calls cost nothing, small enough for the cache.
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        let mut writer = copy;
        while done < length {
            let want = buffer
                .len()
                .min(usize::try_from(length - done).unwrap_or(usize::MAX));
            let read = match self.file.read_at(&mut buffer[..want], done) {
                Ok(0) => return Err(self.changed(format!("{length} bytes at first, {done} later"))),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.failed("read")(e)),
            };
            writer
                .write_all(&buffer[..read])
                .map_err(|e| self.copy_failed(e, path, state))?;
            done += read as u64;
            progress.advance(done);
        }
        Ok(())
    }

    fn copy_failed(&self, error: io::Error, path: &Path, state: &StateDir) -> PublishError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.disk_full(state),
            _ => StateError::io("write", path)(error).into(),
        }
    }

    fn disk_full(&self, state: &StateDir) -> PublishError {
        PublishError::DiskFull {
            path: self.path.clone(),
            state: state.root().to_owned(),
            needed: self.stamp.length,
            free: free_bytes(state.root()).unwrap_or(0),
        }
    }
}

fn free_bytes(directory: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// A directory in `tmp/` in which one copy comes to be. Dropped, it is removed with what is in it,
/// unless it was moved to its place.
/// A directory in `tmp/` in which a copy comes to be; gone with this value unless it was moved.
pub(crate) struct Workspace {
    path: PathBuf,
    /// Whether what is in it outlives this process, for the next one to go on with.
    is_kept: bool,
    /// Tells a sweeping process that this one is alive.
    _lock: Option<Lock>,
}

impl Workspace {
    pub(crate) fn new(state: &StateDir) -> Result<Workspace, PublishError> {
        let path = state.temporary("publish");
        // The sweeper holds the same lock, so it never sees the directory unlocked.
        let _lock = state.lock()?;
        durable::make_directory(&path, 0o755, state.owner())
            .map_err(StateError::io("make directory", &path))?;
        let lock = Lock::try_directory(&path).map_err(StateError::io("lock", &path))?;
        Ok(Workspace {
            path,
            is_kept: false,
            _lock: lock,
        })
    }

    /// The one in which the image `id` is assembled: what an earlier attempt left is still in it, to
    /// be verified before it is used. It stays until it is published, or
    /// [`StateDir::keep_partials`] finds that nobody wants it.
    pub(crate) fn resume(state: &StateDir, id: &ImageId) -> Result<Workspace, PublishError> {
        let path = state.partial(id);
        let _lock = state.lock()?;
        durable::make_directory(&path, 0o755, state.owner())
            .map_err(StateError::io("make directory", &path))?;
        let lock = Lock::try_directory(&path)
            .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::ResourceBusy.into()))
            .map_err(StateError::io("lock", &path))?;
        Ok(Workspace {
            path,
            is_kept: true,
            _lock: Some(lock),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Publishes the image that was assembled here, under a tag that is signed already; one that is
    /// older than what the name means now is let go.
    pub(crate) fn adopt(
        self,
        state: &StateDir,
        manifest: &Manifest,
        signed: &SignedTag,
    ) -> Result<(), PublishError> {
        let image = self.path.join("image");
        let copy = File::open(&image).map_err(StateError::io("open", &image))?;
        if let Some(owner) = state.owner() {
            owner.give(&copy).map_err(StateError::io("make", &image))?;
        }
        copy.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| copy.sync_all())
            .map_err(StateError::io("write", &image))?;
        self.write_manifest(state, manifest)?;
        let tag = signed.unverified();
        let _lock = state.lock()?;
        let current = state.read_tag(&tag.name).ok().flatten();
        if current.is_some_and(|current| current.unverified().version > tag.version) {
            return Ok(());
        }
        self.move_to(&state.copy(manifest.id()), state)?;
        Ok(name_the_copy(state, signed)?)
    }

    /// Becomes the copy at `place`; a damaged one that is there is mended by it. Called with the lock
    /// held.
    fn move_to(&self, place: &Path, state: &StateDir) -> Result<(), StateError> {
        if place.exists() {
            state.discard_directory(place)?;
        }
        durable::sync_directory(&self.path)
            .and_then(|()| fs::rename(&self.path, place))
            .and_then(|()| durable::sync_directory(&state.images()))
            .map_err(StateError::io("move the copy to", place))
    }

    fn write_manifest(&self, state: &StateDir, manifest: &Manifest) -> Result<(), PublishError> {
        let path = self.path.join("manifest");
        durable::write_new(&path, &manifest.encode(), 0o444, state.owner())
            .map_err(StateError::io("write", &path))?;
        Ok(())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // Not there when it was moved to its place; a leftover is swept at the next start.
        if !self.is_kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
