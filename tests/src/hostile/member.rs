//! A member of the swarm by hand: admitted like any node, then left to its own devices.
//!
//! It is made of the transport's identity parts and bare QUIC: what honest nodes never send is
//! written here byte by byte. What it sends is the attack's ([`super::attack`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use rootswarm_image::{ImageId, ImageName, Manifest, RootUrl};
use rootswarm_swarm::{Have, Hello, Message, Role, decode_message, encode_hello};
use rootswarm_transport::identity::{Identity, NodeKey};
use rootswarm_transport::join::{self, Answer, JoinRequest, Refusal, SignedRequest, Source};
use rootswarm_transport::tls::Dialer;
use rootswarm_transport::trust::{SeedTrust, SwarmTrust};
use rootswarm_transport::tuning::Tuning;
use tokio::time::timeout;

/// For anything that an honest program answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why something did not work that has to, so that there is an attack at all.
#[derive(Debug, thiserror::Error)]
pub enum OutlawError {
    /// The seed said no.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl OutlawError {
    fn other(error: impl std::fmt::Display) -> Self {
        OutlawError::Other(error.to_string())
    }
}

/// The image that is attacked, and where its seed is.
#[derive(Clone, Debug)]
pub struct Prey {
    /// The seed's address.
    pub seed: SocketAddr,
    /// The image's name.
    pub name: ImageName,
    /// Its id.
    pub pin: Option<ImageId>,
}

impl Prey {
    /// What `url` names, at the seed at `seed`.
    ///
    /// # Errors
    /// When it is no `swarm://` URL.
    pub fn of(url: &str, seed: SocketAddr) -> Result<Self, OutlawError> {
        match url.parse() {
            Ok(RootUrl::Swarm { name, pin, .. }) => Ok(Prey { seed, name, pin }),
            _ => Err(OutlawError::Other(format!("{url} names no swarm"))),
        }
    }
}

/// Admitted under a key of its own.
pub struct Outlaw {
    /// Its socket.
    pub endpoint: Endpoint,
    /// The image's manifest.
    pub manifest: Manifest,
    identity: Identity,
}

/// A connection with both halves of its control stream.
pub struct Member {
    /// The connection.
    pub connection: Connection,
    /// What this side says.
    pub control: SendStream,
    /// What the other side says.
    pub inbox: RecvStream,
}

/// A client's socket at an address of its own.
///
/// # Errors
/// When the address cannot be bound.
pub fn endpoint(from: IpAddr) -> Result<Endpoint, OutlawError> {
    Endpoint::client((from, 0).into()).map_err(OutlawError::other)
}

impl Outlaw {
    /// Joins as any node does.
    ///
    /// # Errors
    /// The seed's refusal, or no answer.
    pub async fn join(from: IpAddr, prey: &Prey, token: Option<&str>) -> Result<Self, OutlawError> {
        let key = NodeKey::generate().map_err(OutlawError::other)?;
        let endpoint = endpoint(from)?;
        let trust = SwarmTrust::new(SeedTrust::FirstUse);
        let dialer = Dialer::join(trust.clone(), &Tuning::default());
        let exchange = async {
            let (connection, _) = dialer
                .connect(&endpoint, prey.seed, Role::Seed)
                .await
                .map_err(OutlawError::other)?;
            let proof = key.prove(&connection).map_err(OutlawError::other)?;
            let request = SignedRequest {
                key: key.public(),
                proof: proof.to_vec(),
                request: JoinRequest {
                    name: prey.name.clone(),
                    pin: prey.pin,
                    token: token.map(str::to_owned),
                    rack: None,
                },
                holds: None,
            };
            let (mut send, mut receive) = connection.open_bi().await.map_err(OutlawError::other)?;
            send.write_all(&framed(&join::encode_request(&request)))
                .await
                .map_err(OutlawError::other)?;
            let frame = read_frame(&mut receive).await?;
            let manifest = match join::decode_answer(&frame).map_err(OutlawError::other)? {
                Answer::Refused(refusal) => return Err(OutlawError::Refused(refusal)),
                answer @ Answer::Granted { .. } => {
                    let frame = read_frame(&mut receive).await?;
                    let source = join::decode_source(&frame).map_err(OutlawError::other)?;
                    if let Source::Member { .. } = source {
                        send.write_all(&framed(join::SEND_IT))
                            .await
                            .map_err(OutlawError::other)?;
                    }
                    let bytes = receive
                        .read_to_end(4 << 20)
                        .await
                        .map_err(OutlawError::other)?;
                    (answer, bytes)
                }
            };
            connection.close(0u32.into(), b"joined");
            Ok(manifest)
        };
        let (answer, manifest) = timeout(PATIENCE, exchange)
            .await
            .map_err(|_| OutlawError::Other("no answer to a join".to_owned()))??;
        let Answer::Granted { certificate, tag } = answer else {
            return Err(OutlawError::Other("no grant".to_owned()));
        };
        let tag = rootswarm_image::SignedTag::decode(&tag).map_err(OutlawError::other)?;
        let manifest = tag
            .unverified()
            .decode_manifest(&manifest)
            .map_err(OutlawError::other)?;
        let swarm = trust
            .key()
            .ok_or_else(|| OutlawError::Other("no swarm key was learnt".to_owned()))?;
        let identity =
            Identity::node(&Arc::new(key), certificate, &swarm).map_err(OutlawError::other)?;
        Ok(Outlaw {
            endpoint,
            manifest,
            identity,
        })
    }

