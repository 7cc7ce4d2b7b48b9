//! Who may ask a seed for all it has: holders of the swarm key, on their own connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rootswarm_image::{ImageId, SwarmKey, Tag};
use rootswarm_transport::mirror::{Listing, MirrorError, MirrorVersion, Primary};
use rootswarm_transport::node::{JoinRequest, Node, NodeConfig, SeedTrust};
use rootswarm_transport::seed::{Directory, Grant, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::tuning::Tuning;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[derive(Default)]
struct Secrets(AtomicUsize);

impl Directory for Secrets {
    fn join(&self, _: SocketAddr, _: NodeId, _: &JoinRequest) -> Result<Grant, Refusal> {
        Err(Refusal::UnknownImage)
    }

    fn mirror(&self, report: &[u8]) -> Result<Listing, String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Listing {
            tokens: report.to_vec(),
            revoked: b"revoked".to_vec(),
            tags: vec![b"one".to_vec(), b"two".to_vec()],
            retired: vec![b"three".to_vec()],
            policy: Some(b"policy".to_vec()),
            older: vec![b"four".to_vec()],
            rolled_back: vec![b"five".to_vec()],
        })
    }
}

async fn node(key: &SwarmKey) -> Node {
    Node::bind(NodeConfig {
        bind: Some(LOOPBACK),
        port: 0,
        trust: SeedTrust::Key(key.public()),
        upload_limit_bytes_per_s: None,
        tuning: Tuning::default(),
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_told_nothing() {
    let key = Arc::new(SwarmKey::generate().unwrap());
    let directory = Arc::new(Secrets::default());
    let config = SeedConfig {
        listen: SocketAddr::new(LOOPBACK, 0),
        key: key.clone(),
        epoch: 1,
        upload_limit_bytes_per_s: None,
        tuning: Tuning::default(),
    };
    let seed = Seed::bind(config, directory.clone()).await.unwrap();
    let dialer = node(&key).await;
    let primary = Primary::connect(&dialer, seed.local_addr(), key.clone()).await;
    let primary = primary.unwrap();
    // As long as any file of a seed's may be.
    let report = vec![7; 3_000_000];
    let listing = primary.listing(report.clone()).await.unwrap();
    assert_eq!(listing.tokens, report);
    assert_eq!((listing.tags.len(), listing.retired.len()), (2, 1));
    assert_eq!(primary.version(), MirrorVersion::Two);
    assert_eq!(listing.policy.as_deref(), Some(&b"policy"[..]));
    assert_eq!(listing.older, [b"four"]);
    assert_eq!(listing.rolled_back, [b"five"]);
    // A mirror of an earlier release is told what it can read.
    let earlier = Primary::connect_1(&dialer, seed.local_addr(), key.clone()).await;
    let earlier = earlier.unwrap();
    assert_eq!(earlier.version(), MirrorVersion::One);
    let told = earlier.listing(b"used".to_vec()).await.unwrap();
    assert_eq!((told.policy, told.older.len()), (None, 0));
    assert_eq!((told.tokens, told.tags.len()), (b"used".to_vec(), 2));
    let tag = Tag {
        name: "none".parse().unwrap(),
        id: ImageId::from_bytes([1; 32]),
        length: 1,
        chunk_size: rootswarm_image::ChunkSize::from_bytes(1 << 16).unwrap(),
        version: 1,
        epoch: 1,
    };
    let refused = primary.manifest(&tag).await.err().unwrap();
    assert!(matches!(refused, MirrorError::Refused { .. }), "{refused}");
    assert_eq!(directory.0.load(Ordering::Relaxed), 2);

    // Another key: it does not even ask, as the seed is not one it trusts.
    let other = Arc::new(SwarmKey::generate().unwrap());
    let error = Primary::connect(&dialer, seed.local_addr(), other.clone()).await;
    assert!(matches!(error.err(), Some(MirrorError::Trust { .. })));
    // One that knows the public half trusts it, and cannot prove that it has the other.
    let forger = Primary::connect_as(&dialer, seed.local_addr(), key.public(), other).await;
    let error = forger.unwrap().listing(Vec::new()).await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("did not prove that it holds the swarm key"),
        "{error}"
    );
    assert_eq!(
        directory.0.load(Ordering::Relaxed),
        2,
        "the directory was not asked"
    );
}
