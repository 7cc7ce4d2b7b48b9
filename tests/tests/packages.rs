//! The Debian packages: installed, upgraded, removed and purged in a Debian of their own.
//!
//! Building is `cargo xtask deb`'s; that machines boot from the initramfs that the package makes is
//! the suite `vm`'s. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rootswarm_tests::packages;
use rootswarm_tests::scenario::{Outcome, scenario};
use rootswarm_tests::source::{SUPERBLOCK_BYTES, superblock};
use rootswarm_tests::vm::binaries::workspace_root;
use rootswarm_tests::vm::cache::Cache;
use rootswarm_tests::vm::chroot::Chroot;
use rootswarm_tests::vm::debian::Debian;
use rootswarm_tests::vm::debs::Debs;
use serde_json::Value;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Both packages unpacked several times, and an initramfs with its unpacked parts.
const NEED_BYTES: u64 = 600_000_000;

const CONF: &str = "/etc/rootswarm/rootswarm.toml";
const AGENT_CONF: &str = "/etc/rootswarm/agent.conf";
const STATE: &str = "/var/lib/rootswarm";

/// Every file of each package that is no directory, with its mode.
const SERVER_FILES: &[(&str, &str)] = &[
    (CONF, "644"),
    ("/usr/bin/rootswarm", "755"),
    ("/usr/lib/systemd/system/rootswarm.service", "644"),
    ("/usr/share/doc/rootswarm/README.md.gz", "644"),
    ("/usr/share/doc/rootswarm/SECURITY.md.gz", "644"),
    ("/usr/share/doc/rootswarm/changelog.gz", "644"),
    ("/usr/share/doc/rootswarm/copyright", "644"),
    ("/usr/share/doc/rootswarm/sbom.cdx.json", "644"),
    ("/usr/share/doc/rootswarm/third-party.gz", "644"),
    ("/usr/share/man/man1/rootswarm.1.gz", "644"),
];
const INITRAMFS_FILES: &[(&str, &str)] = &[
    (AGENT_CONF, "644"),
    ("/usr/sbin/rootswarm-agent", "755"),
    ("/usr/share/doc/rootswarm-initramfs/README.md.gz", "644"),
    ("/usr/share/doc/rootswarm-initramfs/changelog.gz", "644"),
    ("/usr/share/doc/rootswarm-initramfs/copyright", "644"),
    ("/usr/share/doc/rootswarm-initramfs/sbom.cdx.json", "644"),
    ("/usr/share/doc/rootswarm-initramfs/third-party.gz", "644"),
    ("/usr/share/initramfs-tools/hooks/rootswarm", "755"),
    ("/usr/share/initramfs-tools/scripts/ram", "644"),
    ("/usr/share/lintian/overrides/rootswarm-initramfs", "644"),
    ("/usr/share/man/man8/rootswarm-agent.8.gz", "644"),
];

/// What dpkg, apt and the logs keep of every package that ever was.
const NOT_OURS: &[&str] = &[
    "/boot/initrd.img-",
    "/debs",
    "/proc",
    "/tmp",
    "/var/cache/",
    "/var/lib/apt/",
    "/var/lib/dpkg/",
    "/var/lib/initramfs-tools/",
    "/var/log/",
];

/// Debian, the packages and a place to install them into.
struct Site {
    debs: Debs,
    chroot: Chroot,
    debian: Debian,
    /// Keeps other runs away from the root.
    cache: Cache,
}

impl Site {
    fn open(directory: &Path) -> Fallible<Site> {
        packages::ensure(rootswarm_tests::vm::PACKAGES)?;
        let cache = Cache::open(&|_| {})?;
        let debs = Debs::build(&cache.path().join("deb"), cache.logs())?;
        let debian = Debian::make(cache.path(), cache.logs(), &|_| {})?;
        let chroot = Chroot::over(&debian, &directory.join("changes"))?;
        // The initramfs is made some times here and never booted.
        chroot.write(
            "/etc/initramfs-tools/conf.d/quick",
            b"COMPRESS=zstd\nCOMPRESSLEVEL=1\n",
        )?;
        Ok(Site {
            debs,
            chroot,
            debian,
            cache,
        })
    }

    /// What a command inside prints; one that fails is an error with all that it said.
    fn run(&self, line: &str) -> Fallible<String> {
        succeeded(line, self.try_run(line)?)
    }

    fn try_run(&self, line: &str) -> Fallible<Output> {
        Ok(self.chroot.command("sh").args(["-c", line]).output()?)
    }

