//! The connection ids that a node gives itself.
//!
//! Every packet to a node carries one, so each byte of it costs 0.07 % of what a link moves. quinn's
//! own have 8 bytes for servers with millions of connections; a node has at most a few hundred. Like
//! quinn's they can be told from what others make up, so that a stray packet is not worth an answer.
//!
//! A seed's ids must be known again by the process that follows it: those are made in
//! [`crate::resets`].

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

/// Drawn by chance. A node has at most some 200 connections, handshakes included, with 8 ids each: of
/// 2^24 one in 10,000 is taken, and quinn draws again when it meets one of those.
const DRAWN_BYTES: usize = 3;

/// What only this process can add to them: of 256 ids that somebody makes up 255 are dropped without an
/// answer. To the others quinn sends at most 50 resets a second, each shorter than its cause.
const PROOF_BYTES: usize = 1;

const ID_BYTES: usize = DRAWN_BYTES + PROOF_BYTES;

/// Makes ids of 4 bytes.
#[derive(Clone)]
pub(crate) struct ShortIds {
    key: [u8; 32],
    made: u64,
}

impl ShortIds {
    /// With a key of its own. `None` where the kernel has no random bytes.
    pub(crate) fn new() -> Option<ShortIds> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).ok()?;
        Some(ShortIds { key, made: 0 })
    }

    fn keyed_hash(&self, input: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.key, input)
    }

    /// Of what was drawn; counts are longer, so that none is hashed as the other.
    fn proof(&self, drawn: &[u8]) -> [u8; PROOF_BYTES] {
        let [proof, ..] = *self.keyed_hash(drawn).as_bytes();
        [proof]
    }
}

impl ConnectionIdGenerator for ShortIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made = self.made.wrapping_add(1);
        let [a, b, c, ..] = *self.keyed_hash(&self.made.to_le_bytes()).as_bytes();
        let drawn: [u8; DRAWN_BYTES] = [a, b, c];
        ConnectionId::new(&[drawn.as_slice(), &self.proof(&drawn)].concat())
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(DRAWN_BYTES) {
            Some((drawn, proof)) if self.proof(drawn) == proof => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn its_own_ids_are_known_and_others_are_not() {
        let (mut own, other) = (ShortIds::new().unwrap(), ShortIds::new().unwrap());
        let made: Vec<_> = (0..1_000).map(|_| own.generate_cid()).collect();
        assert!(made.iter().all(|id| id.len() == own.cid_len()));
        assert!(made.iter().all(|id| own.validate(id).is_ok()));
        // 4 of 1,000 by chance; 50 would be a proof that proves nothing.
        let believed = made.iter().filter(|id| other.validate(id).is_ok()).count();
        assert!(
            believed < 50,
            "another process believes {believed} of 1,000"
        );
        for bytes in [&[][..], &[1, 2, 3], &[0; 8]] {
            assert!(
                own.validate(&ConnectionId::new(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn ids_hardly_ever_repeat() {
        let mut ids = ShortIds::new().unwrap();
        let distinct: HashSet<_> = (0..1_000).map(|_| ids.generate_cid()).collect();
        // One pair is expected in 34 such draws; ten would be a generator that is broken.
        assert!(distinct.len() > 990, "{} distinct ids", distinct.len());
    }
}
