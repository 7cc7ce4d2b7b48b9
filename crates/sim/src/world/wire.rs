//! How control packets travel between hosts. A connection keeps them in order.

use super::inbox::Arrival;
use super::{Event, Lie, SEED, World};
use crate::faults::Happening;
use crate::nic::UploadKey;
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{
    ChunkOutcome, ChunkRun, ConnId, Have, Hello, Input, Message, UploadOutcome, encode_hello,
    encode_message,
};

/// Length prefix, stream frame, packet and the share of an acknowledgement: what a small message
/// costs beside its own bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 60;

/// Runs of chunks that [`Body::Haves`] takes.
const HAVES: usize = 3;

/// A connection between two hosts. Side 0 dialed.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Conn {
    pub(crate) hosts: [u32; 2],
    /// When the last control packet towards each side arrives: they keep their order.
    last_arrival_ns: [u64; 2],
    /// The same for when it is received.
    last_received_ns: [u64; 2],
    pub(crate) uploads: Vec<UploadKey>,
}

impl Conn {
    pub(crate) fn new(from: usize, to: usize) -> Self {
        Self {
            hosts: [from as u32, to as u32],
            last_arrival_ns: [0, 0],
            last_received_ns: [0, 0],
            uploads: Vec::new(),
        }
    }

    pub(crate) fn side_of(&self, host: usize) -> usize {
        usize::from(self.hosts[0] as usize != host)
    }
}

/// A control packet on its way to a rack.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(super) to: u32,
    /// What it weighs on a link, headers not counted where [`crate::Plan::efficiency`] has them.
    pub(super) bytes: u32,
    /// Which side of its connection it goes to.
    side: u8,
    pub(super) body: Body,
}

/// What a control packet carries.
#[derive(Debug)]
pub(crate) enum Body {
    Hello {
        conn: u32,
        hello: Box<Hello>,
    },
    Message {
        conn: u32,
        message: Message,
    },
    /// Announced chunks, a few: two thirds of all control packets, which so need no memory of their own.
    Haves {
        conn: u32,
        count: u8,
        runs: [ChunkRun; HAVES],
    },
    /// The receiver does not want the rest of a chunk.
    Stop(UploadKey),
    /// The sender does not send the rest of a chunk.
    Reset(UploadKey),
    /// The other side closed the connection.
    Close {
        conn: u32,
    },
}

impl Body {
    fn of(conn: u32, message: Message) -> Self {
        match message {
            Message::Have(few) if few.len() <= HAVES => {
                let first = ChunkIndex(0);
                let mut runs = [ChunkRun { first, count: 0 }; HAVES];
                runs[..few.len()].copy_from_slice(&few);
                let count = few.len() as u8;
                Self::Haves { conn, count, runs }
            }
            message => Self::Message { conn, message },
        }
    }

    /// On which connection it comes in the order in which it was sent.
    fn stream(&self) -> Option<u32> {
        match self {
            Self::Hello { conn, .. }
            | Self::Message { conn, .. }
            | Self::Haves { conn, .. }
            | Self::Close { conn } => Some(*conn),
            Self::Stop(_) | Self::Reset(_) => None,
        }
    }

    /// A chunk that it is about, and the connection.
    pub(super) fn subject(&self) -> Option<(u32, ChunkIndex)> {
        match self {
            Self::Haves { conn, runs, .. } => Some((*conn, runs[0].first)),
            Self::Message { conn, .. } => Some((*conn, ChunkIndex(0))),
            _ => None,
        }
    }
}

/// A number's bytes in the wire format: a byte, or one that says how many follow.
fn varint_bytes(value: u32) -> usize {
    match value {
        0..=250 => 1,
        251..=0xffff => 3,
        _ => 5,
    }
}

/// The length of a control frame, as `encode_message` would make it.
fn frame_bytes(message: &Message) -> usize {
    match message {
        Message::Have(runs) => {
            let each = runs
                .iter()
                .map(|run| varint_bytes(run.first.0) + varint_bytes(run.count));
            1 + varint_bytes(runs.len() as u32) + each.sum::<usize>()
        }
        Message::Request(index) | Message::Busy(index) | Message::Cancel(index) => {
            1 + varint_bytes(index.0)
        }
        Message::Progress(count) => 1 + varint_bytes(*count),
        rare => encode_message(rare).len(),
    }
}

