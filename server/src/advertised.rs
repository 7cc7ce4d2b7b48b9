//! What nodes are told to connect to: what the admin said, or the address that they most likely reach this
//! host by, as it is now. An address that comes late, or changes, is told from then on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rootswarm_image::{HostPort, SWARM_PORT};

use crate::network::{InterfaceAddress, host_port, interface_addresses};

/// How often the interfaces are looked at, which waits for whoever changes one at the moment.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is told, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// As it stands in a rooturl.
    pub host: HostPort,
    /// Why no node can connect to it, in a line, and what to do.
    pub doubt: Option<String>,
}

/// What a running server tells, shared with whoever says it. It is looked up beside them.
#[derive(Clone, Debug)]
pub struct Advertised {
    configured: Option<HostPort>,
    listen: SocketAddr,
    told: Arc<RwLock<Told>>,
}

impl Advertised {
    /// For a server on `listen`.
    pub fn new(configured: Option<HostPort>, listen: SocketAddr) -> Advertised {
        let told = Arc::new(RwLock::new(told(configured.as_ref(), listen)));
        Advertised {
            configured,
            listen,
            told,
        }
    }

    /// As it was a moment ago.
    pub fn now(&self) -> Told {
        let told = self.told.read();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the interfaces for ever, and says what is wrong, once.
    pub async fn follow(self) {
        let mut doubt = None;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let (configured, listen) = (self.configured.clone(), self.listen);
            let found = move || told(configured.as_ref(), listen);
            let Ok(found) = tokio::task::spawn_blocking(found).await else {
                continue;
            };
            if found.doubt != doubt {
                match &found.doubt {
                    Some(line) => tracing::warn!("{line}"),
                    None => tracing::info!("nodes can connect to {}", found.host),
                }
                doubt.clone_from(&found.doubt);
            }
            *self.told.write().unwrap_or_else(PoisonError::into_inner) = found;
        }
    }
}

/// What nodes are told to connect to for a socket bound to `listen`: what was `configured`; else its own
/// address if it is bound to one, or the one that is most likely reached if it is bound to all. The port only
/// if it is not the usual.
pub fn told(configured: Option<&HostPort>, listen: SocketAddr) -> Told {
    let sure = |host| Told { host, doubt: None };
    let at = |ip| host_port(ip, listen.port(), SWARM_PORT);
    if let Some(host) = configured {
        return sure(host.clone());
    }
    if !listen.ip().is_unspecified() {
        return sure(at(listen.ip().to_canonical()));
    }
    let interfaces = interface_addresses().unwrap_or_default();
    match reached(listen.ip(), routed_ipv4(), routed_ipv6(), &interfaces) {
        Ok(ip) => sure(at(ip)),
        Err(doubt) => Told {
            host: at(Ipv4Addr::LOCALHOST.into()),
            doubt: Some(doubt),
        },
    }
}

/// The IPv4 address that nodes most likely reach this host by: the one the default route leaves from;
/// without a default route (an isolated boot network), the first one of an interface that is up, of one with
/// something at its other end before others.
pub fn primary_ipv4() -> Option<IpAddr> {
    let interfaces = interface_addresses().unwrap_or_default();
    first_ipv4(routed_ipv4(), &interfaces)
}

fn first_ipv4(routed: Option<IpAddr>, interfaces: &[InterfaceAddress]) -> Option<IpAddr> {
    let is_good = |address: &IpAddr| address.is_ipv4() && !address.is_loopback();
    routed.or_else(|| best(interfaces, is_good))
}

