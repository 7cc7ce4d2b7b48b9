//! What can be known to fail before a byte is downloaded: a kernel that is too old, kernel modules that
//! are not there, and an image that cannot fit into RAM.
//!
//! The rule for RAM, in one place:
//!
//! - overlay and ro need the image, what the kernel needs to keep it ([`KEEPING`]) and [`SLACK_BYTES`];
//! - copy needs three times that and [`SLACK_BYTES`]: the image while it is unpacked, and
//!   at least twice its size unpacked (a squashfs does not say how large it unpacks; a Debian
//!   root with zstd unpacks to nearly four times its size). The exact size is checked again when
//!   the image is there, before the first file is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::exit::{Classified, Exit};
use crate::mount::Mode;
use crate::units;

/// The agent, and after it the first processes of the booted system. While it fetches the agent has 64 MiB
/// at most, whatever the chunks' size (`memory_does_not_grow_with_the_chunks`, initramfs/tests/memory.rs);
/// when the image is there it gives its buffers back and is left with 4. A Debian root reached multi-user
/// with some 60 MB beside its image.
pub const SLACK_BYTES: u64 = 64 << 20;

/// What the kernel takes to keep a file in memory and to map it, as a part of the file: for each page of
/// 4 KiB nine bytes of its tree (576 for each 64 pages) and eight of page table are one in 240. Huge pages
/// take next to nothing, but there may be none.
pub const KEEPING: u64 = 200;

/// Where the kernel is looked at; a test has its own.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
    /// The program that loads a module.
    pub modprobe: PathBuf,
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel {
            proc: "/proc".into(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            modprobe: "modprobe".into(),
        }
    }
}

/// The oldest kernel that this program is for: the first with zstd in squashfs, which is what images are
/// made with. What came later (LOOP_CONFIGURE with 5.8, clone3 with 5.3) is done without where it is
/// missing (`the_calls_of_an_old_kernel_are_enough`, initramfs/tests/old_kernel.rs).
pub const OLDEST_KERNEL: (u32, u32) = (4, 14);

/// Why this node cannot boot this image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// The kernel is too old.
    #[error(
        "the kernel is {found}: {}.{} or later is needed, boot the nodes with a newer one",
        OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    OldKernel {
        /// What it calls itself.
        found: String,
    },
    /// Parts of the kernel are not there.
    #[error(
        "the kernel has no {} and no module for it could be loaded: add it to the initrd, mode {mode} needs it",
        .missing.join(", no ")
    )]
    Modules {
        /// All that is missing.
        missing: Vec<&'static str>,
        /// The mode that needs it.
        mode: String,
    },
    /// The image does not fit.
    #[error(
        "the image has {}: mode {mode} needs {} of RAM, {} of {} are available",
        units::size(*image), units::size(*needed), units::size(*available), units::size(*total)
    )]
    Memory {
        /// The image's length.
        image: u64,
        /// The mode.
        mode: String,
        /// By the rule above.
        needed: u64,
        /// What there is now.
        available: u64,
        /// What the machine has.
        total: u64,
    },
}

impl Classified for PreflightError {
    fn exit(&self) -> Exit {
        match self {
            PreflightError::OldKernel { .. } | PreflightError::Modules { .. } => Exit::NotMountable,
            PreflightError::Memory { .. } => Exit::Resource,
        }
    }
}

