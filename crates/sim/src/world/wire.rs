//! How packets and chunks travel between hosts.
//!
//! A connection keeps its control packets in order; each chunk is a stream of its own, in bursts
//! that keep their order among themselves only. A sender has at most a window under way.

use super::ending::STALL_CHECK_NS;
use super::{Body, Event, Lie, Packet, SEED, State, World, chance};
use crate::nic::UploadKey;
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{
    ChunkOutcome, ConnId, Have, Hello, Input, Message, UploadOutcome, encode_hello, encode_message,
};

/// Length prefix, stream frame, packet and the share of an acknowledgement: what a small message
/// costs beside its own bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 60;

/// A connection between two hosts. Side 0 dialed.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) hosts: [u32; 2],
    pub(crate) open: [bool; 2],
    /// When the last control packet towards each side arrives: they keep their order.
    last_arrival_ns: [u64; 2],
    pub(crate) uploads: Vec<UploadKey>,
}

impl Conn {
    pub(crate) fn new(from: usize, to: usize) -> Self {
        Self {
            hosts: [from as u32, to as u32],
            open: [false, false],
            last_arrival_ns: [0, 0],
            uploads: Vec::new(),
        }
    }

    pub(crate) fn side_of(&self, host: usize) -> usize {
        usize::from(self.hosts[0] as usize != host)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// No burst has arrived.
    Expects,
    /// The node knows of it.
    Receives,
    /// All bytes are here.
    Verifies,
    /// It will hear no more of it.
    Done,
}

/// A chunk on its way.
#[derive(Debug)]
pub(crate) struct Upload {
    serial: u32,
    pub(crate) conn: u32,
    pub(crate) index: ChunkIndex,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(super) len: u32,
    pub(super) sent: u32,
    arrived: u32,
    pub(super) acked: u32,
    in_ring: bool,
    pub(crate) sender_done: bool,
    over_planned: bool,
    pub(crate) receiver: Receiver,
    corrupt: bool,
    last_arrival_ns: u64,
    pub(super) heard_ns: u64,
    pub(super) acked_ns: u64,
}

impl World<'_> {
    fn latency_ns(&mut self) -> u64 {
        (self.plan.latency_us + self.rng.between(0, self.plan.jitter_us)) * 1000
    }

    pub(crate) fn upload(&mut self, key: UploadKey) -> Option<&mut Upload> {
        self.uploads
            .get_mut(key.slot as usize)
            .filter(|upload| upload.serial == key.serial)
    }

    fn find_upload(&self, conn: u32, from: usize, index: ChunkIndex) -> Option<UploadKey> {
        self.conns[conn as usize]
            .uploads
            .iter()
            .copied()
            .find(|key| {
                let upload = &self.uploads[key.slot as usize];
                upload.index == index && upload.from as usize == from && !upload.sender_done
            })
    }

