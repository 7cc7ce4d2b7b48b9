//! The hash tree against `blake3::hash` of the whole: at every boundary, at several chunk sizes,
//! on one thread and on several, from memory and from a file.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rootswarm_image::{
    ChunkError, ChunkIndex, ChunkSize, Geometry, GeometryError, HashError, Manifest, Verifier,
    hash_file, hash_image, limits,
};

const KIB: u64 = 1024;

fn threads(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("at least one")
}

fn chunk_size(bytes: u64) -> ChunkSize {
    ChunkSize::from_bytes(bytes).expect("a chunk size")
}

/// Bytes that differ from chunk to chunk.
fn image(length: u64, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("write");
    file
}

fn hash(bytes: &[u8], size: ChunkSize, count: usize) -> Manifest {
    hash_image(bytes, size, threads(count), &|_| {}).expect("hashes")
}

fn chunk<'a>(bytes: &'a [u8], geometry: &Geometry, index: ChunkIndex) -> &'a [u8] {
    let start = geometry.offset(index) as usize;
    &bytes[start..start + geometry.chunk_len(index) as usize]
}

/// The id is the hash of the whole, whoever computes it; every chunk verifies, and only as itself.
fn check(bytes: &[u8], size: ChunkSize, count: usize) {
    let what = format!("{} bytes in chunks of {size}, {count} threads", bytes.len());
    let oracle = *blake3::hash(bytes).as_bytes();
    let manifest = hash(bytes, size, count);
    assert_eq!(manifest.id().as_bytes(), &oracle, "{what}");
    let from_file = hash_file(&file_with(bytes), size, threads(count), &|_| {}).expect("hashes");
    assert_eq!(from_file, manifest, "{what} from a file");

    let geometry = *manifest.geometry();
    assert_eq!(geometry.length(), bytes.len() as u64, "{what}");
    assert_eq!(geometry.chunk_size(), size, "{what}");
    assert_eq!(
        u64::from(geometry.chunk_count()),
        (bytes.len() as u64).div_ceil(size.bytes())
    );
    let verifier = Verifier::new(Arc::new(manifest));
    let mut rebuilt = Vec::new();
    for index in geometry.indices() {
        let good = chunk(bytes, &geometry, index);
        let verified = verifier.verify(index, good.to_vec()).expect("a good chunk");
        assert_eq!(verified.index(), index);
        assert_eq!(verified.image().as_bytes(), &oracle);
        rebuilt.extend_from_slice(verified.bytes());

        let mut bad = verified.into_bytes();
        let position = index.0 as usize * 7919 % bad.len();
        bad[position] ^= 1 << (index.0 % 8);
        match verifier.verify(index, &bad) {
            Err(ChunkError::HashMismatch { index: found, .. }) => assert_eq!(found, index),
            other => panic!("{what}: chunk {index} with byte {position} flipped: {other:?}"),
        }
    }
    assert_eq!(rebuilt, bytes, "{what}");
}

#[test]
fn the_id_is_the_hash_of_the_whole_at_every_boundary() {
    for size in [64 * KIB, 128 * KIB, 256 * KIB, 1024 * KIB] {
        let mut lengths = vec![0, 1, 1023, 1024, 1025];
        for chunks in [1, 2, 3, 4, 5, 7, 8, 9] {
            let length = chunks * size;
            lengths.extend([length - 1, length, length + 1]);
        }
        for length in lengths {
            let count = 1 + (length % 3) as usize;
            check(&image(length, length), chunk_size(size), count);
        }
    }
}

#[test]
fn the_largest_chunks_are_hashed_too() {
    for length in [ChunkSize::MAX.bytes(), ChunkSize::MAX.bytes() * 2 + 1] {
        check(&image(length, 1), ChunkSize::MAX, 2);
    }
}

#[test]
fn equal_chunks_at_different_places_have_different_hashes() {
    let bytes = vec![0; 4 * 65536];
    let manifest = hash(&bytes, ChunkSize::MIN, 1);
    let verifier = Verifier::new(Arc::new(manifest.clone()));
    assert!(verifier.verify(ChunkIndex(3), &bytes[..65536]).is_ok());
    assert_ne!(
        manifest.chunk_hash(ChunkIndex(0)),
        manifest.chunk_hash(ChunkIndex(1))
    );
}

