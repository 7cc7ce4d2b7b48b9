//! What a mirror has that is newer than what its first seed says: of a first seed that was restored from a
//! backup, say.
//!
//! The mirror keeps what is newer, and so do nodes that hold tags to a version. It tells the first seed, which
//! gives the name a higher version when it is published next: that one is followed. Tags are signed, so it is
//! told nothing that this installation's key has not signed.

use std::fmt::Write as _;

use rootswarm_image::SignedTag;

use crate::state::StateDir;

/// What the line of a tag begins with, in a mirror's report; the tag follows, in hexadecimal. A first seed of an
/// earlier release passes over it.
const NEWER: &str = "newer ";

/// How many names are looked at in a report.
const NAMES_MAX: usize = 64;

/// The part of a mirror's report that says which of its tags are newer, a line for each: [`NAMES_MAX`] from
/// `turn` times as many on, so that each has its turn when there are more.
pub(crate) fn report(newer: &[SignedTag], turn: usize) -> Vec<u8> {
    let mut text = String::new();
    let turns = newer.len().div_ceil(NAMES_MAX).max(1);
    let first = (turn % turns) * NAMES_MAX;
    for tag in newer.iter().skip(first).take(NAMES_MAX) {
        text.push_str(NEWER);
        for byte in tag.encode() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text.into_bytes()
}

/// Notes the versions that a mirror reports, and returns a line for each that was not known here. What cannot be
/// noted is reported again a second later.
pub(crate) fn heed(state: &StateDir, report: &[u8]) -> Vec<String> {
    // What another seed says is followed there, not here.
    if state.mirrors().is_some() {
        return Vec::new();
    }
    let report = String::from_utf8_lossy(report);
    let told = report.lines().filter_map(|line| {
        let bytes = from_hex(line.strip_prefix(NEWER)?)?;
        SignedTag::decode(&bytes).ok()
    });
    told.take(NAMES_MAX)
        .filter_map(|tag| {
            let key = state.existing_key().ok()??.public();
            let tag = tag.verify(&key, &tag.unverified().name).ok()?;
            let known = state.version_to_beat(&tag.name);
            if known >= tag.version {
                return None;
            }
            state.remember_version(&tag).ok()?;
            Some(format!(
                "a mirror has version {} of {}, image {}, and here it is version {known}: the mirror keeps its own \
                 (publish, tag or roll back {} here, and both have the same)",
                tag.version, tag.name, tag.id, tag.name
            ))
        })
        .collect()
}

/// The bytes of a text of hexadecimal digits.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some((value(*high)? * 16 + value(*low)?) as u8),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use rootswarm_image::{ChunkSize, ImageId, SwarmKey, Tag};

    use super::*;

    fn tag(name: &str, version: u64, key: &SwarmKey) -> SignedTag {
        let tag = Tag {
            name: name.parse().unwrap(),
            id: ImageId::from_bytes([version as u8; 32]),
            length: 1,
            chunk_size: ChunkSize::from_bytes(1 << 16).unwrap(),
            version,
            epoch: 1,
        };
        tag.sign(key)
    }

    /// A name that is here in version 5, was removed in version 5, or never was here; what mirrors report one
    /// after the other, and the version that is published next.
    #[test]
    fn what_is_published_next_is_newer_than_what_any_mirror_has() {
        for (reported, next) in [
            (&[][..], 6),
            (&[7][..], 8),
            (&[5], 6),
            (&[4], 6),
            (&[7, 7, 6], 8),
            (&[7, 9], 10),
            (&[u64::MAX], u64::MAX),
        ] {
            for case in ["here", "removed", "never here"] {
                let dir = tempfile::tempdir().unwrap();
                let state = StateDir::open(dir.path()).unwrap();
                let key = state.key().unwrap();
                let own = tag("web", 5, &key);
                if case != "never here" {
                    let _lock = state.lock().unwrap();
                    state.write_tag(&own).unwrap();
                }
                if case == "removed" {
                    state.remove(&"web".parse().unwrap()).unwrap();
                }
                let mut newest = if case == "never here" { 0 } else { 5 };
                for version in reported {
                    let said = heed(&state, &report(&[tag("web", *version, &key)], 0));
                    assert_eq!(
                        said.len(),
                        usize::from(*version > newest),
                        "{case}: {said:?}"
                    );
                    newest = newest.max(*version);
                    // The same again is no news.
                    assert!(heed(&state, &report(&[tag("web", *version, &key)], 0)).is_empty());
                }
                let _lock = state.lock().unwrap();
                let name = "web".parse().unwrap();
                let expected = match (case, reported) {
                    ("never here", []) => 1,
                    ("never here", _) => newest.saturating_add(1),
                    _ => next,
                };
                assert_eq!(
                    state.next_version(&name).unwrap(),
                    expected,
                    "{case} {reported:?}"
                );
            }
        }
    }

    #[test]
    fn what_this_key_has_not_signed_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.key().unwrap();
        let foreign = report(&[tag("web", 7, &SwarmKey::generate().unwrap())], 0);
        let cut = &foreign[..foreign.len() - 3];
        for bytes in [&foreign[..], cut, b"newer \nnewer xy\nnewer 0", b"\xff\n"] {
            assert!(heed(&state, bytes).is_empty());
        }
        let _lock = state.lock().unwrap();
        assert_eq!(state.next_version(&"web".parse().unwrap()).unwrap(), 1);
    }

    /// Of more names than a report has, after a report for each part of them.
    #[test]
    fn every_name_has_its_turn() {
        for names in [1, 63, 64, 65, 128, 200] {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::open(dir.path()).unwrap();
            let key = state.key().unwrap();
            let newer: Vec<SignedTag> = (0..names)
                .map(|name| tag(&format!("image-{name}"), 3, &key))
                .collect();
            // Whenever the first seed begins to listen.
            for begin in [0, 1, 7] {
                let told = (begin..begin + 4).map(|turn| heed(&state, &report(&newer, turn)).len());
                let expected = if begin == 0 { names } else { 0 };
                assert_eq!(told.sum::<usize>(), expected, "{names} names from {begin}");
            }
        }
        assert!(report(&[], 5).is_empty());
    }
}
