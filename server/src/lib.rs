//! The PXE host's program as a library: everything behind the `rootswarm` command.
//!
//! A publisher ([`publish`]) copies an image into the state directory ([`state`]), hashes it and
//! signs what its name means. A running server ([`serve`]) holds a [`catalogue`] of what is
//! published, decides who may have it ([`admission`], [`token`]) and who
//! no longer ([`revocation`]), and offers it to the swarm
//! ([`swarm_side`]) and to plain HTTP clients ([`http`]). A second host follows the first ([`mirror`]), also in whom it lets in ([`policy`]). [`pxe`] writes what a stock dnsmasq,
//! pxelinux, iPXE and GRUB boot from.
//!
//! Left to others: the wire and the scheduler (`rootswarm-transport`, `rootswarm-swarm`), what an
//! image is (`rootswarm-image`), DHCP and TFTP (dnsmasq).

pub mod address_race;
pub mod admission;
pub mod catalogue;
pub mod cli;
pub mod commands;
pub mod config;
pub mod durable;
pub mod exit;
pub mod guarded;
pub mod http;
pub mod mirror;
pub mod network;
pub mod node_name;
pub mod policy;
pub mod progress;
pub mod publish;
pub mod pxe;
pub mod revocation;
pub mod serve;
pub mod state;
pub mod status;
pub mod swarm_side;
pub mod token;
pub mod units;
