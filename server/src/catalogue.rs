//! What is served now: an in-memory view of the state directory.
//!
//! Names and file names that come over the network are looked up here and nowhere else; paths are
//! built from what a directory listing said, never from a request. A copy that is not what its
//! directory says is left out and reported. Readers take a [`Snapshot`] and keep it: a download
//! that began on one image ends on it, whatever is published meanwhile.
//!
//! **Checking.** What is there when the server starts is hashed before it is served, and "loading" until
//! then. What is published later was hashed a moment ago by whoever published it: it is served at once and
//! checked meanwhile. Who hashes, and how many at a time, is the server's part ([`Catalogue::next_unchecked`],
//! [`Catalogue::checked`]).
//!
//! **Leaving.** A copy that nothing names any more can be had by its id until the server lets go of it
//! ([`Catalogue::release`]): a boot that began with it ends with it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rootswarm_image::{ImageId, ImageName, SignedTag, SwarmPublicKey};
use rootswarm_transport::store::StoreError;

use crate::copy::FileStamp;
pub use crate::copy::{Copy, DamageError, Download};
use crate::limits::SERVED_MANIFESTS_BYTES_MAX;
pub use crate::snapshot::{Found, Published, Snapshot};
use crate::state::{StateDir, StateError};

/// A name whose copy is not served, and why.
#[derive(Debug, thiserror::Error)]
#[error("image {name}{} is {}", older(*.version), not_served(.name, .reason))]
pub struct Damage {
    /// The name in `tags/`.
    pub name: String,
    /// Of an older generation, its version.
    pub version: Option<u64>,
    /// What is wrong.
    pub reason: DamageError,
}

fn older(version: Option<u64>) -> String {
    version.map_or_else(String::new, |version| format!(", older version {version},"))
}

fn not_served(name: &str, reason: &DamageError) -> String {
    match reason {
        DamageError::ManifestRoom { .. } => format!(
            "not served: {reason} (`rootswarm remove` an image, keep fewer generations with --keep, or \
             publish with a larger --chunk-size)"
        ),
        _ => format!("damaged and not served: {reason} (publish {name} again)"),
    }
}

/// What is known of a copy's bytes.
#[derive(Clone, Debug)]
enum Check {
    Good,
    Bad(String),
}

/// The catalogue of one state directory.
#[derive(Debug)]
pub struct Catalogue {
    state: StateDir,
    key: SwarmPublicKey,
    verify: bool,
    current: RwLock<Arc<Snapshot>>,
    seen: Mutex<Option<Watermark>>,
    checks: Mutex<HashMap<FileStamp, Check>>,
    /// Copies to hash: those of current tags first, small ones before large ones.
    unchecked: Mutex<Vec<Arc<Copy>>>,
    /// Whether all that was there at the start has been checked.
    is_started: AtomicBool,
    /// Names that are being published by the server itself.
    publishing: Mutex<BTreeSet<ImageName>>,
}

