//! How a seed that was killed tells its nodes at once that it has forgotten them.
//!
//! A process that dies without a word leaves connections behind that the other side gives up only
//! after the idle timeout. QUIC has an answer (RFC 9000, 10.3): a packet of a connection that is not
//! known is answered by a *stateless reset*, which the other side believes because it carries a token
//! that it was told when the connection was alive. For that a new process must be able to make the
//! same tokens, so they come from a key that outlives it. Nodes have no such key: who comes back
//! from a reboot is another node.

use std::time::Duration;

use quinn::EndpointConfig;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid, crypto};
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
        // A packet whose connection id is not of this generator's making gets no answer.
        let ids = self.ids();
        config.cid_generator(move || Box::new(ids.clone()));
        config.reset_key(std::sync::Arc::new(self));
    }
}

impl ResetKey {
    fn ids(&self) -> SeedIds {
        SeedIds {
            proves: *blake3::keyed_hash(&self.0, b"connection ids").as_bytes(),
            draws: blake3::keyed_hash(&self.0, &this_moment()).into(),
            made: 0,
        }
    }
}

/// What no other process of this seed's has: its number and the time at which it began.
fn this_moment() -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let began = now.unwrap_or_default().as_nanos().to_le_bytes();
    [&std::process::id().to_le_bytes()[..], &began].concat()
}

/// As nobody can tell beforehand, of this many bytes. A Retry packet names an id that is not put down anywhere, and the
/// handshake that follows it is lost where a connection has that very id: with 3 bytes, as quinn's own
/// generator has them, each 200th join of a seed with 10,000 members (8 ids each) stood still until it was
/// given up.
const DRAWN_BYTES: usize = 7;

/// What only who has the key can add to them.
const PROOF_BYTES: usize = 5;

/// Makes a seed's connection ids, of 12 bytes.
#[derive(Clone)]
struct SeedIds {
    /// The same for each process of this seed's.
    proves: [u8; 32],
    /// This process's own.
    draws: [u8; 32],
    made: u64,
}

impl SeedIds {
    fn proof(&self, drawn: &[u8]) -> [u8; PROOF_BYTES] {
        let [a, b, c, d, e, ..] = *blake3::keyed_hash(&self.proves, drawn).as_bytes();
        [a, b, c, d, e]
    }
}

impl ConnectionIdGenerator for SeedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made = self.made.wrapping_add(1);
        let hash = blake3::keyed_hash(&self.draws, &self.made.to_le_bytes());
        let (drawn, _) = hash.as_bytes().split_at(DRAWN_BYTES);
        ConnectionId::new(&[drawn, &self.proof(drawn)].concat())
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(DRAWN_BYTES) {
            Some((drawn, proof)) if self.proof(drawn) == proof => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        DRAWN_BYTES + PROOF_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
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

    /// Of a Retry packet's id nobody sees to it that no connection has it.
    #[test]
    fn no_two_ids_are_the_same_however_many_there_are() {
        let key = SwarmKey::generate().unwrap();
        let mut ids = ResetKey::of(&key, "a").ids();
        let made: std::collections::HashSet<Vec<u8>> =
            (0..200_000).map(|_| ids.generate_cid().to_vec()).collect();
        assert_eq!(made.len(), 200_000);
        // Nor are those of two processes.
        let mut after = ResetKey::of(&key, "a").ids();
        assert!((0..1_000).all(|_| !made.contains(&*after.generate_cid())));
    }

    #[test]
    fn the_process_that_follows_knows_them_again_and_no_other_does() {
        let key = SwarmKey::generate().unwrap();
        let id = ResetKey::of(&key, "a").ids().generate_cid();
        assert!(ResetKey::of(&key, "a").ids().validate(&id).is_ok());
        assert!(ResetKey::of(&key, "b").ids().validate(&id).is_err());
        let mut other = id.to_vec();
        for place in 0..other.len() {
            other[place] ^= 1;
            let changed = ConnectionId::new(&other);
            assert!(
                ResetKey::of(&key, "a").ids().validate(&changed).is_err(),
                "{place}"
            );
            other[place] ^= 1;
        }
        assert!(
            ResetKey::of(&key, "a")
                .ids()
                .validate(&ConnectionId::new(&id[..8]))
                .is_err()
        );
    }

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
