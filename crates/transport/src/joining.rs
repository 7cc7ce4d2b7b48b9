//! One attempt to join: which of several seeds is asked, and when.
//!
//! *Connecting* is a race. Each seed has a head start of [`HEAD_START`] over the next one, so that the
//! first of the rooturl is taken where it is there, and one that is dead costs a fraction of a second.
//! A seed that fails, or that is not to be trusted, lets the next one begin at once.
//!
//! *Asking* is not: a request shows a token, and a one-time token must not be used up at two seeds.
//! Whoever is connected asks only when nobody else is waiting for an answer, or has been for too long.
//!
//! The manifest comes from the seed or from a member that it names. A member has a head start of
//! [`handing_on::HEAD_START`]; then the seed is asked for it as well, so that a member that is gone, slow or
//! up to no good costs that long.
//!
//! An attempt comes to a refusal only when every seed has refused: the one that would have let this node
//! in may just be rebooting. A refusal is no end either: whether to make another attempt is the caller's
//! to say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, ReadToEndError, RecvStream, SendStream, VarInt};
use rootswarm_image::{Manifest, SignedTag, Tag};
use rootswarm_swarm::Role;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::framing;
use crate::handing_on;
use crate::identity::{Identity, NodeKey};
use crate::join::{
    self, ANSWER_BYTES_MAX, Answer, JoinRequest, Refusal, SEND_IT, SOURCE_BYTES_MAX, SignedRequest,
    Source,
};
use crate::node::{CONNECT_TIMEOUT, JoinError, Joined, Node};
use crate::tls::{ConnectError, Dialer};
use crate::trust::{PeerIdentity, SwarmTrust};
use crate::tuning::Tuning;

/// How long a seed has to itself before the next one is tried beside it. A handshake on a LAN takes
/// a few milliseconds; a first packet that was lost is sent again within this time.
const HEAD_START: Duration = Duration::from_millis(300);

/// For a seed's answer, the manifest (at most 4 MiB) included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a seed may think before the next one is asked as well, where no token is shown.
const ANSWER_HEAD_START: Duration = Duration::from_secs(1);

/// The same where a token is shown: longer, because the first seed may have used it up. It is bound
/// to this node's key then, so that not even both together let a second machine in.
const ANSWER_HEAD_START_TOKEN: Duration = Duration::from_secs(4);

