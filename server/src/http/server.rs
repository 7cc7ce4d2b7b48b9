//! The listening side of HTTP: connections counted, timed and, at the end, drained.
//!
//! A client may be slow; it may not hold a connection for nothing. What a connection can cost:
//! [`MAX_CONNECTIONS`] of them, [`MAX_CONNECTIONS_PER_ADDRESS`] from one address, [`HEADER_TIMEOUT`]
//! between requests and while one is sent, and a least progress of [`PROGRESS_BYTES`] in
//! [`PROGRESS_TIMEOUT`] of waiting while it reads an answer.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

/// Connections at a time. Each holds at most a 16 KiB read buffer and 48 KiB of file pieces
/// (`super::body`): 128 MiB if all of them read boot files as slowly as is allowed, a quarter of it
/// when they read mapped images.
pub const MAX_CONNECTIONS: usize = 2048;

/// Connections from one address: download tools open up to 16, and a machine boots once.
pub const MAX_CONNECTIONS_PER_ADDRESS: usize = 64;

/// How long a request's head may take, counted from the moment one could begin.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

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
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let addresses = Arc::new(Addresses::default());
    loop {
        let accepted = tokio::select! {
            // Waiting for a slot before accepting leaves the others in the kernel's queue.
            accepted = accept(&listener, &slots) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, from, slot)) => {
                let Some(place) = addresses.enter(from.ip().to_canonical()) else {
                    continue;
                };
                // Answers are written in large pieces; waiting to fill packets only adds delay.
                let _ = stream.set_nodelay(true);
                let service = WithPeer {
                    inner: TowerToHyperService::new(router.clone()),
                    from,
                };
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .max_buf_size(MAX_HEAD_BYTES)
                    .serve_connection(TokioIo::new(Timed::new(stream)), service);
                let connection = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!("http connection from {from}: {error}");
                    }
                    drop((slot, place));
                });
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

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, from) = listener.accept().await?;
    Ok((stream, from, slot))
}

/// How many connections each address has.
#[derive(Debug, Default)]
struct Addresses {
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of one address, until dropped.
struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn enter(self: &Arc<Addresses>, address: IpAddr) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_insert(0);
        if *count >= MAX_CONNECTIONS_PER_ADDRESS {
            tracing::debug!("{address} has {count} http connections already");
            return None;
        }
        *count += 1;
        Some(Place {
            addresses: self.clone(),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self
            .addresses
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Tells the routes who asks.
struct WithPeer {
    inner: TowerToHyperService<Router>,
    from: SocketAddr,
}

impl Service<hyper::Request<Incoming>> for WithPeer {
    type Response = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.from));
        self.inner.call(request)
    }
}

/// A stream whose writes must make progress.
struct Timed<S> {
    stream: S,
    /// Runs only while a write waits.
    patience: Pin<Box<Sleep>>,
    waiting_since: Option<Instant>,
    /// What is left of [`PROGRESS_TIMEOUT`], and of [`PROGRESS_BYTES`].
    time_left: Duration,
    bytes_left: usize,
}

impl<S> Timed<S> {
    fn new(stream: S) -> Timed<S> {
        Timed {
            stream,
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
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
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
        let mut writer = Timed::new(writer);
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
        let mut writer = Timed::new(writer);
        for _ in 0..4 {
            // As when the rate limit holds the body back.
            tokio::time::sleep(PROGRESS_TIMEOUT).await;
            writer.write_all(&[7; 512]).await.unwrap();
            reader.read_exact(&mut [0; 512]).await.unwrap();
        }
    }

    #[test]
    fn one_address_has_so_many_connections_and_no_more() {
        let addresses = Arc::new(Addresses::default());
        let address = IpAddr::from([10, 0, 0, 7]);
        let mut places: Vec<_> = (0..MAX_CONNECTIONS_PER_ADDRESS)
            .map(|_| addresses.enter(address).unwrap())
            .collect();
        assert!(addresses.enter(address).is_none());
        assert!(addresses.enter(IpAddr::from([10, 0, 0, 8])).is_some());
        places.pop();
        assert!(addresses.enter(address).is_some());
        drop(places);
        assert!(addresses.open.lock().unwrap().is_empty());
    }
}
