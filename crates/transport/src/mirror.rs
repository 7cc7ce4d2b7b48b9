//! Keeping a second seed in step with the first: what the one asks and the other answers.
//!
//! On a connection with ALPN `rootswarm-mirror/2` the mirror opens one stream for each request and
//! proves in each that it holds the swarm key: whoever has that key could issue himself anything, so
//! there is nothing to hide from him. The seed proves the same in each answer, because what it says
//! decides whom the mirror lets in: a certificate alone could be shown by whoever stole a seed's TLS key.
//! With a seed of an earlier release the two speak `rootswarm-mirror/1`, which has no policy, no older
//! generations and no proof of the seed's. The bytes are in JOIN.md. What the listing's parts mean is the
//! server's; images are fetched through the swarm itself, as by any node, with a certificate that the
//! mirror issues to itself ([`Primary::admit`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use rootswarm_image::{ImageId, Manifest, SwarmKey, SwarmPublicKey, Tag};
use rootswarm_swarm::{NodeId, Role};
use tokio::time::timeout;

use crate::framing::{self, FrameError};
use crate::identity::{Identity, IdentityError, SwarmCa};
use crate::join::JoinRequest;
use crate::node::{CONNECT_TIMEOUT, Joined, Node};
use crate::tls::{self, ALPN_MIRROR_1, ConnectError, Dialer};
use crate::trust::TrustError;

/// A version of the protocol, as the two ends negotiated it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MirrorVersion {
    /// `rootswarm-mirror/1`.
    One,
    /// `rootswarm-mirror/2`: the seed proves itself too, tells whom it lets in, and may tell older
    /// generations.
    Two,
}

impl MirrorVersion {
    fn of(connection: &Connection) -> MirrorVersion {
        match tls::protocol(connection).as_slice() {
            ALPN_MIRROR_1 => MirrorVersion::One,
            _ => MirrorVersion::Two,
        }
    }

    /// The exporter label of the proofs (RFC 8446, 7.5). Part of the wire format.
    fn label(self) -> &'static [u8] {
        match self {
            MirrorVersion::One => b"EXPORTER-rootswarm-mirror-1",
            MirrorVersion::Two => b"EXPORTER-rootswarm-mirror-2",
        }
    }

    /// In front of the exported secret in the message that the mirror signs: no other message that
    /// the swarm key signs begins with it.
    fn asks(self) -> &'static [u8] {
        match self {
            MirrorVersion::One => b"rootswarm mirror proof 1\0",
            MirrorVersion::Two => b"rootswarm mirror proof 2\0",
        }
    }
}

/// The same in the message that the seed signs in version 2.
const ANSWER_PREFIX: &[u8] = b"rootswarm mirror answer 2\0";

/// An Ed25519 signature.
const PROOF_BYTES: usize = 64;

/// The longest frame: a file of 10,000 tokens is 1.9 MB, a manifest at most 4 MiB and some bytes.
const FRAME_BYTES_MAX: usize = 8 << 20;

/// The most tags in a listing; at some 250 bytes each, 4 MB.
const TAGS_MAX: usize = 16 * 1024;

/// The frames before them: the proof, what is said, tokens, revocations, the policy.
const PARTS_MAX: usize = 5;

/// For one request and its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the reason for which a seed closes a connection may come after the end of its answer.
const REASON_WITHIN: Duration = Duration::from_secs(1);

/// How long a mirror may ask nothing before a seed parts from it: it asks every few seconds.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

const ASK_LISTING: u8 = 0;
const ASK_MANIFEST: u8 = 1;
const TAG_CURRENT: u8 = 0;
const TAG_RETIRED: u8 = 1;
const TAG_OLDER: u8 = 2;
const ROLLED_BACK: u8 = 3;

