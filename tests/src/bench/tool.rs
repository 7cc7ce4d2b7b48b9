//! What the lab asks of a tool: which packages it needs, how it seeds, how a node fetches, and by
//! what signs one sees how far a node is. Each tool's command lines are in its own file.

mod aria2;
mod libtorrent;
mod mbuffer;
mod nginx;
mod rootswarm;
mod torrent;
mod udpcast;
mod uftp;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::process::Process;
use crate::vm::binaries::Binaries;

use super::lab::LabNode;
use super::measure::BenchError;

/// The name of the image at the seed and at each node, in every tool.
const IMAGE_NAME: &str = "image";
/// Hashing and copying 100 MB takes a second; a busy machine takes longer.
const SEED_READY: Duration = Duration::from_secs(120);

/// What moves the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// This project.
    Rootswarm,
    /// nginx at the seed, wget at each node: what most diskless boots do.
    Nginx,
    /// aria2, a BitTorrent client, with opentracker at the seed.
    Aria2,
    /// libtorrent, the BitTorrent library most clients use, with opentracker at the seed.
    Libtorrent,
    /// udpcast, reliable multicast.
    Udpcast,
    /// mbuffer, each node passing on to the next what it receives: a pipeline of TCP connections.
    Mbuffer,
    /// uftp, reliable multicast, encrypted.
    Uftp,
}

/// The text is no tool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tool `{0}`: expected rootswarm, nginx, aria2, libtorrent, udpcast, mbuffer or uftp")]
pub struct ParseToolError(String);

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Tool::Rootswarm => "rootswarm",
            Tool::Nginx => "nginx",
            Tool::Aria2 => "aria2",
            Tool::Libtorrent => "libtorrent",
            Tool::Udpcast => "udpcast",
            Tool::Mbuffer => "mbuffer",
            Tool::Uftp => "uftp",
        })
    }
}

impl FromStr for Tool {
    type Err = ParseToolError;

    fn from_str(text: &str) -> Result<Self, ParseToolError> {
        let named = |tool: &Tool| tool.to_string() == text;
        let found = Tool::ALL.into_iter().find(named);
        found.ok_or_else(|| ParseToolError(text.to_owned()))
    }
}

/// How it is seen that a node has the whole image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// Its program ends.
    Exits,
    /// A file appears in its directory; the program goes on serving.
    File(&'static str),
}

/// How it is seen that a node has the first bytes that it can use.
#[derive(Debug, Clone, Copy)]
pub(super) enum First {
    /// It does not show.
    Unknown,
    /// The image's file is not empty any more: it is written from its beginning.
    Grows,
    /// A file appears in its directory.
    File(&'static str),
    /// It says so itself, in this file of its directory, in seconds from its start.
    Says(&'static str, fn(&str) -> Option<f64>),
}

/// How a node's program is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The run begins with it.
    AtOnce,
    /// It is started before, makes a file `ready` in its directory, and the run begins when the
    /// file that its `GO` names appears: an interpreter's own start is not the tool's fault.
    OnGo,
    /// It is started before, and the run begins when it listens on that port, by that table of /proc/net: the
    /// seed waits for `GO`. Nodes that come later are waited for.
    Together(&'static str, u16),
}

/// What a seed is made from.
pub(super) struct SeedPlace<'a> {
    /// Where it runs.
    pub node: &'a LabNode,
    /// What it has; not to be changed.
    pub image: &'a Path,
    /// Its own, empty directory.
    pub directory: &'a Path,
    /// The nodes that will come, in their order.
    pub nodes: &'a [LabNode],
    /// The rate of the slowest link there is, where they are shaped.
    pub slowest_bit_per_s: Option<u64>,
    /// The largest packet, in bytes of IP.
    pub mtu_bytes: u16,
    /// For [`Tool::Rootswarm`].
    pub binaries: Option<&'a Binaries>,
}

/// Makes the command with which a node fetches the image to its directory.
type Fetch = Box<dyn Fn(&LabNode, &Path) -> Command>;

/// A seed that accepts nodes, and what a node needs to know to use it.
pub(super) struct Seed {
    pub process: Process,
    /// Runs beside the seed and ends with it.
    _tracker: Option<Process>,
    fetch: Fetch,
}

impl Seed {
    /// The command that makes `node` fetch the image to `directory`/image.
    pub(super) fn fetch(&self, node: &LabNode, directory: &Path) -> Command {
        (self.fetch)(node, directory)
    }
}

impl Tool {
    /// Every tool, in the order of tables.
    pub const ALL: [Tool; 7] = [
        Tool::Rootswarm,
        Tool::Nginx,
        Tool::Aria2,
        Tool::Libtorrent,
        Tool::Udpcast,
        Tool::Mbuffer,
        Tool::Uftp,
    ];

