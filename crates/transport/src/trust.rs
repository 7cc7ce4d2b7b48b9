//! What is believed about a peer, and why not.
//!
//! One function, `check`, turns a certificate into a [`PeerIdentity`] or into a [`TrustError`];
//! everything that verifies goes through it. The rules:
//!
//! - The trust anchor is built from the 32 bytes of the swarm key: no certificate of the CA
//!   exists. The issuer's name carries the key, so that a refusal can say which key was found,
//!   and so that a node that knows only a pin ([`SeedTrust::FirstUse`]) can learn it.
//! - **Dates are trusted for nothing.** Clocks at boot are wrong; validity is checked at a
//!   constant moment ([`VERIFICATION_TIME`]), and what limits a certificate is its *epoch*.
//! - Role and epoch are in the one DNS name of the certificate: `seed.rootswarm.invalid`, or
//!   `e7.node.rootswarm.invalid`. webpki's own name check compares it. The epoch of a seed's
//!   certificate is in its subject's name, `e7.seed.rootswarm.invalid`, where a release that does not
//!   know of it does not look. One without it is of an earlier release, and counts as of the first epoch.
//! - Who it is follows from the certified key alone, never from an address.
//!
//! That the peer holds the certified key is TLS's part ([`crate::tls`]); which image may be
//! fetched under this trust is decided by the caller.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rootswarm_image::SwarmPublicKey;
use rootswarm_swarm::{NodeId, Revocations, Role};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::identity::NodePublicKey;
use crate::revoking;

/// The one DNS name of a seed's certificate.
pub const SEED_NAME: &str = "seed.rootswarm.invalid";

/// What follows the epoch in the one DNS name of a node's certificate.
const NODE_NAME_SUFFIX: &str = ".node.rootswarm.invalid";

/// What follows the epoch in the common name of a seed's certificate.
const SEED_SUBJECT_SUFFIX: &str = ".seed.rootswarm.invalid";

/// What a seed's certificate that names no epoch counts as: the epoch in which an installation begins.
const EPOCH_OF_NONE: u32 = 1;

/// The organisation in the issuer's name.
pub(crate) const ISSUER_ORGANISATION: &str = "rootswarm";

/// 1.3.6.1.5.5.7.3.1, the content of the OID.
const EKU_SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// 1.3.6.1.5.5.7.3.2, the content of the OID.
const EKU_CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// What precedes the raw key in a SubjectPublicKeyInfo of Ed25519 (RFC 8410), without the outer
/// SEQUENCE: AlgorithmIdentifier { 1.3.101.112 }, BIT STRING of 33 bytes, no unused bits.
const ED25519_SPKI_CONTENT: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What precedes the 64 hex digits of the key in [`issuer_name`]: SET { SEQUENCE { O, UTF8String
/// "rootswarm" } }, SET { SEQUENCE { CN, UTF8String of 64 bytes } }.
const ISSUER_NAME_PREFIX: &[u8] = b"\x31\x12\x30\x10\x06\x03\x55\x04\x0a\x0c\x09rootswarm\
      \x31\x49\x30\x47\x06\x03\x55\x04\x03\x0c\x40";

/// Why a peer is not believed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// The certificate was issued under another swarm key.
    #[error("wrong swarm key: expected {expected}, found {found}")]
    WrongKey {
        /// The key this side was told, or fixed at first use.
        expected: SwarmPublicKey,
        /// The key the certificate names as its issuer (a claim: it was not checked further).
        found: SwarmPublicKey,
    },
    /// The certificate was issued by something that is no rootswarm CA at all.
    #[error("the certificate was not issued by a swarm key")]
    ForeignIssuer,
    /// The certificate claims the right key, but does not stand up to it.
    #[error("the certificate claims swarm key {key}, but does not verify: {source}")]
    Invalid {
        /// The key it was checked against.
        key: SwarmPublicKey,
        /// What webpki found.
        source: webpki::Error,
    },
    /// Not a certificate that could be read.
    #[error("unreadable certificate: {0}")]
    Malformed(webpki::Error),
    /// The certificate's name is neither a seed's nor a node's.
    #[error("the certificate names neither a seed nor a node: {found:?}")]
    UnknownName {
        /// The DNS names found in it.
        found: String,
    },
    /// A node poses as a seed, or the other way round.
    #[error("expected a certificate of a {}, found that of a {}", RoleName(*expected), RoleName(*found))]
    WrongRole {
        /// The role this side wanted to talk to.
        expected: Role,
        /// The role the certificate gives.
        found: Role,
    },
    /// The certificate is too old.
    #[error(
        "certificate of epoch {found}, the oldest accepted is {oldest}: a node must join again, a seed of an \
         earlier release must be updated, and one whose key was stolen is not let back"
    )]
    OldEpoch {
        /// The epoch of the certificate.
        found: u32,
        /// The oldest that would have been accepted.
        oldest: u32,
    },
    /// The node's admission was taken back.
    #[error("node {node} is revoked: its admission was taken back")]
    Revoked {
        /// Which node.
        node: NodeId,
    },
    /// The peer speaks the data protocol without a certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The peer negotiated a protocol this side does not know what to do with.
    #[error("unexpected protocol {found:?}")]
    UnexpectedProtocol {
        /// The ALPN name.
        found: String,
    },
}

