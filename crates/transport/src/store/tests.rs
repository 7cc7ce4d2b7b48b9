//! Both stores against a `Vec<u8>`, and what they refuse.

use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use proptest::prelude::*;
use rootswarm_image::{ChunkIndex, ChunkSize, Manifest, Verifier, hash_image};
use tempfile::TempDir;

use super::*;

const CHUNK: usize = 64 * 1024;

/// Bytes in which no two chunks are alike.
fn bytes(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 31 + at / 251 + at / CHUNK) as u8)
        .collect()
}

fn manifest_of(bytes: &[u8]) -> Arc<Manifest> {
    let chunk_size = ChunkSize::from_bytes(CHUNK as u64).unwrap();
    Arc::new(hash_image(bytes, chunk_size, NonZeroUsize::MIN, &|_| {}).unwrap())
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn slice<'a>(bytes: &'a [u8], manifest: &Manifest, index: ChunkIndex) -> &'a [u8] {
    let start = manifest.geometry().offset(index) as usize;
    &bytes[start..start + manifest.geometry().chunk_len(index) as usize]
}

fn write(store: &ChunkStore, bytes: &[u8], index: ChunkIndex) -> Result<Written, StoreError> {
    let manifest = store.manifest();
    let verifier = Verifier::new(manifest.clone());
    store.write(
        verifier
            .verify(index, slice(bytes, manifest, index))
            .unwrap(),
    )
}

/// Every length around which something changes.
const LENGTHS: [usize; 8] = [
    0,
    1,
    4095,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    3 * CHUNK,
    3 * CHUNK + 17,
];

#[test]
fn a_published_copy_is_served_as_it_is() {
    for length in LENGTHS {
        let (dir, bytes) = (dir(), bytes(length));
        let (path, manifest) = (dir.path().join("image"), manifest_of(&bytes));
        fs::write(&path, &bytes).unwrap();
        let store = FileStore::open(&path, manifest.geometry()).unwrap();
        store.verify(&manifest).unwrap();
        assert_eq!(store.whole(), bytes, "{length}");
        for index in manifest.geometry().indices() {
            let chunk = store.chunk(index).unwrap();
            assert_eq!(chunk, slice(&bytes, &manifest, index), "{length}: {index}");
        }
        assert_eq!(
            store.chunk(ChunkIndex(manifest.geometry().chunk_count())),
            None
        );
        assert_eq!(store.chunk(ChunkIndex(u32::MAX)), None);
    }
}

#[test]
fn chunks_are_not_copied_and_outlive_the_store() {
    let (dir, bytes) = (dir(), bytes(3 * CHUNK));
    let (path, manifest) = (dir.path().join("image"), manifest_of(&bytes));
    fs::write(&path, &bytes).unwrap();
    let store = FileStore::open(&path, manifest.geometry()).unwrap();
    let (one, again) = (
        store.chunk(ChunkIndex(1)).unwrap(),
        store.chunk(ChunkIndex(1)).unwrap(),
    );
    assert_eq!(one.as_ptr(), again.as_ptr());
    assert_eq!(
        one.as_ptr() as usize - store.whole().as_ptr() as usize,
        CHUNK
    );
    drop(store);
    fs::remove_file(&path).unwrap();
    assert_eq!(one, slice(&bytes, &manifest, ChunkIndex(1)));
}

#[test]
fn a_copy_of_another_length_is_refused() {
    let (dir, bytes) = (dir(), bytes(2 * CHUNK));
    let manifest = manifest_of(&bytes);
    for length in [0, 2 * CHUNK - 1, 2 * CHUNK + 1] {
        let path = dir.path().join(length.to_string());
        fs::write(&path, vec![0; length]).unwrap();
        match FileStore::open(&path, manifest.geometry()).unwrap_err() {
            StoreError::WrongLength {
                expected_bytes,
                found_bytes,
                ..
            } => {
                assert_eq!(
                    (expected_bytes, found_bytes),
                    (2 * CHUNK as u64, length as u64)
                );
            }
            other => panic!("{length}: {other}"),
        }
    }
    let missing = FileStore::open(dir.path().join("missing"), manifest.geometry()).unwrap_err();
    assert!(missing.to_string().contains("missing"), "{missing}");
}

