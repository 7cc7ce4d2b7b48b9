//! Network namespaces, bridges and shaped links as guards.
//!
//! A namespace is named `rsw-PID-N-LABEL` after the process that made it. It is removed, with every
//! process in it, when it is dropped; the keeper removes it when its maker is killed; and the first
//! namespace a process makes sweeps those whose maker is no longer there. Links, taps and queueing
//! disciplines need no guard of their own: they go with their namespace.
//!
//! It leaves to others: what runs inside (see `process`) and what is measured (see `bench`).

mod firewall;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::keeper::{self, Kept};

const PREFIX: &str = "rsw";
const NAMESPACES: &str = "/run/netns";

/// The interface name of a node inside its own namespace.
pub const NODE_INTERFACE: &str = "eth0";
/// The interface name of a [`Bridge`] inside its namespace.
pub const BRIDGE_INTERFACE: &str = "br0";

/// A token bucket smaller than one GSO packet (64 KiB) splits each of them in software.
const BURST_MIN_BYTES: u64 = 96 * 1024;
/// What a switch port holds; less makes TCP and QUIC lose packets at every start.
const QUEUE_MS: u64 = 50;

/// What can go wrong while the lab is laid out.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A program is missing or cannot be started.
    #[error("cannot run `{command}`: {source} (namespaces need iproute2 and nftables)")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// A program ran and refused.
    #[error("`{command}` failed: {stderr} (namespaces need root)")]
    Refused {
        /// The command line.
        command: String,
        /// What it said, on one line.
        stderr: String,
    },
    /// A file of the kernel or of iproute2 cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A number the kernel should have printed is not one.
    #[error("{} holds no counter of {interface}", path.display())]
    Counter {
        /// The file.
        path: PathBuf,
        /// Whose counter was looked for.
        interface: String,
    },
    /// A tap cannot be opened.
    #[error("cannot open the tap {tap}: {source} (taps need root and /dev/net/tun)")]
    Tap {
        /// Its name.
        tap: String,
        /// Why.
        source: io::Error,
    },
    /// The keeper could not be started.
    #[error("cannot start the keeper that removes namespaces after a crash: {0}")]
    Keeper(io::Error),
}

type Result<T> = std::result::Result<T, NetnsError>;

/// A named network namespace with its loopback up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// Open for `setns` in children. Shared with the commands made from it, so it is the name, not
    /// this descriptor, that decides how long the namespace lives.
    handle: Arc<File>,
}