/// What is left for manifests beside those of copies that are open. Of what was served until now, none is
/// let go of before its swarm is.
fn free(old: &Snapshot, opened: &HashMap<ImageId, Arc<Copy>>) -> usize {
    let others = old.copies.iter().chain(&old.leaving);
    let others = others.filter(|(id, _)| !opened.contains_key(*id));
    let taken = opened.iter().chain(others);
    let taken: usize = taken.map(|(_, copy)| copy.encoded_manifest().len()).sum();
    SERVED_MANIFESTS_BYTES_MAX.saturating_sub(taken)
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
            checks: Mutex::default(),
            unchecked: Mutex::default(),
            is_started: AtomicBool::new(!verify),
            publishing: Mutex::default(),
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

    /// Reads the state directory again and returns what cannot be served. Blocks on files and on the
    /// state directory's lock, and hashes nothing.
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
                    Ok(published) => found.push((published, None)),
                    Err(reason) => damages.push(Damage {
                        name,
                        version: None,
                        reason,
                    }),
                }
            }
            for tag in self.state.all_generations()? {
                let (name, version) = (tag.unverified().name.to_string(), tag.unverified().version);
                match self.open_copy(&name, Ok(tag), &old, &mut opened) {
                    Ok(published) => found.push((published, Some(version))),
                    Err(reason) => damages.push(Damage {
                        name,
                        version: Some(version),
                        reason,
                    }),
                }
            }
        }
        let mut next = Snapshot {
            boot: self.list_boot_files(),
            loading_names: self.publishing().clone(),
            ..Snapshot::default()
        };
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_started = self.is_started.load(Ordering::Relaxed);
        let mut unchecked: Vec<(bool, Arc<Copy>)> = Vec::new();
        for (published, version) in found {
            let copy = published.copy.clone();
            let name = published.tag.unverified().name.clone();
            match checks.get(&copy.stamp()) {
                _ if !self.verify => {}
                Some(Check::Good) => {}
                Some(Check::Bad(reason)) => {
                    damages.push(Damage {
                        name: name.to_string(),
                        version,
                        reason: DamageError::Contents(reason.clone()),
                    });
                    continue;
                }
                None => {
                    unchecked.push((version.is_some(), copy.clone()));
                    if !is_started {
                        next.loading_copies.insert(*copy.id());
                        if version.is_none() {
                            next.loading_names.insert(name);
                        }
                        continue;
                    }
                }
            }
            next.copies.insert(*copy.id(), copy);
            match version {
                None => {
                    next.loading_names.remove(&name);
                    next.names.insert(name, published);
                }
                Some(_) => next.older.entry(name).or_default().push(published),
            }
        }
        let wanted: HashSet<FileStamp> = opened.values().map(|copy| copy.stamp()).collect();
        checks.retain(|stamp, _| wanted.contains(stamp));
        drop(checks);
        unchecked.sort_by_key(|(is_older, copy)| (*is_older, copy.length()));
        *self.unchecked() = unchecked.into_iter().map(|(_, copy)| copy).collect();
        next.leaving = [&old.copies, &old.leaving]
            .into_iter()
            .flatten()
            .filter(|(id, _)| !next.copies.contains_key(id) && !opened.contains_key(id))
            .map(|(id, copy)| (*id, copy.clone()))
            .collect();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(watermark);
        Ok(damages)
    }

    /// Takes in copies that nothing names, which an earlier server was still sending when it ended.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn take_in_unnamed(&self) -> Result<(), StateError> {
        let unnamed = {
            let _lock = self.state.lock()?;
            self.state.unnamed_copies()?
        };
        let mut free = SERVED_MANIFESTS_BYTES_MAX;
        // One that cannot be opened goes with the next tidying.
        let opened = unnamed.into_iter().filter_map(|id| {
            let copy = Copy::open(&self.state.copy(&id), &id, free).ok()?;
            free -= copy.encoded_manifest().len();
            Some((id, Arc::new(copy)))
        });
        let leaving: HashMap<_, _> = opened.collect();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // The reload that follows carries them over.
        *current = Arc::new(Snapshot {
            leaving,
            ..Snapshot::default()
        });
        Ok(())
    }

    /// Lets go of a copy that is leaving.
    pub fn release(&self, id: &ImageId) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.leaving.contains_key(id) {
            let mut next = current.as_ref().clone();
            next.leaving.remove(id);
            *current = Arc::new(next);
        }
    }

    /// Removes copies that nothing names and that are not leaving from the disk. Blocks.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn tidy(&self) -> Result<(), StateError> {
        let _lock = self.state.lock()?;
        let mut tidied = Ok(());
        for id in self.state.unnamed_copies()? {
            if !self.snapshot().leaving.contains_key(&id) {
                // One that stays keeps no other from going.
                tidied = tidied.and(self.state.discard_directory(&self.state.copy(&id)));
            }
        }
        tidied
    }

    /// The next copy to be hashed, which `is_busy` does not say is being hashed already.
    pub fn next_unchecked(&self, is_busy: impl Fn(&Arc<Copy>) -> bool) -> Option<Arc<Copy>> {
        self.unchecked().iter().find(|copy| !is_busy(copy)).cloned()
    }

    /// Whether everything has been checked.
    pub fn is_checked(&self) -> bool {
        self.unchecked().is_empty()
    }

    /// What hashing a copy came to; [`Catalogue::reload`] brings it into effect.
    pub fn checked(&self, copy: &Arc<Copy>, result: Result<(), StoreError>) {
        let check = match result {
            Ok(()) => Check::Good,
            Err(reason) => Check::Bad(reason.to_string()),
        };
        self.checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(copy.stamp(), check);
        self.unchecked().retain(|it| it.stamp() != copy.stamp());
    }

    /// From now on what is new is served before it is checked.
    pub fn start(&self) {
        self.is_started.store(true, Ordering::Relaxed);
    }

    /// Says that the server is publishing this name itself, or that it has ended to; until then whoever
    /// asks for it is told to come again. [`Catalogue::reload`] brings it into effect.
    pub fn publishing_name(&self, name: &ImageName, is_under_way: bool) {
        let mut publishing = self.publishing();
        match is_under_way {
            true => publishing.insert(name.clone()),
            false => publishing.remove(name),
        };
    }

    fn publishing(&self) -> MutexGuard<'_, BTreeSet<ImageName>> {
        self.publishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn unchecked(&self) -> MutexGuard<'_, Vec<Arc<Copy>>> {
        self.unchecked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
                    .copy(&tag.id)
                    .filter(|copy| copy.is_still_at(&directory));
                match known {
                    Some(copy) => copy.clone(),
                    None => Arc::new(Copy::open(&directory, &tag.id, free(old, opened))?),
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