    /// Puts a package where apt inside finds it.
    fn offer(&self, package: &Path) -> Fallible<String> {
        let name = package.file_name().unwrap_or_default().to_string_lossy();
        let inside = format!("/debs/{name}");
        self.chroot.write(&inside, &fs::read(package)?)?;
        Ok(inside)
    }

    /// As the README says, from files alone: apt has no lists here.
    fn install(&self, packages: &[&Path]) -> Fallible<String> {
        let mut line = "apt-get install -y --no-install-recommends".to_owned();
        for package in packages {
            line.push_str(" .");
            line.push_str(&self.offer(package)?);
        }
        self.run(&line)
    }

    /// Everything in the root, with kind, mode and owner; not what dpkg and apt keep of any package.
    fn snapshot(&self) -> Fallible<BTreeSet<String>> {
        let found = self.run("find / -xdev -printf '%p %y %m %U:%G\\n'")?;
        let is_ours = |line: &&str| !NOT_OURS.iter().any(|start| line.starts_with(start));
        Ok(found.lines().filter(is_ours).map(str::to_owned).collect())
    }

    /// What is in the initramfs, but for this test's own setting.
    fn initramfs(&self) -> Fallible<BTreeSet<String>> {
        let version = &self.debian.kernel_version;
        let listed = self.run(&format!("lsinitramfs /boot/initrd.img-{version}"))?;
        let files = listed.lines().filter(|line| !line.ends_with("/quick"));
        Ok(files.map(str::to_owned).collect())
    }
}

fn succeeded(line: &str, output: Output) -> Fallible<String> {
    let stdout = String::from_utf8(output.stdout)?;
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{line}: {}\n{stdout}{stderr}", output.status).into())
}

fn host(program: &str, args: &[&str]) -> Fallible<String> {
    let line = format!("{program} {}", args.join(" "));
    succeeded(&line, Command::new(program).args(args).output()?)
}

#[test]
fn two_builds_are_the_same_bytes_and_lintian_has_no_complaint() {
    scenario(NEED_BYTES, |directory| {
        let site = Site::open(directory)?;
        let again = Debs::build(&directory.join("again"), site.cache.logs())?;
        for (first, second) in [
            (&site.debs.server, &again.server),
            (&site.debs.initramfs, &again.initramfs),
        ] {
            assert_eq!(first.file_name(), second.file_name());
            assert!(
                fs::read(first)? == fs::read(second)?,
                "{} differs from {}",
                first.display(),
                second.display()
            );
            // Errors and warnings fail; what is overridden is in debian/lintian-overrides, with why.
            let first = first.display().to_string();
            host(
                "lintian",
                &["--allow-root", "--fail-on", "error,warning", &first],
            )?;
        }
        Ok(())
    });
}

