//! A length that a sender claims is never allocated, and hashing takes what it takes whatever the
//! chunks: decoding and hashing run under an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use std::num::NonZeroUsize;

use rootswarm_image::limits::{HASH_BYTES_MAX, HASH_PIECE_BYTES, HASH_THREADS_MAX};
use rootswarm_image::{
    Bitfield, ChunkSize, ImageId, Manifest, SignedTag, hash_file, verified_chunks,
};

/// The system's allocator, the largest single request it has seen, what is allocated, and the most
/// that ever was.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More than any of these inputs, less than any of their claims.
const ALLOWED_BYTES: usize = 1024;

fn check(what: &str, decode: impl FnOnce() -> bool) {
    LARGEST.store(0, Ordering::Relaxed);
    let refused = decode();
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(refused, "{what} was accepted");
    assert!(largest <= ALLOWED_BYTES, "{what} allocated {largest} bytes");
}

/// One test only, as the allocator counts for the whole process.
#[test]
fn what_is_allocated_depends_on_no_claim_and_on_no_chunk() {
    a_claimed_length_is_never_allocated();
    hashing_a_file_takes_pieces_and_not_chunks();
}

/// As many threads as a large machine has cores: with one chunk each, 64 of 16 MiB are a gigabyte.
fn hashing_a_file_takes_pieces_and_not_chunks() {
    const MIB: u64 = 1 << 20;
    // Chunks of each size, fewer and more of them than threads; the last one cut.
    for (log2, length) in [
        (24, 70 * 16 * MIB),
        (24, 40 * MIB + 1),
        (23, 9 * 8 * MIB - 1),
        (16, 100 * MIB + 7),
        (20, 333),
    ] {
        let size = ChunkSize::from_bytes(1 << log2).unwrap();
        // Holes: hashing them costs time and no disk.
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for threads in [1, 3, 64, 256] {
            // A gigabyte once is enough.
            if length > 1000 * MIB && threads != 64 {
                continue;
            }
            let threads = NonZeroUsize::new(threads).unwrap();
            let mut manifest = None;
            let hashed = peak(|| manifest = hash_file(&file, size, threads, &|_| {}).ok());
            let manifest = manifest.expect("hashes");
            let mut good = None;
            let verified = peak(|| good = verified_chunks(&file, &manifest, threads).ok());
            assert!(good.expect("reads").is_full(), "chunks of 2^{log2}");
            // Beside the pieces: a hash for each chunk, twice, and what a thread is kept track of with.
            let hashes = manifest.geometry().chunk_count() as usize * 2 * 64;
            let allowed = threads.get().min(HASH_THREADS_MAX) * (HASH_PIECE_BYTES + 8192) + hashes;
            assert!(allowed <= HASH_BYTES_MAX + hashes);
            for (what, peak) in [("hashing", hashed), ("verifying", verified)] {
                assert!(
                    peak <= allowed,
                    "{what} {length} bytes in chunks of 2^{log2} on {threads} threads took {peak} \
                     bytes: at most {allowed} were expected"
                );
            }
        }
    }
}

/// How much more was allocated meanwhile than before.
fn peak(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

fn a_claimed_length_is_never_allocated() {
    // The counter counts.
    let seen = {
        LARGEST.store(0, Ordering::Relaxed);
        drop(std::hint::black_box(vec![0_u8; 5000]));
        LARGEST.load(Ordering::Relaxed)
    };
    assert!(seen >= 5000, "{seen}");

    let id = ImageId::from_bytes([0; 32]);
    for claim in [1 << 16, 1 << 20, 1 << 32, 1_u64 << 62, u64::MAX] {
        for length in [0, 1, claim, claim.saturating_mul(1 << 16)] {
            let header = [&[1, 16][..], &length.to_le_bytes(), &claim.to_le_bytes()].concat();
            check(&format!("a manifest of {claim} hashes"), || {
                Manifest::decode(&header, &id).is_err()
            });
        }
        let tag = [&[1][..], &claim.to_le_bytes(), &[b'n'; 180]].concat();
        check(&format!("a tag with a name of {claim} bytes"), || {
            SignedTag::decode(&tag).is_err()
        });
    }
    check("a bitfield of 2^32 chunks", || {
        Bitfield::from_bytes(u32::MAX, &[0; 8]).is_err()
    });
}
