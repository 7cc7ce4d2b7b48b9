//! An operator's step back holds until it is changed on purpose.

mod common;
#[path = "common/pair.rs"]
mod pair;

use common::{Place, Server, id_of, run_ok, serve, squashfs, until};
use pair::{Pair, names};

/// A start with the source of yesterday does not undo what the operator did since; a source that was
/// changed is published, and so is one that is published by hand.
#[test]
fn a_restart_does_not_undo_a_step_back() {
    let place = Place::new();
    let a = place.file("a.squashfs", &squashfs(100_000, 11));
    let b = place.file("b.squashfs", &squashfs(100_000, 21));
    let first = serve(&place, &a);
    let id_a = first.0;
    assert_eq!(first.1.stop(), Some(0));
    let (id_b, server) = serve(&place, &b);
    assert_ne!(id_a, id_b);
    assert_eq!(id_of(&run_ok(&place.state(), &["rollback", "web"])), id_a);
    assert_eq!(server.stop(), Some(0));

    // Once, twice, and from a copy of the file, which has another inode and other times.
    std::fs::copy(&b, place.path("copy.squashfs")).unwrap();
    for file in [&b, &b, &place.path("copy.squashfs")] {
        let (id, server) = serve(&place, file);
        assert_eq!(id, id_a, "the step back was undone by {file}");
        let said = server.said_first.concat();
        assert!(
            said.contains(&id_b) && said.contains(&format!("rootswarm publish web {file}")),
            "{said}"
        );
        assert_eq!(server.stop(), Some(0));
    }
    // All that came after what was gone back to, not only the newest.
    let c = place.file("c.squashfs", &squashfs(100_000, 31));
    run_ok(&place.state(), &["publish", "-q", "web", &b]);
    run_ok(&place.state(), &["publish", "-q", "web", &c]);
    assert_eq!(
        id_of(&run_ok(&place.state(), &["rollback", "web", "2"])),
        id_a
    );
    for file in [&b, &c] {
        let (id, server) = serve(&place, file);
        assert_eq!(id, id_a, "{file}");
        assert_eq!(server.stop(), Some(0));
    }
    // On purpose it is published, and stays.
    run_ok(&place.state(), &["publish", "-q", "web", &b]);
    let (id, server) = serve(&place, &b);
    assert_eq!(id, id_b);
    run_ok(&place.state(), &["rollback", "web"]);
    assert_eq!(server.stop(), Some(0));
    // Another image in the same file is new.
    let d = place.file("b.squashfs", &squashfs(100_000, 41));
    let (id, server) = serve(&place, &d);
    assert!(![id_a, id_b].contains(&id), "{id}");
    assert_eq!(server.stop(), Some(0));
    // So is a name that was removed.
    let (id, server) = serve(&place, &d);
    run_ok(&place.state(), &["rollback", "web"]);
    run_ok(&place.state(), &["remove", "web"]);
    assert_eq!(server.stop(), Some(0));
    let (again, server) = serve(&place, &d);
    assert_eq!(again, id);
    assert_eq!(server.stop(), Some(0));
}

/// The mirror has the note as well, and holds to it when it takes over: of several names, one step and two,
/// and not of an image that was published again on purpose.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_takes_over_keeps_a_step_back() {
    let mut pair = Pair::new(&[]);
    let (first, second) = (pair.first(), pair.second());
    let image = |name: &str, day: u64| squashfs(120_000, 100 * day + 2 * name.len() as u64);
    for name in ["web", "db.2", "again"] {
        for day in 1..=3 {
            pair.publish(name, &image(name, day));
        }
    }
    for step in [
        &["rollback", "web"][..],
        &["rollback", "db.2", "2"],
        &["rollback", "again"],
    ] {
        run_ok(&first, step);
    }
    pair.publish("again", &image("again", 3));
    until("all of it", || names(&first) == names(&second)).await;
    // The tags are the last that is followed of a listing.
    let note = second.join("rolled-back");
    until("the notes", || {
        note.join("web").exists() && !note.join("again").exists()
    })
    .await;
    pair.destroy();
    let Pair { dir, b, .. } = pair;
    assert_eq!(b.stop(), Some(0));
    let told: Vec<String> = [("web", 3), ("db.2", 2), ("again", 3)]
        .into_iter()
        .map(|(name, day)| {
            let file = dir.path().join(format!("{name}-{day}"));
            std::fs::write(&file, image(name, day)).unwrap();
            format!("{name}={}", file.display())
        })
        .collect();
    let options: Vec<&str> = told.iter().map(String::as_str).collect();
    let before = names(&second);
    let b = Server::start(&second, &options);
    while !b.is_silent() {}
    assert_eq!(names(&second), before);
    let said = b.said_first.concat();
    assert!(
        said.contains("web stays") && said.contains("db.2 stays"),
        "{said}"
    );
    assert!(!said.contains("again stays"), "{said}");
}
