//! What the swarm is doing, from the server to whoever may open its control socket.
//!
//! The server answers each connection to `STATE/control.sock` with one JSON document and closes it.
//! `rootswarm status` prints it as a table. The document is for scripts too: fields are added, never
//! changed; `format` would be raised otherwise.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::exit::Exit;
use crate::units::Bytes;

/// The version of the document.
pub const FORMAT: u32 = 1;

/// How long either side waits for the other.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A document is some 150 bytes a node; 10,000 nodes are 1.5 MB.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// Why the status cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody answers.
    #[error("no server answers at {} (is `rootswarm serve` running with this state directory?): {source}", path.display())]
    NoServer {
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// What answers is not a server of this release.
    #[error("what answers at {} is not understood: {reason}", path.display())]
    NotUnderstood {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl StatusError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            StatusError::NoServer { .. } => Exit::Network,
            StatusError::NotUnderstood { .. } => Exit::Unexpected,
        }
    }
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// [`FORMAT`].
    pub format: u32,
    /// What nodes connect to, as it stands in a rooturl.
    pub host: String,
    /// Where HTTP listens.
    pub http: String,
    /// The server's process.
    pub pid: u32,
    /// How long it has been serving.
    pub uptime_s: u64,
    /// The most it sends of images.
    pub upload_limit_bytes_per_s: Option<u64>,
    /// What it serves.
    pub images: Vec<ImageEntry>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageEntry {
    /// Its names; none if it was removed and nodes still fetch it.
    pub names: Vec<String>,
    /// Its id.
    pub id: String,
    /// Its length.
    pub length_bytes: u64,
    /// In so many chunks.
    pub chunks: u32,
    /// What the seed sent of it to the swarm.
    pub uploaded_bytes: u64,
    /// The same in images.
    pub seed_copies: f64,
    /// Nodes that sent bytes which do not belong to the image, with what they did.
    pub banned: Vec<String>,
    /// Who is there.
    pub nodes: Vec<NodeEntry>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its id, shortened.
    pub node: String,
    /// The whole of it, which `rootswarm revoke` takes; empty from a server that is older.
    #[serde(default)]
    pub id: String,
    /// Where it is seen.
    pub address: String,
    /// Where it says it stands: its rack's name, or its subnet.
    #[serde(default)]
    pub rack: Option<String>,
    /// How many chunks it has.
    pub chunks_have: u32,
    /// Whether it has all.
    pub complete: bool,
    /// How long that took from its arrival, in milliseconds.
    pub complete_after_ms: Option<u64>,
    /// How fast its share grows.
    pub rate_bytes_per_s: u64,
    /// With how many nodes it has no connection, whoever dials: its host drops everything.
    #[serde(default)]
    pub cut_off_from: u32,
    /// Nodes said of late that it does not answer them, so that it is told to dial them.
    #[serde(default)]
    pub hard_to_reach: bool,
}

/// Opens the control socket. Only one server runs on a state directory (it holds `serve.lock`), so a
/// socket that is there is a leftover.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Who is answered at a time; each has a document of his own.
const READERS: usize = 8;

