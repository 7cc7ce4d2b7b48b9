//! What the initrd's builder baked in: `swarm.pub`, the installation's public key, `swarm.minimum`, what
//! there was when it was built ([`crate::minimum`]), and `agent.conf`, defaults in `key=value` lines.
//!
//! A file that is not there is no error; one that cannot be understood is, because a mistyped
//! `require-verify` must not quietly mean "do not verify".

use std::path::{Path, PathBuf};
use std::time::Duration;

use rootswarm_image::SwarmPublicKey;

use crate::args::{self, CheckArgs};
use crate::console;
use crate::exit::{Classified, Exit, Failure};
use crate::minimum::Minimum;
use crate::mount::Mode;
use crate::rack;
use crate::units;

/// Settings that both `agent.conf` and the kernel command line can give. `None` is "not said".
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// How the root is built from the image.
    pub mode: Option<Mode>,
    /// How long to go on without progress.
    pub patience: Option<Duration>,
    /// The rack this node stands in, as somebody named it.
    pub rack: Option<String>,
    /// What this node gives away at most.
    pub upload_limit_bytes_per_s: Option<u64>,
    /// Whether to serve peers after the handoff.
    pub serve: Option<bool>,
    /// Whether an unverified image is refused.
    pub require_verify: Option<bool>,
    /// Whether an image that the baked-in key did not sign is refused.
    pub require_key: Option<bool>,
    /// The UDP port on which peers are served.
    pub port: Option<u16>,
    /// The port of the seed's HTTP side.
    pub http_port: Option<u16>,
}

impl Settings {
    /// Takes one setting; `Ok(false)` when no setting has this name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "mode" => self.mode = Some(value.parse()?),
            "rootdelay" => self.patience = Some(args::parse_patience(value)?),
            "rack" => self.rack = Some(rack::parse(value)?),
            "upload-limit" => {
                self.upload_limit_bytes_per_s =
                    Some(units::parse_rate(value).map_err(|e| e.to_string())?)
            }
            "serve" => self.serve = Some(read_switch(value)?),
            "require-verify" => self.require_verify = Some(read_switch(value)?),
            "require-key" => self.require_key = Some(read_switch(value)?),
            "port" => self.port = Some(value.parse().map_err(|_| "a port number is expected")?),
            "http-port" => {
                self.http_port = Some(value.parse().map_err(|_| "a port number is expected")?)
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn read_switch(value: &str) -> Result<bool, &'static str> {
    match value {
        "" | "yes" | "y" | "1" | "true" | "on" => Ok(true),
        "no" | "n" | "0" | "false" | "off" => Ok(false),
        _ => Err("yes or no is expected"),
    }
}

/// Everything baked in.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Baked {
    /// The installation's public key.
    pub key: Option<SwarmPublicKey>,
    /// Where it was looked for.
    pub key_path: PathBuf,
    /// What was there when the initrd was built: nothing from before is taken.
    pub minimum: Minimum,
    /// Defaults.
    pub settings: Settings,
}

/// Why the baked-in files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BakedError {
    /// A file is there and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The key file is empty.
    #[error(
        "{} is empty, as a `rootswarm key` that failed leaves it: write the key into it \
         (`rootswarm key` on the seed prints it), or remove the file",
        path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The key file holds no key.
    #[error("{}: no swarm key: {reason}; it must hold ed25519: and 64 hexadecimal digits", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line of the configuration is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

impl Classified for BakedError {
    fn exit(&self) -> Exit {
        match self {
            BakedError::Read { .. } | BakedError::Empty { .. } | BakedError::Key { .. } => {
                Exit::Refused
            }
            BakedError::Line { .. } => Exit::BadInput,
        }
    }
}

/// Reads `swarm.pub`, `swarm.minimum` and `agent.conf` in `dir`.
pub fn read(dir: &Path) -> Result<Baked, BakedError> {
    let key_path = dir.join("swarm.pub");
    let key = match read_if_there(&key_path)? {
        None => None,
        Some(text) if text.trim().is_empty() => {
            return Err(BakedError::Empty { path: key_path });
        }
        Some(text) => Some(text.trim().parse().map_err(
            |reason: rootswarm_image::SwarmPublicKeyError| BakedError::Key {
                path: key_path.clone(),
                reason: reason.to_string(),
            },
        )?),
    };
    let minimum_path = dir.join("swarm.minimum");
    let minimum = match read_if_there(&minimum_path)? {
        None => Minimum::default(),
        Some(text) => Minimum::parse(&text).map_err(|(line, reason)| BakedError::Line {
            path: minimum_path,
            line,
            reason: format!("{reason} (`rootswarm key --minimum` prints it)"),
        })?,
    };
    let conf_path = dir.join("agent.conf");
    let settings = match read_if_there(&conf_path)? {
        None => Settings::default(),
        Some(text) => parse_conf(&text, &conf_path)?,
    };
    Ok(Baked {
        key,
        key_path,
        minimum,
        settings,
    })
}

