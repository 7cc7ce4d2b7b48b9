//! The nodes this one knows of but may not be connected to, and when to dial them.

use crate::id::NodeId;
use crate::limits::{KNOWN_MAX, REDIAL, REDIAL_MAX, UNANSWERED_AFTER};
use crate::rng::Rng;
use crate::time::Instant;
use std::collections::BTreeMap;
use std::net::SocketAddr;

#[derive(Clone, Copy, Debug)]
struct Known {
    addr: SocketAddr,
    /// The tracker said so; others are hints from peers.
    assigned: bool,
    dialing: bool,
    failures: u32,
    not_before: Instant,
    /// It cannot dial this node, as a seed says.
    called: bool,
    /// When a dial began.
    dialed_at: Instant,
    /// It was reported that there is no answer yet.
    reported: bool,
}

/// Which known nodes are worth a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Those who cannot dial this node and need what it has.
    Callers,
    /// Those whom the tracker named.
    Assigned,
    /// Those of whom peers spoke too.
    All,
}

/// The address book of one node.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    known: BTreeMap<NodeId, Known>,
    dialing: usize,
}

impl Membership {
    /// Notes where a node can be reached. Beyond [`KNOWN_MAX`] an assigned node takes the place
    /// of a hint and further hints are ignored.
    pub(crate) fn learn(&mut self, node: NodeId, addr: SocketAddr, assigned: bool, now: Instant) {
        if let Some(known) = self.known.get_mut(&node) {
            if assigned || !known.assigned {
                known.addr = addr;
            }
            if assigned {
                known.assigned = true;
                known.not_before = now;
            }
            return;
        }
        if self.known.len() >= KNOWN_MAX {
            let hint = self
                .known
                .iter()
                .find(|(_, known)| !known.assigned && !known.dialing);
            match hint.map(|(node, _)| *node) {
                Some(hint) if assigned => self.known.remove(&hint),
                _ => return,
            };
        }
        let known = Known {
            addr,
            assigned,
            dialing: false,
            failures: 0,
            not_before: now,
            called: false,
            dialed_at: now,
            reported: false,
        };
        self.known.insert(node, known);
    }

    /// The node is not wanted as a neighbour any more; it stays known as a hint.
    pub(crate) fn unassign(&mut self, node: NodeId) {
        if let Some(known) = self.known.get_mut(&node) {
            known.assigned = false;
        }
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.dialed(node);
        self.known.remove(&node);
    }

    /// It needs this node and cannot dial it: it is dialed now, if it is not already.
    pub(crate) fn called(&mut self, node: NodeId, now: Instant) {
        if let Some(known) = self.known.get_mut(&node) {
            known.called = true;
            known.not_before = now;
        }
    }

    /// May be dialed again at once.
    pub(crate) fn retry(&mut self, node: NodeId, now: Instant) {
        if let Some(known) = self.known.get_mut(&node) {
            known.failures = 0;
            known.not_before = now;
        }
    }

    /// All may be dialed within [`REDIAL`], as if they had failed for the first time.
    pub(crate) fn hurry(&mut self, now: Instant, rng: &mut Rng) {
        let wait_us = REDIAL.as_micros() as u64;
        for known in self.known.values_mut() {
            if known.not_before > now + REDIAL {
                known.not_before = Instant(now.0 + rng.between(wait_us / 2, wait_us));
            }
        }
    }

