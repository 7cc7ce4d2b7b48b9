//! Who is let in, here and at a mirror.

use super::*;
use crate::state::StateDir;

const NODE: NodeId = NodeId([7; 32]);

fn admission(mode: AdmissionMode, allow: &[&str]) -> (tempfile::TempDir, Tokens, Admission) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(StateDir::open(dir.path()).unwrap());
    let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
    let mode = Some(mode);
    let admission = Admission::new(Configured { mode, allow }, tokens.clone());
    (dir, tokens, admission)
}

/// A mirror: what its admin configured, and what its first seed told.
fn mirror(
    dir: &std::path::Path,
    mode: Option<AdmissionMode>,
    allow: &[&str],
    told: &str,
) -> Admission {
    let state = StateDir::open(dir).unwrap();
    let remembered = Remembered::load(state.clone()).unwrap();
    if !told.is_empty() {
        let text = format!("rootswarm-policy 1\n{}\n", told.replace(" / ", "\n"));
        remembered.adopt(text.as_bytes()).unwrap();
    }
    let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
    Admission::new(Configured { mode, allow }, Tokens::of_mirror(state))
        .with(remembered)
        .of_mirror(Reach::default())
}

#[test]
fn a_mirror_is_never_looser_than_its_first_seed() {
    use AdmissionMode::{Open, Token};
    const LISTED: &str = "allow listed / network 10.1.0.0/16 / network fd00::/64";
    for (mode, allow, told, effective, inside, outside, refused) in [
        // Nothing configured: the first seed's rules.
        (None, "", "token", Token, "10.1.2.3", "10.2.0.1", ""),
        (None, "", "open", Open, "fd00::7", "fd01::7", ""),
        // Stricter in one thing or the other.
        (Some(Token), "", "open", Token, "10.1.2.3", "10.2.0.1", ""),
        (
            None,
            "10.1.7.0/24",
            "open",
            Open,
            "10.1.7.1",
            "10.1.8.1 fd00::7",
            "",
        ),
        // Looser: the stricter holds, and it is said.
        (
            Some(Open),
            "",
            "token",
            Token,
            "10.1.2.3",
            "10.2.0.1",
            "admission is open here, and token there",
        ),
        (
            None,
            "10.0.0.0/8",
            "open",
            Open,
            "10.1.2.3",
            "10.2.0.1 fd00::7",
            "network 10.0.0.0/8 is allowed here, and there only 10.1.0.0/16 fd00::/64",
        ),
        (
            None,
            "fd00::/64 ::/0",
            "token",
            Token,
            "fd00::7",
            "fd01::7 10.1.2.3",
            "network ::/0 is allowed here, and there only 10.1.0.0/16 fd00::/64",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let allow: Vec<&str> = allow.split_whitespace().collect();
        let told = format!("admission {told} / {LISTED}");
        let mirror = mirror(dir.path(), mode, &allow, &told);
        let case = format!("{mode:?} {allow:?} {told}");
        assert_eq!(mirror.mode(), Some(effective), "{case}");
        for (addresses, is_in) in [(inside, true), (outside, false)] {
            for address in addresses.split_whitespace() {
                let found = mirror.check_address(address.parse().unwrap()).is_ok();
                assert_eq!(found, is_in, "{case}: {address}");
                // A mirror of this mirror is told the same.
                let Some(Allow::Listed(next)) = mirror.to_mirror().map(|it| it.allow) else {
                    panic!("{case}: no list");
                };
                let address = address.parse().unwrap();
                assert_eq!(next.iter().any(|it| it.contains(address)), is_in, "{case}");
            }
        }
        let said = mirror.check_not_looser().err().map(|it| it.to_string());
        assert_eq!(said.unwrap_or_default(), refused, "{case}");
        let needs_token = mirror.consume_token(None, NODE).is_err();
        assert_eq!(needs_token, effective == Token, "{case}");
    }
}

#[test]
fn the_networks_of_a_first_seeds_interfaces_count_at_its_mirror_beside_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let told = "admission open / allow interfaces / network 203.0.113.0/24";
    let mirror = mirror(dir.path(), None, &[], told);
    for entry in network::interface_addresses().unwrap() {
        assert_eq!(mirror.check_address(entry.address), Ok(()));
    }
    assert!(mirror.check_address("203.0.113.9".parse().unwrap()).is_ok());
    assert!(
        mirror
            .check_address("198.51.100.1".parse().unwrap())
            .is_err()
    );
    assert_eq!(mirror.check_not_looser(), Ok(()));
}

