//! The two programs as guards: a seed that serves, an agent that fetches, on the loopback or in a
//! namespace.
//!
//! They are the real binaries, found by building them. What they should do is in `tests/tests/`.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cargo;
use crate::netns::{Namespace, NetnsError};
use crate::process::{Process, ProcessError};
use crate::vm::binaries::Binaries;

/// The swarm's UDP port.
pub const SWARM_PORT: u16 = 7400;
/// The seed's TCP port for HTTP.
pub const HTTP_PORT: u16 = 7480;

/// Publishing a few megabytes takes a fraction of it; the machine may be busy compiling.
const READY_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// A program that was asked to end gets so long before the test kills it.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// What can go wrong with the programs under test.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// They do not build.
    #[error("{0}")]
    Build(String),
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A file or socket of theirs.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The status document is not what it should be.
    #[error("status of {label}: {reason} in {document}")]
    Status {
        /// Whose.
        label: String,
        /// What is wrong.
        reason: String,
        /// What was read.
        document: String,
    },
    /// Something did not happen in time.
    #[error("{label}: {awaited} did not come within {limit_s} s; status: {status}; log:\n{tail}")]
    Late {
        /// Who.
        label: String,
        /// What was waited for.
        awaited: String,
        /// How long.
        limit_s: f64,
        /// Its last status.
        status: String,
        /// The end of its log.
        tail: String,
    },
}

type Result<T> = std::result::Result<T, SwarmError>;

/// Builds both programs, once a process, with the profile that the caller was built with.
///
/// # Errors
/// When they do not build: a test never passes because its subject is missing.
pub fn programs() -> Result<&'static Binaries> {
    static BUILT: OnceLock<std::result::Result<Binaries, String>> = OnceLock::new();
    BUILT
        .get_or_init(build)
        .as_ref()
        .map_err(|error| SwarmError::Build(error.clone()))
}

fn build() -> std::result::Result<Binaries, String> {
    // Tests are in TARGET/PROFILE/deps, commands beside it.
    let this = std::env::current_exe().map_err(|error| format!("this test's path: {error}"))?;
    let profile = this
        .ancestors()
        .skip(1)
        .find(|directory| !directory.ends_with("deps"))
        .ok_or("the test is in no target directory")?;
    let target = profile
        .parent()
        .ok_or("the test is in no target directory")?;
    let mut command = cargo::command();
    command.args([
        "build",
        "--quiet",
        "--package",
        "rootswarm",
        "--package",
        "rootswarm-agent",
    ]);
    command
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let output = command
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the programs under test do not build:\n{stderr}"));
    }
    Ok(Binaries {
        server: profile.join("rootswarm"),
        agent: profile.join("rootswarm-agent"),
    })
}

/// Where a program runs and which address it has there.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The namespace; `None` is this machine's own network.
    pub namespace: Option<&'a Namespace>,
    /// The address to listen on or to bind.
    pub address: Ipv4Addr,
}

impl Place<'static> {
    /// An address of the loopback's 127.0.0.0/8 that no other test of this machine uses.
    pub fn loopback() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let host = NEXT.fetch_add(1, Ordering::Relaxed);
        // 15 bits of the process id, 8 bits of a serial number, neither 0 nor 127.0.x.x.
        let pid = std::process::id() & 0x7fff;
        let bits = (127 << 24) | (1 << 23) | (pid << 8) | (host & 0xff);
        Place {
            namespace: None,
            address: Ipv4Addr::from_bits(bits),
        }
    }
}

impl<'a> Place<'a> {
    /// An address inside a namespace.
    pub fn inside(namespace: &'a Namespace, address: Ipv4Addr) -> Self {
        Place {
            namespace: Some(namespace),
            address,
        }
    }

    /// A command that runs here, without this process's own settings for the programs.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = match self.namespace {
            Some(namespace) => namespace.program(program),
            None => Command::new(program),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ROOTSWARM_") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// A running `rootswarm serve`.
#[derive(Debug)]
pub struct Seed {
    /// The process.
    pub process: Process,
    /// Its address.
    pub address: Ipv4Addr,
    state: PathBuf,
}

impl Seed {
    /// Starts `rootswarm serve` with the state in `directory`/state, which publishes `images`, and
    /// waits for the `ready` line of each. More options come in `options`.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn start(
        place: Place<'_>,
        directory: &Path,
        images: &[(&str, &Path)],
        options: &[&str],
    ) -> Result<Self> {
        Self::start_of(programs()?, place, directory, images, options)
    }

    /// The same with the programs of another build.
    ///
    /// # Errors
    /// As [`Seed::start`].
    pub fn start_of(
        programs: &Binaries,
        place: Place<'_>,
        directory: &Path,
        images: &[(&str, &Path)],
        options: &[&str],
    ) -> Result<Self> {
        let listen = place.address.into();
        Self::launch(
            programs,
            place,
            (listen, SWARM_PORT),
            directory,
            images,
            options,
        )
    }