#[test]
fn installed_removed_and_purged() {
    scenario(NEED_BYTES, |directory| {
        let site = Site::open(directory)?;
        let before = site.snapshot()?;
        let initramfs_before = site.initramfs()?;
        site.install(&[&site.debs.server, &site.debs.initramfs])?;

        assert_eq!(site.run("dpkg --verify rootswarm rootswarm-initramfs")?, "");
        assert_eq!(site.run("dpkg --audit")?, "");
        has_files(&site, "rootswarm", SERVER_FILES)?;
        has_files(&site, "rootswarm-initramfs", INITRAMFS_FILES)?;
        assert_eq!(
            site.run("systemctl is-enabled rootswarm.service")?.trim(),
            "enabled"
        );
        let version = format!("rootswarm {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(site.run("rootswarm --version")?, version);
        assert!(site.run("rootswarm-agent --help")?.contains("exit codes"));

        bill_is_true(&site, "rootswarm", "/usr/bin/rootswarm")?;
        bill_is_true(&site, "rootswarm-initramfs", "/usr/sbin/rootswarm-agent")?;

        // The trigger has made the initramfs anew.
        let added = difference(&site.initramfs()?, &initramfs_before);
        for path in [
            "etc/rootswarm/agent.conf",
            "scripts/ram",
            "usr/sbin/rootswarm-agent",
        ] {
            assert!(added.contains(path), "the initramfs has no {path}");
        }
        // What a seed and its admin leave.
        let mut image = vec![7; 100_000];
        image[..SUPERBLOCK_BYTES].copy_from_slice(&superblock(100_000));
        site.chroot.write("/debs/image", &image)?;
        site.run("rootswarm publish --quiet image /debs/image")?;
        site.run("rootswarm key >/etc/rootswarm/swarm.pub")?;
        let readme = fs::read_to_string(workspace_root().join("README.md"))?;
        let for_nodes = readme
            .lines()
            .filter(|line| line.contains(" /srv/initramfs "));
        // There is no kernel of the builder's here.
        let version = &site.debian.kernel_version;
        for line in for_nodes {
            site.run(&line.replace("mkinitramfs ", &format!("mkinitramfs {version} ")))?;
        }
        let listed = site.run("lsinitramfs /srv/initrd.img && rm -r /srv/init*")?;
        for path in ["usr/sbin/rootswarm-agent", "etc/rootswarm/swarm.pub"] {
            let is_there = listed.lines().any(|line| line == path);
            assert!(is_there, "the nodes' initramfs has no {path}");
        }

        site.run("apt-get remove -y rootswarm rootswarm-initramfs")?;
        let left = difference(&site.snapshot()?, &before);
        let is_kept = |path: &&String| {
            [CONF, AGENT_CONF, STATE, "/etc/rootswarm"]
                .iter()
                .any(|kept| path.as_str() == *kept || path.starts_with(&format!("{kept}/")))
        };
        let (kept, other): (Vec<&String>, Vec<&String>) = left.iter().partition(is_kept);
        for path in [CONF, AGENT_CONF, &format!("{STATE}/swarm.key")] {
            assert!(kept.contains(&&path.to_owned()), "{path} went: {kept:?}");
        }
        // Debian's own memory of whether the service was enabled, and its mask.
        let helpers = |path: &&&String| {
            !path.starts_with("/var/lib/systemd/deb-systemd-helper")
                && **path != "/etc/systemd/system/rootswarm.service"
                && !path.ends_with(".wants/rootswarm.service")
        };
        let other: Vec<_> = other.iter().filter(helpers).collect();
        assert!(other.is_empty(), "left after a removal: {other:?}");
        assert_eq!(
            difference(&site.initramfs()?, &initramfs_before),
            BTreeSet::new(),
            "the initramfs after a removal"
        );

        site.run("apt-get purge -y rootswarm rootswarm-initramfs")?;
        let left = difference(&site.snapshot()?, &before);
        assert!(left.is_empty(), "left after a purge: {left:?}");
        let lost = difference(&before, &site.snapshot()?);
        assert!(lost.is_empty(), "lost by a purge: {lost:?}");
        Ok(())
    });
}

#[test]
fn an_upgrade_keeps_what_the_admin_changed() {
    scenario(NEED_BYTES, |directory| {
        let site = Site::open(directory)?;
        site.install(&[&site.debs.server])?;
        let own = b"upload-limit = \"100Mbit\"\n";
        site.chroot.write(CONF, own)?;
        site.run("systemctl disable rootswarm.service")?;

        // The next version has the same file: nobody is asked.
        let next = next_version(&site.debs.server, &directory.join("next"), "+next1", "")?;
        let said = site.install(&[&next])?;
        assert!(said.contains("+next1) over ("), "{said}");
        assert_eq!(site.chroot.read(CONF)?, own);
        // A service that was disabled stays so.
        let enabled = site.try_run("systemctl is-enabled rootswarm.service")?;
        assert_eq!(String::from_utf8(enabled.stdout)?.trim(), "disabled");

        // The one after it has another: kept, and the new one beside it, for whoever answers no
        // questions.
        let line = "# a new option\n";
        let after = next_version(&next, &directory.join("after"), "+next2", line)?;
        let after = site.offer(&after)?;
        site.run(&format!("dpkg --force-confdef --force-confold -i {after}"))?;
        assert_eq!(site.chroot.read(CONF)?, own);
        let offered = site.chroot.read(&format!("{CONF}.dpkg-dist"))?;
        assert!(String::from_utf8(offered)?.ends_with(line));

        site.run("apt-get purge -y rootswarm")?;
        let left = site.run("find /etc/rootswarm /var/lib/rootswarm -xdev 2>/dev/null || true")?;
        assert_eq!(left, "");
        Ok(())
    });
}

#[test]
fn a_build_that_cannot_be_written_says_so_in_one_line() {
    scenario(NEED_BYTES, |directory| {
        let file = directory.join("file");
        fs::write(&file, "")?;
        let error = match Debs::build(&file.join("out"), directory) {
            Ok(debs) => return Err(format!("built into a file: {debs:?}").into()),
            Err(error) => error.to_string(),
        };
        let said = fs::read_to_string(directory.join("deb.log"))?;
        let expected = format!("xtask: cannot make {}/out: ", file.display());
        assert!(
            said.lines().count() == 1 && said.starts_with(&expected),
            "{said}, {error}"
        );
        Ok(())
    });
}

/// All files of a package, as they are in the root: no others, owned by root, with these modes.
fn has_files(site: &Site, package: &str, expected: &[(&str, &str)]) -> Outcome {
    let listed = site.run(&format!(
        "dpkg -L {package} | tail -n +2 | xargs stat -c '%n %F:%a:%u:%g'"
    ))?;
    let mut files = BTreeMap::new();
    for line in listed.lines() {
        let (path, facts) = line.split_once(' ').ok_or("stat")?;
        match facts.strip_prefix("directory:") {
            Some(facts) => assert_eq!(facts, "755:0:0", "{path}"),
            None => drop(files.insert(path, facts)),
        }
    }
    let expected: BTreeMap<&str, String> = expected
        .iter()
        .map(|(path, mode)| (*path, format!("regular file:{mode}:0:0")))
        .collect();
    let files: BTreeMap<&str, String> = files
        .into_iter()
        .map(|(path, facts)| (path, facts.to_owned()))
        .collect();
    assert_eq!(files, expected, "{package}");
    Ok(())
}

/// The bill in a package has the checksums of `Cargo.lock`, and every crate that the program itself
/// names: a panic tells of the file that it came from.
fn bill_is_true(site: &Site, package: &str, program: &str) -> Outcome {
    let bill = site
        .chroot
        .read(&format!("/usr/share/doc/{package}/sbom.cdx.json"))?;
    let bill: Value = serde_json::from_slice(&bill)?;
    let lock = lock_checksums()?;
    let mut linked = BTreeSet::new();
    for component in bill["components"].as_array().ok_or("no components")? {
        let text = |name: &str| component[name].as_str().unwrap_or_default().to_owned();
        let id = format!("{}-{}", text("name"), text("version"));
        let hash = component["hashes"][0]["content"].as_str();
        assert_eq!(hash, lock.get(&id).map(String::as_str), "{package}: {id}");
        if text("scope") == "required" {
            linked.insert(id);
        }
    }
    let named = crates_named_in(&site.chroot.read(program)?);
    assert!(named.len() > 10, "{program} names {named:?}");
    let missing = difference(&named, &linked);
    assert!(
        missing.is_empty(),
        "{package}: not in its bill: {missing:?}"
    );
    Ok(())
}

/// `NAME-VERSION` and checksum of all that was fetched.
fn lock_checksums() -> Fallible<BTreeMap<String, String>> {
    let lock = fs::read_to_string(workspace_root().join("Cargo.lock"))?;
    let mut checksums = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            let line = package.lines().find_map(|line| line.strip_prefix(&start));
            line.map(|line| line.trim_end_matches('"'))
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            checksums.insert(format!("{name}-{version}"), checksum.to_owned());
        }
    }
    Ok(checksums)
}

