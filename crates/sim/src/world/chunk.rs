//! How chunks travel: each a stream of its own, in bursts that keep their order among themselves.
//!
//! A burst is two events at most: its sender is through with it, and its first byte reaches the receiver.
//! When its last byte is there, when that is acknowledged and when the chunk is verified follows
//! by arithmetic. A sender has at most a window under way; it sleeps until an acknowledgement
//! opens it.
//!
//! Where windows hold a chunk and nothing gets lost, only the first and the last burst of a chunk are
//! waited for: those between are announced to the receiver's link. And an uplink then needs one event for
//! a round, in which each of its uploads sends a burst.

use super::inbox::Arrival;
use super::rack::micros;
use super::wire::Body;
use super::{Event, SEED, State, World, chance};
use crate::faults::Happening;
use crate::nic::{Passage, UploadKey};
use crate::plan::Defect;
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{ChunkOutcome, ConnId, Input, UploadOutcome};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// No burst has arrived.
    Expects,
    /// Its first byte is here.
    Receives,
    /// Its last burst is arriving or here.
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
    pub(super) arrived: u32,
    acked: u32,
    in_ring: bool,
    /// It waits for an acknowledgement.
    is_blocked: bool,
    pub(crate) sender_done: bool,
    pub(crate) receiver: Receiver,
    corrupt: bool,
    /// When the first byte of the last burst reaches the receiver.
    pub(super) last_arrival_ns: u64,
    /// When the last byte that was sent is with the receiver, and when the sender knows.
    pub(super) heard_ns: u64,
    pub(super) acked_ns: u64,
    /// Acknowledgements on their way, where the window is less than the chunk.
    acks: VecDeque<(u64, u32)>,
}

impl Upload {
    fn is_over(&self) -> bool {
        self.sender_done && self.receiver == Receiver::Done
    }
}

/// A burst that reaches a rack or its receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    pub(crate) upload: UploadKey,
    pub(crate) to: u32,
    pub(crate) bytes: u32,
    /// From its first byte to its last.
    pub(crate) inflow_us: u32,
    /// Neither the first nor the last of its chunk, and no window waits for it to be acknowledged.
    pub(crate) is_inner: bool,
}