    /// The same on another address of the place, of either family.
    ///
    /// # Errors
    /// As [`Seed::start`].
    pub fn start_at(
        place: Place<'_>,
        listen: IpAddr,
        directory: &Path,
        images: &[(&str, &Path)],
        options: &[&str],
    ) -> Result<Self> {
        Self::launch(
            programs()?,
            place,
            (listen, SWARM_PORT),
            directory,
            images,
            options,
        )
    }

    /// One whose UDP is filtered, as it looks from a node: its swarm is where nobody asks.
    ///
    /// # Errors
    /// As [`Seed::start`].
    pub fn start_filtered(place: Place<'_>, directory: &Path, options: &[&str]) -> Result<Self> {
        let listen = (place.address.into(), SWARM_PORT + 1);
        Self::launch(programs()?, place, listen, directory, &[], options)
    }

    fn launch(
        programs: &Binaries,
        place: Place<'_>,
        (listen, swarm_port): (IpAddr, u16),
        directory: &Path,
        images: &[(&str, &Path)],
        options: &[&str],
    ) -> Result<Self> {
        let state = directory.join("state");
        let address = place.address;
        let mut command = place.command(&programs.server);
        command.arg("serve").arg("--state").arg(&state);
        let at = |port| SocketAddr::new(listen, port).to_string();
        command.args(["--listen", &at(swarm_port)]);
        command.args(["--http", &at(HTTP_PORT)]).args(options);
        for (name, file) in images {
            let mut argument = OsString::from(format!("{name}="));
            argument.push(file);
            command.arg(argument);
        }
        let mut seed = Seed::spawn(command, directory, address, state)?;
        seed.process.wait_for_line("ready swarm://", READY_LIMIT)?;
        for (name, _) in images {
            seed.url(name)?;
        }
        Ok(seed)
    }

    /// [`Seed::start`] without images, and without waiting for more than that it listens.
    ///
    /// # Errors
    /// As there.
    pub fn start_empty(place: Place<'_>, directory: &Path, options: &[&str]) -> Result<Self> {
        let state = directory.join("state");
        let address = place.address;
        let mut command = place.command(&programs()?.server);
        command.arg("serve").arg("--state").arg(&state);
        command.args(["--listen", &format!("{address}:{SWARM_PORT}")]);
        command
            .args(["--http", &format!("{address}:{HTTP_PORT}")])
            .args(options);
        let mut seed = Seed::spawn(command, directory, address, state)?;
        let listens = |output: &str| output.contains("swarm on ").then_some(());
        seed.process
            .wait_for_output("where it listens", READY_LIMIT, listens)?;
        Ok(seed)
    }

    /// With a log of its own for each start: an old `ready` line is not this one's.
    fn spawn(
        command: Command,
        directory: &Path,
        address: Ipv4Addr,
        state: PathBuf,
    ) -> Result<Self> {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        let log = format!("seed-{}.log", STARTS.fetch_add(1, Ordering::Relaxed));
        let process = Process::spawn("seed", command, &directory.join(log))?;
        Ok(Seed {
            process,
            address,
            state,
        })
    }

    /// The pinned rooturl of `name`, from its `ready` line.
    ///
    /// # Errors
    /// When there is no such line in time.
    pub fn url(&mut self, name: &str) -> Result<String> {
        let middle = format!("/{name}@blake3:");
        let url =
            self.process
                .wait_for_output(&format!("ready {name}"), READY_LIMIT, |output| {
                    // The last one: a name may be published again.
                    let line = output.lines().rev().find(|line| {
                        line.starts_with("ready swarm://") && line.contains(&middle)
                    })?;
                    Some(line.trim_start_matches("ready ").to_owned())
                })?;
        Ok(url)
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its status document, from the control socket.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn status(&self) -> Result<Value> {
        let path = self.state.join("control.sock");
        let error = |source| SwarmError::Io {
            path: path.clone(),
            source,
        };
        let text = UnixStream::connect(&path)
            .and_then(io::read_to_string)
            .map_err(error)?;
        parse("seed", &text)
    }

    /// How many times its swarm side has sent the whole of `name`.
    ///
    /// # Errors
    /// When nobody answers or the image is not there.
    pub fn copies_sent(&self, name: &str) -> Result<f64> {
        let status = self.status()?;
        let images = status["images"].as_array().cloned().unwrap_or_default();
        let named = |image: &&Value| {
            image["names"]
                .as_array()
                .is_some_and(|names| names.iter().any(|own| own == name))
        };
        let copies = images
            .iter()
            .find(named)
            .and_then(|image| image["seed_copies"].as_f64());
        copies.ok_or_else(|| SwarmError::Status {
            label: "seed".to_owned(),
            reason: format!("no seed_copies of {name}"),
            document: status.to_string(),
        })
    }
}

/// A running `rootswarm-agent fetch`.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub process: Process,
    output: PathBuf,
    status: PathBuf,
}

