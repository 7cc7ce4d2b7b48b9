//! TLS 1.3 for the swarm: who presents what to whom, on which protocol.
//!
//! | ALPN | dials | listens | certificates |
//! |---|---|---|---|
//! | `rootswarm-join/4`, `/3` | a node that has none yet | a seed | the seed's only |
//! | `rootswarm-mirror/2`, `/1` | a mirror, which proves that it has the swarm key | a seed | the seed's only |
//! | `rootswarm-manifest/1` | a node that has just joined | a node | both sides', always |
//! | `rootswarm/4`, `/3` | a node | a node or a seed | both sides', always |
//!
//! Where there are two versions, both are offered, and the side that listens takes the newer one that it
//! knows. `rootswarm-join/4` differs from version 3 in what is spoken on the connection once the newcomer is
//! a member: `rootswarm/4`.
//!
//! A [`Dialer`] connects and says exactly why it did not; a [`Listener`] accepts and refuses a
//! data connection without a certificate before the caller sees it. The rules for certificates are
//! in [`crate::trust`]; this file only plugs them into rustls. Nothing is ever resumed and there
//! is no early data, so that no connection comes to be without those rules being applied.
//!
//! Time limits for a handshake, retries, and what is said on a connection are left to others.

mod provider;
mod verifiers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rootswarm_image::SwarmPublicKey;
use rootswarm_swarm::{Role, Wire};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::sign::SingleCertAndKey;

use self::provider::{FixedTime, provider};
use self::verifiers::{ClientVerifier, ServerRule, ServerVerifier, Verdict};
use crate::identity::Identity;
use crate::retries::RetryKey;
use crate::trust::{self, PeerIdentity, SeedTrust, SwarmTrust, TrustError};
use crate::tuning::Tuning;

/// Joining: no client certificate. The number is the protocol's version.
pub const ALPN_JOIN: &[u8] = b"rootswarm-join/4";

/// Joining, as agents and seeds before version 4 do.
pub const ALPN_JOIN_3: &[u8] = b"rootswarm-join/3";

/// Keeping a second seed in step: no client certificate. The number is the protocol's version.
pub const ALPN_MIRROR: &[u8] = b"rootswarm-mirror/2";

/// The version before it, for a first seed or a mirror of an earlier release.
pub const ALPN_MIRROR_1: &[u8] = b"rootswarm-mirror/1";

/// Handing on the manifest to a node that has just joined: mutual TLS. The number is the protocol's
/// version.
pub const ALPN_MANIFEST: &[u8] = b"rootswarm-manifest/1";

/// Everything else: mutual TLS. The number is the protocol's version.
pub const ALPN_DATA: &[u8] = b"rootswarm/4";

/// The same as nodes and seeds before version 4 speak it.
pub const ALPN_DATA_3: &[u8] = b"rootswarm/3";

/// The application code with which a [`Listener`] closes a connection that it does not trust.
pub const CLOSE_UNTRUSTED: VarInt = VarInt::from_u32(0x7472);

/// What a seed listens for: of what a client offers it takes what comes first here.
const SEED_SPEAKS: &[&[u8]] = &[
    ALPN_DATA,
    ALPN_DATA_3,
    ALPN_JOIN,
    ALPN_JOIN_3,
    ALPN_MIRROR,
    ALPN_MIRROR_1,
];

/// What a node listens for.
const NODE_SPEAKS: &[&[u8]] = &[ALPN_DATA, ALPN_DATA_3, ALPN_MANIFEST];

/// What TLS wants to be told as the server's name. It is not sent (there is no SNI), and the
/// verifier looks at the role instead.
const SERVER_NAME: &str = "rootswarm.invalid";

/// Strangers that have sent a first packet and are not yet accepted. An accept loop that hands each
/// one to a task of its own has next to none waiting; a thousand nodes that are switched on at once
/// fit four times. At 1.5 kB each: 6 MB at the most.
const INCOMING_MAX: usize = 4096;

