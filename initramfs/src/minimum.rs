//! What this initrd was built to take at the least: the epoch of the installation and the versions of
//! names as they were when it was built, from the file `swarm.minimum` (`rootswarm key --minimum`).
//!
//! A node that boots has no memory, so whoever can answer in the seed's place could give it an old tag,
//! properly signed. With this file he can go back no further than to the day the initrd was built. A pin
//! says itself which image is meant, so it is not held to a version.
//!
//! The file is text, version first: `rootswarm-minimum 1`, then `epoch E`, then `version NAME V`, a line
//! for each name.

use std::collections::BTreeMap;

use rootswarm_image::{ImageName, Tag};

const HEADER: &str = "rootswarm-minimum 1";

/// The least that is taken. The default takes everything: an initrd without the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Minimum {
    /// The epoch of seeds' certificates and of tags.
    pub epoch: u32,
    /// The versions of names.
    pub versions: BTreeMap<ImageName, u64>,
}

/// A tag from before the initrd was built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "refused: {place} says that {name} has version {version} in epoch {epoch}, and this initrd knows of \
     version {least_version} in epoch {least_epoch}: an old tag, or a seed that was put back (publish or \
     roll back there, which signs a new version)"
)]
pub struct OldTag {
    /// Who said it.
    pub place: String,
    /// About which name.
    pub name: ImageName,
    /// Its version.
    pub version: u64,
    /// Its epoch.
    pub epoch: u32,
    /// The version of [`Minimum`].
    pub least_version: u64,
    /// The epoch of [`Minimum`].
    pub least_epoch: u32,
}

impl Minimum {
    /// Reads the text of a `swarm.minimum`.
    ///
    /// # Errors
    /// The first line that is not understood, counted from 1, and what was expected there.
    pub fn parse(text: &str) -> Result<Minimum, (usize, &'static str)> {
        let mut lines = text.lines().map(str::trim_end).enumerate();
        if lines.next().map(|(_, line)| line) != Some(HEADER) {
            return Err((1, "the line \"rootswarm-minimum 1\" is expected"));
        }
        let mut minimum = Minimum::default();
        for (index, line) in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            let wrong = (index + 1, "\"epoch E\" or \"version NAME V\" is expected");
            match words.as_slice() {
                [] => {}
                ["epoch", epoch] => minimum.epoch = epoch.parse().map_err(|_| wrong)?,
                ["version", name, version] => {
                    let name = name.parse().map_err(|_| wrong)?;
                    let version = version.parse().map_err(|_| wrong)?;
                    minimum.versions.insert(name, version);
                }
                _ => return Err(wrong),
            }
        }
        Ok(minimum)
    }

    /// Whether a signed tag that `place` sent is recent enough to say what its name means.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, tag: &Tag, place: &str) -> Result<(), OldTag> {
        let least_version = self.versions.get(&tag.name).copied().unwrap_or(0);
        if tag.version >= least_version && tag.epoch >= self.epoch {
            return Ok(());
        }
        Err(OldTag {
            place: place.to_owned(),
            name: tag.name.clone(),
            version: tag.version,
            epoch: tag.epoch,
            least_version,
            least_epoch: self.epoch,
        })
    }
}

#[cfg(test)]
mod tests {
    use rootswarm_image::{ChunkSize, ImageId};

    use super::*;

    #[test]
    fn what_is_older_than_the_initrd_is_refused() {
        let minimum =
            Minimum::parse("rootswarm-minimum 1\nepoch 3\nversion web 7\nversion db.2 1\n")
                .unwrap();
        for (name, version, epoch, taken) in [
            ("web", 7, 3, true),
            ("web", 8, 5, true),
            ("web", 6, 3, false),
            ("web", 7, 2, false),
            ("web", u64::MAX, 1, false),
            ("db.2", 1, 3, true),
            // A name that was published since, and one in an old epoch.
            ("new", 1, 3, true),
            ("new", 1, 1, false),
        ] {
            let tag = Tag {
                name: name.parse().unwrap(),
                id: ImageId::from_bytes([1; 32]),
                length: 1,
                chunk_size: ChunkSize::from_bytes(1 << 16).unwrap(),
                version,
                epoch,
            };
            let found = minimum.check(&tag, "the seed");
            assert_eq!(found.is_ok(), taken, "{name} {version} {epoch}: {found:?}");
            assert_eq!(Minimum::default().check(&tag, ""), Ok(()));
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (text, line) in [
            ("", 1),
            ("epoch 3\n", 1),
            ("rootswarm-minimum 2\n", 1),
            ("rootswarm-minimum 1\nepoch x\n", 2),
            ("rootswarm-minimum 1\nepoch 1\nversion WEB 1\n", 3),
            ("rootswarm-minimum 1\n\nversion web -1\n", 3),
            ("rootswarm-minimum 1\nversion web 1 2\n", 2),
        ] {
            assert_eq!(Minimum::parse(text).unwrap_err().0, line, "{text:?}");
        }
    }
}
