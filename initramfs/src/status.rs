//! The status document: written by the agent through a descriptor that stays open across the
//! handoff, read by `rootswarm-agent status`, the admin's scripts and the tests.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::args::StatusArgs;
use crate::console;
use crate::exit::{Exit, Failure};
use crate::progress::Snapshot;

/// What the agent is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Looking for the network and the seed.
    #[default]
    Joining,
    /// Downloading.
    Fetching,
    /// Reading the whole again.
    Verifying,
    /// Making a root of it.
    Mounting,
    /// The image is there and others are served.
    Serving,
    /// The image is there and nobody is served.
    Done,
}

/// The document. Names are a promise to scripts: add, never rename.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// What the agent is doing.
    pub phase: Phase,
    /// What was asked for, without a token.
    pub rooturl: String,
    /// The image's id, once it is known.
    pub image: Option<String>,
    /// Numbers of the transfer.
    #[serde(flatten)]
    pub transfer: Snapshot,
    /// Seconds from the start to the verified image.
    pub fetch_seconds: Option<f64>,
    /// Seconds from the start to the first chunk that came from the swarm.
    pub first_chunk_seconds: Option<f64>,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// Nodes that sent what does not belong to the image: id and reason.
    pub banned: Vec<(String, String)>,
    /// The agent's process.
    pub pid: u32,
    /// With how many nodes this one has no connection, whoever dials, as the seed says: a firewall here
    /// drops everything.
    #[serde(default)]
    pub cut_off_from: u32,
}

/// An open status file.
#[derive(Debug)]
pub struct StatusFile {
    file: File,
    /// The longest document so far: shorter ones are padded, so that a reader never sees the end
    /// of an older one.
    longest: usize,
}

impl StatusFile {
    /// Creates the file, readable by all: it holds no secret.
    pub fn create(path: &Path) -> io::Result<StatusFile> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(path)?;
        Ok(StatusFile { file, longest: 0 })
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Writes the document in one call. A status that cannot be written is not worth a boot: the
    /// error is the caller's to ignore.
    pub fn write(&mut self, document: &Document) -> io::Result<()> {
        let mut text = serde_json::to_vec(document)?;
        self.longest = self.longest.max(text.len());
        text.resize(self.longest, b' ');
        text.push(b'\n');
        self.file.write_all_at(&text, 0)
    }
}

/// `rootswarm-agent status`.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let path = args.run_dir.join("status.json");
    let text = fs::read_to_string(&path).map_err(|e| {
        let hint = match e.kind() {
            io::ErrorKind::NotFound => "; was this node booted by rootswarm?",
            _ => "",
        };
        Failure::new(
            Exit::Unexpected,
            format!("cannot read {}: {e}{hint}", path.display()),
        )
    })?;
    if args.json {
        return console::print_out(&text);
    }
    let document: Document = serde_json::from_str(&text).map_err(|e| {
        let message = format!("{} is no status document: {e}", path.display());
        Failure::new(Exit::Damaged, message)
    })?;
    console::print_out(&describe(&document))
}

/// The document as `rootswarm-agent status` prints it.
pub fn describe(d: &Document) -> String {
    use crate::units::size;
    let t = &d.transfer;
    let phase = format!("{:?}", d.phase).to_lowercase();
    let image = d.image.as_deref().unwrap_or("not known yet");
    let seed = if t.seed_connected {
        "connected"
    } else {
        "not connected"
    };
    let took = d
        .fetch_seconds
        .map(|s| format!(" in {s:.1} s"))
        .unwrap_or_default();
    let mut text = format!(
        "phase     {phase} (process {})\n\
         rooturl   {}\n\
         image     {image}\n\
         holds     {} of {}{took}\n\
         received  {} from peers, {} from the seed, {} by http, {} twice\n\
         served    {}\n\
         swarm     {} peers, seed {seed}\n",
        d.pid,
        d.rooturl,
        size(t.bytes_have),
        size(t.bytes_total),
        size(t.bytes_from_peers),
        size(t.bytes_from_seed),
        size(t.bytes_from_http),
        size(t.duplicate_bytes),
        size(t.bytes_uploaded),
        t.peers,
    );
    if d.cut_off_from > 0 {
        text += &format!(
            "firewall  no connection with {} nodes, whoever dials: let UDP port {} through here\n",
            d.cut_off_from,
            rootswarm_image::NODE_PORT
        );
    }
    for (node, reason) in &d.banned {
        text += &format!("banned    {node}: {reason}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_whole_documents_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let mut file = StatusFile::create(&path).unwrap();
        let mut document = Document {
            rooturl: "swarm://h/n".repeat(20),
            ..Document::default()
        };
        for rooturl in [
            "swarm://h/n".repeat(20),
            "short".to_owned(),
            "a bit longer".to_owned(),
        ] {
            document.rooturl = rooturl;
            file.write(&document).unwrap();
            let read: Document = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!(read, document);
        }
    }

    #[test]
    fn the_names_are_a_promise() {
        let document = Document {
            pid: 7,
            ..Document::default()
        };
        assert_eq!(
            serde_json::to_string(&document).unwrap(),
            r#"{"phase":"joining","rooturl":"","image":null,"bytes_total":0,"bytes_have":0,"bytes_from_seed":0,"bytes_from_peers":0,"bytes_from_http":0,"bytes_uploaded":0,"duplicate_bytes":0,"peers":0,"seed_connected":false,"fetch_seconds":null,"first_chunk_seconds":null,"uptime_seconds":0.0,"banned":[],"pid":7,"cut_off_from":0}"#
        );
    }

    #[test]
    fn people_get_lines() {
        let mut document = Document {
            phase: Phase::Serving,
            rooturl: "swarm://10.0.0.1/debian".to_owned(),
            fetch_seconds: Some(8.4),
            ..Document::default()
        };
        document
            .banned
            .push(("ab".to_owned(), "chunk 3: hash mismatch".to_owned()));
        let text = describe(&document);
        assert!(
            text.starts_with("phase     serving (process 0)\n"),
            "{text}"
        );
        assert!(!text.contains("firewall"), "{text}");
        document.cut_off_from = 3;
        assert!(
            describe(&document).contains("\nfirewall  no connection with 3 nodes"),
            "{text}"
        );
        assert!(
            text.ends_with("banned    ab: chunk 3: hash mismatch\n"),
            "{text}"
        );
    }
}
