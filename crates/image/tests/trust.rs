//! Keys and signed tags: what is trusted, and that nothing else is.

use rootswarm_image::{
    ChunkSize, ImageId, ImageName, SignedTag, SwarmKey, SwarmKeyError, SwarmPublicKey,
    SwarmPublicKeyError, Tag, TagError,
};

fn name(text: &str) -> ImageName {
    text.parse().expect("a name")
}

fn tag() -> Tag {
    Tag {
        name: name("debian"),
        id: ImageId::from_bytes([1; 32]),
        length: 1 << 30,
        chunk_size: ChunkSize::for_length(1 << 30),
        version: 2,
        epoch: 3,
    }
}

fn new_key() -> SwarmKey {
    SwarmKey::generate().expect("randomness")
}

#[test]
fn a_tag_is_trusted_under_its_key_and_name_only() {
    let (key, other) = (new_key(), new_key());
    let signed = tag().sign(&key);
    assert_eq!(signed.verify(&key.public(), &name("debian")), Ok(tag()));
    assert_eq!(
        signed.verify(&other.public(), &name("debian")),
        Err(TagError::Signature {
            name: name("debian"),
            key: other.public()
        })
    );
    assert_eq!(
        signed.verify(&key.public(), &name("debian2")),
        Err(TagError::OtherName {
            expected: name("debian2"),
            found: name("debian")
        })
    );
    // Neither key nor name: the key is what counts.
    assert!(matches!(
        signed.verify(&other.public(), &name("debian2")),
        Err(TagError::Signature { .. })
    ));
    assert_eq!(signed.unverified(), &tag());
}

#[test]
fn a_signature_is_for_one_tag_only() {
    let key = new_key();
    let signature = |tag: Tag| tag.sign(&key).encode().split_off(tag_len());
    let good = signature(tag());
    let others = [
        Tag {
            name: name("debiam"),
            ..tag()
        },
        Tag {
            id: ImageId::from_bytes([2; 32]),
            ..tag()
        },
        Tag {
            length: tag().length + 1,
            ..tag()
        },
        Tag {
            chunk_size: ChunkSize::MAX,
            ..tag()
        },
        Tag {
            version: 3,
            ..tag()
        },
        Tag { epoch: 4, ..tag() },
    ];
    for other in others {
        let mut bytes = other.clone().sign(&key).encode();
        assert!(decode(&bytes).verify(&key.public(), &other.name).is_ok());
        bytes.truncate(tag_len());
        bytes.extend_from_slice(&good);
        assert_eq!(
            decode(&bytes).verify(&key.public(), &other.name),
            Err(TagError::Signature {
                name: other.name.clone(),
                key: key.public()
            }),
            "{other:?}"
        );
    }
}

/// A signature over the bare bytes of a tag, made for another purpose, is none for the tag.
#[test]
fn a_signature_without_the_prefix_is_refused() {
    let key = new_key();
    let mut bytes = tag().sign(&key).encode();
    bytes.truncate(tag_len());
    let bare = key.sign(&bytes);
    assert!(
        key.public().verifies(&bytes, &bare),
        "the signature itself is good"
    );
    bytes.extend_from_slice(&bare);
    assert!(matches!(
        decode(&bytes).verify(&key.public(), &name("debian")),
        Err(TagError::Signature { .. })
    ));
}

#[test]
fn a_key_survives_its_file() {
    let key = new_key();
    let again = SwarmKey::from_pkcs8(key.to_pkcs8()).expect("the same key");
    assert_eq!(again.public(), key.public());
    assert_eq!(again.to_pkcs8(), key.to_pkcs8());
    assert_eq!(again.sign(b"message"), key.sign(b"message"));
    assert!(key.public().verifies(b"message", &again.sign(b"message")));
    assert!(!key.public().verifies(b"another", &again.sign(b"message")));
    assert!(!key.public().verifies(b"message", &[0; 64]));
    assert!(!key.public().verifies(b"message", &[]));
    assert_ne!(new_key().public(), key.public());
}

#[test]
fn what_is_no_key_is_refused() {
    let good = new_key().to_pkcs8().to_vec();
    let mut mismatched = good.clone();
    // The last byte is the public half's: it no longer belongs to the private one.
    if let Some(last) = mismatched.last_mut() {
        *last ^= 1;
    }
    for bad in [
        &[][..],
        &[0; 32],
        &good[1..],
        &good[..good.len() - 1],
        &mismatched,
    ] {
        match SwarmKey::from_pkcs8(bad) {
            Err(SwarmKeyError::NotPkcs8 { found, .. }) => assert_eq!(found, bad.len()),
            other => panic!("{} bytes: {other:?}", bad.len()),
        }
    }
}

#[test]
fn debug_does_not_show_the_private_half() {
    let key = new_key();
    assert_eq!(format!("{key:?}"), format!("SwarmKey(of {})", key.public()));
}

#[test]
fn a_public_key_is_written_in_one_way() {
    let key = SwarmPublicKey::from_bytes([0xab; 32]);
    let text = key.to_string();
    assert_eq!(text, format!("ed25519:{}", "ab".repeat(32)));
    assert_eq!(text.parse(), Ok(key));
    let parse = |text: &str| text.parse::<SwarmPublicKey>();
    for bad in [
        "",
        "ab",
        &"ab".repeat(32),
        &format!("rsa:{}", "ab".repeat(32)),
        "ED25519:ab",
    ] {
        assert!(
            matches!(parse(bad), Err(SwarmPublicKeyError::Scheme { .. })),
            "{bad}"
        );
    }
    for digits in ["", "ab", &"AB".repeat(32), &"ab".repeat(33), " ab"] {
        let bad = format!("ed25519:{digits}");
        assert!(
            matches!(parse(&bad), Err(SwarmPublicKeyError::Digits { .. })),
            "{bad}"
        );
    }
    assert_eq!(
        parse("ed25519:abc").expect_err("too short").to_string(),
        "swarm public key: expected 64 lower-case hexadecimal digits after ed25519:, found 3 \
         characters"
    );
}

fn tag_len() -> usize {
    tag().sign(&new_key()).encode().len() - 64
}

fn decode(bytes: &[u8]) -> SignedTag {
    SignedTag::decode(bytes).expect("decodes")
}
