//! Plain HTTP beside the swarm: images for `rooturl=http://` clients of today, what an agent needs
//! to fall back to, and kernels and initrds for boot loaders.
//!
//! | path | what |
//! |---|---|
//! | `/images/NAME` | the image that NAME means now |
//! | `/blobs/HEX` | an image by its id |
//! | `/manifests/HEX` | its manifest |
//! | `/tags/NAME` | the signed statement of what NAME means |
//! | `/boot/FILE` | a file of the state directory's `boot/` |
//! | `/healthz` | `ok` while the server accepts nodes |
//!
//! Image bodies share the swarm's upload limit; the rest is small, or is what a node waits for
//! before it can help anybody, and is sent at once. How connections are bounded is in [`server`],
//! which bytes a request means in [`range`], how bodies are sent in [`body`].

pub mod body;
pub mod range;
pub mod server;

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use axum::middleware::{self, Next};
use axum::routing::get;
use bytes::Bytes;
use rootswarm_image::{ImageId, ImageName};
use rootswarm_swarm::NodeId;
use rootswarm_transport::limiter::RateLimiter;
use tokio::task::spawn_blocking;

use crate::admission::{Admission, NotAdmitted};
use crate::catalogue::{Catalogue, Copy};
use range::Selection;

/// What the handlers share.
#[derive(Clone)]
pub struct Shared {
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// To whom.
    pub admission: Arc<Admission>,
    /// How fast.
    pub limiter: Arc<RateLimiter>,
}

/// The routes.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/images/{name}", get(image))
        .route("/blobs/{id}", get(blob))
        .route("/manifests/{id}", get(manifest))
        .route("/tags/{name}", get(tag))
        .route("/boot/{file}", get(boot_file))
        .layer(middleware::from_fn_with_state(shared.clone(), admitted))
        // Outside the allow-list too: monitoring is rarely on the boot network.
        .route("/healthz", get(|| async { "ok\n" }))
        .with_state(shared)
}

