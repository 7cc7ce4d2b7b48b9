//! `rooturl=http://…` against a real server that cuts, stalls, redirects, ignores ranges and
//! damages: what arrives is the image, or nothing does.

mod support;

use std::time::Duration;

use support::{Reply, Server, agent, manifest, noise, run};

struct Fetched {
    code: i32,
    out: String,
    err: String,
    image: Option<Vec<u8>>,
    part: Option<Vec<u8>>,
}

fn fetch_into(dir: &tempfile::TempDir, url: &str) -> Fetched {
    let path = dir.path().join("image");
    let (code, out, err) = run(agent()
        .args(["fetch", url, "--timeout", "3", "--conf"])
        .arg(dir.path())
        .arg("--output")
        .arg(&path));
    let part = std::fs::read(dir.path().join("image.part")).ok();
    Fetched {
        code,
        out,
        err,
        image: std::fs::read(path).ok(),
        part,
    }
}

fn fetch(url: &str) -> Fetched {
    fetch_into(&tempfile::tempdir().expect("a directory"), url)
}

fn pin(image: &[u8]) -> String {
    format!("@blake3:{}", blake3::hash(image))
}

#[track_caller]
fn check(found: &Fetched, image: &[u8]) {
    assert_eq!(found.code, 0, "{}", found.err);
    assert!(
        found.image.as_deref() == Some(image),
        "another image: {}",
        found.err
    );
    assert!(found.part.is_none(), "a part stayed behind");
    let bytes = format!(" {} bytes, 0 from the seed, 0 from peers, ", image.len());
    assert!(found.out.contains(&bytes), "{}", found.out);
    assert_eq!(found.out.lines().count(), 1, "{}", found.out);
}

#[test]
fn without_a_pin_it_warns() {
    for length in [0, 1, 300_000] {
        let image = noise(length);
        let server = Server::of_file(image.clone());
        let found = fetch(&server.url("/root.squashfs?x=1"));
        check(&found, &image);
        assert!(found.err.contains("WARNING: http://"), "{}", found.err);
        assert_eq!(server.file_requests()[0].path, "/root.squashfs?x=1");
    }
}

#[test]
fn with_a_pin_it_does_not() {
    let image = noise(200_000);
    let server = Server::of_file(image.clone());
    let found = fetch(&(server.url("/i") + &pin(&image)));
    check(&found, &image);
    assert!(!found.err.contains("WARNING"), "{}", found.err);
}

#[test]
fn another_image_than_the_pinned_one_is_refused() {
    let server = Server::of_file(noise(200_000));
    let found = fetch(&(server.url("/i") + &pin(b"other")));
    assert_eq!(found.code, 3, "{}", found.err);
    assert!(found.err.contains("refused: http://"), "{}", found.err);
    assert!(found.image.is_none());
}

#[test]
fn a_cut_body_is_resumed() {
    let image = noise(1_000_000);
    let file = image.clone();
    let server = Server::start(move |request, number| {
        if request.path.starts_with("/manifests/") {
            return Reply::new("404 Not Found", "");
        }
        let cut_after = (number < 3).then_some(200_000);
        Reply {
            cut_after,
            ..Reply::file(request, &file)
        }
    });
    let found = fetch(&server.url("/i"));
    check(&found, &image);
    assert!(found.err.contains("trying again"), "{}", found.err);
    let requests = server.file_requests();
    let starts = requests
        .iter()
        .map(|r| r.range.map(|(first, _)| first))
        .collect::<Vec<_>>();
    assert_eq!(starts, [None, Some(200_000), Some(400_000), Some(600_000)]);
    assert!(
        requests[1..]
            .iter()
            .all(|r| r.if_range.as_deref() == Some("\"one\""))
    );
}

#[test]
fn a_range_that_is_ignored_begins_anew() {
    let image = noise(500_000);
    let file = image.clone();
    let server = Server::start(move |request, number| {
        let whole = Reply::new("200 OK", file.clone()).header("ETag: \"one\"");
        let absent = Reply::new("404 Not Found", "");
        match (request.path.starts_with("/manifests/"), number) {
            (true, _) => absent,
            (false, 0) => Reply {
                cut_after: Some(123_456),
                ..whole
            },
            (false, _) => whole,
        }
    });
    check(&fetch(&server.url("/i")), &image);
    assert_eq!(server.file_requests().len(), 2);
}

