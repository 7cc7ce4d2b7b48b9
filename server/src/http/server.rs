//! The listening side of HTTP: connections counted, timed and, at the end, drained.
//!
//! A client may be slow; it may not hold a connection for nothing. Whether it is on the allow-list is
//! looked at first. Those who are have [`MAX_CONNECTIONS`], and of them [`MAX_ANSWERS`] are being
//! answered at a time; a connection that is waited for ([`Place::idle`]) is somebody else's when there
//! are no more. Everybody else, and who is allowed and found no place, has the [`DESK`], where `/healthz`
//! is answered and one thing else: why there is nothing to be had.
//!
//! What a connection can cost: [`HEADER_TIMEOUT`] between requests and while one is sent, and a least
//! progress of [`PROGRESS_BYTES`] in [`PROGRESS_TIMEOUT`] of waiting while it reads an answer.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rootswarm_transport::places::{Limits, Place, Places};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::admission::Admission;

/// Connections of those who are on the allow-list. Each holds at most a 16 KiB read buffer: 48 MiB.
pub const MAX_CONNECTIONS: usize = 3072;

/// Answers at a time, but for `/healthz`; who finds all of them under way waits. Each holds 48 KiB of
/// file pieces (`super::body`): 96 MiB if all of them read boot files as slowly as is allowed, a quarter
/// of it when they read mapped images.
pub const MAX_ANSWERS: usize = 2048;

/// Connections from one address: download tools open up to 16, and a machine boots once.
pub const MAX_CONNECTIONS_PER_ADDRESS: usize = 64;

/// How long a request's head may take, counted from the moment one could begin.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// The same at the desk.
pub const DESK_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// See [`MAX_CONNECTIONS`].
const ALLOWED: Limits = Limits {
    all: MAX_CONNECTIONS,
    address: MAX_CONNECTIONS_PER_ADDRESS,
    // One /64 has not all of them.
    subnet: Some(MAX_CONNECTIONS * 3 / 4),
    // A browser or a package manager keeps a connection for the next request: seconds, where they are
    // not needed.
    grace: Duration::from_secs(2),
};

/// What is kept for `/healthz`, and to say no: monitoring asks now and then from a few addresses.
pub const DESK: Limits = Limits {
    all: 64,
    address: 4,
    subnet: None,
    grace: Duration::from_millis(500),
};

// With the boot file that each answer may have open, some more for the swarm and the state directory,
// and no more than the unit's LimitNOFILE=8192.
const _: () = assert!(MAX_CONNECTIONS + MAX_ANSWERS + DESK.all + 512 <= 8192);

/// The most that a request's head may be; what asks for more than a path and a range is not ours.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// While a connection waits for its client, so many bytes must leave in [`PROGRESS_TIMEOUT`]: 4 KiB
/// a second. Time in which the server itself holds back (the rate limit) does not count.
pub const PROGRESS_BYTES: usize = 128 * 1024;

/// See [`PROGRESS_BYTES`].
pub const PROGRESS_TIMEOUT: Duration = Duration::from_secs(32);

/// How long accepting pauses after an error such as too many open files, which does not go away by
/// trying again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `stop` says so, then waits for the answers that are under way, at most `grace`.
pub async fn run(
    listener: TcpListener,
    router: Router,
    admission: Arc<Admission>,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let graceful = GracefulShutdown::new();
    let doors = Doors::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, from)) => {
                let is_allowed = admission.check_address(from.ip()).is_ok();
                if let Some(seat) = doors.enter(from, is_allowed) {
                    serve(stream, from, seat, router.clone(), &graceful);
                }
            }
            Err(error) => {
                tracing::warn!("cannot accept an http connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!(
            "some http downloads were cut off after {} s",
            grace.as_secs()
        );
    }
}