#[test]
fn a_chunk_of_another_length_place_or_image_is_refused() {
    let bytes = image(3 * 65536 + 100, 5);
    let manifest = Arc::new(hash(&bytes, ChunkSize::MIN, 1));
    let geometry = *manifest.geometry();
    let verifier = Verifier::new(manifest);
    let length = |index, expected, found| ChunkError::Length {
        index,
        expected,
        found,
    };
    let first = chunk(&bytes, &geometry, ChunkIndex(0));
    let last = chunk(&bytes, &geometry, ChunkIndex(3));
    let refusal = |index, bytes: &[u8]| verifier.verify(index, bytes.to_vec()).map(drop);

    for index in [4, 5, u32::MAX] {
        let index = ChunkIndex(index);
        assert_eq!(
            refusal(index, last),
            Err(ChunkError::NoSuchChunk { index, count: 4 })
        );
    }
    for found in [0, 1, 65535, 65537] {
        let expected = length(ChunkIndex(0), 65536, found);
        assert_eq!(refusal(ChunkIndex(0), &bytes[..found]), Err(expected));
    }
    for found in [0, 99, 101, 65536] {
        let expected = length(ChunkIndex(3), 100, found);
        assert_eq!(refusal(ChunkIndex(3), &bytes[..found]), Err(expected));
    }
    let other = image(65536, 6);
    for (index, bytes) in [(1, first), (2, first), (0, &other[..])] {
        let index = ChunkIndex(index);
        let found = refusal(index, bytes);
        assert!(
            matches!(found, Err(ChunkError::HashMismatch { .. })),
            "chunk {index}: {found:?}"
        );
    }
    let message = verifier
        .verify(ChunkIndex(0), other)
        .expect_err("other bytes")
        .to_string();
    assert!(
        message.starts_with("chunk 0: hash mismatch: expected "),
        "{message}"
    );
}

#[test]
fn progress_only_grows_and_ends_at_the_length() {
    let bytes = image(20 * 65536 + 1, 7);
    for count in [1, 2, 7, 100] {
        let calls = Mutex::new(Vec::new());
        let report = |done| calls.lock().expect("no panic").push(done);
        hash_image(&bytes, ChunkSize::MIN, threads(count), &report).expect("hashes");
        let calls = calls.into_inner().expect("no panic");
        assert_eq!(calls.len(), 21, "{count} threads");
        assert!(
            calls.is_sorted_by(|a, b| a < b),
            "{count} threads: {calls:?}"
        );
        assert_eq!(calls.last(), Some(&(bytes.len() as u64)), "{count} threads");
    }
}

#[test]
fn a_source_that_shrinks_or_grows_meanwhile_is_noticed() {
    let length = 8 * 65536;
    // Longer and shorter, by a byte or by much; to nothing; and untouched.
    for (found, count) in [
        (length - 1, 1),
        (65536, 1),
        (0, 1),
        (0, 4),
        (length + 1, 1),
        (length * 2, 4),
        (length, 2),
    ] {
        let file = file_with(&image(length, 8));
        // With the first chunk read, somebody else changes the length.
        let change = |_| file.set_len(found).expect("set_len");
        let result = hash_file(&file, ChunkSize::MIN, threads(count), &change);
        match result {
            Err(HashError::SourceChanged {
                expected,
                found: seen,
            }) => {
                assert_eq!((expected, seen), (length, found));
                assert_ne!(found, length);
            }
            Ok(_) => assert_eq!(found, length),
            Err(other) => panic!("length {length} to {found}: {other}"),
        }
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for path in [directory.path(), std::path::Path::new("/dev/zero")] {
        let source = File::open(path).expect("open");
        let result = hash_file(&source, ChunkSize::MIN, threads(2), &|_| {});
        assert!(
            matches!(result, Err(HashError::NotAFile)),
            "{path:?}: {result:?}"
        );
    }
}

#[test]
fn a_file_with_too_many_chunks_is_refused() {
    let file = tempfile::tempfile().expect("a temporary file");
    // Sparse: no byte of it is on the disk, and none is read.
    let length = u64::from(limits::MAX_CHUNK_COUNT) * 64 * KIB + 1;
    file.set_len(length).expect("set_len");
    let result = hash_file(&file, ChunkSize::MIN, threads(2), &|_| {});
    let expected = GeometryError::TooManyChunks {
        length,
        chunk_size: ChunkSize::MIN,
        found: u64::from(limits::MAX_CHUNK_COUNT) + 1,
    };
    assert!(
        matches!(&result, Err(HashError::Geometry(found)) if *found == expected),
        "{result:?}"
    );
}

#[test]
fn a_panic_in_progress_reaches_the_caller() {
    let bytes = image(4 * 65536, 9);
    let result = std::panic::catch_unwind(|| {
        hash_image(&bytes, ChunkSize::MIN, threads(2), &|_| {
            panic!("from progress")
        })
    });
    assert!(result.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_image_hashes_to_the_hash_of_the_whole(
        length in 0..2_000_000_u64,
        log2 in 16..=20_u8,
        count in 1..=4_usize,
        seed: u64,
    ) {
        let size = ChunkSize::from_log2(log2).expect("in range");
        check(&image(length, seed), size, count);
    }
}
