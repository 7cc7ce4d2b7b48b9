//! The wiring: one bridge, a seed and N nodes, each in a namespace of its own behind a shaped link.

use std::net::Ipv4Addr;

use crate::netns::{Bridge, Link, Namespace, NetnsError};

use super::Case;

/// 10.77.0.0/16: the seed is .0.1, node 0 is .1.0 (so that 65,000 would fit).
const PREFIX_LEN: u8 = 16;
/// Which a token bucket counts as well.
const ETHERNET_HEADER_BYTES: u16 = 14;
const SEED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// A namespace and its cable.
#[derive(Debug)]
pub struct LabNode {
    /// Where its programs run.
    pub namespace: Namespace,
    /// Its cable to the bridge.
    pub link: Link,
}

/// A laid-out lab; dropping it removes every namespace.
#[derive(Debug)]
pub struct Lab {
    /// The seed's end.
    pub seed: LabNode,
    /// The nodes, in order of their addresses.
    pub nodes: Vec<LabNode>,
    /// Dropped last, so that the links go with their nodes.
    _bridge: Bridge,
}

impl Lab {
    /// Lays out `case`.
    ///
    /// # Errors
    /// Without root, iproute2 or the kernel's support.
    pub fn lay_out(case: &Case) -> Result<Self, NetnsError> {
        let bridge = Bridge::create("switch")?;
        let seed = lay_node(&bridge, "seed", SEED, case.seed_bit_per_s, case)?;
        let nodes = (0..case.nodes).map(|number| {
            let [high, low] = u16::try_from(256 + number)
                .unwrap_or(u16::MAX)
                .to_be_bytes();
            let address = Ipv4Addr::new(10, 77, high, low);
            lay_node(
                &bridge,
                &format!("node{number}"),
                address,
                case.rate_of(number as usize),
                case,
            )
        });
        let nodes = nodes.collect::<Result<_, _>>()?;
        Ok(Lab {
            seed,
            nodes,
            _bridge: bridge,
        })
    }
}

fn lay_node(
    bridge: &Bridge,
    label: &str,
    address: Ipv4Addr,
    rate_bit_per_s: Option<u64>,
    case: &Case,
) -> Result<LabNode, NetnsError> {
    let namespace = Namespace::create(label)?;
    let link = bridge.attach(&namespace, address, PREFIX_LEN)?;
    if let Some(mtu) = case.mtu_bytes {
        link.set_mtu(mtu)?;
    }
    // Local peer discovery of BitTorrent clients is multicast, which needs a route.
    namespace.ip([
        "route",
        "add",
        "224.0.0.0/4",
        "dev",
        crate::netns::NODE_INTERFACE,
    ])?;
    match (rate_bit_per_s, case.queue_ms) {
        (None, _) => {}
        (Some(rate), None) => link.shape(rate)?,
        (Some(rate), Some(queue_ms)) => {
            let packet = case.mtu_bytes.unwrap_or(1500) + ETHERNET_HEADER_BYTES;
            link.shape_tightly(rate, queue_ms, 2 * u64::from(packet))?;
        }
    }
    Ok(LabNode { namespace, link })
}