/// What such a stranger may send on top: without early data there is nothing to say yet but the
/// rest of a handshake message (a client's is under 2 kB).
const INCOMING_BYTES: u64 = 16 << 10;

/// All of them together.
const INCOMING_TOTAL_BYTES: u64 = 4 << 20;

/// TLS's alert `no_application_protocol`, as QUIC carries it.
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

/// QUIC's range for TLS alerts.
const TLS_ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

/// rustls or quinn would not take a configuration: a bug, or a build without a cipher suite.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct TlsError(pub(crate) String);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// This side refused the peer.
    #[error("refused {address}: {source}")]
    Untrusted {
        /// Whom.
        address: SocketAddr,
        /// Why.
        source: TrustError,
    },
    /// The peer refused this side: its TLS alert, or what it said when it closed.
    #[error("{address} refused this node: {reason}")]
    RefusedByPeer {
        /// Who.
        address: SocketAddr,
        /// In the peer's words.
        reason: String,
    },
    /// The peer speaks another version.
    #[error(
        "{address} does not speak {offered}: this agent and that server are of different versions"
    )]
    NoCommonProtocol {
        /// Who.
        address: SocketAddr,
        /// What this side offered.
        offered: String,
    },
    /// Nobody answered, or the answer broke off.
    #[error("cannot reach {address}: {source}")]
    Unreachable {
        /// Who.
        address: SocketAddr,
        /// quinn's word for it.
        source: quinn::ConnectionError,
    },
    /// The dial was not even tried.
    #[error("cannot dial {address}: {source}")]
    Dial {
        /// Who.
        address: SocketAddr,
        /// quinn's word for it.
        source: quinn::ConnectError,
    },
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ConnectError {
    /// Whether this is a verdict (ask another, or give up) rather than a matter of the network
    /// (try again).
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            ConnectError::Unreachable { .. } | ConnectError::Dial { .. }
        )
    }
}

/// Why an incoming connection came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The peer is not trusted; the connection was closed with [`CLOSE_UNTRUSTED`].
    #[error("refused {address}: {source}")]
    Untrusted {
        /// Whom.
        address: SocketAddr,
        /// Why.
        source: TrustError,
    },
    /// The handshake failed: a certificate that does not verify, no common protocol, silence.
    #[error("no handshake with {address}: {source}")]
    Handshake {
        /// Whom.
        address: SocketAddr,
        /// quinn's word for it.
        source: quinn::ConnectionError,
    },
}

/// What an accepted connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A newcomer: it has shown nothing yet.
    Join,
    /// Somebody who says he is a mirror, and has shown nothing yet either.
    Mirror,
    /// A member that has just joined and wants the manifest.
    Manifest,
    /// A member of the swarm.
    Data(PeerIdentity),
}

/// Connects to others, on one of these protocols.
#[derive(Clone, Debug)]
pub struct Dialer {
    presents: Presents,
    transport: Arc<quinn::TransportConfig>,
}

/// ALPN names, of which the one that listens takes the one that it likes best.
type Protocols = &'static [&'static [u8]];

#[derive(Clone, Debug)]
enum Presents {
    /// Nothing: a newcomer or a mirror, how it trusts a seed, and its protocols, the newest first.
    Nothing(SwarmTrust, Protocols),
    /// The certificate of a member, on its protocols.
    Certificate(Identity, Protocols),
}

impl Dialer {
    /// For `rootswarm-join/4` or 3: only seeds are accepted, as `trust` says.
    #[must_use]
    pub fn join(trust: SwarmTrust, tuning: &Tuning) -> Dialer {
        Dialer {
            presents: Presents::Nothing(trust, &[ALPN_JOIN, ALPN_JOIN_3]),
            transport: tuning.join_transport_config(),
        }
    }

