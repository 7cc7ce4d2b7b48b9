//! What a node says of itself when somebody connects.

use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU64;

use rootswarm_image::{ChunkSize, SignedTag, SwarmKey, Verifier, all_cores, hash_image};
use rootswarm_swarm::limits::FRAME_BYTES_MAX;
use rootswarm_swarm::{
    CloseReason, ConnId, Have, Hello, NodeId, Revocations, decode_hello, encode_hello,
};

use super::*;
use crate::chunk_buffers::ChunkBuffers;
use crate::conduct::Conduct;
use crate::dialing;
use crate::framing;
use crate::limiter::RateLimiter;
use crate::link::{Event, Link, Shared};
use crate::seed::{Directory, Grant, Seed, SeedConfig};
use crate::store::FileStore;
use crate::tls;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct OneImage(SignedTag);

impl Directory for OneImage {
    fn join(
        &self,
        _from: SocketAddr,
        _node: NodeId,
        _request: &JoinRequest,
    ) -> Result<Grant, Refusal> {
        Ok(Grant {
            tag: self.0.clone(),
        })
    }
}

/// A seed with one small image, and nodes for it.
struct Lab {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    manifest: Arc<Manifest>,
    key: Arc<SwarmKey>,
    seed: Seed,
}

impl Lab {
    async fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, b"image").unwrap();
        let size = ChunkSize::from_bytes(64 * 1024).unwrap();
        let manifest = Arc::new(hash_image(b"image", size, all_cores(), &|_| {}).unwrap());
        let geometry = *manifest.geometry();
        let key = Arc::new(SwarmKey::generate().unwrap());
        let tag = Tag {
            name: "image".parse().unwrap(),
            id: *manifest.id(),
            length: geometry.length(),
            chunk_size: geometry.chunk_size(),
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
        let seed = Seed::bind(config, Arc::new(OneImage(tag.sign(&key))))
            .await
            .unwrap();
        seed.add_image(manifest.clone(), FileStore::open(&path, &geometry).unwrap());
        Lab {
            _directory: directory,
            path,
            manifest,
            key,
            seed,
        }
    }

    fn store(&self) -> FileStore {
        FileStore::open(&self.path, self.manifest.geometry()).unwrap()
    }

    async fn join(&self, rack: Option<&str>) -> (Node, Joined) {
        let config = NodeConfig {
            bind: Some(LOOPBACK),
            port: 0,
            trust: SeedTrust::Key(self.key.public()),
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        let node = Node::bind(config).await.unwrap();
        let request = JoinRequest {
            name: "image".parse().unwrap(),
            pin: None,
            token: None,
            rack: rack.map(str::to_owned),
        };
        let joined = node
            .join(&[self.seed.local_addr()], &request)
            .await
            .unwrap();
        (node, joined)
    }
}

/// The rack a node asked to join with is the rack of its swarm, and stands in its hello: that is
/// where seeds and peers learn it.
#[tokio::test]
async fn the_hello_says_which_rack() {
    let lab = Lab::new().await;
    let (caller, caller_joined) = lab.join(None).await;
    let dialer = Dialer::data(caller_joined.identity.clone(), &caller.tuning);
    for rack in [Some("row 3/r7"), None] {
        let (node, joined) = lab.join(rack).await;
        let addr = node.local_addr();
        let _swarm = node.serve(joined, Arc::new(lab.store())).unwrap();
        let opened = dialing::open(&caller.endpoint, &dialer, addr, None, Role::Peer);
        let (mut send, mut receive) = opened.await.unwrap().control;
        let own = Hello {
            image: *lab.manifest.id(),
            have: Have::Nothing,
            rack: None,
        };
        let frame = encode_hello(&own);
        framing::write_frame(&mut send, &frame).await.unwrap();
        let frame = framing::read_frame(&mut receive, FRAME_BYTES_MAX).await;
        let hello = decode_hello(&frame.unwrap()).unwrap();
        assert_eq!(hello.rack.as_deref(), rack);
        assert_eq!(hello.have, Have::Everything);
    }
}

