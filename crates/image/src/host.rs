//! Hosts and ports as they are written in a rooturl.
//!
//! Resolving a name to addresses is left to whoever connects.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::limits::{MAX_HOST_LABEL_BYTES, MAX_HOST_NAME_BYTES};

/// A host: an address or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// `10.0.0.1`
    V4(Ipv4Addr),
    /// `[2001:db8::1]`: in brackets, as the address has colons of its own.
    V6(Ipv6Addr),
    /// `pxe.example.org`
    Name(HostName),
}

/// The name of a host, in lower case: labels of letters, digits, `-` and `_`, joined by dots. The
/// last label is not a number, so a mistyped IPv4 address is never taken for a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

/// A host with the port to find it at, where one was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// The port; what `None` means is the scheme's business.
    pub port: Option<u16>,
}

/// A text that is no `HOST` or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// Nothing where a host should be.
    #[error("host is missing: expected an address or a name")]
    Missing,
    /// What looks like an IPv4 address and is none.
    #[error("host {found:?} is no IPv4 address: expected four numbers from 0 to 255")]
    V4 {
        /// The text.
        found: String,
    },
    /// What stands in brackets is no IPv6 address.
    #[error(
        "host [{found}] is no IPv6 address: expected one like [2001:db8::1], without an interface"
    )]
    V6 {
        /// The text between the brackets.
        found: String,
    },
    /// An IPv6 address, or a second port, without brackets.
    #[error("host {found:?} has several colons: expected an IPv6 address in brackets, [{found}]")]
    Unbracketed {
        /// The text.
        found: String,
    },
    /// A bracket without its counterpart, or something between it and the port.
    #[error("host {found:?}: expected [IPV6] or [IPV6]:PORT")]
    Bracket {
        /// The text.
        found: String,
    },
    /// No host has this name.
    #[error(
        "host {found:?} is no host name: expected letters, digits, - and _ in labels of 1 to \
         {MAX_HOST_LABEL_BYTES}, at most {MAX_HOST_NAME_BYTES} characters in all"
    )]
    Name {
        /// The text.
        found: String,
    },
    /// No port.
    #[error("port {found:?} of host {host}: expected a number from 1 to 65535")]
    Port {
        /// The host before it.
        host: String,
        /// The text after the colon.
        found: String,
    },
}

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HostPort {
    /// The port, or the default of the scheme.
    pub fn port_or(&self, default: u16) -> u16 {
        self.port.unwrap_or(default)
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<HostPort, HostPortError> {
        let (host, port) = split_port(text)?;
        Ok(HostPort {
            port: port.map(|port| parse_port(&host, port)).transpose()?,
            host,
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::V4(address) => address.fmt(f),
            Host::V6(address) => write!(f, "[{address}]"),
            Host::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

fn split_port(text: &str) -> Result<(Host, Option<&str>), HostPortError> {
    if let Some(inner) = text.strip_prefix('[') {
        let bracket = || HostPortError::Bracket {
            found: text.to_owned(),
        };
        let (address, rest) = inner.split_once(']').ok_or_else(bracket)?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or_else(bracket)?),
        };
        let address = address.parse().map_err(|_| HostPortError::V6 {
            found: address.to_owned(),
        })?;
        return Ok((Host::V6(address), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => {
            return Err(HostPortError::Unbracketed {
                found: text.to_owned(),
            });
        }
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    Ok((parse_host(host)?, port))
}

fn parse_host(text: &str) -> Result<Host, HostPortError> {
    if text.is_empty() {
        return Err(HostPortError::Missing);
    }
    // The rule of browsers: a last label of digits means an IPv4 address.
    let last = text.rsplit('.').next().unwrap_or(text);
    if !last.is_empty() && last.bytes().all(|c| c.is_ascii_digit()) {
        let address = text.parse().map_err(|_| HostPortError::V4 {
            found: text.to_owned(),
        })?;
        return Ok(Host::V4(address));
    }
    let label_is_good = |label: &str| {
        (1..=MAX_HOST_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
    };
    if text.len() > MAX_HOST_NAME_BYTES || !text.split('.').all(label_is_good) {
        return Err(HostPortError::Name {
            found: text.to_owned(),
        });
    }
    Ok(Host::Name(HostName(text.to_ascii_lowercase())))
}

fn parse_port(host: &Host, text: &str) -> Result<u16, HostPortError> {
    // `u16::from_str` alone would take "+80".
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(HostPortError::Port {
            host: host.to_string(),
            found: text.to_owned(),
        }),
    }
}
