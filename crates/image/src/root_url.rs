//! `rooturl=`: where the root filesystem comes from, and which image it must be.
//!
//! ```text
//! swarm://HOST[:PORT][,HOST2[:PORT2]…]/NAME[@blake3:HEX]
//! http://HOST[:PORT]/PATH[@blake3:HEX]
//! ```
//!
//! The pin is what `b3sum` prints of the image. Nothing that looks like a pin is ever read as
//! something else: an operator who wrote one means it.
//!
//! Whether a rooturl without a pin may be booted is for the agent to decide.

use std::fmt;
use std::str::FromStr;

use crate::host::{HostPort, HostPortError};
use crate::limits::{MAX_HOSTS, MAX_ROOT_URL_BYTES};
use crate::{ImageId, ImageIdError, ImageName, ImageNameError};

/// The UDP port of the swarm where a rooturl names none.
pub const SWARM_PORT: u16 = 7400;

/// The UDP port on which a node serves others and from which it dials, unless told otherwise. A firewall
/// can let it through by its number.
pub const NODE_PORT: u16 = 7401;

/// The TCP port at which a seed answers HTTP unless told otherwise.
///
/// Not what `http://HOST/…` without a port means: that is [`WEB_PORT`], as it always was.
pub const HTTP_PORT: u16 = 7480;

/// The TCP port of an `http://` URL that names none.
pub const WEB_PORT: u16 = 80;

/// The value of `rooturl=`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RootUrl {
    /// From a swarm, joined at one of its seeds.
    Swarm {
        /// The seeds, at least one, in the order to try them in.
        hosts: Vec<HostPort>,
        /// The name of the image.
        name: ImageName,
        /// The image it must be.
        pin: Option<ImageId>,
    },
    /// From a web server.
    Http {
        /// Where.
        url: HttpUrl,
        /// The image it must be.
        pin: Option<ImageId>,
    },
}

/// The address of a file on a web server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    server: HostPort,
    path: String,
}

/// A text that is no rooturl.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootUrlError {
    /// Too long for a kernel command line.
    #[error("rooturl has {found} bytes: expected at most {MAX_ROOT_URL_BYTES}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// A blank, a control character, or one that is not ASCII.
    #[error("rooturl has the character {found:?}: expected visible ASCII (write it as %XX)")]
    Character {
        /// The first such character.
        found: char,
    },
    /// Neither `swarm://` nor `http://`.
    #[error(
        "rooturl {found:?} has no scheme that is known: expected swarm://HOST/NAME or \
         http://HOST/PATH"
    )]
    Scheme {
        /// The text.
        found: String,
    },
    /// `https://`
    #[error(
        "rooturl {found:?} is https: expected http:// with the image pinned as @blake3:HEX, which \
         proves more than the server's certificate would"
    )]
    Https {
        /// The text.
        found: String,
    },
    /// What stands where a host should.
    #[error("rooturl: {0}")]
    Host(#[from] HostPortError),
    /// More seeds than are ever tried.
    #[error("rooturl names {found} hosts: expected at most {MAX_HOSTS}")]
    TooManyHosts {
        /// How many there are.
        found: usize,
    },
    /// A user in front of the host. He is not repeated here: a password may go with him.
    #[error("rooturl has a user in front of host {host:?}: expected no user and no password")]
    User {
        /// What follows the user.
        host: String,
    },
    /// `swarm://HOST` and no more.
    #[error("rooturl {found:?} names no image: expected swarm://HOST/NAME")]
    NoName {
        /// The text.
        found: String,
    },
    /// What stands where the name of an image should.
    #[error("rooturl: {0}")]
    Name(#[from] ImageNameError),
    /// A fragment.
    #[error("rooturl has the fragment {found:?}: expected none")]
    Fragment {
        /// The fragment, with its `#`.
        found: String,
    },
    /// An `@` that does not begin a pin.
    #[error(
        "rooturl has {found:?} where its pin should be: expected @blake3:HEX (write a plain @ as %40)"
    )]
    PinKind {
        /// What was found there.
        found: String,
    },
    /// A pin whose hash is none.
    #[error("rooturl: pin: {0}")]
    Pin(#[from] ImageIdError),
}

