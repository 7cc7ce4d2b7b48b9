//! The initramfs, made as an admin makes it: initramfs-tools, in the image's own Debian, with the
//! package rootswarm-initramfs installed and the swarm's public key baked in.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cache::Cache;
use super::debian::Debian;
use super::step::{self, StepError};

/// Runs in a mount namespace of its own: the root is not touched, all changes are in memory and
/// gone afterwards.
const MAKE: &str = r#"
set -e
tree=$1 package=$2 key=$3 version=$4 out=$5
mount -t tmpfs -o size=512m tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mount -t proc proc /mnt/root/proc
cp "$package" /mnt/root/package.deb
# The trigger would make one more initramfs, with the defaults.
chroot /mnt/root dpkg --no-triggers --install /package.deb
install -D -m 644 "$key" /mnt/root/etc/rootswarm/swarm.pub
echo COMPRESS=zstd >/mnt/root/etc/initramfs-tools/conf.d/compress
echo COMPRESSLEVEL=19 >>/mnt/root/etc/initramfs-tools/conf.d/compress
chroot /mnt/root mkinitramfs -o /initrd.img "$version"
cp /mnt/root/initrd.img "$out"
"#;

/// Takes one module out of an initramfs, with the tools of the image's own Debian.
///
/// Prints the file that it took out, and fails when there is none.
const STRIP: &str = r#"
set -e
tree=$1 initrd=$2 module=$3 version=$4 out=$5
mount -t tmpfs -o size=512m tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mkdir /mnt/root/files
cp "$initrd" /mnt/root/whole.img
chroot /mnt/root sh -e -c '
cd /files
zstd -dc /whole.img >/whole.cpio
cpio -idm --quiet </whole.cpio
found=$(find . -name "$1.ko*")
test -n "$found"
rm $found
depmod -a -b /files "$2"
find . | cpio -o --quiet -H newc >/stripped.cpio
zstd -q -1 /stripped.cpio
echo "$found"
' strip "$module" "$version"
cp /mnt/root/stripped.cpio.zst "$out"
"#;

const STEP_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Makes the initramfs below `cache`, or finds it there.
///
/// # Errors
/// When initramfs-tools fails or a file cannot be read.
pub fn make(
    cache: &Cache,
    debian: &Debian,
    package: &Path,
    swarm_key: &Path,
    say: &dyn Fn(&str),
) -> Result<PathBuf, StepError> {
    let mut hasher = DefaultHasher::new();
    (MAKE, &debian.tree).hash(&mut hasher);
    for file in [package, swarm_key] {
        fs::read(file)
            .map_err(StepError::file("read", file))?
            .hash(&mut hasher);
    }
    let inputs = format!("{:016x}", hasher.finish());

    let initrd = cache.path().join("initrd.img");
    let stamp = cache.path().join("initrd.inputs");
    if initrd.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == inputs) {
        return Ok(initrd);
    }
    say("making the initramfs with initramfs-tools");
    let part = cache.path().join("initrd.part");
    let mut command = step::contained("sh");
    let args: [&OsStr; 8] = [
        "-c".as_ref(),
        MAKE.as_ref(),
        "make-initrd".as_ref(),
        debian.tree.as_ref(),
        package.as_ref(),
        swarm_key.as_ref(),
        debian.kernel_version.as_ref(),
        part.as_ref(),
    ];
    command.args(args);
    step::run(
        "mkinitramfs",
        command,
        &cache.logs().join("mkinitramfs.log"),
        STEP_LIMIT,
    )?;
    // In this order a crash leaves an initramfs without its stamp, which is made again.
    let _ = fs::remove_file(&stamp);
    fs::rename(&part, &initrd).map_err(StepError::file("rename", &part))?;
    fs::write(&stamp, inputs).map_err(StepError::file("write", &stamp))?;
    Ok(initrd)
}

/// An initramfs without one kernel module, in `directory`, and the file that was taken out.
///
/// # Errors
/// When it has no such module or a tool fails.
pub fn without(
    debian: &Debian,
    initrd: &Path,
    module: &str,
    directory: &Path,
) -> Result<(PathBuf, String), StepError> {
    let out = directory.join(format!("initrd-without-{module}.img"));
    let log = directory.join(format!("initrd-without-{module}.log"));
    let mut command = step::contained("sh");
    let args: [&OsStr; 8] = [
        "-c".as_ref(),
        STRIP.as_ref(),
        "strip-initrd".as_ref(),
        debian.tree.as_ref(),
        initrd.as_ref(),
        module.as_ref(),
        debian.kernel_version.as_ref(),
        out.as_ref(),
    ];
    command.args(args);
    step::run("initramfs without a module", command, &log, STEP_LIMIT)?;
    let printed = fs::read_to_string(&log).map_err(StepError::file("read", &log))?;
    Ok((out, printed.trim().to_owned()))
}
