//! Whom a mirror lets in: by the tokens, the revocations and the rules of its first seed.

mod common;
#[path = "common/pair.rs"]
mod pair;

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use common::{Server, key, node, request, run_ok, squashfs, until};
use pair::{LIMIT, Pair, serve_refused};
use rootswarm_transport::node::JoinError;

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_token_admits_one_machine_at_either_seed() {
    let mut pair = Pair::new(&["--admission", "token"]);
    pair.publish("web", &squashfs(500_000, 1));
    pair.b.line();
    let state = pair.first();
    let token = run_ok(&state, &["token", "create"]);
    let always = run_ok(&state, &["token", "create", "--reusable"]);
    let mirrored = || {
        let read = |state: PathBuf| fs::read_to_string(state.join("tokens")).unwrap_or_default();
        read(pair.first()) == read(pair.second())
    };
    until("the tokens", mirrored).await;
    let mirror = [pair.b.swarm];
    // Reusable ones admit anywhere, one-time ones are the primary's as long as it is there.
    let (node, other) = (pair.node().await, pair.node().await);
    assert!(node.join(&mirror, &request(Some(&always))).await.is_ok());
    let error = node
        .join(&mirror, &request(Some(&token)))
        .await
        .err()
        .unwrap();
    assert!(error.is_retryable(), "{error}");

    // It is gone: the mirror admits, one node.
    drop(pair.a.take());
    let one_time = request(Some(&token));
    let admitted = async {
        while let Err(error) = node.join(&mirror, &one_time).await {
            assert!(error.is_retryable(), "{error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LIMIT, admitted).await.unwrap();
    let refused = other.join(&mirror, &one_time).await.err().unwrap();
    assert!(matches!(refused, JoinError::Refused { .. }), "{refused}");
    assert!(!refused.is_retryable(), "{refused}");

    // It is back, and learns who used it.
    let listen = pair.at.to_string();
    let options = ["--listen", &listen, "--admission", "token"];
    pair.a = Some(Server::start(&state, &options));
    until("the report", || {
        fs::read_to_string(state.join("tokens"))
            .unwrap()
            .contains("used:")
    })
    .await;
    let refused = other.join(&[pair.at], &one_time).await.err().unwrap();
    assert!(!refused.is_retryable(), "{refused}");
    assert!(
        node.join(&[pair.at], &one_time).await.is_ok(),
        "it asks again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_and_the_epoch_are_mirrored() {
    let pair = Pair::new(&[]);
    pair.publish("web", &squashfs(500_000, 1));
    pair.b.line();
    let node = "07".repeat(32);
    run_ok(&pair.first(), &["revoke", "--all"]);
    run_ok(&pair.first(), &["revoke", &node]);
    until("the list", || {
        run_ok(&pair.second(), &["revoke", "--list"]).contains(&node)
    })
    .await;
    let read = |state: PathBuf| fs::read_to_string(state.join("revoked")).unwrap();
    assert_eq!(read(pair.first()), read(pair.second()));
    // A node that the mirror admits now is good at the primary: the epoch is the same.
    // One that asks while the mirror changes its certificate asks again, as a boot does.
    let node = pair.node().await;
    let mirror = [pair.b.swarm];
    let joining = async {
        loop {
            match node.join(&mirror, &request(None)).await {
                Ok(joined) => break joined,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    };
    let joined = tokio::time::timeout(LIMIT, joining).await.unwrap();
    assert_eq!(joined.tag.name.as_str(), "web");
}

/// The README's mirror, with nothing configured: it lets in whom its first seed lets in, also when that
/// one is gone, after a restart, and once the host has taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_admits_by_its_first_seeds_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a"), dir.path().join("b"));
    let file = dir.path().join("web.squashfs").display().to_string();
    fs::write(&file, squashfs(400_000, 1)).unwrap();
    run_ok(&first, &["publish", "-q", "web", &file]);
    let token = run_ok(&first, &["token", "create", "--reusable"]);
    fs::create_dir(&second).unwrap();
    fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
    let key = key(&first);

    // It has never met its first seed, and knows nothing of it: nobody is let in, and it may pass.
    let nowhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    let of = format!("swarm://{}", nowhere.local_addr().unwrap());
    let b = Server::start(&second, &["--mirror", &of, "--admission", "open"]);
    let node = node(key, Ipv4Addr::LOCALHOST.into()).await;
    let error = node.join(&[b.swarm], &request(None)).await.err().unwrap();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(b.request("GET", "/images/web", &[]).status, 503);
    drop(nowhere);
    assert_eq!(b.stop(), Some(0));

    let a = Server::start(
        &first,
        &["--admission", "token", "--allow", "127.0.0.0/8,10.9.0.0/16"],
    );
    let of = format!("swarm://{}", a.swarm);
    let refused = async |b: &Server, case: &str| {
        let error = node.join(&[b.swarm], &request(None)).await.err().unwrap();
        assert!(!error.is_retryable(), "{case}: {error}");
        assert!(error.to_string().contains("token"), "{case}: {error}");
        assert_eq!(b.request("GET", "/images/web", &[]).status, 403, "{case}");
        let admitted = node.join(&[b.swarm], &request(Some(&token))).await;
        assert!(admitted.is_ok(), "{case}: {:?}", admitted.err());
    };
    let b = Server::start(&second, &["--mirror", &of]);
    b.line();
    refused(&b, "as its first seed").await;
    let policy = fs::read_to_string(second.join("policy")).unwrap();
    assert_eq!(
        policy,
        "rootswarm-policy 1\nadmission token\nallow listed\nnetwork 127.0.0.0/8\n\
         network 10.9.0.0/16\n"
    );
    assert_eq!(b.stop(), Some(0));

    // What would be looser does not start, and says in what; what is stricter does.
    let serve = |options: &[&str]| {
        let listen = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        serve_refused(
            &second,
            &[&listen[..], &["--mirror", &of], options].concat(),
        )
    };
    let looser = |in_what: &str| {
        let line = format!(
            "rootswarm: this mirror would be looser than {of}: {in_what} (take admission and allow \
             out of this host's configuration: they come with the mirroring)\n"
        );
        (Some(3), line)
    };
    let mode = looser("admission is open here, and token there");
    assert_eq!(serve(&["--admission", "open"]), mode);
    let network =
        looser("network 10.8.0.0/15 is allowed here, and there only 127.0.0.0/8 10.9.0.0/16");
    assert_eq!(serve(&["--allow", "10.8.0.0/15"]), network);
    let b = Server::start(&second, &["--mirror", &of, "--allow", "10.9.4.0/24"]);
    b.line();
    refused(&b, "stricter").await;
    assert_eq!(b.stop(), Some(0));

    // The first seed is gone: what was learnt holds, and refuses as well.
    drop(a);
    let (code, said) = serve(&["--admission", "open"]);
    assert_eq!(code, Some(3), "{said}");
    let b = Server::start(&second, &["--mirror", &of]);
    b.line();
    refused(&b, "without its first seed").await;
    assert_eq!(b.stop(), Some(0));
    let b = Server::start(&second, &[]);
    b.line();
    refused(&b, "taken over").await;
    assert_eq!(b.stop(), Some(0));
    // Now its admin decides.
    let b = Server::start(&second, &["--admission", "open"]);
    b.line();
    assert!(node.join(&[b.swarm], &request(None)).await.is_ok());
}

/// The first seed becomes stricter while the mirror runs: the mirror follows, whatever it is told here.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_seed_that_becomes_stricter_is_followed() {
    let mut pair = Pair::new(&["--admission", "open"]);
    pair.publish("web", &squashfs(400_000, 1));
    pair.b.line();
    let node = pair.node().await;
    assert!(node.join(&[pair.b.swarm], &request(None)).await.is_ok());
    drop(pair.a.take());
    let listen = pair.at.to_string();
    let options = ["--listen", &listen, "--admission", "token"];
    pair.a = Some(Server::start(&pair.first(), &options));
    pair.b.error("configured looser");
    let error = node.join(&[pair.b.swarm], &request(None)).await;
    let error = error.err().unwrap();
    assert!(!error.is_retryable(), "{error}");
}

/// Over IPv6, beside another mirror, behind mirrors, and when the first seed comes up after its mirror.
#[tokio::test(flavor = "multi_thread")]
async fn no_mirror_is_looser_wherever_it_stands() {
    for (case, host, count, chained, comes_last, listed, wider) in [
        ("IPv6", "[::1]", 1, false, false, "fd00:9::/48", "fd00::/16"),
        (
            "two of one seed",
            "127.0.0.1",
            2,
            false,
            false,
            "10.9.0.0/16,192.168.4.0/22",
            "192.168.0.0/21",
        ),
        (
            "a mirror's mirrors",
            "127.0.0.1",
            3,
            true,
            false,
            "10.9.0.0/16",
            "0.0.0.0/0",
        ),
        (
            "before its first seed",
            "127.0.0.1",
            1,
            false,
            true,
            "10.9.0.0/16",
            "10.8.0.0/15",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first");
        let file = dir.path().join("web.squashfs").display().to_string();
        fs::write(&file, squashfs(300_000, 5)).unwrap();
        run_ok(&first, &["publish", "-q", "web", &file]);
        let token = run_ok(&first, &["token", "create", "--reusable"]);
        let any = format!("{host}:0");
        let free = UdpSocket::bind(&any).unwrap();
        let at = free.local_addr().unwrap();
        drop(free);
        let listen = at.to_string();
        let rules = ["--admission", "token", "--allow", listed];
        let start_first = || {
            let places = ["--listen", &listen, "--http", &any];
            Server::start(&first, &[places, rules].concat())
        };
        let a = (!comes_last).then(start_first);
        let (mut of, mut mirrors) = (at, Vec::new());
        for number in 0..count {
            let state = dir.path().join(format!("mirror-{number}"));
            fs::create_dir(&state).unwrap();
            fs::copy(first.join("swarm.key"), state.join("swarm.key")).unwrap();
            let url = format!("swarm://{of}");
            let places = ["--listen", &any, "--http", &any, "--mirror", &url];
            let mut more = vec![];
            for looser in [["--admission", "open"], ["--allow", wider]] {
                if comes_last {
                    more.extend(looser);
                    continue;
                }
                let (code, said) = serve_refused(&state, &[&places[..], &looser].concat());
                assert_eq!(code, Some(3), "{case}: {said}");
                assert!(said.contains("would be looser"), "{case}: {said}");
            }
            let b = Server::start(&state, &[&places[..], &more].concat());
            if chained {
                of = b.swarm;
            }
            mirrors.push(b);
        }
        let _a = a.unwrap_or_else(start_first);
        let node = node(key(&first), at.ip()).await;
        for (number, b) in mirrors.iter().enumerate() {
            let case = format!("{case}, mirror {number}");
            assert!(b.line().contains("/web@blake3:"), "{case}");
            let refused = node.join(&[b.swarm], &request(None)).await.err().unwrap();
            assert!(!refused.is_retryable(), "{case}: {refused}");
            assert_eq!(b.request("GET", "/images/web", &[]).status, 403, "{case}");
            let admitted = node.join(&[b.swarm], &request(Some(&token))).await;
            assert!(admitted.is_ok(), "{case}: {:?}", admitted.err());
        }
    }
}
