//! The seed's state directory: the swarm key, the published copies, and the signed tags.
//!
//! ```text
//! swarm.key, swarm.pub            the installation's key; made at first start
//! images/<root hash>/{image,manifest}   read-only copies; what is served
//! tags/NAME                       a signed statement of what NAME means now
//! retired/NAME                    the last tag of a removed name, so that versions only ever grow
//! tokens                          admission tokens, hashed (crate::token)
//! revoked                         the epoch, and nodes whose admission was taken back (crate::revocation)
//! mirror                          the seed that is mirrored here, if one is (crate::mirror)
//! policy                          whom that seed lets in, as it told (crate::policy)
//! boot/                           kernels, initrds and boot scripts for HTTP
//! tmp/                            what is not finished; emptied at start, but for a mirror's downloads
//! lock, serve.lock, control.sock
//! ```
//!
//! Everything is written under a temporary name, synced and renamed, so that a reader, and a crash,
//! sees the old or the new and nothing else. Writers hold `lock`. How a copy is made is
//! [`crate::publish`]'s business; whether it is still intact, [`crate::catalogue`]'s.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rootswarm_image::{
    ImageId, ImageName, SignedTag, SwarmKey, SwarmKeyError, SwarmPublicKey, TagError,
};

use crate::durable::{self, Lock, Owner};
use crate::exit::Exit;
use crate::guarded::{GuardError, POLICY, REVOKED, SWARM_KEY, TOKENS};
use crate::revocation::{RevocationError, RevocationList};

/// Where the state is unless somebody says otherwise.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/rootswarm";

/// The epoch in which an installation begins; `rootswarm revoke --all` begins a new one for certificates
/// and tags alike. Which it is now: [`StateDir::epoch`].
pub const FIRST_EPOCH: u32 = 1;

/// How often a lock that another process holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// A signed tag is some 200 bytes; more in `tags/` is not ours, and is not read into memory.
const MAX_TAG_FILE_BYTES: u64 = 64 * 1024;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not there, and the command would not make one.
    #[error("state directory {} does not exist (publish an image first, or name another with --state)", .0.display())]
    Missing(PathBuf),
    /// An operation on it failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The verb.
        what: &'static str,
        /// The object.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file that lets somebody in is not only ours.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The key file holds something else.
    #[error("swarm key {}: {source}", path.display())]
    KeyContents {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        source: SwarmKeyError,
    },
    /// Tags are there that the missing key signed.
    #[error("swarm key {} is missing, and published tags are signed with it: restore it from a backup (or remove {} and publish again under a new key, which must then be baked into the initrd)", key.display(), tags.display())]
    KeyLost {
        /// Where the key should be.
        key: PathBuf,
        /// The tags it signed.
        tags: PathBuf,
    },
    /// A new key could not be made.
    #[error("cannot make a swarm key: {0}")]
    KeyGeneration(SwarmKeyError),
    /// No such name.
    #[error("no image is published as {0} (`rootswarm images` lists them)")]
    UnknownImage(ImageName),
    /// What is here is another seed's.
    #[error("state directory {} mirrors {primary}: do this there (or take over: serve without --mirror first)", path.display())]
    Mirrors {
        /// The directory.
        path: PathBuf,
        /// The seed that is mirrored.
        primary: String,
    },
    /// The file that says which epoch it is cannot be used.
    #[error("cannot tell the epoch: {0}")]
    Epoch(String),
    /// A tag cannot be read.
    #[error("tag {name} in {} is damaged: {reason} (publish {name} again)", path.display())]
    DamagedTag {
        /// The image's name.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl StateError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            StateError::Missing(_) | StateError::Io { .. } | StateError::KeyGeneration(_) => {
                Exit::Local
            }
            StateError::Guard(GuardError::Io { .. }) => Exit::Local,
            StateError::Guard(_) => Exit::Refused,
            StateError::KeyContents { .. }
            | StateError::KeyLost { .. }
            | StateError::Epoch(_)
            | StateError::DamagedTag { .. } => Exit::Damaged,
            StateError::UnknownImage(_) => Exit::NoSuchImage,
            StateError::Mirrors { .. } => Exit::BadInput,
        }
    }

    /// Names what was done to what, for `map_err`.
    pub(crate) fn io<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> StateError + use<'a> {
        move |source| StateError::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

/// A file of `tags/`: its name, and its tag or why it has none.
pub type FoundTag = (String, Result<SignedTag, StateError>);

/// An opened state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
    owner: Option<Owner>,
}

