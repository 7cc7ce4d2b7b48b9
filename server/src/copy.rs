//! One published copy: its manifest, its mapped bytes, and who downloads it over HTTP.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootswarm_image::limits::MAX_MANIFEST_BYTES;
use rootswarm_image::{ImageId, Manifest, ManifestError, TagError};
use rootswarm_transport::store::{FileStore, StoreError};

use crate::limits::SERVED_MANIFESTS_BYTES_MAX;
use crate::state::StateError;
use crate::units;

/// Why a published copy is not served.
#[derive(Debug, thiserror::Error)]
pub enum DamageError {
    /// The tag cannot be read.
    #[error(transparent)]
    Tag(#[from] StateError),
    /// The tag is not ours, or not about this name.
    #[error(transparent)]
    Signature(#[from] TagError),
    /// A file of the copy cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The manifest is not that of the image.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The tag and the manifest disagree.
    #[error("its tag says {tag} bytes, its manifest {manifest}")]
    Disagree {
        /// What the tag says.
        tag: u64,
        /// What the manifest says.
        manifest: u64,
    },
    /// The copy has another length.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no memory for its manifest beside those of the other images.
    #[error("no room for its manifest: it takes {}, and of the {} for the manifests of all images {} are free", units::Bytes(*needed), units::Bytes(SERVED_MANIFESTS_BYTES_MAX as u64), units::Bytes(*free))]
    ManifestRoom {
        /// How long it is.
        needed: u64,
        /// What the others leave.
        free: u64,
    },
    /// It was hashed, and has other bytes.
    #[error("{0}")]
    Contents(String),
}

/// One published copy, open and mapped.
#[derive(Debug)]
pub struct Copy {
    id: ImageId,
    manifest: Arc<Manifest>,
    encoded_manifest: Bytes,
    store: FileStore,
    stamp: FileStamp,
    downloads: Mutex<Downloads>,
}

/// Who downloads a copy over HTTP; the swarm knows its own nodes.
#[derive(Debug, Default)]
struct Downloads {
    under_way: usize,
    last: Option<Instant>,
}

/// One download over HTTP, for as long as this value is kept.
#[derive(Debug)]
pub struct Download(Arc<Copy>);

impl Drop for Download {
    fn drop(&mut self) {
        let mut downloads = self.0.downloads();
        downloads.under_way -= 1;
        downloads.last = Some(Instant::now());
    }
}

impl Copy {
    /// The image's id.
    pub fn id(&self) -> &ImageId {
        &self.id
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The manifest's bytes.
    pub fn encoded_manifest(&self) -> &Bytes {
        &self.encoded_manifest
    }

    /// What tells it from another file.
    pub(crate) fn stamp(&self) -> FileStamp {
        self.stamp
    }

    /// Its bytes, mapped.
    pub fn store(&self) -> &FileStore {
        &self.store
    }

    /// How long the image is.
    pub fn length(&self) -> u64 {
        self.manifest.geometry().length()
    }

    /// Counts a download over HTTP.
    pub fn download(self: &Arc<Copy>) -> Download {
        self.downloads().under_way += 1;
        Download(self.clone())
    }

    /// How long ago somebody downloaded it over HTTP; zero while somebody does, `None` if nobody did.
    pub fn idle_http(&self) -> Option<Duration> {
        let downloads = self.downloads();
        match downloads.under_way {
            0 => downloads.last.map(|last| last.elapsed()),
            _ => Some(Duration::ZERO),
        }
    }

    fn downloads(&self) -> MutexGuard<'_, Downloads> {
        self.downloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the copy in `directory`, if its manifest takes no more than `free` bytes.
    pub(crate) fn open(directory: &Path, id: &ImageId, free: usize) -> Result<Copy, DamageError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| DamageError::Read { path, source }
        };
        let manifest_path = directory.join("manifest");
        let encoded = read_manifest(&manifest_path, free)?;
        let manifest = Arc::new(Manifest::decode(&encoded, id)?);
        let path = directory.join("image");
        let stamp = FileStamp::of(&path).map_err(read(&path))?;
        let store = FileStore::open(&path, manifest.geometry())?;
        Ok(Copy {
            id: *id,
            manifest,
            encoded_manifest: encoded.into(),
            store,
            stamp,
            downloads: Mutex::default(),
        })
    }
}

fn read_manifest(path: &Path, free: usize) -> Result<Vec<u8>, DamageError> {
    let failed = |source| DamageError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let needed = file.metadata().map_err(failed)?.len();
    // One that is too long to be a manifest is damaged, whatever room there is.
    let most = MAX_MANIFEST_BYTES as u64;
    let free = free as u64;
    if needed > free && needed <= most {
        return Err(DamageError::ManifestRoom { needed, free });
    }
    let mut encoded = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut encoded)
        .map_err(failed)?;
    Ok(encoded)
}

/// What tells whether a path still leads to the same, unchanged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileStamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<FileStamp> {
        let metadata = fs::metadata(path)?;
        Ok(FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl Copy {
    pub(crate) fn is_still_at(&self, directory: &Path) -> bool {
        FileStamp::of(&directory.join("image")).is_ok_and(|stamp| stamp == self.stamp)
    }
}
