//! Two hosts and the link between them, without sockets and without a clock: each packet that
//! quinn makes goes through a queue, takes its time on the wire, and arrives a delay later.
//!
//! Both hosts are what the product has: its TLS identities, its QUIC settings, its controller and
//! quinn's pacing. Packets are handed over as quinn's driver does it, in batches of ten, which
//! reach the queue at once.

use std::collections::VecDeque;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint, Endpoint, Event, ServerConfig,
    StreamEvent, StreamId, VarInt,
};
use rootswarm_image::SwarmKey;
use rootswarm_swarm::Role;

use crate::identity::{Identity, NodeKey, SwarmCa};
use crate::retries::RetryKey;
use crate::tls::{Dialer, Listener};
use crate::tuning::Tuning;

/// Headers of IPv6 and UDP: rates and queues count bytes of IP.
const HEADERS_BYTES: usize = 48;

/// As many packets as quinn's driver asks for at once.
const BATCH_PACKETS: usize = 10;

/// What one stream carries: a chunk.
const STREAM_BYTES: usize = 256 << 10;

/// What waits for nothing in a case that goes as it should: more is an endless loop.
const STEPS_MAX: usize = 20_000_000;

/// One direction of a link, with the drop-tail queue before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub(super) bits_per_second: u64,
    pub(super) delay: Duration,
    /// Without the packet that is being sent.
    pub(super) queue_bytes: usize,
    /// The share of packets that a cable loses, whatever stands before it.
    pub(super) noise: f64,
}

/// Who is at both ends of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) mtu: u16,
    pub(super) connections: usize,
    /// Each connection carries data both ways.
    pub(super) both_ways: bool,
    /// What a receiver lets a connection have in flight unread.
    pub(super) receive_window_bytes: u32,
}

/// What came through one direction since the last [`Pair::forget`].
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    pub(super) bytes: usize,
    pub(super) packets: usize,
    pub(super) dropped: usize,
    /// How long each packet stood in the queue.
    waits: Vec<Duration>,
}

impl Passed {
    pub(super) fn mean_wait(&self) -> Duration {
        let packets = u32::try_from(self.waits.len()).unwrap_or(u32::MAX).max(1);
        self.waits.iter().sum::<Duration>() / packets
    }
}

struct Packet {
    arrives: Instant,
    waited: Duration,
    ecn: Option<EcnCodepoint>,
    contents: BytesMut,
}

struct Direction {
    wire: Wire,
    /// When all that was taken so far has been sent.
    free: Instant,
    /// What has not begun to be sent: when it does, and its length.
    waiting: VecDeque<(Instant, usize)>,
    waiting_bytes: usize,
    under_way: VecDeque<Packet>,
    passed: Passed,
    /// The state of the dice that say what the cable loses.
    dice: u64,
}

impl Direction {
    fn new(wire: Wire, now: Instant) -> Direction {
        Direction {
            wire,
            free: now,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            under_way: VecDeque::new(),
            passed: Passed::default(),
            dice: 1,
        }
    }

    /// Whether the cable loses the next packet (xorshift64: Marsaglia, "Xorshift RNGs", 2003).
    fn loses(&mut self) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 11) as f64 / ((1_u64 << 53) as f64) < self.wire.noise
    }

    fn push(&mut self, now: Instant, contents: &[u8], ecn: Option<EcnCodepoint>) {
        while let Some((begins, bytes)) = self.waiting.front().copied() {
            if begins > now {
                break;
            }
            self.waiting.pop_front();
            self.waiting_bytes -= bytes;
        }
        let bytes = contents.len() + HEADERS_BYTES;
        let begins = self.free.max(now);
        if begins > now {
            if self.waiting_bytes + bytes > self.wire.queue_bytes {
                self.passed.dropped += 1;
                return;
            }
            self.waiting.push_back((begins, bytes));
            self.waiting_bytes += bytes;
        }
        let nanos = bytes as u64 * 8 * 1_000_000_000 / self.wire.bits_per_second;
        self.free = begins + Duration::from_nanos(nanos);
        if self.loses() {
            return;
        }
        self.under_way.push_back(Packet {
            arrives: self.free + self.wire.delay,
            waited: begins - now,
            ecn,
            contents: contents.into(),
        });
    }

    fn next(&self) -> Option<Instant> {
        self.under_way.front().map(|packet| packet.arrives)
    }

    fn pop(&mut self) -> Option<Packet> {
        let packet = self.under_way.pop_front()?;
        self.passed.bytes += packet.contents.len() + HEADERS_BYTES;
        self.passed.packets += 1;
        self.passed.waits.push(packet.waited);
        Some(packet)
    }
}

