//! Makes a root of an image: overlay, read-only, or copied into RAM; by system calls, with every
//! path given by the caller.
//!
//! A failure at any step undoes the steps before it: no half-made mount, no loop device and no
//! directory stays behind. Where the image comes from and who serves it is not known here.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rootswarm_image::{SQUASHFS_HEADER_BYTES, SquashfsError};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::copy_tree::{self, CopyError, CopyReport};
use crate::exit::{Classified, Exit, exit_of_local_io};
use crate::loop_device::LoopDevice;
use crate::units;

/// How the root is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The image read-only underneath, a tmpfs for what changes on top.
    Overlay,
    /// The image alone, read-only.
    ReadOnly,
    /// Everything unpacked into a tmpfs; the image is not needed afterwards.
    Copy,
}

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Mode, &'static str> {
        match text {
            "overlay" => Ok(Mode::Overlay),
            "ro" => Ok(Mode::ReadOnly),
            "copy" => Ok(Mode::Copy),
            _ => Err("overlay, ro or copy is expected"),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Overlay => "overlay",
            Mode::ReadOnly => "ro",
            Mode::Copy => "copy",
        })
    }
}

/// What to mount, where, and how.
#[derive(Debug, Clone)]
pub struct MountPlan {
    /// How.
    pub mode: Mode,
    /// The whole, verified image.
    pub image: PathBuf,
    /// Where the new root goes.
    pub rootmnt: PathBuf,
    /// Where the halves are mounted before they move to `mnt/ro` and `mnt/rw` in the new root.
    pub mnt: PathBuf,
    /// Device nodes: `/dev`.
    pub dev: PathBuf,
    /// Memory that a copied root may take at most.
    pub copy_budget_bytes: u64,
}

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The image is something else, or cut off.
    #[error("{}: {source}", image.display())]
    NoSquashfs {
        /// The image.
        image: PathBuf,
        /// What is wrong with it.
        source: SquashfsError,
    },
    /// A system call failed.
    #[error("cannot {step} {}: {source}", path.display())]
    Step {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel does not know the file system.
    #[error("cannot mount {kind} on {}: the kernel has no {kind} (is the module in the initrd?)", path.display())]
    NoFilesystem {
        /// The file system.
        kind: &'static str,
        /// Where it was to be mounted.
        path: PathBuf,
    },
    /// The image leads a mount somewhere else.
    #[error("{} in the image is no directory: the overlay's halves cannot be moved there", path.display())]
    NotADirectory {
        /// The path inside the new root.
        path: PathBuf,
    },
    /// The unpacked root does not fit.
    #[error("the unpacked root needs {}, only {} of RAM may be used: boot with rootswarm.mode=overlay or more RAM", units::size(*needed), units::size(*available))]
    TooLarge {
        /// What the tree takes.
        needed: u64,
        /// What there is.
        available: u64,
    },
    /// Unpacking failed.
    #[error("unpacking the image: {0}")]
    Copy(#[from] CopyError),
}

impl Classified for MountError {
    fn exit(&self) -> Exit {
        match self {
            MountError::NoSquashfs { .. }
            | MountError::NoFilesystem { .. }
            | MountError::NotADirectory { .. } => Exit::NotMountable,
            MountError::TooLarge { .. } => Exit::Resource,
            MountError::Step { source, .. } | MountError::Copy(CopyError { source, .. }) => {
                match exit_of_local_io(source) {
                    Exit::Resource => Exit::Resource,
                    _ => Exit::NotMountable,
                }
            }
        }
    }
}

/// A mounted root. Dropping it takes it apart again, unless [`MountedRoot::keep`] was called.
#[derive(Debug)]
pub struct MountedRoot {
    undo: Undo,
    /// What a copied root could not keep.
    pub report: CopyReport,
}

impl MountedRoot {
    /// The root stays: whoever asked for it has been told.
    pub fn keep(mut self) {
        self.undo.steps.clear();
    }
}

/// Refuses what is not a whole squashfs.
pub fn check_squashfs(image: &Path) -> Result<(), MountError> {
    let step = |e| MountError::Step {
        step: "read",
        path: image.to_owned(),
        source: e,
    };
    let mut file = File::open(image).map_err(step)?;
    let found = file.metadata().map_err(step)?.len();
    let mut header = Vec::with_capacity(SQUASHFS_HEADER_BYTES);
    (&mut file)
        .take(SQUASHFS_HEADER_BYTES as u64)
        .read_to_end(&mut header)
        .map_err(step)?;
    rootswarm_image::check_squashfs(&header, found).map_err(|source| MountError::NoSquashfs {
        image: image.to_owned(),
        source,
    })
}

/// Mounts the root. Nothing stays behind when it fails.
pub fn mount_root(plan: &MountPlan) -> Result<MountedRoot, MountError> {
    check_squashfs(&plan.image)?;
    let mut undo = Undo::default();
    let mut report = CopyReport::default();
    undo.make_dir(&plan.rootmnt)?;
    match plan.mode {
        Mode::Overlay => overlay(plan, &mut undo)?,
        Mode::ReadOnly => undo.mount_squashfs(plan, &plan.rootmnt)?,
        Mode::Copy => report = copied(plan, &mut undo)?,
    }
    Ok(MountedRoot { undo, report })
}

fn overlay(plan: &MountPlan, undo: &mut Undo) -> Result<(), MountError> {
    let (ro, rw) = (plan.mnt.join("ro"), plan.mnt.join("rw"));
    undo.make_dir(&ro)?;
    undo.make_dir(&rw)?;
    undo.mount_squashfs(plan, &ro)?;
    // tmpfs' own limit of half the RAM is what the booted system's writes get.
    undo.mount("tmpfs", "tmpfs", &rw, MountFlags::empty(), c"mode=0755")?;
    let (upper, work) = (rw.join("upper"), rw.join("work"));
    // They go with the tmpfs, so no undoing of their own.
    for dir in [&upper, &work] {
        fs::create_dir(dir).map_err(step("create", dir))?;
    }
    let options = overlay_options(&ro, &upper, &work);
    undo.mount(
        "overlay",
        "overlay",
        &plan.rootmnt,
        MountFlags::empty(),
        &options,
    )?;
    // The targets before the first move: a move hides nothing of the lower half from overlayfs.
    let (new_ro, new_rw) = (plan.rootmnt.join("mnt/ro"), plan.rootmnt.join("mnt/rw"));
    for dir in [&new_ro, &new_rw] {
        make_inner_dir(&plan.rootmnt, dir)?;
    }
    undo.move_mount(&ro, &new_ro)?;
    undo.move_mount(&rw, &new_rw)
}

/// `lowerdir=…,upperdir=…,workdir=…`, with the characters overlayfs reads as its own escaped.
fn overlay_options(lower: &Path, upper: &Path, work: &Path) -> CString {
    use std::os::unix::ffi::OsStrExt;
    let mut options = Vec::new();
    for (name, path) in [
        ("lowerdir=", lower),
        (",upperdir=", upper),
        (",workdir=", work),
    ] {
        options.extend_from_slice(name.as_bytes());
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                options.push(b'\\');
            }
            // A path that was opened before holds no zero byte.
            options.extend((*byte != 0).then_some(*byte));
        }
    }
    CString::new(options).unwrap_or_default()
}

