//! Whether the primary can be reached, and what an attempt says about it.
//!
//! A one-time token that two seeds take admits two machines, so in doubt it is the primary's: only when
//! nobody answers where the primary is, does the mirror take tokens itself. A primary that refuses, is busy or
//! says what is not understood is there. A fault here says nothing about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rootswarm_transport::mirror::MirrorError;
use rootswarm_transport::node::StartError;

/// Whether the primary can be reached, as far as is known; shared with admission.
#[derive(Clone, Debug)]
pub struct Reach(Arc<AtomicBool>);

impl Default for Reach {
    /// Until an attempt has failed, it can.
    fn default() -> Reach {
        Reach(Arc::new(AtomicBool::new(true)))
    }
}

impl Reach {
    /// Whether one-time tokens are the primary's to take.
    pub fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What the last attempt to connect came to.
    pub(super) fn learn<T>(&self, connected: &Result<T, SyncError>) {
        let there = match connected {
            Ok(_) => Some(true),
            Err(error) => error.is_there(),
        };
        if let Some(there) = there {
            self.set(there);
        }
    }

    pub(crate) fn set(&self, there: bool) {
        self.0.store(there, Ordering::Relaxed);
    }
}

/// Why the mirror is not in step at the moment.
#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    /// Its name means nothing, and never did while this process runs.
    #[error("host {host} has no address: {source}")]
    Resolve { host: String, source: io::Error },
    /// No socket here.
    #[error(transparent)]
    Start(#[from] StartError),
    /// What became of a question.
    #[error(transparent)]
    Primary(#[from] MirrorError),
    /// A fault here.
    #[error("{0}")]
    Local(String),
    /// It proves less than it did.
    #[error(
        "it speaks an earlier version of mirroring than it did before, in which it does not prove that it is \
         the seed (if it was put back to an earlier release: remove {})",
        policy.display()
    )]
    EarlierVersion { policy: PathBuf },
    /// Nothing to mirror.
    #[error("it is this very seed")]
    Itself,
}

impl SyncError {
    /// Whether the primary is there; `None`: this says nothing about it.
    fn is_there(&self) -> Option<bool> {
        match self {
            SyncError::Primary(error) => Some(error.is_answer()),
            SyncError::EarlierVersion { .. } => Some(true),
            SyncError::Resolve { .. } => Some(false),
            SyncError::Start(_) | SyncError::Local(_) | SyncError::Itself => None,
        }
    }
}

/// What the failures at all of a primary's addresses come to: that it is there if it answered at one; another
/// swarm key only if nothing else was found anywhere, because it is final.
pub(super) fn verdict(mut failed: Vec<SyncError>) -> SyncError {
    let weight = |error: &SyncError| match (error, error.is_there()) {
        (SyncError::Primary(MirrorError::Trust { .. }), _) => 0,
        // A family that this host has not got says less than an address where nobody answers.
        (_, None) => 1,
        (_, Some(false)) => 2,
        (_, Some(true)) => 3,
    };
    let heaviest = (0..failed.len()).max_by_key(|place| weight(&failed[*place]));
    failed.swap_remove(heaviest.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rootswarm_transport::trust::TrustError;

    use super::*;

    fn error(kind: char) -> SyncError {
        let seed: SocketAddr = "10.0.0.1:7400".parse().unwrap();
        let reason = String::new();
        SyncError::Primary(match kind {
            't' => MirrorError::Trust {
                seed,
                source: TrustError::ForeignIssuer,
            },
            'u' => MirrorError::Unreachable { seed, reason },
            'r' => MirrorError::Refused { seed, reason },
            'p' => MirrorError::Protocol { seed, reason },
            'n' => {
                return SyncError::Resolve {
                    host: String::new(),
                    source: io::ErrorKind::NotFound.into(),
                };
            }
            'e' => {
                return SyncError::EarlierVersion {
                    policy: PathBuf::new(),
                };
            }
            _ => return SyncError::Local(String::new()),
        })
    }

    /// What is known before, what an attempt comes to at each address, and what is known then.
    #[test]
    fn only_who_does_not_answer_is_away() {
        for (failures, after_there, after_away) in [
            ("", true, true),
            ("u", false, false),
            ("n", false, false),
            ("t", false, false),
            ("r", true, true),
            ("p", true, true),
            ("e", true, true),
            ("l", true, false),
            ("ul", false, false),
            ("lu", false, false),
            ("ru", true, true),
            ("ur", true, true),
            ("tu", false, false),
            ("tl", true, false),
            ("tr", true, true),
        ] {
            for (before, after) in [(true, after_there), (false, after_away)] {
                let reach = Reach::default();
                reach.set(before);
                let failed: Vec<SyncError> = failures.chars().map(error).collect();
                reach.learn(&match failed.is_empty() {
                    true => Ok(()),
                    false => Err(verdict(failed)),
                });
                assert_eq!(reach.is_there(), after, "{failures:?} after {before}");
            }
        }
    }

    /// Another key ends the start of a mirror, so it is the verdict only where it is the only one.
    #[test]
    fn another_key_is_final_only_alone() {
        for (failures, is_trust) in [("t", true), ("tt", true), ("tu", false), ("lt", false)] {
            let failed = verdict(failures.chars().map(error).collect());
            let found = matches!(failed, SyncError::Primary(MirrorError::Trust { .. }));
            assert_eq!(found, is_trust, "{failures}");
        }
    }
}
