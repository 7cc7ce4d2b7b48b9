//! What a name meant before: the last generations of each name, kept so that a machine which holds
//! yesterday's pin boots yesterday's image, and so that an operator can go back.
//!
//! ```text
//! generations/NAME/VERSION        the signed tag of that version, as it was
//! ```
//!
//! A generation is a tag that was replaced by one of another image; its copy stays in `images/` beside
//! those of the current tags. So many of a name are kept as [`StateDir::keeping`] says, the current one
//! among them, one for each image. The tags of those beyond are removed at once, so that they are no
//! longer joined; their copies when no node fetches them (`remove_unnamed_copies`).
//!
//! A program of an earlier release does not know this directory: it serves and replaces what is
//! current, and removes the copies of older generations, whose tags are then skipped here.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use rootswarm_image::{ImageId, ImageName, Manifest, SignedTag, SwarmKey, Tag};

use crate::durable;
use crate::state::{StateDir, StateError, read_tag_file};

/// How many images of a name are kept unless somebody says otherwise: today's, yesterday's, and one
/// to go back to when yesterday's was bad too.
pub const DEFAULT_KEEP: usize = 3;

/// The most that may be asked for: a listing for a mirror stays within its frames' bounds.
pub const MAX_KEEP: usize = 100;

/// Which older generation is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// So many before the current one.
    Back(usize),
    /// The one whose id begins with these digits.
    Id(String),
}

/// Fewer digits of an id are not taken: a typing error should not find an image.
const MIN_ID_DIGITS: usize = 8;

impl Default for Which {
    fn default() -> Which {
        Which::Back(1)
    }
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Which, String> {
        let digits = text.strip_prefix("blake3:").unwrap_or(text);
        let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        if text.len() < MIN_ID_DIGITS
            && let Ok(back @ 1..) = text.parse()
        {
            return Ok(Which::Back(back));
        }
        if (MIN_ID_DIGITS..=64).contains(&digits.len()) && digits.chars().all(is_hex) {
            return Ok(Which::Id(digits.to_owned()));
        }
        Err(format!(
            "bad generation {text:?}: expected how many to go back, as in 1, or at least \
             {MIN_ID_DIGITS} digits of an image's id (`rootswarm images` lists both)"
        ))
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Which::Back(back) => write!(f, "{back} back"),
            Which::Id(digits) => write!(f, "with the id {digits}"),
        }
    }
}

impl StateDir {
    fn generations_of(&self, name: &ImageName) -> PathBuf {
        self.generations_directory().join(name.as_str())
    }

    /// The file of one generation. Its time is when that version was published.
    pub(crate) fn generation_file(&self, name: &ImageName, version: u64) -> PathBuf {
        self.generations_of(name).join(version.to_string())
    }

