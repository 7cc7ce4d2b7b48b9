//! A lock that somebody holds, a disk that hangs: the server goes on answering everybody who asks for
//! something else, and tells those who must wait to ask again.
//!
//! A disk that hangs is a pipe in the place of a file: who opens it waits for somebody to write into it.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Server, key, node, request, run_ok, squashfs};
use rootswarm_transport::node::{JoinError, Refusal};
use rustix::fs::{FlockOperation, OFlags, flock};
use tokio::task::JoinSet;

/// A server that waits on its reactor answers nothing at all; one on a busy machine is slow.
const ANSWER: Duration = Duration::from_secs(8);

/// `/healthz`, once.
fn is_healthy(server: &Server) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(server.http)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.ends_with("ok\n"))
}

fn get(http: SocketAddr, path: &str) -> std::thread::JoinHandle<String> {
    let request = format!("GET {path} HTTP/1.0\r\nauthorization: Bearer x\r\n\r\n");
    std::thread::spawn(move || {
        let mut answer = Vec::new();
        let mut stream = TcpStream::connect(http).unwrap();
        stream.set_read_timeout(Some(3 * ANSWER)).unwrap();
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    })
}

fn published(options: &[&str]) -> (tempfile::TempDir, Server) {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("source");
    fs::write(&file, squashfs(300_000, 7)).unwrap();
    let publish = ["publish", "--quiet", "web", file.to_str().unwrap()];
    run_ok(state.path(), &publish);
    fs::write(state.path().join("boot/vmlinuz"), b"kernel").unwrap();
    // One thread, however many cores: what waits on it is noticed.
    let under = ["env", "TOKIO_WORKER_THREADS=1"];
    let server = Server::start_under(&under, state.path(), options);
    (state, server)
}

