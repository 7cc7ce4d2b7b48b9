//! "Not now" is not "no": what a seed or a web server says at one moment ends nothing by itself. Each
//! refusal here passes while the agent waits, or the image comes another way.

#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rootswarm_transport::seed::Refusal;
use seed::{Published, TestSeed, free_udp_port};
use support::{Reply, Server, agent, eventually, noise, run};

/// A fetch into a directory of its own.
struct Fetch {
    dir: tempfile::TempDir,
    words: Vec<String>,
}

impl Fetch {
    fn new(url: &str, words: &[&str]) -> Fetch {
        let words = [url].into_iter().chain(words.iter().copied());
        Fetch {
            dir: tempfile::tempdir().expect("a directory"),
            words: words.map(str::to_owned).collect(),
        }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Exit code, standard output and standard error.
    fn run(&self) -> (i32, String, String) {
        run(agent()
            .arg("fetch")
            .args(&self.words)
            .arg("--conf")
            .arg(self.dir.path())
            .arg("--output")
            .arg(self.output()))
    }

    /// It works, and the image is the one; what was said on standard error and output.
    #[track_caller]
    fn check(&self, image: &[u8]) -> (String, String) {
        let (code, out, err) = self.run();
        assert_eq!(code, 0, "{err}");
        assert!(
            std::fs::read(self.output()).expect("the image") == image,
            "another image: {err}"
        );
        (err, out)
    }
}

/// Long enough for anything here to pass on a busy machine.
const LONG: &str = "120";

/// Each refusal, said until somebody has come three times; then the seed has changed its mind.
#[test]
fn a_refusal_that_passes_ends_nothing() {
    let published = Published::new(noise(300_000));
    let other = published.beside(noise(70_000));
    let pin = format!("@blake3:{}", published.manifest.id());
    let key = published.key_text();
    for (listen, refusal, part) in [
        // Right after `publish`: the name is not known yet, or still the image of yesterday.
        ("127.0.0.1", Refusal::UnknownImage, "no image of that name"),
        (
            "127.0.0.1",
            Refusal::PinMismatch {
                current: *other.manifest.id(),
            },
            "the pin does not match",
        ),
        (
            "127.0.0.1",
            Refusal::NotAdmitted("the tokens cannot be read at the moment".to_owned()),
            "cannot be read at the moment",
        ),
        ("127.0.0.1", Refusal::Busy, "cannot answer this now"),
        // The same over IPv6, and without a pin.
        ("[::1]", Refusal::UnknownImage, "no image of that name"),
    ] {
        let listen: SocketAddr = format!("{listen}:0").parse().expect("an address");
        let seed = TestSeed::at(&published, listen, None, None);
        seed.refuse(Some(refusal));
        let pin = if listen.is_ipv4() { pin.as_str() } else { "" };
        let url = format!("swarm://{}/root{pin}", seed.addr);
        let fetch = Fetch::new(
            &url,
            &["--key", &key, "--timeout", LONG, "--http-port", "9"],
        );
        let (err, out) = std::thread::scope(|scope| {
            let fetching = scope.spawn(|| fetch.check(&published.image));
            eventually("three tries", || seed.asked() >= 3);
            seed.refuse(None);
            fetching.join().expect("the fetch works")
        });
        assert!(
            err.contains(part) && err.contains("trying again, for "),
            "{part}: {err}"
        );
        assert!(out.contains(" 300000 from the seed"), "{out}");
    }
}

/// Somebody else answers at the seed's address; later it is the seed.
#[test]
fn a_rogue_answerer_that_goes_ends_nothing() {
    let published = Published::new(noise(300_000));
    let rogue = Published::new(noise(300_000));
    let port = free_udp_port();
    let key = published.key_text();
    let url = format!("swarm://127.0.0.1:{port}/root");
    let fetch = Fetch::new(
        &url,
        &["--key", &key, "--timeout", LONG, "--http-port", "9"],
    );
    let mut impostor = Some(TestSeed::start(&rogue, port));
    let (err, _) = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch.check(&published.image));
        std::thread::sleep(Duration::from_secs(2));
        drop(impostor.take());
        let _seed = TestSeed::start(&published, port);
        fetching.join().expect("the fetch works")
    });
    assert!(err.contains("is not trusted: wrong swarm key"), "{err}");
}

/// A seed that will never say yes, by any of these, and its HTTP side that does.
#[test]
fn what_the_swarm_refuses_http_may_bring() {
    let published = Published::new(noise(300_000));
    let rogue = Published::new(noise(300_000));
    let key = published.key_text();
    let http = published.http(Duration::ZERO);
    let http_port = http.addr.port().to_string();
    let impostor = TestSeed::start(&rogue, 0);
    let strict = TestSeed::start(&published, 0);
    strict.refuse(Some(Refusal::NotAdmitted("not from here".to_owned())));
    let newer = other_version();
    for (port, part) in [
        (impostor.addr.port(), "is not trusted"),
        (strict.addr.port(), "not from here"),
        (newer.port(), "answered with something else"),
    ] {
        let url = format!("swarm://127.0.0.1:{port}/root");
        let words = ["--key", &key, "--timeout", LONG, "--http-port", &http_port];
        let (err, out) = Fetch::new(&url, &words).check(&published.image);
        assert!(err.contains(part), "expected \"{part}\" in: {err}");
        assert!(out.contains(" 300000 by http"), "{out}");
    }
}