    /// Those who have not answered a dial in time and were not reported yet, and when there may be more.
    pub(crate) fn unanswered(&mut self, now: Instant) -> (Vec<NodeId>, Option<Instant>) {
        let (mut late, mut next) = (Vec::new(), None::<Instant>);
        for (node, known) in &mut self.known {
            if !known.dialing || known.reported {
                continue;
            }
            let due = known.dialed_at + UNANSWERED_AFTER;
            if due <= now {
                known.reported = true;
                late.push(*node);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        (late, next)
    }

    /// Whether the tracker named this node as a neighbour.
    pub(crate) fn is_assigned(&self, node: NodeId) -> bool {
        self.known.get(&node).is_some_and(|known| known.assigned)
    }

    /// Dials under way.
    pub(crate) fn dialing(&self) -> usize {
        self.dialing
    }

    /// A dial made a connection.
    pub(crate) fn dialed(&mut self, node: NodeId) {
        if let Some(known) = self.known.get_mut(&node) {
            self.dialing -= usize::from(std::mem::take(&mut known.dialing));
            known.called = false;
        }
    }

    /// The node said hello. Before that it may only have answered to send us away.
    pub(crate) fn greeted(&mut self, node: NodeId) {
        if let Some(known) = self.known.get_mut(&node) {
            known.failures = 0;
        }
    }

    /// A dial, or the connection it made, failed: next time later.
    pub(crate) fn failed(&mut self, node: NodeId, now: Instant, rng: &mut Rng) {
        if let Some(known) = self.known.get_mut(&node) {
            self.dialing -= usize::from(std::mem::take(&mut known.dialing));
            known.called = false;
            let wait = (REDIAL * 2u32.pow(known.failures.min(6))).min(REDIAL_MAX);
            known.failures += 1;
            // Between half and the whole of it, so that many nodes do not knock together.
            let micros = wait.as_micros() as u64;
            known.not_before = Instant(now.0 + rng.between(micros / 2, micros));
        }
    }

    /// Up to `count` nodes to dial now, assigned ones first; they count as being dialed from here on.
    pub(crate) fn take_due(
        &mut self,
        count: usize,
        wanted: Wanted,
        now: Instant,
        rng: &mut Rng,
        is_connected: impl Fn(NodeId) -> bool,
    ) -> Vec<(NodeId, SocketAddr)> {
        let mut due: Vec<(bool, u64, NodeId)> = self
            .known
            .iter()
            .filter(|(node, known)| {
                !known.dialing
                    && known.not_before <= now
                    && match wanted {
                        Wanted::Callers => known.called,
                        Wanted::Assigned => known.assigned || known.called,
                        Wanted::All => true,
                    }
                    && !is_connected(**node)
            })
            .map(|(node, known)| (!known.assigned, rng.next_u64(), *node))
            .collect();
        due.sort_unstable();
        due.truncate(count);
        self.dialing += due.len();
        let mut chosen = Vec::with_capacity(due.len());
        for (_, _, node) in due {
            if let Some(known) = self.known.get_mut(&node) {
                known.dialing = true;
                known.dialed_at = now;
                known.reported = false;
                chosen.push((node, known.addr));
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    fn addr() -> SocketAddr {
        ([10, 0, 0, 1], 7400).into()
    }

    /// Whatever came of earlier dials; and who is being dialed, or may be soon, is not dialed earlier.
    #[test]
    fn who_has_hardly_any_neighbours_does_not_wait() {
        let (mut book, mut rng) = (Membership::default(), Rng::new(1));
        let mut now = Instant(1_000_000);
        book.learn(id(1), addr(), true, now);
        for failures in 1..9 {
            let due = book.take_due(9, Wanted::All, now, &mut rng, |_| false);
            assert_eq!(due.len(), 1, "{failures} failures");
            book.hurry(now, &mut rng);
            assert_eq!(book.dialing(), 1);
            book.failed(id(1), now, &mut rng);
            book.hurry(now, &mut rng);
            let soon = now + REDIAL / 4;
            assert!(
                book.take_due(9, Wanted::All, soon, &mut rng, |_| false)
                    .is_empty()
            );
            now = now + REDIAL;
        }
        // Without it, not for as long as that.
        book.take_due(9, Wanted::All, now, &mut rng, |_| false);
        book.failed(id(1), now, &mut rng);
        let later = now + REDIAL_MAX / 2;
        assert!(
            book.take_due(9, Wanted::All, now + REDIAL * 4, &mut rng, |_| false)
                .is_empty()
        );
        book.hurry(later, &mut rng);
        assert_eq!(
            book.take_due(9, Wanted::All, later + REDIAL, &mut rng, |_| false)
                .len(),
            1
        );
    }

    #[test]
    fn assigned_nodes_go_first_and_failures_back_off() {
        let (mut book, mut rng) = (Membership::default(), Rng::new(1));
        let now = Instant(1_000_000);
        book.learn(id(1), addr(), false, now);
        book.learn(id(2), addr(), true, now);
        assert_eq!(
            book.take_due(9, Wanted::Assigned, now, &mut rng, |_| false),
            [(id(2), addr())]
        );
        assert_eq!(
            book.take_due(9, Wanted::Assigned, now, &mut rng, |_| false),
            [],
            "already dialing"
        );
        assert_eq!(
            book.take_due(9, Wanted::All, now, &mut rng, |_| false),
            [(id(1), addr())]
        );
        assert_eq!(book.dialing(), 2);
        book.failed(id(2), now, &mut rng);
        book.dialed(id(1));
        assert_eq!(book.dialing(), 0);
        assert_eq!(
            book.take_due(9, Wanted::Assigned, now, &mut rng, |_| false),
            []
        );
        assert_eq!(
            book.take_due(9, Wanted::Assigned, now + REDIAL, &mut rng, |_| false),
            [(id(2), addr())]
        );
        assert_eq!(
            book.take_due(9, Wanted::All, now + REDIAL, &mut rng, |_| true),
            [],
            "connected"
        );
    }

    #[test]
    fn the_book_is_bounded() {
        let (mut book, now) = (Membership::default(), Instant(0));
        for number in 0..KNOWN_MAX as u16 * 2 {
            let mut node = [0; 32];
            node[..2].copy_from_slice(&number.to_be_bytes());
            book.learn(NodeId(node), addr(), false, now);
        }
        assert_eq!(book.known.len(), KNOWN_MAX);
        book.learn(id(255), addr(), true, now);
        assert_eq!(book.known.len(), KNOWN_MAX);
        assert!(book.known.contains_key(&id(255)));
    }
}
