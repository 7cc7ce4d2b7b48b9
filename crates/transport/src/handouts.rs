//! Who hands the manifest to the next newcomer: a seed's choice.
//!
//! The seed sends it to [`OWN`] newcomers at a time and leaves the others to its members, each of
//! which is named to [`EACH`] newcomers at a time. A newcomer that has it is a member a moment later,
//! so that the number of those who can hand it on triples with each round; who comes while all are
//! busy waits for the next one that is not. How it travels is `handing_on`'s.
//!
//! A member from which a newcomer did not get it is not named for [`UNFIT`]: it may be dead or behind a
//! firewall, and would cost each newcomer the time that members have to themselves.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rootswarm_swarm::{ConnId, NodeId, Rng};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Newcomers to whom the seed itself is sending it. More of them would only get it later.
const OWN: usize = 4;

/// Newcomers that are sent to one member at a time.
const EACH: u8 = 2;

/// How long a newcomer waits for somebody who is not busy. Beyond it the seed is, once more: those
/// who hold its places may be up to no good.
const WAIT: Duration = Duration::from_millis(500);

/// How long a member is not named after a newcomer had to ask the seed after all. A newcomer that lies
/// about it has the seed send some manifests more, four at a time.
const UNFIT: Duration = Duration::from_secs(10);

/// A manifest of this length and less costs no more than saying where to get it: three packets.
pub(crate) const SMALL_BYTES: usize = 4 << 10;

/// Members looked at for one that is not busy. With half of them busy one search in 65,536 is in vain,
/// and then the newcomer waits until somebody is done.
const TRIES: usize = 16;

/// The members of one image's swarm, as a seed sees them.
pub(crate) struct Handouts {
    roll: Mutex<Roll>,
    /// Somebody came, or is done.
    changed: Notify,
}

struct Roll {
    members: Vec<Entry>,
    places: HashMap<ConnId, usize>,
    /// Newcomers that the seed is sending it to.
    own: usize,
    rng: Rng,
}

struct Entry {
    conn: ConnId,
    node: NodeId,
    address: SocketAddr,
    busy: u8,
    /// Others do not get through to it: who is sent there loses time.
    is_hard_to_reach: bool,
    /// Not named before this.
    unfit_until: Option<Instant>,
}

/// Where a newcomer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// To the seed itself.
    Seed,
    /// To this member.
    Member(NodeId, SocketAddr),
}

/// A newcomer on its way to a holder: the place is free again when this is dropped.
pub(crate) struct Handout {
    handouts: Arc<Handouts>,
    pub(crate) holder: Holder,
    /// Of a member.
    conn: Option<ConnId>,
}

impl Handouts {
    pub(crate) fn new(rng_seed: u64) -> Arc<Handouts> {
        Arc::new(Handouts {
            roll: Mutex::new(Roll {
                members: Vec::new(),
                places: HashMap::new(),
                own: 0,
                rng: Rng::new(rng_seed),
            }),
            changed: Notify::new(),
        })
    }

    /// How many nodes are connected.
    pub(crate) fn count(&self) -> usize {
        self.roll().members.len()
    }

    /// A node is connected: it has the manifest.
    pub(crate) fn came(&self, conn: ConnId, node: NodeId, address: SocketAddr) {
        let mut roll = self.roll();
        let place = roll.members.len();
        roll.places.insert(conn, place);
        roll.members.push(Entry {
            conn,
            node,
            address,
            busy: 0,
            is_hard_to_reach: false,
            unfit_until: None,
        });
        drop(roll);
        self.changed.notify_one();
    }

    /// And is no more.
    pub(crate) fn left(&self, conn: ConnId) {
        let mut roll = self.roll();
        let Some(place) = roll.places.remove(&conn) else {
            return;
        };
        roll.members.swap_remove(place);
        if let Some(moved) = roll.members.get(place).map(|entry| entry.conn) {
            roll.places.insert(moved, place);
        }
    }

    /// Which of the members others do not reach now.
    pub(crate) fn mark(&self, hard_to_reach: &BTreeSet<NodeId>) {
        let mut roll = self.roll();
        for entry in &mut roll.members {
            entry.is_hard_to_reach = hard_to_reach.contains(&entry.node);
        }
    }

