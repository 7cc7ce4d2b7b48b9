//! What is served now: an in-memory view of the state directory.
//!
//! Names and file names that come over the network are looked up here and nowhere else; paths are
//! built from what a directory listing said, never from a request. A copy that is not what its
//! directory says is left out and reported. Readers take a [`Snapshot`] and keep it: a download
//! that began on one image ends on it, whatever is published meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rootswarm_image::{
    ImageId, ImageName, Manifest, ManifestError, SignedTag, SwarmPublicKey, TagError,
};
use rootswarm_transport::store::{FileStore, StoreError};

use crate::state::{StateDir, StateError};

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
    /// The copy has another length, or other bytes.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A name whose copy is not served, and why.
#[derive(Debug, thiserror::Error)]
#[error("image {name} is damaged and not served: {reason} (publish {name} again)")]
pub struct Damage {
    /// The name in `tags/`.
    pub name: String,
    /// What is wrong.
    pub reason: DamageError,
}

/// One published copy, open and mapped.
#[derive(Debug)]
pub struct Copy {
    id: ImageId,
    manifest: Arc<Manifest>,
    encoded_manifest: Bytes,
    store: FileStore,
    stamp: FileStamp,
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

    /// Its bytes, mapped.
    pub fn store(&self) -> &FileStore {
        &self.store
    }

    /// How long the image is.
    pub fn length(&self) -> u64 {
        self.manifest.geometry().length()
    }

    fn open(directory: &Path, id: &ImageId) -> Result<Copy, DamageError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| DamageError::Read { path, source }
        };
        let manifest_path = directory.join("manifest");
        let encoded = fs::read(&manifest_path).map_err(read(&manifest_path))?;
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
        })
    }
}

/// What a name means now.
#[derive(Debug, Clone)]
pub struct Published {
    /// The signed statement.
    pub tag: SignedTag,
    /// Its bytes.
    pub encoded_tag: Bytes,
    /// The copy it names.
    pub copy: Arc<Copy>,
}

/// The catalogue at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    names: BTreeMap<ImageName, Published>,
    copies: HashMap<ImageId, Arc<Copy>>,
    boot: BTreeMap<String, PathBuf>,
}

impl Snapshot {
    /// What `name` means.
    pub fn image(&self, name: &ImageName) -> Option<&Published> {
        self.names.get(name)
    }

    /// All names.
    pub fn images(&self) -> impl Iterator<Item = &Published> {
        self.names.values()
    }

    /// A copy by its id.
    pub fn copy(&self, id: &ImageId) -> Option<&Arc<Copy>> {
        self.copies.get(id)
    }

    /// All copies.
    pub fn copies(&self) -> impl Iterator<Item = &Arc<Copy>> {
        self.copies.values()
    }

    /// Where the boot file of this name is; only files that the directory listing showed are known.
    pub fn boot_file(&self, name: &str) -> Option<&Path> {
        self.boot.get(name).map(PathBuf::as_path)
    }
}

/// The catalogue of one state directory.
#[derive(Debug)]
pub struct Catalogue {
    state: StateDir,
    key: SwarmPublicKey,
    verify: bool,
    current: RwLock<Arc<Snapshot>>,
    seen: Mutex<Option<Watermark>>,
}

/// A change within this time of the last look may carry the same time stamp as what was seen then
/// (the kernel's clock for files ticks each 1-10 ms), so the next look does not trust it.
const RACY_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq)]
struct Watermark {
    modified: [Option<SystemTime>; 3],
    racy: bool,
}

impl Catalogue {
    /// An empty catalogue of `state`, whose tags are signed by `key`. With `verify`, each copy is
    /// hashed before it is served.
    pub fn new(state: StateDir, key: SwarmPublicKey, verify: bool) -> Catalogue {
        Catalogue {
            state,
            key,
            verify,
            current: RwLock::default(),
            seen: Mutex::default(),
        }
    }

