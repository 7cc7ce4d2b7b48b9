//! The lab as a whole: makes what is missing, starts the PXE host, switches machines on and waits
//! for them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::binaries::Binaries;
use super::cache::Cache;
use super::debian::Debian;
use super::debs::Debs;
use super::host::{Files, Host, HostError, SwarmKeys};
use super::initrd;
use super::loss::Counted;
use super::machine::{Loader, Machine, MachineError, MachineSpec, Phase};
use super::second::Second;
use super::step::StepError;
use crate::scratch::{Scratch, ScratchError};

/// What the lab needs of Debian, as (file, package).
pub const PACKAGES: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu"),
    ("mmdebstrap", "mmdebstrap"),
    ("mksquashfs", "squashfs-tools"),
    ("dnsmasq", "dnsmasq-base"),
    ("/usr/lib/PXELINUX/lpxelinux.0", "pxelinux"),
    (
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "syslinux-common",
    ),
];

/// How often the consoles are looked at: they are files, and times are shown in tenths.
const TICK: Duration = Duration::from_millis(200);
/// The image in the seed's state directory, kernel, initramfs and consoles.
const SCRATCH_BYTES: u64 = 400 << 20;

/// Why the lab cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Something could not be made.
    #[error(transparent)]
    Step(#[from] StepError),
    /// There is no room.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The PXE host failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A machine failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A machine ended while it booted.
    #[error("{source}\ndnsmasq of it:\n{dnsmasq}")]
    Gone {
        /// What is known of it.
        source: Box<MachineError>,
        /// What dnsmasq knows.
        dnsmasq: String,
    },
    /// A machine took too long.
    #[error("{machine}: not up after {waited_s} s ({phase:?}, reset {resets} times); {tail}")]
    Timeout {
        /// Its name.
        machine: String,
        /// For how long.
        waited_s: u64,
        /// How far it had come.
        phase: Phase,
        /// How often it was reset, most likely by its firmware.
        resets: u32,
        /// The end of its console, and what dnsmasq said of it.
        tail: String,
    },
}

/// A PXE host and the machines on its bridge.
#[derive(Debug)]
pub struct Lab {
    /// Before the host: the plug is pulled before the switch goes.
    machines: Vec<Machine>,
    host: Host,
    debian: Debian,
    initrd: PathBuf,
    server_package: PathBuf,
    scratch: Scratch,
    /// Held as long as the lab lives: what is made is shared with other runs.
    _cache: Cache,
}

impl Lab {
    /// Makes what is missing and starts the PXE host. `say` is told what takes time.
    ///
    /// # Errors
    /// When something cannot be made or started; a bare Debian lacks [`PACKAGES`].
    pub fn open(say: &dyn Fn(&str)) -> Result<Lab, LabError> {
        Lab::open_with(Files::Tftp, say)
    }

    /// The same, with the boot loader told where to get kernel and initramfs.
    ///
    /// # Errors
    /// As [`Lab::open`].
    pub fn open_with(files: Files, say: &dyn Fn(&str)) -> Result<Lab, LabError> {
        let cache = Cache::open(say)?;
        let (directory, logs) = (cache.path(), cache.logs());

        say("building rootswarm and rootswarm-agent (a first build takes minutes)");
        let binaries = Binaries::build(logs)?;
        let debs = Debs::build(&directory.join("deb"), logs)?;
        let debian = Debian::make(directory, logs, say)?;
        let keys = SwarmKeys::make(&directory.join("swarm-key"), &binaries, logs)?;
        let initrd = initrd::make(&cache, &debian, &debs.initramfs, &keys.public, say)?;

        let scratch = Scratch::create("vm", SCRATCH_BYTES, directory)?;
        say("publishing the image and starting the PXE host");
        let host = Host::start(&binaries, &debian, &initrd, &keys, files, scratch.path())?;
        Ok(Lab {
            machines: Vec::new(),
            host,
            debian,
            initrd,
            server_package: debs.server,
            scratch,
            _cache: cache,
        })
    }

