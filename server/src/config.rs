//! Where an option's value comes from: defaults, then the file, then the environment, then the
//! command line.
//!
//! Environment and command line are one layer here, because clap reads both ([`crate::cli`]); each
//! option is absent from it or present. The file refuses a field that it does not know, with its
//! line: a misspelt `alow` must not open a seed to everybody.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rootswarm_image::{ChunkSize, HTTP_PORT, HostPort, ImageName, SWARM_PORT};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::admission::AdmissionMode;
use crate::exit::Exit;
use crate::generations::{DEFAULT_KEEP, MAX_KEEP};
use crate::mirror::MirrorOf;
use crate::network::Cidr;
use crate::state::DEFAULT_STATE_DIRECTORY;
use crate::units::{self, Rate};

/// The file that is read unless `--config` names another.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/rootswarm/rootswarm.toml";

/// Why the command line or the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line, in clap's words.
    #[error("{0}")]
    CommandLine(String),
    /// The file cannot be read.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file says something that is not understood.
    #[error("configuration {} line {line}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        Exit::BadInput
    }
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConfigFile {
    /// The state directory.
    pub state: Option<PathBuf>,
    /// Where the swarm listens.
    pub listen: Option<SocketAddr>,
    /// Where HTTP listens.
    pub http: Option<SocketAddr>,
    /// What nodes are told to connect to.
    #[serde(default, deserialize_with = "parsed")]
    pub host: Option<HostPort>,
    /// The most that is sent, images only.
    #[serde(default, deserialize_with = "parsed")]
    pub upload_limit: Option<Rate>,
    /// Networks that are let in.
    #[serde(default, deserialize_with = "parsed_list")]
    pub allow: Option<Vec<Cidr>>,
    /// Whether a token is needed.
    pub admission: Option<AdmissionMode>,
    /// The seed that is mirrored.
    #[serde(default, deserialize_with = "parsed")]
    pub mirror: Option<MirrorOf>,
    /// Whether copies are hashed before they are served.
    pub verify: Option<bool>,
    /// The chunk size of what is published.
    #[serde(default, deserialize_with = "chunk_size")]
    pub chunk_size: Option<ChunkSize>,
    /// How many images of a name are kept.
    #[serde(default, deserialize_with = "keep")]
    pub keep: Option<usize>,
    /// What a server publishes when it starts.
    #[serde(default, deserialize_with = "images")]
    pub images: BTreeMap<ImageName, PathBuf>,
}

impl ConfigFile {
    /// Reads the file at `path`; without one, the usual place, where no file is an empty one.
    pub fn read(path: Option<&Path>) -> Result<ConfigFile, ConfigError> {
        let (path, must_exist) =
            path.map_or((Path::new(DEFAULT_CONFIG_FILE), false), |path| (path, true));
        let text = match read_regular(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => {
                return Ok(ConfigFile::default());
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        ConfigFile::parse(&text, path)
    }

    /// Reads the text of a configuration; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Parse`], with the line.
    pub fn parse(text: &str, path: &Path) -> Result<ConfigFile, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = 1 + text
                .bytes()
                .take(offset)
                .filter(|byte| *byte == b'\n')
                .count();
            // toml's own text may have several lines, and repeats what stands in the file; ours has
            // one line, and no control characters.
            let reason = error
                .message()
                .replace(|c: char| c.is_control(), " ")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            ConfigError::Parse {
                path: path.to_owned(),
                line,
                reason,
            }
        })
    }
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?
        .parse()
        .map(Some)
        .map_err(D::Error::custom)
}

fn parsed_list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.is_empty() {
        return Err(D::Error::custom(
            "an empty list: expected at least one network (take the line out for those of this host's \
             interfaces; [\"127.0.0.0/8\"] lets in nobody else)",
        ));
    }
    texts
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map(Some)
        .map_err(D::Error::custom)
}

fn chunk_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ChunkSize>, D::Error> {
    parse_chunk_size(&String::deserialize(deserializer)?)
        .map(Some)
        .map_err(D::Error::custom)
}

fn keep<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let keep = u64::deserialize(deserializer)?;
    parse_keep(&keep.to_string())
        .map(Some)
        .map_err(D::Error::custom)
}

/// The longest configuration, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// The text of a file that is one: a pipe that nobody writes to would be waited for.
fn read_regular(path: &Path) -> io::Result<String> {
    // Not waiting for a writer: what a regular file does not care about.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("expected a regular file"));
    }
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text)?;
    match text.len() as u64 > CONFIG_BYTES_MAX {
        true => Err(io::Error::other("expected at most 1 MiB")),
        false => Ok(text),
    }
}

/// How many images of a name to keep.
pub fn parse_keep(text: &str) -> Result<usize, String> {
    let keep = text
        .parse()
        .ok()
        .filter(|keep| (1..=MAX_KEEP).contains(keep));
    keep.ok_or_else(|| {
        format!("bad number {text:?}: expected 1 to {MAX_KEEP} images to keep of a name")
    })
}

fn images<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<ImageName, PathBuf>, D::Error> {
    BTreeMap::<String, PathBuf>::deserialize(deserializer)?
        .into_iter()
        .map(|(name, path)| Ok((name.parse().map_err(D::Error::custom)?, path)))
        .collect()
}

/// A chunk size as an admin writes it: `256KiB`, `1MiB`.
pub fn parse_chunk_size(text: &str) -> Result<ChunkSize, String> {
    let bytes = units::parse_size(text).map_err(|e| e.to_string())?;
    ChunkSize::from_bytes(bytes).map_err(|e| e.to_string())
}

