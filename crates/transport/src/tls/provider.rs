//! What rustls is built from here: the primitives that are linked, and the time it is told.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, WebPkiSupportedAlgorithms, ring as suites,
};
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use rustls::sign::SigningKey;
use rustls::time_provider::TimeProvider;

use crate::trust;

/// Ed25519 and nothing else, for certificates and handshakes alike.
pub(super) static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ED25519],
    mapping: &[(SignatureScheme::ED25519, &[webpki::ring::ED25519])],
};

/// The primitives that are linked: one key exchange, one signature, and the cipher that suits the
/// machine first. rustls's own provider would bring RSA and ECDSA into the initrd.
pub(super) fn provider() -> Arc<CryptoProvider> {
    let aes = suites::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let chacha = suites::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let cipher_suites = if has_aes() {
        vec![aes, chacha]
    } else {
        vec![chacha, aes]
    };
    Arc::new(CryptoProvider {
        cipher_suites,
        kx_groups: vec![suites::kx_group::X25519],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Ring,
        key_provider: &Ring,
    })
}

/// Whether the processor encrypts with AES by itself. The one that dials decides the cipher (the
/// server takes the client's first).
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}

#[derive(Debug)]
struct Ring;

impl rustls::crypto::SecureRandom for Ring {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        use ring::rand::SecureRandom as _;
        ring::rand::SystemRandom::new()
            .fill(buffer)
            .map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for Ring {
    fn load_private_key(
        &self,
        _key: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        // Keys come with their `Identity`, never through rustls's own loader.
        Err(rustls::Error::General(
            "keys are not loaded from DER here".to_owned(),
        ))
    }
}

/// What rustls is told the time is: it is asked for nothing but certificates and tickets, and there
/// are no tickets.
#[derive(Debug)]
pub(super) struct FixedTime;

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(trust::VERIFICATION_TIME)
    }
}
