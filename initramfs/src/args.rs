//! The agent's own command line: a small parser by hand, because a general one would add a tenth
//! to a program that every node downloads on every boot.
//!
//! It knows options and their types; what a rooturl means is the image crate's to say.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rootswarm_image::SwarmPublicKey;

use crate::exit::{Classified, Exit};
use crate::patience::{FOREVER, ONCE};
use crate::rack;
use crate::units;

/// What the program was asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Mount the root that the kernel command line names.
    Boot(BootArgs),
    /// The detached half of `boot`; started by `boot` itself.
    BootChild(BootArgs),
    /// Fetch an image into a file.
    Fetch(FetchArgs),
    /// Show what this node holds and serves.
    Status(StatusArgs),
    /// Say whether a boot would accept what is to be baked into an initrd.
    Check(CheckArgs),
    /// Print this text.
    Help(&'static str),
    /// Print the version.
    Version,
}

/// `rootswarm-agent boot`: every path can be moved, so that a test boots inside a directory.
#[derive(Debug, Clone, PartialEq)]
pub struct BootArgs {
    /// Where the new root is mounted: the initramfs's `${rootmnt}`.
    pub rootmnt: PathBuf,
    /// The kernel command line.
    pub cmdline: PathBuf,
    /// The run-time directory that holds the image.
    pub run_dir: PathBuf,
    /// What is baked into the initrd: `swarm.pub`, `agent.conf`.
    pub conf: PathBuf,
    /// Where the read-only and the writable half are mounted before they move into the new root.
    pub mnt: PathBuf,
}

impl BootArgs {
    /// The options that parse to this again, wherever the working directory is.
    pub fn to_words(&self) -> Vec<OsString> {
        let options = [
            ("--rootmnt", &self.rootmnt),
            ("--cmdline", &self.cmdline),
            ("--run-dir", &self.run_dir),
            ("--conf", &self.conf),
            ("--mnt", &self.mnt),
        ];
        options
            .into_iter()
            .flat_map(|(name, path)| {
                // Fails only for an empty path, which is then the other half's to refuse.
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                [name.into(), path.into()]
            })
            .collect()
    }
}

/// `rootswarm-agent fetch`.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchArgs {
    /// What to fetch, not yet parsed: a bad rooturl has its own line.
    pub rooturl: String,
    /// The file to leave behind.
    pub output: PathBuf,
    /// The local address to use.
    pub bind: Option<IpAddr>,
    /// The local UDP port; 0 is any. When none is given the usual one is tried, and another one taken if
    /// it is in use.
    pub port: Option<u16>,
    /// Go on serving until SIGTERM.
    pub stay: bool,
    /// What this node gives away at most.
    pub upload_limit_bytes_per_s: Option<u64>,
    /// The swarm key; without it the one in `conf`, if any.
    pub key: Option<SwarmPublicKey>,
    /// How long to go on without progress.
    pub timeout: Duration,
    /// Admission token.
    pub token: Option<String>,
    /// The rack this node stands in, as somebody named it.
    pub rack: Option<String>,
    /// Where to keep a status document up to date.
    pub status: Option<PathBuf>,
    /// The port of the seed's HTTP side, for the fallback.
    pub http_port: u16,
    /// Refuse what cannot be verified.
    pub require_verify: bool,
    /// Whether an image that the key did not sign is refused.
    pub require_key: bool,
    /// Where `swarm.pub` is looked for when no key is given.
    pub conf: PathBuf,
}

/// `rootswarm-agent status`.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusArgs {
    /// The run-time directory.
    pub run_dir: PathBuf,
    /// Print the document as it is.
    pub json: bool,
}

/// `rootswarm-agent check`.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckArgs {
    /// Where `swarm.pub` and `agent.conf` are.
    pub conf: PathBuf,
}

