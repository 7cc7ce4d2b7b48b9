//! Who is not admitted gets no byte of an image: counted, against a seed, a node and HTTP.
//!
//! One client tries everything on whatever connection it gets: it says hello, asks for every chunk and
//! counts all that comes. The same client with a good certificate gets chunks, so that it can fail.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use common::{Server, address_besides_loopback, node, request, run_ok, squashfs};
use quinn::{Connection, Endpoint};
use rootswarm_image::{ImageId, SwarmKey};
use rootswarm_swarm::{Have, Hello, Message, Role, encode_hello, encode_message};
use rootswarm_transport::identity::{Identity, NodeKey, SwarmCa};
use rootswarm_transport::node::SeedTrust;
use rootswarm_transport::store::FileStore;
use rootswarm_transport::tls::Dialer;
use rootswarm_transport::trust::SwarmTrust;
use rootswarm_transport::tuning::Tuning;

const LENGTH: usize = 1_000_000;
/// Far longer than a chunk takes on the loopback.
const TRY_FOR: Duration = Duration::from_millis(800);
/// Who is admitted ends as soon as something comes, and on a busy machine not before.
const ADMITTED_TRY_FOR: Duration = Duration::from_secs(20);

/// What a client presents.
enum Shows {
    /// The data protocol needs a certificate; without one there is the join protocol.
    Nothing,
    Certificate(Identity),
}

/// Bytes of chunks, and whether the connection was up at all.
async fn bytes_got(
    target: SocketAddr,
    role: Role,
    shows: Shows,
    key: &SwarmKey,
    id: ImageId,
    try_for: Duration,
) -> usize {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let tuning = Tuning::default();
    let dialer = match shows {
        Shows::Nothing => Dialer::join(SwarmTrust::new(SeedTrust::Key(key.public())), &tuning),
        Shows::Certificate(identity) => Dialer::data(identity, &tuning),
    };
    let dial = tokio::time::timeout(try_for, dialer.connect(&endpoint, target, role));
    match dial.await {
        Ok(Ok((connection, _))) => ask_for_everything(&connection, id, try_for).await,
        _ => 0,
    }
}

async fn ask_for_everything(connection: &Connection, id: ImageId, try_for: Duration) -> usize {
    let counting = async {
        let Ok((mut send, mut receive)) = connection.open_bi().await else {
            return 0;
        };
        let hello = Hello {
            image: id,
            have: Have::Nothing,
            rack: None,
        };
        let mut frames = vec![encode_hello(&hello)];
        for index in 0..4 {
            let index = rootswarm_image::ChunkIndex(index);
            frames.push(encode_message(&Message::Request(index)));
        }
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
            let _ = send.write_all(&[&length[..], &frame].concat()).await;
        }
        // What the control stream says is not counted: no chunk travels there.
        let control = async { while let Ok(Some(_)) = receive.read_chunk(4096, true).await {} };
        let mut bytes = 0;
        let chunks = async {
            while let Ok(mut stream) = connection.accept_uni().await {
                while let Ok(Some(piece)) = stream.read_chunk(1 << 20, true).await {
                    bytes += piece.bytes.len();
                }
                if bytes > 0 {
                    return;
                }
            }
        };
        tokio::select! {
            () = chunks => {}
            () = async { control.await; connection.closed().await; } => {}
            () = tokio::time::sleep(try_for) => {}
        }
        bytes
    };
    counting.await
}

