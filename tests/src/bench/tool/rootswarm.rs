//! This project: `rootswarm serve` and `rootswarm-agent fetch`, as they are shipped.

use std::ffi::OsString;
use std::path::Path;

use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::BenchError;
use super::{IMAGE_NAME, SEED_READY, Seed, SeedPlace};

/// The agent's status document.
pub(super) const STATUS: &str = "status.json";

/// When the first chunk was there, from the agent's status document.
pub(super) fn first_chunk_s(document: &str) -> Option<f64> {
    let document: serde_json::Value = serde_json::from_str(document).ok()?;
    document["first_chunk_seconds"].as_f64()
}

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let binaries = place.binaries.ok_or(BenchError::NotBuilt)?;
    let address = place.node.link.address();
    let mut command = place.node.namespace.command(&binaries.server);
    command
        .arg("serve")
        .arg("--state")
        .arg(place.directory.join("state"));
    command.args([
        "--listen",
        &format!("{address}:7400"),
        "--http",
        &format!("{address}:7480"),
    ]);
    let mut published = OsString::from(format!("{IMAGE_NAME}="));
    published.push(place.image);
    command.arg(published);
    let mut process = Process::spawn("rootswarm serve", command, &place.directory.join("log"))?;
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
    let agent = binaries.agent.clone();
    let fetch = move |node: &LabNode, directory: &Path| {
        let mut command = node.namespace.command(&agent);
        command.args(["fetch", &url, "--stay"]);
        command.arg("--output").arg(directory.join(IMAGE_NAME));
        command.arg("--status").arg(directory.join(STATUS));
        command
    };
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Box::new(fetch),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_chunk_is_read_from_the_status() {
        let document = r#"{"phase":"serving","first_chunk_seconds":0.25,"pid":7}   "#;
        assert_eq!(first_chunk_s(document), Some(0.25));
        for other in ["", "{}", r#"{"first_chunk_seconds":null}"#, "{\"first"] {
            assert_eq!(first_chunk_s(other), None, "{other}");
        }
    }
}
