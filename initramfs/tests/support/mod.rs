//! What the agent's tests share: the binary, a web server that misbehaves on request, images, and
//! a mount namespace of one's own.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rootswarm_image::{ChunkSize, Manifest};

/// A program that ends with the test, however that ends.
pub struct Running(pub Child);

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The agent, as built for this test.
pub fn agent() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rootswarm-agent"))
}

/// Runs it and gives exit code, standard output and standard error.
pub fn run(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the agent starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the agent speaks UTF-8");
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

/// Bytes that no compressor and no zero-skipping can touch, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The manifest of an image, in the smallest chunks there are.
pub fn manifest(image: &[u8]) -> Manifest {
    manifest_in(image, ChunkSize::MIN)
}

/// The manifest of an image, in chunks of this size.
pub fn manifest_in(image: &[u8], chunks: ChunkSize) -> Manifest {
    let one = std::num::NonZeroUsize::MIN;
    rootswarm_image::hash_image(image, chunks, one, &|_| {}).expect("an image that fits")
}

/// A request, as far as a test looks at it.
#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    /// First and last byte asked for.
    pub range: Option<(u64, Option<u64>)>,
    pub if_range: Option<String>,
    /// Which token is shown, and for which download.
    pub authorization: Option<String>,
    pub session: Option<String>,
}

/// What the server does with a request.
pub struct Reply {
    pub status: &'static str,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
    /// Close after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// Before the headers.
    pub delay: Duration,
    /// The body's pieces, in bytes, and what lies between two.
    pub piece: usize,
    pub pause: Duration,
}

impl Reply {
    pub fn new(status: &'static str, body: impl Into<Vec<u8>>) -> Reply {
        let body = body.into();
        Reply {
            status,
            headers: vec![format!("Content-Length: {}", body.len())],
            body,
            cut_after: None,
            delay: Duration::ZERO,
            piece: 16 * 1024,
            pause: Duration::ZERO,
        }
    }

    /// A file, ranges honoured.
    pub fn file(request: &Request, file: &[u8]) -> Reply {
        match request.range {
            None => Reply::new("200 OK", file).header("ETag: \"one\""),
            Some((first, last)) if (first as usize) < file.len() => {
                let end = last.map_or(file.len(), |last| file.len().min(last as usize + 1));
                let range = format!("Content-Range: bytes {first}-{}/{}", end - 1, file.len());
                Reply::new("206 Partial Content", &file[first as usize..end])
                    .header(&range)
                    .header("ETag: \"one\"")
            }
            Some(_) => Reply::new("416 Range Not Satisfiable", ""),
        }
    }

    /// A byte each second, which is alive and no progress.
    pub fn dripping(self) -> Reply {
        Reply {
            piece: 1,
            pause: Duration::from_secs(1),
            ..self
        }
    }

    pub fn header(mut self, header: &str) -> Reply {
        self.headers.push(header.to_owned());
        self
    }
}

/// A web server in a thread; one thread more for each connection.
pub struct Server {
    pub addr: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
        Server::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), answer)
    }

    pub fn start_at(
        address: SocketAddr,
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind(address).expect("a port");
        let addr = listener.local_addr().expect("an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped, answer) = (requests.clone(), stop.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    // A client that goes away is part of the tests.
                    let _ = serve(stream, &seen, &*answer);
                });
            }
        });
        Server {
            addr,
            requests,
            stop,
        }
    }

    /// Serves one file under every path but the manifest's.
    pub fn of_file(file: Vec<u8>) -> Server {
        Server::start(
            move |request, _| match request.path.starts_with("/manifests/") {
                true => Reply::new("404 Not Found", ""),
                false => Reply::file(request, &file),
            },
        )
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The requests so far, without those for manifests.
    pub fn file_requests(&self) -> Vec<Request> {
        let requests = self.requests.lock().expect("no test panics with it");
        requests
            .iter()
            .filter(|r| !r.path.starts_with("/manifests/"))
            .cloned()
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the listener up.
        let _ = TcpStream::connect(self.addr);
    }
}

