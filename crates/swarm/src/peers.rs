//! The connections of one node and what is known of the nodes behind them.

use crate::id::{ConnId, NodeId, Role};
use crate::limits::{BUSY_DOUBLINGS, BUSY_PATIENCE, FAILURE_BACKOFF, FAILURE_BACKOFF_MAX};
use crate::time::Instant;
use rootswarm_image::{Bitfield, ChunkIndex};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// One connected node. What every announcement and every look at all peers reads comes first and
/// fits into the first two cache lines: most of what a large simulation costs is waiting for them.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Peer {
    pub(crate) conn: ConnId,
    pub(crate) have: Bitfield,
    /// Chunks that it is not offered: those it holds, and those that it declined because they were under
    /// way to it, which it will announce soon.
    pub(crate) not_needed: Bitfield,
    pub(crate) role: Role,
    /// A peer, or a seed that knows where it stands, of this node's rack.
    pub(crate) is_near: bool,
    /// Its hello came: chunks may be exchanged.
    pub(crate) active: bool,
    /// It wants to hear what this node holds.
    pub(crate) wants_haves: bool,
    /// A seed hands chunks to it (seeds only).
    pub(crate) is_fed: bool,
    /// It was offered chunks and has not answered yet.
    pub(crate) is_offered: bool,
    /// What it last reported as held; kept where its haves are not asked for.
    pub(crate) progress: u32,
    /// Requests of ours that it has not finished.
    pub(crate) outstanding: usize,
    /// Chunk streams that it may still begin: one for each request that ever went to it.
    pub(crate) streams_due: u32,
    /// It is not asked, and nothing is pushed to it, before this.
    pub(crate) backoff_until: Instant,
    /// It is not offered anything before this.
    pub(crate) offer_after: Instant,
    pub(crate) connected_at: Instant,
    /// Of how many of the node's last arrivals it has heard (see `node/announcing`).
    pub(crate) told: usize,
    /// What it held when its hello came.
    pub(crate) held_at_first: u32,
    /// Chunks that it was offered; none unless `is_offered`.
    pub(crate) offered: Vec<ChunkIndex>,
    /// Pushed chunks whose bytes it acknowledged, but which it has not announced: its network has
    /// them, its store may not. In the order of their arrival there.
    pub(crate) unconfirmed: Vec<(ChunkIndex, Instant)>,
    /// It has announced a chunk that was pushed to it.
    pub(crate) has_confirmed: bool,
    failures: u32,
    declines: u32,
    pub(crate) complete_since: Option<Instant>,
    pub(crate) node: NodeId,
    pub(crate) addr: SocketAddr,
    /// Where it says it stands.
    pub(crate) rack: Option<String>,
    /// This side dialed.
    pub(crate) dialed: bool,
    pub(crate) asked_for_peers_at: Option<Instant>,
    /// How often it has asked for peers since the last answer.
    pub(crate) asked_in_vain: u32,
}

impl Peer {
    pub(crate) fn new(
        conn: ConnId,
        node: NodeId,
        addr: SocketAddr,
        role: Role,
        dialed: bool,
        chunks: u32,
        now: Instant,
    ) -> Self {
        Self {
            conn,
            node,
            addr,
            role,
            rack: None,
            is_near: false,
            dialed,
            active: false,
            have: Bitfield::new(chunks),
            progress: 0,
            wants_haves: true,
            is_fed: false,
            unconfirmed: Vec::new(),
            has_confirmed: false,
            is_offered: false,
            offered: Vec::new(),
            offer_after: Instant::ZERO,
            not_needed: Bitfield::new(chunks),
            outstanding: 0,
            streams_due: 0,
            backoff_until: Instant::ZERO,
            failures: 0,
            declines: 0,
            connected_at: now,
            told: 0,
            held_at_first: 0,
            complete_since: None,
            asked_for_peers_at: None,
            asked_in_vain: 0,
        }
    }

    /// How many chunks it is known to hold.
    pub(crate) fn chunks(&self) -> u32 {
        self.progress.max(self.have.count())
    }

    /// How fast it has been fetching since its hello, in chunks in 10^12 microseconds.
    pub(crate) fn pace(&self, now: Instant) -> u64 {
        let fetched = u64::from(self.chunks().saturating_sub(self.held_at_first));
        let micros = now.since(self.connected_at).as_micros() as u64;
        // At most 2^17 * 10^12: it fits.
        fetched * 1_000_000_000_000 / micros.max(1)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.chunks() >= self.have.len()
    }

    /// It let a request down. Returns how often in a row.
    pub(crate) fn failed(&mut self, now: Instant) -> u32 {
        let wait = FAILURE_BACKOFF * 2u32.pow(self.failures.min(8));
        self.backoff_until = now + wait.min(FAILURE_BACKOFF_MAX);
        self.failures += 1;
        self.failures
    }

    /// It delivered.
    pub(crate) fn delivered(&mut self) {
        self.failures = 0;
        self.declines = 0;
    }

    /// Whether what it announces is taken for true: it does not let one request after the other down.
    pub(crate) fn is_credible(&self) -> bool {
        self.failures < 2 && self.declines < 4 * BUSY_PATIENCE
    }

    /// It declined a request. Returns how often to double the time for which it is left alone.
    pub(crate) fn declined(&mut self) -> u32 {
        self.declines += 1;
        (self.declines / BUSY_PATIENCE).min(BUSY_DOUBLINGS)
    }
}

/// All connected nodes, in a fixed order, found by connection or identity.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    list: Vec<Peer>,
    /// Where each connection is in `list`, by connection. Connections are named in ascending order,
    /// so what is inserted goes to the end; and a peer's few fit into a handful of cache lines.
    by_conn: Vec<(ConnId, usize)>,
    by_node: BTreeMap<NodeId, ConnId>,
}

impl Peers {
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn at(&self, position: usize) -> &Peer {
        &self.list[position]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.list.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.list.iter_mut()
    }

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Peer> {
        Some(&self.list[self.position(conn)?])
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Peer> {
        let position = self.position(conn)?;
        Some(&mut self.list[position])
    }

    pub(crate) fn conn_of(&self, node: NodeId) -> Option<ConnId> {
        self.by_node.get(&node).copied()
    }

    pub(crate) fn insert(&mut self, peer: Peer) {
        let entry = (peer.conn, self.list.len());
        match self.place(peer.conn) {
            Ok(place) => self.by_conn[place] = entry,
            Err(place) => self.by_conn.insert(place, entry),
        }
        self.by_node.insert(peer.node, peer.conn);
        self.list.push(peer);
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Peer> {
        let place = self.place(conn).ok()?;
        let (_, position) = self.by_conn.remove(place);
        let peer = self.list.swap_remove(position);
        if let Some(moved) = self.list.get(position)
            && let Ok(place) = self.place(moved.conn)
        {
            self.by_conn[place].1 = position;
        }
        if self.by_node.get(&peer.node) == Some(&conn) {
            self.by_node.remove(&peer.node);
        }
        Some(peer)
    }

    fn position(&self, conn: ConnId) -> Option<usize> {
        let place = self.place(conn).ok()?;
        Some(self.by_conn[place].1)
    }

    /// Where the connection is in `by_conn`, or where it belongs.
    fn place(&self, conn: ConnId) -> Result<usize, usize> {
        self.by_conn.binary_search_by_key(&conn, |entry| entry.0)
    }
}
