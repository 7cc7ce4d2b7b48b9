//! The admission policy that a seed tells its mirrors, and that a mirror remembers.
//!
//! A mirror answers for its first seed, so it must not let in whom that one would not. What the first
//! seed was told (`--admission`, `--allow`) comes with the mirroring, is kept in the file `policy` of the
//! mirror's state directory, and holds there also while the first seed is away, and after the host has
//! taken over. Whom an address and a token then let in is decided in [`crate::admission`].
//!
//! The file is text, version first: `rootswarm-policy 1`, then `admission open|token`, then
//! `allow listed|interfaces|unknown`, then `network ADDRESS/PREFIX`, a line each. A line that is not
//! understood makes the whole file unusable: it may be a rule that keeps somebody out.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use crate::admission::AdmissionMode;
use crate::guarded::POLICY;
use crate::network::Cidr;
use crate::state::{StateDir, StateError};

const HEADER: &str = "rootswarm-policy 1";

/// An allow-list is some networks; a file of more lines is not ours.
const NETWORKS_MAX: usize = 4096;

/// Why a policy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Not ours, damaged, or of a later release.
    #[error("admission policy {} line {line}: {reason} (nobody is let in by a rule that is not understood; update this host, or remove the file to have it written anew)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Which addresses are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// These networks: the admin listed them.
    Listed(Vec<Cidr>),
    /// No list: the networks that a seed's own interfaces are on. These are the first seed's; a mirror's
    /// own count too.
    Interfaces(Vec<Cidr>),
    /// The first seed is of a release that does not tell.
    Unknown,
}

/// Whom a seed lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether a token is needed.
    pub mode: AdmissionMode,
    /// From where.
    pub allow: Allow,
}

impl Policy {
    /// What is concluded about a first seed that does not tell. Where it is open the mirror's own
    /// configuration decides, as it did in the releases that did not tell.
    pub fn concluded(mode: AdmissionMode) -> Policy {
        let allow = Allow::Unknown;
        Policy { mode, allow }
    }

    /// Whether a first seed told it.
    pub fn was_told(&self) -> bool {
        self.allow != Allow::Unknown
    }

    /// Reads the text of a policy.
    ///
    /// # Errors
    /// The first line that is not understood, counted from 1, and what was expected.
    pub fn parse(text: &str) -> Result<Policy, (usize, &'static str)> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return Err((1, "expected the header \"rootswarm-policy 1\""));
        }
        let mode = match lines.next() {
            Some("admission open") => AdmissionMode::Open,
            Some("admission token") => AdmissionMode::Token,
            _ => return Err((2, "expected \"admission open\" or \"admission token\"")),
        };
        let allow = lines.next();
        let mut networks = Vec::new();
        for (index, line) in lines.enumerate() {
            let network = line.strip_prefix("network ").and_then(|it| it.parse().ok());
            networks.push(network.ok_or((index + 4, "expected \"network ADDRESS/PREFIX\""))?);
            if networks.len() > NETWORKS_MAX {
                return Err((index + 4, "more networks than any allow-list has"));
            }
        }
        let allow = match allow {
            // An empty list would let in nobody; none is ever written.
            Some("allow listed") if !networks.is_empty() => Allow::Listed(networks),
            Some("allow interfaces") => Allow::Interfaces(networks),
            Some("allow unknown") if networks.is_empty() => Allow::Unknown,
            _ => {
                let expected = "expected \"allow listed\" and networks, or \"allow interfaces\"";
                return Err((3, expected));
            }
        };
        Ok(Policy { mode, allow })
    }

    /// The text of a policy.
    pub fn text(&self) -> String {
        let mode = match self.mode {
            AdmissionMode::Open => "open",
            AdmissionMode::Token => "token",
        };
        let (allow, networks) = match &self.allow {
            Allow::Listed(networks) => ("listed", networks.as_slice()),
            Allow::Interfaces(networks) => ("interfaces", networks.as_slice()),
            Allow::Unknown => ("unknown", &[][..]),
        };
        let mut text = format!("{HEADER}\nadmission {mode}\nallow {allow}\n");
        for network in networks {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "network {network}");
        }
        text
    }
}

/// The policy that a state directory remembers of its first seed. Clones share what was read.
#[derive(Clone, Debug)]
pub struct Remembered {
    state: StateDir,
    current: Arc<RwLock<Current>>,
}

/// The policy that holds, and whether it is written down.
#[derive(Clone, Debug)]
struct Current {
    policy: Option<Policy>,
    is_written: bool,
}

impl Remembered {
    /// Reads what is remembered in `state`.
    ///
    /// # Errors
    /// See [`PolicyError`]. A file that cannot be read is not taken for none.
    pub fn load(state: StateDir) -> Result<Remembered, PolicyError> {
        let policy = match POLICY.read(state.root()).map_err(StateError::from)? {
            None => None,
            Some(text) => Some(parse(&text, &state)?),
        };
        let current = Current {
            policy,
            is_written: true,
        };
        Ok(Remembered {
            state,
            current: Arc::new(RwLock::new(current)),
        })
    }

    /// What holds now; `None` if nothing was ever learnt.
    pub fn policy(&self) -> Option<Policy> {
        let current = self.current.read();
        let current = current.unwrap_or_else(PoisonError::into_inner);
        current.policy.clone()
    }

    /// Takes over what the first seed told; says whether it is new.
    ///
    /// # Errors
    /// It is not understood: what is known goes on to hold. Or it cannot be written: it holds all the same,
    /// and is written when it is told again.
    pub fn adopt(&self, text: &[u8]) -> Result<bool, PolicyError> {
        let policy = parse(text, &self.state)?;
        self.keep(policy)
    }

