//! Who is who: a node's key, the installation's CA, and the certificates that tie them together.
//!
//! - The **swarm key** ([`rootswarm_image::SwarmKey`]) signs certificates. It never speaks TLS:
//!   the seed makes a fresh key at each start ([`Identity::seed`]) and certifies it for itself.
//! - A **node** makes its key at boot ([`NodeKey::generate`]), proves to the seed that it holds it
//!   ([`NodeKey::prove`]), gets a certificate ([`SwarmCa::issue_node`]) and from then on is an
//!   [`Identity`].
//!
//! What a certificate must look like to be accepted is in [`crate::trust`]; how the two meet TLS
//! is in [`crate::tls`]. Certificate dates mean nothing here: see [`crate::trust`].

use std::fmt;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rootswarm_image::{SwarmKey, SwarmPublicKey};
use rootswarm_swarm::{NodeId, Role};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::trust::{self, Gate, TrustError};

/// The exporter label of the possession proof (RFC 8446, 7.5; RFC 5705). Part of the wire format.
const PROOF_LABEL: &[u8] = b"EXPORTER-rootswarm-join-1";

/// What precedes the exported secret in the signed message, so that a proof can never be taken
/// for another of the key's signatures (TLS puts 64 spaces first).
const PROOF_PREFIX: &[u8] = b"rootswarm join proof 1\0";

/// The length of an Ed25519 signature (RFC 8032).
pub const SIGNATURE_BYTES: usize = 64;

/// The length of a possession proof: a signature.
pub const PROOF_BYTES: usize = SIGNATURE_BYTES;

/// Why an identity could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel's random generator refused.
    #[error("cannot make a key: no randomness from the kernel")]
    NoRandomness,
    /// ring or rustls would not take the key that ring had made.
    #[error("cannot use the key just made: {0}")]
    Key(String),
    /// rcgen could not write the certificate.
    #[error("cannot issue a certificate: {0}")]
    Issue(String),
    /// The certificate is for somebody else's key.
    #[error("the seed's certificate is for node {found}, but this node is {expected}")]
    NotMine {
        /// This node.
        expected: NodeId,
        /// Whom the certificate names.
        found: NodeId,
    },
    /// The certificate does not stand up to the swarm key.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Why a possession proof was not made or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The connection has no secret to export (the handshake is not over).
    #[error("the connection exports no key: its handshake is not complete")]
    NoExporter,
    /// The signature is not one of that key over this connection.
    #[error("node {node} did not prove that it holds its key")]
    Invalid {
        /// Who the joiner claims to be.
        node: NodeId,
    },
}

/// The public half of a node's key: the raw 32 bytes of Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodePublicKey(pub [u8; 32]);

impl NodePublicKey {
    /// The raw key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The node's name in the swarm: BLAKE3 of the raw key.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId(*blake3::hash(&self.0).as_bytes())
    }

    /// Checks what [`NodeKey::prove`] made at the other end of this connection.
    pub fn verify_proof(
        &self,
        connection: &quinn::Connection,
        proof: &[u8],
    ) -> Result<(), ProofError> {
        let message = proof_message(connection, self)?;
        match self.verifies(&message, proof) {
            true => Ok(()),
            false => Err(ProofError::Invalid {
                node: self.node_id(),
            }),
        }
    }

    /// Whether `signature` is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for NodePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodePublicKey of {}", self.node_id())
    }
}

/// A node's key, made at boot and never written anywhere.
pub struct NodeKey {
    pair: Ed25519KeyPair,
    tls: Arc<dyn rustls::sign::SigningKey>,
    public: NodePublicKey,
}