#[test]
fn a_file_that_changes_meanwhile_begins_anew() {
    let (old, new) = (noise(500_000), noise(600_000));
    let file = new.clone();
    let server = Server::start(move |request, number| match number {
        0 => Reply {
            cut_after: Some(100_000),
            ..Reply::file(request, &old)
        },
        // If-Range does not hold any more: the whole new file comes.
        _ => Reply::new("200 OK", file.clone()).header("ETag: \"two\""),
    });
    check(&fetch(&server.url("/i")), &new);
}

#[test]
fn another_range_than_asked_for_is_not_taken() {
    let image = noise(500_000);
    let file = image.clone();
    let server = Server::start(move |request, number| match number {
        0 => Reply {
            cut_after: Some(100_000),
            ..Reply::file(request, &file)
        },
        1 => Reply::new("206 Partial Content", &file[50_000..])
            .header("Content-Range: bytes 50000-499999/500000"),
        _ => Reply::file(request, &file),
    });
    let found = fetch(&server.url("/i"));
    check(&found, &image);
    assert!(
        found
            .err
            .contains("the body ends after 100000 of 500000 bytes"),
        "{}",
        found.err
    );
    let asked = server
        .file_requests()
        .iter()
        .map(|r| r.range)
        .collect::<Vec<_>>();
    assert_eq!(asked, [None, Some((100_000, None)), Some((100_000, None))]);
}

#[test]
fn redirects_are_followed() {
    let image = noise(100_000);
    let target = Server::of_file(image.clone());
    let location = format!("Location: {}", target.url("/real"));
    let server = Server::start(move |request, _| match request.path.as_str() {
        "/i" => Reply::new("301 Moved Permanently", "").header("Location: /j"),
        _ => Reply::new("307 Temporary Redirect", "gone").header(&location),
    });
    check(&fetch(&server.url("/i")), &image);
    assert_eq!(target.file_requests()[0].path, "/real");
}

#[test]
fn chunked_bodies_have_no_length() {
    let image = noise(40_000);
    let file = image.clone();
    let server = Server::start(move |_, _| {
        let mut body = Vec::new();
        for piece in file.chunks(7_000) {
            body.extend(format!("{:x}\r\n", piece.len()).bytes());
            body.extend(piece);
            body.extend(b"\r\n");
        }
        body.extend(b"0\r\n\r\n");
        let headers = vec!["Transfer-Encoding: chunked".to_owned()];
        Reply {
            headers,
            ..Reply::new("200 OK", body)
        }
    });
    check(&fetch(&server.url("/i")), &image);
}

#[test]
fn a_slow_server_is_waited_for_while_it_moves() {
    // 40 pieces with 100 ms between them: 4 s in all, longer than --timeout 3 without progress.
    let image = noise(40 * 16 * 1024);
    let file = image.clone();
    let server = Server::start(move |request, _| {
        let pause = Duration::from_millis(100);
        Reply {
            pause,
            ..Reply::file(request, &file)
        }
    });
    let found = fetch(&server.url("/i"));
    check(&found, &image);
    let lines = found.err.lines().filter(|line| line.contains("% ")).count();
    assert!(
        (3..=9).contains(&lines),
        "about one line a second: {}",
        found.err
    );
}

#[test]
fn a_server_that_always_cuts_at_the_same_place_is_given_up() {
    let file = noise(500_000);
    let server = Server::start(move |request, _| {
        let cut_after =
            Some(200_000_usize.saturating_sub(request.range.map_or(0, |(f, _)| f as usize)));
        Reply {
            cut_after,
            ..Reply::file(request, &file)
        }
    });
    let found = fetch(&server.url("/i"));
    assert_eq!(found.code, 4, "{}", found.err);
    assert!(
        found.err.contains("gave up after 3 s without progress: "),
        "{}",
        found.err
    );
    assert!(found.image.is_none());
}

/// A server of images and manifests, as a seed is one; `damage` sees each range reply.
fn seed(image: &[u8], damage: impl Fn(&mut Reply, usize) + Send + Sync + 'static) -> Server {
    let (file, manifest) = (image.to_vec(), manifest(image).encode());
    Server::start(move |request, number| {
        if request.path.starts_with("/manifests/") {
            return Reply::new("200 OK", manifest.clone());
        }
        let mut reply = Reply::file(request, &file);
        damage(&mut reply, number);
        reply
    })
}

