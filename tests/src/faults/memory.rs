//! An image that does not fit into the node's memory.

use std::path::Path;
use std::time::Duration;

use super::{Failure, Fault, Outcome};
use crate::netns::NODE_INTERFACE;
use crate::network::Network;
use crate::process::Process;
use crate::source;
use crate::swarm::{Seed, programs};

const IMAGE_BYTES: u64 = 40_000_000;
/// The image and what the agent leaves to the system (64 MiB) are more than that.
const AVAILABLE_BYTES: u64 = 96 << 20;
/// Joining, the tag and the manifest; a chunk is 128 KiB.
const TALK_BYTES: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(60);
/// The exit code for what the machine does not have.
const RESOURCE: i32 = 5;

pub(super) const IMAGE_TOO_LARGE: Fault = Fault {
    name: "memory: image larger than RAM",
    need_bytes: 3 * IMAGE_BYTES,
    bound: None,
    inject: image_too_large,
};

/// `rootswarm-agent boot`, whose `/proc/meminfo` is a file of ours. The mount ends with its namespace.
const BOOT: &str = r#"mount --bind "$1" /proc/meminfo && shift && exec "$@""#;

fn image_too_large(directory: &Path) -> Result<Outcome, Failure> {
    let image = directory.join("source");
    source::write(&image, IMAGE_BYTES, 1)?;
    let network = Network::lay_out(1, 1000, 1000)?;
    let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
    let url = seed.url("debian")?;

    let meminfo = directory.join("meminfo");
    let kib = AVAILABLE_BYTES / 1024;
    std::fs::write(
        &meminfo,
        format!("MemTotal: {kib} kB\nMemFree: {kib} kB\nMemAvailable: {kib} kB\n"),
    )?;
    let cmdline = directory.join("cmdline");
    std::fs::write(&cmdline, format!("rooturl={url} rootdelay=10"))?;
    let empty = |name: &str| {
        let path = directory.join(name);
        std::fs::create_dir(&path).map(|()| path)
    };

    let site = &network.nodes[0];
    let mut command = site.place().command(Path::new("unshare"));
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        BOOT,
        "sh",
    ]);
    command.arg(&meminfo).arg(&programs()?.agent).arg("boot");
    command.arg("--cmdline").arg(&cmdline);
    command.arg("--rootmnt").arg(empty("root")?);
    command.arg("--conf").arg(empty("conf")?);
    command.arg("--run-dir").arg(directory.join("run"));
    command.arg("--mnt").arg(directory.join("mnt"));
    let before = site.namespace.traffic(NODE_INTERFACE)?.rx_bytes;
    let mut boot = Process::spawn("boot", command, &directory.join("boot.log"))?;
    let status = boot.wait(LIMIT)?;
    let received = site.namespace.traffic(NODE_INTERFACE)?.rx_bytes - before;

    // The last is what it was made to believe: it stands nowhere but in the false meminfo.
    let sizes = ["40.0 MB", "107.1 MB", "100.7 MB"];
    let output = boot.output()?;
    let names_all = |line: &&str| sizes.iter().all(|size| line.contains(size));
    let refusals = output.lines().filter(names_all).count();
    if status.code() != Some(RESOURCE) || refusals == 0 {
        let said = boot.tail(1);
        return Err(
            format!("expected a refusal that names {sizes:?}, found {status}: {said}").into(),
        );
    }
    let copies = seed.copies_sent("debian")?;
    if received > TALK_BYTES || copies > 0.0 {
        return Err(format!("{received} bytes and {copies} copies came before the refusal").into());
    }
    Ok(Outcome {
        fired: refusals as u64,
        unit: "refusals",
        outcome: format!(
            "0 bytes of the image, {received} at the interface in all; all sizes named"
        ),
        added: None,
    })
}