/// Answers for ever.
pub async fn answer(
    listener: UnixListener,
    document: impl Fn() -> StatusDocument + Send + Sync + 'static,
) {
    let document = Arc::new(document);
    let readers = Arc::new(Semaphore::new(READERS));
    loop {
        let Ok(reader) = readers.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let document = document.clone();
                tokio::spawn(async move {
                    let _reader = reader;
                    // Of ten thousand nodes it is made in 20 ms, in which a reactor thread has better
                    // things to do.
                    let made = move || serde_json::to_vec(&document()).unwrap_or_default();
                    let bytes = tokio::task::spawn_blocking(made).await.unwrap_or_default();
                    // A client that went away, or does not read, is its own loss.
                    let _ = tokio::time::timeout(TIMEOUT, stream.write_all(&bytes)).await;
                });
            }
            Err(error) => {
                tracing::warn!("control socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Asks the server that runs on this state directory.
pub fn ask(path: &Path) -> Result<StatusDocument, StatusError> {
    let no_server = |source| StatusError::NoServer {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path).map_err(no_server)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(no_server)?;
    let mut bytes = Vec::new();
    stream
        .take(MAX_DOCUMENT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(no_server)?;
    let document: StatusDocument =
        serde_json::from_slice(&bytes).map_err(|e| StatusError::NotUnderstood {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
    if document.format != FORMAT {
        let reason = format!("document format {}, expected {FORMAT}", document.format);
        return Err(StatusError::NotUnderstood {
            path: path.to_owned(),
            reason,
        });
    }
    Ok(document)
}

/// Columns of a terminal that is as small as terminals get.
const WIDTH: usize = 80;
const BAR: usize = 20;

/// The document as a table of at most 80 columns.
pub fn table(document: &StatusDocument) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let limit = document
        .upload_limit_bytes_per_s
        .map_or(String::new(), |limit| {
            format!(", at most {}/s", Bytes(limit))
        });
    let head = format!(
        "seed {}, http {}, up {}{limit}",
        document.host,
        document.http,
        duration(document.uptime_s)
    );
    let _ = writeln!(text, "{}", cut(&head, WIDTH));
    if document.images.is_empty() {
        let _ = writeln!(text, "no images (rootswarm publish NAME FILE)");
    }
    for image in &document.images {
        let complete = image.nodes.iter().filter(|node| node.complete).count();
        let racks: BTreeSet<_> = image.nodes.iter().map(|node| &node.rack).collect();
        let names = if image.names.is_empty() {
            "(removed)".to_owned()
        } else {
            image.names.join(", ")
        };
        let _ = writeln!(
            text,
            "\n{}",
            cut(&format!("{names}  blake3:{}", cut(&image.id, 16)), WIDTH)
        );
        let figures = format!(
            "  {} in {} chunks; {} nodes, {complete} complete; seed sent {:.2} copies ({})",
            Bytes(image.length_bytes),
            image.chunks,
            image.nodes.len(),
            image.seed_copies,
            Bytes(image.uploaded_bytes),
        );
        let _ = writeln!(text, "{}", cut(&figures, WIDTH));
        for ban in &image.banned {
            let _ = writeln!(text, "{}", cut(&format!("  banned {ban}"), WIDTH));
        }
        for node in image.nodes.iter().filter(|node| node.cut_off_from > 0) {
            let line = format!(
                "  {} is cut off from {} nodes: let its UDP port through there",
                node.address, node.cut_off_from
            );
            let _ = writeln!(text, "{}", cut(&line, WIDTH));
        }
        for node in &image.nodes {
            let share = if node.complete {
                1.0
            } else {
                f64::from(node.chunks_have) / f64::from(image.chunks.max(1))
            };
            // Only where it says something: the rack beside the address, both cut to their column.
            let place = match (&node.rack, racks.len()) {
                (Some(rack), 2..) => {
                    // Whatever a node says of itself, it is one line of text.
                    let rack = rack.replace(char::is_control, "?");
                    format!("{} {}", cut(&node.address, 21), cut(&rack, 12))
                }
                _ => cut(&node.address, 34),
            };
            // The share of what is not complete is below one, so the bar is never full too early.
            let filled = (share * BAR as f64) as usize;
            let percent = (share * 100.0) as u32;
            let rate = match (node.complete, node.complete_after_ms) {
                (true, Some(ms)) => format!("in {:.1} s", ms as f64 / 1000.0),
                (true, None) => "complete".to_owned(),
                (false, _) => format!("{}/s", Bytes(node.rate_bytes_per_s)),
            };
            let _ = writeln!(
                text,
                "  {place:<34} [{}{}] {percent:>3}% {rate:>11}",
                "#".repeat(filled),
                "-".repeat(BAR - filled.min(BAR)),
            );
        }
    }
    text
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width - 1).collect();
    short.push('…');
    short
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> StatusDocument {
        let node = |address: &str, have, complete: bool, rate| NodeEntry {
            node: "ab".repeat(32),
            id: String::new(),
            address: address.into(),
            rack: complete.then(|| "row\n3/r7".into()),
            chunks_have: have,
            complete,
            complete_after_ms: complete.then_some(12_345),
            rate_bytes_per_s: rate,
            cut_off_from: u32::from(complete) * 7,
            hard_to_reach: complete,
        };
        StatusDocument {
            format: FORMAT,
            host: "10.0.0.1".into(),
            http: "0.0.0.0:7480".into(),
            pid: 1,
            uptime_s: 3725,
            upload_limit_bytes_per_s: Some(12_500_000),
            images: vec![
                ImageEntry {
                    names: vec!["a".repeat(64), "b".repeat(64)],
                    id: "0123456789abcdef".repeat(4),
                    length_bytes: u64::MAX,
                    chunks: 65536,
                    uploaded_bytes: 999_999_999_999,
                    seed_copies: 10234.5,
                    banned: vec![format!(
                        "{} 10.0.0.9:1: chunk 812: hash mismatch",
                        "ef".repeat(32)
                    )],
                    nodes: vec![
                        node(
                            "[2001:0db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                            65535,
                            false,
                            999_949_999,
                        ),
                        node("10.0.0.7:40000", 65536, true, 0),
                    ],
                },
                ImageEntry {
                    names: vec!["web".into()],
                    id: "0123456789abcdef".repeat(4),
                    length_bytes: 0,
                    chunks: 0,
                    uploaded_bytes: 0,
                    seed_copies: 0.0,
                    banned: vec![],
                    nodes: vec![node("10.0.0.8:1", 0, false, 0)],
                },
            ],
        }
    }

    #[test]
    fn the_table_fits_eighty_columns() {
        let text = table(&document());
        for line in text.lines() {
            assert!(
                line.chars().count() <= WIDTH,
                "{} columns: {line}",
                line.chars().count()
            );
        }
        assert!(
            text.contains("\n  10.0.0.7:40000 is cut off from 7 nodes: "),
            "{text}"
        );
        assert_eq!(text.matches("cut off").count(), 1, "{text}");
        assert!(text.contains("up 1 h 2 min, at most 12.5 MB/s"), "{text}");
        assert!(text.contains("[###################-]  99% "), "{text}");
        assert!(
            text.contains(
                "10.0.0.7:40000 row?3/r7            [####################] 100%   in 12.3 s"
            ),
            "{text}"
        );
        assert!(
            text.contains("[--------------------]   0%       0 B/s"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_server_is_asked_over_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        // A leftover is replaced.
        drop(listen(&path).unwrap());
        let server = tokio::spawn(answer(listen(&path).unwrap(), document));
        let asked = tokio::task::spawn_blocking(move || ask(&path))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(asked, document());
        server.abort();
    }

    #[test]
    fn nobody_there_is_said_so() {
        let error = ask(Path::new("/nonexistent/control.sock")).unwrap_err();
        assert_eq!(error.exit(), Exit::Network);
        assert!(
            error
                .to_string()
                .starts_with("no server answers at /nonexistent/control.sock")
        );
    }
}
