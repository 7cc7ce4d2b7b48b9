//! A file that is to be published: what it is, whether it stays what it is, and its copy.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rootswarm_image::{SquashfsError, check_squashfs};

use crate::format::{self, FORMAT_HEADER_BYTES};
use crate::progress::{Phase, Progress};
use crate::publish_error::PublishError;
use crate::state::{StateDir, StateError};

/// What would differ if somebody wrote to a file, or put another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    /// Its length in bytes.
    pub length: u64,
    modified: (i64, i64),
    /// When its contents or its attributes were last changed. Programs can set the time of the last
    /// modification back (`touch`, `rsync --times`); this one only the kernel's clock sets.
    changed: (i64, i64),
}

impl Stamp {
    /// Of this file, now.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Of the file at this path, now.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn of_path(path: &Path) -> io::Result<Stamp> {
        Stamp::of(&File::open(path)?)
    }

    /// Whether the last change is so long ago that the next one has another time stamp: the kernel's
    /// clock for files ticks each 1-10 ms, that of a file server perhaps once in two seconds. One that
    /// lies in the future (a clock that was wrong) is no such stamp.
    pub fn is_settled(&self, now_unix_s: u64) -> bool {
        let last = self.modified.0.max(self.changed.0);
        u64::try_from(last).is_ok_and(|last| last.saturating_add(SETTLED_AFTER_S) < now_unix_s)
    }

    /// Its fields, as they are written down.
    pub fn to_line(self) -> String {
        format!(
            "{} {} {} {}.{:09} {}.{:09}",
            self.device,
            self.inode,
            self.length,
            self.modified.0,
            self.modified.1,
            self.changed.0,
            self.changed.1
        )
    }
}

/// See [`Stamp::is_settled`].
const SETTLED_AFTER_S: u64 = 3;

/// A file that is to be published, open.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl Source {
    /// Opens a regular file.
    ///
    /// # Errors
    /// It is none, or cannot be opened.
    pub fn open(path: &Path) -> Result<Source, PublishError> {
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

    pub(crate) fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> PublishError + '_ {
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

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What it was when it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// What the file is if it is no squashfs.
    ///
    /// # Errors
    /// A squashfs that is not complete, and a file that cannot be read.
    pub fn check_squashfs(&self) -> Result<Option<&'static str>, PublishError> {
        let mut header = Vec::new();
        (&self.file)
            .take(FORMAT_HEADER_BYTES as u64)
            .read_to_end(&mut header)
            .map_err(self.failed("read"))?;
        match check_squashfs(&header, self.stamp.length) {
            Ok(()) => Ok(None),
            Err(SquashfsError::NotSquashfs) => Ok(Some(format::name_of(&header))),
            Err(SquashfsError::CutOff { expected, found }) => Err(PublishError::CutOff {
                path: self.path.clone(),
                expected,
                found,
            }),
        }
    }

    /// Fails if the file is not what it was when it was opened.
    ///
    /// # Errors
    /// [`PublishError::Changed`].
    pub fn ensure_unchanged(&self) -> Result<(), PublishError> {
        let stamp = Stamp::of(&self.file).map_err(self.failed("read"))?;
        if stamp.length != self.stamp.length {
            return Err(self.changed(format!(
                "{} bytes at first, {} later",
                self.stamp.length, stamp.length
            )));
        }
        // Not the time of the last change: a new link to the file is no new contents.
        if stamp.modified != self.stamp.modified {
            return Err(self.changed("it was written to".to_owned()));
        }
        Ok(())
    }

    /// Makes the copy, by reference where the file system can, and leaves it synced and read-only.
    /// `beside` is what else is to be written for it: there must be room for both.
    ///
    /// # Errors
    /// The source cannot be read or changed meanwhile, or the copy cannot be written.
    pub fn copy_to(
        &self,
        path: &Path,
        beside: u64,
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
            self.copy_bytes(&copy, path, beside, state, progress)?;
        }
        let copied = copy.metadata().map_err(StateError::io("read", path))?.len();
        if copied != self.stamp.length {
            return Err(self.changed(format!(
                "{} bytes at first, {copied} later",
                self.stamp.length
            )));
        }
        self.ensure_unchanged()?;
        copy.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| copy.sync_all())
            .map_err(|e| self.copy_failed(e, path, state))?;
        Ok(copy)
    }

    fn copy_bytes(
        &self,
        copy: &File,
        path: &Path,
        beside: u64,
        state: &StateDir,
        progress: &dyn Progress,
    ) -> Result<(), PublishError> {
        let length = self.stamp.length;
        let needed = length.saturating_add(beside);
        if free_bytes(state.root()).is_some_and(|free| free < needed) {
            return Err(self.disk_full(state, needed));
        }
        if length > 0 {
            // Takes the space now rather than fail at 90 %. Not every file system can.
            match rustix::fs::fallocate(copy, rustix::fs::FallocateFlags::empty(), 0, length) {
                Err(e) if e == rustix::io::Errno::NOSPC => {
                    return Err(self.disk_full(state, needed));
                }
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
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                self.disk_full(state, self.stamp.length)
            }
            _ => StateError::io("write", path)(error).into(),
        }
    }

    fn disk_full(&self, state: &StateDir, needed: u64) -> PublishError {
        PublishError::DiskFull {
            path: self.path.clone(),
            state: state.root().to_owned(),
            needed,
            free: free_bytes(state.root()).unwrap_or(0),
        }
    }
}

/// What is free for this process on the file system of `directory`.
pub(crate) fn free_bytes(directory: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(directory).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}