    /// The state directory it shows.
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// What is served now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        // The lock is held for a clone or an assignment, which leave no half-made value.
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the state directory changed since the last [`Catalogue::reload`]. Three `stat` calls.
    pub fn is_stale(&self) -> bool {
        let now = self.watermark();
        match &*self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(seen) => seen.racy || seen.modified != now.modified,
            None => true,
        }
    }

    fn watermark(&self) -> Watermark {
        let directories = [
            self.state.tags_directory(),
            self.state.images(),
            self.state.boot(),
        ];
        let modified = directories.map(|path| {
            fs::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        });
        let racy = modified
            .iter()
            .flatten()
            .any(|time| time.elapsed().is_ok_and(|age| age < RACY_FOR));
        Watermark { modified, racy }
    }

    /// Reads the state directory again and returns what cannot be served. Blocks: it opens files
    /// and hashes new copies.
    pub fn reload(&self) -> Result<Vec<Damage>, StateError> {
        let watermark = self.watermark();
        let old = self.snapshot();
        let mut damages = Vec::new();
        let mut opened: HashMap<ImageId, Arc<Copy>> = HashMap::new();
        let mut found = Vec::new();
        {
            // A publisher does its renames under this lock: no tag is seen without its copy.
            let _lock = self.state.lock()?;
            for (name, tag) in self.state.read_tags()? {
                match self.open_copy(&name, tag, &old, &mut opened) {
                    Ok(published) => found.push((name, published)),
                    Err(reason) => damages.push(Damage { name, reason }),
                }
            }
        }
        let mut next = Snapshot {
            boot: self.list_boot_files(),
            ..Snapshot::default()
        };
        for (name, published) in found {
            let copy = &published.copy;
            let known = [&*old, &next]
                .iter()
                .any(|s| s.copies.get(&copy.id).is_some_and(|c| Arc::ptr_eq(c, copy)));
            // Two names of one damaged copy are both checked: each is reported with what is wrong.
            if self.verify
                && !known
                && let Err(reason) = copy.store.verify(&copy.manifest)
            {
                damages.push(Damage {
                    name,
                    reason: reason.into(),
                });
                continue;
            }
            next.copies.insert(copy.id, copy.clone());
            next.names
                .insert(published.tag.unverified().name.clone(), published);
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(watermark);
        Ok(damages)
    }

    fn open_copy(
        &self,
        name: &str,
        tag: Result<SignedTag, StateError>,
        old: &Snapshot,
        opened: &mut HashMap<ImageId, Arc<Copy>>,
    ) -> Result<Published, DamageError> {
        let signed = tag?;
        let tag = signed.verify(&self.key, &signed.unverified().name)?;
        debug_assert_eq!(tag.name.as_str(), name, "read_tags compares the two");
        let directory = self.state.copy(&tag.id);
        let copy = match opened.get(&tag.id) {
            Some(copy) => copy.clone(),
            None => {
                let known = old
                    .copies
                    .get(&tag.id)
                    .filter(|copy| copy.is_still_at(&directory));
                match known {
                    Some(copy) => copy.clone(),
                    None => Arc::new(Copy::open(&directory, &tag.id)?),
                }
            }
        };
        if copy.length() != tag.length {
            return Err(DamageError::Disagree {
                tag: tag.length,
                manifest: copy.length(),
            });
        }
        opened.insert(tag.id, copy.clone());
        Ok(Published {
            encoded_tag: signed.encode().into(),
            tag: signed,
            copy,
        })
    }

    /// The files in `boot/` that have a name which needs no quoting anywhere. Links are followed:
    /// the admin who can put one there can also copy its target.
    fn list_boot_files(&self) -> BTreeMap<String, PathBuf> {
        let directory = self.state.boot();
        let Ok(entries) = fs::read_dir(&directory) else {
            return BTreeMap::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let plain = name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b));
                let path = entry.path();
                (plain && !name.starts_with('.') && path.is_file()).then_some((name, path))
            })
            .collect()
    }
}

/// What tells whether a path still leads to the same, unchanged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
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
    fn is_still_at(&self, directory: &Path) -> bool {
        FileStamp::of(&directory.join("image")).is_ok_and(|stamp| stamp == self.stamp)
    }
}
