//! What must never happen. The checkers see what goes into a node and what comes out of it, keep
//! their own books, and know nothing of how the world works.

use rootswarm_image::{Bitfield, ChunkIndex, Geometry};
use rootswarm_swarm::{ChunkOutcome, Input, Instant, Node, NodeId, limits};
use std::collections::BTreeSet;
use std::fmt;

/// Timer ticks of one node within a second. What ticks: announcements and looks of a starving
/// node, each every 5 ms at most, back-offs of its peers, and once a second the house.
const TICKS_PER_S_MAX: u32 = 700;

/// Outputs to one input: a `Have` in a few frames, and a cancellation of each flight, to each
/// peer of a seed with every node connected.
const OUTPUTS_MAX: u32 = limits::SEED_PEERS_MAX as u32 * 2;

/// Violations kept; more of the same add nothing.
const VIOLATIONS_MAX: usize = 50;

/// Something that must not happen, happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When.
    pub at_us: u64,
    /// At which host; 0 is the seed.
    pub host: usize,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at {:.6} s, host {}: {}",
            self.at_us as f64 / 1e6,
            self.host,
            self.what
        )
    }
}

#[derive(Debug)]
struct Book {
    /// What was verified here, or held from the start.
    held: Bitfield,
    complete: bool,
    tick_second: u64,
    ticks: u32,
    /// Since when it has been seen with few neighbours.
    few_since: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Checkers {
    geometry: Geometry,
    books: Vec<Book>,
    /// Who was sent a whole corrupt chunk by whom.
    forgeries: BTreeSet<(usize, usize)>,
    now: Instant,
    violations: Vec<Violation>,
}

impl Checkers {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            books: Vec::new(),
            forgeries: BTreeSet::new(),
            now: Instant::ZERO,
            violations: Vec::new(),
        }
    }

    pub(crate) fn starts(&mut self, host: usize, have: &Bitfield) {
        debug_assert_eq!(host, self.books.len());
        self.books.push(Book {
            held: have.clone(),
            complete: have.is_full(),
            tick_second: 0,
            ticks: 0,
            few_since: None,
        });
    }

    pub(crate) fn violated(&mut self, host: usize, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation {
                at_us: self.now.0,
                host,
                what,
            });
        }
    }

    pub(crate) fn into_violations(self) -> Vec<Violation> {
        self.violations
    }

    pub(crate) fn before(&mut self, host: usize, input: &Input, now: Instant) {
        self.now = now;
        if let Input::ChunkEnded {
            index,
            outcome: ChunkOutcome::Verified,
            ..
        } = input
        {
            self.books[host].held.set(*index);
        }
    }

    /// What is under way is bounded.
    pub(crate) fn after(&mut self, host: usize, node: &Node, outputs: u32) {
        let (in_flight, most) = (node.in_flight(), limits::IN_FLIGHT_MAX + limits::PUSHES_MAX);
        if in_flight > most {
            self.violated(
                host,
                format!("{in_flight} chunks in flight: at most {most}"),
            );
        }
        if outputs > OUTPUTS_MAX {
            self.violated(host, format!("{outputs} outputs to one input"));
        }
    }

    /// Nothing is held that was not verified, and nothing verified is forgotten. Asked when a chunk
    /// has ended, and of everybody at the end: a difference does not go away by itself.
    pub(crate) fn holds_what_was_verified(&mut self, host: usize, node: &Node) {
        let (held, verified) = (node.have().count(), self.books[host].held.count());
        if held != verified {
            self.violated(host, format!("holds {held} chunks of {verified} verified"));
        }
    }

    /// A timeout must move the next one into the future, and they must not come in storms.
    pub(crate) fn timed_out(&mut self, host: usize, now: Instant, next: Instant) {
        self.now = now;
        if next <= now {
            self.violated(
                host,
                format!("a timeout that changes nothing: due at {} us", next.0),
            );
        }
        let book = &mut self.books[host];
        let second = now.0 / 1_000_000;
        if book.tick_second != second {
            (book.tick_second, book.ticks) = (second, 0);
        }
        book.ticks += 1;
        if book.ticks == TICKS_PER_S_MAX {
            self.violated(host, format!("{TICKS_PER_S_MAX} timeouts within a second"));
        }
    }

    /// Asked once a second. Said once, when it has been so for longer than `most_us`.
    pub(crate) fn has_few_neighbours(
        &mut self,
        host: usize,
        has_few: bool,
        most_us: u64,
        now: Instant,
    ) {
        self.now = now;
        let Some(book) = self.books.get_mut(host) else {
            return;
        };
        if !has_few {
            book.few_since = None;
            return;
        }
        let since = *book.few_since.get_or_insert(now);
        let for_us = now.0.saturating_sub(since.0);
        if for_us > most_us && for_us <= most_us + 1_000_000 {
            self.violated(
                host,
                format!(
                    "fewer than {} neighbours for {} s",
                    limits::NEIGHBOURS_FEW,
                    for_us as f64 / 1e6
                ),
            );
        }
    }

    pub(crate) fn completed(&mut self, host: usize, node: &Node) {
        let all = self.geometry.chunk_count();
        if node.have().count() != all || self.books[host].held.count() != all {
            self.violated(host, "complete without all chunks".into());
        }
        if std::mem::replace(&mut self.books[host].complete, true) {
            self.violated(host, "complete twice".into());
        }
    }

    pub(crate) fn uploads(&mut self, host: usize, index: ChunkIndex, held: bool) {
        if !held {
            self.violated(host, format!("uploads chunk {index}, which it lacks"));
        }
    }

    pub(crate) fn sent_after_close(&mut self, host: usize, what: &dyn fmt::Debug) {
        self.violated(host, format!("uses a closed connection: {what:?}"));
    }

    pub(crate) fn dialed_nobody(&mut self, host: usize, node: NodeId) {
        self.violated(host, format!("dials {node}, which is not there"));
    }

    pub(crate) fn banned(&mut self, host: usize, culprit: Option<usize>, guilty: bool) {
        if !guilty {
            self.violated(host, format!("banned {culprit:?}, which did nothing"));
        }
    }

    /// A whole chunk that does not match its hash is handed to a node, and as what.
    pub(crate) fn forged(
        &mut self,
        host: usize,
        sender: usize,
        index: ChunkIndex,
        outcome: ChunkOutcome,
    ) {
        self.forgeries.insert((host, sender));
        if outcome == ChunkOutcome::Verified {
            let what = format!("stores chunk {index} of host {sender}, which has another hash");
            self.violated(host, what);
        }
    }

    /// At the end: `banned` are the hosts that `host` has banned.
    pub(crate) fn has_banned(&mut self, host: usize, banned: &[usize]) {
        let forgers = self.forgeries.range((host, 0)..=(host, usize::MAX));
        let spared: Vec<usize> = forgers
            .map(|(_, sender)| *sender)
            .filter(|sender| !banned.contains(sender))
            .collect();
        for sender in spared {
            let what = format!("has not banned host {sender}, which sent it a corrupt chunk");
            self.violated(host, what);
        }
    }

    /// A run that ended without some node being done.
    pub(crate) fn unfinished(&mut self, host: usize, have: u32) {
        let all = self.geometry.chunk_count();
        self.violated(host, format!("not done: {have} of {all} chunks"));
    }
}
