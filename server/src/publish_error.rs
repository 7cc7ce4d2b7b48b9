//! Why an image was not published, and the exit code of each reason.

use std::io;
use std::path::PathBuf;

use rootswarm_image::{HashError, ImageId};

use crate::exit::Exit;
use crate::limits::SERVED_MANIFESTS_BYTES_MAX;
use crate::state::StateError;
use crate::units::Bytes;

/// Why an image was not published. Nothing of it is left, and what the name meant before it means
/// still.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The source cannot be opened or read.
    #[error("cannot {what} {}: {source}", path.display())]
    Source {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The source is a directory, a device, a pipe.
    #[error("{} is {kind}, expected a file that holds a squashfs image", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The source changed while it was copied.
    #[error("{} changed while it was read: {detail} (publish it again when it is complete)", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What changed.
        detail: String,
    },
    /// The superblock promises more bytes than there are.
    #[error("{} is cut off: its squashfs superblock says {expected} bytes, the file has {found} (publish it again when it is complete)", path.display())]
    CutOff {
        /// The file.
        path: PathBuf,
        /// What the superblock says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The file is none that a node could boot.
    #[error("{} is {format}, and what nodes boot is a squashfs: make one with mksquashfs (--force publishes it all the same)", path.display())]
    NotBootable {
        /// The file.
        path: PathBuf,
        /// What it seems to be, with its article.
        format: &'static str,
    },
    /// No room for the copy.
    #[error("no space for a copy of {}: {} needed in {}, {} free (make room, `rootswarm remove` an image, or keep fewer generations with --keep)", path.display(), Bytes(*needed), state.display(), Bytes(*free))]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// The state directory.
        state: PathBuf,
        /// What the copy takes.
        needed: u64,
        /// What there is.
        free: u64,
    },
    /// The server has no memory for its manifest.
    #[error("no room for the manifest of {}: it takes {}, and of the {} for the manifests of all images {} are free (publish it with a larger --chunk-size, `rootswarm remove` an image, or keep fewer generations with --keep)", path.display(), Bytes(*needed), Bytes(SERVED_MANIFESTS_BYTES_MAX as u64), Bytes(*free))]
    ManifestRoom {
        /// The file.
        path: PathBuf,
        /// How long its manifest would be.
        needed: u64,
        /// What the others leave.
        free: u64,
    },
    /// Hashing failed: an I/O error on the copy, or too many chunks.
    #[error("cannot hash the copy of {}: {source}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// Why.
        source: HashError,
    },
    /// The same image is there with other chunks.
    #[error(
        "image {id} is already published with chunks of {found} bytes, and one image is served with one chunk size (remove it first, or leave out --chunk-size {asked})"
    )]
    ChunkSize {
        /// The image.
        id: ImageId,
        /// What was asked for.
        asked: u64,
        /// What it is published with.
        found: u64,
    },
}

impl PublishError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            PublishError::State(e) => e.exit(),
            PublishError::Source { .. }
            | PublishError::NotAFile { .. }
            | PublishError::NotBootable { .. }
            | PublishError::ChunkSize { .. } => Exit::BadInput,
            PublishError::Changed { .. } | PublishError::CutOff { .. } => Exit::SourceChanged,
            PublishError::DiskFull { .. } | PublishError::ManifestRoom { .. } => Exit::Local,
            PublishError::Hash {
                source: HashError::Geometry(_),
                ..
            } => Exit::BadInput,
            PublishError::Hash { .. } => Exit::Local,
        }
    }
}
