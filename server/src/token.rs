//! Admission tokens: made, listed, revoked, and used up.
//!
//! A token is a secret of 128 random bits with a public number in front: `3f9a01c2-…`. The file
//! `tokens` holds its BLAKE3 hash only; 128 bits cannot be guessed, so no slow hash is needed. A
//! one-time token is taken out of the file, durably, before its bearer is told that it may join.
//!
//! Whether tokens are asked for at all is decided in [`crate::admission`].
//!
//! The file is text, version first: `rootswarm-tokens 1`, then one line a token:
//! `ID HASH one-time|reusable CREATED EXPIRES|never NOTE`, times in seconds since 1970.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::exit::Exit;
use crate::state::{StateDir, StateError};

const HEADER: &str = "rootswarm-tokens 1";

/// How many tokens the file may hold: it is read at each join, and 10,000 lines (1.2 MB) are read
/// in about 2 ms.
pub const MAX_TOKENS: usize = 10_000;

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
    /// Too many tokens.
    #[error(
        "there are {found} tokens already, at most {MAX_TOKENS} are kept (revoke some, or let them expire)"
    )]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// No token has this number.
    #[error("no token has the number {0} (`rootswarm token list` lists them)")]
    Unknown(String),
    /// A note with a line break in it.
    #[error("bad note: expected one line without control characters")]
    Note,
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
            TokenError::TooMany { .. } | TokenError::NoRandomness(_) => Exit::Local,
            TokenError::Unknown(_) | TokenError::Note => Exit::BadInput,
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
    hash: blake3::Hash,
}

impl TokenRecord {
    fn is_expired(&self, now_unix_s: u64) -> bool {
        self.expires_unix_s
            .is_some_and(|expires| expires <= now_unix_s)
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
    /// A one-time token where only reusable ones make sense.
    #[error("a one-time token admits to the swarm, not to HTTP: use a reusable one")]
    OneTime,
}

/// The tokens of one state directory.
#[derive(Debug, Clone)]
pub struct Tokens {
    state: StateDir,
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
        Tokens { state }
    }

    fn path(&self) -> PathBuf {
        self.state.root().join("tokens")
    }

    /// Makes a token and returns its text, which is kept nowhere.
    pub fn create(
        &self,
        usage: Use,
        lifetime: Option<Duration>,
        note: &str,
        now_unix_s: u64,
    ) -> Result<String, TokenError> {
        if note.chars().any(char::is_control) {
            return Err(TokenError::Note);
        }
        let mut random = [0u8; 20];
        getrandom::fill(&mut random).map_err(TokenError::NoRandomness)?;
        let digits = random.iter().fold(String::new(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        let (id, secret) = digits.split_at(8);
        let token = format!("{id}-{secret}");
        let _lock = self.state.lock()?;
        let mut records = self.load()?;
        records.retain(|record| !record.is_expired(now_unix_s));
        if records.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany {
                found: records.len(),
            });
        }
        records.push(TokenRecord {
            id: id.to_owned(),
            usage,
            created_unix_s: now_unix_s,
            expires_unix_s: lifetime.map(|lifetime| now_unix_s + lifetime.as_secs()),
            note: note.trim().to_owned(),
            hash: blake3::hash(token.as_bytes()),
        });
        self.store(&records)?;
        Ok(token)
    }

    /// The tokens that admit at `now_unix_s`.
    pub fn list(&self, now_unix_s: u64) -> Result<Vec<TokenRecord>, TokenError> {
        let mut records = self.load()?;
        records.retain(|record| !record.is_expired(now_unix_s));
        Ok(records)
    }

    /// Takes a token out by its number. The whole token is taken too: that is what the admin has.
    pub fn revoke(&self, id: &str) -> Result<(), TokenError> {
        let id = id.split('-').next().unwrap_or(id);
        let _lock = self.state.lock()?;
        let mut records = self.load()?;
        let before = records.len();
        records.retain(|record| record.id != id);
        if records.len() == before {
            return Err(TokenError::Unknown(id.to_owned()));
        }
        self.store(&records)
    }

