//! Who gets in and who does not, over real QUIC on the loopback interface.

mod raw;

use std::net::Ipv4Addr;
use std::time::Duration;

use rootswarm_image::{SwarmKey, SwarmPublicKey};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;

use super::*;
use crate::identity::{NodeKey, ProofError, SwarmCa};
use crate::retries::RetryKey;
use crate::trust::SeedTrust;

/// What a server sends to everyone it trusts: stands for the bytes of an image.
const IMAGE_BYTES: &[u8] = b"bytes of the image";

fn new_ca() -> SwarmCa {
    SwarmCa::new(Arc::new(SwarmKey::generate().unwrap()))
}

fn node_of(ca: &SwarmCa, epoch: u32) -> Identity {
    let key = NodeKey::generate().unwrap();
    let certificate = ca.issue_node(&key.public(), epoch).unwrap();
    Identity::node(&key, certificate.to_vec(), &ca.public()).unwrap()
}

fn client_endpoint() -> Endpoint {
    Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// A server that answers everyone it trusts with [`IMAGE_BYTES`], and reports what it decided.
struct Server {
    address: SocketAddr,
    decisions: mpsc::UnboundedReceiver<Result<Option<Purpose>, AcceptError>>,
    connections: mpsc::UnboundedReceiver<Connection>,
    _endpoint: Endpoint,
}

impl Server {
    fn start(identity: &Identity) -> Server {
        Server::start_with(identity, Listener::new(usize::MAX))
    }

    fn start_with(identity: &Identity, listener: Listener) -> Server {
        let config =
            Listener::server_config(identity, &Tuning::default(), &RetryKey::random().unwrap())
                .unwrap();
        let endpoint = Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (decide, decisions) = mpsc::unbounded_channel();
        let (pass, connections) = mpsc::unbounded_channel();
        tokio::spawn({
            let endpoint = endpoint.clone();
            async move {
                while let Some(incoming) = endpoint.accept().await {
                    let decision = listener.accept(incoming).await.map(|accepted| {
                        accepted.map(|(connection, purpose)| {
                            let sender = connection.clone();
                            tokio::spawn(async move {
                                if let Ok(mut stream) = sender.open_uni().await {
                                    let _ = stream.write_all(IMAGE_BYTES).await;
                                    let _ = stream.finish();
                                }
                            });
                            let _ = pass.send(connection);
                            purpose
                        })
                    });
                    let _ = decide.send(decision);
                }
            }
        });
        Server {
            address,
            decisions,
            connections,
            _endpoint: endpoint,
        }
    }

    async fn decision(&mut self) -> Result<Option<Purpose>, AcceptError> {
        tokio::time::timeout(Duration::from_secs(5), self.decisions.recv())
            .await
            .expect("no decision within 5 s")
            .expect("the server is gone")
    }
}

/// What a client gets of the image, and why it gets no more.
async fn receive(connection: &Connection) -> Result<Vec<u8>, quinn::ConnectionError> {
    let mut stream = connection.accept_uni().await?;
    Ok(stream
        .read_to_end(1 << 20)
        .await
        .expect("a stream breaks off only with its connection"))
}

async fn dial(
    dialer: &Dialer,
    to: &Server,
    expected: Role,
) -> Result<(Connection, PeerIdentity), ConnectError> {
    let endpoint = client_endpoint();
    tokio::time::timeout(
        Duration::from_secs(5),
        dialer.connect(&endpoint, to.address, expected),
    )
    .await
    .expect("the dial neither succeeded nor failed within 5 s")
}

fn join(trust: &SwarmTrust) -> Dialer {
    Dialer::join(trust.clone(), &Tuning::default())
}

fn data(identity: &Identity) -> Dialer {
    Dialer::data(identity.clone(), &Tuning::default())
}

fn trusting(key: SwarmPublicKey) -> SwarmTrust {
    SwarmTrust::new(SeedTrust::Key(key))
}

/// The dial was refused on this side, for the reason that `matches` looks for.
fn check_refused(
    result: Result<(Connection, PeerIdentity), ConnectError>,
    matches: impl Fn(&TrustError) -> bool,
) -> String {
    let error = result.expect_err("the dial should have been refused");
    let text = error.to_string();
    assert!(error.is_refusal(), "{text}");
    match error {
        ConnectError::Untrusted { source, .. } => assert!(matches(&source), "{text}"),
        other => panic!("refused in another way: {other}"),
    }
    text
}

/// The server turned this side away, in these words, and sent nothing.
async fn check_turned_away(result: Result<(Connection, PeerIdentity), ConnectError>, words: &str) {
    let reason = match result {
        Err(ConnectError::RefusedByPeer { reason, .. }) => reason,
        Err(other) => panic!("turned away in another way: {other}"),
        Ok((connection, _)) => match receive(&connection).await {
            Ok(bytes) => panic!("{} bytes for one who should have none", bytes.len()),
            Err(error) => match refusal(&error) {
                Some(Refusal::Said(reason)) => reason,
                other => panic!("closed with {error}, read as {other:?}"),
            },
        },
    };
    assert!(reason.contains(words), "{reason:?} should say {words:?}");
}

#[tokio::test]
async fn a_node_joins_and_becomes_a_member() {
    let ca = new_ca();
    let seed = Identity::seed(&ca, 7).unwrap();
    let mut server = Server::start(&seed);
    let trust = trusting(ca.public());

    let (mine, peer) = dial(&join(&trust), &server, Role::Seed).await.unwrap();
    assert_eq!(
        (peer.role, peer.epoch, peer.node_id),
        (Role::Seed, Some(7), seed.node_id())
    );
    assert_eq!(server.decision().await.unwrap(), Some(Purpose::Join));

    // Proof of possession, as the seed checks it before it issues.
    let key = NodeKey::generate().unwrap();
    let proof = key.prove(&mine).unwrap();
    let theirs = server.connections.recv().await.unwrap();
    key.public().verify_proof(&theirs, &proof).unwrap();

    let certificate = ca.issue_node(&key.public(), 7).unwrap();
    let node = Identity::node(&key, certificate.to_vec(), &trust.key().unwrap()).unwrap();
    assert_eq!((node.role(), node.gate().epoch()), (Role::Peer, 7));

    let (connection, peer) = dial(&data(&node), &server, Role::Seed).await.unwrap();
    assert_eq!(peer.node_id, seed.node_id());
    match server.decision().await.unwrap() {
        Some(Purpose::Data(found)) => {
            assert_eq!((found.node_id, found.role), (node.node_id(), Role::Peer));
            assert_eq!(found.epoch, Some(7));
        }
        other => panic!("accepted as {other:?}"),
    }
    assert_eq!(receive(&connection).await.unwrap(), IMAGE_BYTES);
}

#[tokio::test]
async fn nodes_know_each_other() {
    let ca = new_ca();
    let (one, other) = (node_of(&ca, 1), node_of(&ca, 1));
    let mut server = Server::start(&one);
    let (connection, peer) = dial(&data(&other), &server, Role::Peer).await.unwrap();
    assert_eq!((peer.node_id, peer.role), (one.node_id(), Role::Peer));
    assert!(matches!(
        server.decision().await.unwrap(),
        Some(Purpose::Data(found)) if found.node_id == other.node_id()
    ));
    assert_eq!(receive(&connection).await.unwrap(), IMAGE_BYTES);
}

#[tokio::test]
async fn a_proof_is_worth_nothing_elsewhere() {
    let ca = new_ca();
    let mut server = Server::start(&Identity::seed(&ca, 0).unwrap());
    let trust = trusting(ca.public());
    let (first, _) = dial(&join(&trust), &server, Role::Seed).await.unwrap();
    let (second, _) = dial(&join(&trust), &server, Role::Seed).await.unwrap();
    let key = NodeKey::generate().unwrap();
    let proof = key.prove(&first).unwrap();
    let (first_there, second_there) = (
        server.connections.recv().await.unwrap(),
        server.connections.recv().await.unwrap(),
    );
    key.public().verify_proof(&first_there, &proof).unwrap();

    let mut flipped = proof;
    flipped[40] ^= 1;
    let stranger = NodeKey::generate().unwrap().public();
    for (what, result) in [
        (
            "another connection",
            key.public().verify_proof(&second_there, &proof),
        ),
        ("another key", stranger.verify_proof(&first_there, &proof)),
        (
            "a flipped bit",
            key.public().verify_proof(&first_there, &flipped),
        ),
        ("nothing", key.public().verify_proof(&first_there, &[])),
    ] {
        assert!(
            matches!(result, Err(ProofError::Invalid { .. })),
            "{what}: {result:?}"
        );
    }
    drop(second);
}

#[tokio::test]
async fn a_seed_with_another_key_is_refused_and_both_keys_are_named() {
    let (ours, rogue) = (new_ca(), new_ca());
    let mut server = Server::start(&Identity::seed(&rogue, 0).unwrap());
    let text = check_refused(
        dial(&join(&trusting(ours.public())), &server, Role::Seed).await,
        |error| {
            matches!(error, TrustError::WrongKey { expected, found }
            if *expected == ours.public() && *found == rogue.public())
        },
    );
    for key in [ours.public(), rogue.public()] {
        assert!(text.contains(&key.to_string()), "{text}");
    }
    assert!(server.decision().await.is_err());

    // A member that dials is no less careful.
    let node = node_of(&ours, 0);
    check_refused(dial(&data(&node), &server, Role::Seed).await, |error| {
        matches!(error, TrustError::WrongKey { .. })
    });
}

#[tokio::test]
async fn the_first_key_used_is_the_only_one() {
    let (first, second) = (new_ca(), new_ca());
    let one = Server::start(&Identity::seed(&first, 0).unwrap());
    let another_of_it = Server::start(&Identity::seed(&first, 0).unwrap());
    let other = Server::start(&Identity::seed(&second, 0).unwrap());
    let trust = SwarmTrust::new(SeedTrust::FirstUse);
    assert_eq!(trust.key(), None);

    dial(&join(&trust), &one, Role::Seed).await.unwrap();
    assert_eq!(trust.key(), Some(first.public()));
    dial(&join(&trust), &another_of_it, Role::Seed)
        .await
        .unwrap();
    check_refused(dial(&join(&trust), &other, Role::Seed).await, |error| {
        matches!(error, TrustError::WrongKey { expected, found }
            if *expected == first.public() && *found == second.public())
    });
    assert_eq!(trust.key(), Some(first.public()));

    // What an attempt learns is its own until it is adopted, and the first one adopted stays.
    let undecided = SwarmTrust::new(SeedTrust::FirstUse);
    let (left, right) = (undecided.detached(), undecided.detached());
    dial(&join(&left), &one, Role::Seed).await.unwrap();
    dial(&join(&right), &other, Role::Seed).await.unwrap();
    assert_eq!(undecided.key(), None);
    undecided.adopt(&right);
    undecided.adopt(&left);
    assert_eq!(undecided.key(), Some(second.public()));
    assert_eq!(undecided.detached().key(), Some(second.public()));

    // A key that was given stays whatever is adopted.
    let given = trusting(first.public());
    given.adopt(&right);
    assert_eq!(given.key(), Some(first.public()));
}

#[tokio::test]
async fn a_stolen_certificate_is_not_enough() {
    // A seed's certificate is public; without its key it neither passes nor fixes a first use.
    let ca = new_ca();
    let mut thief = Identity::seed(&ca, 0).unwrap();
    let other = Identity::seed(&ca, 0).unwrap();
    thief.certified = Arc::new(CertifiedKey::new(
        other.certified.cert.clone(),
        thief.certified.key.clone(),
    ));
    let server = Server::start(&thief);
    let trust = SwarmTrust::new(SeedTrust::FirstUse);
    let error = dial(&join(&trust), &server, Role::Seed).await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert_eq!(trust.key(), None);
}

#[tokio::test]
async fn nobody_plays_another_role() {
    let ca = new_ca();
    let (seed, node) = (Identity::seed(&ca, 0).unwrap(), node_of(&ca, 0));
    // A node's certificate behind a seed's protocols.
    let mut posing = seed.clone();
    posing.certified = node.certified.clone();
    let posing = Server::start(&posing);
    let seed_server = Server::start(&seed);

    let is = |expected, found| {
        move |error: &TrustError| {
            matches!(error, TrustError::WrongRole { expected: e, found: f }
                if (*e, *f) == (expected, found))
        }
    };
    let trust = trusting(ca.public());
    let text = check_refused(
        dial(&join(&trust), &posing, Role::Seed).await,
        is(Role::Seed, Role::Peer),
    );
    assert!(
        text.contains("expected a certificate of a seed, found that of a node"),
        "{text}"
    );
    let first_use = SwarmTrust::new(SeedTrust::FirstUse);
    check_refused(
        dial(&join(&first_use), &posing, Role::Seed).await,
        is(Role::Seed, Role::Peer),
    );
    assert_eq!(first_use.key(), None);
    let member = node_of(&ca, 0);
    check_refused(
        dial(&data(&member), &posing, Role::Seed).await,
        is(Role::Seed, Role::Peer),
    );
    check_refused(
        dial(&data(&member), &seed_server, Role::Peer).await,
        is(Role::Peer, Role::Seed),
    );

    // A seed's certificate is for listening only: nobody lets it in as a client.
    let mut dialling = node.clone();
    dialling.certified = seed.certified.clone();
    let node_server = Server::start(&node);
    let result = dial(&data(&dialling), &node_server, Role::Peer).await;
    check_turned_away(result, "does not verify").await;
}

#[tokio::test]
async fn an_epoch_passes() {
    let ca = new_ca();
    // (epoch of the listener, of the client, is it let in)
    for (here, there, accepted) in [
        (7, 5, false),
        (7, 6, true),
        (7, 7, true),
        (7, 8, true),
        (0, 0, true),
        (1, 0, true),
    ] {
        for seed in [true, false] {
            let identity = if seed {
                Identity::seed(&ca, here).unwrap()
            } else {
                node_of(&ca, here)
            };
            let server = Server::start(&identity);
            // Its own gate is open to whatever the server has: the server is the one to refuse.
            let client = node_of(&ca, there);
            let result = dial(&data(&client), &server, identity.role()).await;
            if accepted {
                let (connection, _) = result.unwrap();
                assert_eq!(
                    receive(&connection).await.unwrap(),
                    IMAGE_BYTES,
                    "{here} {there}"
                );
                assert_eq!(identity.gate().epoch(), here.max(there));
            } else {
                check_turned_away(result, "epoch 5, the oldest accepted is 6").await;
            }
        }
    }
    // And a client that has heard of a later epoch refuses an old server.
    let (old, client) = (node_of(&ca, 5), node_of(&ca, 7));
    let server = Server::start(&old);
    check_refused(dial(&data(&client), &server, Role::Peer).await, |error| {
        matches!(
            error,
            TrustError::OldEpoch {
                found: 5,
                oldest: 6
            }
        )
    });
}

#[tokio::test]
async fn an_epoch_is_learnt_from_who_joined_in_it_and_nothing_is_resumed() {
    let ca = new_ca();
    let here = node_of(&ca, 7);
    let server = Server::start(&here);
    let old = data(&node_of(&ca, 6));
    let endpoint = client_endpoint();
    old.connect(&endpoint, server.address, Role::Peer)
        .await
        .unwrap();
    let (later, _) = dial(&data(&node_of(&ca, 8)), &server, Role::Peer)
        .await
        .unwrap();
    // The dial is over before the server has read the certificate; what it sends is the sign.
    receive(&later).await.unwrap();
    assert_eq!(here.gate().epoch(), 8);
    // The same dialer over the same endpoint: a resumed session would still get in.
    let result = old.connect(&endpoint, server.address, Role::Peer).await;
    check_turned_away(result, "epoch 6, the oldest accepted is 7").await;
}

#[tokio::test]
async fn nobody_there_is_no_verdict() {
    let ca = new_ca();
    let address = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let endpoint = client_endpoint();
    let connect = join(&trusting(ca.public()));
    let connect = connect.connect(&endpoint, address.local_addr().unwrap(), Role::Seed);
    let error = tokio::time::timeout(Duration::from_secs(20), connect)
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::Unreachable { .. }) && !error.is_refusal(),
        "{error}"
    );
}