impl NodeKey {
    /// Makes a key from the kernel's randomness.
    pub fn generate() -> Result<NodeKey, IdentityError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| IdentityError::NoRandomness)?;
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref())
            .map_err(|error| IdentityError::Key(error.to_string()))?;
        let tls = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(
            document.as_ref(),
        ))
        .map_err(|error| IdentityError::Key(error.to_string()))?;
        let public = pair
            .public_key()
            .as_ref()
            .try_into()
            .map(NodePublicKey)
            .map_err(|_| IdentityError::Key("an Ed25519 public key is 32 bytes".to_owned()))?;
        Ok(NodeKey { pair, tls, public })
    }

    /// The half that others may know.
    #[must_use]
    pub fn public(&self) -> NodePublicKey {
        self.public
    }

    /// The node's name in the swarm.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.public.node_id()
    }

    /// Proves to the other end of `connection` that this node holds its key.
    ///
    /// The signature covers keying material that only the two ends of this one TLS connection can
    /// export, so it is worth nothing on any other.
    pub fn prove(&self, connection: &quinn::Connection) -> Result<[u8; PROOF_BYTES], ProofError> {
        let message = proof_message(connection, &self.public)?;
        Ok(self.sign(&message))
    }

    /// A signature over `message`, which begins with what sets it apart from all else that is signed.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature = self.pair.sign(message);
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(signature.as_ref());
        bytes
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey of {}", self.node_id())
    }
}

fn proof_message(
    connection: &quinn::Connection,
    key: &NodePublicKey,
) -> Result<Vec<u8>, ProofError> {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, PROOF_LABEL, key.as_bytes())
        .map_err(|_| ProofError::NoExporter)?;
    Ok([PROOF_PREFIX, key.as_bytes(), &secret].concat())
}

/// The installation's certificate authority: the swarm key at work.
///
/// Only the seed links this (and rcgen under it); nodes only verify.
pub struct SwarmCa {
    key: Arc<SwarmKey>,
}

impl SwarmCa {
    /// The CA of this swarm key.
    #[must_use]
    pub fn new(key: Arc<SwarmKey>) -> SwarmCa {
        SwarmCa { key }
    }

    /// What nodes pin.
    #[must_use]
    pub fn public(&self) -> SwarmPublicKey {
        self.key.public()
    }

    /// The key itself, for what a seed signs besides certificates.
    pub(crate) fn key(&self) -> &SwarmKey {
        &self.key
    }

    /// A node's certificate, good in `epoch` and the one after.
    ///
    /// The caller has checked the node's possession proof and that it may join.
    pub fn issue_node(
        &self,
        node: &NodePublicKey,
        epoch: u32,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        self.issue(node, trust::node_name(epoch), vec![ServerAuth, ClientAuth])
    }

    /// A seed's certificate, good in `epoch` and the one after; the key lives no longer than the seed's
    /// process. A seed never dials, so it is no client.
    pub fn issue_seed(
        &self,
        seed: &NodePublicKey,
        epoch: u32,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let usage = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let mut subject = rcgen::DistinguishedName::new();
        subject.push(rcgen::DnType::CommonName, trust::seed_subject(epoch));
        self.issue_to(seed, subject, trust::SEED_NAME.to_owned(), usage)
    }

    pub(crate) fn issue(
        &self,
        subject: &NodePublicKey,
        san: String,
        usage: Vec<rcgen::ExtendedKeyUsagePurpose>,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        self.issue_to(subject, rcgen::DistinguishedName::new(), san, usage)
    }

    pub(crate) fn issue_to(
        &self,
        subject: &NodePublicKey,
        name: rcgen::DistinguishedName,
        san: String,
        usage: Vec<rcgen::ExtendedKeyUsagePurpose>,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let failed = |error: rcgen::Error| IdentityError::Issue(error.to_string());
        let mut issuer = rcgen::CertificateParams::default();
        issuer.distinguished_name = distinguished_name(&self.key.public());
        let issuer = rcgen::Issuer::new(issuer, CaSigner(&self.key));

        let mut params = rcgen::CertificateParams::default();
        // The SAN says it all, but for a seed's epoch. The dates are rcgen's, 1975 to 4096, and are checked against a
        // constant between them.
        params.distinguished_name = name;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(san.try_into().map_err(failed)?)];
        params.extended_key_usages = usage;
        // No basic constraints: webpki lets such a certificate issue nothing.
        params.is_ca = rcgen::IsCa::NoCa;
        let certificate = params
            .signed_by(&Subject(subject), &issuer)
            .map_err(failed)?;
        Ok(certificate.into())
    }
}