    /// For `rootswarm-mirror/2`, or `/1` where the seed has no other: only seeds that hold this swarm key are accepted.
    #[must_use]
    pub fn mirror(swarm: SwarmPublicKey, tuning: &Tuning) -> Dialer {
        Dialer::mirror_with(swarm, &[ALPN_MIRROR, ALPN_MIRROR_1], tuning)
    }

    /// As a mirror of an earlier release does it.
    pub(crate) fn mirror_1(swarm: SwarmPublicKey, tuning: &Tuning) -> Dialer {
        Dialer::mirror_with(swarm, &[ALPN_MIRROR_1], tuning)
    }

    fn mirror_with(swarm: SwarmPublicKey, protocols: Protocols, tuning: &Tuning) -> Dialer {
        let trust = SwarmTrust::new(SeedTrust::Key(swarm));
        Dialer {
            presents: Presents::Nothing(trust, protocols),
            transport: tuning.transport_config(),
        }
    }

    /// For `rootswarm/4` or 3: presents the certificate of `identity`.
    #[must_use]
    pub fn data(identity: Identity, tuning: &Tuning) -> Dialer {
        Dialer {
            presents: Presents::Certificate(identity, &[ALPN_DATA, ALPN_DATA_3]),
            transport: tuning.transport_config(),
        }
    }

    /// For `rootswarm-manifest/1`: presents the certificate of `identity`.
    #[must_use]
    pub fn manifest(identity: Identity, tuning: &Tuning) -> Dialer {
        Dialer {
            presents: Presents::Certificate(identity, &[ALPN_MANIFEST]),
            transport: tuning.transport_config(),
        }
    }

    /// The same with other QUIC settings than the tuning's, as a peer of another make has.
    #[must_use]
    pub fn with_transport(mut self, transport: Arc<quinn::TransportConfig>) -> Dialer {
        self.transport = transport;
        self
    }

    /// Connects to `address`, which must turn out to be a seed or a node as `expected` says, and
    /// says who it is.
    ///
    /// A joining dialer expects a seed whatever is said here. With TLS 1.3 a client is done before
    /// the server has looked at its certificate: a peer that refuses it closes the connection
    /// right after; [`refusal`] reads why.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        address: SocketAddr,
        expected: Role,
    ) -> Result<(Connection, PeerIdentity), ConnectError> {
        let verdict = Verdict::default();
        let config = self.client_config(expected, verdict.clone())?;
        let connecting = endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|source| ConnectError::Dial { address, source })?;
        let connection = match connecting.await {
            Ok(connection) => connection,
            Err(source) => return Err(self.explain(address, source, &verdict)),
        };
        match certificate_of(&connection).and_then(|found| trust::read_verified(&found)) {
            Ok(peer) => Ok((connection, peer)),
            // rustls does not complete a handshake without the server's certificate, so this is
            // its bug or ours; it is refused like any other.
            Err(source) => {
                connection.close(CLOSE_UNTRUSTED, source.to_string().as_bytes());
                Err(ConnectError::Untrusted { address, source })
            }
        }
    }

    /// The protocols it offers, the newest first.
    fn protocols(&self) -> Protocols {
        match self.presents {
            Presents::Nothing(_, protocols) | Presents::Certificate(_, protocols) => protocols,
        }
    }

    fn client_config(
        &self,
        expected: Role,
        verdict: Verdict,
    ) -> Result<quinn::ClientConfig, TlsError> {
        let (rule, certified) = match &self.presents {
            Presents::Nothing(trust, _) => (ServerRule::Seed(trust.clone()), None),
            Presents::Certificate(identity, _) => (
                ServerRule::Member(identity.clone(), expected),
                Some(identity.certified.clone()),
            ),
        };
        let builder = rustls::ClientConfig::builder_with_details(provider(), Arc::new(FixedTime))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier { rule, verdict }));
        let mut config = match certified {
            None => builder.with_no_client_auth(),
            Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        };
        config.alpn_protocols = self.protocols().iter().map(|it| it.to_vec()).collect();
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        let config =
            QuicClientConfig::try_from(config).map_err(|error| TlsError(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(config));
        config.transport_config(self.transport.clone());
        Ok(config)
    }

    /// What it dials with, for endpoints without sockets.
    #[cfg(test)]
    pub(crate) fn bare_config(&self, expected: Role) -> Result<quinn::ClientConfig, TlsError> {
        self.client_config(expected, Verdict::default())
    }

    fn explain(
        &self,
        address: SocketAddr,
        source: quinn::ConnectionError,
        verdict: &Verdict,
    ) -> ConnectError {
        if let Some(source) = verdict.take() {
            return ConnectError::Untrusted { address, source };
        }
        match refusal(&source) {
            Some(Refusal::NoCommonProtocol) => ConnectError::NoCommonProtocol {
                address,
                offered: String::from_utf8_lossy(&self.protocols().join(&b" or "[..])).into_owned(),
            },
            Some(Refusal::Said(reason)) => ConnectError::RefusedByPeer { address, reason },
            None => ConnectError::Unreachable { address, source },
        }
    }
}

