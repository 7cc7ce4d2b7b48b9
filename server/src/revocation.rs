//! Whose admission was taken back: the file `revoked`, and what commands and a mirror do to it.
//!
//! A node's admission is a certificate for its key. It ends with the node's key, that is at its next
//! boot; before that, here. A node can be taken back by name, or all of them by raising the epoch.
//! What keeps a machine from joining again under a new key is [`crate::admission`]'s part.
//!
//! The file is text, version first: `rootswarm-revoked 1`, then `version V epoch E`, then one line a
//! node: `NODE WHEN`, NODE the 64 digits of its id, WHEN in seconds since 1970. V grows with each
//! change, so that of two lists the newer one is known.
//!
//! An older file, as a backup brings it back, would let revoked nodes in again, and lock newcomers out:
//! nodes remember the newest list and epoch, and take nothing of an earlier one. A server that runs has
//! the newer list in memory and writes it back ([`RevocationList::put_back`]). Where none runs, the
//! newest list is remembered beside the file, and takes its place again before a server starts or a
//! command changes anything (`revocation/remembered.rs`). Where that is gone too, the tags tell: they carry
//! the epoch in which they were signed, and a file that is behind them is refused
//! ([`RevocationList::load_current`]). A mirror says that its first seed's list is behind.

mod remembered;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rootswarm_swarm::limits::REVOKED_MAX;
use rootswarm_swarm::{NodeId, Revocations};
use rootswarm_transport::seed::REVOKED_NAMED_MAX;

use crate::exit::Exit;
use crate::guarded::REVOKED;
use crate::node_name::{node_hex, parse_node};
use crate::state::{FIRST_EPOCH, StateDir, StateError};
use crate::status::StatusError;

const HEADER: &str = "rootswarm-revoked 1";

/// A certificate is good in its epoch and the next one, so ending all of them takes two steps.
const EPOCHS_TO_END_ALL: u32 = 2;

/// How long a server waits for the lock before it puts its list back; it tries again.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Why a revocation failed.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file is not ours, or damaged.
    #[error("revocation file {} line {line}: {reason} (restore it from a backup; without it the revoked nodes are let in again)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// An older file was put in its place.
    #[error("revocation file {} is an older one: it says epoch {found}, and names here were signed in epoch {signed} (stop the server and put the newest copy there, as a mirror has it; if there is none, `rootswarm revoke --all` begins an epoch after both, and each node is let in again at its next boot)", path.display())]
    Behind {
        /// The file.
        path: PathBuf,
        /// The epoch it says.
        found: u32,
        /// The newest one in which the swarm key signed a tag here.
        signed: u32,
    },
    /// Another process goes on to hold the state directory's lock.
    #[error("another process holds the lock of the state directory")]
    Locked,
    /// The list is full.
    #[error(
        "{REVOKED_NAMED_MAX} nodes are revoked already, which is the most (`rootswarm revoke --all` ends every admission and empties the list)"
    )]
    TooMany,
    /// It is on the list already.
    #[error("node {0} is revoked already")]
    Already(String),
    /// No digits of an id.
    #[error(
        "bad node {0:?}: expected the first digits of a node id or its address as `rootswarm status` shows them, or all 64 digits"
    )]
    NotAnId(String),
    /// No node begins like this.
    #[error("no {among} node's id begins with {prefix} ({hint})")]
    Unknown {
        /// What was asked for.
        prefix: String,
        /// `connected` or `revoked`.
        among: &'static str,
        /// Where to look.
        hint: &'static str,
    },
    /// Several do.
    #[error(
        "{prefix} is ambiguous: the ids of {found} {among} nodes begin with it (give more digits; `rootswarm status --json` has all)"
    )]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// `connected` or `revoked`.
        among: &'static str,
        /// How many.
        found: usize,
    },
    /// No node has this address.
    #[error("no connected node is at {place} (`rootswarm status` lists them)")]
    NotThere {
        /// The address.
        place: String,
    },
    /// Several do.
    #[error(
        "{found} connected nodes are at {place} (give the port as well, or the first digits of the id: `rootswarm status` lists them)"
    )]
    SeveralThere {
        /// The address.
        place: String,
        /// How many.
        found: usize,
    },
    /// A server runs, and does not say who is connected.
    #[error(
        "cannot tell which node {node} is: {source} (without it, give all 64 digits of the id)"
    )]
    NoAnswer {
        /// What was asked for.
        node: String,
        /// What became of the question.
        source: StatusError,
    },
    /// No server runs that could say it.
    #[error(
        "cannot tell which node {node} is: no server runs here, to which it would be connected (give all 64 digits of the id)"
    )]
    NoServer {
        /// What was asked for.
        node: String,
    },
    /// There is no room for the longer list.
    #[error("nothing is revoked: {0}")]
    NotDone(StateError),
}

