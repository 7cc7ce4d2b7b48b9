//! The files that decide who gets in: the swarm key, the tokens, the revocations. The server refuses
//! them when somebody else could have read or changed them, and a key that is none.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use common::{Place, SERVE, Server, refuse, run_ok, stderr};

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
