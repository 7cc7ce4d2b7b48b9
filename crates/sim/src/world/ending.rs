//! How chunks and connections end before their time: silence, closing, loss.

use super::chunk::Receiver;
use super::wire::Body;
use super::{Event, SEED, State, World};
use crate::faults::Happening;
use crate::nic::UploadKey;
use rootswarm_swarm::{ChunkOutcome, ConnId, Input, Instant, UploadOutcome, limits};

/// A sender that sees no acknowledgement for this long gives an upload up.
const UPLOAD_SILENCE_NS: u64 = 5_000_000_000;

/// How often the world looks for stalled chunks.
pub(super) const STALL_CHECK_NS: u64 = 1_000_000_000;

impl World<'_> {
    /// The transport's own deadlines: silence within a chunk, on either side.
    pub(crate) fn stall_check(&mut self) {
        for key in self.upload_keys() {
            self.check_upload(key);
        }
        self.check_neighbours();
        self.events
            .push(self.now_ns + STALL_CHECK_NS, Event::StallCheck);
    }

    /// Who lacks chunks has neighbours, where there are any.
    fn check_neighbours(&mut self) {
        if self.plan.few_neighbours_us == u64::MAX {
            return;
        }
        let neighbours = |world: &Self, host: usize| {
            let conns = world.hosts[host].conns.iter();
            conns
                .filter(|conn| {
                    let it = &world.conns[**conn as usize];
                    let side = it.side_of(host);
                    world.open[**conn as usize][side] && it.hosts[1 - side] as usize != SEED
                })
                .count()
        };
        let lives = |world: &Self, host: usize| {
            host != SEED && world.states[host] == State::Alive && world.hosts[host].is_member
        };
        let now = Instant(self.now_ns / 1000);
        let mut with_room = 0;
        for host in 0..self.hosts.len() {
            let is_one = lives(self, host) && neighbours(self, host) < limits::PEERS_MAX;
            with_room += usize::from(is_one);
            if with_room > limits::NEIGHBOURS_FEW {
                break;
            }
        }
        for host in 0..self.hosts.len() {
            let has_few = with_room > limits::NEIGHBOURS_FEW
                && lives(self, host)
                && !self.hosts[host].node.is_complete()
                && neighbours(self, host) < limits::NEIGHBOURS_FEW;
            self.checkers
                .has_few_neighbours(host, has_few, self.plan.few_neighbours_us, now);
        }
    }

    fn check_upload(&mut self, key: UploadKey) {
        let now_ns = self.now_ns;
        let Some(upload) = self.upload(key) else {
            return;
        };
        let (from, to, conn) = (upload.from as usize, upload.to as usize, upload.conn);
        let silence_ns = limits::CHUNK_SILENCE.as_nanos() as u64;
        let deaf = upload.receiver == Receiver::Receives
            && now_ns.saturating_sub(upload.heard_ns) > silence_ns;
        let stuck = !upload.sender_done
            && upload.arrived < upload.len
            && upload.sent > 0
            && now_ns.saturating_sub(upload.acked_ns) > UPLOAD_SILENCE_NS;
        if deaf && self.states[to] == State::Alive {
            self.sometimes.note(Happening::ChunkFellSilent);
            if self.is_open(conn, to) {
                self.send_control(to, conn, 8, Body::Stop(key));
            }
            self.chunk_over(key, ChunkOutcome::Broken);
        }
        if stuck && self.states[from] == State::Alive {
            self.sometimes.note(Happening::UploadStalled);
            if self.is_open(conn, from) {
                self.send_control(from, conn, 8, Body::Reset(key));
            }
            self.upload_over(key, UploadOutcome::Failed);
        }
    }

    /// This side of a connection ends without a word to the node: it closed it, or it is dead.
    pub(crate) fn shut(&mut self, conn: u32, host: usize) -> bool {
        let it = &mut self.conns[conn as usize];
        let side = it.side_of(host);
        if !std::mem::replace(&mut self.open[conn as usize][side], false) {
            return false;
        }
        let keys = it.uploads.clone();
        for key in keys {
            if let Some(upload) = self.upload(key) {
                if upload.from as usize == host {
                    upload.sender_done = true;
                } else {
                    upload.receiver = Receiver::Done;
                }
                self.settle(key);
            }
        }
        self.hosts[host].conns.retain(|other| *other != conn);
        true
    }

    /// A node closed a connection.
    pub(crate) fn close(&mut self, host: usize, conn: ConnId) {
        let conn = conn.0 as u32;
        self.sometimes.note(Happening::Close);
        self.send_control(host, conn, 8, Body::Close { conn });
        self.shut(conn, host);
        self.seed_lost(host, conn);
    }

    /// The other side closed it, or fell silent.
    pub(crate) fn lose(&mut self, conn: u32, host: usize) {
        if self.shut(conn, host) {
            self.input(
                host,
                Input::Disconnected {
                    conn: Self::input_conn(conn),
                },
            );
            self.seed_lost(host, conn);
        }
    }
}