fn serve(
    stream: TcpStream,
    from: SocketAddr,
    seat: Seat,
    router: Router,
    graceful: &GracefulShutdown,
) {
    // Answers are written in large pieces; waiting to fill packets only adds delay.
    let _ = stream.set_nodelay(true);
    let seat = Arc::new(seat);
    seat.place.idle();
    let service = WithPeer {
        inner: TowerToHyperService::new(router),
        from,
        seat: seat.clone(),
    };
    let timeout = match seat.is_desk {
        true => DESK_HEADER_TIMEOUT,
        false => HEADER_TIMEOUT,
    };
    let stream = Timed::new(stream, Some(seat.clone()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .keep_alive(!seat.is_desk)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!("http connection from {from}: {error}");
            },
            () = seat.place.taken_back() => {
                tracing::debug!("http connection from {from}: it was idle, and others wait");
            }
        }
    });
}

/// The places there are.
struct Doors {
    allowed: Arc<Places>,
    desk: Arc<Places>,
}

impl Default for Doors {
    fn default() -> Doors {
        Doors {
            allowed: Places::new(ALLOWED),
            desk: Places::new(DESK),
        }
    }
}

impl Doors {
    fn enter(&self, from: SocketAddr, is_allowed: bool) -> Option<Seat> {
        let address = from.ip().to_canonical();
        let allowed = is_allowed.then(|| self.allowed.enter(address)).flatten();
        let is_desk = allowed.is_none();
        let place = allowed.or_else(|| self.desk.enter(address));
        if place.is_none() {
            tracing::debug!("no place for an http connection from {address}");
        }
        Some(Seat {
            place: place?,
            is_desk,
            is_answered: AtomicBool::new(false),
        })
    }
}

/// Where a connection sits.
pub(super) struct Seat {
    place: Place,
    is_desk: bool,
    /// The end of an answer was handed over, and may not have left yet.
    is_answered: AtomicBool,
}

impl Seat {
    /// Whether nothing but `/healthz` is to be had here.
    pub(super) fn is_desk(&self) -> bool {
        self.is_desk
    }

    fn asks(&self) {
        self.is_answered.store(false, Ordering::Relaxed);
        self.place.busy();
    }

    fn flushed(&self) {
        if self.is_answered.swap(false, Ordering::Relaxed) {
            self.place.idle();
        }
    }
}

/// An answer's body, with what is let go of at its end.
pub(super) struct Held<B, T> {
    body: B,
    held: Option<T>,
    at_end: fn(T),
}

impl<T> Held<axum::body::Body, T> {
    /// Drops `held` when the body has been handed over, or is not wanted any more.
    pub(super) fn new(body: axum::body::Body, held: T) -> Self {
        Held {
            body,
            held: Some(held),
            at_end: drop,
        }
    }
}

impl Held<axum::body::Body, Arc<Seat>> {
    /// The seat is idle again once all of it has left.
    pub(super) fn seated(body: axum::body::Body, seat: Arc<Seat>) -> Self {
        Held {
            body,
            held: Some(seat),
            at_end: |seat| seat.is_answered.store(true, Ordering::Relaxed),
        }
    }
}

impl<B: Body + Unpin, T: Unpin> Body for Held<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B, T> Drop for Held<B, T> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            (self.at_end)(held);
        }
    }
}

/// Tells the routes who asks.
struct WithPeer {
    inner: TowerToHyperService<Router>,
    from: SocketAddr,
    seat: Arc<Seat>,
}

impl Service<hyper::Request<Incoming>> for WithPeer {
    type Response = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        self.seat.asks();
        request.extensions_mut().insert(ConnectInfo(self.from));
        request.extensions_mut().insert(self.seat.clone());
        self.inner.call(request)
    }
}

/// A stream whose writes must make progress.
struct Timed<S> {
    stream: S,
    seat: Option<Arc<Seat>>,
    /// Runs only while a write waits.
    patience: Pin<Box<Sleep>>,
    waiting_since: Option<Instant>,
    /// What is left of [`PROGRESS_TIMEOUT`], and of [`PROGRESS_BYTES`].
    time_left: Duration,
    bytes_left: usize,
}

