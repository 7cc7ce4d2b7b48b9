//! One virtual machine: emulated, booted from its network card, its serial console in a file.
//!
//! The console has the firmware's screen too. Firmware that gets no answer resets the machine and tries
//! again, as often as it takes; once a kernel runs, a reset is the machine's end.
//!
//! The emulator is TCG, because it runs everywhere; a guest is some twenty times slower than its
//! host. It leaves to others: what the machine is told over DHCP and TFTP (see `host`).

use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::console::{Console, Line};
use super::facts::Facts;
use super::loss::{Counted, Loss, LossError};
use super::qmp::Qmp;
use super::shell::{Shell, ShellError};
use crate::netns::{Bridge, NetnsError};
use crate::process::{Process, ProcessError};

/// The agent's progress line when the whole image is in RAM.
const COMPLETE: &str = "rootswarm: 100% ";
/// What it says when the root is mounted.
const MOUNTED: &str = "rootswarm: fetched ";
/// How a boot that stops says so: `panic` of the boot script.
const STOPPED: &str = "rootswarm: cannot mount the root:";
/// Its first words, on a console that firmware and boot loader had before.
const KERNEL: &str = "Linux version ";
/// The kernel's last words.
const KERNEL_PANIC: &str = "Kernel panic - not syncing";

/// How long firmware that found nothing to boot waits before it starts again.
const FIRMWARE_WAIT_MS: u32 = 1000;

/// Why a machine is of no use.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No cable.
    #[error(transparent)]
    Network(#[from] NetnsError),
    /// qemu cannot be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its console cannot be read.
    #[error("{machine}: cannot read its console: {source}")]
    Console {
        /// Its name.
        machine: String,
        /// Why.
        source: io::Error,
    },
    /// Its power button cannot be pressed.
    #[error("{machine}: cannot reach its monitor: {source}")]
    Monitor {
        /// Its name.
        machine: String,
        /// Why.
        source: io::Error,
    },
    /// Its cable.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// A command in it.
    #[error("{machine}: {source}")]
    Shell {
        /// Its name.
        machine: String,
        /// Why.
        source: ShellError,
    },
    /// Its report is not as it should be.
    #[error("{machine}: unexpected line in its report: `{line}`")]
    Report {
        /// Its name.
        machine: String,
        /// The line.
        line: String,
    },
    /// qemu ended while the machine was booting and nothing on the console says why.
    #[error("{machine}: qemu ended before the machine was up: {qemu}; the console's end:\n{tail}")]
    Gone {
        /// Its name.
        machine: String,
        /// Why, by its monitor, and what it printed.
        qemu: String,
        /// The end of its console.
        tail: String,
    },
}

/// What is to be booted.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineSpec {
    /// What messages call it.
    pub name: String,
    /// Its number in the lab: gives its MAC and its address.
    pub number: u8,
    /// Changes to the kernel command line: `key=value` replaces a key that is there.
    pub arguments: Vec<String>,
    /// Its memory.
    pub memory_mib: u32,
    /// Where its kernel comes from.
    pub loader: Loader,
    /// What its clock says when it is switched on (`-rtc base=`); the host's time when empty.
    pub clock: String,
    /// The share of packets that its cable loses, each way.
    pub loss: f64,
    /// Whether it may reset itself when a kernel has run: with `panic=` a boot that gave up is no end.
    pub reboots: bool,
}

/// Where a machine's kernel and initramfs come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loader {
    /// Its network card's firmware, DHCP and TFTP, as on a real site.
    Pxe,
    /// The emulator puts them into its memory; the kernel command line is the site's.
    Emulator {
        /// Another initramfs than the site's.
        initrd: Option<PathBuf>,
    },
}

/// What [`Loader::Emulator`] puts into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// The kernel command line.
    pub line: String,
}

