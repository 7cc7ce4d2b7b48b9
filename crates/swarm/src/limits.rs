//! Every bound of the protocol and the scheduler, with the arithmetic beside it.

use std::time::Duration;

/// The largest control frame, in bytes. The largest legal one is a `Hello` with a bit for each
/// of 2^17 chunks: 16 KiB and a few bytes.
pub const FRAME_BYTES_MAX: usize = 32 * 1024;

/// The most chunks an image may have in a swarm: 2^17 × 32 bytes of hashes is a 4 MiB manifest,
/// and at 16 MiB a chunk it is an image of 2 TiB.
pub const CHUNKS_MAX: u32 = 1 << 17;

/// The most runs in one `Have`. 2,048 × at most 10 bytes fits a frame; more go in a second one.
pub const HAVE_RUNS_MAX: usize = 2048;

/// The most addresses in one `Peers` or `Dial`: 64 × at most 54 bytes.
pub const ADDRESSES_MAX: usize = 64;

/// Nodes whose admission is taken back one by one: 1,000 × 32 bytes fit a frame. More are taken back
/// all at once, by raising the epoch.
pub const REVOKED_MAX: usize = 1000;

/// The longest rack name, in bytes.
pub const RACK_BYTES_MAX: usize = 64;

/// Neighbours in the overlay (half of them from rings that name this node, see `tracker`). A
/// swarm of up to this many nodes and one is a full mesh. Below 12 stragglers appear in the
/// simulator; above 24 the have-deltas cost more than the choice is worth.
pub const DEGREE: usize = 16;

/// How long a seed collects the edges that nodes are to give up. Meanwhile they have some neighbours too many.
pub const PARTINGS_AFTER: Duration = Duration::from_millis(200);
/// But no more than so many for each node: a crowd is put together faster than that.
pub const PARTINGS_PER_NODE: usize = 8;

/// Neighbours that a node keeps beside those that the tracker named. Nodes that start together looked for
/// so many that they had 38, and every chunk was announced to all of them. In the simulator the last of
/// 100 nodes (1 GB, 1 Gbit/s) ends at 1.085 of the bound with those, at 1.082, 1.081 and 1.082 with 24, 20
/// and 16 kept, and at 20 with a third less control traffic.
pub const NEIGHBOURS_KEPT: usize = DEGREE + DEGREE / 4;

/// A rack of up to so many nodes is a full mesh when there are several racks: then each node knows
/// what its whole rack holds, and one of them can be told off to bring each chunk over the core. 48
/// machines fill a rack.
pub const RACK_MESH_MAX: usize = 48;

/// Rings through the whole swarm in which everybody stands when there are several racks: so many
/// times two neighbours in other racks.
pub const FAR_RINGS: usize = 4;

/// The most connections a peer keeps, the seeds' not counted: those of the largest mesh within a rack,
/// and outside twice [`DEGREE`], for the first nodes of a swarm also keep each other. What is left is
/// for those who just lost neighbours and look for somebody who takes them.
pub const PEERS_MAX: usize = 96;

/// The most connections a seed accepts for one image. The tracker keeps one for each live node.
pub const SEED_PEERS_MAX: usize = 16 * 1024;

/// How many nodes a seed hands chunks to at a time; the others it only tracks.
pub const SEED_NEIGHBOURS: usize = 64;

/// Of one address: a machine with many keys must not have all of those places. A swarm behind one address
/// has its chunks from these, who hand them on.
pub const FED_PER_ADDRESS: usize = 8;

/// Pushes in a row that a node refuses before another has its place among the fed. One that got a chunk from
/// a peer meanwhile refuses it, but few of those that no node was known to hold.
pub const REFUSALS_MAX: u32 = 16;

/// The same as [`SEED_NEIGHBOURS`] where there are more racks than that: one of each rack. Each of them
/// announces all it gets to the seed.
pub const SEED_NEIGHBOURS_MAX: usize = 256;

/// Nodes remembered beside those connected.
pub const KNOWN_MAX: usize = 256;

/// Banned nodes remembered; the oldest is forgotten first.
pub const BANS_MAX: usize = 1024;

