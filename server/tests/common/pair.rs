//! Two servers, the second a mirror of the first.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rootswarm_image::SwarmPublicKey;
use rootswarm_transport::node::{Node, SwarmHandle};
use rootswarm_transport::store::ChunkStore;

use crate::common::{Server, key, node, request, rootswarm, run_ok, stderr};

/// What takes longer does not happen any more.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Pair {
    pub dir: tempfile::TempDir,
    pub a: Option<Server>,
    /// Where the primary is, also when it is not there.
    pub at: SocketAddr,
    pub b: Server,
    pub key: SwarmPublicKey,
}

impl Pair {
    pub fn new(options: &[&str]) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        // A port of its own, so that it can come back to it.
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let listen = at.to_string();
        let a = Server::start(&first, &[&["--listen", &listen], options].concat());
        fs::create_dir(&second).unwrap();
        fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
        let of = format!("swarm://{at}");
        let b = Server::start(&second, &[&["--mirror", &of], options].concat());
        let key = key(&first);
        let a = Some(a);
        Pair { dir, a, at, b, key }
    }

    pub fn first(&self) -> PathBuf {
        self.dir.path().join("a")
    }

    pub fn second(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    pub fn publish(&self, name: &str, bytes: &[u8]) {
        self.publish_keeping(name, bytes, "3");
    }

    pub fn publish_keeping(&self, name: &str, bytes: &[u8], keep: &str) {
        let file = self.dir.path().join(format!("{name}.squashfs"));
        fs::write(&file, bytes).unwrap();
        let file = file.display().to_string();
        run_ok(
            &self.first(),
            &["publish", "-q", "--keep", keep, name, &file],
        );
    }

    /// SIGKILL, and its state is gone with it.
    pub fn destroy(&mut self) {
        drop(self.a.take());
        fs::remove_dir_all(self.first()).unwrap();
    }

    pub async fn node(&self) -> Node {
        node(self.key, Ipv4Addr::LOCALHOST.into()).await
    }

    /// Both seeds, as `rooturl=swarm://a,b/NAME` names them.
    pub fn seeds(&self) -> [SocketAddr; 2] {
        [self.at, self.b.swarm]
    }

    pub async fn fetch(&self, file: &str) -> SwarmHandle {
        let node = self.node().await;
        let joined = node.join(&self.seeds(), &request(None)).await.unwrap();
        let path = self.dir.path().join(file);
        let store = ChunkStore::create(path, joined.manifest.clone()).unwrap();
        node.start(joined, store).unwrap()
    }
}

/// Each name with its version and id, as the admin sees it.
pub fn names(state: &Path) -> Vec<String> {
    let text = run_ok(state, &["images"]);
    let fields = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", fields[0], fields[3], fields[fields.len() - 1])
    };
    text.lines().skip(1).map(fields).collect()
}

/// Runs `serve` on a state directory on which it is not to start: its exit code, and what it said. One that
/// does start is ended.
pub fn serve_refused(state: &Path, options: &[&str]) -> (Option<i32>, String) {
    let mut child = rootswarm()
        .arg("--state")
        .arg(state)
        .arg("serve")
        .args(options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stderr(&output))
}
