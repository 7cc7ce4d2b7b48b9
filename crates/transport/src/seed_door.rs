//! Who may come in at a seed, decided before anything is spent on him.
//!
//! The allow-list comes first. Whoever is on it shares [`NEWCOMERS`] places with the others on it, which
//! nobody else can take; strangers have [`STRANGERS`] of their own, enough to tell a misplaced node why it
//! is not let in and to let a mirror prove that it holds the swarm key. Everybody proves his address first
//! (QUIC's Retry), which takes no place and no memory, and of strangers so few are asked to that a forged
//! address gets next to nothing from here.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::conduct::Conduct;
use crate::places::{Limits, Place, Places, stranger};

/// Handshakes and joins under way at once; more are turned away and come again. A core does
/// about 1,300 handshakes a second, so this is a queue of a fraction of a second.
const NEWCOMERS: Limits = Limits {
    all: 512,
    // One machine cannot keep the others out, nor can one /64.
    address: 64,
    subnet: Some(384),
    // A request is in the packet after the handshake's last; a seed whose processor is busy takes its
    // second to read it.
    grace: Duration::from_millis(1_500),
};

/// The same for those who are not on the allow-list.
const STRANGERS: Limits = Limits {
    all: 16,
    address: 2,
    subnet: None,
    grace: Duration::from_millis(500),
};

/// Handshakes from one address in a row. A machine makes one in its boot, and again when this seed was
/// started anew; there may be a few of them behind one address.
const HANDSHAKES: u32 = 256;
/// In which one more is allowed: 16 a second are a hundredth of a core.
const HANDSHAKE_FADES: Duration = Duration::from_micros(62_500);

/// Handshakes with all strangers together: 20 a second are a fiftieth of a core.
const STRANGER_HANDSHAKES: u32 = 32;
/// See [`STRANGER_HANDSHAKES`].
const STRANGER_HANDSHAKE_FADES: Duration = Duration::from_millis(50);

/// Strangers that are asked to prove their address, which a packet of some 100 bytes does: at most
/// 5 kB a second to addresses that may be forged.
const STRANGER_RETRIES: u32 = 64;
/// See [`STRANGER_RETRIES`].
const STRANGER_RETRY_FADES: Duration = Duration::from_millis(20);

/// All strangers are one debtor.
const ANYBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// What is done with a first packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// He is to prove his address.
    Prove,
    /// No answer.
    Ignore,
    /// He is told to come again later.
    Refuse,
    /// Here is a place for his handshake.
    Enter(Place),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SeedDoor {
    newcomers: Arc<Places>,
    strangers: Arc<Places>,
    conduct: Arc<Conduct>,
    stranger_handshakes: Arc<Conduct>,
    stranger_retries: Arc<Conduct>,
}

impl SeedDoor {
    pub(crate) fn new() -> SeedDoor {
        SeedDoor {
            newcomers: Places::new(NEWCOMERS),
            strangers: Places::new(STRANGERS),
            conduct: Conduct::new(HANDSHAKES, HANDSHAKE_FADES),
            stranger_handshakes: Conduct::new(STRANGER_HANDSHAKES, STRANGER_HANDSHAKE_FADES),
            stranger_retries: Conduct::new(STRANGER_RETRIES, STRANGER_RETRY_FADES),
        }
    }

    /// Who breaks the protocol is put down here.
    pub(crate) fn conduct(&self) -> &Arc<Conduct> {
        &self.conduct
    }

    /// The holder of `place` is waited for no longer: who has said nothing on it pays for that.
    pub(crate) fn gave_up(&self, place: &Place) {
        if !place.was_used() {
            self.conduct.said_nothing(place.address());
        }
    }

