//! What an operator makes of a name by hand holds until something else is said: in the configuration, in the
//! file that it names, or by hand.

mod common;

use common::{Place, id_of, run_ok, serve, squashfs};

/// A server that is told what it was told before leaves alone what was made of the name since, whichever
/// command that was; one that is told something else does that.
#[test]
fn a_restart_does_not_undo_what_was_published_by_hand() {
    let place = Place::new();
    let state = place.state();
    // As long as each other, and one that is not.
    let a = place.file("a.squashfs", &squashfs(100_000, 11));
    let b = place.file("b.squashfs", &squashfs(100_000, 21));
    let c = place.file("c.squashfs", &squashfs(170_000, 31));
    let (id_b, server) = serve(&place, &b);
    assert_eq!(server.stop(), Some(0));
    run_ok(&state, &["publish", "-q", "other", &a]);
    // Twice the same is as once; what makes room for what was configured is another matter.
    for (commands, restarts) in [
        (&[&["publish", "-q", "web", &c][..]][..], 2),
        (&[&["tag", "web", "other"]], 1),
        (&[&["remove", "web"], &["publish", "-q", "web", &c]], 1),
        (
            &[
                &["publish", "-q", "--keep", "1", "web", &a],
                &["publish", "-q", "--keep", "1", "web", &c],
            ],
            1,
        ),
    ] {
        let mut made = String::new();
        for command in commands {
            made = run_ok(&state, command);
        }
        let made = id_of(&made);
        for _ in 0..restarts {
            let (id, server) = serve(&place, &b);
            assert_eq!(id, made, "{commands:?} was undone");
            let said = server.said_first.concat();
            assert!(
                said.contains(&id_b) && said.contains(&format!("rootswarm publish web {b}")),
                "{commands:?}: {said}"
            );
            assert_eq!(server.stop(), Some(0));
        }
    }
    // Told something else, and then the first again: that is what the name means.
    for file in [&a, &b] {
        let (id, server) = serve(&place, file);
        let expected = blake3::hash(&std::fs::read(file).unwrap()).to_string();
        assert_eq!(id, expected, "{file}");
        assert_eq!(server.stop(), Some(0));
    }
    // So is what is in the file now, and what is published by hand again.
    run_ok(&state, &["publish", "-q", "web", &c]);
    let changed = squashfs(100_000, 41);
    place.file("b.squashfs", &changed);
    let (id, server) = serve(&place, &b);
    assert_eq!(id, blake3::hash(&changed).to_string());
    assert_eq!(server.stop(), Some(0));
    run_ok(&state, &["publish", "-q", "web", &c]);
    run_ok(&state, &["publish", "-q", "web", &b]);
    let (id, server) = serve(&place, &b);
    assert_eq!(id, blake3::hash(&changed).to_string());
    assert!(!server.said_first.concat().contains("stays what it was"));
    assert_eq!(server.stop(), Some(0));
}
