//! A server that starts when not all is there yet: an address, a source, room for a second copy, the
//! time to check what is published.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Place, Server, key, node, refuse, request, run, run_ok, squashfs, stderr};
use rootswarm_image::{ChunkSize, ImageId, SwarmKey, Tag, all_cores, hash_file};
use rootswarm_transport::node::JoinRequest;

/// Runs a script in namespaces of its own.
fn unshared(flags: &str, script: &str, env: &[(&str, &Path)]) -> Output {
    let mut command = Command::new("unshare");
    match rustix::process::geteuid().is_root() {
        true => command.arg(flags),
        false => command.args(["-Ur", flags]),
    };
    command.args(["sh", "-c", script]);
    command.env("PROGRAM", env!("CARGO_BIN_EXE_rootswarm"));
    for (name, value) in env {
        command.env(name, value);
    }
    command.output().unwrap()
}

/// An address that comes a moment later, as at boot: waited for with one line, then listened on. For
/// the swarm and HTTP, of both families.
#[test]
fn an_address_that_is_not_there_yet_is_waited_for() {
    let place = Place::new();
    for (swarm, http, late) in [
        ("192.0.2.7:7400", "127.0.0.1:7480", "192.0.2.7/32"),
        ("127.0.0.1:7400", "192.0.2.7:7480", "192.0.2.7/32"),
        ("192.0.2.7:7400", "192.0.2.7:7480", "192.0.2.7/32"),
        (
            "[2001:db8::7]:7400",
            "[2001:db8::7]:7480",
            "2001:db8::7/128",
        ),
    ] {
        let script = format!(
            r#"
            ip link set lo up
            "$PROGRAM" serve --state "$STATE" --listen {swarm} --http {http} > "$STATE/out" &
            server=$!
            sleep 1
            kill -0 $server || exit 97
            ip address add {late} dev lo nodad
            for try in $(seq 600); do
                grep -q '^ready ' "$STATE/out" && break
                sleep 0.1
            done
            kill $server
            wait $server
            "#
        );
        let output = unshared("-n", &script, &[("STATE", &place.state())]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{late}: {said}");
        let address = late.split('/').next().unwrap();
        assert_eq!(
            said.matches(&format!("waiting for {address}")).count(),
            1,
            "{said}"
        );
        let out = fs::read_to_string(place.state().join("out")).unwrap();
        assert!(out.starts_with("ready "), "{late}: {out}{said}");
    }
}

/// Nobody waits for a server that waits for its address: what is changed beside it is done, with a line
/// that says when it is served. The address comes, and it is.
#[test]
fn beside_a_server_that_waits_for_its_address_all_is_done_at_once() {
    let place = Place::new();
    let other = place.file("other.squashfs", &squashfs(30_000, 5));
    let script = r#"
        ip link set lo up
        "$PROGRAM" serve --state "$STATE" --listen 192.0.2.7:7400 > "$STATE/out" 2> "$STATE/err" &
        server=$!
        for try in $(seq 100); do grep -q waiting "$STATE/err" && break; sleep 0.1; done
        begin=$(date +%s)
        for words in "publish -q web $OTHER" "publish -q new $OTHER" "rollback web" "tag a web" \
            "remove a" "status"
        do
            "$PROGRAM" --state "$STATE" $words || exit 98
        done
        echo "took $(($(date +%s) - begin)) s"
        ip address add 192.0.2.7/32 dev lo nodad
        for try in $(seq 600); do
            [ $(grep -c '^ready ' "$STATE/out") = 2 ] && break
            sleep 0.1
        done
        "$PROGRAM" --state "$STATE" publish -q late "$OTHER" || exit 99
        kill $server
        wait $server
    "#;
    let other = Path::new(&other);
    let state = place.state();
    let output = unshared("-n", script, &[("STATE", &state), ("OTHER", other)]);
    let said = stderr(&output);
    let out = common::stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{out}{said}");
    let took = out.lines().find_map(|line| line.strip_prefix("took "));
    let took: u64 = took.unwrap().trim_end_matches(" s").parse().unwrap();
    assert!(took < 10, "{out}{said}");
    assert_eq!(said.matches("waits for 192.0.2.7").count(), 4, "{said}");
    assert!(out.contains("waiting for 192.0.2.7"), "its status: {out}");
    let ready = fs::read_to_string(state.join("out")).unwrap();
    for name in ["web", "new", "late"] {
        assert!(ready.contains(&format!("/{name}@")), "{ready}");
    }
}

/// What is being loaded may be had later: a node is not refused for good.
async fn is_told_to_come_again(place: &Place, server: &Server, joining: &JoinRequest) {
    let client = node(key(&place.state()), Ipv4Addr::LOCALHOST.into()).await;
    let joined = client.join(&[server.swarm], joining).await;
    let refused = joined.err().expect("it is refused");
    assert!(refused.to_string().contains("busy"), "{refused}");
}

/// What is published is served although its source is not there, is no image, or does not fit; a source
/// that was not published yet is tried again, and nodes that ask for it meanwhile are told to.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_missing_does_not_keep_what_is_there_from_being_served() {
    let place = Place::new();
    let bad = place.file("bad", b"no image");
    let cases = [
        ("/nonexistent".to_owned(), "cannot open /nonexistent"),
        (
            place.directory.path().display().to_string(),
            "is a directory",
        ),
        (bad, "what nodes boot is a squashfs"),
    ];
    for (source, words) in cases {
        let db = place.path("later.squashfs");
        let server = Server::start(
            &place.state(),
            &[&format!("web={source}"), &format!("db={db}")],
        );
        assert!(server.line().contains("/web@"));
        assert_eq!(server.request("GET", "/images/web", &[]).status, 200);
        let later = server.request("GET", "/images/db", &[]);
        assert_eq!(later.status, 503);
        assert_eq!(later.header("retry-after"), Some("1"));
        let joining = JoinRequest {
            name: "db".parse().unwrap(),
            ..request(None)
        };
        is_told_to_come_again(&place, &server, &joining).await;
        let said = run_ok(&place.state(), &["status"]);
        assert!(said.contains("loading db"), "{said}");
        assert_eq!(server.stop(), Some(0), "{words}");
    }
    // Where there is nothing to serve that is an end, with a code after which systemd tries again.
    let empty = place.directory.path().join("empty");
    refuse(
        &empty,
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--http",
            "127.0.0.1:0",
            "db=/nonexistent",
        ],
        5,
        "cannot publish db: cannot open /nonexistent",
    );
}

