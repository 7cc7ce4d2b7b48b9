//! Floods: first packets without a handshake behind them, and joins without a node behind them.
//!
//! First packets are made by QUIC itself, which is pointed at a socket that keeps what it gets and
//! never answers; they are then sent on from sockets that never answer either. To whoever gets
//! them that is a forged source address: nothing that is sent there ever comes back.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rootswarm_swarm::Role;
use rootswarm_transport::tls::Dialer;
use rootswarm_transport::trust::{SeedTrust, SwarmTrust};
use rootswarm_transport::tuning::Tuning;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Scene;
use super::attack::ask_for_nodes;
use super::member::{Outlaw, OutlawError, endpoint};

/// First packets made at a time.
const MADE: usize = 64;
/// Sockets that they are sent from: as many sources.
const SOURCES: usize = 16;
/// Bytes per second that a hostile machine's link takes: as those of the honest ones in the arena,
/// 40 Mbit/s. What goes through QUIC is held back by the victims, a flood by nothing else.
const UPLINK: f64 = 5_000_000.0;
/// Sent in one go.
const BURST: Duration = Duration::from_millis(5);
/// A first packet is padded to this at least (RFC 9000, 14.1).
const INITIAL_BYTES: usize = 1200;

/// The connection that a packet with a long header is for: a first byte, the version, a length and as
/// many bytes (RFC 9000, 17.2).
fn destination(packet: &[u8]) -> &[u8] {
    let length = usize::from(packet[5]);
    &packet[6..6 + length.min(20)]
}

/// First packets of as many handshakes.
async fn initials(from: IpAddr, count: usize) -> Result<Vec<Vec<u8>>, OutlawError> {
    let other = |error: std::io::Error| OutlawError::Other(error.to_string());
    let recorder = UdpSocket::bind((from, 0)).map_err(other)?;
    recorder.set_nonblocking(true).map_err(other)?;
    let recorder = tokio::net::UdpSocket::from_std(recorder).map_err(other)?;
    let to = recorder.local_addr().map_err(other)?;
    let endpoint = endpoint(from)?;
    let mut made = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut buffer = [0; 2048];
    for _ in 0..count {
        let dialer = Dialer::join(SwarmTrust::new(SeedTrust::FirstUse), &Tuning::default());
        let dial = dialer.connect(&endpoint, to, Role::Seed);
        let record = async {
            loop {
                let (bytes, _) = recorder.recv_from(&mut buffer).await.map_err(other)?;
                // Not what the last one says as it is given up, nor a packet that is sent again.
                if bytes >= INITIAL_BYTES && seen.insert(destination(&buffer).to_vec()) {
                    return Ok(buffer[..bytes].to_vec());
                }
            }
        };
        tokio::select! {
            packet = record => made.push(packet?),
            _ = dial => {}
        }
    }
    Ok(made)
}

pub(crate) async fn handshakes(scene: &Scene) {
    loop {
        let _ = flood(scene).await;
        sleep(Duration::from_millis(50)).await;
    }
}

async fn flood(scene: &Scene) -> Result<(), OutlawError> {
    let victims = match scene.target {
        super::Target::Seed => vec![scene.prey.seed],
        super::Target::Nodes => {
            let outlaw = Outlaw::join(scene.from, &scene.prey, None).await?;
            ask_for_nodes(&outlaw, &scene.prey).await?
        }
    };
    let sources: Vec<UdpSocket> = (0..SOURCES)
        .filter_map(|_| UdpSocket::bind((scene.from, 0)).ok())
        .collect();
    // As long as it takes to be noticed: then the nodes are asked for anew.
    let mut next_at = Instant::now();
    for _ in 0..20 {
        for (number, packet) in initials(scene.from, MADE).await?.iter().enumerate() {
            for victim in &victims {
                let now = Instant::now();
                next_at = next_at.max(now) + Duration::from_secs_f64(packet.len() as f64 / UPLINK);
                if next_at > now + BURST {
                    sleep_until(next_at).await;
                }
                if sources[number % sources.len()]
                    .send_to(packet, victim)
                    .is_ok()
                {
                    scene.fire();
                }
            }
        }
    }
    Ok(())
}

pub(crate) async fn joins(scene: &Scene) {
    loop {
        if Outlaw::join(scene.from, &scene.prey, None).await.is_ok() {
            scene.fire();
        } else {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What came back to sources that had sent first packets and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Reflection {
    /// Bytes that were sent, headers not counted.
    pub sent_bytes: u64,
    /// Bytes that came back.
    pub returned_bytes: u64,
    /// The worst source: bytes that came back for each that was sent.
    pub worst_ratio: f64,
}

/// Sends first packets to `victim` from `sources` sockets, `each` from every one, and counts what
/// comes back within `wait`.
///
/// # Errors
/// When a socket cannot be made.
pub async fn reflect(
    from: IpAddr,
    victim: SocketAddr,
    sources: usize,
    each: usize,
    wait: Duration,
) -> Result<Reflection, OutlawError> {
    let other = |error: std::io::Error| OutlawError::Other(error.to_string());
    let packets = initials(from, sources * each).await?;
    let returned = AtomicU64::new(0);
    let mut sent_bytes = 0;
    let mut worst_ratio = 0_f64;
    let mut sockets = Vec::new();
    for own in packets.chunks(each) {
        let socket = tokio::net::UdpSocket::bind((from, 0))
            .await
            .map_err(other)?;
        let mut sent = 0;
        for packet in own {
            sent += socket.send_to(packet, victim).await.map_err(other)? as u64;
        }
        sent_bytes += sent;
        sockets.push((socket, sent));
    }
    let deadline = tokio::time::Instant::now() + wait;
    let mut buffer = [0; 65_536];
    for (socket, sent) in &sockets {
        let mut own = 0;
        // The kernel keeps what came for the others meanwhile.
        while let Ok(Ok((bytes, _))) = timeout(
            deadline.saturating_duration_since(tokio::time::Instant::now()),
            socket.recv_from(&mut buffer),
        )
        .await
        {
            own += bytes as u64;
        }
        // What had come by the deadline is read in any case.
        while let Ok((bytes, _)) = socket.try_recv_from(&mut buffer) {
            own += bytes as u64;
        }
        returned.fetch_add(own, Ordering::Relaxed);
        worst_ratio = worst_ratio.max(own as f64 / *sent as f64);
    }
    Ok(Reflection {
        sent_bytes,
        returned_bytes: returned.into_inner(),
        worst_ratio,
    })
}
