//! Which seed a mirror is told to mirror: one that it can, at any of its addresses, and not itself.

mod common;
#[path = "common/pair.rs"]
mod pair;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Server, run, run_ok, squashfs, stderr, until};
use pair::{Pair, names};

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

/// The first seed comes back with a state directory from a backup, in which names have lower versions than the
/// mirror has seen, or none at all: it says so itself, and what is published there next is followed at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_seed_from_a_backup_hears_of_newer_versions_and_goes_on_above_them() {
    let mut pair = Pair::new(&[]);
    let (first, second) = (pair.first(), pair.second());
    let day = |number: usize| squashfs(150_000 + number, 2 * number as u64 + 1);
    pair.publish("web", &day(1));
    let backup = pair.dir.path().join("backup");
    let copy = |from: &Path, to: &Path| {
        let copied = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(copied.unwrap().success());
    };
    copy(&first, &backup);
    for number in 2..=4 {
        pair.publish("web", &day(number));
    }
    pair.publish("db", &day(5));
    until("all versions", || names(&first) == names(&second)).await;
    let before = names(&second);
    drop(pair.a.take());
    fs::remove_dir_all(&first).unwrap();
    copy(&backup, &first);
    let listen = pair.at.to_string();
    let a = Server::start(&first, &["--listen", &listen]);
    let said = a.error("a mirror has version 4 of web");
    assert!(said.contains("here it is version 1"), "{said}");
    assert_eq!(names(&second), before, "the mirror keeps what is newer");
    pair.a = Some(a);
    // Whatever signs a name anew is above: a publish, and for a name that is not here any more as well.
    pair.publish("web", &day(6));
    let current = |state: &Path| {
        names(state)
            .into_iter()
            .find(|line| line.starts_with("web "))
    };
    until("what was published", || current(&first) == current(&second)).await;
    assert!(
        current(&first).unwrap().starts_with("web 5 "),
        "{:?}",
        current(&first)
    );
}
