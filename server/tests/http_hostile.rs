//! Plain HTTP as a hostile client does it: slow, endless, oversized, and with names that are paths.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Server, run_ok, squashfs};
use proptest::prelude::*;
use rootswarm::http::server::{HEADER_TIMEOUT, MAX_ANSWERS, MAX_CONNECTIONS_PER_ADDRESS};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// For anything that an honest client gets at once.
const PROMPT: Duration = Duration::from_secs(10);

fn publish(state: &Path, bytes: &[u8]) {
    let source = tempfile::NamedTempFile::new().unwrap();
    fs::write(source.path(), bytes).unwrap();
    let file = source.path().to_str().unwrap().to_owned();
    run_ok(state, &["publish", "--quiet", "web", &file]);
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PROMPT)).unwrap();
    stream
}

/// Sends `request` and returns everything up to the end of the connection.
fn exchange(to: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(to);
    // It may be closed before all of it was read.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

#[test]
fn who_sends_a_head_slowly_is_cut_off_and_holds_up_nobody() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(300_000, 7));
    let server = Server::start(state.path(), &[]);
    let begin = Instant::now();
    // As many as one address may have, but for one; each sends a byte now and then.
    let mut slow: Vec<TcpStream> = (1..MAX_CONNECTIONS_PER_ADDRESS)
        .map(|_| connect(server.http))
        .collect();
    for stream in &mut slow {
        stream.write_all(b"GET /images/web HTTP/1.1\r\n").unwrap();
    }
    let mut cut_off = 0;
    while cut_off < slow.len() {
        assert!(
            begin.elapsed() < HEADER_TIMEOUT + PROMPT,
            "{} of {} still hold their connection",
            slow.len() - cut_off,
            slow.len()
        );
        // An honest client is served all the time.
        let answer = server.request("GET", "/images/web", &[("range", "bytes=5-9")]);
        assert_eq!(answer.status, 206);
        std::thread::sleep(Duration::from_millis(500));
        cut_off = slow
            .iter_mut()
            .filter_map(|stream| stream.write_all(b"x").err())
            .count();
    }
    assert!(begin.elapsed() >= HEADER_TIMEOUT / 2, "they had their time");
}

/// What SECURITY.md promises of a seed.
const SEED_KIB: u64 = 256 * 1024;

fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // The least there is: what is sent stays with the sender.
    socket.set_recv_buffer_size(1).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PROMPT)).unwrap();
    stream
}

fn peak_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let digits = line.and_then(|line| line.split_whitespace().nth(1));
    digits.unwrap().parse().unwrap()
}

/// As many as there may be, from as many addresses as that takes, each in the middle of a kernel that
/// it does not read: the next one waits, nobody is closed, `/healthz` is answered, and the memory is what
/// is promised.
#[allow(clippy::print_stdout)] // The figure, for whoever asks with --nocapture.
#[test]
fn the_last_place_is_waited_for() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(300_000, 7));
    fs::write(state.path().join("boot/vmlinuz"), vec![7; 2 << 20]).unwrap();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let server = Server::start_under(&["prlimit", "--nofile=8192"], state.path(), &[]);
    let addresses = MAX_ANSWERS / MAX_CONNECTIONS_PER_ADDRESS;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut held = Vec::new();
    for address in 0..addresses {
        // Loopback is 16 million addresses.
        let from = Ipv4Addr::new(127, 0, 1, address as u8 + 1);
        let mut asked: Vec<TcpStream> = (0..MAX_CONNECTIONS_PER_ADDRESS)
            .map(|_| connect_from(from, server.http))
            .collect();
        for stream in &mut asked {
            stream.write_all(get("/boot/vmlinuz").as_bytes()).unwrap();
        }
        for stream in &mut asked {
            // It has its place when the answer begins.
            let mut head = [0; 15];
            stream.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
        }
        held.extend(asked);
    }
    assert_eq!(held.len(), MAX_ANSWERS);
    // Whether the server lives is not asked in vain.
    assert_eq!(server.request("GET", "/healthz", &[]).status, 200);
    let mut late = connect_from(Ipv4Addr::new(127, 0, 2, 1), server.http);
    late.write_all(get("/boot/vmlinuz").as_bytes()).unwrap();
    let mut head = [0; 15];
    late.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let waited = late.read_exact(&mut head).unwrap_err();
    assert_eq!(waited.kind(), std::io::ErrorKind::WouldBlock);
    let peak = peak_kib(server.child.id());
    println!("{MAX_ANSWERS} slow readers: at most {peak} KiB resident");
    assert!(peak <= SEED_KIB, "{peak} KiB");
    // One goes, and the place is the next one's.
    held.pop();
    late.set_read_timeout(Some(PROMPT)).unwrap();
    late.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