impl Agent {
    /// Starts `rootswarm-agent fetch URL --output DIRECTORY/LABEL/image`, bound to the place's
    /// address. More options come in `options`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn fetch(
        place: Place<'_>,
        directory: &Path,
        label: &str,
        url: &str,
        options: &[&str],
    ) -> Result<Self> {
        Self::fetch_of(programs()?, place, directory, label, url, options)
    }

    /// The same with the programs of another build.
    ///
    /// # Errors
    /// As [`Agent::fetch`].
    pub fn fetch_of(
        programs: &Binaries,
        place: Place<'_>,
        directory: &Path,
        label: &str,
        url: &str,
        options: &[&str],
    ) -> Result<Self> {
        let bind = place.address.to_string();
        let options = [["--bind", bind.as_str()].as_slice(), options].concat();
        Self::launch(programs, place, directory, label, url, &options)
    }

    /// The same from whatever address the host has, as a node does that boots.
    ///
    /// # Errors
    /// As [`Agent::fetch`].
    pub fn fetch_unbound(
        place: Place<'_>,
        directory: &Path,
        label: &str,
        url: &str,
        options: &[&str],
    ) -> Result<Self> {
        Self::launch(programs()?, place, directory, label, url, options)
    }

    fn launch(
        programs: &Binaries,
        place: Place<'_>,
        directory: &Path,
        label: &str,
        url: &str,
        options: &[&str],
    ) -> Result<Self> {
        let directory = directory.join(label);
        std::fs::create_dir_all(&directory).map_err(|source| SwarmError::Io {
            path: directory.clone(),
            source,
        })?;
        let output = directory.join("image");
        let status = directory.join("status.json");
        let mut command = place.command(&programs.agent);
        command.args(["fetch", url]);
        command
            .arg("--output")
            .arg(&output)
            .arg("--status")
            .arg(&status);
        // What this machine has in /etc is no part of the test.
        command
            .arg("--conf")
            .arg(directory.join("no-conf"))
            .args(options);
        let process = Process::spawn(label, command, &directory.join("agent.log"))?;
        Ok(Agent {
            process,
            output,
            status,
        })
    }

    /// Puts the image where an agent of this label finds it: it has nothing to fetch then.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn provide(directory: &Path, label: &str, image: &Path) -> Result<()> {
        let path = directory.join(label).join("image.part");
        let copied = std::fs::create_dir_all(directory.join(label))
            .and_then(|()| std::fs::copy(image, &path).map(drop));
        copied.map_err(|source| SwarmError::Io { path, source })
    }

    /// The file it leaves once the whole is verified.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Whether it holds the whole image.
    pub fn is_complete(&self) -> bool {
        self.output.exists()
    }

    /// Its status document; `null` before it wrote one.
    ///
    /// # Errors
    /// When what it wrote is no JSON.
    pub fn status(&self) -> Result<Value> {
        match std::fs::read_to_string(&self.status) {
            Ok(text) if !text.trim().is_empty() => parse(self.process.label(), &text),
            _ => Ok(Value::Null),
        }
    }

    /// A number of its status document; 0 before it wrote one.
    ///
    /// # Errors
    /// When the document has no such number.
    pub fn count(&self, key: &str) -> Result<u64> {
        let status = self.status()?;
        if status.is_null() {
            return Ok(0);
        }
        status[key].as_u64().ok_or_else(|| SwarmError::Status {
            label: self.process.label().to_owned(),
            reason: format!("no number {key}"),
            document: status.to_string(),
        })
    }

    /// Waits until it holds the whole image.
    ///
    /// # Errors
    /// When it ends without it, or after `limit`.
    pub fn wait_complete(&mut self, limit: Duration) -> Result<()> {
        self.wait_until("the whole image", limit, |agent| Ok(agent.is_complete()))
    }

    /// Waits until `condition` holds.
    ///
    /// # Errors
    /// When it ends first, or after `limit`.
    pub fn wait_until(
        &mut self,
        awaited: &str,
        limit: Duration,
        mut condition: impl FnMut(&Agent) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            // In this order: an agent without --stay ends as soon as it is done.
            let ended = self.process.try_wait()?;
            if condition(self)? {
                return Ok(());
            }
            if let Some(status) = ended {
                return Err(SwarmError::Process(ProcessError::Ended {
                    label: self.process.label().to_owned(),
                    status,
                    awaited: awaited.to_owned(),
                    tail: self.process.tail(20),
                }));
            }
            if start.elapsed() >= limit {
                return Err(SwarmError::Late {
                    label: self.process.label().to_owned(),
                    awaited: awaited.to_owned(),
                    limit_s: limit.as_secs_f64(),
                    status: self.status()?.to_string(),
                    tail: self.process.tail(20),
                });
            }
            std::thread::sleep(POLL);
        }
    }
}

fn parse(label: &str, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|error| SwarmError::Status {
        label: label.to_owned(),
        reason: error.to_string(),
        document: text.to_owned(),
    })
}