#[test]
fn a_damaged_copy_is_named() {
    let (dir, mut bytes) = (dir(), bytes(5 * CHUNK + 3));
    let (path, manifest) = (dir.path().join("image"), manifest_of(&bytes));
    bytes[2 * CHUNK] ^= 1;
    bytes[5 * CHUNK + 2] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let store = FileStore::open(&path, manifest.geometry()).unwrap();
    match store.verify(&manifest).unwrap_err() {
        StoreError::Damaged {
            first,
            damaged,
            chunks,
            ..
        } => {
            assert_eq!((first, damaged, chunks), (ChunkIndex(2), 2, 6));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_image_is_assembled_in_any_order() {
    for length in LENGTHS {
        let (dir, bytes) = (dir(), bytes(length));
        let (path, manifest) = (dir.path().join("image"), manifest_of(&bytes));
        let store = ChunkStore::create(&path, manifest.clone()).unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!(file.len(), length as u64);
        assert_eq!(file.mode() & 0o777, 0o600);
        for index in manifest.geometry().indices().rev() {
            assert_eq!(
                store.chunk(index),
                None,
                "{length}: {index} before it was written"
            );
            assert!(matches!(
                store.verify_whole(),
                Err(StoreError::Incomplete { .. })
            ));
            assert_eq!(write(&store, &bytes, index).unwrap(), Written::Stored);
            assert_eq!(store.chunk(index).unwrap(), slice(&bytes, &manifest, index));
            assert_eq!(write(&store, &bytes, index).unwrap(), Written::AlreadyHeld);
        }
        assert!(store.is_complete() && store.have().is_full(), "{length}");
        store.verify_whole().unwrap();
        store.sync().unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "{length}");
    }
}

#[test]
fn space_is_reserved_before_the_download() {
    let (dir, bytes) = (dir(), bytes(40 * CHUNK));
    let path = dir.path().join("image");
    let _store = ChunkStore::create(&path, manifest_of(&bytes)).unwrap();
    let reserved = fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        reserved >= bytes.len() as u64,
        "{reserved} of {} bytes",
        bytes.len()
    );
}

#[test]
fn create_replaces_and_leaves_older_readers_alone() {
    let (dir, old, new) = (dir(), bytes(2 * CHUNK), bytes(CHUNK));
    let path = dir.path().join("image");
    let first = ChunkStore::create(&path, manifest_of(&old)).unwrap();
    write(&first, &old, ChunkIndex(1)).unwrap();
    let slice_of_old = first.chunk(ChunkIndex(1)).unwrap();
    let second = ChunkStore::create(&path, manifest_of(&new)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), CHUNK as u64);
    assert_eq!(second.have().count(), 0);
    assert_eq!(slice_of_old, &old[CHUNK..]);
}

#[test]
fn what_is_there_already_is_kept() {
    let (dir, bytes) = (dir(), bytes(9 * CHUNK + 5));
    let (path, manifest) = (dir.path().join("image.part"), manifest_of(&bytes));
    let store = ChunkStore::create(&path, manifest.clone()).unwrap();
    for index in [0, 3, 4, 9] {
        write(&store, &bytes, ChunkIndex(index)).unwrap();
    }
    drop(store);
    // What the process wrote last before it was killed may be half there.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"torn", 4 * CHUNK as u64 + 100).unwrap();

    let store = ChunkStore::resume(&path, manifest.clone()).unwrap();
    let have: Vec<u32> = store.have().iter_set().map(|index| index.0).collect();
    assert_eq!(have, [0, 3, 9]);
    assert_eq!(store.chunk(ChunkIndex(4)), None);
    assert_eq!(
        store.chunk(ChunkIndex(9)).unwrap(),
        slice(&bytes, &manifest, ChunkIndex(9))
    );
    for index in store.have().iter_missing() {
        write(&store, &bytes, index).unwrap();
    }
    store.verify_whole().unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn what_cannot_be_resumed_is_refused() {
    let (dir, bytes) = (dir(), bytes(2 * CHUNK));
    let manifest = manifest_of(&bytes);
    let path = dir.path().join("image.part");
    assert!(matches!(
        ChunkStore::resume(&path, manifest.clone()),
        Err(StoreError::Io { action: "open", .. })
    ));
    fs::write(&path, &bytes[1..]).unwrap();
    assert!(matches!(
        ChunkStore::resume(&path, manifest.clone()),
        Err(StoreError::WrongLength { .. })
    ));
    // Nothing was changed by the refusal.
    assert_eq!(fs::read(&path).unwrap(), &bytes[1..]);

    fs::write(&path, &bytes).unwrap();
    let first = ChunkStore::resume(&path, manifest.clone()).unwrap();
    assert!(matches!(
        ChunkStore::resume(&path, manifest.clone()),
        Err(StoreError::Busy { .. })
    ));
    drop(first);
    ChunkStore::resume(&path, manifest).unwrap();
}

#[test]
fn a_chunk_of_another_image_is_refused() {
    let (dir, ours, theirs) = (dir(), bytes(CHUNK), vec![1; CHUNK]);
    let store = ChunkStore::create(dir.path().join("image"), manifest_of(&ours)).unwrap();
    let verifier = Verifier::new(manifest_of(&theirs));
    let chunk = verifier.verify(ChunkIndex(0), &theirs).unwrap();
    assert!(matches!(
        store.write(chunk),
        Err(StoreError::OtherImage { .. })
    ));
    assert_eq!(store.have().count(), 0);
}

#[test]
fn damage_after_the_write_is_noticed() {
    let (dir, bytes) = (dir(), bytes(3 * CHUNK));
    let path = dir.path().join("image");
    let store = ChunkStore::create(&path, manifest_of(&bytes)).unwrap();
    for index in store.manifest().geometry().indices() {
        write(&store, &bytes, index).unwrap();
    }
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"bad", 2 * CHUNK as u64).unwrap();
    assert!(matches!(
        store.verify_whole(),
        Err(StoreError::Damaged {
            first: ChunkIndex(2),
            damaged: 1,
            ..
        })
    ));
}

