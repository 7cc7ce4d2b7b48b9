//! Why a run gave no figure.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::netns::NetnsError;
use crate::process::ProcessError;
use crate::scratch::ScratchError;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The lab cannot be laid out.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A program cannot be started or did not do what it should.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No room for the copies.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// A file cannot be written.
    #[error("cannot write below {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program ended with a failure.
    #[error("{label} ended ({status}); its last lines:\n{tail}")]
    Tool {
        /// Its label.
        label: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        tail: String,
    },
    /// This project is to be measured and was not built.
    #[error("rootswarm cannot be measured: its programs were not built")]
    NotBuilt,
    /// The seed printed an address that holds no pin.
    #[error("the seed's `{url}` has no `@blake3:…`")]
    SeedUrl {
        /// What it printed.
        url: String,
    },
    /// A torrent that was just made cannot be read.
    #[error("`aria2c --show-files` shows no info hash: {shown}")]
    Torrent {
        /// What it showed.
        shown: String,
    },
    /// Not every node finished in time.
    #[error(
        "{done} of {nodes} nodes have the image after {waited_s:.0} s; the slowest says:\n{tail}"
    )]
    Unfinished {
        /// How many did.
        done: usize,
        /// Of how many.
        nodes: usize,
        /// How long they were given.
        waited_s: f64,
        /// The end of the log of one that did not.
        tail: String,
    },
    /// A node holds other bytes than the seed.
    #[error("node {node} holds another image than the seed")]
    Damaged {
        /// Which node.
        node: usize,
    },
}
