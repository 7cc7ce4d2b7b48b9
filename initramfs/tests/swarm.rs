//! `fetch` from a real swarm on this machine: seed, peers, refusals, and the way out over HTTP.

#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use seed::{Published, TestSeed, free_udp_port};
use support::{Reply, Running, Server, agent, noise, run};

/// A fetch into a directory of its own.
struct Fetch {
    dir: tempfile::TempDir,
    url: String,
    extra: Vec<String>,
}

impl Fetch {
    fn new(port: u16, extra: &[&str]) -> Fetch {
        let url = format!("swarm://127.0.0.1:{port}/root");
        let extra = extra.iter().map(|word| (*word).to_owned()).collect();
        Fetch {
            dir: tempfile::tempdir().expect("a directory"),
            url,
            extra,
        }
    }

    /// With the installation's key.
    fn keyed(port: u16, published: &Published, extra: &[&str]) -> Fetch {
        let key = published.key_text();
        Fetch::new(port, &[&["--key", &key], extra].concat())
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn command(&self) -> std::process::Command {
        let mut command = agent();
        command
            .args([
                "fetch",
                &self.url,
                "--timeout",
                "20",
                "--bind",
                "127.0.0.1",
                "--conf",
            ])
            .arg(self.dir.path())
            .arg("--output")
            .arg(self.output())
            .arg("--status")
            .arg(self.dir.path().join("status.json"))
            // Nothing listens at port 9: no HTTP unless a test says so.
            .args(["--http-port", "9"])
            .args(&self.extra);
        command
    }

    fn status(&self) -> serde_json::Value {
        let text = std::fs::read(self.dir.path().join("status.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// It works, and the image is the one.
    #[track_caller]
    fn check(&self, image: &[u8]) -> (String, String) {
        let (code, out, err) = run(&mut self.command());
        assert_eq!(code, 0, "{err}");
        check_file(&self.output(), image);
        assert!(!self.dir.path().join("image.part").exists());
        assert_eq!(self.status()["phase"], "done");
        (out, err)
    }

    /// It fails this way, and no image appears.
    #[track_caller]
    fn check_fails(&self, code: i32, part: &str) {
        let (found, out, err) = run(&mut self.command());
        assert_eq!((found, out.as_str()), (code, ""), "{err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(last.starts_with("rootswarm-agent: "), "{err}");
        assert!(last.contains(part), "expected \"{part}\" in: {err}");
        assert!(!self.output().exists());
    }
}

#[track_caller]
fn check_file(path: &Path, image: &[u8]) {
    assert!(
        std::fs::read(path).expect("the image") == image,
        "another image"
    );
}

fn start(fetch: &Fetch) -> Running {
    let child = fetch
        .command()
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Running(child.expect("the agent starts"))
}

#[test]
fn from_the_seed() {
    let published = Published::new(noise(5_000_000));
    let seed = TestSeed::start(&published, 0);
    let fetch = Fetch::keyed(seed.addr.port(), &published, &[]);
    let (out, err) = fetch.check(&published.image);
    let bytes = " s: 5000000 bytes, 5000000 from the seed, 0 from peers, 0 by http";
    assert!(out.contains(bytes), "{out}");
    assert!(out.contains(&published.manifest.id().to_string()), "{out}");
    assert!(err.contains("in 77 chunks"), "{err}");
    assert!(err.contains("rootswarm: 100% 5.0/5.0 MB"), "{err}");
    let status = fetch.status();
    assert_eq!(status["bytes_from_seed"], 5_000_000);
    let seconds = |key: &str| status[key].as_f64().expect("a number of seconds");
    assert!(
        seconds("first_chunk_seconds") <= seconds("fetch_seconds"),
        "{status}"
    );
}

#[test]
fn with_a_pin_and_no_key() {
    let published = Published::new(noise(300_000));
    let seed = TestSeed::start(&published, 0);
    let mut fetch = Fetch::new(seed.addr.port(), &[]);
    fetch.url += &format!("@blake3:{}", published.manifest.id());
    let (_, err) = fetch.check(&published.image);
    assert!(err.contains("the seed's key is not known"), "{err}");
}

#[test]
fn the_seed_is_told_the_rack() {
    let published = Published::new(noise(100_000));
    let seed = TestSeed::start(&published, 0);
    // The loopback is no place: without a name nothing is said.
    for extra in [&["--rack", "row 3/r7"][..], &[]] {
        Fetch::keyed(seed.addr.port(), &published, extra).check(&published.image);
    }
    let racks = seed.racks.lock().expect("no panic").clone();
    assert_eq!(racks, [Some("row 3/r7".to_owned()), None]);
}

#[test]
fn images_of_odd_sizes() {
    for length in [0, 1, 65_535, 65_536, 65_537] {
        let published = Published::new(noise(length));
        let seed = TestSeed::start(&published, 0);
        Fetch::keyed(seed.addr.port(), &published, &[]).check(&published.image);
    }
}

#[test]
fn refusals() {
    let published = Published::new(noise(300_000));
    let seed = TestSeed::with(&published, 0, Some("open sesame"), None);
    let port = seed.addr.port();
    // They are the answer for as long as somebody is willing to ask.
    let token = ["--token", "open sesame", "--timeout", "2"];

    Fetch::keyed(port, &published, &token[2..])
        .check_fails(3, "gave up after 2 s without progress: the seed 127.0.0.1:");
    Fetch::keyed(port, &published, &token[2..]).check_fails(3, "not admitted: a token is needed");
    Fetch::keyed(port, &published, &token).check(&published.image);

    let mut unknown = Fetch::keyed(port, &published, &token);
    unknown.url = unknown.url.replace("/root", "/other");
    unknown.check_fails(6, "no image of that name");

    let other = Published::new(vec![1]);
    Fetch::keyed(port, &other, &token).check_fails(3, "is not trusted: wrong swarm key");

    for key in [Some(&published), None] {
        let mut pinned = match key {
            Some(published) => Fetch::keyed(port, published, &token),
            None => Fetch::new(port, &token),
        };
        pinned.url += &format!("@blake3:{}", other.manifest.id());
        pinned.check_fails(3, "the pin does not match");
    }

    let busy = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let taken = busy.local_addr().expect("an address").port().to_string();
    Fetch::keyed(port, &published, &["--port", &taken]).check_fails(8, "is in use");
}

#[test]
fn nobody_there() {
    let published = Published::new(noise(1));
    let fetch = Fetch::keyed(free_udp_port(), &published, &["--timeout", "6"]);
    let started = Instant::now();
    fetch.check_fails(
        4,
        "gave up after 6 s without progress: cannot reach the seed",
    );
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_seed_that_comes_late() {
    let published = Published::new(noise(1_000_000));
    let port = free_udp_port();
    let fetch = Fetch::keyed(port, &published, &[]);
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch.check(&published.image));
        std::thread::sleep(Duration::from_secs(2));
        let _seed = TestSeed::start(&published, port);
        let (_, err) = fetching.join().expect("the fetch works");
        assert!(err.contains("joined the swarm"), "{err}");
    });
}

#[test]
fn from_a_peer() {
    let published = Published::new(noise(5_000_000));
    // The seed alone would need 100 s for one copy.
    let port = free_udp_port();
    let fast = TestSeed::start(&published, port);
    let first = Fetch::keyed(port, &published, &["--stay"]);
    let mut running = start(&first);
    support::eventually("the first node's image", || {
        first.status()["phase"] == "serving"
    });
    drop(fast);
    let _slow = TestSeed::with(&published, port, None, Some(50_000));
    let second = Fetch::keyed(port, &published, &[]);
    let (out, _) = second.check(&published.image);
    let from_peers = out
        .split(", ")
        .find_map(|part| part.strip_suffix(" from peers")?.parse::<u64>().ok())
        .expect("a number");
    assert!(from_peers > 4_500_000, "{out}");
    support::eventually("the first node's status", || {
        first.status()["bytes_uploaded"].as_u64() >= Some(from_peers)
    });

    // SIGTERM ends the one that stays, in good order.
    let asked = Instant::now();
    let pid = rustix::process::Pid::from_child(&running.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a process");
    assert!(running.0.wait().expect("an end").success());
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(first.status()["phase"], "done");
}

#[test]
fn over_http_when_the_swarm_is_silent() {
    let published = Published::new(noise(3_000_000));
    let http = published.http(Duration::ZERO);
    let http_port = http.addr.port().to_string();
    let nobody = free_udp_port();
    let fetch = Fetch::keyed(nobody, &published, &["--http-port", &http_port]);
    let (out, err) = fetch.check(&published.image);
    assert!(
        out.contains(" 0 from the seed, 0 from peers, 3000000 by http"),
        "{out}"
    );
    assert!(
        err.contains("the swarm does not answer: fetching over http://127.0.0.1:"),
        "{err}"
    );

    // With a pin alone the manifest is held to the pin.
    let mut pinned = Fetch::new(nobody, &["--http-port", &http_port]);
    pinned.url += &format!("@blake3:{}", published.manifest.id());
    pinned.check(&published.image);
}

#[test]
fn over_http_nothing_else_is_believed() {
    let (published, other) = (
        Published::new(noise(300_000)),
        Published::new(noise(300_001)),
    );
    // Another installation's seed: its tag has another signature.
    let http = other.http(Duration::ZERO);
    let http_port = http.addr.port().to_string();
    let extra = ["--http-port", http_port.as_str(), "--timeout", "8"];
    let nobody = free_udp_port();
    Fetch::keyed(nobody, &published, &extra).check_fails(4, "is not signed by");
    // A pin does not get around the key: the image is not one that the key vouches for.
    let mut pinned = Fetch::keyed(nobody, &published, &extra);
    pinned.url += &format!("@blake3:{}", other.manifest.id());
    pinned.check_fails(4, "is not signed by");
    // A blob that is damaged for as long as it is asked for ends it.
    let (tag, manifest) = (published.tag.encode(), published.manifest.encode());
    let mut damaged = published.image.clone();
    damaged[200_000] ^= 1;
    let http = Server::start(move |request, _| match request.path.split('/').nth(1) {
        Some("tags") => Reply::new("200 OK", tag.clone()),
        Some("manifests") => Reply::new("200 OK", manifest.clone()),
        _ => Reply::file(request, &damaged),
    });
    let http_port = http.addr.port().to_string();
    let extra = ["--http-port", http_port.as_str(), "--timeout", "6"];
    Fetch::keyed(nobody, &published, &extra).check_fails(9, "chunk 3");
}

#[test]
fn the_swarm_takes_over_from_http() {
    let published = Published::new(noise(3_000_000));
    // 184 pieces with 100 ms between them: 18 s over HTTP alone.
    let http = published.http(Duration::from_millis(100));
    let http_port = http.addr.port().to_string();
    let port = free_udp_port();
    let fetch = Fetch::keyed(port, &published, &["--http-port", &http_port]);
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch.check(&published.image));
        support::eventually("the fallback", || {
            fetch.status()["bytes_from_http"].as_u64() > Some(200_000)
        });
        let _seed = TestSeed::start(&published, port);
        let (out, err) = fetching.join().expect("the fetch works");
        assert!(err.contains("joined the swarm"), "{err}");
        assert!(!out.contains(" 0 from the seed"), "{out}");
        assert!(!out.contains(" 0 by http"), "{out}");
    });
}

#[test]
fn http_helps_when_the_swarm_is_lost() {
    let published = Published::new(noise(3_000_000));
    let http = published.http(Duration::ZERO);
    let http_port = http.addr.port().to_string();
    let port = free_udp_port();
    let seed = TestSeed::with(&published, port, None, Some(300_000));
    let fetch = Fetch::keyed(port, &published, &["--http-port", &http_port]);
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch.check(&published.image));
        support::eventually("the first chunks", || {
            fetch.status()["bytes_from_seed"].as_u64() > Some(200_000)
        });
        drop(seed);
        let (out, err) = fetching.join().expect("the fetch works");
        assert!(
            err.contains("the swarm is out of reach: fetching over http"),
            "{err}"
        );
        assert!(
            !out.contains(" 0 from the seed") && !out.contains(" 0 by http"),
            "{out}"
        );
        let parts = out.split(", ").filter_map(|part| {
            let number = part
                .strip_suffix(" from the seed")
                .or(part.strip_suffix(" from peers"));
            number
                .or(part.split(" by http").next())
                .and_then(|n| n.parse::<u64>().ok())
        });
        assert_eq!(parts.sum::<u64>(), 3_000_000, "{out}");
    });
}