    /// Whether `token` admits now. Uses nothing up.
    pub fn check(
        &self,
        token: Option<&str>,
        now_unix_s: u64,
    ) -> Result<Result<Use, TokenRefusal>, TokenError> {
        let Some(token) = token else {
            return Ok(Err(TokenRefusal::Missing));
        };
        let records = self.load()?;
        Ok(find(&records, token, now_unix_s)
            .map(|index| records[index].usage)
            .ok_or(TokenRefusal::Invalid))
    }

    /// Admits the bearer of `token`, and takes a one-time token out of the file first: of two nodes
    /// that show the same one at the same time, one is admitted.
    pub fn consume(
        &self,
        token: Option<&str>,
        now_unix_s: u64,
    ) -> Result<Result<Use, TokenRefusal>, TokenError> {
        let Some(token) = token else {
            return Ok(Err(TokenRefusal::Missing));
        };
        let _lock = self.state.lock()?;
        let mut records = self.load()?;
        let Some(index) = find(&records, token, now_unix_s) else {
            return Ok(Err(TokenRefusal::Invalid));
        };
        let usage = records[index].usage;
        if usage == Use::OneTime {
            records.remove(index);
            records.retain(|record| !record.is_expired(now_unix_s));
            self.store(&records)?;
        }
        Ok(Ok(usage))
    }

    fn load(&self) -> Result<Vec<TokenRecord>, TokenError> {
        let path = self.path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::io("read", &path)(e).into()),
        };
        let damaged = |line, reason| TokenError::Damaged {
            path: path.clone(),
            line,
            reason,
        };
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err(damaged(1, "expected the header \"rootswarm-tokens 1\""));
        }
        lines
            .enumerate()
            .map(|(index, line)| parse_record(line).map_err(|reason| damaged(index + 2, reason)))
            .collect()
    }

    /// Called with the lock held.
    fn store(&self, records: &[TokenRecord]) -> Result<(), TokenError> {
        let mut text = format!("{HEADER}\n");
        for record in records {
            let usage = match record.usage {
                Use::OneTime => "one-time",
                Use::Reusable => "reusable",
            };
            let expires = record
                .expires_unix_s
                .map_or("never".to_owned(), |expires| expires.to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{} {} {usage} {} {expires} {}",
                record.id, record.hash, record.created_unix_s, record.note
            );
        }
        Ok(self.state.replace(&self.path(), text.as_bytes(), 0o600)?)
    }
}

/// The record of `token`, compared by hash in constant time (`blake3::Hash` is) and against every
/// record, so that the time tells nothing about which one came close.
fn find(records: &[TokenRecord], token: &str, now_unix_s: u64) -> Option<usize> {
    let hash = blake3::hash(token.as_bytes());
    let mut found = None;
    for (index, record) in records.iter().enumerate() {
        if record.hash == hash && !record.is_expired(now_unix_s) {
            found = Some(index);
        }
    }
    found
}

