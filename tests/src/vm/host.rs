//! The PXE host of the lab: the seed, a stock dnsmasq, and the files that `rootswarm pxe` wrote for
//! it, on a bridge in a namespace.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::binaries::Binaries;
use super::debian::Debian;
use super::machine::{Loaded, MachineSpec};
use super::step::{self, StepError};
use crate::netns::{BRIDGE_INTERFACE, Bridge, NetnsError};
use crate::process::{Process, ProcessError};

/// The host's address on the bridge; machine N is 10.78.0.N.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The site's network.
pub(super) const PREFIX_LEN: u8 = 24;
/// The numbers that machines may have.
const MACHINE_NUMBERS: RangeInclusive<u8> = 2..=199;
/// The name that the image is published under.
pub const IMAGE: &str = "debian";
/// The console that the lab reads, no emergency shell that nobody will type into, and no check of the
/// timer: an emulated one on a busy host fails it, and the kernel panics.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=5 no_timer_check";

/// Of dnsmasq's log in a failure: four netboots' worth.
const DNSMASQ_LINES: usize = 40;

const STEP_LIMIT: Duration = Duration::from_secs(300);
const READY_LIMIT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(10);

/// Why the PXE host is not there.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No bridge.
    #[error(transparent)]
    Network(#[from] NetnsError),
    /// A server could not be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file or a command of the preparation.
    #[error(transparent)]
    Step(#[from] StepError),
    /// It was stopped before.
    #[error("no seed runs")]
    NoSeed,
    /// `rootswarm status` failed.
    #[error("`rootswarm status --json` failed: {0}")]
    Status(String),
    /// The pxelinux configuration has no line to change.
    #[error("{}: no KERNEL, INITRD or APPEND line", path.display())]
    NoAppend {
        /// The file.
        path: PathBuf,
    },
}

/// The installation's key, made once and kept, so that the initramfs can be kept too.
#[derive(Debug, Clone)]
pub struct SwarmKeys {
    /// What the initramfs bakes in.
    pub public: PathBuf,
    /// What the seed signs with.
    pub secret: PathBuf,
}

impl SwarmKeys {
    /// Makes them in `directory`, or finds them there.
    ///
    /// # Errors
    /// When `rootswarm key` fails.
    pub fn make(
        directory: &Path,
        binaries: &Binaries,
        logs: &Path,
    ) -> Result<SwarmKeys, StepError> {
        let mut command = Command::new(&binaries.server);
        command.args(["key", "--state"]).arg(directory);
        step::run("rootswarm key", command, &logs.join("key.log"), STEP_LIMIT)?;
        Ok(SwarmKeys {
            public: directory.join("swarm.pub"),
            secret: directory.join("swarm.key"),
        })
    }
}

/// How the boot loader gets kernel and initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// From dnsmasq. TFTP sends a packet and waits for its answer: a lost one costs a second.
    Tftp,
    /// From the seed's HTTP side (`rootswarm pxe --http`); only the boot loader is left to TFTP.
    Http,
}

/// A running PXE host.
#[derive(Debug)]
pub struct Host {
    seed: Option<Process>,
    dnsmasq: Process,
    bridge: Bridge,
    server: PathBuf,
    directory: PathBuf,
    rooturl: String,
}

impl Host {
    /// Publishes the image, writes the PXE files and starts seed and dnsmasq. Everything is kept in
    /// `directory`.
    ///
    /// # Errors
    /// When one of them refuses.
    pub fn start(
        binaries: &Binaries,
        debian: &Debian,
        initrd: &Path,
        keys: &SwarmKeys,
        files: Files,
        directory: &Path,
    ) -> Result<Host, HostError> {
        let state = directory.join("state");
        fs::create_dir_all(&state).map_err(StepError::file("make", &state))?;
        for key in [&keys.secret, &keys.public] {
            let to = state.join(key.file_name().unwrap_or_default());
            fs::copy(key, &to).map_err(StepError::file("copy", key))?;
        }

        let bridge = Bridge::create("site")?;
        bridge
            .namespace()
            .add_address(BRIDGE_INTERFACE, ADDRESS, PREFIX_LEN)?;

        // Inside, because both look at the host's addresses.
        let rootswarm = |arguments: &[&str]| {
            let mut command = bridge.namespace().command(&binaries.server);
            command.args(arguments).arg("--state").arg(&state);
            command
        };
        let mut publish = rootswarm(&["publish", IMAGE]);
        publish.arg(&debian.squashfs);
        step::run(
            "rootswarm publish",
            publish,
            &directory.join("publish.log"),
            STEP_LIMIT,
        )?;

        let tftp = directory.join("tftp");
        let mut pxe = rootswarm(&[
            "pxe",
            "--image",
            IMAGE,
            "--append",
            KERNEL_ARGUMENTS,
            "--no-ipxe",
        ]);
        pxe.args(["--host", &ADDRESS.to_string()])
            .arg("--kernel")
            .arg(&debian.kernel)
            .arg("--initrd")
            .arg(initrd)
            .arg("--out")
            .arg(&tftp);
        if files == Files::Http {
            pxe.arg("--http");
        }
        step::run("rootswarm pxe", pxe, &directory.join("pxe.log"), STEP_LIMIT)?;

        let dnsmasq = start_dnsmasq(&bridge, &tftp, directory)?;
        let mut host = Host {
            seed: None,
            dnsmasq,
            bridge,
            server: binaries.server.clone(),
            directory: directory.to_owned(),
            rooturl: String::new(),
        };
        host.start_seed(None)?;
        Ok(host)
    }

