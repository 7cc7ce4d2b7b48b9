//! Reads a file through and says which chunks in it are those of the image.

use std::fs::File;
use std::io;

use rootswarm_image::{Bitfield, Manifest, all_cores};

/// Verifies every chunk in `file`, on as many threads as that has use for: in pieces, so that neither
/// large chunks nor many cores make it take more memory.
pub(super) fn verified_chunks(file: &File, manifest: &Manifest) -> io::Result<Bitfield> {
    rootswarm_image::verified_chunks(file, manifest, all_cores())
}