/// A role in the words of the operator.
struct RoleName(Role);

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Role::Seed => "seed",
            Role::Peer => "node",
        })
    }
}

/// Who a certificate says that its holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// BLAKE3 of the certified key.
    pub node_id: NodeId,
    /// The certified key.
    pub public_key: NodePublicKey,
    /// Seed or node.
    pub role: Role,
    /// The epoch of the certificate; a seed of an earlier release has none.
    pub epoch: Option<u32>,
}

/// How a node comes to trust a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedTrust {
    /// The swarm key is known: from the initrd, or from a command line that tightens.
    Key(SwarmPublicKey),
    /// No key is known, but the image is pinned: the first seed's key holds for this run.
    FirstUse,
}

/// [`SeedTrust`] in use: knows the key, or learns it once. Clones share what was learnt.
#[derive(Clone, Debug)]
pub struct SwarmTrust {
    rule: SeedTrust,
    /// No seed's certificate of an earlier epoch is accepted.
    least_epoch: u32,
    learnt: Arc<Mutex<Option<SwarmPublicKey>>>,
}

impl SwarmTrust {
    /// Trust by this rule, nothing learnt yet.
    #[must_use]
    pub fn new(rule: SeedTrust) -> SwarmTrust {
        SwarmTrust {
            rule,
            least_epoch: 0,
            learnt: Arc::new(Mutex::new(None)),
        }
    }

    /// The same, and only seeds whose certificate is of this epoch or a later one.
    #[must_use]
    pub fn since_epoch(self, least_epoch: u32) -> SwarmTrust {
        SwarmTrust {
            least_epoch,
            ..self
        }
    }