/// What is wrong with the arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// No command at all.
    #[error("no command given: use boot, fetch, status or check (see --help)")]
    NoCommand,
    /// A command nobody knows.
    #[error("unknown command \"{0}\": use boot, fetch, status or check (see --help)")]
    UnknownCommand(String),
    /// An option this command does not have.
    #[error("{command}: unknown option \"{option}\" (see {command} --help)")]
    UnknownOption {
        /// The command.
        command: &'static str,
        /// The option as given.
        option: String,
    },
    /// An option stands at the end without its value.
    #[error("{command}: {option} needs a value (see {command} --help)")]
    MissingValue {
        /// The command.
        command: &'static str,
        /// The option.
        option: String,
    },
    /// A required argument is missing.
    #[error("{command}: {what} is missing (see {command} --help)")]
    Missing {
        /// The command.
        command: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// One argument too many.
    #[error("{command}: unexpected argument \"{argument}\" (see {command} --help)")]
    Unexpected {
        /// The command.
        command: &'static str,
        /// The argument.
        argument: String,
    },
    /// A value of the wrong kind.
    #[error("{command}: {option}: {reason}")]
    BadValue {
        /// The command.
        command: &'static str,
        /// The option.
        option: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// An argument that is not text.
    #[error("argument {0:?} is not valid UTF-8")]
    NotText(OsString),
}

impl Classified for ArgsError {
    fn exit(&self) -> Exit {
        Exit::BadInput
    }
}

/// Default of every option that names the run-time directory.
pub const RUN_DIR: &str = "/run/rootswarm";
/// Default of every option that names the baked-in configuration.
pub const CONF_DIR: &str = "/etc/rootswarm";
/// initramfs-tools' default for ROOTDELAY on a network boot.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(180);

const HELP: &str = "\
rootswarm-agent: fetches a root image from the swarm and boots from it

usage: rootswarm-agent boot --rootmnt DIR [options]
       rootswarm-agent fetch ROOTURL --output FILE [options]
       rootswarm-agent status [--json]
       rootswarm-agent check [--conf DIR]

`rootswarm-agent COMMAND --help` lists a command's options.
ROOTURL is swarm://HOST[:PORT][,HOST2…]/NAME[@blake3:HEX] or http://HOST[:PORT]/PATH[@blake3:HEX].

exit codes: 1 unexpected, 2 bad arguments or kernel command line, 3 refused (trust, admission),
4 gave up (network), 5 local resource (RAM, disk), 6 no such image, 7 cannot be mounted,
8 address in use, 9 damaged
";

const BOOT_HELP: &str = "\
usage: rootswarm-agent boot --rootmnt DIR [options]

Mounts the root that the kernel command line names at DIR and leaves a process behind that serves
the image to other nodes. Called by the initramfs once the network is up.

  --rootmnt DIR    where the new root is mounted
  --cmdline FILE   kernel command line [/proc/cmdline]
  --run-dir DIR    holds the image and status.json [/run/rootswarm]
  --conf DIR       swarm.pub and agent.conf [/etc/rootswarm]
  --mnt DIR        the overlay's halves, moved to /mnt in the new root [/mnt]

kernel command line: rooturl= rootdelay= rootswarm.mode=overlay|ro|copy rootswarm.key=
rootswarm.token= rootswarm.rack= rootswarm.upload-limit= rootswarm.serve=yes|no
rootswarm.require-verify rootswarm.require-key rootswarm.port= rootswarm.http-port=
";

const FETCH_HELP: &str = "\
usage: rootswarm-agent fetch ROOTURL --output FILE [options]

Fetches an image into FILE: FILE.part while incomplete, renamed when the whole is verified.

  --output FILE          where the image goes
  --key ed25519:HEX      the installation's swarm key [DIR/swarm.pub of --conf]
  --bind IP              local address [any]
  --port N               local UDP port; 0 is any [7401, or any when it is in use]
  --stay                 go on serving until SIGTERM
  --upload-limit RATE    give away at most this much: 100mbit, 12MB [no limit]
  --timeout SECONDS      give up after so long without progress, whatever the servers answer
                         until then; 0: ask each of them once; forever: never give up [180]
  --token T              admission token
  --rack NAME            the rack this node stands in [its subnet]
  --status FILE          keep a JSON status document there
  --http-port N          the seed's HTTP port, for the fallback [7480]
  --require-verify       refuse an http:// rooturl without a pin
  --require-key          refuse what the swarm key did not sign, pinned or not
  --conf DIR             where swarm.pub is looked for [/etc/rootswarm]
";

const STATUS_HELP: &str = "\
usage: rootswarm-agent status [--json] [--run-dir DIR]

Shows what this node fetched, holds and serves.
";

const CHECK_HELP: &str = "\
usage: rootswarm-agent check [--conf DIR]

Reads swarm.pub and agent.conf as a boot does and says what is wrong with them: an initrd with a file
that its agent refuses would boot no machine.

  --conf DIR       swarm.pub and agent.conf [/etc/rootswarm]
";

/// Reads the arguments that follow the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, ArgsError> {
    let mut words = Vec::new();
    for arg in args {
        words.push(arg.into_string().map_err(ArgsError::NotText)?);
    }
    let mut words = words.into_iter();
    let Some(command) = words.next() else {
        return Err(ArgsError::NoCommand);
    };
    let words = words.collect::<Vec<_>>();
    match command.as_str() {
        "-h" | "--help" | "help" => Ok(Command::Help(HELP)),
        "-V" | "--version" => Ok(Command::Version),
        "boot" => parse_boot("boot", words),
        "boot-child" => parse_boot("boot-child", words),
        "fetch" => parse_fetch(words),
        "status" => parse_status(words),
        "check" => parse_check(words),
        _ => Err(ArgsError::UnknownCommand(command)),
    }
}