/// Chunks a receiver keeps in flight, over all its peers: as many as a sender has slots. Then every
/// link carries the same number of chunks each way and none waits for another; with half as many,
/// each of 100 nodes lost 2 to 20 % of its uplink. In chunks, not bytes: with 4 of 1 MiB the last
/// of them came at 1.34 of the bound, with 8 at 1.14 (300 MB, 1 Gbit/s).
pub const IN_FLIGHT: usize = UPLOAD_SLOTS;

/// A request that is not answered by then is on a link with a queue: it does not keep others from
/// being asked. On real links, with queues of 15 to 30 ms, not counting such requests brought 16
/// nodes with a fast seed from 1.19-1.22 of the bound to 1.13; not counting any that is unanswered
/// costs 0.02 to 0.03 in the simulator, where answers are prompt.
pub const PROMPT_ANSWER: Duration = Duration::from_millis(10);

/// Places in flight that are not filled by asking, but kept for what is offered: those who send know
/// what is rare around them and who is behind.
pub const KEPT_FOR_OFFERS: usize = 1;

/// The most chunks that are ever in flight: links on which chunks are fast ([`FAST_CHUNK`]) have
/// twice as many, what is overdue or not answered is let off up to as many again, and as many may be
/// asked of seeds while peers give next to nothing.
pub const IN_FLIGHT_MAX: usize = IN_FLIGHT * 6;

/// A chunk that has been seen in another rack, and not in this one, for so many times as long as
/// chunks take is fetched by somebody whose duty it was not.
pub const TAKE_OVER_CHUNKS: u32 = 4;
/// But never before this: a chunk is not announced before it is complete, and 5 ms later.
pub const TAKE_OVER_MIN: Duration = Duration::from_millis(100);

/// A node to which no chunk has come for so many times as long as chunks take fetches what it lacks
/// wherever it can.
pub const CUT_OFF_CHUNKS: u32 = 16;
/// But never before this.
pub const CUT_OFF_MIN: Duration = Duration::from_millis(500);

/// Uploads beyond the slots for those who ask from another rack: each brings a chunk for all in it.
pub const SLOTS_FOR_OTHER_RACKS: usize = 2;

/// The most chunks in one `Offer`: the answer is on its way for a round trip, and the first ones may
/// have arrived by another way meanwhile.
pub const OFFER_CHUNKS: usize = 3;

/// Offers beyond the free slots: some will be declined, and a slot must not lie idle meanwhile.
pub const OFFERS_AHEAD: usize = 2;

/// A peer that declined an offer is not offered anything for a time in this range (microseconds).
pub const OFFER_BACKOFF_US: (u64, u64) = (3_000, 9_000);

/// An offer that is not answered by then no longer counts; the answer may still come.
pub const OFFER_TIMEOUT: Duration = Duration::from_millis(200);

/// Images' worth of chunks that a seed offers after every chunk has left it once. A seed that is much
/// faster than its nodes helps on then; it also serves kernels and initrds, so there is an end to it.
pub const SEED_HELPED_COPIES: u64 = 1;

/// The same for few nodes, for a copy would be much of what they need: a sixteenth of one for each node
/// that is fed. Requests come on top. Without this bound four emulated machines, which serve slowly,
/// took two copies and what they asked for.
pub const SEED_HELPED_NODES_FEW: u64 = 16;

/// The same for N nodes, if they are more than these: so many Nths of a copy, for a whole one is next to
/// nothing of what they need. In the simulator, with ten times their rate (300 MB; last node over the
/// bound without help and with a whole copy): 32 nodes 1.079 and 1.077, 64 nodes 1.083 and 1.082, 128 and
/// 256 nodes no difference.
pub const SEED_HELPED_NODES_MANY: u64 = 64;

/// Chunks in flight from one peer while there are many to choose from.
pub const PER_PEER_MIN: usize = 2;

/// Uploads a node interleaves at most. Measured in the simulator before there were offers, with 8
/// chunks in flight (last node over the bound, 8, 24
/// and 100 nodes): 4 slots 1.06, 1.12, 1.18; 6 slots 1.05, 1.09, 1.16; 8 slots 1.04, 1.08, 1.14;
/// 12 slots 1.05, 1.14, 1.29. With fewer, uplinks idle while receivers are busy with others; with
/// more, each chunk takes longer to become one that can be passed on.
pub const UPLOAD_SLOTS: usize = 8;

