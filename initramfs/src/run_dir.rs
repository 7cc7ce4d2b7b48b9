//! The run-time directory: a tmpfs of our own, because /run has a tenth of the RAM at most.
//!
//! It holds the image and the status document, is sized to the image, and moves into the new root
//! with /run. What is in the files is others' business.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::exit::{Classified, Exit, exit_of_local_io};
use crate::units;

/// The mounted directory. Dropping it unmounts it with all that is in it, unless it is kept.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    made: bool,
    keep: bool,
}

/// Why there is no run-time directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the run-time directory {} ({}): {source}", path.display(), units::size(*size_bytes))]
pub struct RunDirError {
    path: PathBuf,
    size_bytes: u64,
    source: io::Error,
}

impl Classified for RunDirError {
    fn exit(&self) -> Exit {
        exit_of_local_io(&self.source)
    }
}

/// Beside the image: the status document, its directory, and rounding to pages.
pub const SLACK_BYTES: u64 = 1 << 20;

impl RunDir {
    /// Mounts a tmpfs at `path` that holds `image_bytes`, in huge pages as far as there are any: a
    /// tenth and more of what a fast network costs the processor is pages of 4 KiB. Spread over the
    /// memory nodes when the machine has several, so that no node's memory is filled by the image alone.
    pub fn mount(path: &Path, image_bytes: u64, interleave: bool) -> Result<RunDir, RunDirError> {
        let size_bytes = image_bytes.saturating_add(SLACK_BYTES);
        let error = |source: io::Error| RunDirError {
            path: path.to_owned(),
            size_bytes,
            source,
        };
        let made = !path.exists();
        fs::create_dir_all(path).map_err(error)?;
        // What an agent that was killed left behind; one that is in use stays and is covered.
        let _ = rustix::mount::unmount(path, UnmountFlags::NOFOLLOW);
        let mut dir = RunDir {
            path: path.to_owned(),
            made,
            keep: false,
        };
        let mut mounted = Err(Errno::INVAL);
        for options in options(size_bytes, interleave) {
            mounted = mount_tmpfs(path, &options);
            // A kernel without huge pages, or without NUMA, does not know the option.
            if mounted != Err(Errno::INVAL) {
                break;
            }
        }
        if let Err(e) = mounted {
            dir.keep = true;
            if made {
                let _ = fs::remove_dir(path);
            }
            return Err(error(e.into()));
        }
        Ok(dir)
    }

    /// Where the whole image is once it is verified.
    pub fn image(&self) -> PathBuf {
        self.path.join("image.squashfs")
    }

    /// Where the status document is.
    pub fn status(&self) -> PathBuf {
        self.path.join("status.json")
    }

    /// The directory stays when this value goes.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

/// What to mount with, the best first: what comes later asks less of the kernel (its
/// Documentation/filesystems/tmpfs.rst). Huge pages lie within the image's length, so they take no more
/// memory than small ones would.
fn options(size_bytes: u64, interleave: bool) -> Vec<String> {
    let policies: &[&str] = if interleave {
        &[",mpol=interleave", ""]
    } else {
        &[""]
    };
    let mut sets = Vec::new();
    for policy in policies {
        for huge in [",huge=within_size", ""] {
            sets.push(format!("mode=0755,size={size_bytes}{policy}{huge}"));
        }
    }
    sets
}

fn mount_tmpfs(path: &Path, options: &str) -> Result<(), Errno> {
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", path, "tmpfs", flags, options.as_c_str())
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Lazily: a descriptor that is still open must not leave the mount visible.
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_may_lack_is_asked_for_first() {
        let plain = "mode=0755,size=42";
        let huge = format!("{plain},huge=within_size");
        assert_eq!(options(42, false), [huge.as_str(), plain]);
        let spread = format!("{plain},mpol=interleave");
        let best = format!("{spread},huge=within_size");
        assert_eq!(options(42, true), [best.as_str(), &spread, &huge, plain]);
    }
}