impl StateDir {
    /// Opens the directory for writing, makes what is missing in it, and removes what an
    /// interrupted writer left.
    pub fn open(root: &Path) -> Result<StateDir, StateError> {
        fs::create_dir_all(root).map_err(StateError::io("make state directory", root))?;
        let state = StateDir::open_existing(root)?;
        for (name, mode) in [
            ("images", 0o755),
            ("tags", 0o755),
            ("retired", 0o755),
            ("boot", 0o755),
            ("tmp", 0o700),
        ] {
            let path = root.join(name);
            durable::make_directory(&path, mode, state.owner)
                .map_err(StateError::io("make directory", &path))?;
        }
        state.sweep()?;
        Ok(state)
    }

    /// Opens the directory for reading only.
    pub fn open_existing(root: &Path) -> Result<StateDir, StateError> {
        match Owner::of_directory(root) {
            Ok(owner) => Ok(StateDir {
                root: root.to_owned(),
                owner,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StateError::Missing(root.to_owned()))
            }
            Err(e) => Err(StateError::io("open state directory", root)(e)),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who new files are given to.
    pub(crate) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Where the copies are.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Where the tags are.
    pub fn tags_directory(&self) -> PathBuf {
        self.root.join("tags")
    }

    /// What HTTP serves under `/boot/`.
    pub fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// The status socket of a running server.
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// The directory of one copy. The id is a hash, never a name.
    pub fn copy(&self, id: &ImageId) -> PathBuf {
        self.images().join(id.to_string())
    }

    /// A name in `tmp/` that nobody else uses.
    pub(crate) fn temporary(&self, purpose: &str) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        self.root
            .join("tmp")
            .join(format!("{purpose}-{}-{serial}", std::process::id()))
    }

    /// Keeps other writers out until dropped. Held for moments only: copying and hashing happen
    /// outside it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.root.join("lock");
        Lock::exclusive(&path, self.owner).map_err(StateError::io("lock", &path))
    }

