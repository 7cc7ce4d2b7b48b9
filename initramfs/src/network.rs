//! Whether this node can reach anything at all: names become addresses, and an address needs a
//! route and a source address of our own.
//!
//! Configuring the network is the initramfs's work and was done before; it may still be settling
//! (DHCP, spanning tree), so not having it yet is a reason to wait, within bounds.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use rootswarm_image::HostPort;

use crate::exit::{Classified, Exit};
use crate::resolve::{ResolveError, Resolver};

/// Why no host can be reached yet.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No route to any address.
    #[error("no route to {address}: {source} ({interfaces})")]
    NoRoute {
        /// The address tried last.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
        /// What the interfaces are doing.
        interfaces: String,
    },
    /// No name has an address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

impl Classified for NetworkError {
    fn exit(&self) -> Exit {
        match self {
            NetworkError::Resolve(ResolveError::BadName { .. }) => Exit::BadInput,
            _ => Exit::Network,
        }
    }
}

/// A host that has a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its address.
    pub host: SocketAddr,
    /// The address of ours that the kernel would send from.
    pub local: IpAddr,
}

/// The addresses of `hosts` that have a route now, in the hosts' order; at least one. Asks once:
/// the caller repeats it while the network comes up.
pub async fn reachable(
    resolver: &Resolver,
    hosts: &[HostPort],
    default_port: u16,
    bind: Option<IpAddr>,
) -> Result<Vec<Route>, NetworkError> {
    let mut found = Vec::new();
    let mut error = None;
    for host in hosts {
        let addresses = match resolver.resolve(&host.host).await {
            Ok(addresses) => addresses,
            Err(e) => {
                error = Some(NetworkError::Resolve(e));
                continue;
            }
        };
        for address in addresses {
            let address = SocketAddr::new(address, host.port_or(default_port));
            match source_address(address, bind) {
                Ok(local) => found.push(Route {
                    host: address,
                    local,
                }),
                Err(source) => {
                    let interfaces = describe_interfaces(Path::new("/sys/class/net"));
                    error = Some(NetworkError::NoRoute {
                        address,
                        source,
                        interfaces,
                    });
                }
            }
        }
    }
    match error {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Asks the kernel for a route and a source address; "connecting" a UDP socket sends nothing.
fn source_address(address: SocketAddr, bind: Option<IpAddr>) -> io::Result<IpAddr> {
    let local = bind.unwrap_or(match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    });
    let socket = UdpSocket::bind((local, 0))?;
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

/// `eth0 down, eth1 up`: what a person at the console looks at first.
fn describe_interfaces(sys_class_net: &Path) -> String {
    let mut interfaces = fs::read_dir(sys_class_net)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name() != "lo")
        .map(|entry| {
            let state = fs::read_to_string(entry.path().join("operstate")).unwrap_or_default();
            format!("{} {}", entry.file_name().to_string_lossy(), state.trim())
        })
        .collect::<Vec<_>>();
    interfaces.sort();
    match interfaces.is_empty() {
        true => "no network interface: is the driver in the initrd?".to_owned(),
        false => format!("interfaces: {}", interfaces.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_described() {
        let dir = tempfile::tempdir().unwrap();
        assert!(describe_interfaces(dir.path()).starts_with("no network interface"));
        for (name, state) in [("lo", "unknown"), ("eth1", "up"), ("eth0", "down")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(
                dir.path().join(name).join("operstate"),
                format!("{state}\n"),
            )
            .unwrap();
        }
        assert_eq!(
            describe_interfaces(dir.path()),
            "interfaces: eth0 down, eth1 up"
        );
    }

    #[tokio::test]
    async fn what_can_be_reached_is_kept() {
        let resolver = Resolver {
            root: "/nowhere".into(),
            port: 53,
        };
        let hosts: Vec<HostPort> = vec![
            "nobody.invalid".parse().unwrap(),
            "127.0.0.1:9".parse().unwrap(),
        ];
        let found = reachable(&resolver, &hosts, 7400, None).await.unwrap();
        let route = Route {
            host: "127.0.0.1:9".parse().unwrap(),
            local: "127.0.0.1".parse().unwrap(),
        };
        assert_eq!(found, [route]);
        let error = reachable(&resolver, &hosts[..1], 7400, None)
            .await
            .unwrap_err();
        assert_eq!(error.exit(), Exit::Network);
        assert!(
            error.to_string().starts_with("host nobody.invalid: "),
            "{error}"
        );
    }
}
