//! Who may have an image: an allow-list of networks, and tokens where the admin wants them.
//!
//! The same answer is given to the swarm and to HTTP. Loopback is always inside the list. Without a
//! list of the admin's own, the networks of this host's interfaces are it, as they are now: a
//! network that comes up later counts.
//!
//! A mirror answers for its first seed: it lets in nobody whom that one, as far as its policy is known
//! ([`crate::policy`]), would not, and nobody at all before it has learnt that policy. What its own admin
//! configured can only make it stricter. Once the host has taken over, the policy goes on to hold for
//! what its admin did not configure.

use std::fmt;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use rootswarm_swarm::NodeId;

use crate::mirror::Reach;
use crate::network::{self, Cidr};
use crate::policy::{Allow, Policy, Remembered};
use crate::token::{TokenRefusal, Tokens, Use, now_unix_s};

/// Whether an address inside the allow-list is enough. In the order of strictness.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AdmissionMode {
    /// It is.
    Open,
    /// A token is needed as well.
    Token,
}

impl fmt::Display for AdmissionMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AdmissionMode::Open => "open",
            AdmissionMode::Token => "token",
        })
    }
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
    /// A mirror that does not know yet whom its primary lets in.
    #[error("this seed is a mirror and has not learnt from its primary yet whom to let in")]
    NotYet,
    /// The token file cannot be read or written; the reason is in the server's log.
    #[error("this seed cannot check tokens at the moment")]
    CannotCheck,
}

impl NotAdmitted {
    /// Whether it may pass: who hears it is to ask again, here or elsewhere.
    pub fn may_pass(&self) -> bool {
        match self {
            NotAdmitted::AskPrimary | NotAdmitted::NotYet | NotAdmitted::CannotCheck => true,
            NotAdmitted::Address(_) | NotAdmitted::Token(_) => false,
        }
    }
}

/// A mirror that was configured to let in whom its first seed does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Looser {
    /// The mode.
    #[error("admission is open here, and token there")]
    Mode,
    /// A network.
    #[error("network {network} is allowed here, and there only {}", list(allowed))]
    Network {
        /// The first one.
        network: Cidr,
        /// What is.
        allowed: Vec<Cidr>,
    },
}

/// Networks in a line.
fn list(networks: &[Cidr]) -> String {
    let shown = |network: &Cidr| network.to_string();
    networks.iter().map(shown).collect::<Vec<_>>().join(" ")
}

/// How long the list of the interfaces' networks is believed. getifaddrs costs some 100 µs, which
/// is too much for each of a thousand joins and nothing each second.
const INTERFACES_BELIEVED_FOR: Duration = Duration::from_secs(1);

/// What the admin of this host has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// `--admission`.
    pub mode: Option<AdmissionMode>,
    /// `--allow`; empty if he has not.
    pub allow: Vec<Cidr>,
}

/// The decision.
#[derive(Debug)]
pub struct Admission {
    configured: Configured,
    tokens: Tokens,
    interfaces: RwLock<(Instant, Vec<Cidr>)>,
    /// What the first seed told this one, now or when it was a mirror.
    remembered: Option<Remembered>,
    /// On a mirror: whether its primary can be reached.
    primary: Option<Reach>,
}

impl Admission {
    /// By what the admin configured alone.
    pub fn new(configured: Configured, tokens: Tokens) -> Admission {
        Admission {
            configured,
            tokens,
            interfaces: RwLock::new((Instant::now(), networks_of_interfaces())),
            remembered: None,
            primary: None,
        }
    }

    /// By what is remembered of a first seed as well.
    pub fn with(mut self, remembered: Remembered) -> Admission {
        self.remembered = Some(remembered);
        self
    }

    /// The same on a mirror, which leaves one-time tokens to its primary.
    pub fn of_mirror(mut self, primary: Reach) -> Admission {
        self.primary = Some(primary);
        self
    }