impl Namespace {
    /// Makes a namespace. `label` (letters, digits, hyphens) tells it apart in `ip netns`.
    ///
    /// # Errors
    /// Without root, without iproute2, or when the kernel refuses.
    pub fn create(label: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);

        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}-{}-{serial}-{label}", std::process::id());
        keeper::register(Kept::Namespace(&name)).map_err(NetnsError::Keeper)?;
        run("ip", ["netns", "add", &name])?;
        let path = Path::new(NAMESPACES).join(&name);
        let handle = match File::open(&path) {
            Ok(file) => Arc::new(file),
            Err(source) => {
                remove(&name);
                return Err(NetnsError::Read { path, source });
            }
        };
        let namespace = Namespace { name, handle };
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside this namespace. The child keeps its pid (no wrapper is
    /// between it and its parent) and sees this machine's files.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let handle = Arc::clone(&self.handle);
        let mut command = Command::new(program);
        // SAFETY: the closure runs between fork and exec and makes one system call; it allocates
        // nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            });
        }
        command
    }

    /// As [`Namespace::command`], for a program that looks at the machine's interfaces: it sees those
    /// of this namespace in /sys as well, and its mounts are its own. (/sys shows the interfaces of
    /// whoever mounted it.)
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(program);
        // SAFETY: the closure runs between fork and exec and makes three system calls; it allocates
        // nothing and takes no lock. It is the child that is moved, before it runs anything.
        unsafe {
            command.pre_exec(|| {
                unshare_unsafe(UnshareFlags::NEWNS)?;
                mount_change(
                    c"/",
                    MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
                )?;
                mount(c"sysfs", c"/sys", c"sysfs", MountFlags::empty(), None)?;
                Ok(())
            });
        }
        command
    }

    /// The namespace itself, for a thread that is to enter it.
    pub(crate) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.handle)
    }

    /// Runs `ip ARGS` inside.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn ip<'a>(&'a self, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let args = ["-n", &self.name].into_iter().chain(args);
        run("ip", args).map(drop)
    }

    /// Adds `address/prefix_len` to an interface.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn add_address(&self, interface: &str, address: Ipv4Addr, prefix_len: u8) -> Result<()> {
        let address = format!("{address}/{prefix_len}");
        self.ip([
            "address",
            "add",
            &address,
            "broadcast",
            "+",
            "dev",
            interface,
        ])
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_up(&self, interface: &str, up: bool) -> Result<()> {
        self.ip(["link", "set", interface, if up { "up" } else { "down" }])
    }

    /// Bytes an interface received and sent since it was made, link headers included.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the interface is not there.
    pub fn traffic(&self, interface: &str) -> Result<Traffic> {
        // /proc/net/dev follows the reading thread's namespace, so a child reads it.
        let output = output(self.command("cat").arg("/proc/net/dev"))?;
        parse_traffic(&output, interface).ok_or_else(|| NetnsError::Counter {
            path: PathBuf::from("/proc/net/dev"),
            interface: interface.to_owned(),
        })
    }

    /// How often `eth0` has lost its carrier: cables pulled.
    ///
    /// # Errors
    /// When the namespace cannot be entered or has no such interface.
    pub fn carrier_losses(&self) -> Result<u64> {
        let path = Path::new("/sys/class/net")
            .join(NODE_INTERFACE)
            .join("carrier_down_count");
        let losses = output(self.program("cat").arg(&path))?;
        losses.trim().parse().map_err(|_| NetnsError::Counter {
            path,
            interface: NODE_INTERFACE.to_owned(),
        })
    }

    /// Makes a bridge that passes everything on at once (no spanning tree, no snooping), up.
    pub(crate) fn add_bridge(&self, name: &str) -> Result<()> {
        let add = ["link", "add", name, "type", "bridge"];
        let at_once = [
            "stp_state",
            "0",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ];
        self.ip(add.into_iter().chain(at_once))?;
        self.set_up(name, true)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Bytes that went through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

/// A namespace that holds a bridge: the switch between nodes.
#[derive(Debug)]
pub struct Bridge {
    namespace: Namespace,
    next_port: AtomicU32,
}

impl Bridge {
    /// Makes the namespace and the bridge `br0` in it, up and forwarding at once (no spanning tree).
    ///
    /// # Errors
    /// As [`Namespace::create`].
    pub fn create(label: &str) -> Result<Self> {
        let namespace = Namespace::create(label)?;
        namespace.add_bridge(BRIDGE_INTERFACE)?;
        Ok(Bridge {
            namespace,
            next_port: AtomicU32::new(0),
        })
    }

    /// The namespace the bridge is in. qemu, which opens its tap itself, runs here.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Lays a veth pair: `eth0` with `address/prefix_len` in `node`, its other end on this bridge.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn attach(&self, node: &Namespace, address: Ipv4Addr, prefix_len: u8) -> Result<Link> {
        let port = format!("port{}", self.next_port.fetch_add(1, Ordering::Relaxed));
        node.ip([
            "link",
            "add",
            NODE_INTERFACE,
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            self.namespace.name(),
        ])?;
        self.namespace
            .ip(["link", "set", &port, "master", BRIDGE_INTERFACE, "up"])?;
        node.set_up(NODE_INTERFACE, true)?;
        node.add_address(NODE_INTERFACE, address, prefix_len)?;
        Ok(Link {
            node: node.name().to_owned(),
            bridge: self.namespace.name().to_owned(),
            port,
            address,
        })
    }

    /// Makes a tap on this bridge and returns its name, for `-netdev tap,script=no,downscript=no,ifname=…`.
    ///
    /// # Errors
    /// When `ip` refuses, as it does without /dev/net/tun.
    pub fn tap(&self) -> Result<String> {
        let tap = format!("tap{}", self.next_port.fetch_add(1, Ordering::Relaxed));
        self.namespace
            .ip(["tuntap", "add", "dev", &tap, "mode", "tap"])?;
        self.namespace
            .ip(["link", "set", &tap, "master", BRIDGE_INTERFACE, "up"])?;
        Ok(tap)
    }
}

/// One node's cable to the bridge.
#[derive(Debug)]
pub struct Link {
    pub(crate) node: String,
    pub(crate) bridge: String,
    pub(crate) port: String,
    address: Ipv4Addr,
}

impl Link {
    /// The node's address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Limits both directions to `rate_bit_per_s`, each with a queue of 50 ms.
    ///
    /// # Errors
    /// When `tc` refuses.
    pub fn shape(&self, rate_bit_per_s: u64) -> Result<()> {
        self.shape_each(rate_bit_per_s, rate_bit_per_s)
    }

    /// Limits what the node sends and what it receives apart from each other.
    ///
    /// # Errors
    /// When `tc` refuses.
    pub fn shape_each(&self, up_bit_per_s: u64, down_bit_per_s: u64) -> Result<()> {
        token_bucket(&self.node, NODE_INTERFACE, up_bit_per_s)?;
        token_bucket(&self.bridge, &self.port, down_bit_per_s)
    }