/// Everything that needs no disk: asked some times, while whatever hangs hangs.
fn goes_on(server: &Server, state: &Path, what: &str) {
    for _ in 0..3 {
        let asked = Instant::now();
        assert!(is_healthy(server), "{what}: /healthz");
        let tag = get(server.http, "/tags/web").join().unwrap();
        assert!(tag.contains(" 200 "), "{what}: {tag:.80}");
        run_ok(state, &["status", "--json"]);
        assert!(asked.elapsed() < 2 * ANSWER, "{what}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// As many one-time tokens as nodes, while another process holds the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lock_holds_up_only_who_needs_it() {
    let (state, server) = published(&["--admission", "token"]);
    let reusable = run_ok(state.path(), &["token", "create", "--reusable"]);
    let key = key(state.path());
    for nodes in [1_usize, 20, 100] {
        let tokens: Vec<String> = (0..nodes)
            .map(|_| run_ok(state.path(), &["token", "create"]))
            .collect();
        let lock = File::open(state.path().join("lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut joins = JoinSet::new();
        for token in tokens {
            let to = server.swarm;
            joins.spawn(async move {
                let newcomer = node(key, Ipv4Addr::LOCALHOST.into()).await;
                let first = newcomer.join(&[to], &request(Some(&token))).await.map(drop);
                (newcomer, token, first)
            });
        }
        let state_path = state.path().to_owned();
        let server = &server;
        tokio::task::block_in_place(|| {
            std::thread::sleep(Duration::from_millis(500));
            goes_on(server, &state_path, "a held lock");
            // What has to write nothing needs no lock.
            let bearer = format!("Bearer {}", reusable.trim());
            let answer = server.request("GET", "/images/web", &[("authorization", &bearer)]);
            assert_eq!(answer.status, 200);
        });
        // Answered while it is still held: ask again.
        let mut again = Vec::new();
        while let Some(ended) = joins.join_next().await {
            let (newcomer, token, first) = ended.unwrap();
            let error = first.unwrap_err();
            assert!(error.is_retryable(), "{error}");
            again.push((newcomer, token));
        }
        let bearer = node(key, Ipv4Addr::LOCALHOST.into()).await;
        let admitted = bearer
            .join(&[server.swarm], &request(Some(&reusable)))
            .await;
        assert!(admitted.is_ok(), "{:?}", admitted.err());
        drop(lock);
        // And every one of them is let in, once.
        for (newcomer, token) in again {
            let joined = async {
                loop {
                    match newcomer.join(&[server.swarm], &request(Some(&token))).await {
                        Ok(_) => return,
                        Err(JoinError::Refused { refusal, .. }) => {
                            assert_eq!(refusal, Refusal::Busy);
                        }
                        Err(_) => {}
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(4 * ANSWER, joined).await.unwrap();
        }
    }
}

/// Puts a pipe in the place of `name`; what opens it waits until [`Hung`] is dropped.
struct Hung<'a> {
    state: &'a Path,
    name: &'a str,
    contents: Option<Vec<u8>>,
}

impl<'a> Hung<'a> {
    fn new(state: &'a Path, name: &'a str) -> Hung<'a> {
        let pipe = state.join("pipe");
        let made = Command::new("mkfifo")
            .args(["-m", "600"])
            .arg(&pipe)
            .status();
        assert!(made.unwrap().success());
        let contents = fs::read(state.join(name)).ok();
        // In the place of a file whose directory keeps its time: nobody looks again because of it.
        let directory = state.join(name).parent().unwrap().to_owned();
        let modified = fs::metadata(&directory).unwrap().modified().unwrap();
        fs::rename(&pipe, state.join(name)).unwrap();
        File::open(&directory)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        Hung {
            state,
            name,
            contents,
        }
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        let path = self.state.join(self.name);
        // Whoever waits gets his end of file.
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        let opened = || {
            OpenOptions::new()
                .write(true)
                .custom_flags(nonblocking)
                .open(&path)
        };
        for _ in 0..200 {
            drop(opened());
            std::thread::sleep(Duration::from_millis(1));
        }
        match &self.contents {
            Some(contents) => {
                let new = self.state.join("new");
                fs::write(&new, contents).unwrap();
                fs::rename(&new, &path).unwrap();
            }
            None => fs::remove_file(&path).unwrap(),
        }
        drop(opened());
    }
}

#[test]
fn a_kernel_on_a_disk_that_hangs_holds_up_nobody_else() {
    let (state, server) = published(&[]);
    // The file has been seen by now.
    let seen = Instant::now();
    while !get(server.http, "/boot/vmlinuz")
        .join()
        .unwrap()
        .ends_with("kernel")
    {
        assert!(seen.elapsed() < ANSWER);
    }
    std::thread::sleep(Duration::from_millis(2500));
    let hung = Hung::new(state.path(), "boot/vmlinuz");
    let asked: Vec<_> = (0..20).map(|_| get(server.http, "/boot/vmlinuz")).collect();
    std::thread::sleep(Duration::from_millis(300));
    goes_on(&server, state.path(), "a boot file");
    drop(hung);
    drop(asked);
}

#[test]
fn tokens_on_a_disk_that_hangs_hold_up_nobody_else() {
    let (state, server) = published(&["--admission", "token"]);
    run_ok(state.path(), &["token", "create", "--reusable"]);
    let hung = Hung::new(state.path(), "tokens");
    let asked: Vec<_> = (0..20).map(|_| get(server.http, "/images/web")).collect();
    std::thread::sleep(Duration::from_millis(300));
    goes_on(&server, state.path(), "the tokens");
    let kernel = get(server.http, "/boot/vmlinuz").join().unwrap();
    assert!(kernel.ends_with("kernel"), "{kernel}");
    for asked in asked.into_iter().take(3) {
        let answer = asked.join().unwrap();
        assert!(
            answer.contains(" 503 ") && answer.contains("retry-after"),
            "{answer}"
        );
    }
    drop(hung);
}

#[test]
fn revocations_on_a_disk_that_hangs_hold_up_nobody_else() {
    let (state, server) = published(&[]);
    let hung = Hung::new(state.path(), "revoked");
    std::thread::sleep(Duration::from_millis(500));
    goes_on(&server, state.path(), "the revocations");
    drop(hung);
}