impl RootUrl {
    /// The image it must be, where one is pinned.
    pub fn pin(&self) -> Option<&ImageId> {
        match self {
            RootUrl::Swarm { pin, .. } | RootUrl::Http { pin, .. } => pin.as_ref(),
        }
    }
}

impl HttpUrl {
    /// The server, with the port if one was given.
    pub fn server(&self) -> &HostPort {
        &self.server
    }

    /// The port to connect to: 80 unless one was given.
    pub fn port(&self) -> u16 {
        self.server.port_or(WEB_PORT)
    }

    /// Path and query as a request line has them: begins with `/`, and is sent as it was written.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for RootUrl {
    type Err = RootUrlError;

    fn from_str(text: &str) -> Result<RootUrl, RootUrlError> {
        if text.len() > MAX_ROOT_URL_BYTES {
            return Err(RootUrlError::TooLong { found: text.len() });
        }
        if let Some(found) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(RootUrlError::Character { found });
        }
        let found = || text.to_owned();
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| RootUrlError::Scheme { found: found() })?;
        let url = match scheme.to_ascii_lowercase().as_str() {
            "swarm" => {
                let (hosts, image) = rest
                    .split_once('/')
                    .ok_or_else(|| RootUrlError::NoName { found: found() })?;
                parse_swarm(hosts, image)?
            }
            "http" => parse_http(rest)?,
            "https" => return Err(RootUrlError::Https { found: found() }),
            _ => return Err(RootUrlError::Scheme { found: found() }),
        };
        // `http://h?q` is written `http://h/?q`: what is accepted here is accepted again.
        let written_bytes = url.to_string().len();
        if written_bytes > MAX_ROOT_URL_BYTES {
            return Err(RootUrlError::TooLong {
                found: written_bytes,
            });
        }
        Ok(url)
    }
}

impl fmt::Display for RootUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootUrl::Swarm { hosts, name, .. } => {
                f.write_str("swarm://")?;
                for (position, host) in hosts.iter().enumerate() {
                    let separator = if position == 0 { "" } else { "," };
                    write!(f, "{separator}{host}")?;
                }
                write!(f, "/{name}")?;
            }
            RootUrl::Http { url, .. } => url.fmt(f)?,
        }
        match self.pin() {
            Some(pin) => write!(f, "@blake3:{pin}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.server, self.path)
    }
}

fn parse_swarm(hosts: &str, image: &str) -> Result<RootUrl, RootUrlError> {
    refuse_user(hosts)?;
    let count = hosts.split(',').count();
    if count > MAX_HOSTS {
        return Err(RootUrlError::TooManyHosts { found: count });
    }
    let hosts = hosts.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let (name, pin) = split_pin(image)?;
    Ok(RootUrl::Swarm {
        hosts,
        name: name.parse()?,
        pin,
    })
}

fn parse_http(rest: &str) -> Result<RootUrl, RootUrlError> {
    if let Some(position) = rest.find('#') {
        return Err(RootUrlError::Fragment {
            found: rest[position..].to_owned(),
        });
    }
    // A path may be missing where a pin follows the host.
    let server_end = rest.find(['/', '?']).or_else(|| rest.find("@blake3:"));
    let (server, path) = rest.split_at(server_end.unwrap_or(rest.len()));
    refuse_user(server)?;
    let (path, pin) = split_pin(path)?;
    // A request line always has a path, if only the root.
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Ok(RootUrl::Http {
        url: HttpUrl {
            server: server.parse()?,
            path,
        },
        pin,
    })
}

/// Splits the pin off what stands before it.
fn split_pin(text: &str) -> Result<(&str, Option<ImageId>), RootUrlError> {
    let Some((before, pin)) = text.split_once('@') else {
        return Ok((text, None));
    };
    let digits = pin
        .strip_prefix("blake3:")
        .ok_or_else(|| RootUrlError::PinKind {
            found: format!("@{pin}"),
        })?;
    Ok((before, Some(digits.parse()?)))
}

fn refuse_user(hosts: &str) -> Result<(), RootUrlError> {
    match hosts.rsplit_once('@') {
        Some((_, host)) => Err(RootUrlError::User {
            host: host.to_owned(),
        }),
        None => Ok(()),
    }
}