    fn policy(&self) -> Option<Policy> {
        self.remembered.as_ref().and_then(Remembered::policy)
    }

    /// Whether a token is needed. `None`: a mirror that does not know.
    pub fn mode(&self) -> Option<AdmissionMode> {
        let policy = self.policy().map(|policy| policy.mode);
        let configured = self.configured.mode;
        match self.primary {
            // Whichever is stricter.
            Some(_) => Some(policy?.max(configured.unwrap_or(AdmissionMode::Open))),
            None => Some(configured.or(policy).unwrap_or(AdmissionMode::Open)),
        }
    }

    /// What a mirror of this one is told; a mirror that knows nothing tells nothing.
    pub fn to_mirror(&self) -> Option<Policy> {
        let mode = self.mode()?;
        let learnt = self.policy().map(|policy| policy.allow);
        let own = &self.configured.allow;
        let allow = match (learnt, self.primary.is_some()) {
            // Both lists hold, and what is in both is in the smaller block of a pair.
            (Some(Allow::Listed(theirs)), true) if !own.is_empty() => {
                let smaller = |a: &Cidr, b: &Cidr| match (a.covers(b), b.covers(a)) {
                    (true, _) => Some(*b),
                    (_, true) => Some(*a),
                    _ => None,
                };
                let both = own
                    .iter()
                    .flat_map(|a| theirs.iter().filter_map(move |b| smaller(a, b)));
                match both.collect::<Vec<_>>() {
                    // Loopback is in every list, and this one has nothing else.
                    none if none.is_empty() => {
                        Allow::Listed(vec![Cidr::new([127, 0, 0, 1].into(), 8)])
                    }
                    both => Allow::Listed(both),
                }
            }
            _ if !own.is_empty() => Allow::Listed(own.clone()),
            (Some(Allow::Listed(theirs)), _) => Allow::Listed(theirs),
            _ => Allow::Interfaces(self.networks()),
        };
        Some(Policy { mode, allow })
    }

    /// Whether this mirror was configured to be looser than its first seed: it is not, as the stricter
    /// of both holds, but its admin believes that it is.
    ///
    /// # Errors
    /// In what.
    pub fn check_not_looser(&self) -> Result<(), Looser> {
        let Some(policy) = self.policy() else {
            return Ok(());
        };
        if self.configured.mode.is_some_and(|mode| mode < policy.mode) {
            return Err(Looser::Mode);
        }
        let allowed = match policy.allow {
            Allow::Unknown => return Ok(()),
            Allow::Listed(networks) => networks,
            Allow::Interfaces(networks) => [networks, networks_of_interfaces()].concat(),
        };
        let outside = |network: &&Cidr| {
            // Loopback is always in.
            let loopback = network.network().is_loopback();
            !loopback && !network.is_covered_by(&allowed)
        };
        match self.configured.allow.iter().find(outside) {
            Some(network) => Err(Looser::Network {
                network: *network,
                allowed,
            }),
            None => Ok(()),
        }
    }

    /// The networks that are let in, for the log.
    pub fn networks(&self) -> Vec<Cidr> {
        let learnt = self.policy().map(|policy| policy.allow);
        let own = &self.configured.allow;
        let mut networks = match learnt {
            Some(Allow::Listed(theirs)) if own.is_empty() => theirs,
            _ if !own.is_empty() => own.clone(),
            Some(Allow::Interfaces(theirs)) => [theirs, self.interfaces()].concat(),
            _ => self.interfaces(),
        };
        networks.sort();
        networks.dedup();
        networks
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
        let own = &self.configured.allow;
        let is_mirror = self.primary.is_some();
        match self.policy().map(|policy| policy.allow) {
            Some(Allow::Listed(theirs)) if is_mirror || own.is_empty() => {
                inside(&theirs) && (own.is_empty() || inside(own))
            }
            Some(Allow::Interfaces(theirs)) if is_mirror || own.is_empty() => {
                (inside(&theirs) || self.is_near(address)) && (own.is_empty() || inside(own))
            }
            _ if own.is_empty() => self.is_near(address),
            _ => inside(own),
        }
    }

