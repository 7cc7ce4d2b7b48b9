//! The socket under an endpoint, woken as rarely as its traffic allows.
//!
//! What a node of a slow link pays for is not bytes but wake-ups: with quinn's own socket there
//! was one for each batch that arrived and one for each batch that had left; and on a fast link for
//! each batch that walks through the kernel. Three things are done otherwise here.
//!
//! - Sending is tried, not waited for. Registered for writability, the kernel reports each packet
//!   that leaves the queue of the interface, although nobody waits for it. When the socket is full,
//!   which its buffer of several MiB makes rare, it is tried again a moment later.
//! - Between [`BUSY_BYTES`]'s bounds arrivals are collected for [`PAUSE`], during which the kernel says
//!   nothing, as a network card moderates its interrupts. Below it the first packet is wanted at
//!   once; above it each wake-up finds enough.
//! - What an [`Outbox`] keeps waits until all that is ready to run has run once more: a connection
//!   with more to say has then said it. No clock is waited for.
//!
//! Binding it and sizing its buffers is [`crate::socket`]'s part; the packets are quinn's.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep};

use crate::outbox::Outbox;

/// How long arrivals are collected. The reactor's timers count milliseconds, so it is one or two.
const PAUSE: Duration = Duration::from_millis(1);

/// Over what time arrivals are counted.
const COUNTED: Duration = Duration::from_millis(10);

/// Bytes in [`COUNTED`] that make pauses worth while: 16 to 320 Mbit/s. Who sends at a gigabit hears
/// nothing but acknowledgements, 5 Mbit/s of them, and they are wanted at once.
const BUSY_BYTES: Range<usize> = 20_000..400_000;

/// Batches taken from the kernel at a time. quinn has room for 32; with 64 KB in each that is 2 MB
/// more of memory, and no time is saved by it.
const READ_BATCHES: usize = 8;

/// Until a full socket is tried again: at 1 Gbit/s a fortieth of its buffer has left by then.
const FULL: Duration = Duration::from_millis(1);

/// See the module.
pub(crate) struct ModeratedSocket {
    socket: UdpSocket,
    state: UdpSocketState,
    is_full: AtomicBool,
    outbox: Mutex<Outbox>,
    /// Something was put into the outbox, or the socket is gone.
    is_waiting: Arc<Notify>,
    arrivals: Mutex<Arrivals>,
}

struct Arrivals {
    /// A second descriptor of the socket, which exists while the kernel's word is waited for.
    waiting: Option<AsyncFd<OwnedFd>>,
    pause: Pin<Box<Sleep>>,
    is_pausing: bool,
    /// The last read took all there was.
    is_drained: bool,
    is_busy: bool,
    counted_since: Instant,
    counted_bytes: usize,
}

impl ModeratedSocket {
    /// Takes a socket that is bound and does not block. Within a runtime.
    ///
    /// # Errors
    /// The socket refuses one of the options that quinn needs.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Arc<ModeratedSocket>> {
        let is_waiting = Arc::new(Notify::new());
        let socket = Arc::new(ModeratedSocket {
            state: UdpSocketState::new((&socket).into())?,
            socket,
            is_full: AtomicBool::new(false),
            outbox: Mutex::new(Outbox::default()),
            is_waiting: is_waiting.clone(),
            arrivals: Mutex::new(Arrivals {
                waiting: None,
                pause: Box::pin(sleep(Duration::ZERO)),
                is_pausing: false,
                is_drained: false,
                is_busy: false,
                counted_since: Instant::now(),
                counted_bytes: 0,
            }),
        });
        tokio::spawn(empty_outbox(Arc::downgrade(&socket), is_waiting));
        Ok(socket)
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state
            .send((&self.socket).into(), transmit)
            .inspect_err(|error| {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.is_full.store(true, Ordering::Relaxed);
                }
            })
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // Nothing panics while it is held.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ModeratedSocket {
    fn drop(&mut self) {
        self.is_waiting.notify_one();
    }
}