impl RevocationError {
    /// The same where it must not be taken for done.
    pub(crate) fn not_done(self) -> RevocationError {
        match self {
            RevocationError::State(full @ StateError::Full { .. }) => {
                RevocationError::NotDone(full)
            }
            other => other,
        }
    }

    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            RevocationError::State(error) | RevocationError::NotDone(error) => error.exit(),
            RevocationError::NoAnswer { source, .. } => source.exit(),
            RevocationError::Damaged { .. } | RevocationError::Behind { .. } => Exit::Damaged,
            RevocationError::TooMany | RevocationError::Locked => Exit::Local,
            RevocationError::Already(_)
            | RevocationError::NotAnId(_)
            | RevocationError::NotThere { .. }
            | RevocationError::SeveralThere { .. }
            | RevocationError::NoServer { .. }
            | RevocationError::Unknown { .. }
            | RevocationError::Ambiguous { .. } => Exit::BadInput,
        }
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Grows with each change; 0 when there was none.
    pub version: u64,
    /// The epoch of the certificates that are issued.
    pub epoch: u32,
    /// The nodes, and when each was revoked, in seconds since 1970.
    pub nodes: Vec<(NodeId, u64)>,
}

impl Default for Contents {
    fn default() -> Contents {
        Contents {
            version: 0,
            epoch: FIRST_EPOCH,
            nodes: Vec::new(),
        }
    }
}

impl Contents {
    /// Whether this list must not take the other's place: what grows has shrunk, or two lists go by one
    /// number.
    fn is_behind(&self, other: &Contents) -> bool {
        self.epoch < other.epoch
            || self.version < other.version
            || (self.version == other.version && self != other)
    }

    /// For lines about two lists.
    fn numbers(&self) -> String {
        format!("version {} in epoch {}", self.version, self.epoch)
    }

    /// As the swarm is told.
    pub fn to_wire(&self) -> Revocations {
        Revocations {
            version: self.version,
            epoch: self.epoch,
            nodes: self.nodes.iter().map(|(node, _)| *node).collect(),
        }
    }

    fn parse(text: &str) -> Result<Contents, (usize, &'static str)> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err((1, "expected the header \"rootswarm-revoked 1\""));
        }
        let numbers = lines.next().and_then(|line| {
            let (version, epoch) = line.strip_prefix("version ")?.split_once(" epoch ")?;
            Some((version.parse().ok()?, epoch.parse().ok()?))
        });
        let (version, epoch) = numbers.ok_or((2, "expected \"version V epoch E\""))?;
        let mut nodes = Vec::new();
        for (index, line) in lines.enumerate() {
            let entry = line
                .split_once(' ')
                .and_then(|(node, when)| Some((parse_node(node)?, when.parse().ok()?)));
            nodes.push(entry.ok_or((index + 3, "expected the 64 digits of a node id and a time"))?);
            if nodes.len() > REVOKED_MAX {
                return Err((index + 3, "more nodes than are ever revoked one by one"));
            }
        }
        Ok(Contents {
            version,
            epoch,
            nodes,
        })
    }

    fn text(&self) -> String {
        let mut text = format!("{HEADER}\nversion {} epoch {}\n", self.version, self.epoch);
        for (node, when) in &self.nodes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{} {when}", node_hex(node));
        }
        text
    }
}

/// The revocations of one state directory.
#[derive(Debug, Clone)]
pub struct RevocationList {
    state: StateDir,
}

impl RevocationList {
    /// The list kept in `state`.
    pub fn new(state: StateDir) -> RevocationList {
        RevocationList { state }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.state.root().join(REVOKED.name)
    }

    /// What it says; no file is an empty list.
    pub fn load(&self) -> Result<Contents, RevocationError> {
        let root = self.state.root();
        let Some(text) = REVOKED.read(root).map_err(StateError::from)? else {
            return Ok(Contents::default());
        };
        let text = String::from_utf8_lossy(&text);
        Contents::parse(&text).map_err(|(line, reason)| RevocationError::Damaged {
            path: self.path(),
            line,
            reason,
        })
    }

    /// The same where a server or a signature is to rely on it: a list whose epoch is behind the tags' is
    /// refused.
    pub fn load_current(&self) -> Result<Contents, RevocationError> {
        let found = self.load()?;
        let signed = self.state.newest_epoch_signed()?;
        match found.epoch < signed {
            true => Err(RevocationError::Behind {
                path: self.path(),
                found: found.epoch,
                signed,
            }),
            false => Ok(found),
        }
    }

    /// Called when the file changed under a server that holds `held`: an older file gives way to that list
    /// again. Returns what holds from now on, and a line where something was put back.
    pub fn put_back(&self, held: &Contents) -> Result<(Contents, Option<String>), RevocationError> {
        let found = self.load()?;
        if !found.is_behind(held) {
            return Ok((found, None));
        }
        let lock = self.state.lock_within(LOCK_PATIENCE)?;
        let _lock = lock.ok_or(RevocationError::Locked)?;
        // A command may have been quicker.
        let found = self.load()?;
        if !found.is_behind(held) {
            return Ok((found, None));
        }
        let mut newest = held.clone();
        if found.version > held.version {
            // Nodes may have either of the two.
            newest.version = found.version + 1;
        }
        self.store(&newest)?;
        let line = format!(
            "revocation file {} was replaced by an older one, {}: the newest, {}, is written back \
             (`rootswarm revoke --undo NODE` lets a node in again, `--list` shows who is on it)",
            self.path().display(),
            found.numbers(),
            newest.numbers()
        );
        Ok((newest, Some(line)))
    }

