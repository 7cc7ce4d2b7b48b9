//! Who a node is where it has no TLS: in the headers of a request for an image over HTTP.
//!
//! A node that the swarm let in, and that has to fetch by HTTP later, shows its certificate: a token may have
//! been used up by then. One that begins by HTTP, with a token, signs that token with its key: the seed binds
//! a one-time token to the node, whichever way it comes first, and lets it in by the other one as well.
//!
//! ```text
//! rootswarm-member:  CERTIFICATE.SIGNATURE    of "rootswarm http member 1\0" and the node's public key
//! rootswarm-session: KEY.SIGNATURE            of "rootswarm http session 1\0", the key and the token
//! ```
//!
//! in lower-case hexadecimal; signatures are Ed25519 (RFC 8032). Whoever listens on the wire can send the same
//! headers, as he can a token: HTTP is in the clear. But neither a token nor a certificate alone, which other
//! members and users of the node see, is worth anything here.

use rootswarm_image::SwarmPublicKey;
use rootswarm_swarm::{NodeId, Role};
use rustls::pki_types::CertificateDer;

use crate::identity::{NodeKey, NodePublicKey, SIGNATURE_BYTES};
use crate::trust::{self, Gate, Usage};

/// The header with a member's certificate.
pub const MEMBER: &str = "rootswarm-member";
/// The header that names who shows a token.
pub const SESSION: &str = "rootswarm-session";

/// No message that a node's key signs for anything else begins with one of these.
const MEMBER_PREFIX: &[u8] = b"rootswarm http member 1\0";
/// See [`MEMBER_PREFIX`].
const SESSION_PREFIX: &[u8] = b"rootswarm http session 1\0";

/// The longest certificate that is looked at, in bytes; ours take some 350.
const CERTIFICATE_BYTES_MAX: usize = 2048;

fn member_message(key: &NodePublicKey) -> Vec<u8> {
    [MEMBER_PREFIX, key.as_bytes()].concat()
}

fn session_message(key: &NodePublicKey, token: &str) -> Vec<u8> {
    [SESSION_PREFIX, key.as_bytes(), token.as_bytes()].concat()
}

/// The value of [`MEMBER`] for the node that holds `key` and was given `certificate`.
#[must_use]
pub fn of_member(key: &NodeKey, certificate: &CertificateDer<'_>) -> String {
    let signature = key.sign(&member_message(&key.public()));
    format!("{}.{}", hex(certificate), hex(&signature))
}

/// The value of [`SESSION`] for the node that holds `key` and shows `token`.
#[must_use]
pub fn of_session(key: &NodeKey, token: &str) -> String {
    let public = key.public();
    let signature = key.sign(&session_message(&public, token));
    format!("{}.{}", hex(public.as_bytes()), hex(&signature))
}

/// The member of `swarm` whose certificate and signature `text` is, if `gate` admits it.
#[must_use]
pub fn member(text: &str, swarm: &SwarmPublicKey, gate: &Gate) -> Option<NodeId> {
    let (certificate, signature) = text.split_once('.')?;
    if certificate.len() > 2 * CERTIFICATE_BYTES_MAX {
        return None;
    }
    let certificate = CertificateDer::from(unhex(certificate)?);
    let signature: [u8; SIGNATURE_BYTES] = unhex(signature)?.try_into().ok()?;
    let expected = Some(Role::Peer);
    let found = trust::check(&certificate, swarm, Usage::Client, expected, Some(gate)).ok()?;
    let message = member_message(&found.public_key);
    let is_signed = found.public_key.verifies(&message, &signature);
    is_signed.then_some(found.node_id)
}

/// The node that signed `token`, if `text` is a key and that signature.
#[must_use]
pub fn session(text: &str, token: &str) -> Option<NodeId> {
    let (key, signature) = text.split_once('.')?;
    let key = NodePublicKey(unhex(key)?.try_into().ok()?);
    let signature: [u8; SIGNATURE_BYTES] = unhex(signature)?.try_into().ok()?;
    let is_signed = key.verifies(&session_message(&key, token), &signature);
    is_signed.then(|| key.node_id())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    pairs.iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rootswarm_image::SwarmKey;

    use super::*;
    use crate::identity::SwarmCa;

    fn flipped(text: &str, at: usize) -> String {
        let mut bytes = text.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_session_is_the_key_that_signed_the_token() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let text = of_session(&key, "3f9a01c2-secret");
        assert_eq!(session(&text, "3f9a01c2-secret"), Some(key.node_id()));
        assert_eq!(session(&text, "3f9a01c2-other"), None);
        let theirs = of_session(&other, "3f9a01c2-secret");
        let (own_key, _) = text.split_once('.').unwrap();
        let (_, their_signature) = theirs.split_once('.').unwrap();
        let mixed = format!("{own_key}.{their_signature}");
        assert_eq!(session(&mixed, "3f9a01c2-secret"), None);
        for at in [0, 63, 65, text.len() - 1] {
            assert_eq!(
                session(&flipped(&text, at), "3f9a01c2-secret"),
                None,
                "{at}"
            );
        }
        let upper = text.to_uppercase();
        let random = "00112233445566778899aabbccddeeff";
        for garbage in [
            "",
            ".",
            "a.b",
            own_key,
            &upper,
            random,
            &format!("{text}00"),
        ] {
            assert_eq!(session(garbage, "3f9a01c2-secret"), None, "{garbage}");
        }
    }

    #[test]
    fn a_member_is_who_holds_the_key_of_a_certificate_that_is_good_now() {
        let swarm = Arc::new(SwarmKey::generate().unwrap());
        let ca = SwarmCa::new(swarm.clone());
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let of_epoch = |epoch| ca.issue_node(&key.public(), epoch).unwrap();
        let at = |epoch| Gate::of(epoch, swarm.public());
        let text = of_member(&key, &of_epoch(3));
        assert!(text.len() < 2 * CERTIFICATE_BYTES_MAX);
        for epoch in [1, 3, 4] {
            let found = member(&text, &swarm.public(), &at(epoch));
            assert_eq!(found, Some(key.node_id()), "{epoch}");
        }
        assert_eq!(member(&text, &swarm.public(), &at(5)), None);
        let revoking = at(3);
        revoking.apply(&rootswarm_swarm::Revocations {
            version: 1,
            epoch: 3,
            nodes: vec![key.node_id()],
        });
        assert_eq!(member(&text, &swarm.public(), &revoking), None);

        let stranger = SwarmKey::generate().unwrap();
        assert_eq!(member(&text, &stranger.public(), &at(3)), None);
        // Somebody else's certificate, which every peer has seen.
        let stolen = of_member(&other, &of_epoch(3));
        assert_eq!(member(&stolen, &swarm.public(), &at(3)), None);
        // A seed's.
        let seed = ca.issue_seed(&key.public(), 3).unwrap();
        let seed = of_member(&key, &seed);
        assert_eq!(member(&seed, &swarm.public(), &at(3)), None);
        for at_byte in [10, 200, text.len() - 1] {
            let changed = flipped(&text, at_byte);
            assert_eq!(member(&changed, &swarm.public(), &at(3)), None, "{at_byte}");
        }
        for garbage in [
            "",
            ".",
            &"ab".repeat(5000),
            &format!("{}.00", "ab".repeat(5000)),
        ] {
            assert_eq!(member(garbage, &swarm.public(), &at(3)), None);
        }
    }
}
