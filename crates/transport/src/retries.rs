//! What proves that a dialer is where it says: the token in a Retry packet (RFC 9000, 8.1.2).
//!
//! The token is good with the key it was made with, and whoever dials takes one Retry and no more
//! (RFC 9000, 17.2.5.2): if the key changed between the two, the dial would time out. So the key is not one of
//! a TLS configuration, which is made anew with each certificate, and a seed's outlives its process: after a
//! power cut, and after admissions were taken back, everybody knocks at once, and that is when Retries are
//! sent.

use std::fmt;
use std::sync::Arc;

use quinn_proto::crypto::HandshakeTokenKey;
use ring::hkdf::{HKDF_SHA256, Salt};
use rootswarm_image::SwarmKey;

use crate::tls::TlsError;

/// Sets this key apart from all else that is derived from a swarm key.
const CONTEXT: &str = "rootswarm 2026-11-30 retry tokens";

/// What a listener makes Retry tokens with, for as long as it listens.
#[derive(Clone)]
pub struct RetryKey(Arc<dyn HandshakeTokenKey>);

impl fmt::Debug for RetryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RetryKey(secret)")
    }
}

impl RetryKey {
    /// A key of nobody else's.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub fn random() -> Result<RetryKey, TlsError> {
        let mut secret = [0; 32];
        let filled = getrandom::fill(&mut secret);
        filled.map_err(|error| TlsError(format!("no key for Retry tokens: {error}")))?;
        Ok(RetryKey::from_secret(&secret))
    }

    /// The key of the seed that holds `key` at this `place`, in each of its lives.
    pub(crate) fn of(key: &SwarmKey, place: &str) -> RetryKey {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(blake3::hash(key.to_pkcs8()).as_bytes());
        hasher.update(place.as_bytes());
        RetryKey::from_secret(hasher.finalize().as_bytes())
    }

    fn from_secret(secret: &[u8; 32]) -> RetryKey {
        RetryKey(Arc::new(Salt::new(HKDF_SHA256, &[]).extract(secret)))
    }

    /// Has a configuration use it.
    pub(crate) fn apply(&self, config: &mut quinn::ServerConfig) {
        config.token_key(self.0.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use quinn::Endpoint;
    use rootswarm_swarm::Role;

    use super::*;
    use crate::identity::{Identity, SwarmCa};
    use crate::tls::{Dialer, Listener};
    use crate::trust::{SeedTrust, SwarmTrust};
    use crate::tuning::Tuning;

    /// Between a Retry and the dialer's answer to it the listener takes another certificate, or another
    /// process its place.
    #[tokio::test]
    async fn a_retry_is_good_under_the_next_certificate() {
        let key = Arc::new(SwarmKey::generate().unwrap());
        let ca = SwarmCa::new(key.clone());
        let tuning = Tuning::default();
        let one = RetryKey::random().unwrap();
        for (case, first, second) in [
            ("a listener's", one.clone(), one),
            (
                "a seed's in its next life",
                RetryKey::of(&key, "here"),
                RetryKey::of(&key, "here"),
            ),
        ] {
            let config = |epoch, retries| {
                let identity = Identity::seed(&ca, epoch).unwrap();
                Listener::server_config(&identity, &tuning, retries).unwrap()
            };
            let loopback = (Ipv4Addr::LOCALHOST, 0).into();
            let seed = Endpoint::server(config(1, &first), loopback).unwrap();
            let address = seed.local_addr().unwrap();
            let after = config(3, &second);
            let accepting = tokio::spawn(async move {
                seed.accept().await.unwrap().retry().unwrap();
                // Before this task yields nothing more is read.
                seed.set_server_config(Some(after));
                let again = seed.accept().await.unwrap();
                let is_validated = again.remote_address_validated();
                (seed.clone(), again.await.unwrap(), is_validated)
            });
            let client = Endpoint::client(loopback).unwrap();
            let dialer = Dialer::join(SwarmTrust::new(SeedTrust::Key(key.public())), &tuning);
            let dialed = dialer.connect(&client, address, Role::Seed);
            // A dial takes two round trips, or never ends.
            let dialed = tokio::time::timeout(Duration::from_secs(10), dialed).await;
            assert!(dialed.is_ok_and(|it| it.is_ok()), "{case}");
            assert!(accepting.await.unwrap().2, "{case}");
        }
    }

    #[test]
    fn another_place_or_swarm_has_another_key() {
        let (key, other) = (SwarmKey::generate().unwrap(), SwarmKey::generate().unwrap());
        let sealed = |key: &SwarmKey, place: &str| {
            let mut data = b"token".to_vec();
            let aead = RetryKey::of(key, place).0.aead_from_hkdf(b"random");
            aead.seal(&mut data, b"").unwrap();
            data
        };
        assert_eq!(sealed(&key, "a"), sealed(&key, "a"));
        assert_ne!(sealed(&key, "a"), sealed(&key, "b"));
        assert_ne!(sealed(&key, "a"), sealed(&other, "a"));
    }
}