    /// The PXE host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The PXE host, to restart its seed.
    pub fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    /// Switches a machine on, after its pxelinux entry is written where it needs one. Returns its place in
    /// [`Lab::machines`].
    ///
    /// # Errors
    /// When qemu cannot be started.
    pub fn switch_on(&mut self, spec: MachineSpec) -> Result<usize, LabError> {
        let loaded = match &spec.loader {
            Loader::Pxe => {
                self.host.write_entry(&spec)?;
                None
            }
            Loader::Emulator { initrd } => Some(self.host.loaded(&spec, initrd.as_deref())?),
        };
        let bridge = self.host.bridge();
        let machine = Machine::switch_on(spec, loaded.as_ref(), bridge, self.scratch.path())?;
        self.machines.push(machine);
        Ok(self.machines.len() - 1)
    }

    /// All machines, also those that were switched off.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// Pulls a machine's plug. Its console and its report stay.
    ///
    /// # Errors
    /// When qemu survives.
    pub fn switch_off(&mut self, place: usize) -> Result<(), LabError> {
        Ok(self.machines[place].switch_off()?)
    }

    /// What a machine's cable has carried and lost.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn counted(&self, place: usize) -> Result<Counted, LabError> {
        Ok(self.machines[place].counted(self.host.bridge())?)
    }

    /// One of them, to press its buttons.
    pub fn machine_mut(&mut self, place: usize) -> &mut Machine {
        &mut self.machines[place]
    }

    /// Reads a machine's console and says how far it is.
    ///
    /// # Errors
    /// When it can no longer be followed, with what dnsmasq knows of it.
    pub fn update(&mut self, place: usize) -> Result<Phase, LabError> {
        let machine = &mut self.machines[place];
        match machine.update() {
            Ok(phase) => Ok(phase),
            Err(source @ MachineError::Gone { .. }) => Err(LabError::Gone {
                dnsmasq: self.host.dnsmasq_said(machine.spec()),
                source: Box::new(source),
            }),
            Err(other) => Err(other.into()),
        }
    }

    /// Waits until each of `places` is up or has stopped; `tick` is called with the phases of all of
    /// them after each look at the consoles.
    ///
    /// # Errors
    /// When one is neither after `limit`, or can no longer be followed.
    pub fn wait(
        &mut self,
        places: &[usize],
        limit: Duration,
        mut tick: impl FnMut(&Lab, &[Phase]),
    ) -> Result<Vec<Phase>, LabError> {
        let start = Instant::now();
        loop {
            for machine in &mut self.machines {
                machine.attend()?;
            }
            let mut phases = Vec::with_capacity(places.len());
            for &place in places {
                phases.push(self.update(place)?);
            }
            tick(self, &phases);
            let waited = places
                .iter()
                .zip(&phases)
                .find(|(_, phase)| !matches!(phase, Phase::Up | Phase::Stopped(_)));
            let Some((&place, phase)) = waited else {
                return Ok(phases);
            };
            if start.elapsed() > limit {
                let machine = &self.machines[place];
                return Err(LabError::Timeout {
                    machine: machine.spec().name.clone(),
                    waited_s: start.elapsed().as_secs(),
                    phase: phase.clone(),
                    resets: machine.resets(),
                    tail: format!(
                        "the console's end:\n{}\ndnsmasq of it:\n{}",
                        machine.console().tail(40),
                        self.host.dnsmasq_said(machine.spec())
                    ),
                });
            }
            std::thread::sleep(TICK);
        }
    }

    /// Starts a second seed that has all that the PXE host's has. It lives as long as what is
    /// returned.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn second_seed(&self) -> Result<Second, LabError> {
        Ok(Second::start(&self.host, self.scratch.path())?)
    }

    /// The site's initramfs without one kernel module. Returns where it is and the file that was
    /// taken out.
    ///
    /// # Errors
    /// When it has no such module or cannot be packed again.
    pub fn initrd_without(&self, module: &str) -> Result<(PathBuf, String), LabError> {
        let directory = self.scratch.path();
        Ok(initrd::without(
            &self.debian,
            &self.initrd,
            module,
            directory,
        )?)
    }

    /// The Debian package of the server.
    pub fn server_package(&self) -> &Path {
        &self.server_package
    }

    /// Where consoles and logs are while the lab lives.
    pub fn directory(&self) -> PathBuf {
        self.scratch.path().to_owned()
    }
}