/// Why a primary could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// It is another installation's seed.
    #[error("the seed {seed} is not trusted: {source}")]
    Trust {
        /// Which.
        seed: SocketAddr,
        /// Why.
        source: TrustError,
    },
    /// No answer, or it broke off.
    #[error("cannot reach the seed {seed}: {reason}")]
    Unreachable {
        /// Which.
        seed: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// It refused.
    #[error("the seed {seed} refused: {reason}")]
    Refused {
        /// Which.
        seed: SocketAddr,
        /// Its words.
        reason: String,
    },
    /// It sent what is no answer.
    #[error("the seed {seed} answered with something else: {reason}")]
    Protocol {
        /// Which.
        seed: SocketAddr,
        /// What.
        reason: String,
    },
}

impl MirrorError {
    /// Whether the seed answered, though not with what was asked for: it is there.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            MirrorError::Refused { .. } | MirrorError::Protocol { .. } => true,
            MirrorError::Trust { .. } | MirrorError::Unreachable { .. } => false,
        }
    }
}

/// Everything a seed tells a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The file of admission tokens, hashed as they are.
    pub tokens: Vec<u8>,
    /// The file of revocations.
    pub revoked: Vec<u8>,
    /// Signed tags: what names mean now.
    pub tags: Vec<Vec<u8>>,
    /// The last signed tags of names that were removed.
    pub retired: Vec<Vec<u8>>,
    /// The file of the admission policy: whom the seed lets in. `None` from a seed that speaks only
    /// version 1, which does not tell.
    pub policy: Option<Vec<u8>>,
    /// Signed tags of older generations of names, whose images stay fetchable by their pin. Version 1
    /// has none.
    pub older: Vec<Vec<u8>>,
    /// Of each name from which an operator went back: which images those were, in the server's words. Not in
    /// version 1.
    pub rolled_back: Vec<Vec<u8>>,
}

impl Listing {
    pub(crate) fn encode(self, version: MirrorVersion) -> Vec<Vec<u8>> {
        let tagged = |kind: u8| move |tag: Vec<u8>| [&[kind], &tag[..]].concat();
        let mut frames = vec![self.tokens, self.revoked];
        if version == MirrorVersion::Two {
            frames.push(self.policy.unwrap_or_default());
        }
        frames.extend(self.tags.into_iter().map(tagged(TAG_CURRENT)));
        frames.extend(self.retired.into_iter().map(tagged(TAG_RETIRED)));
        if version == MirrorVersion::Two {
            frames.extend(self.older.into_iter().map(tagged(TAG_OLDER)));
            frames.extend(self.rolled_back.into_iter().map(tagged(ROLLED_BACK)));
        }
        frames
    }

    fn decode(frames: Vec<Vec<u8>>, version: MirrorVersion) -> Result<Listing, String> {
        let mut frames = frames.into_iter();
        let mut part = || frames.next().ok_or("a listing that breaks off");
        let mut listing = Listing {
            tokens: part()?,
            revoked: part()?,
            ..Listing::default()
        };
        if version == MirrorVersion::Two {
            listing.policy = Some(part()?);
        }
        for frame in frames {
            match (frame.split_first(), version) {
                (Some((&TAG_CURRENT, tag)), _) => listing.tags.push(tag.to_vec()),
                (Some((&TAG_RETIRED, tag)), _) => listing.retired.push(tag.to_vec()),
                (Some((&TAG_OLDER, tag)), MirrorVersion::Two) => listing.older.push(tag.to_vec()),
                (Some((&ROLLED_BACK, text)), MirrorVersion::Two) => {
                    listing.rolled_back.push(text.to_vec());
                }
                // What a later release adds is passed over.
                (Some(_), MirrorVersion::Two) => {}
                _ => return Err("a tag of no known kind".to_owned()),
            }
        }
        Ok(listing)
    }
}

/// What a mirror asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The listing; with what the mirror has to tell.
    Listing(Vec<u8>),
    /// An image's manifest.
    Manifest(ImageId),
}

impl Ask {
    fn encode(&self) -> Vec<u8> {
        match self {
            Ask::Listing(report) => [&[ASK_LISTING], &report[..]].concat(),
            Ask::Manifest(id) => [&[ASK_MANIFEST], &id.as_bytes()[..]].concat(),
        }
    }

