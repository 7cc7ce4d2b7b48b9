//! Which file a name was published from when the server last started, so that the next start need not
//! read it to know that nothing is new.
//!
//! `sources/NAME` is one line: the image's id, the file's stamp ([`Stamp::to_line`]) and its path. It is
//! a hint and nothing else. The stamp holds the time of the last change of the inode, which no program
//! can set back, and is written down only when that is seconds ago: whoever wrote to the file later has
//! changed it. Whatever does not fit has the file hashed.

use std::fs;
use std::io;
use std::path::Path;

use rootswarm_image::{ImageId, ImageName, Tag};

use crate::source::Stamp;
use crate::state::{StateDir, StateError};

fn line(id: &ImageId, stamp: Stamp, source: &Path) -> String {
    format!("{id} {} {}\n", stamp.to_line(), source.display())
}

/// What `name` means, if that was published from this very file and its copy is here. Whether the copy
/// is intact is checked before it is served.
pub fn published_from(
    state: &StateDir,
    name: &ImageName,
    source: &Path,
    stamp: Stamp,
) -> Option<Tag> {
    let tag = state.read_tag(name).ok()??.unverified().clone();
    let image = state.copy(&tag.id).join("image");
    let is_here = fs::metadata(image).is_ok_and(|found| found.len() == tag.length);
    let is_current = state.epoch().is_ok_and(|epoch| tag.epoch == epoch);
    (is_here && is_current && is_image(state, name, source, stamp, &tag.id)).then_some(tag)
}

/// Whether this very file is known to be the image `id`.
pub(crate) fn is_image(
    state: &StateDir,
    name: &ImageName,
    source: &Path,
    stamp: Stamp,
    id: &ImageId,
) -> bool {
    fs::read_to_string(state.source_note(name)).is_ok_and(|noted| noted == line(id, stamp, source))
}

/// Notes down that `name` was published from `source`, which is the image `id`.
///
/// # Errors
/// The note cannot be written, which costs the next start a hash.
pub fn remember(
    state: &StateDir,
    name: &ImageName,
    source: &Path,
    stamp: Stamp,
    id: &ImageId,
    now_unix_s: u64,
) -> Result<(), StateError> {
    if !stamp.is_settled(now_unix_s) {
        return Ok(());
    }
    let note = state.source_note(name);
    let line = line(id, stamp, source);
    if fs::read_to_string(&note).is_ok_and(|noted| noted == line) {
        return Ok(());
    }
    let _lock = state.lock()?;
    state.replace(&note, line.as_bytes(), 0o644)
}

/// Forgets from which file `name` was published: the next time it is hashed.
///
/// # Errors
/// The note cannot be removed.
pub(crate) fn forget(state: &StateDir, name: &ImageName) -> Result<(), StateError> {
    let note = state.source_note(name);
    let _lock = state.lock()?;
    match fs::remove_file(&note) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", &note)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    use crate::progress::Quiet;
    use crate::publish::{Request, Unchanged, publish};

    fn squashfs(length: usize, last: u8) -> Vec<u8> {
        let mut bytes = vec![7; length];
        bytes[..96].fill(0);
        bytes[..4].copy_from_slice(b"hsqs");
        bytes[28] = 4;
        bytes[40..48].copy_from_slice(&(length as u64).to_le_bytes());
        bytes[length - 1] = last;
        bytes
    }

    /// Every way to change a file, also those that keep its length and set its time back.
    #[test]
    fn a_changed_source_is_never_taken_for_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let key = state.key().unwrap();
        let name: ImageName = "web".parse().unwrap();
        let path = dir.path().join("source");
        let old = SystemTime::now() - Duration::from_secs(1000);
        let set_back = |file: &File| file.set_modified(old).unwrap();
        let begin = || {
            let _ = fs::remove_file(&path);
            let mut file = File::create(&path).unwrap();
            file.write_all(&squashfs(300_000, 1)).unwrap();
            set_back(&file);
            let request = Request {
                name: &name,
                source: &path,
                chunk_size: None,
                unchanged: Unchanged::Keep,
                force: false,
            };
            let tag = publish(&state, &key, &request, &Quiet).unwrap().tag;
            let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
            // As if some seconds had gone by.
            let later = crate::token::now_unix_s() + 10;
            remember(&state, &name, &path, stamp, &tag.id, later).unwrap();
            assert_eq!(published_from(&state, &name, &path, stamp), Some(tag));
        };
        type Change<'a> = (&'a str, &'a dyn Fn());
        let write = |bytes: &[u8]| {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(bytes, 299_999).unwrap();
            set_back(&file);
        };
        let changes: &[Change<'_>] = &[
            ("rewritten in place, its time set back", &|| write(&[9])),
            ("longer", &|| write(&[9, 9])),
            ("replaced by a rename, its time set back", &|| {
                let other = dir.path().join("other");
                fs::write(&other, squashfs(300_000, 3)).unwrap();
                set_back(&File::options().write(true).open(&other).unwrap());
                fs::rename(&other, &path).unwrap();
            }),
            ("removed and made anew, the same bytes", &|| {
                fs::remove_file(&path).unwrap();
                fs::write(&path, squashfs(300_000, 1)).unwrap();
            }),
        ];
        for (what, change) in changes {
            begin();
            // The kernel's clock for files ticks each 10 ms at most.
            std::thread::sleep(Duration::from_millis(25));
            change();
            let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
            assert_eq!(published_from(&state, &name, &path, stamp), None, "{what}");
        }
        // Nor the note of another path, or when the name means something else by now.
        begin();
        let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        assert_eq!(published_from(&state, &name, &elsewhere, stamp), None);
        let other = dir.path().join("other");
        fs::write(&other, squashfs(300_000, 4)).unwrap();
        let request = Request {
            name: &name,
            source: &other,
            chunk_size: None,
            unchanged: Unchanged::NewVersion,
            force: false,
        };
        publish(&state, &key, &request, &Quiet).unwrap();
        assert_eq!(published_from(&state, &name, &path, stamp), None);
    }

    #[test]
    fn a_change_of_a_moment_ago_is_not_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("source");
        fs::write(&path, b"x").unwrap();
        let stamp = Stamp::of(&File::open(&path).unwrap()).unwrap();
        let now = crate::token::now_unix_s();
        for (at, settled) in [(now, false), (now + 2, false), (now + 10, true), (0, false)] {
            assert_eq!(stamp.is_settled(at), settled, "{at}");
        }
    }
}