fn parse_record(line: &str) -> Result<TokenRecord, &'static str> {
    let mut fields = line.splitn(6, ' ');
    let mut field = || {
        fields
            .next()
            .ok_or("expected ID HASH USE CREATED EXPIRES NOTE")
    };
    let id = field()?.to_owned();
    let hash =
        blake3::Hash::from_hex(field()?).map_err(|_| "bad hash: expected 64 hexadecimal digits")?;
    let usage = match field()? {
        "one-time" => Use::OneTime,
        "reusable" => Use::Reusable,
        _ => return Err("bad use: expected one-time or reusable"),
    };
    let created_unix_s = field()?
        .parse()
        .map_err(|_| "bad time of creation: expected seconds since 1970")?;
    let expires_unix_s = match field()? {
        "never" => None,
        text => Some(
            text.parse()
                .map_err(|_| "bad time of expiry: expected seconds since 1970, or never")?,
        ),
    };
    let note = field()?.to_owned();
    Ok(TokenRecord {
        id,
        usage,
        created_unix_s,
        expires_unix_s,
        note,
        hash,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(StateDir::open(dir.path()).unwrap());
        (dir, tokens)
    }

    const NOW: u64 = 1_000_000;
    const TEN_MINUTES: Option<Duration> = Some(Duration::from_secs(600));

    #[test]
    fn a_one_time_token_admits_once() {
        let (_dir, tokens) = tokens();
        let token = tokens
            .create(Use::OneTime, TEN_MINUTES, "rack 7", NOW)
            .unwrap();
        assert_eq!(
            tokens.check(Some(&token), NOW).unwrap(),
            Ok(Use::OneTime),
            "checking uses nothing up"
        );
        assert_eq!(
            tokens.consume(Some(&token), NOW + 1).unwrap(),
            Ok(Use::OneTime)
        );
        assert_eq!(
            tokens.consume(Some(&token), NOW + 2).unwrap(),
            Err(TokenRefusal::Invalid)
        );
        assert_eq!(tokens.list(NOW).unwrap(), []);
    }

    #[test]
    fn a_reusable_token_admits_until_revoked() {
        let (_dir, tokens) = tokens();
        let token = tokens.create(Use::Reusable, None, "", NOW).unwrap();
        for later in [0, 1, 10_000_000_000] {
            assert_eq!(
                tokens.consume(Some(&token), NOW + later).unwrap(),
                Ok(Use::Reusable)
            );
        }
        let id = tokens.list(NOW).unwrap()[0].id.clone();
        tokens.revoke(&id).unwrap();
        assert_eq!(
            tokens.consume(Some(&token), NOW).unwrap(),
            Err(TokenRefusal::Invalid)
        );
        assert!(matches!(tokens.revoke(&id), Err(TokenError::Unknown(_))));
    }

    #[test]
    fn expired_wrong_and_missing_tokens_are_refused() {
        let (_dir, tokens) = tokens();
        let token = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
        assert_eq!(
            tokens.consume(Some(&token), NOW + 600).unwrap(),
            Err(TokenRefusal::Invalid)
        );
        let mut wrong = token.clone();
        wrong.pop();
        for text in ["", "x", &wrong, &token.to_uppercase(), &format!("{token} ")] {
            assert_eq!(
                tokens.consume(Some(text), NOW).unwrap(),
                Err(TokenRefusal::Invalid),
                "{text:?}"
            );
        }
        assert_eq!(
            tokens.consume(None, NOW).unwrap(),
            Err(TokenRefusal::Missing)
        );
    }

    #[test]
    fn of_many_who_show_the_same_token_at_once_one_is_admitted() {
        let (_dir, tokens) = tokens();
        let token = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
        let admitted = std::thread::scope(|scope| {
            let bearers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| tokens.consume(Some(&token), NOW).unwrap().is_ok()))
                .collect();
            bearers
                .into_iter()
                .map(|bearer| bearer.join().unwrap())
                .filter(|ok| *ok)
                .count()
        });
        assert_eq!(admitted, 1);
    }

    #[test]
    fn the_file_holds_no_secret_and_is_private() {
        let (dir, tokens) = tokens();
        let token = tokens
            .create(Use::Reusable, TEN_MINUTES, "a note of words", NOW)
            .unwrap();
        let path = dir.path().join("tokens");
        let text = fs::read_to_string(&path).unwrap();
        let secret = token.split('-').nth(1).unwrap();
        assert!(!text.contains(secret));
        assert_eq!(
            text,
            format!(
                "rootswarm-tokens 1\n{} {} reusable 1000000 1000600 a note of words\n",
                &token[..8],
                blake3::hash(token.as_bytes())
            )
        );
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(tokens.list(NOW).unwrap()[0].note, "a note of words");
    }

    #[test]
    fn damaged_files_are_refused_with_the_line() {
        let (dir, tokens) = tokens();
        let hash = blake3::hash(b"x");
        for (text, line) in [
            ("".to_owned(), 1),
            ("rootswarm-tokens 2\n".to_owned(), 1),
            (format!("{HEADER}\n0 {hash} one-time 1 2 \n\n"), 3),
            (format!("{HEADER}\n0 {hash} sometimes 1 2 \n"), 2),
            (format!("{HEADER}\n0 abc one-time 1 2 \n"), 2),
            (format!("{HEADER}\n0 {hash} one-time x 2 \n"), 2),
            (format!("{HEADER}\n0 {hash} one-time 1 soon \n"), 2),
        ] {
            fs::write(dir.path().join("tokens"), &text).unwrap();
            match tokens.list(NOW) {
                Err(TokenError::Damaged { line: found, .. }) => assert_eq!(found, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_note_stays_on_its_line() {
        let (_dir, tokens) = tokens();
        assert!(matches!(
            tokens.create(Use::OneTime, None, "a\nb", NOW),
            Err(TokenError::Note)
        ));
    }
}