/// The same of IPv6; an address that is good on one link only is good in no rooturl.
fn first_ipv6(routed: Option<IpAddr>, interfaces: &[InterfaceAddress]) -> Option<IpAddr> {
    let is_wide = |address: &IpAddr| match address {
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    routed.filter(is_wide).or_else(|| best(interfaces, is_wide))
}

/// The first address that is good on an interface of the best standing.
fn best(interfaces: &[InterfaceAddress], is_good: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let good = interfaces.iter().filter(|entry| is_good(&entry.address));
    good.min_by_key(|entry| entry.standing)
        .map(|entry| entry.address)
}

/// The address that nodes most likely reach a socket by that is bound to all addresses; IPv4 before IPv6.
///
/// # Errors
/// There is none; what to do.
fn reached(
    listen: IpAddr,
    routed_ipv4: Option<IpAddr>,
    routed_ipv6: Option<IpAddr>,
    interfaces: &[InterfaceAddress],
) -> Result<IpAddr, String> {
    let ipv6 = first_ipv6(routed_ipv6, interfaces);
    match (first_ipv4(routed_ipv4, interfaces), ipv6) {
        (Some(ipv4), _) => Ok(ipv4),
        (None, Some(ipv6)) if listen.is_ipv6() => Ok(ipv6),
        (None, Some(ipv6)) => Err(format!(
            "no node can connect: this host has no IPv4 address, and the seed listens on IPv4 alone \
             (for {ipv6}: listen = \"[::]:7400\" and http = \"[::]:7480\")"
        )),
        (None, None) => Err(
            "no node can connect: no interface has an address yet (waited for; or set host =)"
                .to_owned(),
        ),
    }
}

/// Connecting a UDP socket sends nothing; it makes the kernel choose a route and a source. The destinations
/// are from the blocks set aside for documentation.
fn routed(from: IpAddr, towards: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect((towards, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

fn routed_ipv4() -> Option<IpAddr> {
    let towards = Ipv4Addr::new(192, 0, 2, 1);
    routed(Ipv4Addr::UNSPECIFIED.into(), towards.into())
}

fn routed_ipv6() -> Option<IpAddr> {
    let towards = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    routed(Ipv6Addr::UNSPECIFIED.into(), towards.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{Cidr, Standing};

    #[test]
    fn what_nodes_are_told() {
        for (listen, expected) in [
            ("10.0.0.1:7400", "10.0.0.1"),
            ("10.0.0.1:7401", "10.0.0.1:7401"),
            ("[fd00::1]:7400", "[fd00::1]"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1:1"),
            ("127.0.0.1:7400", "127.0.0.1"),
        ] {
            let found = told(None, listen.parse().unwrap());
            assert_eq!(found.host.to_string(), expected);
            assert_eq!(found.doubt, None, "{listen}");
        }
        let said = told(
            Some(&"boot1".parse().unwrap()),
            "0.0.0.0:1".parse().unwrap(),
        );
        assert_eq!(
            (said.host.to_string(), said.doubt),
            ("boot1".to_owned(), None)
        );
    }

    /// Without a default route: an address that others can reach before one of a bridge with nobody on it, and
    /// that before one on loopback.
    #[test]
    fn interfaces_with_something_at_their_other_end_come_first() {
        use Standing::{Loopback, Running, Up};
        for (interfaces, ipv4, ipv6) in [
            (
                &[
                    (Loopback, "172.16.5.1"),
                    (Loopback, "fd00::5"),
                    (Up, "172.17.0.1"),
                    (Up, "fd00::17"),
                    (Running, "fd00::2"),
                    (Running, "10.0.0.2"),
                    (Running, "10.0.0.3"),
                ][..],
                Some("10.0.0.2"),
                Some("fd00::2"),
            ),
            (
                &[(Loopback, "172.16.5.1"), (Up, "172.17.0.1")],
                Some("172.17.0.1"),
                None,
            ),
            (
                &[(Loopback, "127.0.0.1"), (Loopback, "172.16.5.1")],
                Some("172.16.5.1"),
                None,
            ),
            (&[(Loopback, "127.0.0.1"), (Loopback, "::1")], None, None),
        ] {
            let entry = |(standing, address): &(Standing, &str)| InterfaceAddress {
                interface: "eth0".into(),
                address: address.parse().unwrap(),
                network: "10.0.0.0/24".parse().unwrap(),
                standing: *standing,
            };
            let entries: Vec<_> = interfaces.iter().map(entry).collect();
            let shown = |found: Option<IpAddr>| found.map(|address| address.to_string());
            assert_eq!(shown(first_ipv4(None, &entries)).as_deref(), ipv4);
            assert_eq!(shown(first_ipv6(None, &entries)).as_deref(), ipv6);
        }
    }

    /// Where is listened, the sources of the default routes, the interfaces' addresses, and what is told; or
    /// words of why nothing can be.
    #[test]
    fn the_address_that_is_most_likely_reached() {
        const NONE: &str = "no interface has an address yet";
        const FAMILY: &str = "for fd00::1: listen";
        for (listen, routes, addresses, expected) in [
            ("0.0.0.0", "", "127.0.0.1 ::1", NONE),
            ("::", "", "127.0.0.1 ::1", NONE),
            ("::", "", "", NONE),
            ("::", "", "127.0.0.1 fe80::1", NONE),
            ("0.0.0.0", "", "127.0.0.1 10.0.0.1", "10.0.0.1"),
            ("0.0.0.0", "", "127.0.0.1 fd00::1 10.0.0.1", "10.0.0.1"),
            ("0.0.0.0", "10.0.9.1", "10.0.0.1 10.0.9.1", "10.0.9.1"),
            ("::", "fd00::1", "10.0.0.1 fd00::1", "10.0.0.1"),
            ("::", "", "127.0.0.1 ::1 fe80::1 fd00::1", "fd00::1"),
            ("::", "fd00::2", "fd00::1 fd00::2", "fd00::2"),
            ("::", "fe80::1", "fe80::1 fd00::1", "fd00::1"),
            ("0.0.0.0", "fd00::1", "127.0.0.1 fd00::1", FAMILY),
            ("0.0.0.0", "", "127.0.0.1 fe80::1 fd00::1", FAMILY),
        ] {
            let parsed = |text: &str| -> Vec<IpAddr> {
                text.split_whitespace()
                    .map(|it| it.parse().unwrap())
                    .collect()
            };
            let entry = |address: IpAddr| InterfaceAddress {
                interface: "eth0".into(),
                address,
                network: Cidr::new(address, 24),
                standing: match address.is_loopback() {
                    true => Standing::Loopback,
                    false => Standing::Running,
                },
            };
            let interfaces: Vec<_> = parsed(addresses).into_iter().map(entry).collect();
            let routes = parsed(routes);
            let of = |v4: bool| routes.iter().find(|it| it.is_ipv4() == v4).copied();
            let found = reached(listen.parse().unwrap(), of(true), of(false), &interfaces);
            let found = found.map_or_else(|doubt| doubt, |address| address.to_string());
            let is_as_expected = match expected.parse::<IpAddr>() {
                Ok(_) => found == expected,
                Err(_) => found.contains(expected),
            };
            assert!(is_as_expected, "{listen} {routes:?} {addresses}: {found}");
        }
    }
}
