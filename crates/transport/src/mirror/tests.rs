//! The frozen bytes of mirroring, and who is not believed.

use super::*;

/// The frozen bytes of JOIN.md.
#[test]
fn golden_bytes() {
    let asks = [
        (Ask::Listing(b"used".to_vec()), b"\0used".to_vec()),
        (
            Ask::Manifest(ImageId::from_bytes([3; 32])),
            [&[1u8][..], &[3; 32]].concat(),
        ),
    ];
    for (ask, bytes) in asks {
        assert_eq!(ask.encode(), bytes);
        assert_eq!(Ask::decode(&bytes), Some(ask));
    }
    for bad in [&b""[..], b"\x02", b"\x01short"] {
        assert_eq!(Ask::decode(bad), None);
    }
    let listing = Listing {
        tokens: b"t".to_vec(),
        revoked: b"r".to_vec(),
        tags: vec![vec![8, 7]],
        retired: vec![vec![9]],
        ..Listing::default()
    };
    let one = MirrorVersion::One;
    let frames = vec![b"t".to_vec(), b"r".to_vec(), vec![0, 8, 7], vec![1, 9]];
    assert_eq!(listing.clone().encode(one), frames);
    assert_eq!(Listing::decode(frames.clone(), one), Ok(listing.clone()));
    assert!(Listing::decode(frames[..1].to_vec(), one).is_err());
    assert!(Listing::decode(vec![vec![], vec![], vec![2, 8]], one).is_err());
    assert!(Listing::decode(vec![vec![], vec![], vec![]], one).is_err());

    let listing = Listing {
        policy: Some(b"p".to_vec()),
        older: vec![vec![6], vec![5]],
        rolled_back: vec![vec![4]],
        ..listing
    };
    // What the other end cannot read is not sent to it.
    assert_eq!(listing.clone().encode(one), frames);
    let two = MirrorVersion::Two;
    let mut frames = vec![b"t".to_vec(), b"r".to_vec(), b"p".to_vec()];
    frames.extend([
        vec![0, 8, 7],
        vec![1, 9],
        vec![2, 6],
        vec![2, 5],
        vec![3, 4],
    ]);
    assert_eq!(listing.clone().encode(two), frames);
    assert_eq!(Listing::decode(frames.clone(), two), Ok(listing.clone()));
    assert!(Listing::decode(frames[..2].to_vec(), two).is_err());
    frames.push(vec![4, 1]);
    assert_eq!(Listing::decode(frames.clone(), two), Ok(listing));
    frames.push(Vec::new());
    assert!(Listing::decode(frames, two).is_err());
    let texts: [&[u8]; 5] = [
        one.label(),
        two.label(),
        one.asks(),
        two.asks(),
        ANSWER_PREFIX,
    ];
    let expected: [&[u8]; 5] = [
        b"EXPORTER-rootswarm-mirror-1",
        b"EXPORTER-rootswarm-mirror-2",
        b"rootswarm mirror proof 1\0",
        b"rootswarm mirror proof 2\0",
        b"rootswarm mirror answer 2\0",
    ];
    assert_eq!(texts, expected);
}

/// An endpoint with a seed's certificate, a node that trusts it, and the swarm key of both.
async fn seed_and_mirror() -> (quinn::Endpoint, Node, Arc<SwarmKey>) {
    let key = Arc::new(SwarmKey::generate().unwrap());
    let identity = Identity::seed(&SwarmCa::new(key.clone()), 1).unwrap();
    let tuning = crate::tuning::Tuning::default();
    let retries = crate::retries::RetryKey::random().unwrap();
    let config = crate::tls::Listener::server_config(&identity, &tuning, &retries).unwrap();
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let node = Node::bind(crate::node::NodeConfig {
        bind: Some(address.ip()),
        port: 0,
        trust: crate::trust::SeedTrust::Key(key.public()),
        upload_limit_bytes_per_s: None,
        tuning,
    });
    let seed = quinn::Endpoint::server(config, address).unwrap();
    (seed, node.await.unwrap(), key)
}

/// The reason may come after the end of the stream on which nothing was answered.
#[tokio::test]
async fn why_a_seed_answers_nothing_is_heard() {
    for later_ms in [0, 50, 300] {
        let (seed, node, key) = seed_and_mirror().await;
        let at = seed.local_addr().unwrap();
        let asked = async {
            let primary = Primary::connect(&node, at, key.clone()).await.unwrap();
            primary.listing(Vec::new()).await
        };
        let turns_away = async {
            let connection = seed.accept().await.unwrap().await.unwrap();
            let (mut send, _receive) = connection.accept_bi().await.unwrap();
            send.finish().unwrap();
            tokio::time::sleep(Duration::from_millis(later_ms)).await;
            connection.close(VarInt::from_u32(3), b"not today");
            connection
        };
        let (listing, _connection) = tokio::join!(asked, turns_away);
        let said = listing.unwrap_err().to_string();
        assert!(said.contains("not today"), "{later_ms} ms: {said}");
    }
}

/// A seed's TLS key and certificate are not the swarm key: whoever stole them is not believed, what
/// ever proof he sends, none at all or one of another connection.
#[tokio::test]
async fn a_seed_without_the_swarm_key_tells_a_mirror_nothing() {
    let (seed, node, key) = seed_and_mirror().await;
    let at = seed.local_addr().unwrap();
    let other = Arc::new(SwarmKey::generate().unwrap());
    let own = key.clone();
    let answers = move |case: usize, connection: Connection| {
        let (key, other) = (own.clone(), other.clone());
        async move {
            let request = accept(&connection, &key.public(), ANSWER_TIMEOUT).await;
            let mut request = request.unwrap().unwrap();
            let listing = Listing::default().encode(MirrorVersion::Two);
            match case {
                0 => request.answer(Ok(listing), &key).await.unwrap(),
                1 => request.answer(Ok(listing), &other).await.unwrap(),
                2 => {
                    request.version = MirrorVersion::One;
                    request.answer(Ok(listing), &key).await.unwrap();
                }
                _ => {
                    request.challenge[40] ^= 1;
                    request.answer(Ok(listing), &key).await.unwrap();
                }
            }
            connection.closed().await;
        }
    };
    for case in 0..4 {
        let asked = async {
            let primary = Primary::connect(&node, at, key.clone()).await.unwrap();
            let listing = primary.listing(Vec::new()).await;
            primary.close();
            listing
        };
        let answered = async {
            let connection = seed.accept().await.unwrap().await.unwrap();
            answers(case, connection).await;
        };
        let (listing, ()) = tokio::join!(asked, answered);
        match (case, listing) {
            (0, listing) => assert!(listing.is_ok()),
            (_, Ok(listing)) => panic!("case {case}: {listing:?}"),
            (_, Err(error)) => {
                let said = error.to_string();
                assert!(said.contains("did not prove"), "case {case}: {said}");
            }
        }
    }
}
