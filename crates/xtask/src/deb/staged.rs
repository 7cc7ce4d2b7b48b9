//! A tree of files that becomes a package: modes, checksums, control files, and dpkg-deb.
//!
//! Every mode is set, so that the builder's umask is not in the package; owners and dates are
//! dpkg-deb's to set. What the files are is said elsewhere.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use super::commit::Commit;
use super::{output, read};

/// Files of `debian/` that go into the package's control area, and their modes.
const CONTROL_FILES: [(&str, u32); 4] = [
    ("postinst", 0o755),
    ("prerm", 0o755),
    ("postrm", 0o755),
    ("triggers", 0o644),
];

/// The tree, made anew.
pub(super) struct Staged {
    root: PathBuf,
}

impl Staged {
    /// An empty one.
    pub(super) fn new(root: PathBuf) -> anyhow::Result<Staged> {
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", root.display()));
            }
            _ => {}
        }
        let staged = Staged { root };
        fs::create_dir_all(&staged.root)
            .with_context(|| format!("cannot make {}", staged.root.display()))?;
        staged.set_mode(&staged.root, 0o755)?;
        Ok(staged)
    }

    /// Copies a file to `to`, below the root.
    pub(super) fn copy(&self, from: &Path, to: &str, mode: u32) -> anyhow::Result<()> {
        let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.write_with(to, &bytes, mode)
    }

    /// Writes a file that everybody can read.
    pub(super) fn write(&self, to: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.write_with(to, bytes, 0o644)
    }

    /// The same, through gzip, without name and date.
    pub(super) fn compressed(&self, to: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut gzip = Command::new("gzip")
            .args(["-9", "--no-name", "--stdout"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run gzip")?;
        // Both pipes at once: it writes before it has read all.
        let mut stdin = gzip.stdin.take().context("gzip has no standard input")?;
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(move || stdin.write_all(bytes));
            let output = gzip.wait_with_output();
            match writer.join() {
                Ok(written) => written.and(output),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        let output = written.with_context(|| format!("cannot compress {to}"))?;
        ensure!(output.status.success(), "gzip failed on {to}");
        self.write(to, &output.stdout)
    }

    /// As dpkg-gencontrol counts it: files in whole KiB, and one for everything else.
    pub(super) fn installed_size_kib(&self) -> anyhow::Result<u64> {
        let mut kib = 0;
        for path in self.paths()? {
            let found = self.metadata(&path)?;
            kib += if found.is_file() {
                found.len().div_ceil(1024)
            } else {
                1
            };
        }
        Ok(kib)
    }

    /// Adds the control area; call it last. What is below /etc is the admin's to change, and an upgrade
    /// keeps it (a conffile); all else has a checksum for `dpkg --verify`.
    pub(super) fn control(&self, control: &str, debian: &Path) -> anyhow::Result<()> {
        let mut conffiles = String::new();
        let mut others = Vec::new();
        for path in self.paths()? {
            if !self.metadata(&path)?.is_file() {
                continue;
            }
            match path.starts_with("etc/") {
                true => conffiles.push_str(&format!("/{path}\n")),
                false => others.push(path),
            }
        }
        let mut command = Command::new("md5sum");
        command.arg("--").args(&others).current_dir(&self.root);
        let md5sums = output(command)?;

        self.write("DEBIAN/control", control.as_bytes())?;
        self.write("DEBIAN/conffiles", conffiles.as_bytes())?;
        self.write("DEBIAN/md5sums", md5sums.as_bytes())?;
        for (name, mode) in CONTROL_FILES {
            let from = debian.join(name);
            if from.exists() {
                self.write_with(&format!("DEBIAN/{name}"), read(&from)?.as_bytes(), mode)?;
            }
        }
        Ok(())
    }

    /// The package.
    pub(super) fn pack(&self, path: &Path, commit: &Commit) -> anyhow::Result<()> {
        let mut command = Command::new("dpkg-deb");
        command
            .arg("--root-owner-group")
            // How many threads share the work shows in what xz makes.
            .args(["-Zxz", "--threads-max=1", "--build"])
            .arg(&self.root)
            .arg(path)
            .env("SOURCE_DATE_EPOCH", &commit.epoch_s);
        output(command).map(drop)
    }

    fn write_with(&self, to: &str, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
        let mut directory = self.root.clone();
        let parent = Path::new(to).parent().unwrap_or(Path::new(""));
        for name in parent {
            directory.push(name);
            match fs::create_dir(&directory) {
                Ok(()) => self.set_mode(&directory, 0o755)?,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => bail!("cannot make {}: {error}", directory.display()),
            }
        }
        let path = self.root.join(to);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        self.set_mode(&path, mode)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> anyhow::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .with_context(|| format!("cannot set the mode of {}", path.display()))
    }

    fn metadata(&self, path: &str) -> anyhow::Result<fs::Metadata> {
        let path = self.root.join(path);
        fs::symlink_metadata(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// All that is in it, below its root, in order.
    fn paths(&self) -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("find");
        command
            .args([".", "-mindepth", "1", "-printf", "%P\\n"])
            .current_dir(&self.root);
        let mut paths: Vec<String> = output(command)?.lines().map(str::to_owned).collect();
        paths.sort();
        Ok(paths)
    }
}
