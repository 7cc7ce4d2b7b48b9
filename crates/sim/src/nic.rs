//! The links: one queue out of each host and one into it.
//!
//! An uplink sends control packets first and then a burst of each of its uploads in turn, as a
//! QUIC endpoint does that gives its control streams priority; but a burst that has begun is not
//! interrupted. A downlink serves what arrives in the order of arrival: that is where many
//! senders meet and where control packets wait behind chunks.

use std::collections::VecDeque;

/// Names an upload of the world; the serial tells apart those that used one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UploadKey {
    pub(crate) slot: u32,
    pub(crate) serial: u32,
}

/// How fast a link is for payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    ns_per_byte: f64,
}

impl Rate {
    pub(crate) fn new(bits_per_s: f64, efficiency: f64) -> Self {
        Self {
            ns_per_byte: 8e9 / (bits_per_s * efficiency),
        }
    }

    pub(crate) fn time_ns(self, bytes: u64) -> u64 {
        (bytes as f64 * self.ns_per_byte).ceil() as u64
    }
}

/// What a host sends, in its order.
#[derive(Debug)]
pub(crate) struct Uplink<P> {
    pub(crate) rate: Rate,
    pub(crate) busy: bool,
    pub(crate) control: VecDeque<P>,
    /// Uploads that have something to send and window to send it, in turn.
    pub(crate) ring: VecDeque<UploadKey>,
}

impl<P> Uplink<P> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            busy: false,
            control: VecDeque::new(),
            ring: VecDeque::new(),
        }
    }
}

/// What arrives at a host, in its order.
#[derive(Debug)]
pub(crate) struct Downlink<P> {
    pub(crate) rate: Rate,
    /// The first one is being received.
    pub(crate) queue: VecDeque<P>,
    pub(crate) queued_bytes: u64,
    pub(crate) queued_bytes_max: u64,
}

impl<P> Downlink<P> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            queue: VecDeque::new(),
            queued_bytes: 0,
            queued_bytes_max: 0,
        }
    }

    /// A packet of `bytes` arrived. Says whether the link was idle: the caller plans its end.
    pub(crate) fn arrive(&mut self, packet: P, bytes: u64) -> bool {
        self.queued_bytes += bytes;
        self.queued_bytes_max = self.queued_bytes_max.max(self.queued_bytes);
        self.queue.push_back(packet);
        self.queue.len() == 1
    }
}
