//! Several seeds behind one rooturl, the first of them not as it should be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rootswarm_image::{ChunkSize, Manifest, SignedTag, SwarmKey, Tag, all_cores, hash_image};
use rootswarm_transport::node::{JoinError, JoinRequest, Joined, Node, NodeConfig, SeedTrust};
use rootswarm_transport::seed::{Directory, Grant, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::store::FileStore;
use rootswarm_transport::tuning::Tuning;
use tokio::runtime::Runtime;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a seed answers.
#[derive(Clone)]
enum Manner {
    Grants,
    Refuses(Refusal),
    /// Grants with another tag than its own.
    Answers(Box<SignedTag>),
    /// Grants after so long.
    Hesitates(Duration),
    /// Admits the first bearer of a token, and him again.
    OneTime(Arc<Mutex<Option<NodeId>>>),
}

struct Recorder {
    tag: SignedTag,
    manner: Manner,
    asked: Arc<AtomicUsize>,
}

impl Directory for Recorder {
    fn join(&self, _: SocketAddr, node: NodeId, _: &JoinRequest) -> Result<Grant, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match &self.manner {
            Manner::Grants => {}
            Manner::Refuses(refusal) => return Err(refusal.clone()),
            Manner::Answers(tag) => {
                return Ok(Grant {
                    tag: tag.as_ref().clone(),
                });
            }
            Manner::Hesitates(pause) => std::thread::sleep(*pause),
            Manner::OneTime(bearer) => {
                if *bearer.lock().unwrap().get_or_insert(node) != node {
                    return Err(Refusal::NotAdmitted("the token is used up".to_owned()));
                }
            }
        }
        Ok(Grant {
            tag: self.tag.clone(),
        })
    }
}

struct Lab {
    directory: tempfile::TempDir,
    manifest: Arc<Manifest>,
    key: Arc<SwarmKey>,
}

