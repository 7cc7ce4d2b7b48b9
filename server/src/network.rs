//! Networks and addresses of this host: CIDR blocks, and the interfaces' own networks.
//!
//! Who is let in is decided in [`crate::admission`], and what nodes are told to connect to in
//! [`crate::advertised`]; this only says what is there.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use rootswarm_image::{Host, HostPort, ImageId, ImageName, RootUrl};

/// Why a network was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not ADDRESS/PREFIX.
    #[error("bad network {0:?}: expected ADDRESS/PREFIX, as in 10.0.0.0/24 or fd00::/64")]
    Form(String),
    /// The prefix is longer than the address.
    #[error("bad network {text:?}: a prefix of an IPv{version} network is at most {max}")]
    Prefix {
        /// What was written.
        text: String,
        /// 4 or 6.
        version: u8,
        /// 32 or 128.
        max: u8,
    },
}

/// A block of addresses, host bits cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The block of `prefix` bits that holds `address`; `prefix` is cut to the address's length.
    ///
    /// A block of IPv4 addresses in IPv6 clothes (`::ffff:10.0.0.0/104`) is the IPv4 block that it
    /// means: addresses are compared as what they are, and it would hold none of them.
    pub fn new(address: IpAddr, prefix: u8) -> Cidr {
        let (address, prefix) = match address.to_canonical() {
            v4 @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => (v4, prefix - 96),
            _ => (address, prefix),
        };
        match address {
            IpAddr::V4(v4) => {
                let prefix = prefix.min(32);
                Cidr {
                    address: Ipv4Addr::from_bits(v4.to_bits() & mask_v4(prefix)).into(),
                    prefix,
                }
            }
            IpAddr::V6(v6) => {
                let prefix = prefix.min(128);
                Cidr {
                    address: Ipv6Addr::from_bits(v6.to_bits() & mask_v6(prefix)).into(),
                    prefix,
                }
            }
        }
    }

    /// Whether `address` is in the block. An IPv4 address that arrived on an IPv6 socket
    /// (`::ffff:10.0.0.7`) counts as the IPv4 address it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(a)) => a.to_bits() & mask_v4(self.prefix) == net.to_bits(),
            (IpAddr::V6(net), IpAddr::V6(a)) => a.to_bits() & mask_v6(self.prefix) == net.to_bits(),
            _ => false,
        }
    }

    /// Whether each address of `other` is in the block.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// The two halves of a block of more than one address.
    fn halves(&self) -> Option<[Cidr; 2]> {
        let prefix = self.prefix + 1;
        let upper: IpAddr = match self.address {
            IpAddr::V4(v4) if prefix <= 32 => {
                Ipv4Addr::from_bits(v4.to_bits() | 1 << (32 - prefix)).into()
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                Ipv6Addr::from_bits(v6.to_bits() | 1 << (128 - prefix)).into()
            }
            _ => return None,
        };
        Some([self.address, upper].map(|address| Cidr { address, prefix }))
    }

    /// Whether each address of the block is in one of `blocks`, also where it takes several of them.
    pub fn is_covered_by(&self, blocks: &[Cidr]) -> bool {
        if blocks.iter().any(|block| block.covers(self)) {
            return true;
        }
        // Only a block that is cut by smaller ones is looked into, so this ends after at most as many
        // steps as these have bits.
        blocks.iter().any(|block| self.covers(block))
            && self
                .halves()
                .is_some_and(|halves| halves.iter().all(|half| half.is_covered_by(blocks)))
    }

    /// The first address: the network's own.
    pub fn network(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let form = || CidrError::Form(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| form())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let (version, max) = if address.is_ipv4() { (4, 32) } else { (6, 128) };
        let prefix = prefix.unwrap_or(max);
        if prefix > max {
            return Err(CidrError::Prefix {
                text: text.to_owned(),
                version,
                max,
            });
        }
        Ok(Cidr::new(address, prefix))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name, as in `ip link`.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// The network that is directly reachable through it.
    pub network: Cidr,
    /// What the interface is good for.
    pub standing: Standing,
}

/// What an interface is good for as far as others are to reach this host by it, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is up, with something at its other end.
    Running,
    /// It is up, and nothing is at its other end, as with a bridge for containers of which none runs.
    Up,
    /// Loopback, whatever its addresses.
    Loopback,
}