/// The reader and the writer of a link notice its end, too, and end it on their side: whoever keeps the
/// connection up finds the seed's reason all the same, and joins again instead of dialing with a certificate
/// that is not taken.
#[tokio::test]
async fn why_the_seed_parted_outlasts_the_link() {
    for (case, hello) in [("member", true), ("while it is let in", false)] {
        let lab = Lab::new().await;
        let (_node, joined) = lab.join(None).await;
        let admission = joined.admission.unwrap();
        let connection = admission.connection.clone();
        let opened = dialing::greet(admission.connection, admission.seed, admission.address);
        let (events, mut heard) = tokio::sync::mpsc::channel(16);
        let shared = Arc::new(Shared {
            role: Role::Peer,
            verifier: Verifier::new(lab.manifest.clone()),
            source: Arc::new(lab.store()),
            sink: None,
            limiter: Arc::new(RateLimiter::new(None)),
            bytes_uploaded: AtomicU64::new(0),
            events,
            buffers: ChunkBuffers::default(),
            conduct: Conduct::new(1, Duration::from_secs(1)),
        });
        let link = Link::start(ConnId(0), opened.await.unwrap(), false, shared);
        let own = Hello {
            image: *lab.manifest.id(),
            have: Have::Nothing,
            rack: None,
        };
        if hello {
            link.hello(&own);
        }
        let list = Revocations {
            version: 1,
            epoch: 3,
            nodes: Vec::new(),
        };
        lab.seed.revoke(list).await;
        if !hello {
            link.hello(&own);
        }
        while !matches!(heard.recv().await.unwrap(), Event::Gone { .. }) {}
        // Its queue is closed by now.
        tokio::task::yield_now().await;
        link.hello(&own);
        let reason = connection.close_reason().unwrap();
        assert!(tls::refusal(&reason).is_some(), "{case}: {reason}");
        link.close(CloseReason::Done);
        let reason = connection.close_reason().unwrap();
        assert!(tls::refusal(&reason).is_some(), "{case}: {reason}");
    }
}

/// A seed that was killed and started again answers what its old connections send with resets, so
/// that nodes do not sit out the idle timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_seed_that_is_back_resets_its_old_connections() {
    let key = Arc::new(SwarmKey::generate().unwrap());
    let ca = crate::identity::SwarmCa::new(key.clone());
    let start = |listen: SocketAddr| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = SeedConfig {
            listen,
            key: key.clone(),
            epoch: 1,
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        let tag = Tag {
            name: "none".parse().unwrap(),
            id: ImageId::from_bytes([0; 32]),
            length: 1,
            chunk_size: ChunkSize::from_bytes(64 * 1024).unwrap(),
            version: 1,
            epoch: 1,
        };
        let directory = Arc::new(OneImage(tag.sign(&key)));
        // A thread that runs tasks may not wait for another runtime.
        let binding = runtime.spawn(Seed::bind(config, directory));
        (runtime, binding)
    };
    // A fixed address of this test's own: the reset key belongs to it.
    let port = std::net::UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let addr = port.local_addr().unwrap();
    drop(port);
    let (runtime, binding) = start(addr);
    let seed = binding.await.unwrap().unwrap();
    let node_key = NodeKey::generate().unwrap();
    let certificate = ca.issue_node(&node_key.public(), 1).unwrap().to_vec();
    let identity = Identity::node(&node_key, certificate, &key.public()).unwrap();
    let bind = Bind::Address(SocketAddr::new(LOOPBACK, 0));
    let opened = endpoint::open(bind, &Tuning::default(), None, None).unwrap();
    let endpoint = opened.endpoint;
    let dialer = Dialer::data(identity, &Tuning::default());
    let (connection, _) = dialer.connect(&endpoint, addr, Role::Seed).await.unwrap();
    // Without the seed's own end of it: its process is gone.
    std::thread::spawn(move || {
        // First what could still send something, then the socket.
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop(seed);
    })
    .join()
    .unwrap();
    let (runtime, binding) = start(addr);
    let seed = binding.await.unwrap().unwrap();
    // Any packet will do; keep-alives would, two seconds later.
    let _ = connection
        .open_bi()
        .await
        .unwrap()
        .0
        .write_all(b"anybody there?")
        .await;
    let closed = connection.closed().await;
    assert!(matches!(closed, quinn::ConnectionError::Reset), "{closed}");
    drop(seed);
    runtime.shutdown_background();
}
