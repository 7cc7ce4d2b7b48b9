//! What a name meant before: fetched by its pin, listed, gone back to, and kept while somebody fetches
//! it; and that what was just published is there.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Server, key, node, run, run_ok, squashfs, stderr};
use rootswarm::state::StateDir;
use rootswarm_image::{ImageId, SwarmPublicKey};
use rootswarm_transport::node::{JoinError, JoinRequest, Joined, Node, SwarmHandle};
use rootswarm_transport::store::ChunkStore;

fn id_of(url: &str) -> ImageId {
    let (_, id) = url.trim().rsplit_once("@blake3:").expect("a pin");
    id.parse().expect("an id")
}

/// The generator of images takes an even number for the odd one after it.
fn of(seed: u64) -> u64 {
    2 * seed + 1
}

struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    fn new() -> Shop {
        Shop {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn file(&self, length: usize, seed: u64) -> String {
        let path = self.dir.path().join(format!("{length}-{seed}"));
        fs::write(&path, squashfs(length, of(seed))).unwrap();
        path.display().to_string()
    }

    fn publish(&self, name: &str, length: usize, seed: u64, options: &[&str]) -> ImageId {
        let file = self.file(length, seed);
        let words = [&["publish", "-q"], options, &[name, &file]].concat();
        id_of(&run_ok(&self.state(), &words))
    }

    /// NAME, VERSION and ID of each line of `images`.
    fn listed(&self) -> Vec<(String, u64, String)> {
        let text = run_ok(&self.state(), &["images"]);
        let fields = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let version = fields[3].parse().unwrap();
            (fields[0].to_owned(), version, fields[6].to_owned())
        };
        text.lines().skip(1).map(fields).collect()
    }

    fn copies(&self) -> usize {
        fs::read_dir(self.state().join("images")).unwrap().count()
    }
}

async fn join(
    key: SwarmPublicKey,
    seed: SocketAddr,
    name: &str,
    pin: Option<ImageId>,
) -> Result<Joined, JoinError> {
    let request = JoinRequest {
        name: name.parse().unwrap(),
        pin,
        token: None,
        rack: None,
    };
    node(key, Ipv4Addr::LOCALHOST.into())
        .await
        .join(&[seed], &request)
        .await
}

/// A machine that is booted the moment `publish` returns: the swarm and HTTP both have the image, at
/// the first attempt. Of several sizes; for a new name, an old one, another name and a step back; with
/// a server that was started that very moment.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_is_served_when_the_command_returns() {
    let shop = Shop::new();
    let server = Server::start(&shop.state(), &[]);
    let key = key(&shop.state());
    let check = async |server: &Server, what: &str, name: &str, id: ImageId| {
        let answer = server.request("GET", &format!("/tags/{name}"), &[]);
        assert_eq!(answer.status, 200, "{what}");
        let tag = rootswarm_image::SignedTag::decode(&answer.body).unwrap();
        assert_eq!(tag.unverified().id, id, "{what}: over HTTP");
        let joined = join(key, server.swarm, name, Some(id)).await;
        let joined = joined.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(*joined.manifest.id(), id, "{what}");
    };
    for (round, length) in [300_000, 12_000_000, 96, 2_000_001].into_iter().enumerate() {
        let id = shop.publish("web", length, round as u64, &[]);
        check(&server, &format!("{length} bytes"), "web", id).await;
    }
    let id = id_of(&run_ok(&shop.state(), &["tag", "prod", "web"]));
    check(&server, "another name", "prod", id).await;
    let id = id_of(&run_ok(&shop.state(), &["rollback", "web"]));
    check(&server, "a step back", "web", id).await;
    // The same image again is a new version, and that is served too.
    let length = fs::metadata(shop.state().join(format!("images/{id}/image")))
        .unwrap()
        .len();
    let again = shop.publish("web", length as usize, 2, &[]);
    assert_eq!(again, id);
    let tag = server.request("GET", "/tags/web", &[]).body;
    let tag = rootswarm_image::SignedTag::decode(&tag).unwrap();
    assert_eq!(
        tag.unverified().version,
        shop.listed()[1].1,
        "{:?}",
        shop.listed()
    );
    run_ok(&shop.state(), &["remove", "prod"]);
    assert_eq!(server.request("GET", "/images/prod", &[]).status, 404);
    assert_eq!(server.stop(), Some(0));

    let server = Server::start(&shop.state(), &[]);
    let id = shop.publish("db", 700_000, 9, &[]);
    check(&server, "while it starts", "db", id).await;
    // One that does not answer is named, and what was published stays so.
    server.signal("STOP");
    let file = shop.file(1000, 10);
    let begin = Instant::now();
    let output = run(&shop.state(), &["publish", "-q", "db", &file]);
    server.signal("CONT");
    assert_eq!(output.status.code(), Some(4));
    let said = stderr(&output);
    assert!(
        said.starts_with("rootswarm: db is published in the state directory")
            && said.contains("does not answer")
            && said.lines().count() == 1,
        "{said}"
    );
    assert!(begin.elapsed() < Duration::from_secs(120), "it is bounded");
    assert!(common::stdout(&output).contains("/db@blake3:"));
    // One that was killed left its socket and its lock's file behind: nobody waits for it.
    drop(server);
    assert!(shop.state().join("control.sock").exists());
    for name in ["db", "new"] {
        let output = run(&shop.state(), &["publish", "-q", name, &file]);
        assert_eq!(
            (output.status.code(), stderr(&output)),
            (Some(0), String::new())
        );
    }
}

