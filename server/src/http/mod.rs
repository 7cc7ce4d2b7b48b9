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
mod pass;
pub mod range;
pub mod server;

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Extension, Path, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RETRY_AFTER,
};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use axum::middleware::{self, Next};
use axum::response::IntoResponse as _;
use axum::routing::get;
use bytes::Bytes;
use rootswarm_image::{ImageId, ImageName, SwarmPublicKey};
use rootswarm_transport::blocking::Blocking;
use rootswarm_transport::limiter::RateLimiter;
use rootswarm_transport::trust::Gate;
use tokio::sync::Semaphore;

use crate::admission::{Admission, NotAdmitted};
use crate::catalogue::{Catalogue, Copy, Found, Published};
use pass::Pass;
use range::Selection;
use server::{Held, MAX_ANSWERS, Seat};

/// Threads that open boot files, which may wait for a disk.
pub const OPENING: usize = 8;

/// Threads that look at tokens, which may wait for a disk, and for whoever works on the state directory.
pub const ADMITTING: usize = 8;

/// Threads that read boot files.
pub const READING: usize = 16;

/// How long a request waits for a disk before it is answered 503.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Clone)]
pub struct Shared {
    /// What is served.
    pub catalogue: Arc<Catalogue>,
    /// To whom.
    pub admission: Arc<Admission>,
    /// How fast.
    pub limiter: Arc<RateLimiter>,
    /// Who is let in without a token: members of this swarm that its gate admits.
    pub members: (SwarmPublicKey, Gate),
}

/// What handlers share besides.
#[derive(Clone)]
struct Routes {
    shared: Shared,
    /// Answers under way.
    answers: Arc<Semaphore>,
    opening: Blocking,
    tokens: Blocking,
    reading: Arc<Semaphore>,
}