/// `rootswarm-agent check`: what the hook that builds an initrd asks, so that a file that the agent
/// would refuse is refused where it can be mended.
///
/// # Errors
/// As a boot would end with.
pub fn check(args: &CheckArgs) -> Result<(), Failure> {
    let baked = read(&args.conf)?;
    let path = baked.key_path.display();
    console::print_out(&match baked.key {
        Some(key) => format!("{path}: swarm key {key}\n"),
        None => format!("{path}: no swarm key, only a rooturl with @blake3:HEX will boot\n"),
    })
}

fn read_if_there(path: &Path) -> Result<Option<String>, BakedError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // A link that leads nowhere is there, and was meant to say something.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            Ok(None)
        }
        Err(source) => Err(BakedError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Reads the text of an `agent.conf`; `path` is for messages.
///
/// # Errors
/// [`BakedError::Line`], with the first line that is not understood.
pub fn parse_conf(text: &str, path: &Path) -> Result<Settings, BakedError> {
    let mut settings = Settings::default();
    for (index, line) in text.lines().enumerate() {
        let line_error = |reason: String| BakedError::Line {
            path: path.to_owned(),
            line: index + 1,
            reason: console::printable(&reason),
        };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| line_error(format!("\"{line}\" is not a key=value line")))?;
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        match settings.set(name, value) {
            Ok(true) => {}
            Ok(false) => return Err(line_error(format!("unknown setting \"{name}\""))),
            Err(reason) => return Err(line_error(format!("{name}=\"{value}\": {reason}"))),
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: the value stood in the message as it was.
    #[test]
    fn an_error_is_one_line_whatever_is_in_the_file() {
        let error = parse_conf("mode=\u{1b}[2J", Path::new("agent.conf")).unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn nothing_baked_in_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let baked = read(dir.path()).unwrap();
        assert_eq!(baked.key, None);
        assert_eq!(baked.settings, Settings::default());
    }

    #[test]
    fn a_full_configuration() {
        let text = "# defaults\n\nmode=copy\nrequire-verify = yes\nrequire-key=no\nrack=\"r7\"\nserve=no\n\
                    upload-limit=1mbit\nrootdelay=30\nport=7411\nhttp-port=80\n";
        let settings = parse_conf(text, Path::new("agent.conf")).unwrap();
        assert_eq!(
            settings,
            Settings {
                mode: Some(Mode::Copy),
                patience: Some(Duration::from_secs(30)),
                rack: Some("r7".to_owned()),
                upload_limit_bytes_per_s: Some(125_000),
                serve: Some(false),
                require_verify: Some(true),
                require_key: Some(false),
                port: Some(7411),
                http_port: Some(80),
            }
        );
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, message) in [
            (
                "requireverify=yes",
                "agent.conf:1: unknown setting \"requireverify\"",
            ),
            ("\nserve", "agent.conf:2: \"serve\" is not a key=value line"),
            (
                "serve=perhaps",
                "agent.conf:1: serve=\"perhaps\": yes or no is expected",
            ),
            (
                "mode=fast",
                "agent.conf:1: mode=\"fast\": overlay, ro or copy is expected",
            ),
        ] {
            let error = parse_conf(text, Path::new("agent.conf")).unwrap_err();
            assert_eq!(error.to_string(), message);
            assert_eq!(error.exit(), Exit::BadInput);
        }
    }

    #[test]
    fn a_key_file_without_a_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("swarm.pub"), "ed25519:zz\n").unwrap();
        let error = read(dir.path()).unwrap_err();
        assert_eq!(error.exit(), Exit::Refused);
        assert!(
            error.to_string().contains("swarm.pub: no swarm key"),
            "{error}"
        );
    }
}
