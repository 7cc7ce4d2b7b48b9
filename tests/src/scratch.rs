//! A directory for one run: made where there is room, removed when dropped or when its maker dies.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::keeper::{self, Kept};

/// Memory-backed, so that a bench measures networks and not a disk.
const MEMORY: &str = "/dev/shm";

/// Why there is no scratch directory.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// It cannot be made.
    #[error("cannot make the scratch directory {}: {source}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No place has room.
    #[error("{need_bytes} bytes are needed for this run; {} has {free_bytes}", path.display())]
    NoRoom {
        /// The last place that was looked at.
        path: PathBuf,
        /// How much is needed.
        need_bytes: u64,
        /// How much is free there.
        free_bytes: u64,
    },
}

/// A directory of this process.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a directory with room for `need_bytes`: in memory where that leaves as much again
    /// free, otherwise below `fallback`.
    ///
    /// # Errors
    /// When neither has room.
    pub fn create(label: &str, need_bytes: u64, fallback: &Path) -> Result<Self, ScratchError> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("rootswarm-{label}-{}-{serial}", std::process::id());
        let memory = Path::new(MEMORY);
        let parent = if free_bytes(memory).is_ok_and(|free| free / 2 >= need_bytes)
            && available_memory_bytes().is_some_and(|free| free / 2 >= need_bytes)
        {
            memory
        } else {
            fallback
        };
        let path = parent.join(name);
        let error = |source| ScratchError::Create {
            path: path.clone(),
            source,
        };
        keeper::register(Kept::Directory(&path)).map_err(error)?;
        std::fs::create_dir_all(&path).map_err(error)?;
        let scratch = Scratch { path: path.clone() };
        let free_bytes = free_bytes(&path).map_err(error)?;
        if free_bytes < need_bytes {
            return Err(ScratchError::NoRoom {
                path,
                need_bytes,
                free_bytes,
            });
        }
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now the keeper tries again.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

fn available_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}