/// Makes `dir` inside the new root without ever following a link out of it: the image's author
/// may have put any kind of file at its place.
fn make_inner_dir(root: &Path, dir: &Path) -> Result<(), MountError> {
    let Ok(inner) = dir.strip_prefix(root) else {
        return Ok(());
    };
    let mut path = root.to_owned();
    for part in inner.components() {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(MountError::NotADirectory { path }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&path).map_err(step("create", &path))?;
            }
            Err(e) => return Err(step("look at", &path)(e)),
        }
    }
    Ok(())
}

fn copied(plan: &MountPlan, undo: &mut Undo) -> Result<CopyReport, MountError> {
    let source = plan.mnt.join("ro");
    // The squashfs is only borrowed for the copying: a scope of its own takes it away again.
    let mut borrowed = Undo::default();
    borrowed.make_dir(&source)?;
    borrowed.mount_squashfs(plan, &source)?;
    let size = copy_tree::measure(&source)?;
    if size.bytes > plan.copy_budget_bytes {
        return Err(MountError::TooLarge {
            needed: size.bytes,
            available: plan.copy_budget_bytes,
        });
    }
    // Half the RAM is tmpfs' own choice, as in the older recipe; a root that needs more than that
    // gets what it needs and a quarter on top to live in.
    let options = if size.bytes + size.bytes / 4 > half_of_ram() {
        format!("mode=0755,size={}", size.bytes + size.bytes / 4)
    } else {
        "mode=0755".to_owned()
    };
    let options = CString::new(options).unwrap_or_default();
    undo.mount(
        "tmpfs",
        "tmpfs",
        &plan.rootmnt,
        MountFlags::empty(),
        &options,
    )?;
    Ok(copy_tree::copy(&source, &plan.rootmnt)?)
}

