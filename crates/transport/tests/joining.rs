//! From a newcomer to a member: on which connection, and who gets the manifest from whom. Over real QUIC
//! and real TLS on loopback.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rootswarm_image::{
    ChunkSize, ImageId, Manifest, SignedTag, SwarmKey, Tag, all_cores, hash_image,
};
use rootswarm_swarm::limits::SEED_NEIGHBOURS_MAX;
use rootswarm_swarm::{Have, Hello, Role, encode_hello};
use rootswarm_transport::identity::{Identity, NodeKey};
use rootswarm_transport::join::{self, Answer, SEND_IT, SignedRequest, Source};
use rootswarm_transport::node::{JoinRequest, Node, NodeConfig, SeedTrust};
use rootswarm_transport::retries::RetryKey;
use rootswarm_transport::seed::{Directory, Grant, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::store::FileStore;
use rootswarm_transport::tls::{Dialer, Listener, Purpose};
use rootswarm_transport::trust::SwarmTrust;
use rootswarm_transport::tuning::Tuning;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Long enough for any of it on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Admits everybody but who stands in this rack.
struct AllBut(&'static str, SignedTag);

const OUTSIDE: &str = "outside";

impl Directory for AllBut {
    fn join(&self, _: SocketAddr, _: NodeId, request: &JoinRequest) -> Result<Grant, Refusal> {
        if request.rack.as_deref() == Some(self.0) {
            return Err(Refusal::NotAdmitted("not from there".to_owned()));
        }
        Ok(Grant {
            tag: self.1.clone(),
        })
    }
}

struct Lab {
    directory: tempfile::TempDir,
    manifest: Arc<Manifest>,
    key: Arc<SwarmKey>,
    tag: Tag,
    seed: Seed,
}

impl Lab {
    /// An image with so many chunks, and a seed.
    async fn new(chunks: usize) -> Lab {
        let size = ChunkSize::from_bytes(64 * 1024).unwrap();
        let bytes: Vec<u8> = (0..chunks << 14)
            .map(|number| number as u32)
            .flat_map(u32::to_le_bytes)
            .collect();
        let manifest = Arc::new(hash_image(&bytes, size, all_cores(), &|_| {}).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("image");
        std::fs::write(&file, &bytes).unwrap();
        let key = Arc::new(SwarmKey::generate().unwrap());
        let tag = Tag {
            name: "lab".parse().unwrap(),
            id: *manifest.id(),
            length: manifest.geometry().length(),
            chunk_size: size,
            version: 1,
            epoch: 1,
        };
        let config = SeedConfig {
            listen: SocketAddr::new(LOOPBACK, 0),
            key: key.clone(),
            epoch: 1,
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        let directory_of_names = Arc::new(AllBut(OUTSIDE, tag.clone().sign(&key)));
        let seed = Seed::bind(config, directory_of_names).await.unwrap();
        let store = FileStore::open(file, manifest.geometry()).unwrap();
        seed.add_image(manifest.clone(), store);
        Lab {
            directory,
            manifest,
            key,
            tag,
            seed,
        }
    }

    fn request(&self) -> JoinRequest {
        JoinRequest {
            name: self.tag.name.clone(),
            pin: None,
            token: None,
            rack: None,
        }
    }

    async fn node(&self) -> Node {
        let config = NodeConfig {
            bind: Some(LOOPBACK),
            port: 0,
            trust: SeedTrust::Key(self.key.public()),
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        Node::bind(config).await.unwrap()
    }

    /// Waits until the seed knows so many nodes.
    async fn until_members(&self, count: u32) {
        let began = Instant::now();
        while self.seed.status()[0].peers < count {
            assert!(began.elapsed() < LIMIT, "{:?}", self.seed.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until it knows no more than so many.
    async fn until_left(&self, count: u32) {
        let began = Instant::now();
        while self.seed.status()[0].peers > count {
            assert!(began.elapsed() < LIMIT, "{:?}", self.seed.status());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A join by hand, up to where the manifest is.
    async fn newcomer(&self, holds: Option<ImageId>) -> Newcomer {
        self.newcomer_from(LOOPBACK, holds).await
    }

    async fn newcomer_from(&self, address: IpAddr, holds: Option<ImageId>) -> Newcomer {
        let (asked, answer) = self.asks(address, self.request(), holds).await;
        let Answer::Granted { certificate, .. } = answer else {
            panic!("{answer:?}");
        };
        let Asked {
            endpoint,
            key,
            connection,
            send,
            mut receive,
        } = asked;
        let source = join::decode_source(&read(&mut receive).await).unwrap();
        Newcomer {
            identity: Identity::node(&Arc::new(key), certificate, &self.key.public()).unwrap(),
            endpoint,
            source,
            send,
            receive,
            connection,
        }
    }

    /// A request by hand, and its answer.
    async fn asks(
        &self,
        address: IpAddr,
        request: JoinRequest,
        holds: Option<ImageId>,
    ) -> (Asked, Answer) {
        let endpoint = Endpoint::client((address, 0).into()).unwrap();
        let key = NodeKey::generate().unwrap();
        let trust = SwarmTrust::new(SeedTrust::Key(self.key.public()));
        let seed = self.seed.local_addr();
        let dialer = Dialer::join(trust, &Tuning::default());
        let (connection, _) = dialer.connect(&endpoint, seed, Role::Seed).await.unwrap();
        let signed = SignedRequest {
            key: key.public(),
            proof: key.prove(&connection).unwrap().to_vec(),
            request,
            holds,
        };
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        write(&mut send, &join::encode_request(&signed)).await;
        let answer = join::decode_answer(&read(&mut receive).await).unwrap();
        let asked = Asked {
            endpoint,
            key,
            connection,
            send,
            receive,
        };
        (asked, answer)
    }

    /// A member that is connected to the seed and does `manner` when it is asked for the manifest. Also
    /// counts how often it is.
    async fn member(&self, manner: Manner) -> Arc<AtomicUsize> {
        let mut newcomer = self.newcomer(None).await;
        newcomer.send.finish().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let identity = newcomer.identity.clone();
        let endpoint = newcomer.endpoint.clone();
        if !matches!(manner, Manner::Absent) {
            let retries = RetryKey::random().unwrap();
            let server = Listener::server_config(&identity, &Tuning::default(), &retries).unwrap();
            endpoint.set_server_config(Some(server));
        }
        let members = self.seed.status()[0].peers;
        let connection = newcomer.connection;
        let (control, inbox) = greet(&connection, &self.manifest).await;
        self.until_members(members + 1).await;
        tokio::spawn({
            let asked = asked.clone();
            async move {
                let _connected = (connection, control, inbox);
                let listener = Listener::new(64);
                while let Some(incoming) = endpoint.accept().await {
                    let Ok(Some((connection, Purpose::Manifest))) = listener.accept(incoming).await
                    else {
                        continue;
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    let manner = manner.clone();
                    tokio::spawn(async move { manner.answer(&connection).await });
                }
            }
        });
        asked
    }
}

struct Asked {
    endpoint: Endpoint,
    key: NodeKey,
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

struct Newcomer {
    identity: Identity,
    endpoint: Endpoint,
    source: Source,
    send: SendStream,
    receive: RecvStream,
    connection: Connection,
}

impl Newcomer {
    async fn manifest_from_seed(&mut self) -> Vec<u8> {
        self.receive.read_to_end(1 << 20).await.unwrap()
    }
}

/// What a member does when it is asked for the manifest.
#[derive(Clone)]
enum Manner {
    /// Its socket takes no connections.
    Absent,
    Silent,
    Sends(Vec<u8>),
}

impl Manner {
    async fn answer(self, connection: &Connection) {
        let Ok((mut send, _receive)) = connection.accept_bi().await else {
            return;
        };
        if let Manner::Sends(bytes) = self {
            let _ = send.write_all(&bytes).await;
            let _ = send.finish();
        }
        connection.closed().await;
    }
}

/// Opens the control stream of somebody who has the whole image.
async fn greet(connection: &Connection, manifest: &Manifest) -> (SendStream, RecvStream) {
    let (mut control, inbox) = connection.open_bi().await.unwrap();
    let hello = Hello {
        image: *manifest.id(),
        have: Have::Everything,
        rack: None,
    };
    write(&mut control, &encode_hello(&hello)).await;
    (control, inbox)
}

async fn write(send: &mut SendStream, frame: &[u8]) {
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    send.write_all(&[&length, frame].concat()).await.unwrap();
}

async fn read(receive: &mut RecvStream) -> Vec<u8> {
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    receive.read_exact(&mut frame).await.unwrap();
    frame
}

/// 160 chunks: 5 kB.
const CHUNKS: usize = 160;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_get_it_from_the_seed_and_the_others_from_members() {
    let lab = Lab::new(CHUNKS).await;
    let mut first = lab.newcomer(None).await;
    assert_eq!(first.source, Source::Follows);
    assert_eq!(first.manifest_from_seed().await, lab.manifest.encode());

    // A real node, which is named from then on, hands it on.
    let node = lab.node().await;
    let joined = node
        .join(&[lab.seed.local_addr()], &lab.request())
        .await
        .unwrap();
    let store = FileStore::open(lab.directory.path().join("image"), lab.manifest.geometry());
    let address = node.local_addr();
    let handle = node.serve(joined, Arc::new(store.unwrap())).unwrap();
    lab.until_members(1).await;
    let mut second = lab.newcomer(None).await;
    let Source::Member { node, address: at } = second.source else {
        panic!("{:?}", second.source);
    };
    assert_eq!(at, address);

    let ask = |image: ImageId| {
        let dialer = Dialer::manifest(second.identity.clone(), &Tuning::default());
        let endpoint = second.endpoint.clone();
        async move {
            let (connection, peer) = dialer.connect(&endpoint, at, Role::Peer).await.unwrap();
            assert_eq!(peer.node_id, node);
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            write(&mut send, image.as_bytes()).await;
            receive.read_to_end(1 << 20).await
        }
    };
    let found = ask(*lab.manifest.id()).await.unwrap();
    assert_eq!(found, lab.manifest.encode());
    assert!(ask(ImageId::from_bytes([7; 32])).await.is_err());

    // Who is not served there asks the seed.
    write(&mut second.send, SEND_IT).await;
    assert_eq!(second.manifest_from_seed().await, lab.manifest.encode());
    // Who has it already gets nothing.
    let mut third = lab.newcomer(Some(*lab.manifest.id())).await;
    assert_eq!(third.source, Source::Held);
    assert_eq!(third.receive.read_to_end(1).await.unwrap(), b"");
    handle.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_manifest_is_not_worth_the_way() {
    let lab = Lab::new(8).await;
    lab.member(Manner::Sends(lab.manifest.encode())).await;
    let newcomer = lab.newcomer(None).await;
    assert_eq!(newcomer.source, Source::Follows);
}

/// Whatever the member does, the node joins, with the right manifest and soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_no_help_costs_a_moment() {
    let other = Lab::new(CHUNKS + 1).await.manifest.encode();
    let mut cut = Lab::new(CHUNKS).await.manifest.encode();
    cut.pop();
    for (what, manner, is_asked) in [
        ("honest", None, true),
        ("absent", Some(Manner::Absent), false),
        ("silent", Some(Manner::Silent), true),
        ("another image's", Some(Manner::Sends(other)), true),
        ("cut off", Some(Manner::Sends(cut)), true),
        ("too long", Some(Manner::Sends(vec![7; 1 << 20])), true),
        ("empty", Some(Manner::Sends(Vec::new())), true),
    ] {
        let lab = Lab::new(CHUNKS).await;
        let honest = Manner::Sends(lab.manifest.encode());
        let asked = lab.member(manner.unwrap_or(honest)).await;
        let node = lab.node().await;
        let began = Instant::now();
        let joined = node
            .join(&[lab.seed.local_addr()], &lab.request())
            .await
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        // The head start and the way there, on a busy machine.
        assert!(began.elapsed() < Duration::from_secs(3), "{what}");
        assert_eq!(joined.manifest.encode(), lab.manifest.encode(), "{what}");
        let asked = asked.load(Ordering::Relaxed);
        assert_eq!(asked, usize::from(is_asked), "{what}");
    }
}

/// Carries datagrams between one node and a seed, and counts the connections: the ids that the node
/// chose for itself in QUIC's first packets (RFC 9000, 17.2.2).
struct Relay {
    address: SocketAddr,
    connections: Arc<Mutex<BTreeSet<Vec<u8>>>>,
    /// The longest datagram from the seed.
    longest_bytes: Arc<AtomicUsize>,
}

impl Relay {
    async fn to(seed: SocketAddr) -> Relay {
        let outside = tokio::net::UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        let inside = tokio::net::UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        inside.connect(seed).await.unwrap();
        let relay = Relay {
            address: outside.local_addr().unwrap(),
            connections: Arc::default(),
            longest_bytes: Arc::default(),
        };
        let connections = relay.connections.clone();
        let longest_bytes = relay.longest_bytes.clone();
        tokio::spawn(async move {
            let (mut there, mut back) = ([0; 2048], [0; 2048]);
            let mut node = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = outside.recv_from(&mut there) => {
                        node = Some(from);
                        let datagram = &there[..length];
                        if let Some(id) = source_of_initial(datagram) {
                            connections.lock().unwrap().insert(id);
                        }
                        let _ = inside.send(datagram).await;
                    }
                    Ok(length) = inside.recv(&mut back) => {
                        longest_bytes.fetch_max(length, Ordering::Relaxed);
                        if let Some(node) = node {
                            let _ = outside.send_to(&back[..length], node).await;
                        }
                    }
                }
            }
        });
        relay
    }
}

fn source_of_initial(datagram: &[u8]) -> Option<Vec<u8>> {
    let (first, rest) = datagram.split_first()?;
    if first & 0xf0 != 0xc0 {
        return None;
    }
    let destination = usize::from(*rest.get(4)?);
    let rest = rest.get(5 + destination..)?;
    let (length, rest) = rest.split_first()?;
    rest.get(..usize::from(*length)).map(<[u8]>::to_vec)
}

/// A second connection costs the seed a handshake and 3 kB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stays_on_the_connection_on_which_it_joined() {
    let lab = Lab::new(8).await;
    let relay = Relay::to(lab.seed.local_addr()).await;
    let node = lab.node().await;
    let joined = node.join(&[relay.address], &lab.request()).await.unwrap();
    let store = FileStore::open(lab.directory.path().join("image"), lab.manifest.geometry());
    let handle = node.serve(joined, Arc::new(store.unwrap())).unwrap();
    lab.until_members(1).await;
    assert_eq!(relay.connections.lock().unwrap().len(), 1);
    handle.shutdown(Duration::ZERO).await;
}

/// Each try costs the seed a full packet, and of a crowd few ever get a chunk from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_paths_mtu_is_tried_for_those_that_are_handed_chunks() {
    let lab = Lab::new(8).await;
    let mut members = Vec::new();
    for (crowd, is_tried) in [(0, true), (SEED_NEIGHBOURS_MAX, false)] {
        while members.len() < crowd {
            let address = Ipv4Addr::new(127, 0, 1, (members.len() / 32) as u8);
            let mut member = lab.newcomer_from(address.into(), None).await;
            member.send.finish().unwrap();
            let control = greet(&member.connection, &lab.manifest).await;
            members.push((member, control));
        }
        lab.until_members(crowd as u32).await;
        let relay = Relay::to(lab.seed.local_addr()).await;
        let node = lab.node().await;
        let joined = node.join(&[relay.address], &lab.request()).await.unwrap();
        let store = FileStore::open(lab.directory.path().join("image"), lab.manifest.geometry());
        let handle = node.serve(joined, Arc::new(store.unwrap())).unwrap();
        lab.until_members(crowd as u32 + 1).await;
        // It is tried as soon as the handshake is done, before the request is answered.
        let longest_bytes = relay.longest_bytes.load(Ordering::Relaxed);
        assert_eq!(
            longest_bytes > 1_200,
            is_tried,
            "{longest_bytes} bytes, {crowd} members"
        );
        handle.shutdown(Duration::ZERO).await;
        lab.until_left(crowd as u32).await;
    }
}

/// Who goes away between the two, is silent or was refused is no member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_was_granted_it_becomes_a_member() {
    let lab = Lab::new(8).await;
    let request = JoinRequest {
        rack: Some(OUTSIDE.to_owned()),
        ..lab.request()
    };
    let (refused, answer) = lab.asks(LOOPBACK, request, None).await;
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    let _refused = greet(&refused.connection, &lab.manifest).await;
    let mut gone = lab.newcomer(None).await;
    gone.send.finish().unwrap();
    gone.connection.close(0u32.into(), b"");
    let silent = lab.newcomer(None).await;
    tokio::time::timeout(LIMIT, silent.connection.closed())
        .await
        .unwrap();
    assert_eq!(lab.seed.status()[0].peers, 0);

    // The first stream is the request's, whatever comes on it.
    let endpoint = Endpoint::client((LOOPBACK, 0).into()).unwrap();
    let trust = SwarmTrust::new(SeedTrust::Key(lab.key.public()));
    let dialer = Dialer::join(trust, &Tuning::default());
    let seed = lab.seed.local_addr();
    let (connection, _) = dialer.connect(&endpoint, seed, Role::Seed).await.unwrap();
    let _greeted = greet(&connection, &lab.manifest).await;
    connection.closed().await;
    assert_eq!(lab.seed.status()[0].peers, 0);

    let mut granted = lab.newcomer(None).await;
    granted.send.finish().unwrap();
    let _granted = greet(&granted.connection, &lab.manifest).await;
    lab.until_members(1).await;
}
