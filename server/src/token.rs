//! Admission tokens: made, listed, revoked, and used up.
//!
//! A token is a secret of 128 random bits with a public number in front: `3f9a01c2-…`. The file
//! `tokens` holds its BLAKE3 hash only; 128 bits cannot be guessed, so no slow hash is needed. A
//! one-time token is marked as used, durably, before its bearer is told that it may join, and bound to
//! that node's key: the same node may show it again for a short time, because the answer may have been
//! lost on its way, and nobody else may.
//!
//! Whether tokens are asked for at all is decided in [`crate::admission`].
//!
//! The file is text, version first: `rootswarm-tokens 2`, then one line a token:
//! `ID HASH one-time|reusable|used:NODE:WHEN CREATED EXPIRES|never NOTE`, times in seconds since 1970,
//! NODE the 64 digits of a node id. Version 1, which had no `used`, is read too.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rootswarm_swarm::NodeId;

use crate::durable::Lock;
use crate::exit::Exit;
use crate::guarded::TOKENS;
use crate::state::{StateDir, StateError};

mod mirroring;
mod taken_back;
mod taking;
mod text;

pub use text::{format, parse};
use text::{format_record, parse_record, parse_used};

/// How long the node that used a one-time token up may show it again: some attempts to join, with
/// their timeouts and the waits between them.
pub const REPEAT_FOR_S: u64 = 60;

/// How long a seed remembers who used a token up, unless there are too many: a mirror that could not be
/// reached goes on to report that its bearer asks, and who shows the token anew is told apart.
const REMEMBERED_FOR_S: u64 = 3_600;

/// How often a download by HTTP has its token written down anew: twice in [`REPEAT_FOR_S`] and a bit.
const RENEW_AFTER_S: u64 = 25;

/// How long a server waits for other writers: what they do under the lock takes some syncs of small
/// files, 0.1 s on a disk that turns.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How many tokens the file may hold: it is read anew after each change, and 10,000 lines (1.2 MB) are read
/// in about 2 ms.
pub const MAX_TOKENS: usize = 10_000;

/// What is written beside a token, at most: with it 10,000 lines stay within what is read of a token file.
pub const NOTE_BYTES_MAX: usize = 200;

/// Why a token command failed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file is not ours, or damaged.
    #[error("token file {} line {line}: {reason} (remove it to start without tokens)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another process has been at work on the state directory for too long to wait for it.
    #[error("the state directory is locked by another process (`rootswarm publish`?): try again")]
    Locked,
    /// Too many tokens.
    #[error(
        "there are {found} tokens already, and {asked} more were asked for: at most {MAX_TOKENS} are kept \
         (revoke some, or let them expire)"
    )]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many were to be made.
        asked: usize,
    },
    /// No token has this number.
    #[error("no token has the number {0} (`rootswarm token list` lists them)")]
    Unknown(String),
    /// A note with a line break in it.
    #[error("bad note: expected one line without control characters")]
    Note,
    /// One that is too long.
    #[error("bad note: expected at most {NOTE_BYTES_MAX} bytes, found {found}")]
    LongNote {
        /// Its bytes.
        found: usize,
    },
    /// The kernel gave no randomness.
    #[error("cannot make a token: the system's random generator failed: {0}")]
    NoRandomness(getrandom::Error),
}

impl TokenError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            TokenError::State(e) => e.exit(),
            TokenError::Damaged { .. } => Exit::Damaged,
            TokenError::TooMany { .. } | TokenError::NoRandomness(_) | TokenError::Locked => {
                Exit::Local
            }
            TokenError::Unknown(_) | TokenError::Note | TokenError::LongNote { .. } => {
                Exit::BadInput
            }
        }
    }
}

/// How often a token admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Once. What belongs on a kernel command line, where every user can read it.
    OneTime,
    /// Any number of times until it expires or is revoked.
    Reusable,
}

