//! A web server's answer: what its headers say of the file, and its body at a rate that is worth waiting for.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::http_error::HttpError;

/// What a body brings at least in as much waiting as one piece of it may take: 1 KiB/s, a quarter of what a
/// seed asks of its readers. Who sends a byte now and then keeps nobody from the next server.
pub const LEAST_BYTES: u64 = 16 * 1024;

/// The task that drives the socket; it ends with its owner.
#[derive(Debug)]
pub(crate) struct Connection(pub(crate) JoinHandle<()>);

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
    /// Waited for what came since the last look at the rate, and how much that was.
    waited: Duration,
    came: u64,
    _connection: Connection,
}

impl Response {
    pub(crate) fn new(
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
            waited: Duration::ZERO,
            came: 0,
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
            let too_slow = |what| HttpError::Timeout {
                url: self.url.clone(),
                what,
                limit: self.idle,
            };
            let since = Instant::now();
            let frame = timeout(self.idle, self.body.frame())
                .await
                .map_err(|_| too_slow("data"))?;
            // What this side takes to write is not the server's fault.
            self.waited += since.elapsed();
            if self.waited >= self.idle {
                if self.came < LEAST_BYTES && !matches!(frame, None | Some(Err(_))) {
                    return Err(too_slow("16 KiB of data"));
                }
                (self.waited, self.came) = (Duration::ZERO, 0);
            }
            match frame {
                Some(Ok(frame)) => {
                    // Trailers are no data.
                    let Ok(piece) = frame.into_data() else {
                        continue;
                    };
                    self.received += piece.len() as u64;
                    self.came += piece.len() as u64;
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

/// A header's text, if it is there and is text.
pub(crate) fn text_of(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
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
}