/// Asks `seeds` until one lets this node join.
pub(crate) async fn first_of(
    node: &Node,
    seeds: &[SocketAddr],
    request: &JoinRequest,
) -> Result<Joined, JoinError> {
    let floor = Arc::new(Mutex::new(()));
    let mut attempts = JoinSet::new();
    let mut waiting = seeds.iter().enumerate();
    let mut failed: Vec<(usize, JoinError)> = Vec::new();
    let mut next_at = Instant::now();
    let mut more = true;
    loop {
        tokio::select! {
            biased;
            Some(ended) = attempts.join_next() => match ended {
                // Its floor is given up when the other attempts are gone: they are never told to
                // go on.
                Ok((_, Ok((answer, floor)))) => {
                    let Answered { joined, trust }: Answered = answer;
                    node.trust.adopt(&trust);
                    attempts.shutdown().await;
                    drop::<Option<OwnedMutexGuard<()>>>(floor);
                    return Ok(joined);
                }
                Ok((place, Err(error))) => {
                    tracing::debug!(seed = %seeds[place], %error, "join failed");
                    failed.push((place, error));
                    next_at = Instant::now();
                }
                // An attempt is cancelled only by the end of this function; a panic is a bug that
                // ends the others' waiting as well.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            },
            () = sleep_until(next_at), if more => match waiting.next() {
                Some((place, seed)) => {
                    let attempt = Attempt::new(node, *seed, seeds, request);
                    let floor = floor.clone();
                    attempts.spawn(async move { (place, attempt.run(Some(floor)).await) });
                    next_at = Instant::now() + HEAD_START;
                }
                None => more = false,
            },
            else => return Err(verdict(failed)),
        }
    }
}

/// What failed attempts come to.
fn verdict(mut failed: Vec<(usize, JoinError)>) -> JoinError {
    failed.sort_by_key(|(place, _)| *place);
    let (network, refused): (Vec<_>, Vec<_>) = failed
        .into_iter()
        .map(|(_, error)| error)
        .partition(JoinError::is_retryable);
    match (network.into_iter().last(), refused.into_iter().next()) {
        (Some(network), Some(refused)) => JoinError::Undecided {
            refused: Box::new(refused),
            network: Box::new(network),
        },
        (Some(error), None) | (None, Some(error)) => error,
        (None, None) => JoinError::NoSeeds,
    }
}

/// Where a node was admitted, and stays as a member: the seed knows its key by the proof, and the node
/// the seed's by its certificate. A second connection would cost the seed another handshake, and 3 kB
/// of its link. It ends with this value, unless somebody takes it over.
pub(crate) struct Admission {
    pub(crate) address: SocketAddr,
    pub(crate) connection: Connection,
    pub(crate) seed: PeerIdentity,
}

/// An answer that holds.
pub(crate) struct Answered {
    pub(crate) joined: Joined,
    /// What was learnt of the seed's key on the way.
    pub(crate) trust: SwarmTrust,
}

/// One seed, asked once.
pub(crate) struct Attempt {
    endpoint: Endpoint,
    key: Arc<NodeKey>,
    trust: SwarmTrust,
    tuning: Tuning,
    request: JoinRequest,
    seed: SocketAddr,
    seeds: Vec<SocketAddr>,
    /// The manifest that this node has already.
    held: Option<Arc<Manifest>>,
}

/// A grant, checked, and the stream on which the manifest may come.
struct Granted {
    tag: Tag,
    identity: Identity,
    source: Source,
    stream: (SendStream, RecvStream),
}

impl Attempt {
    /// What is learnt of the seed's key is this attempt's own: a seed of which nothing comes does
    /// not keep the node from the others.
    pub(crate) fn new(
        node: &Node,
        seed: SocketAddr,
        seeds: &[SocketAddr],
        request: &JoinRequest,
    ) -> Attempt {
        Attempt {
            endpoint: node.endpoint.clone(),
            key: node.key.clone(),
            trust: node.trust.detached(),
            tuning: node.tuning,
            request: request.clone(),
            seed,
            seeds: seeds.to_vec(),
            held: None,
        }
    }

    /// To join anew, with the manifest of the last time.
    pub(crate) fn holding(mut self, manifest: Arc<Manifest>) -> Attempt {
        self.held = Some(manifest);
        self
    }

    /// Connects, waits for the floor if others want to ask too, asks, and checks the answer. The floor
    /// comes back with an answer that holds: nobody else is to ask any more.
    pub(crate) async fn run(
        self,
        floor: Option<Arc<Mutex<()>>>,
    ) -> Result<(Answered, Option<OwnedMutexGuard<()>>), JoinError> {
        let seed = self.seed;
        let dialer = Dialer::join(self.trust.clone(), &self.tuning);
        let (connection, identity) = timeout(
            CONNECT_TIMEOUT,
            dialer.connect(&self.endpoint, seed, Role::Seed),
        )
        .await
        .map_err(|_| self.silent(CONNECT_TIMEOUT))?
        .map_err(|error| from_connect(seed, error))?;
        let patience = match self.request.token {
            Some(_) => ANSWER_HEAD_START_TOKEN,
            None => ANSWER_HEAD_START,
        };
        let floor = match floor {
            Some(floor) => timeout(patience, floor.lock_owned()).await.ok(),
            None => None,
        };
        let asked = timeout(ANSWER_TIMEOUT, self.ask(&connection)).await;
        let asked = asked.unwrap_or_else(|_| Err(self.silent(ANSWER_TIMEOUT)));
        let mut joined = match asked {
            Ok(joined) => joined,
            Err(error) => {
                connection.close(VarInt::from_u32(0), b"not joined");
                return Err(error);
            }
        };
        let early = identity.epoch.is_none();
        joined.identity.gate().accept_early_seeds(early);
        joined.admission = Some(Admission {
            address: seed,
            connection,
            seed: identity,
        });
        let trust = self.trust;
        Ok((Answered { joined, trust }, floor))
    }

    fn unreachable(&self, reason: String) -> JoinError {
        let seed = self.seed;
        JoinError::Unreachable { seed, reason }
    }

    fn silent(&self, limit: Duration) -> JoinError {
        self.unreachable(format!("no answer within {} s", limit.as_secs()))
    }

    fn protocol(&self, reason: String) -> JoinError {
        let seed = self.seed;
        JoinError::Protocol { seed, reason }
    }

    /// Asks, and gets everything that makes a member.
    async fn ask(&self, connection: &Connection) -> Result<Joined, JoinError> {
        let Granted {
            tag,
            identity,
            source,
            mut stream,
        } = self.request(connection).await?;
        let manifest = match source {
            Source::Follows => self.read_manifest(&tag, &mut stream).await?,
            Source::Held => {
                let held = self.held.clone();
                held.filter(|manifest| *manifest.id() == tag.id)
                    .ok_or_else(|| self.protocol("no manifest, and none was held".to_owned()))?
            }
            Source::Member { node, address } => {
                let dialer = Dialer::manifest(identity.clone(), &self.tuning);
                let member = handing_on::ask(&self.endpoint, &dialer, (node, address), &tag);
                self.manifest_of(member, &tag, &mut stream).await?
            }
        };
        // Thanks: that is all. It fails only if the seed wants no more of this stream either.
        let _ = stream.0.finish();
        Ok(Joined {
            tag,
            manifest,
            identity,
            seeds: self.seeds.clone(),
            request: self.request.clone(),
            admission: None,
        })
    }

    /// One request and its answer, held to the swarm key, the request and each other.
    async fn request(&self, connection: &Connection) -> Result<Granted, JoinError> {
        let seed = self.seed;
        let broken = |error: &dyn std::fmt::Display| self.unreachable(error.to_string());
        let proof = self.key.prove(connection).map_err(|error| broken(&error))?;
        let signed = SignedRequest {
            key: self.key.public(),
            proof: proof.to_vec(),
            request: self.request.clone(),
            holds: self.held.as_ref().map(|manifest| *manifest.id()),
        };
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| broken(&error))?;
        framing::write_frame(&mut send, &join::encode_request(&signed))
            .await
            .map_err(|error| broken(&error))?;
        let frame = framing::read_frame(&mut receive, ANSWER_BYTES_MAX)
            .await
            .map_err(|error| broken(&error))?;
        let answer =
            join::decode_answer(&frame).map_err(|error| self.protocol(error.to_string()))?;
        let (certificate, tag) = match answer {
            Answer::Granted { certificate, tag } => (certificate, tag),
            Answer::Refused(Refusal::PinMismatch { current }) => {
                return Err(JoinError::PinMismatch {
                    seed,
                    expected: self.request.pin.unwrap_or(current),
                    found: current,
                });
            }
            Answer::Refused(refusal) => return Err(JoinError::Refused { seed, refusal }),
        };
        let (tag, identity) = self.check(certificate, &tag)?;
        let frame = framing::read_frame(&mut receive, SOURCE_BYTES_MAX)
            .await
            .map_err(|error| broken(&error))?;
        let source =
            join::decode_source(&frame).map_err(|error| self.protocol(error.to_string()))?;
        Ok(Granted {
            tag,
            identity,
            source,
            stream: (send, receive),
        })
    }

    fn check(&self, certificate: Vec<u8>, tag: &[u8]) -> Result<(Tag, Identity), JoinError> {
        let seed = self.seed;
        let swarm = self
            .trust
            .key()
            .ok_or_else(|| self.protocol("no swarm key".to_owned()))?;
        let signed = SignedTag::decode(tag).map_err(|source| JoinError::Tag { seed, source })?;
        let tag = signed
            .verify(&swarm, &self.request.name)
            .map_err(|source| JoinError::Tag { seed, source })?;
        if let Some(expected) = self.request.pin.filter(|pin| *pin != tag.id) {
            return Err(JoinError::PinMismatch {
                seed,
                expected,
                found: tag.id,
            });
        }
        let identity = Identity::node(&self.key, certificate, &swarm)
            .map_err(|error| self.protocol(error.to_string()))?;
        Ok((tag, identity))
    }

    /// From a member, or else from the seed.
    async fn manifest_of(
        &self,
        member: impl Future<Output = Result<Manifest, String>>,
        tag: &Tag,
        stream: &mut (SendStream, RecvStream),
    ) -> Result<Arc<Manifest>, JoinError> {
        tokio::pin!(member);
        let mut from_member = timeout(handing_on::HEAD_START, &mut member).await.ok();
        match &from_member {
            Some(Ok(_)) => {}
            Some(Err(reason)) => tracing::debug!(%reason, "no manifest from a member"),
            None => tracing::debug!("no manifest from a member yet"),
        }
        let seed = async {
            framing::write_frame(&mut stream.0, SEND_IT)
                .await
                .map_err(|error| self.unreachable(error.to_string()))?;
            self.read_manifest(tag, stream).await
        };
        tokio::pin!(seed);
        // Whoever is first. If the seed fails, there is still the member, and the other way about.
        if from_member.is_none() {
            tokio::select! {
                found = &mut member => from_member = Some(found),
                found = &mut seed => match found {
                    Ok(manifest) => return Ok(manifest),
                    Err(error) => return member.await.map(Arc::new).map_err(|_| error),
                },
            }
        }
        match from_member {
            Some(Ok(manifest)) => Ok(Arc::new(manifest)),
            _ => seed.await,
        }
    }

    async fn read_manifest(
        &self,
        tag: &Tag,
        (_, receive): &mut (SendStream, RecvStream),
    ) -> Result<Arc<Manifest>, JoinError> {
        let most = Manifest::max_encoded_len(tag.length, tag.chunk_size).unwrap_or(0);
        let bytes = receive
            .read_to_end(most)
            .await
            .map_err(|error| match error {
                ReadToEndError::TooLong => {
                    self.protocol("its manifest is longer than its tag says".to_owned())
                }
                ReadToEndError::Read(error) => self.unreachable(error.to_string()),
            })?;
        let manifest = tag.decode_manifest(&bytes);
        manifest
            .map(Arc::new)
            .map_err(|error| self.protocol(error.to_string()))
    }
}

fn from_connect(seed: SocketAddr, error: ConnectError) -> JoinError {
    match error {
        ConnectError::Untrusted { source, .. } => JoinError::Trust { seed, source },
        ConnectError::RefusedByPeer { reason, .. } => JoinError::Refused {
            seed,
            refusal: Refusal::NotAdmitted(reason),
        },
        ConnectError::NoCommonProtocol { .. } | ConnectError::Tls(_) => JoinError::Protocol {
            seed,
            reason: error.to_string(),
        },
        ConnectError::Unreachable { source, .. } => JoinError::Unreachable {
            seed,
            reason: source.to_string(),
        },
        ConnectError::Dial { source, .. } => JoinError::Unreachable {
            seed,
            reason: source.to_string(),
        },
    }
}