impl fmt::Debug for SwarmCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SwarmCa of {}", self.key.public())
    }
}

/// The name under which the swarm key issues: must encode to [`trust::issuer_name`]; a test holds
/// the two together.
fn distinguished_name(key: &SwarmPublicKey) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::OrganizationName, trust::ISSUER_ORGANISATION);
    name.push(rcgen::DnType::CommonName, trust::key_hex(key));
    name
}

/// The swarm key as rcgen wants to see it.
struct CaSigner<'a>(&'a SwarmKey);

impl rcgen::PublicKeyData for CaSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        // rcgen asks for the issuer's public key only to derive an authority key identifier,
        // which these certificates do not carry.
        &[]
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for CaSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).to_vec())
    }
}

/// The key that is certified.
struct Subject<'a>(&'a NodePublicKey);

impl rcgen::PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// A key with its certificate, the swarm it belongs to, and whom it accepts of others: all
/// that [`crate::tls`] needs to speak and listen. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) swarm: SwarmPublicKey,
    pub(crate) gate: Gate,
    node_id: NodeId,
    role: Role,
    /// That of its certificate.
    epoch: u32,
}

impl Identity {
    /// A seed: a fresh key, certified by the CA in the same breath.
    pub fn seed(ca: &SwarmCa, epoch: u32) -> Result<Identity, IdentityError> {
        let key = NodeKey::generate()?;
        let certificate = ca.issue_seed(&key.public(), epoch)?;
        Ok(Identity {
            node_id: key.node_id(),
            role: Role::Seed,
            epoch,
            swarm: ca.public(),
            gate: Gate::of(epoch, ca.public()),
            certified: Arc::new(CertifiedKey::new(vec![certificate], key.tls)),
        })
    }

    /// A node, with the certificate that a seed sent it. Refuses a certificate that `swarm` did
    /// not sign, that is not for this key, or that is not a node's.
    pub fn node(
        key: &NodeKey,
        certificate: Vec<u8>,
        swarm: &SwarmPublicKey,
    ) -> Result<Identity, IdentityError> {
        let certificate = CertificateDer::from(certificate);
        let found = trust::check_own(&certificate, swarm)?;
        if found.public_key != key.public() {
            return Err(IdentityError::NotMine {
                expected: key.node_id(),
                found: found.node_id,
            });
        }
        // A node's certificate always names an epoch.
        let epoch = found.epoch.unwrap_or_default();
        Ok(Identity {
            node_id: key.node_id(),
            role: Role::Peer,
            epoch,
            swarm: *swarm,
            gate: Gate::of(epoch, *swarm),
            certified: Arc::new(CertifiedKey::new(vec![certificate], key.tls.clone())),
        })
    }

    /// Who this is.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// What it may be.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// The swarm it belongs to.
    #[must_use]
    pub fn swarm(&self) -> &SwarmPublicKey {
        &self.swarm
    }

    /// Which nodes' certificates it accepts; the gate is shared with every TLS configuration made
    /// from this identity.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether its own gate would not let it in any more: a later epoch has been heard of, from a list or a
    /// certificate.
    pub(crate) fn is_over(&self) -> bool {
        self.gate.admit(&self.node_id, self.epoch).is_err()
    }

    /// The same identity at the gate of an older one of this node, so that what was learnt there
    /// about others goes on to hold.
    pub(crate) fn at_gate_of(mut self, older: &Identity) -> Identity {
        older.gate.advance(self.gate.epoch());
        older
            .gate
            .accept_early_seeds(self.gate.accepts_early_seeds());
        self.gate = older.gate.clone();
        self
    }
}