    /// The packages it needs, as (program or file, package).
    pub fn packages(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Tool::Rootswarm => &[],
            Tool::Nginx => &[("nginx", "nginx-light"), ("wget", "wget")],
            Tool::Aria2 => &[
                ("aria2c", "aria2"),
                ("mktorrent", "mktorrent"),
                ("opentracker", "opentracker"),
            ],
            Tool::Libtorrent => &[
                (libtorrent::PYTHON, "python3"),
                (libtorrent::INSTALLED, "python3-libtorrent"),
                ("mktorrent", "mktorrent"),
                ("opentracker", "opentracker"),
                // Tells a torrent's info hash.
                ("aria2c", "aria2"),
            ],
            Tool::Udpcast => &[("udp-sender", "udpcast"), ("udp-receiver", "udpcast")],
            Tool::Mbuffer => &[("mbuffer", "mbuffer")],
            Tool::Uftp => &[("uftp", "uftp"), ("uftpd", "uftp")],
        }
    }

    /// Whether every byte that a node gets is sent to it by the seed, so that arithmetic alone says
    /// how long it takes at least.
    pub fn is_unicast(self) -> bool {
        self == Tool::Nginx
    }

    pub(super) fn done(self) -> Done {
        match self {
            Tool::Rootswarm => Done::File(IMAGE_NAME),
            Tool::Nginx | Tool::Udpcast | Tool::Mbuffer => Done::Exits,
            Tool::Uftp => Done::File(IMAGE_NAME),
            Tool::Aria2 | Tool::Libtorrent => Done::File("complete"),
        }
    }

    pub(super) fn first(self) -> First {
        match self {
            Tool::Rootswarm => First::Says(rootswarm::STATUS, rootswarm::first_chunk_s),
            Tool::Nginx | Tool::Udpcast | Tool::Mbuffer => First::Grows,
            Tool::Libtorrent => First::File("first"),
            Tool::Aria2 | Tool::Uftp => First::Unknown,
        }
    }

    pub(super) fn start(self) -> Start {
        match self {
            Tool::Libtorrent => Start::OnGo,
            Tool::Mbuffer => Start::Together("tcp", mbuffer::PORT),
            Tool::Uftp => Start::Together("udp", uftp::PORT),
            _ => Start::AtOnce,
        }
    }

    /// Whether the seed's program ends by itself when all nodes have the image.
    pub(super) fn seed_ends(self) -> bool {
        matches!(self, Tool::Udpcast | Tool::Mbuffer | Tool::Uftp)
    }

    /// Starts the seed in its namespace and waits until it accepts nodes.
    pub(super) fn seed(self, place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
        match self {
            Tool::Rootswarm => rootswarm::seed(place),
            Tool::Nginx => nginx::seed(place),
            Tool::Aria2 => aria2::seed(place),
            Tool::Libtorrent => libtorrent::seed(place),
            Tool::Udpcast => udpcast::seed(place),
            Tool::Mbuffer => mbuffer::seed(place),
            Tool::Uftp => uftp::seed(place),
        }
    }
}

/// Runs a program to its end and returns what it printed.
fn finish(label: &str, command: Command, directory: &Path) -> Result<String, BenchError> {
    let mut process = Process::spawn(label, command, &directory.join(format!("{label}.log")))?;
    let status = process.wait(SEED_READY)?;
    if status.success() {
        return Ok(process.output()?);
    }
    Err(BenchError::Tool {
        label: label.to_owned(),
        status,
        tail: process.tail(20),
    })
}

/// Puts the image into `directory`. A hard link costs no memory; another file system needs the
/// copy.
fn link_into(image: &Path, directory: &Path) -> Result<PathBuf, BenchError> {
    let target = directory.join(IMAGE_NAME);
    let linked =
        std::fs::hard_link(image, &target).or_else(|_| std::fs::copy(image, &target).map(drop));
    linked.map_err(writing(&target))?;
    Ok(target)
}

fn writing(path: &Path) -> impl Fn(io::Error) -> BenchError + use<> {
    let path = path.to_owned();
    move |source| BenchError::Write {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_round_trip() {
        for tool in Tool::ALL {
            assert_eq!(tool.to_string().parse(), Ok(tool));
        }
        for text in ["", "wget", "Nginx"] {
            assert!(text.parse::<Tool>().is_err(), "{text}");
        }
    }
}
