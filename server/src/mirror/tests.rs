//! What a mirror does not follow.

use std::time::Instant;

use rootswarm_image::{ChunkSize, ImageName, Tag};

use super::download::RETRY;
use super::following::follow;
use super::*;

fn signed(name: &ImageName, version: u64, epoch: u32, id: u8, key: &SwarmKey) -> SignedTag {
    let tag = Tag {
        name: name.clone(),
        id: ImageId::from_bytes([id; 32]),
        length: 1,
        chunk_size: ChunkSize::from_bytes(1 << 16).unwrap(),
        version,
        epoch,
    };
    tag.sign(key)
}

/// A primary that was put back, or somebody in its place, offers what was newest once.
#[test]
fn an_old_tag_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let key = state.key().unwrap();
    let name = "web".parse().unwrap();
    let tag = |version, epoch, id| signed(&name, version, epoch, id, &key);
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

/// A listing as a first seed sends it, with these tags in this order.
fn listing(tags: &[&SignedTag], older: &[&SignedTag], retired: &[&SignedTag]) -> Listing {
    let encoded = |tags: &[&SignedTag]| tags.iter().map(|tag| tag.encode()).collect();
    Listing {
        tags: encoded(tags),
        older: encoded(older),
        retired: encoded(retired),
        tokens: b"rootswarm-tokens 2\n".to_vec(),
        revoked: b"rootswarm-revoked 1\nversion 1 epoch 3\n".to_vec(),
        ..Listing::default()
    }
}

/// Of several names, in whatever order they come, as what a name means, meant, or was removed with: what
/// was newest stays.
#[test]
fn no_order_and_no_kind_of_listing_brings_an_old_tag_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let key = state.key().unwrap();
    let names: Vec<ImageName> = ["web", "db.2", "a-third"]
        .iter()
        .map(|name| name.parse().unwrap())
        .collect();
    let tag = |name: &ImageName, version, epoch| {
        let tag = Tag {
            name: name.clone(),
            id: ImageId::from_bytes([version as u8; 32]),
            length: 1,
            chunk_size: ChunkSize::from_bytes(1 << 16).unwrap(),
            version,
            epoch,
        };
        tag.sign(&key)
    };
    let (tokens, revoked) = (
        Tokens::of_mirror(state.clone()),
        RevocationList::new(state.clone()),
    );
    let missing = |listing: Listing| {
        let applied = apply(&listing, &state, &key, &tokens, &revoked);
        let tags = applied.missing.iter().map(SignedTag::unverified);
        let versions: Vec<String> = tags.map(|tag| tag.version.to_string()).collect();
        versions.join(" ")
    };
    for name in &names {
        let _lock = state.lock().unwrap();
        state.write_tag(&tag(name, 7, 3)).unwrap();
    }
    for name in &names {
        let (old, late, new) = (tag(name, 6, 3), tag(name, u64::MAX, 2), tag(name, 8, 3));
        for (tags, expected) in [
            (&[&old, &late, &new][..], "8"),
            (&[&new, &old, &late], "8"),
            (&[&late, &new, &new, &old], "8 8"),
            (&[&old, &late], ""),
        ] {
            assert_eq!(missing(listing(tags, &[], &[])), expected, "{name}");
        }
        // As what it meant before it is wanted as such, and the name stays what it is.
        assert_eq!(missing(listing(&[], &[&old], &[])), "6");
        assert_eq!(missing(listing(&[&old], &[&new, &late], &[&old])), "");
        assert_eq!(state.newest(name), (7, 3), "{name}");
        assert!(state.read_tag(name).unwrap().is_some(), "{name}");
    }
    // Removed there in versions that this mirror never saw, of a name that it never had as well: what came
    // before stays away, and what is published here after the host has taken over is newer.
    let never: ImageName = "never-here".parse().unwrap();
    for name in names.iter().chain([&never]) {
        assert_eq!(missing(listing(&[], &[], &[&tag(name, 12, 5)])), "");
        assert_eq!(
            missing(listing(&[&tag(name, 11, 5)], &[], &[])),
            "",
            "{name}"
        );
        assert_eq!(missing(listing(&[], &[], &[&tag(name, 9, 3)])), "");
        assert_eq!(state.read_tag(name).unwrap(), None, "{name}");
        assert_eq!(state.newest(name), (12, 5), "{name}");
        let _lock = state.lock().unwrap();
        assert_eq!(state.next_version(name).unwrap(), 13, "{name}");
    }
}

/// Published again after it was removed, and taken over here before that was noticed, as when something was
/// wrong here meanwhile: what the name meant up to its removal goes, in one listing.
#[test]
fn what_a_name_meant_before_its_removal_goes_whenever_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let key = state.key().unwrap();
    let name: ImageName = "web".parse().unwrap();
    let tag = |version: u64| signed(&name, version, 3, version as u8, &key);
    let (tokens, revoked) = (
        Tokens::of_mirror(state.clone()),
        RevocationList::new(state.clone()),
    );
    for (removed_with, stay) in [(4, &[6_u64, 5][..]), (5, &[6]), (6, &[]), (5, &[6])] {
        for version in 5..=7 {
            std::fs::create_dir_all(state.copy(&ImageId::from_bytes([version as u8; 32]))).unwrap();
            let _lock = state.lock().unwrap();
            state.write_tag(&tag(version)).unwrap();
        }
        let told = listing(&[&tag(7)], &[], &[&tag(removed_with)]);
        apply(&told, &state, &key, &tokens, &revoked);
        let versions: Vec<u64> = state
            .generations(&name)
            .unwrap()
            .iter()
            .map(|tag| tag.unverified().version)
            .collect();
        assert_eq!(versions, stay, "removed with {removed_with}");
        assert_eq!(state.newest(&name).0, 7);
    }
}