/// A seed of a version that shares no protocol with this one. Lives as long as the process.
fn other_version() -> SocketAddr {
    let certified = rcgen::generate_simple_self_signed(vec!["seed.rootswarm.invalid".to_owned()]);
    let certified = certified.expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .expect("a key");
    tls.alpn_protocols = vec![b"rootswarm-join/99".to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("QUIC");
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listen = SocketAddr::from(([127, 0, 0, 1], 0));
            let endpoint = quinn::Endpoint::server(config, listen).expect("a port");
            tell.send(endpoint.local_addr().expect("an address"))
                .expect("a test that listens");
            while let Some(incoming) = endpoint.accept().await {
                let _ = incoming.await;
            }
        });
    });
    told.recv().expect("an address")
}

/// With 0 nobody is waited for, and every way is tried all the same.
#[test]
fn once_is_every_way_once() {
    let published = Published::new(noise(300_000));
    let key = published.key_text();
    let http = published.http(Duration::ZERO);
    let nobody = free_udp_port();
    let seed = TestSeed::start(&published, 0);
    seed.refuse(Some(Refusal::UnknownImage));
    let http_port = http.addr.port().to_string();
    let refuses = seed.addr.port();
    for (port, http_port, code, part) in [
        // Neither way works.
        (nobody, "9", 4, "by http: cannot connect"),
        (refuses, "9", 6, "no image of that name"),
        // One does.
        (nobody, http_port.as_str(), 0, ""),
        (refuses, http_port.as_str(), 0, ""),
    ] {
        let url = format!("swarm://127.0.0.1:{port}/root");
        let words = ["--key", &key, "--timeout", "0", "--http-port", http_port];
        let (found, _, err) = Fetch::new(&url, &words).run();
        assert_eq!(found, code, "{err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(last.contains(part), "expected \"{part}\" in: {err}");
        // While HTTP brings the image the swarm is tried on the side: how often is the wait's to say.
        if (port, code) == (refuses, 6) {
            assert_eq!(seed.asked(), 1, "once is once");
        }
    }
}

/// Web servers that do not have the image yet.
#[test]
fn a_web_server_that_has_it_later() {
    let (image, old) = (noise(300_000), noise(299_000));
    let pin = format!("@blake3:{}", blake3::hash(&image));
    let absent = || Reply::new("404 Not Found", "");
    let busy = || Reply::new("503 Service Unavailable", "").header("Retry-After: 1");
    type Early = Box<dyn Fn() -> Reply + Send + Sync>;
    let cases: Vec<(&str, Early, &str)> = vec![
        ("", Box::new(absent), "404 Not Found"),
        (
            "",
            Box::new(|| Reply::new("403 Forbidden", "")),
            "403 Forbidden",
        ),
        (&pin, Box::new(busy), "503 Service Unavailable"),
        (
            "",
            Box::new(|| Reply::new("302 Found", "").header("Location: https://elsewhere/")),
            "cannot follow the redirect",
        ),
        // Yesterday's image under today's pin: with a name that tells it apart, and without.
        (
            &pin,
            Box::new(move || Reply::new("200 OK", old.clone()).header("ETag: \"old\"")),
            "pinned is",
        ),
        (
            &pin,
            Box::new(|| Reply::new("200 OK", noise(200_000))),
            "pinned is",
        ),
    ];
    for (pin, early, part) in cases {
        let file = image.clone();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let server = Server::start(move |request, _| {
            if request.path.starts_with("/manifests/") {
                return Reply::new("404 Not Found", "");
            }
            match counted.fetch_add(1, Ordering::Relaxed) {
                0..3 => early(),
                _ => Reply::file(request, &file),
            }
        });
        let url = server.url("/i") + pin;
        let (err, _) = Fetch::new(&url, &["--timeout", LONG]).check(&image);
        assert!(err.contains(part), "expected \"{part}\" in: {err}");
        assert!(err.contains("trying again, for "), "{err}");
        assert!(asked.load(Ordering::Relaxed) >= 4, "{err}");
    }
}

/// A wrong image is fetched once: that the server has it still is seen from the answer's head.
#[test]
fn a_wrong_image_is_not_fetched_again_and_again() {
    // 4 MB in pieces of 16 KiB: 0.25 s of sleep each time that it is sent.
    let wrong = noise(4_000_000);
    for etag in [Some("ETag: \"one\""), None] {
        let file = wrong.clone();
        let server = Server::start(move |request, _| {
            if request.path.starts_with("/manifests/") {
                return Reply::new("404 Not Found", "");
            }
            let reply = Reply::new("200 OK", file.clone());
            match etag {
                Some(etag) => reply.header(etag),
                None => reply,
            }
        });
        let pin = format!("@blake3:{}", blake3::hash(b"other"));
        let url = server.url("/i") + &pin;
        let started = Instant::now();
        let (code, _, err) = Fetch::new(&url, &["--timeout", "4"]).run();
        assert_eq!(code, 3, "{err}");
        assert!(started.elapsed() >= Duration::from_secs(4), "{err}");
        assert!(server.file_requests().len() >= 3, "{err}");
        // Said at the end of each transfer.
        let transfers = err.lines().filter(|line| line.contains(" 100% ")).count();
        assert_eq!(transfers, 1, "{err}");
    }
}