/// How a peer refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks none of the protocols offered.
    NoCommonProtocol,
    /// It does not trust this side; in its words.
    Said(String),
}

/// Reads from the end of a connection whether the peer's TLS or its [`Listener`] refused this
/// side. `None` is any other end.
#[must_use]
pub fn refusal(error: &quinn::ConnectionError) -> Option<Refusal> {
    let (code, reason) = match error {
        quinn::ConnectionError::ConnectionClosed(close) => (
            u64::from(close.error_code),
            String::from_utf8_lossy(&close.reason),
        ),
        // quinn reports an alert that its own side raised in the same way.
        quinn::ConnectionError::TransportError(error) => {
            (u64::from(error.code), error.reason.as_str().into())
        }
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_UNTRUSTED => {
            return Some(Refusal::Said(
                String::from_utf8_lossy(&close.reason).into_owned(),
            ));
        }
        _ => return None,
    };
    if code == NO_APPLICATION_PROTOCOL {
        return Some(Refusal::NoCommonProtocol);
    }
    if !TLS_ALERTS.contains(&code) {
        return None;
    }
    // How rustls introduces what a verifier said.
    let reason = reason.strip_prefix("other error: ").unwrap_or(&reason);
    Some(Refusal::Said(if reason.is_empty() {
        format!("TLS alert {}", code - TLS_ALERTS.start())
    } else {
        reason.to_owned()
    }))
}

/// Accepts connections for a seed or a node.
#[derive(Debug)]
pub struct Listener {
    /// Handshakes under way; above the threshold, strangers must prove their address first.
    handshakes: AtomicUsize,
    validate_above: usize,
}

impl Listener {
    /// The server half of an endpoint for this identity: a seed takes newcomers, mirrors and members, a
    /// node only members. One that takes another's place at an endpoint has the same `retries`.
    pub fn server_config(
        identity: &Identity,
        tuning: &Tuning,
        retries: &RetryKey,
    ) -> Result<quinn::ServerConfig, TlsError> {
        let verifier = ClientVerifier {
            identity: identity.clone(),
            // On a seed TLS cannot tell yet whether the client comes to join; `accept` can.
            mandatory: identity.role() == Role::Peer,
        };
        let mut config =
            rustls::ServerConfig::builder_with_details(provider(), Arc::new(FixedTime))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(|error| TlsError(error.to_string()))?
                .with_client_cert_verifier(Arc::new(verifier))
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
        let protocols = match identity.role() {
            Role::Seed => SEED_SPEAKS,
            Role::Peer => NODE_SPEAKS,
        };
        config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.max_early_data_size = 0;
        let config =
            QuicServerConfig::try_from(config).map_err(|error| TlsError(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(config));
        config
            .transport_config(match identity.role() {
                Role::Seed => tuning.seed_transport_config(),
                Role::Peer => tuning.transport_config(),
            })
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_TOTAL_BYTES);
        retries.apply(&mut config);
        Ok(config)
    }