/// With two, three (unasked) and five that are kept: each is had by its pin, with its tag as it was, over
/// the swarm and HTTP, also from a server that is started while nodes hold yesterday's pin; the one
/// before is refused.
#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_pin_gets_yesterdays_image() {
    for (keep, options) in [(3, &[][..]), (2, &["--keep", "2"]), (5, &["--keep", "5"])] {
        let shop = Shop::new();
        let mut server = Server::start(&shop.state(), options);
        let key = key(&shop.state());
        let published: Vec<ImageId> = (0..keep + 1)
            .map(|day| shop.publish("web", 400_000 + day, day as u64, options))
            .collect();
        // The server takes the copy that is not kept off the disk when nobody fetches it.
        common::until("a copy that is not kept goes", || shop.copies() == keep).await;
        for restarted in [false, true] {
            if restarted {
                assert_eq!(server.stop(), Some(0));
                server = Server::start(&shop.state(), options);
                assert!(server.line().contains(&published[keep].to_string()));
            }
            for (day, id) in published.iter().enumerate().skip(1) {
                let what = format!("keep {keep}, day {day}, restarted {restarted}");
                let joined = join(key, server.swarm, "web", Some(*id)).await;
                let joined = joined.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(joined.manifest.id(), id, "{what}");
                let body = server.request("GET", &format!("/blobs/{id}"), &[]).body;
                assert!(body == squashfs(400_000 + day, of(day as u64)), "{what}");
                let manifest = server.request("GET", &format!("/manifests/{id}"), &[]);
                assert_eq!(manifest.status, 200, "{what}");
            }
            let refused = join(key, server.swarm, "web", Some(published[0])).await;
            assert!(refused.is_err(), "keep {keep}: the one before");
            // Without a pin it is today's.
            let today = join(key, server.swarm, "web", None).await.unwrap();
            assert_eq!(*today.manifest.id(), published[keep]);
        }
        let listed = shop.listed();
        let expected: Vec<(String, u64, String)> = (0..keep)
            .map(|back| {
                let name = match back {
                    0 => "web".to_owned(),
                    back => format!("web~{back}"),
                };
                (
                    name,
                    (keep + 1 - back) as u64,
                    published[keep - back].to_string(),
                )
            })
            .collect();
        assert_eq!(listed, expected);
    }
}