struct Talk {
    connection: Connection,
    is_up: bool,
    /// The stream that is being written, and what is still to be written on it.
    stream: Option<(StreamId, usize)>,
    timeout: Option<Instant>,
}

struct Host {
    endpoint: Endpoint,
    /// By handle: no connection ends.
    talks: Vec<Talk>,
    sends: bool,
    /// The case has begun.
    may_send: bool,
    address: SocketAddr,
    receive_window: VarInt,
}

impl Host {
    fn add(&mut self, handle: ConnectionHandle, connection: Connection) {
        assert_eq!(handle.0, self.talks.len(), "handles are given in order");
        self.talks.push(Talk {
            connection,
            is_up: false,
            stream: None,
            timeout: None,
        });
    }

    /// What the application does, and what the endpoint and a connection have to tell each other.
    fn turn(&mut self, at: usize) {
        let talk = &mut self.talks[at];
        while let Some(event) = talk.connection.poll() {
            match event {
                Event::Connected => {
                    talk.is_up = true;
                    talk.connection.set_receive_window(self.receive_window);
                }
                Event::ConnectionLost { reason } => panic!("connection lost: {reason}"),
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    while let Some(id) = talk.connection.streams().accept(Dir::Uni) {
                        talk.read(id);
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => talk.read(id),
                _ => {}
            }
        }
        if self.sends && self.may_send {
            talk.write();
        }
        while let Some(event) = talk.connection.poll_endpoint_events() {
            if let Some(answer) = self.endpoint.handle_event(ConnectionHandle(at), event) {
                talk.connection.handle_event(answer);
            }
        }
    }
}

impl Talk {
    fn read(&mut self, id: StreamId) {
        let mut stream = self.connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else {
            return;
        };
        while let Ok(Some(_)) = chunks.next(usize::MAX) {}
        let _ = chunks.finalize();
    }

    fn write(&mut self) {
        static DATA: [u8; STREAM_BYTES] = [7; STREAM_BYTES];
        loop {
            let (id, left) = match self.stream {
                Some(stream) => stream,
                None => match self.connection.streams().open(Dir::Uni) {
                    Some(id) => (id, STREAM_BYTES),
                    None => return,
                },
            };
            let mut stream = self.connection.send_stream(id);
            let mut data = [Bytes::from_static(&DATA[..left])];
            let written = stream.write_chunks(&mut data).map_or(0, |done| done.bytes);
            if written == left {
                stream.finish().unwrap();
                self.stream = None;
                continue;
            }
            self.stream = Some((id, left - written));
            if written == 0 {
                return;
            }
        }
    }
}

/// Two hosts and their link.
pub(super) struct Pair {
    pub(super) now: Instant,
    /// The first one dials, and sends.
    hosts: [Host; 2],
    /// From each host to the other one.
    directions: [Direction; 2],
    buffer: Vec<u8>,
}

impl Pair {
    /// With all connections made, one after the other. `wires` begin at the sender.
    pub(super) fn new(ends: Ends, wires: [Wire; 2]) -> Pair {
        let now = Instant::now();
        let ca = SwarmCa::new(Arc::new(SwarmKey::generate().unwrap()));
        let node = || {
            let key = NodeKey::generate().unwrap();
            let certificate = ca.issue_node(&key.public(), 1).unwrap().to_vec();
            Identity::node(&key, certificate, &ca.public()).unwrap()
        };
        let tuning = Tuning {
            interface_mtu: ends.mtu,
            ..Tuning::default()
        };
        let retries = RetryKey::random().unwrap();
        let listens = Listener::server_config(&node(), &tuning, &retries).unwrap();
        let dials = Dialer::data(node(), &tuning)
            .bare_config(Role::Peer)
            .unwrap();
        let host = |last: u16, config: Option<ServerConfig>, sends| {
            // Which packet numbers are skipped is the same each time.
            let mut endpoint = tuning.endpoint_config();
            endpoint.rng_seed(Some([last as u8; 32]));
            let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
            Host {
                endpoint: Endpoint::new(Arc::new(endpoint), config.map(Arc::new), true, None),
                talks: Vec::new(),
                sends,
                may_send: false,
                address: (address, 7400).into(),
                receive_window: VarInt::from_u32(ends.receive_window_bytes),
            }
        };
        let mut pair = Pair {
            now,
            hosts: [host(1, None, true), host(2, Some(listens), ends.both_ways)],
            directions: wires.map(|wire| Direction::new(wire, now)),
            buffer: Vec::new(),
        };
        for _ in 0..ends.connections {
            let [dialer, listener] = &mut pair.hosts;
            let dialled = dialer
                .endpoint
                .connect(now, dials.clone(), listener.address, "swarm");
            let (handle, connection) = dialled.unwrap();
            dialer.add(handle, connection);
            pair.drive(0, handle.0);
            pair.run_until(Pair::is_up);
        }
        pair
    }