    /// Takes a node's admission back.
    pub fn revoke(&self, node: NodeId, now_unix_s: u64) -> Result<(), RevocationError> {
        self.change(|contents| {
            if contents.nodes.iter().any(|(known, _)| *known == node) {
                return Err(RevocationError::Already(node_hex(&node)));
            }
            if contents.nodes.len() >= REVOKED_NAMED_MAX {
                return Err(RevocationError::TooMany);
            }
            contents.nodes.push((node, now_unix_s));
            Ok(())
        })
    }

    /// Lets a node in again.
    pub fn undo(&self, node: NodeId) -> Result<(), RevocationError> {
        self.change(|contents| {
            let before = contents.nodes.len();
            contents.nodes.retain(|(known, _)| *known != node);
            if contents.nodes.len() == before {
                return Err(unknown_revoked(&node_hex(&node)));
            }
            Ok(())
        })
    }

    /// Ends every admission that was ever given, and returns the epoch that begins. The list is
    /// emptied: none of the certificates it was about is good any more.
    pub fn revoke_all(&self) -> Result<u32, RevocationError> {
        let signed = self.state.newest_epoch_signed()?;
        self.change(|contents| {
            // Also past what an older file that was put in its place does not know of.
            contents.epoch = contents.epoch.max(signed).saturating_add(EPOCHS_TO_END_ALL);
            contents.nodes.clear();
            Ok(contents.epoch)
        })
    }

    /// Takes over the file of the seed that is mirrored, if it is newer. Returns a line where that one is
    /// behind.
    pub fn adopt(&self, text: &[u8]) -> Result<Option<String>, RevocationError> {
        let damaged = |(line, reason)| RevocationError::Damaged {
            path: "of the primary".into(),
            line,
            reason,
        };
        let text = str::from_utf8(text).map_err(|_| damaged((1, "expected text")))?;
        let theirs = Contents::parse(text).map_err(damaged)?;
        let _lock = self.state.lock()?;
        let ours = self.load()?;
        if theirs.is_behind(&ours) {
            return Ok(Some(format!(
                "the first seed's revocations are {}, behind {} which this mirror holds on to: the file \
                 `revoked` there is an older one (copy {} to that state directory while its server is \
                 stopped)",
                theirs.numbers(),
                ours.numbers(),
                self.path().display()
            )));
        }
        if theirs != ours {
            self.store(&theirs)?;
        }
        Ok(None)
    }

    /// The file for a mirror.
    pub fn to_mirror(&self) -> Result<Vec<u8>, RevocationError> {
        Ok(self.load()?.text().into_bytes())
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Contents) -> Result<T, RevocationError>,
    ) -> Result<T, RevocationError> {
        let _lock = self.state.lock()?;
        let mut contents = self.load()?;
        let done = change(&mut contents)?;
        contents.version += 1;
        self.store(&contents)?;
        Ok(done)
    }

    /// Called with the lock held.
    fn store(&self, contents: &Contents) -> Result<(), StateError> {
        let text = contents.text();
        self.state
            .replace(&self.path(), text.as_bytes(), REVOKED.mode)?;
        self.remember(contents)
    }
}

fn unknown_revoked(prefix: &str) -> RevocationError {
    RevocationError::Unknown {
        prefix: prefix.to_owned(),
        among: "revoked",
        hint: "`rootswarm revoke --list` lists them",
    }
}

/// The one node among `known` whose id begins with `prefix`; a whole id needs no list.
pub fn resolve(
    prefix: &str,
    among: &'static str,
    known: impl IntoIterator<Item = NodeId>,
) -> Result<NodeId, RevocationError> {
    let prefix = prefix.to_ascii_lowercase();
    if let Some(node) = parse_node(&prefix) {
        return Ok(node);
    }
    if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(RevocationError::NotAnId(prefix));
    }
    let mut found: Vec<NodeId> = known
        .into_iter()
        .filter(|node| node_hex(node).starts_with(&prefix))
        .collect();
    found.sort();
    found.dedup();
    match (found.as_slice(), among) {
        ([node], _) => Ok(*node),
        ([], "revoked") => Err(unknown_revoked(&prefix)),
        ([], _) => Err(RevocationError::Unknown {
            prefix,
            among,
            hint: "`rootswarm status` lists them; of another node give all 64 digits",
        }),
        (several, _) => Err(RevocationError::Ambiguous {
            prefix,
            among,
            found: several.len(),
        }),
    }
}

#[cfg(test)]
mod tests;
