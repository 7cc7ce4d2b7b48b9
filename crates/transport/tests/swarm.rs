//! A seed and nodes over real QUIC and real TLS on loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rootswarm_image::{
    ChunkIndex, ChunkSize, ImageId, ImageName, Manifest, SignedTag, SwarmKey, Tag, all_cores,
    hash_image,
};
use rootswarm_transport::node::{JoinError, JoinRequest, Node, NodeConfig, SeedTrust, SwarmHandle};
use rootswarm_transport::seed::{Directory, Grant, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::store::{ChunkSource, ChunkStore, FileStore};
use rootswarm_transport::tuning::Tuning;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(60);

/// One name, one image, everybody may join.
struct OneImage(SignedTag);

impl Directory for OneImage {
    fn join(
        &self,
        _from: SocketAddr,
        _node: NodeId,
        request: &JoinRequest,
    ) -> Result<Grant, Refusal> {
        let tag = self.0.unverified();
        if request.name != tag.name {
            return Err(Refusal::UnknownImage);
        }
        match request.pin {
            Some(pin) if pin != tag.id => Err(Refusal::PinMismatch { current: tag.id }),
            _ => Ok(Grant {
                tag: self.0.clone(),
            }),
        }
    }
}

struct Lab {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
    manifest: Arc<Manifest>,
    key: Arc<SwarmKey>,
    name: ImageName,
}

impl Lab {
    /// An image of `length` bytes that do not repeat.
    fn new(length: usize) -> Lab {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(length);
        let size = ChunkSize::from_bytes(64 * 1024).unwrap();
        let manifest = hash_image(&bytes, size, all_cores(), &|_| {}).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("image"), &bytes).unwrap();
        Lab {
            directory,
            bytes,
            manifest: Arc::new(manifest),
            key: Arc::new(SwarmKey::generate().unwrap()),
            name: "lab".parse().unwrap(),
        }
    }

    async fn seed(&self, limit: Option<u64>) -> Seed {
        let tag = Tag {
            name: self.name.clone(),
            id: *self.manifest.id(),
            length: self.manifest.geometry().length(),
            chunk_size: self.manifest.geometry().chunk_size(),
            version: 1,
            epoch: 1,
        };
        let config = SeedConfig {
            listen: SocketAddr::new(LOOPBACK, 0),
            key: self.key.clone(),
            epoch: 1,
            upload_limit_bytes_per_s: limit,
            tuning: Tuning::default(),
        };
        let seed = Seed::bind(config, Arc::new(OneImage(tag.sign(&self.key))))
            .await
            .unwrap();
        let store = FileStore::open(
            self.directory.path().join("image"),
            self.manifest.geometry(),
        );
        seed.add_image(self.manifest.clone(), store.unwrap());
        seed
    }

    fn request(&self) -> JoinRequest {
        let pin = Some(*self.manifest.id());
        JoinRequest {
            name: self.name.clone(),
            pin,
            token: None,
            rack: None,
        }
    }

    fn config(&self) -> NodeConfig {
        NodeConfig {
            bind: Some(LOOPBACK),
            port: 0,
            trust: SeedTrust::Key(self.key.public()),
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        }
    }

    async fn fetch(&self, seed: SocketAddr, file: &str) -> SwarmHandle {
        let node = Node::bind(self.config()).await.unwrap();
        let joined = node.join(&[seed], &self.request()).await.unwrap();
        let store = ChunkStore::create(self.path(file), joined.manifest.clone()).unwrap();
        node.start(joined, store).unwrap()
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.directory.path().join(file)
    }

    fn check(&self, file: &str) {
        let found = std::fs::read(self.path(file)).unwrap();
        assert!(found == self.bytes, "{file} differs from the image");
    }
}

