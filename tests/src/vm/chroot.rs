//! A Debian to install into: the made root with an overlay over it, so that the root itself stays as
//! it is. The changes lie in a directory of the caller's and last as long as that; the mounts last as
//! long as a command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::debian::Debian;
use super::step::{self, StepError};

/// Runs in a mount namespace of its own.
const ENTER: &str = r#"
set -e
tree=$1 changes=$2
shift 2
mount -t overlay -o "lowerdir=$tree,upperdir=$changes/upper,workdir=$changes/work" overlay /mnt
mount -t proc proc /mnt/proc
exec chroot /mnt "$@"
"#;

/// The root and its changes.
#[derive(Debug)]
pub struct Chroot {
    tree: PathBuf,
    changes: PathBuf,
}

impl Chroot {
    /// A root without changes, whose changes go below `changes`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn over(debian: &Debian, changes: &Path) -> Result<Chroot, StepError> {
        for name in ["upper", "work"] {
            let path = changes.join(name);
            fs::create_dir_all(&path).map_err(StepError::file("make", &path))?;
        }
        Ok(Chroot {
            tree: debian.tree.clone(),
            changes: changes.to_owned(),
        })
    }

    /// A command that runs inside, one at a time.
    pub fn command(&self, program: &str) -> Command {
        let mut command = step::contained("sh");
        command
            .args(["-c", ENTER, "chroot"])
            .arg(&self.tree)
            .arg(&self.changes)
            .arg(program);
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Writes a file inside; `path` begins with a slash. Not while a command runs.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<(), StepError> {
        let to = self.changed(path);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(StepError::file("make", parent))?;
        }
        fs::write(&to, bytes).map_err(StepError::file("write", &to))
    }

    /// Reads a file that was made or changed inside.
    ///
    /// # Errors
    /// When it is not there.
    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.changed(path))
    }

    fn changed(&self, path: &str) -> PathBuf {
        self.changes
            .join("upper")
            .join(path.trim_start_matches('/'))
    }
}
