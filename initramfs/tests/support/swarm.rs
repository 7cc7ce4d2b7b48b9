//! A real seed in the test's own process, and its HTTP side.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rootswarm_image::{Geometry, Manifest, SignedTag, SwarmKey, Tag};
use rootswarm_transport::seed::{Directory, Grant, JoinRequest, NodeId, Refusal, Seed, SeedConfig};
use rootswarm_transport::store::FileStore;
use rootswarm_transport::tuning::Tuning;

use crate::support::{Reply, Request, Server, manifest};

/// What the seed of a test serves under the name `root`.
pub struct Published {
    pub image: Vec<u8>,
    pub manifest: Arc<Manifest>,
    pub tag: SignedTag,
    pub key: Arc<SwarmKey>,
    /// Of the certificates of its seeds.
    pub epoch: u32,
}

impl Published {
    pub fn new(image: Vec<u8>) -> Published {
        let manifest = manifest(&image);
        Published::with(image, manifest)
    }

    /// What the manifest says; `image` may be empty where a file is served instead.
    pub fn with(image: Vec<u8>, manifest: Manifest) -> Published {
        let key = Arc::new(SwarmKey::generate().expect("randomness"));
        Published::signed(image, manifest, key)
    }

    /// By the same installation.
    pub fn beside(&self, image: Vec<u8>) -> Published {
        let manifest = manifest(&image);
        Published::signed(image, manifest, self.key.clone())
    }

    fn signed(image: Vec<u8>, manifest: Manifest, key: Arc<SwarmKey>) -> Published {
        let manifest = Arc::new(manifest);
        let geometry: &Geometry = manifest.geometry();
        let tag = Tag {
            name: "root".parse().expect("a name"),
            id: *manifest.id(),
            length: geometry.length(),
            chunk_size: geometry.chunk_size(),
            version: 1,
            epoch: 1,
        };
        let tag = tag.sign(&key);
        Published {
            image,
            manifest,
            tag,
            key,
            epoch: 1,
        }
    }

    /// The same, as this version of the name and in this epoch.
    pub fn dated(mut self, version: u64, epoch: u32) -> Published {
        let tag = Tag {
            version,
            epoch,
            ..self.tag.unverified().clone()
        };
        self.tag = tag.sign(&self.key);
        self
    }

    pub fn key_text(&self) -> String {
        self.key.public().to_string()
    }

    /// The HTTP side of a seed. `pause` slows bodies down.
    pub fn http(&self, pause: Duration) -> Server {
        let answer = self.http_answer(pause);
        Server::start(move |request, _| answer(request))
    }

    /// What that side says.
    pub fn http_answer(&self, pause: Duration) -> impl Fn(&Request) -> Reply + use<> {
        let (image, tag) = (self.image.clone(), self.tag.encode());
        let (id, manifest) = (self.manifest.id().to_string(), self.manifest.encode());
        move |request| match request.path.as_str() {
            "/tags/root" => Reply::new("200 OK", tag.clone()),
            path if path == format!("/manifests/{id}") => Reply::new("200 OK", manifest.clone()),
            path if path == format!("/blobs/{id}") || path == "/images/root" => Reply {
                pause,
                ..Reply::file(request, &image)
            },
            _ => Reply::new("404 Not Found", ""),
        }
    }
}

/// A port that nobody has at the moment.
pub fn free_udp_port() -> u16 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address").port()
}

/// A seed on threads of its own; gone when dropped.
pub struct TestSeed {
    pub addr: SocketAddr,
    /// Where each node that asked to join said it stands.
    pub racks: Racks,
    refusal: Arc<Mutex<Option<Refusal>>>,
    runtime: Option<tokio::runtime::Runtime>,
    seed: Option<Seed>,
    _dir: tempfile::TempDir,
}

type Racks = Arc<Mutex<Vec<Option<String>>>>;

struct OneImage {
    racks: Racks,
    tag: SignedTag,
    token: Option<&'static str>,
    refusal: Arc<Mutex<Option<Refusal>>>,
}