/// Every `NAME-VERSION` in a path like `/cargo/registry/src/INDEX/NAME-VERSION/src/lib.rs`.
fn crates_named_in(program: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(program);
    text.split("/registry/src/")
        .skip(1)
        .filter_map(|rest| rest.split('/').nth(1))
        .map(str::to_owned)
        .collect()
}

/// The same package, a version later, with more at the end of its configuration file.
fn next_version(
    package: &Path,
    directory: &Path,
    suffix: &str,
    configuration: &str,
) -> Fallible<PathBuf> {
    let tree = directory.display().to_string();
    host("dpkg-deb", &["-R", &package.display().to_string(), &tree])?;
    let control = directory.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let version = text
        .lines()
        .find(|line| line.starts_with("Version: "))
        .ok_or("no version")?;
    fs::write(
        &control,
        text.replace(version, &format!("{version}{suffix}")),
    )?;
    let conf = directory.join(CONF.trim_start_matches('/'));
    fs::write(&conf, fs::read_to_string(&conf)? + configuration)?;
    let to = directory.with_extension("deb");
    let out = to.display().to_string();
    host(
        "dpkg-deb",
        &["--root-owner-group", "-Znone", "--build", &tree, &out],
    )?;
    Ok(to)
}

/// What is in `more` only, without kind, mode and owner.
fn difference(more: &BTreeSet<String>, than: &BTreeSet<String>) -> BTreeSet<String> {
    let only = more.difference(than);
    let path = only.map(|line| line.split(' ').next().unwrap_or_default());
    path.map(str::to_owned).collect()
}
