//! What a node says of itself when somebody connects.

use std::net::Ipv4Addr;

use rootswarm_image::{ChunkSize, SignedTag, SwarmKey, all_cores, hash_image};
use rootswarm_swarm::limits::FRAME_BYTES_MAX;
use rootswarm_swarm::{Have, Hello, NodeId, decode_hello, encode_hello};

use super::*;
use crate::dialing;
use crate::framing;
use crate::seed::{Directory, Grant, Seed, SeedConfig};
use crate::store::FileStore;

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

/// The rack a node asked to join with is the rack of its swarm, and stands in its hello: that is
/// where seeds and peers learn it.
#[tokio::test]
async fn the_hello_says_which_rack() {
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
    let store = || FileStore::open(&path, &geometry).unwrap();
    seed.add_image(manifest.clone(), store());

    let join = async |rack: Option<&str>| {
        let config = NodeConfig {
            bind: Some(LOOPBACK),
            port: 0,
            trust: SeedTrust::Key(key.public()),
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
        let joined = node.join(&[seed.local_addr()], &request).await.unwrap();
        (node, joined)
    };
    let (caller, caller_joined) = join(None).await;
    let dialer = Dialer::data(caller_joined.identity.clone(), &caller.tuning);
    for rack in [Some("row 3/r7"), None] {
        let (node, joined) = join(rack).await;
        let addr = node.local_addr();
        let _swarm = node.serve(joined, Arc::new(store())).unwrap();
        let opened = dialing::open(&caller.endpoint, &dialer, addr, None, Role::Peer);
        let (mut send, mut receive) = opened.await.unwrap().control;
        let own = Hello {
            image: *manifest.id(),
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
