//! Copies a whole tree from the mounted image into a tmpfs, keeping all that makes it a root:
//! owners, modes, times, extended attributes, hard links, symbolic links, devices, FIFOs, holes.
//!
//! The source is a read-only mount and the target a fresh file system nobody else writes to, so
//! paths cannot change underneath.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// What a tree takes in a tmpfs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeSize {
    /// Memory for the contents, in whole pages, and for the inodes.
    pub bytes: u64,
    /// Files of every kind.
    pub inodes: u64,
}

/// What a copy could not keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Extended attributes the target's file system has no room for (`user.*` on older tmpfs).
    pub attributes_lost: u64,
    /// One of them, to look at.
    pub example: Option<PathBuf>,
}

/// A step that failed, and on what.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}: {source}", path.display())]
pub struct CopyError {
    step: &'static str,
    path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> CopyError {
    let path = path.to_owned();
    move |e| CopyError {
        step,
        path,
        source: e.into(),
    }
}

/// tmpfs spends about this on each inode and its name, measured by filling one.
const INODE_BYTES: u64 = 1024;
const PAGE_BYTES: u64 = 4096;

/// Adds up what `root` will take; reads metadata only.
pub fn measure(root: &Path) -> Result<TreeSize, CopyError> {
    let mut size = TreeSize::default();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).map_err(at("list", &dir))? {
            let path = entry.map_err(at("list", &dir))?.path();
            let meta = fs::symlink_metadata(&path).map_err(at("look at", &path))?;
            size.inodes += 1;
            size.bytes += INODE_BYTES;
            if meta.is_dir() {
                pending.push(path);
            } else if meta.is_file() {
                // Blocks, not the length: holes stay holes. A hard link counts once a name, which
                // errs on the safe side.
                let stored = meta.len().min(meta.blocks() * 512);
                size.bytes += stored.div_ceil(PAGE_BYTES) * PAGE_BYTES;
            }
        }
    }
    Ok(size)
}

/// Copies everything in `from` into the existing directory `to`, and `from`'s own metadata to it.
pub fn copy(from: &Path, to: &Path) -> Result<CopyReport, CopyError> {
    let mut copier = Copier {
        first_names: HashMap::new(),
        buffer: vec![0; BUFFER_BYTES],
        report: CopyReport::default(),
    };
    let meta = fs::symlink_metadata(from).map_err(at("look at", from))?;
    copier.directory(from, to)?;
    copier.metadata(from, to, &meta)?;
    Ok(copier.report)
}

/// Read at once; also the grain in which holes are found.
const BUFFER_BYTES: usize = 128 * 1024;

struct Copier {
    /// Where an inode with several names was copied to first.
    first_names: HashMap<u64, PathBuf>,
    buffer: Vec<u8>,
    report: CopyReport,
}

impl Copier {
    fn directory(&mut self, from: &Path, to: &Path) -> Result<(), CopyError> {
        for entry in fs::read_dir(from).map_err(at("list", from))? {
            let entry = entry.map_err(at("list", from))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let meta = fs::symlink_metadata(&source).map_err(at("look at", &source))?;
            self.entry(&source, &target, &meta)?;
        }
        Ok(())
    }

    fn entry(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<(), CopyError> {
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.first_names.get(&meta.ino()) {
                return fs::hard_link(first, to).map_err(at("link", to));
            }
            self.first_names.insert(meta.ino(), to.to_owned());
        }
        let kind = meta.file_type();
        if kind.is_dir() {
            fs::create_dir(to).map_err(at("create", to))?;
            self.directory(from, to)?;
        } else if kind.is_file() {
            self.contents(from, to)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(from).map_err(at("read", from))?;
            std::os::unix::fs::symlink(target, to).map_err(at("create", to))?;
        } else {
            let file_type = if kind.is_char_device() {
                FileType::CharacterDevice
            } else if kind.is_block_device() {
                FileType::BlockDevice
            } else if kind.is_fifo() {
                FileType::Fifo
            } else {
                FileType::Socket
            };
            let dev: Dev = meta.rdev();
            rustix::fs::mknodat(CWD, to, file_type, Mode::RUSR | Mode::WUSR, dev)
                .map_err(at("create", to))?;
        }
        self.metadata(from, to, meta)
    }

    fn contents(&mut self, from: &Path, to: &Path) -> Result<(), CopyError> {
        let mut source = File::open(from).map_err(at("open", from))?;
        let target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(to)
            .map_err(at("create", to))?;
        let mut offset = 0;
        loop {
            let filled = match source.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(filled) => filled,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(at("read", from)(e)),
            };
            let part = &self.buffer[..filled];
            if part.iter().any(|byte| *byte != 0) {
                target.write_all_at(part, offset).map_err(at("write", to))?;
            }
            offset += filled as u64;
        }
        // Also what makes a hole at the end real.
        target.set_len(offset).map_err(at("write", to))
    }

    /// Owner before mode, because chown clears set-id bits; attributes after both, because chown
    /// clears file capabilities; times last.
    fn metadata(&mut self, from: &Path, to: &Path, meta: &Metadata) -> Result<(), CopyError> {
        std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))
            .map_err(at("set the owner of", to))?;
        if !meta.is_symlink() {
            fs::set_permissions(to, Permissions::from_mode(meta.mode() & 0o7777))
                .map_err(at("set the mode of", to))?;
        }
        self.attributes(from, to)?;
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: meta.atime(),
                tv_nsec: meta.atime_nsec(),
            },
            last_modification: Timespec {
                tv_sec: meta.mtime(),
                tv_nsec: meta.mtime_nsec(),
            },
        };
        rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the times of", to))
    }

    fn attributes(&mut self, from: &Path, to: &Path) -> Result<(), CopyError> {
        let read = "read the attributes of";
        let names = match grown(|buffer| rustix::fs::llistxattr(from, buffer)) {
            Ok(names) => names,
            // An image without extended attributes.
            Err(Errno::NOTSUP) => return Ok(()),
            Err(e) => return Err(at(read, from)(e)),
        };
        for name in names.split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else {
                continue;
            };
            let value = grown(|buffer| rustix::fs::lgetxattr(from, name, buffer))
                .map_err(at(read, from))?;
            match rustix::fs::lsetxattr(to, name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOTSUP) => {
                    self.report.attributes_lost += 1;
                    self.report.example.get_or_insert_with(|| from.to_owned());
                }
                Err(e) => return Err(at("set the attributes of", to)(e)),
            }
        }
        Ok(())
    }
}

/// Calls with a small buffer, then with the largest the kernel ever needs (64 KiB for both).
fn grown(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 65536 => buffer.resize(65536, 0),
            Err(e) => return Err(e),
        }
    }
}
