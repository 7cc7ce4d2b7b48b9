//! Many boots in a row on cables that lose packets.
//!
//! All of a machine's traffic goes through the loss: firmware, DHCP, TFTP, HTTP, the swarm. The boot
//! loader gets kernel and initramfs over HTTP (`rootswarm pxe --http`): over TFTP, which stops for
//! a second or more at each lost packet, these 26 MB take a quarter of an hour at 2 %.
//!
//! Machines boot a few at a time, each from the seed and from those that are there; one that is up
//! goes, and the next one comes.

use std::time::{Duration, Instant};

use super::machines::{self, BOOT_LIMIT, MachineFault};
use crate::vm::host::Files;
use crate::vm::loss::Counted;
use crate::vm::{Lab, MachineSpec, Phase};

/// How often the consoles are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Of the machines; each has its own.
const FIRST_NUMBER: u8 = 11;
/// As many machines as the site has addresses for.
pub const BOOTS_MAX: u8 = 180;

/// What is to be booted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Series {
    /// How many boots, each of another machine: at most [`BOOTS_MAX`].
    pub boots: u8,
    /// How many machines at a time, 1 GiB each.
    pub at_once: usize,
    /// The share of packets that each cable loses, each way.
    pub loss: f64,
    /// How many of them, the first ones, get kernel and initramfs over the same cable. For the
    /// others the emulator loads them, and the loss begins with the kernel's own DHCP.
    pub pxe: u8,
}

/// One boot.
#[derive(Debug, Clone, PartialEq)]
pub struct Boot {
    /// The machine.
    pub machine: String,
    /// When the whole image was there, since it was switched on.
    pub image_s: f64,
    /// When its system was up.
    pub up_s: f64,
    /// From the seed.
    pub seed_bytes: u64,
    /// From other machines.
    pub peer_bytes: u64,
    /// What its cable carried and lost until then.
    pub counted: Counted,
}

/// Boots one machine after the other; `booted` is told of each. Ends at the first failure.
///
/// # Errors
/// When one does not come up, or its cable lost nothing.
pub fn run(
    series: &Series,
    say: &dyn Fn(&str),
    mut booted: impl FnMut(&Boot),
) -> Result<Vec<Boot>, MachineFault> {
    let mut lab = machines::lab_with(Files::Http, say)?;
    let mut boots = Vec::new();
    let mut under_way: Vec<(usize, Instant)> = Vec::new();
    let mut started = 0;
    let wanted = series.boots.min(BOOTS_MAX);
    while boots.len() < usize::from(wanted) {
        while started < wanted && under_way.len() < series.at_once {
            let spec = MachineSpec::new(&format!("boot{}", started + 1), FIRST_NUMBER + started);
            let spec = spec.with_loss(series.loss);
            let spec = match started < series.pxe {
                true => spec,
                false => spec.loaded_by_emulator(None),
            };
            under_way.push((lab.switch_on(spec)?, Instant::now()));
            started += 1;
        }
        let mut still = Vec::new();
        for (place, since) in under_way {
            match lab.update(place)? {
                Phase::Up => {
                    let boot = finish(&mut lab, place)?;
                    booted(&boot);
                    boots.push(boot);
                }
                Phase::Stopped(why) => {
                    return Err(machines::wrong(&lab.machines()[place], why));
                }
                phase if since.elapsed() > BOOT_LIMIT => {
                    let waited = format!("not up after {} s: {phase:?}", BOOT_LIMIT.as_secs());
                    return Err(machines::wrong(&lab.machines()[place], waited));
                }
                _ => still.push((place, since)),
            }
        }
        under_way = still;
        std::thread::sleep(TICK);
    }
    Ok(boots)
}

/// Looks at a machine that is up, and pulls its plug.
fn finish(lab: &mut Lab, place: usize) -> Result<Boot, MachineFault> {
    let counted = lab.counted(place)?;
    let machine = &lab.machines()[place];
    machines::check_up(machine)?;
    if counted.dropped == 0 {
        return Err(MachineFault::NotFired(format!(
            "the cable of {} lost none of {} packets",
            machine.spec().name,
            counted.packets
        )));
    }
    let bytes = |key| machine.facts().and_then(|facts| facts.status_number(key));
    let seconds = |at: Option<Duration>| at.map_or(f64::NAN, |at| at.as_secs_f64());
    let boot = Boot {
        machine: machine.spec().name.clone(),
        image_s: seconds(machine.image_complete_at()),
        up_s: seconds(machine.up_at()),
        seed_bytes: bytes("bytes_from_seed").unwrap_or(0),
        peer_bytes: bytes("bytes_from_peers").unwrap_or(0),
        counted,
    };
    lab.switch_off(place)?;
    Ok(boot)
}
