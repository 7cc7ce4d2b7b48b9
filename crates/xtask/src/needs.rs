//! The Debian packages that the tests, faults, attacks and boots run programs of.

use anyhow::Context as _;
use rootswarm_tests::{packages, vm};

/// What is run, and the package it comes from; the virtual machines' lab names its own.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("mksquashfs", "squashfs-tools"),
    ("b3sum", "b3sum"),
    ("zstd", "zstd"),
    ("wget", "wget"),
    ("setfattr", "attr"),
    ("strace", "strace"),
    ("setcap", "libcap2-bin"),
    ("dnsmasq", "dnsmasq-base"),
    ("/usr/lib/PXELINUX/lpxelinux.0", "pxelinux"),
    (
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "syslinux-common",
    ),
    ("systemd-analyze", "systemd"),
    ("lintian", "lintian"),
];

/// Installs what is missing, with `machines` what virtual machines take as well.
///
/// # Errors
/// A package that cannot be installed.
pub(crate) fn install(machines: bool) -> anyhow::Result<()> {
    packages::ensure(PROGRAMS).context("cannot install what the tests need")?;
    if machines {
        packages::ensure(vm::PACKAGES).context("cannot install what the machines need")?;
    }
    Ok(())
}