    fn interfaces(&self) -> Vec<Cidr> {
        let cached = self.interfaces.read();
        cached.unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Whether one of this host's interfaces is on the address's network.
    fn is_near(&self, address: IpAddr) -> bool {
        let inside = |networks: &[Cidr]| networks.iter().any(|network| network.contains(address));
        {
            // A panic while the lock was held leaves an old list, which is still a list.
            let cached = self
                .interfaces
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if inside(&cached.1) {
                return true;
            }
            if cached.0.elapsed() < INTERFACES_BELIEVED_FOR {
                return false;
            }
        }
        let mut cached = self
            .interfaces
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if cached.0.elapsed() >= INTERFACES_BELIEVED_FOR {
            *cached = (Instant::now(), networks_of_interfaces());
        }
        inside(&cached.1)
    }

    /// Whether a token is needed at all.
    fn needs_token(&self) -> Result<bool, NotAdmitted> {
        match self.mode() {
            Some(mode) => Ok(mode == AdmissionMode::Token),
            None => Err(NotAdmitted::NotYet),
        }
    }

    /// Whether `token` would admit `node`, where one is needed. Uses nothing up.
    pub fn check_token(&self, token: Option<&str>, node: NodeId) -> Result<(), NotAdmitted> {
        if !self.needs_token()? {
            return Ok(());
        }
        self.decide(self.tokens.check(token, Some(node), now_unix_s()))
            .map(drop)
    }

    /// Admits `node`, the bearer of `token`, where one is needed; a one-time token is used up by it.
    pub fn consume_token(&self, token: Option<&str>, node: NodeId) -> Result<(), NotAdmitted> {
        if !self.needs_token()? {
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
        if !self.needs_token()? {
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
        let mode = Some(mode);
        let admission = Admission::new(Configured { mode, allow }, tokens.clone());
        (dir, tokens, admission)
    }

    /// A mirror: what its admin configured, and what its first seed told.
    fn mirror(
        dir: &std::path::Path,
        mode: Option<AdmissionMode>,
        allow: &[&str],
        told: &str,
    ) -> Admission {
        let state = StateDir::open(dir).unwrap();
        let remembered = Remembered::load(state.clone()).unwrap();
        if !told.is_empty() {
            let text = format!("rootswarm-policy 1\n{}\n", told.replace(" / ", "\n"));
            remembered.adopt(text.as_bytes()).unwrap();
        }
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        Admission::new(Configured { mode, allow }, Tokens::of_mirror(state))
            .with(remembered)
            .of_mirror(Reach::default())
    }

    #[test]
    fn a_mirror_is_never_looser_than_its_first_seed() {
        use AdmissionMode::{Open, Token};
        const LISTED: &str = "allow listed / network 10.1.0.0/16 / network fd00::/64";
        for (mode, allow, told, effective, inside, outside, refused) in [
            // Nothing configured: the first seed's rules.
            (None, "", "token", Token, "10.1.2.3", "10.2.0.1", ""),
            (None, "", "open", Open, "fd00::7", "fd01::7", ""),
            // Stricter in one thing or the other.
            (Some(Token), "", "open", Token, "10.1.2.3", "10.2.0.1", ""),
            (
                None,
                "10.1.7.0/24",
                "open",
                Open,
                "10.1.7.1",
                "10.1.8.1 fd00::7",
                "",
            ),
            // Looser: the stricter holds, and it is said.
            (
                Some(Open),
                "",
                "token",
                Token,
                "10.1.2.3",
                "10.2.0.1",
                "admission is open here, and token there",
            ),
            (
                None,
                "10.0.0.0/8",
                "open",
                Open,
                "10.1.2.3",
                "10.2.0.1 fd00::7",
                "network 10.0.0.0/8 is allowed here, and there only 10.1.0.0/16 fd00::/64",
            ),
            (
                None,
                "fd00::/64 ::/0",
                "token",
                Token,
                "fd00::7",
                "fd01::7 10.1.2.3",
                "network ::/0 is allowed here, and there only 10.1.0.0/16 fd00::/64",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let allow: Vec<&str> = allow.split_whitespace().collect();
            let told = format!("admission {told} / {LISTED}");
            let mirror = mirror(dir.path(), mode, &allow, &told);
            let case = format!("{mode:?} {allow:?} {told}");
            assert_eq!(mirror.mode(), Some(effective), "{case}");
            for (addresses, is_in) in [(inside, true), (outside, false)] {
                for address in addresses.split_whitespace() {
                    let found = mirror.check_address(address.parse().unwrap()).is_ok();
                    assert_eq!(found, is_in, "{case}: {address}");
                    // A mirror of this mirror is told the same.
                    let Some(Allow::Listed(next)) = mirror.to_mirror().map(|it| it.allow) else {
                        panic!("{case}: no list");
                    };
                    let address = address.parse().unwrap();
                    assert_eq!(next.iter().any(|it| it.contains(address)), is_in, "{case}");
                }
            }
            let said = mirror.check_not_looser().err().map(|it| it.to_string());
            assert_eq!(said.unwrap_or_default(), refused, "{case}");
            let needs_token = mirror.consume_token(None, NODE).is_err();
            assert_eq!(needs_token, effective == Token, "{case}");
        }
    }

    #[test]
    fn the_networks_of_a_first_seeds_interfaces_count_at_its_mirror_beside_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let told = "admission open / allow interfaces / network 203.0.113.0/24";
        let mirror = mirror(dir.path(), None, &[], told);
        for entry in network::interface_addresses().unwrap() {
            assert_eq!(mirror.check_address(entry.address), Ok(()));
        }
        assert!(mirror.check_address("203.0.113.9".parse().unwrap()).is_ok());
        assert!(
            mirror
                .check_address("198.51.100.1".parse().unwrap())
                .is_err()
        );
        assert_eq!(mirror.check_not_looser(), Ok(()));
    }

    #[test]
    fn a_mirror_that_knows_nothing_admits_nobody_and_one_that_took_over_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let empty = mirror(dir.path(), Some(AdmissionMode::Open), &[], "");
        assert_eq!(empty.mode(), None);
        assert_eq!(empty.to_mirror(), None);
        for refused in [
            empty.check_token(None, NODE),
            empty.consume_token(None, NODE),
            empty.check_http_token(None),
        ] {
            assert_eq!(refused, Err(NotAdmitted::NotYet));
        }
        let told = "admission token / allow listed / network 10.1.0.0/16";
        let state = mirror(dir.path(), None, &[], told).remembered.unwrap();
        // It serves without --mirror now.
        let tokens = Tokens::new(StateDir::open(dir.path()).unwrap());
        let taken_over =
            |configured| Admission::new(configured, tokens.clone()).with(state.clone());
        let as_it_was = taken_over(Configured::default());
        assert_eq!(as_it_was.mode(), Some(AdmissionMode::Token));
        assert!(as_it_was.check_address("10.1.2.3".parse().unwrap()).is_ok());
        assert!(
            as_it_was
                .check_address("10.2.2.3".parse().unwrap())
                .is_err()
        );
        // Its admin decides now.
        let open = taken_over(Configured {
            mode: Some(AdmissionMode::Open),
            allow: vec!["10.2.0.0/16".parse().unwrap()],
        });
        assert_eq!(open.mode(), Some(AdmissionMode::Open));
        assert!(open.check_address("10.2.2.3".parse().unwrap()).is_ok());
        assert!(open.check_address("10.1.2.3".parse().unwrap()).is_err());
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
