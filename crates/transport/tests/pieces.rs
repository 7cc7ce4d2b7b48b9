//! Chunks that arrive in pieces, from several senders, some of which lie.

use std::fs;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use proptest::prelude::*;
use rootswarm_image::{ChunkIndex, ChunkSize, Manifest, hash_image};

use rootswarm_transport::store::{ChunkSource, ChunkStore, Ended, Took, Written};

const FIRST: ChunkIndex = ChunkIndex(0);

fn image(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 31 + at / 251 + at / 65_521) as u8)
        .collect()
}

fn store_of(bytes: &[u8], log2: u8) -> (tempfile::TempDir, ChunkStore) {
    let chunks = ChunkSize::from_log2(log2).unwrap();
    let manifest = hash_image(bytes, chunks, NonZeroUsize::MIN, &|_| {}).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = ChunkStore::create(dir.path().join("image"), Arc::new(manifest)).unwrap();
    (dir, store)
}

fn chunk<'a>(bytes: &'a [u8], manifest: &Manifest, index: ChunkIndex) -> &'a [u8] {
    let start = manifest.geometry().offset(index) as usize;
    &bytes[start..start + manifest.geometry().chunk_len(index) as usize]
}

/// Descriptors of this process that can write the file.
fn writers(path: &std::path::Path) -> usize {
    let entries = fs::read_dir("/proc/self/fd").unwrap().flatten();
    entries
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
        .filter(|entry| {
            let info = format!("/proc/self/fdinfo/{}", entry.file_name().to_string_lossy());
            let info = fs::read_to_string(info).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap_or("2").trim(), 8).unwrap();
            flags & 3 != 0
        })
        .count()
}

#[test]
fn nothing_is_seen_of_a_chunk_before_all_of_it_is_verified() {
    for (length, log2, piece) in [
        (300_000, 17, 4096),
        (65_536, 16, 65_536),
        (65_537, 16, 1),
        (1, 16, 1),
        (3 << 20, 20, 300_001),
    ] {
        let bytes = image(length);
        let (_dir, store) = store_of(&bytes, log2);
        let manifest = store.manifest().clone();
        for index in manifest.geometry().indices() {
            let mut arriving = store.arriving(index).unwrap();
            for part in chunk(&bytes, &manifest, index).chunks(piece) {
                assert_eq!(arriving.push(part).unwrap(), Took::Taken);
                assert!(!store.contains(index) && store.chunk(index).is_none());
            }
            assert_eq!(arriving.push(b"x").unwrap(), Took::TooLong);
            let ended = arriving.finish().unwrap();
            assert_eq!(ended, Ended::Held(Written::Stored));
            let held = store.chunk(index).unwrap();
            assert_eq!(held, chunk(&bytes, &manifest, index));
        }
        assert!(store.is_complete());
        assert_eq!(fs::read(store.path()).unwrap(), bytes);
    }
}

/// The last chunk takes away what could write, and the map never could.
#[test]
fn a_whole_store_cannot_be_written() {
    for chunks in [1, 2, 5] {
        let bytes = image(chunks * 65_536 - 7);
        let (_dir, store) = store_of(&bytes, 16);
        let manifest = store.manifest().clone();
        let path = fs::canonicalize(store.path()).unwrap();
        for (number, index) in manifest.geometry().indices().enumerate() {
            assert_eq!(writers(&path), 1, "before chunk {number} of {chunks}");
            let mut arriving = store.arriving(index).unwrap();
            arriving.push(chunk(&bytes, &manifest, index)).unwrap();
            arriving.finish().unwrap();
        }
        assert_eq!(writers(&path), 0);
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let name = path.display().to_string();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(&name));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(!flags.contains(" wr") && !flags.contains(" mw"), "{flags}");
        // What is there already is no news, and nothing else gets in.
        let mut late = store.arriving(FIRST).unwrap();
        assert_eq!(late.push(&bytes[..100]).unwrap(), Took::Taken);
        assert_eq!(late.push(&[0xff; 100]).unwrap(), Took::Differs);
        // A store that finds everything there has none to begin with.
        drop((store, late));
        let again = ChunkStore::resume(&path, manifest).unwrap();
        assert!(again.is_complete());
        assert_eq!(writers(&path), 0);
    }
}

#[test]
fn honest_senders_share_a_place_and_the_one_ahead_carries_on() {
    let bytes = image(400_000);
    let (_dir, store) = store_of(&bytes, 19);
    let mut senders: Vec<_> = (0..3).map(|_| store.arriving(FIRST).unwrap()).collect();
    let mut sent = [0; 3];
    for (sender, piece) in [(0, 1000), (1, 100_000), (0, 50_000), (2, 7), (1, 150_000)] {
        let part = &bytes[sent[sender]..sent[sender] + piece];
        assert_eq!(senders[sender].push(part).unwrap(), Took::Taken);
        sent[sender] += piece;
    }
    // The one in front is gone; another goes on from what it left.
    drop(senders.remove(1));
    let mut second = senders.remove(0);
    assert_eq!(second.push(&bytes[sent[0]..]).unwrap(), Took::Taken);
    assert_eq!(second.finish().unwrap(), Ended::Held(Written::Stored));
    let mut third = senders.remove(0);
    assert_eq!(third.push(&bytes[sent[2]..]).unwrap(), Took::Taken);
    assert_eq!(third.finish().unwrap(), Ended::Held(Written::AlreadyHeld));
    assert_eq!(store.chunk(FIRST).unwrap(), bytes);
}

