//! The bytes of manifests and tags: golden, then damaged in every way that is cheap to try.
//!
//! The golden bytes are those of `FORMAT.md`. The image ids in them are BLAKE3's published test
//! vectors, and the key is RFC 8032's.

use std::num::NonZeroUsize;

use proptest::prelude::*;
use rootswarm_image::{
    ChunkIndex, ChunkSize, Geometry, ImageId, Manifest, ManifestError, SignedTag, SwarmKey, Tag,
    TagError, hash_image, limits,
};

const RFC_8032_KEY_1: &str = "302e020100300506032b6570042204209d61b19deffd5a60ba844af492ec2cc4\
                              4449c5697b326919703bac031cae7f60";

const GOLDEN_MANIFESTS: [(usize, &str, &str); 3] = [
    (
        0,
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "011000000000000000000000000000000000",
    ),
    (
        1,
        "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
        "011001000000000000000100000000000000\
         2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    ),
    (
        102_400,
        "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
        "011000900100000000000200000000000000\
         88da791e722ac59740d9a44402e384ad99f1c79d4bab7449a0c2da1fafb91fb7\
         ae785d016c05c9a781d5e7305add12816970071714e2fbc33ab1043fbee2bd93",
    ),
];

const GOLDEN_TAG: &str = "01090000000000000064656269616e2d3133\
                          bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085\
                          009001000000000010070000000000000003000000\
                          4e6616743e613b3edb0442b47231cefde501f55551772070e0558dc8822f9bf7\
                          0ba4a592b05afa250eeeea032c8bb7e30251b4c04b6b2d27ddeefdae6e0fbe04";

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The input of BLAKE3's test vectors.
fn image(length: usize) -> Vec<u8> {
    (0..length).map(|position| (position % 251) as u8).collect()
}

fn manifest(length: usize, size: ChunkSize) -> Manifest {
    hash_image(&image(length), size, NonZeroUsize::MIN, &|_| {}).expect("hashes")
}

fn golden_key() -> SwarmKey {
    SwarmKey::from_pkcs8(&unhex(RFC_8032_KEY_1)).expect("a key")
}

fn golden_tag() -> Tag {
    Tag {
        name: "debian-13".parse().expect("a name"),
        id: *manifest(102_400, ChunkSize::MIN).id(),
        length: 102_400,
        chunk_size: ChunkSize::MIN,
        version: 7,
        epoch: 3,
    }
}

#[test]
fn manifest_bytes_are_frozen() {
    for (length, id, golden) in GOLDEN_MANIFESTS {
        let manifest = manifest(length, ChunkSize::MIN);
        assert_eq!(manifest.id().to_string(), id);
        let bytes = unhex(golden);
        assert_eq!(manifest.encode(), bytes, "{length} bytes");
        assert_eq!(Manifest::decode(&bytes, manifest.id()), Ok(manifest));
    }
}

#[test]
fn tag_bytes_are_frozen() {
    let signed = golden_tag().sign(&golden_key());
    assert_eq!(signed.encode(), unhex(GOLDEN_TAG));
    assert_eq!(SignedTag::decode(&unhex(GOLDEN_TAG)), Ok(signed));
}

/// The document shows the very bytes that the tests hold.
#[test]
fn the_document_shows_the_golden_bytes() {
    let document = include_str!("../FORMAT.md");
    let examples: String = document
        .split("```text\n")
        .skip(1)
        .filter_map(|after| after.split("```").next())
        .flat_map(str::lines)
        // The bytes are in the first 64 columns, a comment behind them.
        .map(|line| {
            line.get(..64.min(line.len()))
                .unwrap_or(line)
                .replace(' ', "")
        })
        .collect();
    assert_eq!(examples, format!("{}{GOLDEN_TAG}", GOLDEN_MANIFESTS[2].2));
    for limit in [limits::MAX_MANIFEST_BYTES, limits::MAX_SIGNED_TAG_BYTES] {
        let digits = limit.to_string().replace("2097170", "2,097,170");
        assert!(document.contains(&digits), "{digits}");
    }
}

#[test]
fn a_manifest_survives_the_round_trip_at_every_boundary() {
    for log2 in [16, 17, 20] {
        let size = ChunkSize::from_log2(log2).expect("in range");
        let chunk = 1 << log2;
        for chunks in [0, 1, 2, 3, 5, 8] {
            for length in [chunk * chunks, chunk * chunks + 1] {
                let manifest = manifest(length, size);
                let bytes = manifest.encode();
                let most = Manifest::max_encoded_len(length as u64, size);
                assert_eq!(most, Ok(bytes.len()), "{length} bytes");
                assert_eq!(Manifest::decode(&bytes, manifest.id()), Ok(manifest));
            }
        }
    }
}

#[test]
fn every_truncation_and_every_extension_of_a_manifest_is_refused() {
    let manifest = manifest(5 * 65536 + 3, ChunkSize::MIN);
    let bytes = manifest.encode();
    for length in 0..bytes.len() {
        let result = Manifest::decode(&bytes[..length], manifest.id());
        let expected = match length {
            0..limits::MANIFEST_HEADER_BYTES => ManifestError::Truncated { found: length },
            _ => ManifestError::Length {
                expected: bytes.len(),
                found: length,
            },
        };
        assert_eq!(result, Err(expected));
    }
    for extra in [1, 32, 1000] {
        let longer = [&bytes[..], &vec![0; extra]].concat();
        let expected = ManifestError::Length {
            expected: bytes.len(),
            found: longer.len(),
        };
        assert_eq!(Manifest::decode(&longer, manifest.id()), Err(expected));
    }
}

#[test]
fn every_other_value_of_every_byte_of_a_manifest_is_refused_or_leaves_the_hashes() {
    for (length, size) in [
        (0, ChunkSize::MIN),
        (1, ChunkSize::MIN),
        (65536, ChunkSize::MIN),
        (3 * 65536 + 9, ChunkSize::MIN),
        (4 << 18, ChunkSize::DEFAULT),
    ] {
        let manifest = manifest(length, size);
        let good = manifest.encode();
        let tag = Tag {
            id: *manifest.id(),
            length: length as u64,
            chunk_size: size,
            ..golden_tag()
        };
        assert_eq!(tag.decode_manifest(&good).as_ref(), Ok(&manifest));
        for position in 0..good.len() {
            for flip in 1..=u8::MAX {
                let mut bytes = good.clone();
                bytes[position] ^= flip;
                let what = format!("{length} bytes, byte {position} xor {flip:#x}");
                assert!(tag.decode_manifest(&bytes).is_err(), "{what}: under a tag");
                let Ok(decoded) = Manifest::decode(&bytes, manifest.id()) else {
                    continue;
                };
                // Only chunk size and length can differ, and no chunk hash does.
                assert!((1..10).contains(&position), "{what}");
                assert_eq!(decoded.id(), manifest.id(), "{what}");
                assert_eq!(decoded.encode(), bytes, "{what}");
                let count = manifest.geometry().chunk_count();
                assert_eq!(decoded.geometry().chunk_count(), count, "{what}");
                for index in manifest.geometry().indices() {
                    assert_eq!(
                        decoded.chunk_hash(index),
                        manifest.chunk_hash(index),
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn each_lie_in_a_manifest_has_its_message() {
    let manifest = manifest(102_400, ChunkSize::MIN);
    let with = |changes: &[(usize, &[u8])]| {
        let mut bytes = manifest.encode();
        for (position, value) in changes {
            bytes[*position..position + value.len()].copy_from_slice(value);
        }
        let result = Manifest::decode(&bytes, manifest.id());
        result.expect_err("a lie").to_string()
    };
    let count = |count: u64| with(&[(10, &count.to_le_bytes())]);
    assert_eq!(
        with(&[(0, &[2])]),
        "manifest has version 2: expected 1 (seed and node must run releases that share a version)"
    );
    assert_eq!(
        with(&[(1, &[25])]),
        "manifest: chunk size 2^25 bytes: expected 2^16 to 2^24"
    );
    assert_eq!(
        count(1 << 62),
        "manifest claims 4611686018427387904 chunk hashes: expected 2 for its image length"
    );
    assert_eq!(
        count(3),
        "manifest claims 3 chunk hashes: expected 2 for its image length"
    );
    assert_eq!(
        with(&[
            (2, &u64::MAX.to_le_bytes()),
            (10, &(1_u64 << 48).to_le_bytes())
        ]),
        "manifest: image of 18446744073709551615 bytes in chunks of 64 KiB has 281474976710656 \
         chunks: expected at most 65536 (use larger chunks)"
    );
    // As many chunks as there may be, and the hashes of two.
    assert_eq!(
        with(&[
            (2, &(1_u64 << 32).to_le_bytes()),
            (10, &(1_u64 << 16).to_le_bytes())
        ]),
        "manifest has 82 bytes: expected 2097170 for its number of chunks"
    );
    assert!(with(&[(18, &[0])]).starts_with("manifest merges to image "));
    let other = ImageId::from_bytes([7; 32]);
    assert_eq!(
        Manifest::decode(&manifest.encode(), &other),
        Err(ManifestError::OtherImage {
            expected: other,
            found: *manifest.id()
        })
    );
    let tag = Tag {
        length: 102_401,
        ..golden_tag()
    };
    assert_eq!(
        tag.decode_manifest(&manifest.encode())
            .expect_err("another length")
            .to_string(),
        "manifest is of 102400 bytes in chunks of 64 KiB: expected 102401 in chunks of 64 KiB as \
         the signed tag says"
    );
}

#[test]
fn a_manifest_needs_a_hash_for_each_chunk() {
    let geometry = Geometry::new(3 * 65536, ChunkSize::MIN).expect("few chunks");
    for found in [0, 2, 4] {
        let expected = ManifestError::HashCount { expected: 3, found };
        assert_eq!(
            Manifest::new(geometry, vec![[0; 32]; found as usize]),
            Err(expected)
        );
    }
}

/// A manifest of the most chunks there may be, with made-up hashes, is read and written whole.
#[test]
fn the_largest_manifest_survives_the_round_trip() {
    let length = u64::from(limits::MAX_CHUNK_COUNT) << 24;
    let geometry = Geometry::new(length, ChunkSize::MAX).expect("at the limit");
    let hash = |index: ChunkIndex| *blake3::hash(&index.0.to_le_bytes()).as_bytes();
    let hashes = geometry.indices().map(hash).collect();
    let manifest = Manifest::new(geometry, hashes).expect("a hash for each");
    let bytes = manifest.encode();
    assert_eq!(bytes.len(), limits::MAX_MANIFEST_BYTES);
    assert_eq!(Manifest::decode(&bytes, manifest.id()), Ok(manifest));
}

#[test]
fn every_truncation_and_every_extension_of_a_tag_is_refused() {
    let bytes = unhex(GOLDEN_TAG);
    for found in 0..bytes.len() {
        let result = SignedTag::decode(&bytes[..found]);
        assert_eq!(result, Err(TagError::Malformed { found }));
    }
    for extra in [1, 64, 1000] {
        let longer = [&bytes[..], &vec![0; extra]].concat();
        let found = longer.len();
        assert_eq!(
            SignedTag::decode(&longer),
            Err(TagError::Malformed { found })
        );
    }
}

#[test]
fn every_other_value_of_every_byte_of_a_tag_is_refused() {
    let (key, name) = (golden_key().public(), golden_tag().name);
    let good = unhex(GOLDEN_TAG);
    for position in 0..good.len() {
        for flip in 1..=u8::MAX {
            let mut bytes = good.clone();
            bytes[position] ^= flip;
            let verified = SignedTag::decode(&bytes).and_then(|tag| tag.verify(&key, &name));
            assert!(
                verified.is_err(),
                "byte {position} xor {flip:#x}: {verified:?}"
            );
        }
    }
}

#[test]
fn the_longest_tag_survives_the_round_trip() {
    let tag = Tag {
        name: "n".repeat(limits::MAX_NAME_BYTES).parse().expect("a name"),
        id: ImageId::from_bytes([0xff; 32]),
        length: 1 << 40,
        chunk_size: ChunkSize::MAX,
        version: u64::MAX,
        epoch: u32::MAX,
    };
    let bytes = tag.clone().sign(&golden_key()).encode();
    assert_eq!(bytes.len(), limits::MAX_SIGNED_TAG_BYTES);
    let decoded = SignedTag::decode(&bytes).expect("decodes");
    assert_eq!(decoded.verify(&golden_key().public(), &tag.name), Ok(tag));
}

/// Even its own key cannot sign what no image is: the tag is refused before it is believed.
#[test]
fn a_tag_of_no_possible_image_is_refused() {
    let tag = Tag {
        length: 1 << 62,
        ..golden_tag()
    };
    assert!(tag.geometry().is_err());
    let bytes = tag.sign(&golden_key()).encode();
    assert!(matches!(
        SignedTag::decode(&bytes),
        Err(TagError::Geometry(_))
    ));
    // The chunk size stands in front of version, epoch and signature.
    for log2 in [0, 15, 25, 64, 255] {
        let mut bytes = unhex(GOLDEN_TAG);
        let position = bytes.len() - 64 - 4 - 8 - 1;
        bytes[position] = log2;
        assert!(matches!(
            SignedTag::decode(&bytes),
            Err(TagError::ChunkSize(_))
        ));
    }
}

fn bytes_of_version_1() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(|mut bytes| {
        if let Some(version) = bytes.first_mut() {
            *version = 1;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_never_pass(bytes in bytes_of_version_1()) {
        let id = ImageId::from_bytes([0; 32]);
        prop_assert!(Manifest::decode(&bytes, &id).is_err());
        let key = golden_key().public();
        let name = "debian-13".parse().expect("a name");
        if let Ok(tag) = SignedTag::decode(&bytes) {
            prop_assert_eq!(tag.encode(), bytes);
            prop_assert!(tag.verify(&key, &name).is_err());
        }
    }

    /// Damage that keeps the shape gets further than noise does.
    #[test]
    fn a_tag_that_decodes_is_encoded_as_it_was(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = unhex(GOLDEN_TAG);
        for (position, value) in changes {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        if let Ok(tag) = SignedTag::decode(&bytes) {
            prop_assert_eq!(tag.encode(), bytes);
        }
    }

    #[test]
    fn any_tag_survives_the_round_trip(
        name in "[a-z0-9_-][a-z0-9._-]{0,63}",
        id: [u8; 32],
        length in 0..(1_u64 << 40),
        version: u64,
        epoch: u32,
    ) {
        let tag = Tag {
            name: name.parse().expect("a name"),
            id: ImageId::from_bytes(id),
            length,
            chunk_size: ChunkSize::for_length(length),
            version,
            epoch,
        };
        let signed = tag.clone().sign(&golden_key());
        let decoded = SignedTag::decode(&signed.encode()).expect("decodes");
        prop_assert_eq!(decoded.unverified(), &tag);
        prop_assert_eq!(decoded.verify(&golden_key().public(), &tag.name), Ok(tag));
    }
}
