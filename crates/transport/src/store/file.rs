//! A whole image as the seed published it: read only, served from its map.
//!
//! Where the file lies, that it is this installation's own copy and that nobody writes it, is the
//! catalogue's part.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rootswarm_image::{ChunkIndex, Geometry, Manifest};

use super::{ChunkSource, StoreError, map, scan};

/// A published copy. Cheap to clone; all clones share one map.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
    file: Arc<File>,
    geometry: Geometry,
    map: Bytes,
}

impl FileStore {
    /// Maps the copy at `path`, which must have exactly the length of the image.
    ///
    /// The bytes are not verified: see [`FileStore::verify`].
    pub fn open(path: impl AsRef<Path>, geometry: &Geometry) -> Result<FileStore, StoreError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let found_bytes = file.metadata().map_err(StoreError::io("stat", path))?.len();
        if found_bytes != geometry.length() {
            return Err(StoreError::WrongLength {
                path: path.to_owned(),
                expected_bytes: geometry.length(),
                found_bytes,
            });
        }
        let map = map::map_file(&file, geometry.length()).map_err(StoreError::io("map", path))?;
        Ok(FileStore {
            path: path.to_owned(),
            file: Arc::new(file),
            geometry: *geometry,
            map,
        })
    }

    /// Reads the whole copy and refuses it if any chunk is not the manifest's. Uses all cores.
    pub fn verify(&self, manifest: &Arc<Manifest>) -> Result<(), StoreError> {
        if *manifest.geometry() != self.geometry {
            return Err(StoreError::WrongLength {
                path: self.path.clone(),
                expected_bytes: manifest.geometry().length(),
                found_bytes: self.geometry.length(),
            });
        }
        let good = scan::verified_chunks(&self.file, manifest)
            .map_err(StoreError::io("read", &self.path))?;
        match good.iter_missing().next() {
            None => Ok(()),
            Some(first) => Err(StoreError::Damaged {
                path: self.path.clone(),
                first,
                damaged: self.geometry.chunk_count() - good.count(),
                chunks: self.geometry.chunk_count(),
            }),
        }
    }

    /// How the image is cut.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The whole image.
    #[must_use]
    pub fn whole(&self) -> Bytes {
        self.map.clone()
    }
}

impl ChunkSource for FileStore {
    fn chunk(&self, index: ChunkIndex) -> Option<Bytes> {
        map::range(&self.geometry, index).map(|range| self.map.slice(range))
    }
}
