//! What the server may take of memory, in one sum.
//!
//! Rust ends the process when an allocation fails, so everything that grows with a chunk, a request, a
//! peer or a core has a bound, and the sum of the bounds is below what the unit allows
//! (`LimitDATA=`, server/systemd/rootswarm.service; the test `the_sum_of_all_bounds_is_what_the_unit_allows`
//! reads it). `LimitDATA` counts what is mapped privately and writable: the heap, and each thread's stack
//! with its whole length.

use rootswarm_image::limits::{HASH_BYTES_MAX, MAX_MANIFEST_BYTES};

use crate::http::server::{MAX_ANSWERS, MAX_CONNECTIONS};

/// Copies that are hashed at once while the server loads. A disk has use for some; each is hashed by as
/// many threads as [`HASH_BYTES_MAX`] says.
pub const CHECKS_AT_ONCE: usize = 4;

/// Files that the server publishes itself at once.
pub const PUBLISHED_AT_ONCE: usize = 1;

/// What is read at a time to copy a file.
const COPY_BUFFER_BYTES: usize = 1 << 20;

/// Threads of the runtime: one for each core, up to so many. One thread drives the swarm's socket; on a
/// machine with 256 cores the stacks alone would be half of the limit.
pub const WORKER_THREADS_MAX: usize = 16;

/// Reads of boot files, looks at the state directory and token files at a time: what a disk has use for.
pub const BLOCKING_THREADS_MAX: usize = 64;

/// The stack of a thread, tokio's default.
pub const THREAD_STACK_BYTES: usize = 2 << 20;

/// Members of all swarms, and what 10,000 of them may take.
pub const MEMBERS_BYTES_MAX: usize = 500_000_000;

/// Connections over HTTP, and the answers of slow readers of boot files (server/tests/http_hostile.rs).
pub const HTTP_BYTES_MAX: usize = MAX_CONNECTIONS * (16 << 10) + MAX_ANSWERS * (48 << 10);

/// Handshakes and joins under way (512), and what QUIC keeps for each.
const NEWCOMERS_BYTES_MAX: usize = 512 * (64 << 10);

/// A mirror's listing, as bytes and decoded; one mirror asks at a time, and one is being answered.
const MIRROR_BYTES_MAX: usize = 4 * (8 << 20);

/// The manifests of all images that are served, as they are encoded: 16 of the longest there can be, or 511
/// of images up to 32 GiB, which have 64 KiB at most. What is beyond is not published
/// ([`crate::publish`]) and not served ([`crate::catalogue`]).
pub const SERVED_MANIFESTS_BYTES_MAX: usize = 16 * MAX_MANIFEST_BYTES;

/// Each is there encoded, for who asks, and decoded, to verify by.
const MANIFESTS_BYTES_MAX: usize = 2 * SERVED_MANIFESTS_BYTES_MAX;

/// The sum.
pub const DATA_BYTES_MAX: usize = (CHECKS_AT_ONCE + PUBLISHED_AT_ONCE) * HASH_BYTES_MAX
    + PUBLISHED_AT_ONCE * COPY_BUFFER_BYTES
    + (WORKER_THREADS_MAX + BLOCKING_THREADS_MAX) * THREAD_STACK_BYTES
    + MEMBERS_BYTES_MAX
    + HTTP_BYTES_MAX
    + NEWCOMERS_BYTES_MAX
    + MIRROR_BYTES_MAX
    + MANIFESTS_BYTES_MAX;

/// What the unit allows.
pub const UNIT_DATA_BYTES: usize = 1 << 30;

const _: () = assert!(DATA_BYTES_MAX < UNIT_DATA_BYTES);

/// As many threads as the runtime gets here.
pub fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKER_THREADS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_all_bounds_is_what_the_unit_allows() {
        let unit = include_str!("../systemd/rootswarm.service");
        let limit = unit
            .lines()
            .find_map(|line| line.strip_prefix("LimitDATA="))
            .expect("the unit has a limit");
        let (number, unit) = limit.split_at(limit.len() - 1);
        let scale = match unit {
            "M" => 1 << 20,
            "G" => 1 << 30,
            _ => panic!("LimitDATA={limit}"),
        };
        let limit = number.parse::<usize>().expect("a number") * scale;
        assert_eq!(limit, UNIT_DATA_BYTES);
    }
}
