//! The hosts and the loop that moves them: what the transport and the kernel would do.
//!
//! This file starts hosts and carries out a node's outputs. When a host hears of what has come is
//! `inbox`'s. How control packets travel is `wire`'s, how chunks do `chunk`'s, across the core
//! `rack`'s and after a loss `recovery`'s; how they end early is `ending`'s and what goes wrong
//! `strike`'s.
//! What must not happen is judged in `checkers`, which the world only tells what it saw.

mod ahead;
mod chunk;
mod dial;
mod ending;
mod firewalls;
mod inbox;
mod joining;
mod rack;
mod recovery;
mod strike;
mod wire;

use crate::checkers::Checkers;
use crate::events::Events;
use crate::faults::Sometimes;
use crate::metrics::{Outcome, Traffic};
use crate::nic::{Port, Rate, Uplink, UploadKey};
use crate::plan::{Arrivals, Holders, Plan};
use crate::progress::Progress;
use crate::slots::Slots;
use chunk::{Burst, Upload};
use ending::STALL_CHECK_NS;
use firewalls::Firewalls;
use inbox::Inbox;
use rack::Rack;
use recovery::Window;
use rootswarm_image::{Bitfield, ChunkIndex, ChunkSize, Geometry, ImageId};
use rootswarm_swarm::{Config, ConnId, Input, Instant, Message, Node, NodeId, Output, Rng, Role};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use wire::{Conn, Packet};

/// Host 0 is the seed.
pub(crate) const SEED: usize = 0;

/// What happens next. Small and without a destructor: millions of them are moved about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Start(u32),
    /// A host takes what has come for it.
    Turn(u32),
    UplinkFree(u32),
    /// A burst reaches the link into its receiver's rack.
    BurstEntersRack(u32),
    /// A burst reaches its receiver's link.
    Burst(u32),
    /// A control packet reaches the link into its receiver's rack.
    EntersRack(u32),
    WindowOpens(UploadKey),
    /// A sender learns that some of what it sent got lost.
    BytesLost(u32),
    /// Once a second: what has stalled?
    StallCheck,
    DialEnds {
        from: u32,
        to: u32,
        answered: bool,
    },
    Accepted {
        conn: u32,
    },
    SeedDialEnds {
        from: u32,
    },
    /// A newcomer was let in, and has reached who has the manifest.
    Admitted {
        from: u32,
        member: u32,
    },
    /// A newcomer has the manifest.
    Joined {
        from: u32,
        member: u32,
    },
    IdleTimeout {
        conn: u32,
        side: u8,
    },
    Strike(u32),
    Thaw(u32),
    SeedBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    Alive,
    Frozen,
    Dead,
}

pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) id: NodeId,
    pub(crate) role: Role,
    pub(crate) addr: SocketAddr,
    pub(crate) verifier_free_ns: u64,
    pub(crate) started_ns: u64,
    pub(crate) finished_ns: Option<u64>,
    pub(crate) conns: Vec<u32>,
    /// What the network and the dialer did to a frozen host, for when it goes on.
    pub(crate) held: Vec<Event>,
    /// Its links' rate over that of the plan's.
    pub(crate) factor: f64,
    pub(crate) corrupts: f64,
    /// Its dials, and those of it, may be lost.
    pub(crate) loses_dials: bool,
    pub(crate) lies: Option<Lie>,
    pub(crate) seed_failures: u32,
    /// It has joined, once and for all.
    pub(crate) is_member: bool,
    /// Dead, or frozen for ever: nobody waits for it.
    pub(crate) gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    Busy,
    Silent,
}

pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) geometry: Geometry,
    pub(crate) image: ImageId,
    pub(crate) rng: Rng,
    pub(crate) now_ns: u64,
    pub(crate) events: Events,
    pub(crate) hosts: Vec<Host>,
    // What every packet touches lies apart from the rest of its host, close together.
    pub(crate) states: Vec<State>,
    pub(crate) up: Vec<Uplink>,
    pub(crate) down: Vec<Port>,
    pub(crate) traffic: Vec<Traffic>,
    /// When the node's timer is due, on the grid of timers.
    pub(crate) wake_ns: Vec<u64>,
    /// When the turn that counts is planned.
    pub(crate) turn_ns: Vec<u64>,
    pub(crate) inboxes: Vec<Inbox>,
    /// An emptied list of outputs.
    outputs: VecDeque<Output>,
    /// Who has joined, and how many newcomers each host is handing the manifest to.
    members: Vec<u32>,
    handing: Vec<u8>,
    /// A host's turn is under way: its timer is set at the end.
    in_turn: bool,
    /// No upload ever waits for an acknowledgement: windows hold a chunk, and nothing gets lost.
    acks_are_idle: bool,
    /// Uplinks send a burst of each upload at a time. Racks' links to the core serve what comes at its
    /// time.
    in_rounds: bool,
    pub(crate) by_id: BTreeMap<NodeId, u32>,
    pub(crate) conns: Vec<Conn>,
    /// Of each connection, which sides have it open.
    pub(crate) open: Vec<[bool; 2]>,
    pub(crate) uploads: Vec<Upload>,
    pub(crate) free_uploads: Vec<u32>,
    /// Control packets on their way to a rack, and bursts on theirs.
    pub(crate) packets: Slots<Packet>,
    pub(crate) bursts: Slots<Burst>,
    pub(crate) racks: Vec<Rack>,
    /// Of each connection, where packets get lost.
    pub(crate) windows: Vec<[Window; 2]>,
    pub(crate) checkers: Checkers,
    pub(crate) sometimes: Sometimes,
    pub(crate) struck: Vec<bool>,
    pub(crate) lost_dials: (f64, u64),
    pub(crate) firewalls: Firewalls,
    /// Nodes that have to finish and have not.
    pub(crate) unfinished: usize,
    pub(crate) trace: Trace,
    pub(crate) progress: Progress,
}

/// A running hash of all that happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace(pub(crate) u64);

