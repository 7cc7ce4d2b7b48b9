//! The power button, with and without an agent that serves.
//!
//! A system that shuts down asks every process that is left to end, waits for that, and only then
//! goes on. The agent belongs to no unit, so this wait is where it would delay a shutdown. The
//! kernel's own time stamps on the console say how long it was.

use std::time::Duration;

use super::machines::{self, COMMAND_LIMIT, MachineFault};
use super::{Added, Fault, Outcome};
use crate::vm::Machine;

/// A process that has to be killed by systemd takes 90 s; other work on this machine counts too.
const OFF_LIMIT: Duration = Duration::from_secs(10 * 60);
/// The most that the agent may add.
const ADDED_MAX_S: f64 = 2.0;
/// Pairs of machines; the median of each kind counts.
const PAIRS: u8 = 2;

pub(super) const POWER_OFF: Fault = Fault {
    name: "machine: poweroff",
    need_bytes: 0,
    bound: None,
    inject: |_| Ok(power_off()?),
};

/// How a machine shut down.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Off {
    /// From the button to the end, of this side's time.
    pub total_s: f64,
    /// That systemd waited for the last processes, of the machine's own time.
    pub waited_s: f64,
}

/// Presses the button of machines with an agent and of machines without, at the same time.
///
/// # Errors
/// When the agent adds more than two seconds.
fn power_off() -> Result<Outcome, MachineFault> {
    let mut lab = machines::lab()?;
    let mut places = Vec::new();
    for pair in 0..PAIRS {
        let number = 11 + 2 * pair;
        let with = machines::machine(&format!("with{pair}"), number);
        let without = machines::machine(&format!("without{pair}"), number + 1);
        places.push(lab.switch_on(with)?);
        places.push(lab.switch_on(without.with("rootswarm.serve=no"))?);
    }
    machines::boot(&mut lab, &places)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for &place in &places {
        let machine = lab.machine_mut(place);
        let agents = machine.facts().map_or(0, |facts| facts.agents.len());
        // One after the other, so that none waits for another's emulator.
        let off = off(machine)?;
        match agents {
            1 => with.push(off),
            0 => without.push(off),
            more => return Err(machines::wrong(machine, format!("it has {more} agents"))),
        }
    }
    if with.len() != without.len() {
        return Err(MachineFault::NotFired(format!(
            "{} machines had an agent, {} had none",
            with.len(),
            without.len()
        )));
    }
    let median = |offs: &[Off], of: fn(&Off) -> f64| {
        let mut values: Vec<f64> = offs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let waited = [&with, &without].map(|offs| median(offs, |off| off.waited_s));
    let total = [&with, &without].map(|offs| median(offs, |off| off.total_s));
    let outcome = format!(
        "systemd waited {:.2} s for the last processes with an agent, {:.2} s without; off in {:.1} s \
         and {:.1} s (medians of {})",
        waited[0],
        waited[1],
        total[0],
        total[1],
        with.len()
    );
    if waited[0] - waited[1] > ADDED_MAX_S {
        return Err(MachineFault::Late(outcome));
    }
    Ok(Outcome {
        fired: (with.len() + without.len()) as u64,
        unit: "power buttons pressed",
        outcome,
        added: Some(Added {
            without: Duration::from_secs_f64(total[1]),
            with: Duration::from_secs_f64(total[0]),
        }),
    })
}

/// Presses one machine's power button and follows it to the end.
///
/// # Errors
/// When it does not end, or does not say how it shut down.
pub fn off(machine: &mut Machine) -> Result<Off, MachineFault> {
    // The report had silenced the kernel, through which systemd speaks at the end.
    machine.run("dmesg --console-level info", COMMAND_LIMIT)?;
    let total_s = machine.power_off(OFF_LIMIT)?.as_secs_f64();
    let waited_s = waited_s(machine.console().texts()).ok_or_else(|| {
        machines::wrong(
            machine,
            "no time of `Sending SIGTERM` and `Sending SIGKILL`",
        )
    })?;
    Ok(Off { total_s, waited_s })
}

/// The time from systemd's SIGTERM to the processes that are left to its SIGKILL, by the kernel's
/// stamps (`[   12.345678] `).
fn waited_s<'a>(lines: impl Iterator<Item = &'a str>) -> Option<f64> {
    let mut term_s = None;
    for line in lines {
        if line.contains("Sending SIGTERM to remaining processes") {
            term_s = stamp_s(line);
        } else if line.contains("Sending SIGKILL to remaining processes") {
            return Some(stamp_s(line)? - term_s?);
        }
    }
    None
}

fn stamp_s(line: &str) -> Option<f64> {
    let (stamp, _) = line.split_once('[')?.1.split_once(']')?;
    stamp.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_between_the_two_signals() {
        let console = "[   61.000001] systemd-shutdown[1]: Syncing filesystems and block devices.\n\
                       [   61.250000] systemd-shutdown[1]: Sending SIGTERM to remaining processes...\n\
                       [   61.300000] systemd-journald[77]: Received SIGTERM from PID 1 (systemd-shutdow).\n\
                       [   61.750000] systemd-shutdown[1]: Sending SIGKILL to remaining processes...\n";
        assert_eq!(waited_s(console.lines()), Some(0.5));
        assert_eq!(waited_s(console.lines().skip(2)), None);
        assert_eq!(waited_s(console.lines().take(3)), None);
    }
}
