//! Publishing: a file becomes the seed's own read-only copy, a manifest, and a signed tag.
//!
//! A file that may be there already, because an image of its length is, is hashed and compared first:
//! what is published already needs no copy, and no room for one. Otherwise the copy is made first and
//! the copy is hashed, so that whatever happens to the source meanwhile, the id is the hash of the bytes
//! that will be served. A source that changed while it was copied
//! is refused all the same: half of an old image and half of a new one has a fine hash and does not
//! boot.
//!
//! Nothing is copied or hashed under the state directory's lock: a server waits for it.
//!
//! Until the last two renames (the copy into `images/`, the tag into `tags/`) nothing that is
//! served has changed; a crash before leaves the old tag and a leftover that the next start sweeps.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rootswarm_image::{
    ChunkSize, HashError, ImageId, ImageName, Manifest, SignedTag, SwarmKey, Tag, all_cores,
    hash_file,
};

use crate::intact::{Intact, intact_copy};
use crate::limits::SERVED_MANIFESTS_BYTES_MAX;
use crate::progress::{Phase, Progress};
pub use crate::publish_error::PublishError;
use crate::source::{Source, Stamp, free_bytes};
use crate::sources;
use crate::state::StateDir;
use crate::token::now_unix_s;
use crate::units::Bytes;
pub(crate) use crate::workspace::Workspace;

/// How long a running server has to let go of a copy that makes room for a new one. It waits for some
/// seconds itself, lest a node that was let in a moment ago is not connected yet.
const ROOM_WAIT: Duration = Duration::from_secs(20);

/// What is written beside an image and its manifest: a tag, the one before as a generation, notes, each
/// under a temporary name first, in blocks of up to 4 KiB, and the blocks of directories that grow.
const SMALL_FILES_BYTES: u64 = 64 * 1024;

/// How often is looked whether there is room.
const ROOM_POLL: Duration = Duration::from_millis(200);

/// What to do when the name already means this very image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unchanged {
    /// Sign a new version: the admin said publish.
    NewVersion,
    /// Leave the tag as it is: a server that is started with NAME=FILE each day publishes once, and does
    /// not undo what an operator made of the name since.
    Keep,
}

/// Why a server leaves a name alone although the file that it was told is another image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// An operator went back from this image.
    RolledBack(ImageId),
    /// The server was told this image before, and somebody has published another one since.
    MadeAnother(ImageId),
}

impl Left {
    /// The image that the file is.
    pub fn id(&self) -> &ImageId {
        let (Left::RolledBack(id) | Left::MadeAnother(id)) = self;
        id
    }
}

/// What to publish.
#[derive(Debug)]
pub struct Request<'a> {
    /// Under which name.
    pub name: &'a ImageName,
    /// Which file.
    pub source: &'a Path,
    /// In chunks of which size; `None` leaves it to the rule for its length.
    pub chunk_size: Option<ChunkSize>,
    /// What to do when nothing is new.
    pub unchanged: Unchanged,
    /// Whether what no node can boot is published too.
    pub force: bool,
}

/// What was published.
#[derive(Debug)]
pub struct Published {
    /// What the name means now.
    pub tag: Tag,
    /// Why the name was left alone, if it was.
    pub left: Option<Left>,
    /// What the file is, if it is no squashfs. It can be fetched, and no node can boot it.
    pub not_squashfs: Option<&'static str>,
}

/// Nodes hand on whole chunks, so with fewer of them they wait for each other: in the simulator 30 nodes end at
/// 4.1 of the bound with six chunks, at 1.15 with the plan's own 256 KiB (`cargo xtask sim hundred-nodes --nodes
/// 30 --set image=100MB --set chunk=16MiB`).
const FEW_CHUNKS: u64 = 64;

/// As it is given on the command line.
fn binary(size: ChunkSize) -> String {
    match size.bytes() >> 20 {
        0 => format!("{}KiB", size.bytes() >> 10),
        mib => format!("{mib}MiB"),
    }
}

