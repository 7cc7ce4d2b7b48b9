//! Which image a server was last told to publish as a name: one that is told the same at its next start
//! does not undo what somebody made of the name since, by `publish` or `tag`.
//!
//! ```text
//! told/NAME        the id of the image, in a line
//! ```
//!
//! As with [`crate::rolled_back`], what counts is the image, not the file. It is noted once the server has
//! done as it was told, or has left the name alone. It stays when the name is removed: who publishes it
//! anew by hand means that. It is of this state directory: a mirror does not have it.

use std::fs;

use rootswarm_image::{ImageId, ImageName};

use crate::state::{StateDir, StateError};

impl StateDir {
    /// The image that a server was last told to publish as `name`. What is damaged there counts as none.
    pub(crate) fn told(&self, name: &ImageName) -> Option<ImageId> {
        let noted = fs::read_to_string(self.told_note(name)).ok()?;
        noted.trim_end().parse().ok()
    }

    /// Notes it down.
    pub(crate) fn note_told(&self, name: &ImageName, id: &ImageId) -> Result<(), StateError> {
        if self.told(name).as_ref() == Some(id) {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.replace(&self.told_note(name), format!("{id}\n").as_bytes(), 0o644)
    }
}
