//! Where this node stands: the name it is given, or else the subnet it is in.
//!
//! A name is only ever compared with other nodes' names, so a subnet is one like any other. What
//! the swarm does with it (near neighbours first, some far ones always) is decided in
//! `rootswarm_swarm`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// The longest rack name, in bytes: the wire's bound (`RACK_BYTES_MAX` in `rootswarm_swarm`), which
/// is checked here so that a long name is the administrator's error and not the seed's.
const RACK_BYTES_MAX: usize = 64;

/// What most sites give a rack, for an address whose interface does not say.
const PREFIX_V4: u8 = 24;
/// What every site gives a link.
const PREFIX_V6: u8 = 64;

/// Reads a name that somebody has given.
///
/// # Errors
/// The reason, when it is empty, longer than 64 bytes, or would garble a status line.
pub fn parse(value: &str) -> Result<String, &'static str> {
    if value.is_empty() || value.len() > RACK_BYTES_MAX {
        return Err("a rack's name has 1 to 64 bytes");
    }
    if value.chars().any(char::is_control) {
        return Err("a rack's name holds no control characters");
    }
    Ok(value.to_owned())
}

/// The subnet of `local`, the address that this node reaches the seed from. `None` where an
/// address says nothing about the place: loopback and link-local ones are the same everywhere.
pub fn of_address(local: IpAddr) -> Option<String> {
    let proc_net = Path::new("/proc/net");
    // A file that is not there is an interface that does not say.
    let read = |name: &str| fs::read_to_string(proc_net.join(name)).unwrap_or_default();
    match local.to_canonical() {
        IpAddr::V4(local) if local.is_loopback() || local.is_link_local() => None,
        IpAddr::V4(local) => {
            let length = route_length(&read("route"), local).unwrap_or(PREFIX_V4);
            let network = Ipv4Addr::from_bits(local.to_bits() & mask_v4(length));
            Some(format!("{network}/{length}"))
        }
        IpAddr::V6(local) if local.is_loopback() || local.is_unicast_link_local() => None,
        IpAddr::V6(local) => {
            let length = interface_length(&read("if_inet6"), local).unwrap_or(PREFIX_V6);
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            let network = Ipv6Addr::from_bits(local.to_bits() & mask);
            Some(format!("{network}/{length}"))
        }
    }
}

fn mask_v4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

/// The length of the longest on-link route in /proc/net/route that holds `local`. A subnet of one
/// host or of a point-to-point link is how a routed fabric addresses hosts, and no rack.
fn route_length(table: &str, local: Ipv4Addr) -> Option<u8> {
    const POINT_TO_POINT: u8 = 30;
    let lengths = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        // Addresses stand there as the kernel holds them, in the machine's byte order.
        let address = |column: usize| {
            let bits = u32::from_str_radix(columns.get(column)?, 16).ok()?;
            Some(u32::from_be_bytes(bits.to_ne_bytes()))
        };
        let (network, gateway, mask) = (address(1)?, address(2)?, address(7)?);
        let holds = gateway == 0 && mask != 0 && local.to_bits() & mask == network;
        // A mask has at most 32 ones.
        holds.then_some(mask.leading_ones() as u8)
    });
    lengths.max().filter(|length| *length < POINT_TO_POINT)
}

/// The prefix length that /proc/net/if_inet6 gives for `local`.
fn interface_length(table: &str, local: Ipv6Addr) -> Option<u8> {
    const POINT_TO_POINT: u8 = 126;
    let line = table.lines().find(|line| {
        let address = line.split_whitespace().next().unwrap_or_default();
        u128::from_str_radix(address, 16).is_ok_and(|bits| bits == local.to_bits())
    })?;
    let length = u8::from_str_radix(line.split_whitespace().nth(2)?, 16).ok()?;
    (1..POINT_TO_POINT).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_bounds() {
        assert_eq!(parse("r7 left"), Ok("r7 left".to_owned()));
        assert!(parse(&"r".repeat(64)).is_ok());
        for bad in ["", &"r".repeat(65), "r\n7", "r\x1b[2J"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    /// Rows of a machine with a default route, 10.77.0.0/16, 192.168.7.128/25 and a /32, as a
    /// little-endian kernel prints them.
    #[test]
    #[cfg(target_endian = "little")]
    fn the_longest_route_on_the_link_is_the_subnet() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
             eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
             eth0\t0000000A\t0100A8C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n\
             eth1\t8007A8C0\t00000000\t0001\t0\t0\t0\t80FFFFFF\t0\t0\t0\n\
             lo\t070010AC\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        let check = |address: &str, expected| {
            let found = route_length(table, address.parse().unwrap());
            assert_eq!(found, expected, "{address}");
        };
        check("10.77.1.9", Some(16));
        check("192.168.7.200", Some(25));
        // Beside the /25; behind a gateway; a host route.
        check("192.168.7.9", None);
        check("10.78.1.9", None);
        check("172.16.0.7", None);
    }

    #[test]
    fn an_interface_says_how_long_its_prefix_is() {
        let table = "fe800000000000000000000000000001 02 40 20 80     eth0\n\
             20010db8000000010000000000000005 02 38 00 80     eth0\n\
             20010db8000000010000000000000006 02 80 00 80     eth0\n";
        let check = |address: &str, expected| {
            let found = interface_length(table, address.parse().unwrap());
            assert_eq!(found, expected, "{address}");
        };
        check("2001:db8:0:1::5", Some(56));
        // DHCPv6 gives single addresses.
        check("2001:db8:0:1::6", None);
        check("2001:db8:0:1::7", None);
    }

    #[test]
    fn addresses_that_are_everywhere_are_no_place() {
        for address in [
            "127.0.0.1",
            "::1",
            "169.254.3.4",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert_eq!(of_address(address.parse().unwrap()), None, "{address}");
        }
        // TEST-NET-3 and the documentation prefix are on no interface.
        let of = |address: &str| of_address(address.parse().unwrap());
        assert_eq!(of("203.0.113.77").as_deref(), Some("203.0.113.0/24"));
        assert_eq!(
            of("2001:db8:5:6:7::8").as_deref(),
            Some("2001:db8:5:6::/64")
        );
    }
}
