//! Things on their way, named by their place, so that the events that carry them stay small.

/// A list whose free places are used again, the last one first: it is still in the cache.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    pub(crate) fn put(&mut self, thing: T) -> u32 {
        match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = Some(thing);
                place
            }
            None => {
                self.places.push(Some(thing));
                self.places.len() as u32 - 1
            }
        }
    }

    pub(crate) fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(crate) fn take(&mut self, place: u32) -> Option<T> {
        let thing = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again() {
        let mut slots = Slots::default();
        let (a, b) = (slots.put('a'), slots.put('b'));
        assert_eq!(
            (slots.get(a).copied(), slots.take(a)),
            (Some('a'), Some('a'))
        );
        assert_eq!(
            (slots.get(a).copied(), slots.take(a), slots.take(9)),
            (None, None, None)
        );
        assert_eq!(slots.put('c'), a);
        assert_eq!((slots.take(a), slots.take(b)), (Some('c'), Some('b')));
    }
}
