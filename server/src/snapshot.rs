//! What is served at one moment: names, what they meant before, and copies.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rootswarm_image::{ImageId, ImageName, SignedTag};

use crate::copy::Copy;

/// What a name means, or meant.
#[derive(Debug, Clone)]
pub struct Published {
    /// The signed statement.
    pub tag: SignedTag,
    /// Its bytes.
    pub encoded_tag: Bytes,
    /// The copy it names.
    pub copy: Arc<Copy>,
}

/// What somebody finds who asks for a name.
#[derive(Debug)]
pub enum Found<'a> {
    /// This, now or under the pin that was named.
    Image(&'a Published),
    /// It is being checked or published: ask again.
    Loading,
    /// The name means this, and no generation that is kept has the pin.
    Other(ImageId),
    /// There is no such name.
    Unknown,
}

/// The catalogue at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(crate) names: BTreeMap<ImageName, Published>,
    /// Newest first.
    pub(crate) older: BTreeMap<ImageName, Vec<Published>>,
    pub(crate) copies: HashMap<ImageId, Arc<Copy>>,
    /// Copies that nothing names any more.
    pub(crate) leaving: HashMap<ImageId, Arc<Copy>>,
    pub(crate) loading_names: BTreeSet<ImageName>,
    pub(crate) loading_copies: HashSet<ImageId>,
    pub(crate) boot: BTreeMap<String, PathBuf>,
}

impl Snapshot {
    /// What `name` means.
    pub fn image(&self, name: &ImageName) -> Option<&Published> {
        self.names.get(name)
    }

    /// What `name` means to whoever comes with this pin, or with none.
    pub fn find(&self, name: &ImageName, pin: Option<ImageId>) -> Found<'_> {
        let current = self.names.get(name);
        let is_loading = self.loading_names.contains(name);
        let Some(pin) = pin else {
            return match current {
                Some(current) => Found::Image(current),
                None if is_loading => Found::Loading,
                None => Found::Unknown,
            };
        };
        let older = self.older.get(name).into_iter().flatten();
        let mut all = current.into_iter().chain(older);
        if let Some(pinned) = all.find(|published| *published.copy.id() == pin) {
            return Found::Image(pinned);
        }
        match current {
            _ if self.loading_copies.contains(&pin) => Found::Loading,
            Some(current) => Found::Other(*current.copy.id()),
            None if is_loading => Found::Loading,
            None => Found::Unknown,
        }
    }

    /// Whether `name` is being checked or published.
    pub fn is_loading(&self, name: &ImageName) -> bool {
        self.loading_names.contains(name)
    }

    /// Whether this copy is being checked, or may be among what is being published.
    pub fn is_copy_loading(&self, id: &ImageId) -> bool {
        self.loading_copies.contains(id)
    }

    /// The names that are being checked or published.
    pub fn loading(&self) -> impl Iterator<Item = &ImageName> {
        self.loading_names.iter()
    }

    /// All names.
    pub fn images(&self) -> impl Iterator<Item = &Published> {
        self.names.values()
    }

    /// What names meant before, as far as it is kept.
    pub fn older(&self) -> impl Iterator<Item = &Published> {
        self.older.values().flatten()
    }

    /// A copy by its id, also one that is leaving.
    pub fn copy(&self, id: &ImageId) -> Option<&Arc<Copy>> {
        self.copies.get(id).or_else(|| self.leaving.get(id))
    }

    /// The copies that nothing names any more.
    pub fn leaving(&self) -> impl Iterator<Item = &Arc<Copy>> {
        self.leaving.values()
    }

    /// All copies that something names.
    pub fn copies(&self) -> impl Iterator<Item = &Arc<Copy>> {
        self.copies.values()
    }

    /// Where the boot file of this name is; only files that the directory listing showed are known.
    pub fn boot_file(&self, name: &str) -> Option<&Path> {
        self.boot.get(name).map(PathBuf::as_path)
    }
}