/// The addresses of all interfaces that are up.
pub fn interface_addresses() -> io::Result<Vec<InterfaceAddress>> {
    use nix::net::if_::InterfaceFlags;
    let mut found = Vec::new();
    for entry in nix::ifaddrs::getifaddrs().map_err(io::Error::from)? {
        if !entry.flags.contains(InterfaceFlags::IFF_UP) {
            continue;
        }
        let Some((address, netmask)) = entry.address.zip(entry.netmask) else {
            continue;
        };
        let (address, prefix) =
            if let Some((a, m)) = address.as_sockaddr_in().zip(netmask.as_sockaddr_in()) {
                (IpAddr::V4(a.ip()), m.ip().to_bits().leading_ones())
            } else if let Some((a, m)) = address.as_sockaddr_in6().zip(netmask.as_sockaddr_in6()) {
                (IpAddr::V6(a.ip()), m.ip().to_bits().leading_ones())
            } else {
                continue;
            };
        // leading_ones of 32 or 128 bits fits a u8.
        let network = Cidr::new(address, prefix as u8);
        let standing = match entry.flags {
            flags if flags.contains(InterfaceFlags::IFF_LOOPBACK) => Standing::Loopback,
            flags if flags.contains(InterfaceFlags::IFF_RUNNING) => Standing::Running,
            _ => Standing::Up,
        };
        found.push(InterfaceAddress {
            standing,
            interface: entry.interface_name,
            address,
            network,
        });
    }
    Ok(found)
}

/// The networks of all interfaces that are up, each once.
pub fn interface_networks() -> io::Result<Vec<Cidr>> {
    let addresses = interface_addresses()?;
    let mut networks: Vec<Cidr> = addresses.into_iter().map(|entry| entry.network).collect();
    networks.sort();
    networks.dedup();
    Ok(networks)
}

/// An address and a port as they stand in a URL, the port left out if it is the `usual` one.
pub fn host_port(ip: IpAddr, port: u16, usual: u16) -> HostPort {
    let host = match ip {
        IpAddr::V4(v4) => Host::V4(v4),
        IpAddr::V6(v6) => Host::V6(v6),
    };
    HostPort {
        host,
        port: (port != usual).then_some(port),
    }
}

/// The rooturl of a published image.
pub fn root_url(host: &HostPort, name: &ImageName, pin: Option<ImageId>) -> RootUrl {
    RootUrl::Swarm {
        hosts: vec![host.clone()],
        name: name.clone(),
        pin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_table() {
        for (text, shown, inside, outside) in [
            ("10.0.0.7/24", "10.0.0.0/24", "10.0.0.255", "10.0.1.0"),
            ("10.0.0.7", "10.0.0.7/32", "10.0.0.7", "10.0.0.8"),
            ("0.0.0.0/0", "0.0.0.0/0", "203.0.113.9", "::1"),
            (
                "10.0.0.0/8",
                "10.0.0.0/8",
                "::ffff:10.1.2.3",
                "::ffff:11.1.2.3",
            ),
            ("fd00::1/64", "fd00::/64", "fd00::ffff", "fd00:0:0:1::"),
            ("::/0", "::/0", "2001:db8::1", "10.0.0.1"),
            // Found by fuzzing: it held nobody.
            (
                "::ffff:10.0.0.0/104",
                "10.0.0.0/8",
                "10.1.2.3",
                "::ffff:11.1.2.3",
            ),
        ] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(cidr.to_string(), shown);
            assert!(cidr.contains(inside.parse().unwrap()), "{inside} in {text}");
            assert!(
                !cidr.contains(outside.parse().unwrap()),
                "{outside} not in {text}"
            );
        }
        for text in [
            "",
            "10.0.0.0/",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0/8",
            "host/24",
            "10.0.0.0/-1",
            "10.0.0.0/24/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_blocks_cover_together() {
        for (block, blocks, covered) in [
            ("10.0.0.0/24", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.0.0.0/8", "10.0.0.0/24", false),
            ("10.0.0.0/8", "10.0.0.0/9 10.128.0.0/9", true),
            ("10.0.0.0/8", "10.0.0.0/9 10.128.0.0/10", false),
            ("10.0.0.0/31", "10.0.0.0 10.0.0.1", true),
            ("10.0.0.0/31", "10.0.0.1", false),
            ("0.0.0.0/0", "::/0", false),
            ("::/0", "::/1 8000::/1", true),
            ("fd00::/64", "fd00::/63", true),
            ("fd00::1", "fd00::/127", true),
            ("10.0.0.0/24", "", false),
        ] {
            let blocks: Vec<Cidr> = blocks
                .split_whitespace()
                .map(|it| it.parse().unwrap())
                .collect();
            let found = block.parse::<Cidr>().unwrap().is_covered_by(&blocks);
            assert_eq!(found, covered, "{block} by {blocks:?}");
        }
    }

    #[test]
    fn loopback_is_among_the_interfaces() {
        let found = interface_addresses().unwrap();
        let lo = found
            .iter()
            .find(|entry| entry.address == IpAddr::V4(Ipv4Addr::LOCALHOST))
            .unwrap();
        assert_eq!(lo.network.to_string(), "127.0.0.0/8");
    }
}
