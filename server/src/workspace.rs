//! Where a copy comes to be: a directory in `tmp/` that becomes a published copy by one rename.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rootswarm_image::{ImageId, Manifest, SignedTag};

use crate::durable::{self, Lock};
use crate::publish_error::PublishError;
use crate::state::{StateDir, StateError};

/// A directory in `tmp/` in which a copy comes to be; gone with this value unless it was moved.
pub(crate) struct Workspace {
    path: PathBuf,
    /// Whether what is in it outlives this process, for the next one to go on with.
    is_kept: bool,
    /// Tells a sweeping process that this one is alive.
    _lock: Option<Lock>,
}

impl Workspace {
    pub(crate) fn new(state: &StateDir) -> Result<Workspace, PublishError> {
        let path = state.temporary("publish");
        // The sweeper holds the same lock, so it never sees the directory unlocked.
        let _lock = state.lock()?;
        durable::make_directory(&path, 0o755, state.owner())
            .map_err(StateError::io("make directory", &path))?;
        let lock = Lock::try_directory(&path).map_err(StateError::io("lock", &path))?;
        Ok(Workspace {
            path,
            is_kept: false,
            _lock: lock,
        })
    }

    /// The one in which the image `id` is assembled: what an earlier attempt left is still in it, to
    /// be verified before it is used. It stays until it is published, or
    /// [`StateDir::keep_partials`] finds that nobody wants it.
    pub(crate) fn resume(state: &StateDir, id: &ImageId) -> Result<Workspace, PublishError> {
        let path = state.partial(id);
        let _lock = state.lock()?;
        durable::make_directory(&path, 0o755, state.owner())
            .map_err(StateError::io("make directory", &path))?;
        let lock = Lock::try_directory(&path)
            .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::ResourceBusy.into()))
            .map_err(StateError::io("lock", &path))?;
        Ok(Workspace {
            path,
            is_kept: true,
            _lock: Some(lock),
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Publishes the image that was assembled here, under a tag that is signed already. One that is
    /// older than what the name means now becomes an older generation, or is let go.
    pub(crate) fn adopt(
        self,
        state: &StateDir,
        manifest: &Manifest,
        signed: &SignedTag,
    ) -> Result<(), PublishError> {
        let image = self.path.join("image");
        let copy = File::open(&image).map_err(StateError::io("open", &image))?;
        if let Some(owner) = state.owner() {
            owner.give(&copy).map_err(StateError::io("make", &image))?;
        }
        copy.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| copy.sync_all())
            .map_err(StateError::io("write", &image))?;
        self.write_manifest(state, manifest)?;
        let tag = signed.unverified();
        let _lock = state.lock()?;
        let current = state.read_tag(&tag.name).ok().flatten();
        if current.is_some_and(|current| current.unverified().version > tag.version) {
            if state.wants_generation(signed)? {
                self.move_to(&state.copy(manifest.id()), state)?;
                state.adopt_generation(signed)?;
            }
            return Ok(());
        }
        self.move_to(&state.copy(manifest.id()), state)?;
        Ok(state.name_the_copy(signed)?)
    }

    /// Becomes the copy at `place`; a damaged one that is there is mended by it. Called with the lock
    /// held.
    pub(crate) fn move_to(&self, place: &Path, state: &StateDir) -> Result<(), StateError> {
        if place.exists() {
            state.discard_directory(place)?;
        }
        durable::sync_directory(&self.path)
            .and_then(|()| fs::rename(&self.path, place))
            .and_then(|()| durable::sync_directory(&state.images()))
            .map_err(StateError::io("move the copy to", place))
    }

    pub(crate) fn write_manifest(
        &self,
        state: &StateDir,
        manifest: &Manifest,
    ) -> Result<(), PublishError> {
        let path = self.path.join("manifest");
        durable::write_new(&path, &manifest.encode(), 0o444, state.owner())
            .map_err(StateError::io("write", &path))?;
        Ok(())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // Not there when it was moved to its place; a leftover is swept at the next start.
        if !self.is_kept {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