    /// The same both ways, with a queue of so many milliseconds behind a bucket of so many bytes: a switch port
    /// that lets nothing through at once, and holds little.
    ///
    /// # Errors
    /// When `tc` refuses.
    pub fn shape_tightly(
        &self,
        rate_bit_per_s: u64,
        queue_ms: u16,
        bucket_bytes: u64,
    ) -> Result<()> {
        let queue_ms = u64::from(queue_ms);
        self.ends()
            .into_iter()
            .try_for_each(|(namespace, interface)| {
                bucket(namespace, interface, rate_bit_per_s, queue_ms, bucket_bytes)
            })
    }

    /// Sets the largest packet that either end sends, in bytes of IP.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_mtu(&self, mtu_bytes: u16) -> Result<()> {
        let mtu = mtu_bytes.to_string();
        for (namespace, interface) in self.ends() {
            run(
                "ip",
                ["-n", namespace, "link", "set", interface, "mtu", &mtu],
            )?;
        }
        Ok(())
    }

    /// Both ends: namespace and interface.
    pub(crate) fn ends(&self) -> [(&str, &str); 2] {
        [(&self.node, NODE_INTERFACE), (&self.bridge, &self.port)]
    }

    /// Pulls the cable or puts it back. It is the switch's end that goes down, so the node keeps
    /// its address, as it does with a real cable.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_up(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        run("ip", ["-n", &self.bridge, "link", "set", &self.port, state]).map(drop)
    }
}

/// Replaces the root queue of an interface with a token bucket (see [`Link::shape`]); for a
/// [`Bridge::tap`], it limits what the virtual machine receives.
///
/// # Errors
/// When `tc` refuses.
pub fn token_bucket(namespace: &str, interface: &str, rate_bit_per_s: u64) -> Result<()> {
    // One millisecond of the rate, so that a 10 Gbit link is not limited by the timer.
    let burst_bytes = BURST_MIN_BYTES.max(rate_bit_per_s / 8 / 1000);
    bucket(namespace, interface, rate_bit_per_s, QUEUE_MS, burst_bytes)
}

fn bucket(
    namespace: &str,
    interface: &str,
    rate_bit_per_s: u64,
    queue_ms: u64,
    burst_bytes: u64,
) -> Result<()> {
    let (rate, burst) = (format!("{rate_bit_per_s}bit"), format!("{burst_bytes}b"));
    let latency = format!("{queue_ms}ms");
    run(
        "tc",
        [
            "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf", "rate", &rate,
            "burst", &burst, "latency", &latency,
        ],
    )
    .map(drop)
}

fn parse_traffic(proc_net_dev: &str, interface: &str) -> Option<Traffic> {
    let line = proc_net_dev.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == interface).then_some(counters)
    })?;
    let mut columns = line.split_whitespace();
    let rx_bytes = columns.next()?.parse().ok()?;
    // Received bytes are column 0 of 8, sent bytes column 8.
    let tx_bytes = columns.nth(7)?.parse().ok()?;
    Some(Traffic { rx_bytes, tx_bytes })
}

pub(crate) fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
    output(Command::new(program).args(args))
}

fn output(command: &mut Command) -> Result<String> {
    let shown = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let shown = shown();
    let output = match command.output() {
        Ok(output) => output,
        Err(source) => {
            return Err(NetnsError::Start {
                command: shown,
                source,
            });
        }
    };
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stderr = stderr.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        Err(NetnsError::Refused {
            command: shown,
            stderr,
        })
    }
}

/// Ends what runs inside and removes the name. Best effort: it runs in `Drop`, and a namespace
/// that survives is swept by the next run.
fn remove(name: &str) {
    if let Ok(pids) = run("ip", ["netns", "pids", name]) {
        let pids = pids
            .lines()
            .filter_map(|pid| pid.trim().parse().ok().and_then(Pid::from_raw));
        for pid in pids {
            // A failure means that it has ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    let _ = run("ip", ["netns", "del", name]);
}

/// Removes the namespaces whose maker is gone and whose keeper did not run (both were killed).
fn sweep() {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else {
        return;
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let orphans: HashSet<String> = names
        .filter(|name| maker(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()))
        .collect();
    for name in orphans {
        remove(&name);
    }
}

fn maker(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('-')?;
    rest.split_once('-')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maker_is_read_from_our_names_only() {
        assert_eq!(maker("rsw-17-0-seed"), Some(17));
        for other in [
            "rsw-x-0-seed",
            "rsw-17",
            "rswarm-17-0-seed",
            "17-0-seed",
            "",
        ] {
            assert_eq!(maker(other), None, "{other}");
        }
    }

    #[test]
    fn traffic_is_read_from_the_named_interface() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n\
                    \x20   lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                    \x20 eth0:1000 2 0 0 0 0 0 0 2000 4 0 0 0 0 0 0\n";
        let eth0 = parse_traffic(text, "eth0");
        assert_eq!(
            eth0,
            Some(Traffic {
                rx_bytes: 1000,
                tx_bytes: 2000
            })
        );
        assert_eq!(parse_traffic(text, "eth1"), None);
    }
}
