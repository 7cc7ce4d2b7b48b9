//! Which images an operator went back from: a server that is told at its start to publish the file of
//! one of them does not undo that.
//!
//! ```text
//! rolled-back/NAME        the ids of these images, one a line, the last one last
//! ```
//!
//! What counts is the image, not the file: a copy of the file is the same image, and a file that was
//! changed is another one and is published. An image is taken off the list when somebody makes the name
//! mean it on purpose; the whole list goes with the name, and when a server publishes a file that is not
//! on it. A mirror has its first seed's: it may have to take over.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};

use rootswarm_image::{ImageId, ImageName, SignedTag};

use crate::generations::MAX_KEEP;
use crate::state::{StateDir, StateError};

/// As many as there are generations.
const IDS_MAX: usize = MAX_KEEP;

/// A line is 65 bytes; more is not ours.
const FILE_BYTES_MAX: u64 = 65 * IDS_MAX as u64;

impl StateDir {
    /// The images that an operator went back from, the last one last. What is damaged there is left out:
    /// it only keeps a file from being published.
    pub(crate) fn rolled_back(&self, name: &ImageName) -> Vec<ImageId> {
        let mut text = String::new();
        let read = File::open(self.rolled_back_note(name))
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) => text.lines().filter_map(|line| line.parse().ok()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Notes down that `name` goes back to the image `to`, from what it means and from all that it meant
    /// since. Called with the lock held.
    pub(crate) fn note_rollback(&self, name: &ImageName, to: &ImageId) -> Result<(), StateError> {
        let current = self.read_tag(name).ok().flatten();
        let older = self.generations(name)?;
        let all = current.iter().chain(&older).map(SignedTag::unverified);
        let newer: Vec<ImageId> = all.map(|tag| tag.id).take_while(|id| id != to).collect();
        self.change_rolled_back(name, |ids| {
            ids.retain(|id| id != to && !newer.contains(id));
            ids.extend(newer.iter().rev());
        })
    }

    /// `name` is made to mean the image `id` on purpose. Called with the lock held.
    pub(crate) fn note_published(&self, name: &ImageName, id: &ImageId) -> Result<(), StateError> {
        self.change_rolled_back(name, |ids| ids.retain(|it| it != id))
    }

    /// Forgets what was gone back from. Called with the lock held.
    pub(crate) fn forget_rolled_back(&self, name: &ImageName) -> Result<(), StateError> {
        self.change_rolled_back(name, Vec::clear)
    }

    /// What a mirror is told: for each name of which there is a note its name, and the ids, a line each.
    pub(crate) fn rolled_back_for_mirror(&self) -> Vec<Vec<u8>> {
        let text = |name: ImageName| {
            let ids = self.rolled_back(&name);
            let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
            (!ids.is_empty()).then(|| format!("{name}\n{lines}").into_bytes())
        };
        self.noted_names().into_iter().filter_map(text).collect()
    }

    /// Takes over what a first seed told, of all names: a note of which nothing is told any more goes. What
    /// is not understood is passed over.
    pub(crate) fn adopt_rolled_back(&self, told: &[Vec<u8>]) -> Result<(), StateError> {
        let mut theirs = BTreeMap::new();
        for text in told {
            let text = String::from_utf8_lossy(text);
            let mut lines = text.lines();
            if let Some(name) = lines.next().and_then(|name| name.parse().ok()) {
                let ids: Vec<ImageId> = lines.filter_map(|line| line.parse().ok()).collect();
                theirs.insert(name, ids);
            }
        }
        for name in self.noted_names() {
            theirs.entry(name).or_default();
        }
        theirs.retain(|name, ids| self.rolled_back(name) != *ids);
        if theirs.is_empty() {
            return Ok(());
        }
        let _lock = self.lock()?;
        for (name, ids) in theirs {
            self.change_rolled_back(&name, |own| *own = ids)?;
        }
        Ok(())
    }

    /// The names of which there is a note.
    fn noted_names(&self) -> Vec<ImageName> {
        let Ok(entries) = fs::read_dir(self.root().join("rolled-back")) else {
            return Vec::new();
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<ImageName> = names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect();
        names.sort();
        names
    }

    fn change_rolled_back(
        &self,
        name: &ImageName,
        change: impl FnOnce(&mut Vec<ImageId>),
    ) -> Result<(), StateError> {
        let before = self.rolled_back(name);
        let mut ids = before.clone();
        change(&mut ids);
        if ids == before {
            return Ok(());
        }
        let path = self.rolled_back_note(name);
        if ids.is_empty() {
            return match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    Err(StateError::io("remove", &path)(e))
                }
                _ => Ok(()),
            };
        }
        let beyond = ids.len().saturating_sub(IDS_MAX);
        let lines: String = ids[beyond..].iter().map(|id| format!("{id}\n")).collect();
        self.replace(&path, lines.as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_bounded_and_what_is_damaged_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let name: ImageName = "web".parse().unwrap();
        let id = |number: usize| ImageId::from_bytes([number as u8; 32]);
        assert_eq!(state.rolled_back(&name), []);
        let _lock = state.lock().unwrap();
        let many = (0..IDS_MAX + 5).map(id);
        state
            .change_rolled_back(&name, |ids| ids.extend(many))
            .unwrap();
        let noted = state.rolled_back(&name);
        assert_eq!(
            (noted.len(), noted.last()),
            (IDS_MAX, Some(&id(IDS_MAX + 4)))
        );
        state.note_published(&name, &id(50)).unwrap();
        assert_eq!(state.rolled_back(&name).len(), IDS_MAX - 1);
        fs::write(state.rolled_back_note(&name), b"\xff\0junk").unwrap();
        assert_eq!(state.rolled_back(&name), []);
        fs::write(state.rolled_back_note(&name), format!("junk\n{}\n", id(7))).unwrap();
        assert_eq!(state.rolled_back(&name), [id(7)]);
        state.forget_rolled_back(&name).unwrap();
        assert!(!state.rolled_back_note(&name).exists());
        state.forget_rolled_back(&name).unwrap();
    }
}
