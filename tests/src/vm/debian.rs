//! The Debian that the lab boots: a root made by mmdebstrap, its squashfs, its kernel.
//!
//! Made once and kept until what it is made from changes. The initramfs is not made here (see
//! `initrd`): it changes with every change of the agent.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::step::{self, StepError};
use crate::keeper::{self, Kept};

const SUITE: &str = "bookworm";
/// Beside Debian's essential packages: an init, what `systemctl is-system-running` needs to say
/// `running`, what makes the initramfs, and a kernel without drivers for real hardware.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "procps",
    "iproute2",
    "initramfs-tools",
    "zstd",
    "linux-image-cloud-amd64",
];
const REPORT: &str = include_str!("guest/report.sh");
const REPORT_UNIT: &str = include_str!("guest/report.service");
/// Runs inside the new root, after its packages are configured.
///
/// The serial console belongs to the lab: a getty there hangs it up and swallows output. logind
/// wants its state directory even where the root is read-only.
const CUSTOMIZE: &str = "\
set -e
systemctl enable lab-report.service
systemctl mask serial-getty@ttyS0.service
systemctl set-default multi-user.target
passwd --delete root
mkdir -p /var/lib/systemd/linger
echo rootswarm-lab >/etc/hostname
rm -f /etc/machine-id /var/lib/dbus/machine-id
: >/etc/machine-id
";
/// Not for the image: the node's kernel comes over TFTP, and apt's lists are as big as a kernel.
const LEFT_OUT: &[&str] = &[
    "boot/*",
    "var/lib/apt/lists/*",
    "var/cache/apt/*",
    "var/log/*",
];

/// About 400 MB from a mirror, unpacked and compressed.
const STEP_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A made root.
#[derive(Debug, Clone)]
pub struct Debian {
    /// The unpacked root; the initramfs is made inside an overlay of it.
    pub tree: PathBuf,
    /// What the nodes boot.
    pub squashfs: PathBuf,
    /// The kernel that goes with it.
    pub kernel: PathBuf,
    /// What `uname -r` will say.
    pub kernel_version: String,
}

impl Debian {
    /// Makes it below `cache`, or finds it there.
    ///
    /// # Errors
    /// When the mirror cannot be reached, the disk is full or a tool fails.
    pub fn make(cache: &Path, logs: &Path, say: &dyn Fn(&str)) -> Result<Debian, StepError> {
        let directory = cache.join(format!("debian-{:016x}", inputs()));
        if !directory.exists() {
            remove_others(cache)?;
            // Made under another name and renamed, so that what has the name is whole.
            let part = cache.join("debian.part");
            keeper::register(Kept::Directory(&part)).map_err(StepError::file("guard", &part))?;
            remove(&part)?;
            fs::create_dir_all(&part).map_err(StepError::file("make", &part))?;
            make_tree(&part, logs, say)?;
            make_squashfs(&part, logs, say)?;
            fs::rename(&part, &directory).map_err(StepError::file("rename", &part))?;
        }
        Debian::open(&directory)
    }

    fn open(directory: &Path) -> Result<Debian, StepError> {
        let tree = directory.join("tree");
        let boot = tree.join("boot");
        let entries = fs::read_dir(&boot).map_err(StepError::file("read", &boot))?;
        let kernel_version = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .ok_or_else(|| StepError::Missing {
                step: "mmdebstrap",
                expected: "vmlinuz-VERSION".to_owned(),
                directory: boot.clone(),
            })?;
        Ok(Debian {
            squashfs: directory.join("rootfs.squashfs"),
            kernel: boot.join(format!("vmlinuz-{kernel_version}")),
            kernel_version,
            tree,
        })
    }
}

/// All that the root is made from. A newer package in Debian is not noticed: remove the directory
/// to have it.
fn inputs() -> u64 {
    let mut hasher = DefaultHasher::new();
    (SUITE, PACKAGES, REPORT, REPORT_UNIT, CUSTOMIZE, LEFT_OUT).hash(&mut hasher);
    hasher.finish()
}

fn make_tree(part: &Path, logs: &Path, say: &dyn Fn(&str)) -> Result<(), StepError> {
    say("making a Debian root with mmdebstrap");
    // Files that go in before the customize hook runs; `copy-in` would need tar inside.
    let files = part.join("files");
    let script = write(&files.join("lab-report"), REPORT, 0o755)?;
    let unit = write(&files.join("lab-report.service"), REPORT_UNIT, 0o644)?;
    let customize = write(&files.join("customize"), CUSTOMIZE, 0o755)?;
    let tree = part.join("tree");

    let mut command = step::contained("mmdebstrap");
    command
        .args(["--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--aptopt=Apt::Install-Recommends \"false\"")
        // The kernel's postinst makes an initramfs; this one goes unused, but should be quick.
        .arg("--setup-hook=mkdir -p \"$1/etc/initramfs-tools/conf.d\"")
        .arg("--setup-hook=echo MODULES=netboot >\"$1/etc/initramfs-tools/conf.d/lab\"")
        .arg(upload(&script, "/usr/local/sbin/lab-report"))
        .arg(upload(&unit, "/etc/systemd/system/lab-report.service"))
        .arg(format!(
            "--customize-hook=chroot \"$1\" sh <{}",
            customize.display()
        ))
        .arg(SUITE)
        .arg(&tree);
    step::run(
        "mmdebstrap",
        command,
        &logs.join("mmdebstrap.log"),
        STEP_LIMIT,
    )?;
    remove(&files)
}

fn make_squashfs(part: &Path, logs: &Path, say: &dyn Fn(&str)) -> Result<(), StepError> {
    say("compressing it to a squashfs");
    let mut command = step::contained("mksquashfs");
    command
        .arg(part.join("tree"))
        .arg(part.join("rootfs.squashfs"))
        .args([
            "-comp",
            "zstd",
            "-noappend",
            "-no-progress",
            "-wildcards",
            "-e",
        ])
        .args(LEFT_OUT);
    step::run(
        "mksquashfs",
        command,
        &logs.join("mksquashfs.log"),
        STEP_LIMIT,
    )
}

fn upload(from: &Path, to: &str) -> String {
    format!("--customize-hook=cp -p {} \"$1{to}\"", from.display())
}

fn write(path: &Path, content: &str, mode: u32) -> Result<PathBuf, StepError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(StepError::file("make", parent))?;
    }
    fs::write(path, content).map_err(StepError::file("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(StepError::file("chmod", path))?;
    Ok(path.to_owned())
}

/// Roots of other inputs: half a gigabyte each.
fn remove_others(cache: &Path) -> Result<(), StepError> {
    let entries = match fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(StepError::file("read", cache)(error)),
    };
    let old = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        entry
            .file_name()
            .to_str()?
            .starts_with("debian-")
            .then(|| entry.path())
    });
    old.into_iter().try_for_each(|path| remove(&path))
}

fn remove(path: &Path) -> Result<(), StepError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StepError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