/// By number and by id; each time under a new version, which is higher than any before.
#[test]
fn a_step_back_is_a_new_version() {
    let shop = Shop::new();
    let ids: Vec<ImageId> = (0..3)
        .map(|day| shop.publish("web", 1000, day, &[]))
        .collect();
    let back = |which: &[&str]| {
        id_of(&run_ok(
            &shop.state(),
            &[&["rollback", "web"], which].concat(),
        ))
    };
    let order = || -> Vec<String> { shop.listed().into_iter().map(|line| line.2).collect() };
    let texts = |order: [usize; 3]| order.map(|day| ids[day].to_string()).to_vec();
    assert_eq!(back(&[]), ids[1]);
    assert_eq!(order(), texts([1, 2, 0]));
    assert_eq!(back(&["2"]), ids[0]);
    assert_eq!(order(), texts([0, 1, 2]));
    assert_eq!(back(&[&ids[2].to_string()[..8]]), ids[2]);
    assert_eq!(order(), texts([2, 0, 1]));
    assert_eq!(shop.listed()[0].1, 6, "three published, three steps");
    // The number of those that are kept is that of whoever changes the name last.
    shop.publish("web", 1000, 7, &["--keep", "1"]);
    assert_eq!(shop.listed().len(), 1);
    assert_eq!(shop.copies(), 1);
}

/// A boot that began with an image ends with it: the name is published anew, of which nothing older is
/// kept, the download takes much longer than a copy without readers stays, and the server is killed and
/// started again in its middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stays_while_a_node_fetches_it() {
    let free = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let shop = Shop::new();
    let bytes = squashfs(4_000_000, of(1));
    let old = shop.publish("web", bytes.len(), 1, &[]);
    let listen = free.to_string();
    let options = [
        "--listen",
        &listen,
        "--keep",
        "1",
        "--upload-limit",
        "200kB/s",
    ];
    let server = Server::start(&shop.state(), &options);
    let client = node(key(&shop.state()), Ipv4Addr::LOCALHOST.into()).await;
    let path = shop.dir.path().join("fetched");
    let (store, swarm) = begin(client, server.swarm, &path).await;
    common::until("the download begins", || store.have().count() > 0).await;

    shop.publish("web", 1000, 2, &["--keep", "1"]);
    let copy = shop.state().join(format!("images/{old}/image"));
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(!store.is_complete(), "this proves nothing if it was faster");
    assert!(copy.exists(), "the copy went while a node fetched it");
    drop(server);
    let server = Server::start(&shop.state(), &["--listen", &listen, "--keep", "1"]);
    let done = tokio::time::timeout(Duration::from_secs(90), swarm.completed()).await;
    assert!(
        done.is_ok(),
        "a server that was started again goes on with it"
    );
    assert!(fs::read(&path).unwrap() == bytes);
    // By its pin it is not had any more: nothing names it.
    let again = join(key(&shop.state()), server.swarm, "web", Some(old)).await;
    assert!(again.is_err());
    assert_eq!(server.stop(), Some(0));
    // Whoever writes next finds no server that sends it.
    StateDir::open(&shop.state()).unwrap();
    assert!(!copy.exists());
}

/// What takes the names away from an image that is being fetched.
type TakeAway = fn(&Shop);

/// The same whatever takes the names away, and whether the node fetches over the swarm or over HTTP: three
/// publishes in a row, two names that meant it, the name's removal.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_stays_whatever_takes_its_names_away() {
    let cases: [(&str, &[&str], TakeAway); 3] = [
        ("three publishes", &["web"], |shop| {
            for seed in 2..5 {
                shop.publish("web", 1000, seed, &["--keep", "1"]);
            }
        }),
        ("two names", &["web", "prod"], |shop| {
            shop.publish("web", 1000, 2, &["--keep", "1"]);
            run_ok(&shop.state(), &["tag", "--keep", "1", "prod", "web"]);
        }),
        ("removal", &["web"], |shop| {
            run_ok(&shop.state(), &["remove", "web"]);
        }),
    ];
    let checks = cases.map(|(what, names, take_away)| async move {
        let shop = Shop::new();
        let bytes = squashfs(3_000_000, of(1));
        let old = shop.publish("web", bytes.len(), 1, &[]);
        for name in names.iter().skip(1) {
            run_ok(&shop.state(), &["tag", name, "web"]);
        }
        let options = ["--keep", "1", "--upload-limit", "200kB/s"];
        let server = Server::start(&shop.state(), &options);
        let client = node(key(&shop.state()), Ipv4Addr::LOCALHOST.into()).await;
        let path = shop.dir.path().join("fetched");
        let (store, swarm) = begin(client, server.swarm, &path).await;
        let (http, blob) = (server.http, format!("/blobs/{old}"));
        let over_http = tokio::task::spawn_blocking(move || common::get(http, &blob));
        common::until("the download begins", || store.have().count() > 0).await;

        take_away(&shop);
        let copy = shop.state().join(format!("images/{old}/image"));
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert!(
            !store.is_complete(),
            "{what}: this proves nothing if it was faster"
        );
        assert!(
            copy.exists(),
            "{what}: the copy went while a node fetched it"
        );
        let done = tokio::time::timeout(Duration::from_secs(90), swarm.completed()).await;
        assert!(done.is_ok(), "{what}: the download ends");
        assert!(fs::read(&path).unwrap() == bytes, "{what}");
        assert!(over_http.await.unwrap().body == bytes, "{what}: over HTTP");
        let again = join(key(&shop.state()), server.swarm, "web", Some(old)).await;
        assert!(again.is_err(), "{what}: nothing names it");
        assert_eq!(server.stop(), Some(0));
    });
    for check in checks.map(tokio::spawn) {
        check.await.unwrap();
    }
}

