//! Publishing, serving and what a running server picks up, with the real binary and real joins.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Server, id_of, run, run_ok, squashfs, stderr};

fn write(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// The copies that are kept, by id.
fn copies(state: &Path) -> Vec<String> {
    let mut ids: Vec<String> = fs::read_dir(state.join("images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    ids.sort();
    ids
}

/// The VERSION column.
fn version(state: &Path, name: &str) -> u64 {
    let table = run_ok(state, &["images"]);
    let line = table
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))
        .expect("the name is listed");
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

#[test]
fn the_id_is_what_b3sum_prints_and_the_copy_is_the_seeds_own() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    for length in [0, 1, 95, 262_144, 262_145, 3_000_000] {
        let bytes = squashfs(length, 11);
        let source = write(dir.path(), "source", &bytes);
        let output = run(
            &state,
            &[
                "publish", "--quiet", "--force", "--keep", "1", "--host", "10.0.0.1", "web",
                &source,
            ],
        );
        assert!(output.status.success(), "{length}: {}", stderr(&output));
        let url = common::stdout(&output);
        let expected = blake3::hash(&bytes).to_hex();
        assert_eq!(url, format!("swarm://10.0.0.1/web@blake3:{expected}\n"));
        assert_eq!(
            stderr(&output).contains("no node can boot it"),
            length < 96,
            "{length}: {}",
            stderr(&output)
        );
        let b3sum = Command::new("b3sum").arg(&source).output();
        if let Ok(b3sum) = b3sum {
            assert!(String::from_utf8_lossy(&b3sum.stdout).starts_with(expected.as_str()));
        }
        // The admin may do what he wants with his file.
        fs::write(&source, b"something else").unwrap();
        assert_eq!(
            fs::read(state.join("images").join(expected.as_str()).join("image")).unwrap(),
            bytes
        );
        assert_eq!(copies(&state).len(), 1, "the replaced copy is still there");
    }
}

#[test]
fn versions_only_grow_and_equal_images_share_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let one = write(dir.path(), "one", &squashfs(1000, 1));
    let two = write(dir.path(), "two", &squashfs(1000, 2));
    let publish = |name: &str, file: &str| {
        id_of(&run_ok(
            &state,
            &["publish", "-q", "--keep", "1", name, file],
        ))
    };
    let first = publish("web", &one);
    assert_eq!(version(&state, "web"), 1);
    assert_eq!(publish("web", &one), first);
    assert_eq!(
        version(&state, "web"),
        2,
        "publishing again is a new version"
    );
    assert_eq!(publish("db", &one), first);
    assert_eq!(copies(&state), std::slice::from_ref(&first));
    let second = publish("web", &two);
    assert_eq!(version(&state, "web"), 3);
    assert_eq!(copies(&state).len(), 2);
    run_ok(&state, &["remove", "db"]);
    assert_eq!(
        copies(&state),
        std::slice::from_ref(&second),
        "nothing names the first any more"
    );
    run_ok(&state, &["remove", "web"]);
    assert_eq!(copies(&state), [""; 0]);
    publish("web", &two);
    assert_eq!(version(&state, "web"), 4, "also across removal");
    assert_eq!(id_of(&run_ok(&state, &["tag", "prod", "web"])), second);
    run_ok(&state, &["remove", "web"]);
    assert_eq!(copies(&state), std::slice::from_ref(&second), "prod has it");
    assert_eq!(id_of(&run_ok(&state, &["tag", "prod", "prod"])), second);
    assert_eq!(version(&state, "prod"), 2);
}