/// What the layers come to, for every command.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The state directory.
    pub state: PathBuf,
    /// Where the swarm listens.
    pub listen: SocketAddr,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// What nodes are told to connect to, if the admin said.
    pub host: Option<HostPort>,
    /// The most that is sent, images only.
    pub upload_limit: Option<Rate>,
    /// Networks that are let in; empty: those of this host's interfaces.
    pub allow: Vec<Cidr>,
    /// Whether a token is needed, if the admin said.
    pub admission: Option<AdmissionMode>,
    /// The seed that is mirrored, if one is.
    pub mirror: Option<MirrorOf>,
    /// Whether copies are hashed before they are served.
    pub verify: bool,
    /// The chunk size of what is published; `None`: by its length.
    pub chunk_size: Option<ChunkSize>,
    /// How many images of a name are kept, the current one among them.
    pub keep: usize,
    /// Whether what no node can boot is published too.
    pub force: bool,
    /// What a server publishes when it starts.
    pub images: Vec<(ImageName, PathBuf)>,
}

impl From<ConfigFile> for Settings {
    fn from(file: ConfigFile) -> Settings {
        let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Settings {
            state: file.state.unwrap_or_else(|| DEFAULT_STATE_DIRECTORY.into()),
            listen: file.listen.unwrap_or(any(SWARM_PORT)),
            http: file.http.unwrap_or(any(HTTP_PORT)),
            host: file.host,
            upload_limit: file.upload_limit,
            allow: file.allow.unwrap_or_default(),
            admission: file.admission,
            mirror: file.mirror,
            verify: file.verify.unwrap_or(true),
            chunk_size: file.chunk_size,
            keep: file.keep.unwrap_or(DEFAULT_KEEP),
            force: false,
            images: file.images.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ConfigFile, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rootswarm.toml");
        std::fs::write(&path, text).unwrap();
        ConfigFile::read(Some(&path))
    }

    /// Found by fuzzing: what the file says stood in the message as it was.
    #[test]
    fn an_error_has_no_control_characters() {
        let error = read("admission = \"a\\u001b[2Jb\"")
            .unwrap_err()
            .to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
    }

    #[test]
    fn every_field_is_read() {
        let settings: Settings = read(
            r#"
            state = "/srv/rootswarm"
            listen = "10.0.0.1:7400"
            http = "[::]:80"
            host = "boot.example:7401"
            upload-limit = "900Mbit"
            allow = ["10.0.0.0/8", "fd00::/64"]
            admission = "token"
            mirror = "swarm://boot2.example"
            verify = false
            chunk-size = "1MiB"
            keep = 5
            [images]
            web = "/srv/web.squashfs"
            "#,
        )
        .unwrap()
        .into();
        assert_eq!(settings.state, Path::new("/srv/rootswarm"));
        assert_eq!(settings.http.port(), 80);
        assert_eq!(settings.host.unwrap().to_string(), "boot.example:7401");
        assert_eq!(settings.upload_limit.unwrap().bytes_per_s(), 112_500_000);
        assert_eq!(settings.allow.len(), 2);
        assert_eq!(
            (settings.admission, settings.verify),
            (Some(AdmissionMode::Token), false)
        );
        assert_eq!(
            settings.mirror.unwrap().to_string(),
            "swarm://boot2.example"
        );
        assert_eq!(settings.chunk_size.unwrap().bytes(), 1 << 20);
        assert_eq!(settings.keep, 5);
        assert_eq!(settings.images[0].0.as_str(), "web");
    }

    #[test]
    fn the_example_is_right_as_it_is_and_with_every_line_in_use() {
        let example = include_str!("../rootswarm.toml");
        read(example).unwrap();
        let in_use: String = example
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
            })
            .map(|line| format!("{}\n", line.unwrap_or("")))
            .collect();
        let file = read(&in_use).unwrap();
        assert!(file.state.is_some() && file.allow.is_some() && file.chunk_size.is_some());
        assert_eq!(file.images.len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (text, line, words) in [
            ("alow = []\n", 1, "unknown field `alow`"),
            (
                "verify = true\n\nupload-limit = \"fast\"\n",
                3,
                "bad rate \"fast\"",
            ),
            ("listen = 7400\n", 1, ""),
            ("allow = [\"10.0.0.0/33\"]\n", 1, "bad network"),
            (
                "allow = []\n",
                1,
                "an empty list: expected at least one network",
            ),
            ("admission = \"closed\"\n", 1, "unknown variant"),
            ("mirror = \"10.0.0.1\"\n", 1, "bad seed"),
            ("mirror = \"swarm://10.0.0.1/web\"\n", 1, "host"),
            ("chunk-size = \"3KiB\"\n", 1, ""),
            ("keep = 0\n", 1, "1 to 100"),
            ("keep = 101\n", 1, "1 to 100"),
            ("keep = \"3\"\n", 1, ""),
            ("[images]\nWEB = \"x\"\n", 1, "image name"),
            ("state = \n", 1, ""),
        ] {
            match read(text) {
                Err(ConfigError::Parse {
                    line: found,
                    reason,
                    ..
                }) => {
                    assert!(
                        reason.contains(words) && !reason.contains('\n'),
                        "{text:?}: {reason}"
                    );
                    // toml gives no more than the table for some custom errors.
                    assert!(found == line || found == line + 1, "{text:?}: line {found}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn only_a_file_that_was_named_must_exist() {
        assert!(matches!(
            ConfigFile::read(Some(Path::new("/nonexistent.toml"))),
            Err(ConfigError::Read { .. })
        ));
    }
}
