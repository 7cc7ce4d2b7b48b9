//! Faults that need a machine: its clock, its memory, its kernel's modules, its agent's death, its
//! power button, and a seed that is gone when it boots.
//!
//! Each opens a lab of its own, injects one thing, and says how often that fired. It fails when it
//! did not fire, or when the machine did not do what it must. Firmware and TFTP have no part in
//! these: the emulator loads kernel and initramfs, unless PXE is what is meant.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::{Fault, Outcome, power};
use crate::packages;
use crate::source;
use crate::vm::facts::Facts;
use crate::vm::host::{self, Files, HostError, IMAGE};
use crate::vm::machine::MachineError;
use crate::vm::step::StepError;
use crate::vm::{Lab, LabError, Machine, MachineSpec, PACKAGES, Phase};

/// One machine takes a minute on an idle core. Four together took sixteen on two cores with ten times the
/// work that they can do.
pub const BOOT_LIMIT: Duration = Duration::from_secs(45 * 60);
/// For a command in a machine that reads the whole image.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(10 * 60);
/// The seed forgets a node that says nothing any more within this.
const FORGET_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(500);

/// The memory of a machine and the length of an image that is larger than it.
const SMALL_MIB: u32 = 256;
const LARGE_IMAGE_BYTES: u64 = 320 << 20;

pub(super) const CLOCKS: Fault = Fault {
    name: "machine: clock at 1970 and 2100",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(clocks()?),
};
pub(super) const IMAGE_LARGER_THAN_RAM: Fault = Fault {
    name: "machine: image larger than RAM",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(image_larger_than_memory()?),
};
pub(super) const MODULE_MISSING: Fault = Fault {
    name: "machine: module missing",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(missing_modules()?),
};
pub(super) const AGENT_DIES: Fault = Fault {
    name: "machine: agent dies after handoff",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(agent_dies()?),
};
pub(super) const FIRST_SEED_DESTROYED: Fault = Fault {
    name: "machine: first seed destroyed",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(first_seed_destroyed()?),
};

pub(super) const SEED_AWAY: Fault = Fault {
    name: "machine: seed away longer than ROOTDELAY",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(seed_away()?),
};

