//! What an address has cost lately: who comes too often, or broke the protocol, is turned away before
//! a handshake is spent on him.
//!
//! A handshake takes most of a millisecond of a core, and a new key costs a stranger nothing: throwing
//! somebody out is no defence while he may come again at once. So each handshake is put down to its
//! address, as a debt that fades with time (the generic cell rate algorithm, ITU-T I.371), and what no
//! honest node says is a large one. Nobody is shut out for ever: the address may be another machine's
//! next time.
//!
//! Only addresses that have been proven are charged. Whoever forges one would otherwise run up debts
//! for somebody else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long an address is turned away whose node broke the protocol. A program that was started anew
/// because it is of another version has its second chance soon; an attack loses nearly all its time.
const SHUT_OUT: Duration = Duration::from_secs(20);

/// What one pays, in handshakes, who was let in and said nothing until his place was another's: an honest
/// node's request is in the packet after the handshake's last.
const SILENCE: u32 = 16;

/// Addresses remembered at a time: some 4 MB. Debts of those beyond are not put down.
const ADDRESSES_MAX: usize = 65_536;

/// Between two searches for debts that have faded, while there is no room for more.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Debts by address.
#[derive(Debug)]
pub(crate) struct Conduct {
    /// Handshakes in a row.
    burst: u32,
    /// In which the debt of one handshake fades.
    fades: Duration,
    debts: Mutex<Debts>,
}

#[derive(Debug)]
struct Debts {
    /// When all of it has faded.
    until: HashMap<IpAddr, Instant>,
    swept_at: Instant,
}

impl Conduct {
    /// Lets each address make `burst` handshakes in a row, and one more each time `fades` has passed.
    pub(crate) fn new(burst: u32, fades: Duration) -> Arc<Conduct> {
        Arc::new(Conduct {
            burst,
            fades,
            debts: Mutex::new(Debts {
                until: HashMap::new(),
                swept_at: Instant::now(),
            }),
        })
    }

    /// Whether a handshake with `address` is worth its while.
    pub(crate) fn is_welcome(&self, address: IpAddr) -> bool {
        let debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        let room = Instant::now() + self.fades * self.burst;
        let until = debts.until.get(&address);
        until.is_none_or(|until| *until + self.fades <= room)
    }

    /// A handshake with `address`, which is proven.
    pub(crate) fn came(&self, address: IpAddr) {
        self.charge(address, Duration::ZERO, self.fades);
    }

    /// Who came from `address`, which is proven, said nothing.
    pub(crate) fn said_nothing(&self, address: IpAddr) {
        // Its handshake is put down already.
        self.charge(address, Duration::ZERO, self.fades * (SILENCE - 1));
    }

    /// The node at `address`, which is proven, said or did what no honest one does.
    pub(crate) fn broke_protocol(&self, address: IpAddr) {
        self.charge(address, self.fades * (self.burst - 1), SHUT_OUT);
    }

    /// Makes the debt at least `least`, then adds `more`.
    fn charge(&self, address: IpAddr, least: Duration, more: Duration) {
        let now = Instant::now();
        let mut debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        if debts.until.len() >= ADDRESSES_MAX && !debts.until.contains_key(&address) {
            if now.duration_since(debts.swept_at) < SWEEP_EVERY {
                return;
            }
            debts.swept_at = now;
            debts.until.retain(|_, until| *until > now);
            if debts.until.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let until = debts.until.entry(address).or_insert(now);
        // However often he is caught, he is shut out once at a time.
        let most = now + self.fades * (self.burst - 1) + SHUT_OUT;
        *until = ((*until).max(now + least) + more).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const BURST: u32 = 3;
    const FADES: Duration = Duration::from_millis(500);
    const STEP: Duration = Duration::from_millis(1);

    fn address(host: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + host).to_be_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_at_a_time() {
        let conduct = Conduct::new(BURST, FADES);
        let [here, there] = [7, 8].map(address);
        for _ in 0..BURST {
            assert!(conduct.is_welcome(here));
            conduct.came(here);
        }
        assert!(!conduct.is_welcome(here));
        assert!(conduct.is_welcome(there));
        for _ in 0..4 {
            advance(FADES + STEP).await;
            assert!(conduct.is_welcome(here));
            conduct.came(here);
            assert!(!conduct.is_welcome(here));
        }
        advance(FADES * BURST).await;
        for _ in 0..BURST - 1 {
            assert!(conduct.is_welcome(here));
            conduct.came(here);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_broke_the_protocol_waits_and_is_forgiven() {
        for caught in [1, 2, 100] {
            let conduct = Conduct::new(BURST, FADES);
            conduct.came(address(1));
            for _ in 0..caught {
                conduct.broke_protocol(address(1));
            }
            assert!(!conduct.is_welcome(address(1)));
            assert!(conduct.is_welcome(address(2)));
            advance(SHUT_OUT - STEP).await;
            assert!(!conduct.is_welcome(address(1)), "caught {caught} times");
            advance(STEP * 2).await;
            assert!(conduct.is_welcome(address(1)), "caught {caught} times");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_fades() {
        let conduct = Conduct::new(BURST, FADES);
        let count = |conduct: &Conduct| conduct.debts.lock().unwrap().until.len();
        let most = u32::try_from(ADDRESSES_MAX).unwrap();
        advance(SWEEP_EVERY).await;
        for host in 0..most + 10 {
            conduct.came(address(host));
        }
        assert_eq!(count(&conduct), ADDRESSES_MAX);
        // Who is remembered goes on being charged.
        conduct.broke_protocol(address(0));
        assert!(!conduct.is_welcome(address(0)));
        advance(SWEEP_EVERY).await;
        conduct.came(address(most + 20));
        assert_eq!(count(&conduct), 2, "the debtor and the newcomer");
    }
}
