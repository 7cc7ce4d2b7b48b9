//! Whom to be connected to: arrivals, departures, peer exchange. The tracker's orders are `rewiring`'s.

use super::{CloseReason, Node, Output};
use crate::id::{ConnId, NodeId, Role};
use crate::limits::{self, ADDRESSES_MAX, DEGREE, DIALS_MAX};
use crate::membership::Wanted;
use crate::message::{Have, Hello, Message, PeerAddress};
use crate::peers::Peer;
use crate::time::Instant;
use rootswarm_image::Bitfield;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

impl Node {
    pub(super) fn connected(
        &mut self,
        conn: ConnId,
        node: NodeId,
        addr: SocketAddr,
        role: Role,
        dialed: bool,
        now: Instant,
    ) {
        self.membership.dialed(node);
        if self.banned.contains(&node) {
            return self.refuse(conn, CloseReason::Banned);
        }
        if role == Role::Peer && self.revoked.contains(&node) {
            return self.refuse(conn, CloseReason::Revoked);
        }
        if node == self.node {
            return self.refuse(conn, CloseReason::Protocol("a connection to itself"));
        }
        if let Some(old) = self.peers.conn_of(node) {
            // Both dialed at once: both keep the one that the smaller id dialed. Dialed twice by
            // the same side: the older one is dead, or will be.
            // And an older one that the other side does not know of any more is dead as well.
            let crossed = self.peers.get(old).is_some_and(|old| {
                old.dialed != dialed && now.since(old.connected_at) < limits::FRESH
            });
            if crossed && dialed != (self.node < node) {
                return self.refuse(conn, CloseReason::Duplicate);
            }
            self.close(old, CloseReason::Duplicate, now);
        }
        let most = if self.role == Role::Seed {
            limits::SEED_PEERS_MAX
        } else {
            limits::PEERS_MAX
        };
        if self.peers.len() >= most && role == Role::Peer {
            return self.refuse(conn, CloseReason::Full);
        }
        let have = self.picker.have();
        let have = match have.count() {
            0 => Have::Nothing,
            all if all == have.len() => Have::Everything,
            _ => Have::Bits(have.to_bytes()),
        };
        let hello = Hello {
            image: self.image,
            have,
            rack: self.locality.rack().map(str::to_owned),
        };
        self.outputs.push_back(Output::Hello { conn, hello });
        let mut peer = Peer::new(conn, node, addr, role, dialed, &self.nothing, now);
        peer.told = self.announcements.all();
        self.peers.insert(peer);
    }

    fn refuse(&mut self, conn: ConnId, reason: CloseReason) {
        self.outputs.push_back(Output::Close { conn, reason });
    }

    pub(super) fn greeted(&mut self, conn: ConnId, hello: &Hello, now: Instant) {
        let chunks = self.geometry.chunk_count();
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        if peer.active || hello.image != self.image {
            return self.close(
                conn,
                CloseReason::Protocol("hello twice, or for another image"),
                now,
            );
        }
        peer.have = match &hello.have {
            Have::Nothing => self.nothing.clone(),
            Have::Everything => self.picker.everything(),
            Have::Bits(bits) => match Bitfield::from_bytes(chunks, bits) {
                Ok(have) => have,
                Err(_) => {
                    return self.close(
                        conn,
                        CloseReason::Protocol("a bit field of another length"),
                        now,
                    );
                }
            },
        };
        peer.not_needed = peer.have.clone();
        peer.active = true;
        peer.held_at_first = peer.have.count();
        peer.rack = hello.rack.clone();
        // A seed that does not know where it stands is not taken to stand here.
        peer.is_near = self.locality.is_near(peer.rack.as_deref())
            && (peer.role == Role::Peer || peer.rack.is_some());
        if peer.role == Role::Peer {
            self.locality.met(peer.is_near);
        }
        self.may_offer_more = true;
        let (node, role) = (peer.node, peer.role);
        self.membership.greeted(node);
        if role == Role::Peer {
            for index in peer.have.iter_set() {
                self.picker.announced(index);
            }
        }
        match role {
            Role::Peer => self.reached(node, now),
            Role::Seed => self.met_seed(now),
        }
        self.note_completion(conn, now);
        match (self.role, role) {
            (Role::Seed, Role::Peer) => {
                self.tell_revoked(conn);
                self.track(conn, node, now);
            }
            // Peer exchange: what lets a swarm finish without its seed.
            (Role::Peer, Role::Peer) => self.tell_peers(conn, now),
            _ => {}
        }
        self.look_at_all();
    }

