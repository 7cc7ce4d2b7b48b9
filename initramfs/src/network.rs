//! Whether this node can reach anything at all: names become addresses, and an address needs a
//! route and a source address of our own.
//!
//! Configuring the network is the initramfs's work and was done before; it may still be settling
//! (DHCP, spanning tree), so not having it yet is a reason to wait, within bounds.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use rootswarm_image::HostPort;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

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
///
/// All hosts are looked up at once. When one of them has a route, the others' name servers have
/// `others_have` left: what they say later is for the next time.
pub async fn reachable(
    resolver: &Resolver,
    hosts: &[HostPort],
    default_port: u16,
    bind: Option<IpAddr>,
    others_have: Duration,
) -> Result<Vec<Route>, NetworkError> {
    let mut lookups = JoinSet::new();
    for (index, host) in hosts.iter().cloned().enumerate() {
        let resolver = resolver.clone();
        lookups.spawn(async move { (index, resolver.resolve(&host.host).await) });
    }
    // By host; without a route there is a reason.
    let mut found: Vec<Vec<Route>> = vec![Vec::new(); hosts.len()];
    let mut error = None;
    let mut deadline = None;
    loop {
        let answer = match deadline {
            Some(deadline) => timeout_at(deadline, lookups.join_next())
                .await
                .ok()
                .flatten(),
            None => lookups.join_next().await,
        };
        let Some(answer) = answer else { break };
        // Nothing in such a task panics, and nobody ends it.
        let Ok((index, answer)) = answer else {
            continue;
        };
        let addresses = match answer {
            Ok(addresses) => addresses,
            Err(e) => {
                // One that will never be a name hides nothing that may come yet.
                if !matches!(e, ResolveError::BadName { .. }) || error.is_none() {
                    error = Some(NetworkError::Resolve(e));
                }
                continue;
            }
        };
        for address in addresses {
            let address = SocketAddr::new(address, hosts[index].port_or(default_port));
            match source_address(address, bind) {
                Ok(local) => {
                    deadline.get_or_insert_with(|| Instant::now() + others_have);
                    found[index].push(Route {
                        host: address,
                        local,
                    });
                }
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
    let found: Vec<Route> = found.into_iter().flatten().collect();
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

    const AT_ONCE: Duration = Duration::ZERO;

    /// The first seed's name server is silent: the second seed is there all the same, and the first
    /// one too when there is time for its second try.
    #[tokio::test]
    async fn a_silent_name_server_delays_no_other_host() {
        let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        let text = "nameserver 127.0.0.1\n";
        fs::write(root.path().join("etc/resolv.conf"), text).unwrap();
        let resolver = Resolver {
            root: root.path().to_owned(),
            port: server.local_addr().unwrap().port(),
            ..Resolver::default()
        };
        let hosts: Vec<HostPort> =
            vec!["seed.lab".parse().unwrap(), "127.0.0.2:9".parse().unwrap()];
        let short = Duration::from_millis(100);
        let found = reachable(&resolver, &hosts, 7400, None, short)
            .await
            .unwrap();
        let addresses = |found: &[Route]| -> Vec<String> {
            found.iter().map(|route| route.host.to_string()).collect()
        };
        assert_eq!(addresses(&found), ["127.0.0.2:9"]);
        let mut buffer = [0; 512];
        let mut questions = 0;
        while server.try_recv(&mut buffer).is_ok() {
            questions += 1;
        }
        assert_eq!(questions, 2, "one for each kind, and no second try");
        // Now it answers the second try, and the order is the hosts'.
        let answers = tokio::spawn(async move {
            for number in 0..4 {
                let (length, from) = server.recv_from(&mut buffer).await.unwrap();
                if number < 2 {
                    continue;
                }
                let mut answer = buffer[..length].to_vec();
                answer[2] = 0x81;
                if answer[length - 3] == 1 {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 127, 0, 0, 3]);
                }
                server.send_to(&answer, from).await.unwrap();
            }
        });
        let long = Duration::from_secs(60);
        let found = reachable(&resolver, &hosts, 7400, None, long)
            .await
            .unwrap();
        assert_eq!(addresses(&found), ["127.0.0.3:7400", "127.0.0.2:9"]);
        answers.await.unwrap();
    }

    #[tokio::test]
    async fn what_can_be_reached_is_kept() {
        let resolver = Resolver {
            root: "/nowhere".into(),
            ..Resolver::default()
        };
        let hosts: Vec<HostPort> = vec![
            "nobody.invalid".parse().unwrap(),
            "127.0.0.1:9".parse().unwrap(),
        ];
        let found = reachable(&resolver, &hosts, 7400, None, AT_ONCE)
            .await
            .unwrap();
        let route = Route {
            host: "127.0.0.1:9".parse().unwrap(),
            local: "127.0.0.1".parse().unwrap(),
        };
        assert_eq!(found, [route]);
        let error = reachable(&resolver, &hosts[..1], 7400, None, AT_ONCE)
            .await
            .unwrap_err();
        assert_eq!(error.exit(), Exit::Network);
        assert!(
            error.to_string().starts_with("host nobody.invalid: "),
            "{error}"
        );
    }
}