/// Of much that is wrong the first three are said, and how many more there are.
#[test]
fn what_is_wrong_is_said_in_one_line() {
    let wrong = |count: usize| (1..=count).map(|number| format!("w{number}")).collect();
    for (count, expected) in [
        (0, None),
        (1, Some("w1")),
        (3, Some("w1; w2; w3")),
        (4, Some("w1; w2; w3; and 1 more")),
        (4_096, Some("w1; w2; w3; and 4093 more")),
    ] {
        assert_eq!(in_one_line(wrong(count)).as_deref(), expected);
    }
}

/// A first seed asks for a moment what it does not serve yet; where it goes on to refuse, that is said once.
#[test]
fn what_is_not_served_yet_is_asked_for_again_soon() {
    let refused = || NotMirrored::NotServed("no".to_owned());
    let mut failed = Failed::default();
    for _ in 0..3 {
        assert_eq!(failed.again(refused()), None);
        assert_eq!(failed.wait, POLL);
    }
    assert!(!failed.is_over());
    failed.since = Instant::now().checked_sub(RETRY).unwrap();
    assert_eq!(failed.again(refused()), Some("no".to_owned()));
    assert_eq!(failed.wait, RETRY);
    assert_eq!(failed.again(refused()), None);
    // Anything else is said at once, and tried again later.
    let mut failed = Failed::default();
    let full = || NotMirrored::Failed("full".to_owned());
    assert_eq!(failed.again(full()), Some("full".to_owned()));
    assert_eq!(failed.again(full()), None);
    assert_eq!(failed.wait, RETRY);
}

/// A first seed that was put back from a backup removes a name, of which its mirror has what is newer. Its own
/// tag may be damaged by then, and so may the mirror's.
#[test]
fn a_name_that_is_removed_there_is_gone_here_whatever_is_newer() {
    for (there, here) in [(3, 3), (3, 5), (3, 9), (5, 4), (3, 0)] {
        for damaged in ["", "there", "here", "both"] {
            let case = format!("{there} {here} {damaged:?}");
            let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
            let [first, mirror] =
                [&dirs[0], &dirs[1]].map(|dir| StateDir::open(dir.path()).unwrap());
            let key = first.key().unwrap();
            let name: ImageName = "web".parse().unwrap();
            let tag = |version: u64| signed(&name, version, 1, version as u8, &key);
            for (state, version) in [(&first, there), (&mirror, here)] {
                if version > 0 {
                    let _lock = state.lock().unwrap();
                    state.write_tag(&tag(version)).unwrap();
                }
            }
            // What the mirror has told.
            let told = ahead::report(&[tag(here.max(1))], 0);
            assert_eq!(
                ahead::heed(&first, &told).len(),
                usize::from(here > there),
                "{case}"
            );
            for (state, what) in [(&first, "there"), (&mirror, "here")] {
                let is_there = state.read_tag(&name).unwrap().is_some();
                if is_there && (damaged == what || damaged == "both") {
                    std::fs::write(state.root().join("tags/web"), "nothing").unwrap();
                }
            }
            first.retire(&name, &key).unwrap();
            assert_eq!(first.read_tag(&name).unwrap(), None, "{case}");
            let left = first.read_retired();
            assert_eq!(left.len(), 1, "{case}");
            left[0].verify(&key.public(), &name).unwrap();
            let (tokens, revoked) = (
                Tokens::of_mirror(mirror.clone()),
                RevocationList::new(mirror.clone()),
            );
            let listing = listing(&[], &[], &[&left[0]]);
            apply(&listing, &mirror, &key, &tokens, &revoked);
            assert_eq!(mirror.read_tag(&name).unwrap(), None, "{case}");
            // What is published next is followed, as it is newer than all that.
            let _lock = first.lock().unwrap();
            let next = first.next_version(&name).unwrap();
            assert!(next > there.max(here), "{case}: {next}");
            assert!(next > mirror.newest(&name).0, "{case}: {next}");
        }
    }
}

/// What the first seed lost with a backup is said, told it, and stays.
#[test]
fn names_that_the_first_seed_does_not_know_are_said_and_told() {
    for names in [1, 3, 4, 70] {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [first, mirror] = [&dirs[0], &dirs[1]].map(|dir| StateDir::open(dir.path()).unwrap());
        let key = first.key().unwrap();
        let tag = |number: usize, version| {
            let name = format!("image-{number}").parse().unwrap();
            signed(&name, version, 1, number as u8, &key)
        };
        {
            let _lock = mirror.lock().unwrap();
            for name in 0..=names {
                mirror.write_tag(&tag(name, 4)).unwrap();
            }
        }
        // One of them is known.
        let known = tag(names, 4);
        let (tokens, revoked) = (
            Tokens::of_mirror(mirror.clone()),
            RevocationList::new(mirror.clone()),
        );
        let listed = listing(&[&known], &[], &[]);
        let applied = apply(&listed, &mirror, &key, &tokens, &revoked);
        assert_eq!(applied.newer.len(), names);
        let [doubt] = &applied.doubts[..] else {
            panic!("{:?}", applied.doubts);
        };
        assert!(doubt.contains("image-0"), "{doubt}");
        assert_eq!(
            doubt.contains(&format!("and {} more", names.saturating_sub(3))),
            names > 3,
            "{doubt}"
        );
        let told =
            (0..2).map(|turn| ahead::heed(&first, &ahead::report(&applied.newer, turn)).len());
        assert_eq!(told.sum::<usize>(), names);
        let _lock = first.lock().unwrap();
        assert_eq!(first.next_version(&"image-0".parse().unwrap()).unwrap(), 5);
    }
}
