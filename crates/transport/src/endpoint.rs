//! A QUIC endpoint on a tuned socket: what a seed and a node start with.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Endpoint, ServerConfig};

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
) -> Result<(Endpoint, SocketAddr), StartError> {
    let bound = BoundSocket::bind(bind)?;
    let address = bound.local_addr;
    let runtime = Arc::new(quinn::TokioRuntime);
    let failed = |source| StartError::Endpoint { address, source };
    let socket = ModeratedSocket::new(bound.socket).map_err(failed)?;
    let mut config = tuning.endpoint_config();
    if let Some(resets) = resets {
        resets.apply(&mut config);
    }
    let endpoint =
        Endpoint::new_with_abstract_socket(config, server, socket, runtime).map_err(failed)?;
    Ok((endpoint, address))
}
