//! Every maximum of this crate, with its arithmetic.
//!
//! The relations between them are asserted at compile time, at the end of the file.

/// Smallest chunk: 64 KiB. Below it a chunk costs more in headers, stream set-up and scheduling
/// than in bytes.
pub const MIN_CHUNK_SIZE_LOG2: u8 = 16;

/// Largest chunk: 16 MiB. It is also what a liar can make a node download in vain before the
/// hash gives him away.
pub const MAX_CHUNK_SIZE_LOG2: u8 = 24;

/// The chunk size of small images: 128 KiB, which hashes in 20 µs and crosses a 1 Gbit link in
/// 1 ms.
///
/// Measured with 96.3 MB, last node over the bound, chunks of 256, 128 and 64 KiB. On real links
/// (`cargo xtask bench`): 8 nodes of 100 Mbit/s 1.137, 1.108, 1.080; 24 of 50 Mbit/s on two cores,
/// which they keep busy, 1.195, 1.198, 1.245. Simulated: 1.094, 1.085, 1.072 and 1.141, 1.118, 1.110,
/// with 0.7, 1.0 and 2.2 % of control traffic. So 64 KiB are a gain only where processors are idle.
pub const DEFAULT_CHUNK_SIZE_LOG2: u8 = 17;

/// [`ChunkSize::for_length`](crate::ChunkSize::for_length) doubles the chunk size rather than let
/// an image have more chunks than this: a have-bitfield is then 256 bytes and a manifest 64 KiB.
///
/// 2,048 × 128 KiB = 256 MiB is where the first doubling happens; 2,048 × 16 MiB = 32 GiB is where
/// the chunk size stops growing and the count goes on instead.
pub const TARGET_CHUNK_COUNT: u64 = 2048;

/// No image has more chunks than this: 65,536 of 16 MiB are 1 TiB, more than any root filesystem
/// that is loaded into RAM. It bounds every bitfield to 8 KiB and every manifest to 2 MiB.
pub const MAX_CHUNK_COUNT: u32 = 1 << 16;

/// Fixed part of an encoded manifest: version (1), chunk size (1), length (8), hash count (8).
pub const MANIFEST_HEADER_BYTES: usize = 1 + 1 + 8 + 8;

/// Bytes of one chunk hash, and of an image id.
pub const HASH_BYTES: usize = 32;

/// The longest manifest there can be: 18 + 65,536 × 32 bytes, a little over 2 MiB.
pub const MAX_MANIFEST_BYTES: usize = MANIFEST_HEADER_BYTES + MAX_CHUNK_COUNT as usize * HASH_BYTES;

/// The longest image name, in bytes (all of them are ASCII).
pub const MAX_NAME_BYTES: usize = 64;

/// The longest tag without its signature: version (1), name (8 for its length, and at most 64),
/// id (32), image length (8), chunk size (1), version of the name (8), epoch (4).
pub const MAX_TAG_BODY_BYTES: usize = 1 + (8 + MAX_NAME_BYTES) + HASH_BYTES + 8 + 1 + 8 + 4;

/// An Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// The longest signed tag: 190 bytes.
pub const MAX_SIGNED_TAG_BYTES: usize = MAX_TAG_BODY_BYTES + SIGNATURE_BYTES;

/// The longest rooturl: half of what a kernel command line can hold on the smallest of the usual
/// limits, 2,048 on x86.
pub const MAX_ROOT_URL_BYTES: usize = 1024;

/// The longest host name: 253 characters, and labels of at most 63 (RFC 1035, 2.3.4).
pub const MAX_HOST_NAME_BYTES: usize = 253;

/// The longest label of a host name.
pub const MAX_HOST_LABEL_BYTES: usize = 63;

/// The most seeds a rooturl may name. Each is tried in turn, so a longer list only delays the
/// message that none answers.
pub const MAX_HOSTS: usize = 16;

/// How much of a file is read at a time to be hashed: 256 KiB keep a core's vector unit busy (from
/// 16 KiB on it has enough) and stay in its cache. Larger chunks are hashed piece by piece.
pub const HASH_PIECE_BYTES: usize = 256 << 10;

/// Threads that hash one file: 16 cores hash some 30 GB/s, more than any disk reads. On a machine with
/// more cores the rest stay free for serving.
pub const HASH_THREADS_MAX: usize = 16;

/// The stack of such a thread. BLAKE3 recurses over a piece, 8 deep; in a debug build that is some tens
/// of KiB.
pub const HASH_STACK_BYTES: usize = 512 << 10;

/// What hashing one file takes, buffers and stacks: 12 MiB, whatever its chunks and the cores.
pub const HASH_BYTES_MAX: usize = HASH_THREADS_MAX * (HASH_PIECE_BYTES + HASH_STACK_BYTES);

const _: () = assert!(MIN_CHUNK_SIZE_LOG2 <= DEFAULT_CHUNK_SIZE_LOG2);
const _: () = assert!(DEFAULT_CHUNK_SIZE_LOG2 <= MAX_CHUNK_SIZE_LOG2);
// A BLAKE3 chunk is 1 KiB: a subtree must be a whole number of them.
const _: () = assert!(MIN_CHUNK_SIZE_LOG2 >= 10);
// The length of a chunk is a u32.
const _: () = assert!(MAX_CHUNK_SIZE_LOG2 < 32);
const _: () = assert!(TARGET_CHUNK_COUNT <= MAX_CHUNK_COUNT as u64);
const _: () = assert!(MAX_SIGNED_TAG_BYTES == 190);
// BLAKE3's vector code wants whole KiB, and 16 of them at once.
const _: () = assert!(HASH_PIECE_BYTES.is_multiple_of(16 << 10));
const _: () = assert!(HASH_BYTES_MAX <= 16 << 20);
