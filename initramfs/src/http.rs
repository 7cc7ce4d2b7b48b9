//! A small HTTP/1.1 client: GET with ranges, a few redirects, and a timeout on each thing that
//! can hang. One connection a request.
//!
//! What a body means, and whether it is believed, is the callers' business.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use rootswarm_image::{Host, HostPort, HttpUrl};
use rootswarm_transport::http_proof;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::http_error::HttpError;
use crate::http_response::{Connection, Response, text_of};
use crate::plan::FetchPlan;
use crate::resolve::Resolver;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The server.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub path: String,
}

impl Target {
    /// What a rooturl names.
    pub fn of(url: &HttpUrl) -> Target {
        let host = url.server().host.clone();
        Target {
            host,
            port: url.port(),
            path: url.path().to_owned(),
        }
    }

    /// Another path at the same server.
    pub fn sibling(&self, path: String) -> Target {
        Target {
            host: self.host.clone(),
            port: self.port,
            path,
        }
    }

    /// `HOST`, or `HOST:PORT` where the port is not HTTP's own.
    fn authority(&self) -> String {
        match self.port {
            rootswarm_image::WEB_PORT => self.host.to_string(),
            port => format!("{}:{port}", self.host),
        }
    }

    /// Where a redirect leads. Only plain http: nothing else is spoken here.
    fn redirected(&self, location: &str) -> Option<Target> {
        let location = location.split('#').next().unwrap_or_default();
        let Some(rest) = location.strip_prefix("http://") else {
            let relative = location.starts_with('/') && !location.starts_with("//");
            return relative.then(|| self.sibling(location.to_owned()));
        };
        let (server, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let server: HostPort = server.parse().ok()?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Target {
            port: server.port_or(rootswarm_image::WEB_PORT),
            host: server.host,
            path: format!("{slash}{path}"),
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

/// What a small document's bytes come at, at least, after the headers' time.
const DOCUMENT_BYTES_PER_S: u64 = 32 * 1024;

/// How long each step may take. A body may take for ever as long as enough of it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// From the request to the end of the headers.
    pub header: Duration,
    /// Between two pieces of a body, and for [`LEAST_BYTES`](crate::http_response::LEAST_BYTES) of it.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            // A server may have to spin up a disk.
            header: Duration::from_secs(15),
            idle: Duration::from_secs(15),
        }
    }
}

/// Makes requests.
#[derive(Debug, Clone, Default)]
pub struct HttpClient {
    /// How names become addresses.
    pub resolver: Resolver,
    /// The local address to use.
    pub bind: Option<IpAddr>,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// An admission token, shown to the server that is asked and to none that it redirects to.
    pub token: Option<String>,
    /// Who shows the token, if this machine has a node's key.
    pub session: Option<String>,
    /// What shows that the swarm has let this node in.
    pub member: Option<String>,
}

/// A file that stays the same is often behind one redirect; more than a few are a loop.
const MAX_REDIRECTS: u32 = 5;

/// Names this run's downloads to a seed where there is no node's key, in `rooturl=http://…`: a one-time token is
/// bound to it. 128 random bits, known to nobody else. Empty without randomness; the seed then goes by the
/// address.
static SESSION: LazyLock<String> = LazyLock::new(|| {
    let mut random = [0; 16];
    match getrandom::fill(&mut random) {
        Ok(()) => random.iter().map(|byte| format!("{byte:02x}")).collect(),
        Err(_) => String::new(),
    }
});

impl HttpClient {
    /// Makes the requests of a boot or a fetch.
    pub fn of_plan(plan: &FetchPlan) -> HttpClient {
        HttpClient {
            bind: plan.bind,
            token: plan.token.clone(),
            ..HttpClient::default()
        }
    }