    /// Frees the slot once neither side will hear of the upload again.
    pub(crate) fn settle(&mut self, key: UploadKey) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        if upload.sender_done && upload.receiver == Receiver::Done {
            upload.serial = upload.serial.wrapping_add(1);
            let conn = upload.conn as usize;
            self.conns[conn].uploads.retain(|other| *other != key);
            self.free_uploads.push(key.slot);
        }
    }

    pub(crate) fn send_hello(&mut self, host: usize, conn: ConnId, mut hello: Hello) {
        if self.hosts[host].lies.is_some() {
            hello.have = Have::Everything;
            self.sometimes.note("lie");
        }
        let bytes = encode_hello(&hello).len();
        let conn = conn.0 as u32;
        let hello = Box::new(hello);
        self.send_control(host, conn, bytes, Body::Hello { conn, hello });
    }

    pub(crate) fn send_message(&mut self, host: usize, conn: ConnId, message: Message) {
        match &message {
            Message::Busy(_) if self.hosts[host].lies == Some(Lie::Silent) => return,
            Message::Busy(_) => self.sometimes.note("busy"),
            Message::Cancel(_) => self.sometimes.note("cancel"),
            Message::Request(_) if self.conns[conn.0 as usize].hosts[1] == SEED as u32 => {
                self.sometimes.note("request to the seed");
            }
            _ => {}
        }
        let bytes = encode_message(&message).len();
        let conn = conn.0 as u32;
        self.send_control(host, conn, bytes, Body::Message { conn, message });
    }

    pub(crate) fn send_control(&mut self, host: usize, conn: u32, bytes: usize, body: Body) {
        let it = &self.conns[conn as usize];
        let side = it.side_of(host);
        if !it.open[side] {
            self.checkers.sent_after_close(host, &body);
            return;
        }
        let to = it.hosts[1 - side];
        let bytes = (bytes + MESSAGE_OVERHEAD_BYTES) as u32;
        self.hosts[host].traffic.control_bytes += u64::from(bytes);
        self.hosts[host].traffic.control_messages += 1;
        self.hosts[host]
            .up
            .control
            .push_back(Packet { bytes, to, body });
        self.pump(host);
    }

    pub(crate) fn begin_upload(&mut self, host: usize, conn: ConnId, index: ChunkIndex) {
        let conn = conn.0 as u32;
        let it = &self.conns[conn as usize];
        let side = it.side_of(host);
        if !it.open[side] {
            return self.checkers.sent_after_close(host, &index);
        }
        let to = it.hosts[1 - side];
        self.checkers
            .uploads(host, index, self.hosts[host].node.have().get(index));
        let corrupts = self.hosts[host].corrupts;
        let corrupt = corrupts > 0.0 && chance(&mut self.rng, corrupts);
        let slot = self.free_uploads.pop().unwrap_or(self.uploads.len() as u32);
        let serial = self.uploads.get(slot as usize).map_or(0, |old| old.serial);
        let upload = Upload {
            serial,
            conn,
            index,
            from: host as u32,
            to,
            len: self.geometry.chunk_len(index),
            sent: 0,
            arrived: 0,
            acked: 0,
            in_ring: true,
            sender_done: false,
            over_planned: false,
            receiver: Receiver::Expects,
            corrupt,
            last_arrival_ns: 0,
            heard_ns: self.now_ns,
            acked_ns: self.now_ns,
        };
        if slot as usize == self.uploads.len() {
            self.uploads.push(upload);
        } else {
            self.uploads[slot as usize] = upload;
        }
        let key = UploadKey { slot, serial };
        self.conns[conn as usize].uploads.push(key);
        self.hosts[host].up.ring.push_back(key);
        self.events
            .push(self.now_ns + STALL_CHECK_NS, Event::StallCheck(key));
        self.pump(host);
    }

    /// Starts the next packet of an idle uplink: control first, then a burst of the next upload.
    pub(crate) fn pump(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        if it.up.busy || it.state != State::Alive {
            return;
        }
        let packet = match it.up.control.pop_front() {
            Some(packet) => packet,
            None => match self.next_burst(host) {
                Some(packet) => packet,
                None => return,
            },
        };
        let it = &mut self.hosts[host];
        it.up.busy = true;
        let done_ns = self.now_ns + it.up.rate.time_ns(u64::from(packet.bytes));
        self.events.push(done_ns, Event::UplinkFree(host as u32));
        let arrival_ns = done_ns + self.latency_ns();
        let arrival_ns = self.in_order(&packet, arrival_ns);
        self.events.push(arrival_ns, Event::Arrive(packet));
    }

    /// Streams keep their order, each for itself: control packets of a connection, and the
    /// bursts of one chunk.
    fn in_order(&mut self, packet: &Packet, arrival_ns: u64) -> u64 {
        let last = match &packet.body {
            Body::Burst(key) | Body::Reset(key) => match self.upload(*key) {
                Some(upload) => &mut upload.last_arrival_ns,
                None => return arrival_ns,
            },
            Body::Stop(_) => return arrival_ns,
            Body::Hello { conn, .. } | Body::Message { conn, .. } | Body::Close { conn } => {
                let conn = &mut self.conns[*conn as usize];
                let side = conn.side_of(packet.to as usize);
                &mut conn.last_arrival_ns[side]
            }
        };
        *last = arrival_ns.max(*last + 1);
        *last
    }

    fn next_burst(&mut self, host: usize) -> Option<Packet> {
        loop {
            let key = self.hosts[host].up.ring.pop_front()?;
            let (burst, window) = (self.plan.burst_bytes as u32, self.plan.window_bytes as u32);
            let Some(upload) = self.upload(key) else {
                continue;
            };
            if upload.sender_done {
                upload.in_ring = false;
                continue;
            }
            let bytes = burst.min(upload.len - upload.sent);
            if bytes == 0 || upload.sent + bytes > upload.acked + window.max(burst) {
                upload.in_ring = false;
                continue;
            }
            upload.sent += bytes;
            let to = upload.to;
            let more = upload.sent < upload.len;
            upload.in_ring = more;
            if more {
                self.hosts[host].up.ring.push_back(key);
            }
            self.hosts[host].traffic.chunk_bytes_sent += u64::from(bytes);
            return Some(Packet {
                bytes,
                to,
                body: Body::Burst(key),
            });
        }
    }

    pub(crate) fn uplink_free(&mut self, host: usize) {
        self.hosts[host].up.busy = false;
        if host == SEED {
            self.strike_by_copies();
        }
        self.pump(host);
    }

    pub(crate) fn arrives(&mut self, packet: Packet) {
        let host = packet.to as usize;
        let bytes = u64::from(packet.bytes);
        let it = &mut self.hosts[host];
        if matches!(it.state, State::Dead | State::Waiting) {
            return;
        }
        if it.down.arrive(packet, bytes) {
            let done_ns = self.now_ns + it.down.rate.time_ns(bytes);
            self.events.push(done_ns, Event::DownlinkFree(host as u32));
        }
    }

    pub(crate) fn downlink_free(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        let Some(packet) = it.down.queue.pop_front() else {
            return;
        };
        it.down.queued_bytes -= u64::from(packet.bytes);
        if let Some(next) = it.down.queue.front() {
            let done_ns = self.now_ns + it.down.rate.time_ns(u64::from(next.bytes));
            self.events.push(done_ns, Event::DownlinkFree(host as u32));
        }
        match it.state {
            State::Alive => self.deliver(host, packet),
            // The kernel keeps it; the network's part is over.
            State::Frozen => it.held.push(Event::Arrive(packet)),
            State::Dead | State::Waiting => {}
        }
    }

    fn deliver(&mut self, host: usize, packet: Packet) {
        match packet.body {
            Body::Burst(key) => self.burst_arrived(host, key, packet.bytes),
            Body::Hello { conn, hello } => {
                if self.is_open(conn, host) {
                    let conn = Self::input_conn(conn);
                    self.input(
                        host,
                        Input::Hello {
                            conn,
                            hello: *hello,
                        },
                    );
                }
            }
            Body::Message { conn, message } => {
                if self.is_open(conn, host) {
                    let conn = Self::input_conn(conn);
                    self.input(host, Input::Message { conn, message });
                }
            }
            Body::Stop(key) => {
                if self.upload(key).is_some_and(|upload| !upload.sender_done) {
                    self.sometimes.note("upload refused");
                    self.upload_over(key, UploadOutcome::Refused);
                }
            }
            Body::Reset(key) => self.chunk_over(key, ChunkOutcome::Broken),
            Body::Close { conn } => self.lose(conn, host),
        }
    }

    pub(crate) fn is_open(&self, conn: u32, host: usize) -> bool {
        let it = &self.conns[conn as usize];
        it.open[it.side_of(host)]
    }

    fn burst_arrived(&mut self, host: usize, key: UploadKey, bytes: u32) {
        let now_ns = self.now_ns;
        self.hosts[host].traffic.chunk_bytes_received += u64::from(bytes);
        let Some(upload) = self.upload(key) else {
            return;
        };
        let (conn, index) = (Self::input_conn(upload.conn), upload.index);
        upload.arrived += bytes;
        upload.heard_ns = now_ns;
        let first = upload.receiver == Receiver::Expects;
        let live = upload.receiver == Receiver::Receives || first;
        if first {
            upload.receiver = Receiver::Receives;
        }
        let all = upload.arrived >= upload.len;
        let latency = self.latency_ns();
        self.events
            .push(now_ns + latency, Event::Acked { upload: key, bytes });
        if first {
            self.input(host, Input::ChunkStarted { conn, index });
        }
        if live && all {
            let Some(upload) = self.upload(key) else {
                return;
            };
            if upload.receiver != Receiver::Receives {
                return;
            }
            upload.receiver = Receiver::Verifies;
            let len = f64::from(upload.len);
            let cost_ns = (len * 1e9 / self.plan.verify_bytes_per_s) as u64;
            let later_ns = self.plan.verify_us * 1000;
            let it = &mut self.hosts[host];
            it.verifier_free_ns = it.verifier_free_ns.max(now_ns) + cost_ns;
            self.events.push(
                it.verifier_free_ns + later_ns,
                Event::VerifyDone { upload: key },
            );
        }
    }

    pub(crate) fn verify_done(&mut self, key: UploadKey) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        let (host, corrupt) = (upload.to as usize, upload.corrupt);
        if upload.receiver != Receiver::Verifies {
            return;
        }
        match self.hosts[host].state {
            State::Frozen => self.hosts[host]
                .held
                .push(Event::VerifyDone { upload: key }),
            _ if corrupt => {
                self.sometimes.note("corrupt chunk");
                self.chunk_over(key, ChunkOutcome::Corrupt);
            }
            _ => self.chunk_over(key, ChunkOutcome::Verified),
        }
    }

    /// The arrival of a chunk is over; the node hears of it if it knew of it.
    pub(crate) fn chunk_over(&mut self, key: UploadKey, outcome: ChunkOutcome) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        let was = std::mem::replace(&mut upload.receiver, Receiver::Done);
        let (host, conn, index) = (upload.to as usize, upload.conn, upload.index);
        self.settle(key);
        if matches!(was, Receiver::Receives | Receiver::Verifies) && self.is_open(conn, host) {
            if outcome == ChunkOutcome::Broken {
                self.sometimes.note("chunk broken");
            }
            let conn = Self::input_conn(conn);
            self.input(
                host,
                Input::ChunkEnded {
                    conn,
                    index,
                    outcome,
                },
            );
        }
    }

    pub(crate) fn acked(&mut self, key: UploadKey, bytes: u32) {
        let now_ns = self.now_ns;
        let Some(upload) = self.upload(key) else {
            return;
        };
        upload.acked += bytes;
        upload.acked_ns = now_ns;
        let host = upload.from as usize;
        if upload.sender_done {
            return;
        }
        if upload.acked >= upload.len {
            if !std::mem::replace(&mut upload.over_planned, true) {
                let late_ns = self.rng.between(0, self.plan.ack_delay_us) * 1000;
                let outcome = UploadOutcome::Delivered;
                self.events.push(
                    now_ns + late_ns,
                    Event::UploadOver {
                        upload: key,
                        outcome,
                    },
                );
            }
        } else if !upload.in_ring && upload.sent < upload.len {
            upload.in_ring = true;
            self.hosts[host].up.ring.push_back(key);
            self.pump(host);
        }
    }

    pub(crate) fn upload_over(&mut self, key: UploadKey, outcome: UploadOutcome) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        let host = upload.from as usize;
        if upload.sender_done {
            return;
        }
        if self.hosts[host].state == State::Frozen {
            let event = Event::UploadOver {
                upload: key,
                outcome,
            };
            self.hosts[host].held.push(event);
            return;
        }
        let Some(upload) = self.upload(key) else {
            return;
        };
        upload.sender_done = true;
        let (conn, index) = (upload.conn, upload.index);
        self.settle(key);
        if self.is_open(conn, host) {
            let conn = Self::input_conn(conn);
            self.input(
                host,
                Input::UploadEnded {
                    conn,
                    index,
                    outcome,
                },
            );
        }
    }

    pub(crate) fn cancel_upload(&mut self, host: usize, conn: ConnId, index: ChunkIndex) {
        let conn = conn.0 as u32;
        let Some(key) = self.find_upload(conn, host, index) else {
            return;
        };
        self.sometimes.note("upload cancelled");
        // The node hears of it as of any other end, after this turn.
        let outcome = UploadOutcome::Refused;
        self.events.push(
            self.now_ns,
            Event::UploadOver {
                upload: key,
                outcome,
            },
        );
        self.send_control(host, conn, 8, Body::Reset(key));
    }

    pub(crate) fn stop_chunk(&mut self, host: usize, conn: ConnId, index: ChunkIndex) {
        let conn = conn.0 as u32;
        let it = &self.conns[conn as usize];
        let sender = it.hosts[1 - it.side_of(host)];
        let key = it.uploads.iter().copied().find(|key| {
            let upload = &self.uploads[key.slot as usize];
            upload.index == index && upload.from == sender && upload.receiver == Receiver::Receives
        });
        let Some(key) = key else {
            return;
        };
        self.sometimes.note("chunk stopped");
        if let Some(upload) = self.upload(key) {
            upload.receiver = Receiver::Done;
        }
        self.settle(key);
        self.send_control(host, conn, 8, Body::Stop(key));
    }
}
