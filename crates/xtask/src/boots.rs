//! `cargo xtask boots`: many virtual machines boot one after the other on cables that lose packets.
//!
//! The series itself is `rootswarm_tests::faults::boots`; here is what is printed of it.

use std::time::Instant;

use anyhow::ensure;
use rootswarm_tests::faults::boots::{self as series_of, BOOTS_MAX, Boot, Series};

use crate::{needs, print};

/// Options of `cargo xtask boots`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many boots, one failure ends the series
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=i64::from(BOOTS_MAX)))]
    boots: u8,
    /// How many machines at a time; each takes 1 GiB of memory and a core
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    at_once: u8,
    /// Packets that each cable loses, each way, in percent
    #[arg(long, default_value_t = 2.0)]
    loss: f64,
    /// How many get kernel and initramfs over the same cable (all, unless given); for the others the
    /// emulator loads them, which takes half as long, and the loss begins with the kernel's own DHCP
    #[arg(long)]
    pxe: Option<u8>,
}

/// Boots and prints.
///
/// # Errors
/// With the first machine that does not come up as it should.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the machines need network namespaces and taps: run it as root"
    );
    ensure!(
        (0.0..=50.0).contains(&args.loss) && args.loss > 0.0,
        "--loss {}: more than 0 and at most 50 percent",
        args.loss
    );
    needs::install(true)?;
    let started = Instant::now();
    let series = Series {
        boots: args.boots,
        at_once: usize::from(args.at_once),
        loss: args.loss / 100.0,
        pxe: args.pxe.unwrap_or(args.boots).min(args.boots),
    };
    let say = |what: &str| {
        let _ = print::line(format_args!(
            "[{:6.1} s] {what}",
            started.elapsed().as_secs_f64()
        ));
    };
    print::line(format_args!(
        "{} boots, {} at a time, {} % of the packets lost each way; {} with firmware, DHCP and the \
         boot loader's files, {} from the kernel's own DHCP on",
        series.boots,
        series.at_once,
        args.loss,
        series.pxe,
        series.boots - series.pxe
    ))?;
    print::line(format_args!(
        "{:<8} {:>8} {:>8} {:>10} {:>11} {:>9} {:>8}",
        "machine", "image", "up", "from seed", "from peers", "packets", "lost"
    ))?;
    let boots = series_of::run(&series, &say, |boot| {
        let _ = print::line(format_args!("{}", row(boot)));
    })?;
    let packets: u64 = boots.iter().map(|boot| boot.counted.packets).sum();
    let lost: u64 = boots.iter().map(|boot| boot.counted.dropped).sum();
    print::line(format_args!(
        "{} boots in a row without a failure in {:.0} s; {lost} of {packets} packets lost ({:.2} %)",
        boots.len(),
        started.elapsed().as_secs_f64(),
        lost as f64 / packets as f64 * 100.0
    ))?;
    Ok(())
}

fn row(boot: &Boot) -> String {
    format!(
        "{:<8} {:>6.1} s {:>6.1} s {:>7.1} MB {:>8.1} MB {:>9} {:>8}",
        boot.machine,
        boot.image_s,
        boot.up_s,
        boot.seed_bytes as f64 / 1e6,
        boot.peer_bytes as f64 / 1e6,
        boot.counted.packets,
        boot.counted.dropped
    )
}
