//! A QUIC endpoint on a tuned socket: what a seed and a node start with.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Endpoint, ServerConfig, UdpPoller};

use crate::identity::IdentityError;
use crate::resets::ResetKey;
use crate::socket::{Bind, BindError, BoundSocket};
use crate::tls::TlsError;
use crate::tuning::Tuning;
use crate::udp::ModeratedSocket;

/// Why a seed or a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The reactor.
    #[error("cannot register the UDP socket {address}: {source}")]
    Endpoint {
        /// Its address.
        address: SocketAddr,
        /// The kernel's word.
        source: std::io::Error,
    },
}

/// Binds a socket and runs QUIC on it; also says the address that it really has. Without a server
/// configuration it accepts nobody until it gets one; with a reset key those who were connected to
/// an earlier process learn at once that it is gone.
pub(crate) fn open(
    bind: Bind,
    tuning: &Tuning,
    server: Option<ServerConfig>,
    resets: Option<ResetKey>,
) -> Result<Opened, StartError> {
    let bound = BoundSocket::bind(bind)?;
    let address = bound.local_addr;
    let runtime = Arc::new(quinn::TokioRuntime);
    let failed = |source| StartError::Endpoint { address, source };
    let socket = ModeratedSocket::new(bound.socket).map_err(failed)?;
    let mut config = tuning.endpoint_config();
    if let Some(resets) = resets {
        resets.apply(&mut config);
    }
    let socket = Generation::of(socket);
    let endpoint = Endpoint::new_with_abstract_socket(config, server, socket.clone(), runtime)
        .map_err(failed)?;
    Ok(Opened {
        endpoint,
        socket: Mutex::new(socket),
        address,
    })
}

/// An endpoint and what is under it.
pub(crate) struct Opened {
    pub(crate) endpoint: Endpoint,
    socket: Mutex<Arc<Generation>>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Opened {
    /// Lets the other end of every connection that was dialed here know that this host's address may be
    /// another one: each sends a packet, by which a connection moves to the address that it comes from
    /// (RFC 9000, 9.2).
    pub(crate) fn announce_address(&self) {
        // To move to another socket does just that, and this is the same one under another name.
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Generation::of(socket.inner.clone());
        match self.endpoint.rebind_abstract(next.clone()) {
            Ok(()) => {
                // quinn reads the old one beside the new one until it fails.
                socket.is_over.store(true, Ordering::Relaxed);
                *socket = next;
            }
            // The socket has no address any more.
            Err(error) => tracing::warn!(%error, "the new address could not be announced"),
        }
    }
}

/// A socket from one change of this host's addresses to the next.
#[derive(Debug)]
struct Generation {
    inner: Arc<ModeratedSocket>,
    is_over: AtomicBool,
}

impl Generation {
    fn of(inner: Arc<ModeratedSocket>) -> Arc<Generation> {
        Arc::new(Generation {
            inner,
            is_over: AtomicBool::new(false),
        })
    }
}

impl AsyncUdpSocket for Generation {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if self.is_over.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