/// Walks over `--option value`, `--option=value` and plain arguments.
struct Words {
    command: &'static str,
    rest: std::vec::IntoIter<String>,
    option: String,
    inline: Option<String>,
}

enum Word {
    Option(String),
    Plain(String),
}

impl Words {
    fn new(command: &'static str, words: Vec<String>) -> Words {
        Words {
            command,
            rest: words.into_iter(),
            option: String::new(),
            inline: None,
        }
    }

    fn next(&mut self) -> Result<Option<Word>, ArgsError> {
        if let Some(value) = self.inline.take() {
            return Err(ArgsError::BadValue {
                command: self.command,
                option: self.option.clone(),
                reason: format!("takes no value, found \"{value}\""),
            });
        }
        let Some(word) = self.rest.next() else {
            return Ok(None);
        };
        if !word.starts_with('-') || word == "-" {
            return Ok(Some(Word::Plain(word)));
        }
        match word.split_once('=') {
            Some((option, value)) => {
                self.option = option.to_owned();
                self.inline = Some(value.to_owned());
            }
            None => self.option = word,
        }
        Ok(Some(Word::Option(self.option.clone())))
    }

    fn value(&mut self) -> Result<String, ArgsError> {
        self.inline
            .take()
            .or_else(|| self.rest.next())
            .ok_or_else(|| ArgsError::MissingValue {
                command: self.command,
                option: self.option.clone(),
            })
    }

