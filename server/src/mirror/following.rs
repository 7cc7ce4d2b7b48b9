//! Follows what the first seed says, as far as that needs no download: tags, what names meant before,
//! steps back, removed names, tokens and revocations.

use std::collections::HashSet;

use rootswarm_image::{ImageName, SignedTag, SwarmKey};
use rootswarm_transport::seed::Listing;

use crate::revocation::RevocationList;
use crate::state::{StateDir, StateError};
use crate::token::{Tokens, now_unix_s};

/// What a listing came to.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Tags whose image is not here.
    pub(super) missing: Vec<SignedTag>,
    /// Tags that are newer here.
    pub(super) newer: Vec<SignedTag>,
    /// What was not followed, and why.
    pub(super) doubts: Vec<String>,
    /// What could not be taken over because of something that is wrong here.
    pub(super) faults: Vec<String>,
}

/// Follows a listing as far as that needs no download, each part for itself: a file that cannot be written
/// here keeps no revocation and no used token away.
pub(super) fn apply(
    listing: &Listing,
    state: &StateDir,
    key: &SwarmKey,
    tokens: &Tokens,
    revoked: &RevocationList,
) -> Applied {
    let mut applied = Applied::default();
    match revoked.adopt(&listing.revoked) {
        Ok(behind) => applied.doubts.extend(behind),
        Err(error) => applied.faults.push(error.to_string()),
    }
    if let Err(error) = tokens.adopt(&listing.tokens, now_unix_s()) {
        applied.faults.push(error.to_string());
    }
    // First: a name that was published again means nothing of what it meant before it was removed.
    for bytes in &listing.retired {
        if let Err(doubt) = retire(bytes, state, key) {
            applied.doubts.push(doubt);
        }
    }
    if let Err(error) = state.adopt_rolled_back(&listing.rolled_back) {
        applied.faults.push(error.to_string());
    }
    for bytes in &listing.tags {
        match follow(bytes, state, key) {
            Ok(None) => {}
            Ok(Some(tag)) => applied.missing.push(tag),
            Err(doubt) => {
                applied.newer.extend(newer_here(bytes, state));
                applied.doubts.push(doubt);
            }
        }
    }
    match unknown_there(listing, state) {
        Ok(unknown) if unknown.is_empty() => {}
        Ok(unknown) => {
            let named = |tag: &SignedTag| tag.unverified().name.to_string();
            let first: Vec<String> = unknown.iter().take(NAMED).map(named).collect();
            let more = match unknown.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            applied.doubts.push(format!(
                "the primary knows nothing of {}{more}, which stays here (if a backup was put in place there: \
                 publish it there, and remove it if it is to go)",
                first.join(", ")
            ));
            applied.newer.extend(unknown);
        }
        Err(error) => applied.faults.push(error.to_string()),
    }
    for bytes in &listing.older {
        match follow_older(bytes, state, key) {
            Ok(None) => {}
            Ok(Some(tag)) => applied.missing.push(tag),
            Err(doubt) => applied.doubts.push(doubt),
        }
    }
    applied
}

/// How many names a line names.
const NAMED: usize = 3;

/// The tags of names here that the primary neither has nor says to have removed.
fn unknown_there(listing: &Listing, state: &StateDir) -> Result<Vec<SignedTag>, StateError> {
    let decoded = listing.tags.iter().chain(&listing.retired);
    let decoded = decoded.filter_map(|bytes| SignedTag::decode(bytes).ok());
    let known: HashSet<ImageName> = decoded.map(|tag| tag.unverified().name.clone()).collect();
    let own = state.read_tags()?.into_iter();
    let own = own.filter_map(|(_, tag)| tag.ok());
    Ok(own
        .filter(|tag| !known.contains(&tag.unverified().name))
        .collect())
}

fn verified(bytes: &[u8], key: &SwarmKey) -> Result<SignedTag, String> {
    let tag = SignedTag::decode(bytes).map_err(|error| error.to_string())?;
    tag.verify(&key.public(), &tag.unverified().name)
        .map_err(|error| error.to_string())?;
    Ok(tag)
}

