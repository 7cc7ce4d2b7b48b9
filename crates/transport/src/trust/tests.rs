//! Certificates, one rule at a time; the same over real connections is in `tls/tests.rs`.

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rootswarm_image::SwarmKey;

use super::*;
use crate::identity::{Identity, IdentityError, NodeKey, SwarmCa};

fn new_ca() -> SwarmCa {
    SwarmCa::new(Arc::new(SwarmKey::generate().unwrap()))
}

#[test]
fn the_issuer_name_is_what_rcgen_writes() {
    let ca = new_ca();
    let key = NodeKey::generate().unwrap().public();
    let der = ca.issue_node(&key, 3).unwrap();
    let certificate = EndEntityCert::try_from(&der).unwrap();
    assert_eq!(certificate.issuer(), issuer_name(&ca.public()));
    assert_eq!(claimed_key(&der).unwrap(), ca.public());
}

/// What seeds have issued stays good, and what they issue stays as it is: nodes and seeds of
/// different versions meet. Ed25519 signatures are deterministic (RFC 8032), so that all bytes
/// are.
#[test]
fn golden_certificates() {
    // An Ed25519 key in PKCS#8 version 1 (RFC 8410): the 32 bytes of the private key are 7.
    let pkcs8 = [
        b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20",
        &[7; 32][..],
    ];
    let ca = SwarmCa::new(Arc::new(SwarmKey::from_pkcs8(&pkcs8.concat()).unwrap()));
    let key = NodePublicKey([3; 32]);
    let hex = |der: CertificateDer<'_>| -> String {
        der.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    assert_eq!(hex(ca.issue_node(&key, 7).unwrap()), GOLDEN_NODE);
    assert_eq!(hex(ca.issue_seed(&key, 7).unwrap()), GOLDEN_SEED_7);
    for (golden, role, epoch) in [
        (GOLDEN_NODE, Role::Peer, Some(7)),
        (GOLDEN_SEED_7, Role::Seed, Some(7)),
        // What seeds of earlier releases have.
        (GOLDEN_SEED, Role::Seed, None),
    ] {
        let der: Vec<u8> = (0..golden.len() / 2)
            .map(|at| u8::from_str_radix(&golden[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let found = check(&der.into(), &ca.public(), Usage::Server, Some(role), None).unwrap();
        assert_eq!((found.public_key, found.epoch), (key, epoch));
    }
}

const GOLDEN_NODE: &str = "\
    3082016d3082011fa0030201020214648aa5c579fb30f38af744d97d6ec840c7a91277300506032b6570305f3112\
    3010060355040a0c09726f6f74737761726d3149304706035504030c406561346136633633653239633532306162\
    65663535303762313332656335663939353437373661656265626537623932343231656561363931343436643232\
    633020170d3735303130313030303030305a180f34303936303130313030303030305a3000302a300506032b6570\
    0321000303030303030303030303030303030303030303030303030303030303030303a34a304830270603551d11\
    0101ff041d301b821965372e6e6f64652e726f6f74737761726d2e696e76616c6964301d0603551d250416301406\
    082b0601050507030106082b06010505070302300506032b6570034100092cf8275d7521bd7f334f481ab878587f\
    c48836ad33f2f5d3a585a349ad8588d24fc3f358627b0aa545b45fc17c34fdf90a9676950a41f0d352742794b0d9\
    04";

const GOLDEN_SEED_7: &str = "\
    3082018130820133a0030201020214648aa5c579fb30f38af744d97d6ec840c7a91277300506032b6570305f3112\
    3010060355040a0c09726f6f74737761726d3149304706035504030c406561346136633633653239633532306162\
    65663535303762313332656335663939353437373661656265626537623932343231656561363931343436643232\
    633020170d3735303130313030303030305a180f34303936303130313030303030305a3024312230200603550403\
    0c1965372e736565642e726f6f74737761726d2e696e76616c6964302a300506032b657003210003030303030303\
    03030303030303030303030303030303030303030303030303a33a303830210603551d11041a3018821673656564\
    2e726f6f74737761726d2e696e76616c696430130603551d25040c300a06082b06010505070301300506032b6570\
    0341006f5bd6e4378c9166b368a632913af7d2acce8f023f3d0113c1361d89b7029f03c6d3e08d25f8c69df98f35\
    488f428d2c3fdf6f17556cc26fdadef8916dd8280d";

const GOLDEN_SEED: &str = "\
    3082016030820112a0030201020214648aa5c579fb30f38af744d97d6ec840c7a91277300506032b6570305f3112\
    3010060355040a0c09726f6f74737761726d3149304706035504030c406561346136633633653239633532306162\
    65663535303762313332656335663939353437373661656265626537623932343231656561363931343436643232\
    633020170d3735303130313030303030305a180f34303936303130313030303030305a3000302a300506032b6570\
    0321000303030303030303030303030303030303030303030303030303030303030303a33d303b30240603551d11\
    0101ff041a30188216736565642e726f6f74737761726d2e696e76616c696430130603551d25040c300a06082b06\
    010505070301300506032b65700341000909921db92f2ccb9f8ee1cf09bc180b676b0e9659e43e127aed7cca9ce8\
    07209e2e2b9aef582e2a1e915d72e89b0e37988d8894e1d7beb5b640f767f8212306";

#[test]
fn every_flipped_bit_is_noticed() {
    let ca = new_ca();
    let key = NodeKey::generate().unwrap().public();
    let good = ca.issue_node(&key, 3).unwrap().to_vec();
    let verify = |der: Vec<u8>| {
        let certificate = CertificateDer::from(der);
        check(
            &certificate,
            &ca.public(),
            Usage::Client,
            Some(Role::Peer),
            None,
        )
    };
    assert_eq!(verify(good.clone()).unwrap().public_key, key);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(bad).is_err(), "bit {bit} of {}", good.len() * 8);
    }
    for length in 0..good.len() {
        assert!(
            verify(good[..length].to_vec()).is_err(),
            "the first {length} bytes"
        );
    }
}

#[test]
fn only_our_names_mean_something() {
    let ca = new_ca();
    let key = NodeKey::generate().unwrap().public();
    let cases = [
        ("seed.rootswarm.invalid", Some((Role::Seed, None))),
        ("e0.node.rootswarm.invalid", Some((Role::Peer, Some(0)))),
        (
            "e4294967295.node.rootswarm.invalid",
            Some((Role::Peer, Some(u32::MAX))),
        ),
        ("e4294967296.node.rootswarm.invalid", None),
        ("e07.node.rootswarm.invalid", None),
        ("e-1.node.rootswarm.invalid", None),
        ("e.node.rootswarm.invalid", None),
        ("*.node.rootswarm.invalid", None),
        ("*.rootswarm.invalid", None),
        ("node.rootswarm.invalid", None),
        ("e7.node.rootswarm.invalid.evil", None),
        ("seed.rootswarm.invalid.", None),
        ("evil.seed.rootswarm.invalid", None),
        ("example.org", None),
    ];
    for (name, expected) in cases {
        let usage = vec![ServerAuth, ClientAuth];
        let certificate = ca.issue(&key, name.to_owned(), usage).unwrap();
        let found = check(&certificate, &ca.public(), Usage::Server, None, None);
        match (expected, found) {
            (Some(expected), Ok(found)) => {
                assert_eq!((found.role, found.epoch), expected, "{name}");
            }
            (None, Err(TrustError::UnknownName { found })) => {
                assert!(
                    found.contains(name) || found.is_empty(),
                    "{name}: {found:?}"
                );
            }
            (_, found) => panic!("{name}: {found:?}"),
        }
    }
}

#[test]
fn a_certificate_is_for_its_use_only() {
    let ca = new_ca();
    let key = NodeKey::generate().unwrap().public();
    let name = || node_name(1);
    // (what it is for, good as a server, good as a client)
    let cases = [
        (vec![ServerAuth, ClientAuth], true, true),
        (vec![ServerAuth], true, false),
        (vec![ClientAuth], false, true),
        (vec![], false, false),
    ];
    for (usage, server, client) in cases {
        let certificate = ca.issue(&key, name(), usage.clone()).unwrap();
        for (end, good) in [(Usage::Server, server), (Usage::Client, client)] {
            let found = check(&certificate, &ca.public(), end, None, None);
            assert_eq!(found.is_ok(), good, "{usage:?} as {end:?}: {found:?}");
        }
    }
}

#[test]
fn a_node_takes_only_its_own_certificate() {
    let (ca, other_ca) = (new_ca(), new_ca());
    let (mine, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let own = ca.issue_node(&mine.public(), 9).unwrap().to_vec();
    assert!(Identity::node(&mine, own, &ca.public()).is_ok());

    let of_another = ca.issue_node(&other.public(), 9).unwrap().to_vec();
    assert!(matches!(
        Identity::node(&mine, of_another, &ca.public()),
        Err(IdentityError::NotMine { .. })
    ));
    let of_a_seed = ca.issue_seed(&mine.public(), 1).unwrap().to_vec();
    assert!(matches!(
        Identity::node(&mine, of_a_seed, &ca.public()),
        Err(IdentityError::Trust(TrustError::WrongRole { .. }))
    ));
    let of_another_ca = other_ca.issue_node(&mine.public(), 9).unwrap().to_vec();
    assert!(matches!(
        Identity::node(&mine, of_another_ca, &ca.public()),
        Err(IdentityError::Trust(TrustError::WrongKey { .. }))
    ));
    assert!(matches!(
        Identity::node(&mine, b"no certificate".to_vec(), &ca.public()),
        Err(IdentityError::Trust(TrustError::Malformed(_)))
    ));
}

#[test]
fn a_claimed_key_is_no_signature() {
    // Another CA that writes our key's name as the issuer.
    let (ours, rogue) = (new_ca(), SwarmKey::generate().unwrap());
    let key = NodeKey::generate().unwrap().public();
    let mut der = SwarmCa::new(Arc::new(rogue))
        .issue_node(&key, 1)
        .unwrap()
        .to_vec();
    let theirs = claimed_key(&CertificateDer::from(der.clone())).unwrap();
    let at = der
        .windows(64)
        .position(|window| window == key_hex(&theirs).as_bytes())
        .unwrap();
    der[at..at + 64].copy_from_slice(key_hex(&ours.public()).as_bytes());
    let certificate = CertificateDer::from(der);
    assert_eq!(claimed_key(&certificate).unwrap(), ours.public());
    assert!(matches!(
        check(&certificate, &ours.public(), Usage::Client, None, None),
        Err(TrustError::Invalid { .. })
    ));
}

#[test]
fn the_gate_only_moves_forward() {
    let node = NodeId([1; 32]);
    let gate = Gate::new(5);
    let shared = gate.clone();
    gate.advance(4);
    assert_eq!(shared.epoch(), 5);
    assert!(gate.admit(&node, 9).is_ok());
    assert_eq!(shared.epoch(), 9);
    assert!(shared.admit(&node, 8).is_ok());
    assert!(matches!(
        shared.admit(&node, 7),
        Err(TrustError::OldEpoch {
            found: 7,
            oldest: 8
        })
    ));
    gate.advance(u32::MAX);
    assert!(gate.admit(&node, u32::MAX - 1).is_ok());
    assert!(gate.admit(&node, u32::MAX - 2).is_err());
}

#[test]
fn the_newest_list_of_the_revoked_counts() {
    let (one, two) = (NodeId([1; 32]), NodeId([2; 32]));
    let list = |version, nodes: &[NodeId]| Revocations {
        version,
        epoch: 3,
        nodes: nodes.to_vec(),
    };
    let gate = Gate::new(3);
    gate.apply(&list(2, &[one]));
    for (list, revoked) in [
        (list(1, &[two]), [true, false]),
        (list(2, &[]), [true, false]),
        (list(3, &[one, two]), [true, true]),
        (list(4, &[two]), [false, true]),
        (list(5, &[]), [false, false]),
    ] {
        gate.apply(&list);
        for (node, revoked) in [one, two].iter().zip(revoked) {
            let refused = matches!(gate.admit(node, 3), Err(TrustError::Revoked { .. }));
            assert_eq!(refused, revoked, "{node} after {list:?}");
        }
    }
    assert!(gate.admit(&one, 1).is_err(), "an epoch that is over");
}

/// The epoch of a seed's certificate: its subject, exactly as it is written, or none.
#[test]
fn a_seed_names_its_epoch_in_its_subject() {
    let ca = new_ca();
    let key = NodeKey::generate().unwrap().public();
    let issue = |subject: &str| {
        let mut name = rcgen::DistinguishedName::new();
        name.push(rcgen::DnType::CommonName, subject);
        let certificate = ca.issue_to(&key, name, SEED_NAME.to_owned(), vec![ServerAuth]);
        certificate.unwrap()
    };
    for (subject, expected) in [
        ("e0.seed.rootswarm.invalid", Some(0)),
        ("e7.seed.rootswarm.invalid", Some(7)),
        ("e4294967295.seed.rootswarm.invalid", Some(u32::MAX)),
        ("e4294967296.seed.rootswarm.invalid", None),
        ("e07.seed.rootswarm.invalid", None),
        ("7.seed.rootswarm.invalid", None),
        ("e7.node.rootswarm.invalid", None),
        ("e7.seed.rootswarm.invalid.", None),
        ("", None),
        ("seed", None),
    ] {
        let found = check(&issue(subject), &ca.public(), Usage::Server, None, None);
        let found = found.ok().and_then(|seed| seed.epoch);
        assert_eq!(found, expected, "{subject}");
    }
}

/// What a stolen TLS key of a seed is worth: its certificate ends with its epoch, and one of a release
/// that named none ends with the first `revoke --all`.
#[test]
fn a_seeds_certificate_ends_as_a_nodes_does() {
    let ca = new_ca();
    let key = NodeKey::generate().unwrap().public();
    let early = ca.issue(&key, SEED_NAME.to_owned(), vec![ServerAuth]);
    let early = early.unwrap();
    let of = |epoch| ca.issue_seed(&key, epoch).unwrap();
    for (certificate, gate, accepted) in [
        (of(7), 7, true),
        (of(7), 8, true),
        (of(7), 9, false),
        (of(9), 7, true),
        (of(1), 1, true),
        (of(1), 3, false),
        (early.clone(), 1, true),
        (early.clone(), 2, true),
        (early.clone(), 3, false),
    ] {
        let gate = Gate::of(gate, ca.public());
        let role = Some(Role::Seed);
        let found = check(&certificate, &ca.public(), Usage::Server, role, Some(&gate));
        assert_eq!(found.is_ok(), accepted, "{gate:?}: {found:?}");
    }
    // Who was let in by a seed of that release goes on with it, in any epoch.
    let gate = Gate::of(9, ca.public());
    gate.accept_early_seeds(true);
    let role = Some(Role::Seed);
    let found = check(&early, &ca.public(), Usage::Server, role, Some(&gate));
    assert!(found.is_ok(), "{found:?}");
    // A list: signed or not at all, but for those.
    let list = Revocations {
        version: u64::MAX,
        epoch: u32::MAX,
        nodes: Vec::new(),
    };
    assert!(gate.believes(&list));
    gate.accept_early_seeds(false);
    assert!(!gate.believes(&list));
    // An initrd's own minimum, exactly.
    for (epoch, least, accepted) in [
        (Some(3), 3, true),
        (Some(2), 3, false),
        (None, 1, true),
        (None, 2, false),
        (None, 0, true),
        (Some(9), 3, true),
    ] {
        let seed = PeerIdentity {
            node_id: key.node_id(),
            public_key: key,
            role: Role::Seed,
            epoch,
        };
        let trust = SwarmTrust::new(SeedTrust::FirstUse).since_epoch(least);
        assert_eq!(
            trust.check_epoch(&seed).is_ok(),
            accepted,
            "{epoch:?} {least}"
        );
        assert_eq!(trust.detached().check_epoch(&seed).is_ok(), accepted);
    }
}

/// Whoever tells a member that an epoch has passed (a list, a node's certificate, another seed's), and
/// however many have: a seed's certificate of before is over at once, for all who share the gate.
#[test]
fn a_seeds_certificate_ends_however_the_epoch_is_learnt() {
    let ca = new_ca();
    let [key, other] = [(); 2].map(|()| NodeKey::generate().unwrap().public());
    for (begun, next) in [(1, 3), (4, 6), (7, u32::MAX)] {
        for teller in ["a list", "a node", "a seed"] {
            let gate = Gate::of(begun, ca.public());
            let shared = gate.clone();
            let of_seed = ca.issue_seed(&key, begun).unwrap();
            let seen = |certificate: &CertificateDer<'_>, usage, role, gate: &Gate| {
                check(certificate, &ca.public(), usage, Some(role), Some(gate)).is_ok()
            };
            assert!(seen(&of_seed, Usage::Server, Role::Seed, &shared));
            match teller {
                "a list" => gate.apply(&Revocations {
                    version: 1,
                    epoch: next,
                    nodes: Vec::new(),
                }),
                "a node" => {
                    let newer = ca.issue_node(&other, next).unwrap();
                    assert!(seen(&newer, Usage::Client, Role::Peer, &gate));
                }
                _ => {
                    let newer = ca.issue_seed(&other, next).unwrap();
                    assert!(seen(&newer, Usage::Server, Role::Seed, &gate));
                }
            }
            let accepted = seen(&of_seed, Usage::Server, Role::Seed, &shared);
            assert!(!accepted, "{begun} to {next} by {teller}");
        }
    }
}
