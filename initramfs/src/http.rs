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
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use rootswarm_image::{Host, HostPort, HttpUrl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::exit::{Classified, Exit};
use crate::plan::FetchPlan;
use crate::resolve::{ResolveError, Resolver};

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

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The host has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No connection.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Where to.
        server: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Something took too long.
    #[error("{url}: no {what} within {} s", limit.as_secs_f32())]
    Timeout {
        /// What was asked for.
        url: String,
        /// What did not come.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The server broke the protocol or the connection.
    #[error("{url}: {source}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong.
        source: hyper::Error,
    },
    /// An answer that is no file.
    #[error("{url}: the server answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: hyper::StatusCode,
        /// When it asks to come again (`Retry-After` in seconds).
        retry_after: Option<Duration>,
    },
    /// A redirect that cannot be followed.
    #[error("{url}: cannot follow the redirect to \"{location}\": {reason}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it points.
        location: String,
        /// Why not.
        reason: &'static str,
    },
    /// A body of the wrong length.
    #[error("{url}: the body ends after {found} of {expected} bytes")]
    CutOff {
        /// What was asked for.
        url: String,
        /// By its headers.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A body that goes on for too long.
    #[error("{url}: the body has more than {limit} bytes")]
    TooLong {
        /// What was asked for.
        url: String,
        /// The most that makes sense.
        limit: u64,
    },
    /// Another part than asked for.
    #[error("{url}: asked for the bytes from {asked}, the server sends {found}")]
    OtherRange {
        /// What was asked for.
        url: String,
        /// The first byte asked for.
        asked: u64,
        /// The Content-Range, or "the whole".
        found: String,
    },
}

impl Classified for HttpError {
    fn exit(&self) -> Exit {
        match self {
            HttpError::Status { status, .. } => match status.as_u16() {
                404 | 410 => Exit::NoSuchImage,
                401 | 403 => Exit::Refused,
                _ => Exit::Network,
            },
            HttpError::Resolve(ResolveError::BadName { .. }) => Exit::BadInput,
            _ => Exit::Network,
        }
    }
}

/// How long each step may take. A body may take for ever as long as something arrives.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// From the request to the end of the headers.
    pub header: Duration,
    /// Between two pieces of a body.
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
}

/// A file that stays the same is often behind one redirect; more than a few are a loop.
const MAX_REDIRECTS: u32 = 5;

/// Names this run's downloads to a seed, which binds a one-time token to it: 128 random bits, known to
/// nobody else. Empty without randomness; the seed then goes by the address.
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
                let token = self.token.as_deref();
                let token = token.filter(|_| (&target.host, target.port) == (&asked.0, asked.1));
                self.get_once(&target, range.as_ref(), if_range, token)
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
        let mut response = self.get(target, None, None).await?;
        let mut document = Vec::new();
        while let Some(piece) = response.next().await? {
            if document.len() as u64 + piece.len() as u64 > limit {
                return Err(HttpError::TooLong {
                    url: response.url.clone(),
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
        token: Option<&str>,
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
        let bearer = token.and_then(|it| HeaderValue::try_from(format!("Bearer {it}")).ok());
        if let Some(mut bearer) = bearer {
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
            if !SESSION.is_empty() {
                request = request.header("rootswarm-session", SESSION.as_str());
            }
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

/// The task that drives the socket; it ends with its owner.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A successful answer, its body still to be read.
#[derive(Debug)]
pub struct Response {
    url: String,
    /// Where the body begins in the file: 0 unless the server honoured a range.
    pub start: u64,
    /// How long the body is, when the server says so.
    pub length: Option<u64>,
    /// How long the whole file is, when the server says so.
    pub total: Option<u64>,
    /// The file's identity for a later `if_range`: a strong ETag or a date.
    pub validator: Option<String>,
    body: Incoming,
    received: u64,
    idle: Duration,
    _connection: Connection,
}

impl Response {
    fn new(
        url: String,
        response: hyper::Response<Incoming>,
        connection: Connection,
        asked: Option<Range<u64>>,
        idle: Duration,
    ) -> Result<Response, HttpError> {
        let headers = response.headers();
        let length = text_of(headers, header::CONTENT_LENGTH).and_then(|n| n.parse().ok());
        let strong_etag = text_of(headers, header::ETAG).filter(|tag| !tag.starts_with("W/"));
        let validator = strong_etag.or_else(|| text_of(headers, header::LAST_MODIFIED));
        let validator = validator.map(str::to_owned);
        let (mut start, mut total) = (0, length);
        if response.status() == hyper::StatusCode::PARTIAL_CONTENT {
            let text = text_of(headers, header::CONTENT_RANGE).unwrap_or_default();
            let asked = asked.map_or(0, |range| range.start);
            match parse_content_range(text) {
                Some((first, whole)) if first == asked => (start, total) = (first, whole),
                _ => {
                    let found = format!("\"{text}\"");
                    return Err(HttpError::OtherRange { url, asked, found });
                }
            }
        }
        let body = response.into_body();
        let _connection = connection;
        Ok(Response {
            url,
            start,
            length,
            total,
            validator,
            body,
            received: 0,
            idle,
            _connection,
        })
    }

    /// What was answered, after redirects.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next piece of the body; `None` at its end. A body that is shorter than announced is an
    /// error, not an end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let frame =
                timeout(self.idle, self.body.frame())
                    .await
                    .map_err(|_| HttpError::Timeout {
                        url: self.url.clone(),
                        what: "data",
                        limit: self.idle,
                    })?;
            match frame {
                Some(Ok(frame)) => {
                    // Trailers are no data.
                    let Ok(piece) = frame.into_data() else {
                        continue;
                    };
                    self.received += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Some(Err(source)) => {
                    // hyper's own words do not say how far it came, which is what helps.
                    return Err(match self.length {
                        Some(expected) if self.received < expected => HttpError::CutOff {
                            url: self.url.clone(),
                            expected,
                            found: self.received,
                        },
                        _ => HttpError::Protocol {
                            url: self.url.clone(),
                            source,
                        },
                    });
                }
                None => return Ok(None),
            }
        }
    }
}

fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// `bytes 100-199/1000` into the first byte and the whole length, if that is known.
pub fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

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
    fn content_ranges() {
        for (text, expected) in [
            ("bytes 0-0/1", Some((0, Some(1)))),
            ("bytes 100-199/1000", Some((100, Some(1000)))),
            ("bytes 100-199/*", Some((100, None))),
            ("bytes 100-99/1000", None),
            ("bytes 100-1000/1000", None),
            ("bytes */1000", None),
            ("items 0-1/2", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(text), expected, "{text}");
        }
    }

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