/// Makes a tag of the primary's this state directory's, and returns it if its image is missing.
pub(super) fn follow(
    bytes: &[u8],
    state: &StateDir,
    key: &SwarmKey,
) -> Result<Option<SignedTag>, String> {
    let signed = verified(bytes, key)?;
    let tag = signed.unverified();
    let _lock = state.lock().map_err(|error| error.to_string())?;
    // A damaged one counts as none.
    if state.read_tag(&tag.name).ok().flatten().as_ref() == Some(&signed) {
        return Ok(None);
    }
    // What was seen is remembered, also of a name that was removed: an old tag does not come back. To go
    // back the operator signs a new, higher version that names the old image.
    let (name, (version, epoch)) = (&tag.name, state.newest(&tag.name));
    if version > tag.version || epoch > tag.epoch {
        let advice = match version > tag.version {
            true => format!(
                "if a backup was put in place there: `rootswarm publish {name}` there, until its version is \
                 above {version}"
            ),
            // Only `revoke --all` begins one.
            false => "if a backup was put in place there: put this seed's file `revoked` in place there while \
                      its server is stopped"
                .to_owned(),
        };
        return Err(format!(
            "the primary has version {} of {name} in epoch {}, which is version {version} in epoch {epoch} \
             here and stays ({advice})",
            tag.version, tag.epoch
        ));
    }
    if !is_here(state, &signed) {
        return Ok(Some(signed));
    }
    state
        .write_tag(&signed)
        .and_then(|()| state.remove_unnamed_copies())
        .map_err(|error| error.to_string())?;
    Ok(None)
}

/// The tag here of a name of the primary's, if it is newer, or was when the name was removed.
fn newer_here(bytes: &[u8], state: &StateDir) -> Option<SignedTag> {
    let theirs = SignedTag::decode(bytes).ok()?;
    let theirs = theirs.unverified();
    let current = state.read_tag(&theirs.name).ok().flatten();
    let removed = || {
        let retired = state.read_retired().into_iter();
        retired.filter(|tag| tag.unverified().name == theirs.name)
    };
    let newest = current.into_iter().chain(removed());
    newest
        .max_by_key(|tag| tag.unverified().version)
        .filter(|tag| tag.unverified().version > theirs.version)
}

/// Keeps what a name of the primary's meant before, if that is among the generations that are kept here,
/// and returns its tag if its image is missing.
fn follow_older(
    bytes: &[u8],
    state: &StateDir,
    key: &SwarmKey,
) -> Result<Option<SignedTag>, String> {
    let signed = verified(bytes, key)?;
    let said = |error: StateError| error.to_string();
    let _lock = state.lock().map_err(said)?;
    if !state.wants_generation(&signed).map_err(said)? {
        return Ok(None);
    }
    if !is_here(state, &signed) {
        return Ok(Some(signed));
    }
    state.adopt_generation(&signed).map_err(said)?;
    Ok(None)
}

/// Whether the copy that a tag needs is here, cut as the tag says. Whether it is intact is checked by
/// the catalogue before it is served.
fn is_here(state: &StateDir, signed: &SignedTag) -> bool {
    let tag = signed.unverified();
    let place = state.copy(&tag.id);
    let manifest = std::fs::read(place.join("manifest")).ok();
    manifest.is_some_and(|bytes| tag.decode_manifest(&bytes).is_ok())
        && std::fs::metadata(place.join("image")).is_ok_and(|file| file.len() == tag.length)
}

/// Removes a name that the primary has removed, and remembers with which tag it was, also where the name
/// never was here.
fn retire(bytes: &[u8], state: &StateDir, key: &SwarmKey) -> Result<(), String> {
    let signed = verified(bytes, key)?;
    let tag = signed.unverified();
    let own = match state.read_tag(&tag.name) {
        Ok(own) => own.map(|own| own.unverified().version),
        // Damaged: what it was is noted.
        Err(_) => Some(state.noted_version(&tag.name)),
    };
    if own.is_some_and(|version| version <= tag.version) {
        match state.remove(&tag.name) {
            Ok(()) | Err(StateError::UnknownImage(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    // It may have been published again since.
    let forgotten = state.forget_generations_to(&tag.name, tag.version);
    forgotten.map_err(|error| error.to_string())?;
    let remembered = state.remember_retired(&signed);
    remembered.map_err(|error| error.to_string())
}
