//! A seed that asks for tokens, and a node that nobody but its HTTP side answers: the token is shown to the
//! hosts of the rooturl, with each request, and to nobody else.

#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use seed::{Published, free_udp_port};
use support::{Reply, Request, Server, agent, noise, run};

const TOKEN: &str = "0011aabb-00112233445566778899aabbccddeeff";

/// The HTTP side of a seed that asks for this token, and cuts its first answer short.
fn guarded(published: &Published, address: &str) -> Server {
    let answer = published.http_answer(Duration::ZERO);
    let address: SocketAddr = format!("{address}:0").parse().expect("an address");
    Server::start_at(address, move |request, number| {
        let is_shown = request.authorization.as_deref() == Some(&format!("Bearer {TOKEN}"));
        // As a seed does, which tells everybody what there is.
        let is_free = request.path.starts_with("/tags/") || request.path.starts_with("/manifests/");
        match (is_free || is_shown, number) {
            (false, _) => Reply::new("403 Forbidden", ""),
            (true, 0) if !is_free => Reply {
                cut_after: Some(100_000),
                ..answer(request)
            },
            _ => answer(request),
        }
    })
}

#[test]
fn a_token_is_shown_with_each_request() {
    let published = Published::new(noise(400_000));
    let (pin, nobody) = (published.manifest.id(), free_udp_port());
    let (here, v6) = ("127.0.0.1", "[::1]");
    let two = format!("swarm://127.0.0.3:{nobody},127.0.0.1:{nobody}/root@blake3:{pin}");
    std::thread::scope(|scope| {
        for (case, address, url) in [
            ("fallback", here, format!("swarm://{here}:{nobody}/root")),
            ("a name", here, format!("swarm://localhost:{nobody}/root")),
            ("IPv6", v6, format!("swarm://{v6}:{nobody}/root")),
            ("the second host", here, two),
            ("http", here, format!("http://{here}:PORT/images/root")),
            (
                "http with a pin",
                v6,
                format!("http://{v6}:PORT/images/root@blake3:{pin}"),
            ),
        ] {
            for token in [Some(TOKEN), None, Some("0011aabb-00")] {
                let (published, url) = (&published, url.clone());
                scope.spawn(move || check(published, case, address, &url, token));
            }
        }
    });
}

/// With the right token the image comes, over several requests that show it; with no other.
fn check(published: &Published, case: &str, address: &str, url: &str, token: Option<&str>) {
    let server = guarded(published, address);
    let (key, port) = (published.key_text(), server.addr.port().to_string());
    let url = url.replace("PORT", &port);
    let dir = tempfile::tempdir().expect("a directory");
    let output = dir.path().join("image");
    let is_right = token == Some(TOKEN);
    let mut fetch = agent();
    fetch.args(["fetch", &url, "--key", &key, "--http-port", &port]);
    // Who is refused asks once; a body that was cut is gone on with.
    fetch.args([
        "--require-key",
        "--timeout",
        if is_right { "30" } else { "0" },
    ]);
    fetch.args(token.iter().flat_map(|token| ["--token", token]));
    let (code, _, err) = run(fetch.arg("--output").arg(&output));
    assert_eq!(code == 0, is_right, "{case}, {token:?}: {err}");
    let requests = server.requests.lock().expect("no panic").clone();
    let shown = token.map(|token| format!("Bearer {token}"));
    let as_given = requests.iter().all(|it| it.authorization == shown);
    assert!(as_given, "{case}, {token:?}: {requests:?}");
    // One download, also for the seed, which binds a one-time token to it.
    let session = &requests[0].session;
    assert!(requests.iter().all(|it| it.session == *session), "{case}");
    assert_eq!(session.is_some(), token.is_some(), "{case}");
    match is_right {
        true => {
            let of_the_image = |it: &&Request| it.range.is_some();
            let asked = requests.iter().filter(of_the_image).count();
            assert!(asked >= 2, "{case}: {requests:?}");
            let image = std::fs::read(&output).expect("the image");
            assert!(image == published.image, "{case}");
        }
        false => {
            assert!(err.contains("403 Forbidden"), "{case}: {err}");
            assert!(!output.exists(), "{case}");
        }
    }
}

/// Whoever the image is to be fetched from instead, its bytes are verified, and it learns no token.
#[test]
fn a_token_is_not_shown_to_where_a_seed_redirects() {
    let published = Published::new(noise(400_000));
    let (key, nobody) = (published.key_text(), free_udp_port());
    for (address, status) in [
        ("127.0.0.1", "302 Found"),
        ("127.0.0.2", "307 Temporary Redirect"),
        ("[::1]", "301 Moved Permanently"),
    ] {
        let elsewhere = published.http_answer(Duration::ZERO);
        let at: SocketAddr = format!("{address}:0").parse().expect("an address");
        let elsewhere = Server::start_at(at, move |request, _| elsewhere(request));
        let place = elsewhere.url("");
        let seed = published.http_answer(Duration::ZERO);
        let seed = Server::start(move |request, _| match request.path.split('/').nth(1) {
            Some("blobs") => {
                let location = format!("Location: {place}{}", request.path);
                Reply::new(status, "").header(&location)
            }
            _ => seed(request),
        });
        let dir = tempfile::tempdir().expect("a directory");
        let output = dir.path().join("image");
        let (url, port) = (
            format!("swarm://127.0.0.1:{nobody}/root"),
            seed.addr.port().to_string(),
        );
        let mut fetch = agent();
        fetch.args(["fetch", &url, "--key", &key, "--http-port", &port]);
        fetch.args(["--token", TOKEN, "--timeout", "20"]);
        let (code, _, err) = run(fetch.arg("--output").arg(&output));
        assert_eq!(code, 0, "{address}: {err}");
        assert!(std::fs::read(&output).expect("the image") == published.image);
        let asked = elsewhere.requests.lock().expect("no panic").clone();
        assert!(!asked.is_empty(), "{address}");
        for request in asked {
            let secrets = (request.authorization, request.session);
            assert_eq!(secrets, (None, None), "{address}");
        }
    }
}