/// What is kept about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// The public number, eight hexadecimal digits.
    pub id: String,
    /// How often it admits.
    pub usage: Use,
    /// When it was made, seconds since 1970.
    pub created_unix_s: u64,
    /// When it ends to admit; `None` is never.
    pub expires_unix_s: Option<u64>,
    /// What the admin wrote beside it.
    pub note: String,
    /// Who has used it up, if it admits once.
    pub used: Option<Used>,
    hash: blake3::Hash,
}

/// By whom and when a one-time token was used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The node, which proved that it holds its key.
    pub by: NodeId,
    /// When, in seconds since 1970.
    pub at_unix_s: u64,
}

impl TokenRecord {
    fn is_expired(&self, now_unix_s: u64) -> bool {
        self.expires_unix_s
            .is_some_and(|expires| expires <= now_unix_s)
    }

    /// Whether it will never admit anybody any more.
    fn is_spent(&self, now_unix_s: u64) -> bool {
        let is_over = |used: Used| {
            used.is_taken_back() || used.at_unix_s.saturating_add(REPEAT_FOR_S) <= now_unix_s
        };
        self.is_expired(now_unix_s) || self.used.is_some_and(is_over)
    }

    /// Whether it admits `bearer`; who shows it over HTTP is not known.
    fn admits(&self, bearer: Option<NodeId>, now_unix_s: u64) -> bool {
        !self.is_spent(now_unix_s) && self.used.is_none_or(|used| Some(used.by) == bearer)
    }
}

/// Why a token does not admit. Said to the node, so it tells no more than the bearer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// None was shown.
    #[error("this seed admits by token and none was given (rootswarm.token=)")]
    Missing,
    /// It is not, or no longer, a token.
    #[error("the token is unknown, expired or used up")]
    Invalid,
}

/// Whether a token admits to a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// It does.
    Yes,
    /// It would, and is another seed's to take.
    Elsewhere,
}

/// The tokens of one state directory.
#[derive(Debug, Clone)]
pub struct Tokens {
    state: StateDir,
    /// Whether a token that was used up is kept until it expires: a mirror has to tell its primary.
    keeps_used: bool,
    kept: Arc<text::Kept>,
    queue: Arc<taking::Queue>,
}

/// Seconds since 1970 by this host's clock.
pub fn now_unix_s() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

impl Tokens {
    /// The tokens kept in `state`.
    pub fn new(state: StateDir) -> Tokens {
        Tokens::with(state, false)
    }

    /// The tokens kept in the `state` of a mirror.
    pub fn of_mirror(state: StateDir) -> Tokens {
        Tokens::with(state, true)
    }

    fn with(state: StateDir, keeps_used: bool) -> Tokens {
        Tokens {
            state,
            keeps_used,
            kept: Arc::default(),
            queue: Arc::default(),
        }
    }

    /// Leaves out what is of no more use.
    fn prune(&self, records: &mut Vec<TokenRecord>, now_unix_s: u64) {
        let is_remembered = |used: Used| {
            let lasts = match used.is_taken_back() {
                true => taken_back::REMEMBERED_FOR_S,
                false => REMEMBERED_FOR_S,
            };
            used.at_unix_s.saturating_add(lasts) > now_unix_s
        };
        records.retain(|record| match (record.used, self.keeps_used) {
            (Some(used), true) => is_remembered(used) || !record.is_expired(now_unix_s),
            (Some(used), false) => is_remembered(used),
            (None, _) => !record.is_expired(now_unix_s),
        });
    }

    /// Whether there is none, good or not.
    pub fn is_empty(&self) -> Result<bool, TokenError> {
        Ok(self.load()?.is_empty())
    }

    fn path(&self) -> PathBuf {
        self.state.root().join(TOKENS.name)
    }

    /// Makes a token and returns its text, which is kept nowhere.
    pub fn create(
        &self,
        usage: Use,
        lifetime: Option<Duration>,
        note: &str,
        now_unix_s: u64,
    ) -> Result<String, TokenError> {
        let mut made = self.create_all(usage, lifetime, &[note], now_unix_s)?;
        Ok(made.remove(0))
    }