    fn typed<T, E: std::fmt::Display>(
        &mut self,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, ArgsError> {
        let value = self.value()?;
        read(&value).map_err(|reason| ArgsError::BadValue {
            command: self.command,
            option: self.option.clone(),
            reason: format!("\"{value}\": {reason}"),
        })
    }

    fn unknown(&self) -> ArgsError {
        ArgsError::UnknownOption {
            command: self.command,
            option: self.option.clone(),
        }
    }

    fn unexpected(&self, argument: String) -> ArgsError {
        ArgsError::Unexpected {
            command: self.command,
            argument,
        }
    }
}

fn parse_boot(command: &'static str, words: Vec<String>) -> Result<Command, ArgsError> {
    let mut words = Words::new(command, words);
    let mut rootmnt = None;
    let mut cmdline = PathBuf::from("/proc/cmdline");
    let mut run_dir = PathBuf::from(RUN_DIR);
    let mut conf = PathBuf::from(CONF_DIR);
    let mut mnt = PathBuf::from("/mnt");
    while let Some(word) = words.next()? {
        match word {
            Word::Plain(argument) => return Err(words.unexpected(argument)),
            Word::Option(option) => match option.as_str() {
                "-h" | "--help" => return Ok(Command::Help(BOOT_HELP)),
                "--rootmnt" => rootmnt = Some(PathBuf::from(words.value()?)),
                "--cmdline" => cmdline = words.value()?.into(),
                "--run-dir" => run_dir = words.value()?.into(),
                "--conf" => conf = words.value()?.into(),
                "--mnt" => mnt = words.value()?.into(),
                _ => return Err(words.unknown()),
            },
        }
    }
    let rootmnt = rootmnt.ok_or(ArgsError::Missing {
        command,
        what: "--rootmnt DIR",
    })?;
    let args = BootArgs {
        rootmnt,
        cmdline,
        run_dir,
        conf,
        mnt,
    };
    Ok(if command == "boot" {
        Command::Boot(args)
    } else {
        Command::BootChild(args)
    })
}

fn parse_fetch(words: Vec<String>) -> Result<Command, ArgsError> {
    let mut words = Words::new("fetch", words);
    let mut rooturl = None;
    let mut output = None;
    let mut args = FetchArgs {
        rooturl: String::new(),
        output: PathBuf::new(),
        bind: None,
        port: None,
        stay: false,
        upload_limit_bytes_per_s: None,
        key: None,
        timeout: DEFAULT_PATIENCE,
        token: None,
        rack: None,
        status: None,
        http_port: rootswarm_image::HTTP_PORT,
        require_verify: false,
        require_key: false,
        conf: PathBuf::from(CONF_DIR),
    };
    while let Some(word) = words.next()? {
        match word {
            Word::Plain(url) if rooturl.is_none() => rooturl = Some(url),
            Word::Plain(argument) => return Err(words.unexpected(argument)),
            Word::Option(option) => match option.as_str() {
                "-h" | "--help" => return Ok(Command::Help(FETCH_HELP)),
                "-o" | "--output" => output = Some(PathBuf::from(words.value()?)),
                "--bind" => args.bind = Some(words.typed(str::parse)?),
                "--port" => args.port = Some(words.typed(str::parse)?),
                "--stay" => args.stay = true,
                "--upload-limit" => {
                    args.upload_limit_bytes_per_s = Some(words.typed(units::parse_rate)?)
                }
                "--key" => args.key = Some(words.typed(str::parse)?),
                "--timeout" => args.timeout = words.typed(parse_patience)?,
                "--token" => args.token = Some(words.value()?),
                "--rack" => args.rack = Some(words.typed(rack::parse)?),
                "--status" => args.status = Some(words.value()?.into()),
                "--http-port" => args.http_port = words.typed(str::parse)?,
                "--require-verify" => args.require_verify = true,
                "--require-key" => args.require_key = true,
                "--conf" => args.conf = words.value()?.into(),
                _ => return Err(words.unknown()),
            },
        }
    }
    args.rooturl = rooturl.ok_or(ArgsError::Missing {
        command: "fetch",
        what: "ROOTURL",
    })?;
    args.output = output.ok_or(ArgsError::Missing {
        command: "fetch",
        what: "--output FILE",
    })?;
    Ok(Command::Fetch(args))
}

fn parse_status(words: Vec<String>) -> Result<Command, ArgsError> {
    let mut words = Words::new("status", words);
    let mut args = StatusArgs {
        run_dir: PathBuf::from(RUN_DIR),
        json: false,
    };
    while let Some(word) = words.next()? {
        match word {
            Word::Plain(argument) => return Err(words.unexpected(argument)),
            Word::Option(option) => match option.as_str() {
                "-h" | "--help" => return Ok(Command::Help(STATUS_HELP)),
                "--run-dir" => args.run_dir = words.value()?.into(),
                "--json" => args.json = true,
                _ => return Err(words.unknown()),
            },
        }
    }
    Ok(Command::Status(args))
}

fn parse_check(words: Vec<String>) -> Result<Command, ArgsError> {
    let mut words = Words::new("check", words);
    let mut conf = PathBuf::from(CONF_DIR);
    while let Some(word) = words.next()? {
        match word {
            Word::Plain(argument) => return Err(words.unexpected(argument)),
            Word::Option(option) => match option.as_str() {
                "-h" | "--help" => return Ok(Command::Help(CHECK_HELP)),
                "--conf" => conf = words.value()?.into(),
                _ => return Err(words.unknown()),
            },
        }
    }
    Ok(Command::Check(CheckArgs { conf }))
}

/// How long to go on without progress: whole or fractional seconds, at least a tenth and at most a
/// day; 0 for once, `forever` for as long as it takes.
pub fn parse_patience(text: &str) -> Result<Duration, &'static str> {
    if text == "forever" {
        return Ok(FOREVER);
    }
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a number of seconds, or forever, is expected")?;
    if seconds == 0.0 {
        return Ok(ONCE);
    }
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err("0, between 0.1 and 86400 seconds, or forever are possible");
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Command, ArgsError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn good_lines() {
        let Ok(Command::Boot(boot)) = parse_line("boot --rootmnt /root --run-dir=/r") else {
            panic!("boot")
        };
        assert_eq!(boot.rootmnt, PathBuf::from("/root"));
        assert_eq!(boot.run_dir, PathBuf::from("/r"));
        assert_eq!(boot.cmdline, PathBuf::from("/proc/cmdline"));
        let words = [OsString::from("boot-child")]
            .into_iter()
            .chain(boot.to_words());
        assert_eq!(parse(words), Ok(Command::BootChild(boot)));

        let line = "fetch swarm://10.0.0.1/debian --output f --stay --bind ::1 --port=7 \
                    --upload-limit 1mbit --timeout 2.5 --token t --status s";
        let Ok(Command::Fetch(fetch)) = parse_line(line) else {
            panic!("fetch")
        };
        assert_eq!(fetch.rooturl, "swarm://10.0.0.1/debian");
        assert_eq!(fetch.upload_limit_bytes_per_s, Some(125_000));
        assert_eq!(fetch.timeout, Duration::from_millis(2500));
        assert!(fetch.stay);
        assert_eq!(fetch.port, Some(7));

        assert_eq!(parse_line("--help"), Ok(Command::Help(HELP)));
        assert_eq!(parse_line("fetch --help"), Ok(Command::Help(FETCH_HELP)));
        assert_eq!(parse_line("--version"), Ok(Command::Version));
    }

