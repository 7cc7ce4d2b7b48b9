//! A second seed on the site: another host on the bridge that mirrors the first one under the same
//! swarm key.
//!
//! It leaves DHCP and TFTP to the PXE host; a site with two has its own way of doubling those.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use super::host::{ADDRESS, Host, HostError, PREFIX_LEN};
use super::step::StepError;
use crate::netns::Namespace;
use crate::process::Process;

/// Above the machines' own addresses.
const SECOND_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 200);
/// It fetches the whole image from the first.
const READY_LIMIT: Duration = Duration::from_secs(300);

/// The second seed. Dropping it kills it.
#[derive(Debug)]
pub struct Second {
    _process: Process,
    _namespace: Namespace,
}

impl Second {
    /// Starts it in a namespace of its own and waits until it serves all that the first has. Its
    /// files go to `directory`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(host: &Host, directory: &Path) -> Result<Second, HostError> {
        let state = directory.join("second");
        fs::create_dir_all(&state).map_err(StepError::file("make", &state))?;
        let key = host.state().join("swarm.key");
        fs::copy(&key, state.join("swarm.key")).map_err(StepError::file("copy", &key))?;

        let namespace = Namespace::create("second")?;
        host.bridge()
            .attach(&namespace, SECOND_ADDRESS, PREFIX_LEN)?;
        let mut command = namespace.command(host.server());
        command.arg("serve").arg("--state").arg(&state);
        command.args(["--host", &SECOND_ADDRESS.to_string()]);
        command.args(["--mirror", &format!("swarm://{ADDRESS}")]);
        let mut process = Process::spawn("second seed", command, &directory.join("second.log"))?;
        process.wait_for_line("ready swarm://", READY_LIMIT)?;
        Ok(Second {
            _process: process,
            _namespace: namespace,
        })
    }

    /// Where nodes find it.
    pub fn address(&self) -> Ipv4Addr {
        SECOND_ADDRESS
    }
}