impl World<'_> {
    pub(crate) fn upload(&mut self, key: UploadKey) -> Option<&mut Upload> {
        self.uploads
            .get_mut(key.slot as usize)
            .filter(|upload| upload.serial == key.serial)
    }

    /// Every upload that is not over.
    pub(crate) fn upload_keys(&self) -> Vec<UploadKey> {
        let live = self.uploads.iter().enumerate();
        live.filter(|(_, upload)| !upload.is_over())
            .map(|(slot, upload)| UploadKey {
                slot: slot as u32,
                serial: upload.serial,
            })
            .collect()
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
        if upload.is_over() {
            upload.serial = upload.serial.wrapping_add(1);
            let conn = upload.conn as usize;
            self.conns[conn].uploads.retain(|other| *other != key);
            self.free_uploads.push(key.slot);
        }
    }

    pub(crate) fn begin_upload(&mut self, host: usize, conn: ConnId, index: ChunkIndex) {
        let conn = conn.0 as u32;
        let it = &self.conns[conn as usize];
        let side = it.side_of(host);
        if !self.open[conn as usize][side] {
            return self.checkers.sent_after_close(host, &index);
        }
        let to = it.hosts[1 - side];
        self.checkers
            .uploads(host, index, self.hosts[host].node.have().get(index));
        let corrupts = self.hosts[host].corrupts;
        let corrupt = corrupts > 0.0 && chance(&mut self.rng, corrupts);
        let upload = Upload {
            serial: 0,
            conn,
            index,
            from: host as u32,
            to,
            len: self.geometry.chunk_len(index),
            sent: 0,
            arrived: 0,
            acked: 0,
            in_ring: true,
            is_blocked: false,
            sender_done: false,
            receiver: Receiver::Expects,
            corrupt,
            last_arrival_ns: 0,
            heard_ns: self.now_ns,
            acked_ns: self.now_ns,
            acks: VecDeque::new(),
        };
        let key = match self.free_uploads.pop() {
            Some(slot) => {
                let old = &mut self.uploads[slot as usize];
                let (serial, mut acks) = (old.serial, std::mem::take(&mut old.acks));
                acks.clear();
                *old = Upload {
                    serial,
                    acks,
                    ..upload
                };
                UploadKey { slot, serial }
            }
            None => {
                self.uploads.push(upload);
                let slot = self.uploads.len() as u32 - 1;
                UploadKey { slot, serial: 0 }
            }
        };
        self.conns[conn as usize].uploads.push(key);
        self.up[host].join(key, self.now_ns);
        self.pump(host);
    }

    /// Starts the next burst of an idle uplink; where nothing can come in between, one of each upload
    /// that has a turn. Who joins meanwhile finds its place among them all the same.
    pub(crate) fn pump(&mut self, host: usize) {
        if self.up[host].is_pumping || self.states[host] != State::Alive {
            return;
        }
        let bursts = match self.in_rounds {
            true => self.read_ahead_of_round(host).max(1),
            false => 1,
        };
        let mut free_ns = None;
        for _ in 0..bursts {
            let Some((key, bytes, more)) = self.next_burst(host) else {
                break;
            };
            let left = self.up[host].burst(u64::from(bytes), self.now_ns);
            if more {
                self.up[host].rejoin(key, left.first_ns);
            }
            free_ns = Some(left.last_ns);
            self.traffic[host].chunk_bytes_sent += u64::from(bytes);
            self.send_burst(host, key, bytes, left);
        }
        if let Some(free_ns) = free_ns {
            self.up[host].is_pumping = true;
            self.events.push(free_ns, Event::UplinkFree(host as u32));
        }
    }

    /// A burst goes out within `left`.
    fn send_burst(&mut self, host: usize, key: UploadKey, bytes: u32, left: Passage) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        let to = upload.to;
        let is_inner = upload.sent > bytes && upload.sent < upload.len;
        let bytes = bytes - self.lose_packets(key, to, bytes, left.last_ns);
        if bytes == 0 {
            return;
        }
        let latency_ns = self.latency_ns();
        let at_core = self.burst_to_core(host, to as usize, u64::from(bytes), left);
        let enters = self.enters(host, to as usize).is_some();
        let Some(upload) = self.upload(key) else {
            return;
        };
        let arrival_ns = (at_core.first_ns + latency_ns).max(upload.last_arrival_ns + 1);
        upload.last_arrival_ns = arrival_ns;
        let burst = Burst {
            upload: key,
            to,
            bytes,
            inflow_us: micros(at_core.last_ns - at_core.first_ns),
            is_inner: is_inner && self.acks_are_idle,
        };
        if enters {
            let place = self.bursts.put(burst);
            self.events.push(arrival_ns, Event::BurstEntersRack(place));
        } else {
            self.arrives(burst, arrival_ns);
        }
    }

    /// A burst will reach its receiver's link at this time. Nobody waits for those within a chunk.
    pub(super) fn arrives(&mut self, burst: Burst, at_ns: u64) {
        if !burst.is_inner {
            let place = self.bursts.put(burst);
            return self.events.push(at_ns, Event::Burst(place));
        }
        let host = burst.to as usize;
        let (bytes, inflow_ns) = (u64::from(burst.bytes), u64::from(burst.inflow_us) * 1000);
        self.down[host].announce(bytes, inflow_ns, at_ns);
        self.traffic[host].chunk_bytes_received += bytes;
        let is_alive = self.states[host] == State::Alive;
        if let Some(upload) = self.upload(burst.upload) {
            upload.arrived += burst.bytes;
            if is_alive {
                upload.heard_ns = at_ns;
                upload.acked_ns = at_ns;
            }
        }
    }

    /// Takes the next burst off the ring: whose, how much of it, and whether it has more.
    fn next_burst(&mut self, host: usize) -> Option<(UploadKey, u32, bool)> {
        let now_ns = self.now_ns;
        loop {
            let key = self.up[host].next()?;
            let Some(upload) = self.upload(key) else {
                continue;
            };
            upload.in_ring = false;
            let unsent = upload.len - upload.sent;
            if upload.sender_done || unsent == 0 {
                continue;
            }
            let mut acked = 0;
            while let Some((at_ns, bytes)) = upload.acks.front().copied()
                && at_ns <= now_ns
            {
                upload.acks.pop_front();
                acked += bytes;
            }
            upload.acked += acked;
            let (conn, under_way) = (upload.conn, upload.sent.saturating_sub(upload.acked));
            let window = self.window_bytes(conn, host, acked);
            let most = (self.plan.burst_bytes as u32).min(unsent);
            let bytes = match self.acks_are_idle {
                true => most,
                false => most.min(window.saturating_sub(under_way)),
            };
            let Some(upload) = self.upload(key) else {
                continue;
            };
            // A little room is not worth a burst: more acknowledgements are on their way.
            if bytes < most && (bytes < most / 4 || bytes == 0) && under_way > 0 {
                upload.is_blocked = true;
                if let Some((at_ns, _)) = upload.acks.front().copied() {
                    self.events.push(at_ns, Event::WindowOpens(key));
                }
                continue;
            }
            upload.sent += bytes;
            upload.in_ring = upload.sent < upload.len;
            return Some((key, bytes, upload.in_ring));
        }
    }

    pub(crate) fn uplink_free(&mut self, host: usize) {
        self.up[host].is_pumping = false;
        if host == SEED {
            self.strike_by_copies();
        }
        self.pump(host);
    }

    pub(crate) fn window_opens(&mut self, key: UploadKey) {
        if self.upload(key).is_some_and(|upload| upload.is_blocked) {
            self.resume(key);
        }
    }

    /// An upload may have something to send again.
    pub(super) fn resume(&mut self, key: UploadKey) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        upload.is_blocked = false;
        if upload.in_ring || upload.sender_done {
            return;
        }
        upload.in_ring = true;
        let host = upload.from as usize;
        self.up[host].join(key, self.now_ns);
        self.pump(host);
    }

    /// The first byte of a burst is here.
    pub(crate) fn burst(&mut self, place: u32) {
        let Some(burst) = self.bursts.take(place) else {
            return;
        };
        let (host, key) = (burst.to as usize, burst.upload);
        match self.states[host] {
            State::Alive => {}
            // The kernel keeps it; the network's part is over.
            State::Frozen => {
                let place = self.bursts.put(burst);
                return self.hosts[host].held.push(Event::Burst(place));
            }
            State::Dead | State::Waiting => return,
        }
        let (bytes, inflow_ns) = (u64::from(burst.bytes), u64::from(burst.inflow_us) * 1000);
        let passage = self.down[host].burst(bytes, inflow_ns, self.now_ns);
        self.traffic[host].chunk_bytes_received += bytes;
        let ack_ns = passage.last_ns + self.latency_ns();
        let window_counts = !self.acks_are_idle;
        let Some(upload) = self.upload(key) else {
            return;
        };
        upload.arrived += burst.bytes;
        upload.heard_ns = passage.last_ns;
        upload.acked_ns = ack_ns;
        let is_first = upload.receiver == Receiver::Expects;
        if is_first {
            upload.receiver = Receiver::Receives;
        }
        let all = upload.arrived >= upload.len;
        let (from, is_unfinished) = (upload.from as usize, !upload.sender_done);
        if !all && window_counts {
            upload.acks.push_back((ack_ns, burst.bytes));
            if upload.is_blocked && upload.acks.len() == 1 {
                self.events.push(ack_ns, Event::WindowOpens(key));
            }
        }
        if all && is_unfinished {
            let late_ns = self.rng.between(0, self.plan.ack_delay_us) * 1000;
            let over = Arrival::UploadOver {
                upload: key,
                outcome: UploadOutcome::Delivered,
            };
            self.hand(from, ack_ns + late_ns, over);
        }
        if is_first {
            self.hand(host, passage.first_ns, Arrival::ChunkStarted(key));
        }
        if all {
            self.verify(key, passage.last_ns);
        }
    }

    /// The header of a chunk has been received.
    pub(crate) fn chunk_started(&mut self, key: UploadKey) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        if !matches!(upload.receiver, Receiver::Receives | Receiver::Verifies) {
            return;
        }
        let (host, conn, index) = (upload.to as usize, upload.conn, upload.index);
        if self.is_open(conn, host) {
            let conn = Self::input_conn(conn);
            self.input(host, Input::ChunkStarted { conn, index });
        }
    }

    /// All of a chunk is here at `at_ns`: the verifier takes one after the other.
    fn verify(&mut self, key: UploadKey, at_ns: u64) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        if upload.receiver != Receiver::Receives {
            return;
        }
        upload.receiver = Receiver::Verifies;
        let (host, len) = (upload.to as usize, f64::from(upload.len));
        let cost_ns = (len * 1e9 / self.plan.verify_bytes_per_s) as u64;
        let it = &mut self.hosts[host];
        it.verifier_free_ns = it.verifier_free_ns.max(at_ns) + cost_ns;
        let heard_ns = it.verifier_free_ns + self.plan.verify_us * 1000;
        self.hand(host, heard_ns, Arrival::Verified(key));
    }

    pub(crate) fn verified(&mut self, key: UploadKey) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        let (host, corrupt) = (upload.to as usize, upload.corrupt);
        let (conn, sender, index) = (upload.conn, upload.from as usize, upload.index);
        if upload.receiver != Receiver::Verifies {
            return;
        }
        if !corrupt {
            return self.chunk_over(key, ChunkOutcome::Verified);
        }
        self.sometimes.note(Happening::CorruptChunk);
        let found = match self.plan.defect {
            None => ChunkOutcome::Corrupt,
            Some(Defect::BlindVerifier) => ChunkOutcome::Verified,
            Some(Defect::MutedVerifier) => ChunkOutcome::Broken,
        };
        if self.is_open(conn, host) {
            self.checkers.forged(host, sender, index, found);
        }
        self.chunk_over(key, found);
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
                self.sometimes.note(Happening::ChunkBroken);
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

    pub(crate) fn upload_over(&mut self, key: UploadKey, outcome: UploadOutcome) {
        let Some(upload) = self.upload(key) else {
            return;
        };
        let host = upload.from as usize;
        if upload.sender_done {
            return;
        }
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
        self.sometimes.note(Happening::UploadCancelled);
        // The node hears of it as of any other end, after this turn.
        let outcome = UploadOutcome::Refused;
        let over = Arrival::UploadOver {
            upload: key,
            outcome,
        };
        self.hand(host, self.now_ns, over);
        self.send_control(host, conn, 8, Body::Reset(key));
    }

    pub(crate) fn stop_chunk(&mut self, host: usize, conn: ConnId, index: ChunkIndex) {
        let conn = conn.0 as u32;
        let now_ns = self.now_ns;
        let it = &self.conns[conn as usize];
        let sender = it.hosts[1 - it.side_of(host)];
        let key = it.uploads.iter().copied().find(|key| {
            let upload = &self.uploads[key.slot as usize];
            let arrives = match upload.receiver {
                Receiver::Receives => true,
                Receiver::Verifies => upload.heard_ns > now_ns,
                Receiver::Expects | Receiver::Done => false,
            };
            upload.index == index && upload.from == sender && arrives
        });
        let Some(key) = key else {
            return;
        };
        self.sometimes.note(Happening::ChunkStopped);
        if let Some(upload) = self.upload(key) {
            upload.receiver = Receiver::Done;
        }
        self.settle(key);
        self.send_control(host, conn, 8, Body::Stop(key));
    }
}