    /// Makes a token for each of `notes`, all of them or none.
    pub fn create_all(
        &self,
        usage: Use,
        lifetime: Option<Duration>,
        notes: &[&str],
        now_unix_s: u64,
    ) -> Result<Vec<String>, TokenError> {
        for note in notes {
            let found = note.trim().len();
            if note.chars().any(char::is_control) {
                return Err(TokenError::Note);
            }
            if found > NOTE_BYTES_MAX {
                return Err(TokenError::LongNote { found });
            }
        }
        let _lock = self.state.lock()?;
        let mut records = self.load_to_change()?;
        self.prune(&mut records, now_unix_s);
        let is_full = |records: &[TokenRecord]| records.len() + notes.len() > MAX_TOKENS;
        if is_full(&records) {
            // Who used one up is worth less than a token for the next machine.
            records.retain(|record| !record.is_spent(now_unix_s));
        }
        if is_full(&records) {
            return Err(TokenError::TooMany {
                found: records.len(),
                asked: notes.len(),
            });
        }
        let mut made = Vec::new();
        for note in notes {
            let (id, token) = new_token()?;
            records.push(TokenRecord {
                id,
                usage,
                created_unix_s: now_unix_s,
                expires_unix_s: lifetime.map(|lifetime| now_unix_s + lifetime.as_secs()),
                note: note.trim().to_owned(),
                used: None,
                hash: blake3::hash(token.as_bytes()),
            });
            made.push(token);
        }
        self.store(&records)?;
        Ok(made)
    }

    /// The tokens that admit whoever shows them at `now_unix_s`.
    pub fn list(&self, now_unix_s: u64) -> Result<Vec<TokenRecord>, TokenError> {
        let records = self.load()?;
        let good = records
            .iter()
            .filter(|record| record.admits(None, now_unix_s));
        Ok(good.cloned().collect())
    }

    /// Whether `token` admits `bearer` now. Uses nothing up.
    pub fn check(
        &self,
        token: Option<&str>,
        bearer: Option<NodeId>,
        now_unix_s: u64,
    ) -> Result<Result<Use, TokenRefusal>, TokenError> {
        let Some(token) = token else {
            return Ok(Err(TokenRefusal::Missing));
        };
        let records = self.load()?;
        Ok(find(&records, token, bearer, now_unix_s)
            .map(|index| records[index].usage)
            .ok_or(TokenRefusal::Invalid))
    }

    /// The lock, if it is free soon: a node or a mirror waits, and can ask again.
    fn lock_soon(&self) -> Result<Lock, TokenError> {
        let lock = self.state.lock_within(LOCK_PATIENCE)?;
        lock.ok_or(TokenError::Locked)
    }

    fn load(&self) -> Result<Arc<Vec<TokenRecord>>, TokenError> {
        self.kept.load(self.state.root())
    }

    /// What can be changed. Called with the lock held.
    fn load_to_change(&self) -> Result<Vec<TokenRecord>, TokenError> {
        Ok(Arc::unwrap_or_clone(self.load()?))
    }

    /// Called with the lock held.
    fn store(&self, records: &[TokenRecord]) -> Result<(), TokenError> {
        let text = format(records);
        Ok(self
            .state
            .replace(&self.path(), text.as_bytes(), TOKENS.mode)?)
    }
}

/// A public number, and the token that begins with it.
fn new_token() -> Result<(String, String), TokenError> {
    let mut random = [0u8; 20];
    getrandom::fill(&mut random).map_err(TokenError::NoRandomness)?;
    let digits = random.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    let (id, secret) = digits.split_at(8);
    Ok((id.to_owned(), format!("{id}-{secret}")))
}

/// The record of `token` that admits `bearer`, compared by hash in constant time (`blake3::Hash` is)
/// and against every record, so that the time tells nothing about which one came close.
pub fn find(
    records: &[TokenRecord],
    token: &str,
    bearer: Option<NodeId>,
    now_unix_s: u64,
) -> Option<usize> {
    let hash = blake3::hash(token.as_bytes());
    let mut found = None;
    for (index, record) in records.iter().enumerate() {
        if record.hash == hash && record.admits(bearer, now_unix_s) {
            found = Some(index);
        }
    }
    found
}

#[cfg(test)]
mod tests;