/// Why a fault did not fire, or what went wrong after it.
#[derive(Debug, thiserror::Error)]
pub enum MachineFault {
    /// The lab itself.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Its PXE host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// One of its machines.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its files.
    #[error(transparent)]
    Step(#[from] StepError),
    /// What it is made of.
    #[error(transparent)]
    Package(#[from] packages::PackageError),
    /// The fault did not fire.
    #[error("the fault did not fire: {0}")]
    NotFired(String),
    /// Something took longer than it may.
    #[error("too slow: {0}")]
    Late(String),
    /// A machine is not as it should be.
    #[error("{machine}: {wrong}; the end of its console:\n{tail}")]
    Wrong {
        /// Its name.
        machine: String,
        /// What is wrong.
        wrong: String,
        /// The end of its console.
        tail: String,
    },
}

type Result<T> = std::result::Result<T, MachineFault>;

/// A lab with all that it needs.
///
/// # Errors
/// When something cannot be installed, made or started.
pub fn lab() -> Result<Lab> {
    lab_with(Files::Tftp, &|_| {})
}

/// The same, with the boot loader told where to get kernel and initramfs.
///
/// # Errors
/// As [`lab`].
pub fn lab_with(files: Files, say: &dyn Fn(&str)) -> Result<Lab> {
    packages::ensure(PACKAGES)?;
    Ok(Lab::open_with(files, say)?)
}

/// The fault in a machine, with the end of its console.
pub fn wrong(machine: &Machine, wrong: impl Into<String>) -> MachineFault {
    MachineFault::Wrong {
        machine: machine.spec().name.clone(),
        wrong: wrong.into(),
        tail: machine.console().tail(25),
    }
}

/// Waits until all of `places` are up and as a booted machine must be.
///
/// # Errors
/// When one is not.
pub fn boot(lab: &mut Lab, places: &[usize]) -> Result<()> {
    let phases = lab.wait(places, BOOT_LIMIT, |_, _| {})?;
    for (&place, phase) in places.iter().zip(phases) {
        let machine = &lab.machines()[place];
        match phase {
            Phase::Up => check_up(machine)?,
            phase => return Err(wrong(machine, format!("it is {phase:?}"))),
        }
    }
    Ok(())
}

/// What every booted machine must show: its system runs, its root is the image under an overlay.
///
/// # Errors
/// With what is not so.
pub fn check_up(machine: &Machine) -> Result<()> {
    let facts = facts(machine)?;
    let found = [
        ("systemd", facts.systemd.as_str(), "running"),
        ("/", facts.fs_type("/"), "overlay"),
        ("/mnt/ro", facts.fs_type("/mnt/ro"), "squashfs"),
        ("/run/rootswarm", facts.fs_type("/run/rootswarm"), "tmpfs"),
    ];
    for (what, found, expected) in found {
        if found != expected {
            let failed = &facts.failed_units;
            return Err(wrong(
                machine,
                format!("{what} is `{found}`, expected `{expected}` (failed: {failed:?})"),
            ));
        }
    }
    Ok(())
}

/// A machine that its emulator loads.
pub fn machine(name: &str, number: u8) -> MachineSpec {
    MachineSpec::new(name, number).loaded_by_emulator(None)
}

fn facts(machine: &Machine) -> Result<&Facts> {
    machine
        .facts()
        .ok_or_else(|| wrong(machine, "it is not up"))
}

/// Waits for machines that must not boot: why each stopped. Their image must not have come.
fn refused(lab: &mut Lab, places: &[usize]) -> Result<Vec<String>> {
    let phases = lab.wait(places, BOOT_LIMIT, |_, _| {})?;
    let mut reasons = Vec::new();
    for (&place, phase) in places.iter().zip(phases) {
        let machine = &lab.machines()[place];
        match phase {
            Phase::Stopped(why) if machine.image_complete_at().is_none() => reasons.push(why),
            phase => return Err(wrong(machine, format!("it is {phase:?}"))),
        }
    }
    Ok(reasons)
}

/// A clock that is decades early and one that is decades late: both boot, and verify what they get.
///
/// # Errors
/// When the clock was right, or a machine does not come up.
fn clocks() -> Result<Outcome> {
    let mut lab = lab()?;
    let mut places = Vec::new();
    for (name, number, year) in [("early", 11, "1970"), ("late", 12, "2100")] {
        let clock = format!("{year}-01-01T00:00:00");
        let spec = machine(name, number).with_clock(&clock);
        places.push(lab.switch_on(spec)?);
    }
    boot(&mut lab, &places)?;
    let mut outcome = Vec::new();
    for (&place, year) in places.iter().zip(["1970", "2100"]) {
        let clock = check_clock(&lab.machines()[place], year)?;
        let now = lab.machine_mut(place).run("date -u +%F", COMMAND_LIMIT)?;
        outcome.push(format!("{clock}: up (systemd puts it to {now})"));
    }
    Ok(Outcome {
        fired: outcome.len() as u64,
        unit: "wrong clocks",
        outcome: outcome.join("; "),
        added: None,
    })
}

/// What a machine's kernel said of its clock; it must be of this year.
///
/// # Errors
/// When it was of another.
pub fn check_clock(machine: &Machine, year: &str) -> Result<String> {
    const SET: &str = "setting system clock to ";
    let line = machine.console().first(SET);
    let said = line.and_then(|line| line.text.split_once(SET));
    match said {
        Some((_, clock)) if clock.starts_with(year) => {
            let date = clock.split_whitespace().next().unwrap_or(clock);
            Ok(date.to_owned())
        }
        Some((_, clock)) => Err(MachineFault::NotFired(format!(
            "the clock of {} was {clock}, expected one of {year}",
            machine.spec().name
        ))),
        None => Err(wrong(machine, "its kernel does not say what its clock is")),
    }
}

/// Memory that is smaller than the image: refused before the download, with both sizes.
///
/// # Errors
/// When the image fitted, or bytes of it were sent, or the console names no sizes.
fn image_larger_than_memory() -> Result<Outcome> {
    const NAME: &str = "large";
    let mut lab = lab()?;
    let image = lab.directory().join(NAME);
    File::create(&image)
        .and_then(|mut file| {
            file.write_all(&source::superblock(LARGE_IMAGE_BYTES))?;
            file.set_len(LARGE_IMAGE_BYTES)
        })
        .map_err(|error| MachineFault::NotFired(format!("{}: {error}", image.display())))?;
    lab.host().publish(NAME, &image)?;
    let url = format!("rooturl=swarm://{}/{NAME}", host::ADDRESS);
    let spec = machine("small", 11).with(&url).with_memory_mib(SMALL_MIB);
    let place = lab.switch_on(spec)?;
    let why = refused(&mut lab, &[place])?.remove(0);
    let machine = &lab.machines()[place];
    // As the agent writes sizes; the second is of what the kernel leaves of the memory.
    let image_size = format!("the image has {:.1} MB", LARGE_IMAGE_BYTES as f64 / 1e6);
    let is_refusal = |line: &&str| {
        line.contains(&image_size) && line.contains("MB of RAM") && line.ends_with("available")
    };
    let refusals = machine.console().texts().filter(is_refusal).count();
    if !is_refusal(&why.as_str()) {
        return Err(wrong(machine, format!("it stopped with `{why}`")));
    }
    let status = lab.host().status()?;
    let sent_bytes = uploaded_bytes(&status, NAME)
        .ok_or_else(|| MachineFault::NotFired(format!("no image {NAME} in {status}")))?;
    if sent_bytes > 0 {
        return Err(wrong(
            machine,
            format!("the seed sent it {sent_bytes} bytes of the image"),
        ));
    }
    Ok(Outcome {
        fired: refusals as u64,
        unit: "console lines that refuse",
        outcome: format!("refused, 0 bytes of the image sent: {why}"),
        added: None,
    })
}

fn uploaded_bytes(status: &serde_json::Value, image: &str) -> Option<u64> {
    let images = status.get("images")?.as_array()?;
    let of_that_name = |entry: &&serde_json::Value| {
        let names = entry.get("names").and_then(serde_json::Value::as_array);
        names.is_some_and(|names| names.iter().any(|name| name.as_str() == Some(image)))
    };
    let entry = images.iter().find(of_that_name)?;
    entry.get("uploaded_bytes")?.as_u64()
}

/// A kernel that lacks one of the three parts that make the root: named before the download.
///
/// # Errors
/// When a machine boots, names something else, or downloads.
fn missing_modules() -> Result<Outcome> {
    const MODULES: [&str; 3] = ["squashfs", "overlay", "loop"];
    let mut lab = lab()?;
    let mut places = Vec::new();
    let mut removed = Vec::new();
    for (number, module) in (11..).zip(MODULES) {
        let (initrd, file) = lab.initrd_without(module)?;
        removed.push(file);
        let spec = MachineSpec::new(&format!("no-{module}"), number);
        places.push(lab.switch_on(spec.loaded_by_emulator(Some(initrd)))?);
    }
    let reasons = refused(&mut lab, &places)?;
    for ((&place, module), why) in places.iter().zip(MODULES).zip(&reasons) {
        let machine = &lab.machines()[place];
        let expected = format!("the kernel has no {module} and no module");
        if !why.contains(&expected) {
            return Err(wrong(machine, format!("it stopped with `{why}`")));
        }
        // What it says once it begins to fetch.
        if machine.console().first("rootswarm: booting from").is_some() {
            return Err(wrong(machine, "it had begun to download"));
        }
    }
    let names: Vec<&str> = removed
        .iter()
        .map(|file| file.rsplit('/').next().unwrap_or(file))
        .collect();
    Ok(Outcome {
        fired: reasons.len() as u64,
        unit: "modules missing",
        outcome: format!(
            "{}: each named, nothing downloaded: {}",
            names.join(", "),
            reasons[0]
        ),
        added: None,
    })
}

/// The agent is killed in a booted machine: the machine goes on, from its own memory.
///
/// # Errors
/// When the agent lives, or anything in the machine reads differently afterwards.
fn agent_dies() -> Result<Outcome> {
    let mut lab = lab()?;
    let place = lab.switch_on(machine("bereft", 11))?;
    boot(&mut lab, &[place])?;
    let served = nodes(&lab)?;
    let pid = kill_agent(lab.machine_mut(place), COMMAND_LIMIT)?;
    let started = Instant::now();
    while nodes(&lab)? > 0 {
        if started.elapsed() > FORGET_LIMIT {
            let machine = &lab.machines()[place];
            return Err(wrong(machine, "the seed still counts it among its nodes"));
        }
        std::thread::sleep(POLL);
    }
    let next = lab.switch_on(machine("next", 12))?;
    boot(&mut lab, &[next])?;
    let off_s = power::off(lab.machine_mut(place))?.total_s;
    Ok(Outcome {
        // As the seed saw it: the loop above ends when it counts none.
        fired: served as u64,
        unit: "nodes lost to the seed",
        outcome: format!(
            "agent {pid} gone, node unaffected: image and programs read the same after drop_caches, systemd running, \
             off in {off_s:.1} s; the seed let go of it; the next machine booted; the agent is not \
             started again"
        ),
        added: None,
    })
}

/// Kills the agent of a booted machine and sees to it that the machine does not mind: the image and
/// the programs on it read the same, from the disk that is its memory, and its system runs. Returns
/// the agent's process id.
///
/// # Errors
/// When one of these is not so.
pub fn kill_agent(machine: &mut Machine, limit: Duration) -> Result<u32> {
    // A tenth of the image's files, unpacked by the kernel; and the image as a whole.
    const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; cat /usr/sbin/* /usr/bin/* 2>/dev/null | md5sum; md5sum </run/rootswarm/image.squashfs";
    let agents: Vec<u32> = facts(machine)?
        .agents
        .iter()
        .map(|agent| agent.pid)
        .collect();
    let [pid] = agents[..] else {
        return Err(MachineFault::NotFired(format!(
            "{}: one agent expected, found {agents:?}",
            machine.spec().name
        )));
    };
    let before = machine.run(READ, limit)?;
    machine.run(
        &format!("kill -9 {pid}; while kill -0 {pid} 2>/dev/null; do sleep 0.1; done"),
        limit,
    )?;
    let after = machine.run(READ, limit)?;
    if before != after {
        return Err(wrong(
            machine,
            format!("it reads `{after}` after the agent's death, `{before}` before"),
        ));
    }
    let state = machine.run(
        "systemctl is-system-running; pgrep -f '[r]ootswarm-agent' || echo no agent",
        limit,
    )?;
    if state != "running\nno agent" {
        return Err(wrong(machine, format!("after its agent's death: {state}")));
    }
    Ok(pid)
}

fn nodes(lab: &Lab) -> Result<usize> {
    let status = lab.host().status()?;
    let images = status.get("images").and_then(serde_json::Value::as_array);
    let nodes = images.into_iter().flatten().filter_map(|image| {
        let nodes = image.get("nodes")?.as_array()?;
        Some(nodes.len())
    });
    Ok(nodes.sum())
}

/// Two seeds with one key; the first is killed and its disk is gone: a machine boots from what is
/// left. The site's DHCP and TFTP go on: they are not the seed's.
///
/// # Errors
/// When it does not boot.
fn first_seed_destroyed() -> Result<Outcome> {
    let mut lab = lab()?;
    let second = lab.second_seed()?;
    let pid = lab.host_mut().destroy_seed()?;
    let is_silent = lab.host().status().is_err();
    let place = lab.switch_on(two_seeds("orphan", 11, second.address()))?;
    boot(&mut lab, &[place])?;
    let machine = &lab.machines()[place];
    let bytes = |key: &str| facts(machine).map(|facts| facts.status_number(key).unwrap_or(0));
    let (seed, peers, total) = (
        bytes("bytes_from_seed")?,
        bytes("bytes_from_peers")?,
        bytes("bytes_total")?,
    );
    if total == 0 || seed + peers != total {
        return Err(wrong(
            machine,
            format!("{seed} bytes from seeds and {peers} from peers of {total}"),
        ));
    }
    Ok(Outcome {
        fired: u64::from(is_silent),
        unit: "seeds destroyed",
        outcome: format!(
            "seed {pid} gone; up by swarm://{},{}/{IMAGE}, {:.1} MB from the second",
            host::ADDRESS,
            second.address(),
            seed as f64 / 1e6
        ),
        added: None,
    })
}

/// As after a power cut: the seed is back later than the machine is patient. The boot gives up, the
/// machine reboots by `panic=` and tries again, as often as it takes.
///
/// # Errors
/// When it does not come up, or stops for good.
fn seed_away() -> Result<Outcome> {
    const GIVE_UPS: usize = 2;
    let mut lab = lab()?;
    lab.host_mut().stop_seed()?;
    let spec = machine("early", 11).that_reboots();
    let place = lab.switch_on(spec.with("ROOTDELAY=5").with("panic=2"))?;
    let started = Instant::now();
    while lab.machines()[place].gave_up() < GIVE_UPS {
        lab.update(place)?;
        if started.elapsed() > BOOT_LIMIT {
            let machine = &lab.machines()[place];
            return Err(wrong(machine, "it does not give up twice"));
        }
        std::thread::sleep(POLL);
    }
    lab.host_mut().start_seed(None)?;
    boot(&mut lab, &[place])?;
    let machine = &lab.machines()[place];
    let says = "it reboots in 2 s, by panic=2, and tries again";
    if machine.console().first(says).is_none() {
        return Err(wrong(machine, format!("it never said `{says}`")));
    }
    Ok(Outcome {
        fired: machine.gave_up() as u64,
        unit: "boots given up",
        outcome: format!(
            "rebooted by itself {} times, up in the boot after the seed was back",
            machine.resets()
        ),
        added: None,
    })
}

/// A machine that is told of both seeds.
pub fn two_seeds(name: &str, number: u8, second: Ipv4Addr) -> MachineSpec {
    let url = format!("rooturl=swarm://{},{second}/{IMAGE}", host::ADDRESS);
    MachineSpec::new(name, number).with(&url)
}