/// The same for a seed, unless its link has room for more: see `breadth`.
pub const SEED_UPLOAD_SLOTS: usize = 8;

/// Uploads at once before the first was delivered; see `uploads`.
pub const UPLOAD_SLOTS_FIRST: usize = 2;

/// Where chunks take less than this, from request or upload to the end, the round trip counts
/// beside the chunk itself: twice as many are kept under way. At 10 Gbit/s a chunk of 512 KiB is
/// 0.4 ms; the last of 4 nodes then ends at 1.05 of the bound instead of 1.24.
pub const FAST_CHUNK: Duration = Duration::from_millis(8);

/// An upload that lasts four times as long as they do is overdue, but never before this: the
/// queues of a link under load hold up to 50 ms, in each direction.
pub const UPLOAD_PATIENCE_MIN: Duration = Duration::from_millis(300);
/// The same before any upload has ended: two chunks of 256 KiB at 1 Mbit/s; [`for_chunks_of`] their length.
/// A receiver that takes nothing at all is noticed sooner ([`crate::Input::UploadStalled`]).
pub const UPLOAD_PATIENCE_FIRST: Duration = Duration::from_secs(4);

// Requests wait for no slot: beyond the slots the answer is `Busy` at once. A queue of one or two
// was worth nothing in the simulator with eight slots.
const _: () = assert!(UPLOAD_SLOTS_FIRST <= UPLOAD_SLOTS);

/// Chunks a seed has under way to one node while it has other nodes to feed.
pub const SEED_PER_NODE: usize = 2;

/// Have-deltas are collected for at least so long before they are sent, so that chunks that arrive
/// together are announced together.
pub const HAVE_BATCH_MIN: Duration = Duration::from_millis(5);
/// The same where chunks take long. In the simulator (400 nodes, 1 GB, 1 Gbit/s; p99 over the bound
/// with 5, 10, 20 and 40 ms): chunks of 1 MiB 1.148, 1.149, 1.155, 1.161, of 512 KiB 1.109 and 1.113
/// with 5 and 10 ms. So it follows the chunk's time; 10 ms make a fifth of all control traffic
/// superfluous.
pub const HAVE_BATCH_MAX: Duration = Duration::from_millis(10);

/// Who holds a chunk already hears of it within half the time that a chunk takes, and within these
/// bounds. Telling it at once was a sixth to a third of all haves and gained nothing.
pub const HAVE_DELAY_MIN: Duration = Duration::from_millis(10);
/// See [`HAVE_DELAY_MIN`].
pub const HAVE_DELAY_MAX: Duration = Duration::from_millis(250);

/// Chunks below this are small: at 128 KiB haves were 1.0 to 1.2 % of the image's bytes. So those that
/// more than [`HAVE_URGENT_REPLICAS`] neighbours announced are announced within the same delay. In the
/// simulator the last of 8, 24 and 100 nodes of 50 and 100 Mbit/s (96.3 MB) is no later for it (1.080,
/// 1.118, 1.154 of the bound) with half the haves; with chunks of 256 KiB and more it is, by 0.005 to
/// 0.010.
pub const HAVE_SMALL_BYTES: u64 = 256 * 1024;
/// See [`HAVE_SMALL_BYTES`].
pub const HAVE_URGENT_REPLICAS: u16 = 4;

/// A peer that said `Busy` is left alone for a time in this range (microseconds), drawn anew
/// each time so that those it sent away do not come back together.
pub const BUSY_BACKOFF_US: (u64, u64) = (3_000, 10_000);

/// Each so many `Busy` in a row double the time a peer is left alone, [`BUSY_DOUBLINGS`] times at
/// most (to 100-320 ms): it may be a liar that announces what it lacks.
pub const BUSY_PATIENCE: u32 = 8;
/// See [`BUSY_PATIENCE`].
pub const BUSY_DOUBLINGS: u32 = 5;

