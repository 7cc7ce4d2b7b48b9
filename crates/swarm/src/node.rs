//! One machine's part in a swarm: inputs in, outputs out.
//!
//! This file holds the state, the dispatch and the timers; `interface` has the words for what goes in
//! and out. What is decided lies in the other parts: `fetching` (what to ask of whom), `announcing` (what
//! to tell them), `seeds` (what to ask of seeds), `locality` (what to fetch from other racks), `offering`
//! (what to offer whom), `serving` (uploads and the seed's pushes), `overlay` and `rewiring` (whom to be
//! connected to), `reaching` (who can dial whom) and `revocation` (whom not any more). How bytes travel and
//! where they are kept is the owner's.

mod announcing;
mod fetching;
mod interface;
mod locality;
mod offering;
mod overlay;
mod reaching;
mod revocation;
mod rewiring;
mod seeds;
mod serving;
#[cfg(test)]
mod tests;

pub use interface::{ChunkOutcome, CloseReason, Config, Input, Output, UploadOutcome};

use crate::askers::Askers;
use crate::flight::Flights;
use crate::id::{ConnId, NodeId, Role};
use crate::leeches::Leeches;
use crate::limits::{self, HOUSEKEEPING, HOUSEKEEPING_FIRST};
use crate::locality::Locality;
use crate::membership::Membership;
use crate::message::{Message, Revocations};
use crate::peers::Peers;
use crate::picker::Picker;
use crate::rng::Rng;
use crate::seeding::Seeding;
use crate::status::{Ban, PeerReport, Report};
use crate::supply::Supply;
use crate::time::Instant;
use crate::tracker::Tracker;
use crate::uploads::Uploads;
use rootswarm_image::{Bitfield, ChunkIndex, Geometry, ImageId};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

#[derive(Debug, Default)]
struct Counters {
    from_seed: u64,
    from_peers: u64,
    duplicate: u64,
    uploaded: u64,
    requests: u64,
    declined: u64,
    failures: u64,
}

/// The state of one machine in the swarm of one image. See the crate's documentation for the
/// contract.
///
/// What nearly every input reads comes first and lies together: most of what a large simulation costs is
/// waiting for it.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Node {
    peers: Peers,
    picker: Picker,
    /// What a peer has of which nothing is known: shared by all of those.
    nothing: Bitfield,
    flights: Flights,
    /// When a chunk last came, or this node began. What comes to a node that is cut off counts only if
    /// it comes from its rack.
    last_arrival: Instant,
    /// What peers really bring.
    supply: Supply,
    /// Since when there was room in flight that no peer could fill.
    starved_since: Option<Instant>,
    /// When the picker runs again although nothing happened.
    look_again_at: Option<Instant>,
    /// When a seed tries again to push, because the nodes it could push to are left alone.
    feed_again_at: Option<Instant>,
    /// When peers may be offered chunks again, or an offer ends that nobody answered.
    offer_again_at: Option<Instant>,
    /// Since when, with a slot free, nobody could be offered anything.
    nobody_needs_since: Option<Instant>,
    housekeeping_at: Instant,
    /// When a seed tells its nodes from whom to part.
    part_at: Option<Instant>,
    announcements: announcing::Announcements,
    /// Smoothed time from request to arrival.
    chunk_time: Duration,
    /// How many times as long as usual an answer may take: doubled each time that requests run out
    /// of time and nothing has arrived in between.
    leniency: u32,
    role: Role,
    /// What the picker should look at.
    look: fetching::Look,
    /// A slot, a chunk or a peer is new: there may be something to offer.
    may_offer_more: bool,
    /// The address book changed, or a dial has ended: there may be somebody to dial.
    may_dial: bool,
    completed: bool,
    geometry: Geometry,
    /// While it starves: peers that may have become useful, and chunks that may be asked for again.
    news_of: Vec<ConnId>,
    freed: Vec<ChunkIndex>,
    outputs: VecDeque<Output>,
    rng: Rng,
    uploads: Uploads,
    /// Offers that have not been answered, and until when each counts.
    offers: Vec<(ConnId, Instant)>,
    /// When it last looked at all peers, and at those that had been left alone.
    looked_at: Instant,
    rested_at: Instant,
    counters: Counters,
    locality: Locality,
    node: NodeId,
    image: ImageId,
    membership: Membership,
    /// A seed's duties; empty and idle on a peer.
    seeding: Seeding,
    leeches: Leeches,
    askers: Askers,
    tracker: Tracker,
    partings: rewiring::Partings,
    reaching: reaching::Reaching,
    banned: BTreeSet<NodeId>,
    bans: Vec<Ban>,
    revocations: Revocations,
    /// The nodes in `revocations`.
    revoked: BTreeSet<NodeId>,
    reported_progress: u32,
}

