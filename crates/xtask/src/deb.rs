//! `cargo xtask deb`: the two programs as Debian packages.
//!
//! What is in each is in the table here and in `debian/` beside each program. What comes from the
//! commit is in [`commit`], the manual pages in [`manual`], what the crates of others ask to be said in
//! [`notices`], and how a tree of files becomes a package in [`staged`]. dpkg-deb packs it. Not cargo-deb, which gives a package no checksums (3.8 has no
//! md5sums, and `dpkg --verify` then knows only what was unpacked), and which every CI and every first
//! demo would have to build: 100 s of processor time.
//!
//! Nothing in a package depends on the time or the machine: one commit and one compiler make the same
//! bytes anywhere.

mod commit;
mod manual;
mod notices;
mod staged;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use rootswarm_tests::packages;
use rootswarm_tests::vm::binaries::{Binaries, target_directory, workspace_root};

use crate::bench::build_logs;
use crate::{print, sbom};
use commit::Commit;
use staged::Staged;

/// Debian's name for what both programs are built for.
const ARCHITECTURE: &str = "amd64";

/// Beside dpkg itself: its part for builders, what finds the commit, what compresses the documents.
const PROGRAMS: &[(&str, &str)] = &[
    ("dpkg-shlibdeps", "dpkg-dev"),
    ("git", "git"),
    ("gzip", "gzip"),
];

const COPYRIGHT: &str = include_str!("deb/copyright");

/// Build a Debian package of each program
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to; packages of other versions are removed there
    #[arg(long, value_name = "DIR", default_value = "target/deb")]
    out: PathBuf,
}

/// A file of the source tree in a package.
struct File {
    /// Below the program's directory.
    from: &'static str,
    to: &'static str,
    mode: u32,
}

struct Package {
    name: &'static str,
    /// The cargo package.
    program: &'static str,
    /// The program's directory in the source tree, with `debian/` below it.
    source: &'static str,
    /// Where the program goes.
    binary: &'static str,
    /// Links against the C library, so that dpkg-shlibdeps has to say which one it needs.
    is_dynamic: bool,
    files: &'static [File],
    /// Go to /usr/share/doc as they are, compressed.
    documents: &'static [&'static str],
    manual: manual::Page,
}

/// What both packages are made of. What everyone needs (copyright, changelog, bill, manual page) is
/// added to each.
const PACKAGES: [Package; 2] = [
    Package {
        name: "rootswarm",
        program: "rootswarm",
        source: "server",
        binary: "usr/bin/rootswarm",
        is_dynamic: true,
        files: &[
            File {
                from: "systemd/rootswarm.service",
                // Debian 12 has one /usr, and 13 wants it by this name.
                to: "usr/lib/systemd/system/rootswarm.service",
                mode: 0o644,
            },
            File {
                from: "rootswarm.toml",
                to: "etc/rootswarm/rootswarm.toml",
                mode: 0o644,
            },
        ],
        documents: &["../README.md", "SECURITY.md"],
        manual: manual::Page {
            section: 1,
            summary: "seed for booting diskless machines from a swarm",
            commands: &[
                "serve", "publish", "images", "remove", "tag", "rollback", "status", "pxe",
                "token", "revoke", "key",
            ],
        },
    },
    Package {
        name: "rootswarm-initramfs",
        program: "rootswarm-agent",
        source: "initramfs",
        binary: "usr/sbin/rootswarm-agent",
        is_dynamic: false,
        files: &[
            File {
                from: "initramfs-tools/hooks/rootswarm",
                to: "usr/share/initramfs-tools/hooks/rootswarm",
                mode: 0o755,
            },
            File {
                from: "initramfs-tools/scripts/ram",
                to: "usr/share/initramfs-tools/scripts/ram",
                mode: 0o644,
            },
            File {
                from: "agent.conf",
                to: "etc/rootswarm/agent.conf",
                mode: 0o644,
            },
            File {
                from: "debian/lintian-overrides",
                to: "usr/share/lintian/overrides/rootswarm-initramfs",
                mode: 0o644,
            },
        ],
        documents: &["README.md"],
        manual: manual::Page {
            section: 8,
            summary: "fetches a root image from the swarm and boots from it",
            commands: &["boot", "fetch", "status"],
        },
    },
];

