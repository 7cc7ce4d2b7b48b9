//! What nothing names: what interrupted writers left in `tmp/`, what a mirror has begun to fetch, and copies
//! that no tag means any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rootswarm_image::{ImageId, SwarmPublicKey};

use super::{StateDir, StateError};
use crate::durable::Lock;

impl StateDir {
    /// Where a mirror assembles the image `id`.
    pub(crate) fn partial(&self, id: &ImageId) -> PathBuf {
        self.root.join("tmp").join(format!("{PARTIAL}{id}"))
    }

    /// Removes what mirroring has begun of other images than these.
    pub(crate) fn keep_partials(&self, wanted: &[ImageId]) -> Result<(), StateError> {
        let _lock = self.lock()?;
        let wanted: Vec<PathBuf> = wanted.iter().map(|id| self.partial(id)).collect();
        self.visit_temporary(|path| match is_partial(path) && !wanted.contains(path) {
            true => remove_abandoned(path),
            false => Ok(()),
        })
    }

    fn visit_temporary(
        &self,
        visit: impl Fn(&PathBuf) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let tmp = self.root.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(StateError::io("read", &tmp))? {
            visit(&entry.map_err(StateError::io("read", &tmp))?.path())?;
        }
        Ok(())
    }

    /// Removes what no live process works on in `tmp/`. What a mirror
    /// has begun to fetch is left to [`StateDir::keep_partials`], as long as this is a mirror.
    pub(super) fn sweep(&self) -> Result<(), StateError> {
        let _lock = self.lock()?;
        let is_mirror = self.mirrors().is_some();
        self.visit_temporary(|path| {
            if path.is_dir() {
                match is_mirror && is_partial(path) {
                    true => Ok(()),
                    false => remove_abandoned(path),
                }
            } else {
                // Single files are only written under the lock that is held here.
                unless_gone(fs::remove_file(path)).map_err(StateError::io("remove leftover", path))
            }
        })
    }

    /// Removes copies that no tag and no generation names, unless a server runs: it may be sending one
    /// of them, and removes it when no node fetches it any more. Called with the lock held.
    pub(crate) fn remove_unnamed_copies(&self) -> Result<(), StateError> {
        if self.is_served() {
            return Ok(());
        }
        for id in self.unnamed_copies()? {
            self.discard_directory(&self.copy(&id))?;
        }
        Ok(())
    }

    /// The copies that no tag and no generation names. Called with the lock held.
    ///
    /// While a tag is there that cannot be trusted there are none: what it should name is not known,
    /// and the copy may be good.
    pub(crate) fn unnamed_copies(&self) -> Result<Vec<ImageId>, StateError> {
        let public = fs::read_to_string(self.root.join("swarm.pub")).unwrap_or_default();
        let Ok(key) = public.trim_end().parse::<SwarmPublicKey>() else {
            return Ok(Vec::new());
        };
        let mut named = Vec::new();
        for (_, tag) in self.read_tags()? {
            let Some(tag) = tag
                .ok()
                .and_then(|tag| tag.verify(&key, &tag.unverified().name).ok())
            else {
                return Ok(Vec::new());
            };
            named.push(tag.id);
        }
        let older = self.all_generations()?;
        named.extend(older.iter().map(|tag| tag.unverified().id));
        let images = self.images();
        let mut unnamed = Vec::new();
        for entry in fs::read_dir(&images).map_err(StateError::io("read", &images))? {
            let entry = entry.map_err(StateError::io("read", &images))?;
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            unnamed.extend(id.filter(|id: &ImageId| !named.contains(id)));
        }
        Ok(unnamed)
    }

    /// Takes a copy away in one step (a rename into `tmp/`), then frees its space.
    pub(crate) fn discard_directory(&self, path: &Path) -> Result<(), StateError> {
        let doomed = self.temporary("removed");
        fs::rename(path, &doomed).map_err(StateError::io("remove", path))?;
        fs::remove_dir_all(&doomed).map_err(StateError::io("remove", &doomed))
    }
}

/// What a mirror's directories in `tmp/` begin with; the rest is a hash.
const PARTIAL: &str = "mirror-";

fn is_partial(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str()?.strip_prefix(PARTIAL)?.parse().ok())
        .is_some_and(|_: ImageId| true)
}

/// Removes a directory that no live process works in: such a one holds a lock, which dies with it.
fn remove_abandoned(path: &Path) -> Result<(), StateError> {
    if let Ok(Some(_abandoned)) = Lock::try_directory(path) {
        unless_gone(fs::remove_dir_all(path)).map_err(StateError::io("remove leftover", path))?;
    }
    Ok(())
}

/// A publisher that ends removes what it worked in without the lock, and may be quicker.
fn unless_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
