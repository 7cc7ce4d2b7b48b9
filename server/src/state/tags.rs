//! What names mean: signed tags, the last ones of removed names, and the versions that only ever grow.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rootswarm_image::{ChunkSize, ImageId, ImageName, SignedTag, SwarmKey, Tag, TagError};

use super::{StateDir, StateError};
use crate::durable;

/// A signed tag is some 200 bytes; more in `tags/` is not ours, and is not read into memory.
const MAX_TAG_FILE_BYTES: u64 = 64 * 1024;

/// A file of `tags/`: its name, and its tag or why it has none.
pub type FoundTag = (String, Result<SignedTag, StateError>);

impl StateDir {
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
        self.renew_generations(key, epoch)?;
        Ok(renewed)
    }

    /// The newest epoch in which this installation's key signed a tag that is still here, of a removed name
    /// as well; 0 if there is none.
    pub fn newest_epoch_signed(&self) -> Result<u32, StateError> {
        // Not by `key`, which takes the lock: it is asked with the lock held as well.
        let Some(key) = self.existing_key()? else {
            return Ok(0);
        };
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
        let retired = read_tag_file(&self.retired_file(name), name.as_str());
        let retired = retired.ok().flatten();
        let both = || current.iter().chain(&retired).map(SignedTag::unverified);
        let version = both().map(|tag| tag.version);
        let epoch = both().map(|tag| tag.epoch).max();
        let version = version.chain([self.noted_version(name)]).max();
        (version.unwrap_or(0), epoch.unwrap_or(0))
    }

    /// The tag of one name; `None` if it is not published.
    pub fn read_tag(&self, name: &ImageName) -> Result<Option<SignedTag>, StateError> {
        read_tag_file(&self.tags_directory().join(name.as_str()), name.as_str())
    }

    /// The version that the next tag of `name` has: one more than any before, also across removal.
    /// Called with the lock held.
    pub(crate) fn next_version(&self, name: &ImageName) -> Result<u64, StateError> {
        Ok(self.version_to_beat(name).saturating_add(1))
    }

    /// The highest version that is known here of a name, removed or published at a mirror as well.
    pub(crate) fn version_to_beat(&self, name: &ImageName) -> u64 {
        let (newest, _) = self.newest(name);
        newest.max(self.newest_generation_version(name))
    }

    /// Notes the version that a name has at a mirror.
    pub(crate) fn remember_version(&self, tag: &Tag) -> Result<(), StateError> {
        let _lock = self.lock()?;
        self.note_version(tag)
    }

    fn version_note(&self, name: &ImageName) -> PathBuf {
        self.root.join("versions").join(name.as_str())
    }

    /// The highest version that `name` ever had here; 0 where that was not noted, or is damaged.
    pub(crate) fn noted_version(&self, name: &ImageName) -> u64 {
        let noted = fs::read_to_string(self.version_note(name)).unwrap_or_default();
        noted.trim_end().parse().unwrap_or(0)
    }

    /// Notes the version of a tag that is about to be written: should the tag be damaged later, what is
    /// published then is newer all the same. Called with the lock held.
    fn note_version(&self, tag: &Tag) -> Result<(), StateError> {
        if self.noted_version(&tag.name) >= tag.version {
            return Ok(());
        }
        let text = format!("{}\n", tag.version);
        self.replace(&self.version_note(&tag.name), text.as_bytes(), 0o644)
    }

    /// Makes `signed` the meaning of its name, and removes what is not kept any more: tags, and, when
    /// there was no room left for the tag itself, the copy that was made for it. Called with the lock
    /// held.
    pub(crate) fn name_the_copy(&self, signed: &SignedTag) -> Result<(), StateError> {
        let written = self.write_tag(signed);
        let removed = self.remove_unnamed_copies();
        // Why it failed is worth more than what could not be tidied up then.
        written.and(removed)
    }

    /// Makes `tag` the meaning of its name; what it meant before becomes an older generation. Called
    /// with the lock held.
    pub(crate) fn write_tag(&self, tag: &SignedTag) -> Result<(), StateError> {
        let image_name = &tag.unverified().name;
        let name = image_name.as_str();
        self.note_keep(image_name)?;
        // One that cannot be read is no generation: there is nothing to go back to.
        if let Ok(Some(replaced)) = self.read_tag(image_name)
            && replaced.unverified().id != tag.unverified().id
        {
            self.keep_generation(&replaced)?;
        }
        self.note_version(tag.unverified())?;
        self.replace(&self.tags_directory().join(name), &tag.encode(), 0o644)?;
        // The tag of a removed name stays: a mirror learns from it what the name does not mean any more.
        self.trim_generations(image_name)
    }

    /// Takes a name out of the catalogue, and its copies with it unless another name has the same. It is gone
    /// at every mirror: where one has, or ever had, something newer than what is removed, or where that is
    /// damaged, the tag that is left behind is signed anew as that version.
    pub fn retire(&self, name: &ImageName, key: &SwarmKey) -> Result<(), StateError> {
        let _lock = self.lock()?;
        let current = match self.read_tag(name) {
            Ok(Some(tag)) => Some(tag.unverified().clone()),
            Ok(None) => return Err(StateError::UnknownImage(name.clone())),
            Err(_) => None,
        };
        let newest = self.version_to_beat(name);
        let last = match current {
            Some(tag) if tag.version == newest => return self.remove_locked(name),
            Some(tag) => tag,
            // What it meant is not known any more, and of a name that means nothing only the version counts.
            None => Tag {
                name: name.clone(),
                id: ImageId::from_bytes([0; 32]),
                length: 1,
                chunk_size: ChunkSize::for_length(1),
                version: newest,
                epoch: 0,
            },
        };
        let epoch = self.epoch()?.max(last.epoch);
        let last = Tag {
            version: newest,
            epoch,
            ..last
        };
        let last = last.sign(key).encode();
        let retired = self.retired_file(name);
        let path = self.tags_directory().join(name.as_str());
        // First: a name that is gone here, and not at its mirrors, could not be removed again.
        match self.replace(&retired, &last, 0o644) {
            Ok(()) => {}
            // A removal is what makes room.
            Err(StateError::Full { .. }) => {
                self.remove_locked(name)?;
                return self.replace(&retired, &last, 0o644);
            }
            Err(error) => return Err(error),
        }
        fs::remove_file(&path).map_err(StateError::io("remove", &path))?;
        self.is_removed(name)
    }

    /// Takes a name out of the catalogue as another seed has done.
    pub(crate) fn remove(&self, name: &ImageName) -> Result<(), StateError> {
        let _lock = self.lock()?;
        self.remove_locked(name)
    }

    fn retired_file(&self, name: &ImageName) -> PathBuf {
        self.root.join("retired").join(name.as_str())
    }

    fn remove_locked(&self, name: &ImageName) -> Result<(), StateError> {
        let path = self.tags_directory().join(name.as_str());
        match fs::rename(&path, self.retired_file(name)) {
            Ok(()) => self.is_removed(name),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StateError::UnknownImage(name.clone()))
            }
            Err(e) => Err(StateError::io("remove", &path)(e)),
        }
    }

    /// Lets go of what a name had that has just gone. Called with the lock held.
    fn is_removed(&self, name: &ImageName) -> Result<(), StateError> {
        for directory in [self.tags_directory(), self.root.join("retired")] {
            durable::sync_directory(&directory).map_err(StateError::io("sync", &directory))?;
        }
        self.forget_generations(name)?;
        self.forget_rolled_back(name)?;
        self.forget_keep(name)?;
        self.remove_unnamed_copies()
    }

    /// Remembers the last tag of a name that was removed at another seed, if the name was not removed later
    /// here: what came before stays away, and the next version follows it.
    pub(crate) fn remember_retired(&self, tag: &SignedTag) -> Result<(), StateError> {
        let removed = tag.unverified();
        let retired = self.retired_file(&removed.name);
        let is_known = || {
            let known = read_tag_file(&retired, removed.name.as_str())
                .ok()
                .flatten();
            known.is_some_and(|known| known.unverified().version >= removed.version)
        };
        if is_known() {
            return Ok(());
        }
        let _lock = self.lock()?;
        if is_known() {
            return Ok(());
        }
        self.replace(&retired, &tag.encode(), 0o644)
    }

    /// Gives the image that `existing` means the name `name` as well, and returns the new tag. Its copy is
    /// hashed first.
    ///
    /// # Errors
    /// No such name, a damaged copy, or one that cannot be written.
    pub fn retag(
        &self,
        name: &ImageName,
        existing: &ImageName,
        key: &SwarmKey,
    ) -> Result<SignedTag, StateError> {
        loop {
            let meant = || match self.read_tag(existing)? {
                Some(tag) => Ok(tag.unverified().id),
                None => Err(StateError::UnknownImage(existing.clone())),
            };
            let id = meant()?;
            let found = self.copy_to_name(&id);
            let _lock = self.lock()?;
            if meant()? != id {
                // It means something else by now, and its copy may have gone.
                continue;
            }
            let found = found?;
            if found.is_still_at(&self.copy(&id)) {
                self.note_published(name, &id)?;
                return self.sign_copy(name, &found.manifest, key);
            }
        }
    }
}

pub(crate) fn read_tag_file(path: &Path, name: &str) -> Result<Option<SignedTag>, StateError> {
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
