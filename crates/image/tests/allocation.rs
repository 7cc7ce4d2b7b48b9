//! A length that a sender claims is never allocated: decoding runs under an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use rootswarm_image::{Bitfield, ImageId, Manifest, SignedTag};

/// The system's allocator, and the largest single request it has seen.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
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