/// The same for a seed that said `Busy`: it is still handing out first copies.
pub const SEED_BUSY_BACKOFF_US: (u64, u64) = (40_000, 120_000);

/// A node that could use more chunks than its peers offer waits this long before it asks a
/// seed, or as long as its chunks take, if that is more: the chunk it lacks is most likely about to
/// arrive at a neighbour.
pub const SEED_PATIENCE: Duration = Duration::from_millis(30);

/// How long what peers bring is measured, at least, before a node that gets next to nothing from them asks
/// a seed as it asks any holder (see `supply`): a few chunks at 10 Mbit/s.
pub const SUPPLY_WINDOW: Duration = Duration::from_millis(200);
/// The same for a node that no peer is connected to. Where there are any, the first is after 10 ms.
pub const SUPPLY_ALONE: Duration = Duration::from_millis(100);
/// How often it is judged.
pub const SUPPLY_JUDGED_EVERY: Duration = Duration::from_millis(20);

/// How long an address that asked a seed has its part of the slots: longer than those wait who were
/// told `Busy` ([`SEED_BUSY_BACKOFF_US`]).
pub const ASKED_LATELY: Duration = Duration::from_millis(200);

/// Uploads to receivers that have fallen silent, which take no slot. They cost a stream each, no memory.
pub const SILENT_UPLOADS_MAX: usize = 512;

/// From a request to the first byte of its chunk or `Busy`: four times as long as chunks use to
/// take from request to end, within these bounds (the upper one [`for_chunks_of`] their length).
/// Generous beside the queues of two loaded links (100 ms) and one lost packet, short beside a dead peer.
pub const ANSWER_TIMEOUT_MIN: Duration = Duration::from_millis(500);
/// See [`ANSWER_TIMEOUT_MIN`].
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most by which answers may take longer than usual while nothing arrives.
pub const LENIENCY_MAX: u32 = 16;

/// A chunk that is under way for four times as long as chunks use to take no longer counts as in
/// flight, but never before this.
pub const FLIGHT_PATIENCE_MIN: Duration = Duration::from_millis(200);

/// From a chunk's first byte to its last at the lowest useful rate; a chunk of `n` bytes gets
/// this plus `n` over [`CHUNK_RATE_MIN`]. Silence in between is caught earlier, by the
/// transport's [`CHUNK_SILENCE`].
pub const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes per second; see [`CHUNK_TIMEOUT`].
pub const CHUNK_RATE_MIN: u64 = 32 * 1024;
/// The longest silence within one chunk; of a seed's, the longest in which no chunk of its connection moves.
pub const CHUNK_SILENCE: Duration = Duration::from_secs(2);

/// A peer that did not answer, or broke off, is left alone for this long, doubled each time up
/// to [`FAILURE_BACKOFF_MAX`]. What breaks off between a seed and a node while one is left alone is the
/// same failure: eight chunks that stop with one link are one, not the end of the connection.
pub const FAILURE_BACKOFF: Duration = Duration::from_millis(500);
/// See [`FAILURE_BACKOFF`].
pub const FAILURE_BACKOFF_MAX: Duration = Duration::from_secs(8);

/// Failures in a row after which the connection is given up.
pub const FAILURES_MAX: u32 = 6;

/// Between attempts to reach a known node, doubled each time up to [`REDIAL_MAX`].
pub const REDIAL: Duration = Duration::from_millis(500);
/// See [`REDIAL`].
pub const REDIAL_MAX: Duration = Duration::from_secs(15);

/// A dial that has no answer after this is reported to the tracker. A handshake takes two round trips at
/// most, on links with full queues some 200 ms; a first packet that was lost is repeated after 30 ms.
pub const UNANSWERED_AFTER: Duration = Duration::from_millis(250);

/// What becomes of dials is collected for so long before it is said.
pub const DIAL_REPORTS_AFTER: Duration = Duration::from_millis(50);

/// For how long after such a report a node is called whenever it is named to others.
pub const HARD_TO_REACH: Duration = Duration::from_secs(60);

/// A connection that is younger may have crossed another between the same nodes: one of the two is
/// superfluous. An older one was known to both when one of them dialed again, so that it is dead. A dial
/// takes 3 s at most.
pub const FRESH: Duration = Duration::from_secs(4);

