//! Binds the UDP socket that QUIC runs on, with buffers worth the name.
//!
//! Which address to bind, and what to do when it is taken, is the caller's decision.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

/// What is asked for in each direction. One 10 Gbit/s link fills 4 MiB in 3.4 ms: longer than the
/// pauses of a busy receiver, and 20 times the kernel's default (212,992 bytes, which holds fewer
/// than 100 packets).
pub const BUFFER_BYTES: usize = 4 << 20;

/// Below this a burst from a few senders at once is lost in the socket, and it is worth a warning.
const ENOUGH_BYTES: usize = 1 << 20;

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Every address of both families where the kernel has both; `0` is any port.
    Any {
        /// The UDP port.
        port: u16,
    },
    /// Exactly this address. The IPv6 wildcard takes IPv4 as well; the IPv4 wildcard does not
    /// take IPv6.
    Address(SocketAddr),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process (or another instance of this one) listens there.
    #[error("UDP address {address} is in use: another instance runs, or choose another port")]
    AddressInUse {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The address belongs to none of this host's interfaces.
    #[error("no interface of this host has the address {address}")]
    NoSuchAddress {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Anything else the kernel says.
    #[error("cannot listen on UDP {address}: {source}")]
    Io {
        /// What was asked for.
        address: SocketAddr,
        /// The kernel's word.
        source: io::Error,
    },
}

/// A bound socket and what the kernel granted it.
#[derive(Debug)]
pub struct BoundSocket {
    /// Non-blocking, ready for `quinn::Endpoint::new`.
    pub socket: UdpSocket,
    /// The address it really has (the port is known now).
    pub local_addr: SocketAddr,
    /// Payload the kernel holds for us before it drops, in bytes.
    pub receive_buffer_bytes: usize,
    /// Payload the kernel takes from us before it says wait, in bytes.
    pub send_buffer_bytes: usize,
}

impl BoundSocket {
    /// Binds as told and asks for [`BUFFER_BYTES`] in each direction.
    ///
    /// Says in the log what was granted, and with a warning when that is too little.
    pub fn bind(bind: Bind) -> Result<BoundSocket, BindError> {
        let socket = match bind {
            Bind::Address(address) => open(address)?,
            Bind::Any { port } => {
                let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
                match open(both) {
                    // A kernel without IPv6 (or with it switched off) says so in several ways;
                    // what it says about IPv4 is then the answer. A port that is taken is taken.
                    Err(BindError::Io { .. } | BindError::NoSuchAddress { .. }) => {
                        open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))?
                    }
                    other => other?,
                }
            }
        };
        let asked = match bind {
            Bind::Address(address) => address,
            Bind::Any { port } => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        };
        let failed = |source| BindError::Io {
            address: asked,
            source,
        };

        let receive_buffer_bytes = grow_receive_buffer(&socket).map_err(failed)?;
        let send_buffer_bytes = grow_send_buffer(&socket).map_err(failed)?;
        let socket = UdpSocket::from(socket);
        let local_addr = socket.local_addr().map_err(failed)?;
        if receive_buffer_bytes.min(send_buffer_bytes) < ENOUGH_BYTES {
            tracing::warn!(
                %local_addr,
                receive_buffer_bytes,
                send_buffer_bytes,
                "small socket buffers lose packets: sysctl -w net.core.rmem_max={BUFFER_BYTES} \
                 net.core.wmem_max={BUFFER_BYTES}, or run with CAP_NET_ADMIN"
            );
        } else {
            tracing::debug!(%local_addr, receive_buffer_bytes, send_buffer_bytes, "socket bound");
        }
        Ok(BoundSocket {
            socket,
            local_addr,
            receive_buffer_bytes,
            send_buffer_bytes,
        })
    }
}

/// The address as the other family sees it: a dual-stack socket reports an IPv4 peer as
/// `::ffff:10.0.0.7`, which no operator wrote and no IPv4-only node can be told.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            // As it is: a link-local address is nothing without its scope.
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

fn open(address: SocketAddr) -> Result<Socket, BindError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::AddressInUse { address },
        io::ErrorKind::AddrNotAvailable => BindError::NoSuchAddress { address },
        _ => BindError::Io { address, source },
    };
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )
    .map_err(failed)?;
    if address.is_ipv6() {
        socket
            .set_only_v6(!address.ip().is_unspecified())
            .map_err(failed)?;
    }
    socket.set_nonblocking(true).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    Ok(socket)
}

/// Root may pass the limit of `net.core.rmem_max`; others get what the limit allows. Linux reports
/// twice the payload it holds (the other half is its bookkeeping).
fn grow_receive_buffer(socket: &Socket) -> io::Result<usize> {
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
    }
    Ok(socket.recv_buffer_size()? / 2)
}

fn grow_send_buffer(socket: &Socket) -> io::Result<usize> {
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        socket.set_send_buffer_size(BUFFER_BYTES)?;
    }
    Ok(socket.send_buffer_size()? / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(bound: &BoundSocket, to: SocketAddr) -> SocketAddr {
        let sender = UdpSocket::bind(SocketAddr::new(to.ip(), 0)).unwrap();
        sender.send_to(b"x", to).unwrap();
        bound.socket.set_nonblocking(false).unwrap();
        let mut buffer = [0; 8];
        let (length, from) = bound.socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"x");
        from
    }

    #[test]
    fn the_wildcard_hears_both_families() {
        let bound = BoundSocket::bind(Bind::Any { port: 0 }).unwrap();
        let port = bound.local_addr.port();
        assert_ne!(port, 0);
        let v4: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
        assert!(canonical(exchange(&bound, v4)).is_ipv4());
        if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            let v6: SocketAddr = (Ipv6Addr::LOCALHOST, port).into();
            assert!(canonical(exchange(&bound, v6)).is_ipv6());
        }
    }

    #[test]
    fn buffers_are_read_back() {
        let bound = BoundSocket::bind(Bind::Address((Ipv4Addr::LOCALHOST, 0).into())).unwrap();
        // Not more than asked, and at least the kernel's floor; root gets all of it.
        assert!((1024..=BUFFER_BYTES).contains(&bound.receive_buffer_bytes));
        assert!((1024..=BUFFER_BYTES).contains(&bound.send_buffer_bytes));
        let forced = sockopt::set_socket_recv_buffer_size_force(&bound.socket, BUFFER_BYTES);
        if forced.is_ok() {
            assert_eq!(bound.receive_buffer_bytes, BUFFER_BYTES);
            assert_eq!(bound.send_buffer_bytes, BUFFER_BYTES);
        }
    }

    #[test]
    fn what_is_taken_is_its_own_error() {
        let first = BoundSocket::bind(Bind::Any { port: 0 }).unwrap();
        let port = first.local_addr.port();
        for bind in [
            Bind::Any { port },
            Bind::Address((Ipv4Addr::UNSPECIFIED, port).into()),
        ] {
            let error = BoundSocket::bind(bind).unwrap_err();
            assert!(
                matches!(error, BindError::AddressInUse { .. }),
                "{bind:?}: {error:?}"
            );
            assert!(error.to_string().contains(&port.to_string()), "{error}");
        }
    }

    #[test]
    fn an_address_of_another_host_is_its_own_error() {
        // TEST-NET-1: on no interface.
        let address: SocketAddr = "192.0.2.1:0".parse().unwrap();
        let error = BoundSocket::bind(Bind::Address(address)).unwrap_err();
        assert!(
            matches!(error, BindError::NoSuchAddress { .. }),
            "{error:?}"
        );
    }
}