    /// Where the next newcomer is to go: to somebody who is not busy, after a while.
    pub(crate) async fn next(self: &Arc<Handouts>) -> Handout {
        let somebody = async {
            loop {
                if let Some(handout) = self.take() {
                    return handout;
                }
                self.changed.notified().await;
            }
        };
        match timeout(WAIT, somebody).await {
            Ok(handout) => {
                // There may be more where this one came from, and more who wait.
                self.changed.notify_one();
                handout
            }
            Err(_) => {
                self.roll().own += 1;
                self.handout(Holder::Seed, None)
            }
        }
    }

    fn take(self: &Arc<Handouts>) -> Option<Handout> {
        let mut roll = self.roll();
        let (count, now) = (roll.members.len(), Instant::now());
        let mut can_wait = count == 0;
        // Of two, the one that is free is not missed by chance.
        let tries = if count == 0 { 0 } else { TRIES };
        for _ in 0..tries {
            let place = roll.rng.below(count);
            let Some(entry) = roll.members.get_mut(place) else {
                continue;
            };
            can_wait |= !entry.is_hard_to_reach;
            let is_unfit = entry.unfit_until.is_some_and(|until| until > now);
            if entry.is_hard_to_reach || is_unfit || entry.busy >= EACH {
                continue;
            }
            entry.busy += 1;
            let (holder, conn) = (Holder::Member(entry.node, entry.address), entry.conn);
            return Some(self.handout(holder, Some(conn)));
        }
        // Where nobody can be reached there is nobody to wait for.
        let is_free = roll.own < OWN || !can_wait;
        roll.own += usize::from(is_free);
        is_free.then(|| self.handout(Holder::Seed, None))
    }

    fn handout(self: &Arc<Handouts>, holder: Holder, conn: Option<ConnId>) -> Handout {
        let handouts = self.clone();
        Handout {
            handouts,
            holder,
            conn,
        }
    }

