//! What lets a request have image bytes, and an answer go on.
//!
//! An image is sent for minutes, and what let its request in may end meanwhile: a node is revoked, a token
//! taken back, an epoch over. So an answer that is under way is looked at each second: a token that still
//! admits its bearer is used by that, so that it lasts as long as the answer does, and one that does not
//! any more ends it.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderName};
use rootswarm_swarm::NodeId;
use rootswarm_transport::http_proof;
use tokio::time::{MissedTickBehavior, interval};

use super::Routes;
use crate::admission::{Admission, NotAdmitted};
use crate::token::{TokenRefusal, now_unix_s};

/// See [`http_proof`].
const SESSION: HeaderName = HeaderName::from_static(http_proof::SESSION);
/// See [`http_proof`].
const MEMBER: HeaderName = HeaderName::from_static(http_proof::MEMBER);

/// How often it is looked whether an answer may go on.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// By what a request is let in.
#[derive(Clone, Debug)]
pub(super) enum Pass {
    /// No token is asked for.
    Anybody,
    /// The swarm has let the node in, and says so until an epoch is over.
    Member {
        /// Who it is.
        node: NodeId,
        /// The epoch that its certificate was good in.
        epoch: u32,
    },
    /// A token, which admits this bearer: a one-time token is bound to the node that signed it with its key,
    /// and that may then join with it; where there is no node, to the secret that an agent makes for its
    /// download, or to the address of a client that has none.
    Token {
        /// As it was sent.
        token: Option<String>,
        /// Who shows it.
        bearer: NodeId,
    },
}

impl Pass {
    /// What the head of a request from `from` shows; whether that is any good is another question, but for
    /// a member's certificate.
    pub(super) fn shown(routes: &Routes, from: SocketAddr, headers: &HeaderMap) -> Pass {
        if !routes.admission.asks_for_tokens() {
            return Pass::Anybody;
        }
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let (swarm, gate) = &routes.members;
        // Before the look at the certificate: an epoch that ends meanwhile counts as over.
        let epoch = gate.epoch();
        let member = text(MEMBER).and_then(|text| http_proof::member(text, swarm, gate));
        if let Some(node) = member {
            return Pass::Member { node, epoch };
        }
        let token = text(AUTHORIZATION)
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(|token| token.trim().to_owned());
        let nobody = |bearer: String| {
            NodeId(*blake3::hash(format!("rootswarm http bearer {bearer}").as_bytes()).as_bytes())
        };
        let bearer = match (text(SESSION), &token) {
            (Some(session), Some(token)) => http_proof::session(session, token)
                .unwrap_or_else(|| nobody(format!("session {session}"))),
            _ => nobody(format!("address {}", from.ip().to_canonical())),
        };
        Pass::Token { token, bearer }
    }

    /// Whether it lets anybody in. Uses nothing up.
    pub(super) async fn check(&self, routes: &Routes) -> Result<(), NotAdmitted> {
        self.ask(routes, Admission::check_token).await
    }

    /// Lets it in: a one-time token is used up by the first answer, and goes on to admit the same bearer.
    pub(super) async fn hold(&self, routes: &Routes) -> Result<(), NotAdmitted> {
        self.ask(routes, Admission::hold_http_token).await
    }

    /// What admission says of the token and its bearer, which may take a look at a disk.
    async fn ask(
        &self,
        routes: &Routes,
        question: impl FnOnce(&Admission, Option<&str>, NodeId) -> Result<(), NotAdmitted>
        + Send
        + 'static,
    ) -> Result<(), NotAdmitted> {
        let Pass::Token { token, bearer } = self else {
            return self.check_member(routes);
        };
        let (_, gate) = &routes.members;
        if gate.is_revoked(bearer) {
            return Err(NotAdmitted::Token(TokenRefusal::Invalid));
        }
        let (admission, token, bearer) = (routes.admission.clone(), token.clone(), *bearer);
        let asked = move || question(&admission, token.as_deref(), bearer);
        routes.tokens.run(asked).await.ok_or(NotAdmitted::Busy)?
    }

    fn check_member(&self, routes: &Routes) -> Result<(), NotAdmitted> {
        let Pass::Member { node, epoch } = self else {
            return Ok(());
        };
        let (_, gate) = &routes.members;
        match gate.epoch() == *epoch && !gate.is_revoked(node) {
            true => Ok(()),
            false => Err(NotAdmitted::Token(TokenRefusal::Invalid)),
        }
    }

    /// Ends when the answer that has just begun with it must. That nobody can tell at the moment ends nothing.
    pub(super) async fn ended(self, routes: Routes) -> NotAdmitted {
        if matches!(self, Pass::Anybody) {
            return std::future::pending().await;
        }
        let mut last_unix_s = now_unix_s();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.tick().await;
        // Most answers have ended by now.
        look.tick().await;
        let until_unix_s = self.reusable_until(&routes).await;
        loop {
            let looked_unix_s = now_unix_s();
            let goes_on = move |admission: &Admission, token: Option<&str>, bearer| {
                admission.goes_on(token, bearer, last_unix_s, until_unix_s)
            };
            match self.ask(&routes, goes_on).await {
                Ok(()) => last_unix_s = looked_unix_s,
                Err(reason) if reason.may_pass() => {}
                Err(reason) => return reason,
            }
            look.tick().await;
        }
    }

    async fn reusable_until(&self, routes: &Routes) -> Option<u64> {
        let Pass::Token { token, .. } = self else {
            return None;
        };
        let (admission, token) = (routes.admission.clone(), token.clone());
        let until = move || {
            let tokens = admission.tokens();
            tokens.reusable_until(token.as_deref(), now_unix_s()).ok()
        };
        routes.tokens.run(until).await.flatten().flatten()
    }
}
