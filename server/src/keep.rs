//! How many images of a name are kept: what was last said for that name, else what holds for all.
//!
//! ```text
//! keep/NAME       the number that was last given with NAME, in digits
//! ```
//!
//! Whoever publishes with `--keep 6` once means that name, and need not say it again: a later publish
//! without the option, of a person, a script or a server at its start, keeps six as well. The number goes
//! with the name. `serve --keep` and `keep =` are for names of which nothing was said.

use std::fs;
use std::io;

use rootswarm_image::ImageName;

use crate::generations::{DEFAULT_KEEP, MAX_KEEP};
use crate::state::{StateDir, StateError};

/// How many images of each name a [`StateDir`] keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// What was said for the name, else so many.
    Unless(usize),
    /// So many, which is said for the name that is changed.
    Said(usize),
    /// All that there may be: for changes that give up nothing.
    All,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep::Unless(DEFAULT_KEEP)
    }
}

impl StateDir {
    /// How many images of `name` are kept, the current one among them.
    pub(crate) fn keep_of(&self, name: &ImageName) -> usize {
        match self.keep() {
            Keep::Unless(keep) => self.said_keep(name).unwrap_or(keep),
            Keep::Said(keep) => keep,
            Keep::All => MAX_KEEP,
        }
        .max(1)
    }

    fn said_keep(&self, name: &ImageName) -> Option<usize> {
        let said = fs::read_to_string(self.keep_note(name)).ok()?;
        let keep = said.trim_end().parse().ok();
        keep.filter(|keep| (1..=MAX_KEEP).contains(keep))
    }

    /// Notes down what is said for `name`, if anything is. Called with the lock held.
    pub(crate) fn note_keep(&self, name: &ImageName) -> Result<(), StateError> {
        match self.keep() {
            Keep::Said(keep) if self.said_keep(name) != Some(keep) => {
                let line = format!("{keep}\n");
                self.replace(&self.keep_note(name), line.as_bytes(), 0o644)
            }
            _ => Ok(()),
        }
    }

    /// Forgets what was said for `name`. Called with the lock held.
    pub(crate) fn forget_keep(&self, name: &ImageName) -> Result<(), StateError> {
        let path = self.keep_note(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StateError::io("remove", &path)(e))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_for_a_name_goes_before_what_holds_for_all() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let [web, db]: [ImageName; 2] = ["web", "db"].map(|name| name.parse().unwrap());
        let _lock = state.lock().unwrap();
        state.note_keep(&web).unwrap();
        assert_eq!(state.keep_of(&web), DEFAULT_KEEP);
        state.clone().keeping_said(6).note_keep(&web).unwrap();
        let serving = state.clone().keeping(2);
        assert_eq!((serving.keep_of(&web), serving.keep_of(&db)), (6, 2));
        assert_eq!(state.clone().keeping_said(1).keep_of(&web), 1);
        assert_eq!(state.clone().keeping_all().keep_of(&web), MAX_KEEP);
        for junk in ["", "0", "101", "six", "\0"] {
            fs::write(state.keep_note(&web), junk).unwrap();
            assert_eq!(serving.keep_of(&web), 2, "{junk:?}");
        }
        state.forget_keep(&web).unwrap();
        state.forget_keep(&web).unwrap();
        assert!(!state.keep_note(&web).exists());
    }
}
