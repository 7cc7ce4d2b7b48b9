//! `serve --mirror`: two servers, one of them destroyed.

mod common;
#[path = "common/pair.rs"]
mod pair;

use std::fs;
use std::time::Duration;

use common::{Server, request, run, run_ok, squashfs, stderr, until};
use pair::{LIMIT, Pair, names};
use rootswarm::state::StateDir;
use rootswarm_image::ImageId;
use rootswarm_transport::node::JoinRequest;
use rootswarm_transport::store::ChunkStore;

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_names_at_the_primary_happens_at_the_mirror() {
    let pair = Pair::new(&[]);
    let (web, db) = (squashfs(3_000_000, 1), squashfs(2_000_000, 2));
    pair.publish("web", &web);
    let said = pair.b.line();
    let id = blake3::hash(&web).to_hex();
    let port = pair.b.swarm.port();
    assert_eq!(
        said,
        format!("ready swarm://127.0.0.1:{port}/web@blake3:{id}")
    );
    let copy = pair.second().join("images").join(id.as_str()).join("image");
    assert!(fs::read(&copy).unwrap() == web);

    pair.publish("db", &db);
    run_ok(&pair.first(), &["tag", "db2", "db"]);
    // Two versions further: the mirror need not have seen each.
    pair.publish("web", &db);
    pair.publish("web", &squashfs(1_000_000, 3));
    let in_step = || names(&pair.first()) == names(&pair.second());
    until("the new names", in_step).await;
    // db, db2, and web with what it meant before, twice.
    assert_eq!(names(&pair.second()).len(), 5);
    for name in ["db", "web"] {
        run_ok(&pair.first(), &["remove", name]);
    }
    until("the removals", in_step).await;
    assert_eq!(names(&pair.second()).len(), 1);
    until("the removed copy's end", || !copy.exists()).await;

    // What is changed here would be undone: it is refused, and says where to do it.
    let file = pair.dir.path().join("db.squashfs").display().to_string();
    let line = format!(
        "rootswarm: state directory {} mirrors swarm://{}: do this there (or take over: serve \
         without --mirror first)\n",
        pair.second().display(),
        pair.at
    );
    for args in [
        &["publish", "-q", "db", &file][..],
        &["tag", "x", "db2"],
        &["remove", "db2"],
        &["rollback", "db2"],
        &["token", "create"],
        &["revoke", "--all"],
    ] {
        let output = run(&pair.second(), args);
        assert_eq!(
            (output.status.code(), stderr(&output)),
            (Some(2), line.clone()),
            "{args:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_seed_is_destroyed_and_new_nodes_boot_from_the_mirror() {
    let mut pair = Pair::new(&[]);
    let image = squashfs(3_000_000, 1);
    pair.publish("web", &image);
    pair.b.line();
    // Peers of both seeds are one swarm: a node is connected to both.
    let early = pair.fetch("early").await;
    let a = pair.a.as_ref().unwrap();
    until("a node at both seeds", || {
        a.nodes() >= 1 && pair.b.nodes() == 1
    })
    .await;
    early.completed().await.unwrap();

    pair.destroy();
    let late = pair.fetch("late").await;
    tokio::time::timeout(LIMIT, late.completed())
        .await
        .unwrap()
        .unwrap();
    for file in ["early", "late"] {
        assert!(
            fs::read(pair.dir.path().join(file)).unwrap() == image,
            "{file}"
        );
    }
    pair.b.error("is not mirrored at the moment");
    // It takes over: the same state, without --mirror, publishes.
    let Pair { dir, b, .. } = pair;
    assert_eq!(b.stop(), Some(0));
    let second = dir.path().join("b");
    let b = Server::start(&second, &[]);
    b.line();
    let file = dir.path().join("new.squashfs");
    fs::write(&file, squashfs(500_000, 9)).unwrap();
    run_ok(
        &second,
        &["publish", "-q", "web", &file.display().to_string()],
    );
    b.line();
    assert!(
        names(&second)[0].starts_with("web 2 "),
        "{:?}",
        names(&second)
    );
}

/// Machines that hold an older pin boot from the mirror as from its first seed: what a name meant before
/// comes with the mirroring (kind `02` of a listing), under its own tag, and outlives the first seed and a
/// start of the mirror. Of a name and of one that was published while the mirror was away.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_what_a_name_meant_before() {
    let mut pair = Pair::new(&[]);
    let days: Vec<Vec<u8>> = (1..=4)
        .map(|day| squashfs(600_000 + day, 2 * day as u64 + 1))
        .collect();
    let ids: Vec<ImageId> = days
        .iter()
        .map(|day| ImageId::from_bytes(*blake3::hash(day).as_bytes()))
        .collect();
    for day in &days[..2] {
        pair.publish("web", day);
    }
    let second = pair.second();
    let in_step = |pair: &Pair| names(&pair.first()) == names(&second);
    until("two versions", || in_step(&pair)).await;
    // The mirror is away for two more, and never sees the third as what the name means.
    pair.b.child.kill().unwrap();
    pair.b.child.wait().unwrap();
    for day in &days[2..] {
        pair.publish("web", day);
    }
    pair.publish("db", &days[0]);
    let of = format!("swarm://{}", pair.at);
    pair.b = Server::start(&second, &["--mirror", &of]);
    until("what was published meanwhile", || in_step(&pair)).await;
    let expected: Vec<String> = [
        ("db", 1, 0),
        ("web", 4, 3),
        ("web~1", 3, 2),
        ("web~2", 2, 1),
    ]
    .map(|(name, version, day)| format!("{name} {version} {}", ids[day]))
    .to_vec();
    assert_eq!(names(&second), expected);

    pair.destroy();
    for restarted in [false, true] {
        if restarted {
            pair.b.child.kill().unwrap();
            pair.b.child.wait().unwrap();
            pair.b = Server::start(&second, &["--mirror", &of]);
        }
        let mirror = [pair.b.swarm];
        for day in [1, 2, 3] {
            let what = format!("day {}, restarted {restarted}", day + 1);
            let node = pair.node().await;
            let pinned = JoinRequest {
                pin: Some(ids[day]),
                ..request(None)
            };
            // What is in the directory is served a moment later, and until then the pin is another's; a start that
            // has not found it good yet says so. Both pass.
            let mut said = String::new();
            let joining = async {
                loop {
                    match node.join(&mirror, &pinned).await {
                        Ok(joined) => break joined,
                        Err(error) => said = error.to_string(),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let joined = tokio::time::timeout(LIMIT, joining).await;
            let joined = joined.unwrap_or_else(|_| panic!("{what}: {said}"));
            assert_eq!(
                (joined.tag.id, joined.tag.version),
                (ids[day], day as u64 + 1),
                "{what}"
            );
            let path = pair.dir.path().join(format!("{day}-{restarted}"));
            let store = ChunkStore::create(&path, joined.manifest.clone()).unwrap();
            let swarm = node.start(joined, store).unwrap();
            let completed = tokio::time::timeout(LIMIT, swarm.completed()).await;
            completed.expect(&what).unwrap();
            assert!(fs::read(&path).unwrap() == days[day], "{what}");
            swarm.shutdown(Duration::from_secs(1)).await;
            let blob = pair.b.request("GET", &format!("/blobs/{}", ids[day]), &[]);
            assert!(blob.body == days[day], "{what}: over HTTP");
        }
        // The one before those that are kept is nobody's any more under this name.
        let gone = JoinRequest {
            pin: Some(ids[0]),
            ..request(None)
        };
        let refused = pair.node().await.join(&mirror, &gone).await;
        assert!(refused.is_err(), "restarted {restarted}");
    }
}

/// A node that fetches from the mirror keeps its image there, however often its name changes at the first
/// seed; then the copy goes from both.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirrors_copy_stays_while_a_node_fetches_it() {
    let mut pair = Pair::new(&["--keep", "1"]);
    let image = squashfs(3_000_000, 1);
    let id = blake3::hash(&image).to_hex().to_string();
    pair.publish("web", &image);
    pair.b.line();
    pair.b.child.kill().unwrap();
    pair.b.child.wait().unwrap();
    let (of, second) = (format!("swarm://{}", pair.at), pair.second());
    let options = ["--mirror", &of, "--keep", "1", "--upload-limit", "200kB/s"];
    pair.b = Server::start(&second, &options);
    pair.b.line();
    let node = pair.node().await;
    let joined = node.join(&[pair.b.swarm], &request(None)).await.unwrap();
    let path = pair.dir.path().join("fetched");
    let store = ChunkStore::create(&path, joined.manifest.clone()).unwrap();
    let swarm = node.start(joined, store.clone()).unwrap();
    until("the download begins", || store.have().count() > 0).await;
    for number in 2..5 {
        pair.publish_keeping("web", &squashfs(1000, 2 * number + 1), "1");
        until("the step", || names(&pair.first()) == names(&second)).await;
    }
    let copies = [pair.first(), pair.second()].map(|state| state.join("images").join(&id));
    until("the end of the first seed's copy", || !copies[0].exists()).await;
    assert!(!store.is_complete(), "this proves nothing if it was faster");
    assert!(copies[1].exists(), "the copy went while a node fetched it");
    let done = tokio::time::timeout(LIMIT, swarm.completed()).await;
    done.unwrap().unwrap();
    assert!(fs::read(&path).unwrap() == image);
}

/// One image does not fit: it is said once, and the others come all the same.
#[test]
fn a_full_disk_is_said_and_stops_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    let publish = |name: &str, length: usize| {
        let file = dir.path().join(name).display().to_string();
        fs::write(&file, squashfs(length, length as u64)).unwrap();
        run_ok(&first, &["publish", "-q", name, &file]);
    };
    publish("a-large", 12_000_000);
    publish("b-small", 500_000);
    let a = Server::start(&first, &[]);
    fs::create_dir(&second).unwrap();
    // A mount of the server's own, gone with it.
    let script = format!(
        "mount -t tmpfs -o size=6M,mode=755 none {0} && cp {1}/swarm.key {0}/ && exec \"$@\"",
        second.display(),
        first.display()
    );
    let of = format!("swarm://{}", a.swarm);
    let b = Server::start_under(
        &["unshare", "-m", "sh", "-ec", &script, "sh"],
        &second,
        &["--mirror", &of],
    );
    let said = b.error("cannot mirror a-large: ");
    assert!(said.contains("no room for the image"), "{said}");
    assert!(b.line().contains("/b-small@blake3:"));
}

/// The mirror is killed with half of an image: nothing of it is published, and the next start goes on
/// with what is there. What an image that was removed meanwhile left goes away.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_was_cut_off_goes_on() {
    const LENGTH: u64 = 24_000_000;
    let mut pair = Pair::new(&["--upload-limit", "6MB/s"]);
    let image = squashfs(LENGTH as usize, 1);
    pair.publish("web", &image);
    let primary = || pair.a.as_ref().unwrap();
    primary().line();
    until("half of the image", || primary().uploaded() > LENGTH / 2).await;
    pair.b.child.kill().unwrap();
    pair.b.child.wait().unwrap();
    let primary = || pair.a.as_ref().unwrap();
    let id = blake3::hash(&image).to_hex().to_string();
    let second = pair.second();
    let partial = second.join(format!("tmp/mirror-{id}"));
    assert!(partial.join("image").exists());
    assert!(names(&second).is_empty() && !second.join("images").join(&id).exists());
    let other = second.join(format!("tmp/mirror-{}", "5e".repeat(32)));
    fs::create_dir(&other).unwrap();
    // Commands open the directory too, and leave what a mirror needs.
    StateDir::open(&second).unwrap();
    assert!(partial.exists() && other.exists());
    // One chunk of what is there is no longer what it was.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(partial.join("image"));
    std::os::unix::fs::FileExt::write_at(&file.unwrap(), b"damage", 0).unwrap();

    let of = format!("swarm://{}", pair.at);
    let mirror = Server::start(&second, &["--mirror", &of]);
    assert!(mirror.line().contains(&id));
    let answer = mirror.request("GET", "/images/web", &[]);
    assert!(answer.body == image);
    // Once, the damaged chunk again, and what was under way when it was killed.
    let uploaded = primary().uploaded();
    assert!(uploaded < LENGTH + LENGTH / 4, "{uploaded} of {LENGTH}");
    assert!(!partial.exists() && !other.exists());
    assert_eq!(mirror.stop(), Some(0));
}
