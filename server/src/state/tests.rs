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