    /// A seed places a newcomer.
    fn track(&mut self, conn: ConnId, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get(conn) else {
            return;
        };
        let rewiring = self.tracker.join(node, peer.rack.as_deref(), &mut self.rng);
        let (mut fed, mut beside, mut same_address) = (0, 0, 0);
        for other in self.peers.iter().filter(|other| other.is_fed) {
            same_address += usize::from(other.addr.ip() == peer.addr.ip());
            if !other.is_silent {
                fed += 1;
                beside += usize::from(other.rack == peer.rack);
            }
        }
        self.rewire(rewiring, now);
        let Some(peer) = self.peers.get(conn) else {
            return;
        };
        // A rack that comes late has its share too.
        let most = match beside {
            0 => limits::SEED_NEIGHBOURS_MAX,
            _ => limits::SEED_NEIGHBOURS,
        };
        let wants = !peer.is_complete() && same_address < limits::FED_PER_ADDRESS;
        let is_fed = wants && (fed < most || self.take_quiet_place(now));
        if let Some(peer) = self.peers.get_mut(conn) {
            peer.is_fed = is_fed;
        }
        if !is_fed {
            self.send(conn, Message::WantHaves(false));
        }
        self.note_completion(conn, now);
    }

    /// All places among the fed nodes are taken: who has been quiet for longest gives up his, if anybody
    /// is. He may be gone for long before his connection ends, and a hall that lost power held all places.
    fn take_quiet_place(&mut self, now: Instant) -> bool {
        let quiet_after = self.quiet_after();
        let quiet = self
            .peers
            .iter()
            .filter(|peer| peer.is_fed && !peer.is_silent)
            .filter(|peer| now.since(peer.heard_at) > quiet_after)
            .min_by_key(|peer| (peer.heard_at, peer.conn))
            .map(|peer| peer.conn);
        let Some(conn) = quiet else {
            return false;
        };
        if let Some(peer) = self.peers.get_mut(conn) {
            peer.is_fed = false;
        }
        self.send(conn, Message::WantHaves(false));
        true
    }

    pub(super) fn disconnected(&mut self, conn: ConnId, now: Instant) {
        self.end_offer(conn);
        let Some(peer) = self.peers.remove(conn) else {
            return;
        };
        self.look_at_all();
        self.may_offer_more = true;
        if peer.active && peer.role == Role::Peer {
            self.locality.parted(peer.is_near);
        }
        for flight in self.flights.extract(|flight| flight.conn == conn) {
            if self.flights.of_chunk(flight.index).next().is_none() {
                self.picker.abandon(flight.index);
            }
        }
        let broken_off = self.uploads.forget(conn);
        if peer.role == Role::Peer {
            for index in peer.have.iter_set() {
                if self.picker.withdrawn(index) && self.role == Role::Seed {
                    self.seeding.reconsider(index, &self.picker);
                }
            }
            self.membership.failed(peer.node, now, &mut self.rng);
            self.may_dial = true;
        }
        if self.role == Role::Seed {
            let took_some = !broken_off.is_empty() || !peer.unconfirmed.is_empty();
            if took_some && !peer.has_confirmed {
                self.leeches.took(peer.addr.ip(), now);
            }
            let unconfirmed = peer.unconfirmed.iter().map(|(index, _)| *index);
            for index in broken_off.into_iter().chain(unconfirmed) {
                self.seeding.ended(index, &self.picker);
            }
        }
        // A newer connection to the same node may have taken over already.
        if self.role == Role::Seed && self.peers.conn_of(peer.node).is_none() {
            self.reaching.left(peer.node);
            let rewiring = self.tracker.leave(peer.node);
            self.rewire(rewiring, now);
            if peer.is_fed {
                self.feed_another(now);
            }
        }
    }

