//! One-time tokens are the first seed's for as long as it is there: whatever is wrong at the mirror, and
//! however long the first seed takes to answer.

mod common;
#[path = "common/pair.rs"]
mod pair;

use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{node, request, run_ok, squashfs, until};
use pair::Pair;
use rootswarm::state::StateDir;

/// A file as no server takes it: others can write to it.
fn open_to_all(file: &Path) {
    fs::set_permissions(file, Permissions::from_mode(0o666)).unwrap();
}

/// What is wrong at the mirror is said there; its first seed goes on to take one-time tokens alone, and what
/// has nothing to do with the fault goes on to be taken over.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_at_a_mirror_does_not_make_tokens_its_own() {
    for faulty in ["revoked", "tokens"] {
        let pair = Pair::new(&["--admission", "token"]);
        pair.publish("web", &squashfs(200_000, 1));
        pair.b.line();
        let (first, second) = (pair.first(), pair.second());
        run_ok(&first, &["revoke", &"ab".repeat(32)]);
        let token = run_ok(&first, &["token", "create"]);
        let read = |file: &str| {
            [&first, &second].map(|state| fs::read_to_string(state.join(file)).unwrap_or_default())
        };
        let is_same = |file: &str| {
            let [here, there] = read(file);
            here == there
        };
        until("tokens and revocations", || {
            is_same("tokens") && is_same("revoked")
        })
        .await;

        open_to_all(&second.join(faulty));
        let said = pair.b.error("is mirrored at the moment");
        assert!(
            said.contains("not all of swarm://") && said.contains(faulty),
            "{said}"
        );
        let other = match faulty {
            "revoked" => {
                run_ok(&first, &["token", "create"]);
                "tokens"
            }
            _ => {
                run_ok(&first, &["revoke", &"cd".repeat(32)]);
                "revoked"
            }
        };
        until("what is not faulty", || is_same(other)).await;

        let (one, two) = (pair.node().await, pair.node().await);
        let once = request(Some(&token));
        let mirror = [pair.b.swarm];
        let error = one.join(&mirror, &once).await.err().unwrap();
        assert!(error.is_retryable(), "{faulty}: {error}");
        one.join(&[pair.at], &once).await.unwrap();
        let error = two.join(&mirror, &once).await.err();
        assert!(error.is_some(), "{faulty}: one token, two machines");
    }
}

/// The first seed's state directory is locked for seconds, as by a slow disk: it says that it is busy, and is
/// there. When it does not answer at all, the mirror takes over.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_first_seed_is_there() {
    let mut pair = Pair::new(&["--admission", "token"]);
    pair.publish("web", &squashfs(200_000, 1));
    pair.b.line();
    let token = run_ok(&pair.first(), &["token", "create"]);
    let tokens = |state: &Path| fs::read_to_string(state.join("tokens")).unwrap_or_default();
    let (first, second) = (pair.first(), pair.second());
    until("the token", || tokens(&first) == tokens(&second)).await;
    let once = request(Some(&token));
    let (one, two) = (pair.node().await, pair.node().await);
    let lock = StateDir::open_existing(&first).unwrap().lock().unwrap();
    let said = pair.b.error("is not mirrored at the moment");
    assert!(said.contains("lock"), "{said}");
    let at_mirror = one.join(&[pair.b.swarm], &once).await.err().unwrap();
    assert!(at_mirror.is_retryable(), "{at_mirror}");
    drop(lock);
    let joining = async {
        while let Err(error) = two.join(&[pair.at], &once).await {
            assert!(error.is_retryable(), "{error}");
        }
    };
    tokio::time::timeout(pair::LIMIT, joining).await.unwrap();

    // Another token, and nobody there who could take it.
    let token = run_ok(&first, &["token", "create"]);
    until("the second token", || tokens(&first) == tokens(&second)).await;
    drop(pair.a.take());
    let once = request(Some(&token));
    let late = node(pair.key, Ipv4Addr::LOCALHOST.into()).await;
    let joining = async {
        loop {
            match late.join(&[pair.b.swarm], &once).await {
                Ok(_) => break,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    };
    tokio::time::timeout(pair::LIMIT, joining).await.unwrap();
}
