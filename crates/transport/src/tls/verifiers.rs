//! rustls's questions, answered by [`crate::trust`].
//!
//! Nothing is decided here: each verifier hands the certificate to [`trust::check`] with the role
//! and the gate that its end of the connection expects.

use std::sync::{Arc, Mutex, PoisonError};

use rootswarm_swarm::Role;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};

use super::provider::SIGNATURES;
use crate::identity::Identity;
use crate::trust::{self, SwarmTrust, TrustError, Usage};

/// Carries a verifier's typed verdict past TLS, which knows only alerts, to whoever dialled.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<TrustError>>>);

impl Verdict {
    fn record(&self, error: TrustError) -> rustls::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        refused(error)
    }

    pub(super) fn take(&self) -> Option<TrustError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Not `InvalidCertificate`: of a foreign error in that rustls prints the `Debug` form, and what it
/// prints is what the peer and the log get to read.
fn refused(error: TrustError) -> rustls::Error {
    rustls::Error::Other(OtherError(Arc::new(error)))
}

/// Judges servers on behalf of one dial.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) rule: ServerRule,
    pub(super) verdict: Verdict,
}

/// Whom a dial may end at.
#[derive(Debug)]
pub(super) enum ServerRule {
    /// A seed, trusted like this.
    Seed(SwarmTrust),
    /// A member of this identity's swarm in this role.
    Member(Identity, Role),
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.rule {
            ServerRule::Seed(trust) => trust.key_for(certificate).and_then(|key| {
                let role = Some(Role::Seed);
                let seed = trust::check(certificate, &key, Usage::Server, role, None)?;
                trust.check_epoch(&seed).map(|()| seed)
            }),
            ServerRule::Member(me, expected) => {
                let gate = Some(me.gate());
                trust::check(
                    certificate,
                    me.swarm(),
                    Usage::Server,
                    Some(*expected),
                    gate,
                )
            }
        }
        .map(|_| ServerCertVerified::assertion())
        .map_err(|error| self.verdict.record(error))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = verify_signature(message, certificate, signature)?;
        if let ServerRule::Seed(trust) = &self.rule {
            // Only now is it known that the seed holds the key which its certificate is for.
            trust
                .fix(certificate)
                .map_err(|error| self.verdict.record(error))?;
        }
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Judges clients on behalf of a listener: members of the swarm that are nodes. Seeds never dial.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) identity: Identity,
    /// Whether TLS itself turns away a client without a certificate.
    pub(super) mandatory: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate to show, whatever it is told.
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let me = &self.identity;
        let gate = Some(me.gate());
        trust::check(
            certificate,
            me.swarm(),
            Usage::Client,
            Some(Role::Peer),
            gate,
        )
        .map(|_| ClientCertVerified::assertion())
        .map_err(refused)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    rustls::crypto::verify_tls13_signature(message, certificate, signature, &SIGNATURES)
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}
