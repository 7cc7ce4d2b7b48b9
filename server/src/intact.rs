//! Whether a copy in the state directory is what its directory says. Whoever lets a name mean a copy that
//! is there already hashes it first, and without the state directory's lock: a server waits for that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rootswarm_image::{ImageId, Manifest, all_cores, verified_chunks};

use crate::copy::DamageError;
use crate::source::Stamp;
use crate::state::{StateDir, StateError};

/// A copy in the state directory that was found to be what its directory says.
pub(crate) struct Intact {
    /// Its manifest.
    pub(crate) manifest: Manifest,
    /// Its file, as it was hashed.
    pub(crate) stamp: Stamp,
}

impl Intact {
    /// Whether the file in `place` is still the one that was hashed.
    pub(crate) fn is_still_at(&self, place: &Path) -> bool {
        Stamp::of_path(&place.join("image")).is_ok_and(|now| now == self.stamp)
    }
}

/// The copy at `place`, if it is what its directory says. It is hashed to know: a damaged copy must not
/// be the one that is kept, nor the one that a name is made to mean.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn intact_copy(place: &Path, id: &ImageId) -> Result<Intact, DamageError> {
    let read = |path: &Path| {
        let path: PathBuf = path.to_owned();
        move |source| DamageError::Read { path, source }
    };
    let path = place.join("manifest");
    let manifest = Manifest::decode(&fs::read(&path).map_err(read(&path))?, id)?;
    let path = place.join("image");
    let image = File::open(&path).map_err(read(&path))?;
    let stamp = Stamp::of(&image).map_err(read(&path))?;
    let expected = manifest.geometry().length();
    if stamp.length != expected {
        return Err(DamageError::Contents(format!(
            "it has {} bytes, expected {expected}",
            stamp.length
        )));
    }
    let good = verified_chunks(&image, &manifest, all_cores()).map_err(read(&path))?;
    let chunks = manifest.geometry().chunk_count();
    if !good.is_full() {
        return Err(DamageError::Contents(format!(
            "{} of its {chunks} chunks do not have the hash that its manifest says",
            chunks - good.count()
        )));
    }
    Ok(Intact { manifest, stamp })
}

impl StateDir {
    /// The copy of the image `id`, if a name may be made to mean it. Called without the lock.
    ///
    /// # Errors
    /// It is damaged.
    pub(crate) fn copy_to_name(&self, id: &ImageId) -> Result<Intact, StateError> {
        let path = self.copy(id);
        intact_copy(&path, id).map_err(|reason| StateError::DamagedCopy {
            path,
            reason: Box::new(reason),
        })
    }
}
