//! What a mirror does not follow.

use rootswarm_image::{ChunkSize, Tag};

use super::*;

/// A primary that was put back, or somebody in its place, offers what was newest once.
#[test]
fn an_old_tag_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let key = state.key().unwrap();
    let tag = |version, epoch, id| {
        let tag = Tag {
            name: "web".parse().unwrap(),
            id: ImageId::from_bytes([id; 32]),
            length: 1,
            chunk_size: ChunkSize::from_bytes(1 << 16).unwrap(),
            version,
            epoch,
        };
        tag.sign(&key)
    };
    let current = tag(7, 3, 1);
    {
        let _lock = state.lock().unwrap();
        state.write_tag(&current).unwrap();
    }
    let offers = |case: &str| {
        for (version, epoch, id, taken) in [
            (6, 3, 2, false),
            (1, 3, 2, false),
            (7, 1, 2, false),
            (u64::MAX, 2, 2, false),
            // The rollback of an operator: a higher version that names what it likes.
            (8, 3, 2, true),
            (9, 5, 1, true),
        ] {
            let found = follow(&tag(version, epoch, id).encode(), &state, &key);
            assert_eq!(found.is_ok(), taken, "{case}: {version} {epoch}: {found:?}");
        }
    };
    assert_eq!(follow(&current.encode(), &state, &key), Ok(None));
    offers("published");
    // Also when the name was removed here meanwhile.
    state.remove(&"web".parse().unwrap()).unwrap();
    offers("removed");
}