/// Room for one copy is enough for a server that is started again with a source that did not change:
/// nothing is copied. The source is hashed the first time, and not even read again once it has settled.
#[test]
fn room_for_one_copy_is_enough_when_nothing_changed() {
    let place = Place::new();
    for length in [3_000_000, 5_000_001, 96] {
        let source = place.file("source.squashfs", &squashfs(length, 5));
        let mount = place.path("disk");
        fs::create_dir_all(&mount).unwrap();
        let script = format!(
            r#"
            set -e
            ip link set lo up
            mount -t tmpfs -o size={size} tmpfs "$MOUNT"
            for round in 1 2 3; do
                "$PROGRAM" serve --state "$MOUNT/state" --listen 127.0.0.1:0 --http 127.0.0.1:0 \
                    web="$SOURCE" > "$MOUNT/out" &
                server=$!
                for try in $(seq 600); do
                    grep -q '^ready ' "$MOUNT/out" && break
                    kill -0 $server || exit 97
                    sleep 0.1
                done
                kill $server
                wait $server
                "$PROGRAM" --state "$MOUNT/state" images | tail -n +2
            done
            "#,
            size = length * 3 / 2 + 300_000
        );
        let env = [("MOUNT", Path::new(&mount)), ("SOURCE", Path::new(&source))];
        let output = unshared("-mn", &script, &env);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{length}: {said}");
        let text = common::stdout(&output);
        let versions: Vec<&str> = text
            .lines()
            .map(|line| line.split_whitespace().nth(3).unwrap())
            .collect();
        assert_eq!(versions, ["1", "1", "1"], "{text}");
    }
}

/// Publishes an image of holes without copying them.
fn place_sparse(state: &Path, name: &str, length: u64) -> ImageId {
    let making = state.join("tmp/sparse");
    fs::create_dir_all(&making).unwrap();
    let file = fs::File::create_new(making.join("image")).unwrap();
    file.set_len(length).unwrap();
    let file = fs::File::open(making.join("image")).unwrap();
    let manifest = hash_file(&file, ChunkSize::MAX, all_cores(), &|_| {}).unwrap();
    fs::write(making.join("manifest"), manifest.encode()).unwrap();
    let id = *manifest.id();
    let key = SwarmKey::from_pkcs8(&fs::read(state.join("swarm.key")).unwrap()).unwrap();
    let tag = Tag {
        name: name.parse().unwrap(),
        id,
        length,
        chunk_size: ChunkSize::MAX,
        version: 1,
        epoch: 1,
    };
    fs::rename(making, state.join("images").join(id.to_string())).unwrap();
    fs::write(state.join("tags").join(name), tag.sign(&key).encode()).unwrap();
    id
}

/// Small images are served while a large one is still being checked, and who asks for that is told to
/// come again: over the swarm, over HTTP by name and by id, and in the status.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_checked_is_served_while_the_rest_is_loading() {
    // A machine that has checked the first before all was asked has to do with a longer one.
    for length in [8 << 30, 32 << 30, 128 << 30] {
        if is_served_while_loading(length).await {
            return;
        }
    }
    panic!("128 GiB were checked before anything could be asked");
}