impl Published {
    /// What the operator should know, a line each.
    pub fn remarks(&self, source: &Path) -> Vec<String> {
        let source = source.display();
        let mut remarks = Vec::new();
        if let Some(format) = self.not_squashfs {
            remarks.push(format!(
                "{source} is {format}: it can be fetched, and no node can boot it"
            ));
        }
        let (size, usual) = (self.tag.chunk_size, ChunkSize::for_length(self.tag.length));
        let chunks = self.tag.length.div_ceil(size.bytes());
        if size > usual && chunks < FEW_CHUNKS {
            remarks.push(format!(
                "{source} has {chunks} chunks of {}: nodes hand on whole chunks, and with fewer than {FEW_CHUNKS} \
                 of them they wait for each other (for this length the chunk size is {})",
                binary(size),
                binary(usual),
            ));
        }
        remarks
    }
}

/// Publishes one file.
pub fn publish(
    state: &StateDir,
    key: &SwarmKey,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Published, PublishError> {
    let source = Source::open(request.source)?;
    let not_squashfs = source.check_squashfs()?;
    if let Some(format) = not_squashfs
        && !request.force
    {
        return Err(PublishError::NotBootable {
            path: request.source.to_owned(),
            format,
        });
    }
    let published = |named: Named| Published {
        tag: named.tag,
        left: named.left,
        not_squashfs,
    };
    let is_noted =
        |id: &ImageId| sources::is_image(state, request.name, request.source, source.stamp(), id);
    if let Some(named) = stays(state, request, is_noted) {
        note_told(state, request, &named);
        return Ok(published(named));
    }
    if request.unchanged == Unchanged::Keep
        && let Some(tag) =
            sources::published_from(state, request.name, request.source, source.stamp())
        && request.chunk_size.is_none_or(|size| size == tag.chunk_size)
    {
        let named = Named::meaning(tag);
        note_told(state, request, &named);
        return Ok(published(named));
    }
    let same = find_same(state, &source, request, progress);
    progress.end();
    let named = match same? {
        Some(found) => commit(state, key, None, found, request)?,
        None => None,
    };
    let named = match named {
        Some(named) => named,
        None => {
            check_manifest_room(state, &source, request)?;
            publish_copy(state, key, &source, request, progress)?
        }
    };
    // Only a hint for the next start.
    if let Err(error) = sources::remember(
        state,
        request.name,
        request.source,
        source.stamp(),
        named.source(),
        now_unix_s(),
    ) {
        tracing::debug!("{error}");
    }
    note_told(state, request, &named);
    Ok(published(named))
}

/// What a name means now, and why it is not what was to be published.
struct Named {
    tag: Tag,
    left: Option<Left>,
}

impl Named {
    fn meaning(tag: Tag) -> Named {
        Named { tag, left: None }
    }

    /// The image that the source is.
    fn source(&self) -> &ImageId {
        self.left.as_ref().map_or(&self.tag.id, Left::id)
    }
}

/// Notes down what a server was told, once it has done it. Without the note its next start does it again.
fn note_told(state: &StateDir, request: &Request<'_>, named: &Named) {
    if request.unchanged == Unchanged::Keep
        && let Err(error) = state.note_told(request.name, named.source())
    {
        tracing::warn!("{error}");
    }
}

/// What the name means, if an operator has made it that since the source was published, which is what
/// `is_source` says: a server that starts leaves it alone.
fn stays(
    state: &StateDir,
    request: &Request<'_>,
    is_source: impl Fn(&ImageId) -> bool,
) -> Option<Named> {
    if request.unchanged != Unchanged::Keep {
        return None;
    }
    let tag = state.read_tag(request.name).ok()??.unverified().clone();
    let rolled_back = state.rolled_back(request.name).into_iter();
    let told = state.told(request.name).map(Left::MadeAnother);
    let mut left = rolled_back.map(Left::RolledBack).chain(told);
    let left = left.find(|left| *left.id() != tag.id && is_source(left.id()))?;
    Some(Named {
        tag,
        left: Some(left),
    })
}

/// The image that is here already and that the source is, if there is one. Only images of the source's
/// length can be it: most files that are published are of a new length, and hashed once.
fn find_same(
    state: &StateDir,
    source: &Source,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Option<Intact>, PublishError> {
    let length = source.stamp().length;
    let current = state
        .read_tags()?
        .into_iter()
        .filter_map(|(_, tag)| tag.ok());
    let mut kept = current.chain(state.all_generations()?);
    if !kept.any(|tag| tag.unverified().length == length) {
        return Ok(None);
    }
    let chunk_size = request
        .chunk_size
        .unwrap_or_else(|| ChunkSize::for_length(length));
    progress.begin(Phase::Hash, length);
    let hashed = hash_file(source.file(), chunk_size, all_cores(), &|done| {
        progress.advance(done)
    });
    let id = match hashed {
        Ok(manifest) => *manifest.id(),
        Err(HashError::SourceChanged { .. }) => {
            source.ensure_unchanged()?;
            return Ok(None);
        }
        Err(HashError::Read { source: error, .. }) => return Err(source.failed("read")(error)),
        Err(error) => {
            return Err(PublishError::Hash {
                path: request.source.to_owned(),
                source: error,
            });
        }
    };
    source.ensure_unchanged()?;
    // One that is damaged is replaced.
    Ok(intact_copy(&state.copy(&id), &id).ok())
}

/// Refuses, before anything is copied, what the server has no memory for: it keeps the manifests of all that
/// names mean, and meant. A server that runs keeps to the bound itself, whatever is in the directory.
fn check_manifest_room(
    state: &StateDir,
    source: &Source,
    request: &Request<'_>,
) -> Result<(), PublishError> {
    let length = source.stamp().length;
    let chunk_size = request
        .chunk_size
        .unwrap_or_else(|| ChunkSize::for_length(length));
    // Too many chunks have an error of their own.
    let Ok(needed) = Manifest::max_encoded_len(length, chunk_size) else {
        return Ok(());
    };
    let current = state
        .read_tags()?
        .into_iter()
        .filter_map(|(_, tag)| tag.ok());
    let of_name = |tag: &SignedTag| tag.unverified().name == *request.name;
    // What stays of the name beside its new image.
    let (own, others): (Vec<_>, Vec<_>) =
        current.chain(state.all_generations()?).partition(of_name);
    let own = own.into_iter().take(state.keep_of(request.name) - 1);
    let mut counted = BTreeSet::new();
    let mut taken = 0;
    for tag in own.chain(others) {
        let tag = tag.unverified();
        if counted.insert(tag.id) {
            taken += Manifest::max_encoded_len(tag.length, tag.chunk_size).unwrap_or(0);
        }
    }
    let free = SERVED_MANIFESTS_BYTES_MAX.saturating_sub(taken);
    match needed > free {
        true => Err(PublishError::ManifestRoom {
            path: request.source.to_owned(),
            needed: needed as u64,
            free: free as u64,
        }),
        false => Ok(()),
    }
}

/// Makes a copy and publishes it. Older generations of the name make room for it if there is none.
fn publish_copy(
    state: &StateDir,
    key: &SwarmKey,
    source: &Source,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Named, PublishError> {
    let mut given_up = Vec::new();
    let published = make_and_name_copy(state, key, source, request, progress, &mut given_up);
    if published.is_err() {
        for tag in given_up {
            // There may be no room for that either.
            match state.take_generation_back(&tag) {
                Ok(true) => {
                    let tag = tag.unverified();
                    tracing::info!(
                        "version {} of {} is kept all the same",
                        tag.version,
                        tag.name
                    );
                }
                Ok(false) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }
    published
}

/// The same; `given_up` is what made room meanwhile.
fn make_and_name_copy(
    state: &StateDir,
    key: &SwarmKey,
    source: &Source,
    request: &Request<'_>,
    progress: &dyn Progress,
    given_up: &mut Vec<SignedTag>,
) -> Result<Named, PublishError> {
    loop {
        let workspace = Workspace::new(state)?;
        let copied = copy_and_hash(state, &workspace, source, request, progress);
        progress.end();
        match copied {
            Ok(manifest) => {
                let place = state.copy(manifest.id());
                let found = match intact_copy(&place, manifest.id()) {
                    Ok(found) => found,
                    Err(_) => Intact {
                        stamp: Stamp::of_path(&workspace.path().join("image"))
                            .map_err(crate::state::StateError::io("read", &place))?,
                        manifest,
                    },
                };
                let named = commit(state, key, Some(workspace), found, request)?;
                // With a copy at hand there is always something to name.
                if let Some(named) = named {
                    return Ok(named);
                }
            }
            Err(PublishError::DiskFull {
                path,
                state: root,
                needed,
                free,
            }) => {
                drop(workspace);
                let Some(yielded) = state.yield_generation(request.name, needed, free)? else {
                    return Err(PublishError::DiskFull {
                        path,
                        state: root,
                        needed,
                        free,
                    });
                };
                given_up.push(yielded.clone());
                if !make_room(state, &yielded, needed) {
                    // Its copy is still fetched. Another generation would not be gone sooner either.
                    return Err(PublishError::DiskFull {
                        path,
                        state: root,
                        needed,
                        free,
                    });
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until a generation that was given up has made room, as long as a server that runs may take
/// for it. Says whether its copy has gone, or there is room without that.
fn make_room(state: &StateDir, given_up: &SignedTag, needed: u64) -> bool {
    let tag = given_up.unverified();
    tracing::warn!(
        "version {} of {} ({}) is no longer kept: its {} are needed for the new image",
        tag.version,
        tag.name,
        tag.id,
        Bytes(tag.length)
    );
    let begin = Instant::now();
    let is_in_the_way = || {
        state.copy(&tag.id).exists() && free_bytes(state.root()).is_some_and(|free| free < needed)
    };
    while is_in_the_way() {
        if begin.elapsed() >= ROOM_WAIT {
            return false;
        }
        std::thread::sleep(ROOM_POLL);
    }
    true
}

fn copy_and_hash(
    state: &StateDir,
    workspace: &Workspace,
    source: &Source,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Manifest, PublishError> {
    let image = workspace.path().join("image");
    let length = source.stamp().length;
    let chunk_size = request
        .chunk_size
        .unwrap_or_else(|| ChunkSize::for_length(length));
    // Too many chunks have an error of their own.
    let manifest = Manifest::max_encoded_len(length, chunk_size).unwrap_or(0) as u64;
    let copy = source.copy_to(&image, manifest + SMALL_FILES_BYTES, state, progress)?;
    progress.begin(Phase::Hash, length);
    let manifest = hash_file(&copy, chunk_size, all_cores(), &|done| {
        progress.advance(done)
    })
    .map_err(|source| PublishError::Hash {
        path: request.source.to_owned(),
        source,
    })?;
    workspace.write_manifest(state, &manifest)?;
    Ok(manifest)
}

/// The last steps, in an order in which a crash leaves the old or the new. `found` is the copy that is
/// here, or the one in the workspace. `None` if the one that was here has gone meanwhile and there is no
/// workspace.
fn commit(
    state: &StateDir,
    key: &SwarmKey,
    workspace: Option<Workspace>,
    found: Intact,
    request: &Request<'_>,
) -> Result<Option<Named>, PublishError> {
    let id = *found.manifest.id();
    let place = state.copy(&id);
    let _lock = state.lock()?;
    if let Some(named) = stays(state, request, |it| *it == id) {
        return Ok(Some(named));
    }
    // It was hashed before the lock was taken; the stamp says whether it is still what it was.
    let shared = found.is_still_at(&place);
    let manifest = found.manifest;
    if shared {
        let found = manifest.geometry().chunk_size();
        if let Some(asked) = request.chunk_size.filter(|asked| *asked != found) {
            return Err(PublishError::ChunkSize {
                id,
                asked: asked.bytes(),
                found: found.bytes(),
            });
        }
    } else {
        match workspace {
            Some(workspace) => workspace.move_to(&place, state)?,
            None => return Ok(None),
        }
    }
    let epoch = state.epoch()?;
    let current = state
        .read_tag(request.name)
        .ok()
        .flatten()
        .map(|tag| tag.unverified().clone());
    if let Some(tag) = current
        && shared
        && request.unchanged == Unchanged::Keep
        && (tag.id, tag.epoch) == (id, epoch)
    {
        return Ok(Some(Named::meaning(tag)));
    }
    match request.unchanged {
        Unchanged::NewVersion => state.note_published(request.name, &id)?,
        Unchanged::Keep => state.forget_rolled_back(request.name)?,
    }
    let tag = Tag {
        name: request.name.clone(),
        id,
        length: manifest.geometry().length(),
        chunk_size: manifest.geometry().chunk_size(),
        version: state.next_version(request.name)?,
        epoch,
    };
    let named = state.name_the_copy(&tag.clone().sign(key));
    if named.is_err() && !shared {
        // No room for the tag. A server that runs has never seen the copy that was made for it.
        let is_named = state
            .unnamed_copies()
            .is_ok_and(|unnamed| !unnamed.contains(&id));
        if !is_named && place.exists() {
            let _ = state.discard_directory(&place);
        }
    }
    named?;
    Ok(Some(Named::meaning(tag)))
}

#[cfg(test)]
mod tests;