impl World<'_> {
    pub(super) fn latency_ns(&mut self) -> u64 {
        (self.plan.latency_us + self.rng.between(0, self.plan.jitter_us)) * 1000
    }

    pub(crate) fn send_hello(&mut self, host: usize, conn: ConnId, mut hello: Hello) {
        if self.hosts[host].lies.is_some() {
            hello.have = Have::Everything;
            self.sometimes.note(Happening::Lie);
        }
        let bytes = encode_hello(&hello).len();
        let conn = conn.0 as u32;
        let hello = Box::new(hello);
        self.send_control(host, conn, bytes, Body::Hello { conn, hello });
    }

    pub(crate) fn send_message(&mut self, host: usize, conn: ConnId, message: Message) {
        match &message {
            Message::Busy(_) if self.hosts[host].lies == Some(Lie::Silent) => return,
            Message::Busy(_) => self.sometimes.note(Happening::Busy),
            Message::Cancel(_) => self.sometimes.note(Happening::Cancel),
            Message::Request(_) if self.conns[conn.0 as usize].hosts[1] == SEED as u32 => {
                self.sometimes.note(Happening::RequestToSeed);
            }
            _ => {}
        }
        let bytes = frame_bytes(&message);
        let conn = conn.0 as u32;
        self.send_control(host, conn, bytes, Body::of(conn, message));
    }

    pub(crate) fn send_control(&mut self, host: usize, conn: u32, bytes: usize, body: Body) {
        let it = &self.conns[conn as usize];
        let side = it.side_of(host);
        if !self.open[conn as usize][side] {
            self.checkers.sent_after_close(host, &body);
            return;
        }
        let to = it.hosts[1 - side];
        let bytes = (bytes + MESSAGE_OVERHEAD_BYTES) as u32;
        let traffic = &mut self.traffic[host];
        traffic.control_bytes += u64::from(bytes);
        traffic.control_messages += 1;
        let left_ns = self.up[host].control(u64::from(bytes), self.now_ns);
        let left_ns = self.control_to_core(host, to as usize, u64::from(bytes), left_ns);
        let arrival_ns = left_ns + self.latency_ns() + self.repeats_ns();
        let arrival_ns = self.in_order(&body, conn, 1 - side, arrival_ns);
        let packet = Packet {
            to,
            bytes,
            side: 1 - side as u8,
            body,
        };
        if self.enters(host, to as usize).is_some() {
            let slot = self.packets.put(packet);
            self.events.push(arrival_ns, Event::EntersRack(slot));
        } else {
            self.receive(packet, arrival_ns);
        }
    }

    /// A control packet reaches its receiver's link at `at_ns`: when it is through follows by
    /// arithmetic.
    pub(super) fn receive(&mut self, packet: Packet, at_ns: u64) {
        let Packet {
            to,
            bytes,
            side,
            body,
        } = packet;
        let host = to as usize;
        let down = &mut self.down[host];
        down.advance(self.now_ns);
        let received_ns = down.control(u64::from(bytes), at_ns);
        let received_ns = match body.stream() {
            Some(conn) => {
                let last = &mut self.conns[conn as usize].last_received_ns[usize::from(side)];
                *last = received_ns.max(*last + 1);
                *last
            }
            None => received_ns,
        };
        self.hand(host, received_ns, Arrival::Control { side, body });
    }

    /// Streams keep their order, each for itself: control packets of a connection, and the end of
    /// a chunk behind its bursts.
    fn in_order(&mut self, body: &Body, conn: u32, side: usize, arrival_ns: u64) -> u64 {
        let last = match body {
            Body::Reset(key) => match self.upload(*key) {
                Some(upload) => &mut upload.last_arrival_ns,
                None => return arrival_ns,
            },
            Body::Stop(_) => return arrival_ns,
            Body::Hello { .. } | Body::Message { .. } | Body::Haves { .. } | Body::Close { .. } => {
                &mut self.conns[conn as usize].last_arrival_ns[side]
            }
        };
        *last = arrival_ns.max(*last + 1);
        *last
    }

    /// A host takes a control packet that came for this side of its connection.
    pub(super) fn told(&mut self, host: usize, side: usize, body: Body) {
        match body {
            Body::Hello { conn, hello } => {
                if self.open[conn as usize][side] {
                    let (conn, hello) = (Self::input_conn(conn), *hello);
                    self.input(host, Input::Hello { conn, hello });
                }
            }
            Body::Message { conn, message } => self.message(host, conn, side, message),
            Body::Haves { conn, count, runs } => {
                let few = runs[..usize::from(count)].to_vec();
                self.message(host, conn, side, Message::Have(few));
            }
            Body::Stop(key) => {
                if self.upload(key).is_some_and(|upload| !upload.sender_done) {
                    self.sometimes.note(Happening::UploadRefused);
                    self.upload_over(key, UploadOutcome::Refused);
                }
            }
            Body::Reset(key) => self.chunk_over(key, ChunkOutcome::Broken),
            Body::Close { conn } => self.lose(conn, host),
        }
    }

    fn message(&mut self, host: usize, conn: u32, side: usize, message: Message) {
        if self.open[conn as usize][side] {
            let conn = Self::input_conn(conn);
            self.input(host, Input::Message { conn, message });
        }
    }

    pub(crate) fn is_open(&self, conn: u32, host: usize) -> bool {
        self.open[conn as usize][self.conns[conn as usize].side_of(host)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_weigh_what_they_weigh_on_the_wire() {
        let mut messages = vec![Message::WantPeers, Message::WantHaves(true)];
        for number in [0, 1, 250, 251, 252, 65_535, 65_536, 131_071] {
            let index = ChunkIndex(number);
            messages.extend([
                Message::Request(index),
                Message::Busy(index),
                Message::Cancel(index),
                Message::Progress(number),
            ]);
            for runs in [0, 1, 2, 250, 251, 2_048] {
                let run = ChunkRun {
                    first: index,
                    count: number / 2,
                };
                messages.push(Message::Have(vec![run; runs]));
            }
        }
        for message in messages {
            assert_eq!(
                frame_bytes(&message),
                encode_message(&message).len(),
                "{message:?}"
            );
        }
    }
}