    /// What can be concluded from a first seed that does not tell: one that `has_tokens` asks for them.
    /// That stays concluded until the first seed tells, also when all tokens are used up.
    ///
    /// # Errors
    /// It cannot be written; it holds all the same.
    pub fn conclude(&self, has_tokens: bool) -> Result<bool, PolicyError> {
        let mode = match has_tokens {
            true => AdmissionMode::Token,
            false => AdmissionMode::Open,
        };
        match self.policy() {
            Some(known) if known.was_told() || known.mode >= mode => self.keep(known),
            _ => self.keep(Policy::concluded(mode)),
        }
    }

    fn keep(&self, policy: Policy) -> Result<bool, PolicyError> {
        let is_new = {
            let current = self.current.write();
            let mut current = current.unwrap_or_else(PoisonError::into_inner);
            let is_new = current.policy.as_ref() != Some(&policy);
            if !is_new && current.is_written {
                return Ok(false);
            }
            *current = Current {
                policy: Some(policy.clone()),
                is_written: false,
            };
            is_new
        };
        let path = self.state.root().join(POLICY.name);
        {
            let _lock = self.state.lock()?;
            self.state
                .replace(&path, policy.text().as_bytes(), POLICY.mode)?;
        }
        let current = self.current.write();
        current.unwrap_or_else(PoisonError::into_inner).is_written = true;
        Ok(is_new)
    }
}

fn parse(text: &[u8], state: &StateDir) -> Result<Policy, PolicyError> {
    Policy::parse(&String::from_utf8_lossy(text)).map_err(|(line, reason)| PolicyError::Damaged {
        path: state.root().join(POLICY.name),
        line,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_policy_is_its_text() {
        for (policy, text) in [
            (
                Policy {
                    mode: AdmissionMode::Token,
                    allow: Allow::Listed(networks(&["10.0.0.0/24", "fd00::/64"])),
                },
                "rootswarm-policy 1\nadmission token\nallow listed\nnetwork 10.0.0.0/24\n\
                 network fd00::/64\n",
            ),
            (
                Policy {
                    mode: AdmissionMode::Open,
                    allow: Allow::Interfaces(networks(&["10.0.0.0/24"])),
                },
                "rootswarm-policy 1\nadmission open\nallow interfaces\nnetwork 10.0.0.0/24\n",
            ),
            (
                Policy::concluded(AdmissionMode::Token),
                "rootswarm-policy 1\nadmission token\nallow unknown\n",
            ),
        ] {
            assert_eq!(policy.text(), text);
            assert_eq!(Policy::parse(text), Ok(policy));
        }
    }

    #[test]
    fn what_is_not_understood_is_not_passed_over() {
        for (rest, line) in [
            ("", 2),
            ("admission closed\n", 2),
            ("admission open\n", 3),
            ("admission open\nallow listed\n", 3),
            ("admission open\nallow unknown\nnetwork ::/0\n", 3),
            ("admission open\nallow all\n", 3),
            ("admission open\nallow listed\nnetwork 10.0.0.0/33\n", 4),
            ("admission open\nallow interfaces\nhours 8-18\n", 4),
        ] {
            let found = Policy::parse(&format!("{HEADER}\n{rest}"));
            assert_eq!(found.unwrap_err().0, line, "{rest:?}");
        }
        assert_eq!(Policy::parse("").unwrap_err().0, 1);
        assert_eq!(Policy::parse("rootswarm-policy 2\n").unwrap_err().0, 1);
    }

    #[test]
    fn what_was_learnt_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let remembered = Remembered::load(state.clone()).unwrap();
        assert_eq!(remembered.policy(), None);
        assert!(remembered.conclude(false).unwrap());
        let open = Policy::concluded(AdmissionMode::Open);
        assert_eq!(remembered.policy(), Some(open));
        assert!(remembered.conclude(true).unwrap());
        // All of them were used up.
        assert!(!remembered.conclude(false).unwrap());
        let again = || Remembered::load(state.clone()).unwrap().policy();
        assert_eq!(again(), Some(Policy::concluded(AdmissionMode::Token)));
        let told = b"rootswarm-policy 1\nadmission open\nallow listed\nnetwork ::/0\n";
        assert!(remembered.adopt(told).unwrap());
        assert!(!remembered.adopt(told).unwrap());
        // What it told is not undone by a conclusion.
        assert!(!remembered.conclude(true).unwrap());
        assert!(remembered.policy().unwrap().was_told());
        assert!(remembered.adopt(b"rootswarm-policy 9\n").is_err());
        assert_eq!(again().unwrap().mode, AdmissionMode::Open);
        std::fs::write(dir.path().join("policy"), "garbage").unwrap();
        assert!(Remembered::load(state.clone()).is_err());
    }

    /// A disk that takes nothing is no reason to let in whom the first seed does not let in any more.
    #[test]
    fn what_cannot_be_written_holds_and_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let remembered = Remembered::load(state.clone()).unwrap();
        let told = |mode| format!("rootswarm-policy 1\nadmission {mode}\nallow interfaces\n");
        assert!(remembered.adopt(told("open").as_bytes()).unwrap());
        // Nothing can be put in the place of a directory that is not empty.
        let file = dir.path().join("policy");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir_all(file.join("in the way")).unwrap();
        for _ in 0..2 {
            assert!(remembered.adopt(told("token").as_bytes()).is_err());
            assert_eq!(remembered.policy().unwrap().mode, AdmissionMode::Token);
        }
        std::fs::remove_dir_all(&file).unwrap();
        assert!(!remembered.adopt(told("token").as_bytes()).unwrap());
        let again = Remembered::load(state).unwrap().policy().unwrap();
        assert_eq!(again.mode, AdmissionMode::Token);
    }
}
