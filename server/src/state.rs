//! The seed's state directory: the swarm key, the published copies, and the signed tags.
//!
//! ```text
//! swarm.key, swarm.pub            the installation's key; made at first start
//! images/<root hash>/{image,manifest}   read-only copies; what is served
//! tags/NAME                       a signed statement of what NAME means now
//! generations/NAME/VERSION        what NAME meant before (crate::generations)
//! retired/NAME                    the last tag of a removed name, so that versions only ever grow; also once
//!                                 NAME is published again
//! tokens                          admission tokens, hashed (crate::token)
//! revoked                         the epoch, and nodes whose admission was taken back (crate::revocation)
//! revoked.newest                  the same, as it was written last: an older one does not come back
//! mirror                          the seed that is mirrored here, if one is (crate::mirror)
//! policy                          whom that seed lets in, as it told (crate::policy)
//! keep/NAME                       how many images of NAME are kept, if that was said (crate::keep)
//! rolled-back/NAME                images that an operator went back from (crate::rolled_back)
//! told/NAME                       the image that a server was last told to publish (crate::told)
//! versions/NAME                   the highest version that NAME had: whatever becomes of its tag, none is lower
//! sources/NAME                    the file that NAME was published from at start (crate::sources)
//! boot/                           kernels, initrds and boot scripts for HTTP
//! tmp/                            what is not finished; emptied at start, but for a mirror's downloads
//! lock, serve.lock, control.sock
//! ```
//!
//! Everything is written under a temporary name, synced and renamed, so that a reader, and a crash,
//! sees the old or the new and nothing else. Writers hold `lock`. How a copy is made is
//! [`crate::publish`]'s business; whether it is still intact, [`crate::catalogue`]'s. What tags say is in
//! `tags`, what nothing names in `leftovers`.

mod leftovers;
mod tags;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rootswarm_image::{ImageId, ImageName, SwarmKey, SwarmKeyError};

use crate::copy::DamageError;
use crate::durable::{self, Lock, Owner};
use crate::exit::Exit;
use crate::generations::Which;
use crate::guarded::{GuardError, POLICY, REVOKED, SWARM_KEY, TOKENS};
use crate::keep::Keep;
use crate::revocation::{RevocationError, RevocationList};

pub use tags::FoundTag;
pub(crate) use tags::read_tag_file;

/// Where the state is unless somebody says otherwise.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/rootswarm";

/// The epoch in which an installation begins; `rootswarm revoke --all` begins a new one for certificates
/// and tags alike. Which it is now: [`StateDir::epoch`].
pub const FIRST_EPOCH: u32 = 1;

/// How often a lock that another process holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// To find out whether a server runs, its lock is taken for an instant: a server that starts in it
/// tries again.
const SERVE_LOCK_TRIES: u32 = 10;
/// See [`SERVE_LOCK_TRIES`].
const SERVE_LOCK_PAUSE: Duration = Duration::from_millis(20);

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
    /// There is no room for a file.
    #[error("cannot write {}: {source} (make room on its file system: `rootswarm images` lists what there is, and `rootswarm remove NAME` needs none)", path.display())]
    Full {
        /// The file.
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
    /// No such generation of a name.
    #[error(
        "{name} has no older generation {which}: {count} are kept (`rootswarm images` lists them)"
    )]
    NoGeneration {
        /// The name.
        name: ImageName,
        /// Which was asked for.
        which: Which,
        /// How many there are besides the current one.
        count: usize,
    },
    /// The copy that a name was to mean.
    #[error("copy {} is damaged, and no name is changed to it: {reason} (publish that image again, or go back to another: `rootswarm images` lists them)", path.display())]
    DamagedCopy {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: Box<DamageError>,
    },
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
            StateError::Missing(_)
            | StateError::Io { .. }
            | StateError::Full { .. }
            | StateError::KeyGeneration(_) => Exit::Local,
            StateError::Guard(GuardError::Io { .. }) => Exit::Local,
            StateError::Guard(_) => Exit::Refused,
            StateError::KeyContents { .. }
            | StateError::KeyLost { .. }
            | StateError::Epoch(_)
            | StateError::DamagedCopy { .. }
            | StateError::DamagedTag { .. } => Exit::Damaged,
            StateError::UnknownImage(_) | StateError::NoGeneration { .. } => Exit::NoSuchImage,
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

/// An opened state directory.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
    owner: Option<Owner>,
    keep: Keep,
}

impl StateDir {
    /// Opens the directory for writing, makes what is missing in it, and removes what an
    /// interrupted writer left.
    pub fn open(root: &Path) -> Result<StateDir, StateError> {
        let state = StateDir::open_to_serve(root)?;
        let _lock = state.lock()?;
        state.remove_unnamed_copies()?;
        Ok(state)
    }

