//! Published images whose copy, manifest or tag is not what it was: never served, always named, and
//! mended by publishing them again.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, SERVE, Server, refuse, rootswarm, run, run_ok, squashfs, stderr};

#[test]
fn damaged_copies_are_refused_and_named() {
    type Damage = fn(&Path);
    let cases: &[(&str, Damage, &str)] = &[
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
    for (what, damage, words) in cases {
        let place = Place::new();
        let copy = fs::read_dir(place.state().join("images"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        damage(&copy);
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
            Command::new("kill")
                .arg(child.id().to_string())
                .status()
                .unwrap();
            child.wait_with_output().unwrap()
        };
        assert_eq!(output.status.code(), Some(0), "{what}");
        assert!(
            stderr(&output).contains("error: image web is damaged and not served"),
            "{what}: {}",
            stderr(&output)
        );
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
