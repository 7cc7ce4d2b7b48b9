//! What an admin can get wrong, and what can be wrong with the machine: one line, the exit code,
//! and nothing half-done left in the state directory.

mod common;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use common::{Place, SERVE, Server, refuse, run, squashfs, stderr};

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
    let own = state.to_str().unwrap().to_owned();
    let pipe = place.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let long_config = place.file("long.toml", &[b'#'; (1 << 20) + 1]);
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
            &["serve", "web=a", "db=b", "web=c"],
            2,
            "web is given twice",
        ),
        (&["serve", "--upload-limit", "fast"], 2, "bad rate \"fast\""),
        (&["serve", "--upload-limit", "0"], 2, "zero"),
        (&["serve", "--allow", "10.0.0.0/40"], 2, "at most 32"),
        (&["serve", "--admission", "closed"], 2, "'closed'"),
        (&["serve", "--listen", "7400"], 2, "'7400'"),
        (
            &["--config", &config, "images"],
            2,
            "line 3: unknown field `alow`",
        ),
        (&["--config", &pipe, "images"], 2, "expected a regular file"),
        (&["--config", &long_config, "images"], 2, "at most 1 MiB"),
        (
            &["--config", "/nonexistent.toml", "images"],
            2,
            "/nonexistent.toml",
        ),
        (&["publish", "--keep", "0", "db", &good], 2, "--keep"),
        (&["publish", "--keep", "many", "db", &good], 2, "--keep"),
        (&["rollback", "web", "0"], 2, "bad generation"),
        (&["rollback", "web", "abc"], 2, "bad generation"),
        (&["rollback", "db"], 6, "no image is published as db"),
        (
            &["rollback", "web"],
            6,
            "web has no older generation 1 back: 0 are kept",
        ),
        (
            &["rollback", "web", "01234567"],
            6,
            "web has no older generation with the id 01234567",
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
        (
            &[
                "pxe", "--kernel", &kernel, "--initrd", &good, "--image", "web", "--out", "/",
            ],
            2,
            "--out / is ",
        ),
        (
            &[
                "pxe", "--kernel", &kernel, "--initrd", &good, "--image", "web", "--out", &own,
            ],
            2,
            "is the state directory: whatever is in it could be had by TFTP",
        ),
        (
            &[
                "pxe", "--kernel", &kernel, "--initrd", &good, "--image", "web", "--out",
                &directory,
            ],
            2,
            "is above the state directory",
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
    let to_change: &[&[&str]] = &[
        &["remove", "web"],
        &["rollback", "web"],
        &["tag", "prod", "web"],
        &["token", "revoke", "12345678"],
        &["revoke", "--all"],
    ];
    for args in [&[&["images"][..], &["token", "list"]], to_change].concat() {
        refuse(&missing, args, 5, "does not exist");
    }
    assert!(!missing.exists());
    // Nor does a directory of something else become one.
    let other = place.directory.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("file"), "").unwrap();
    for args in [&["rollback", "web"][..], &["tag", "prod", "web"]] {
        refuse(&other, args, 6, "no image is published as web");
    }
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}

/// Whoever has mistyped `--state` is told before he bakes a key that no seed of his has.
#[test]
fn a_key_that_is_new_is_said_to_be() {
    let place = Place::new();
    let new = place.directory.path().join("mistyped");
    for (state, is_new) in [(&new, true), (&new, false), (&place.state(), false)] {
        for args in [&["key"][..], &["key", "--minimum"]] {
            let output = run(state, args);
            assert!(output.status.success(), "{}", stderr(&output));
            let said = stderr(&output);
            let is_first = is_new && args.len() == 1;
            assert_eq!(said.contains("it has a new one now"), is_first, "{said}");
            assert_eq!(said.lines().count(), usize::from(is_first), "{said}");
        }
    }
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
    let output = run(&place.state(), SERVE);
    assert_eq!(output.status.code(), Some(8));
    assert!(
        stderr(&output).contains("already served by another process"),
        "{}",
        stderr(&output)
    );
    assert_eq!(server.stop(), Some(0));
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
            "rootswarm: no space for a copy of {big}: 6.1 MB needed in {mount}/state, 4."
        )),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
    assert!(
        fs::read_dir(&mount).unwrap().next().is_none(),
        "the mount outlived its command"
    );
}
