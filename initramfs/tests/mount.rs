//! Mounting for real, as root, in a mount namespace of its own: all three modes, and at each step
//! that can fail, that nothing stays behind.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rootswarm_agent::exit::{Classified, Exit};
use rootswarm_agent::mount::{Mode, MountPlan, mount_root};
use support::{in_mount_namespace, loops_of, mounted_at, mounts, small_root, squashfs};

/// A directory with an image in it, and the plan to mount it.
struct Lab {
    dir: tempfile::TempDir,
    plan: MountPlan,
}

impl Lab {
    fn new(mode: Mode) -> Lab {
        Lab::with(mode, |_| {})
    }

    /// `change` may spoil the tree before the image is made of it.
    fn with(mode: Mode, change: impl FnOnce(&Path)) -> Lab {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = small_root(dir.path());
        change(&tree);
        let image = dir.path().join("image.squashfs");
        squashfs(&tree, &image);
        let plan = MountPlan {
            mode,
            image,
            rootmnt: dir.path().join("root"),
            mnt: dir.path().join("mnt"),
            dev: "/dev".into(),
            copy_budget_bytes: u64::MAX,
        };
        Lab { dir, plan }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Mounting fails this way, and leaves everything as it was.
    fn check_fails(&self, exit: Exit, part: &str) {
        let (mounts_before, files_before) = (mounts(), files(self.dir.path()));
        let error = mount_root(&self.plan).expect_err(part);
        assert!(
            error.to_string().contains(part),
            "expected \"{part}\" in: {error}"
        );
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_eq!(error.exit(), exit, "{error}");
        assert_eq!(mounts(), mounts_before, "{part}");
        assert_eq!(files(self.dir.path()), files_before, "{part}");
        self.check_no_loop();
    }

    fn check_no_loop(&self) {
        let part = self
            .dir
            .path()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        support::eventually("the loop device clearing itself", || {
            loops_of(&part).is_empty()
        });
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("a directory").flatten() {
            if entry.file_type().expect("a type").is_dir() {
                pending.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn overlay() {
    in_mount_namespace("overlay", || {
        let lab = Lab::new(Mode::Overlay);
        let before = mounts();
        let root = mount_root(&lab.plan).expect("a root");
        let at = |name: &str| mounted_at(&lab.path(name)).unwrap_or_default();
        assert_eq!(at("root"), "overlay");
        assert_eq!(at("root/mnt/ro"), "squashfs");
        assert_eq!(at("root/mnt/rw"), "tmpfs");
        assert_eq!(
            (at("mnt/ro"), at("mnt/rw")),
            (String::new(), String::new()),
            "moved away"
        );
        // What is written goes to the tmpfs; what was there can be changed and removed.
        fs::write(lab.path("root/etc/hostname"), "changed\n").expect("writable");
        fs::remove_file(lab.path("root/etc/nothing")).expect("writable");
        let upper = fs::read_to_string(lab.path("root/mnt/rw/upper/etc/hostname"));
        assert_eq!(upper.expect("in the upper half"), "changed\n");
        let lower = fs::read_to_string(lab.path("root/mnt/ro/etc/hostname"));
        assert_eq!(lower.expect("in the lower half"), "swarm\n");
        assert!(
            fs::write(lab.path("root/mnt/ro/etc/hostname"), "x").is_err(),
            "read-only"
        );

        // Given up after all: everything comes apart again.
        drop(root);
        assert_eq!(mounts(), before);
        assert!(!lab.path("root").exists() && !lab.path("mnt").exists());
        lab.check_no_loop();
    });
}

#[test]
fn read_only() {
    in_mount_namespace("read_only", || {
        let lab = Lab::new(Mode::ReadOnly);
        fs::create_dir(lab.path("root")).expect("a directory");
        mount_root(&lab.plan).expect("a root").keep();
        assert_eq!(mounted_at(&lab.path("root")).as_deref(), Some("squashfs"));
        assert_eq!(
            fs::read_to_string(lab.path("root/etc/hostname")).expect("a file"),
            "swarm\n"
        );
        assert!(fs::write(lab.path("root/new"), "x").is_err());
        assert!(
            !lab.path("mnt").exists(),
            "nothing is made that is not needed"
        );
        let status = Command::new("umount")
            .arg(lab.path("root"))
            .status()
            .expect("umount");
        assert!(status.success());
        lab.check_no_loop();
    });
}

/// All that makes a file what it is, but for its place on the disk.
#[derive(Debug, PartialEq)]
struct Look {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    length: u64,
    modified: (i64, i64),
    content: Option<Vec<u8>>,
    link_target: Option<PathBuf>,
    attributes: String,
}

fn looks(root: &Path) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::new();
    let paths = files(root).into_iter().chain([root.to_owned()]);
    for path in paths {
        let meta = fs::symlink_metadata(&path).expect("metadata");
        let kind = meta.file_type();
        let special = kind.is_char_device() || kind.is_block_device();
        let attributes = Command::new("getfattr")
            .args(["-h", "-d", "-m", "-", "--absolute-names"])
            .arg(&path)
            .output()
            .expect("getfattr");
        let attributes = String::from_utf8_lossy(&attributes.stdout);
        let inner = path.strip_prefix(root).expect("below").to_owned();
        let look = Look {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            links: if kind.is_dir() { 0 } else { meta.nlink() },
            device: if special { meta.rdev() } else { 0 },
            length: if kind.is_dir() { 0 } else { meta.len() },
            modified: (meta.mtime(), meta.mtime_nsec()),
            content: kind.is_file().then(|| fs::read(&path).expect("a file")),
            link_target: kind
                .is_symlink()
                .then(|| fs::read_link(&path).expect("a link")),
            attributes: attributes.lines().skip(1).collect::<Vec<_>>().join("\n"),
        };
        found.insert(inner, look);
    }
    found
}

#[test]
fn copy() {
    in_mount_namespace("copy", || {
        let lab = Lab::new(Mode::Copy);
        let reference = lab.path("reference");
        fs::create_dir(&reference).expect("a directory");
        let status = Command::new("mount")
            .args(["-o", "loop,ro"])
            .args([&lab.plan.image, &reference])
            .status();
        assert!(status.expect("mount").success());
        let expected = looks(&reference);
        assert!(
            expected[Path::new("bin/big")]
                .attributes
                .contains("security.capability")
        );
        assert!(
            expected[Path::new("etc/hostname")]
                .attributes
                .contains("trusted.swarm")
        );
        assert_eq!(expected[Path::new("bin/same")].links, 2);

        let root = mount_root(&lab.plan).expect("a root");
        assert_eq!(root.report.attributes_lost, 0);
        assert_eq!(mounted_at(&lab.path("root")).as_deref(), Some("tmpfs"));
        assert!(!lab.path("mnt").exists(), "the borrowed squashfs is gone");
        let found = looks(&lab.path("root"));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>()
        );
        for (path, look) in &found {
            assert_eq!(look, &expected[path], "{}", path.display());
        }
        let inode = |name: &str| fs::metadata(lab.path(name)).expect("a file").ino();
        assert_eq!(
            inode("root/bin/big"),
            inode("root/bin/same"),
            "one file, two names"
        );
        let hole = fs::metadata(lab.path("root/etc/hole")).expect("a file");
        assert!(
            hole.blocks() * 512 < 300_000,
            "5 MB of zeros take {} blocks",
            hole.blocks()
        );
        fs::write(lab.path("root/new"), "x").expect("writable");
        root.keep();
        let status = Command::new("umount")
            .args([&reference, &lab.path("root")])
            .status();
        assert!(status.expect("umount").success());
        lab.check_no_loop();
    });
}

#[test]
fn not_a_squashfs() {
    in_mount_namespace("not_a_squashfs", || {
        let lab = Lab::new(Mode::Overlay);
        let image = fs::read(&lab.plan.image).expect("the image");
        fs::write(&lab.plan.image, b"#!/bin/sh\n").expect("a file");
        lab.check_fails(Exit::NotMountable, "not a squashfs image");
        fs::write(&lab.plan.image, b"").expect("a file");
        lab.check_fails(Exit::NotMountable, "not a squashfs image");
        fs::write(&lab.plan.image, &image[..image.len() / 2]).expect("a file");
        lab.check_fails(Exit::NotMountable, "cut off");
        // A right superblock with nothing right behind it: the kernel refuses.
        let mut hollow = image.clone();
        hollow[96..].fill(0xff);
        fs::write(&lab.plan.image, &hollow).expect("a file");
        lab.check_fails(Exit::NotMountable, "cannot mount the squashfs on");
        fs::remove_file(&lab.plan.image).expect("a file");
        lab.check_fails(Exit::NotMountable, "cannot read");
    });
}

#[test]
fn no_loop_device() {
    in_mount_namespace("no_loop_device", || {
        for mode in [Mode::Overlay, Mode::ReadOnly, Mode::Copy] {
            let mut lab = Lab::new(mode);
            lab.plan.dev = lab.path("dev");
            lab.check_fails(Exit::NotMountable, "cannot attach a loop device to");
        }
    });
}

#[test]
fn mount_points_that_are_none() {
    in_mount_namespace("mount_points_that_are_none", || {
        for mode in [Mode::Overlay, Mode::ReadOnly, Mode::Copy] {
            let lab = Lab::new(mode);
            fs::write(lab.path("root"), "a file").expect("a file");
            lab.check_fails(Exit::NotMountable, "cannot use as a mount point");
        }
        // After the directory for the lower half was made.
        let lab = Lab::new(Mode::Overlay);
        fs::create_dir(lab.path("mnt")).expect("a directory");
        fs::write(lab.path("mnt/rw"), "a file").expect("a file");
        lab.check_fails(Exit::NotMountable, "cannot use as a mount point");
        let lab = Lab::new(Mode::Copy);
        fs::write(lab.path("mnt"), "a file").expect("a file");
        lab.check_fails(Exit::NotMountable, "mnt");
    });
}

/// The image has something else where the halves go: after the overlay is mounted, and, for rw,
/// after directories were made in it. A link is never followed out of the new root.
#[test]
fn an_image_that_is_in_the_way() {
    in_mount_namespace("an_image_that_is_in_the_way", || {
        let file = Lab::with(Mode::Overlay, |tree| {
            fs::write(tree.join("mnt"), "a file").expect("a file");
        });
        file.check_fails(Exit::NotMountable, "root/mnt in the image is no directory");
        let link = Lab::with(Mode::Overlay, |tree| {
            fs::create_dir(tree.join("mnt")).expect("a directory");
            std::os::unix::fs::symlink("/etc", tree.join("mnt/rw")).expect("a link");
        });
        link.check_fails(
            Exit::NotMountable,
            "root/mnt/rw in the image is no directory",
        );
    });
}

/// A shared parent forbids moving mounts away from it: the last steps fail, with everything
/// mounted already.
#[test]
fn mounts_that_cannot_be_moved() {
    in_mount_namespace("mounts_that_cannot_be_moved", || {
        let lab = Lab::new(Mode::Overlay);
        fs::create_dir(lab.path("mnt")).expect("a directory");
        let mount = |args: &[&str]| {
            let status = Command::new("mount")
                .args(args)
                .arg(lab.path("mnt"))
                .status();
            assert!(status.expect("mount").success());
        };
        mount(&["-t", "tmpfs", "tmpfs"]);
        mount(&["--make-shared"]);
        lab.check_fails(Exit::NotMountable, "cannot move a mount to");
    });
}

#[test]
fn a_copy_that_does_not_fit() {
    in_mount_namespace("a_copy_that_does_not_fit", || {
        let mut lab = Lab::new(Mode::Copy);
        // Two names of one 300 kB file, the non-zero end of a hole, and inodes: under 1.5 MB.
        lab.plan.copy_budget_bytes = 100_000;
        lab.check_fails(Exit::Resource, "only 0.1 MB of RAM may be used");
        lab.plan.copy_budget_bytes = 10 << 20;
        drop(mount_root(&lab.plan).expect("10 MB are enough"));
        lab.check_no_loop();
    });
}
