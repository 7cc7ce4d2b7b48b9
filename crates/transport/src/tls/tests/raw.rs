//! Clients made by hand: what a hostile one can try that a [`Dialer`] never would.

use super::*;

/// A client made by hand: it believes any seed of `ca`, and says and presents what it is told to.
fn raw_client(
    ca: &SwarmCa,
    alpn: &[&[u8]],
    role: Role,
    certified: Option<Arc<CertifiedKey>>,
) -> quinn::ClientConfig {
    let rule = match role {
        Role::Seed => ServerRule::Seed(trusting(ca.public())),
        Role::Peer => ServerRule::Member(node_of(ca, 0), Role::Peer),
    };
    let verifier = ServerVerifier {
        rule,
        verdict: Verdict::default(),
    };
    let builder = rustls::ClientConfig::builder_with_details(provider(), Arc::new(FixedTime))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match certified {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

/// Connects with a hand-made client and counts what it gets before it is cut off.
async fn raw_bytes(
    server: &Server,
    config: quinn::ClientConfig,
) -> (usize, quinn::ConnectionError) {
    let endpoint = client_endpoint();
    let connecting = endpoint
        .connect_with(config, server.address, SERVER_NAME)
        .unwrap();
    let connection = match connecting.await {
        Ok(connection) => connection,
        Err(error) => return (0, error),
    };
    // It does not wait politely: it sends at once, on every kind of stream.
    if let Ok(mut stream) = connection.open_uni().await {
        let _ = stream.write_all(b"give me the image").await;
    }
    let mut bytes = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(5), receive(&connection)).await {
            Ok(Ok(found)) => bytes += found.len(),
            Ok(Err(error)) => return (bytes, error),
            Err(_) => panic!("still connected after 5 s, with {bytes} bytes"),
        }
    }
}

#[tokio::test]
async fn without_a_certificate_there_is_no_data() {
    let ca = new_ca();
    let mut seed = Server::start(&Identity::seed(&ca, 0).unwrap());
    let config = raw_client(&ca, &[ALPN_DATA_3], Role::Seed, None);
    let (bytes, error) = raw_bytes(&seed, config).await;
    assert_eq!(bytes, 0, "then {error}");
    assert!(seed.decision().await.is_err());
    let (bytes, error) = raw_bytes(&seed, raw_client(&ca, &[ALPN_DATA], Role::Seed, None)).await;
    assert_eq!(bytes, 0, "then {error}");
    assert!(matches!(
        seed.decision().await,
        Err(AcceptError::Untrusted {
            source: TrustError::NoCertificate,
            ..
        })
    ));
    assert!(
        matches!(refusal(&error), Some(Refusal::Said(said)) if said.contains("no certificate")),
        "{error}"
    );
    assert!(seed.connections.try_recv().is_err());

    for protocol in [ALPN_DATA, ALPN_MANIFEST] {
        let mut node = Server::start(&node_of(&ca, 0));
        let config = raw_client(&ca, &[protocol], Role::Peer, None);
        let (bytes, error) = raw_bytes(&node, config).await;
        assert_eq!(bytes, 0, "then {error}");
        assert!(refusal(&error).is_some(), "{error}");
        assert!(matches!(
            node.decision().await,
            Err(AcceptError::Handshake { .. })
        ));
        assert!(node.connections.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_member_of_another_swarm_gets_nothing() {
    let (ours, theirs) = (new_ca(), new_ca());
    let stranger = node_of(&theirs, 0);
    for identity in [Identity::seed(&ours, 0).unwrap(), node_of(&ours, 0)] {
        let mut server = Server::start(&identity);
        let certified = Some(stranger.certified.clone());
        let config = raw_client(&ours, &[ALPN_DATA], identity.role(), certified);
        let (bytes, error) = raw_bytes(&server, config).await;
        assert_eq!(bytes, 0, "then {error}");
        // The stranger is told whose swarm this is.
        assert!(
            matches!(refusal(&error), Some(Refusal::Said(said)) if said.contains("wrong swarm key")),
            "{error}"
        );
        assert!(matches!(
            server.decision().await,
            Err(AcceptError::Handshake { .. })
        ));
    }
}

#[tokio::test]
async fn unknown_protocols_are_named() {
    let ca = new_ca();
    let seed = Server::start(&Identity::seed(&ca, 0).unwrap());
    let config = raw_client(&ca, &[b"rootswarm/99"], Role::Seed, None);
    let (bytes, error) = raw_bytes(&seed, config).await;
    assert_eq!(
        (bytes, refusal(&error)),
        (0, Some(Refusal::NoCommonProtocol)),
        "{error}"
    );
    // No protocol at all is no way round it.
    let (bytes, error) = raw_bytes(&seed, raw_client(&ca, &[], Role::Seed, None)).await;
    assert_eq!(
        (bytes, refusal(&error)),
        (0, Some(Refusal::NoCommonProtocol)),
        "{error}"
    );

    // Nobody joins at a node.
    let node = Server::start(&node_of(&ca, 0));
    let error = dial(&join(&trusting(ca.public())), &node, Role::Seed)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ConnectError::NoCommonProtocol { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("rootswarm-join/3") && text.contains(&node.address.to_string()),
        "{text}"
    );
}

/// Whoever offers what: the newest version that both know, and both ends know which one it is.
#[tokio::test]
async fn the_newer_version_is_spoken_where_both_know_it() {
    let ca = new_ca();
    let member = node_of(&ca, 0);
    let at_seed: [(&[&[u8]], Wire); 6] = [
        (&[ALPN_JOIN, ALPN_JOIN_3], Wire::V4),
        (&[ALPN_JOIN_3, ALPN_JOIN], Wire::V4),
        (&[ALPN_JOIN_3], Wire::V3),
        (&[ALPN_DATA, ALPN_DATA_3], Wire::V4),
        (&[ALPN_DATA_3], Wire::V3),
        (&[b"rootswarm/9", ALPN_DATA_3], Wire::V3),
    ];
    // A node lets nobody join.
    let cases = at_seed.iter().map(|case| (Role::Seed, *case));
    let cases = cases.chain(at_seed[3..].iter().map(|case| (Role::Peer, *case)));
    for (role, (offered, expected)) in cases {
        let identity = match role {
            Role::Seed => Identity::seed(&ca, 0).unwrap(),
            Role::Peer => node_of(&ca, 0),
        };
        let mut server = Server::start(&identity);
        let is_join = offered.contains(&ALPN_JOIN_3);
        let certified = (!is_join).then(|| member.certified.clone());
        let config = raw_client(&ca, offered, role, certified);
        let endpoint = client_endpoint();
        let connecting = endpoint.connect_with(config, server.address, SERVER_NAME);
        let connection = connecting.unwrap().await.unwrap();
        let decision = server.decision().await.unwrap().unwrap();
        assert_eq!(decision == Purpose::Join, is_join, "{role:?} {offered:?}");
        let accepted = server.connections.recv().await.unwrap();
        let found = [&connection, &accepted].map(wire);
        assert_eq!(found, [expected; 2], "{role:?} {offered:?}");
    }
}
