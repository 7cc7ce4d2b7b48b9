//! The VM lab: real machines that boot over real PXE from a seed and from each other.
//!
//! One network namespace is the PXE host's site: a bridge, the seed (`rootswarm serve`), a stock
//! dnsmasq, and a tap for each machine. The files that dnsmasq and pxelinux read are those that
//! `rootswarm pxe` writes; the initramfs is made by initramfs-tools with this project's package.
//!
//! - [`debian`] and [`initrd`] make what is booted, [`binaries`] and [`debs`] what it is booted with;
//!   all are kept below `target/demo` (the [`cache`]) and made again when what they are made from
//!   changes. [`chroot`] is such a Debian to install packages into.
//! - [`host`] is the PXE host, [`second`] another seed, [`machine`] one machine, [`console`] its
//!   serial console, [`qmp`] what its emulator says of it, [`facts`] what it reports about itself, [`shell`] a shell in it, [`loss`]
//!   what its cable loses and [`seed_package`] a seed in it.
//! - [`lab`] puts these together for the demo and the tests.
//!
//! It needs root, for namespaces and for making a Debian root. Nothing of it outlives its process.

pub mod binaries;
pub mod cache;
pub mod chroot;
pub mod console;
pub mod debian;
pub mod debs;
pub mod facts;
pub mod host;
pub mod initrd;
pub mod lab;
pub mod loss;
pub mod machine;
pub mod qmp;
pub mod second;
pub mod seed_package;
pub mod shell;
pub mod step;

pub use lab::{Lab, LabError, PACKAGES};
pub use machine::{Machine, MachineSpec, Phase};