/// One seed is connected and sends next to nothing; the other one can be reached over HTTP only.
#[test]
fn http_helps_when_a_seed_is_there_and_sends_nothing() {
    for (chunks, mixed) in [(40, false), (7, true)] {
        let published = Published::new(noise(chunks * 65_536));
        let port = free_udp_port();
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let _stalls = TestSeed::at(&published, listen, None, Some(1));
        let other = std::net::SocketAddr::from(([127, 0, 0, 2], 0));
        let http = Server::start_at(other, {
            let answer = published.http_answer(Duration::ZERO);
            move |request, _| answer(request)
        });
        let at = http.addr.port().to_string();
        let mut fetch = Fetch::keyed(port, &published, &["--http-port", &at]);
        let dead = free_udp_port();
        fetch.url = match mixed {
            true => format!("swarm://127.0.0.2:{dead},127.0.0.1:{port}/root"),
            false => format!("swarm://127.0.0.1:{port},127.0.0.2:{dead}/root"),
        };
        let (_, err) = fetch.check(&published.image);
        assert!(
            err.contains("the swarm sends nothing: fetching over"),
            "{err}"
        );
    }
}

#[test]
fn a_host_by_name() {
    let published = Published::new(noise(100_000));
    let seed = TestSeed::start(&published, 0);
    let mut fetch = Fetch::keyed(seed.addr.port(), &published, &[]);
    fetch.url = fetch.url.replace("127.0.0.1", "localhost");
    fetch.check(&published.image);
}

#[test]
fn without_a_network_it_says_so() {
    let published = Published::new(noise(1));
    let fetch = Fetch::keyed(7400, &published, &["--timeout", "1"]);
    let mut command = std::process::Command::new("unshare");
    let inner = fetch.command();
    command
        .arg("--net")
        .arg(inner.get_program())
        .args(inner.get_args());
    // Not the loopback's address, which could be there in a namespace too.
    let args = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    let args = args
        .map(|arg| arg.replace("127.0.0.1:7400", "192.0.2.1:7400"))
        .collect::<Vec<_>>();
    let args = args
        .iter()
        .filter(|arg| *arg != "--bind" && *arg != "127.0.0.1");
    let (code, _, err) = run(std::process::Command::new("unshare").args(args));
    assert_eq!(code, 4, "{err}");
    let last = err.lines().last().unwrap_or_default();
    assert!(last.contains("no route to 192.0.2.1:7400"), "{err}");
}