#[test]
fn a_damaged_chunk_is_fetched_again() {
    let image = noise(1_000_000);
    let server = seed(&image, |reply, number| {
        if number == 0 {
            reply.body[300_000] ^= 1;
        }
    });
    check(&fetch(&(server.url("/i") + &pin(&image))), &image);
    let requests = server.file_requests();
    // Chunks of 64 KiB: the damaged one is the fifth, the four before it are kept.
    assert_eq!(requests[1].range, Some((4 * 65536, Some(999_999))));
    assert_eq!(requests.len(), 2);
}

#[test]
fn a_chunk_that_stays_damaged_ends_it() {
    let image = noise(1_000_000);
    let server = seed(&image, |reply, _| {
        let last = reply.body.len() - 1;
        reply.body[last] ^= 1;
    });
    let found = fetch(&(server.url("/i") + &pin(&image)));
    assert_eq!(found.code, 9, "{}", found.err);
    assert!(found.err.contains("chunk 15"), "{}", found.err);
    assert!(found.err.contains("3 times in a row"), "{}", found.err);
    assert!(found.image.is_none());
}

#[test]
fn a_manifest_that_does_not_merge_to_the_pin_is_not_used() {
    let image = noise(300_000);
    let (file, wrong) = (image.clone(), manifest(&noise(300_001)).encode());
    let server = Server::start(
        move |request, _| match request.path.starts_with("/manifests/") {
            true => Reply::new("200 OK", wrong.clone()),
            false => Reply::file(request, &file),
        },
    );
    check(&fetch(&(server.url("/i") + &pin(&image))), &image);
}

#[test]
fn what_an_earlier_run_left_is_used_and_checked() {
    let image = noise(1_000_000);
    let dir = tempfile::tempdir().expect("a directory");
    let part = dir.path().join("image.part");

    // Of this image, as a whole: only the rest is fetched.
    let server = Server::of_file(image.clone());
    std::fs::write(&part, &image[..400_000]).expect("a file");
    check(
        &fetch_into(&dir, &(server.url("/i") + &pin(&image))),
        &image,
    );
    let last = server.file_requests().last().and_then(|r| r.range);
    assert_eq!(last, Some((400_000, None)));

    // Of another image: noticed at the end, and begun anew.
    let server = Server::of_file(image.clone());
    std::fs::write(&part, noise(400_001).split_off(1)).expect("a file");
    check(
        &fetch_into(&dir, &(server.url("/i") + &pin(&image))),
        &image,
    );

    // By chunks: the good ones are kept, the damaged one is fetched.
    let server = seed(&image, |_, _| {});
    let mut damaged = image.clone();
    damaged[70_000] ^= 1;
    std::fs::write(&part, &damaged).expect("a file");
    check(
        &fetch_into(&dir, &(server.url("/i") + &pin(&image))),
        &image,
    );
    let ranges = server
        .file_requests()
        .iter()
        .map(|r| r.range)
        .collect::<Vec<_>>();
    assert_eq!(ranges, [Some((65536, Some(131_071)))]);

    // Without a pin nothing is believed.
    let server = Server::of_file(image.clone());
    std::fs::write(&part, &image[..400_000]).expect("a file");
    check(&fetch_into(&dir, &server.url("/i")), &image);
    assert_eq!(server.file_requests()[0].range, None);
}

#[test]
fn a_full_disk_is_said_with_both_sizes() {
    support::in_mount_namespace("a_full_disk_is_said_with_both_sizes", || {
        let dir = tempfile::tempdir().expect("a directory");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(status.expect("mount").success());
        let image = noise(1_000_000);
        for server in [Server::of_file(image.clone()), seed(&image, |_, _| {})] {
            let found = fetch_into(&dir, &(server.url("/i") + &pin(&image)));
            assert_eq!(found.code, 5, "{}", found.err);
            assert!(
                found.err.contains("the image has 1.0 MB, "),
                "{}",
                found.err
            );
            assert!(found.err.contains(" has 0.5 MB free"), "{}", found.err);
            assert!(found.part.is_none(), "{}", found.err);
        }
    });
}

#[test]
fn a_part_that_another_process_writes_is_left_alone() {
    let image = noise(300_000);
    let server = seed(&image, |_, _| {});
    let dir = tempfile::tempdir().expect("a directory");
    let part = dir.path().join("image.part");
    let held = rootswarm_transport::store::ChunkStore::create(&part, manifest(&image).into())
        .expect("a store");
    let found = fetch_into(&dir, &(server.url("/i") + &pin(&image)));
    assert_eq!(found.code, 5, "{}", found.err);
    assert!(
        found.err.contains("is being written by another process"),
        "{}",
        found.err
    );
    drop(held);
}
