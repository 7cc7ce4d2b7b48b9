//! Addresses that took pushed chunks and announced none: a seed feeds all others first.
//!
//! A push is a gift in advance: for as long as its receiver may be about to announce the chunk, it goes
//! to nobody else. Who takes one, leaves, and comes again under another key would have a seed spend its
//! uplink on him. So it is put down to the address, until a push to it is confirmed or a minute is over:
//! a machine that was switched off in the middle of its boot gets its chunks from the others meanwhile.

use crate::time::Instant;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// How long an address comes last.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Addresses remembered at a time; those beyond are not.
const ADDRESSES_MAX: usize = 4096;

/// Who took and did not announce, and until when that counts.
#[derive(Debug, Default)]
pub(crate) struct Leeches {
    until: BTreeMap<IpAddr, Instant>,
}

impl Leeches {
    /// A push to `address`, where none was ever confirmed on that connection, came to nothing.
    pub(crate) fn took(&mut self, address: IpAddr, now: Instant) {
        if self.until.len() >= ADDRESSES_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < ADDRESSES_MAX {
            self.until.insert(address, now + REMEMBERED);
        }
    }

    /// A chunk that was pushed to `address` was announced there.
    pub(crate) fn confirmed(&mut self, address: IpAddr) {
        self.until.remove(&address);
    }

    pub(crate) fn is_one(&self, address: IpAddr, now: Instant) -> bool {
        self.until.get(&address).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_or_a_minute_makes_it_good() {
        let [here, there] = [7, 8].map(|host| IpAddr::from([10, 0, 0, host]));
        let mut leeches = Leeches::default();
        let now = Instant(5_000_000);
        leeches.took(here, now);
        assert!(leeches.is_one(here, now) && !leeches.is_one(there, now));
        assert!(!leeches.is_one(here, now + REMEMBERED));
        leeches.confirmed(here);
        assert!(!leeches.is_one(here, now));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut leeches = Leeches::default();
        let address = |host: u32| IpAddr::from((0x0a00_0000 + host).to_be_bytes());
        let most = ADDRESSES_MAX as u32;
        for host in 0..most + 5 {
            leeches.took(address(host), Instant(0));
        }
        assert!(!leeches.is_one(address(most), Instant(0)));
        let later = Instant::ZERO + REMEMBERED;
        leeches.took(address(most), later);
        assert!(leeches.is_one(address(most), later));
        assert_eq!(leeches.until.len(), 1);
    }
}