#[test]
fn heads_that_are_none_are_refused() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(300_000, 7));
    let server = Server::start(state.path(), &[]);
    let get = |rest: &str| format!("GET /images/web HTTP/1.1\r\nhost: x\r\n{rest}\r\n\r\n");
    let many_fields = "a: b\r\n".repeat(500);
    for (what, request, statuses) in [
        (
            "a head of 64 KiB",
            get(&format!("x: {}", "y".repeat(64 * 1024))),
            &["431"][..],
        ),
        ("500 fields", get(many_fields.trim_end()), &["431"]),
        (
            "a path of 64 KiB",
            format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(64 * 1024)),
            &["414", "431"],
        ),
        ("no HTTP", "\x16\x03\x01\x02\0\x01\0".repeat(100), &["400"]),
        (
            "two lengths",
            get("connection: close\r\ncontent-length: 1\r\ncontent-length: 2"),
            &["400"],
        ),
        (
            "a length that is none",
            get("connection: close\r\ncontent-length: -1"),
            &["400"],
        ),
        (
            "another version",
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            &["400"],
        ),
    ] {
        let answer = exchange(server.http, request.as_bytes());
        assert!(
            statuses.contains(&status(&answer)),
            "{what}: {:?}",
            answer.lines().next()
        );
    }
    assert_eq!(server.request("GET", "/healthz", &[]).status, 200);
}

/// A thousand ranges are as good as none: one answer, once the image.
#[test]
fn many_ranges_cost_one_answer() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(300_000, 7));
    let server = Server::start(state.path(), &[]);
    let ranges: Vec<String> = (0..1000).map(|_| "0-299999".to_owned()).collect();
    let header = format!("bytes={}", ranges.join(","));
    let answer = server.request("GET", "/images/web", &[("range", &header)]);
    assert_eq!((answer.status, answer.body.len()), (200, 300_000));
}

#[test]
fn requests_in_one_go_are_answered_in_order() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(300_000, 7));
    let server = Server::start(state.path(), &[]);
    let mut requests = String::new();
    for number in 0..100 {
        let path = if number % 2 == 0 {
            "/healthz"
        } else {
            "/nothing"
        };
        requests += &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    requests += "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = exchange(server.http, requests.as_bytes());
    let statuses: Vec<&str> = answer
        .lines()
        .filter(|line| line.starts_with("HTTP/1.1 "))
        .map(status)
        .collect();
    assert_eq!(statuses.len(), 101);
    for (number, found) in statuses.into_iter().enumerate() {
        let expected = if number % 2 == 0 { "200" } else { "404" };
        assert_eq!(found, expected, "answer {number}");
    }
}

/// Bodies are not read: there is nothing that takes one.
#[test]
fn an_endless_body_is_not_taken() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(300_000, 7));
    let server = Server::start(state.path(), &[]);
    let mut stream = connect(server.http);
    stream
        .write_all(b"POST /images/web HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let block = [b"10000\r\n", &[b'x'; 65_536][..], b"\r\n"].concat();
    let mut sent = 0_u64;
    while stream.write_all(&block).is_ok() {
        sent += block.len() as u64;
        assert!(sent < 64 << 20, "64 MiB of a body were taken");
    }
}

