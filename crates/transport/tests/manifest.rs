//! Who gets the manifest from whom, over real QUIC and real TLS on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rootswarm_image::{
    ChunkSize, ImageId, Manifest, SignedTag, SwarmKey, Tag, all_cores, hash_image,
};
use rootswarm_swarm::{Have, Hello, Role, encode_hello};
use rootswarm_transport::identity::{Identity, NodeKey};
use rootswarm_transport::join::{self, Answer, SEND_IT, SignedRequest, Source};
use rootswarm_transport::node::{JoinRequest, Node, NodeConfig, SeedTrust};
use rootswarm_transport::seed::{Directory, Grant, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::store::FileStore;
use rootswarm_transport::tls::{Dialer, Listener, Purpose};
use rootswarm_transport::trust::SwarmTrust;
use rootswarm_transport::tuning::Tuning;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Long enough for any of it on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

struct Everybody(SignedTag);

impl Directory for Everybody {
    fn join(&self, _: SocketAddr, _: NodeId, _: &JoinRequest) -> Result<Grant, Refusal> {
        Ok(Grant {
            tag: self.0.clone(),
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
        let directory_of_names = Arc::new(Everybody(tag.clone().sign(&key)));
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

    /// A join by hand, up to where the manifest is.
    async fn newcomer(&self, holds: Option<ImageId>) -> Newcomer {
        let endpoint = Endpoint::client((LOOPBACK, 0).into()).unwrap();
        let key = NodeKey::generate().unwrap();
        let trust = SwarmTrust::new(SeedTrust::Key(self.key.public()));
        let seed = self.seed.local_addr();
        let dialer = Dialer::join(trust, &Tuning::default());
        let (connection, _) = dialer.connect(&endpoint, seed, Role::Seed).await.unwrap();
        let signed = SignedRequest {
            key: key.public(),
            proof: key.prove(&connection).unwrap().to_vec(),
            request: self.request(),
            holds,
        };
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        write(&mut send, &join::encode_request(&signed)).await;
        let answer = join::decode_answer(&read(&mut receive).await).unwrap();
        let Answer::Granted { certificate, .. } = answer else {
            panic!("{answer:?}");
        };
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

    /// A member that is connected to the seed and does `manner` when it is asked for the manifest. Also
    /// counts how often it is.
    async fn member(&self, manner: Manner) -> Arc<AtomicUsize> {
        let newcomer = self.newcomer(None).await;
        newcomer.connection.close(0u32.into(), b"joined");
        let asked = Arc::new(AtomicUsize::new(0));
        let identity = newcomer.identity.clone();
        let endpoint = newcomer.endpoint.clone();
        if !matches!(manner, Manner::Absent) {
            let server = Listener::server_config(&identity, &Tuning::default()).unwrap();
            endpoint.set_server_config(Some(server));
        }
        let members = self.seed.status()[0].peers;
        let dialer = Dialer::data(identity, &Tuning::default());
        let seed = self.seed.local_addr();
        let (connection, _) = dialer.connect(&endpoint, seed, Role::Seed).await.unwrap();
        let (mut control, inbox) = connection.open_bi().await.unwrap();
        let hello = Hello {
            image: *self.manifest.id(),
            have: Have::Everything,
            rack: None,
        };
        write(&mut control, &encode_hello(&hello)).await;
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
    third.connection.close(0u32.into(), b"joined");
    assert!(third.receive.read_to_end(1).await.is_err());
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