/// Joins `web` and begins to fetch it.
async fn begin(client: Node, seed: SocketAddr, path: &Path) -> (ChunkStore, SwarmHandle) {
    let request = JoinRequest {
        name: "web".parse().unwrap(),
        pin: None,
        token: None,
        rack: None,
    };
    let joined = client.join(&[seed], &request).await.unwrap();
    let store = ChunkStore::create(path, joined.manifest.clone()).unwrap();
    let swarm = client.start(joined, store.clone()).unwrap();
    (store, swarm)
}

/// A disk with room for two copies is enough, as it was before generations were kept: they make room.
#[test]
fn older_generations_make_room() {
    let shop = Shop::new();
    let files = [1, 2, 3].map(|seed| shop.file(3_000_000, seed));
    let mount = shop.dir.path().join("disk");
    fs::create_dir(&mount).unwrap();
    let script = r#"
        set -e
        mount -t tmpfs -o size=7m tmpfs "$MOUNT"
        for file in "$@"; do "$PROGRAM" --state "$MOUNT/state" publish -q web "$file"; done
        ls "$MOUNT/state/images" | wc -l
        # What cannot be made room for takes nothing away.
        truncate -s 8000000 "$1"
        if "$PROGRAM" --state "$MOUNT/state" publish -q web "$1"; then exit 99; fi
        ls "$MOUNT/state/images" | wc -l
    "#;
    let output = unshared("-m", script, &files, &[("MOUNT", &mount)]);
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    let text = common::stdout(&output);
    let counts: Vec<&str> = text.lines().filter(|line| line.len() == 1).collect();
    assert_eq!(counts, ["2", "2"], "{text}{said}");
    assert_eq!(said.matches("is no longer kept").count(), 1, "{said}");
    assert!(said.contains("no space for a copy"), "{said}");
}

/// Nothing is given up for an image that has no room all the same, its manifest and its tag included.
#[test]
fn nothing_makes_room_for_what_does_not_fit() {
    let shop = Shop::new();
    let files = [1, 2].map(|seed| shop.file(3_000_000, seed));
    let mount = shop.dir.path().join("disk");
    fs::create_dir(&mount).unwrap();
    let script = r#"
        set -e
        mount -t tmpfs -o size=10m tmpfs "$MOUNT"
        for file in "$@"; do "$PROGRAM" --state "$MOUNT/state" publish -q web "$file"; done
        head -c 3000000 /dev/zero > "$MOUNT/filled"
        free=$(stat -f -c '%a * %S' "$MOUNT")
        # The image fits, and what belongs to it does not.
        for more in 0 -3000 -20000; do
            head -c $(($free + 3000000 + $more)) /dev/urandom > "$MOUNT/../new"
            code=0
            "$PROGRAM" --state "$MOUNT/state" publish -q --force web "$MOUNT/../new" || code=$?
            echo "code $code kept $("$PROGRAM" --state "$MOUNT/state" images | grep -c web)"
        done
        head -c $(($free + 3000000 - 80000)) /dev/urandom > "$MOUNT/../new"
        "$PROGRAM" --state "$MOUNT/state" publish -q --force web "$MOUNT/../new"
        "$PROGRAM" --state "$MOUNT/state" images | tail -n 1 | cut -d ' ' -f 1
    "#;
    let output = unshared("-m", script, &files, &[("MOUNT", &mount)]);
    let (said, text) = (stderr(&output), common::stdout(&output));
    assert!(output.status.success(), "{text}{said}");
    assert_eq!(text.matches("code 5 kept 2").count(), 3, "{text}{said}");
    assert!(text.ends_with("web~1\n"), "{text}{said}");
    assert_eq!(said.matches("no space for a copy").count(), 3, "{said}");
    assert_eq!(said.matches("is no longer kept").count(), 1, "{said}");
}

