//! `serve --mirror`: two servers, one of them destroyed.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Server, key, node, request, run, run_ok, squashfs, stderr, until};
use rootswarm_image::SwarmPublicKey;
use rootswarm_transport::node::{JoinError, Node, SwarmHandle};
use rootswarm_transport::store::ChunkStore;

const LIMIT: Duration = Duration::from_secs(60);

struct Pair {
    dir: tempfile::TempDir,
    a: Option<Server>,
    /// Where the primary is, also when it is not there.
    at: SocketAddr,
    b: Server,
    key: SwarmPublicKey,
}

impl Pair {
    fn new(options: &[&str]) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        // A port of its own, so that it can come back to it.
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let listen = at.to_string();
        let a = Server::start(&first, &[&["--listen", &listen], options].concat());
        fs::create_dir(&second).unwrap();
        fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
        let of = format!("swarm://{at}");
        let b = Server::start(&second, &[&["--mirror", &of], options].concat());
        let key = key(&first);
        let a = Some(a);
        Pair { dir, a, at, b, key }
    }

    fn first(&self) -> PathBuf {
        self.dir.path().join("a")
    }

    fn second(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    fn publish(&self, name: &str, bytes: &[u8]) {
        let file = self.dir.path().join(format!("{name}.squashfs"));
        fs::write(&file, bytes).unwrap();
        let file = file.display().to_string();
        run_ok(&self.first(), &["publish", "-q", name, &file]);
    }

    /// SIGKILL, and its state is gone with it.
    fn destroy(&mut self) {
        drop(self.a.take());
        fs::remove_dir_all(self.first()).unwrap();
    }

    async fn node(&self) -> Node {
        node(self.key, Ipv4Addr::LOCALHOST.into()).await
    }

    /// Both seeds, as `rooturl=swarm://a,b/NAME` names them.
    fn seeds(&self) -> [SocketAddr; 2] {
        [self.at, self.b.swarm]
    }

    async fn fetch(&self, file: &str) -> SwarmHandle {
        let node = self.node().await;
        let joined = node.join(&self.seeds(), &request(None)).await.unwrap();
        let path = self.dir.path().join(file);
        let store = ChunkStore::create(path, joined.manifest.clone()).unwrap();
        node.start(joined, store).unwrap()
    }
}