impl Node {
    /// A node at `now`, connected to nobody.
    pub fn new(config: Config, now: Instant) -> Self {
        let mut rng = Rng::new(config.rng_seed);
        let chunks = config.geometry.chunk_count();
        let is_seed = config.role == Role::Seed;
        let completed = config.have.is_full();
        let chunk_bytes = config.geometry.chunk_size().bytes();
        Self {
            node: config.node,
            role: config.role,
            image: config.image,
            geometry: config.geometry,
            locality: Locality::new(config.node, config.rack),
            seeding: Seeding::new(if is_seed { chunks } else { 0 }, &mut rng),
            leeches: Leeches::default(),
            askers: Askers::default(),
            tracker: Tracker::default(),
            partings: rewiring::Partings::default(),
            reaching: reaching::Reaching::default(),
            housekeeping_at: now + HOUSEKEEPING_FIRST,
            rng,
            peers: Peers::default(),
            picker: Picker::new(config.have),
            nothing: Bitfield::new(chunks),
            flights: Flights::default(),
            uploads: match config.role {
                Role::Seed => Uploads::of_seed(limits::SEED_UPLOAD_SLOTS, chunk_bytes),
                Role::Peer => Uploads::new(limits::UPLOAD_SLOTS, chunk_bytes),
            },
            membership: Membership::default(),
            announcements: announcing::Announcements::default(),
            chunk_time: limits::for_chunks_of(chunk_bytes, Duration::from_millis(20)),
            leniency: 1,
            last_arrival: now,
            supply: Supply::new(now),
            starved_since: None,
            look_again_at: None,
            feed_again_at: None,
            offer_again_at: None,
            may_offer_more: false,
            nobody_needs_since: None,
            part_at: None,
            offers: Vec::new(),
            look: fetching::Look::All,
            news_of: Vec::new(),
            freed: Vec::new(),
            looked_at: now,
            rested_at: now,
            may_dial: false,
            banned: BTreeSet::new(),
            bans: Vec::new(),
            revocations: Revocations::default(),
            revoked: BTreeSet::new(),
            counters: Counters::default(),
            reported_progress: 0,
            completed,
            outputs: VecDeque::new(),
        }
    }

