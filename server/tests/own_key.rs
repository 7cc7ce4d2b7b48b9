//! A swarm key that is put in the place of a running server's, as when a host is made a second seed.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Place, SERVE, Server, run, run_ok, stderr};

/// The server goes on with the key that it read, and says so in one line; who publishes is told at once what
/// helps, and need not wait for what never comes.
#[test]
fn a_key_that_changes_under_a_server_is_said() {
    let (place, other) = (Place::new(), Place::new());
    let server = Server::start(&place.state(), &[]);
    server.line();
    let key = place.state().join("swarm.key");
    let own = fs::read(&key).unwrap();
    fs::copy(other.state().join("swarm.key"), &key).unwrap();
    let said = server.error("swarm key");
    assert!(said.contains("restart it"), "{said}");

    let began = Instant::now();
    let file = place.path("web.squashfs");
    let output = run(&place.state(), &["publish", "-q", "web2", &file]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("with another swarm key") && said.contains("restart it"),
        "{said}"
    );
    assert!(began.elapsed() < Duration::from_secs(15), "{said}");
    fs::write(&key, own).unwrap();
    server.error("is the one that this server runs with again");
    assert_eq!(server.stop(), Some(0));
}

/// Whoever starts a second one is told how the first is ended, or made something else.
#[test]
fn a_second_server_says_what_to_do_with_the_first() {
    let place = Place::new();
    let server = Server::start(&place.state(), &[]);
    let output = run(&place.state(), SERVE);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(8), "{said}");
    for words in [
        "already served by another process",
        "systemctl stop rootswarm",
        "/etc/rootswarm/rootswarm.toml",
        "systemctl restart rootswarm",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(server.stop(), Some(0));
}

/// README's order, on a host whose package has started a seed with a key of its own: stop it, copy the key, one
/// line at the top of the configuration as it comes, start it.
#[test]
fn a_host_whose_seed_ran_already_becomes_a_second_seed() {
    let first = Place::new();
    let boot1 = Server::start(&first.state(), &[]);
    boot1.line();
    let dir = tempfile::tempdir().unwrap();
    let second = dir.path().join("state");
    let boot2 = Server::start(&second, &[]);
    assert_eq!(boot2.stop(), Some(0));
    fs::copy(first.state().join("swarm.key"), second.join("swarm.key")).unwrap();
    let config = dir.path().join("rootswarm.toml");
    let mirror = format!("mirror = \"swarm://{}\"\n", boot1.swarm);
    fs::write(&config, mirror + include_str!("../rootswarm.toml")).unwrap();
    let boot2 = Server::start(&second, &["--config", config.to_str().unwrap()]);
    assert!(boot2.line().contains("/web@"));
    let keys = [first.state(), second].map(|state| run_ok(&state, &["key"]));
    assert_eq!(keys[0], keys[1]);
    assert_eq!(boot2.stop(), Some(0));
}