    /// The same, but copies that no tag names stay: a server that was killed in the middle of sending
    /// one goes on with it.
    pub fn open_to_serve(root: &Path) -> Result<StateDir, StateError> {
        fs::create_dir_all(root).map_err(StateError::io("make state directory", root))?;
        let state = StateDir::open_existing(root)?;
        for (name, mode) in [
            ("images", 0o755),
            ("tags", 0o755),
            ("retired", 0o755),
            ("generations", 0o755),
            ("keep", 0o755),
            ("rolled-back", 0o755),
            ("told", 0o755),
            ("versions", 0o755),
            ("sources", 0o755),
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
                keep: Keep::default(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StateError::Missing(root.to_owned()))
            }
            Err(e) => Err(StateError::io("open state directory", root)(e)),
        }
    }

    /// The same directory, of which each name keeps so many images, the current one among them, unless
    /// something else was said for it.
    #[must_use]
    pub fn keeping(mut self, keep: usize) -> StateDir {
        self.keep = Keep::Unless(keep);
        self
    }

    /// The same directory, to change a name of which so many images are kept from now on.
    #[must_use]
    pub fn keeping_said(mut self, keep: usize) -> StateDir {
        self.keep = Keep::Said(keep);
        self
    }

    /// The same directory, for changes that give up nothing.
    #[must_use]
    pub fn keeping_all(mut self) -> StateDir {
        self.keep = Keep::All;
        self
    }

    /// How many images of each name are kept.
    pub(crate) fn keep(&self) -> Keep {
        self.keep
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

    /// Where the older generations are.
    pub(crate) fn generations_directory(&self) -> PathBuf {
        self.root.join("generations")
    }

    /// Where is noted from which file a name was published ([`crate::sources`]).
    pub(crate) fn source_note(&self, name: &ImageName) -> PathBuf {
        self.root.join("sources").join(name.as_str())
    }

    /// Where is noted how many images of a name are kept ([`crate::keep`]).
    pub(crate) fn keep_note(&self, name: &ImageName) -> PathBuf {
        self.root.join("keep").join(name.as_str())
    }

    /// Where is noted which images an operator went back from ([`crate::rolled_back`]).
    pub(crate) fn rolled_back_note(&self, name: &ImageName) -> PathBuf {
        self.root.join("rolled-back").join(name.as_str())
    }

    /// Where is noted which image a server was last told to publish ([`crate::told`]).
    pub(crate) fn told_note(&self, name: &ImageName) -> PathBuf {
        self.root.join("told").join(name.as_str())
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
        for _ in 0..SERVE_LOCK_TRIES {
            let lock = Lock::try_exclusive(&path, self.owner);
            if let Some(lock) = lock.map_err(StateError::io("lock", &path))? {
                return Ok(Some(lock));
            }
            std::thread::sleep(SERVE_LOCK_PAUSE);
        }
        Ok(None)
    }

    /// Whether a server, this process or another, holds the directory for serving.
    pub fn is_served(&self) -> bool {
        Lock::is_held(&self.root.join("serve.lock"))
    }

    /// The swarm key. Made if there is none, unless tags are there that a lost one signed.
    pub fn key(&self) -> Result<SwarmKey, StateError> {
        let path = self.key_file();
        let _lock = self.lock()?;
        let key = match self.existing_key()? {
            Some(key) => key,
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

    /// The swarm key, if there is one. Needs no lock.
    pub fn existing_key(&self) -> Result<Option<SwarmKey>, StateError> {
        let Some(pkcs8) = SWARM_KEY.read(&self.root)? else {
            return Ok(None);
        };
        let key = SwarmKey::from_pkcs8(&pkcs8).map_err(|source| StateError::KeyContents {
            path: self.key_file(),
            source,
        })?;
        Ok(Some(key))
    }

    /// Where the swarm key is.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.root.join(SWARM_KEY.name)
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
        durable::replace_file(path, &self.temporary("file"), contents, mode, self.owner).map_err(
            |source| match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StateError::Full {
                    path: path.to_owned(),
                    source,
                },
                _ => StateError::io("write", path)(source),
            },
        )
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
        self.key_file().exists()
    }

    /// The epoch in which certificates and tags are signed now.
    pub fn epoch(&self) -> Result<u32, StateError> {
        match RevocationList::new(self.clone()).load_current() {
            Ok(contents) => Ok(contents.epoch),
            Err(RevocationError::State(error)) => Err(error),
            Err(error) => Err(StateError::Epoch(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
