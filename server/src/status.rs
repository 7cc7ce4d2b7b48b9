//! What the swarm is doing, from the server to whoever may open its control socket.
//!
//! The server answers each connection to `STATE/control.sock` with one JSON document and closes it.
//! `rootswarm status` prints it as a table. The document is for scripts too: fields are added, never
//! changed; `format` would be raised otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::exit::Exit;
use crate::log::is_obeyed;
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
    /// A server is there, and hangs.
    #[error(
        "the server{} at {} did not answer within {} s (see its log; `systemctl restart rootswarm` ends what hangs)",
        process.map_or(String::new(), |pid| format!(" (process {pid})")),
        path.display(),
        TIMEOUT.as_secs()
    )]
    Hangs {
        /// The socket.
        path: PathBuf,
        /// Which process listens there, if that can be told.
        process: Option<i32>,
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
            StatusError::NoServer { .. } | StatusError::Hangs { .. } => Exit::Network,
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
    /// Why no node can, in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_address: Option<String>,
    /// The public half of the swarm key that it runs with; none from a server that is older, or waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swarm_key: Option<String>,
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
    /// Names that it does not serve yet, because their copy is being checked or made.
    #[serde(default)]
    pub loading: Vec<String>,
    /// The address that it is to listen on and no interface has yet: it serves nothing until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// The version of the list of revocations that holds here; none from a server that is older, or waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<u64>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageEntry {
    /// Its names; none if it was removed and nodes still fetch it.
    pub names: Vec<String>,
    /// The version under which each of its names is served; empty from a server that is older.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
    /// The names that meant it before, and under whose pins it can still be had.
    #[serde(default)]
    pub older_of: Vec<String>,
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
    remove_leftover(path)?;
    UnixListener::bind(path)
}

/// The same where nothing runs yet, for [`answer_those_who_wait`].
pub(crate) fn listen_early(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    remove_leftover(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn remove_leftover(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Answers who asks a server that has nothing running yet, without waiting for anybody: `document` is
/// shorter than what a socket takes at once.
pub(crate) fn answer_those_who_wait(
    listener: &std::os::unix::net::UnixListener,
    document: &StatusDocument,
) {
    let bytes = serde_json::to_vec(document).unwrap_or_default();
    for _ in 0..READERS {
        // Nobody, or nobody more.
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let _ = stream.set_nonblocking(true);
        // A client that went away is its own loss.
        let _ = stream.write_all(&bytes);
    }
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
    let read = (&stream).take(MAX_DOCUMENT_BYTES).read_to_end(&mut bytes);
    read.map_err(|source| match source.kind() {
        // The socket's own word for a time that is over.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => StatusError::Hangs {
            path: path.to_owned(),
            process: listener(&stream),
        },
        _ => no_server(source),
    })?;
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

/// The process that listens at the other end.
fn listener(stream: &UnixStream) -> Option<i32> {
    let found = rustix::net::sockopt::socket_peercred(stream).ok()?;
    Some(found.pid.as_raw_nonzero().get())
}

/// Columns of a terminal that is as small as terminals get.
const WIDTH: usize = 80;
const BAR: usize = 12;

/// Digits of a node's id: what `rootswarm revoke` takes, and enough to tell some thousands apart.
const ID: usize = 8;

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
    if let Some(line) = &document.no_address {
        let _ = writeln!(text, "{}", cut(line, WIDTH));
    }
    if let Some(address) = &document.waiting_for {
        let waiting = format!("waiting for {address}, which no interface has yet");
        let _ = writeln!(text, "{}", cut(&waiting, WIDTH));
    } else if !document.loading.is_empty() {
        let loading = format!("loading {}", document.loading.join(", "));
        let _ = writeln!(text, "{}", cut(&loading, WIDTH));
    } else if document.images.is_empty() {
        let _ = writeln!(text, "no images (rootswarm publish NAME FILE)");
    }
    for image in &document.images {
        let complete = image.nodes.iter().filter(|node| node.complete).count();
        let racks: BTreeSet<_> = image.nodes.iter().map(|node| &node.rack).collect();
        let older = image.older_of.iter().map(|name| format!("{name} before"));
        let mut names: Vec<String> = image.names.iter().cloned().chain(older).collect();
        if names.is_empty() {
            names.push("(removed)".to_owned());
        }
        let names = names.join(", ");
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
                    format!("{} {}", cut(&node.address, 21), cut(rack, 12))
                }
                _ => cut(&node.address, 34),
            };
            let id: String = node.id.chars().take(ID).collect();
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
                "  {id:<ID$} {place:<34} [{}{}] {percent:>3}% {rate:>11}",
                "#".repeat(filled),
                "-".repeat(BAR - filled.min(BAR)),
            );
        }
    }
    text
}

fn cut(text: &str, width: usize) -> String {
    // Whatever a node says of itself, it is one line of text.
    let text = text.replace(is_obeyed, "?");
    if text.chars().count() <= width {
        return text;
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
            id: "c0ffee01".repeat(8),
            address: address.into(),
            rack: complete.then(|| "row\n3\u{202e}r7".into()),
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
            no_address: Some("no ".repeat(40)),
            revocations: Some(4),
            swarm_key: None,
            http: "0.0.0.0:7480".into(),
            pid: 1,
            uptime_s: 3725,
            upload_limit_bytes_per_s: Some(12_500_000),
            images: vec![
                ImageEntry {
                    names: vec!["a".repeat(64), "b".repeat(64)],
                    versions: BTreeMap::new(),
                    older_of: vec![],
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
                    versions: BTreeMap::from([("web".to_owned(), 7)]),
                    older_of: vec!["db".into()],
                    id: "0123456789abcdef".repeat(4),
                    length_bytes: 0,
                    chunks: 0,
                    uploaded_bytes: 0,
                    seed_copies: 0.0,
                    banned: vec![],
                    nodes: vec![node("10.0.0.8:1", 0, false, 0)],
                },
            ],
            loading: vec!["c".repeat(64)],
            waiting_for: None,
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
        assert!(text.contains("[###########-]  99% "), "{text}");
        assert!(
            text.contains(
                "\n  c0ffee01 10.0.0.7:40000 row?3?r7            [############] 100%   in 12.3 s"
            ),
            "{text}"
        );
        assert!(text.contains("[------------]   0%       0 B/s"), "{text}");
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
