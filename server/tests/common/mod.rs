//! Runs the program as an admin would: the binary, its exit code, its two outputs.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rootswarm_image::SwarmPublicKey;
use rootswarm_transport::node::{JoinRequest, Node, NodeConfig, SeedTrust};
use rootswarm_transport::tuning::Tuning;

/// The binary, with an environment that has nothing of the machine's own configuration.
pub fn rootswarm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rootswarm"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROOTSWARM_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command line in which `STATE` stands for the state directory.
pub fn run(state: &Path, args: &[&str]) -> Output {
    rootswarm()
        .arg("--state")
        .arg(state)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// `rootswarm serve` on free ports of loopback.
pub const SERVE: &[&str] = &["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts that it worked and returns its output.
pub fn run_ok(state: &Path, args: &[&str]) -> String {
    let output = run(state, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// Runs a command that must fail with `code` and one line that contains `words`, and must leave the
/// state directory as it was.
pub fn refuse(state: &Path, args: &[&str], code: i32, words: &str) {
    let before = listing(state);
    let output = run(state, args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(
        said.starts_with("rootswarm: ") && said.lines().count() == 1,
        "{args:?}: {said}"
    );
    assert!(
        said.contains(words),
        "{args:?}: expected {words:?} in {said}"
    );
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(listing(state), before, "{args:?} left something");
}

/// Bytes that look like a squashfs of their length and are otherwise never the same twice.
pub fn squashfs(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes: Vec<u8> = (0..length)
        .map(|_| {
            // xorshift64: no chunk equals another.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    if length >= 96 {
        bytes[..96].fill(0);
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[28..30].copy_from_slice(&4u16.to_le_bytes());
        bytes[40..48].copy_from_slice(&(length as u64).to_le_bytes());
    }
    bytes
}

/// Every path below `directory` with its length, sorted: what a failed command may not change.
/// Locks and the key are made by any command and left out.
pub fn listing(directory: &Path) -> Vec<String> {
    fn visit(directory: &Path, root: &Path, found: &mut Vec<String>) {
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                visit(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                if !["lock", "serve.lock", "swarm.key", "swarm.pub"].contains(&name.as_str()) {
                    found.push(format!(
                        "{name} {}",
                        entry.metadata().map_or(0, |m| m.len())
                    ));
                }
            }
        }
    }
    let mut found = Vec::new();
    visit(directory, directory, &mut found);
    found.sort();
    found
}

/// A state directory with an image in it, and room for files beside it.
pub struct Place {
    /// Removed with what is in it at the end.
    pub directory: tempfile::TempDir,
}

impl Place {
    /// A state directory in which `web` is published, and a few files beside it.
    pub fn new() -> Place {
        let place = Place {
            directory: tempfile::tempdir().unwrap(),
        };
        place.file("web.squashfs", &squashfs(300_000, 1));
        run_ok(
            &place.state(),
            &["publish", "--quiet", "web", &place.path("web.squashfs")],
        );
        place
    }

    pub fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub fn file(&self, name: &str, contents: &[u8]) -> String {
        fs::write(self.directory.path().join(name), contents).unwrap();
        self.path(name)
    }

    pub fn tag(&self) -> Vec<u8> {
        fs::read(self.state().join("tags/web")).unwrap()
    }
}

/// A running `rootswarm serve`, ended when dropped.
pub struct Server {
    pub child: Child,
    pub http: SocketAddr,
    pub swarm: SocketAddr,
    /// What it said on standard error before it said where it listens.
    pub said_first: Vec<String>,
    lines: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
    state: PathBuf,
}

fn pump(stream: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

impl Server {
    /// Starts on free ports of loopback and waits until it says where it listens.
    pub fn start(state: &Path, args: &[&str]) -> Server {
        Server::spawn(rootswarm(), state, args)
    }

    /// The same under a command that runs what follows it.
    pub fn start_under(under: &[&str], state: &Path, args: &[&str]) -> Server {
        let mut command = Command::new(under[0]);
        command.args(&under[1..]).arg(rootswarm().get_program());
        Server::spawn(command, state, args)
    }

    /// The same with a command of the caller's, which runs the program in the end.
    pub fn spawn(mut command: Command, state: &Path, args: &[&str]) -> Server {
        command.arg("serve").arg("--state").arg(state);
        for option in ["--listen", "--http"] {
            if !args.contains(&option) {
                command.args([option, "127.0.0.1:0"]);
            }
        }
        let mut child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines = pump(child.stdout.take().unwrap());
        let errors = pump(child.stderr.take().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut said_first = Vec::new();
        let said = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = errors
                .recv_timeout(left)
                .expect("the server says where it listens");
            if line.contains("swarm on ") {
                break line;
            }
            said_first.push(line);
        };
        let after = |word: &str| -> SocketAddr {
            let rest = &said[said.find(word).unwrap() + word.len()..];
            rest.split([',', ' ']).next().unwrap().parse().unwrap()
        };
        Server {
            swarm: after("swarm on "),
            http: after("http on "),
            said_first,
            child,
            lines,
            errors,
            state: state.to_owned(),
        }
    }

    /// The next line on standard output.
    pub fn line(&self) -> String {
        self.lines
            .recv_timeout(Duration::from_secs(30))
            .expect("the server prints a line")
    }

    /// Whether standard output has no more lines for now.
    pub fn is_silent(&self) -> bool {
        self.lines
            .recv_timeout(Duration::from_millis(1500))
            .is_err()
    }

    /// The next line on standard error that contains `words`.
    pub fn error(&self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .errors
                .recv_timeout(left)
                .unwrap_or_else(|_| panic!("nothing about {words:?}"));
            if line.contains(words) {
                return line;
            }
        }
    }

    /// What it has said on standard error since that was last read.
    pub fn said(&self) -> Vec<String> {
        self.errors.try_iter().collect()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&run_ok(&self.state, &["status", "--json"])).unwrap()
    }

    /// What it sent of its first image to the swarm.
    pub fn uploaded(&self) -> u64 {
        self.status()["images"][0]["uploaded_bytes"]
            .as_u64()
            .unwrap()
    }

    /// How many nodes are connected to the swarm of its first image.
    pub fn nodes(&self) -> usize {
        let status = self.status();
        status["images"][0]["nodes"].as_array().map_or(0, Vec::len)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Ends it as systemd would, and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("TERM");
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(
                    !self.state.join("control.sock").exists(),
                    "the control socket was left behind"
                );
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the server does not end");
    }

    /// Sends a request of one's own and returns the whole answer: status, headers, body.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        request_from(self.http, method, path, headers)
    }
}

/// The whole answer to GET.
pub fn get(server: SocketAddr, path: &str) -> Answer {
    request_from(server, "GET", path, &[])
}

fn request_from(server: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(server).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: seed\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((text + "\r\n").as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let end = bytes
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("an answer with a head");
        let head = String::from_utf8(bytes[..end].to_vec())
            .unwrap()
            .to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            status,
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// The public half of the swarm key in a state directory.
pub fn key(state: &Path) -> SwarmPublicKey {
    run_ok(state, &["key"]).trim().parse().unwrap()
}

/// Loopback is always let in: who is not has to come from an address of the host's own.
pub fn address_besides_loopback() -> IpAddr {
    rootswarm::network::interface_addresses()
        .unwrap()
        .into_iter()
        .map(|entry| entry.address)
        .find(|address| address.is_ipv4() && !address.is_loopback())
        .expect("this test needs an interface with an IPv4 address besides loopback")
}

/// A node on a free port of `bind` that knows the swarm key.
pub async fn node(key: SwarmPublicKey, bind: IpAddr) -> Node {
    Node::bind(NodeConfig {
        bind: Some(bind),
        port: 0,
        trust: SeedTrust::Key(key),
        upload_limit_bytes_per_s: None,
        tuning: Tuning::default(),
    })
    .await
    .unwrap()
}

/// Asks for the image `web`, with this token or none.
pub fn request(token: Option<&str>) -> JoinRequest {
    JoinRequest {
        name: "web".parse().unwrap(),
        pin: None,
        token: token.map(|token| token.trim().to_owned()),
        rack: None,
    }
}

/// Makes it two minutes since the tokens kept in `state` were used.
pub fn age_tokens(state: &Path) {
    age_tokens_by(state, 120);
}

/// Makes it so many seconds longer since the tokens kept in `state` were used.
pub fn age_tokens_by(state: &Path, seconds: u64) {
    let line = |line: &str| {
        let mut fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if let Some(used) = fields.get_mut(2).filter(|field| field.starts_with("used:")) {
            let (head, at) = used.rsplit_once(':').unwrap();
            *used = format!("{head}:{}", at.parse::<u64>().unwrap() - seconds);
        }
        fields.join(" ") + "\n"
    };
    let file = state.join("tokens");
    let aged: String = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(line)
        .collect();
    // As whoever changes it does: whole, or not at all.
    let new = state.join("tokens.aged");
    std::fs::write(&new, aged).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&new, mode).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Waits until `holds` does.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_secs(60);
    let waited = tokio::time::timeout(limit, waiting).await;
    assert!(waited.is_ok(), "{what} did not come within {limit:?}");
}

/// The id in a rooturl.
pub fn id_of(url: &str) -> String {
    let pinned = url.trim().rsplit_once("@blake3:");
    let (_, id) = pinned.unwrap_or_else(|| panic!("no pin: {url}"));
    id.to_owned()
}

/// The generations of `web`, newest first.
pub fn listed(place: &Place) -> Vec<String> {
    let text = run_ok(&place.state(), &["images"]);
    let ids = text.lines().filter(|line| line.starts_with("web"));
    ids.map(|line| line.split_whitespace().last().unwrap().to_owned())
        .collect()
}

/// Starts a server that is told `web=FILE` and returns what the name means then, and what was said.
pub fn serve(place: &Place, file: &str) -> (String, Server) {
    let server = Server::start(&place.state(), &[&format!("web={file}")]);
    let mut id = id_of(&server.line());
    // What is there is announced first, and then what is published.
    while !server.is_silent() {
        id = listed(place)[0].clone();
    }
    (id, server)
}
