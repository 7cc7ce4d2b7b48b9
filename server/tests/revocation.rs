//! Taking admissions back, against real nodes: what `rootswarm revoke` does to those who are
//! connected, and that everybody learns of it.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use common::{SERVE, Server, key, refuse, request, run_ok, squashfs, until};
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
    refuse(
        &state,
        &["revoke", "--undo", "00"],
        2,
        "no revoked node's id begins with 00 (",
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
    let tokens = fs::read_to_string(state.join("tokens")).unwrap();
    fs::write(state.join("tokens"), age_used(&tokens)).unwrap();
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

/// The file as it will be in two minutes.
fn age_used(tokens: &str) -> String {
    let line = |line: &str| {
        let mut fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if let Some(used) = fields.get_mut(2).filter(|field| field.starts_with("used:")) {
            let (head, at) = used.rsplit_once(':').unwrap();
            *used = format!("{head}:{}", at.parse::<u64>().unwrap() - 120);
        }
        fields.join(" ") + "\n"
    };
    tokens.lines().map(line).collect()
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

/// An older `revoked` that comes back from a backup: a server that runs writes its own back, and goes on
/// to let newcomers in and the revoked ones out; one that starts says what to do.
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
    assert_eq!(run_ok(&state, &["revoke", "--all"]), "epoch 5\n");
    assert_eq!(Server::start(&state, &[]).stop(), Some(0));
}
