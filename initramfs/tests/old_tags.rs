//! An initrd with a `swarm.minimum`: what a name meant before it was built does not come back, whichever
//! way the tag comes, as long as no pin says which image is meant.

#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use seed::{Published, TestSeed, free_udp_port};
use support::{Server, agent, noise, run};

/// Who says what the name means.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Teller {
    /// A seed, over QUIC.
    Swarm,
    /// Its HTTP side, when nobody answers there.
    Fallback,
    /// Its HTTP side, which is what the rooturl names.
    Http,
}

/// Version and epoch of a tag, whether a pin names its image, and whether that is taken.
const TAGS: [(u64, u32, bool, bool); 6] = [
    (7, 3, false, true),
    // Last month's, and one of an epoch that is over however high its number.
    (6, 3, false, false),
    (u64::MAX, 2, false, false),
    (900, 4, false, true),
    (1, 1, false, false),
    // A pin means the image that it names, of whichever day.
    (1, 1, true, true),
];

#[test]
fn what_is_older_than_the_initrd_is_taken_from_nobody() {
    let first = Published::new(noise(70_000));
    std::thread::scope(|scope| {
        for (teller, host, address) in [
            (Teller::Swarm, "127.0.0.1", "127.0.0.1"),
            (Teller::Swarm, "[::1]", "[::1]"),
            (Teller::Fallback, "127.0.0.1", "127.0.0.1"),
            (Teller::Fallback, "localhost", "127.0.0.1"),
            (Teller::Fallback, "[::1]", "[::1]"),
            (Teller::Http, "localhost", "127.0.0.1"),
            (Teller::Http, "[::1]", "[::1]"),
        ] {
            let first = &first;
            scope.spawn(move || {
                let dir = tempfile::tempdir().expect("a directory");
                let minimum = "rootswarm-minimum 1\nepoch 3\nversion other 99\nversion root 7\n";
                std::fs::write(dir.path().join("swarm.minimum"), minimum).expect("a file");
                std::fs::write(dir.path().join("swarm.pub"), first.key_text()).expect("a file");
                // Where a seed has to be waited for in vain, the first half.
                let count = if teller == Teller::Fallback { 3 } else { 6 };
                for tag in &TAGS[..count] {
                    check(first, teller, host, address, *tag, dir.path());
                }
            });
        }
    });
}

fn check(
    first: &Published,
    teller: Teller,
    host: &str,
    address: &str,
    (version, epoch, pinned, taken): (u64, u32, bool, bool),
    dir: &Path,
) {
    let case = format!("{teller:?} at {host}: {version} in epoch {epoch}, pin {pinned}");
    let mut published = first.beside(noise(80_000)).dated(version, epoch);
    published.epoch = 4;
    let any: SocketAddr = format!("{address}:0").parse().expect("an address");
    let answer = published.http_answer(Duration::ZERO);
    let http = Server::start_at(any, move |request, _| answer(request));
    let seed = TestSeed::at(&published, any, None, None);
    let mut url = match teller {
        Teller::Swarm => format!("swarm://{host}:{}/root", seed.addr.port()),
        Teller::Fallback => format!("swarm://{host}:{}/root", free_udp_port()),
        Teller::Http => format!("http://{host}:{}/images/root", http.addr.port()),
    };
    if pinned {
        url += &format!("@blake3:{}", published.manifest.id());
    }
    let http_port = match teller {
        Teller::Swarm => "9".to_owned(),
        _ => http.addr.port().to_string(),
    };
    let output = dir.join("image");
    let (code, _, err) = run(agent()
        .args(["fetch", &url, "--timeout", "0", "--require-key"])
        .args(["--http-port", &http_port, "--conf"])
        .arg(dir)
        .arg("--output")
        .arg(&output));
    assert_eq!(code == 0, taken, "{case}: {err}");
    let fetched = std::fs::remove_file(&output).is_ok();
    assert_eq!(fetched, taken, "{case}: {err}");
    let why = "this initrd knows of version 7 in epoch 3";
    assert!(taken || err.contains(why), "{case}: {code}: {err}");
}