impl Directory for OneImage {
    fn join(&self, _: SocketAddr, _: NodeId, request: &JoinRequest) -> Result<Grant, Refusal> {
        let tag = self.tag.unverified();
        let mut racks = self.racks.lock().expect("no test panics with it");
        racks.push(request.rack.clone());
        if let Some(refusal) = &*self.refusal.lock().expect("no test panics with it") {
            return Err(refusal.clone());
        }
        if self.token.is_some() && request.token.as_deref() != self.token {
            return Err(Refusal::NotAdmitted("a token is needed".to_owned()));
        }
        if request.name != tag.name {
            return Err(Refusal::UnknownImage);
        }
        match request.pin {
            Some(pin) if pin != tag.id => Err(Refusal::PinMismatch { current: tag.id }),
            _ => Ok(Grant {
                tag: self.tag.clone(),
            }),
        }
    }
}

impl TestSeed {
    pub fn start(published: &Published, port: u16) -> TestSeed {
        TestSeed::with(published, port, None, None)
    }

    pub fn with(
        published: &Published,
        port: u16,
        token: Option<&'static str>,
        upload_limit_bytes_per_s: Option<u64>,
    ) -> TestSeed {
        let listen = SocketAddr::from(([127, 0, 0, 1], port));
        TestSeed::at(published, listen, token, upload_limit_bytes_per_s)
    }

    /// At this address.
    pub fn at(
        published: &Published,
        listen: SocketAddr,
        token: Option<&'static str>,
        upload_limit_bytes_per_s: Option<u64>,
    ) -> TestSeed {
        TestSeed::of(published, listen, token, upload_limit_bytes_per_s, None)
    }

    /// Of a file that is there already.
    pub fn of_file(published: &Published, listen: SocketAddr, file: &std::path::Path) -> TestSeed {
        TestSeed::of(published, listen, None, None, Some(file))
    }

    fn of(
        published: &Published,
        listen: SocketAddr,
        token: Option<&'static str>,
        upload_limit_bytes_per_s: Option<u64>,
        file: Option<&std::path::Path>,
    ) -> TestSeed {
        let dir = tempfile::tempdir().expect("a directory");
        let path = match file {
            Some(file) => file.to_owned(),
            None => {
                let path = dir.path().join("image");
                std::fs::write(&path, &published.image).expect("a file");
                path
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let racks = Racks::default();
        let refusal = Arc::new(Mutex::new(None));
        let seed = runtime.block_on(async {
            let directory = OneImage {
                racks: racks.clone(),
                tag: published.tag.clone(),
                token,
                refusal: refusal.clone(),
            };
            let config = SeedConfig {
                listen,
                key: published.key.clone(),
                epoch: published.epoch,
                upload_limit_bytes_per_s,
                tuning: Tuning::default(),
            };
            let seed = Seed::bind(config, Arc::new(directory))
                .await
                .expect("a seed");
            let geometry = published.manifest.geometry();
            let store = FileStore::open(&path, geometry).expect("a store");
            seed.add_image(published.manifest.clone(), store);
            seed
        });
        let addr = seed.local_addr();
        TestSeed {
            addr,
            racks,
            refusal,
            runtime: Some(runtime),
            seed: Some(seed),
            _dir: dir,
        }
    }
}

impl TestSeed {
    /// Where it sees the nodes that have the whole image.
    pub fn complete_at(&self) -> Vec<String> {
        let status = self.seed.as_ref().expect("a seed").status();
        let nodes = status.into_iter().flat_map(|image| image.nodes);
        let complete = nodes.filter(|node| node.is_complete);
        complete.map(|node| node.addr).collect()
    }

    /// From now on everybody is refused like this, or nobody.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        *self.refusal.lock().expect("no test panics with it") = refusal;
    }

    /// How often somebody asked to join.
    pub fn asked(&self) -> usize {
        self.racks.lock().expect("no test panics with it").len()
    }
}

impl Drop for TestSeed {
    fn drop(&mut self) {
        if let (Some(runtime), Some(seed)) = (self.runtime.take(), self.seed.take()) {
            runtime.block_on(seed.shutdown(Duration::ZERO));
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}
