//! Plain HTTP as clients of today see it: ranges, conditions, what is not there, who is not let in.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Server, address_besides_loopback, key, run_ok, squashfs};
use rootswarm_image::{ImageId, Manifest, SignedTag};

fn publish(state: &Path, name: &str, bytes: &[u8]) -> String {
    let source = tempfile::NamedTempFile::new().unwrap();
    fs::write(source.path(), bytes).unwrap();
    let url = run_ok(
        state,
        &["publish", "--quiet", name, source.path().to_str().unwrap()],
    );
    url.trim().rsplit_once("@blake3:").unwrap().1.to_owned()
}

#[test]
fn ranges_and_conditions() {
    let state = tempfile::tempdir().unwrap();
    // Several chunks and a tail; the pieces of a body end elsewhere.
    let image = squashfs(1_000_001, 7);
    let id = publish(state.path(), "web", &image);
    let server = Server::start(state.path(), &[]);
    let etag = format!("\"{id}\"");
    let whole = 0..image.len();
    type Case<'a> = (
        &'a [(&'a str, &'a str)],
        u16,
        Option<std::ops::Range<usize>>,
    );
    let cases: &[Case<'_>] = &[
        (&[], 200, Some(whole.clone())),
        (&[("range", "bytes=0-0")], 206, Some(0..1)),
        (
            &[("range", "bytes=262143-262144")],
            206,
            Some(262_143..262_145),
        ),
        (&[("range", "bytes=999990-")], 206, Some(999_990..1_000_001)),
        (&[("range", "bytes=-11")], 206, Some(999_990..1_000_001)),
        (&[("range", "bytes=-2000000")], 206, Some(whole.clone())),
        (
            &[("range", "bytes=5-18446744073709551615")],
            206,
            Some(5..1_000_001),
        ),
        (&[("range", "bytes=1000001-")], 416, None),
        (&[("range", "bytes=-0")], 416, None),
        (&[("range", "bytes=0-1,5-6")], 200, Some(whole.clone())),
        (&[("range", "bytes=9-3")], 200, Some(whole.clone())),
        (
            &[("range", "bytes=10-19"), ("if-range", &etag)],
            206,
            Some(10..20),
        ),
        (
            &[("range", "bytes=10-19"), ("if-range", "\"other\"")],
            200,
            Some(whole.clone()),
        ),
        (&[("if-none-match", &etag)], 304, None),
        (&[("if-none-match", "\"other\"")], 200, Some(whole.clone())),
    ];
    for path in ["/images/web".to_owned(), format!("/blobs/{id}")] {
        for (headers, status, range) in cases {
            let answer = server.request("GET", &path, headers);
            assert_eq!(
                answer.status, *status,
                "{path} {headers:?}\n{}",
                answer.head
            );
            let expected = range.clone().map_or(&[][..], |range| &image[range]);
            assert!(
                answer.body == expected,
                "{path} {headers:?}: {} bytes\n{}",
                answer.body.len(),
                answer.head
            );
            assert_eq!(answer.header("etag"), Some(etag.as_str()));
            assert_eq!(answer.header("accept-ranges"), Some("bytes"));
            let content_range = match (status, range) {
                (206, Some(range)) => {
                    Some(format!("bytes {}-{}/1000001", range.start, range.end - 1))
                }
                (416, _) => Some("bytes */1000001".to_owned()),
                _ => None,
            };
            assert_eq!(answer.header("content-range"), content_range.as_deref());
            // The same without its body.
            let head = server.request("HEAD", &path, headers);
            assert_eq!(head.status, *status);
            assert!(head.body.is_empty());
            // With 304 a server may say the length or not, and hyper says it to a HEAD only.
            let length = if *status == 304 {
                Some("1000001")
            } else {
                answer.header("content-length")
            };
            assert_eq!(head.header("content-length"), length, "{}", head.head);
        }
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn what_is_not_there_and_what_is_not_done() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), "web", &squashfs(1000, 7));
    fs::write(state.path().join("boot/vmlinuz"), b"kernel").unwrap();
    fs::create_dir(state.path().join("boot/sub")).unwrap();
    fs::write(state.path().join("boot/sub/file"), b"x").unwrap();
    fs::write(state.path().join("boot/.hidden"), b"x").unwrap();
    let server = Server::start(state.path(), &[]);
    let zeros = "0".repeat(64);
    for (method, path, status) in [
        ("GET", "/".to_owned(), 404),
        ("GET", "/images/".to_owned(), 404),
        ("GET", "/images/db".to_owned(), 404),
        ("GET", "/images/WEB".to_owned(), 404),
        ("GET", "/images/..".to_owned(), 404),
        ("GET", "/images/%2e%2e%2fswarm.key".to_owned(), 404),
        ("GET", format!("/images/{}", "a".repeat(5000)), 404),
        ("GET", format!("/blobs/{zeros}"), 404),
        ("GET", "/blobs/web".to_owned(), 404),
        ("GET", format!("/manifests/{zeros}"), 404),
        ("GET", "/tags/db".to_owned(), 404),
        ("GET", "/boot/".to_owned(), 404),
        ("GET", "/boot/sub".to_owned(), 404),
        ("GET", "/boot/sub/file".to_owned(), 404),
        ("GET", "/boot/.hidden".to_owned(), 404),
        ("GET", "/boot/..%2fswarm.key".to_owned(), 404),
        ("GET", "/boot/%2e%2e".to_owned(), 404),
        ("GET", "/swarm.key".to_owned(), 404),
        ("POST", "/images/web".to_owned(), 405),
        ("PUT", "/boot/vmlinuz".to_owned(), 405),
        ("GET", "/healthz".to_owned(), 200),
        ("GET", "/boot/vmlinuz".to_owned(), 200),
        ("GET", "/images/web".to_owned(), 200),
    ] {
        let answer = server.request(method, &path, &[]);
        assert_eq!(answer.status, status, "{method} {path}\n{}", answer.head);
    }
}

