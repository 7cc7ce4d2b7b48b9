//! What an epoch does to tags.

use rootswarm_image::{ChunkSize, Tag};

use super::*;

/// What a release that did not compare tags has left, and what `revoke --all` does.
#[test]
fn renewed_tags_are_newer_in_version_and_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let key = state.key().unwrap();
    let other = SwarmKey::generate().unwrap();
    let tag = |name: &str, version| Tag {
        name: name.parse().unwrap(),
        id: ImageId::from_bytes([version as u8; 32]),
        length: 1,
        chunk_size: ChunkSize::from_bytes(1 << 16).unwrap(),
        version,
        epoch: state.epoch().unwrap(),
    };
    {
        let _lock = state.lock().unwrap();
        state.write_tag(&tag("web", 7).sign(&key)).unwrap();
        state.write_tag(&tag("db", 1).sign(&key)).unwrap();
        state.write_tag(&tag("theirs", 4).sign(&other)).unwrap();
    }
    assert_eq!(state.renew_tags(&key).unwrap(), 0);
    for epoch in [3, 5] {
        let list = RevocationList::new(state.clone());
        assert_eq!(list.revoke_all().unwrap(), epoch);
        assert_eq!(state.renew_tags(&key).unwrap(), 2);
        assert_eq!(state.renew_tags(&key).unwrap(), 0, "once");
    }
    for (name, version, epoch) in [("web", 9, 5), ("db", 3, 5), ("theirs", 4, 1)] {
        let found = state.read_tag(&name.parse().unwrap()).unwrap().unwrap();
        let found = found.unverified();
        assert_eq!((found.version, found.epoch), (version, epoch), "{name}");
        assert_eq!(state.newest(&found.name), (version, epoch));
    }
    let renewed = state.read_tag(&"web".parse().unwrap()).unwrap().unwrap();
    assert_eq!(renewed.unverified().id, ImageId::from_bytes([7; 32]));
}

/// Whatever becomes of a name's tag, and of what it meant before: what is published next is newer than all
/// that nodes have seen, and a mirror takes nothing older.
#[test]
fn versions_grow_past_a_damaged_tag() {
    for damage in [&b""[..], b"rootswarm", &[0xff; 300]] {
        for versions in [vec![1], vec![1, 2, 3], vec![7, 900]] {
            let place = tempfile::tempdir().unwrap();
            let state = StateDir::open(place.path()).unwrap();
            let key = state.key().unwrap();
            let name: ImageName = "web".parse().unwrap();
            let _lock = state.lock().unwrap();
            for version in &versions {
                let tag = Tag {
                    name: name.clone(),
                    id: ImageId::from_bytes([*version as u8; 32]),
                    length: 1 << 20,
                    chunk_size: ChunkSize::MIN,
                    version: *version,
                    epoch: 1,
                };
                state.write_tag(&tag.sign(&key)).unwrap();
            }
            let newest = versions[versions.len() - 1];
            fs::write(place.path().join("tags/web"), damage).unwrap();
            assert_eq!(
                state.next_version(&name).unwrap(),
                newest + 1,
                "{versions:?}"
            );
            assert_eq!(state.newest(&name).0, newest, "{versions:?}");
            // What an earlier release left has no note, and a damaged note counts as none.
            for note in [None, Some("x")] {
                let path = place.path().join("versions/web");
                match note {
                    None => fs::remove_file(&path).unwrap(),
                    Some(text) => fs::write(&path, text).unwrap(),
                }
                assert!((1..=newest).contains(&state.next_version(&name).unwrap()));
            }
        }
    }
}