#[test]
fn what_is_published_while_serving_is_picked_up() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let one = write(dir.path(), "one", &squashfs(500_000, 1));
    let two = write(dir.path(), "two", &squashfs(500_000, 2));
    let server = Server::start(&state, &[&format!("web={one}"), &format!("db={two}")]);
    let mut ready = [server.line(), server.line()];
    ready.sort();
    assert!(server.is_silent(), "one line an image");
    let port = server.swarm.port();
    for (line, (name, bytes)) in ready
        .iter()
        .zip([("db", squashfs(500_000, 2)), ("web", squashfs(500_000, 1))])
    {
        assert_eq!(
            *line,
            format!(
                "ready swarm://127.0.0.1:{port}/{name}@blake3:{}",
                blake3::hash(&bytes).to_hex()
            )
        );
    }
    // `publish` names the running server's host and port without being told.
    let three = write(dir.path(), "three", &squashfs(500_000, 3));
    let url = run_ok(&state, &["publish", "-q", "web", &three]);
    assert_eq!(server.line(), format!("ready {}", url.trim()));
    assert_eq!(
        server.request("GET", "/images/web", &[]).body,
        squashfs(500_000, 3)
    );
    // A name that goes is gone.
    run_ok(&state, &["remove", "db"]);
    let begin = std::time::Instant::now();
    while server.request("GET", "/images/db", &[]).status != 404 {
        assert!(
            begin.elapsed().as_secs() < 10,
            "a removed image is still served"
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let document: serde_json::Value =
        serde_json::from_str(&run_ok(&state, &["status", "--json"])).unwrap();
    let named = document["images"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|image| image["names"] != serde_json::json!([]));
    assert_eq!(
        named.map(|image| &image["names"][0]).collect::<Vec<_>>(),
        ["web"]
    );
    assert!(run_ok(&state, &["status"]).contains("0 nodes"));
    assert_eq!(server.stop(), Some(0));
    // The same files again: nothing is new, nothing is published.
    let before = version(&state, "web");
    let server = Server::start(&state, &[&format!("web={three}")]);
    assert!(server.line().contains("/web@"));
    assert_eq!(version(&state, "web"), before);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_tag_that_is_damaged_while_serving_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let one = write(dir.path(), "one", &squashfs(500_000, 1));
    let server = Server::start(&state, &[&format!("web={one}")]);
    assert!(server.line().contains("/web@"));
    // A second name whose tag is garbage is reported once and does not disturb the first.
    fs::write(state.join("tags/db"), b"garbage").unwrap();
    let said = server.error("image db is damaged");
    assert!(said.starts_with("rootswarm: error: "), "{said}");
    assert_eq!(
        server.request("GET", "/images/web", &[]).body.len(),
        500_000
    );
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn root_gives_what_it_publishes_to_the_directorys_owner() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(12345), Some(12345)).unwrap();
    let one = write(dir.path(), "one", &squashfs(1000, 1));
    let id = id_of(&run_ok(&state, &["publish", "-q", "web", &one]));
    run_ok(&state, &["token", "create"]);
    for path in [
        "swarm.key",
        "swarm.pub",
        "tags/web",
        "tokens",
        "lock",
        "tmp",
        "images",
        &format!("images/{id}"),
        &format!("images/{id}/image"),
        &format!("images/{id}/manifest"),
    ] {
        assert_eq!(
            fs::metadata(state.join(path)).unwrap().uid(),
            12345,
            "{path}"
        );
    }
}

/// Nodes hand on whole chunks: who asks for a few long ones hears of it, and nobody else does.
#[test]
fn a_few_long_chunks_are_remarked_on() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    for (number, (size, expected)) in [
        (None, None),
        (Some("64KiB"), None),
        (Some("1MiB"), Some("has 3 chunks of 1MiB")),
        (Some("16MiB"), Some("has 1 chunks of 16MiB")),
    ]
    .into_iter()
    .enumerate()
    {
        // One image is served in chunks of one size.
        let source = write(
            dir.path(),
            "web",
            &squashfs(3_000_000, number as u64 * 10 + 1),
        );
        let chosen = size.map_or(vec![], |size| vec!["--chunk-size", size]);
        let output = run(
            &state,
            &[&["publish", "-q"], &chosen[..], &["web", &source]].concat(),
        );
        assert!(output.status.success(), "{size:?}: {}", stderr(&output));
        let said = stderr(&output);
        match expected {
            None => assert!(!said.contains("chunks of"), "{size:?}: {said}"),
            Some(words) => assert!(said.contains(words), "{size:?}: {said}"),
        }
    }
}
