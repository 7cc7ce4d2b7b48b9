//! Where booting takes place: this host's address, the interface, the network, the addresses to
//! lease.

use std::net::{IpAddr, Ipv4Addr};

use super::PxeError;
use crate::advertised::primary_ipv4;
use crate::cli::PxeArgs;
use crate::network::{self, Cidr, InterfaceAddress};

/// This host on the boot network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootNetwork {
    /// The address that nodes reach this host by.
    pub host: Ipv4Addr,
    /// The interface with that address, if it is up now.
    pub interface: Option<String>,
    /// The network's address.
    pub network: Ipv4Addr,
    /// Its prefix.
    pub prefix: u8,
}

impl BootNetwork {
    /// The netmask as dnsmasq wants it.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(
            u32::MAX
                .checked_shl(32 - u32::from(self.prefix))
                .unwrap_or(0),
        )
    }
}

/// Puts together what was said and what the interfaces are.
pub fn find(args: &PxeArgs) -> Result<BootNetwork, PxeError> {
    let interfaces = network::interface_addresses().unwrap_or_default();
    decide(
        args.host,
        args.interface.as_deref(),
        args.subnet,
        &interfaces,
        primary_ipv4,
    )
}

fn decide(
    host: Option<IpAddr>,
    interface: Option<&str>,
    subnet: Option<Cidr>,
    interfaces: &[InterfaceAddress],
    primary: impl Fn() -> Option<IpAddr>,
) -> Result<BootNetwork, PxeError> {
    let fits = |entry: &&InterfaceAddress| {
        entry.address.is_ipv4()
            && host.is_none_or(|host| entry.address == host)
            && interface.is_none_or(|name| entry.interface == name)
            && subnet.is_none_or(|subnet| subnet.contains(entry.address))
    };
    let nothing_said = host.is_none() && interface.is_none() && subnet.is_none();
    let entry = if nothing_said {
        let primary = primary();
        interfaces
            .iter()
            .find(|entry| Some(entry.address) == primary)
    } else {
        interfaces.iter().find(fits)
    };
    let unknown = || {
        let said = [
            host.map(|host| host.to_string()),
            interface.map(str::to_owned),
            subnet.map(|s| s.to_string()),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        PxeError::NoNetwork {
            host: if said.is_empty() {
                "this host".to_owned()
            } else {
                said.join(" ")
            },
        }
    };
    let host = host
        .or(entry.map(|entry| entry.address))
        .ok_or_else(unknown)?;
    let IpAddr::V4(host) = host else {
        return Err(PxeError::NotIpv4(host));
    };
    // An interface that was named must be there; a host and a subnet may be those of another day.
    if interface.is_some() && entry.is_none() {
        return Err(unknown());
    }
    let cidr = subnet
        .or(entry.map(|entry| entry.network))
        .ok_or_else(unknown)?;
    let IpAddr::V4(network) = cidr.network() else {
        return Err(PxeError::NotIpv4(cidr.network()));
    };
    Ok(BootNetwork {
        host,
        interface: entry.map(|entry| entry.interface.clone()),
        network,
        prefix: cidr.prefix(),
    })
}

/// All but the first eighth of the network, which is where fixed addresses usually are.
pub fn default_range(network: &BootNetwork) -> Result<(Ipv4Addr, Ipv4Addr), PxeError> {
    let size = 1u64 << (32 - u32::from(network.prefix));
    if size < 4 {
        return Err(PxeError::Text {
            what: "--subnet",
            text: format!("{}/{}", network.network, network.prefix),
            reason: "it has no addresses to lease (give --dhcp-range)",
        });
    }
    let base = u64::from(network.network.to_bits());
    // Within the network, so within 32 bits.
    let address = |offset: u64| Ipv4Addr::from_bits((base + offset) as u32);
    Ok((address((size / 8).max(1)), address(size - 2)))
}

/// `FIRST,LAST`.
pub fn parse_range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), PxeError> {
    let bad = |reason| PxeError::Text {
        what: "--dhcp-range",
        text: text.to_owned(),
        reason,
    };
    let (first, last) = text.split_once(',').ok_or(bad("expected FIRST,LAST"))?;
    let parse = |text: &str| {
        text.trim()
            .parse::<Ipv4Addr>()
            .map_err(|_| bad("expected two IPv4 addresses"))
    };
    let range = (parse(first)?, parse(last)?);
    if range.0 > range.1 {
        return Err(bad("the first address comes after the last"));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(interface: &str, address: &str, prefix: u8) -> InterfaceAddress {
        let address: IpAddr = address.parse().unwrap();
        InterfaceAddress {
            interface: interface.into(),
            address,
            network: Cidr::new(address, prefix),
            standing: crate::network::Standing::Running,
        }
    }

    fn check(
        host: Option<&str>,
        interface: Option<&str>,
        subnet: Option<&str>,
        expected: Option<(&str, Option<&str>, &str)>,
    ) {
        let interfaces = [
            entry("lo", "127.0.0.1", 8),
            entry("eth0", "192.168.1.5", 24),
            entry("br0", "fd00::1", 64),
            entry("br0", "10.0.0.1", 22),
        ];
        let found = decide(
            host.map(|text| text.parse().unwrap()),
            interface,
            subnet.map(|text| text.parse().unwrap()),
            &interfaces,
            || Some("192.168.1.5".parse().unwrap()),
        );
        let found = found.map(|n| {
            (
                n.host.to_string(),
                n.interface,
                format!("{}/{}", n.network, n.prefix),
            )
        });
        let expected = expected.map(|(h, i, n)| (h.to_owned(), i.map(str::to_owned), n.to_owned()));
        assert_eq!(
            found.as_ref().ok(),
            expected.as_ref(),
            "{host:?} {interface:?} {subnet:?}: {found:?}"
        );
    }

    #[test]
    fn the_boot_network() {
        check(
            None,
            None,
            None,
            Some(("192.168.1.5", Some("eth0"), "192.168.1.0/24")),
        );
        check(
            None,
            Some("br0"),
            None,
            Some(("10.0.0.1", Some("br0"), "10.0.0.0/22")),
        );
        check(
            Some("10.0.0.1"),
            None,
            None,
            Some(("10.0.0.1", Some("br0"), "10.0.0.0/22")),
        );
        check(
            None,
            None,
            Some("10.0.0.0/22"),
            Some(("10.0.0.1", Some("br0"), "10.0.0.0/22")),
        );
        check(
            Some("172.16.0.1"),
            None,
            Some("172.16.0.0/16"),
            Some(("172.16.0.1", None, "172.16.0.0/16")),
        );
        check(Some("172.16.0.1"), None, None, None);
        check(None, Some("eth9"), None, None);
        check(Some("10.0.0.9"), Some("eth9"), Some("10.0.0.0/22"), None);
        check(None, None, Some("172.16.0.0/16"), None);
        check(Some("fd00::1"), None, None, None);
    }

    /// A host that has no IPv4 address but that of loopback boots nobody.
    #[test]
    fn loopback_is_no_boot_network() {
        let interfaces = [entry("lo", "127.0.0.1", 8), entry("eth0", "fd00::1", 64)];
        for interface in [None, Some("eth0")] {
            let error = decide(None, interface, None, &interfaces, || None).unwrap_err();
            let said = error.to_string();
            assert!(said.contains("has an IPv4 address"), "{said}");
        }
    }

    #[test]
    fn ranges() {
        let network = |prefix| BootNetwork {
            host: [10, 0, 0, 1].into(),
            interface: None,
            network: [10, 0, 0, 0].into(),
            prefix,
        };
        for (prefix, first, last) in [
            (24, [10, 0, 0, 32], [10, 0, 0, 254]),
            (22, [10, 0, 0, 128], [10, 0, 3, 254]),
            (30, [10, 0, 0, 1], [10, 0, 0, 2]),
        ] {
            assert_eq!(
                default_range(&network(prefix)).unwrap(),
                (first.into(), last.into())
            );
        }
        assert!(default_range(&network(31)).is_err());
        assert_eq!(network(22).netmask().to_string(), "255.255.252.0");
        assert!(parse_range("10.0.0.5,10.0.0.9").is_ok());
        for text in ["", "10.0.0.5", "10.0.0.9,10.0.0.5", "a,b"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }
}