    #[test]
    fn patience() {
        let seconds = |seconds: f64| Ok(Duration::from_secs_f64(seconds));
        for (text, expected) in [
            ("0", Ok(ONCE)),
            ("0.0", Ok(ONCE)),
            ("0.1", seconds(0.1)),
            ("180", seconds(180.0)),
            ("86400", seconds(86_400.0)),
            ("forever", Ok(FOREVER)),
        ] {
            assert_eq!(parse_patience(text), expected, "{text}");
        }
        for text in ["", "-1", "NaN", "inf", "86401", "1e300", "Forever", "10s"] {
            assert!(parse_patience(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, message) in [
            (
                "",
                "no command given: use boot, fetch, status or check (see --help)",
            ),
            (
                "fly",
                "unknown command \"fly\": use boot, fetch, status or check (see --help)",
            ),
            ("boot", "boot: --rootmnt DIR is missing (see boot --help)"),
            (
                "boot --rootmnt",
                "boot: --rootmnt needs a value (see boot --help)",
            ),
            (
                "boot --fast",
                "boot: unknown option \"--fast\" (see boot --help)",
            ),
            (
                "boot x",
                "boot: unexpected argument \"x\" (see boot --help)",
            ),
            ("fetch", "fetch: ROOTURL is missing (see fetch --help)"),
            (
                "fetch u",
                "fetch: --output FILE is missing (see fetch --help)",
            ),
            (
                "fetch u --stay=yes",
                "fetch: --stay: takes no value, found \"yes\"",
            ),
            (
                "fetch u --bind here",
                "fetch: --bind: \"here\": invalid IP address syntax",
            ),
            (
                "fetch u --rack=",
                "fetch: --rack: \"\": a rack's name has 1 to 64 bytes",
            ),
            (
                "fetch u --timeout 0.05",
                "fetch: --timeout: \"0.05\": 0, between 0.1 and 86400 seconds, or forever are possible",
            ),
            (
                "fetch u --timeout never",
                "fetch: --timeout: \"never\": a number of seconds, or forever, is expected",
            ),
        ] {
            let error = parse_line(line).expect_err(line);
            assert_eq!(error.to_string(), message);
            assert_eq!(error.exit(), Exit::BadInput);
        }
    }
}