fn identity(key: &Arc<SwarmKey>, epoch: u32) -> Identity {
    let node = NodeKey::generate().unwrap();
    let ca = SwarmCa::new(key.clone());
    let certificate = ca.issue_node(&node.public(), epoch).unwrap();
    Identity::node(&node, certificate.to_vec(), &key.public()).unwrap()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_admitted_gets_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (state, file) = (dir.path().join("state"), dir.path().join("image"));
    let image = squashfs(LENGTH, 1);
    fs::write(&file, &image).unwrap();
    let id = ImageId::from_bytes(*blake3::hash(&image).as_bytes());
    let named = format!("web={}", file.display());
    run_ok(&state, &["key"]);
    // Certificates of epoch 1 are over: the epoch is 3.
    run_ok(&state, &["revoke", "--all"]);
    let options = ["--listen", "0.0.0.0:0", "--http", "0.0.0.0:0"];
    let rules = ["--admission", "token", "--allow", "233.252.0.0/24"];
    let server = Server::start(&state, &[&options[..], &rules, &[&named]].concat());
    server.line();
    let swarm = SocketAddr::from((Ipv4Addr::LOCALHOST, server.swarm.port()));
    let key = SwarmKey::from_pkcs8(&fs::read(state.join("swarm.key")).unwrap()).unwrap();
    let key = Arc::new(key);
    let stranger = Arc::new(SwarmKey::generate().unwrap());

    // A node that has everything and serves it.
    let always = run_ok(&state, &["token", "create", "--reusable"]);
    let peer = node(key.public(), Ipv4Addr::LOCALHOST.into()).await;
    let peer_at = peer.local_addr();
    let joined = peer.join(&[swarm], &request(Some(&always))).await.unwrap();
    let store = FileStore::open(&file, joined.manifest.geometry()).unwrap();
    let peer = peer.serve(joined, Arc::new(store)).unwrap();
    while !peer.status().seed_connected {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let revoked = identity(&key, 3);
    run_ok(&state, &["revoke", &hex(&revoked.node_id().0)]);
    // It has been told, when the node below is refused.
    tokio::time::sleep(Duration::from_secs(1)).await;

    for (target, role) in [(swarm, Role::Seed), (peer_at, Role::Peer)] {
        let cases = [
            ("no certificate", Shows::Nothing),
            (
                "a certificate of another CA",
                Shows::Certificate(identity(&stranger, 3)),
            ),
            (
                "an epoch that is over",
                Shows::Certificate(identity(&key, 1)),
            ),
            ("revoked", Shows::Certificate(revoked.clone())),
        ];
        for (what, shows) in cases {
            let bytes = bytes_got(target, role, shows, &key, id, TRY_FOR).await;
            assert_eq!(bytes, 0, "{what}, from {role:?}");
        }
    }

    // Who is refused a certificate has none: the first case again.
    let used = run_ok(&state, &["token", "create"]);
    let bearer = node(key.public(), Ipv4Addr::LOCALHOST.into()).await;
    assert!(bearer.join(&[swarm], &request(Some(&used))).await.is_ok());
    let expired = run_ok(&state, &["token", "create", "--lifetime", "1s"]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let once = run_ok(&state, &["token", "create"]);
    let tokens = [
        ("no token", None, "admits by token"),
        ("a used token", Some(&used), "unknown, expired or used up"),
        (
            "an expired token",
            Some(&expired),
            "unknown, expired or used up",
        ),
    ];
    for (what, token, words) in tokens {
        let newcomer = node(key.public(), Ipv4Addr::LOCALHOST.into()).await;
        let refused = newcomer
            .join(&[swarm], &request(token.map(String::as_str)))
            .await;
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains(words), "{what}: {refused}");
        let bearer = token.map(|token| format!("Bearer {}", token.trim()));
        let headers: Vec<(&str, &str)> = bearer
            .iter()
            .map(|b| ("authorization", b.as_str()))
            .collect();
        check_http(&server, what, id, &headers);
    }
    // A one-time token admits one download by HTTP, of many requests, and nobody else.
    let bearer = format!("Bearer {}", once.trim());
    let shown = ("authorization", bearer.as_str());
    for range in ["bytes=0-9", "bytes=10-19"] {
        let headers = [shown, ("rootswarm-session", "aa"), ("range", range)];
        let answer = server.request("GET", "/images/web", &headers);
        assert_eq!((answer.status, answer.body.len()), (206, 10), "{range}");
    }
    let another = [shown, ("rootswarm-session", "bb")];
    check_http(&server, "another's one-time token", id, &another);
    check_http(&server, "one without a session", id, &[shown]);
    let newcomer = node(key.public(), Ipv4Addr::LOCALHOST.into()).await;
    let refused = newcomer.join(&[swarm], &request(Some(&once))).await;
    assert!(refused.is_err(), "a one-time token that a download holds");
    let outside = address_besides_loopback();
    let newcomer = node(key.public(), outside).await;
    let seed = SocketAddr::from((outside, server.swarm.port()));
    let refused = newcomer
        .join(&[seed], &request(Some(&always)))
        .await
        .err()
        .unwrap();
    let refused = refused.to_string();
    assert!(
        refused.contains("is not in a network that this seed serves"),
        "{refused}"
    );

    // Nothing was sent to anybody, as seed and node see it themselves.
    assert_eq!(server.uploaded(), 0);
    assert_eq!(peer.status().bytes_uploaded, 0);

    // The same client, admitted.
    for (target, role) in [(swarm, Role::Seed), (peer_at, Role::Peer)] {
        let shows = Shows::Certificate(identity(&key, 3));
        assert!(
            bytes_got(target, role, shows, &key, id, ADMITTED_TRY_FOR).await > 0,
            "from {role:?}"
        );
    }
}

/// A refusal, and nothing of the image in it.
fn check_http(server: &Server, what: &str, id: ImageId, headers: &[(&str, &str)]) {
    for path in [format!("/blobs/{id}"), "/images/web".to_owned()] {
        let answer = server.request("GET", &path, headers);
        assert!(
            matches!(answer.status, 403 | 404),
            "{what}: {}",
            answer.head
        );
        assert!(
            answer.body.len() < 300,
            "{what}: {} bytes",
            answer.body.len()
        );
    }
}