impl Trace {
    pub(crate) fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9fb2_1c65_1e98_df25)
            .rotate_left(29);
    }
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        // A plan's sizes are constants of the experiment: a wrong one is a bug of its author.
        let chunk_size = ChunkSize::from_bytes(plan.chunk_bytes)
            .unwrap_or_else(|error| panic!("plan {}: {error}", plan.name));
        let geometry = Geometry::new(plan.image_bytes, chunk_size)
            .unwrap_or_else(|error| panic!("plan {}: {error}", plan.name));
        let window_bytes = plan.window_bytes.max(plan.burst_bytes);
        let acks_are_idle = plan.loss <= 0.0 && window_bytes >= plan.chunk_bytes;
        let mut world = Self {
            plan,
            geometry,
            image: ImageId::from_bytes([7; 32]),
            now_ns: 0,
            events: Events::default(),
            hosts: Vec::new(),
            states: Vec::new(),
            up: Vec::new(),
            down: Vec::new(),
            traffic: Vec::new(),
            wake_ns: Vec::new(),
            turn_ns: Vec::new(),
            inboxes: Vec::new(),
            members: Vec::new(),
            handing: vec![0; plan.nodes + 1],
            outputs: VecDeque::new(),
            in_turn: false,
            acks_are_idle,
            in_rounds: acks_are_idle && plan.racks.is_none(),
            by_id: BTreeMap::new(),
            conns: Vec::new(),
            open: Vec::new(),
            uploads: Vec::new(),
            free_uploads: Vec::new(),
            packets: Slots::default(),
            bursts: Slots::default(),
            racks: rack::racks(plan),
            windows: Vec::new(),
            checkers: Checkers::new(geometry),
            sometimes: Sometimes::default(),
            struck: vec![false; plan.faults.len()],
            lost_dials: (0.0, 0),
            firewalls: Firewalls::default(),
            unfinished: plan.nodes,
            trace: Trace(seed),
            progress: Progress::new(plan.bound_us()),
            rng: rng.clone(),
        };
        for number in 0..=plan.nodes {
            let have = world.first_chunks(number, &mut rng);
            let host = world.host(number, have, &mut rng);
            world.by_id.insert(host.id, number as u32);
            world.checkers.starts(number, host.node.have());
            if number != SEED && host.node.is_complete() {
                world.unfinished -= 1;
            }
            world.hosts.push(host);
            let link = if number == SEED {
                plan.seed_link
            } else {
                plan.node_link
            };
            world.states.push(State::Waiting);
            world
                .up
                .push(Uplink::new(Rate::new(link.up_bits, plan.efficiency)));
            world
                .down
                .push(Port::new(Rate::new(link.down_bits, plan.efficiency)));
            world.traffic.push(Traffic::default());
            world.wake_ns.push(u64::MAX);
            world.turn_ns.push(u64::MAX);
            world.inboxes.push(Inbox::default());
            let at = world.start_ns(number, &mut rng);
            world.events.push(at, Event::Start(number as u32));
        }
        world.rng = rng;
        world.plan_faults();
        world.events.push(STALL_CHECK_NS, Event::StallCheck);
        world
    }

    fn first_chunks(&self, number: usize, rng: &mut Rng) -> Bitfield {
        let chunks = self.geometry.chunk_count();
        match self.plan.holders {
            _ if number == SEED => Bitfield::full(chunks),
            Holders::Complete(nodes) if number <= nodes => Bitfield::full(chunks),
            Holders::Share(share) => {
                let mut have = Bitfield::new(chunks);
                for index in (0..chunks).map(ChunkIndex) {
                    if chance(rng, share) {
                        have.set(index);
                    }
                }
                have
            }
            _ => Bitfield::new(chunks),
        }
    }

    fn host(&self, number: usize, have: Bitfield, rng: &mut Rng) -> Host {
        let mut id = [0; 32];
        for part in id.chunks_mut(8) {
            part.copy_from_slice(&rng.next_u64().to_be_bytes());
        }
        let role = if number == SEED {
            Role::Seed
        } else {
            Role::Peer
        };
        let config = Config {
            node: NodeId(id),
            role,
            image: self.image,
            geometry: self.geometry,
            have,
            rack: rack::rack_name(self.plan, number),
            rng_seed: rng.next_u64(),
        };
        let [_, a, b, c] = (number as u32).to_be_bytes();
        Host {
            node: Node::new(config, Instant(self.now_ns / 1000)),
            id: NodeId(id),
            role,
            addr: ([10, a, b, c], 7400).into(),
            verifier_free_ns: 0,
            started_ns: 0,
            finished_ns: None,
            conns: Vec::new(),
            held: Vec::new(),
            factor: 1.0,
            corrupts: 0.0,
            loses_dials: false,
            lies: None,
            seed_failures: 0,
            is_member: role == Role::Seed,
            gone: false,
        }
    }

    fn start_ns(&self, number: usize, rng: &mut Rng) -> u64 {
        let early = match self.plan.holders {
            Holders::Complete(nodes) => number <= nodes,
            _ => number == SEED,
        };
        if early {
            return 0;
        }
        let us = match self.plan.arrivals {
            Arrivals::Within { spread_us } => rng.between(0, spread_us),
            Arrivals::Late { nodes, at_us } if number + nodes > self.plan.nodes => at_us,
            Arrivals::Late { .. } => rng.between(0, 10_000),
        };
        us * 1000
    }

    pub(crate) fn run(mut self) -> Outcome {
        let limit_ns = self.plan.limit_us * 1000;
        let mut end_ns = limit_ns;
        let mut is_resting = false;
        let mut looked_at = 0;
        while let Some((at_ns, event)) = self.events.pop() {
            if at_ns > end_ns {
                break;
            }
            debug_assert!(at_ns >= self.now_ns, "time runs backwards");
            if self.progress.is_due(at_ns) {
                self.sample(at_ns);
            }
            self.now_ns = at_ns;
            if looked_at == 0 {
                looked_at = ahead::AHEAD;
                self.look_ahead();
            }
            looked_at -= 1;
            self.happens(event);
            if self.unfinished == 0 && !is_resting {
                is_resting = true;
                end_ns = limit_ns.min(self.now_ns + self.plan.linger_us * 1000);
                if self.plan.linger_us == 0 {
                    break;
                }
            }
        }
        self.conclude()
    }

    fn happens(&mut self, event: Event) {
        self.trace.add(self.now_ns);
        match event {
            Event::Start(host) => self.start(host as usize),
            Event::Turn(host) => self.turn(host as usize),
            Event::UplinkFree(host) => self.uplink_free(host as usize),
            Event::BurstEntersRack(burst) => self.burst_enters_rack(burst),
            Event::Burst(burst) => self.burst(burst),
            Event::EntersRack(packet) => self.control_enters_rack(packet),
            Event::WindowOpens(upload) => self.window_opens(upload),
            Event::BytesLost(burst) => self.bytes_lost(burst),
            Event::StallCheck => self.stall_check(),
            Event::DialEnds { from, to, answered } => {
                self.dial_ends(from as usize, to as usize, answered);
            }
            Event::Accepted { conn } => self.accepted(conn),
            Event::SeedDialEnds { from } => self.seed_dial_ends(from as usize),
            Event::Admitted { from, member } => self.admitted(from as usize, member as usize),
            Event::Joined { from, member } => self.joined(from as usize, member as usize),
            Event::IdleTimeout { conn, side } => self.idle_timeout(conn, side),
            Event::Strike(fault) => self.strike(fault as usize),
            Event::Thaw(host) => self.thaw(host as usize),
            Event::SeedBack => self.seed_back(),
        }
    }

    fn start(&mut self, host: usize) {
        if self.states[host] != State::Waiting {
            return;
        }
        self.states[host] = State::Alive;
        self.hosts[host].started_ns = self.now_ns;
        if host != SEED {
            self.dial_seed(host);
        }
        self.keep_timer(host);
    }

    pub(crate) fn now(&self) -> Instant {
        Instant(self.now_ns / 1000)
    }

    /// Hands an input to a node and carries out what follows.
    pub(crate) fn input(&mut self, host: usize, input: Input) {
        if self.states[host] != State::Alive {
            return;
        }
        let now = self.now();
        self.checkers.before(host, &input, now);
        self.trace_input(host, &input);
        let chunk_ended = matches!(input, Input::ChunkEnded { .. });
        let mut outputs = std::mem::take(&mut self.outputs);
        self.hosts[host].node.handle_into(now, input, &mut outputs);
        let count = outputs.len() as u32;
        self.read_ahead_of_outputs(&outputs);
        for output in outputs.drain(..) {
            self.carry_out(host, output);
        }
        self.outputs = outputs;
        let node = &self.hosts[host].node;
        self.checkers.after(host, node, count);
        if chunk_ended {
            self.checkers.holds_what_was_verified(host, node);
        }
        self.keep_timer(host);
    }

    fn trace_input(&mut self, host: usize, input: &Input) {
        let (kind, value) = match input {
            Input::Connected { conn, .. } => (1, conn.0),
            Input::Hello { conn, .. } => (2, conn.0),
            Input::Message { conn, message } => (3, conn.0 << 8 | tag(message)),
            Input::Disconnected { conn } => (4, conn.0),
            Input::DialFailed { node, .. } => (5, u64::from(node.0[0])),
            Input::ChunkStarted { conn, index } => (6, conn.0 << 32 | u64::from(index.0)),
            Input::ChunkEnded { conn, index, .. } => (7, conn.0 << 32 | u64::from(index.0)),
            Input::ChunkStored { index } | Input::Want { index } => (8, u64::from(index.0)),
            Input::UploadEnded { conn, index, .. } => (9, conn.0 << 32 | u64::from(index.0)),
            Input::Timeout => (10, 0),
            Input::Revoke(list) => (11, list.version),
            Input::UploadStalled { conn, index } => (12, conn.0 << 32 | u64::from(index.0)),
            Input::LocalGone { conn } => (13, conn.0),
            Input::RemoteMoved { conn } => (14, conn.0),
        };
        self.trace.add(kind << 56 ^ (host as u64) << 40 ^ value);
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        match output {
            Output::Hello { conn, hello } => self.send_hello(host, conn, hello),
            Output::Send { conn, message } => self.send_message(host, conn, message),
            Output::Upload { conn, index } => self.begin_upload(host, conn, index),
            Output::CancelUpload { conn, index } => self.cancel_upload(host, conn, index),
            Output::StopChunk { conn, index } => self.stop_chunk(host, conn, index),
            Output::Dial { node, addr } => self.dial(host, node, addr),
            Output::Close { conn, .. } => self.close(host, conn),
            // Nobody's certificate ends in a simulation.
            Output::Revoked(_) => {}
            Output::Complete => {
                let host_ref = &mut self.hosts[host];
                self.checkers.completed(host, &host_ref.node);
                if host_ref.finished_ns.replace(self.now_ns).is_none() && self.must_finish(host) {
                    self.unfinished -= 1;
                }
            }
        }
    }

    /// Whether the run waits for this host.
    pub(crate) fn must_finish(&self, host: usize) -> bool {
        host != SEED && !self.hosts[host].gone
    }

    fn conclude(mut self) -> Outcome {
        let now = self.now();
        let hosts: Vec<usize> = (1..self.hosts.len()).collect();
        for host in hosts {
            let it = &self.hosts[host];
            self.checkers.holds_what_was_verified(host, &it.node);
            if self.states[host] != State::Dead {
                let report = it.node.report(now);
                let mut banned = Vec::new();
                for ban in &report.bans {
                    let culprit = self.by_id.get(&ban.node).map(|host| *host as usize);
                    let guilty = culprit.is_some_and(|host| self.hosts[host].corrupts > 0.0);
                    self.checkers.banned(host, culprit, guilty);
                    banned.extend(culprit);
                }
                self.checkers.has_banned(host, &banned);
            }
        }
        crate::metrics::conclude(self)
    }

    pub(crate) fn input_conn(conn: u32) -> ConnId {
        ConnId(u64::from(conn))
    }
}