fn half_of_ram() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)) / 2
}

fn step<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> MountError {
    let path = path.to_owned();
    move |e| MountError::Step {
        step,
        path,
        source: e.into(),
    }
}

/// What was done, to be undone in reverse order unless it is kept.
#[derive(Debug, Default)]
struct Undo {
    steps: Vec<Done>,
}

#[derive(Debug)]
enum Done {
    MadeDir(PathBuf),
    Mounted(PathBuf),
    Moved { from: PathBuf, to: PathBuf },
}

impl Undo {
    /// `mkdir -p`, remembering each directory that was not there before.
    fn make_dir(&mut self, dir: &Path) -> Result<(), MountError> {
        let mut missing = Vec::new();
        let mut path = dir;
        while !path.exists() {
            missing.push(path);
            match path.parent() {
                Some(parent) if parent != Path::new("") => path = parent,
                _ => break,
            }
        }
        for path in missing.into_iter().rev() {
            fs::create_dir(path).map_err(step("create", path))?;
            self.steps.push(Done::MadeDir(path.to_owned()));
        }
        if !dir.is_dir() {
            return Err(step("use as a mount point", dir)(Errno::NOTDIR));
        }
        Ok(())
    }

    fn mount_squashfs(&mut self, plan: &MountPlan, target: &Path) -> Result<(), MountError> {
        let device = LoopDevice::attach(&plan.image, &plan.dev)
            .map_err(step("attach a loop device to", &plan.image))?;
        self.mount(device.path(), "squashfs", target, MountFlags::RDONLY, c"")
        // Dropping `device` here leaves the mount as its only user: unmounting clears it.
    }

    fn mount(
        &mut self,
        source: impl AsRef<Path>,
        kind: &'static str,
        target: &Path,
        flags: MountFlags,
        options: &CStr,
    ) -> Result<(), MountError> {
        rustix::mount::mount(source.as_ref(), target, kind, flags, options).map_err(
            |e| match e {
                Errno::NODEV => MountError::NoFilesystem {
                    kind,
                    path: target.to_owned(),
                },
                e => step(mount_step(kind), target)(e),
            },
        )?;
        self.steps.push(Done::Mounted(target.to_owned()));
        Ok(())
    }

    fn move_mount(&mut self, from: &Path, to: &Path) -> Result<(), MountError> {
        rustix::mount::mount_move(from, to).map_err(step("move a mount to", to))?;
        self.steps.push(Done::Moved {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }
}

fn mount_step(kind: &str) -> &'static str {
    match kind {
        "squashfs" => "mount the squashfs on",
        "overlay" => "mount the overlay on",
        _ => "mount a tmpfs on",
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Undoing is best effort: the first error is already on its way to the console.
        while let Some(done) = self.steps.pop() {
            match done {
                Done::MadeDir(path) => {
                    let _ = fs::remove_dir(path);
                }
                Done::Mounted(path) => {
                    if rustix::mount::unmount(&path, UnmountFlags::NOFOLLOW).is_err() {
                        let lazily = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                        let _ = rustix::mount::unmount(&path, lazily);
                    }
                }
                Done::Moved { from, to } => {
                    let _ = rustix::mount::mount_move(to, from);
                }
            }
        }
    }
}