    /// A place among the fed nodes is free: the one that holds least gets it, those first in whose
    /// rack nobody is fed, and last those whose address took or refused and announced nothing.
    pub(super) fn feed_another(&mut self, now: Instant) {
        let mut fed: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        let counts = |peer: &&Peer| peer.is_fed && !peer.is_silent;
        for peer in self.peers.iter().filter(counts) {
            *fed.entry(peer.rack.as_deref()).or_default() += 1;
        }
        // Those that were silent and speak again have kept theirs.
        if fed.values().sum::<usize>() >= limits::SEED_NEIGHBOURS_MAX {
            return;
        }
        let mut addresses: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for peer in self.peers.iter().filter(|peer| peer.is_fed) {
            *addresses.entry(peer.addr.ip()).or_default() += 1;
        }
        let has_part = |peer: &&Peer| {
            let fed = addresses.get(&peer.addr.ip());
            fed.is_some_and(|fed| *fed >= limits::FED_PER_ADDRESS)
        };
        let waiting = self
            .peers
            .iter()
            .filter(|peer| peer.active && !peer.is_fed && !peer.is_complete() && !has_part(peer));
        let is_rack_fed = |peer: &&Peer| fed.contains_key(&peer.rack.as_deref());
        let Some(conn) = waiting
            .min_by_key(|peer| {
                let is_leech = self.leeches.is_one(peer.addr.ip(), now);
                (is_leech, is_rack_fed(peer), peer.chunks(), peer.conn)
            })
            .map(|peer| peer.conn)
        else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(conn) {
            peer.is_fed = true;
            self.send(conn, Message::WantHaves(true));
        }
    }

    /// Notes when a peer has become complete; a seed then feeds another in its place.
    pub(super) fn note_completion(&mut self, conn: ConnId, now: Instant) {
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        if peer.is_complete() && peer.complete_since.is_none() {
            peer.complete_since = Some(now);
            if std::mem::take(&mut peer.is_fed) {
                self.feed_another(now);
            }
        }
    }

    pub(super) fn learn(&mut self, address: PeerAddress, assigned: bool, now: Instant) {
        let banned = self.banned.contains(&address.node) || self.revoked.contains(&address.node);
        if address.node != self.node && !banned && self.role == Role::Peer {
            self.membership
                .learn(address.node, address.addr, assigned, now);
            self.may_dial = true;
        }
    }

    pub(super) fn drop_neighbours(&mut self, nodes: &[NodeId], now: Instant) {
        for node in nodes {
            self.membership.unassign(*node);
            // Never below the degree: the tracker's view may be older than ours.
            if self.neighbours() > DEGREE
                && let Some(conn) = self.peers.conn_of(*node)
            {
                self.close(conn, CloseReason::Rewired, now);
            }
        }
    }

    fn neighbours(&self) -> usize {
        self.peers
            .iter()
            .filter(|peer| peer.role == Role::Peer)
            .count()
    }

    /// Peer exchange: some of the nodes this one is connected to.
    pub(super) fn tell_peers(&mut self, conn: ConnId, now: Instant) {
        let Some(peer) = self.peers.get_mut(conn) else {
            return;
        };
        if peer
            .asked_for_peers_at
            .is_some_and(|at| now.since(at) < limits::HOUSEKEEPING / 2)
        {
            peer.asked_in_vain += 1;
            if peer.asked_in_vain > limits::ASKED_IN_VAIN_MAX {
                let reason = CloseReason::Protocol("asks for peers all the time");
                self.close(conn, reason, now);
            }
            return;
        }
        peer.asked_for_peers_at = Some(now);
        peer.asked_in_vain = 0;
        let who = peer.node;
        let mut others: Vec<NodeId> = if self.role == Role::Seed {
            self.tracker.sample(DEGREE, who, &mut self.rng)
        } else {
            self.peers
                .iter()
                .filter(|peer| peer.role == Role::Peer && peer.active)
                .map(|peer| peer.node)
                .collect()
        };
        self.rng.shuffle(&mut others);
        others.truncate(DEGREE.min(ADDRESSES_MAX));
        let addresses: Vec<PeerAddress> = others
            .into_iter()
            .filter_map(|whom| self.address_for(who, whom))
            .collect();
        if !addresses.is_empty() {
            self.send(conn, Message::Peers(addresses));
        }
    }