fn serve(
    stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &(dyn Fn(&Request, usize) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request {
        path,
        range: None,
        if_range: None,
        authorization: None,
        session: None,
    };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (first, last) = value
                    .strip_prefix("bytes=")
                    .and_then(|v| v.split_once('-'))
                    .expect("a range");
                request.range = Some((first.parse().expect("a number"), last.parse().ok()));
            }
            "if-range" => request.if_range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            "rootswarm-session" => request.session = Some(value.to_owned()),
            _ => {}
        }
    }
    let number = {
        let mut seen = seen.lock().expect("no test panics with it");
        seen.push(request.clone());
        seen.iter().filter(|r| r.path == request.path).count() - 1
    };
    let reply = answer(&request, number);
    std::thread::sleep(reply.delay);
    let mut stream = stream;
    let headers = reply
        .headers
        .iter()
        .map(|h| format!("{h}\r\n"))
        .collect::<String>();
    write!(stream, "HTTP/1.1 {}\r\n{headers}\r\n", reply.status)?;
    let body = &reply.body[..reply
        .cut_after
        .unwrap_or(reply.body.len())
        .min(reply.body.len())];
    for piece in body.chunks(reply.piece) {
        stream.write_all(piece)?;
        std::thread::sleep(reply.pause);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the client has read all: closing with its bytes unread would reset the connection.
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let _ = stream.read_to_end(&mut rest);
    Ok(())
}

const IN_NAMESPACE: &str = "ROOTSWARM_TEST_IN_MOUNT_NAMESPACE";

/// Runs `body` in a mount namespace of its own, by running this very test again in one: nothing it
/// mounts is seen outside, and nothing it forgets survives.
pub fn in_mount_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(IN_NAMESPACE).is_some() {
        body();
        return;
    }
    let own = std::env::current_exe().expect("this test");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(own)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(IN_NAMESPACE, "1")
        .status()
        .expect("unshare (util-linux)");
    assert!(
        status.success(),
        "{test} in a mount namespace (needs root): {status}"
    );
}

/// Every mount there is, as the kernel tells it, without ids that change. Names of network namespaces are
/// mounts too: others of this machine come and go.
pub fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    text.lines()
        .filter(|line| !line.contains(" /run/netns"))
        .map(|line| line.split(' ').skip(3).collect::<Vec<_>>().join(" "))
        .collect()
}

/// The file system type mounted at `path`, topmost.
pub fn mounted_at(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    text.lines()
        .rev()
        .find(|line| line.split(' ').nth(4) == path.to_str())
        .and_then(|line| {
            line.split(" - ")
                .nth(1)?
                .split(' ')
                .next()
                .map(str::to_owned)
        })
}

/// Loop devices whose file has `part` in its path.
pub fn loops_of(part: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").expect("/sys").flatten() {
        let file = entry.path().join("loop/backing_file");
        if std::fs::read_to_string(file).is_ok_and(|text| text.contains(part)) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}

/// Waits until `condition` holds; the kernel clears loop devices a moment after the unmount.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within 10 s"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A squashfs of `tree`.
pub fn squashfs(tree: &Path, image: &Path) {
    let output = Command::new("mksquashfs")
        .arg(tree)
        .arg(image)
        .args(["-noappend", "-no-progress", "-quiet"])
        .output()
        .expect("mksquashfs (squashfs-tools)");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A tree like a small root, with every kind of file.
pub fn small_root(dir: &Path) -> PathBuf {
    let root = dir.join("tree");
    let script = r#"
        set -e
        mkdir -p "$1"/etc "$1"/bin "$1"/dev "$1"/proc "$1"/run "$1"/empty
        cd "$1"
        echo swarm > etc/hostname
        head -c 300000 /dev/urandom > bin/big
        ln bin/big bin/same
        chown 7:9 bin/big
        chmod 6755 bin/big
        ln -s ../bin/big etc/link
        ln -s /nowhere etc/dangling
        chown -h 11:12 etc/dangling
        mknod dev/null c 1 3
        mknod dev/sda b 8 0
        mkfifo run/fifo
        chmod 1777 empty
        chown 3:4 empty
        truncate -s 5M etc/hole
        printf end >> etc/hole
        : > etc/nothing
        setfattr -n trusted.swarm -v yes etc/hostname
        setcap cap_net_raw+ep bin/big
        touch -h -d '2001-02-03 04:05:06.5' etc/link etc/hostname bin/big dev/null run/fifo empty etc
    "#;
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(&root)
        .output()
        .expect("a shell");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    root
}
