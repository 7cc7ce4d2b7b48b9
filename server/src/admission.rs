//! Who may have an image: an allow-list of networks, and tokens where the admin wants them.
//!
//! The same answer is given to the swarm and to HTTP. Loopback is always inside the list. Without a
//! list of the admin's own, the networks of this host's interfaces are it, as they are now: a
//! network that comes up later counts.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use rootswarm_swarm::NodeId;

use crate::mirror::Reach;
use crate::network::{self, Cidr};
use crate::token::{TokenRefusal, Tokens, Use, now_unix_s};

/// Whether an address inside the allow-list is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdmissionMode {
    /// It is.
    Open,
    /// A token is needed as well.
    Token,
}

/// Why somebody was not let in; the text is sent to the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// The address is in no allowed network.
    #[error("address {0} is not in a network that this seed serves (rootswarm serve --allow)")]
    Address(IpAddr),
    /// No good token.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// A one-time token at a mirror whose primary can be reached.
    #[error(
        "this seed is a mirror: one-time tokens are its primary's to take while it can be reached"
    )]
    AskPrimary,
    /// The token file cannot be read or written; the reason is in the server's log.
    #[error("this seed cannot check tokens at the moment")]
    CannotCheck,
}

/// How long the list of the interfaces' networks is believed. getifaddrs costs some 100 µs, which
/// is too much for each of a thousand joins and nothing each second.
const INTERFACES_BELIEVED_FOR: Duration = Duration::from_secs(1);

/// The decision.
#[derive(Debug)]
pub struct Admission {
    mode: AdmissionMode,
    tokens: Tokens,
    networks: Networks,
    /// On a mirror: whether its primary can be reached.
    primary: Option<Reach>,
}

#[derive(Debug)]
enum Networks {
    Listed(Vec<Cidr>),
    OfInterfaces(RwLock<(Instant, Vec<Cidr>)>),
}

impl Admission {
    /// An empty `allow` means the networks of this host's interfaces.
    pub fn new(mode: AdmissionMode, allow: Vec<Cidr>, tokens: Tokens) -> Admission {
        let networks = if allow.is_empty() {
            Networks::OfInterfaces(RwLock::new((Instant::now(), networks_of_interfaces())))
        } else {
            Networks::Listed(allow)
        };
        Admission {
            mode,
            tokens,
            networks,
            primary: None,
        }
    }

    /// The same on a mirror, which leaves one-time tokens to its primary.
    pub fn of_mirror(mut self, primary: Reach) -> Admission {
        self.primary = Some(primary);
        self
    }

    /// The networks that are let in, for the log.
    pub fn networks(&self) -> Vec<Cidr> {
        match &self.networks {
            Networks::Listed(listed) => listed.clone(),
            Networks::OfInterfaces(cached) => cached
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .1
                .clone(),
        }
    }

    /// Whether `address` is inside the allow-list.
    pub fn check_address(&self, address: IpAddr) -> Result<(), NotAdmitted> {
        let address = address.to_canonical();
        if address.is_loopback() || self.is_allowed(address) {
            Ok(())
        } else {
            Err(NotAdmitted::Address(address))
        }
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        let inside = |networks: &[Cidr]| networks.iter().any(|network| network.contains(address));
        match &self.networks {
            Networks::Listed(listed) => inside(listed),
            Networks::OfInterfaces(cached) => {
                {
                    // A panic while the lock was held leaves an old list, which is still a list.
                    let cached = cached.read().unwrap_or_else(PoisonError::into_inner);
                    if inside(&cached.1) {
                        return true;
                    }
                    if cached.0.elapsed() < INTERFACES_BELIEVED_FOR {
                        return false;
                    }
                }
                let mut cached = cached.write().unwrap_or_else(PoisonError::into_inner);
                if cached.0.elapsed() >= INTERFACES_BELIEVED_FOR {
                    *cached = (Instant::now(), networks_of_interfaces());
                }
                inside(&cached.1)
            }
        }
    }

    /// Whether `token` would admit `node`, where one is needed. Uses nothing up.
    pub fn check_token(&self, token: Option<&str>, node: NodeId) -> Result<(), NotAdmitted> {
        if self.mode == AdmissionMode::Open {
            return Ok(());
        }
        self.decide(self.tokens.check(token, Some(node), now_unix_s()))
            .map(drop)
    }

    /// Admits `node`, the bearer of `token`, where one is needed; a one-time token is used up by it.
    pub fn consume_token(&self, token: Option<&str>, node: NodeId) -> Result<(), NotAdmitted> {
        if self.mode == AdmissionMode::Open {
            return Ok(());
        }
        if self.primary.as_ref().is_some_and(Reach::is_there) {
            // It uses nothing up: what is reusable here is reusable there.
            return match self.decide(self.tokens.check(token, Some(node), now_unix_s()))? {
                Use::Reusable => Ok(()),
                Use::OneTime => Err(NotAdmitted::AskPrimary),
            };
        }
        self.decide(self.tokens.consume(token, node, now_unix_s()))
            .map(drop)
    }