impl std::ops::Deref for Routes {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// The routes.
pub fn router(shared: Shared) -> Router {
    let routes = Routes {
        shared,
        answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
        opening: Blocking::new(OPENING, DISK_PATIENCE),
        tokens: Blocking::new(ADMITTING, DISK_PATIENCE),
        reading: Arc::new(Semaphore::new(READING)),
    };
    Router::new()
        .route("/images/{name}", get(image))
        .route("/blobs/{id}", get(blob))
        .route("/manifests/{id}", get(manifest))
        .route("/tags/{name}", get(tag))
        .route("/boot/{file}", get(boot_file))
        .layer(middleware::from_fn_with_state(routes.clone(), admitted))
        // Outside the allow-list too: monitoring is rarely on the boot network.
        .route("/healthz", get(|| async { "ok\n" }))
        .layer(middleware::from_fn(seated))
        .with_state(routes)
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
    #[error("this seed is busy: ask again")]
    Busy,
    #[error("{0} is being checked or published: come again")]
    Loading(String),
}

impl axum::response::IntoResponse for HttpError {
    fn into_response(self) -> Response<Body> {
        let status = match self {
            HttpError::NoImage(_) | HttpError::NoBootFile(_) => StatusCode::NOT_FOUND,
            HttpError::NotAdmitted(ref reason) if reason.may_pass() => return self.later(),
            HttpError::Busy | HttpError::Loading(_) => return self.later(),
            HttpError::NotAdmitted(_) => StatusCode::FORBIDDEN,
            HttpError::Unreadable => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl HttpError {
    /// It may pass: the client is to ask again.
    fn later(&self) -> Response<Body> {
        let fields = [(RETRY_AFTER, "1")];
        let status = StatusCode::SERVICE_UNAVAILABLE;
        (status, fields, format!("{self}\n")).into_response()
    }
}

/// Lets in who is on the allow-list and has a seat, when one of those before him is done.
async fn admitted(
    State(routes): State<Routes>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
    next: Next,
) -> Result<Response<Body>, HttpError> {
    routes.admission.check_address(from.ip())?;
    if seat.is_desk() {
        return Err(HttpError::Busy);
    }
    let answers = routes.answers.clone();
    let answer = answers.acquire_owned().await.map_err(|_| HttpError::Busy)?;
    let response = next.run(request).await;
    Ok(response.map(|body| Body::new(Held::new(body, answer))))
}

/// A connection is in use from a request to the end of its answer.
async fn seated(
    Extension(seat): Extension<Arc<Seat>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let response = next.run(request).await;
    response.map(|body| Body::new(Held::seated(body, seat)))
}

fn named(shared: &Shared, name: &str) -> Result<Published, HttpError> {
    found(shared, name, None)
}

/// The generation of a name that is this image.
fn pinned(shared: &Shared, name: &str, pin: &str) -> Result<Published, HttpError> {
    let pin = pin
        .parse()
        .map_err(|_| HttpError::NoImage(printable(pin)))?;
    found(shared, name, Some(pin))
}

fn found(shared: &Shared, name: &str, pin: Option<ImageId>) -> Result<Published, HttpError> {
    let unknown = || HttpError::NoImage(printable(name));
    let name: ImageName = name.parse().map_err(|_| unknown())?;
    match shared.catalogue.snapshot().find(&name, pin) {
        Found::Image(published) => Ok(published.clone()),
        Found::Loading => Err(HttpError::Loading(name.to_string())),
        Found::Other(_) | Found::Unknown => Err(unknown()),
    }
}

/// A copy by its id: of what a name means, of what it meant, and of what is leaving while somebody
/// still fetches it.
fn by_id(shared: &Shared, id: &str) -> Result<Arc<Copy>, HttpError> {
    let unknown = || HttpError::NoImage(printable(id));
    let id: ImageId = id.parse().map_err(|_| unknown())?;
    let snapshot = shared.catalogue.snapshot();
    match snapshot.copy(&id) {
        Some(copy) => Ok(copy.clone()),
        None if snapshot.is_copy_loading(&id) => Err(HttpError::Loading(id.to_string())),
        None => Err(unknown()),
    }
}

/// What a client sent, cut and quoted so that it can stand in an answer.
fn printable(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

async fn image(
    State(shared): State<Routes>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let find = || Ok(named(&shared, &name)?.copy);
    send_copy(&shared, from, find, &method, &headers, "no-cache").await
}

async fn blob(
    State(shared): State<Routes>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Path(id): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let find = || by_id(&shared, &id);
    send_copy(&shared, from, find, &method, &headers, "immutable").await
}

/// Image bytes need what joining the swarm needs, or that the swarm has let the node in. Who is not admitted
/// learns not even which names there are, and what is not there costs nobody a token.
async fn send_copy(
    routes: &Routes,
    from: SocketAddr,
    find: impl Fn() -> Result<Arc<Copy>, HttpError>,
    method: &Method,
    headers: &HeaderMap,
    cache: &'static str,
) -> Result<Response<Body>, HttpError> {
    let pass = Pass::shown(routes, from, headers);
    pass.check(routes).await?;
    let copy = find()?;
    // Who asks how long it is has no byte of it.
    if *method != Method::HEAD {
        pass.hold(routes).await?;
    }
    let etag = format!("\"{}\"", copy.id());
    let resource = Resource {
        length: copy.length(),
        etag,
        content_type: "application/octet-stream",
        cache,
    };
    let whole = copy.store().whole();
    let limiter = routes.limiter.clone();
    let ended = pass.ended(routes.clone());
    // A copy that nothing names any more stays while it is being downloaded.
    let download = copy.download();
    Ok(resource.answer(method, headers, move |start, end| {
        body::mapped(whole, start, end, limiter, ended, download)
    }))
}

async fn manifest(
    State(shared): State<Routes>,
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
    State(shared): State<Routes>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let published = match name.split_once('@') {
        Some((name, pin)) => pinned(&shared, name, pin)?,
        None => named(&shared, &name)?,
    };
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
    State(shared): State<Routes>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response<Body>, HttpError> {
    let snapshot = shared.catalogue.snapshot();
    let path = snapshot
        .boot_file(&name)
        .ok_or_else(|| HttpError::NoBootFile(printable(&name)))?
        .to_owned();
    // Opened anew for each request, so that a kernel that was replaced in place is the new one from
    // its first byte to its last.
    let opened = {
        let path = path.clone();
        move || File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)))
    };
    let opened = shared.opening.run(opened).await.ok_or(HttpError::Busy)?;
    let (file, metadata) = opened.map_err(|error| {
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
        body::read_from(file, start, end, shared.reading.clone())
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