    /// Whether a seed's certificate is recent enough.
    pub(crate) fn check_epoch(&self, seed: &PeerIdentity) -> Result<(), TrustError> {
        let found = seed.epoch.unwrap_or(EPOCH_OF_NONE);
        let oldest = self.least_epoch;
        match found < oldest {
            true => Err(TrustError::OldEpoch { found, oldest }),
            false => Ok(()),
        }
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> SeedTrust {
        self.rule
    }

    /// The key that holds now, if one does.
    #[must_use]
    pub fn key(&self) -> Option<SwarmPublicKey> {
        match self.rule {
            SeedTrust::Key(key) => Some(key),
            SeedTrust::FirstUse => *self.learnt.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The same trust with what was learnt so far, for an attempt that may come to nothing: what it
    /// learns stays its own until [`SwarmTrust::adopt`].
    ///
    /// Without this, whoever answers first, rightly or not, could keep the node from every other seed
    /// for as long as it is up.
    #[must_use]
    pub fn detached(&self) -> SwarmTrust {
        SwarmTrust {
            rule: self.rule,
            least_epoch: self.least_epoch,
            learnt: Arc::new(Mutex::new(self.key())),
        }
    }

    /// Keeps what an attempt that succeeded has learnt, unless something was learnt before.
    pub fn adopt(&self, attempt: &SwarmTrust) {
        if let (SeedTrust::FirstUse, Some(key)) = (self.rule, attempt.key()) {
            let mut learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
            learnt.get_or_insert(key);
        }
    }

    /// The key to hold a seed to which presents `certificate`: the one that holds, or at first use
    /// the one that it presents.
    pub(crate) fn key_for(
        &self,
        certificate: &CertificateDer<'_>,
    ) -> Result<SwarmPublicKey, TrustError> {
        match self.key() {
            Some(key) => Ok(key),
            None => claimed_key(certificate),
        }
    }

    /// Fixes the key of a seed that has just proved that it holds the certified key. Of two that
    /// do so at the same moment the first counts.
    pub(crate) fn fix(&self, certificate: &CertificateDer<'_>) -> Result<(), TrustError> {
        if let SeedTrust::Key(_) = self.rule {
            return Ok(());
        }
        let found = claimed_key(certificate)?;
        let mut learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = *learnt.get_or_insert(found);
        if expected == found {
            Ok(())
        } else {
            Err(TrustError::WrongKey { expected, found })
        }
    }
}

/// Which nodes' certificates are accepted: those of the current epoch, of the one before it and of
/// any later one, unless their node is on the list of the revoked.
///
/// A certificate of a later epoch is the swarm key's own word that the epoch has passed, so it
/// also moves the gate: a swarm learns of a new epoch from those who join in it, and stops to
/// accept the certificates before the previous one. The list comes from a seed. Clones share the
/// gate.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Who signs lists; `None` takes them unsigned.
    swarm: Option<SwarmPublicKey>,
    /// Whether this node was let in by a seed of an earlier release, which signs no lists and whose
    /// certificate names no epoch.
    early_seeds: Arc<AtomicBool>,
    epoch: Arc<AtomicU32>,
    revoked: Arc<RwLock<Revoked>>,
}

#[derive(Debug, Default)]
struct Revoked {
    version: u64,
    nodes: BTreeSet<NodeId>,
}

impl Gate {
    /// A gate at this epoch, nobody revoked.
    #[must_use]
    pub fn new(epoch: u32) -> Gate {
        Gate {
            swarm: None,
            early_seeds: Arc::default(),
            epoch: Arc::new(AtomicU32::new(epoch)),
            revoked: Arc::default(),
        }
    }

    /// The same for members of this swarm, who believe lists that its key has signed.
    #[must_use]
    pub fn of(epoch: u32, swarm: SwarmPublicKey) -> Gate {
        Gate {
            swarm: Some(swarm),
            ..Gate::new(epoch)
        }
    }

    /// Whether seeds of an earlier release are accepted in any epoch, and their lists unsigned: for a node
    /// that one of them has let in, which only a holder of the swarm key can. Who has stolen nothing but
    /// a seed's TLS key cannot bring this about.
    pub(crate) fn accept_early_seeds(&self, accept: bool) {
        self.early_seeds.store(accept, Ordering::Relaxed);
    }

    pub(crate) fn accepts_early_seeds(&self) -> bool {
        self.early_seeds.load(Ordering::Relaxed)
    }

    /// Whether a list that came over a seed's connection is the installation's word.
    pub(crate) fn believes(&self, list: &Revocations) -> bool {
        match &self.swarm {
            None => true,
            Some(swarm) => self.accepts_early_seeds() || revoking::is_signed(list, swarm),
        }
    }

    /// Only for a seed's verified certificate.
    pub(crate) fn admit_seed(&self, node: &NodeId, found: Option<u32>) -> Result<(), TrustError> {
        match found {
            Some(found) => self.admit(node, found),
            None if self.accepts_early_seeds() => Ok(()),
            None => self.admit(node, EPOCH_OF_NONE),
        }
    }

    /// The latest epoch known.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// The epoch has passed on; it never goes back.
    pub fn advance(&self, to: u32) {
        self.epoch.fetch_max(to, Ordering::Relaxed);
    }

    /// Takes a list of a seed, unless it is no newer than the one at hand.
    pub fn apply(&self, list: &Revocations) {
        self.advance(list.epoch);
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        if list.version > revoked.version {
            *revoked = Revoked {
                version: list.version,
                nodes: list.nodes.iter().copied().collect(),
            };
        }
    }

    /// Whether this node's admission was taken back by name.
    #[must_use]
    pub fn is_revoked(&self, node: &NodeId) -> bool {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        revoked.nodes.contains(node)
    }

    /// Only for a node and an epoch from a verified certificate.
    pub(crate) fn admit(&self, node: &NodeId, found: u32) -> Result<(), TrustError> {
        self.advance(found);
        let oldest = self.epoch().saturating_sub(1);
        if found < oldest {
            return Err(TrustError::OldEpoch { found, oldest });
        }
        if self.is_revoked(node) {
            return Err(TrustError::Revoked { node: *node });
        }
        Ok(())
    }
}

/// The end of the connection that a certificate is used for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Usage {
    Server,
    Client,
}

/// When certificates are verified: always at this moment, whatever the clock says. It lies
/// between the dates in every certificate of ours (1975 and 4096).
///
/// 2026-01-01T00:00:00Z.
pub const VERIFICATION_TIME: UnixTime =
    UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));

