//! An epoch and the names that are signed in it belong together, also where the command that begins it is cut
//! short.

mod common;

use std::fs;

use common::{Place, Server, run_ok, squashfs, until};
use rootswarm::state::StateDir;
use rootswarm_image::SignedTag;

/// `revoke --all` has written the list and is killed before it has signed the names: the running server does
/// that, and an initrd that is built now takes what it serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_signs_names_anew_in_an_epoch_that_has_begun() {
    let place = Place::new();
    let newer = place.file("newer", &squashfs(200_000, 3));
    run_ok(&place.state(), &["publish", "-q", "web", &newer]);
    let server = Server::start(&place.state(), &[]);
    server.line();
    let state = StateDir::open_existing(&place.state()).unwrap();
    for epoch in [3, 5] {
        let list = format!("rootswarm-revoked 1\nversion {epoch} epoch {epoch}\n");
        let file = place.file("list", list.as_bytes());
        fs::rename(file, place.state().join("revoked")).unwrap();
        until("the new epoch's name", || {
            let tag = state.read_tag(&"web".parse().unwrap()).unwrap().unwrap();
            tag.unverified().epoch == epoch
        })
        .await;
        let said = server.error("has begun");
        assert!(
            said.contains(&format!("epoch {epoch} has begun: 1 name")),
            "{said}"
        );
        let served = || {
            let answer = server.request("GET", "/tags/web", &[]);
            SignedTag::decode(&answer.body)
                .unwrap()
                .unverified()
                .clone()
        };
        until("the name as it is served", || served().epoch == epoch).await;
        let minimum = run_ok(&place.state(), &["key", "--minimum"]);
        let version = served().version;
        assert_eq!(
            minimum,
            format!("rootswarm-minimum 1\nepoch {epoch}\nversion web {version}\n")
        );
    }
    // The command itself leaves nothing to be done.
    assert_eq!(run_ok(&place.state(), &["revoke", "--all"]), "epoch 7\n");
    let images = run_ok(&place.state(), &["images"]);
    assert!(images.contains("web~1"), "{images}");
}

/// What a name meant before it was removed is still signed: an initrd that is built later takes none of it.
#[test]
fn a_removed_name_has_a_minimum() {
    let place = Place::new();
    for name in ["old", "old", "web"] {
        let file = place.file(name, &squashfs(200_000, name.len() as u64));
        run_ok(&place.state(), &["publish", "-q", name, &file]);
    }
    for (remove, expected) in [
        (None, "version old 2\nversion web 2\n"),
        (Some("old"), "version old 2\nversion web 2\n"),
        (Some("web"), "version old 2\nversion web 2\n"),
    ] {
        if let Some(name) = remove {
            run_ok(&place.state(), &["remove", name]);
        }
        let minimum = run_ok(&place.state(), &["key", "--minimum"]);
        assert_eq!(minimum, format!("rootswarm-minimum 1\nepoch 1\n{expected}"));
    }
}