async fn complete(handle: &SwarmHandle) {
    match tokio::time::timeout(LIMIT, handle.completed()).await {
        Ok(result) => result.unwrap(),
        Err(_) => panic!("not complete within {LIMIT:?}: {:?}", handle.status()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_around_every_boundary() {
    for length in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
        let lab = Lab::new(length);
        let seed = lab.seed(None).await;
        let node = lab.fetch(seed.local_addr(), "out").await;
        complete(&node).await;
        lab.check("out");
        node.shutdown(Duration::from_secs(1)).await;
        seed.shutdown(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_shares_what_the_seed_sends_once() {
    let lab = Lab::new(24 << 20);
    let seed = lab.seed(Some(8 << 20)).await;
    let mut nodes = Vec::new();
    for number in 0..6 {
        nodes.push(lab.fetch(seed.local_addr(), &format!("out{number}")).await);
    }
    for (number, node) in nodes.iter().enumerate() {
        complete(node).await;
        lab.check(&format!("out{number}"));
        let status = node.status();
        assert_eq!(
            status.bytes_from_seed + status.bytes_from_peers,
            status.bytes_total
        );
    }
    let sent = seed.status()[0].bytes_uploaded;
    let copies = sent as f64 / lab.bytes.len() as f64;
    assert!(copies < 1.5, "the seed sent {copies:.2} copies to 6 nodes");
    for node in nodes {
        node.shutdown(Duration::from_secs(1)).await;
    }
    seed.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_latecomer_fetches_from_peers_when_the_seed_is_slow() {
    let lab = Lab::new(8 << 20);
    // At 1 Mbit/s the seed alone would take 67 s.
    let seed = lab.seed(Some(125_000)).await;
    let address = seed.local_addr();
    let holder = Node::bind(lab.config()).await.unwrap();
    let joined = holder.join(&[address], &lab.request()).await.unwrap();
    let source = FileStore::open(lab.path("image"), lab.manifest.geometry()).unwrap();
    let holder = holder.serve(joined, Arc::new(source)).unwrap();
    let late = lab.fetch(address, "late").await;
    complete(&late).await;
    lab.check("late");
    let status = late.status();
    assert!(
        status.bytes_from_peers > status.bytes_from_seed * 3,
        "{status:?}"
    );
    drop((late, holder));
    seed.shutdown(Duration::from_millis(100)).await;
}

/// A peer that serves every chunk with one bit flipped.
struct BitFlipper(FileStore);

impl ChunkSource for BitFlipper {
    fn chunk(&self, index: ChunkIndex) -> Option<Bytes> {
        let mut bytes = self.0.chunk(index)?.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(Bytes::from(bytes))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_flips_bits_is_banned_and_harms_nobody() {
    let lab = Lab::new(16 << 20);
    let seed = lab.seed(Some(4 << 20)).await;
    let hostile = Node::bind(lab.config()).await.unwrap();
    let joined = hostile
        .join(&[seed.local_addr()], &lab.request())
        .await
        .unwrap();
    let source = FileStore::open(lab.path("image"), lab.manifest.geometry()).unwrap();
    let hostile = hostile.serve(joined, Arc::new(BitFlipper(source))).unwrap();
    let nodes = [
        lab.fetch(seed.local_addr(), "a").await,
        lab.fetch(seed.local_addr(), "b").await,
    ];
    for (node, file) in nodes.iter().zip(["a", "b"]) {
        complete(node).await;
        lab.check(file);
        let status = node.status();
        assert_eq!(status.banned.len(), 1, "{status:?}");
        assert!(
            status.banned[0].reason.contains("does not match its hash"),
            "{status:?}"
        );
    }
    drop(nodes);
    drop(hostile);
    seed.shutdown(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_and_why() {
    let lab = Lab::new(100_000);
    let seed = lab.seed(None).await;
    let address = seed.local_addr();
    let join = |config: NodeConfig, seeds: Vec<SocketAddr>, request: JoinRequest| async move {
        let node = Node::bind(config).await.unwrap();
        node.join(&seeds, &request).await.err().expect("a refusal")
    };

    let other = SwarmKey::generate().unwrap().public();
    let config = NodeConfig {
        trust: SeedTrust::Key(other),
        ..lab.config()
    };
    let error = join(config, vec![address], lab.request()).await;
    assert!(
        matches!(error, JoinError::Trust { .. }) && !error.is_retryable(),
        "{error}"
    );
    assert!(error.to_string().contains(&other.to_string()), "{error}");

    let request = JoinRequest {
        name: "nothing".parse().unwrap(),
        ..lab.request()
    };
    let error = join(lab.config(), vec![address], request).await;
    assert!(
        matches!(
            error,
            JoinError::Refused {
                refusal: Refusal::UnknownImage,
                ..
            }
        ),
        "{error}"
    );

    let pin = Some(ImageId::from_bytes([7; 32]));
    let error = join(
        lab.config(),
        vec![address],
        JoinRequest {
            pin,
            ..lab.request()
        },
    )
    .await;
    assert!(
        matches!(error, JoinError::PinMismatch { .. }) && !error.is_retryable(),
        "{error}"
    );

    let nobody = SocketAddr::new(LOOPBACK, 9);
    let error = join(lab.config(), vec![nobody], lab.request()).await;
    assert!(error.is_retryable(), "{error}");
    assert!(matches!(
        join(lab.config(), vec![], lab.request()).await,
        JoinError::NoSeeds
    ));

    // A dead seed in front of a live one does not matter.
    let node = Node::bind(lab.config()).await.unwrap();
    assert!(node.join(&[nobody, address], &lab.request()).await.is_ok());
    seed.shutdown(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_where_it_stopped() {
    let lab = Lab::new(4 << 20);
    let seed = lab.seed(Some(1 << 20)).await;
    let first = lab.fetch(seed.local_addr(), "out").await;
    while first.status().chunks_have < 8 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.shutdown(Duration::ZERO).await;

    let node = Node::bind(lab.config()).await.unwrap();
    let joined = node
        .join(&[seed.local_addr()], &lab.request())
        .await
        .unwrap();
    let store = ChunkStore::resume(lab.path("out"), joined.manifest.clone()).unwrap();
    assert!(store.have().count() >= 8);
    let resumed = node.start(joined, store).unwrap();
    complete(&resumed).await;
    lab.check("out");
    let status = resumed.status();
    assert!(
        status.bytes_from_seed <= status.bytes_total - 8 * 65_536,
        "{status:?}"
    );
    drop(resumed);
    seed.shutdown(Duration::from_millis(100)).await;
    assert!(Path::exists(&lab.path("out")));
}