#[test]
fn manifest_and_tag_are_what_the_image_crate_reads() {
    let state = tempfile::tempdir().unwrap();
    let id = publish(state.path(), "web", &squashfs(600_000, 3));
    let key = key(state.path());
    assert_eq!(
        fs::read_to_string(state.path().join("swarm.pub")).unwrap(),
        format!("{key}\n")
    );
    let server = Server::start(state.path(), &[]);
    let expected: ImageId = id.parse().unwrap();
    let manifest = Manifest::decode(
        &server.request("GET", &format!("/manifests/{id}"), &[]).body,
        &expected,
    )
    .unwrap();
    assert_eq!(manifest.geometry().length(), 600_000);
    let signed = SignedTag::decode(&server.request("GET", "/tags/web", &[]).body).unwrap();
    let tag = signed.verify(&key, &"web".parse().unwrap()).unwrap();
    assert_eq!((tag.id, tag.length, tag.version), (expected, 600_000, 1));
}

#[test]
fn a_boot_file_that_is_replaced_is_the_new_one() {
    let state = tempfile::tempdir().unwrap();
    run_ok(state.path(), &["key"]);
    let path = state.path().join("boot/vmlinuz");
    fs::write(&path, squashfs(300_000, 1)).unwrap();
    let server = Server::start(state.path(), &[]);
    let first = server.request("GET", "/boot/vmlinuz", &[]);
    assert_eq!((first.status, first.body.len()), (200, 300_000));
    let ranged = server.request("GET", "/boot/vmlinuz", &[("range", "bytes=131070-131075")]);
    assert_eq!(
        (ranged.status, &ranged.body[..]),
        (206, &first.body[131_070..131_076])
    );
    fs::write(&path, b"new kernel").unwrap();
    let second = server.request("GET", "/boot/vmlinuz", &[]);
    assert_eq!(second.body, b"new kernel");
    assert_ne!(first.header("etag"), second.header("etag"));
    // A file that was not there when the server started is found within a poll or two.
    fs::write(state.path().join("boot/initrd.img"), b"initrd").unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.request("GET", "/boot/initrd.img", &[]).status != 200 {
        assert!(Instant::now() < deadline, "the new boot file is not served");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn only_the_allow_list_is_served_and_loopback_is_on_it() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), "web", &squashfs(1000, 7));
    let address = address_besides_loopback();
    // A multicast network for documentation: no host's.
    for (allow, status) in [("233.252.0.0/24", 403), ("0.0.0.0/0", 200)] {
        let server = Server::start(state.path(), &["--http", "0.0.0.0:0", "--allow", allow]);
        let mut stream = TcpStream::connect((address, server.http.port())).unwrap();
        stream
            .write_all(b"GET /images/web HTTP/1.0\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "--allow {allow}: {answer}"
        );
        assert_eq!(answer.contains("hsqs"), status == 200, "--allow {allow}");
    }
}

