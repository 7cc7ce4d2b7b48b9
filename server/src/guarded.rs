//! The files that let somebody in: who may read or write them, checked each time one is read.
//!
//! A key that others could read is no longer only ours, and a list of tokens or revocations that
//! others could write is not ours either. Neither is used until an admin has looked at it. What the
//! files say is left to those who ask for them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One such file of the state directory.
#[derive(Debug)]
pub(crate) struct GuardedFile {
    /// In the state directory.
    pub name: &'static str,
    /// For a line of an error.
    what: &'static str,
    /// How it is made.
    pub mode: u32,
    /// Permission bits that it must not have.
    forbidden: u32,
    /// What may have happened, and what to do.
    advice: &'static str,
    /// The most it can have, and that is read into memory.
    max_bytes: u64,
}

/// An Ed25519 key is 85 bytes; 4 KiB holds any PKCS#8 document ring could mean.
pub(crate) const SWARM_KEY: GuardedFile = GuardedFile {
    name: "swarm.key",
    what: "swarm key",
    mode: 0o600,
    forbidden: 0o077,
    advice: "others may have read it (chmod 600 it if you trust them, else make a new installation key)",
    max_bytes: 4096,
};

/// 10,000 tokens ([`crate::token::MAX_TOKENS`]) of at most some hundred bytes and their notes.
pub(crate) const TOKENS: GuardedFile = GuardedFile {
    name: "tokens",
    what: "token file",
    mode: 0o600,
    forbidden: 0o077,
    advice: "others may have added tokens (look at its notes, revoke what is not yours, then chmod 600 it)",
    max_bytes: 16 << 20,
};

/// 1,000 nodes of some 80 bytes. No secret, so all may read it.
pub(crate) const REVOKED: GuardedFile = GuardedFile {
    name: "revoked",
    what: "revocation file",
    mode: 0o644,
    forbidden: 0o022,
    advice: "others may have let nodes in again (look at its nodes, then chmod 644 it)",
    max_bytes: 1 << 20,
};

/// A second copy of it ([`crate::revocation`]).
pub(crate) const NEWEST_REVOKED: GuardedFile = GuardedFile {
    name: "revoked.newest",
    ..REVOKED
};

/// Some networks. No secret, so all may read it.
pub(crate) const POLICY: GuardedFile = GuardedFile {
    name: "policy",
    what: "admission policy",
    mode: 0o644,
    forbidden: 0o022,
    advice: "others may have opened it (look at it, then chmod 644 it)",
    max_bytes: 1 << 20,
};

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Others can get at it.
    #[error("{what} {} has mode {mode:04o}, expected {expected:04o}: {advice}", path.display())]
    Mode {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        expected: u32,
        /// What to do.
        advice: &'static str,
    },
    /// It belongs to another user.
    #[error("{what} {} belongs to user {found}, expected user {expected} (chown it to user {expected}, or run as user {found})", path.display())]
    Owner {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The user it belongs to.
        found: u32,
        /// The user it should belong to.
        expected: u32,
    },
    /// It cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Io {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl GuardedFile {
    /// Its contents; `None` if it is not there.
    pub(crate) fn read(&self, state: &Path) -> Result<Option<Vec<u8>>, GuardError> {
        let opened = self.open(state)?;
        opened
            .map(|(file, _)| self.contents(state, &file))
            .transpose()
    }

    /// The file itself, once it is known that only those could get at it who should; `None` if it is not
    /// there.
    pub(crate) fn open(&self, state: &Path) -> Result<Option<(File, fs::Metadata)>, GuardError> {
        let path = state.join(self.name);
        let failed = |source| self.cannot_read(&path, source);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => {
                // Mostly it is root's, copied here for a server that is not root.
                let found = fs::metadata(&path).map_err(failed)?;
                self.check(state, &path, &found)?;
                return Err(failed(e));
            }
        };
        // Of the open file, not of the path: what is checked is what is read.
        let found = file.metadata().map_err(failed)?;
        self.check(state, &path, &found)?;
        Ok(Some((file, found)))
    }

    /// The contents of what was opened.
    pub(crate) fn contents(&self, state: &Path, file: &File) -> Result<Vec<u8>, GuardError> {
        let failed = |source| self.cannot_read(&state.join(self.name), source);
        let mut contents = Vec::new();
        file.take(self.max_bytes + 1)
            .read_to_end(&mut contents)
            .map_err(failed)?;
        if contents.len() as u64 > self.max_bytes {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(contents)
    }

    fn cannot_read(&self, path: &Path, source: io::Error) -> GuardError {
        GuardError::Io {
            what: self.what,
            path: path.to_owned(),
            source,
        }
    }

    fn check(&self, state: &Path, path: &Path, found: &fs::Metadata) -> Result<(), GuardError> {
        let mode = found.mode() & 0o7777;
        if mode & self.forbidden != 0 {
            return Err(GuardError::Mode {
                what: self.what,
                path: path.to_owned(),
                mode,
                expected: self.mode,
                advice: self.advice,
            });
        }
        let me = rustix::process::geteuid().as_raw();
        // Root works for the user that the directory belongs to.
        let directory = fs::metadata(state).map_err(|source| GuardError::Io {
            what: "state directory",
            path: state.to_owned(),
            source,
        })?;
        let expected = match me {
            0 => directory.uid(),
            me => me,
        };
        if found.uid() != expected && found.uid() != directory.uid() {
            return Err(GuardError::Owner {
                what: self.what,
                path: path.to_owned(),
                found: found.uid(),
                expected,
            });
        }
        Ok(())
    }
}