fn tag(message: &Message) -> u64 {
    match message {
        Message::Have(runs) => {
            let first = runs.first().map_or(0, |run| u64::from(run.first.0));
            first << 16 | (runs.len() as u64) << 8
        }
        Message::Request(index) => u64::from(index.0) << 8 | 1,
        Message::Busy(index) => u64::from(index.0) << 8 | 2,
        Message::Cancel(index) => u64::from(index.0) << 8 | 3,
        Message::Peers(peers) => (peers.len() as u64) << 8 | 4,
        Message::Dial(peers) => (peers.len() as u64) << 8 | 5,
        Message::Drop(nodes) => (nodes.len() as u64) << 8 | 6,
        Message::WantPeers => 7,
        Message::WantHaves(on) => u64::from(*on) << 8 | 8,
        Message::Progress(count) => u64::from(*count) << 8 | 9,
        Message::Offer(chunks) => {
            let first = chunks.first().map_or(0, |index| u64::from(index.0));
            first << 8 | 10
        }
        Message::NoRoom => 11,
        Message::NotNeeded => 12,
        Message::Revoked(list) => list.version << 8 | 13,
        Message::Dialed { outcome, nodes } => {
            (*outcome as u64) << 16 | (nodes.len() as u64) << 8 | 14
        }
        Message::Call(peers) => (peers.len() as u64) << 8 | 15,
        Message::CutOff(count) => u64::from(*count) << 8 | 16,
    }
}

/// True with this probability.
pub(crate) fn chance(rng: &mut Rng, probability: f64) -> bool {
    // 53 bits: what a float holds.
    ((rng.next_u64() >> 11) as f64) < probability * (1u64 << 53) as f64
}
