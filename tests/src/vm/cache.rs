//! What is kept between runs below `target/demo`, and the lock that one run at a time holds on it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::binaries::target_directory;
use super::step::StepError;

/// The directory, held as long as this lives.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    logs: PathBuf,
    _lock: File,
}

impl Cache {
    /// Makes the directory where it is missing, and waits for whoever else holds it.
    ///
    /// # Errors
    /// When it cannot be made or locked.
    pub fn open(say: &dyn Fn(&str)) -> Result<Cache, StepError> {
        let directory = target_directory().join("demo");
        let logs = directory.join("log");
        fs::create_dir_all(&logs).map_err(StepError::file("make", &logs))?;
        let lock = lock(&directory.join("lock"), say)?;
        Ok(Cache {
            directory,
            logs,
            _lock: lock,
        })
    }

    /// Where what is kept is.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// For the output of what makes it.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

fn lock(path: &Path, say: &dyn Fn(&str)) -> Result<File, StepError> {
    let file = File::create(path).map_err(StepError::file("make", path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        say("waiting for another demo or VM test to end");
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| StepError::file("lock", path)(errno.into()))?;
    }
    Ok(file)
}