    /// The files of a name, newest first. What cannot be read as a generation of it is left out: it
    /// is not current, and trimming takes it away.
    fn generation_files(&self, name: &ImageName) -> Result<Vec<(PathBuf, SignedTag)>, StateError> {
        let directory = self.generations_of(name);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::io("read", &directory)(e)),
        };
        let mut found: Vec<(PathBuf, SignedTag)> = entries
            .flatten()
            .filter_map(|entry| {
                let path = entry.path();
                let tag = read_tag_file(&path, name.as_str()).ok().flatten()?;
                Some((path, tag))
            })
            .collect();
        found.sort_by_key(|(_, tag)| std::cmp::Reverse(tag.unverified().version));
        Ok(found)
    }

    /// What `name` meant before, newest first: one tag for each image that is here and is not what it
    /// means now.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn generations(&self, name: &ImageName) -> Result<Vec<SignedTag>, StateError> {
        let current = self.read_tag(name).ok().flatten();
        let mut seen: BTreeSet<ImageId> = current.iter().map(|tag| tag.unverified().id).collect();
        let files = self.generation_files(name)?.into_iter();
        Ok(files
            .map(|(_, tag)| tag)
            .filter(|tag| {
                let id = tag.unverified().id;
                seen.insert(id) && self.copy(&id).is_dir()
            })
            .collect())
    }

    /// The names that have older generations. What a name that was removed has left is none.
    pub(crate) fn names_with_generations(&self) -> Result<Vec<ImageName>, StateError> {
        let directory = self.generations_directory();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::io("read", &directory)(e)),
        };
        let mut names: Vec<ImageName> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|name: &ImageName| self.tags_directory().join(name.as_str()).exists())
            .collect();
        names.sort();
        Ok(names)
    }

    /// All older generations of all names.
    pub(crate) fn all_generations(&self) -> Result<Vec<SignedTag>, StateError> {
        let mut all = Vec::new();
        for name in self.names_with_generations()? {
            all.extend(self.generations(&name)?);
        }
        Ok(all)
    }

    /// The highest version that an older generation of `name` has.
    pub(crate) fn newest_generation_version(&self, name: &ImageName) -> u64 {
        let files = self.generation_files(name).unwrap_or_default();
        files
            .first()
            .map_or(0, |(_, newest)| newest.unverified().version)
    }

    /// Keeps a tag that is about to be replaced. Called with the lock held.
    pub(crate) fn keep_generation(&self, tag: &SignedTag) -> Result<(), StateError> {
        let name = &tag.unverified().name;
        let directory = self.generations_of(name);
        for directory in [&self.generations_directory(), &directory] {
            durable::make_directory(directory, 0o755, self.owner())
                .map_err(StateError::io("make directory", directory))?;
        }
        let path = self.generation_file(name, tag.unverified().version);
        self.replace(&path, &tag.encode(), 0o644)?;
        // `rootswarm images` shows when it was published, not when it was replaced.
        let current = self.tags_directory().join(name.as_str());
        if let Ok(published) = fs::metadata(current).and_then(|found| found.modified()) {
            let _ = fs::File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_modified(published));
        }
        Ok(())
    }

    /// Removes the tags of generations beyond those that are kept, and what is no generation. Called
    /// with the lock held.
    pub(crate) fn trim_generations(&self, name: &ImageName) -> Result<(), StateError> {
        let keep = self.keep_of(name);
        let older = self.generations(name)?;
        let (kept, beyond) = older.split_at(older.len().min(keep - 1));
        let kept: Vec<u64> = kept.iter().map(|tag| tag.unverified().version).collect();
        self.remove_generations(name, |version| !kept.contains(&version))?;
        for (tag, needed) in beyond.iter().map(SignedTag::unverified).zip(keep + 1..) {
            tracing::info!(
                "version {} of {name} ({}) is no longer kept: {keep} of {name} are (--keep {needed} \
                 would have kept it)",
                tag.version,
                tag.id
            );
        }
        Ok(())
    }

    /// Removes all that a name meant before. Called with the lock held.
    pub(crate) fn forget_generations(&self, name: &ImageName) -> Result<(), StateError> {
        self.remove_generations(name, |_| true)
    }

    /// Removes what a name meant up to this version: it was removed with it.
    pub(crate) fn forget_generations_to(
        &self,
        name: &ImageName,
        version: u64,
    ) -> Result<(), StateError> {
        let is_before = |tag: &SignedTag| tag.unverified().version <= version;
        if !self.generations(name)?.iter().any(is_before) {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.remove_generations(name, |found| found <= version)?;
        self.touch_tags()?;
        self.remove_unnamed_copies()
    }

    fn remove_generations(
        &self,
        name: &ImageName,
        doomed: impl Fn(u64) -> bool,
    ) -> Result<(), StateError> {
        let directory = self.generations_of(name);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StateError::io("read", &directory)(e)),
        };
        let mut left = false;
        for path in entries.flatten().map(|entry| entry.path()) {
            let version = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            if version.is_none_or(&doomed) {
                remove_file(&path)?;
            } else {
                left = true;
            }
        }
        if !left {
            // Somebody's own file may be in it, which is no failure.
            let _ = fs::remove_dir(&directory);
        }
        Ok(())
    }

    /// A server looks whether the directory of tags has changed, and into no other for generations.
    fn touch_tags(&self) -> Result<(), StateError> {
        let tags = self.tags_directory();
        fs::File::open(&tags)
            .and_then(|directory| directory.set_modified(SystemTime::now()))
            .map_err(StateError::io("touch", &tags))
    }

    /// Whether a tag of another seed's is one of the generations that are kept here: its name means
    /// something newer, and there are not enough newer ones. Called with the lock held.
    pub(crate) fn wants_generation(&self, tag: &SignedTag) -> Result<bool, StateError> {
        let tag = tag.unverified();
        let current = self.read_tag(&tag.name).ok().flatten();
        let is_older = current.is_some_and(|current| {
            let current = current.unverified();
            current.version > tag.version && current.id != tag.id
        });
        let kept = self.generations(&tag.name)?;
        // One of an earlier epoch is replaced by what was signed anew.
        let same = |it: &SignedTag| {
            let it = it.unverified();
            it.id == tag.id && it.epoch >= tag.epoch
        };
        let newer = |it: &&SignedTag| it.unverified().version > tag.version;
        let newer = kept.iter().filter(newer).count();
        Ok(is_older && !kept.iter().any(same) && newer + 1 < self.keep_of(&tag.name))
    }

    /// Signs the older generations anew in the epoch `epoch`, each as the version that it is: who holds
    /// tags to the epoch takes none of an earlier one. Called with the lock held.
    pub(crate) fn renew_generations(&self, key: &SwarmKey, epoch: u32) -> Result<(), StateError> {
        for found in self.all_generations()? {
            let Ok(mut tag) = found.verify(&key.public(), &found.unverified().name) else {
                continue;
            };
            if tag.epoch < epoch {
                tag.epoch = epoch;
                let path = self.generation_file(&tag.name, tag.version);
                self.replace(&path, &tag.sign(key).encode(), 0o644)?;
            }
        }
        Ok(())
    }

    /// Keeps a tag of another seed's whose copy is here. Called with the lock held.
    pub(crate) fn adopt_generation(&self, tag: &SignedTag) -> Result<(), StateError> {
        self.keep_generation(tag)?;
        self.trim_generations(&tag.unverified().name)?;
        self.touch_tags()
    }

    /// Gives up the oldest generation of `name`, so that there is room for a new one: its tag goes, and
    /// its copy as soon as no node fetches it. `None` if that could not make room for `needed` bytes
    /// when `free` are free.
    pub(crate) fn yield_generation(
        &self,
        name: &ImageName,
        needed: u64,
        free: u64,
    ) -> Result<Option<SignedTag>, StateError> {
        let _lock = self.lock()?;
        let older = self.generations(name)?;
        let named_elsewhere = |id: &ImageId| -> Result<bool, StateError> {
            let current = self
                .read_tags()?
                .into_iter()
                .filter_map(|(_, tag)| tag.ok());
            let others = self.all_generations()?.into_iter();
            let others = others.filter(|tag| tag.unverified().name != *name);
            Ok(current.chain(others).any(|tag| tag.unverified().id == *id))
        };
        let mut gain = free;
        for tag in &older {
            if !named_elsewhere(&tag.unverified().id)? {
                gain = gain.saturating_add(tag.unverified().length);
            }
        }
        let Some(oldest) = older.last().filter(|_| gain >= needed) else {
            return Ok(None);
        };
        let version = oldest.unverified().version;
        self.remove_generations(name, |found| found <= version)?;
        self.touch_tags()?;
        self.remove_unnamed_copies()?;
        Ok(Some(oldest.clone()))
    }

    /// Keeps a generation again that was given up, because what it made room for was not published. Says
    /// whether it could: its copy may have gone, and the name as well.
    pub(crate) fn take_generation_back(&self, tag: &SignedTag) -> Result<bool, StateError> {
        let _lock = self.lock()?;
        let found = tag.unverified();
        let current = self.read_tag(&found.name).ok().flatten();
        let is_older = current.is_some_and(|now| now.unverified().version > found.version);
        if !is_older || !self.copy(&found.id).is_dir() {
            return Ok(false);
        }
        let directory = self.generations_of(&found.name);
        durable::make_directory(&directory, 0o755, self.owner())
            .map_err(StateError::io("make directory", &directory))?;
        let path = self.generation_file(&found.name, found.version);
        self.replace(&path, &tag.encode(), 0o644)?;
        self.touch_tags()?;
        Ok(true)
    }

    /// The older generation of `name` that is meant. The lock is taken for it.
    fn find_generation(&self, name: &ImageName, which: &Which) -> Result<SignedTag, StateError> {
        let _lock = self.lock()?;
        if self.read_tag(name).ok().flatten().is_none() {
            return Err(StateError::UnknownImage(name.clone()));
        }
        let older = self.generations(name)?;
        let found = match which {
            Which::Back(back) => back.checked_sub(1).and_then(|index| older.get(index)),
            Which::Id(digits) => older
                .iter()
                .find(|tag| tag.unverified().id.to_string().starts_with(digits)),
        };
        found.cloned().ok_or_else(|| StateError::NoGeneration {
            name: name.clone(),
            which: which.clone(),
            count: older.len(),
        })
    }

    /// Makes an older generation of `name` what it means: under a new tag, whose version is higher than
    /// any before, because nodes and mirrors take no tag back for an older one. Its copy is hashed first.
    ///
    /// # Errors
    /// No such name, no such generation, a damaged copy, or one that cannot be written.
    pub fn rollback(
        &self,
        name: &ImageName,
        which: &Which,
        key: &SwarmKey,
    ) -> Result<SignedTag, StateError> {
        let id = self.find_generation(name, which)?.unverified().id;
        loop {
            let found = self.copy_to_name(&id)?;
            let _lock = self.lock()?;
            // Whoever did the same meanwhile, or published it, has not taken it away.
            let current = self.read_tag(name).ok().flatten();
            let mut all = current.into_iter().chain(self.generations(name)?);
            if !all.any(|tag| tag.unverified().id == id) {
                return Err(StateError::NoGeneration {
                    name: name.clone(),
                    which: which.clone(),
                    count: self.generations(name)?.len(),
                });
            }
            if found.is_still_at(&self.copy(&id)) {
                // First: a note about what the name still means changes nothing.
                self.note_rollback(name, &id)?;
                return self.sign_copy(name, &found.manifest, key);
            }
            // Somebody has put another copy in its place.
        }
    }

    /// Makes `name` mean a copy that is here and was hashed, under a new tag. Called with the lock held.
    pub(crate) fn sign_copy(
        &self,
        name: &ImageName,
        manifest: &Manifest,
        key: &SwarmKey,
    ) -> Result<SignedTag, StateError> {
        let tag = Tag {
            name: name.clone(),
            id: *manifest.id(),
            length: manifest.geometry().length(),
            chunk_size: manifest.geometry().chunk_size(),
            version: self.next_version(name)?,
            epoch: self.epoch()?,
        };
        let signed = tag.sign(key);
        self.name_the_copy(&signed)?;
        Ok(signed)
    }
}