#[test]
fn with_admission_by_token_images_need_one() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), "web", &squashfs(1000, 7));
    let once = run_ok(state.path(), &["token", "create"]);
    let always = run_ok(
        state.path(),
        &["token", "create", "--reusable", "--lifetime", "1d"],
    );
    let server = Server::start(state.path(), &["--admission", "token"]);
    let bearer = |token: &str| format!("Bearer {}", token.trim());
    // A one-time token is bound to who came with it first, here by address: the rest of its download is
    // admitted too, nobody else's.
    for (token, session, status) in [
        (None, None, 403),
        (Some("Bearer wrong".to_owned()), None, 403),
        (Some(bearer(&once)), None, 200),
        (Some(bearer(&once)), Some("another"), 403),
        (Some(bearer(&once)), None, 200),
        (Some(bearer(&always)), None, 200),
        (Some(bearer(&always)), Some("another"), 200),
    ] {
        let token = token.iter().map(|it| ("authorization", it.as_str()));
        let session = session.iter().map(|it| ("rootswarm-session", *it));
        let headers: Vec<(&str, &str)> = token.chain(session).collect();
        for _ in 0..2 {
            assert_eq!(
                server.request("GET", "/images/web", &headers).status,
                status,
                "{headers:?}"
            );
        }
    }
    let listed = run_ok(state.path(), &["token", "list"]);
    for (token, usage) in [(&once, "in use"), (&always, "reusable")] {
        let line = format!("{}  {usage} ", &token[..8]);
        assert!(listed.lines().any(|it| it.starts_with(&line)), "{listed}");
    }
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

#[test]
fn the_upload_limit_holds_images_back_and_boot_files_not() {
    let state = tempfile::tempdir().unwrap();
    publish(state.path(), "web", &squashfs(400_000, 7));
    fs::write(state.path().join("boot/vmlinuz"), vec![1; 4_000_000]).unwrap();
    let server = Server::start(state.path(), &["--upload-limit", "200kB/s"]);
    let begin = Instant::now();
    assert_eq!(
        server.request("GET", "/boot/vmlinuz", &[]).body.len(),
        4_000_000
    );
    let boot = begin.elapsed();
    let begin = Instant::now();
    assert_eq!(
        server.request("GET", "/images/web", &[]).body.len(),
        400_000
    );
    let image = begin.elapsed();
    // 400 kB at 200 kB/s; the kernel at that rate would take 20 s.
    assert!(
        image > Duration::from_millis(1700),
        "the image took {image:?}"
    );
    assert!(boot < Duration::from_secs(10), "the kernel took {boot:?}");
}

#[test]
fn one_address_cannot_take_all_connections() {
    let state = tempfile::tempdir().unwrap();
    run_ok(state.path(), &["key"]);
    let server = Server::start(state.path(), &[]);
    let limit = rootswarm::http::server::MAX_CONNECTIONS_PER_ADDRESS;
    let ask = |path: &str| server.request("GET", path, &[]).status;
    // Connections that are used and ones that say nothing, as many as it may have.
    let mut used: Vec<TcpStream> = (0..limit)
        .map(|_| TcpStream::connect(server.http).unwrap())
        .collect();
    for stream in &mut used[..limit / 2] {
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    // One more is told why, if they have had no time yet; and whether the server lives is said anyway.
    assert!(matches!(ask("/tags/none"), 404 | 503));
    assert_eq!(ask("/healthz"), 200);
    // The newest has the place of the oldest that says nothing.
    std::thread::sleep(Duration::from_millis(2_500));
    for _ in 0..3 {
        assert_eq!(ask("/tags/none"), 404);
    }
    let mut closed = 0;
    for stream in &mut used {
        stream
            .set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        let mut rest = Vec::new();
        closed += usize::from(stream.read_to_end(&mut rest).is_ok());
    }
    assert!(
        (1..=10).contains(&closed),
        "{closed} of {limit} were closed"
    );
}