/// Sends what waits for more to come, until the socket is gone.
async fn empty_outbox(socket: Weak<ModeratedSocket>, is_waiting: Arc<Notify>) {
    loop {
        is_waiting.notified().await;
        // To the end of the queue: whoever put something there is run again before.
        let mut was_last = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut was_last, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        loop {
            let Some(socket) = socket.upgrade() else {
                return;
            };
            let sent = socket.outbox().flush(|transmit| socket.send(transmit));
            drop(socket);
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(FULL).await,
                _ => break,
            }
        }
    }
}

impl fmt::Debug for ModeratedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModeratedSocket")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Arrivals {
    fn count(&mut self, metas: &[RecvMeta]) {
        self.counted_bytes += metas.iter().map(|meta| meta.len).sum::<usize>();
    }

    /// Everything was read: whether to let some more come before the next look.
    fn is_worth_a_pause(&mut self) -> bool {
        let now = Instant::now();
        let elapsed = now - self.counted_since;
        if elapsed >= COUNTED {
            let share = COUNTED.as_secs_f64() / elapsed.as_secs_f64();
            self.is_busy = BUSY_BYTES.contains(&((self.counted_bytes as f64 * share) as usize));
            self.counted_since = now;
            self.counted_bytes = 0;
        }
        self.is_busy
    }

    fn begin_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting = None;
        self.is_pausing = true;
        self.pause.as_mut().reset(Instant::now() + PAUSE);
        self.end_of_pause(cx)
    }

    fn end_of_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_pausing {
            ready!(self.pause.as_mut().poll(cx));
            self.is_pausing = false;
        }
        Poll::Ready(())
    }

    /// Waits until the kernel has something, or had since it was last asked.
    fn poll_kernel(&mut self, socket: &UdpSocket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let waiting = match self.waiting.take() {
            Some(waiting) => waiting,
            None => {
                let second = OwnedFd::from(socket.try_clone()?);
                // SAFETY: the descriptor is owned by what is made here, so that it stays open, and
                // the same, until it is deregistered.
                unsafe { AsyncFd::register_with_interest(second, Interest::READABLE) }?
            }
        };
        let waiting = self.waiting.insert(waiting);
        // Cleared before the next read, which sees whatever made it ready.
        ready!(waiting.poll_read_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for ModeratedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Patience {
            socket: self,
            wait: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut outbox = self.outbox();
        let was_empty = outbox.is_empty();
        let segments = self.state.max_gso_segments();
        outbox.push(transmit, segments, |transmit| self.send(transmit))?;
        if was_empty && !outbox.is_empty() {
            self.is_waiting.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = bufs.len().min(READ_BATCHES);
        let bufs = &mut bufs[..most];
        // Only the endpoint's driver receives; nothing panics while it is held.
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        ready!(arrivals.end_of_pause(cx));
        if std::mem::take(&mut arrivals.is_drained) && arrivals.is_worth_a_pause() {
            ready!(arrivals.begin_pause(cx));
        }
        loop {
            match self.state.recv((&self.socket).into(), bufs, meta) {
                Ok(messages) => {
                    arrivals.is_drained = messages < bufs.len();
                    arrivals.count(&meta[..messages]);
                    return Poll::Ready(Ok(messages));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if arrivals.is_worth_a_pause() {
                        ready!(arrivals.begin_pause(cx));
                    } else {
                        ready!(arrivals.poll_kernel(&self.socket, cx))?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments().min(self.outbox().at_once())
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// One connection's wait for room in a full socket.
#[derive(Debug)]
struct Patience {
    socket: Arc<ModeratedSocket>,
    wait: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for Patience {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.wait.is_none() && !self.socket.is_full.swap(false, Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        ready!(
            self.wait
                .get_or_insert_with(|| Box::pin(sleep(FULL)))
                .as_mut()
                .poll(cx)
        );
        self.wait = None;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM_BYTES: usize = 1_000;

    fn pair() -> (Arc<ModeratedSocket>, Arc<ModeratedSocket>) {
        let open = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            ModeratedSocket::new(socket).unwrap()
        };
        (open(), open())
    }

    async fn send(from: &Arc<ModeratedSocket>, to: &ModeratedSocket) {
        let contents = [7; DATAGRAM_BYTES];
        let transmit = Transmit {
            destination: to.local_addr().unwrap(),
            ecn: None,
            contents: &contents,
            segment_size: None,
            src_ip: None,
        };
        let mut poller = from.clone().create_io_poller();
        loop {
            poll_fn(|cx| poller.as_mut().poll_writable(cx))
                .await
                .unwrap();
            match from.try_send(&transmit) {
                Ok(()) => return,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    /// The datagrams of the next read.
    async fn receive(socket: &ModeratedSocket) -> usize {
        let mut buffer = vec![0; 64 * DATAGRAM_BYTES];
        let mut metas = [RecvMeta::default()];
        poll_fn(|cx| {
            let mut bufs = [IoSliceMut::new(&mut buffer)];
            socket.poll_recv(cx, &mut bufs, &mut metas)
        })
        .await
        .unwrap();
        metas[0].len.div_ceil(metas[0].stride)
    }

    #[tokio::test]
    async fn what_comes_rarely_is_waited_for() {
        let (near, far) = pair();
        for _ in 0..3 {
            let reading = receive(&far);
            let sending = async {
                tokio::time::sleep(Duration::from_millis(3)).await;
                send(&near, &far).await;
            };
            assert_eq!(tokio::join!(reading, sending).0, 1);
            assert!(!far.arrivals.lock().unwrap().is_busy);
        }
    }

    #[tokio::test]
    async fn nothing_is_left_behind_by_pauses() {
        const EACH: usize = 5;
        let (near, far) = pair();
        // Busy whatever the clock of this machine says: the count is made up.
        let mut left = 0;
        for _ in 0..50 {
            {
                let mut arrivals = far.arrivals.lock().unwrap();
                arrivals.is_busy = true;
                arrivals.counted_since = Instant::now();
            }
            for _ in 0..EACH {
                send(&near, &far).await;
            }
            left += EACH;
            while left > 0 {
                left -= receive(&far).await;
            }
        }
        let arrivals = far.arrivals.lock().unwrap();
        assert!(arrivals.waiting.is_none() || !arrivals.is_busy);
    }

    #[tokio::test]
    async fn a_full_socket_is_tried_again() {
        let (near, far) = pair();
        near.is_full.store(true, Ordering::Relaxed);
        send(&near, &far).await;
        assert!(!near.is_full.load(Ordering::Relaxed));
        assert_eq!(receive(&far).await, 1);
    }

    #[tokio::test]
    async fn what_waits_for_more_leaves_without_it() {
        const PACKETS: usize = 10;
        let (near, far) = pair();
        for byte in 0..5 {
            let transmit = Transmit {
                destination: far.local_addr().unwrap(),
                ecn: None,
                contents: &[byte; PACKETS * DATAGRAM_BYTES],
                segment_size: Some(DATAGRAM_BYTES),
                src_ip: None,
            };
            near.try_send(&transmit).unwrap();
            assert!(!near.outbox().is_empty());
            let mut received = 0;
            while received < PACKETS {
                received += receive(&far).await;
            }
            assert!(near.outbox().is_empty());
        }
    }

    #[tokio::test]
    async fn busy_is_between_its_bounds() {
        let (_, socket) = pair();
        for (bytes, busy) in [
            (0, false),
            (19_000, false),
            (100_000, true),
            (900_000, false),
        ] {
            let mut arrivals = socket.arrivals.lock().unwrap();
            // Counted over twice the time: half of it in each.
            arrivals.counted_since = Instant::now() - 2 * COUNTED;
            arrivals.counted_bytes = 2 * bytes;
            assert_eq!(arrivals.is_worth_a_pause(), busy, "{bytes}");
        }
    }
}