    fn decode(frame: &[u8]) -> Option<Ask> {
        match frame.split_first()? {
            (&ASK_LISTING, report) => Some(Ask::Listing(report.to_vec())),
            (&ASK_MANIFEST, id) => Some(Ask::Manifest(ImageId::from_bytes(id.try_into().ok()?))),
            _ => None,
        }
    }
}

/// Whether the other end ended it: one that has no place for another connection is there all the same.
fn is_turned_away(error: &quinn::ConnectionError) -> bool {
    matches!(
        error,
        quinn::ConnectionError::ConnectionClosed(_) | quinn::ConnectionError::ApplicationClosed(_)
    )
}

/// What a proof of holding the swarm key on this connection signs, after `prefix`.
fn proof_message(
    connection: &Connection,
    version: MirrorVersion,
    prefix: &[u8],
) -> Result<Vec<u8>, String> {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, version.label(), b"")
        .map_err(|_| "the connection exports no key".to_owned())?;
    Ok([prefix, &secret].concat())
}

/// A mirror's request at the seed.
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) version: MirrorVersion,
    send: SendStream,
    /// What the answer is to be signed with.
    challenge: Vec<u8>,
}

/// Takes the next request, for which there is `patience`; `None` when the mirror has left.
pub(crate) async fn accept(
    connection: &Connection,
    swarm: &SwarmPublicKey,
    patience: Duration,
) -> Result<Option<Request>, String> {
    let (send, mut receive) = match timeout(patience, connection.accept_bi()).await {
        Ok(Ok(streams)) => streams,
        Ok(Err(_)) => return Ok(None),
        Err(_) => return Err(format!("no request within {} s", patience.as_secs())),
    };
    let version = MirrorVersion::of(connection);
    let read = async {
        let proof = framing::read_frame(&mut receive, PROOF_BYTES).await;
        let proof = proof.map_err(|error| error.to_string())?;
        let message = proof_message(connection, version, version.asks())?;
        if !swarm.verifies(&message, &proof) {
            return Err("it did not prove that it holds the swarm key".to_owned());
        }
        // Only now may it be long.
        let frame = framing::read_frame(&mut receive, FRAME_BYTES_MAX).await;
        Ask::decode(&frame.map_err(|error| error.to_string())?)
            .ok_or_else(|| "a request of no known kind".to_owned())
    };
    let ask = timeout(ANSWER_TIMEOUT, read)
        .await
        .map_err(|_| "its request did not come".to_owned())??;
    Ok(Some(Request {
        ask,
        version,
        send,
        challenge: proof_message(connection, version, ANSWER_PREFIX)?,
    }))
}

impl Request {
    /// Sends the frames of an answer, or why there is none; since version 2 behind the proof that this
    /// seed holds the swarm key.
    pub(crate) async fn answer(
        mut self,
        answer: Result<Vec<Vec<u8>>, String>,
        key: &SwarmKey,
    ) -> Result<(), String> {
        let (said, frames) = match answer {
            Ok(frames) => (vec![0], frames),
            Err(reason) => ([&[1], reason.as_bytes()].concat(), Vec::new()),
        };
        let proof = match self.version {
            MirrorVersion::One => None,
            MirrorVersion::Two => Some(key.sign(&self.challenge).to_vec()),
        };
        for frame in proof.iter().chain([&said]).chain(&frames) {
            framing::write_frame(&mut self.send, frame)
                .await
                .map_err(|error| error.to_string())?;
        }
        self.send.finish().map_err(|error| error.to_string())
    }
}

/// A connection to the seed that is mirrored.
pub struct Primary {
    connection: Connection,
    version: MirrorVersion,
    /// Whom the seed is held to.
    swarm: SwarmPublicKey,
    key: Arc<SwarmKey>,
    seed: SocketAddr,
    id: NodeId,
}

impl Primary {
    /// Connects from `node`'s socket to a seed that must hold the same swarm key.
    ///
    /// # Errors
    /// See [`MirrorError`].
    pub async fn connect(
        node: &Node,
        seed: SocketAddr,
        key: Arc<SwarmKey>,
    ) -> Result<Primary, MirrorError> {
        let dialer = Dialer::mirror(key.public(), &node.tuning);
        Primary::dial(dialer, node, seed, key.public(), key).await
    }

