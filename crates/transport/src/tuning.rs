//! quinn's settings for a LAN, each with its reason.
//!
//! quinn's defaults are for 100 Mbit/s over 100 ms. Here round trips are 0.1-2 ms, links are 0.1
//! to 10 Gbit/s, and the number of connections is known: a node has 16 peers and a seed or two, a
//! seed has a few hundred nodes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::{AckFrequencyConfig, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::DelayBoundConfig;
use crate::connection_ids::ShortIds;
pub use rootswarm_swarm::limits::for_chunks_of;

/// What one stream may have in flight unread: the longest chunk, so that only the connection's window
/// holds a sender back. With less, a reader that is busy has one chunk held back and the next one sent
/// before the rest of it: a long silence in the first, which is then given up.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// What a node's connection to a seed may have in flight unread: the swarm key vouches for seeds.
///
/// Floor: 10 Gbit/s for 10 ms (a receiver that lost its core to something else) are 12.5 MB.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// What all peers together may have in flight unread: [`peer_window_bytes`] gives each its part.
///
/// Ceiling: memory. quinn buffers only what the application has not read yet or what has a gap
/// before it. An honest peer costs next to nothing of it; a hostile one that leaves gaps, or fills
/// streams that nobody reads, costs all of its part, and every peer may be one. The agent may use
/// 64 MiB beside the image, whatever is done to it.
///
/// A part that was given is not taken back, only given again later than it would be: when peers come
/// one after the other, and each keeps what it was given on its arrival, they have
/// 8 × 2 MiB + 16 MiB × (1/9 + … + 1/96) = 55 MiB at the very most.
const PEERS_WINDOW_BYTES: u32 = 16 << 20;

/// A peer's largest part: 2 MiB in 1 ms are 16 Gbit/s.
const PEER_WINDOW_BYTES_MAX: u32 = 2 << 20;

/// What a connection begins with, and a peer's least part: chunks are read as they come, so this is
/// what may be on the way, 1.3 Gbit/s at 1 ms from each of the most peers.
pub(crate) const CONNECTION_WINDOW_BYTES_FIRST: u32 = 160 << 10;

/// What a node may have in flight unread towards a seed, which gets control frames only: a hello of
/// the largest kind and some haves. A seed has thousands of connections, each of which may be
/// hostile.
const SEED_WINDOW_BYTES: u32 = 64 << 10;

/// What one connection may have written and not seen acknowledged. Chunks are slices of the mapped
/// image, which quinn holds by reference: this is no memory, only how far ahead a sender runs.
///
/// Ceiling: less than seven eighths of a receiver's window. quinn counts against it what is written, not
/// what is sent, and a receiver gives more of it an eighth at a time: a control frame that has to wait for
/// that waits for 2 MiB of chunks, 0.8 s at 20 Mbit/s, where an acknowledgement comes within 25 ms.
pub(crate) const SEND_WINDOW_BYTES: u64 = 12 << 20;

const _: () = assert!(SEND_WINDOW_BYTES < CONNECTION_WINDOW_BYTES as u64 / 8 * 7);

/// Chunks travel on unidirectional streams: a node has at most some 16 requests outstanding at one
/// peer, and the rest are streams that were cancelled but not yet closed.
const UNI_STREAMS: u32 = 128;

/// One control stream, one join request, and room for a successor of either. What is never accepted
/// of them holds no more memory than the connection's window.
const BIDI_STREAMS: u32 = 4;

/// The round trip assumed before one was measured. quinn's first retransmission comes after three
/// of them: 30 ms. That is longer than a LAN's round trip plus the handshake's own work (under 2 ms
/// on an idle seed), and it doubles each time, so that of a thousand nodes that join at once (0.8 s
/// of handshakes on one core) a node sends 4 more packets of 1,200 bytes before it is answered; at
/// 1 ms it would be 8. With the default, 333 ms, one lost packet costs a second.
const INITIAL_RTT: Duration = Duration::from_millis(10);

