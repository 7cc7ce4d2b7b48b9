//! `require-verify` and `require-key` against real servers: what must have been signed is fetched only
//! from where it was, whatever scheme and pin the rooturl has.

#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use seed::Published;
use support::{Server, agent, noise, run};

fn http_at(published: &Published, address: &str) -> Server {
    let address: SocketAddr = format!("{address}:0").parse().expect("an address");
    let answer = published.http_answer(Duration::ZERO);
    Server::start_at(address, move |request, _| answer(request))
}

#[test]
fn what_must_be_signed_is_fetched_only_if_it_is() {
    let ours = Published::new(noise(300_000));
    let theirs = Published::new(noise(200_000));
    // Signed once, and what the name meant before.
    let before = ours.beside(noise(100_000));
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("swarm.pub"), ours.key_text()).expect("a file");
    let (key, verify) = ("--require-key", "--require-verify");
    for (address, host) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("[::1]", "[::1]"),
    ] {
        let servers = [http_at(&ours, address), http_at(&theirs, address)];
        for (at, path, pin, options, code, part) in [
            // From the installation's seed, by its own pin, its name alone, and a plain path.
            (0, "/images/root", Some(&ours), &[key][..], 0, ""),
            (0, "/images/root", None, &[key, verify], 0, ""),
            (0, "/images/root", None, &[verify], 0, ""),
            (0, "/images/root", Some(&before), &[key], 3, "pinned is"),
            (
                0,
                "/root.squashfs",
                Some(&ours),
                &[key],
                3,
                "signature is required",
            ),
            (0, "/blobs/root", None, &[verify], 3, "has no pin"),
            // From somebody else's, under a pin that fits what it sends: a pin is no signature.
            (
                1,
                "/images/root",
                Some(&theirs),
                &[key],
                3,
                "is not signed by",
            ),
            (
                1,
                "/images/root",
                Some(&theirs),
                &[verify, key],
                3,
                "is not signed by",
            ),
            (1, "/images/root", None, &[verify], 3, "is not signed by"),
            (
                1,
                "/images/root/",
                Some(&theirs),
                &[key],
                3,
                "signature is required",
            ),
            // Whoever asks for less gets what the pin names.
            (1, "/images/root", Some(&theirs), &[verify], 0, ""),
        ] {
            let mut url = format!("http://{host}:{}{path}", servers[at].addr.port());
            if let Some(published) = pin {
                url += &format!("@blake3:{}", published.manifest.id());
            }
            let output = dir.path().join("image");
            let (found, _, err) = run(agent()
                .args(["fetch", &url, "--timeout", "0", "--conf"])
                .arg(dir.path())
                .args(options)
                .arg("--output")
                .arg(&output));
            assert_eq!(found, code, "{url} {options:?}: {err}");
            let last = err.lines().last().unwrap_or_default();
            assert!(
                last.contains(part),
                "{url} {options:?}: expected {part:?} in {err}"
            );
            let fetched = std::fs::read(&output).ok();
            let expected = (code == 0).then(|| [&ours, &theirs][at].image.clone());
            assert!(fetched == expected, "{url} {options:?}");
            let _ = std::fs::remove_file(&output);
        }
    }
}