#[tokio::test]
async fn strangers_prove_their_address_when_there_are_many() {
    let ca = new_ca();
    let seed = Identity::seed(&ca, 0).unwrap();
    let mut server = Server::start_with(&seed, Listener::new(0));
    dial(&join(&trusting(ca.public())), &server, Role::Seed)
        .await
        .unwrap();
    assert_eq!(
        server.decision().await.unwrap(),
        None,
        "the first packet is only answered by Retry"
    );
    assert_eq!(server.decision().await.unwrap(), Some(Purpose::Join));
}

#[test]
fn the_clock_does_not_matter() {
    let ca = new_ca();
    let seed = Identity::seed(&ca, 0).unwrap();
    let verifier = ServerVerifier {
        rule: ServerRule::Seed(trusting(ca.public())),
        verdict: Verdict::default(),
    };
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    // 1970, 2100, 9999.
    for now_s in [0, 4_102_444_800, 253_402_300_799] {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        let result = verifier.verify_server_cert(&seed.certified.cert[0], &[], &name, &[], now);
        assert!(result.is_ok(), "at {now_s}: {result:?}");
    }
    let time: &dyn rustls::time_provider::TimeProvider = &FixedTime;
    assert_eq!(time.current_time(), Some(trust::VERIFICATION_TIME));
}
