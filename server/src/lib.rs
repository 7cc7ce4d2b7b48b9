//! The PXE host's program as a library: everything behind the `rootswarm` command.
//!
//! A publisher ([`publish`]) copies an image into the state directory ([`state`]), hashes it and
//! signs what its name means; what it meant before stays for a while ([`generations`]). A running server ([`serve`]) holds a [`catalogue`] of what is
//! published, decides who may have it ([`admission`], [`token`]) and who
//! no longer ([`revocation`]), and offers it to the swarm
//! ([`swarm_side`]) and to plain HTTP clients ([`http`]). A second host follows the first ([`mirror`]), also in whom it lets in ([`policy`]). [`pxe`] writes what a stock dnsmasq,
//! pxelinux, iPXE and GRUB boot from.
//!
//! Left to others: the wire and the scheduler (`rootswarm-transport`, `rootswarm-swarm`), what an
//! image is (`rootswarm-image`), DHCP and TFTP (dnsmasq).

pub mod address_race;
pub mod admission;
pub mod advertised;
mod ahead;
pub mod catalogue;
pub mod cli;
pub mod commands;
pub mod config;
mod copy;
pub mod durable;
pub mod exit;
mod follow;
mod follow_revoked;
pub mod format;
pub mod generations;
pub mod guarded;
pub mod http;
mod intact;
mod keep;
pub mod limits;
mod log;
pub mod mirror;
pub mod network;
pub mod node_name;
mod own_key;
pub mod policy;
pub mod progress;
pub mod publish;
mod publish_error;
pub mod pxe;
pub mod revocation;
mod rolled_back;
pub mod serve;
mod serve_error;
mod snapshot;
pub mod source;
pub mod sources;
pub mod state;
pub mod status;
pub mod swarm_side;
pub mod token;
mod told;
pub mod units;
pub mod waiting;
mod which_node;
mod workspace;