/// A seed on threads of its own: one that sleeps holds up nobody else.
struct TestSeed {
    runtime: Option<Runtime>,
    _seed: Seed,
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl TestSeed {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for TestSeed {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Lab {
    fn new() -> Lab {
        let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let size = ChunkSize::from_bytes(64 * 1024).unwrap();
        let manifest = hash_image(&bytes, size, all_cores(), &|_| {}).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("image"), &bytes).unwrap();
        Lab {
            directory,
            manifest: Arc::new(manifest),
            key: Arc::new(SwarmKey::generate().unwrap()),
        }
    }

    async fn seed(&self, key: &Arc<SwarmKey>, manner: Manner) -> TestSeed {
        let geometry = self.manifest.geometry();
        let tag = self.tag();
        let asked = Arc::new(AtomicUsize::new(0));
        let directory = Recorder {
            tag: tag.sign(key),
            manner,
            asked: asked.clone(),
        };
        let config = SeedConfig {
            listen: SocketAddr::new(LOOPBACK, 0),
            key: key.clone(),
            epoch: 1,
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let store = FileStore::open(self.directory.path().join("image"), geometry).unwrap();
        let manifest = self.manifest.clone();
        // On a thread of its own: one that runs tasks may not wait for another runtime.
        let binding = runtime.spawn(async move {
            let seed = Seed::bind(config, Arc::new(directory)).await.unwrap();
            seed.add_image(manifest, store);
            seed
        });
        let seed = binding.await.unwrap();
        TestSeed {
            runtime: Some(runtime),
            addr: seed.local_addr(),
            _seed: seed,
            asked,
        }
    }

    fn tag(&self) -> Tag {
        let geometry = self.manifest.geometry();
        Tag {
            name: "lab".parse().unwrap(),
            id: *self.manifest.id(),
            length: geometry.length(),
            chunk_size: geometry.chunk_size(),
            version: 1,
            epoch: 1,
        }
    }

    async fn ours(&self, manner: Manner) -> TestSeed {
        self.seed(&self.key, manner).await
    }

    async fn node(&self, trust: SeedTrust) -> Node {
        Node::bind(NodeConfig {
            bind: Some(LOOPBACK),
            port: 0,
            trust,
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        })
        .await
        .unwrap()
    }

    fn request(&self, token: Option<&str>) -> JoinRequest {
        JoinRequest {
            name: "lab".parse().unwrap(),
            pin: Some(*self.manifest.id()),
            token: token.map(str::to_owned),
            rack: None,
        }
    }

    async fn join(&self, seeds: &[SocketAddr], token: Option<&str>) -> Result<Joined, JoinError> {
        let node = self.node(SeedTrust::Key(self.key.public())).await;
        node.join(seeds, &self.request(token)).await
    }
}

/// Somebody listens there and never says anything, as a host does that has just crashed.
fn silence() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_first_seed_is_the_second_lets_the_node_in() {
    let lab = Lab::new();
    let stranger = Arc::new(SwarmKey::generate().unwrap());
    let (_socket, silent) = silence();
    let good = lab.ours(Manner::Grants).await;
    let refuses = async |refusal| lab.ours(Manner::Refuses(refusal)).await;
    let firsts = [
        ("another key", lab.seed(&stranger, Manner::Grants).await),
        (
            "refusing",
            refuses(Refusal::NotAdmitted("no".to_owned())).await,
        ),
        ("without the image", refuses(Refusal::UnknownImage).await),
        ("busy", refuses(Refusal::Busy).await),
        (
            "slow",
            lab.ours(Manner::Hesitates(Duration::from_secs(6))).await,
        ),
    ];
    let mut cases: Vec<(&str, SocketAddr)> = vec![("silent", silent)];
    cases.extend(firsts.iter().map(|(what, seed)| (*what, seed.addr)));
    for (number, (what, first)) in cases.into_iter().enumerate() {
        let joined = lab.join(&[first, good.addr], None).await;
        assert!(joined.is_ok(), "first seed {what}: {:?}", joined.err());
        assert_eq!(good.asked(), number + 1, "first seed {what}");
    }
    // Where the first one is as it should be, one is asked.
    let first = lab.ours(Manner::Grants).await;
    let before = good.asked();
    assert!(lab.join(&[first.addr, good.addr], None).await.is_ok());
    assert_eq!(first.asked() + good.asked() - before, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_pin_alone_the_first_key_keeps_nobody_from_the_second() {
    let lab = Lab::new();
    let stranger = Arc::new(SwarmKey::generate().unwrap());
    let without = lab
        .seed(&stranger, Manner::Refuses(Refusal::UnknownImage))
        .await;
    let slow = Manner::Hesitates(Duration::from_secs(6));
    let slow = lab.seed(&stranger, slow).await;
    let good = lab.ours(Manner::Grants).await;
    for first in [&without, &slow] {
        let node = lab.node(SeedTrust::FirstUse).await;
        let seeds = [first.addr, good.addr];
        let joined = node.join(&seeds, &lab.request(None)).await;
        assert!(joined.is_ok(), "{:?}", joined.err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_final_only_when_every_seed_has_refused() {
    let lab = Lab::new();
    let stranger = Arc::new(SwarmKey::generate().unwrap());
    let foreign = lab.seed(&stranger, Manner::Grants).await;
    let refusing = lab
        .ours(Manner::Refuses(Refusal::NotAdmitted("no".to_owned())))
        .await;
    let busy = lab.ours(Manner::Refuses(Refusal::Busy)).await;
    let (foreign, refusing, busy) = (foreign.addr, refusing.addr, busy.addr);

    // The first of two refusals is told, in the order of the rooturl.
    let error = lab.join(&[foreign, refusing], None).await.err().unwrap();
    assert!(
        matches!(&error, JoinError::Trust { seed, .. } if *seed == foreign),
        "{error}"
    );
    assert!(!error.is_retryable());
    let error = lab.join(&[refusing, foreign], None).await.err().unwrap();
    let expected = format!("the seed {refusing} refused: not admitted: no");
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_retryable());
    // A seed that may answer in a moment keeps the question open.
    let error = lab.join(&[refusing, busy], None).await.err().unwrap();
    assert!(error.is_retryable(), "{error}");
    assert!(
        error.to_string().starts_with(&format!("{expected}; ")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_shown_to_one_seed_at_a_time() {
    let lab = Lab::new();
    // Both slower than a seed's head start, and than a request without a token would wait.
    let slow = Manner::Hesitates(Duration::from_millis(2_000));
    let (first, second) = (lab.ours(slow.clone()).await, lab.ours(slow).await);
    let seeds = [first.addr, second.addr];
    assert!(lab.join(&seeds, Some("token")).await.is_ok());
    assert_eq!(first.asked() + second.asked(), 1);
    assert!(lab.join(&seeds, None).await.is_ok());
    assert_eq!(first.asked() + second.asked(), 3);
}

/// The answer to a join is lost, and the machine asks again with the same key and token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_answer_was_lost_is_the_same_node_to_the_seed() {
    let lab = Lab::new();
    let seed = lab.ours(Manner::OneTime(Arc::default())).await;
    let trust = SeedTrust::Key(lab.key.public());
    let (node, other) = (lab.node(trust).await, lab.node(trust).await);
    let request = lab.request(Some("token"));
    for _ in 0..2 {
        // What came of the first attempt is thrown away.
        assert!(node.join(&[seed.addr], &request).await.is_ok());
    }
    let error = other.join(&[seed.addr], &request).await.err().unwrap();
    assert!(
        error
            .to_string()
            .ends_with("not admitted: the token is used up"),
        "{error}"
    );
}

/// A seed that has the swarm key's certificate, but not the tag and the manifest that belong together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_seed_of_ours_answers() {
    let lab = Lab::new();
    let stranger = SwarmKey::generate().unwrap();
    let named = Tag {
        name: "other".parse().unwrap(),
        ..lab.tag()
    };
    let longer = Tag {
        length: lab.tag().length + 1,
        ..lab.tag()
    };
    let coarser = Tag {
        chunk_size: ChunkSize::from_bytes(128 * 1024).unwrap(),
        ..lab.tag()
    };
    for (what, tag, words) in [
        (
            "signed by another key",
            lab.tag().sign(&stranger),
            "is not signed by",
        ),
        (
            "another name's tag",
            named.sign(&lab.key),
            "signed tag is about image other: expected lab",
        ),
        (
            "a manifest of another length",
            longer.sign(&lab.key),
            "manifest",
        ),
        (
            "a manifest cut differently",
            coarser.sign(&lab.key),
            "manifest",
        ),
    ] {
        let seed = lab.ours(Manner::Answers(Box::new(tag))).await;
        let error = lab.join(&[seed.addr], None).await.err().unwrap();
        assert!(!error.is_retryable(), "{what}: {error}");
        let error = error.to_string();
        assert!(
            error.contains(words) && !error.contains('\n'),
            "{what}: {error}"
        );
    }
}
