//! The initramfs, made as an admin makes it: initramfs-tools, in the image's own Debian, with this
//! project's hook and boot script, the agent, and the swarm's public key baked in.

use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binaries::workspace_root;
use super::debian::Debian;
use super::step::{self, StepError};

/// Runs in a mount namespace of its own: the root is not touched, all changes are in memory and
/// gone afterwards.
const MAKE: &str = r#"
set -e
tree=$1 agent=$2 key=$3 tools=$4 version=$5 out=$6
mount -t tmpfs -o size=512m tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$tree,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
mount -t proc proc /mnt/root/proc
install -D -m 755 "$agent" /mnt/root/usr/sbin/rootswarm-agent
install -D -m 644 "$key" /mnt/root/etc/rootswarm/swarm.pub
install -D -m 755 "$tools/hooks/rootswarm" /mnt/root/usr/share/initramfs-tools/hooks/rootswarm
install -D -m 644 "$tools/scripts/ram" /mnt/root/usr/share/initramfs-tools/scripts/ram
echo COMPRESS=zstd >/mnt/root/etc/initramfs-tools/conf.d/compress
echo COMPRESSLEVEL=19 >>/mnt/root/etc/initramfs-tools/conf.d/compress
chroot /mnt/root mkinitramfs -o /initrd.img "$version"
cp /mnt/root/initrd.img "$out"
"#;

const STEP_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Makes the initramfs below `cache`, or finds it there.
///
/// # Errors
/// When initramfs-tools fails or a file cannot be read.
pub fn make(
    cache: &Path,
    logs: &Path,
    debian: &Debian,
    agent: &Path,
    swarm_key: &Path,
    say: &dyn Fn(&str),
) -> Result<PathBuf, StepError> {
    let tools = workspace_root().join("initramfs/initramfs-tools");
    let mut hasher = DefaultHasher::new();
    (MAKE, &debian.tree).hash(&mut hasher);
    for file in [
        agent,
        swarm_key,
        &tools.join("hooks/rootswarm"),
        &tools.join("scripts/ram"),
    ] {
        fs::read(file)
            .map_err(StepError::file("read", file))?
            .hash(&mut hasher);
    }
    let inputs = format!("{:016x}", hasher.finish());

    let initrd = cache.join("initrd.img");
    let stamp = cache.join("initrd.inputs");
    if initrd.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == inputs) {
        return Ok(initrd);
    }
    say("making the initramfs with initramfs-tools");
    let part = cache.join("initrd.part");
    let mut command = step::contained("sh");
    let args: [&OsStr; 9] = [
        "-c".as_ref(),
        MAKE.as_ref(),
        "make-initrd".as_ref(),
        debian.tree.as_ref(),
        agent.as_ref(),
        swarm_key.as_ref(),
        tools.as_ref(),
        debian.kernel_version.as_ref(),
        part.as_ref(),
    ];
    command.args(args);
    step::run(
        "mkinitramfs",
        command,
        &logs.join("mkinitramfs.log"),
        STEP_LIMIT,
    )?;
    // In this order a crash leaves an initramfs without its stamp, which is made again.
    let _ = fs::remove_file(&stamp);
    fs::rename(&part, &initrd).map_err(StepError::file("rename", &part))?;
    fs::write(&stamp, inputs).map_err(StepError::file("write", &stamp))?;
    Ok(initrd)
}
