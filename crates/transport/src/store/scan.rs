//! Reads a file through and says which chunks in it are those of the image.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rootswarm_image::{Bitfield, Manifest, all_cores};

use super::PIECE_BYTES;

/// Verifies every chunk in `file`, on as many threads as that has use for: in pieces, so that neither
/// large chunks nor many cores make it take more memory.
pub(super) fn verified_chunks(file: &File, manifest: &Manifest) -> io::Result<Bitfield> {
    rootswarm_image::verified_chunks(file, manifest, all_cores())
}

/// Reads a stretch of the file, [`PIECE_BYTES`] at a time.
pub(super) fn read_pieces(
    file: &File,
    range: Range<u64>,
    buffer: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let now = (range.end - at).min(PIECE_BYTES as u64);
        // At most PIECE_BYTES: it fits.
        buffer.resize(now as usize, 0);
        file.read_exact_at(buffer, at)?;
        take(buffer);
        at += now;
    }
    Ok(())
}
