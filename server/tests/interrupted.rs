//! Publishing that does not get to its end: a source that changes, a publisher that dies, a server
//! that is told to stop in the middle of a download.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, Server, listing, rootswarm, run_ok, stderr};
use rootswarm::state::StateDir;

/// Publishes a large file and stops the publisher in the middle of the copy. `None` if it was too
/// fast to be stopped, which a file of this size makes rare.
#[allow(clippy::zombie_processes, reason = "the callers wait for it")]
fn stopped_publish(place: &Place, source: &str) -> Option<std::process::Child> {
    let child = rootswarm()
        .args(["publish", "-q", "web", source, "--state"])
        .arg(place.state())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let tmp = place.state().join("tmp");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let started = fs::read_dir(&tmp)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| fs::metadata(entry.path().join("image")).is_ok_and(|m| m.len() > 0));
        if started {
            Command::new("kill").args(["-STOP", &pid]).status().unwrap();
            // Not stopped before its manifest: the copy and the hash were over.
            let copying = fs::read_dir(&tmp).unwrap().flatten().any(|entry| {
                entry.path().join("image").exists() && !entry.path().join("manifest").exists()
            });
            return copying.then_some(child);
        }
        assert!(Instant::now() < deadline, "the publisher does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// 500 MB of holes: the source takes no space, and a copy takes long enough to be stopped in its middle. Four
/// times as much is written to the disk for real, and had other tests wait for it for minutes.
fn large_source(place: &Place) -> String {
    let path = place.path("large");
    let mut file = fs::File::create(&path).unwrap();
    let mut superblock = common::squashfs(96, 1);
    superblock[40..48].copy_from_slice(&500_000_000_u64.to_le_bytes());
    file.write_all(&superblock).unwrap();
    file.set_len(500_000_000).unwrap();
    path
}

#[test]
fn a_source_that_changes_while_it_is_read() {
    let place = Place::new();
    let before = listing(&place.state());
    type Change = fn(&str);
    let cases: &[(&str, Change)] = &[
        ("truncated", |path| {
            fs::OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(1_000_000)
                .unwrap()
        }),
        ("growing", |path| {
            fs::OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(500_000_001)
                .unwrap()
        }),
        ("rewritten", |path| {
            use std::os::unix::fs::FileExt;
            fs::OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .write_all_at(b"new", 5)
                .unwrap();
        }),
    ];
    for (what, change) in cases {
        let source = large_source(&place);
        let child =
            stopped_publish(&place, &source).expect("the publisher was stopped while it copied");
        change(&source);
        Command::new("kill")
            .args(["-CONT", &child.id().to_string()])
            .status()
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(10), "{what}: {said}");
        assert!(
            said.starts_with(&format!("rootswarm: {source} changed while it was read: "))
                && said.lines().count() == 1,
            "{what}: {said}"
        );
        assert_eq!(listing(&place.state()), before, "{what} left something");
    }
}

#[test]
fn a_publisher_that_is_killed_leaves_the_old_tag() {
    let place = Place::new();
    let (tag, before) = (place.tag(), listing(&place.state()));
    let source = large_source(&place);
    let mut child =
        stopped_publish(&place, &source).expect("the publisher was stopped while it copied");
    // What it works on is not swept away by others while it lives…
    StateDir::open(&place.state()).unwrap();
    assert_ne!(listing(&place.state()), before);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.tag(), tag);
    // …and is once it is dead.
    StateDir::open(&place.state()).unwrap();
    assert_eq!(
        listing(&place.state()),
        before,
        "the next start did not sweep"
    );
    let server = Server::start(&place.state(), &[]);
    assert!(server.line().contains("/web@blake3:"));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_server_that_is_told_to_stop_drains_and_ends_in_time() {
    let place = Place::new();
    // 300 kB at 100 kB/s are 3 s, at 10 kB/s 30 s: one ends within the drain, one does not.
    for (limit, whole) in [("100kB/s", true), ("10kB/s", false)] {
        let server = Server::start(&place.state(), &["--upload-limit", limit]);
        let mut stream = TcpStream::connect(server.http).unwrap();
        stream
            .write_all(b"GET /images/web HTTP/1.1\r\nhost: seed\r\n\r\n")
            .unwrap();
        let mut first = [0; 1000];
        stream.read_exact(&mut first).unwrap();
        let reader = std::thread::spawn(move || {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            rest.len()
        });
        let begin = Instant::now();
        assert_eq!(server.stop(), Some(0));
        assert!(
            begin.elapsed() < Duration::from_secs(9),
            "{limit}: {:?}",
            begin.elapsed()
        );
        let got = 1000 + reader.join().unwrap();
        assert_eq!(got > 300_000, whole, "{limit}: {got} bytes");
    }
}

#[test]
fn killed_at_any_moment_the_name_means_a_whole_image() {
    let place = Place::new();
    let images = [common::squashfs(400_000, 21), common::squashfs(400_000, 22)];
    let sources = [place.file("a", &images[0]), place.file("b", &images[1])];
    let mut killed = 0;
    for round in 0..60 {
        let mut child = rootswarm()
            .args(["publish", "-q", "--keep", "1", "web", &sources[round % 2]])
            .arg("--state")
            .arg(place.state())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // From before the first file to after the last: a publish takes some 20 ms here.
        std::thread::sleep(Duration::from_micros(500 * round as u64));
        let _ = child.kill();
        killed += u32::from(!child.wait().unwrap().success());
        let tag = rootswarm_image::SignedTag::decode(&place.tag()).unwrap();
        let id = tag.unverified().id.to_string();
        let copy = place.state().join("images").join(&id);
        let bytes =
            fs::read(copy.join("image")).unwrap_or_else(|e| panic!("round {round}: {id}: {e}"));
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), id, "round {round}");
        rootswarm_image::Manifest::decode(
            &fs::read(copy.join("manifest")).unwrap(),
            &tag.unverified().id,
        )
        .unwrap();
    }
    assert!(killed > 5, "only {killed} were killed in the middle");
    // What a killed one has left of its generations goes with the next.
    for source in &sources {
        run_ok(
            &place.state(),
            &["publish", "-q", "--keep", "1", "web", source],
        );
    }
    assert!(
        fs::read_dir(place.state().join("tmp"))
            .unwrap()
            .next()
            .is_none()
    );
    assert_eq!(
        fs::read_dir(place.state().join("images")).unwrap().count(),
        1,
        "a copy that nothing names is kept"
    );
}
