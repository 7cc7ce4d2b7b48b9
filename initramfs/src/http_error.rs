//! Why a web server brought nothing, and the exit code of that.

use std::io;
use std::time::Duration;

use crate::exit::{Classified, Exit};
use crate::resolve::ResolveError;

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
