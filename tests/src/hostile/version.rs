//! Clients of other versions: protocol names that nobody speaks, or no longer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::ConnectionError;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{AlertDescription, RootCertStore};
use tokio::time::timeout;

use super::member::{OutlawError, endpoint};

/// Versions before and after this one, other protocols, and none.
const NAMES: &[&[u8]] = &[
    b"rootswarm/1",
    b"rootswarm/99",
    b"rootswarm-join/0",
    b"h3",
    b"rootswarm",
];

/// Tries to connect with each protocol name of another version, and with none, and returns how it
/// was refused each time.
///
/// # Errors
/// When one of them is let in or refused for another reason, or when nobody answers.
pub async fn old_versions(from: IpAddr, to: SocketAddr) -> Result<Vec<String>, OutlawError> {
    let other = |error: &dyn std::fmt::Display| OutlawError::Other(error.to_string());
    let endpoint = endpoint(from)?;
    let mut refusals = Vec::new();
    let none: [&[&[u8]]; 1] = [&[]];
    for names in NAMES.chunks(1).chain(none) {
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| other(&error))?
        // No authority is known: whoever gets as far as a certificate ends otherwise than expected.
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
        config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
        let config = QuicClientConfig::try_from(config).map_err(|error| other(&error))?;
        let config = quinn::ClientConfig::new(Arc::new(config));
        let connecting = endpoint
            .connect_with(config, to, "rootswarm.invalid")
            .map_err(|error| other(&error))?;
        match timeout(Duration::from_secs(5), connecting).await {
            Ok(Ok(_)) => {
                let said = names
                    .first()
                    .map_or("none", |name| std::str::from_utf8(name).unwrap_or("?"));
                return Err(OutlawError::Other(format!("let in with protocol {said}")));
            }
            Ok(Err(error)) if is_unknown_protocol(&error) => refusals.push(error.to_string()),
            Ok(Err(error)) => return Err(other(&error)),
            Err(_) => return Err(OutlawError::Other("no answer".to_owned())),
        }
    }
    Ok(refusals)
}

/// The server's alert: none of the names is spoken here (RFC 7301, 3.2).
fn is_unknown_protocol(error: &ConnectionError) -> bool {
    let alert = u8::from(AlertDescription::NoApplicationProtocol);
    matches!(error, ConnectionError::ConnectionClosed(close)
        if close.error_code == quinn::TransportErrorCode::crypto(alert))
}
