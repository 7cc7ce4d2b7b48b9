//! Which seed a mirror is told to mirror: one that it can, at any of its addresses, and not itself.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{Server, run, run_ok, squashfs, stderr, until};

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