/// The DNS name of a node's certificate of this epoch.
pub(crate) fn node_name(epoch: u32) -> String {
    format!("e{epoch}{NODE_NAME_SUFFIX}")
}

/// The name under which this swarm key issues, as DER without the outer SEQUENCE.
pub(crate) fn issuer_name(key: &SwarmPublicKey) -> Vec<u8> {
    [ISSUER_NAME_PREFIX, key_hex(key).as_bytes()].concat()
}

/// The 64 lower-case hex digits of the key, without `ed25519:`.
pub(crate) fn key_hex(key: &SwarmPublicKey) -> String {
    key.as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The swarm key that a certificate names as its issuer. A claim until [`check`]ed.
pub(crate) fn claimed_key(certificate: &CertificateDer<'_>) -> Result<SwarmPublicKey, TrustError> {
    let certificate = EndEntityCert::try_from(certificate).map_err(TrustError::Malformed)?;
    key_of_issuer(certificate.issuer())
}

fn key_of_issuer(issuer: &[u8]) -> Result<SwarmPublicKey, TrustError> {
    let hex = issuer
        .strip_prefix(ISSUER_NAME_PREFIX)
        .ok_or(TrustError::ForeignIssuer)?;
    let hex = std::str::from_utf8(hex).map_err(|_| TrustError::ForeignIssuer)?;
    let key: SwarmPublicKey = format!("ed25519:{hex}")
        .parse()
        .map_err(|_| TrustError::ForeignIssuer)?;
    // One key has one name: an upper-case twin would otherwise never match its anchor.
    if issuer == issuer_name(&key) {
        Ok(key)
    } else {
        Err(TrustError::ForeignIssuer)
    }
}

/// Whether `certificate` was issued by `swarm` for this use, to whom, in which role and epoch.
/// The epoch is left to the caller's gate.
fn verify(
    certificate: &CertificateDer<'_>,
    swarm: &SwarmPublicKey,
    usage: Usage,
) -> Result<PeerIdentity, TrustError> {
    let certificate = EndEntityCert::try_from(certificate).map_err(TrustError::Malformed)?;
    let found = key_of_issuer(certificate.issuer())?;
    if found != *swarm {
        return Err(TrustError::WrongKey {
            expected: *swarm,
            found,
        });
    }
    let subject = issuer_name(swarm);
    let spki = [ED25519_SPKI_CONTENT, swarm.as_bytes()].concat();
    let anchor = TrustAnchor {
        subject: subject.as_slice().into(),
        subject_public_key_info: spki.as_slice().into(),
        name_constraints: None,
    };
    let usage = match usage {
        Usage::Server => KeyUsage::required(EKU_SERVER_AUTH),
        Usage::Client => KeyUsage::required(EKU_CLIENT_AUTH),
    };
    let invalid = |source| TrustError::Invalid {
        key: *swarm,
        source,
    };
    certificate
        .verify_for_usage(
            &[webpki::ring::ED25519],
            &[anchor],
            // The swarm key issues directly: no intermediate is ever considered.
            &[],
            VERIFICATION_TIME,
            usage,
            None,
            None,
        )
        .map_err(invalid)?;
    describe(&certificate)
}

/// The common name of a seed's certificate of this epoch.
pub(crate) fn seed_subject(epoch: u32) -> String {
    format!("e{epoch}{SEED_SUBJECT_SUFFIX}")
}

/// The epoch in a seed's subject: none in an empty one, and nothing else is ours.
fn epoch_of_seed(subject: &[u8]) -> Option<Option<u32>> {
    if subject.is_empty() {
        return Some(None);
    }
    // SET { SEQUENCE { CN, UTF8String } }: the name is of some 30 bytes, so each length is one byte.
    let [
        0x31,
        _,
        0x30,
        _,
        0x06,
        0x03,
        0x55,
        0x04,
        0x03,
        0x0c,
        _,
        name @ ..,
    ] = subject
    else {
        return None;
    };
    let digits = std::str::from_utf8(name).ok()?;
    let digits = digits.strip_suffix(SEED_SUBJECT_SUFFIX)?;
    let epoch: u32 = digits.strip_prefix('e')?.parse().ok()?;
    (seed_subject(epoch).as_bytes() == name).then_some(Some(epoch))
}

/// Reads who a verified certificate is for.
fn describe(certificate: &EndEntityCert<'_>) -> Result<PeerIdentity, TrustError> {
    let names: Vec<&str> = certificate.valid_dns_names().collect();
    let unknown = || TrustError::UnknownName {
        found: names.join(" "),
    };
    let (role, epoch) = match names.as_slice() {
        [SEED_NAME] => {
            let subject = certificate.subject();
            let epoch = epoch_of_seed(subject).ok_or_else(|| TrustError::UnknownName {
                found: format!("{SEED_NAME} with another subject"),
            })?;
            (Role::Seed, epoch)
        }
        [name] => {
            let epoch = name
                .strip_suffix(NODE_NAME_SUFFIX)
                .and_then(|label| label.strip_prefix('e'))
                .and_then(|digits| digits.parse::<u32>().ok())
                .ok_or_else(unknown)?;
            (Role::Peer, Some(epoch))
        }
        _ => return Err(unknown()),
    };
    // Back to the canonical spelling, and compared by webpki: `e07` is not epoch 7.
    let name = match (role, epoch) {
        (Role::Peer, Some(epoch)) => node_name(epoch),
        _ => SEED_NAME.to_owned(),
    };
    let name = DnsName::try_from(name).map_err(|_| unknown())?;
    certificate
        .verify_is_valid_for_subject_name(&ServerName::DnsName(name))
        .map_err(|_| unknown())?;

    let spki = certificate.subject_public_key_info();
    let public_key = spki
        .as_ref()
        // The outer SEQUENCE of 42 bytes.
        .strip_prefix(&[0x30, 0x2a])
        .and_then(|content| content.strip_prefix(ED25519_SPKI_CONTENT))
        .and_then(|raw| raw.try_into().ok())
        .map(NodePublicKey)
        .ok_or(TrustError::Malformed(webpki::Error::BadDer))?;
    Ok(PeerIdentity {
        node_id: public_key.node_id(),
        public_key,
        role,
        epoch,
    })
}

/// Verifies a peer's certificate: issued by `swarm` for this end of a connection, in the role
/// that is expected (if one is), a node that the gate accepts (if there is one).
pub(crate) fn check(
    certificate: &CertificateDer<'_>,
    swarm: &SwarmPublicKey,
    usage: Usage,
    expected: Option<Role>,
    gate: Option<&Gate>,
) -> Result<PeerIdentity, TrustError> {
    let peer = verify(certificate, swarm, usage)?;
    if let Some(expected) = expected
        && expected != peer.role
    {
        return Err(TrustError::WrongRole {
            expected,
            found: peer.role,
        });
    }
    match (gate, peer.role, peer.epoch) {
        (Some(gate), Role::Seed, epoch) => gate.admit_seed(&peer.node_id, epoch)?,
        (Some(gate), Role::Peer, Some(epoch)) => gate.admit(&peer.node_id, epoch)?,
        // A node's certificate always names an epoch.
        (_, _, _) => {}
    }
    Ok(peer)
}

/// Verifies the certificate that a seed sent this node: good for both ends, and a node's.
///
/// # Errors
/// What does not hold, as [`TrustError`] says.
pub fn check_own(
    certificate: &CertificateDer<'_>,
    swarm: &SwarmPublicKey,
) -> Result<PeerIdentity, TrustError> {
    check(certificate, swarm, Usage::Server, Some(Role::Peer), None)?;
    check(certificate, swarm, Usage::Client, Some(Role::Peer), None)
}

/// Reads a certificate that the TLS layer has verified already.
pub(crate) fn read_verified(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, TrustError> {
    let certificate = EndEntityCert::try_from(certificate).map_err(TrustError::Malformed)?;
    describe(&certificate)
}

#[cfg(test)]
mod tests;
