//! Files to publish, and whether a fetched copy is the same.

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::Path;

const BLOCK_BYTES: usize = 1 << 20;

/// The length of a squashfs's superblock.
pub const SUPERBLOCK_BYTES: usize = 96;

/// Writes `bytes` pseudo-random bytes, the same for the same `seed`. They do not compress, as a
/// squashfs does not, and begin with the superblock of one of that length, so that they are published.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, bytes: u64, seed: u64) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(BLOCK_BYTES, File::create(path)?);
    // xorshift64* must not start at 0.
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut left = bytes;
    if bytes >= SUPERBLOCK_BYTES as u64 {
        file.write_all(&superblock(bytes))?;
        left -= SUPERBLOCK_BYTES as u64;
    }
    while left > 0 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        let take = left.min(8);
        file.write_all(&word[..take as usize])?;
        left -= take;
    }
    file.flush()
}

/// The superblock of a squashfs of `bytes` bytes.
pub fn superblock(bytes: u64) -> [u8; SUPERBLOCK_BYTES] {
    let mut superblock = [0; SUPERBLOCK_BYTES];
    superblock[..4].copy_from_slice(b"hsqs");
    superblock[28] = 4;
    superblock[40..48].copy_from_slice(&bytes.to_le_bytes());
    superblock
}

/// Whether two files hold the same bytes.
///
/// # Errors
/// When one cannot be read.
pub fn same(left: &Path, right: &Path) -> io::Result<bool> {
    let named = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let mut left_file = File::open(left).map_err(named(left))?;
    let mut right_file = File::open(right).map_err(named(right))?;
    let mut bytes = left_file.metadata().map_err(named(left))?.len();
    if bytes != right_file.metadata().map_err(named(right))?.len() {
        return Ok(false);
    }
    let (mut left_block, mut right_block) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    while bytes > 0 {
        let take = bytes.min(BLOCK_BYTES as u64) as usize;
        left_file
            .read_exact(&mut left_block[..take])
            .map_err(named(left))?;
        right_file
            .read_exact(&mut right_block[..take])
            .map_err(named(right))?;
        if left_block[..take] != right_block[..take] {
            return Ok(false);
        }
        bytes -= take as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_and_a_missing_byte_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let bytes = BLOCK_BYTES as u64 + 5;
        write(&path("a"), bytes, 1).unwrap();
        write(&path("b"), bytes, 1).unwrap();
        assert!(same(&path("a"), &path("b")).unwrap());
        write(&path("c"), bytes, 2).unwrap();
        assert!(!same(&path("a"), &path("c")).unwrap());
        let mut flipped = std::fs::read(path("b")).unwrap();
        flipped[BLOCK_BYTES + 4] ^= 1;
        std::fs::write(path("b"), &flipped).unwrap();
        assert!(!same(&path("a"), &path("b")).unwrap());
        std::fs::write(path("b"), &flipped[..BLOCK_BYTES]).unwrap();
        assert!(!same(&path("a"), &path("b")).unwrap());
    }
}