    /// Whether `token` admits to image bytes over HTTP. A download there is many requests (ranges,
    /// retries), so a one-time token cannot be used up by one of them and is not taken.
    pub fn check_http_token(&self, token: Option<&str>) -> Result<(), NotAdmitted> {
        if self.mode == AdmissionMode::Open {
            return Ok(());
        }
        match self.decide(self.tokens.check(token, None, now_unix_s()))? {
            Use::Reusable => Ok(()),
            Use::OneTime => Err(TokenRefusal::OneTime.into()),
        }
    }

    fn decide(
        &self,
        answer: Result<Result<Use, TokenRefusal>, crate::token::TokenError>,
    ) -> Result<Use, NotAdmitted> {
        match answer {
            Ok(decision) => Ok(decision?),
            Err(error) => {
                tracing::error!("cannot check a token: {error}");
                Err(NotAdmitted::CannotCheck)
            }
        }
    }
}

fn networks_of_interfaces() -> Vec<Cidr> {
    match network::interface_addresses() {
        Ok(addresses) => {
            let mut networks: Vec<Cidr> =
                addresses.into_iter().map(|entry| entry.network).collect();
            networks.sort();
            networks.dedup();
            networks
        }
        Err(error) => {
            tracing::error!("cannot list this host's interfaces: {error}; only loopback is let in");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::StateDir;

    const NODE: NodeId = NodeId([7; 32]);

    fn admission(mode: AdmissionMode, allow: &[&str]) -> (tempfile::TempDir, Tokens, Admission) {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(StateDir::open(dir.path()).unwrap());
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        let admission = Admission::new(mode, allow, tokens.clone());
        (dir, tokens, admission)
    }

    #[test]
    fn the_list_decides_and_loopback_is_always_in() {
        let (_dir, _, admission) = admission(AdmissionMode::Open, &["10.1.0.0/16", "fd00::/64"]);
        for (address, inside) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd00::7", true),
            ("fd01::7", false),
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
        ] {
            assert_eq!(
                admission.check_address(address.parse().unwrap()).is_ok(),
                inside,
                "{address}"
            );
        }
        assert_eq!(admission.check_token(None, NODE), Ok(()));
    }

    #[test]
    fn without_a_list_the_interfaces_networks_are_it() {
        let (_dir, _, admission) = admission(AdmissionMode::Open, &[]);
        for entry in network::interface_addresses().unwrap() {
            assert_eq!(admission.check_address(entry.address), Ok(()));
        }
        // Set aside for documentation: no interface is on it.
        assert!(
            admission
                .check_address("203.0.113.9".parse().unwrap())
                .is_err()
        );
    }

    #[test]
    fn token_mode_needs_a_token_and_uses_it_up_once() {
        let (_dir, tokens, admission) = admission(AdmissionMode::Token, &[]);
        assert_eq!(
            admission.consume_token(None, NODE),
            Err(NotAdmitted::Token(TokenRefusal::Missing))
        );
        let once = tokens.create(Use::OneTime, None, "", now_unix_s()).unwrap();
        let always = tokens
            .create(Use::Reusable, None, "", now_unix_s())
            .unwrap();
        assert_eq!(
            admission.check_http_token(Some(&once)),
            Err(NotAdmitted::Token(TokenRefusal::OneTime))
        );
        assert_eq!(admission.check_token(Some(&once), NODE), Ok(()));
        // Its answer may have been lost: the same node may ask again, and nobody else.
        for _ in 0..2 {
            assert_eq!(admission.consume_token(Some(&once), NODE), Ok(()));
        }
        assert_eq!(
            admission.consume_token(Some(&once), NodeId([8; 32])),
            Err(NotAdmitted::Token(TokenRefusal::Invalid))
        );
        for _ in 0..2 {
            assert_eq!(admission.consume_token(Some(&always), NODE), Ok(()));
            assert_eq!(admission.check_http_token(Some(&always)), Ok(()));
        }
    }

    #[test]
    fn a_damaged_token_file_admits_nobody() {
        let (dir, tokens, admission) = admission(AdmissionMode::Token, &[]);
        let token = tokens
            .create(Use::Reusable, None, "", now_unix_s())
            .unwrap();
        std::fs::write(dir.path().join("tokens"), "garbage\n").unwrap();
        assert_eq!(
            admission.consume_token(Some(&token), NODE),
            Err(NotAdmitted::CannotCheck)
        );
    }
}