    /// Has the data begin, in all connections at once.
    pub(super) fn send(&mut self) {
        for host in 0..self.hosts.len() {
            self.hosts[host].may_send = true;
            for at in 0..self.hosts[host].talks.len() {
                self.drive(host, at);
            }
        }
    }

    /// All handshakes that were begun are done.
    fn is_up(&self) -> bool {
        let dialled = self.hosts[0].talks.len();
        self.hosts
            .iter()
            .all(|host| host.talks.len() == dialled && host.talks.iter().all(|talk| talk.is_up))
    }

    /// What came through, from the sender and back.
    pub(super) fn passed(&self) -> [&Passed; 2] {
        let [there, back] = &self.directions;
        [&there.passed, &back.passed]
    }

    /// Counts anew.
    pub(super) fn forget(&mut self) {
        for direction in &mut self.directions {
            direction.passed = Passed::default();
        }
    }

    /// Goes on until `is_done`.
    pub(super) fn run_until(&mut self, is_done: impl Fn(&Pair) -> bool) {
        for _ in 0..STEPS_MAX {
            if is_done(self) {
                return;
            }
            self.step();
        }
        panic!("no end after {STEPS_MAX} steps");
    }

    /// The next packet that arrives, or the next timer.
    fn step(&mut self) {
        let arrivals = self.directions.iter().enumerate();
        let arrival = arrivals
            .filter_map(|(from, direction)| direction.next().map(|at| (at, from)))
            .min();
        let timers = self.hosts.iter().enumerate().flat_map(|(host, it)| {
            let talks = it.talks.iter().enumerate();
            talks.filter_map(move |(at, talk)| talk.timeout.map(|due| (due, host, at)))
        });
        let timer = timers.min();
        match (arrival, timer) {
            (Some((at, from)), due) if due.is_none_or(|(due, ..)| at <= due) => {
                self.now = self.now.max(at);
                self.arrive(from);
            }
            (_, Some((due, host, at))) => {
                self.now = self.now.max(due);
                self.hosts[host].talks[at]
                    .connection
                    .handle_timeout(self.now);
                self.drive(host, at);
            }
            (_, None) => panic!("nothing goes on"),
        }
    }

    fn arrive(&mut self, from: usize) {
        let Some(packet) = self.directions[from].pop() else {
            return;
        };
        let to = 1 - from;
        let remote = self.hosts[from].address;
        let host = &mut self.hosts[to];
        self.buffer.clear();
        let event = host.endpoint.handle(
            self.now,
            remote,
            None,
            packet.ecn,
            packet.contents,
            &mut self.buffer,
        );
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                host.talks[handle.0].connection.handle_event(event);
                self.drive(to, handle.0);
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = host
                    .endpoint
                    .accept(incoming, self.now, &mut self.buffer, None);
                let (handle, connection) = accepted.map_err(|error| error.cause).unwrap();
                host.add(handle, connection);
                self.drive(to, handle.0);
            }
            Some(DatagramEvent::Response(_)) => panic!("an endpoint answered by itself"),
            None => {}
        }
    }

    fn drive(&mut self, host: usize, at: usize) {
        self.hosts[host].turn(at);
        loop {
            self.buffer.clear();
            let connection = &mut self.hosts[host].talks[at].connection;
            let Some(sent) = connection.poll_transmit(self.now, BATCH_PACKETS, &mut self.buffer)
            else {
                break;
            };
            let contents = &self.buffer[..sent.size];
            for datagram in contents.chunks(sent.segment_size.unwrap_or(sent.size)) {
                self.directions[host].push(self.now, datagram, sent.ecn);
            }
        }
        self.hosts[host].turn(at);
        let talk = &mut self.hosts[host].talks[at];
        talk.timeout = talk.connection.poll_timeout();
    }
}