fn unshared(
    what: &str,
    script: &str,
    args: &[String],
    env: &[(&str, &Path)],
) -> std::process::Output {
    let mut command = std::process::Command::new("unshare");
    match rustix::process::geteuid().is_root() {
        true => command.arg(what),
        false => command.args(["-Ur", what]),
    };
    command.args(["sh", "-c", script, "sh"]).args(args);
    command.env("PROGRAM", env!("CARGO_BIN_EXE_rootswarm"));
    for (name, value) in env {
        command.env(name, value);
    }
    command.output().unwrap()
}

/// What is kept goes for a new image, and for nothing else: not for a step back, another name or new
/// signatures, whatever `keep` says there.
#[test]
fn only_a_publish_gives_up_what_was_kept() {
    let commands: [&[&str]; 4] = [
        &["rollback", "web", "3"],
        &["rollback", "web"],
        &["revoke", "--all"],
        &["tag", "other", "web"],
    ];
    for command in commands {
        let shop = Shop::new();
        for seed in 1..=5 {
            shop.publish("web", 20_000, seed, &["--keep", "6"]);
        }
        let versions = |shop: &Shop| -> Vec<ImageId> {
            let lines = shop.listed().into_iter();
            let mine = lines.filter(|(name, ..)| name.starts_with("web") || name == "other");
            mine.map(|(.., id)| id.parse().unwrap()).collect()
        };
        let before = versions(&shop);
        assert_eq!(before.len(), 5, "{before:?}");
        run_ok(&shop.state(), command);
        let after = versions(&shop);
        for id in before {
            assert!(after.contains(&id), "{command:?}: {id} is gone: {after:?}");
        }
    }
}

/// Changes to one name at a time overtake each other: whoever was overtaken has nothing to wait for.
#[test]
fn who_is_overtaken_does_not_wait() {
    let shop = Shop::new();
    for seed in 1..=3 {
        shop.publish("web", 20_000, seed, &[]);
    }
    let server = Server::start(&shop.state(), &[]);
    server.line();
    let state = shop.state();
    for at_once in [2, 3, 6] {
        std::thread::scope(|scope| {
            let one = || {
                let begin = Instant::now();
                let output = run(&state, &["rollback", "web"]);
                assert!(output.status.success(), "{}", stderr(&output));
                // The wait for a server that does not take it up is 30 s.
                assert!(begin.elapsed() < Duration::from_secs(25));
            };
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .for_each(|thread| thread.join().expect("it comes back"));
        });
    }
}

/// A damaged copy that is published again is whole on the disk, and in what the running server sends.
#[test]
fn a_copy_that_was_mended_is_what_is_sent() {
    for chunks in [1, 3, 9] {
        let shop = Shop::new();
        let length = chunks * 64 * 1024;
        let server = Server::start(&shop.state(), &[]);
        let id = shop.publish("web", length, 7, &[]);
        let path = shop.state().join(format!("images/{id}/image"));
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[length / 2..length / 2 + 8].fill(0xaa);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &damaged, 0).unwrap();
        file.set_modified(modified).unwrap();
        drop(file);
        assert_eq!(shop.publish("web", length, 7, &[]), id);
        assert_eq!(fs::read(&path).unwrap(), whole);
        let sent = server.request("GET", &format!("/blobs/{id}"), &[]).body;
        assert!(sent == whole, "{chunks} chunks: what is sent over HTTP");
        // The swarm lets go of the old copy a moment after the new one is there.
        let begin = Instant::now();
        loop {
            let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
            let is_stale = |line: &&str| line.ends_with("(deleted)") && line.contains("image");
            let stale: Vec<_> = maps.lines().filter(is_stale).collect();
            if stale.is_empty() && maps.contains(&format!("{id}/image")) {
                break;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "{maps}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