impl MachineSpec {
    /// A machine as the baseline has it: 1 GiB.
    pub fn new(name: &str, number: u8) -> MachineSpec {
        MachineSpec {
            name: name.to_owned(),
            number,
            arguments: Vec::new(),
            memory_mib: 1024,
            loader: Loader::Pxe,
            clock: String::new(),
            loss: 0.0,
            reboots: false,
        }
    }

    /// With another memory than 1 GiB.
    #[must_use]
    pub fn with_memory_mib(mut self, memory_mib: u32) -> MachineSpec {
        self.memory_mib = memory_mib;
        self
    }

    /// With this date and time (`2100-01-01T00:00:00`) in its clock when it is switched on.
    #[must_use]
    pub fn with_clock(mut self, clock: &str) -> MachineSpec {
        clock.clone_into(&mut self.clock);
        self
    }

    /// With a cable that loses this share of the packets, each way.
    #[must_use]
    pub fn with_loss(mut self, share: f64) -> MachineSpec {
        self.loss = share;
        self
    }

    /// As real machines do: when it resets itself, it boots once more, however far it had come.
    #[must_use]
    pub fn that_reboots(mut self) -> MachineSpec {
        self.reboots = true;
        self
    }

    /// Without firmware, DHCP and TFTP in front of the kernel; with another initramfs than the
    /// site's where one is named.
    #[must_use]
    pub fn loaded_by_emulator(mut self, initrd: Option<PathBuf>) -> MachineSpec {
        self.loader = Loader::Emulator { initrd };
        self
    }

    /// With another word on its kernel command line.
    #[must_use]
    pub fn with(mut self, argument: &str) -> MachineSpec {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The address of its network card, in qemu's own range.
    pub fn mac(&self) -> String {
        format!("52:54:00:72:73:{:02x}", self.number)
    }

    /// The IP address that DHCP gives it.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.number)
    }
}

/// How far a machine has come.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Firmware, DHCP, TFTP: nothing of ours runs yet.
    Netboot,
    /// The kernel runs; no network yet, or nothing fetched.
    Kernel,
    /// The agent fetches; the last it said.
    Fetching(String),
    /// The root is mounted, its system starts.
    Starting,
    /// Its system is up and has reported.
    Up,
    /// It gave up, for this reason.
    Stopped(String),
}

/// A machine that was switched on. Dropping it pulls the plug.
#[derive(Debug)]
pub struct Machine {
    spec: MachineSpec,
    process: Process,
    console: Console,
    monitor: PathBuf,
    qmp: Qmp,
    port: PathBuf,
    shell: Option<Shell>,
    loss: Option<Loss>,
    facts: Option<Facts>,
    up_at: Option<Duration>,
}

