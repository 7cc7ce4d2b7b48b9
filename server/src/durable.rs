//! Files that survive a crash: written under a temporary name, synced, renamed, directory synced.
//!
//! Also the advisory locks that keep writers apart. What the files mean is left to [`crate::state`]
//! and [`crate::token`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Who files are given to when root writes into a directory that belongs to a service user.
///
/// An admin publishes as root while the server runs as its own user; without this the server could
/// not read what was published for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The owner to give files in `directory`: the directory's own if this process is root and the
    /// directory is not root's, nobody special otherwise.
    pub fn of_directory(directory: &Path) -> io::Result<Option<Owner>> {
        let metadata = fs::metadata(directory)?;
        let root = rustix::process::geteuid().is_root();
        Ok((root && metadata.uid() != 0).then(|| Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        }))
    }

    /// Gives `file` to this owner.
    pub fn give(self, file: &File) -> io::Result<()> {
        std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))
    }
}

/// Syncs a directory, which is what makes a rename in it durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a directory with `mode` unless it is there, and gives it to `owner`.
pub fn make_directory(path: &Path, mode: u32, owner: Option<Owner>) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            if let Some(owner) = owner {
                owner.give(&File::open(path)?)?;
            }
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Replaces `path` with `contents`, whole or not at all, and durably. `temporary` is where the bytes
/// go first: on the same file system, used by no other writer.
pub fn replace_file(
    path: &Path,
    temporary: &Path,
    contents: &[u8],
    mode: u32,
    owner: Option<Owner>,
) -> io::Result<()> {
    let written =
        write_new(temporary, contents, mode, owner).and_then(|()| fs::rename(temporary, path));
    if written.is_err() {
        // The first error is the one to report; a leftover is also removed at the next start.
        let _ = fs::remove_file(temporary);
    }
    written?;
    match path.parent() {
        Some(directory) => sync_directory(directory),
        None => Ok(()),
    }
}

/// A name beside `path` for [`replace_file`]: hidden, and with the process id so that two writers
/// do not meet.
pub fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

/// Writes `contents` to `path`, which must not exist, and syncs the file (not its directory).
pub fn write_new(path: &Path, contents: &[u8], mode: u32, owner: Option<Owner>) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        // Gone, or a leftover of a process that had our id.
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    if let Some(owner) = owner {
        owner.give(&file)?;
    }
    file.write_all(contents)?;
    file.sync_all()
}

/// A held lock; dropped, it is released, also by the death of the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock file at `path`, making it if needed, and waits for its holder to let go.
    pub fn exclusive(path: &Path, owner: Option<Owner>) -> io::Result<Lock> {
        let file = open_lock(path, owner)?;
        retry_interrupted(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(Lock { _file: file })
    }

    /// Takes the lock if nobody holds it; `None` if somebody does.
    pub fn try_exclusive(path: &Path, owner: Option<Owner>) -> io::Result<Option<Lock>> {
        Lock::try_file(open_lock(path, owner)?)
    }

    /// The same on a directory that exists, which then needs no lock file in it.
    pub fn try_directory(path: &Path) -> io::Result<Option<Lock>> {
        Lock::try_file(File::open(path)?)
    }

    /// Whether somebody holds the lock file at `path`. It is taken for an instant to find out.
    pub fn is_held(path: &Path) -> bool {
        match File::open(path) {
            Ok(file) => Lock::try_shared(&file).is_err(),
            // Without a file nobody holds it; what cannot be opened is another user's.
            Err(e) => e.kind() != io::ErrorKind::NotFound,
        }
    }

    fn try_shared(file: &File) -> io::Result<()> {
        retry_interrupted(|| flock(file, FlockOperation::NonBlockingLockShared))
    }

    fn try_file(file: File) -> io::Result<Option<Lock>> {
        match retry_interrupted(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn open_lock(path: &Path, owner: Option<Owner>) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if let Some(owner) = owner {
        owner.give(&file)?;
    }
    Ok(file)
}

fn retry_interrupted(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replace_is_whole_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tag");
        replace_file(&path, &beside(&path), b"one", 0o644, None).unwrap();
        replace_file(&path, &beside(&path), b"two", 0o600, None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_replace_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        // A directory that is not empty cannot be renamed over.
        let path = dir.path().join("tag");
        fs::create_dir_all(path.join("in the way")).unwrap();
        assert!(replace_file(&path, &beside(&path), b"new", 0o644, None).is_err());
        assert!(path.join("in the way").is_dir());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "the temporary file was left behind"
        );
    }

    #[test]
    fn a_lock_keeps_a_second_holder_out_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::exclusive(&path, None).unwrap();
        assert!(Lock::try_exclusive(&path, None).unwrap().is_none());
        assert!(Lock::is_held(&path));
        drop(held);
        assert!(!Lock::is_held(&path));
        assert!(!Lock::is_held(&dir.path().join("none")));
        assert!(Lock::try_exclusive(&path, None).unwrap().is_some());
    }
}
