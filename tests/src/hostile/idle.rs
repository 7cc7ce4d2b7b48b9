//! Who comes in and says nothing: connections that are held, and taken again whenever they are lost.
//!
//! They complete what costs the victim a place (TLS, or TCP's handshake) and go no further. From the
//! addresses of this machine, or from a namespace of their own, whose addresses may stand outside an
//! allow-list.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rootswarm_swarm::Role;
use rootswarm_transport::tls::Dialer;
use rootswarm_transport::trust::{SeedTrust, SwarmTrust};
use rootswarm_transport::tuning::Tuning;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::member::endpoint;
use crate::netns::Namespace;

/// Between one connection that was lost, or not to be had, and the next.
const PAUSE: Duration = Duration::from_millis(50);
/// For a connection to come about.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Connections to the seed's join protocol without a request.
    Joins,
    /// HTTP connections without one.
    Http,
}

/// Holds `each` connections from every address in `from`, for ever.
pub(crate) async fn hold(
    what: Hold,
    victim: SocketAddr,
    from: &[IpAddr],
    each: usize,
    fired: &(impl Fn() + Clone + Send + 'static),
) {
    let mut holding = JoinSet::new();
    for address in from.iter().copied() {
        match what {
            Hold::Joins => {
                let Ok(endpoint) = endpoint(address) else {
                    continue;
                };
                for _ in 0..each {
                    let (endpoint, fired) = (endpoint.clone(), fired.clone());
                    holding.spawn(async move {
                        let trust = SwarmTrust::new(SeedTrust::FirstUse);
                        let dialer = Dialer::join(trust, &Tuning::default());
                        loop {
                            let dial = dialer.connect(&endpoint, victim, Role::Seed);
                            if let Ok(Ok((connection, _))) = timeout(PATIENCE, dial).await {
                                fired();
                                connection.closed().await;
                            }
                            sleep(PAUSE).await;
                        }
                    });
                }
            }
            Hold::Http => {
                for _ in 0..each {
                    let fired = fired.clone();
                    holding.spawn(async move {
                        loop {
                            if let Ok(stream) = tcp(address, victim).await {
                                fired();
                                // Its end, whichever.
                                let _ = stream.readable().await;
                            }
                            sleep(PAUSE).await;
                        }
                    });
                }
            }
        }
    }
    while holding.join_next().await.is_some() {}
}

async fn tcp(from: IpAddr, to: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
    let socket = match from {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.bind((from, 0).into())?;
    let connecting = timeout(PATIENCE, socket.connect(to)).await;
    connecting.map_err(|_| std::io::ErrorKind::TimedOut)?
}

/// Strangers in a namespace that hold what they can get until this is dropped.
pub struct Strangers {
    fired: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Strangers {
    /// Begins to hold `each` connections of `what` from every address in `from`, all of which
    /// `namespace` has.
    #[must_use]
    pub fn begin(
        namespace: &Namespace,
        what: Hold,
        victim: SocketAddr,
        from: Vec<IpAddr>,
        each: usize,
    ) -> Strangers {
        let (fired, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let handle = namespace.handle();
        let thread = {
            let (fired, stop) = (fired.clone(), stop.clone());
            std::thread::spawn(move || {
                // Only this thread is moved, and all sockets are made by it.
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(handle.as_fd(), network)?;
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(async {
                    let count = move || {
                        fired.fetch_add(1, Ordering::Relaxed);
                    };
                    let stopped = async {
                        while !stop.load(Ordering::Relaxed) {
                            sleep(PAUSE).await;
                        }
                    };
                    tokio::select! {
                        () = hold(what, victim, &from, each, &count) => {}
                        () = stopped => {}
                    }
                });
                Ok(())
            })
        };
        Strangers {
            fired,
            stop,
            thread: Some(thread),
        }
    }

    /// How many connections they have had so far.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::Relaxed)
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it says is that it could not begin: then it never fired.
            let _ = thread.join();
        }
    }
}