/// So that a peer that died without a word is noticed by the idle timeout, and its own silence does
/// not end a connection that is merely idle. Four of them fit into the timeout.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Longer than three lost keep-alives; chunk deadlines notice a stalled peer long before.
const IDLE_TIMEOUT_MS: u32 = 8_000;

/// How much a receiver may leave unacknowledged, four packets of Ethernet's size. Windows before short queues are
/// small, and what is not acknowledged at once comes back after [`ACK_DELAY`] only: with ten packets 0.64 of
/// 50 Mbit/s were used behind a queue of 5 ms, and 0.03 of 100 Mbit/s behind one of 1 ms, with four all of it and
/// 0.92 (`congestion::table`). With two, queues were 4 to 7 ms longer there.
///
/// What more would save was measured over a pair of namespaces, 50 Mbit/s (tbf) with data both ways: 1,080
/// acknowledgements for 24 MB with ten packets instead of 2,100 with quinn's default, at some 80 bytes on the wire
/// 0.3 % of what is somebody's uplink, and no processor time that could be seen.
///
/// In bytes: with jumbo packets it is each second one.
const ACK_EVERY_BYTES: u32 = 4 * 1452;

/// quinn asks the peer to leave as many unanswered as this, not fewer: each second packet is answered (RFC 9000,
/// 13.2.2).
const ACK_EVERY_MIN: u32 = 1;

/// …but no longer than this, or the end of a chunk and a small window would wait. At 50 Mbit/s from
/// eight peers ten packets of one of them take longer, so that this decides: 12 ms instead of 5 save a
/// tenth of the processor time, 25 ms, QUIC's default (RFC 9000, 18.2), 0.003 to 0.005 of the bound; neither
/// delays anything that was measured (TUNING.md).
const ACK_DELAY: Duration = Duration::from_millis(25);

/// Ethernet's usual MTU.
pub const ETHERNET_MTU: u16 = 1500;

/// Jumbo frames: the largest MTU that is searched for.
pub const JUMBO_MTU: u16 = 9000;

/// IPv6 and UDP headers; with IPv4 20 bytes less are used than would fit.
const HEADERS_BYTES: u16 = 48;

/// QUIC's own floor for a datagram (RFC 9000, 14): also the floor of the search.
const QUIC_MIN_PAYLOAD_BYTES: u16 = 1200;

/// The most payload on Ethernet, with IPv4: above it jumbo packets are searched for.
const ETHERNET_PAYLOAD_BYTES_MAX: u16 = 1472;

/// What differs from host to host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// The largest MTU among the interfaces in use. Above 1500 jumbo datagrams are searched for
    /// and accepted, which costs the endpoint 18 MB of receive buffer instead of 3.
    pub interface_mtu: u16,
    /// Hand batches of packets to the kernel in one call. Some drivers refuse (EIO, EINVAL).
    pub segmentation_offload: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            interface_mtu: ETHERNET_MTU,
            segmentation_offload: true,
        }
    }
}

impl Tuning {
    /// For the interfaces this host has now: the largest MTU among those that are no loopback. The
    /// default where /sys does not say.
    #[must_use]
    pub fn for_host() -> Tuning {
        let found = largest_mtu(Path::new("/sys/class/net"));
        Tuning {
            interface_mtu: found.unwrap_or(ETHERNET_MTU),
            ..Tuning::default()
        }
    }

    /// The largest UDP payload to try: 1452 on Ethernet, 8952 with jumbo frames.
    #[must_use]
    pub fn max_payload_bytes(&self) -> u16 {
        self.interface_mtu
            .min(JUMBO_MTU)
            .saturating_sub(HEADERS_BYTES)
            .max(QUIC_MIN_PAYLOAD_BYTES)
    }