impl Machine {
    /// Plugs a machine into `bridge` and switches it on; it boots from its network card unless
    /// something is `loaded`. Its files go to `directory`.
    ///
    /// # Errors
    /// Without /dev/net/tun or qemu, or nftables where its cable loses packets.
    pub fn switch_on(
        spec: MachineSpec,
        loaded: Option<&Loaded>,
        bridge: &Bridge,
        directory: &Path,
    ) -> Result<Machine, MachineError> {
        let tap = bridge.tap()?;
        let console = directory.join(format!("{}.console", spec.name));
        let monitor = directory.join(format!("{}.monitor", spec.name));
        let port = directory.join(format!("{}.port", spec.name));
        // Before it is switched on: its first packet may be lost.
        let loss = match spec.loss {
            share if share > 0.0 => Some(Loss::start(bridge, &tap, share)?),
            _ => None,
        };
        let qmp = directory.join(format!("{}.qmp", spec.name));
        let qmp = Qmp::listen(&qmp).map_err(|source| MachineError::Monitor {
            machine: spec.name.clone(),
            source,
        })?;
        let mut qemu = bridge.namespace().command("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-display", "none"])
            .args(qmp.arguments())
            // Without a boot device its firmware waits a minute before it starts again.
            .args(["-boot", &format!("reboot-timeout={FIRMWARE_WAIT_MS}")])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"])
            .args(["-m", &spec.memory_mib.to_string()])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-chardev",
                &format!("socket,id=port,path={},server=on,wait=off", port.display()),
            ])
            .args(["-serial", "chardev:port"])
            .args([
                "-netdev",
                &format!("tap,id=net,ifname={tap},script=no,downscript=no"),
            ])
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=net,bootindex=1,mac={}", spec.mac()),
            ])
            .args([
                "-monitor",
                &format!("unix:{},server=on,wait=off", monitor.display()),
            ])
            // Without it getrandom waits for a pool that an emulated machine fills slowly.
            .args(["-object", "rng-random,id=rng,filename=/dev/urandom"])
            .args(["-device", "virtio-rng-pci,rng=rng"]);
        // Without graphics the firmware's screen, and the boot loader's, is the first serial port.
        if spec.clock.is_empty() {
            qemu.args(["-machine", "pc,graphics=off"]);
        } else {
            // With the host's clock behind it, qemu cannot go further than 68 years from now; and
            // the older machine's firmware tells Linux of no century.
            qemu.args(["-rtc", &format!("base={},clock=vm", spec.clock)]);
            qemu.args(["-machine", "q35,graphics=off"]);
        }
        if let Some(loaded) = loaded {
            qemu.arg("-kernel").arg(&loaded.kernel);
            qemu.arg("-initrd").arg(&loaded.initrd);
            qemu.args(["-append", &loaded.line]);
        }
        let log = directory.join(format!("{}.qemu", spec.name));
        let process = Process::spawn(&spec.name, qemu, &log)?;
        let console = Console::follow(&console);
        Ok(Machine {
            spec,
            process,
            console,
            monitor,
            qmp,
            port,
            shell: None,
            loss,
            facts: None,
            up_at: None,
        })
    }

    /// What it is.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// What it reported, once it is up.
    pub fn facts(&self) -> Option<&Facts> {
        self.facts.as_ref()
    }

    /// When its report was whole, since it was switched on.
    pub fn up_at(&self) -> Option<Duration> {
        self.up_at
    }

    /// When the agent had the whole image, since it was switched on.
    pub fn image_complete_at(&self) -> Option<Duration> {
        let console = &self.console;
        let line = console.first(COMPLETE).or_else(|| console.first(MOUNTED))?;
        Some(line.at)
    }

    /// Runs one line of shell in it, once it is up: what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0, or not within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String, MachineError> {
        let outcome = match &mut self.shell {
            Some(shell) => shell.run(command, limit),
            None => Shell::connect(&self.port)
                .and_then(|shell| self.shell.insert(shell).run(command, limit)),
        };
        outcome.map_err(|source| MachineError::Shell {
            machine: self.spec.name.clone(),
            source,
        })
    }

    /// What its cable has carried and lost; nothing is counted on one that loses nothing.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn counted(&self, bridge: &Bridge) -> Result<Counted, MachineError> {
        match &self.loss {
            Some(loss) => Ok(loss.counted(bridge)?),
            None => Ok(Counted::default()),
        }
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When its monitor takes nothing.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.qmp.reset().map_err(|source| MachineError::Monitor {
            machine: self.spec.name.clone(),
            source,
        })
    }

    /// Pulls the plug. Its console and its report stay.
    ///
    /// # Errors
    /// When qemu survives.
    pub fn switch_off(&mut self) -> Result<(), MachineError> {
        self.process.kill()?;
        Ok(())
    }

    /// Presses the power button and waits until the system has shut itself down. Returns how long
    /// that took.
    ///
    /// # Errors
    /// When it is still on after `limit`.
    pub fn power_off(&mut self, limit: Duration) -> Result<Duration, MachineError> {
        let pressed = Instant::now();
        let monitor_error = |source| MachineError::Monitor {
            machine: self.spec.name.clone(),
            source,
        };
        // Open until the end: qemu forgets what it was told when the line is hung up at once.
        let mut monitor = UnixStream::connect(&self.monitor).map_err(monitor_error)?;
        monitor
            .write_all(b"system_powerdown\n")
            .map_err(monitor_error)?;
        self.process.wait(limit)?;
        self.read_console()?;
        Ok(pressed.elapsed())
    }

    fn read_console(&mut self) -> Result<(), MachineError> {
        self.console
            .update()
            .map_err(|source| MachineError::Console {
                machine: self.spec.name.clone(),
                source,
            })
    }

    /// Reads its console and says how far it is.
    ///
    /// # Errors
    /// When it can no longer be followed.
    pub fn update(&mut self) -> Result<Phase, MachineError> {
        // In this order: what it wrote before it ended counts.
        let ended = self.process.try_wait()?;
        self.read_console()?;
        self.watch_resets()?;
        if self.facts.is_none() {
            self.facts =
                Facts::parse(self.console.texts()).map_err(|line| MachineError::Report {
                    machine: self.spec.name.clone(),
                    line,
                })?;
            if self.facts.is_some() {
                self.up_at = Some(self.console.elapsed());
            }
        }
        let phase = self.phase();
        if ended.is_some() && !matches!(phase, Phase::Up | Phase::Stopped(_)) {
            return Err(MachineError::Gone {
                machine: self.spec.name.clone(),
                qemu: format!("{}: {}", self.qmp.news(), self.process.tail(5)),
                tail: self.console.tail(40),
            });
        }
        Ok(phase)
    }

    /// Follows it without asking how far it is: while others are waited for, it must not be missed that its
    /// kernel runs, or a boot that gave up would be a reset that nobody heeds.
    ///
    /// # Errors
    /// When it can no longer be followed.
    pub fn attend(&mut self) -> Result<(), MachineError> {
        self.read_console()?;
        self.watch_resets()
    }

    /// Firmware may try as often as it likes; from the kernel's first word on a reset is an end, unless
    /// the machine is one that reboots.
    fn watch_resets(&mut self) -> Result<(), MachineError> {
        let hold = !self.spec.reboots
            && !self.qmp.news().ends_at_reset
            && self.console.first(KERNEL).is_some();
        self.qmp
            .update()
            .map(drop)
            .and_then(|()| match hold {
                true => self.qmp.end_at_reset(),
                false => Ok(()),
            })
            .map_err(|source| MachineError::Monitor {
                machine: self.spec.name.clone(),
                source,
            })
    }

    /// How often it was reset, by its firmware or by itself.
    pub fn resets(&self) -> u32 {
        self.qmp.news().resets
    }

    /// How often a boot of it has given up; more than once only for one that reboots.
    pub fn gave_up(&self) -> usize {
        let is_last_word = |text: &&str| text.contains(STOPPED);
        self.console.texts().filter(is_last_word).count()
    }

    fn phase(&self) -> Phase {
        if self.facts.is_some() {
            return Phase::Up;
        }
        // Of a machine that reboots, the last boot counts.
        let lines = self.console.since_last(KERNEL);
        let first = |part: &str| lines.iter().find(|line| line.text.contains(part));
        let stopped = first(STOPPED).map(|Line { text, .. }| {
            let at = text.find(STOPPED).unwrap_or_default();
            text[at + STOPPED.len()..].trim().to_owned()
        });
        let stopped = stopped.or_else(|| Some(first(KERNEL_PANIC)?.text.clone()));
        match stopped {
            Some(_) if self.spec.reboots => return Phase::Netboot,
            Some(why) => return Phase::Stopped(why),
            None => {}
        }
        if first(MOUNTED).is_some() {
            return Phase::Starting;
        }
        let said = lines.iter().rev().find_map(|line| {
            let (_, said) = line.text.split_once("rootswarm: ")?;
            Some(said.to_owned())
        });
        match said {
            Some(said) => Phase::Fetching(said),
            None if first(KERNEL).is_some() => Phase::Kernel,
            None => Phase::Netboot,
        }
    }
}
