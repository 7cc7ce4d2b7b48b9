//! One node is the same one by the swarm and by HTTP: with a one-time token it begins by the one and goes on by
//! the other.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Server, age_tokens, age_tokens_by, key, node, request, run_ok, squashfs, until};
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

/// An answer of [`LENGTH`] bytes that is under way.
struct UnderWay {
    stream: TcpStream,
    received: usize,
}

const LENGTH: usize = 2_000_000;

impl UnderWay {
    fn new(lab: &Lab, fields: &[(&str, &str)]) -> UnderWay {
        let mut stream = TcpStream::connect(lab.server.http).unwrap();
        let mut head = "GET /images/web HTTP/1.1\r\nhost: seed\r\n".to_owned();
        for (name, value) in fields {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut answer = UnderWay {
            stream,
            received: 0,
        };
        let begin = answer.read().unwrap();
        assert!(
            begin.starts_with(b"HTTP/1.1 200 "),
            "{}",
            String::from_utf8_lossy(&begin)
        );
        answer
    }

    fn read(&mut self) -> Option<Vec<u8>> {
        let mut piece = vec![0; 16_384];
        match self.stream.read(&mut piece) {
            Ok(0) => None,
            Ok(length) => {
                self.received += length;
                Some(piece[..length].to_vec())
            }
            // It was cut: the length was promised.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("neither bytes nor an end: {error}"),
        }
    }

    fn goes_on_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            assert!(self.read().is_some(), "it ended after {}", self.received);
        }
    }
}

/// Of 20 s and more, in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_under_way_ends_with_its_admission() {
    for case in 0..6 {
        let lab = Lab::new();
        let token = lab.token();
        let bearer = format!("Bearer {token}");
        // By the token alone; with a node that signed it; as a member.
        let own = node(lab.key, Ipv4Addr::LOCALHOST.into()).await;
        let session = match case % 3 {
            0 => "0123abcd".to_owned(),
            _ => own.http_session(&token),
        };
        let member = match case % 3 {
            2 => Some(lab.member(&token).await),
            _ => None,
        };
        let proof = member.as_ref().map(|member| member.http_member().unwrap());
        let fields = match &proof {
            Some(proof) => vec![(MEMBER, proof.as_str())],
            None => vec![("authorization", bearer.as_str()), (SESSION, &session)],
        };
        let mut answer = UnderWay::new(&lab, &fields);
        answer.goes_on_for(Duration::from_secs(2));
        let line = match (case < 3, &member) {
            (true, _) => vec!["revoke".to_owned(), "--all".to_owned()],
            (false, None) => vec![
                "token".to_owned(),
                "revoke".to_owned(),
                token[..8].to_owned(),
            ],
            (false, Some(_)) => {
                until("it to be connected", || lab.server.nodes() == 1).await;
                let status = run_ok(&lab.state(), &["status", "--json"]);
                let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                let id = status["images"][0]["nodes"][0]["id"].as_str().unwrap();
                vec!["revoke".to_owned(), id.to_owned()]
            }
        };
        let line: Vec<_> = line.iter().map(String::as_str).collect();
        run_ok(&lab.state(), &line);
        while answer.read().is_some() {}
        assert!(answer.received < LENGTH, "case {case}: all of it came");
    }
}

/// It counts as asked with for as long as anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_lasts_as_long_as_one_answer() {
    let lab = Lab::new();
    let token = lab.token();
    let bearer = format!("Bearer {token}");
    let fields = [("authorization", bearer.as_str()), (SESSION, "0123abcd")];
    let mut answer = UnderWay::new(&lab, &fields);
    let tokens = || fs::read_to_string(lab.state().join("tokens")).unwrap();
    // Three times the half of what it lasts.
    for _ in 0..3 {
        age_tokens_by(&lab.state(), 40);
        let aged = tokens();
        let aging = Instant::now();
        while tokens() == aged {
            assert!(aging.elapsed() < Duration::from_secs(20), "{aged}");
            answer.goes_on_for(Duration::from_millis(100));
        }
    }
    drop(answer);
    assert_eq!(lab.asks(&fields), 206, "it goes on where it was cut");
}

/// Nor does an image that is being checked, or the question how long one is.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_there_costs_no_token() {
    let lab = Lab::new();
    let token = lab.token();
    let bearer = format!("Bearer {token}");
    let first = [("authorization", bearer.as_str()), (SESSION, "0123abcd")];
    let nothing = "00".repeat(32);
    for path in [
        "/images/wbe",
        "/images/..",
        &format!("/blobs/{nothing}"),
        "/blobs/x",
    ] {
        assert_eq!(
            lab.server.request("GET", path, &first).status,
            404,
            "{path}"
        );
    }
    assert_eq!(
        lab.server.request("HEAD", "/images/web", &first).status,
        200
    );
    let second = [("authorization", bearer.as_str()), (SESSION, "4567")];
    assert_eq!(lab.asks(&second), 206);
    assert_eq!(lab.asks(&first), 403);
    assert_eq!(lab.server.request("GET", "/images/wbe", &first).status, 403);
}
