//! The newest list of revocations, remembered in `revoked.newest`: a second copy of the file, which no one
//! thinks of who puts back an older one.
//!
//! It is written after the file itself, so that a crash between the two leaves it behind, never ahead.
//! Whatever is wrong with it, it is as if it were not there: it only keeps an older list out.

use super::{Contents, RevocationError, RevocationList};
use crate::guarded::NEWEST_REVOKED;
use crate::state::StateError;

impl RevocationList {
    /// What is remembered, if anything is.
    fn remembered(&self) -> Option<Contents> {
        let text = NEWEST_REVOKED.read(self.state.root()).ok()??;
        Contents::parse(&String::from_utf8_lossy(&text)).ok()
    }

    /// Notes the newest list down. Called with the lock held.
    pub(super) fn remember(&self, contents: &Contents) -> Result<(), StateError> {
        let path = self.state.root().join(NEWEST_REVOKED.name);
        let text = contents.text();
        self.state
            .replace(&path, text.as_bytes(), NEWEST_REVOKED.mode)
    }

    /// Where no server runs that holds the newest list: an older file gives way to what is remembered.
    /// Returns a line where one did.
    pub(crate) fn mend(&self) -> Result<Option<String>, RevocationError> {
        match self.remembered() {
            Some(newest) => Ok(self.put_back(&newest)?.1),
            None => Ok(None),
        }
    }

    /// Remembers a list that a release wrote which did not, or an admin put there.
    pub(crate) fn remember_newer(&self, contents: &Contents) -> Result<(), RevocationError> {
        let is_known = |newest: Contents| newest == *contents;
        if contents.version == 0 || self.remembered().is_some_and(is_known) {
            return Ok(());
        }
        let _lock = self.state.lock()?;
        // A command may have been quicker.
        let found = self.load()?;
        Ok(self.remember(&found)?)
    }
}