/// Asks for names that are paths, or look like it, under a tracer: whatever was asked, nothing but
/// the state directory was opened.
#[test]
fn nothing_outside_the_state_directory_is_opened() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), &squashfs(1000, 7));
    let root = fs::canonicalize(state.path()).unwrap();
    fs::write(root.join("boot/vmlinuz"), b"kernel").unwrap();
    let trace = root.with_extension("trace");
    let mut traced = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-s",
            "512",
            "-e",
            "trace=open,openat,openat2,execve",
        ])
        .arg("-o")
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_rootswarm"))
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .arg("--state")
        .arg(&root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace is there (cargo xtask test installs it)");
    let mut http = None;
    for line in BufReader::new(traced.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once("http on ") {
            http = rest.split([',', ' ']).next().unwrap().parse().ok();
            break;
        }
    }
    let http: SocketAddr = http.expect("the server says where it listens");
    // What follows is caused by requests (or is the poll of the state directory).
    let before = fs::read_to_string(&trace).unwrap().len();
    let key = fs::read(root.join("swarm.key")).unwrap();
    let names = [
        "web",
        "..",
        "../swarm.key",
        "../../etc/passwd",
        "/etc/passwd",
        "%2e%2e%2fswarm.key",
        "..%2f..%2f..%2fetc%2fpasswd",
        "%2fetc%2fpasswd",
        "....//swarm.key",
        "..\\swarm.key",
        "web%00",
        "%00",
        "~root",
        "web/../../swarm.key",
        "%252e%252e%252fswarm.key",
        "vmlinuz",
        "sub/../vmlinuz",
    ];
    let mut asked = 0;
    for place in ["images", "blobs", "manifests", "tags", "boot", ""] {
        for name in names {
            let request = format!("GET /{place}/{name} HTTP/1.0\r\n\r\n");
            let answer = exchange(http, request.as_bytes());
            assert!(!answer.is_empty(), "{place}/{name}");
            assert!(!answer.contains("root:"), "{place}/{name}: {answer}");
            assert!(
                !answer.as_bytes().windows(key.len()).any(|part| part == key),
                "{place}/{name}: the swarm key"
            );
            asked += 1;
        }
    }
    assert_eq!(asked, 6 * names.len());
    // The tracer hands SIGTERM to nobody: its child is asked by its own number.
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", traced.id())).unwrap();
    let server = children.split_whitespace().next().unwrap();
    Command::new("kill")
        .args(["-TERM", server])
        .status()
        .unwrap();
    traced.wait().unwrap();
    let trace_text = fs::read_to_string(&trace).unwrap();
    fs::remove_file(&trace).unwrap();
    let opened = &trace_text[before..];
    let mut boot_files = 0;
    for line in opened
        .lines()
        .filter(|line| line.contains("open") || line.contains("execve"))
    {
        let Some(path) = line.split('"').nth(1) else {
            continue;
        };
        assert!(
            Path::new(path).starts_with(&root) && !path.contains(".."),
            "opened outside the state directory: {line}"
        );
        boot_files += usize::from(path.ends_with("boot/vmlinuz"));
    }
    assert!(
        boot_files > 0,
        "the tracer saw the file that is there:\n{opened}"
    );
}

proptest! {
    /// Row 5 of the threats: what is accepted as a name is one component of a path, if anybody made
    /// one of it, and is neither hidden from a shell nor special to it.
    #[test]
    fn a_name_is_harmless(text in "\\PC{0,80}|[a-z0-9._/%-]{0,70}") {
        if let Ok(name) = text.parse::<rootswarm_image::ImageName>() {
            let path = Path::new("/state/tags").join(name.as_str());
            prop_assert_eq!(path.parent(), Some(Path::new("/state/tags")));
            prop_assert_eq!(path.components().count(), 4);
            prop_assert!(name.as_str().bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
        }
    }
}