    /// A data connection, which nothing has been said on.
    ///
    /// # Errors
    /// When there is none.
    pub async fn connect(
        &self,
        to: SocketAddr,
        role: Role,
        transport: Option<Arc<TransportConfig>>,
    ) -> Result<Connection, OutlawError> {
        let mut dialer = Dialer::data(self.identity.clone(), &Tuning::default());
        if let Some(transport) = transport {
            dialer = dialer.with_transport(transport);
        }
        let connecting = dialer.connect(&self.endpoint, to, role);
        let (connection, _) = timeout(PATIENCE, connecting)
            .await
            .map_err(|_| OutlawError::Other("no handshake".to_owned()))?
            .map_err(OutlawError::other)?;
        Ok(connection)
    }

    /// A data connection with a hello that claims `have`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn meet(
        &self,
        to: SocketAddr,
        role: Role,
        have: Have,
        transport: Option<Arc<TransportConfig>>,
    ) -> Result<Member, OutlawError> {
        let connection = self.connect(to, role, transport).await?;
        let (mut control, inbox) = connection.open_bi().await.map_err(OutlawError::other)?;
        let hello = Hello {
            image: *self.manifest.id(),
            have,
            rack: None,
        };
        control
            .write_all(&framed(&encode_hello(&hello)))
            .await
            .map_err(OutlawError::other)?;
        Ok(Member {
            connection,
            control,
            inbox,
        })
    }
}

impl Member {
    /// Says what is given, as it is.
    ///
    /// # Errors
    /// The end of the connection.
    pub async fn say(&mut self, bytes: &[u8]) -> Result<(), OutlawError> {
        self.control
            .write_all(bytes)
            .await
            .map_err(OutlawError::other)
    }
}

/// A frame with its length in front.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    // Frames of the protocol are far below 4 GiB.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], frame].concat()
}

/// The next message from the other side; its hello is skipped.
///
/// # Errors
/// The end of the connection.
pub async fn hear(inbox: &mut RecvStream) -> Result<Message, OutlawError> {
    loop {
        // A hello is the only frame that begins with the image's id, and is no message.
        if let Ok(message) = decode_message(&read_frame(inbox).await?) {
            return Ok(message);
        }
    }
}

async fn read_frame(stream: &mut RecvStream) -> Result<Vec<u8>, OutlawError> {
    let mut prefix = [0; 4];
    stream
        .read_exact(&mut prefix)
        .await
        .map_err(OutlawError::other)?;
    let mut frame = vec![0; u32::from_be_bytes(prefix).min(1 << 20) as usize];
    stream
        .read_exact(&mut frame)
        .await
        .map_err(OutlawError::other)?;
    Ok(frame)
}