/// What is wrong with a request, as a status and a line of text.
#[derive(Debug, thiserror::Error)]
enum HttpError {
    #[error("no image {0}")]
    NoImage(String),
    #[error("no boot file {0}")]
    NoBootFile(String),
    #[error("{0}")]
    NotAdmitted(#[from] NotAdmitted),
    #[error("cannot read the file")]
    Unreadable,
}

impl axum::response::IntoResponse for HttpError {
    fn into_response(self) -> Response<Body> {
        let status = match self {
            HttpError::NoImage(_) | HttpError::NoBootFile(_) => StatusCode::NOT_FOUND,
            HttpError::NotAdmitted(ref reason) if reason.may_pass() => {
                let fields = [(RETRY_AFTER, "1")];
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return (status, fields, format!("{self}\n")).into_response();
            }
            HttpError::NotAdmitted(_) => StatusCode::FORBIDDEN,
            HttpError::Unreadable => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{self}\n")).into_response()
    }
}

/// Lets in who is on the allow-list.
async fn admitted(
    State(shared): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Result<Response<Body>, HttpError> {
    shared.admission.check_address(from.ip())?;
    Ok(next.run(request).await)
}

/// Image bytes need what joining the swarm needs. Who comes by HTTP has no key; what stands for it, when
/// a one-time token is bound to its bearer, is the secret that an agent makes for its download, or the
/// address of a client that has none.
async fn admit_to_images(
    shared: &Shared,
    from: SocketAddr,
    headers: &HeaderMap,
) -> Result<(), HttpError> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let token = text(AUTHORIZATION)
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(|token| token.trim().to_owned());
    let bearer = match text(SESSION) {
        Some(session) => format!("session {session}"),
        None => format!("address {}", from.ip().to_canonical()),
    };
    let bearer =
        NodeId(*blake3::hash(format!("rootswarm http bearer {bearer}").as_bytes()).as_bytes());
    let admission = shared.admission.clone();
    // It reads a file, and may write one.
    let held = spawn_blocking(move || admission.hold_http_token(token.as_deref(), bearer));
    // Nothing in it panics, and nobody aborts it.
    Ok(held.await.unwrap_or(Err(NotAdmitted::CannotCheck))?)
}

/// What an agent names its download with.
const SESSION: HeaderName = HeaderName::from_static("rootswarm-session");

fn named(shared: &Shared, name: &str) -> Result<crate::catalogue::Published, HttpError> {
    let unknown = || HttpError::NoImage(printable(name));
    let name: ImageName = name.parse().map_err(|_| unknown())?;
    shared
        .catalogue
        .snapshot()
        .image(&name)
        .cloned()
        .ok_or_else(unknown)
}

fn by_id(shared: &Shared, id: &str) -> Result<Arc<Copy>, HttpError> {
    let unknown = || HttpError::NoImage(printable(id));
    let id: ImageId = id.parse().map_err(|_| unknown())?;
    shared
        .catalogue
        .snapshot()
        .copy(&id)
        .cloned()
        .ok_or_else(unknown)
}

/// What a client sent, cut and quoted so that it can stand in an answer.
fn printable(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

async fn image(
    State(shared): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    admit_to_images(&shared, from, &headers).await?;
    let copy = named(&shared, &name)?.copy;
    Ok(send_copy(&shared, &copy, &method, &headers, "no-cache"))
}

async fn blob(
    State(shared): State<Shared>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(id): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    admit_to_images(&shared, from, &headers).await?;
    let copy = by_id(&shared, &id)?;
    Ok(send_copy(&shared, &copy, &method, &headers, "immutable"))
}

fn send_copy(
    shared: &Shared,
    copy: &Copy,
    method: &Method,
    headers: &HeaderMap,
    cache: &'static str,
) -> Response<Body> {
    let etag = format!("\"{}\"", copy.id());
    let resource = Resource {
        length: copy.length(),
        etag,
        content_type: "application/octet-stream",
        cache,
    };
    let whole = copy.store().whole();
    let limiter = shared.limiter.clone();
    resource.answer(method, headers, move |start, end| {
        body::mapped(whole, start, end, limiter)
    })
}

async fn manifest(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let copy = by_id(&shared, &id)?;
    let etag = format!(
        "\"{}-{}\"",
        copy.id(),
        copy.manifest().geometry().chunk_size().log2()
    );
    Ok(send_small(
        copy.encoded_manifest().clone(),
        etag,
        &method,
        &headers,
    ))
}

async fn tag(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let published = named(&shared, &name)?;
    let etag = format!("\"{}\"", blake3::hash(&published.encoded_tag));
    Ok(send_small(published.encoded_tag, etag, &method, &headers))
}

fn send_small(bytes: Bytes, etag: String, method: &Method, headers: &HeaderMap) -> Response<Body> {
    let length = bytes.len() as u64;
    let resource = Resource {
        length,
        etag,
        content_type: "application/octet-stream",
        cache: "no-cache",
    };
    // Offsets are within the slice's length, which is a usize.
    resource.answer(method, headers, move |start, end| {
        Body::from(bytes.slice(start as usize..end as usize))
    })
}

async fn boot_file(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let snapshot = shared.catalogue.snapshot();
    let path = snapshot
        .boot_file(&name)
        .ok_or_else(|| HttpError::NoBootFile(printable(&name)))?;
    // Opened anew for each request, so that a kernel that was replaced in place is the new one from
    // its first byte to its last. An open on a local disk is some microseconds: no thread for it.
    let (file, metadata) = File::open(path)
        .and_then(|file| file.metadata().map(|metadata| (file, metadata)))
        .map_err(|error| {
            tracing::warn!("cannot read {}: {error}", path.display());
            HttpError::Unreadable
        })?;
    if !metadata.is_file() {
        return Err(HttpError::NoBootFile(printable(&name)));
    }
    let etag = {
        use std::os::unix::fs::MetadataExt;
        format!(
            "\"{:x}-{:x}-{:x}.{:x}\"",
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec()
        )
    };
    let content_type = if name.ends_with(".ipxe") || name.ends_with(".cfg") {
        "text/plain"
    } else {
        "application/octet-stream"
    };
    let resource = Resource {
        length: metadata.len(),
        etag,
        content_type,
        cache: "no-cache",
    };
    Ok(resource.answer(&method, &headers, move |start, end| {
        body::read_from(file, start, end)
    }))
}

/// What is the same for everything that can be asked for in ranges.
struct Resource {
    length: u64,
    /// With its quotes.
    etag: String,
    content_type: &'static str,
    cache: &'static str,
}

impl Resource {
    fn answer(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: impl FnOnce(u64, u64) -> Body,
    ) -> Response<Body> {
        let selection = range::select(headers, self.length, &self.etag);
        let (status, start, end) = match selection {
            Selection::Whole => (StatusCode::OK, 0, self.length),
            Selection::Part { start, end } => (StatusCode::PARTIAL_CONTENT, start, end),
            Selection::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
            Selection::NotModified => (StatusCode::NOT_MODIFIED, 0, 0),
        };
        let carries_bytes = status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT;
        let mut response = if carries_bytes && *method != Method::HEAD {
            Response::new(body(start, end))
        } else {
            Response::new(Body::empty())
        };
        *response.status_mut() = status;
        let fields = response.headers_mut();
        fields.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static(self.cache));
        // An entity tag is hexadecimal digits in quotes: always a header value.
        if let Ok(etag) = HeaderValue::from_str(&self.etag) {
            fields.insert(ETAG, etag);
        }
        if carries_bytes {
            fields.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            fields.insert(CONTENT_LENGTH, (end - start).into());
        } else if status == StatusCode::NOT_MODIFIED {
            // Said here because the answer to a HEAD would otherwise claim 0 (RFC 9110, 8.6).
            fields.insert(CONTENT_LENGTH, self.length.into());
        }
        let content_range = match selection {
            Selection::Part { start, end } => {
                Some(format!("bytes {start}-{}/{}", end - 1, self.length))
            }
            Selection::Unsatisfiable => Some(format!("bytes */{}", self.length)),
            _ => None,
        };
        if let Some(value) = content_range.and_then(|text| HeaderValue::try_from(text).ok()) {
            fields.insert(CONTENT_RANGE, value);
        }
        response
    }
}
