//! One node is the same one by the swarm and by HTTP: with a one-time token it begins by the one and goes on by
//! the other.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use common::{Server, age_tokens, key, node, request, run_ok, squashfs, until};
use rootswarm_image::SwarmPublicKey;
use rootswarm_transport::http_proof::{MEMBER, SESSION};
use rootswarm_transport::node::SwarmHandle;
use rootswarm_transport::store::ChunkStore;

struct Lab {
    dir: tempfile::TempDir,
    server: Server,
    key: SwarmPublicKey,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, squashfs(2_000_000, 1)).unwrap();
        let named = format!("web={}", image.display());
        let state = dir.path().join("state");
        let slow = ["--upload-limit", "100kB/s", "--admission", "token"];
        let server = Server::start(&state, &[&slow[..], &[&named]].concat());
        server.line();
        let key = key(&state);
        Lab { dir, server, key }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn token(&self) -> String {
        let token = run_ok(&self.state(), &["token", "create"]);
        token.trim().to_owned()
    }

    async fn member(&self, token: &str) -> SwarmHandle {
        let node = node(self.key, Ipv4Addr::LOCALHOST.into()).await;
        let joined = node.join(&[self.server.swarm], &request(Some(token))).await;
        let joined = joined.unwrap();
        let store = ChunkStore::create(self.dir.path().join("part"), joined.manifest.clone());
        node.start(joined, store.unwrap()).unwrap()
    }

    /// The status of the answer to a request for some bytes of the image.
    fn asks(&self, headers: &[(&str, &str)]) -> u16 {
        let range = [("range", "bytes=0-9")];
        let headers = [&range[..], headers].concat();
        self.server.request("GET", "/images/web", &headers).status
    }
}

/// Long after its token was used up, and at any seed of the swarm; not when it was revoked, or everybody was.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_needs_no_token_for_http_until_it_is_none_any_more() {
    let lab = Lab::new();
    let token = lab.token();
    let member = lab.member(&token).await;
    age_tokens(&lab.state());
    let proof = member.http_member().unwrap();
    let shown = (MEMBER, proof.as_str());
    assert_eq!(lab.asks(&[shown]), 206);
    // With the token that is used up, as an agent sends it.
    let bearer = format!("Bearer {token}");
    assert_eq!(lab.asks(&[("authorization", &bearer), shown]), 206);
    // Neither half is worth anything.
    let (certificate, signature) = proof.split_once('.').unwrap();
    for part in [
        certificate,
        signature,
        &format!("{certificate}.{certificate}"),
    ] {
        assert_eq!(lab.asks(&[(MEMBER, part)]), 403);
    }
    assert_eq!(lab.asks(&[("authorization", &bearer)]), 403);

    run_ok(&lab.state(), &["revoke", "--all"]);
    until("the new epoch", || lab.asks(&[shown]) == 403).await;
    // It may still be listed when its proof is worth nothing any more.
    until("its connection's end", || lab.server.nodes() == 0).await;
    let another = lab.member(&lab.token()).await;
    let proof = another.http_member().unwrap();
    assert_eq!(lab.asks(&[(MEMBER, &proof)]), 206);
    until("it to be connected", || lab.server.nodes() == 1).await;
    let status: serde_json::Value =
        serde_json::from_str(&run_ok(&lab.state(), &["status", "--json"])).unwrap();
    let nodes = status["images"][0]["nodes"].as_array().unwrap();
    let id = nodes[0]["id"].as_str().unwrap();
    run_ok(&lab.state(), &["revoke", id]);
    until("the revocation", || lab.asks(&[(MEMBER, &proof)]) == 403).await;
}

/// Its token was used up by itself.
#[tokio::test(flavor = "multi_thread")]
async fn who_began_by_http_is_let_into_the_swarm_with_the_same_token_and_nobody_else_is() {
    let lab = Lab::new();
    let token = lab.token();
    let bearer = format!("Bearer {token}");
    let (own, other) = (
        node(lab.key, Ipv4Addr::LOCALHOST.into()).await,
        node(lab.key, Ipv4Addr::LOCALHOST.into()).await,
    );
    let (session, another) = (own.http_session(&token), other.http_session(&token));
    let shown = [("authorization", bearer.as_str()), (SESSION, &session)];
    assert_eq!(lab.asks(&shown), 206);
    let by_another = [("authorization", bearer.as_str()), (SESSION, &another)];
    assert_eq!(lab.asks(&by_another), 403);
    let refused = other
        .join(&[lab.server.swarm], &request(Some(&token)))
        .await;
    assert!(refused.err().unwrap().to_string().contains("used up"));
    own.join(&[lab.server.swarm], &request(Some(&token)))
        .await
        .unwrap();
    assert_eq!(lab.asks(&shown), 206);
    // A signature under another token names nobody.
    let free = lab.token();
    let bearer = format!("Bearer {free}");
    let mixed = [("authorization", bearer.as_str()), (SESSION, &session)];
    assert_eq!(lab.asks(&mixed), 206);
    let refused = own.join(&[lab.server.swarm], &request(Some(&free))).await;
    assert!(refused.err().unwrap().to_string().contains("used up"));
}

/// A download that goes on, by HTTP alone, with a token that was used up long ago: whatever takes its admission
/// back ends it, and it is listed until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_goes_on_ends_with_its_admission() {
    for all in [true, false] {
        let lab = Lab::new();
        let token = lab.token();
        let bearer = format!("Bearer {token}");
        let download = [("authorization", bearer.as_str()), (SESSION, "0123abcd")];
        assert_eq!(lab.asks(&download), 206);
        let listed = run_ok(&lab.state(), &["token", "list"]);
        assert!(
            listed.contains(&token[..8]) && listed.contains("in use"),
            "{listed}"
        );
        let line = match all {
            true => vec!["revoke", "--all"],
            false => vec!["token", "revoke", &token[..8]],
        };
        run_ok(&lab.state(), &line);
        assert_eq!(lab.asks(&download), 403, "{line:?}");
        let listed = run_ok(&lab.state(), &["token", "list"]);
        assert!(!listed.contains(&token[..8]), "{listed}");
        // And who comes then is let in with a token of his own.
        let bearer = format!("Bearer {}", lab.token());
        let next = [("authorization", bearer.as_str()), (SESSION, "4567")];
        until("the next one", || lab.asks(&next) == 206).await;
    }
}
