//! Who keeps whom out at a seed's door, over real QUIC and TLS: strangers, members of the allow-list
//! that say nothing, and a directory that waits for a disk.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use quinn::Endpoint;
use rootswarm_image::{ChunkSize, Manifest, SignedTag, SwarmKey, Tag, all_cores, hash_image};
use rootswarm_swarm::Role;
use rootswarm_transport::node::{JoinError, JoinRequest, Node, NodeConfig, SeedTrust};
use rootswarm_transport::seed::{Directory, Grant, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::store::FileStore;
use rootswarm_transport::tls::Dialer;
use rootswarm_transport::trust::SwarmTrust;
use rootswarm_transport::tuning::Tuning;
use tokio::task::JoinSet;

/// Long enough for any of it on a busy machine; short of the ten seconds that a silent newcomer had.
const SOON: Duration = Duration::from_secs(6);

/// Allows 127.1.0.0/16, and decides when it is let.
struct Rules {
    tag: SignedTag,
    gate: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicUsize,
    asked_by_strangers: AtomicBool,
}

fn is_home(address: IpAddr) -> bool {
    matches!(address.to_canonical(), IpAddr::V4(v4) if v4.octets()[1] == 1)
}

impl Directory for Rules {
    fn allows(&self, address: IpAddr) -> Result<(), Refusal> {
        match is_home(address) {
            true => Ok(()),
            false => Err(Refusal::NotAdmitted("not from there".to_owned())),
        }
    }

    fn join(&self, from: SocketAddr, _: NodeId, _: &JoinRequest) -> Result<Grant, Refusal> {
        if !is_home(from.ip()) {
            self.asked_by_strangers.store(true, Ordering::Relaxed);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let gate = self.gate.lock().unwrap();
        drop(self.opened.wait_while(gate, |open| !*open).unwrap());
        Ok(Grant {
            tag: self.tag.clone(),
        })
    }
}

struct Lab {
    _directory: tempfile::TempDir,
    manifest: Arc<Manifest>,
    key: Arc<SwarmKey>,
    tag: Tag,
    rules: Arc<Rules>,
    seed: Seed,
}

impl Lab {
    async fn new(is_open: bool) -> Lab {
        let size = ChunkSize::from_bytes(64 * 1024).unwrap();
        let bytes = vec![7; 200_000];
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
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            key: key.clone(),
            epoch: 1,
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        let rules = Arc::new(Rules {
            tag: tag.clone().sign(&key),
            gate: Mutex::new(is_open),
            opened: Condvar::new(),
            waiting: AtomicUsize::new(0),
            asked_by_strangers: AtomicBool::new(false),
        });
        let seed = Seed::bind(config, rules.clone()).await.unwrap();
        let store = FileStore::open(file, manifest.geometry()).unwrap();
        seed.add_image(manifest.clone(), store);
        Lab {
            _directory: directory,
            manifest,
            key,
            tag,
            rules,
            seed,
        }
    }

    fn at(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.seed.local_addr().port()).into()
    }

    async fn node(&self, from: Ipv4Addr) -> Node {
        let config = NodeConfig {
            bind: Some(from.into()),
            port: 0,
            trust: SeedTrust::Key(self.key.public()),
            upload_limit_bytes_per_s: None,
            tuning: Tuning::default(),
        };
        Node::bind(config).await.unwrap()
    }

    /// One attempt, as a node that boots makes many.
    async fn join(&self, from: Ipv4Addr) -> Result<(), JoinError> {
        let request = JoinRequest {
            name: self.tag.name.clone(),
            pin: None,
            token: None,
            rack: None,
        };
        let joined = self.node(from).await.join(&[self.at()], &request).await?;
        assert_eq!(joined.manifest.id(), self.manifest.id());
        Ok(())
    }

    /// Attempts until one succeeds.
    async fn joins_soon(&self, from: Ipv4Addr) -> bool {
        let trying = async {
            while self.join(from).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(SOON, trying).await.is_ok()
    }

    /// Connections that complete the handshake and say nothing, and come again when they are closed.
    fn besiege(&self, net: u8, addresses: u8, each: usize) -> (JoinSet<()>, Arc<AtomicUsize>) {
        let held = Arc::new(AtomicUsize::new(0));
        let mut silent = JoinSet::new();
        for host in 1..=addresses {
            let from = IpAddr::from([127, net, 9, host]);
            let endpoint = Endpoint::client((from, 0).into()).unwrap();
            for _ in 0..each {
                let (endpoint, held, to) = (endpoint.clone(), held.clone(), self.at());
                let trust = SwarmTrust::new(SeedTrust::Key(self.key.public()));
                silent.spawn(async move {
                    let dialer = Dialer::join(trust, &Tuning::default());
                    loop {
                        let dial = dialer.connect(&endpoint, to, Role::Seed).await;
                        if let Ok((connection, _)) = dial {
                            held.fetch_add(1, Ordering::Relaxed);
                            connection.closed().await;
                        }
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                });
            }
        }
        (silent, held)
    }

    async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert!(waited.is_ok(), "{what}");
    }
}

/// Nine addresses with more joins than there are places; another number of each; and the same by those
/// who are allowed.
#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_keeps_nobody_out() {
    for (net, addresses, each, least) in [(9, 9, 60, 8), (9, 40, 14, 8), (1, 9, 60, 450)] {
        let lab = Lab::new(true).await;
        let (_silent, held) = lab.besiege(net, addresses, each);
        let had = || held.load(Ordering::Relaxed) >= least;
        lab.until("the places are taken", had).await;
        for host in 1..=3 {
            let begun = tokio::time::Instant::now();
            assert!(
                lab.joins_soon(Ipv4Addr::new(127, 1, 0, host)).await,
                "127.{net}: {addresses} addresses with {each} each, {} held",
                held.load(Ordering::Relaxed)
            );
            assert!(begun.elapsed() < SOON);
        }
        assert_eq!(lab.rules.waiting.load(Ordering::Relaxed), 3);
    }
}

/// Who is not on the list is told so, although he has no place of those who are.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_told_why() {
    let lab = Lab::new(true).await;
    for stranger in [[127, 2, 0, 1], [127, 0, 0, 1], [127, 255, 3, 4]] {
        let refused = lab.join(stranger.into()).await.unwrap_err().to_string();
        assert!(refused.contains("not from there"), "{refused}");
    }
    assert!(!lab.rules.asked_by_strangers.load(Ordering::Relaxed));
}

