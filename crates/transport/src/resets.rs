//! How a seed that was killed tells its nodes at once that it has forgotten them.
//!
//! A process that dies without a word leaves connections behind that the other side gives up only
//! after the idle timeout. QUIC has an answer (RFC 9000, 10.3): a packet of a connection that is not
//! known is answered by a *stateless reset*, which the other side believes because it carries a token
//! that it was told when the connection was alive. For that a new process must be able to make the
//! same tokens, so they come from a key that outlives it. Nodes have no such key: who comes back
//! from a reboot is another node.

use quinn::EndpointConfig;
use quinn_proto::{HashedConnectionIdGenerator, crypto};
use rootswarm_image::SwarmKey;

/// Sets reset tokens and connection ids apart from all else that is derived from a swarm key.
const CONTEXT: &str = "rootswarm 2026-11-22 stateless resets";

/// What a seed makes its connection ids and reset tokens from.
pub(crate) struct ResetKey([u8; 32]);

impl ResetKey {
    /// The key of the seed that holds `key` and has this `place`: whatever tells it from another
    /// seed with the same swarm key. If two shared a reset key, whoever sees a connection to the one
    /// could have the other name its token (RFC 9000, 21.11).
    pub(crate) fn of(key: &SwarmKey, place: &str) -> ResetKey {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        // The key has one fixed length, so that the two parts cannot be taken for each other.
        hasher.update(blake3::hash(key.to_pkcs8()).as_bytes());
        hasher.update(place.as_bytes());
        ResetKey(*hasher.finalize().as_bytes())
    }

    /// Makes an endpoint use it.
    pub(crate) fn apply(self, config: &mut EndpointConfig) {
        let [a, b, c, d, e, f, g, h, ..] =
            *blake3::keyed_hash(&self.0, b"connection ids").as_bytes();
        let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // A packet whose connection id is not of this generator's making gets no answer.
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
        config.reset_key(std::sync::Arc::new(self));
    }
}

impl crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), crypto::CryptoError> {
        let signature: [u8; blake3::OUT_LEN] =
            signature.try_into().map_err(|_| crypto::CryptoError)?;
        // `blake3::Hash` compares in constant time.
        if blake3::keyed_hash(&self.0, data) == signature {
            Ok(())
        } else {
            Err(crypto::CryptoError)
        }
    }
}

/// This host, as far as it can be told from others that hold the same swarm key: its machine id and
/// the address that is listened on. Without a machine id the address alone must do.
pub(crate) fn this_place(listen: std::net::SocketAddr) -> String {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    format!("{} {listen}", machine.trim())
}

#[cfg(test)]
mod tests {
    use quinn_proto::crypto::HmacKey;

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_tokens_and_no_other_does() {
        let (key, other) = (SwarmKey::generate().unwrap(), SwarmKey::generate().unwrap());
        let token = |key: &SwarmKey, place: &str| {
            let mut out = [0; blake3::OUT_LEN];
            ResetKey::of(key, place).sign(b"id", &mut out);
            out
        };
        let own = token(&key, "a 10.0.0.1:7400");
        assert_eq!(own, token(&key, "a 10.0.0.1:7400"));
        assert_ne!(own, token(&key, "b 10.0.0.1:7400"));
        assert_ne!(own, token(&other, "a 10.0.0.1:7400"));
        let reset = ResetKey::of(&key, "a 10.0.0.1:7400");
        assert!(reset.verify(b"id", &own).is_ok());
        assert!(reset.verify(b"ie", &own).is_err());
        assert!(reset.verify(b"id", &own[1..]).is_err());
    }
}