    /// A listener that asks for address validation (QUIC's Retry, one more round trip) once more
    /// than `validate_above` handshakes are under way: a forged source address then costs neither
    /// a handshake nor more bytes than it sent.
    #[must_use]
    pub fn new(validate_above: usize) -> Listener {
        Listener {
            handshakes: AtomicUsize::new(0),
            validate_above,
        }
    }

    /// Completes the handshake of `incoming`. `None` means that it was told to prove its address
    /// and will come again.
    ///
    /// What is returned is trusted as far as [`Purpose`] says. Take it in a task of its own: a
    /// silent client is given up only after the idle timeout.
    pub async fn accept(
        &self,
        incoming: Incoming,
    ) -> Result<Option<(Connection, Purpose)>, AcceptError> {
        self.accept_with(incoming, None).await
    }

    /// The same, with another configuration than the endpoint's.
    pub async fn accept_with(
        &self,
        incoming: Incoming,
        config: Option<Arc<quinn::ServerConfig>>,
    ) -> Result<Option<(Connection, Purpose)>, AcceptError> {
        let address = incoming.remote_address();
        let under_way = Count::of(&self.handshakes);
        if under_way.number > self.validate_above && incoming.may_retry() {
            // It fails only for a client that has been validated already.
            let _ = incoming.retry();
            return Ok(None);
        }
        let failed = |source| AcceptError::Handshake { address, source };
        let connecting = match config {
            None => incoming.accept(),
            Some(config) => incoming.accept_with(config),
        };
        let connection = connecting.map_err(failed)?.await.map_err(failed)?;
        match purpose(&connection) {
            Ok(purpose) => Ok(Some((connection, purpose))),
            Err(source) => {
                connection.close(CLOSE_UNTRUSTED, source.to_string().as_bytes());
                Err(AcceptError::Untrusted { address, source })
            }
        }
    }
}

/// One of the handshakes under way.
struct Count<'a> {
    counter: &'a AtomicUsize,
    /// How many there are, this one included.
    number: usize,
}

impl<'a> Count<'a> {
    fn of(counter: &'a AtomicUsize) -> Count<'a> {
        Count {
            counter,
            number: counter.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a connection whose handshake is complete is for. A data connection without a certificate
/// is an error; its caller closes it.
pub fn purpose(connection: &Connection) -> Result<Purpose, TrustError> {
    match protocol(connection).as_slice() {
        ALPN_JOIN | ALPN_JOIN_3 => Ok(Purpose::Join),
        ALPN_MIRROR | ALPN_MIRROR_1 => Ok(Purpose::Mirror),
        ALPN_MANIFEST => peer_identity(connection).map(|_| Purpose::Manifest),
        ALPN_DATA | ALPN_DATA_3 => peer_identity(connection).map(Purpose::Data),
        other => Err(TrustError::UnexpectedProtocol {
            found: String::from_utf8_lossy(other).into_owned(),
        }),
    }
}

/// Which version of WIRE.md a member's connection speaks, whether it joined on it or came as a member.
pub(crate) fn wire(connection: &Connection) -> Wire {
    match protocol(connection).as_slice() {
        ALPN_DATA | ALPN_JOIN => Wire::V4,
        _ => Wire::V3,
    }
}

/// The ALPN name that the two ends agreed on.
pub(crate) fn protocol(connection: &Connection) -> Vec<u8> {
    connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .unwrap_or_default()
}

/// Who is at the other end: from the certificate that TLS verified.
pub fn peer_identity(connection: &Connection) -> Result<PeerIdentity, TrustError> {
    trust::read_verified(&certificate_of(connection)?)
}

fn certificate_of(connection: &Connection) -> Result<CertificateDer<'static>, TrustError> {
    connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok())
        .and_then(|chain| chain.into_iter().next())
        .ok_or(TrustError::NoCertificate)
}

#[cfg(test)]
mod tests;