impl<S> Timed<S> {
    fn new(stream: S, seat: Option<Arc<Seat>>) -> Timed<S> {
        Timed {
            stream,
            seat,
            patience: Box::pin(tokio::time::sleep(PROGRESS_TIMEOUT)),
            waiting_since: None,
            time_left: PROGRESS_TIMEOUT,
            bytes_left: PROGRESS_BYTES,
        }
    }

    fn judge(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(result) => {
                if let Some(since) = self.waiting_since.take() {
                    self.time_left = self.time_left.saturating_sub(since.elapsed());
                }
                self.bytes_left = self
                    .bytes_left
                    .saturating_sub(*result.as_ref().unwrap_or(&0));
                if self.bytes_left == 0 {
                    (self.time_left, self.bytes_left) = (PROGRESS_TIMEOUT, PROGRESS_BYTES);
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                if self.waiting_since.is_none() {
                    let now = Instant::now();
                    self.waiting_since = Some(now);
                    self.patience.as_mut().reset(now + self.time_left);
                }
                ready!(self.patience.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client reads too slowly",
                )))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.judge(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        if let Some(seat) = &this.seat {
            seat.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stops_is_cut_off_and_a_slow_one_is_not() {
        // The pipe holds 1 KiB: the writer waits for the reader.
        let (writer, mut reader) = tokio::io::duplex(1024);
        let mut writer = Timed::new(writer, None);
        let begin = Instant::now();
        let slow = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            // 8 KiB a second for a minute is twice the least progress.
            for _ in 0..480 {
                reader.read_exact(&mut buffer).await.unwrap();
                tokio::time::sleep(Duration::from_millis(125)).await;
            }
            reader
        });
        writer.write_all(&vec![7; 480 * 1024]).await.unwrap();
        let _reader = slow.await.unwrap();
        assert!(
            begin.elapsed() > PROGRESS_TIMEOUT,
            "the test must outlast the timeout"
        );
        let stopped = Instant::now();
        let error = writer.write_all(&vec![7; 480 * 1024]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(stopped.elapsed() <= PROGRESS_TIMEOUT + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_is_written_does_not_count() {
        let (writer, mut reader) = tokio::io::duplex(1024);
        let mut writer = Timed::new(writer, None);
        for _ in 0..4 {
            // As when the rate limit holds the body back.
            tokio::time::sleep(PROGRESS_TIMEOUT).await;
            writer.write_all(&[7; 512]).await.unwrap();
            reader.read_exact(&mut [0; 512]).await.unwrap();
        }
    }

    /// Strangers at the desk, however many, take no place of those who are allowed; and who is allowed
    /// and finds none is told so at the desk.
    #[tokio::test(start_paused = true)]
    async fn everybody_has_his_own_door() {
        for strangers in [1, 33, 5_000] {
            let doors = Doors::default();
            let from = |net: u8, number: usize| {
                SocketAddr::from(([10, net, (number >> 8) as u8, number as u8], 1))
            };
            let mut held = Vec::new();
            for number in 0..64 * strangers {
                if let Some(seat) = doors.enter(from(9, number % strangers), false) {
                    assert!(seat.is_desk);
                    seat.place.idle();
                    held.push(seat);
                }
            }
            assert_eq!(doors.allowed.taken(), 0);
            let mut inside: Vec<Seat> = (0..MAX_CONNECTIONS)
                .map(|number| doors.enter(from(1, number), true).unwrap())
                .collect();
            assert!(inside.iter().all(|seat| !seat.is_desk));
            // All of them are being answered: the next one has the desk, where no stranger keeps a place for
            // longer than its grace by saying nothing.
            tokio::time::advance(DESK.grace).await;
            assert!(doors.enter(from(2, 1), true).unwrap().is_desk);
            // One that says nothing gives its place to the next.
            inside[7].place.idle();
            tokio::time::advance(ALLOWED.grace).await;
            assert!(!doors.enter(from(2, 2), true).unwrap().is_desk);
            inside.clear();
            assert_eq!(doors.allowed.taken(), 0);
        }
    }
}