/// One host's bytes are damaged, the other's are not.
#[test]
fn a_damaged_host_is_left_for_the_next() {
    let published = Published::new(noise(300_000));
    let key = published.key_text();
    let good = published.http(Duration::ZERO);
    let port = good.addr.port();
    let (tag, manifest) = (published.tag.encode(), published.manifest.encode());
    let mut damaged = published.image.clone();
    damaged[200_000] ^= 1;
    let bad = SocketAddr::from(([127, 0, 0, 2], port));
    let _bad = Server::start_at(bad, move |request, _| {
        match request.path.split('/').nth(1) {
            Some("tags") => Reply::new("200 OK", tag.clone()),
            Some("manifests") => Reply::new("200 OK", manifest.clone()),
            _ => Reply::file(request, &damaged),
        }
    });
    let (nobody, http_port) = (free_udp_port(), port.to_string());
    for hosts in [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]] {
        let hosts = hosts.map(|host| format!("{host}:{nobody}")).join(",");
        let url = format!("swarm://{hosts}/root");
        let words = ["--key", &key, "--timeout", LONG, "--http-port", &http_port];
        let (_, out) = Fetch::new(&url, &words).check(&published.image);
        assert!(out.contains(" 300000 by http"), "{out}");
    }
}

/// While the image comes by HTTP, a seed that says no is asked ever more rarely, as without it.
#[test]
fn what_comes_by_http_does_not_have_a_refusal_asked_for_again_and_again() {
    let published = Published::new(noise(300_000));
    let key = published.key_text();
    let http = published.http(Duration::from_millis(800));
    let seed = TestSeed::start(&published, 0);
    seed.refuse(Some(Refusal::NotAdmitted("not from here".to_owned())));
    let url = format!("swarm://127.0.0.1:{}/root", seed.addr.port());
    let port = http.addr.port().to_string();
    let words = ["--key", &key, "--timeout", LONG, "--http-port", &port];
    let (_, out) = Fetch::new(&url, &words).check(&published.image);
    assert!(out.contains(" 300000 by http"), "{out}");
    // The waits double from a quarter of a second, and again when HTTP begins: 5 s and 15 s are some five each.
    assert!(seed.asked() <= 14, "{} times", seed.asked());
}

/// Whoever sends a byte now and then, at whatever point, keeps nobody from the next host.
#[test]
fn a_host_that_drips_is_left_for_the_next() {
    let published = Published::new(noise(300_000));
    let key = published.key_text();
    let good = published.http(Duration::ZERO);
    let (port, nobody) = (good.addr.port(), free_udp_port());
    std::thread::scope(|scope| {
        for (number, drips) in ["tags", "manifests", "blobs"].into_iter().enumerate() {
            let (published, key) = (&published, &key);
            let (tag, manifest) = (published.tag.encode(), published.manifest.encode());
            let image = published.image.clone();
            let address = [127, 0, 0, 2 + number as u8];
            let server = Server::start_at((address, port).into(), move |request, _| {
                let part = request.path.split('/').nth(1).unwrap_or_default();
                let reply = match part {
                    "tags" => Reply::new("200 OK", tag.clone()),
                    "manifests" => Reply::new("200 OK", manifest.clone()),
                    _ => Reply::file(request, &image),
                };
                if part == drips {
                    reply.dripping()
                } else {
                    reply
                }
            });
            scope.spawn(move || {
                let url = format!(
                    "swarm://{}:{nobody},127.0.0.1:{nobody}/root",
                    server.addr.ip()
                );
                let port = port.to_string();
                let words = ["--key", key, "--timeout", LONG, "--http-port", &port];
                let (_, out) = Fetch::new(&url, &words).check(&published.image);
                assert!(out.contains(" 300000 by http"), "{drips}: {out}");
            });
        }
    });
}

/// Where there is no other host, patience ends.
#[test]
fn a_drip_is_no_progress() {
    let image = noise(300_000);
    let pin = format!("@blake3:{}", blake3::hash(&image));
    let server = Server::start(move |request, _| Reply::file(request, &image).dripping());
    std::thread::scope(|scope| {
        for pin in ["", &pin] {
            let url = server.url(&format!("/root{pin}"));
            scope.spawn(move || {
                let (code, _, err) = Fetch::new(&url, &["--timeout", "2"]).run();
                assert_eq!(code, 4, "{err}");
                let last = err.lines().last().unwrap_or_default();
                assert!(last.contains("no 16 KiB of data within 15 s"), "{err}");
            });
        }
    });
}