/// Refuses a kernel that is older than [`OLDEST_KERNEL`]. One that does not say how old it is passes.
pub fn check_version(kernel: &Kernel) -> Result<(), PreflightError> {
    let text = fs::read_to_string(kernel.proc.join("sys/kernel/osrelease")).unwrap_or_default();
    let found = text.trim();
    let mut numbers = found
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST_KERNEL => {
            Err(PreflightError::OldKernel {
                found: found.to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Sees to it that the kernel can do what `mode` needs, loading modules where it can.
pub fn check_modules(kernel: &Kernel, mode: Mode) -> Result<(), PreflightError> {
    let mut missing = Vec::new();
    if !has_loop(kernel) {
        load(kernel, "loop");
        if !has_loop(kernel) {
            missing.push("loop");
        }
    }
    let filesystems: &[&'static str] = match mode {
        Mode::Overlay => &["squashfs", "overlay"],
        Mode::ReadOnly | Mode::Copy => &["squashfs"],
    };
    for &name in filesystems {
        if !has_filesystem(kernel, name) {
            load(kernel, name);
            if !has_filesystem(kernel, name) {
                missing.push(name);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(PreflightError::Modules {
        missing,
        mode: mode.to_string(),
    })
}

/// The node alone says nothing (it may be static), but opening it loads the module by itself.
fn has_loop(kernel: &Kernel) -> bool {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(kernel.dev.join("loop-control"))
        .is_ok()
}

fn has_filesystem(kernel: &Kernel, name: &str) -> bool {
    let text = fs::read_to_string(kernel.proc.join("filesystems")).unwrap_or_default();
    text.lines()
        .any(|line| line.split_whitespace().last() == Some(name))
}

/// Whether it worked is seen by looking again; a built-in part has no module to load.
fn load(kernel: &Kernel, module: &str) {
    let _ = Command::new(&kernel.modprobe)
        .args(["-q", module])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// RAM, as far as it concerns us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What the machine, or the control group we are in, has.
    pub total_bytes: u64,
    /// What can be taken without swapping.
    pub available_bytes: u64,
}

impl Memory {
    /// Reads /proc/meminfo, and the limit of our control group where there is one. `None` when
    /// the kernel says nothing: then there is nothing to compare with.
    pub fn read(kernel: &Kernel) -> Option<Memory> {
        let text = fs::read_to_string(kernel.proc.join("meminfo")).ok()?;
        let mut memory = Memory {
            total_bytes: meminfo_field(&text, "MemTotal:")?,
            available_bytes: meminfo_field(&text, "MemAvailable:")?,
        };
        if let Some((limit, used)) = control_group(kernel) {
            memory.total_bytes = memory.total_bytes.min(limit);
            memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
        }
        Some(memory)
    }
}

fn meminfo_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Limit and use of the nearest control group (version 2) above us that has a limit.
fn control_group(kernel: &Kernel) -> Option<(u64, u64)> {
    let text = fs::read_to_string(kernel.proc.join("self/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let top = kernel.sys.join("fs/cgroup");
    let mut group: &Path = Path::new(own);
    let mut tightest: Option<(u64, u64)> = None;
    loop {
        let dir = top.join(group);
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok()
        };
        // "max" is no number: no limit here.
        if let (Some(limit), Some(used)) = (number("memory.max"), number("memory.current")) {
            let left = limit.saturating_sub(used);
            if tightest.is_none_or(|(l, u)| left < l.saturating_sub(u)) {
                tightest = Some((limit, used));
            }
        }
        match group.parent() {
            Some(parent) if group != Path::new("") => group = parent,
            _ => return tightest,
        }
    }
}

/// What the rule asks for.
pub fn needed_bytes(image_bytes: u64, mode: Mode) -> u64 {
    let times = match mode {
        Mode::Overlay | Mode::ReadOnly => 1,
        Mode::Copy => 3,
    };
    let files = image_bytes.saturating_mul(times);
    files
        .saturating_add(files / KEEPING)
        .saturating_add(SLACK_BYTES)
}

/// Refuses an image that cannot fit, before it is downloaded.
pub fn check_memory(memory: Memory, image_bytes: u64, mode: Mode) -> Result<(), PreflightError> {
    let needed = needed_bytes(image_bytes, mode);
    if needed <= memory.available_bytes {
        return Ok(());
    }
    Err(PreflightError::Memory {
        image: image_bytes,
        mode: mode.to_string(),
        needed,
        available: memory.available_bytes,
        total: memory.total_bytes,
    })
}

/// Whether this machine has more than one memory node, so that an image should be spread.
pub fn has_several_numa_nodes(kernel: &Kernel) -> bool {
    // "0" with one node; "0-1" or "0,2" with several.
    fs::read_to_string(kernel.sys.join("devices/system/node/online"))
        .is_ok_and(|text| text.contains(['-', ',']))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel made of files; `modprobe` is a script that "loads" what is in `loadable`.
    fn kernel(dir: &Path, filesystems: &str, loadable: &str) -> Kernel {
        let kernel = Kernel {
            proc: dir.join("proc"),
            sys: dir.join("sys"),
            dev: dir.join("dev"),
            modprobe: dir.join("modprobe"),
        };
        fs::create_dir_all(&kernel.proc).unwrap();
        fs::create_dir_all(&kernel.dev).unwrap();
        fs::write(kernel.proc.join("filesystems"), filesystems).unwrap();
        let script = format!(
            "#!/bin/sh\ncase \" {loadable} \" in *\" $2 \"*) ;; *) exit 1;; esac\n\
             if [ $2 = loop ]; then : > {dev}/loop-control; else echo \"\t$2\" >> {proc}/filesystems; fi\n",
            dev = kernel.dev.display(),
            proc = kernel.proc.display(),
        );
        fs::write(&kernel.modprobe, script).unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&kernel.modprobe, fs::Permissions::from_mode(0o755)).unwrap();
        kernel
    }

    #[test]
    fn modules_are_loaded_or_named() {
        let check = |filesystems: &str, loadable: &str, mode: Mode, missing: &[&'static str]| {
            let dir = tempfile::tempdir().unwrap();
            let found = match check_modules(&kernel(dir.path(), filesystems, loadable), mode) {
                Ok(()) => Vec::new(),
                Err(PreflightError::Modules { missing, .. }) => missing,
                Err(other) => panic!("{other}"),
            };
            assert_eq!(found, missing, "{filesystems:?} {loadable:?} {mode}");
        };
        let all = "nodev\ttmpfs\n\tsquashfs\nnodev\toverlay\n";
        check(all, "loop", Mode::Overlay, &[]);
        check(
            "nodev\ttmpfs\n",
            "loop squashfs overlay",
            Mode::Overlay,
            &[],
        );
        check(
            "nodev\ttmpfs\n",
            "loop squashfs",
            Mode::Overlay,
            &["overlay"],
        );
        check("nodev\ttmpfs\n", "loop squashfs", Mode::ReadOnly, &[]);
        check(
            "nodev\ttmpfs\n",
            "",
            Mode::Overlay,
            &["loop", "squashfs", "overlay"],
        );
        check("\tnosquashfs\n", "loop", Mode::Copy, &["squashfs"]);
    }

    #[test]
    fn an_old_kernel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), "", "");
        let place = kernel.proc.join("sys/kernel/osrelease");
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        // Nothing there.
        assert_eq!(check_version(&kernel), Ok(()));
        for (release, is_enough) in [
            ("3.10.0-1160.el7.x86_64", false),
            ("4.9.0-19-amd64", false),
            ("4.13.16", false),
            ("4.14.0", true),
            ("4.14", true),
            ("4.19.0-27-amd64", true),
            ("5.4.0", true),
            ("6.1.0-37-amd64", true),
            ("10.0", true),
            ("", true),
            ("unknown", true),
        ] {
            fs::write(&place, format!("{release}\n")).unwrap();
            let checked = check_version(&kernel);
            assert_eq!(checked.is_ok(), is_enough, "{release}");
            if let Err(error) = checked {
                assert_eq!(error.exit(), Exit::NotMountable);
                assert_eq!(
                    error.to_string(),
                    format!(
                        "the kernel is {release}: 4.14 or later is needed, boot the nodes with a newer one"
                    )
                );
            }
        }
    }

    #[test]
    fn the_memory_rule() {
        let memory = Memory {
            total_bytes: 1 << 30,
            available_bytes: 800 << 20,
        };
        let mib = 1 << 20;
        assert_eq!(check_memory(memory, 96 * mib, Mode::Overlay), Ok(()));
        assert_eq!(check_memory(memory, 96 * mib, Mode::Copy), Ok(()));
        assert_eq!(check_memory(memory, 732 * mib, Mode::ReadOnly), Ok(()));
        let error = check_memory(memory, 733 * mib, Mode::ReadOnly).unwrap_err();
        assert_eq!(error.exit(), Exit::Resource);
        assert_eq!(
            error.to_string(),
            "the image has 768.6 MB: mode ro needs 839.6 MB of RAM, 838.9 MB of 1073.7 MB are available"
        );
        // What the kernel itself takes for 20 GB is more than all the rest.
        let needed = needed_bytes(20_000_000_000, Mode::Overlay);
        assert_eq!(needed, 20_000_000_000 + 100_000_000 + SLACK_BYTES);
        assert!(check_memory(memory, 250 * mib, Mode::Copy).is_err());
        assert!(check_memory(memory, u64::MAX, Mode::Copy).is_err());
    }

    #[test]
    fn memory_is_read_with_the_tightest_group() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), "", "");
        assert_eq!(Memory::read(&kernel), None);
        let meminfo = "MemTotal:        1000000 kB\nMemFree: 1 kB\nMemAvailable:     800000 kB\n";
        fs::write(kernel.proc.join("meminfo"), meminfo).unwrap();
        let expected = Memory {
            total_bytes: 1_024_000_000,
            available_bytes: 819_200_000,
        };
        assert_eq!(Memory::read(&kernel), Some(expected));

        fs::create_dir_all(kernel.proc.join("self")).unwrap();
        fs::write(kernel.proc.join("self/cgroup"), "0::/a/b\n").unwrap();
        let inner = kernel.sys.join("fs/cgroup/a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.current"), "5\n").unwrap();
        let outer = kernel.sys.join("fs/cgroup/a");
        fs::write(outer.join("memory.max"), "1000000\n").unwrap();
        fs::write(outer.join("memory.current"), "400000\n").unwrap();
        let expected = Memory {
            total_bytes: 1_000_000,
            available_bytes: 600_000,
        };
        assert_eq!(Memory::read(&kernel), Some(expected));
    }

    #[test]
    fn numa_nodes_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(dir.path(), "", "");
        assert!(!has_several_numa_nodes(&kernel));
        let node = kernel.sys.join("devices/system/node");
        fs::create_dir_all(&node).unwrap();
        for (text, several) in [("0\n", false), ("0-1\n", true), ("0,2\n", true)] {
            fs::write(node.join("online"), text).unwrap();
            assert_eq!(has_several_numa_nodes(&kernel), several, "{text}");
        }
    }
}
