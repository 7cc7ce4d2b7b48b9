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
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rootswarm_swarm::NodeId;

use crate::mirror::Reach;
use crate::network::{self, Cidr};
use crate::policy::{Allow, Policy, Remembered};
use crate::token::{Held, TokenError, TokenRefusal, Tokens, Use, now_unix_s};

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
    /// Another process works on the state directory.
    #[error("this seed is busy: ask again")]
    Busy,
}

impl NotAdmitted {
    /// Whether it may pass: who hears it is to ask again, here or elsewhere.
    pub fn may_pass(&self) -> bool {
        match self {
            NotAdmitted::AskPrimary
            | NotAdmitted::NotYet
            | NotAdmitted::CannotCheck
            | NotAdmitted::Busy => true,
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

/// How often the interfaces are looked at. getifaddrs costs some 100 µs, and waits for whoever changes
/// an interface at the moment: nothing for those who decide about a packet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    interfaces: RwLock<Vec<Cidr>>,
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
            interfaces: RwLock::new(networks_of_interfaces()),
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

    /// What is kept of tokens here.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
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
        cached.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one of this host's interfaces is on the address's network.
    fn is_near(&self, address: IpAddr) -> bool {
        let inside = |networks: &[Cidr]| networks.iter().any(|network| network.contains(address));
        // A panic while the lock was held leaves an old list, which is still a list.
        inside(
            &self
                .interfaces
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Whether a token is needed at all.
    fn needs_token(&self) -> Result<bool, NotAdmitted> {
        match self.mode() {
            Some(mode) => Ok(mode == AdmissionMode::Token),
            None => Err(NotAdmitted::NotYet),
        }
    }

    /// Looks at the interfaces for ever: a network that comes up is let in
    /// within a second.
    pub async fn follow_interfaces(self: Arc<Self>) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let found = tokio::task::spawn_blocking(network::interface_networks).await;
            match found {
                Ok(Ok(found)) => {
                    let cached = self.interfaces.write();
                    *cached.unwrap_or_else(PoisonError::into_inner) = found;
                }
                Ok(Err(error)) => tracing::error!("{INTERFACES}: {error}; the last list holds"),
                Err(error) => tracing::error!("{INTERFACES}: {error}"),
            }
        }
    }

    /// Whether an address inside the allow-list is not enough.
    pub fn asks_for_tokens(&self) -> bool {
        self.mode() != Some(AdmissionMode::Open)
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

    /// Whether `token` admits `bearer` to image bytes over HTTP, where one is needed. A download there is
    /// many requests (ranges, retries): a one-time token is used up by the first one and goes on to admit
    /// the same bearer as long as it goes on to ask ([`Tokens::hold`]).
    pub fn hold_http_token(&self, token: Option<&str>, bearer: NodeId) -> Result<(), NotAdmitted> {
        if !self.needs_token()? {
            return Ok(());
        }
        let begins = !self.primary.as_ref().is_some_and(Reach::is_there);
        match self.decide(self.tokens.hold(token, bearer, begins, now_unix_s()))? {
            Held::Yes => Ok(()),
            Held::Elsewhere => Err(NotAdmitted::AskPrimary),
        }
    }

    /// Whether `token` goes on to admit `bearer` to an answer that is under way, to which it admitted at
    /// `last_unix_s`. That a reusable one expires meanwhile ends no answer: `until_unix_s` is when it does.
    pub fn goes_on(
        &self,
        token: Option<&str>,
        bearer: NodeId,
        last_unix_s: u64,
        until_unix_s: Option<u64>,
    ) -> Result<(), NotAdmitted> {
        let now_unix_s = now_unix_s();
        if !self.needs_token()? || until_unix_s.is_some_and(|until| until <= now_unix_s) {
            return Ok(());
        }
        let went_on = self.tokens.go_on(token, bearer, last_unix_s, now_unix_s);
        self.decide(went_on).map(drop)
    }

    fn decide<T>(
        &self,
        answer: Result<Result<T, TokenRefusal>, TokenError>,
    ) -> Result<T, NotAdmitted> {
        match answer {
            Ok(decision) => Ok(decision?),
            Err(TokenError::Locked) => Err(NotAdmitted::Busy),
            Err(error) => {
                tracing::error!("cannot check a token: {error}");
                Err(NotAdmitted::CannotCheck)
            }
        }
    }
}

const INTERFACES: &str = "cannot list this host's interfaces";

fn networks_of_interfaces() -> Vec<Cidr> {
    network::interface_networks().unwrap_or_else(|error| {
        tracing::error!("{INTERFACES}: {error}; only loopback is let in");
        Vec::new()
    })
}

#[cfg(test)]
mod tests;