    /// The switch, with the host's own namespace.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// dnsmasq answers nobody: not gone, but as a host that is too busy.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze_dnsmasq(&mut self) -> Result<(), HostError> {
        Ok(self.dnsmasq.signal(Signal::STOP)?)
    }

    /// It goes on where it was.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw_dnsmasq(&mut self) -> Result<(), HostError> {
        Ok(self.dnsmasq.signal(Signal::CONT)?)
    }

    /// The last that dnsmasq said of a machine and in general: what came from it, what went to it.
    pub fn dnsmasq_said(&self, spec: &MachineSpec) -> String {
        let output = self.dnsmasq.output().unwrap_or_default();
        let (mac, address) = (spec.mac(), format!("{} ", spec.address()));
        let concerns = |line: &&str| {
            let line = format!("{line} ");
            line.contains(&mac) || line.contains(&address) || !line.contains("10.78.0.")
        };
        let lines: Vec<&str> = output.lines().filter(concerns).collect();
        lines[lines.len().saturating_sub(DNSMASQ_LINES)..].join("\n")
    }

    /// The image's rooturl, with its pin.
    pub fn rooturl(&self) -> &str {
        &self.rooturl
    }

    /// Starts the seed and waits until it accepts nodes. `upload_limit` is its `--upload-limit`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_seed(&mut self, upload_limit: Option<&str>) -> Result<(), HostError> {
        self.stop_seed()?;
        let mut command = self.bridge.namespace().command(&self.server);
        command.arg("serve").arg("--state").arg(self.state());
        command.args(["--host", &ADDRESS.to_string()]);
        if let Some(limit) = upload_limit {
            command.args(["--upload-limit", limit]);
        }
        // A log of its own for each start: the ready line of the one before is no answer.
        let starts = fs::read_dir(&self.directory).map_or(0, |entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| name.starts_with("seed-"))
                .count()
        });
        let log = self.directory.join(format!("seed-{starts}.log"));
        let mut seed = Process::spawn("rootswarm serve", command, &log)?;
        let ready = seed.wait_for_line("ready swarm://", READY_LIMIT)?;
        self.rooturl = ready.trim_start_matches("ready ").trim().to_owned();
        self.seed = Some(seed);
        Ok(())
    }

    /// Ends the seed as an admin does, with SIGTERM.
    ///
    /// # Errors
    /// When it survives.
    pub fn stop_seed(&mut self) -> Result<(), HostError> {
        if let Some(mut seed) = self.seed.take() {
            seed.terminate(GRACE)?;
        }
        Ok(())
    }

    /// Kills the seed and removes its state directory: what is left of it is nothing. Returns its
    /// process id.
    ///
    /// # Errors
    /// When it survives, or does not run, or its files cannot be removed.
    pub fn destroy_seed(&mut self) -> Result<u32, HostError> {
        let mut seed = self.seed.take().ok_or(HostError::NoSeed)?;
        seed.kill()?;
        let state = self.state();
        fs::remove_dir_all(&state).map_err(StepError::file("remove", &state))?;
        Ok(seed.pid())
    }

    /// Publishes another image.
    ///
    /// # Errors
    /// When `rootswarm publish` refuses.
    pub fn publish(&self, name: &str, image: &Path) -> Result<(), HostError> {
        let mut publish = self.bridge.namespace().command(&self.server);
        publish.args(["publish", name]).arg(image);
        publish.arg("--state").arg(self.state());
        let log = self.directory.join(format!("publish-{name}.log"));
        step::run("rootswarm publish", publish, &log, STEP_LIMIT)?;
        Ok(())
    }

    /// Has the seed serve a file under `/boot/`, as kernels are.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn hand_out(&self, name: &str, file: &Path) -> Result<(), HostError> {
        let to = self.state().join("boot").join(name);
        fs::copy(file, &to).map_err(StepError::file("copy", file))?;
        Ok(())
    }

    /// `rootswarm status --json`.
    ///
    /// # Errors
    /// When the seed does not answer or answers something else.
    pub fn status(&self) -> Result<Value, HostError> {
        let output = Command::new(&self.server)
            .args(["status", "--json", "--state"])
            .arg(self.state())
            .output()
            .map_err(|error| HostError::Status(error.to_string()))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(HostError::Status(stderr.trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| HostError::Status(error.to_string()))
    }

    /// Writes the machine's own pxelinux entry: the site's, with the machine's changes.
    ///
    /// # Errors
    /// When the site's entry is not as expected.
    pub fn write_entry(&self, spec: &MachineSpec) -> Result<(), HostError> {
        let directory = self.directory.join("tftp/pxelinux.cfg");
        let text = self.entry(spec)?;
        // 01 is Ethernet, as in BOOTIF.
        let own = directory.join(format!("01-{}", spec.mac().replace(':', "-")));
        fs::write(&own, text).map_err(StepError::file("write", &own))?;
        Ok(())
    }

    /// What pxelinux would load for the machine, with `initrd` in place of the site's.
    ///
    /// # Errors
    /// When the site's entry is not as expected.
    pub fn loaded(&self, spec: &MachineSpec, initrd: Option<&Path>) -> Result<Loaded, HostError> {
        let entry = self.entry(spec)?;
        let line = |key: &str| {
            let mut lines = entry.lines().map(str::trim_start);
            lines.find_map(|line| line.strip_prefix(key)).map(str::trim)
        };
        // Both ways have the same files in this directory.
        let file = |key: &str| {
            let name = line(key)?.rsplit('/').next()?;
            Some(self.directory.join("tftp").join(name))
        };
        match (file("KERNEL "), file("INITRD "), line("APPEND ")) {
            (Some(kernel), Some(site_initrd), Some(line)) => Ok(Loaded {
                kernel,
                initrd: initrd.map_or(site_initrd, Path::to_owned),
                line: line.to_owned(),
            }),
            _ => Err(HostError::NoAppend {
                path: self.site_entry(),
            }),
        }
    }

    fn entry(&self, spec: &MachineSpec) -> Result<String, HostError> {
        let site = self.site_entry();
        let text = fs::read_to_string(&site).map_err(StepError::file("read", &site))?;
        with_arguments(&text, &spec.arguments).ok_or(HostError::NoAppend { path: site })
    }

    fn site_entry(&self) -> PathBuf {
        self.directory.join("tftp/pxelinux.cfg/default")
    }

    /// The `rootswarm` that it runs.
    pub(super) fn server(&self) -> &Path {
        &self.server
    }

    pub(super) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

fn start_dnsmasq(bridge: &Bridge, tftp: &Path, directory: &Path) -> Result<Process, HostError> {
    // Two machines that start together were once offered the same address: each has its own.
    let hosts = directory.join("dhcp-hosts");
    let lines: String = MACHINE_NUMBERS
        .map(|number| {
            let spec = MachineSpec::new("", number);
            format!("{},{}\n", spec.mac(), spec.address())
        })
        .collect();
    fs::write(&hosts, lines).map_err(StepError::file("write", &hosts))?;

    // At a site it has a processor of its own. Here it shares one with the machines it answers, whose
    // firmware gives up after some twenty seconds of their own time, however little they ran in it.
    let mut command = bridge.namespace().command("nice");
    command
        .args(["-n", "-10", "dnsmasq"])
        .args([
            "--keep-in-foreground",
            "--log-facility=-",
            "--user=root",
            "--pid-file",
        ])
        .arg(option("--conf-file", &tftp.join("dnsmasq.conf")))
        .arg(option("--dhcp-leasefile", &directory.join("leases")))
        .arg(option("--dhcp-hostsfile", &hosts));
    let log = directory.join("dnsmasq.log");
    let mut dnsmasq = Process::spawn("dnsmasq", command, &log)?;
    dnsmasq.wait_for_output("line `started`", READY_LIMIT, |output| {
        output.contains("started").then_some(())
    })?;
    Ok(dnsmasq)
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push("=");
    option.push(path);
    option
}

/// A pxelinux configuration whose APPEND lines have these arguments; `None` when it has none.
fn with_arguments(config: &str, arguments: &[String]) -> Option<String> {
    let key = |argument: &str| argument.split_once('=').map(|(key, _)| key.to_owned());
    let replaced: Vec<String> = arguments
        .iter()
        .filter_map(|argument| key(argument))
        .collect();
    let mut changed = false;
    let mut out = String::new();
    for line in config.lines() {
        let trimmed = line.trim_start();
        let is_append = trimmed
            .get(..7)
            .is_some_and(|word| word.eq_ignore_ascii_case("append "));
        if is_append {
            changed = true;
            let indent = &line[..line.len() - trimmed.len()];
            let kept = trimmed
                .split_whitespace()
                .filter(|argument| key(argument).is_none_or(|key| !replaced.contains(&key)));
            let words: Vec<&str> = kept.chain(arguments.iter().map(String::as_str)).collect();
            out.push_str(indent);
            out.push_str(&words.join(" "));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    changed.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_replace_their_like_and_nothing_else() {
        let config = "DEFAULT x\nLABEL x\n  KERNEL k\n  APPEND initrd=i boot=ram rooturl=a quiet\n";
        let arguments = ["rooturl=b".to_owned(), "rootswarm.mode=ro".to_owned()];
        let expected = "DEFAULT x\nLABEL x\n  KERNEL k\n  APPEND initrd=i boot=ram quiet rooturl=b rootswarm.mode=ro\n";
        assert_eq!(
            with_arguments(config, &arguments).as_deref(),
            Some(expected)
        );
        assert_eq!(with_arguments(config, &[]).as_deref(), Some(config));
        assert_eq!(with_arguments("DEFAULT x\n", &arguments), None);
    }
}
