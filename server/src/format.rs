//! Names what a file holds by its first bytes, so that what is refused is refused by its name.
//!
//! What nodes boot is a squashfs ([`rootswarm_image::check_squashfs`]); this is about all the rest, and
//! only for messages.

/// How much of a file [`name_of`] looks at: the last signature, btrfs's, ends at 64 KiB and 72 bytes.
pub const FORMAT_HEADER_BYTES: usize = (64 << 10) + 72;

/// A signature: where, which bytes, and whose.
type Signature = (usize, &'static [u8], &'static str);

/// The first that fits names the file. Formats that hold others (an ISO 9660 may begin with a boot
/// sector) come before what they hold.
const SIGNATURES: &[Signature] = &[
    (
        0,
        b"sqsh",
        "a big-endian squashfs, which kernels of today do not mount",
    ),
    (0, b"hsqs", "a squashfs of another version than 4"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x8001, b"NSR0", "a UDF image"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "an erofs"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS"),
    (0x1_0040, b"_BHRfS_M", "a btrfs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an f2fs"),
    (0, &[0x45, 0x3d, 0xcd, 0x28], "a cramfs"),
    (0, b"-rom1fs-", "a romfs"),
    (0, &[0x1f, 0x8b], "a gzip file"),
    (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "an xz file"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd file"),
    (0, &[0x04, 0x22, 0x4d, 0x18], "an lz4 file"),
    (0, &[0x02, 0x21, 0x4c, 0x18], "an lz4 file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip file"),
    (0, b"PK\x03\x04", "a zip file"),
    (0, b"07070", "a cpio archive (an initrd?)"),
    (257, b"ustar", "a tar archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (0, b"conectix", "a VHD disk image"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VirtualBox disk image"),
    (0, b"\x7fELF", "an ELF program"),
    (0x202, b"HdrS", "a Linux kernel"),
    (0x38, b"ARM\x64", "a Linux kernel"),
    (0, b"MZ", "an EFI or Windows program"),
    (512, b"EFI PART", "a disk image with a GPT"),
    (510, &[0x55, 0xaa], "a disk image or a boot sector"),
    (0, b"#!", "a script"),
    (0, b"<", "a web page or XML (an error page that was saved?)"),
];

/// What a file that begins with `header` seems to be, with its article.
pub fn name_of(header: &[u8]) -> &'static str {
    if header.is_empty() {
        return "empty";
    }
    let fits = |&&(at, bytes, _): &&Signature| {
        header.get(at..).is_some_and(|rest| rest.starts_with(bytes))
    };
    match SIGNATURES.iter().find(fits) {
        Some((_, _, name)) => name,
        None if header.iter().all(|byte| *byte == 0) => {
            "nothing but zeros at its start (is whoever writes it done?)"
        }
        None => "of no format that is known here",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signature_names_its_format() {
        for (at, bytes, name) in SIGNATURES {
            assert!(at + bytes.len() <= FORMAT_HEADER_BYTES, "{name}");
            let mut header = vec![0; FORMAT_HEADER_BYTES];
            header[*at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(name_of(&header), *name);
            // Cut off before its end it is something else, and no panic.
            assert_ne!(name_of(&header[..at + bytes.len() - 1]), *name);
        }
        assert_eq!(name_of(b""), "empty");
        assert!(name_of(&[0; 512]).contains("zeros"));
        assert!(name_of(b"root:x:0:0").contains("no format"));
    }
}