#[test]
fn who_trickles_lies_cannot_keep_a_chunk_back() {
    for honest_bytes_before in [0, 10, 60_000] {
        let bytes = image(400_000);
        let (_dir, store) = store_of(&bytes, 19);
        let mut liar = store.arriving(FIRST).unwrap();
        if honest_bytes_before > 0 {
            liar.push(&bytes[..honest_bytes_before]).unwrap();
        }
        liar.push(&[0; 9]).unwrap();
        sleep(Duration::from_millis(100));
        let mut honest = store.arriving(FIRST).unwrap();
        for part in bytes.chunks(65_536) {
            assert_eq!(honest.push(part).unwrap(), Took::Taken);
        }
        assert_eq!(liar.push(&[0; 9]).unwrap(), Took::Displaced);
        assert_eq!(honest.finish().unwrap(), Ended::Held(Written::Stored));
        assert_eq!(store.chunk(FIRST).unwrap(), bytes);
        assert_eq!(liar.finish().unwrap(), Ended::Broken);
    }
}

#[test]
fn who_sends_all_of_a_wrong_chunk_is_to_blame() {
    let bytes = image(400_000);
    let (_dir, store) = store_of(&bytes, 19);
    let mut slow = store.arriving(FIRST).unwrap();
    slow.push(&bytes[..100_000]).unwrap();
    sleep(Duration::from_millis(50));
    let mut wrong = bytes.clone();
    wrong[100_000] ^= 1;
    let mut liar = store.arriving(FIRST).unwrap();
    assert_eq!(liar.push(&wrong).unwrap(), Took::Taken);
    assert!(matches!(liar.finish().unwrap(), Ended::Corrupt(_)));
    // What the other had sent is gone; it is not to blame, and sends again.
    assert_eq!(slow.push(&bytes[100_000..]).unwrap(), Took::Displaced);
    drop(slow);
    let mut again = store.arriving(FIRST).unwrap();
    assert_eq!(again.push(&bytes).unwrap(), Took::Taken);
    assert_eq!(again.finish().unwrap(), Ended::Held(Written::Stored));
    assert_eq!(store.chunk(FIRST).unwrap(), bytes);
}

/// What somebody does next: which sender, and with how many bytes.
fn steps() -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((0..4_usize, 1..30_000_usize), 1..60)
}

proptest! {
    /// Against the image itself: whoever sends what in whatever order, a chunk that is held is the
    /// image's, and nobody honest is ever blamed.
    #[test]
    fn a_held_chunk_is_the_images(
        steps in steps(),
        lies in proptest::array::uniform4(proptest::option::of(0..70_000_usize)),
        whole_at in proptest::option::of(0..60_usize),
    ) {
        let bytes = image(70_000);
        let (_dir, store) = store_of(&bytes, 17);
        let verifier = rootswarm_image::Verifier::new(store.manifest().clone());
        let versions = lies.map(|lie| {
            let mut version = bytes.clone();
            if let Some(at) = lie {
                version[at] ^= 0x55;
            }
            version
        });
        let mut senders = [0, 1, 2, 3].map(|_| Some((store.arriving(FIRST).unwrap(), 0)));
        for (number, (who, piece)) in steps.into_iter().enumerate() {
            if whole_at == Some(number) {
                store.write(verifier.verify(FIRST, &bytes[..]).unwrap()).unwrap();
            }
            let Some((mut sender, sent)) = senders[who].take() else { continue };
            let end = (sent + piece).min(bytes.len());
            let took = sender.push(&versions[who][sent..end]).unwrap();
            if took == Took::Differs {
                prop_assert!(lies[who].is_some());
            }
            if took == Took::Taken && end < bytes.len() {
                senders[who] = Some((sender, end));
            } else if took == Took::Taken {
                match sender.finish().unwrap() {
                    Ended::Held(_) => prop_assert!(store.contains(FIRST)),
                    Ended::Corrupt(_) => prop_assert!(lies[who].is_some()),
                    Ended::Broken => {}
                }
            }
            if let Some(held) = store.chunk(FIRST) {
                prop_assert_eq!(&held[..], &bytes[..]);
            }
        }
        drop(senders);
        // Whatever was left there, one honest sender is enough.
        let mut last = store.arriving(FIRST).unwrap();
        prop_assert_eq!(last.push(&bytes).unwrap(), Took::Taken);
        prop_assert!(matches!(last.finish().unwrap(), Ended::Held(_)));
        prop_assert_eq!(&store.chunk(FIRST).unwrap()[..], &bytes[..]);
    }
}
