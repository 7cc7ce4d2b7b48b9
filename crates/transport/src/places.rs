//! Who has a place at a door: bounded in all, by address and by subnet, and taken back from who does
//! nothing with it when there are not enough.
//!
//! A place is one connection that is being let in, or one that was. Counted are addresses that have been
//! proven (a forged one would fill somebody else's places). A machine boots once and joins once; the
//! bounds leave room for several nodes behind one address and for connections that are being given up.
//!
//! **Idle.** Who was let in to say something and has not said it yet holds his place only for as long as
//! nobody else needs it. When all are taken, the next one gets the oldest idle place of the address that
//! holds most of them, as long as it would still hold fewer itself (max-min fairness: one machine never
//! keeps out another that has none), or the oldest idle place of all that has been idle for the grace.
//!
//! **IPv6.** One machine has as many addresses as it likes in its /64, and a whole cluster may share one.
//! Where the admin said who belongs there, addresses are counted one by one, with a ceiling for the /64;
//! where nobody is known the /64 counts as one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How many places there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub all: usize,
    /// Of one address.
    pub address: usize,
    /// Of one /64; `None` counts it as one address.
    pub subnet: Option<usize>,
    /// How long an idle place is its holder's, however many others wait.
    pub grace: Duration,
}

/// Counts places.
#[derive(Debug)]
pub struct Places {
    limits: Limits,
    book: Mutex<Book>,
}

/// One place, until dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    address: IpAddr,
    taken_back: Arc<Notify>,
    was_used: AtomicBool,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    held: HashMap<u64, Held>,
    of_address: HashMap<IpAddr, Group>,
    of_subnet: HashMap<IpAddr, Group>,
    /// Addresses by how many idle places they hold; those without one are left out.
    ranking: BTreeSet<(usize, IpAddr)>,
    /// All idle places, the oldest first.
    idle: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Held {
    address: IpAddr,
    subnet: Option<IpAddr>,
    idle: Option<Idle>,
    taken_back: Arc<Notify>,
}

/// Since when nothing has been done with a place; the order is what is compared.
#[derive(Clone, Copy, Debug)]
struct Idle {
    order: u64,
    since: Instant,
}

#[derive(Debug, Default)]
struct Group {
    places: usize,
    /// The idle ones among them, the oldest first.
    idle: BTreeMap<u64, u64>,
}

/// The /64 that an IPv6 address is in.
#[must_use]
pub fn subnet_of(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into()),
    }
}

/// What a stranger counts as: an IPv4 address as itself, an IPv6 address as its /64.
#[must_use]
pub fn stranger(address: IpAddr) -> IpAddr {
    subnet_of(address).unwrap_or(address)
}

impl Places {
    /// With these limits, all free.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Places> {
        Arc::new(Places {
            limits,
            book: Mutex::default(),
        })
    }

    /// A place, or `None` where there is none for `address`: it has as many as it may have, or all are
    /// in use. It is not idle until [`Place::idle`] says so.
    pub fn enter(self: &Arc<Places>, address: IpAddr) -> Option<Place> {
        let (address, subnet) = match self.limits.subnet {
            Some(_) => (address, subnet_of(address)),
            None => (stranger(address), None),
        };
        let mut book = self.book();
        let now = Instant::now();
        let grace = self.limits.grace;
        if book.count(address) >= self.limits.address {
            let oldest = book.of_address.get(&address).and_then(Group::oldest);
            book.take_back_after(oldest, now, grace)?;
        }
        if let (Some(subnet), Some(most)) = (subnet, self.limits.subnet) {
            let group = book.of_subnet.get(&subnet);
            if group.is_some_and(|group| group.places >= most) {
                let oldest = group.and_then(Group::oldest);
                book.take_back_after(oldest, now, grace)?;
            }
        }
        if book.held.len() >= self.limits.all {
            let own = book.count(address);
            let most = book.ranking.last().copied();
            match most.filter(|(idle, _)| *idle > own + 1) {
                Some((_, greedy)) => {
                    let oldest = book.of_address.get(&greedy).and_then(Group::oldest);
                    book.take_back_after(oldest, now, Duration::ZERO)?;
                }
                None => {
                    let oldest = book.idle.values().next().copied();
                    book.take_back_after(oldest, now, grace)?;
                }
            }
        }
        let taken_back = Arc::new(Notify::new());
        let number = book.next;
        book.next += 1;
        book.of_address.entry(address).or_default().places += 1;
        if let Some(subnet) = subnet {
            book.of_subnet.entry(subnet).or_default().places += 1;
        }
        let held = Held {
            address,
            subnet,
            idle: None,
            taken_back: taken_back.clone(),
        };
        book.held.insert(number, held);
        Some(Place {
            places: self.clone(),
            number,
            address,
            taken_back,
            was_used: AtomicBool::new(false),
        })
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.book().held.len()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing waits while it is held.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn oldest(&self) -> Option<u64> {
        self.idle.values().next().copied()
    }
}