#[test]
fn a_mirror_that_knows_nothing_admits_nobody_and_one_that_took_over_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let empty = mirror(dir.path(), Some(AdmissionMode::Open), &[], "");
    assert_eq!(empty.mode(), None);
    assert_eq!(empty.to_mirror(), None);
    for refused in [
        empty.check_token(None, NODE),
        empty.consume_token(None, NODE),
        empty.hold_http_token(None, NODE),
    ] {
        assert_eq!(refused, Err(NotAdmitted::NotYet));
    }
    let told = "admission token / allow listed / network 10.1.0.0/16";
    let state = mirror(dir.path(), None, &[], told).remembered.unwrap();
    // It serves without --mirror now.
    let tokens = Tokens::new(StateDir::open(dir.path()).unwrap());
    let taken_over = |configured| Admission::new(configured, tokens.clone()).with(state.clone());
    let as_it_was = taken_over(Configured::default());
    assert_eq!(as_it_was.mode(), Some(AdmissionMode::Token));
    assert!(as_it_was.check_address("10.1.2.3".parse().unwrap()).is_ok());
    assert!(
        as_it_was
            .check_address("10.2.2.3".parse().unwrap())
            .is_err()
    );
    // Its admin decides now.
    let open = taken_over(Configured {
        mode: Some(AdmissionMode::Open),
        allow: vec!["10.2.0.0/16".parse().unwrap()],
    });
    assert_eq!(open.mode(), Some(AdmissionMode::Open));
    assert!(open.check_address("10.2.2.3".parse().unwrap()).is_ok());
    assert!(open.check_address("10.1.2.3".parse().unwrap()).is_err());
}

#[test]
fn the_list_decides_and_loopback_is_always_in() {
    let (_dir, _, admission) = admission(AdmissionMode::Open, &["10.1.0.0/16", "fd00::/64"]);
    for (address, inside) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("10.2.0.1", false),
        ("fd00::7", true),
        ("fd01::7", false),
        ("127.0.0.1", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
    ] {
        assert_eq!(
            admission.check_address(address.parse().unwrap()).is_ok(),
            inside,
            "{address}"
        );
    }
    assert_eq!(admission.check_token(None, NODE), Ok(()));
}

#[test]
fn without_a_list_the_interfaces_networks_are_it() {
    let (_dir, _, admission) = admission(AdmissionMode::Open, &[]);
    for entry in network::interface_addresses().unwrap() {
        assert_eq!(admission.check_address(entry.address), Ok(()));
    }
    // Set aside for documentation: no interface is on it.
    assert!(
        admission
            .check_address("203.0.113.9".parse().unwrap())
            .is_err()
    );
}

#[test]
fn token_mode_needs_a_token_and_uses_it_up_once() {
    let (_dir, tokens, admission) = admission(AdmissionMode::Token, &[]);
    assert_eq!(
        admission.consume_token(None, NODE),
        Err(NotAdmitted::Token(TokenRefusal::Missing))
    );
    let once = tokens.create(Use::OneTime, None, "", now_unix_s()).unwrap();
    let always = tokens
        .create(Use::Reusable, None, "", now_unix_s())
        .unwrap();
    assert_eq!(admission.check_token(Some(&once), NODE), Ok(()));
    // Its answer may have been lost: the same node may ask again, and nobody else.
    for _ in 0..2 {
        assert_eq!(admission.consume_token(Some(&once), NODE), Ok(()));
    }
    assert_eq!(
        admission.consume_token(Some(&once), NodeId([8; 32])),
        Err(NotAdmitted::Token(TokenRefusal::Invalid))
    );
    for _ in 0..2 {
        assert_eq!(admission.consume_token(Some(&always), NODE), Ok(()));
        assert_eq!(admission.hold_http_token(Some(&always), NODE), Ok(()));
    }
}

#[test]
fn a_damaged_token_file_admits_nobody() {
    let (dir, tokens, admission) = admission(AdmissionMode::Token, &[]);
    let token = tokens
        .create(Use::Reusable, None, "", now_unix_s())
        .unwrap();
    std::fs::write(dir.path().join("tokens"), "garbage\n").unwrap();
    assert_eq!(
        admission.consume_token(Some(&token), NODE),
        Err(NotAdmitted::CannotCheck)
    );
}