#[test]
fn many_threads_write_each_chunk_once() {
    let (dir, bytes) = (dir(), bytes(64 * CHUNK + 9));
    let store = ChunkStore::create(dir.path().join("image"), manifest_of(&bytes)).unwrap();
    let stored: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let manifest = store.manifest();
                    let mut stored = 0;
                    for index in manifest.geometry().indices() {
                        stored +=
                            usize::from(write(&store, &bytes, index).unwrap() == Written::Stored);
                        // Whoever wrote it, it is there when `write` returns.
                        let chunk = store.chunk(index).unwrap();
                        assert_eq!(chunk, slice(&bytes, manifest, index));
                    }
                    stored
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(stored, 65);
    store.verify_whole().unwrap();
}

/// On a file system of its own, as a node has it: root only.
#[test]
fn an_image_that_does_not_fit_is_refused_with_both_sizes() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return;
    }
    let dir = dir();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"])
        .arg(dir.path())
        .status();
    assert!(mounted.unwrap().success(), "cannot mount a tmpfs");
    /// Unmounts whatever happens in the test.
    struct Mounted<'a>(&'a std::path::Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(self.0).status();
        }
    }
    let guard = Mounted(dir.path());
    let path = dir.path().join("image.squashfs");
    let bytes = bytes(4 << 20);
    let error = ChunkStore::create(&path, manifest_of(&bytes)).unwrap_err();
    match &error {
        StoreError::NoSpace {
            needed_bytes,
            available_bytes,
            ..
        } => {
            assert_eq!((*needed_bytes, *available_bytes), (4 << 20, 1 << 20));
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("4194304") && error.to_string().contains("1048576"));
    assert!(
        !path.exists(),
        "a store that could not be made leaves no file"
    );
    // What fits is not refused.
    drop(ChunkStore::create(&path, manifest_of(&bytes[..1 << 20])).unwrap());
    drop(guard);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u32),
    Read(u32),
    Resume,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written, read and resumed in whatever order: the store has what a vector of
    /// options has.
    #[test]
    fn the_store_is_a_vector_of_chunks(
        length in 0..8 * CHUNK,
        steps in proptest::collection::vec(
            prop_oneof![
                6 => (0..8_u32).prop_map(Step::Write),
                6 => (0..9_u32).prop_map(Step::Read),
                1 => Just(Step::Resume),
            ],
            0..40,
        ),
    ) {
        let (dir, bytes) = (dir(), bytes(length));
        let (path, manifest) = (dir.path().join("image"), manifest_of(&bytes));
        let chunks: Vec<&[u8]> = bytes.chunks(CHUNK).collect();
        let mut oracle: Vec<Option<&[u8]>> = vec![None; chunks.len()];
        let mut store = ChunkStore::create(&path, manifest.clone()).unwrap();
        for step in steps {
            match step {
                Step::Write(at) if (at as usize) < chunks.len() => {
                    let written = write(&store, &bytes, ChunkIndex(at)).unwrap();
                    let before = oracle[at as usize].replace(chunks[at as usize]);
                    prop_assert_eq!(written == Written::AlreadyHeld, before.is_some());
                }
                Step::Write(_) => {}
                Step::Read(at) => {
                    let expected = oracle.get(at as usize).copied().flatten();
                    let found = store.chunk(ChunkIndex(at));
                    prop_assert_eq!(found.as_deref(), expected);
                    prop_assert_eq!(store.contains(ChunkIndex(at)), expected.is_some());
                }
                Step::Resume => {
                    drop(store);
                    store = ChunkStore::resume(&path, manifest.clone()).unwrap();
                }
            }
            let have = store.have();
            prop_assert_eq!(have.count() as usize, oracle.iter().flatten().count());
            prop_assert_eq!(store.is_complete(), oracle.iter().all(Option::is_some));
        }
    }
}