/// Builds both programs and both packages, and prints where these are.
///
/// # Errors
/// When something cannot be installed, built, read or written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(PROGRAMS).context("cannot install what builds packages")?;
    let commit = Commit::of_head()?;
    let binaries = Binaries::build(&build_logs()?)?;
    let out = &args.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for package in &PACKAGES {
        let binary = match package.program {
            "rootswarm" => &binaries.server,
            _ => &binaries.agent,
        };
        remove_other_versions(out, package)?;
        let path = package
            .build(binary, &commit, out)
            .with_context(|| format!("cannot build the package {}", package.name))?;
        let bytes = fs::metadata(&path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .len();
        print::line(format_args!("{}: {bytes} bytes", path.display()))?;
    }
    Ok(())
}

/// So that `DIR/NAME_*.deb` is always one file, the newest.
fn remove_other_versions(out: &Path, package: &Package) -> anyhow::Result<()> {
    let entries = fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let is_one = name
            .strip_prefix(package.name)
            .is_some_and(|rest| rest.starts_with('_') && rest.ends_with(".deb"));
        if is_one {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

impl Package {
    fn build(&self, binary: &Path, commit: &Commit, out: &Path) -> anyhow::Result<PathBuf> {
        let source = workspace_root().join(self.source);
        let debian = source.join("debian");
        let staged = Staged::new(target_directory().join("deb-staged").join(self.name))?;

        staged.copy(binary, self.binary, 0o755)?;
        for file in self.files {
            staged.copy(&source.join(file.from), file.to, file.mode)?;
        }
        let documents = format!("usr/share/doc/{}", self.name);
        for name in self.documents {
            let from = source.join(name);
            let name = from.file_name().unwrap_or_default().display();
            let text =
                fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
            staged.compressed(&format!("{documents}/{name}.gz"), &text)?;
        }
        staged.write(&format!("{documents}/copyright"), COPYRIGHT.as_bytes())?;
        // Not compressed: scanners know it by the end of its name.
        staged.write(
            &format!("{documents}/sbom.cdx.json"),
            sbom::document(self.program)?.as_bytes(),
        )?;
        staged.compressed(
            &format!("{documents}/third-party.gz"),
            notices::of(self.program)?.as_bytes(),
        )?;
        let control = read(&debian.join("control"))?;
        let maintainer = field(&control, "Maintainer")?;
        staged.compressed(
            &format!("{documents}/changelog.gz"),
            commit.changelog(maintainer).as_bytes(),
        )?;
        let section = self.manual.section;
        staged.compressed(
            &format!("usr/share/man/man{section}/{}.{section}.gz", self.program),
            self.manual.write(binary, self.program, commit)?.as_bytes(),
        )?;

        let mut control = control
            .replace("${version}", &commit.version)
            .replace("${architecture}", ARCHITECTURE)
            .replace(
                "${installed-size}",
                &staged.installed_size_kib()?.to_string(),
            );
        if self.is_dynamic {
            control = control.replace("${shlibs:Depends}", &self.libraries(binary)?);
        }
        ensure!(
            !control.contains("${"),
            "{}/control has a variable that is not known",
            debian.display()
        );
        staged.control(&control, &debian)?;
        let name = format!("{}_{}_{ARCHITECTURE}.deb", self.name, commit.version);
        let path = out.join(name);
        staged.pack(&path, commit)?;
        Ok(path)
    }

    /// What dpkg-shlibdeps says that the program needs, as it stands in `Depends:`.
    fn libraries(&self, binary: &Path) -> anyhow::Result<String> {
        // It looks for the control file of a source package, and reads names from it.
        let place = target_directory().join("deb-staged/shlibdeps");
        let debian = place.join("debian");
        fs::create_dir_all(&debian).with_context(|| format!("cannot make {}", debian.display()))?;
        let control = debian.join("control");
        let name = self.name;
        fs::write(
            &control,
            format!("Source: {name}\n\nPackage: {name}\nArchitecture: {ARCHITECTURE}\n"),
        )
        .with_context(|| format!("cannot write {}", control.display()))?;
        let mut command = Command::new("dpkg-shlibdeps");
        command.arg("-O").arg(binary).current_dir(&place);
        let said = output(command)?;
        let depends = said
            .lines()
            .find_map(|line| line.strip_prefix("shlibs:Depends="));
        depends
            .map(str::to_owned)
            .with_context(|| format!("dpkg-shlibdeps found no library of {}", binary.display()))
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The value of a field of a control file.
fn field<'a>(control: &'a str, name: &str) -> anyhow::Result<&'a str> {
    control
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .with_context(|| format!("the control file has no {name}"))
}

/// What a command that succeeds prints; one that does not is an error with its last line.
fn output(mut command: Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        said.trim_end().lines().last().unwrap_or_default()
    );
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed no text"))
}