    /// What is to be done with a packet from `address`, which `is_allowed` or not, and which has proven
    /// that it is there or not.
    pub(crate) fn judge(&self, address: IpAddr, is_allowed: bool, is_proven: bool) -> Verdict {
        match (is_allowed, is_proven) {
            (true, _) if !self.conduct.is_welcome(address) => Verdict::Refuse,
            (true, false) => Verdict::Prove,
            (true, true) => match self.newcomers.enter(address) {
                Some(place) => {
                    self.conduct.came(address);
                    Verdict::Enter(place)
                }
                None => Verdict::Refuse,
            },
            (false, false) => {
                if !self.stranger_retries.is_welcome(ANYBODY) {
                    return Verdict::Ignore;
                }
                self.stranger_retries.came(ANYBODY);
                Verdict::Prove
            }
            (false, true) => {
                let is_welcome = self.conduct.is_welcome(stranger(address))
                    && self.stranger_handshakes.is_welcome(ANYBODY);
                match is_welcome.then(|| self.strangers.enter(address)).flatten() {
                    Some(place) => {
                        self.conduct.came(stranger(address));
                        self.stranger_handshakes.came(ANYBODY);
                        Verdict::Enter(place)
                    }
                    None => Verdict::Refuse,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(net: u8, host: usize) -> IpAddr {
        IpAddr::from([10, net, (host >> 8) as u8, host as u8])
    }

    fn enter(door: &SeedDoor, address: IpAddr, is_allowed: bool) -> Option<Place> {
        match door.judge(address, is_allowed, true) {
            Verdict::Enter(place) => {
                place.idle();
                Some(place)
            }
            _ => None,
        }
    }

    /// However many strangers come, from whatever addresses, and hold what they get.
    #[tokio::test(start_paused = true)]
    async fn strangers_take_no_place_of_anybody_who_is_allowed() {
        for strangers in [1, 9, 3_000] {
            for is_v6 in [false, true] {
                let door = SeedDoor::new();
                let address = |number: usize| -> IpAddr {
                    match is_v6 {
                        false => v4(9, number),
                        true => ([0x2001, number as u16, 0, 0, 0, 0, 0, 1]).into(),
                    }
                };
                let held: Vec<Place> = (0..64 * strangers)
                    .filter_map(|number| enter(&door, address(number % strangers), false))
                    .collect();
                assert!(!held.is_empty() && door.strangers.taken() <= STRANGERS.all);
                for host in 0..NEWCOMERS.all {
                    let honest = door.judge(v4(0, host), true, true);
                    assert!(matches!(honest, Verdict::Enter(_)), "{strangers} {is_v6}");
                }
            }
        }
    }

    /// Who is on the list may be up to no good as well: nine of them, then one that is not.
    #[tokio::test(start_paused = true)]
    async fn the_newest_comes_in_when_some_hold_everything_and_say_nothing() {
        for holders in [9, 16, 100] {
            let door = SeedDoor::new();
            let mut held = Vec::new();
            for _ in 0..NEWCOMERS.address {
                held.extend((0..holders).filter_map(|number| enter(&door, v4(1, number), true)));
            }
            assert_eq!(door.newcomers.taken(), NEWCOMERS.all);
            for host in 0..50 {
                let honest = door.judge(v4(2, host), true, true);
                assert!(matches!(honest, Verdict::Enter(_)), "{holders} {host}");
            }
        }
    }

    /// Who takes each place that he gets and says nothing makes the seed do two handshakes a second in the
    /// end, also while everybody else comes as well.
    #[tokio::test(start_paused = true)]
    async fn silence_is_dear() {
        const STEP: Duration = Duration::from_millis(50);
        const SECONDS: u32 = 60;
        for holders in [9, 32] {
            let door = SeedDoor::new();
            let mut held: Vec<Place> = Vec::new();
            let mut handshakes = 0;
            for step in 0..SECONDS * 20 {
                for number in 0..holders {
                    while let Some(place) = enter(&door, v4(1, number), true) {
                        held.push(place);
                        handshakes += 1;
                    }
                }
                let honest = door.judge(v4(2, step as usize), true, true);
                assert!(matches!(honest, Verdict::Enter(_)), "{holders} {step}");
                held.retain(|place| {
                    let is_lost = place.is_taken_back();
                    if is_lost {
                        door.gave_up(place);
                    }
                    !is_lost
                });
                tokio::time::advance(STEP).await;
            }
            let most = NEWCOMERS.address as u32 + HANDSHAKES / 16 + 2 * SECONDS;
            assert!(
                handshakes <= most * holders as u32,
                "{holders}: {handshakes}"
            );
            // And who says something is not kept from coming again.
            for _ in 0..100 {
                match door.judge(v4(3, 1), true, true) {
                    Verdict::Enter(place) => {
                        place.idle();
                        place.busy();
                        door.gave_up(&place);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// Of what comes from forged addresses next to nothing is answered.
    #[tokio::test(start_paused = true)]
    async fn a_forged_stranger_is_answered_seldom() {
        let door = SeedDoor::new();
        let prove = |number: usize| door.judge(v4(3, number), false, false);
        let asked = (0..100_000).filter(|number| matches!(prove(*number), Verdict::Prove));
        assert_eq!(asked.count(), STRANGER_RETRIES as usize);
        assert!(matches!(prove(1), Verdict::Ignore));
        // And who is allowed is always asked.
        assert!(matches!(door.judge(v4(0, 1), true, false), Verdict::Prove));
        assert_eq!(door.newcomers.taken() + door.strangers.taken(), 0);
    }
}
