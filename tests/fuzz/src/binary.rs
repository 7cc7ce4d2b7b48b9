//! Targets for the binary formats: what is signed, hashed or sent.

use rootswarm_image::{
    ImageId, Manifest, ManifestError, SQUASHFS_HEADER_BYTES, SignedTag, SwarmPublicKey,
    check_squashfs, is_squashfs,
};
use rootswarm_swarm::{decode_hello, decode_message, encode_hello, encode_message};
use rootswarm_transport::join;
use rootswarm_transport::trust;
use rustls::pki_types::CertificateDer;

/// Whatever is in good order is accepted under its own id, is refused under any other, and is
/// written again as the bytes that were read.
pub(crate) fn manifest(input: &[u8]) {
    let wrong = ImageId::from_bytes([0; 32]);
    let found = match Manifest::decode(input, &wrong) {
        // The hash of an only chunk is the id.
        Ok(manifest) => *manifest.id(),
        Err(ManifestError::OtherImage { found, .. }) => found,
        Err(_) => return,
    };
    let manifest = Manifest::decode(input, &found).expect("accepted under its own id");
    assert_eq!(manifest.encode(), input, "one encoding for a manifest");
    assert_eq!(*manifest.id(), found);
}

/// A tag has one encoding, and nobody's key signed what was made up.
pub(crate) fn tag(input: &[u8]) {
    let Ok(tag) = SignedTag::decode(input) else {
        return;
    };
    assert_eq!(tag.encode(), input, "one encoding for a tag");
    assert_eq!(SignedTag::decode(&tag.encode()), Ok(tag.clone()));
    let key = SwarmPublicKey::from_bytes([7; 32]);
    assert!(tag.verify(&key, &tag.unverified().name).is_err());
}

/// The length that is believed is in the header, and the judgement agrees with it.
pub(crate) fn squashfs(input: &[u8]) {
    let is = is_squashfs(input);
    assert!(!is || input.len() >= SQUASHFS_HEADER_BYTES);
    assert_eq!(check_squashfs(input, u64::MAX).is_ok(), is);
}

/// Frames on a stream are read with variable-length integers, of which bincode takes longer forms
/// than it writes; nothing depends on their bytes, so the value is what must come back.
pub(crate) fn hello(input: &[u8]) {
    if let Ok(hello) = decode_hello(input) {
        let again = encode_hello(&hello);
        assert!(again.len() <= input.len(), "the shortest form is written");
        assert_eq!(decode_hello(&again), Ok(hello));
    }
}

pub(crate) fn message(input: &[u8]) {
    if let Ok(message) = decode_message(input) {
        let again = encode_message(&message);
        assert!(again.len() <= input.len(), "the shortest form is written");
        assert_eq!(decode_message(&again), Ok(message));
    }
}

pub(crate) fn join_request(input: &[u8]) {
    if let Ok(request) = join::decode_request(input) {
        let again = join::encode_request(&request);
        assert!(again.len() <= input.len(), "the shortest form is written");
        assert_eq!(join::decode_request(&again), Ok(request));
    }
}

pub(crate) fn join_answer(input: &[u8]) {
    if let Ok(answer) = join::decode_answer(input) {
        let again = join::encode_answer(&answer);
        assert!(again.len() <= input.len(), "the shortest form is written");
        assert_eq!(join::decode_answer(&again), Ok(answer));
    }
}

pub(crate) fn join_source(input: &[u8]) {
    if let Ok(source) = join::decode_source(input) {
        let again = join::encode_source(&source);
        assert!(again.len() <= input.len(), "the shortest form is written");
        assert_eq!(join::decode_source(&again), Ok(source));
    }
}

/// Nobody forges a certificate of a key that signed none.
pub(crate) fn certificate(input: &[u8]) {
    let swarm = SwarmPublicKey::from_bytes([7; 32]);
    let certificate = CertificateDer::from(input);
    assert!(trust::check_own(&certificate, &swarm).is_err());
}
