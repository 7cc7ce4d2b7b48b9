//! What an admin can get wrong, and what can be wrong with the machine: one line, the exit code,
//! and nothing half-done left in the state directory.

mod common;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, Server, listing, rootswarm, run, run_ok, squashfs, stderr};

/// Runs a command that must fail with `code` and one line that contains `words`, and must leave the
/// state directory as it was.
fn refuse(state: &Path, args: &[&str], code: i32, words: &str) {
    let before = listing(state);
    let output = run(state, args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(
        said.starts_with("rootswarm: ") && said.lines().count() == 1,
        "{args:?}: {said}"
    );
    assert!(
        said.contains(words),
        "{args:?}: expected {words:?} in {said}"
    );
    assert!(
        output.stdout.is_empty(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(listing(state), before, "{args:?} left something");
}

#[test]
fn arguments() {
    let place = Place::new();
    let state = place.state();
    let good = place.path("web.squashfs");
    let cut = place.file("cut.squashfs", &squashfs(300_000, 1)[..200_000]);
    let config = place.file(
        "bad.toml",
        b"listen = \"0.0.0.0:7400\"\n\nalow = [\"0.0.0.0/0\"]\n",
    );
    let kernel = {
        let mut bytes = vec![0; 0x300];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        place.file("vmlinuz", &bytes)
    };
    let long = "a".repeat(65);
    let directory = place.directory.path().to_str().unwrap().to_owned();
    let out = place.path("tftp");
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "subcommand"),
        (&["frobnicate"], 2, "'frobnicate'"),
        (&["serve", "--frobnicate"], 2, "'--frobnicate'"),
        (&["publish", "web"], 2, "<FILE>"),
        (&["publish", "Web", &good], 2, "'W'"),
        (&["publish", "a/b", &good], 2, "'/'"),
        (&["publish", "..", &good], 2, "directory"),
        (&["publish", "", &good], 2, "empty"),
        (&["publish", &long, &good], 2, "65 bytes"),
        (
            &["publish", "db", "/nonexistent"],
            2,
            "cannot open /nonexistent",
        ),
        (&["publish", "db", &directory], 2, "is a directory"),
        (&["publish", "db", "/dev/null"], 2, "no regular file"),
        (
            &["publish", "db", &cut],
            10,
            "cut off: its squashfs superblock says 300000 bytes, the file has 200000",
        ),
        (
            &["publish", "db", &good, "--chunk-size", "300000"],
            2,
            "--chunk-size",
        ),
        (
            &["publish", "db", &good, "--chunk-size", "32MiB"],
            2,
            "--chunk-size",
        ),
        (
            &["publish", "db", &good, "--chunk-size", "64KiB"],
            2,
            "already published with chunks of 131072 bytes",
        ),
        (&["serve", "web"], 2, "NAME=FILE"),
        (&["serve", "WEB=x"], 2, "'W'"),
        (
            &[
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "db=/nonexistent",
            ],
            2,
            "cannot publish db: cannot open /nonexistent",
        ),
        (&["serve", "--upload-limit", "fast"], 2, "bad rate \"fast\""),
        (&["serve", "--upload-limit", "0"], 2, "zero"),
        (&["serve", "--allow", "10.0.0.0/40"], 2, "at most 32"),
        (&["serve", "--admission", "closed"], 2, "'closed'"),
        (&["serve", "--listen", "7400"], 2, "'7400'"),
        (
            &["serve", "--listen", "192.0.2.1:0", "--http", "127.0.0.1:0"],
            2,
            "192.0.2.1",
        ),
        (
            &["--config", &config, "images"],
            2,
            "line 3: unknown field `alow`",
        ),
        (
            &["--config", "/nonexistent.toml", "images"],
            2,
            "/nonexistent.toml",
        ),
        (&["remove", "db"], 6, "no image is published as db"),
        (&["tag", "prod", "db"], 6, "no image is published as db"),
        (
            &[
                "pxe", "--kernel", &kernel, "--initrd", &good, "--image", "db", "--out", &out,
            ],
            6,
            "db",
        ),
        (
            &[
                "pxe",
                "--kernel",
                "/nonexistent",
                "--initrd",
                &good,
                "--image",
                "web",
                "--out",
                &out,
            ],
            2,
            "kernel /nonexistent",
        ),
        (
            &[
                "pxe", "--kernel", &good, "--initrd", &kernel, "--image", "web", "--out", &out,
            ],
            2,
            "wrong way round",
        ),
        (
            &[
                "pxe",
                "--kernel",
                &kernel,
                "--initrd",
                &good,
                "--image",
                "web",
                "--out",
                &out,
                "--syslinux-dir",
                "/nonexistent",
            ],
            5,
            "install pxelinux",
        ),
        (
            &[
                "pxe",
                "--kernel",
                &kernel,
                "--initrd",
                &good,
                "--image",
                "web",
                "--out",
                &out,
                "--interface",
                "nope0",
            ],
            2,
            "nope0",
        ),
        (
            &[
                "pxe",
                "--kernel",
                &kernel,
                "--initrd",
                &good,
                "--image",
                "web",
                "--out",
                &out,
                "--interface",
                "lo",
                "--append",
                "a\nb",
            ],
            2,
            "control",
        ),
        (&["status"], 4, "no server answers"),
        (
            &["token", "revoke", "12345678"],
            2,
            "no token has the number 12345678",
        ),
        (&["token", "create", "--lifetime", "0s"], 2, "bad duration"),
    ];
    for (args, code, words) in cases {
        refuse(&state, args, *code, words);
    }
    assert!(
        !Path::new(&out).exists(),
        "a refused pxe made its directory"
    );
    let missing = place.directory.path().join("nowhere");
    for args in [&["images"][..], &["remove", "web"], &["token", "list"]] {
        refuse(&missing, args, 5, "does not exist");
    }
    assert!(!missing.exists());
}

#[test]
fn a_busy_port_is_named() {
    let place = Place::new();
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let swarm = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (http_address, swarm_address) = (
        http.local_addr().unwrap().to_string(),
        swarm.local_addr().unwrap().to_string(),
    );
    let state = place.state();
    // The source is new: it must not be published by a server that does not start.
    let new = format!("db={}", place.file("db.squashfs", &squashfs(1000, 9)));
    refuse(
        &state,
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--http",
            &http_address,
            &new,
        ],
        8,
        &format!("address {http_address} for http (tcp) is already in use"),
    );
    refuse(
        &state,
        &[
            "serve",
            "--listen",
            &swarm_address,
            "--http",
            "127.0.0.1:0",
            &new,
        ],
        8,
        &format!("address {swarm_address} for the swarm (udp) is already in use"),
    );
}

