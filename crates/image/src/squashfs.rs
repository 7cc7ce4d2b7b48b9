//! Recognises a squashfs by its superblock, so that something else is refused when it is
//! published rather than when a thousand nodes try to mount it.
//!
//! Only what tells a squashfs and its length is read. Whether this kernel can mount it (its
//! compressor, its features) is the kernel's word.

/// The length of a squashfs superblock: how much of a file to read for the functions below.
pub const SQUASHFS_HEADER_BYTES: usize = 96;

const MAGIC: &[u8] = b"hsqs";
const VERSION_MAJOR: u16 = 4;
const VERSION_MAJOR_OFFSET: usize = 28;
const BYTES_USED_OFFSET: usize = 40;

/// Why a file is not a whole squashfs image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SquashfsError {
    /// It does not begin with the superblock of squashfs 4.
    #[error(
        "not a squashfs image: expected a squashfs 4 superblock (magic \"hsqs\") at its start (make \
         one with mksquashfs)"
    )]
    NotSquashfs,
    /// The filesystem goes on after the end of the file.
    #[error("squashfs image is cut off: expected at least {expected} bytes, found {found}")]
    CutOff {
        /// The bytes the filesystem takes, as its superblock says.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
}

/// Whether a file that begins with `header` is a squashfs 4, the only version that kernels mount
/// today. `header` should be the first 96 bytes; fewer are no squashfs.
pub fn is_squashfs(header: &[u8]) -> bool {
    squashfs_len(header).is_some()
}

/// The bytes that the squashfs beginning with `header` takes, or `None` if it is no squashfs 4.
///
/// The file may be longer: mksquashfs pads it to a multiple of 4 KiB.
pub fn squashfs_len(header: &[u8]) -> Option<u64> {
    let header = header.first_chunk::<SQUASHFS_HEADER_BYTES>()?;
    let version = header[VERSION_MAJOR_OFFSET..]
        .first_chunk()
        .copied()
        .map(u16::from_le_bytes)?;
    let bytes_used = header[BYTES_USED_OFFSET..]
        .first_chunk()
        .copied()
        .map(u64::from_le_bytes)?;
    (header.starts_with(MAGIC) && version == VERSION_MAJOR).then_some(bytes_used)
}

/// Whether a file of `file_length` bytes that begins with `header` holds a whole squashfs.
pub fn check_squashfs(header: &[u8], file_length: u64) -> Result<(), SquashfsError> {
    match squashfs_len(header) {
        None => Err(SquashfsError::NotSquashfs),
        Some(expected) if expected > file_length => Err(SquashfsError::CutOff {
            expected,
            found: file_length,
        }),
        Some(_) => Ok(()),
    }
}