impl Book {
    fn count(&self, address: IpAddr) -> usize {
        self.of_address.get(&address).map_or(0, |it| it.places)
    }

    /// Takes `number` back if it has been idle for `grace`; `None` if not.
    fn take_back_after(
        &mut self,
        number: Option<u64>,
        now: Instant,
        grace: Duration,
    ) -> Option<()> {
        let number = number?;
        let idle = self.held.get(&number)?.idle?;
        if now.duration_since(idle.since) < grace {
            return None;
        }
        let held = self.leave(number)?;
        held.taken_back.notify_one();
        Some(())
    }

    fn leave(&mut self, number: u64) -> Option<Held> {
        self.set_idle(number, None);
        let held = self.held.remove(&number)?;
        let groups = [
            (&mut self.of_address, Some(held.address)),
            (&mut self.of_subnet, held.subnet),
        ];
        for (groups, key) in groups {
            if let Some(key) = key
                && let Some(group) = groups.get_mut(&key)
            {
                group.places -= 1;
                if group.places == 0 {
                    groups.remove(&key);
                }
            }
        }
        Some(held)
    }

    fn set_idle(&mut self, number: u64, since: Option<Instant>) {
        let Some(held) = self.held.get_mut(&number) else {
            return;
        };
        let before = held.idle.take();
        if let Some(since) = since {
            let order = self.next;
            self.next += 1;
            held.idle = Some(Idle { order, since });
        }
        let (address, subnet, after) = (held.address, held.subnet, held.idle);
        if let Some(group) = self.of_address.get_mut(&address) {
            self.ranking.remove(&(group.idle.len(), address));
        }
        let of_address = self.of_address.get_mut(&address);
        let of_subnet = subnet.and_then(|subnet| self.of_subnet.get_mut(&subnet));
        let groups = of_address.into_iter().chain(of_subnet);
        for idle in groups.map(|group| &mut group.idle).chain([&mut self.idle]) {
            if let Some(before) = before {
                idle.remove(&before.order);
            }
            if let Some(after) = after {
                idle.insert(after.order, number);
            }
        }
        if let Some(group) = self.of_address.get(&address)
            && !group.idle.is_empty()
        {
            self.ranking.insert((group.idle.len(), address));
        }
    }
}

impl Place {
    /// From now on its holder is waited for.
    pub fn idle(&self) {
        let now = Instant::now();
        self.places.book().set_idle(self.number, Some(now));
    }

    /// The holder has said what was waited for.
    pub fn busy(&self) {
        self.was_used.store(true, Ordering::Relaxed);
        self.places.book().set_idle(self.number, None);
    }

    /// Whether the holder has ever said anything.
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.was_used.load(Ordering::Relaxed)
    }

    /// What its holder counts as.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Whether the place is somebody else's by now.
    #[cfg(test)]
    pub(crate) fn is_taken_back(&self) -> bool {
        !self.places.book().held.contains_key(&self.number)
    }

    /// Comes back when the place is somebody else's.
    pub async fn taken_back(&self) {
        self.taken_back.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.book().leave(self.number);
    }
}

#[cfg(test)]
mod tests;
