//! A real squashfs of some 100 MB: its id is what `b3sum` prints, and each of its chunks verifies.
//!
//! Needs `mksquashfs` and `b3sum` (Debian: `squashfs-tools`, `b3sum`), and fails without them.

use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rootswarm_image::{
    ChunkSize, SQUASHFS_HEADER_BYTES, SquashfsError, Verifier, all_cores, check_squashfs,
    hash_file, hash_image, is_squashfs, squashfs_len,
};

const MIB: usize = 1 << 20;
const INCOMPRESSIBLE_MIB: usize = 96;
const COMPRESSIBLE_MIB: usize = 16;

fn run(program: &str, package: &str, arguments: &[&Path]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {program}: {error} (this test needs it: apt-get install {package})")
        });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program}: {}: {errors}",
        output.status
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A directory tree that is the same on every run, and a squashfs of it.
fn make_squashfs(directory: &Path) -> PathBuf {
    let (tree, image) = (directory.join("tree"), directory.join("image.squashfs"));
    fs::create_dir_all(tree.join("etc")).expect("create");
    fs::write(tree.join("etc/hostname"), "node\n").expect("write");
    let mut noise = blake3::Hasher::new()
        .update(b"a root filesystem")
        .finalize_xof();
    for file in 0..INCOMPRESSIBLE_MIB / 8 {
        let mut bytes = vec![0; 8 * MIB];
        noise.fill(&mut bytes);
        fs::write(tree.join(format!("noise-{file}")), bytes).expect("write");
    }
    for file in 0..COMPRESSIBLE_MIB {
        let line = format!("file {file} says the same thing in every line\n");
        let bytes: Vec<u8> = line.bytes().cycle().take(MIB).collect();
        fs::write(tree.join(format!("text-{file}")), bytes).expect("write");
    }
    let options = "-noappend -no-progress -quiet -no-xattrs -comp gzip -Xcompression-level 1";
    let arguments: Vec<&Path> = [&*tree, &*image]
        .into_iter()
        .chain(options.split(' ').map(Path::new))
        .collect();
    run("mksquashfs", "squashfs-tools", &arguments);
    image
}

#[test]
fn the_id_of_a_squashfs_is_what_b3sum_prints() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = make_squashfs(directory.path());
    let output = run("b3sum", "b3sum", &[Path::new("--no-names"), &path]);
    let expected = output.trim_end();

    let mut file = File::open(&path).expect("open");
    let length = file.metadata().expect("metadata").len();
    assert!(length > 90 * MIB as u64, "only {length} bytes");
    for (size, threads) in [
        (ChunkSize::for_length(length), all_cores()),
        (ChunkSize::MIN, NonZeroUsize::MIN),
        (ChunkSize::MAX, all_cores()),
    ] {
        let manifest = hash_file(&file, size, threads, &|_| {}).expect("hashes");
        assert_eq!(
            manifest.id().to_string(),
            expected,
            "chunks of {size}, {threads} threads"
        );
    }

    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    let size = ChunkSize::for_length(length);
    let manifest = hash_image(&bytes, size, all_cores(), &|_| {}).expect("hashes");
    assert_eq!(manifest.id().to_string(), expected);

    let geometry = *manifest.geometry();
    let verifier = Verifier::new(Arc::new(manifest));
    for index in geometry.indices() {
        let start = geometry.offset(index) as usize;
        let chunk = &mut bytes[start..start + geometry.chunk_len(index) as usize];
        assert!(verifier.verify(index, &*chunk).is_ok(), "chunk {index}");
        chunk[0] ^= 1;
        assert!(
            verifier.verify(index, &*chunk).is_err(),
            "chunk {index} with a bit flipped"
        );
        chunk[0] ^= 1;
    }

    let header = &bytes[..SQUASHFS_HEADER_BYTES];
    assert!(is_squashfs(header));
    let used = squashfs_len(header).expect("a squashfs");
    // mksquashfs pads to 4 KiB.
    assert!(
        (length - 4096..=length).contains(&used),
        "{used} of {length} bytes"
    );
    assert_eq!(check_squashfs(header, length), Ok(()));
    assert_eq!(
        check_squashfs(header, used - 1),
        Err(SquashfsError::CutOff {
            expected: used,
            found: used - 1
        })
    );
    for (position, what) in [(0, "magic"), (28, "version")] {
        let mut other = header.to_vec();
        other[position] ^= 1;
        assert!(!is_squashfs(&other), "another {what}");
        assert_eq!(
            check_squashfs(&other, length),
            Err(SquashfsError::NotSquashfs)
        );
    }
    for short in 0..SQUASHFS_HEADER_BYTES {
        assert!(!is_squashfs(&header[..short]), "{short} bytes");
    }
}
