//! Taking admissions back, against real nodes: what `rootswarm revoke` does to those who are
//! connected, and that everybody learns of it.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use common::{SERVE, Server, age_tokens, key, refuse, request, run_ok, squashfs, until};
use rootswarm_image::SwarmPublicKey;
use rootswarm_transport::node::{Node, NodeConfig, SeedTrust, SwarmHandle};
use rootswarm_transport::store::{ChunkStore, FileStore};
use rootswarm_transport::tuning::Tuning;

const LENGTH: usize = 6_000_000;

struct Lab {
    dir: tempfile::TempDir,
    server: Server,
    key: SwarmPublicKey,
}

impl Lab {
    /// A seed so slow that nodes need each other.
    fn new(options: &[&str]) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, squashfs(LENGTH, 1)).unwrap();
        let named = format!("web={}", image.display());
        let slow = ["--upload-limit", "150kB/s"];
        let state = dir.path().join("state");
        let server = Server::start(&state, &[&slow, options, &[&named]].concat());
        server.line();
        let key = key(&state);
        Lab { dir, server, key }
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    async fn node(&self) -> Node {
        Node::bind(NodeConfig {
            bind: Some(Ipv4Addr::LOCALHOST.into()),
            port: 0,
            trust: SeedTrust::Key(self.key),
            upload_limit_bytes_per_s: Some(150_000),
            tuning: Tuning::default(),
        })
        .await
        .unwrap()
    }

    /// A node that has the whole image.
    async fn holder(&self, token: Option<&str>) -> SwarmHandle {
        let node = self.node().await;
        let (seeds, request) = ([self.server.swarm], request(token));
        let joined = node.join(&seeds, &request).await.unwrap();
        let store = FileStore::open(self.path("image"), joined.manifest.geometry());
        node.serve(joined, std::sync::Arc::new(store.unwrap()))
            .unwrap()
    }

    async fn fetch(&self, file: &str, token: Option<&str>) -> SwarmHandle {
        let node = self.node().await;
        let (seeds, request) = ([self.server.swarm], request(token));
        let joined = node.join(&seeds, &request).await.unwrap();
        let store = ChunkStore::create(self.path(file), joined.manifest.clone()).unwrap();
        node.start(joined, store).unwrap()
    }

    /// The whole ids of the connected nodes that are not complete.
    fn fetching(&self) -> Vec<String> {
        let text = run_ok(&self.state(), &["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        let nodes = status["images"][0]["nodes"].as_array().unwrap().clone();
        let fetching = nodes.iter().filter(|node| node["complete"] == false);
        fetching
            .map(|node| node["id"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn is_alone(node: &SwarmHandle) -> bool {
    let status = node.status();
    !status.seed_connected && status.peers == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_gets_no_byte_more_from_seed_or_peer_until_that_is_undone() {
    let lab = Lab::new(&[]);
    let holder = lab.holder(None).await;
    let victim = lab.fetch("victim", None).await;
    until("bytes from seed and peer", || {
        let status = victim.status();
        status.bytes_from_seed > 0 && status.bytes_from_peers > 0
    })
    .await;
    let state = lab.state();
    let ids = lab.fetching();
    let [id] = ids.as_slice() else {
        panic!("{ids:?}")
    };
    assert_eq!(run_ok(&state, &["revoke", &id[..12]]).trim(), id);
    until("the parting", || is_alone(&victim)).await;
    let sent_by = || (holder.status().bytes_uploaded, lab.server.uploaded());
    // The figures are up to a second old.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (had, sent) = (victim.status().bytes_have, sent_by());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(is_alone(&victim), "it came back: {:?}", victim.status());
    assert_eq!(victim.status().bytes_have, had);
    assert_eq!(sent_by(), sent);
    assert!(holder.status().seed_connected, "nobody else is concerned");

    // It is on the list, once, and the reasons for not being so are told.
    let list = run_ok(&state, &["revoke", "--list"]);
    assert_eq!(list.matches(id.as_str()).count(), 1, "{list}");
    refuse(&state, &["revoke", id], 2, "is revoked already");
    // One id of 256 begins with either.
    let other = if id.starts_with("00") { "ff" } else { "00" };
    refuse(
        &state,
        &["revoke", "--undo", other],
        2,
        &format!("no revoked node's id begins with {other} ("),
    );
    refuse(&state, &["revoke", "xyz"], 2, "bad node \"xyz\"");
    refuse(&state, &["revoke"], 2, "required");
    refuse(&state, &["revoke", "--all", id], 2, "cannot be used with");

    run_ok(&state, &["revoke", "--undo", &id[..12]]);
    until("its return", || victim.status().seed_connected).await;
    until("bytes again", || victim.status().bytes_have > had).await;
}

/// A node that connects after the revocation is told of it, and so is one that was connected to
/// nobody but a peer at the time.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_is_told_and_a_restarted_seed_remembers() {
    let lab = Lab::new(&[]);
    let victim = lab.fetch("victim", None).await;
    until("the victim", || !lab.fetching().is_empty()).await;
    let id = lab.fetching()[0].clone();
    run_ok(&lab.state(), &["revoke", &id]);
    until("the parting", || is_alone(&victim)).await;
    let holder = lab.holder(None).await;
    until("the holder", || holder.status().seed_connected).await;
    let had = victim.status().bytes_have;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(victim.status().bytes_have, had);
    assert_eq!(holder.status().bytes_uploaded, 0);

    let Lab { dir, server, .. } = lab;
    let listen = server.swarm.to_string();
    assert_eq!(server.stop(), Some(0));
    let server = Server::start(&dir.path().join("state"), &["--listen", &listen]);
    server.line();
    until("the holder's return", || holder.status().seed_connected).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_alone(&victim), "{:?}", victim.status());
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_revoke_all_every_node_has_to_be_let_in_again() {
    let lab = Lab::new(&["--admission", "token"]);
    let state = lab.state();
    let always = run_ok(&state, &["token", "create", "--reusable"]);
    let once = run_ok(&state, &["token", "create"]);
    let held = lab.holder(Some(&always)).await;
    let once = lab.fetch("once", Some(&once)).await;
    until("bytes", || once.status().bytes_have > 0).await;
    // The minute in which the same node may show its token again is over.
    age_tokens(&state);
    assert_eq!(run_ok(&state, &["revoke", "--all"]), "epoch 3\n");
    // Everybody parts; who has a token that is still good comes back under the new epoch.
    until("the one-time bearer's end", || is_alone(&once)).await;
    until("the other's return", || {
        lab.server.nodes() == 1 && held.status().seed_connected
    })
    .await;
    let had = once.status().bytes_have;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_alone(&once), "{:?}", once.status());
    assert_eq!(once.status().bytes_have, had);
}

/// In the middle of their downloads, where nothing but the seed lets them in again: each comes back at once,
/// whichever side was the first to part.
#[tokio::test(flavor = "multi_thread")]
async fn after_revoke_all_those_who_fetch_come_back_soon() {
    for (fetching, rounds) in [(1, 2), (4, 2)] {
        let lab = Lab::new(&["--admission", "open"]);
        let held = lab.holder(None).await;
        let mut nodes = vec![held];
        for number in 0..fetching {
            let node = lab.fetch(&format!("{fetching}-{number}"), None).await;
            until("bytes", || node.status().bytes_have > 0).await;
            nodes.push(node);
        }
        for round in 0..rounds {
            run_ok(&lab.state(), &["revoke", "--all"]);
            // Each parts, and comes back.
            let mut parted = vec![false; nodes.len()];
            until("all to be back", || {
                let connected = nodes.iter().map(|node| node.status().seed_connected);
                let connected: Vec<bool> = connected.collect();
                for (parted, connected) in parted.iter_mut().zip(&connected) {
                    *parted |= !connected;
                }
                let all = |flags: &[bool]| flags.iter().all(|it| *it);
                all(&parted) && all(&connected) && lab.server.nodes() == nodes.len()
            })
            .await;
            // Nobody has shown the seed the certificate that was over.
            let said = lab.server.said();
            let refused: Vec<&String> = said
                .iter()
                .filter(|line| line.contains("connection refused"))
                .collect();
            assert!(
                refused.is_empty(),
                "round {round} of {fetching}: {refused:#?}"
            );
        }
    }
}

#[test]
fn a_server_does_not_start_on_a_damaged_list() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    run_ok(&state, &["key"]);
    fs::write(
        state.join("revoked"),
        "rootswarm-revoked 1\nversion 1 epoch\n",
    )
    .unwrap();
    let path = state.join("revoked").display().to_string();
    let words = format!("revocation file {path} line 2: expected \"version V epoch E\"");
    refuse(&state, SERVE, 9, &words);
}

/// A seed's key ends with `revoke --all` too: the running seed makes itself another with a certificate of
/// the new epoch, and nodes that were let in since take none of before, nor a list without the swarm
/// key's signature.
#[tokio::test(flavor = "multi_thread")]
async fn after_revoke_all_seeds_have_a_new_key_as_well() {
    let lab = Lab::new(&[]);
    let epoch_of = async || {
        let node = lab.node().await;
        let joined = node
            .join(&[lab.server.swarm], &request(None))
            .await
            .unwrap();
        let seed = joined.seed().unwrap();
        (seed.node_id, seed.epoch, joined.tag.epoch)
    };
    let mut before = epoch_of().await;
    assert_eq!((before.1, before.2), (Some(1), 1));
    for epoch in [3, 5] {
        run_ok(&lab.state(), &["revoke", "--all"]);
        let renewed = async || {
            let now = epoch_of().await;
            (now.1 == Some(epoch) && now.2 == epoch).then_some(now)
        };
        let mut found = None;
        for _ in 0..200 {
            found = renewed().await;
            if found.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let now = found.expect("a certificate and a tag of the new epoch");
        assert_ne!(now.0, before.0, "a new key");
        before = now;
    }
    // An initrd that was built in a later epoch than the seed's takes neither seed nor tag.
    let late = lab.node().await.since_epoch(6);
    let refused = late.join(&[lab.server.swarm], &request(None)).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("certificate of epoch 5"), "{refused}");
    let same = lab.node().await.since_epoch(5);
    assert!(same.join(&[lab.server.swarm], &request(None)).await.is_ok());
}

/// However an epoch begins: of seeds on IPv6, several times in a row, while the seed is away. Its mirror has
/// no key of before either.
#[tokio::test(flavor = "multi_thread")]
async fn no_seed_takes_its_key_along_into_a_new_epoch() {
    for (case, host, in_a_row, is_away) in [
        ("IPv6", "[::1]", 1, false),
        ("three in a row", "127.0.0.1", 3, false),
        ("while it is away", "127.0.0.1", 2, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let image = dir.path().join("image").display().to_string();
        fs::write(&image, squashfs(200_000, 3)).unwrap();
        run_ok(&first, &["publish", "-q", "web", &image]);
        let any = format!("{host}:0");
        let mut a = Server::start(&first, &["--listen", &any, "--http", &any]);
        let at = a.swarm;
        fs::create_dir(&second).unwrap();
        fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
        let of = format!("swarm://{at}");
        let b = Server::start(
            &second,
            &["--listen", &any, "--http", &any, "--mirror", &of],
        );
        b.line();
        let key = key(&first);
        // Who a seed is for a newcomer, and in which epoch it and what it says are.
        let seen = async |seed| {
            let node = common::node(key, at.ip()).await;
            let joined = node.join(&[seed], &request(None)).await.ok()?;
            let who = joined.seed().unwrap();
            Some((who.node_id, who.epoch, joined.tag.epoch))
        };
        let mut before = Vec::new();
        for seed in [at, b.swarm] {
            let (id, epoch, signed) = seen(seed).await.unwrap();
            assert_eq!((epoch, signed), (Some(1), 1), "{case}");
            before.push(id);
        }
        let listen = at.to_string();
        if is_away {
            assert_eq!(a.stop(), Some(0));
            for _ in 0..in_a_row {
                run_ok(&first, &["revoke", "--all"]);
            }
            a = Server::start(&first, &["--listen", &listen, "--http", &any]);
        } else {
            for _ in 0..in_a_row {
                run_ok(&first, &["revoke", "--all"]);
            }
        }
        let epoch = 1 + 2 * in_a_row;
        for (seed, before) in [at, b.swarm].into_iter().zip(before) {
            let renewed = async {
                loop {
                    match seen(seed).await {
                        Some((id, Some(now), signed)) if (now, signed) == (epoch, epoch) => {
                            break id;
                        }
                        _ => tokio::time::sleep(Duration::from_millis(100)).await,
                    }
                }
            };
            let limit = Duration::from_secs(60);
            let id = tokio::time::timeout(limit, renewed).await.expect(case);
            assert_ne!(id, before, "{case}: {seed} has the key of before");
            let late = common::node(key, at.ip()).await.since_epoch(epoch);
            assert!(late.join(&[seed], &request(None)).await.is_ok(), "{case}");
        }
        drop(a);
    }
}

/// An older `revoked` that comes back from a backup: a server that runs writes its own back, and goes on
/// to let newcomers in and the revoked ones out; one that starts and remembers nothing newer says what to
/// do.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_list_from_a_backup_locks_nobody_out() {
    let lab = Lab::new(&[]);
    let file = lab.state().join("revoked");
    let revoke = |node: u8| run_ok(&lab.state(), &["revoke", &format!("{node:02x}").repeat(32)]);
    let joins = async || {
        let node = lab.node().await;
        node.join(&[lab.server.swarm], &request(None)).await
    };
    revoke(0x11);
    let first = fs::read(&file).unwrap();
    run_ok(&lab.state(), &["revoke", "--all"]);
    let all = fs::read(&file).unwrap();
    revoke(0x22);
    let newest = fs::read(&file).unwrap();
    // One node has learnt of the epoch: it believes no earlier one.
    let member = lab.holder(None).await;
    for backup in [Some(&first), Some(&all), None] {
        // The server has seen the newest one by then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        match backup {
            Some(backup) => fs::write(&file, backup).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        lab.server.error("was replaced by an older one");
        assert!(fs::read(&file).unwrap() == newest, "it is back");
        let joined = joins().await.unwrap();
        assert_eq!(joined.seed().unwrap().epoch, Some(3));
    }
    assert!(!is_alone(&member));

    let Lab { dir, server, .. } = lab;
    assert_eq!(server.stop(), Some(0));
    let state = dir.path().join("state");
    let words = format!(
        "revocation file {} is an older one: it says epoch 1, and names here were signed in epoch 3",
        file.display()
    );
    let remembered = state.join("revoked.newest");
    fs::remove_file(&remembered).unwrap();
    for backup in [Some(&first), None] {
        match backup {
            Some(backup) => fs::write(&file, backup).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        refuse(&state, SERVE, 9, &words);
        // Nothing is signed in it either.
        let image = dir.path().join("image").display().to_string();
        refuse(&state, &["publish", "-q", "web2", &image], 9, &words);
    }
    // As the line says: the newest copy, or past both.
    fs::write(&file, &newest).unwrap();
    assert_eq!(Server::start(&state, &[]).stop(), Some(0));
    fs::write(&file, &first).unwrap();
    fs::remove_file(&remembered).unwrap();
    assert_eq!(run_ok(&state, &["revoke", "--all"]), "epoch 5\n");
    assert_eq!(Server::start(&state, &[]).stop(), Some(0));
}

/// An older `revoked`, of whichever epoch, that is put there while no server runs: it gives way with a line
/// before a server starts, and before a command changes it.
#[test]
fn an_older_list_gives_way_before_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let node = |byte: u8| format!("{byte:02x}").repeat(32);
    let file = state.join("revoked");
    run_ok(&state, &["key"]);
    run_ok(&state, &["revoke", &node(0x11)]);
    run_ok(&state, &["revoke", "--all"]);
    run_ok(&state, &["revoke", &node(0x22)]);
    let older = fs::read_to_string(&file).unwrap();
    // Another list under the number that comes next.
    let other = older.replace("version 3", "version 4").replace("22", "77");
    run_ok(&state, &["revoke", &node(0x33)]);
    // A release that remembered nothing has written it: the next start does.
    fs::remove_file(state.join("revoked.newest")).unwrap();
    assert_eq!(Server::start(&state, &[]).stop(), Some(0));
    let first_epoch = "rootswarm-revoked 1\nversion 9 epoch 1\n".to_owned();
    let mut on_it = vec![node(0x22), node(0x33)];
    let said = |text: &str| text.contains("was replaced by an older one");
    for (number, backup) in [Some(&older), Some(&other), Some(&first_epoch), None]
        .into_iter()
        .enumerate()
    {
        let put_there = || match backup {
            Some(backup) => fs::write(&file, backup).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        };
        put_there();
        let server = Server::start(&state, &[]);
        assert!(said(&server.said_first.concat()), "{backup:?}");
        assert_eq!(server.stop(), Some(0));
        put_there();
        let late = node(0x40 + number as u8);
        let output = common::run(&state, &["revoke", &late]);
        assert!(output.status.success() && said(&common::stderr(&output)));
        on_it.push(late);
        let list = run_ok(&state, &["revoke", "--list"]);
        for node in &on_it {
            assert!(list.contains(node), "{backup:?}: {list}");
        }
        assert!(fs::read_to_string(&file).unwrap().contains(" epoch 3\n"));
    }
    // Nothing is said when it is the newest.
    let server = Server::start(&state, &[]);
    assert!(!said(&server.said_first.concat()));
}

/// What was done about a node is not done while the server that runs does not do it, and that is said.
#[test]
fn a_server_that_hangs_is_not_taken_for_one_that_obeys() {
    let lab = Lab::new(&[]);
    let node = "ab".repeat(32);
    for line in [
        &["revoke", &node][..],
        &["revoke", "--undo", &node],
        &["revoke", "--all"],
    ] {
        lab.server.signal("STOP");
        let hung = common::run(&lab.state(), line);
        lab.server.signal("CONT");
        let said = common::stderr(&hung);
        assert_eq!(hung.status.code(), Some(4), "{line:?}: {said}");
        assert!(
            said.contains("does not answer") && said.lines().count() == 1,
            "{line:?}: {said}"
        );
        // It is written down, and the server obeys as soon as it can.
        let status = || -> serde_json::Value {
            let text = run_ok(&lab.state(), &["status", "--json"]);
            serde_json::from_str(&text).unwrap()
        };
        let written = fs::read_to_string(lab.path("state/revoked")).unwrap();
        let begun = std::time::Instant::now();
        while !written.contains(&format!("version {} ", status()["revocations"])) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{written}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // One that obeys is waited for, and takes no time.
    let begun = std::time::Instant::now();
    run_ok(&lab.state(), &["revoke", "--all"]);
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}