#[test]
fn one_server_for_one_state_directory() {
    let place = Place::new();
    let server = Server::start(&place.state(), &[]);
    let output = run(
        &place.state(),
        &["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
    );
    assert_eq!(output.status.code(), Some(8));
    assert!(
        stderr(&output).contains("already served by another process"),
        "{}",
        stderr(&output)
    );
    assert_eq!(server.stop(), Some(0));
}

const SERVE: &[&str] = &["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];

/// Each file that lets somebody in, with each mode and owner that others could have used.
#[test]
fn files_that_others_can_get_at_are_refused() {
    let place = Place::new();
    let state = place.state();
    let web = place.path("web.squashfs");
    run_ok(&state, &["token", "create", "--reusable"]);
    run_ok(&state, &["revoke", &"5e".repeat(32)]);
    let is_root = rustix::process::geteuid().is_root();
    for (name, mode, bad_modes, commands) in [
        (
            "swarm.key",
            0o600,
            &[0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o777][..],
            &[&["publish", "web", &web][..], &["key"], SERVE][..],
        ),
        (
            "tokens",
            0o600,
            &[0o640, 0o604, 0o620, 0o602, 0o666],
            &[&["token", "list"], &["token", "create"], SERVE],
        ),
        (
            "revoked",
            0o644,
            &[0o664, 0o646, 0o666, 0o622],
            &[&["revoke", "--list"], &["revoke", "--all"], SERVE],
        ),
    ] {
        let path = state.join(name);
        let before = fs::read(&path).unwrap();
        for command in commands {
            for bad in bad_modes {
                fs::set_permissions(&path, fs::Permissions::from_mode(*bad)).unwrap();
                let words = format!("/{name} has mode {bad:04o}, expected {mode:04o}: ");
                refuse(&state, command, 3, &words);
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if is_root {
                chown(&path, Some(12345), None).unwrap();
                let words = format!(
                    "/{name} belongs to user 12345, expected user 0 (chown it to user 0, or run as \
                     user 12345)"
                );
                refuse(&state, command, 3, &words);
                chown(&path, Some(0), None).unwrap();
            }
            assert!(fs::read(&path).unwrap() == before, "{name} by {command:?}");
        }
        // Stricter is as good.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        run_ok(&state, commands[commands.len() - 2]);
    }
    assert_eq!(Server::start(&state, &[]).stop(), Some(0));
}

/// What `scp` as root leaves in the state directory of a server that is not root.
#[test]
fn a_key_of_roots_is_named_to_a_server_that_is_not() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let program = place.path("rootswarm");
    fs::copy(env!("CARGO_BIN_EXE_rootswarm"), &program).unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.directory.path(), open).unwrap();
    let mut give = Command::new("chown");
    give.args(["-R", "12345"]).arg(place.state());
    assert!(give.status().unwrap().success());
    let key = place.state().join("swarm.key");
    chown(&key, Some(0), None).unwrap();
    let mut serve = Command::new("setpriv");
    serve.args(["--reuid=12345", "--regid=12345", "--clear-groups"]);
    serve
        .arg(program)
        .args(SERVE)
        .arg("--state")
        .arg(place.state());
    let output = serve.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert!(
        said.contains("swarm.key belongs to user 0, expected user 12345 (chown it"),
        "{said}"
    );
}

#[test]
fn a_key_that_is_none_is_refused() {
    let place = Place::new();
    let key = place.state().join("swarm.key");
    fs::write(&key, b"not a key").unwrap();
    refuse(&place.state(), &["key"], 9, "9 bytes is not an Ed25519 key");
    fs::write(&key, [0; 5000]).unwrap();
    refuse(&place.state(), &["key"], 5, "cannot read swarm key");
    fs::remove_file(&key).unwrap();
    refuse(&place.state(), &["key"], 9, "is missing");
}

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
    let serve = ["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
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
        refuse(&place.state(), &serve, 9, "image web is damaged");
        refuse(&place.state(), &serve, 9, words);
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
                .args(serve)
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
    refuse(
        &place.state(),
        &["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        9,
        "image web is damaged",
    );
    // A tag that another installation signed.
    let other = Place::new();
    fs::write(place.state().join("tags/web"), other.tag()).unwrap();
    refuse(
        &place.state(),
        &["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        9,
        "is not signed by",
    );
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

/// A state directory on a file system of its own that is too small. The mount is in a namespace of
/// its own, so it ends with the command.
#[test]
fn a_full_state_disk() {
    let place = Place::new();
    let big = place.file("big.squashfs", &squashfs(6_000_000, 5));
    let small = place.path("web.squashfs");
    let mount = place.path("disk");
    fs::create_dir(&mount).unwrap();
    let script = r#"
        set -e
        mount -t tmpfs -o size=5m tmpfs "$MOUNT"
        "$PROGRAM" --state "$MOUNT/state" publish -q web "$SMALL" > /dev/null
        before=$(find "$MOUNT/state" -type f -printf '%P %s\n' | sort)
        set +e
        "$PROGRAM" --state "$MOUNT/state" publish -q web "$BIG"
        code=$?
        after=$(find "$MOUNT/state" -type f -printf '%P %s\n' | sort)
        test "$before" = "$after" || { echo "left: $before / $after"; exit 99; }
        test -z "$(ls -A "$MOUNT/state/tmp")" || exit 98
        exit $code
    "#;
    let mut command = Command::new("unshare");
    command.args(if rustix::process::geteuid().is_root() {
        &["-m"][..]
    } else {
        &["-Urm"]
    });
    let output = command
        .args(["sh", "-c", script])
        .env("MOUNT", &mount)
        .env("PROGRAM", env!("CARGO_BIN_EXE_rootswarm"))
        .env("SMALL", small)
        .env("BIG", &big)
        .output()
        .unwrap();
    let said = stderr(&output);
    assert_eq!(
        output.status.code(),
        Some(5),
        "{said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(
        said.starts_with(&format!(
            "rootswarm: no space for a copy of {big}: 6.0 MB needed in {mount}/state, 4."
        )),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
    assert!(
        fs::read_dir(&mount).unwrap().next().is_none(),
        "the mount outlived its command"
    );
}