    /// For `quinn::Endpoint::new`. A node accepts datagrams as large as it would send, and its
    /// connection ids are short; a seed then makes its own.
    #[must_use]
    pub fn endpoint_config(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        // 1472 is quinn's default: IPv4 on Ethernet. The value is within quinn's bounds of 1200
        // and 65527 by `max_payload_bytes`, so that this cannot fail; if it did, the default works.
        let payload = self.max_payload_bytes().max(ETHERNET_PAYLOAD_BYTES_MAX);
        if let Err(error) = config.max_udp_payload_size(payload) {
            tracing::warn!(payload, %error, "payload size refused");
        }
        // Without random bytes it is quinn's own ids, which are longer.
        if let Some(ids) = ShortIds::new() {
            config.cid_generator(move || Box::new(ids.clone()));
        }
        config
    }

    /// For both ends of every connection of a node.
    #[must_use]
    pub fn transport_config(&self) -> Arc<TransportConfig> {
        Arc::new(self.settings())
    }

    /// For a newcomer's connection, on which it stays as a member: to a seed a node sends control frames
    /// alone, so that it does not search for larger packets.
    #[must_use]
    pub fn join_transport_config(&self) -> Arc<TransportConfig> {
        let mut config = self.settings();
        config.mtu_discovery_config(None);
        Arc::new(config)
    }

    /// For the connections that a seed accepts: it sends chunks and gets none.
    #[must_use]
    pub fn seed_transport_config(&self) -> Arc<TransportConfig> {
        Arc::new(self.seed_settings())
    }

    /// The same for nodes that it only tracks. Larger packets than QUIC's least are not searched for, so
    /// that the few chunks which such a node asks a seed for take 5 % more packets; and they are handed to
    /// the kernel one by one, because a connection keeps a buffer for as many as it may hand over at once:
    /// with ten it is a quarter of what a member costs, 12 of 50 kB (`cargo xtask members`).
    #[must_use]
    pub fn tracking_transport_config(&self) -> Arc<TransportConfig> {
        let mut config = self.seed_settings();
        config
            .mtu_discovery_config(None)
            .enable_segmentation_offload(false);
        Arc::new(config)
    }

    fn seed_settings(&self) -> TransportConfig {
        let mut config = self.settings();
        config
            .stream_receive_window(VarInt::from_u32(SEED_WINDOW_BYTES))
            .receive_window(VarInt::from_u32(SEED_WINDOW_BYTES))
            .max_concurrent_uni_streams(VarInt::from_u32(0));
        config
    }

    /// The search for the path's MTU is a binary one, each step a full packet there and an
    /// acknowledgement back: four steps on Ethernet, 5.6 kB for each of a node's connections and 11 kB
    /// for each node from a seed, an eighth of an image of 1 GB for ten thousand nodes. But there the
    /// interface's MTU is nearly always the path's. With a coarse step quinn tries that first, and is
    /// done; if it does not pass (a tunnel on the way), half way up is what is left: 1,325 bytes instead
    /// of 1,372 in WireGuard. Jumbo packets often end at a router: there the search stays fine.
    fn mtu_search(&self) -> MtuDiscoveryConfig {
        let most = self.max_payload_bytes();
        let mut search = MtuDiscoveryConfig::default();
        search.upper_bound(most);
        if most <= ETHERNET_PAYLOAD_BYTES_MAX {
            search.minimum_change((most - QUIC_MIN_PAYLOAD_BYTES) / 2 + 1);
        }
        search
    }

    fn settings(&self) -> TransportConfig {
        let mut acks = AckFrequencyConfig::default();
        let packets = ACK_EVERY_BYTES / u32::from(self.max_payload_bytes());
        acks.ack_eliciting_threshold(VarInt::from_u32(packets.max(ACK_EVERY_MIN)))
            .max_ack_delay(Some(ACK_DELAY));

        let mut config = TransportConfig::default();
        config
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES_FIRST))
            .send_window(SEND_WINDOW_BYTES)
            .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
            .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
            // Nothing is ever sent as a datagram.
            .datagram_receive_buffer_size(None)
            .initial_rtt(INITIAL_RTT)
            // Chunks go one after the other by their priorities (`upload`). Unfairness would do that too,
            // but a stream that was begun then goes before any other, control frames included.
            .send_fairness(true)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
            .mtu_discovery_config(Some(self.mtu_search()))
            .ack_frequency_config(Some(acks))
            .congestion_controller_factory(Arc::new(DelayBoundConfig))
            .enable_segmentation_offload(self.segmentation_offload);
        config
    }
}

