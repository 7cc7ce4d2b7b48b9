//! One random ring: each member has one before it and one behind it.
//!
//! Members are named by numbers that their owner chooses. What the rings are for is `tracker`'s.

use crate::rng::Rng;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Place {
    before: u32,
    behind: u32,
    /// Where it stands in `live`.
    at: usize,
}

/// A circle of members in random order.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    places: BTreeMap<u32, Place>,
    live: Vec<u32>,
}

impl Ring {
    /// Puts a member in at a random place, and returns the two between whom it stands now. Of up to
    /// `draws` places, the first that `suits` twice is taken (asked of the one before and the one
    /// behind), or else the one that suits best. Nobody is returned when it is alone.
    pub(crate) fn insert(
        &mut self,
        new: u32,
        draws: usize,
        suits: impl Fn(u32) -> bool,
        rng: &mut Rng,
    ) -> Option<(u32, u32)> {
        debug_assert!(!self.places.contains_key(&new), "inserted twice");
        let mut best: Option<(u8, u32, u32)> = None;
        for _ in 0..draws {
            let Some(before) = self.live.get(rng.below(self.live.len())).copied() else {
                break;
            };
            let Some(behind) = self.places.get(&before).map(|place| place.behind) else {
                break;
            };
            let score = u8::from(suits(before)) + u8::from(suits(behind));
            if best.is_none_or(|(most, _, _)| score > most) {
                best = Some((score, before, behind));
            }
            if score == 2 {
                break;
            }
        }
        let (before, behind) = best.map_or((new, new), |(_, before, behind)| (before, behind));
        let at = self.live.len();
        self.live.push(new);
        self.places.insert(new, Place { before, behind, at });
        self.join(before, new);
        self.join(new, behind);
        (before != new).then_some((before, behind))
    }

    /// Takes a member out, and returns the two that are neighbours now, unless it is one with itself.
    pub(crate) fn remove(&mut self, old: u32) -> Option<(u32, u32)> {
        let place = self.places.remove(&old)?;
        self.live.swap_remove(place.at);
        if let Some(moved) = self.live.get(place.at)
            && let Some(moved) = self.places.get_mut(moved)
        {
            moved.at = place.at;
        }
        self.join(place.before, place.behind);
        (place.before != place.behind).then_some((place.before, place.behind))
    }

    /// The one before a member and the one behind it, which may be the same; nobody when it is
    /// alone or not in the ring.
    pub(crate) fn neighbours(&self, member: u32) -> impl Iterator<Item = u32> {
        let place = self.places.get(&member);
        let both = place.map(|place| [place.before, place.behind]);
        both.into_iter()
            .flatten()
            .filter(move |other| *other != member)
    }

    fn join(&mut self, before: u32, behind: u32) {
        if let Some(place) = self.places.get_mut(&before) {
            place.behind = behind;
        }
        if let Some(place) = self.places.get_mut(&behind) {
            place.before = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn members(ring: &Ring) -> BTreeSet<u32> {
        let Some(first) = ring.live.first().copied() else {
            return BTreeSet::new();
        };
        let mut seen = BTreeSet::from([first]);
        let mut at = ring.places[&first].behind;
        while at != first {
            assert!(seen.insert(at), "{at} twice in one round");
            at = ring.places[&at].behind;
        }
        seen
    }

    proptest! {
        /// Whoever comes and goes, it is one circle of those who are there, the same both ways.
        #[test]
        fn stays_one_circle(moves in proptest::collection::vec((0u32..20, any::<bool>()), 0..100), seed in any::<u64>()) {
            let (mut ring, mut rng) = (Ring::default(), Rng::new(seed));
            let mut expected = BTreeSet::new();
            for (member, comes) in moves {
                if comes && expected.insert(member) {
                    let between = ring.insert(member, 3, |other| other % 2 != member % 2, &mut rng);
                    prop_assert_eq!(between.is_none(), expected.len() == 1);
                } else if !comes {
                    let known = expected.remove(&member);
                    let joined = ring.remove(member);
                    prop_assert!(known || joined.is_none());
                    prop_assert_eq!(joined.is_some(), known && expected.len() > 1);
                }
                prop_assert_eq!(&members(&ring), &expected);
                for (member, place) in &ring.places {
                    prop_assert_eq!(ring.places[&place.behind].before, *member);
                    prop_assert_eq!(ring.live[place.at], *member);
                }
            }
        }
    }
}