/// Each name with its version and id, as the admin sees it.
fn names(state: &Path) -> Vec<String> {
    let text = run_ok(state, &["images"]);
    let fields = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", fields[0], fields[3], fields[fields.len() - 1])
    };
    text.lines().skip(1).map(fields).collect()
}

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
    assert_eq!(names(&pair.second()).len(), 3);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_token_admits_one_machine_at_either_seed() {
    let mut pair = Pair::new(&["--admission", "token"]);
    pair.publish("web", &squashfs(500_000, 1));
    pair.b.line();
    let state = pair.first();
    let token = run_ok(&state, &["token", "create"]);
    let always = run_ok(&state, &["token", "create", "--reusable"]);
    let mirrored = || {
        let read = |state: PathBuf| fs::read_to_string(state.join("tokens")).unwrap_or_default();
        read(pair.first()) == read(pair.second())
    };
    until("the tokens", mirrored).await;
    let mirror = [pair.b.swarm];
    // Reusable ones admit anywhere, one-time ones are the primary's as long as it is there.
    let (node, other) = (pair.node().await, pair.node().await);
    assert!(node.join(&mirror, &request(Some(&always))).await.is_ok());
    let error = node
        .join(&mirror, &request(Some(&token)))
        .await
        .err()
        .unwrap();
    assert!(error.is_retryable(), "{error}");

    // It is gone: the mirror admits, one node.
    drop(pair.a.take());
    let one_time = request(Some(&token));
    let admitted = async {
        while let Err(error) = node.join(&mirror, &one_time).await {
            assert!(error.is_retryable(), "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, admitted).await.unwrap();
    let refused = other.join(&mirror, &one_time).await.err().unwrap();
    assert!(matches!(refused, JoinError::Refused { .. }), "{refused}");
    assert!(!refused.is_retryable(), "{refused}");

    // It is back, and learns who used it.
    let listen = pair.at.to_string();
    let options = ["--listen", &listen, "--admission", "token"];
    pair.a = Some(Server::start(&state, &options));
    until("the report", || {
        fs::read_to_string(state.join("tokens"))
            .unwrap()
            .contains("used:")
    })
    .await;
    let refused = other.join(&[pair.at], &one_time).await.err().unwrap();
    assert!(!refused.is_retryable(), "{refused}");
    assert!(
        node.join(&[pair.at], &one_time).await.is_ok(),
        "it asks again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_and_the_epoch_are_mirrored() {
    let pair = Pair::new(&[]);
    pair.publish("web", &squashfs(500_000, 1));
    pair.b.line();
    let node = "07".repeat(32);
    run_ok(&pair.first(), &["revoke", "--all"]);
    run_ok(&pair.first(), &["revoke", &node]);
    until("the list", || {
        run_ok(&pair.second(), &["revoke", "--list"]).contains(&node)
    })
    .await;
    let read = |state: PathBuf| fs::read_to_string(state.join("revoked")).unwrap();
    assert_eq!(read(pair.first()), read(pair.second()));
    // A node that the mirror admits now is good at the primary: the epoch is the same.
    let node = pair.node().await;
    let joined = node.join(&[pair.b.swarm], &request(None)).await.unwrap();
    assert_eq!(joined.tag.name.as_str(), "web");
}

#[test]
fn a_mirror_that_cannot_be_one_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    let a = Server::start(&first, &[]);
    let of = format!("swarm://{}", a.swarm);
    let serve = |more: &[&str]| {
        let listen = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let output = run(&second, &[&listen[..], more].concat());
        (output.status.code(), stderr(&output))
    };
    let path = second.join("swarm.key").display().to_string();
    let missing = format!(
        "rootswarm: cannot mirror {of}: {path} is missing (copy swarm.key from that host's state \
         directory, mode 0600)\n"
    );
    assert_eq!(serve(&["--mirror", &of]), (Some(3), missing));
    assert!(!Path::new(&path).exists(), "no key of its own is made");
    let publishes = format!(
        "rootswarm: a mirror publishes what {of} does: take NAME=FILE and [images] away, or --mirror\n"
    );
    assert_eq!(serve(&["--mirror", &of, "web=x"]), (Some(2), publishes));
    let (code, said) = serve(&["--mirror", "10.0.0.1"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("expected swarm://HOST[:PORT]"), "{said}");
    // A key of its own: another installation.
    let keys = [run_ok(&second, &["key"]), run_ok(&first, &["key"])];
    let other = format!(
        "rootswarm: cannot mirror {of}: the seed {} is not trusted: wrong swarm key: expected {}, \
         found {} (copy swarm.key from that host's state directory)\n",
        a.swarm,
        keys[0].trim(),
        keys[1].trim()
    );
    assert_eq!(serve(&["--mirror", &of]), (Some(3), other));
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
    // Commands look at the directory too, and leave what a mirror needs.
    run_ok(&second, &["key"]);
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

/// The README's mirror, with nothing configured: it lets in whom its first seed lets in, also when that
/// one is gone, after a restart, and once the host has taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_admits_by_its_first_seeds_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    let file = dir.path().join("web.squashfs").display().to_string();
    fs::write(&file, squashfs(400_000, 1)).unwrap();
    run_ok(&first, &["publish", "-q", "web", &file]);
    let token = run_ok(&first, &["token", "create", "--reusable"]);
    fs::create_dir(&second).unwrap();
    fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
    let key = key(&first);

    // It has never met its first seed, and knows nothing of it: nobody is let in, and it may pass.
    let nowhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    let of = format!("swarm://{}", nowhere.local_addr().unwrap());
    let b = Server::start(&second, &["--mirror", &of, "--admission", "open"]);
    let node = node(key, Ipv4Addr::LOCALHOST.into()).await;
    let error = node.join(&[b.swarm], &request(None)).await.err().unwrap();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(b.request("GET", "/images/web", &[]).status, 503);
    drop(nowhere);
    assert_eq!(b.stop(), Some(0));

    let a = Server::start(
        &first,
        &["--admission", "token", "--allow", "127.0.0.0/8,10.9.0.0/16"],
    );
    let of = format!("swarm://{}", a.swarm);
    let refused = async |b: &Server, case: &str| {
        let error = node.join(&[b.swarm], &request(None)).await.err().unwrap();
        assert!(!error.is_retryable(), "{case}: {error}");
        assert!(error.to_string().contains("token"), "{case}: {error}");
        assert_eq!(b.request("GET", "/images/web", &[]).status, 403, "{case}");
        let admitted = node.join(&[b.swarm], &request(Some(&token))).await;
        assert!(admitted.is_ok(), "{case}: {:?}", admitted.err());
    };
    let b = Server::start(&second, &["--mirror", &of]);
    b.line();
    refused(&b, "as its first seed").await;
    let policy = fs::read_to_string(second.join("policy")).unwrap();
    assert_eq!(
        policy,
        "rootswarm-policy 1\nadmission token\nallow listed\nnetwork 127.0.0.0/8\n\
         network 10.9.0.0/16\n"
    );
    assert_eq!(b.stop(), Some(0));

    // What would be looser does not start, and says in what; what is stricter does.
    let serve = |options: &[&str]| {
        let listen = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let output = run(
            &second,
            &[&listen[..], &["--mirror", &of], options].concat(),
        );
        (output.status.code(), stderr(&output))
    };
    let looser = |in_what: &str| {
        let line = format!(
            "rootswarm: this mirror would be looser than {of}: {in_what} (take admission and allow \
             out of this host's configuration: they come with the mirroring)\n"
        );
        (Some(3), line)
    };
    let mode = looser("admission is open here, and token there");
    assert_eq!(serve(&["--admission", "open"]), mode);
    let network =
        looser("network 10.8.0.0/15 is allowed here, and there only 127.0.0.0/8 10.9.0.0/16");
    assert_eq!(serve(&["--allow", "10.8.0.0/15"]), network);
    let b = Server::start(&second, &["--mirror", &of, "--allow", "10.9.4.0/24"]);
    b.line();
    refused(&b, "stricter").await;
    assert_eq!(b.stop(), Some(0));

    // The first seed is gone: what was learnt holds, and refuses as well.
    drop(a);
    let (code, said) = serve(&["--admission", "open"]);
    assert_eq!(code, Some(3), "{said}");
    let b = Server::start(&second, &["--mirror", &of]);
    b.line();
    refused(&b, "without its first seed").await;
    assert_eq!(b.stop(), Some(0));
    let b = Server::start(&second, &[]);
    b.line();
    refused(&b, "taken over").await;
    assert_eq!(b.stop(), Some(0));
    // Now its admin decides.
    let b = Server::start(&second, &["--admission", "open"]);
    b.line();
    assert!(node.join(&[b.swarm], &request(None)).await.is_ok());
}

/// The first seed becomes stricter while the mirror runs: the mirror follows, whatever it is told here.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_seed_that_becomes_stricter_is_followed() {
    let mut pair = Pair::new(&["--admission", "open"]);
    pair.publish("web", &squashfs(400_000, 1));
    pair.b.line();
    let node = pair.node().await;
    assert!(node.join(&[pair.b.swarm], &request(None)).await.is_ok());
    drop(pair.a.take());
    let listen = pair.at.to_string();
    let options = ["--listen", &listen, "--admission", "token"];
    pair.a = Some(Server::start(&pair.first(), &options));
    pair.b.error("configured looser");
    let error = node.join(&[pair.b.swarm], &request(None)).await;
    let error = error.err().unwrap();
    assert!(!error.is_retryable(), "{error}");
}

/// It is known by its key: by whatever name and address it is told to mirror itself.
#[test]
fn a_seed_does_not_mirror_itself() {
    let mirror = |of: &str, listen: &str| {
        let state = tempfile::tempdir().unwrap();
        run_ok(state.path(), &["key"]);
        let started = std::time::Instant::now();
        let output = run(
            state.path(),
            &[
                "serve",
                "--listen",
                listen,
                "--http",
                "127.0.0.1:0",
                "--mirror",
                of,
            ],
        );
        assert!(started.elapsed() < Duration::from_secs(30));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("it is this very seed"), "{said}");
        // And is no mirror's directory afterwards.
        assert!(!state.path().join("mirror").exists());
    };
    let port = || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port()
    };
    for (name, listen) in [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "0.0.0.0"),
        ("127.0.0.7", "0.0.0.0"),
        ("[::1]", "[::]"),
    ] {
        let port = port();
        mirror(
            &format!("swarm://{name}:{port}"),
            &format!("{listen}:{port}"),
        );
    }
}