    /// Asks for `target`, or for the bytes `range` of it. `if_range` is what an earlier answer
    /// called the file ([`Response::validator`]): when it has changed, the whole file comes.
    ///
    /// Answers other than 200 and 206 are errors.
    pub async fn get(
        &self,
        target: &Target,
        range: Option<Range<u64>>,
        if_range: Option<&str>,
    ) -> Result<Response, HttpError> {
        let asked = (target.host.clone(), target.port);
        let mut target = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (response, connection) = {
                let is_asked = (&target.host, target.port) == (&asked.0, asked.1);
                let shown = is_asked.then_some(self);
                self.get_once(&target, range.as_ref(), if_range, shown)
                    .await?
            };
            let url = target.to_string();
            let status = response.status();
            if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let location = text_of(response.headers(), header::LOCATION).unwrap_or_default();
                target = target
                    .redirected(location)
                    .ok_or_else(|| HttpError::Redirect {
                        url,
                        location: location.to_owned(),
                        reason: "only http:// and absolute paths are followed",
                    })?;
                continue;
            }
            if !matches!(status.as_u16(), 200 | 206) {
                // Its other form is a date, which a machine whose clock may be wrong cannot use.
                let retry_after = text_of(response.headers(), header::RETRY_AFTER)
                    .and_then(|text| text.trim().parse().ok())
                    .map(Duration::from_secs);
                return Err(HttpError::Status {
                    url,
                    status,
                    retry_after,
                });
            }
            return Response::new(url, response, connection, range, self.timeouts.idle);
        }
        Err(HttpError::Redirect {
            url: target.to_string(),
            location: "…".to_owned(),
            reason: "too many redirects",
        })
    }

    /// A small document as a whole, at most `limit` bytes.
    pub async fn get_small(&self, target: &Target, limit: u64) -> Result<Vec<u8>, HttpError> {
        let header = self.timeouts.header;
        let deadline = header + Duration::from_secs(limit / DOCUMENT_BYTES_PER_S);
        timeout(deadline, self.get_whole(target, limit))
            .await
            .unwrap_or_else(|_| {
                Err(HttpError::Timeout {
                    url: target.to_string(),
                    what: "end",
                    limit: deadline,
                })
            })
    }

    async fn get_whole(&self, target: &Target, limit: u64) -> Result<Vec<u8>, HttpError> {
        let mut response = self.get(target, None, None).await?;
        let mut document = Vec::new();
        while let Some(piece) = response.next().await? {
            if document.len() as u64 + piece.len() as u64 > limit {
                return Err(HttpError::TooLong {
                    url: response.url().to_owned(),
                    limit,
                });
            }
            document.extend_from_slice(&piece);
        }
        Ok(document)
    }

    async fn get_once(
        &self,
        target: &Target,
        range: Option<&Range<u64>>,
        if_range: Option<&str>,
        shown: Option<&HttpClient>,
    ) -> Result<(hyper::Response<Incoming>, Connection), HttpError> {
        let url = target.to_string();
        let stream = self.connect(target).await?;
        let protocol = |source| HttpError::Protocol {
            url: url.clone(),
            source,
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_BUFFER_BYTES)
            .handshake(Stream(stream))
            .await
            .map_err(protocol)?;
        // It drives the socket while the body is read; its errors come out of the body.
        let connection = Connection(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let mut request = hyper::Request::get(target.path.as_str())
            .header(header::HOST, target.authority())
            .header(
                header::USER_AGENT,
                concat!("rootswarm-agent/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONNECTION, "close");
        // What cannot stand in a header is no token.
        let token = shown.and_then(|it| it.token.as_deref());
        let bearer = token.and_then(|it| HeaderValue::try_from(format!("Bearer {it}")).ok());
        if let Some(mut bearer) = bearer {
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
            let session = self.session.as_ref().unwrap_or(&SESSION);
            if !session.is_empty() {
                request = request.header(http_proof::SESSION, session.as_str());
            }
        }
        if let Some(member) = shown.and_then(|it| it.member.as_deref()) {
            request = request.header(http_proof::MEMBER, member);
        }
        if let Some(range) = range {
            // Open-ended when nobody knows how long the file is.
            let last = match range.end {
                u64::MAX => String::new(),
                end => end.saturating_sub(1).to_string(),
            };
            request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
            if let Some(validator) = if_range {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|_| HttpError::Redirect {
                url: url.clone(),
                location: target.path.clone(),
                reason: "not a path",
            })?;
        let limit = self.timeouts.header;
        let response = timeout(limit, sender.send_request(request))
            .await
            .map_err(|_| HttpError::Timeout {
                url: url.clone(),
                what: "answer",
                limit,
            })?
            .map_err(protocol)?;
        Ok((response, connection))
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, HttpError> {
        let limit = self.timeouts.connect;
        let mut last = None;
        for address in self.resolver.resolve(&target.host).await? {
            let address = SocketAddr::new(address, target.port);
            match timeout(limit, self.connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => {
                    let server = address.to_string();
                    last = Some(HttpError::Connect { server, source });
                }
                Err(_) => {
                    let url = target.to_string();
                    last = Some(HttpError::Timeout {
                        url,
                        what: "connection",
                        limit,
                    });
                }
            }
        }
        Err(last.unwrap_or_else(|| HttpError::Connect {
            server: target.host.to_string(),
            source: io::ErrorKind::NotFound.into(),
        }))
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(bind) = self.bind {
            socket.bind((bind, 0).into())?;
        }
        socket.connect(address).await
    }
}

/// What hyper reads ahead at most: enough for a fast link, little enough for a small node.
const MAX_BUFFER_BYTES: usize = 256 * 1024;

/// A TCP stream in hyper's terms.
struct Stream(TcpStream);

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffer = ReadBuf::new(cursor.initialize_unfilled());
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        let filled = buffer.filled().len();
        // SAFETY: the first `filled` bytes were initialised above and written by the read.
        unsafe { cursor.advance(filled) };
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        let from = Target {
            host: Host::V4([10, 0, 0, 1].into()),
            port: 8080,
            path: "/a".into(),
        };
        for (location, expected) in [
            ("/b?x", Some("http://10.0.0.1:8080/b?x")),
            ("http://10.0.0.2/b", Some("http://10.0.0.2/b")),
            ("http://seed:81", Some("http://seed:81/")),
            ("http://[::1]:81/c#part", Some("http://[::1]:81/c")),
            ("https://seed/b", None),
            ("//seed/b", None),
            ("b", None),
            ("", None),
            ("http://user@seed/b", None),
        ] {
            let found = from.redirected(location).map(|target| target.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        }
    }
}
