//! Notices when this host's addresses change, and says from which of them a destination is reached now.
//!
//! The kernel reports changes of links, addresses and routes on a netlink socket (rtnetlink(7)). It is
//! opened with the node and needs no privilege to be read. What a report says is not looked at: it only
//! means that it is time to ask. Where there is no such socket it is asked once a second. What follows from
//! a change is decided by [`crate::seed_keeper`] and by the node.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout_at};

/// Changes come in groups: an address is removed, another added, then a route.
const SETTLED: Duration = Duration::from_millis(50);

/// But no longer than this: a link that flaps for ever must not keep a node from looking.
const SETTLED_AT_LAST: Duration = Duration::from_millis(300);

/// Between looks where the kernel does not tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `RTMGRP_LINK`, and `RTMGRP_IFADDR` and `RTMGRP_ROUTE` of IPv4 and IPv6, of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Waits for changes.
pub(crate) struct AddressWatch {
    socket: Option<AsyncFd<OwnedFd>>,
}

impl AddressWatch {
    /// Begins to watch. Within a runtime.
    pub(crate) fn begin() -> AddressWatch {
        let socket = open().inspect_err(|error| {
            tracing::debug!(%error, "no netlink socket: addresses are looked at once a second");
        });
        AddressWatch {
            socket: socket.ok(),
        }
    }

    /// Returns when something may have changed and no more has for a moment.
    pub(crate) async fn changed(&self) {
        let Some(socket) = &self.socket else {
            return sleep(LOOK_EVERY).await;
        };
        report(socket).await;
        let at_last = Instant::now() + SETTLED_AT_LAST;
        loop {
            let quiet = (Instant::now() + SETTLED).min(at_last);
            if timeout_at(quiet, report(socket)).await.is_err() {
                return;
            }
        }
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // SAFETY: the descriptor is owned by what is made here, so that it stays open, and the same, until it
    // is deregistered.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(watched?)
}

/// Takes all reports that there are, at least one.
async fn report(socket: &AsyncFd<OwnedFd>) {
    // The end of a report that does not fit is dropped, and nobody misses it.
    let mut bytes = [0; 4096];
    let mut taken = false;
    while !taken {
        let Ok(mut ready) = socket.readable().await else {
            return sleep(LOOK_EVERY).await;
        };
        loop {
            match recv(socket.get_ref(), bytes.as_mut_slice(), RecvFlags::empty()) {
                // Some were lost: there was something to report all the same.
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => taken = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break ready.clear_ready(),
                Err(_) => return sleep(LOOK_EVERY).await,
            }
        }
    }
}

/// The address from which the kernel would send to `to` now; none without a route. "Connecting" a UDP
/// socket sends nothing. A node that is `bound` to an address has no choice: that one, while it is there.
pub(crate) fn source_of(to: SocketAddr, bound: IpAddr) -> Option<IpAddr> {
    let from = match (bound.is_unspecified(), to) {
        (false, _) => bound.to_canonical(),
        (true, SocketAddr::V4(_)) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (true, SocketAddr::V6(_)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((from, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether an address is one of this host's. When the kernel does not say, it is.
pub(crate) fn is_local(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
        Ok(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_the_kernels_or_the_one_that_was_asked_for() {
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let here: IpAddr = [127, 0, 0, 1].into();
        let other: IpAddr = [127, 0, 0, 9].into();
        // TEST-NET-1: on no interface.
        let elsewhere: IpAddr = [192, 0, 2, 1].into();
        for (to, bound, expected) in [
            ("127.0.0.1:9", any, Some(here)),
            ("127.0.0.1:9", other, Some(other)),
            ("127.0.0.1:9", elsewhere, None),
        ] {
            assert_eq!(
                source_of(to.parse().unwrap(), bound),
                expected,
                "{to} {bound}"
            );
        }
        assert!(is_local(here) && !is_local(elsewhere));
    }

    #[tokio::test]
    async fn it_is_silent_while_nothing_changes() {
        let watch = AddressWatch::begin();
        assert!(watch.socket.is_some());
        let changed = tokio::time::timeout(Duration::from_millis(20), watch.changed());
        // Another process of this machine may change something; not in each of so many tries.
        let mut watch_again = changed.await;
        for _ in 0..20 {
            if watch_again.is_err() {
                return;
            }
            let changed = tokio::time::timeout(Duration::from_millis(20), watch.changed());
            watch_again = changed.await;
        }
        panic!("it reports changes all the time");
    }
}