/// Pairs of nodes without a connection that a seed remembers, in both orders: 64 bytes each, 1 MiB.
pub const CUT_OFF_PAIRS_MAX: usize = 16 * 1024;

/// With fewer active neighbours, while it lacks chunks, a node does not wait for its turn: it knocks again at
/// all that it knows within [`REDIAL`], whatever came of it before, and asks all whom it reaches for more.
pub const NEIGHBOURS_FEW: usize = DEGREE / 4;

/// Dials under way at once.
pub const DIALS_MAX: usize = 16;

/// Pushed chunks that a node takes at a time, from the first byte to the announcement. A seed keeps
/// to it, so that none is refused.
pub const PUSHES_MAX: usize = 16;

/// From the last byte of a pushed chunk acknowledged to the receiver's announcement. Hashing and
/// storing take milliseconds; a receiver that takes this long ([`for_chunks_of`] their length: a window of
/// it may wait to be read) has lost the chunk.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// Less where uploads are fast: twice what makes one of them overdue, but never less than this.
pub const CONFIRM_TIMEOUT_MIN: Duration = Duration::from_millis(600);

/// How often a peer with too few neighbours asks for more, and the tracker hears progress.
pub const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// The first time sooner: a swarm that starts together is put together by then, and each neighbour too many
/// costs an announcement for each chunk.
pub const HOUSEKEEPING_FIRST: Duration = Duration::from_millis(250);

/// Requests for peers that come so soon after an answer that they have none, before their sender is
/// thrown out. An honest node asks once a [`HOUSEKEEPING`]; a network that stood still for as long as a
/// connection lives delivers eight at once.
pub const ASKED_IN_VAIN_MAX: u32 = 16;

/// While a node starves, the picker runs at least this often.
pub const STARVED_TICK: Duration = Duration::from_millis(5);

/// Two complete peers have nothing more to say: after this they part.
pub const COMPLETE_LINGER: Duration = Duration::from_secs(5);

const _: () = assert!(CHUNKS_MAX as usize / 8 + 256 <= FRAME_BYTES_MAX);
const _: () = assert!(HAVE_RUNS_MAX * 10 + 16 <= FRAME_BYTES_MAX);
const _: () = assert!(REVOKED_MAX * 32 + 32 <= FRAME_BYTES_MAX);
const _: () = assert!(ADDRESSES_MAX * 64 + 16 <= FRAME_BYTES_MAX);
const _: () = assert!(PEERS_MAX > RACK_MESH_MAX + 2 * DEGREE && KNOWN_MAX > PEERS_MAX);
const _: () = assert!(FAR_RINGS > 0 && FAR_RINGS * 2 <= DEGREE);
const _: () = assert!(SEED_UPLOAD_SLOTS <= PUSHES_MAX);
const _: () = assert!(PER_PEER_MIN + KEPT_FOR_OFFERS <= IN_FLIGHT);

/// Chunks up to this length are what the fixed times are meant for; see [`for_chunks_of`].
pub const USUAL_CHUNK_BYTES: u64 = 1 << 20;

/// A time in which some chunks have to have gone by, for chunks of `chunk_bytes`: `usual` for those of up to
/// [`USUAL_CHUNK_BYTES`], and as many times more as they are longer. Eight chunks of 16 MiB are 54 s at
/// 20 Mbit/s: with times that did not grow with them the seed gave up most of what it had begun, and a node
/// alone took 181 s instead of 42 and four copies.
#[must_use]
pub fn for_chunks_of(chunk_bytes: u64, usual: Duration) -> Duration {
    let times = chunk_bytes.div_ceil(USUAL_CHUNK_BYTES).max(1);
    // Chunks have 16 MiB at most.
    usual * u32::try_from(times).unwrap_or(u32::MAX)
}

/// How long a chunk of `chunk_bytes` may take once it has started.
pub fn chunk_timeout(chunk_bytes: u64) -> Duration {
    CHUNK_TIMEOUT + Duration::from_millis(chunk_bytes * 1000 / CHUNK_RATE_MIN)
}
