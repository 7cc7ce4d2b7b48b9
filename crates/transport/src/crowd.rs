//! How many there are of one address: so that one machine does not take every place there is.
//!
//! Counted are addresses that have been proven (a forged one would fill somebody else's places).
//! A machine boots once and joins once; the bounds leave room for several nodes behind one address
//! and for connections that are being given up.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts places by address.
#[derive(Debug)]
pub(crate) struct Crowd {
    most: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One place, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Crowd {
    /// At most `most` places for an address.
    pub(crate) fn new(most: usize) -> Arc<Crowd> {
        Arc::new(Crowd {
            most,
            taken: Mutex::default(),
        })
    }

    /// A place, or `None` where `address` has as many as it may have.
    pub(crate) fn enter(self: &Arc<Crowd>, address: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(address).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place {
            crowd: self.clone(),
            address,
        })
    }
}

impl Place {
    /// Keeps the place for as long as the connection lasts.
    pub(crate) fn keep_while(self, connection: quinn::Connection) {
        tokio::spawn(async move {
            connection.closed().await;
            drop(self);
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &self.crowd.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_address_and_given_back() {
        let crowd = Crowd::new(2);
        let [here, there] = [7, 8].map(|host| IpAddr::from([10, 0, 0, host]));
        let first = crowd.enter(here);
        let second = crowd.enter(here);
        assert!(first.is_some() && second.is_some());
        assert!(crowd.enter(here).is_none());
        assert!(crowd.enter(there).is_some());
        drop(first);
        assert!(crowd.enter(here).is_some());
        drop(second);
        assert!(crowd.taken.lock().unwrap().is_empty());
    }
}