    /// See [`limits::for_chunks_of`].
    fn for_chunks(&self, usual: Duration) -> Duration {
        limits::for_chunks_of(self.geometry.chunk_size().bytes(), usual)
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Connected {
                conn,
                node,
                addr,
                role,
                dialed,
                wire,
            } => {
                self.connected(conn, node, addr, role, dialed, now);
                if let Some(peer) = self.peers.get_mut(conn) {
                    peer.wire = wire;
                }
            }
            Input::Hello { conn, hello } => self.greeted(conn, &hello, now),
            Input::Message { conn, message } => self.told(conn, message, now),
            Input::Disconnected { conn } => self.disconnected(conn, now),
            Input::DialFailed { node, answered } => self.dial_failed(node, answered, now),
            Input::LocalGone { conn } => self.local_gone(conn, now),
            Input::RemoteMoved { conn } => self.remote_moved(conn, now),
            Input::ChunkStarted { conn, index } => self.chunk_started(conn, index, now),
            Input::ChunkEnded {
                conn,
                index,
                outcome,
            } => self.chunk_ended(conn, index, outcome, now),
            Input::ChunkStored { index } => self.stored(index, now),
            Input::Want { index } => {
                if self.geometry.contains(index) {
                    self.picker.want(index);
                    self.look_at_all();
                }
            }
            Input::Revoke(list) => self.revoke(list, now),
            Input::UploadEnded {
                conn,
                index,
                outcome,
            } => self.upload_ended(conn, index, outcome, now),
            Input::UploadStalled { conn, index } => {
                self.uploads.stalled(conn, index);
                self.may_offer_more = true;
            }
            Input::Timeout => self.timed_out(now),
        }
        self.run(now);
    }

    /// The same, with what is to be done added to `outputs`. An owner of many nodes has one such list for all
    /// of them: each node's own would never be in a cache.
    pub fn handle_into(&mut self, now: Instant, input: Input, outputs: &mut VecDeque<Output>) {
        std::mem::swap(&mut self.outputs, outputs);
        self.handle(now, input);
        std::mem::swap(&mut self.outputs, outputs);
    }

    /// What is to be done next, if anything.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn next_timeout(&self) -> Instant {
        [
            Some(self.housekeeping_at),
            self.announcements.due(),
            self.flights.next_deadline(),
            self.look_again_at,
            self.feed_again_at,
            self.offer_again_at,
            self.part_at,
            self.reaching.due(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.housekeeping_at)
    }

    /// The chunks held.
    pub fn have(&self) -> &Bitfield {
        self.picker.have()
    }

    /// Whether every chunk is held.
    pub fn is_complete(&self) -> bool {
        self.picker.is_complete()
    }

    /// Whether the node at the other end of this connection has announced the chunk.
    pub fn peer_holds(&self, conn: ConnId, index: ChunkIndex) -> bool {
        self.peers
            .get(conn)
            .is_some_and(|peer| peer.have.get(index))
    }

    /// Reads what a message from this connection about this chunk will need, and changes nothing. An owner of
    /// many nodes has the memory fetch it for several messages at once. What is returned has no meaning.
    pub fn read_ahead(&self, conn: ConnId, index: ChunkIndex) -> bool {
        let peer = self.peers.get(conn);
        peer.is_some_and(|peer| {
            peer.have.get(index) ^ peer.not_needed.get(index) ^ (peer.progress == 0)
        }) ^ self.picker.needs(index)
    }

    /// How many neighbours, seeds not counted, have announced the chunk; 0 beyond the image.
    pub fn replicas(&self, index: ChunkIndex) -> u16 {
        if self.geometry.contains(index) {
            self.picker.replicas(index)
        } else {
            0
        }
    }

    /// Chunks on their way here.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// A snapshot for displays and checkers.
    pub fn report(&self, now: Instant) -> Report {
        Report {
            chunks_total: self.geometry.chunk_count(),
            chunks_have: self.picker.have().count(),
            in_flight: self.flights.len(),
            chunks_from_seed: self.counters.from_seed,
            chunks_from_peers: self.counters.from_peers,
            chunks_duplicate: self.counters.duplicate,
            chunks_uploaded: self.counters.uploaded,
            requests: self.counters.requests,
            declined: self.counters.declined,
            failures: self.counters.failures,
            peers: self
                .peers
                .iter()
                .filter(|peer| peer.active)
                .map(|peer| PeerReport {
                    node: peer.node,
                    addr: peer.addr,
                    role: peer.role,
                    rack: peer.rack.clone(),
                    chunks_have: peer.chunks(),
                    is_complete: peer.is_complete(),
                    connected_for: now.since(peer.connected_at),
                    complete_after: peer.complete_since.map(|at| at.since(peer.connected_at)),
                    cut_off_from: self.reaching.blamed(peer.node),
                    is_hard_to_reach: now < peer.hard_to_reach_until,
                })
                .collect(),
            bans: self.bans.clone(),
            cut_off_from: self.reaching.cut_off_from(),
        }
    }

    /// Everything that follows from the state as it is now.
    fn run(&mut self, now: Instant) {
        if self
            .flights
            .next_deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.expire(now);
        }
        if self.housekeeping_at <= now {
            self.housekeeping_at = now + HOUSEKEEPING;
            self.keep_house(now);
            self.may_dial = true;
        }
        let look = std::mem::take(&mut self.look);
        if look != fetching::Look::Nothing {
            self.request_chunks(look, now);
            self.feed(now);
        }
        if self.may_offer_more || self.offer_again_at.is_some_and(|at| at <= now) {
            self.offer(now);
        }
        if self.announcements.due().is_some_and(|at| at <= now) {
            self.announce(now);
        }
        if self.may_dial {
            self.dial_neighbours(now);
        }
        if self.part_at.is_some_and(|at| at <= now) {
            self.tell_partings();
        }
        if self.reaching.due().is_some_and(|at| at <= now) {
            self.report_dials(now);
        }
    }

    fn told(&mut self, conn: ConnId, message: Message, now: Instant) {
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        let from_seed = peer.role == Role::Seed;
        peer.heard_at = now;
        if std::mem::take(&mut peer.is_silent) {
            self.uploads.set_silent(conn, false);
        }
        if !peer.active {
            return self.close(conn, CloseReason::Protocol("a message before hello"), now);
        }
        match message {
            Message::Have(runs) => self.peer_has(conn, &runs, now),
            Message::Request(index) => self.requested(conn, index, now),
            Message::Busy(index) => self.declined(conn, index, now),
            Message::Cancel(index) => self.cancelled(conn, index),
            Message::Peers(addresses) => {
                for address in addresses {
                    self.learn(address, false, now);
                }
            }
            Message::Dial(addresses) if from_seed => {
                for address in addresses {
                    self.follow(address, now);
                    self.learn(address, true, now);
                }
            }
            Message::Drop(nodes) if from_seed => self.drop_neighbours(&nodes, now),
            Message::Revoked(list) if from_seed => self.revoke(list, now),
            Message::WantHaves(wanted) if from_seed => {
                peer.wants_haves = wanted;
                if wanted {
                    self.announce_everything(conn);
                }
            }
            Message::Dialed { outcome, nodes } => self.told_of_dials(conn, outcome, &nodes, now),
            Message::Call(addresses) if from_seed => self.called(addresses, now),
            Message::CutOff(count) if from_seed => self.told_cut_off(count),
            Message::Dial(_)
            | Message::Drop(_)
            | Message::Revoked(_)
            | Message::WantHaves(_)
            | Message::Call(_)
            | Message::CutOff(_) => {
                self.close(
                    conn,
                    CloseReason::Protocol("a seed's message from a peer"),
                    now,
                );
            }
            Message::Offer(chunks) => self.offered(conn, &chunks, now),
            Message::NoRoom => self.offer_declined(conn, false, now),
            Message::NotNeeded => self.offer_declined(conn, true, now),
            Message::WantPeers => self.tell_peers(conn, now),
            Message::Progress(chunks) => {
                peer.progress = chunks.min(self.geometry.chunk_count());
                self.note_completion(conn, now);
            }
        }
    }

    fn send(&mut self, conn: ConnId, message: Message) {
        self.outputs.push_back(Output::Send { conn, message });
    }

    fn close(&mut self, conn: ConnId, reason: CloseReason, now: Instant) {
        self.outputs.push_back(Output::Close { conn, reason });
        self.disconnected(conn, now);
    }

    fn ban(&mut self, conn: ConnId, index: ChunkIndex, now: Instant) {
        let Some(peer) = self.peers.get(conn) else {
            return;
        };
        let reason = format!("chunk {index} does not match its hash");
        let ban = Ban {
            node: peer.node,
            addr: peer.addr,
            reason,
        };
        self.banned.insert(ban.node);
        self.membership.forget(ban.node);
        self.bans.push(ban);
        if self.bans.len() > limits::BANS_MAX {
            let oldest = self.bans.remove(0);
            self.banned.remove(&oldest.node);
        }
        self.close(conn, CloseReason::Banned, now);
    }
}
