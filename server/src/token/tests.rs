//! Who a token admits, how often, and what is kept of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::text::HEADER;
use super::*;
use crate::node_name::node_hex;

fn tokens() -> (tempfile::TempDir, Tokens) {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::new(StateDir::open(dir.path()).unwrap());
    (dir, tokens)
}

/// As an admin who edits the file leaves it.
fn write(state: &std::path::Path, text: &str) {
    let path = state.join("tokens");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

const NOW: u64 = 1_000_000;
const NODE: NodeId = NodeId([7; 32]);
const OTHER: NodeId = NodeId([8; 32]);
const TEN_MINUTES: Option<Duration> = Some(Duration::from_secs(600));

#[test]
fn a_one_time_token_admits_one_node_once_and_again_for_a_minute() {
    let (_dir, tokens) = tokens();
    let token = tokens
        .create(Use::OneTime, TEN_MINUTES, "rack 7", NOW)
        .unwrap();
    let check = |node, at| tokens.check(Some(&token), Some(node), at).unwrap();
    let consume = |node, at| tokens.consume(Some(&token), node, at).unwrap();
    let refused = TokenRefusal::Invalid;
    assert_eq!(
        check(NODE, NOW),
        Ok(Use::OneTime),
        "checking uses nothing up"
    );
    assert_eq!(check(OTHER, NOW), Ok(Use::OneTime));
    assert_eq!(consume(NODE, NOW + 1), Ok(()));
    assert_eq!(tokens.list(NOW + 1).unwrap(), [], "it admits nobody else");
    // The answer was lost: the node asks again. Whoever saw the token has another key.
    for at in [NOW + 2, NOW + 60] {
        assert_eq!(consume(NODE, at), Ok(()), "{at}");
        assert_eq!(check(NODE, at), Ok(Use::OneTime), "{at}");
        assert_eq!(consume(OTHER, at), Err(refused), "{at}");
        assert_eq!(check(OTHER, at), Err(refused), "{at}");
        assert_eq!(
            tokens.check(Some(&token), None, at).unwrap(),
            Err(refused),
            "over HTTP"
        );
    }
    // Asking again does not make it last longer.
    assert_eq!(consume(NODE, NOW + 61), Err(refused));
    assert_eq!(check(NODE, NOW + 61), Err(refused));
}

#[test]
fn asking_again_does_not_outlive_the_token() {
    let (_dir, tokens) = tokens();
    let token = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
    assert!(
        tokens
            .consume(Some(&token), NODE, NOW + 590)
            .unwrap()
            .is_ok()
    );
    assert!(
        tokens
            .consume(Some(&token), NODE, NOW + 599)
            .unwrap()
            .is_ok()
    );
    assert!(
        tokens
            .consume(Some(&token), NODE, NOW + 600)
            .unwrap()
            .is_err()
    );
}

#[test]
fn a_file_of_the_first_version_is_read() {
    let (dir, tokens) = tokens();
    let token = "00000001-abc";
    let hash = blake3::hash(token.as_bytes());
    let text = format!("rootswarm-tokens 1\n00000001 {hash} one-time 1 2000000 a note\n");
    write(dir.path(), &text);
    assert!(tokens.consume(Some(token), NODE, NOW).unwrap().is_ok());
    let text = fs::read_to_string(dir.path().join("tokens")).unwrap();
    let used = format!("used:{}:{NOW}", "07".repeat(32));
    let expected = format!("rootswarm-tokens 2\n00000001 {hash} {used} 1 2000000 a note\n");
    assert_eq!(text, expected);
    assert!(tokens.consume(Some(token), NODE, NOW + 1).unwrap().is_ok());
    assert!(
        tokens
            .consume(Some(token), OTHER, NOW + 1)
            .unwrap()
            .is_err()
    );
}

#[test]
fn a_reusable_token_admits_until_revoked() {
    let (_dir, tokens) = tokens();
    let token = tokens.create(Use::Reusable, None, "", NOW).unwrap();
    for later in [0, 1, 10_000_000_000] {
        assert_eq!(
            tokens.consume(Some(&token), NODE, NOW + later).unwrap(),
            Ok(())
        );
    }
    let id = tokens.list(NOW).unwrap()[0].id.clone();
    tokens.revoke(&id, NOW).unwrap();
    assert_eq!(
        tokens.consume(Some(&token), NODE, NOW).unwrap(),
        Err(TokenRefusal::Invalid)
    );
    assert!(matches!(
        tokens.revoke(&id, NOW),
        Err(TokenError::Unknown(_))
    ));
}

#[test]
fn expired_wrong_and_missing_tokens_are_refused() {
    let (_dir, tokens) = tokens();
    let token = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
    assert_eq!(
        tokens.consume(Some(&token), NODE, NOW + 600).unwrap(),
        Err(TokenRefusal::Invalid)
    );
    let mut wrong = token.clone();
    wrong.pop();
    for text in ["", "x", &wrong, &token.to_uppercase(), &format!("{token} ")] {
        assert_eq!(
            tokens.consume(Some(text), NODE, NOW).unwrap(),
            Err(TokenRefusal::Invalid),
            "{text:?}"
        );
    }
    assert_eq!(
        tokens.consume(None, NODE, NOW).unwrap(),
        Err(TokenRefusal::Missing)
    );
}

#[test]
fn of_many_who_show_the_same_token_at_once_one_is_admitted() {
    let (_dir, tokens) = tokens();
    let token = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
    let admitted = std::thread::scope(|scope| {
        let bearers: Vec<_> = (0..8)
            .map(|number| {
                let (tokens, token) = (&tokens, &token);
                let node = NodeId([number; 32]);
                scope.spawn(move || tokens.consume(Some(token), node, NOW).unwrap().is_ok())
            })
            .collect();
        bearers
            .into_iter()
            .map(|bearer| bearer.join().unwrap())
            .filter(|ok| *ok)
            .count()
    });
    assert_eq!(admitted, 1);
}

#[test]
fn the_file_holds_no_secret_and_is_private() {
    let (dir, tokens) = tokens();
    let token = tokens
        .create(Use::Reusable, TEN_MINUTES, "a note of words", NOW)
        .unwrap();
    let path = dir.path().join("tokens");
    let text = fs::read_to_string(&path).unwrap();
    let secret = token.split('-').nth(1).unwrap();
    assert!(!text.contains(secret));
    assert_eq!(
        text,
        format!(
            "rootswarm-tokens 2\n{} {} reusable 1000000 1000600 a note of words\n",
            &token[..8],
            blake3::hash(token.as_bytes())
        )
    );
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(tokens.list(NOW).unwrap()[0].note, "a note of words");
}

#[test]
fn damaged_files_are_refused_with_the_line() {
    let (dir, tokens) = tokens();
    let hash = blake3::hash(b"x");
    for (text, line) in [
        ("".to_owned(), 1),
        ("rootswarm-tokens 3\n".to_owned(), 1),
        (format!("{HEADER}\n0 {hash} one-time 1 2 \n\n"), 3),
        (format!("{HEADER}\n0 {hash} sometimes 1 2 \n"), 2),
        (format!("{HEADER}\n0 {hash} used:12:3 1 2 \n"), 2),
        (format!("{HEADER}\n0 abc one-time 1 2 \n"), 2),
        (format!("{HEADER}\n0 {hash} one-time x 2 \n"), 2),
        (format!("{HEADER}\n0 {hash} one-time 1 soon \n"), 2),
    ] {
        write(dir.path(), &text);
        match tokens.list(NOW) {
            Err(TokenError::Damaged { line: found, .. }) => assert_eq!(found, line, "{text:?}"),
            other => panic!("{text:?}: {other:?}"),
        }
    }
}

#[test]
fn a_note_stays_on_its_line() {
    let (_dir, tokens) = tokens();
    assert!(matches!(
        tokens.create(Use::OneTime, None, "a\nb", NOW),
        Err(TokenError::Note)
    ));
    for (length, is_taken) in [
        (0, true),
        (199, true),
        (200, true),
        (201, false),
        (1 << 20, false),
    ] {
        let note = format!(" {} ", "n".repeat(length));
        let made = tokens.create(Use::OneTime, None, &note, NOW);
        match (made, is_taken) {
            (Ok(_), true) => {}
            (Err(TokenError::LongNote { found }), false) => assert_eq!(found, length),
            (made, _) => panic!("{length}: {made:?}"),
        }
    }
}

/// As many as there may be, in one file that is read again.
#[test]
fn many_are_made_at_once_or_none() {
    let (dir, tokens) = tokens();
    let note = "n".repeat(NOTE_BYTES_MAX);
    let notes = vec![note.as_str(); MAX_TOKENS];
    let made = tokens
        .create_all(Use::OneTime, None, &notes[1..], NOW)
        .unwrap();
    assert_eq!(made.len(), MAX_TOKENS - 1);
    let file = std::fs::read(dir.path().join("tokens")).unwrap();
    assert!(file.len() < 4 << 20, "{}", file.len());
    match tokens.create_all(Use::OneTime, None, &notes[..2], NOW) {
        Err(TokenError::TooMany { found, asked: 2 }) => assert_eq!(found, MAX_TOKENS - 1),
        made => panic!("{made:?}"),
    }
    assert_eq!(std::fs::read(dir.path().join("tokens")).unwrap(), file);
    tokens
        .create_all(Use::OneTime, None, &notes[..1], NOW)
        .unwrap();
    for token in [&made[0], &made[MAX_TOKENS - 2]] {
        let found = tokens.check(Some(token), None, NOW).unwrap();
        assert_eq!(found, Ok(Use::OneTime));
    }
    assert_eq!(
        tokens.create_all(Use::OneTime, None, &[], NOW).unwrap(),
        Vec::<String>::new()
    );
}

/// A machine is let in by a mirror after its report and before the answer to that: the token stays used,
/// is reported the next time, and admits nobody else at either seed.
#[test]
fn a_token_that_was_used_between_report_and_answer_stays_used() {
    let (_dir, primary) = tokens();
    let place = tempfile::tempdir().unwrap();
    let mirror = Tokens::of_mirror(StateDir::open(place.path()).unwrap());
    let create = |usage| primary.create(usage, TEN_MINUTES, "", NOW).unwrap();
    let (early, late, kept) = (
        create(Use::OneTime),
        create(Use::OneTime),
        create(Use::OneTime),
    );
    let always = create(Use::Reusable);
    let exchange = |between: &dyn Fn(), now| {
        let report = mirror.report_used().unwrap();
        let answer = primary.to_mirror(&report, now).unwrap();
        between();
        mirror.adopt(&answer, now).unwrap();
        report
    };
    exchange(&|| {}, NOW);
    let admits = |tokens: &Tokens, token: &str, node, now| {
        tokens.consume(Some(token), node, now).unwrap().is_ok()
    };
    // The first seed is away, and a node is let in by the mirror; then it is back.
    assert!(admits(&mirror, &early, NODE, NOW + 1));
    exchange(
        &|| {
            for token in [&late, &always] {
                assert!(admits(&mirror, token, NODE, NOW + 2));
            }
        },
        NOW + 2,
    );
    for token in [&early, &late] {
        assert!(!admits(&mirror, token, OTHER, NOW + 3), "{token}");
        assert!(admits(&mirror, token, NODE, NOW + 3), "{token}");
    }
    assert!(admits(&mirror, &always, OTHER, NOW + 3));
    assert!(!admits(&primary, &early, OTHER, NOW + 3));
    let report = exchange(&|| {}, NOW + 3);
    assert_eq!(str::from_utf8(&report).unwrap().lines().count(), 2);
    assert!(!admits(&primary, &late, OTHER, NOW + 4));
    // One that was never used, and one that the primary has taken out meanwhile.
    assert!(admits(&primary, &kept, OTHER, NOW + 4));
    exchange(&|| primary.revoke(&early, NOW + 5).unwrap(), NOW + 5);
    exchange(&|| {}, NOW + 5);
    assert!(!admits(&mirror, &early, NODE, NOW + 6));
}

/// A download by HTTP is many requests, and may take longer than its token lasts.
#[test]
fn a_one_time_token_goes_on_to_admit_a_download_that_goes_on() {
    let (_dir, tokens) = tokens();
    let token = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
    let hold = |node, begins, at| tokens.hold(Some(&token), node, begins, at).unwrap();
    let refused = Err(TokenRefusal::Invalid);
    // At a mirror whose first seed is there it is not begun.
    assert_eq!(hold(NODE, false, NOW), Ok(Held::Elsewhere));
    for at in (0..1200).step_by(40) {
        assert_eq!(hold(NODE, at == 0, NOW + at), Ok(Held::Yes), "{at}");
        assert_eq!(hold(OTHER, true, NOW + at), refused, "{at}");
        let joins = tokens.consume(Some(&token), OTHER, NOW + at).unwrap();
        assert_eq!(joins, Err(TokenRefusal::Invalid), "{at}");
    }
    // It has ended.
    assert_eq!(hold(NODE, true, NOW + 1160 + 60), refused);
    // Others: reusable, expired before it was used, none at all.
    let always = tokens.create(Use::Reusable, None, "", NOW).unwrap();
    for node in [NODE, OTHER] {
        let held = tokens.hold(Some(&always), node, false, NOW + 9).unwrap();
        assert_eq!(held, Ok(Held::Yes));
    }
    let late = tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
    let held = tokens.hold(Some(&late), NODE, true, NOW + 600).unwrap();
    assert_eq!(held, refused);
    let held = tokens.hold(None, NODE, true, NOW).unwrap();
    assert_eq!(held, Err(TokenRefusal::Missing));
}

/// Any number of tokens at any number of mirrors, whichever of them reports first: each is used at one
/// mirror, before its report or between that and the answer, and admits nobody else anywhere.
#[test]
fn each_of_many_tokens_admits_one_node_at_all_seeds() {
    for (tokens_made, mirrors_there, reports_first) in [(1, 2, 1), (7, 2, 0), (40, 3, 2)] {
        let case = format!("{tokens_made} at {mirrors_there}, {reports_first} first");
        let (_dir, primary) = tokens();
        let made: Vec<String> = (0..tokens_made)
            .map(|_| primary.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap())
            .collect();
        let places: Vec<_> = (0..mirrors_there)
            .map(|_| tempfile::tempdir().unwrap())
            .collect();
        let mirrors: Vec<Tokens> = places
            .iter()
            .map(|place| Tokens::of_mirror(StateDir::open(place.path()).unwrap()))
            .collect();
        let bearer = |number: usize| NodeId([number as u8 + 10; 32]);
        let admits = |tokens: &Tokens, number: usize, node, at| {
            tokens
                .consume(Some(&made[number]), node, at)
                .unwrap()
                .is_ok()
        };
        // Those at a mirror of which every second one is used before its report.
        let uses = |mirror: usize, early: bool, at| {
            for number in (mirror..tokens_made).step_by(mirrors_there) {
                if (number / mirrors_there).is_multiple_of(2) == early {
                    assert!(
                        admits(&mirrors[mirror], number, bearer(number), at),
                        "{case}"
                    );
                }
            }
        };
        for round in 0..4 {
            for turn in 0..mirrors_there {
                let mirror = (reports_first + turn) % mirrors_there;
                let now = NOW + round;
                if round == 1 {
                    uses(mirror, true, now);
                }
                let report = mirrors[mirror].report_used().unwrap();
                let answer = primary.to_mirror(&report, now).unwrap();
                if round == 1 {
                    uses(mirror, false, now);
                }
                mirrors[mirror].adopt(&answer, now).unwrap();
            }
        }
        for number in 0..tokens_made {
            for tokens in mirrors.iter().chain([&primary]) {
                assert!(!admits(tokens, number, OTHER, NOW + 5), "{case}: {number}");
                assert!(
                    admits(tokens, number, bearer(number), NOW + 5),
                    "{case}: {number}"
                );
            }
        }
    }
}

/// What the operator takes back ends, however far beyond its time a download goes on with it at a mirror.
#[test]
fn what_is_taken_back_ends_at_a_mirror_too() {
    for (case, lifetime) in [("a number", 30), ("everything", 30), ("a number", 600)] {
        let (_dir, primary) = tokens();
        let place = tempfile::tempdir().unwrap();
        let mirror = Tokens::of_mirror(StateDir::open(place.path()).unwrap());
        let lifetime = Some(Duration::from_secs(lifetime));
        let token = primary.create(Use::OneTime, lifetime, "", NOW).unwrap();
        let other = primary.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
        let exchange = |at| {
            let report = mirror.report_used().unwrap();
            let answer = primary.to_mirror(&report, at).unwrap();
            mirror.adopt(&answer, at).unwrap();
        };
        exchange(NOW);
        let hold = |tokens: &Tokens, at| tokens.hold(Some(&token), NODE, true, at).unwrap();
        for at in (0..=200).step_by(20) {
            assert_eq!(hold(&mirror, NOW + at), Ok(Held::Yes), "{case}: {at}");
            exchange(NOW + at);
        }
        let used = |tokens: &Tokens| {
            let good = tokens.good(NOW + 200).unwrap();
            good.iter().filter(|record| record.used.is_some()).count()
        };
        assert_eq!((used(&primary), used(&mirror)), (1, 1), "{case}");
        match case {
            "a number" => primary.revoke(&token, NOW + 201).unwrap(),
            _ => primary.end_used(NOW + 201, NOW + 201).unwrap(),
        }
        // Also where it is heard of later, or asked for once more in between.
        assert_eq!(hold(&mirror, NOW + 220), Ok(Held::Yes), "{case}");
        exchange(NOW + 221);
        for at in [221, 240, 300, 3_000, 40_000] {
            for tokens in [&primary, &mirror] {
                assert_eq!(
                    hold(tokens, NOW + at),
                    Err(TokenRefusal::Invalid),
                    "{case}: {at}"
                );
            }
            exchange(NOW + at);
        }
        assert_eq!((used(&primary), used(&mirror)), (0, 0), "{case}");
        assert!(matches!(
            primary.revoke(&token, NOW + 300),
            Err(TokenError::Unknown(_))
        ));
        // What nobody has used is as good as before.
        let admitted = primary.consume(Some(&other), OTHER, NOW + 300).unwrap();
        assert_eq!(admitted, Ok(()), "{case}");
    }
}

/// As many tokens as there may be are made anew for the same machines: what was taken back is in nobody's way.
#[test]
fn what_was_taken_back_leaves_room() {
    let (dir, tokens) = tokens();
    let hash = blake3::hash(b"x");
    let used = format!("used:{}:{NOW}", "07".repeat(32));
    let line = |number| format!("{number:08x} {hash} {used} {NOW} 2000000 \n");
    let text: String = (0..MAX_TOKENS).map(line).collect();
    write(dir.path(), &format!("{HEADER}\n{text}"));
    assert!(matches!(
        tokens.create(Use::OneTime, None, "", NOW),
        Err(TokenError::TooMany { .. })
    ));
    tokens.end_used(NOW, NOW).unwrap();
    tokens.create(Use::OneTime, None, "", NOW).unwrap();
}

/// A download begins at a mirror while the first seed is away, and goes on beyond the token's time; the first seed,
/// which never heard of it, has forgotten the token, or lost its file. Once both talk it is listed there, and
/// whoever takes it back by its number, or takes everything back, ends it at the mirror.
#[test]
fn what_was_forgotten_can_be_taken_back_while_it_is_used() {
    let forgotten = |tokens: &Tokens, _: &Path| {
        let lifetime = Some(Duration::from_secs(5));
        tokens
            .create(Use::OneTime, lifetime, "", NOW + 650)
            .unwrap();
    };
    let lost = |_: &Tokens, root: &Path| std::fs::remove_file(root.join("tokens")).unwrap();
    for (case, lifetime, forget) in [
        ("forgotten", 30, &forgotten as &dyn Fn(&Tokens, &Path)),
        ("forgotten", 600, &forgotten),
        ("lost", 600, &lost),
    ] {
        for by_number in [true, false] {
            let (dir, primary) = tokens();
            let place = tempfile::tempdir().unwrap();
            let mirror = Tokens::of_mirror(StateDir::open(place.path()).unwrap());
            let exchange = |at| {
                let report = mirror.report_used().unwrap();
                let answer = primary.to_mirror(&report, at).unwrap();
                mirror.adopt(&answer, at).unwrap();
            };
            let lasts = Some(Duration::from_secs(lifetime));
            let token = primary.create(Use::OneTime, lasts, "rack 3", NOW).unwrap();
            exchange(NOW);
            let hold = |at| mirror.hold(Some(&token), NODE, true, at).unwrap();
            for at in (0..=700).step_by(20) {
                assert_eq!(hold(NOW + at), Ok(Held::Yes), "{case} {lifetime}: {at}");
            }
            forget(&primary, dir.path());
            assert!(
                primary.good(NOW + 701).unwrap().is_empty(),
                "{case} {lifetime}"
            );
            exchange(NOW + 701);
            let good = primary.good(NOW + 702).unwrap();
            assert_eq!(good.len(), 1, "{case} {lifetime}");
            assert_eq!((&*good[0].note, good[0].used.unwrap().by), ("rack 3", NODE));
            // And it admits nobody else there.
            let other = primary.consume(Some(&token), OTHER, NOW + 702).unwrap();
            assert_eq!(other, Err(TokenRefusal::Invalid));
            match by_number {
                true => primary.revoke(&good[0].id, NOW + 702).unwrap(),
                false => primary.end_used(NOW + 702, NOW + 702).unwrap(),
            }
            exchange(NOW + 703);
            assert_eq!(
                hold(NOW + 704),
                Err(TokenRefusal::Invalid),
                "{case} {lifetime}"
            );
            // What is over is not reported as going on.
            exchange(NOW + 705);
            assert!(
                primary.good(NOW + 706).unwrap().is_empty(),
                "{case} {lifetime}"
            );
        }
    }
}

/// Some tokens, each shown by some nodes at the same time: one of these is admitted, and it is the one that the
/// file names.
#[test]
fn many_are_written_down_at_once_and_none_is_forgotten() {
    for (count, bearers) in [(1, 9), (7, 1), (40, 3), (13, 2)] {
        let (dir, tokens) = tokens();
        let make = |_| tokens.create(Use::OneTime, TEN_MINUTES, "", NOW).unwrap();
        let made: Vec<_> = (0..count).map(make).collect();
        let text = || fs::read_to_string(dir.path().join("tokens")).unwrap();
        let show = |number: usize| {
            let node = NodeId([u8::try_from(number + 1).unwrap(); 32]);
            let token = &made[number / bearers];
            let is_admitted = tokens.consume(Some(token), node, NOW).unwrap().is_ok();
            // What it was told is on the disk already.
            assert!(!is_admitted || text().contains(&node_hex(&node)));
            is_admitted.then_some((number / bearers, node))
        };
        let all: Vec<_> = (0..count * bearers).collect();
        // The server asks with some threads at a time.
        let at_once = |group: &[usize]| -> Vec<(usize, NodeId)> {
            std::thread::scope(|scope| {
                let one = |number: &usize| {
                    let (number, show) = (*number, &show);
                    scope.spawn(move || show(number))
                };
                let threads: Vec<_> = group.iter().map(one).collect();
                let answers = threads.into_iter().filter_map(|it| it.join().unwrap());
                answers.collect()
            })
        };
        let admitted: Vec<_> = all.chunks(16).flat_map(at_once).collect();
        let mut tokens_taken: Vec<_> = admitted.iter().map(|(token, _)| *token).collect();
        tokens_taken.sort_unstable();
        assert_eq!(tokens_taken, (0..count).collect::<Vec<_>>());
        for (token, node) in admitted {
            let id = made[token].split('-').next().unwrap();
            let text = text();
            let line = text.lines().find(|line| line.starts_with(id)).unwrap();
            assert!(line.contains(&node_hex(&node)), "{line}");
        }
    }
}

/// Whatever another process does to the file counts at once, also when it was read a moment ago.
#[test]
fn what_was_read_last_is_not_believed_for_longer_than_it_is_there() {
    let (dir, tokens) = tokens();
    let path = dir.path().join("tokens");
    let elsewhere = Tokens::new(StateDir::open(dir.path()).unwrap());
    let token = elsewhere.create(Use::Reusable, None, "", NOW).unwrap();
    let admits = || tokens.check(Some(&token), None, NOW).map(|it| it.is_ok());
    let good = fs::read_to_string(&path).unwrap();
    let id = token.split('-').next().unwrap();
    for round in 0..3 {
        assert!(admits().unwrap(), "{round}");
        // Another process takes it back.
        elsewhere.revoke(id, NOW).unwrap();
        assert!(!admits().unwrap(), "{round}");
        write(dir.path(), &good);
        assert!(admits().unwrap(), "{round}");
        // Somebody writes into it, as many bytes.
        let hash = blake3::hash(token.as_bytes()).to_string();
        let bad = good.replace(&hash, &hash.chars().rev().collect::<String>());
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, bad).unwrap();
        assert!(!admits().unwrap(), "{round}");
        fs::write(&path, "rootswarm-tokens 9\n").unwrap();
        assert!(
            matches!(admits(), Err(TokenError::Damaged { .. })),
            "{round}"
        );
        fs::remove_file(&path).unwrap();
        assert!(!admits().unwrap(), "{round}");
        write(dir.path(), &good);
        assert!(admits().unwrap(), "{round}");
        // What others may have written to is not used, whether it was read before or not.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(admits().is_err(), "{round}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}