/// A directory that waits for a disk holds up nobody but who asked for it; he is told to ask again, and
/// what waits does not grow with those who ask.
#[tokio::test(flavor = "current_thread")]
async fn a_directory_that_waits_holds_up_nobody() {
    let lab = Arc::new(Lab::new(false).await);
    for asking in [1, 8, 40] {
        let mut joins = JoinSet::new();
        for host in 1..=asking {
            let lab = lab.clone();
            joins.spawn(async move { lab.join(Ipv4Addr::new(127, 1, 1, host)).await });
        }
        // There is one thread: were it waiting, this would not go on.
        let mut busy = 0;
        while let Some(ended) = joins.join_next().await {
            let refused = ended.unwrap().unwrap_err();
            assert!(refused.is_retryable(), "{refused}");
            let is_busy =
                matches!(&refused, JoinError::Refused { refusal, .. } if *refusal == Refusal::Busy);
            busy += usize::from(is_busy);
        }
        assert_eq!(busy, usize::from(asking));
        assert!(lab.rules.waiting.load(Ordering::Relaxed) <= 8);
        let refused = lab.join([127, 2, 0, 1].into()).await.unwrap_err();
        assert!(refused.to_string().contains("not from there"), "{refused}");
    }
    *lab.rules.gate.lock().unwrap() = true;
    lab.rules.opened.notify_all();
    assert!(lab.joins_soon(Ipv4Addr::new(127, 1, 2, 1)).await);
}