/// What one of `peers` connected peers may have in flight unread: an equal part, and never
/// more than one needs.
pub(crate) fn peer_window_bytes(peers: usize) -> u32 {
    let peers = u32::try_from(peers).unwrap_or(u32::MAX).max(1);
    (PEERS_WINDOW_BYTES / peers).clamp(CONNECTION_WINDOW_BYTES_FIRST, PEER_WINDOW_BYTES_MAX)
}

/// Reads `NAME/mtu` of every interface in `interfaces`.
fn largest_mtu(interfaces: &Path) -> Option<u16> {
    std::fs::read_dir(interfaces)
        .ok()?
        .flatten()
        .filter(|interface| interface.file_name() != "lo")
        .filter_map(|interface| std::fs::read_to_string(interface.path().join("mtu")).ok())
        .filter_map(|mtu| mtu.trim().parse::<u32>().ok())
        // Tunnels may say more than an IP packet can have.
        .map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
        .max()
}

const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);
// The least part, for each of the most peers, is not more than all of them have.
const _: () = assert!(
    CONNECTION_WINDOW_BYTES_FIRST as usize * rootswarm_swarm::limits::PEERS_MAX
        <= PEERS_WINDOW_BYTES as usize
);
const _: () = assert!(SEED_WINDOW_BYTES as usize > rootswarm_swarm::limits::FRAME_BYTES_MAX);
const _: () = assert!(KEEP_ALIVE.as_millis() * 3 < IDLE_TIMEOUT_MS as u128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_follows_the_interface() {
        for (interface_mtu, payload) in [
            (0, 1200),
            (1280, 1232),
            (1500, 1452),
            (9000, 8952),
            (65_535, 8952),
        ] {
            let tuning = Tuning {
                interface_mtu,
                ..Tuning::default()
            };
            assert_eq!(tuning.max_payload_bytes(), payload, "MTU {interface_mtu}");
            let accepted = tuning.endpoint_config().get_max_udp_payload_size();
            assert_eq!(
                accepted,
                u64::from(payload.max(1472)),
                "MTU {interface_mtu}"
            );
        }
    }

    #[test]
    fn peers_share_one_window() {
        for (peers, bytes) in [
            (0, 2 << 20),
            (1, 2 << 20),
            (8, 2 << 20),
            (16, 1 << 20),
            (96, 174_762),
            (1000, 160 << 10),
        ] {
            assert_eq!(peer_window_bytes(peers), bytes, "{peers} peers");
        }
    }

    #[test]
    fn the_largest_interface_counts_and_loopback_does_not() {
        let sys = tempfile::tempdir().unwrap();
        assert_eq!(largest_mtu(sys.path()), None);
        assert_eq!(largest_mtu(&sys.path().join("missing")), None);
        for (name, mtu, largest) in [
            ("lo", "65536\n", None),
            ("eth0", "1500\n", Some(1500)),
            ("wg0", "1420\n", Some(1500)),
            ("broken", "?", Some(1500)),
            ("eth1", "9000\n", Some(9000)),
            ("ip6tnl0", "1000000\n", Some(u16::MAX)),
        ] {
            std::fs::create_dir(sys.path().join(name)).unwrap();
            std::fs::write(sys.path().join(name).join("mtu"), mtu).unwrap();
            assert_eq!(largest_mtu(sys.path()), largest, "with {name}");
        }
    }
}
