//! Maps files for reading: beside one registration in [`crate::udp`] the only `unsafe` in this crate.
//!
//! That what is handed out of a map no longer changes is the stores' part.

use std::fs::File;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use memmap2::MmapOptions;
use rootswarm_image::{ChunkIndex, Geometry};

/// Maps the first `length` bytes of `file`, shared with whoever writes the file.
///
/// Slices of what is returned count references to the map; it is unmapped with the last.
///
/// The caller makes sure that the file has this length, that nobody shortens it while it is
/// mapped, and that no byte is read through the map before it has its final value.
pub(super) fn map_file(file: &File, length: u64) -> io::Result<Bytes> {
    // mmap refuses a length of zero.
    if length == 0 {
        return Ok(Bytes::new());
    }
    let length = usize::try_from(length).map_err(|_| {
        io::Error::new(io::ErrorKind::FileTooLarge, "larger than the address space")
    })?;
    // SAFETY: the hazard of a file mapping is that the file changes under a `&[u8]`.
    // - It is not shortened (which would raise SIGBUS): both stores check or set the exact length
    //   before, never change it after, and their files are private to the process (mode 0600 in
    //   the state directory, or locked while an image is assembled).
    // - It is not written where a slice exists: `FileStore` maps copies that are never written,
    //   and `ChunkStore` hands out a range only when its chunk is held, after the last write to it. A `Bytes`
    //   dereferences its own range only, so that the rest of the map may still be written.
    let map = unsafe { MmapOptions::new().len(length).map(file)? };
    Ok(Bytes::from_owner(map))
}

/// Where a chunk lies in the map; `None` if the image has no such chunk.
pub(super) fn range(geometry: &Geometry, index: ChunkIndex) -> Option<Range<usize>> {
    if !geometry.contains(index) {
        return None;
    }
    // The image is mapped, so every offset in it fits a usize.
    let start = usize::try_from(geometry.offset(index)).ok()?;
    Some(start..start + geometry.chunk_len(index) as usize)
}