    /// The same with the key that signs apart from the one that the seed is held to: what a stranger
    /// could try, for tests.
    #[doc(hidden)]
    pub async fn connect_as(
        node: &Node,
        seed: SocketAddr,
        swarm: SwarmPublicKey,
        key: Arc<SwarmKey>,
    ) -> Result<Primary, MirrorError> {
        let dialer = Dialer::mirror(swarm, &node.tuning);
        Primary::dial(dialer, node, seed, swarm, key).await
    }

    /// The same as a mirror of an earlier release does it, for tests.
    #[doc(hidden)]
    pub async fn connect_1(
        node: &Node,
        seed: SocketAddr,
        key: Arc<SwarmKey>,
    ) -> Result<Primary, MirrorError> {
        let dialer = Dialer::mirror_1(key.public(), &node.tuning);
        Primary::dial(dialer, node, seed, key.public(), key).await
    }

    async fn dial(
        dialer: Dialer,
        node: &Node,
        seed: SocketAddr,
        swarm: SwarmPublicKey,
        key: Arc<SwarmKey>,
    ) -> Result<Primary, MirrorError> {
        let dial = dialer.connect(&node.endpoint, seed, Role::Seed);
        let unreachable = |reason: String| MirrorError::Unreachable { seed, reason };
        match timeout(CONNECT_TIMEOUT, dial).await {
            Ok(Ok((connection, found))) => Ok(Primary {
                version: MirrorVersion::of(&connection),
                connection,
                swarm,
                key,
                seed,
                id: found.node_id,
            }),
            Ok(Err(ConnectError::Untrusted { source, .. })) => {
                Err(MirrorError::Trust { seed, source })
            }
            Ok(Err(error)) if error.is_refusal() => Err(MirrorError::Protocol {
                seed,
                reason: error.to_string(),
            }),
            Ok(Err(ConnectError::Unreachable { source, .. })) if is_turned_away(&source) => {
                let reason = source.to_string();
                Err(MirrorError::Refused { seed, reason })
            }
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable(format!(
                "no answer within {} s",
                CONNECT_TIMEOUT.as_secs()
            ))),
        }
    }

    /// The version of the protocol that the seed speaks.
    #[must_use]
    pub fn version(&self) -> MirrorVersion {
        self.version
    }

    /// Where the seed answered.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.seed
    }

    /// What the seed goes by: a key that each of its processes makes anew.
    #[must_use]
    pub fn seed_id(&self) -> NodeId {
        self.id
    }

    /// Asks what there is, and tells `report`.
    ///
    /// # Errors
    /// See [`MirrorError`].
    pub async fn listing(&self, report: Vec<u8>) -> Result<Listing, MirrorError> {
        let frames = self.ask(&Ask::Listing(report)).await?;
        Listing::decode(frames, self.version).map_err(|reason| self.protocol(reason))
    }

    /// Asks for the manifest of the image that `tag` names, and holds it to the tag.
    ///
    /// # Errors
    /// See [`MirrorError`].
    pub async fn manifest(&self, tag: &Tag) -> Result<Arc<Manifest>, MirrorError> {
        let frames = self.ask(&Ask::Manifest(tag.id)).await?;
        let frame = frames.first().map(Vec::as_slice).unwrap_or_default();
        let manifest = tag
            .decode_manifest(frame)
            .map_err(|error| self.protocol(error.to_string()))?;
        Ok(Arc::new(manifest))
    }

    /// Makes `node` a member of the image's swarm, in its own right: a certificate of `epoch`.
    ///
    /// # Errors
    /// The certificate could not be made.
    pub fn admit(
        &self,
        node: &Node,
        epoch: u32,
        tag: &Tag,
        manifest: Arc<Manifest>,
    ) -> Result<Joined, IdentityError> {
        let ca = SwarmCa::new(self.key.clone());
        let certificate = ca.issue_node(&node.key.public(), epoch)?;
        let identity = Identity::node(&node.key, certificate.to_vec(), &ca.public())?;
        let early = self.version == MirrorVersion::One;
        identity.gate().accept_early_seeds(early);
        Ok(Joined {
            tag: tag.clone(),
            manifest,
            identity,
            seeds: vec![self.seed],
            request: JoinRequest {
                name: tag.name.clone(),
                pin: Some(tag.id),
                token: None,
                rack: None,
            },
            admission: None,
        })
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }

    fn unreachable(&self, reason: String) -> MirrorError {
        let seed = self.seed;
        MirrorError::Unreachable { seed, reason }
    }

    /// A stream's error says that the connection was lost; the connection knows why.
    fn broken(&self, error: &dyn std::fmt::Display) -> MirrorError {
        let reason = self.connection.close_reason();
        self.unreachable(reason.map_or_else(|| error.to_string(), |reason| reason.to_string()))
    }

    fn protocol(&self, reason: String) -> MirrorError {
        let seed = self.seed;
        MirrorError::Protocol { seed, reason }
    }

    async fn ask(&self, ask: &Ask) -> Result<Vec<Vec<u8>>, MirrorError> {
        let exchange = async {
            let message = proof_message(&self.connection, self.version, self.version.asks());
            let message = message.map_err(|e| self.unreachable(e))?;
            let proof = self.key.sign(&message);
            let broken = |error: &dyn std::fmt::Display| self.broken(error);
            let opened = self.connection.open_bi().await;
            let (mut send, mut receive) = opened.map_err(|e| broken(&e))?;
            for frame in [&proof[..], &ask.encode()] {
                let written = framing::write_frame(&mut send, frame).await;
                written.map_err(|e| broken(&e))?;
            }
            send.finish().map_err(|e| broken(&e))?;
            self.read_answer(&mut receive).await
        };
        timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| {
            self.unreachable(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
        })?
    }

    /// Whether the seed has proved in its answer that it holds the swarm key. Its certificate does not
    /// say so much: that is a statement about a TLS key, which may have been stolen since.
    fn check_answer(&self, proof: &[u8]) -> Result<(), MirrorError> {
        let message = proof_message(&self.connection, self.version, ANSWER_PREFIX);
        let message = message.map_err(|e| self.unreachable(e))?;
        if self.swarm.verifies(&message, proof) {
            return Ok(());
        }
        Err(self.protocol(
            "it did not prove that it holds the swarm key (its TLS key may have been stolen from a \
             seed: `rootswarm revoke --all`)"
                .to_owned(),
        ))
    }

    async fn read_answer(&self, receive: &mut RecvStream) -> Result<Vec<Vec<u8>>, MirrorError> {
        let mut frames = Vec::new();
        loop {
            match framing::read_frame(receive, FRAME_BYTES_MAX).await {
                Ok(frame) => frames.push(frame),
                Err(FrameError::Closed) => break,
                Err(error) => return Err(self.broken(&error)),
            }
            if frames.len() > TAGS_MAX + PARTS_MAX {
                return Err(self.protocol(format!("more than {TAGS_MAX} tags")));
            }
            if frames.len() == 1 && self.version == MirrorVersion::Two {
                // Before more is taken from it.
                self.check_answer(&frames[0])?;
            }
        }
        if self.version == MirrorVersion::Two && !frames.is_empty() {
            frames.remove(0);
        }
        if frames.is_empty() {
            // Who closes the connection ends its streams first; why comes a moment later.
            return Err(
                match timeout(REASON_WITHIN, self.connection.closed()).await {
                    Ok(reason) => self.unreachable(reason.to_string()),
                    Err(_) => self.protocol("an empty answer".to_owned()),
                },
            );
        }
        let said = frames.remove(0);
        match said.split_first() {
            Some((0, [])) => Ok(frames),
            Some((1, reason)) => Err(MirrorError::Refused {
                seed: self.seed,
                reason: String::from_utf8_lossy(reason).into_owned(),
            }),
            _ => Err(self.protocol("an answer of no known kind".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