/// False when the large one was checked before the last question.
async fn is_served_while_loading(length: u64) -> bool {
    let place = Place::new();
    // Holes: they take no space, and their time to be hashed.
    let id = place_sparse(&place.state(), "large", length);

    let server = Server::start(&place.state(), &[]);
    assert!(server.line().contains("/web@"), "the small one comes first");
    let loading = || {
        let status = run_ok(&place.state(), &["status", "--json"]);
        let document: serde_json::Value = serde_json::from_str(&status).unwrap();
        document["loading"].clone()
    };
    let first = loading();
    let paths = [
        "/images/large".to_owned(),
        "/tags/large".to_owned(),
        format!("/blobs/{id}"),
        format!("/manifests/{id}"),
    ];
    let answers = paths
        .each_ref()
        .map(|path| server.request("HEAD", path, &[]));
    let mut refused = Vec::new();
    for pin in [None, Some(id)] {
        let joining = JoinRequest {
            name: "large".parse().unwrap(),
            pin,
            ..request(None)
        };
        let client = node(key(&place.state()), Ipv4Addr::LOCALHOST.into()).await;
        let joined = client.join(&[server.swarm], &joining).await;
        refused.push(joined.err().map(|error| error.to_string()));
    }
    if loading() != serde_json::json!(["large"]) {
        return false;
    }
    assert_eq!(first, serde_json::json!(["large"]));
    for (path, answer) in paths.iter().zip(answers) {
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{path}");
    }
    for said in refused {
        assert!(
            said.as_ref().is_some_and(|it| it.contains("busy")),
            "{said:?}"
        );
    }
    assert_eq!(server.request("HEAD", "/images/web", &[]).status, 200);
    assert_eq!(server.request("HEAD", "/images/none", &[]).status, 404);
    // Whoever publishes meanwhile waits for it.
    let begin = Instant::now();
    let db = place.file("db.squashfs", &squashfs(1000, 3));
    run_ok(&place.state(), &["publish", "-q", "db", &db]);
    assert!(begin.elapsed() < Duration::from_secs(300));
    assert_eq!(server.request("HEAD", "/images/db", &[]).status, 200);
    common::until("the large one is served", || {
        server.request("HEAD", "/images/large", &[]).status == 200
    })
    .await;
    assert_eq!(server.stop(), Some(0));
    true
}

/// What no node can boot is refused by its name and leaves what was there; `--force` publishes it.
#[test]
fn what_cannot_boot_is_refused() {
    let place = Place::new();
    let before = place.tag();
    let at = |offset: usize, bytes: &[u8]| {
        let mut file = vec![0x11; 100_000];
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    };
    let mut big_endian = squashfs(5000, 1);
    big_endian[..4].copy_from_slice(b"sqsh");
    let mut version_3 = squashfs(5000, 1);
    version_3[28] = 3;
    let cases: &[(&str, Vec<u8>)] = &[
        ("is empty", vec![]),
        ("nothing but zeros", vec![0; 70_000]),
        ("is an erofs", at(1024, &[0xe2, 0xe1, 0xf5, 0xe0])),
        ("is an ISO 9660 image", at(0x8001, b"CD001")),
        ("is a gzip file", at(0, &[0x1f, 0x8b, 8])),
        ("is an ext2, ext3 or ext4", at(1080, &[0x53, 0xef])),
        ("is a qcow2", at(0, b"QFI\xfb")),
        ("big-endian squashfs", big_endian),
        ("another version than 4", version_3),
        ("of no format", b"root:x:0:0\n".to_vec()),
        ("of no format", squashfs(95, 1)),
    ];
    for (words, bytes) in cases {
        let file = place.file("candidate", bytes);
        refuse(&place.state(), &["publish", "web", &file], 2, words);
        refuse(
            &place.state(),
            &["publish", "-q", "new", &file],
            2,
            "--force",
        );
        assert_eq!(place.tag(), before, "{words}");
    }
    // One that is cut off is not complete, which no word makes it.
    for (length, kept) in [(5000, 4999), (70_000, 96), (400_000, 399_000)] {
        let cut = place.file("cut", &squashfs(length, 1)[..kept]);
        refuse(&place.state(), &["publish", "web", &cut], 10, "is cut off");
        refuse(
            &place.state(),
            &["publish", "--force", "web", &cut],
            10,
            "is cut off",
        );
    }
    let file = place.file("candidate", &at(1024, &[0xe2, 0xe1, 0xf5, 0xe0]));
    let output = run(&place.state(), &["publish", "-q", "--force", "web", &file]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("is an erofs: it can be fetched, and no node can boot it"));
    // And back to what was good.
    run_ok(&place.state(), &["rollback", "web"]);
    assert_eq!(run_ok(&place.state(), &["images"]).lines().count(), 3);
}
