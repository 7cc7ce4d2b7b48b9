//! The token file's text (its format is in [`super`]), and what was read of it last.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{TokenError, TokenRecord, Use, Used};
use crate::guarded::TOKENS;
use crate::node_name::{node_hex, parse_node};
use crate::state::StateError;

pub(super) const HEADER: &str = "rootswarm-tokens 2";

/// What an earlier release wrote.
const HEADER_1: &str = "rootswarm-tokens 1";

/// What was read last: each join and each request of a download asks for it, and 10,000 lines take 2 ms to
/// read.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Option<Reading>>);

#[derive(Debug)]
struct Reading {
    stamp: Stamp,
    records: Arc<Vec<TokenRecord>>,
    /// Held open: as long as it is, no other file gets its inode's number.
    _file: File,
}

/// Which file it was, and as of when. Whoever changes one replaces it; an admin's editor may write into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Kept {
    /// What the file in the state directory `root` says now; who may read and write it is checked each time.
    pub(super) fn load(&self, root: &Path) -> Result<Arc<Vec<TokenRecord>>, TokenError> {
        // A panic while it was held leaves an old reading, whose stamp tells.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, found)) = TOKENS.open(root).map_err(StateError::from)? else {
            *last = None;
            return Ok(Arc::default());
        };
        let stamp = Stamp {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        };
        if let Some(reading) = &*last
            && reading.stamp == stamp
        {
            return Ok(reading.records.clone());
        }
        let text = TOKENS.contents(root, &file).map_err(StateError::from)?;
        let records = parse(&String::from_utf8_lossy(&text)).map_err(|(line, reason)| {
            TokenError::Damaged {
                path: root.join(TOKENS.name),
                line,
                reason,
            }
        })?;
        let records = Arc::new(records);
        *last = Some(Reading {
            stamp,
            records: records.clone(),
            _file: file,
        });
        Ok(records)
    }
}

/// Reads the text of a token file.
///
/// # Errors
/// The first line that is not understood, counted from 1, and what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<TokenRecord>, (usize, &'static str)> {
    let mut lines = text.lines();
    if !lines
        .next()
        .is_some_and(|header| [HEADER, HEADER_1].contains(&header))
    {
        return Err((1, "expected the header \"rootswarm-tokens 2\""));
    }
    let record = |line: &str| match line.contains(char::is_control) {
        // None is ever written; a carriage return at the end would not come back as it was.
        true => Err("control characters"),
        false => parse_record(line),
    };
    lines
        .enumerate()
        .map(|(index, line)| record(line).map_err(|reason| (index + 2, reason)))
        .collect()
}

/// The text of a token file.
pub fn format(records: &[TokenRecord]) -> String {
    let mut text = format!("{HEADER}\n");
    for record in records {
        text += &format_record(record);
        text.push('\n');
    }
    text
}

/// The line of one token.
pub(super) fn format_record(record: &TokenRecord) -> String {
    let usage = match (record.usage, record.used) {
        (Use::Reusable, _) => "reusable".to_owned(),
        (Use::OneTime, None) => "one-time".to_owned(),
        (Use::OneTime, Some(used)) => {
            format!("used:{}:{}", node_hex(&used.by), used.at_unix_s)
        }
    };
    let expires = record
        .expires_unix_s
        .map_or("never".to_owned(), |expires| expires.to_string());
    format!(
        "{} {} {usage} {} {expires} {}",
        record.id, record.hash, record.created_unix_s, record.note
    )
}

/// `NODE:WHEN`, as it stands behind `used:`.
pub(super) fn parse_used(text: &str) -> Option<Used> {
    let (node, at) = text.split_once(':')?;
    Some(Used {
        by: parse_node(node)?,
        at_unix_s: at.parse().ok()?,
    })
}

pub(super) fn parse_record(line: &str) -> Result<TokenRecord, &'static str> {
    let mut fields = line.splitn(6, ' ');
    let mut field = || {
        fields
            .next()
            .ok_or("expected ID HASH USE CREATED EXPIRES NOTE")
    };
    let id = field()?.to_owned();
    let hash =
        blake3::Hash::from_hex(field()?).map_err(|_| "bad hash: expected 64 hexadecimal digits")?;
    let (usage, used) = match field()? {
        "one-time" => (Use::OneTime, None),
        "reusable" => (Use::Reusable, None),
        text => match text.strip_prefix("used:").and_then(parse_used) {
            Some(used) => (Use::OneTime, Some(used)),
            None => return Err("bad use: expected one-time, reusable or used:NODE:WHEN"),
        },
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
        used,
        hash,
    })
}
