//! How each tool seeds and fetches: only command lines and files, no measuring.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::process::Process;
use crate::vm::binaries::Binaries;

use super::lab::LabNode;
use super::measure::BenchError;

/// The name of the image at the seed, in every tool.
const IMAGE_NAME: &str = "image";
const TRACKER_PORT: &str = "6969";
/// Hashing and copying 100 MB takes a second; a busy machine takes longer.
const SEED_READY: Duration = Duration::from_secs(120);

/// What moves the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// This project.
    Rootswarm,
    /// nginx at the seed, wget at each node: what most diskless boots do.
    Nginx,
    /// aria2, a BitTorrent client, with opentracker at the seed.
    Aria2,
}

/// The text is no tool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tool `{0}`: expected rootswarm, nginx or aria2")]
pub struct ParseToolError(String);

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Tool::Rootswarm => "rootswarm",
            Tool::Nginx => "nginx",
            Tool::Aria2 => "aria2",
        })
    }
}

impl FromStr for Tool {
    type Err = ParseToolError;

    fn from_str(text: &str) -> Result<Self, ParseToolError> {
        match text {
            "rootswarm" => Ok(Tool::Rootswarm),
            "nginx" => Ok(Tool::Nginx),
            "aria2" => Ok(Tool::Aria2),
            other => Err(ParseToolError(other.to_owned())),
        }
    }
}

/// How it is seen that a node has the whole image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Its program ends.
    Exits,
    /// A file appears in its directory; the program goes on serving.
    File(&'static str),
}

/// A seed that accepts nodes, and what a node needs to know to use it.
pub(super) struct Seed {
    pub process: Process,
    /// Runs beside the seed and ends with it.
    _tracker: Option<Process>,
    fetch: Fetch,
}

enum Fetch {
    Rootswarm { agent: PathBuf, url: String },
    Nginx { url: String },
    Aria2 { torrent: PathBuf, hook: PathBuf },
}

impl Tool {
    /// The packages it needs, as (program, package).
    pub fn packages(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Tool::Rootswarm => &[],
            Tool::Nginx => &[("nginx", "nginx-light"), ("wget", "wget")],
            Tool::Aria2 => &[
                ("aria2c", "aria2"),
                ("mktorrent", "mktorrent"),
                ("opentracker", "opentracker"),
            ],
        }
    }

    pub(super) fn done(self) -> Done {
        match self {
            Tool::Rootswarm => Done::File(IMAGE_NAME),
            Tool::Nginx => Done::Exits,
            Tool::Aria2 => Done::File("complete"),
        }
    }

    /// Starts the seed in its namespace and waits until it accepts nodes. `directory` is the seed's
    /// own and empty; `image` is not changed.
    pub(super) fn seed(
        self,
        node: &LabNode,
        image: &Path,
        directory: &Path,
        binaries: Option<&Binaries>,
    ) -> Result<Seed, BenchError> {
        match self {
            Tool::Rootswarm => {
                let binaries = binaries.ok_or(BenchError::NotBuilt)?;
                seed_rootswarm(node, image, directory, binaries)
            }
            Tool::Nginx => seed_nginx(node, image, directory),
            Tool::Aria2 => seed_aria2(node, image, directory),
        }
    }
}

impl Seed {
    /// The command that makes `node` fetch the image to `directory`/image.
    pub(super) fn fetch(&self, node: &LabNode, directory: &Path) -> Command {
        let output = directory.join(IMAGE_NAME);
        match &self.fetch {
            Fetch::Rootswarm { agent, url } => {
                let mut command = node.namespace.command(agent);
                command
                    .args(["fetch", url, "--stay", "--output"])
                    .arg(output);
                command
            }
            Fetch::Nginx { url } => {
                let mut command = node.namespace.command("wget");
                command
                    .args(["--no-proxy", "--no-verbose", url, "-O"])
                    .arg(output);
                command
            }
            Fetch::Aria2 { torrent, hook } => {
                let mut command = aria2(node, directory, torrent);
                command.arg(format!("--on-bt-download-complete={}", hook.display()));
                command.env("COMPLETE", directory.join("complete"));
                command
            }
        }
    }
}

fn seed_rootswarm(
    node: &LabNode,
    image: &Path,
    directory: &Path,
    binaries: &Binaries,
) -> Result<Seed, BenchError> {
    let address = node.link.address();
    let mut command = node.namespace.command(&binaries.server);
    command
        .arg("serve")
        .arg("--state")
        .arg(directory.join("state"));
    command.args([
        "--listen",
        &format!("{address}:7400"),
        "--http",
        &format!("{address}:7480"),
    ]);
    let mut published = std::ffi::OsString::from(format!("{IMAGE_NAME}="));
    published.push(image);
    command.arg(published);
    let mut process = Process::spawn("rootswarm serve", command, &directory.join("log"))?;
    let ready = process.wait_for_line("ready swarm://", SEED_READY)?;
    let url = ready.trim_start_matches("ready ").trim();
    // The line may name the host in another way than the lab does; the pin is what is taken.
    let pin = url
        .rsplit_once('@')
        .map(|(_, pin)| pin)
        .ok_or_else(|| BenchError::SeedUrl {
            url: url.to_owned(),
        })?;
    let url = format!("swarm://{address}/{IMAGE_NAME}@{pin}");
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Fetch::Rootswarm {
            agent: binaries.agent.clone(),
            url,
        },
    })
}