    /// The same, but no longer than `patience`: `None` if another writer is still at it then.
    pub fn lock_within(&self, patience: Duration) -> Result<Option<Lock>, StateError> {
        let path = self.root.join("lock");
        let end = Instant::now() + patience;
        loop {
            let lock = Lock::try_exclusive(&path, self.owner);
            if let Some(lock) = lock.map_err(StateError::io("lock", &path))? {
                return Ok(Some(lock));
            }
            // flock has no time limit of its own.
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// Marks the directory as served by this process; `None` if another process serves it.
    pub fn lock_for_serving(&self) -> Result<Option<Lock>, StateError> {
        let path = self.root.join("serve.lock");
        Lock::try_exclusive(&path, self.owner).map_err(StateError::io("lock", &path))
    }

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

    /// Removes what no live process works on in `tmp/`, and copies that no tag names. What a mirror
    /// has begun to fetch is left to [`StateDir::keep_partials`], as long as this is a mirror.
    fn sweep(&self) -> Result<(), StateError> {
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
                fs::remove_file(path).map_err(StateError::io("remove leftover", path))
            }
        })?;
        self.remove_unnamed_copies()
    }

    /// Removes copies that no tag names. Called with the lock held. A server that still sends one
    /// of them has it mapped and goes on: the space is free when it lets go.
    ///
    /// While a tag is there that cannot be trusted, nothing is removed: what it should name is not
    /// known, and the copy may be good.
    pub(crate) fn remove_unnamed_copies(&self) -> Result<(), StateError> {
        let public = fs::read_to_string(self.root.join("swarm.pub")).unwrap_or_default();
        let Ok(key) = public.trim_end().parse::<SwarmPublicKey>() else {
            return Ok(());
        };
        let mut named = Vec::new();
        for (_, tag) in self.read_tags()? {
            let Some(tag) = tag
                .ok()
                .and_then(|tag| tag.verify(&key, &tag.unverified().name).ok())
            else {
                return Ok(());
            };
            named.push(self.copy(&tag.id));
        }
        let images = self.images();
        for entry in fs::read_dir(&images).map_err(StateError::io("read", &images))? {
            let path = entry.map_err(StateError::io("read", &images))?.path();
            let is_copy = path
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.parse::<ImageId>().is_ok());
            if is_copy && !named.contains(&path) {
                self.discard_directory(&path)?;
            }
        }
        Ok(())
    }

    /// Takes a copy away in one step (a rename into `tmp/`), then frees its space.
    pub(crate) fn discard_directory(&self, path: &Path) -> Result<(), StateError> {
        let doomed = self.temporary("removed");
        fs::rename(path, &doomed).map_err(StateError::io("remove", path))?;
        fs::remove_dir_all(&doomed).map_err(StateError::io("remove", &doomed))
    }

    /// The swarm key. Made if there is none, unless tags are there that a lost one signed.
    pub fn key(&self) -> Result<SwarmKey, StateError> {
        let path = self.root.join(SWARM_KEY.name);
        let _lock = self.lock()?;
        let key = match SWARM_KEY.read(&self.root)? {
            Some(pkcs8) => {
                SwarmKey::from_pkcs8(&pkcs8).map_err(|source| StateError::KeyContents {
                    path: path.clone(),
                    source,
                })?
            }
            None => {
                if !self.read_tags()?.is_empty() {
                    return Err(StateError::KeyLost {
                        key: path,
                        tags: self.tags_directory(),
                    });
                }
                let key = SwarmKey::generate().map_err(StateError::KeyGeneration)?;
                self.replace(&path, key.to_pkcs8(), SWARM_KEY.mode)?;
                key
            }
        };
        let public_path = self.root.join("swarm.pub");
        let public = format!("{}\n", key.public());
        if fs::read(&public_path).ok().as_deref() != Some(public.as_bytes()) {
            self.replace(&public_path, public.as_bytes(), 0o644)?;
        }
        Ok(key)
    }

    /// That nobody else can let nodes in: a server refuses to start rather than to find out at the
    /// first node.
    pub fn check_guarded(&self) -> Result<(), StateError> {
        for file in [TOKENS, REVOKED, POLICY] {
            file.read(&self.root)?;
        }
        Ok(())
    }

    /// Replaces a file of the state directory, durably. Called with the lock held.
    pub(crate) fn replace(
        &self,
        path: &Path,
        contents: &[u8],
        mode: u32,
    ) -> Result<(), StateError> {
        durable::replace_file(path, &self.temporary("file"), contents, mode, self.owner)
            .map_err(StateError::io("write", path))
    }

    /// All tags, by name. One that cannot be decoded is in the list with its reason.
    pub fn read_tags(&self) -> Result<Vec<FoundTag>, StateError> {
        let directory = self.tags_directory();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::io("read", &directory)(e)),
        };
        let mut tags = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StateError::io("read", &directory))?;
            let file_name = entry.file_name().to_string_lossy().into_owned();
            match read_tag_file(&entry.path(), &file_name) {
                Ok(Some(tag)) => tags.push((file_name, Ok(tag))),
                // Removed between the listing and the reading.
                Ok(None) => {}
                Err(e) => tags.push((file_name, Err(e))),
            }
        }
        tags.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(tags)
    }

    /// The last tags of names that were removed. What is damaged there is left out: it only keeps
    /// versions growing.
    pub fn read_retired(&self) -> Vec<SignedTag> {
        let Ok(entries) = fs::read_dir(self.root.join("retired")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                read_tag_file(&entry.path(), &name).ok().flatten()
            })
            .collect()
    }

    /// The seed that this state directory mirrors: a note for whoever would change something here.
    pub fn mirrors(&self) -> Option<String> {
        let text = fs::read_to_string(self.root.join("mirror")).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Notes down which seed is mirrored, or that none is any more.
    pub(crate) fn set_mirrors(&self, primary: Option<&str>) -> Result<(), StateError> {
        let path = self.root.join("mirror");
        let _lock = self.lock()?;
        match primary {
            Some(primary) => self.replace(&path, format!("{primary}\n").as_bytes(), 0o644),
            None => match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    Err(StateError::io("remove", &path)(e))
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether the swarm key is there; [`StateDir::key`] would make one.
    pub(crate) fn has_key(&self) -> bool {
        self.root.join(SWARM_KEY.name).exists()
    }

    /// The epoch in which certificates and tags are signed now.
    pub fn epoch(&self) -> Result<u32, StateError> {
        match RevocationList::new(self.clone()).load_current() {
            Ok(contents) => Ok(contents.epoch),
            Err(RevocationError::State(error)) => Err(error),
            Err(error) => Err(StateError::Epoch(error.to_string())),
        }
    }

    /// Signs what names mean anew, in the current epoch and as a new version, where that was signed in an
    /// earlier one; returns how many. Whoever holds tags to the epoch takes none of an earlier one, so
    /// this is part of beginning a new epoch. Done over after a crash, and for a state directory of a
    /// release that did not do it.
    pub fn renew_tags(&self, key: &SwarmKey) -> Result<usize, StateError> {
        let epoch = self.epoch()?;
        let _lock = self.lock()?;
        let mut renewed = 0;
        for (_, found) in self.read_tags()? {
            // A damaged one, or one under another key, is reported by who serves it.
            let Some(mut tag) = found
                .ok()
                .and_then(|tag| tag.verify(&key.public(), &tag.unverified().name).ok())
            else {
                continue;
            };
            if tag.epoch >= epoch {
                continue;
            }
            tag.version = self.next_version(&tag.name)?;
            tag.epoch = epoch;
            self.write_tag(&tag.sign(key))?;
            renewed += 1;
        }
        Ok(renewed)
    }

    /// The newest epoch in which this installation's key signed a tag that is still here, of a removed name
    /// as well; 0 if there is none.
    pub fn newest_epoch_signed(&self) -> Result<u32, StateError> {
        // Not by `key`, which takes the lock: it is asked with the lock held as well.
        let Some(pkcs8) = SWARM_KEY.read(&self.root)? else {
            return Ok(0);
        };
        let key = SwarmKey::from_pkcs8(&pkcs8).map_err(|source| StateError::KeyContents {
            path: self.root.join(SWARM_KEY.name),
            source,
        })?;
        let key = key.public();
        let current = self
            .read_tags()?
            .into_iter()
            .filter_map(|(_, tag)| tag.ok());
        Ok(current
            .chain(self.read_retired())
            .filter_map(|tag| tag.verify(&key, &tag.unverified().name).ok())
            .map(|tag| tag.epoch)
            .max()
            .unwrap_or(0))
    }

    /// The newest version that was ever seen here of a name, and the newest epoch of its tags; a name that
    /// was removed is remembered.
    pub fn newest(&self, name: &ImageName) -> (u64, u32) {
        let current = self.read_tag(name).ok().flatten();
        let retired = self.root.join("retired").join(name.as_str());
        let retired = read_tag_file(&retired, name.as_str()).ok().flatten();
        let both = || current.iter().chain(&retired).map(SignedTag::unverified);
        let version = both().map(|tag| tag.version).max();
        let epoch = both().map(|tag| tag.epoch).max();
        (version.unwrap_or(0), epoch.unwrap_or(0))
    }

    /// The tag of one name; `None` if it is not published.
    pub fn read_tag(&self, name: &ImageName) -> Result<Option<SignedTag>, StateError> {
        read_tag_file(&self.tags_directory().join(name.as_str()), name.as_str())
    }

    /// The version that the next tag of `name` has: one more than any before, also across removal.
    /// Called with the lock held.
    pub(crate) fn next_version(&self, name: &ImageName) -> Result<u64, StateError> {
        let current = self.read_tag(name).ok().flatten();
        let retired = read_tag_file(
            &self.root.join("retired").join(name.as_str()),
            name.as_str(),
        )
        .ok()
        .flatten();
        let newest = current
            .iter()
            .chain(&retired)
            .map(|tag| tag.unverified().version)
            .max();
        Ok(newest.unwrap_or(0).saturating_add(1))
    }

    /// Makes `tag` the meaning of its name. Called with the lock held.
    pub(crate) fn write_tag(&self, tag: &SignedTag) -> Result<(), StateError> {
        let name = tag.unverified().name.as_str();
        self.replace(&self.tags_directory().join(name), &tag.encode(), 0o644)?;
        let retired = self.root.join("retired").join(name);
        match fs::remove_file(&retired) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(StateError::io("remove", &retired)(e))
            }
            _ => Ok(()),
        }
    }

    /// Takes a name out of the catalogue, and its copy with it unless another name has the same.
    pub fn remove(&self, name: &ImageName) -> Result<(), StateError> {
        let _lock = self.lock()?;
        let path = self.tags_directory().join(name.as_str());
        let retired = self.root.join("retired").join(name.as_str());
        match fs::rename(&path, &retired) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::UnknownImage(name.clone()));
            }
            Err(e) => return Err(StateError::io("remove", &path)(e)),
        }
        for directory in [self.tags_directory(), self.root.join("retired")] {
            durable::sync_directory(&directory).map_err(StateError::io("sync", &directory))?;
        }
        self.remove_unnamed_copies()
    }

    /// Gives the image that `existing` means the name `name` as well, and returns the new tag.
    pub fn retag(
        &self,
        name: &ImageName,
        existing: &ImageName,
        key: &SwarmKey,
    ) -> Result<SignedTag, StateError> {
        let _lock = self.lock()?;
        let mut tag = match self.read_tag(existing)? {
            Some(tag) => tag.unverified().clone(),
            None => return Err(StateError::UnknownImage(existing.clone())),
        };
        tag.version = self.next_version(name)?;
        tag.name = name.clone();
        tag.epoch = self.epoch()?;
        let signed = tag.sign(key);
        self.write_tag(&signed)?;
        self.remove_unnamed_copies()?;
        Ok(signed)
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
        fs::remove_dir_all(path).map_err(StateError::io("remove leftover", path))?;
    }
    Ok(())
}

fn read_tag_file(path: &Path, name: &str) -> Result<Option<SignedTag>, StateError> {
    let damaged = |reason: String| StateError::DamagedTag {
        name: name.to_owned(),
        path: path.to_owned(),
        reason,
    };
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(MAX_TAG_FILE_BYTES).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(damaged(e.to_string())),
    }
    let tag = SignedTag::decode(&bytes).map_err(|e: TagError| damaged(e.to_string()))?;
    if tag.unverified().name.as_str() != name {
        return Err(damaged(format!("it is about {}", tag.unverified().name)));
    }
    Ok(Some(tag))
}

#[cfg(test)]
mod tests;