fn remove_file(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StateError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::FIRST_EPOCH;
    use rootswarm_image::{ChunkSize, all_cores, hash_file};

    /// A copy of one byte.
    fn make_copy(state: &StateDir, byte: u8) -> ImageId {
        let path = state.temporary("copy");
        fs::write(&path, [byte]).unwrap();
        let file = fs::File::open(&path).unwrap();
        let manifest = hash_file(&file, ChunkSize::MIN, all_cores(), &|_| {}).unwrap();
        let place = state.copy(manifest.id());
        fs::create_dir_all(&place).unwrap();
        fs::rename(&path, place.join("image")).unwrap();
        fs::write(place.join("manifest"), manifest.encode()).unwrap();
        *manifest.id()
    }

    #[test]
    fn which_generation_is_meant() {
        for (text, expected) in [
            ("1", Some(Which::Back(1))),
            ("12", Some(Which::Back(12))),
            ("0123456", Some(Which::Back(123_456))),
            ("01234567", Some(Which::Id("01234567".into()))),
            ("abcdef01", Some(Which::Id("abcdef01".into()))),
            ("blake3:abcdef01", Some(Which::Id("abcdef01".into()))),
            ("0", None),
            ("-1", None),
            ("abcdef0", None),
            ("ABCDEF01", None),
            ("", None),
            (&"a".repeat(65), None),
        ] {
            assert_eq!(text.parse::<Which>().ok(), expected, "{text}");
        }
    }

    /// Publishes and rolls back at random, against a list that is kept beside it: the oracle.
    #[test]
    fn the_last_images_of_a_name_are_kept_whatever_is_done() {
        for (keep, seed) in [(1, 1), (2, 2), (3, 3), (3, 4), (5, 5), (20, 6)] {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::open(dir.path()).unwrap().keeping(keep);
            let key = state.key().unwrap();
            let name: ImageName = "web".parse().unwrap();
            // What the name means and meant, newest first, each image once.
            let mut oracle: Vec<ImageId> = Vec::new();
            let mut version = 0;
            let mut random = seed * 7_919_u64;
            for step in 0..120 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let drawn = (random >> 33) as usize;
                let id = if drawn.is_multiple_of(4) && oracle.len() > 1 {
                    let back = 1 + drawn / 4 % (oracle.len() - 1);
                    let which = match drawn % 8 {
                        0 => Which::Back(back),
                        _ => Which::Id(oracle[back].to_string()[..12].to_owned()),
                    };
                    let signed = state.rollback(&name, &which, &key).unwrap();
                    assert_eq!(signed.unverified().id, oracle[back], "step {step}");
                    signed.unverified().id
                } else {
                    let id = make_copy(&state, (drawn % 7) as u8);
                    let tag = Tag {
                        name: name.clone(),
                        id,
                        length: 1,
                        chunk_size: ChunkSize::MIN,
                        version: state.next_version(&name).unwrap(),
                        epoch: FIRST_EPOCH,
                    };
                    state.name_the_copy(&tag.sign(&key)).unwrap();
                    id
                };
                oracle.retain(|known| *known != id);
                oracle.insert(0, id);
                oracle.truncate(keep);
                let current = state.read_tag(&name).unwrap().unwrap();
                assert!(current.unverified().version > version, "versions only grow");
                version = current.unverified().version;
                let older = state.generations(&name).unwrap();
                let found: Vec<ImageId> = std::iter::once(&current)
                    .chain(&older)
                    .map(|tag| tag.unverified().id)
                    .collect();
                assert_eq!(found, oracle, "step {step}, keep {keep}");
                // No server runs here: what nothing names is gone.
                assert_eq!(fs::read_dir(state.images()).unwrap().count(), oracle.len());
            }
            let beyond = state.rollback(&name, &Which::Back(keep), &key);
            assert!(matches!(beyond, Err(StateError::NoGeneration { .. })));
            state.remove(&name).unwrap();
            assert_eq!(state.generations(&name).unwrap(), []);
            assert_eq!(fs::read_dir(state.images()).unwrap().count(), 0);
        }
    }

    /// An earlier release replaces a tag and sweeps what no current tag names.
    #[test]
    fn generations_whose_copies_an_older_program_removed_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let key = state.key().unwrap();
        let name: ImageName = "web".parse().unwrap();
        let mut made = Vec::new();
        for number in 1..=3 {
            made.push(make_copy(&state, number));
            let tag = Tag {
                name: name.clone(),
                id: *made.last().unwrap(),
                length: 1,
                chunk_size: ChunkSize::MIN,
                version: u64::from(number),
                epoch: FIRST_EPOCH,
            };
            state.name_the_copy(&tag.sign(&key)).unwrap();
        }
        let id = |number: usize| made[number - 1];
        fs::remove_dir_all(state.copy(&id(1))).unwrap();
        let ids = |tags: Vec<SignedTag>| -> Vec<ImageId> {
            tags.iter().map(|tag| tag.unverified().id).collect()
        };
        assert_eq!(ids(state.generations(&name).unwrap()), [id(2)]);
        // What is no tag at all does not count, and is taken away with the next.
        let junk = state.generations_directory().join("web/junk");
        fs::write(&junk, b"junk").unwrap();
        assert_eq!(ids(state.generations(&name).unwrap()), [id(2)]);
        // What made room for nothing is kept again, as long as its copy is here.
        let [older] = &state.generations(&name).unwrap()[..] else {
            panic!("one is older");
        };
        state.forget_generations(&name).unwrap();
        assert_eq!(state.generations(&name).unwrap(), []);
        assert!(state.take_generation_back(older).unwrap());
        assert_eq!(ids(state.generations(&name).unwrap()), [id(2)]);
        fs::write(&junk, b"junk").unwrap();
        state.rollback(&name, &Which::default(), &key).unwrap();
        assert!(!junk.exists());
        assert!(
            !state
                .take_generation_back(&state.read_tag(&name).unwrap().unwrap())
                .unwrap()
        );
        assert_eq!(ids(state.generations(&name).unwrap()), [id(3)]);
    }
}