    /// Dials neighbours: those the tracker named, and others while there are too few.
    pub(super) fn dial_neighbours(&mut self, now: Instant) {
        self.may_dial = false;
        if self.role == Role::Seed {
            return;
        }
        // A node that has everything dials those who cannot dial it.
        let is_complete = self.picker.is_complete();
        let room = DIALS_MAX
            .saturating_sub(self.membership.dialing())
            .min(limits::PEERS_MAX.saturating_sub(self.peers.len()));
        if room == 0 {
            return;
        }
        let wanted = match self.neighbours() + self.membership.dialing() < DEGREE {
            _ if is_complete => Wanted::Callers,
            true => Wanted::All,
            false => Wanted::Assigned,
        };
        let peers = &self.peers;
        let due = self
            .membership
            .take_due(room, wanted, now, &mut self.rng, |node| {
                peers.conn_of(node).is_some()
            });
        if !due.is_empty() {
            self.watch_dials(now);
        }
        for (node, addr) in due {
            self.outputs.push_back(Output::Dial { node, addr });
        }
    }

    /// Parts from neighbours beyond [`limits::NEIGHBOURS_KEPT`] that this side looked for itself and nothing
    /// is under way with. While a swarm is put together everybody looks for some, and those that the
    /// tracker names change with each newcomer. A neighbour that the tracker named is never one of them, as
    /// far as this side knows; the other side knows too, and dials again.
    fn part_from_surplus(&mut self, now: Instant) {
        let surplus = self.neighbours().saturating_sub(limits::NEIGHBOURS_KEPT);
        // Where there are racks, who stands elsewhere is one of few.
        if self.role == Role::Seed || surplus == 0 || self.locality.matters() {
            return;
        }
        let mut parting: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|peer| peer.role == Role::Peer && peer.active && peer.dialed)
            .filter(|peer| peer.outstanding == 0 && self.uploads.to(peer.conn) == 0)
            .filter(|peer| !self.membership.is_assigned(peer.node))
            .map(|peer| peer.conn)
            .collect();
        self.rng.shuffle(&mut parting);
        for conn in parting.into_iter().take(surplus) {
            self.close(conn, CloseReason::Rewired, now);
        }
    }

    /// Once a second.
    pub(super) fn keep_house(&mut self, now: Instant) {
        self.give_up_unconfirmed(now);
        if self.role == Role::Peer {
            self.note_silent(now);
        }
        self.part_from_surplus(now);
        if self.role == Role::Seed {
            self.tell_cut_off();
        }
        let complete = self.picker.is_complete();
        let held = self.picker.have().count();
        let seeds: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|peer| peer.active && peer.role == Role::Seed)
            .map(|peer| peer.conn)
            .collect();
        if self.role == Role::Peer && held != self.reported_progress && !seeds.is_empty() {
            self.reported_progress = held;
            for conn in &seeds {
                self.send(*conn, Message::Progress(held));
            }
        }
        if complete && self.role == Role::Peer {
            let done = |peer: &Peer| {
                peer.role == Role::Peer
                    && peer
                        .complete_since
                        .is_some_and(|at| now.since(at) >= limits::COMPLETE_LINGER)
            };
            let parting: Vec<ConnId> = self
                .peers
                .iter()
                .filter(|peer| done(peer))
                .map(|peer| peer.conn)
                .collect();
            for conn in parting {
                self.close(conn, CloseReason::Done, now);
            }
        } else if self.role == Role::Peer {
            self.look_for_neighbours(now);
        }
    }

    /// A node that lacks chunks and has few neighbours asks for more: one of those it reaches, or, while it
    /// has hardly any, all of them, and dials again whom it knows.
    fn look_for_neighbours(&mut self, now: Instant) {
        let active = |peer: &&Peer| peer.active;
        let neighbours = self.peers.iter().filter(active);
        let few =
            neighbours.filter(|peer| peer.role == Role::Peer).count() < limits::NEIGHBOURS_FEW;
        if few {
            self.membership.hurry(now, &mut self.rng);
            self.may_dial = true;
        } else if self.neighbours() >= DEGREE / 2 {
            return;
        }
        let mut askable: Vec<ConnId> = self
            .peers
            .iter()
            .filter(active)
            .map(|peer| peer.conn)
            .collect();
        if !few && !askable.is_empty() {
            askable = vec![askable[self.rng.below(askable.len())]];
        }
        for conn in askable {
            self.send(conn, Message::WantPeers);
        }
    }
}