fn seed_nginx(node: &LabNode, image: &Path, directory: &Path) -> Result<Seed, BenchError> {
    let address = node.link.address();
    let error = |source| BenchError::Write {
        path: directory.to_owned(),
        source,
    };
    link_into(image, directory).map_err(error)?;
    let shown = directory.display();
    let configuration = format!(
        "user root;\nworker_processes 1;\ndaemon off;\nmaster_process off;\n\
         pid {shown}/pid;\nerror_log stderr;\nevents {{ worker_connections 1024; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n\
         \x20 client_body_temp_path {shown}/tmp;\n  proxy_temp_path {shown}/tmp;\n\
         \x20 fastcgi_temp_path {shown}/tmp;\n  uwsgi_temp_path {shown}/tmp;\n\
         \x20 scgi_temp_path {shown}/tmp;\n\
         \x20 server {{ listen {address}:80; root {shown}; }}\n}}\n"
    );
    let path = directory.join("nginx.conf");
    std::fs::write(&path, configuration).map_err(error)?;
    let mut command = node.namespace.command("nginx");
    command
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(directory)
        .arg("-c")
        .arg(&path);
    let mut process = Process::spawn("nginx", command, &directory.join("log"))?;
    // nginx says nothing when it listens; it writes its pid file after that.
    process.wait_for_output("pid file", SEED_READY, |_| {
        std::fs::metadata(directory.join("pid"))
            .is_ok_and(|pid| pid.len() > 0)
            .then_some(())
    })?;
    let url = format!("http://{address}/{IMAGE_NAME}");
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Fetch::Nginx { url },
    })
}

/// aria2 with a tracker: without one it looks for peers only every ten seconds, and every node
/// would begin by waiting for that.
fn seed_aria2(node: &LabNode, image: &Path, directory: &Path) -> Result<Seed, BenchError> {
    let error = |source| BenchError::Write {
        path: directory.to_owned(),
        source,
    };
    link_into(image, directory).map_err(error)?;
    let torrent = directory.join("torrent");
    let mut make = Command::new("mktorrent");
    // Pieces of 2^18 bytes: the chunk size that rootswarm picks for such an image.
    let announce = format!("http://{}:{TRACKER_PORT}/announce", node.link.address());
    make.args(["-l", "18", "-a", &announce, "-o"])
        .arg(&torrent)
        .arg(directory.join(IMAGE_NAME));
    finish("mktorrent", make, directory)?;

    let mut show = Command::new("aria2c");
    show.args(["--no-conf", "--show-files"]).arg(&torrent);
    let shown = finish("aria2c --show-files", show, directory)?;
    let hash = shown
        .lines()
        .find_map(|line| line.strip_prefix("Info Hash: "));
    let hash = hash.ok_or_else(|| BenchError::Torrent {
        shown: shown.clone(),
    })?;
    let tracker = start_tracker(node, hash, directory)?;

    let hook = directory.join("hook");
    std::fs::write(&hook, "#!/bin/sh\n: >\"$COMPLETE\"\n").map_err(error)?;
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).map_err(error)?;
    let mut command = aria2(node, directory, &torrent);
    command.arg("--check-integrity=true");
    let mut process = Process::spawn("aria2 seed", command, &directory.join("log"))?;
    process.wait_for_output("checked copy", SEED_READY, |output| {
        output
            .contains("Verification finished successfully")
            .then_some(())
    })?;
    Ok(Seed {
        process,
        _tracker: Some(tracker),
        fetch: Fetch::Aria2 { torrent, hook },
    })
}

/// Debian's opentracker serves only the hashes it is told, and never as root: it becomes `nobody`.
fn start_tracker(node: &LabNode, hash: &str, directory: &Path) -> Result<Process, BenchError> {
    let list = directory.join("hashes");
    std::fs::write(&list, format!("{hash}\n")).map_err(|source| BenchError::Write {
        path: list.clone(),
        source,
    })?;
    let mut command = node.namespace.command("opentracker");
    command.args(["-i", &node.link.address().to_string(), "-p", TRACKER_PORT]);
    // It changes its root to that directory and reads the list there.
    command.arg("-d").arg(directory).args(["-w", "/hashes"]);
    let mut process = Process::spawn("opentracker", command, &directory.join("tracker.log"))?;
    // It says nothing: it is ready when its port is taken.
    let table = format!("/proc/{}/net/tcp", process.pid());
    let port = format!(
        ":{:04X} 00000000:0000 0A",
        TRACKER_PORT.parse::<u16>().unwrap_or_default()
    );
    process.wait_for_output("listening tracker", SEED_READY, |_| {
        std::fs::read_to_string(&table)
            .is_ok_and(|table| table.contains(&port))
            .then_some(())
    })?;
    Ok(process)
}

/// Runs a helper program to its end and returns what it printed.
fn finish(label: &str, command: Command, directory: &Path) -> Result<String, BenchError> {
    let mut process = Process::spawn(label, command, &directory.join(format!("{label}.log")))?;
    let status = process.wait(SEED_READY)?;
    if status.success() {
        return Ok(process.output()?);
    }
    Err(BenchError::Tool {
        label: label.to_owned(),
        status,
        tail: process.tail(20),
    })
}

/// What seed and node have in common. Without `--seed-ratio=0.0` a seed stops after one copy.
fn aria2(node: &LabNode, directory: &Path, torrent: &Path) -> Command {
    let mut command = node.namespace.command("aria2c");
    command.args([
        "--no-conf",
        "--seed-ratio=0.0",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--disable-ipv6=true",
        "--file-allocation=none",
        "--listen-port=6881",
        "--summary-interval=0",
        "--console-log-level=notice",
        "--enable-color=false",
        "--show-console-readout=false",
    ]);
    command.arg("--dir").arg(directory).arg(torrent);
    command
}

/// A hard link costs no memory; another file system needs the copy.
fn link_into(image: &Path, directory: &Path) -> io::Result<()> {
    let target = directory.join(IMAGE_NAME);
    std::fs::hard_link(image, &target).or_else(|_| std::fs::copy(image, &target).map(drop))
}
