//! What an input may cost in memory: an allocator that counts what each thread holds.
//!
//! A decoder that believes a length it was told asks for it at once, so the count is taken before
//! the memory is: a claim of 2^64 is refused here like on a machine that has no such memory, and
//! a smaller one shows as a peak above its bound.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// No input of any target is worth this much: asked for more, the allocator has none, and the
/// process ends as it would under an address-space limit.
const REFUSED_BYTES: usize = 256 << 20;

thread_local! {
    /// Bytes that this thread holds, and the most it held since the last reset. Signed: what one
    /// thread took another may give back.
    static HELD: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(change: i64) {
    // Fails only while a thread ends; nothing is measured then.
    let _ = HELD.try_with(|held| {
        let (now, peak) = held.get();
        let now = now + change;
        held.set((now, peak.max(now)));
    });
}

fn bytes(layout: Layout) -> i64 {
    // A layout's size is at most isize::MAX.
    layout.size() as i64
}

// SAFETY: every call is passed on to the system's allocator as it is, or answered with null, which
// means that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(bytes(layout));
        if layout.size() > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(bytes(layout));
        if layout.size() > REFUSED_BYTES {
            return std::ptr::null_mut();
        }
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-bytes(layout));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and returns the most bytes that this thread held meanwhile beyond what it held
/// before.
pub fn peak_of(work: impl FnOnce()) -> u64 {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    work();
    HELD.with(|held| u64::try_from(held.get().1 - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_seen_after_the_memory_is_given_back() {
        let peak = peak_of(|| {
            drop(std::hint::black_box(vec![1_u8; 100_000]));
            drop(std::hint::black_box(vec![0_u8; 40_000]));
        });
        assert!((100_000..101_000).contains(&peak), "{peak}");
        assert_eq!(peak_of(|| ()), 0);
    }

    #[test]
    fn a_claim_of_a_gigabyte_is_refused() {
        assert!(Vec::<u8>::new().try_reserve_exact(1 << 30).is_err());
    }
}
