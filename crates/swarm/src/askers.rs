//! Whose requests a seed answers: each address has its part of the slots.
//!
//! A node that gets nothing from peers asks for as much as it can take, and several of them would hold
//! each other off: whoever has the slots asks again before the others do. By address, as with pushes: a
//! machine with many keys gets a machine's part.

use crate::limits::{ASKED_LATELY, SEED_UPLOAD_SLOTS};
use crate::time::Instant;
use std::net::IpAddr;

/// With more of them an address's part is the least there is.
const ADDRESSES_MAX: usize = SEED_UPLOAD_SLOTS * 2;

/// The addresses that asked lately.
#[derive(Debug, Default)]
pub(crate) struct Askers {
    until: Vec<(IpAddr, Instant)>,
}

impl Askers {
    /// A request came from `address`. Returns from how many addresses some have come lately.
    pub(crate) fn asked(&mut self, address: IpAddr, now: Instant) -> usize {
        let until = now + ASKED_LATELY;
        match self.until.iter_mut().find(|(known, _)| *known == address) {
            Some((_, known)) => *known = until,
            None => {
                self.until.retain(|(_, until)| *until > now);
                if self.until.len() < ADDRESSES_MAX {
                    self.until.push((address, until));
                }
            }
        }
        self.until.iter().filter(|(_, until)| *until > now).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_count_that_asked_lately() {
        let address = |host: u8| IpAddr::from([10, 0, 0, host]);
        let mut askers = Askers::default();
        let now = Instant(5_000_000);
        assert_eq!(askers.asked(address(1), now), 1);
        assert_eq!(askers.asked(address(1), now), 1);
        assert_eq!(askers.asked(address(2), now), 2);
        let later = now + ASKED_LATELY / 2;
        assert_eq!(askers.asked(address(2), later), 2);
        assert_eq!(askers.asked(address(2), now + ASKED_LATELY), 1);
        for host in 0..=255 {
            askers.asked(address(host), later);
        }
        assert_eq!(askers.until.len(), ADDRESSES_MAX);
    }
}
