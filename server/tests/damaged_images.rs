//! Published images whose copy, manifest or tag is not what it was: never served, always named, and
//! mended by publishing them again.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Place, SERVE, Server, refuse, rootswarm, run, run_ok, squashfs, stderr};

type Damage = fn(&Path);

/// What may happen to a copy, and what is said about it.
const DAMAGES: &[(&str, Damage, &str)] = &[
    (
        "a flipped bit",
        |copy| change(&copy.join("image"), |bytes| bytes[270_000] ^= 1),
        "damaged",
    ),
    (
        "a lost tail",
        |copy| change(&copy.join("image"), |bytes| bytes.truncate(299_999)),
        "299999 bytes",
    ),
    (
        "a longer file",
        |copy| change(&copy.join("image"), |bytes| bytes.push(0)),
        "300001 bytes",
    ),
    (
        "no file",
        |copy| fs::remove_file(copy.join("image")).unwrap(),
        "image",
    ),
    (
        "a damaged manifest",
        |copy| change(&copy.join("manifest"), |bytes| bytes[30] ^= 1),
        "manifest",
    ),
    (
        "a cut manifest",
        |copy| change(&copy.join("manifest"), |bytes| bytes.truncate(10)),
        "manifest",
    ),
    (
        "no manifest",
        |copy| fs::remove_file(copy.join("manifest")).unwrap(),
        "manifest",
    ),
    (
        "no copy",
        |copy| fs::remove_dir_all(copy).unwrap(),
        "cannot read",
    ),
];

/// The directories of all copies.
fn copies(state: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(state.join("images")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// No name is changed to a damaged copy: not by a step back, not by another name for it. What the names
/// mean goes on being served, also by a server that is started anew.
#[test]
fn no_name_is_changed_to_a_damaged_copy() {
    for (what, damage, words) in DAMAGES {
        let place = Place::new();
        let old = copies(&place.state()).pop_first().unwrap();
        let new = place.file("new.squashfs", &squashfs(200_000, 3));
        run_ok(&place.state(), &["publish", "-q", "web", &new]);
        run_ok(&place.state(), &["publish", "-q", "db", &new]);
        run_ok(
            &place.state(),
            &["publish", "-q", "old", &place.path("web.squashfs")],
        );
        damage(&old);
        let tag = place.tag();
        match old.is_dir() {
            true => {
                refuse(&place.state(), &["rollback", "web"], 9, "is damaged");
                refuse(&place.state(), &["rollback", "web"], 9, words);
            }
            false => refuse(&place.state(), &["rollback", "web"], 6, "no older"),
        }
        refuse(&place.state(), &["tag", "db", "old"], 9, words);
        refuse(
            &place.state(),
            &["tag", "another", "old"],
            9,
            "publish that",
        );
        assert_eq!(place.tag(), tag, "{what}");
        let server = Server::start(&place.state(), &[]);
        let ready = [server.line(), server.line()].concat();
        assert!(ready.contains("/web@") && ready.contains("/db@"), "{ready}");
        assert_eq!(server.stop(), Some(0));
        // Published again it can be gone back to.
        run_ok(
            &place.state(),
            &["publish", "-q", "old", &place.path("web.squashfs")],
        );
        run_ok(&place.state(), &["rollback", "web"]);
        run_ok(&place.state(), &["tag", "db", "old"]);
    }
}

/// A server that was told to publish the file has all it needs to mend the copy, and does not take its
/// note that the file is unchanged for a whole copy.
#[test]
fn a_server_that_has_the_file_mends_its_copy() {
    let place = Place::new();
    let file = place.path("web.squashfs");
    let told = format!("web={file}");
    // The note is made of a file that was not changed for some seconds.
    std::thread::sleep(Duration::from_secs(5));
    for (what, damage, _) in DAMAGES.iter().take(2) {
        let server = Server::start(&place.state(), &[&told]);
        assert!(server.line().contains("/web@"), "{what}");
        assert_eq!(server.stop(), Some(0));
        assert!(place.state().join("sources/web").exists(), "{what}");
        damage(&copies(&place.state()).pop_first().unwrap());
        let server = Server::start(&place.state(), &[&told]);
        assert!(server.line().contains("/web@"), "{what}");
        let body = server.request("GET", "/images/web", &[]).body;
        assert!(body == fs::read(&file).unwrap(), "{what}");
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn damaged_copies_are_refused_and_named() {
    for (what, damage, words) in DAMAGES {
        let place = Place::new();
        damage(&copies(&place.state()).pop_first().unwrap());
        // Alone, it keeps the server from starting.
        refuse(&place.state(), SERVE, 9, "image web is damaged");
        refuse(&place.state(), SERVE, 9, words);
        // Beside a good one it is left out, aloud.
        run_ok(
            &place.state(),
            &[
                "publish",
                "-q",
                "db",
                &place.file("db.squashfs", &squashfs(1000, 2)),
            ],
        );
        let output = {
            let mut child = rootswarm()
                .args(SERVE)
                .arg("--state")
                .arg(place.state())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            use std::io::{BufRead, BufReader};
            let mut ready = String::new();
            BufReader::new(child.stdout.as_mut().unwrap())
                .read_line(&mut ready)
                .unwrap();
            assert!(
                ready.starts_with("ready swarm://") && ready.contains("/db@"),
                "{what}: {ready}"
            );
            // The good one is served while the other is still being looked at.
            let mut said = BufReader::new(child.stderr.as_mut().unwrap()).lines();
            let damaged = said.find(|line| {
                let line = line.as_ref().unwrap();
                line.contains("error: image web is damaged and not served")
            });
            assert!(damaged.is_some(), "{what}: the server ended without a word");
            Command::new("kill")
                .arg(child.id().to_string())
                .status()
                .unwrap();
            child.wait_with_output().unwrap()
        };
        assert_eq!(output.status.code(), Some(0), "{what}");
        assert!(
            output.stdout.is_empty(),
            "{what}: a ready line for a damaged image"
        );
        // Publishing it again mends it.
        run_ok(
            &place.state(),
            &["publish", "-q", "web", &place.path("web.squashfs")],
        );
        let server = Server::start(&place.state(), &[]);
        assert_eq!(
            [server.line(), server.line()]
                .iter()
                .filter(|line| line.contains("/web@"))
                .count(),
            1,
            "{what}"
        );
        assert_eq!(server.stop(), Some(0));
    }
}

fn change(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    // The copy is read-only, which root does not notice and others do.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_tags_are_refused_and_named() {
    let place = Place::new();
    change(&place.state().join("tags/web"), |bytes| bytes[20] ^= 1);
    refuse(&place.state(), SERVE, 9, "image web is damaged");
    // A tag that another installation signed.
    let other = Place::new();
    fs::write(place.state().join("tags/web"), other.tag()).unwrap();
    refuse(&place.state(), SERVE, 9, "is not signed by");
    // A good tag under another name.
    run_ok(
        &place.state(),
        &["publish", "-q", "web", &place.path("web.squashfs")],
    );
    fs::copy(
        place.state().join("tags/web"),
        place.state().join("tags/db"),
    )
    .unwrap();
    let output = run(&place.state(), &["images"]);
    assert_eq!(output.status.code(), Some(9));
    assert!(
        stderr(&output).contains("tag db") && stderr(&output).contains("it is about web"),
        "{}",
        stderr(&output)
    );
}
