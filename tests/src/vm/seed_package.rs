//! The server's package in a booted machine, under the systemd of that machine.
//!
//! `server/tests/service.rs` holds the server to its unit without a systemd, call by call; here the
//! whole unit is what systemd makes of it, and the package is dpkg's. The machine is a diskless one
//! like the others: its state directory lies in its overlay.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use super::host::{ADDRESS, IMAGE};
use super::lab::{Lab, LabError};
use super::machine::MachineError;
use super::step::StepError;

/// Where the package lies in the machine.
const PACKAGE: &str = "/tmp/rootswarm.deb";
const STATE: &str = "/var/lib/rootswarm";
const UNIT: &str = "rootswarm.service";

/// A seed in a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Seed {
    /// What `rootswarm publish` printed.
    pub rooturl: String,
    /// `systemd-analyze security`, of the loaded unit: of 10.
    pub exposure: f64,
    /// Whom the server runs as.
    pub user: String,
    /// The owners of all that is in its state directory, after root has published.
    pub owners: Vec<String>,
}

/// What is left of it after it was purged.
#[derive(Debug, Clone, PartialEq)]
pub struct Purged {
    /// Files and directories.
    pub left: String,
    /// `systemctl is-system-running`.
    pub systemd: String,
}

/// Installs the package in the machine at `place`, gives it the site's swarm key as the README says, and
/// publishes the image that the machine runs from. `limit` is for each command.
///
/// # Errors
/// When a command in the machine fails, or a file cannot be handed to it.
pub fn install(lab: &mut Lab, place: usize, limit: Duration) -> Result<Seed, LabError> {
    let package = lab.server_package().to_owned();
    lab.host().hand_out("rootswarm.deb", &package)?;
    let key = lab.host().state().join("swarm.key");
    let key = fs::read(&key).map_err(StepError::file("read", &key))?;

    let machine = lab.machine_mut(place);
    let mut run = |command: &str| machine.run(command, limit);
    // A minimal Debian has no wget. A seed serves a new file within a second.
    run(&format!(
        "for try in 1 2 3 4 5 6 7 8 9 10; do \
         bash -c 'exec 3<>/dev/tcp/{ADDRESS}/7480; printf \"GET /boot/rootswarm.deb HTTP/1.0\\r\\n\\r\\n\" >&3; \
         sed \"1,/^\\r$/d\" <&3 >{PACKAGE}'; dpkg-deb --info {PACKAGE} >/dev/null 2>&1 && break; sleep 1; done; \
         dpkg-deb --info {PACKAGE}"
    ))?;
    run(&format!("dpkg --install {PACKAGE}"))?;
    run(&active())?;
    // The site's key instead of the one that its first start made.
    run(&format!("systemctl stop {UNIT}"))?;
    run(&format!(
        "umask 077; printf '{}' >{STATE}/swarm.key; chown --reference={STATE}/ {STATE}/swarm.key",
        octal(&key)
    ))?;
    run(&format!("systemctl start {UNIT}"))?;
    let rooturl = run(&format!(
        "rootswarm publish {IMAGE} /run/rootswarm/image.squashfs"
    ))?;
    let exposure = run(&format!(
        "systemd-analyze security --no-pager {UNIT} | grep -o 'Overall exposure level.*: [0-9.]*'"
    ))?;
    let user = run(&format!(
        "ps -o user= -p $(systemctl show -p MainPID --value {UNIT})"
    ))?;
    let owners = run(&format!("find {STATE}/ -printf '%u\\n' | sort -u"))?;
    run(&active())?;
    Ok(Seed {
        rooturl: rooturl.lines().last().unwrap_or_default().to_owned(),
        exposure: exposure
            .rsplit(' ')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(f64::NAN),
        user,
        owners: owners.lines().map(str::to_owned).collect(),
    })
}

/// The journal of the unit in the machine at `place`, for a message.
pub fn journal(lab: &mut Lab, place: usize, limit: Duration) -> String {
    let command = format!("journalctl --no-pager -o cat -u {UNIT} | tail -n 30");
    let outcome = lab.machine_mut(place).run(&command, limit);
    outcome.unwrap_or_else(|error| error.to_string())
}

/// Takes the package away again, with all that it kept.
///
/// # Errors
/// When dpkg fails, or the unit was not active until then or was ever restarted.
pub fn purge(lab: &mut Lab, place: usize, limit: Duration) -> Result<Purged, MachineError> {
    let machine = lab.machine_mut(place);
    machine.run(&active(), limit)?;
    machine.run("dpkg --purge rootswarm", limit)?;
    let left = format!(
        "ls -d {STATE} /var/lib/private/rootswarm /etc/rootswarm /usr/bin/rootswarm 2>/dev/null || true"
    );
    Ok(Purged {
        left: machine.run(&left, limit)?,
        systemd: machine.run("systemctl is-system-running", limit)?,
    })
}

/// Fails unless the unit is active and was never restarted, with what systemd says of it.
fn active() -> String {
    format!(
        "systemctl is-active --quiet {UNIT} && test \"$(systemctl show -p NRestarts --value {UNIT})\" = 0 || \
         {{ systemctl status --no-pager {UNIT}; false; }}"
    )
}

/// For printf(1).
fn octal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // It does not fail on a string.
        let _ = write!(text, "\\{byte:03o}");
        text
    })
}