    fn roll(&self) -> std::sync::MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handout {
    /// The newcomer did not get it there.
    pub(crate) fn came_to_nothing(&self) {
        let Some(conn) = self.conn else {
            return;
        };
        let mut roll = self.handouts.roll();
        let place = roll.places.get(&conn).copied();
        if let Some(entry) = place.and_then(|place| roll.members.get_mut(place)) {
            entry.unfit_until = Some(Instant::now() + UNFIT);
        }
    }
}

impl Drop for Handout {
    fn drop(&mut self) {
        let mut roll = self.handouts.roll();
        match self.conn {
            None => roll.own = roll.own.saturating_sub(1),
            Some(conn) => {
                let place = roll.places.get(&conn).copied();
                if let Some(entry) = place.and_then(|place| roll.members.get_mut(place)) {
                    entry.busy = entry.busy.saturating_sub(1);
                }
            }
        }
        drop(roll);
        self.handouts.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(number: u64) -> (ConnId, NodeId, SocketAddr) {
        let low = number as u8;
        let address = ([10, 0, 0, low], 7400).into();
        (ConnId(number), NodeId([low; 32]), address)
    }

    fn is_member(handout: &Handout) -> bool {
        matches!(handout.holder, Holder::Member(..))
    }

    #[tokio::test(start_paused = true)]
    async fn the_seed_sends_to_a_few_and_then_names_members() {
        let handouts = Handouts::new(1);
        let mut first = Vec::new();
        for _ in 0..OWN {
            first.push(handouts.next().await);
        }
        assert!(first.iter().all(|handout| handout.holder == Holder::Seed));
        // The next one waits for one of them.
        let waiting = tokio::spawn({
            let handouts = handouts.clone();
            async move { handouts.next().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let (conn, node, address) = member(7);
        handouts.came(conn, node, address);
        let handout = waiting.await.unwrap();
        assert_eq!(handout.holder, Holder::Member(node, address));

        // A member has two at a time; a place that is free again is used again.
        let second = handouts.next().await;
        assert!(is_member(&second));
        assert!(handouts.take().is_none());
        drop(second);
        assert!(is_member(&handouts.next().await));
        // Who is gone is not named any more, and what was on its way to him counts nowhere.
        handouts.left(conn);
        drop(handout);
        assert!(handouts.take().is_none());
        first.pop();
        assert_eq!(handouts.next().await.holder, Holder::Seed);
    }

    /// Some, all and none of the members can be reached.
    #[test]
    fn nobody_is_sent_to_who_cannot_be_reached() {
        for walled in [0, 1, 3, 4] {
            let handouts = Handouts::new(1);
            for number in 0..4 {
                let (conn, node, address) = member(number);
                handouts.came(conn, node, address);
            }
            let nodes: BTreeSet<NodeId> = (0..walled).map(|number| member(number).1).collect();
            handouts.mark(&nodes);
            let mut under_way = Vec::new();
            while let Some(handout) = handouts.take() {
                match handout.holder {
                    Holder::Member(node, _) => assert!(!nodes.contains(&node)),
                    Holder::Seed => {}
                }
                under_way.push(handout);
                // Where all are, the seed sends to as many as come.
                if under_way.len() > 100 {
                    break;
                }
            }
            assert_eq!(under_way.len() > 100, walled == 4, "{walled} of 4");
            handouts.mark(&BTreeSet::new());
            under_way.clear();
            assert!(is_member(&handouts.take().unwrap()));
        }
    }

    /// A member that is dead, or behind a firewall, costs one newcomer its head start, not all of them.
    #[tokio::test(start_paused = true)]
    async fn who_did_not_hand_it_on_is_not_named_for_a_while() {
        for members in [1, 2, 5] {
            let handouts = Handouts::new(1);
            for number in 1..=members {
                let (conn, node, address) = member(number);
                handouts.came(conn, node, address);
            }
            let handout = handouts.next().await;
            let named = handout.holder;
            assert!(is_member(&handout));
            handout.came_to_nothing();
            drop(handout);
            for _ in 0..50 {
                let next = handouts.next().await;
                assert_ne!(next.holder, named, "{members} members");
                assert_eq!(is_member(&next), members > 1);
            }
            tokio::time::advance(UNFIT).await;
            let mut again = false;
            for _ in 0..200 {
                again |= handouts.next().await.holder == named;
            }
            assert!(again, "{members} members");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long() {
        let handouts = Handouts::new(1);
        let mut stuck = Vec::new();
        for _ in 0..OWN + 3 {
            stuck.push(handouts.next().await);
        }
        assert!(stuck.iter().all(|handout| handout.holder == Holder::Seed));
        drop(stuck);
        assert_eq!(handouts.roll().own, 0);
    }

    /// Against a list kept the plain way: whoever is named is there, and none is named too often.
    #[test]
    fn names_only_who_is_there() {
        let handouts = Handouts::new(1);
        let mut rng = Rng::new(2);
        let mut there: Vec<u64> = Vec::new();
        let mut under_way: Vec<(u64, Handout)> = Vec::new();
        for step in 0..20_000u64 {
            match rng.below(4) {
                0 if there.len() < 100 => {
                    let number = step % 256;
                    if !there.contains(&number) {
                        let (conn, node, address) = member(number);
                        handouts.came(conn, node, address);
                        there.push(number);
                    }
                }
                1 if !there.is_empty() => {
                    let gone = there.swap_remove(rng.below(there.len()));
                    handouts.left(ConnId(gone));
                    // A number that comes again is another node in life; here it must not be one
                    // that somebody is on the way to.
                    under_way.retain(|(number, _)| *number != gone);
                }
                2 if !under_way.is_empty() => {
                    under_way.swap_remove(rng.below(under_way.len()));
                }
                _ => {
                    let Some(handout) = handouts.take() else {
                        continue;
                    };
                    if let Holder::Member(node, _) = handout.holder {
                        let number = u64::from(node.0[0]);
                        assert!(there.contains(&number));
                        under_way.push((number, handout));
                        let named = under_way.iter().filter(|(other, _)| *other == number);
                        assert!(named.count() <= usize::from(EACH));
                    }
                }
            }
        }
    }
}