/// A name with an address of each family, of which the primary listens on one; the mirror itself listens
/// on one of IPv4.
#[tokio::test(flavor = "multi_thread")]
async fn every_address_of_a_name_is_tried() {
    for (address, hosts_text) in [
        ("127.0.0.1", "127.0.0.1 boot1\n::1 boot1\n"),
        ("127.0.0.9", "::1 boot1\n127.0.0.9 boot1\n"),
        ("[::1]", "127.0.0.9 boot1\n::1 boot1\n"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let a = Server::start(&first, &["--listen", &format!("{address}:0")]);
        fs::create_dir(&second).unwrap();
        fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
        let hosts = dir.path().join("hosts");
        fs::write(&hosts, hosts_text).unwrap();
        let of = format!("swarm://boot1:{}", a.swarm.port());
        let mounted = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        let under = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            mounted,
            hosts.to_str().unwrap(),
        ];
        let _b = Server::start_under(&under, &second, &["--mirror", &of]);
        let file = dir.path().join("web");
        fs::write(&file, squashfs(300_000, 7)).unwrap();
        run_ok(&first, &["publish", "-q", "web", file.to_str().unwrap()]);
        let mirrored = second.join("tags/web");
        until(&format!("{address}'s image"), || mirrored.exists()).await;
    }
}
