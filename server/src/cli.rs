//! The command line. Only its shape: what a command does is in [`crate::commands`].

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rootswarm_image::{ChunkSize, HostPort, ImageName};

use crate::admission::AdmissionMode;
use crate::config::{ConfigError, ConfigFile, Settings, parse_chunk_size, parse_keep};
use crate::generations::Which;
use crate::mirror::MirrorOf;
use crate::network::Cidr;
use crate::pxe::machines::Mac;
use crate::units::{Rate, parse_duration};

/// Boots diskless machines from a swarm: this is the seed's side.
#[derive(Debug, Parser)]
#[command(
    name = "rootswarm",
    version,
    max_term_width = 100,
    after_help = "\
Options also come from the environment (as named) and from a TOML file; the command line wins over \
the environment, and the environment over the file.

Exit codes: 0 done, 1 unexpected, 2 bad arguments or configuration, 3 refused (trust), 4 no server \
answers, 5 local resource (disk full, missing package), 6 no such image, 8 address in use, 9 damaged \
copy or state, 10 the source file changed or is not complete."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Configuration file [default: /etc/rootswarm/rootswarm.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "ROOTSWARM_CONFIG")]
    pub config: Option<PathBuf>,
    /// State directory [default: /var/lib/rootswarm]
    #[arg(long, global = true, value_name = "DIR", env = "ROOTSWARM_STATE")]
    pub state: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve all that is published, to the swarm and over HTTP
    Serve(ServeArgs),
    /// Publish a squashfs under a name and print its rooturl
    Publish(PublishArgs),
    /// List what is published
    Images,
    /// Take a name out of the catalogue
    Remove(RemoveArgs),
    /// Give a published image another name, and print its rooturl
    Tag(TagArgs),
    /// Make an older image of a name what it means again, under a new version, and print its rooturl
    Rollback(RollbackArgs),
    /// Show the swarm of the server that runs on this host
    Status(StatusArgs),
    /// Write what a stock dnsmasq, pxelinux, iPXE and GRUB boot an image from
    Pxe(PxeArgs),
    /// Admission tokens
    Token(TokenArgs),
    /// Take a node's admission back: seeds and nodes part from it at once
    Revoke(RevokeArgs),
    /// Print the public swarm key, for baking into initrds as /etc/rootswarm/swarm.pub
    Key(KeyArgs),
}

/// How nodes reach this host, as it stands in what is printed.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// What nodes connect to [default: the address that is listened on; if that is all of them, a
    /// running server's, else the address of the default route's interface]
    #[arg(long, value_name = "HOST[:PORT]", env = "ROOTSWARM_HOST")]
    pub host: Option<HostPort>,
    /// Where the swarm listens (UDP) [default: 0.0.0.0:7400]
    #[arg(long, value_name = "ADDR:PORT", env = "ROOTSWARM_LISTEN")]
    pub listen: Option<SocketAddr>,
}

/// `serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where nodes reach this host.
    #[command(flatten)]
    pub host: HostArgs,
    /// Where HTTP listens (TCP) [default: 0.0.0.0:7480]
    #[arg(long, value_name = "ADDR:PORT", env = "ROOTSWARM_HTTP")]
    pub http: Option<SocketAddr>,
    /// Most that is sent of images, as in 100Mbit, 10MB/s or plain bytes per second; kernels and
    /// initrds are not held back
    #[arg(long, value_name = "RATE", env = "ROOTSWARM_UPLOAD_LIMIT")]
    pub upload_limit: Option<Rate>,
    /// Network whose hosts are let in; repeat or separate with commas [default: the networks of
    /// this host's interfaces]
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        env = "ROOTSWARM_ALLOW"
    )]
    pub allow: Vec<Cidr>,
    /// Whether a node also needs a token [default: open]
    #[arg(long, value_name = "MODE", env = "ROOTSWARM_ADMISSION")]
    pub admission: Option<AdmissionMode>,
    /// Keep the images, tags, tokens and revocations of this seed, which has the same swarm.key, and
    /// serve them too
    #[arg(long, value_name = "swarm://HOST[:PORT]", env = "ROOTSWARM_MIRROR")]
    pub mirror: Option<MirrorOf>,
    /// Whether each copy is hashed before it is served [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "ROOTSWARM_VERIFY")]
    pub verify: Option<bool>,
    /// Chunk size of what is published, as in 256KiB [default: by the image's length]
    #[arg(long, value_name = "SIZE", value_parser = parse_chunk_size, env = "ROOTSWARM_CHUNK_SIZE")]
    pub chunk_size: Option<ChunkSize>,
    /// How many images of a name are kept, this one among them, unless another number was given with
    /// that name: machines that hold the pin of an older one still boot it [default: 3]
    #[arg(long, value_name = "N", value_parser = parse_keep, env = "ROOTSWARM_KEEP")]
    pub keep: Option<usize>,
    /// Publish what no node can boot too
    #[arg(long)]
    pub force: bool,
    /// Publish FILE as NAME; nothing happens if it is published already, or if NAME was rolled back from
    /// what is in it
    #[arg(value_name = "NAME=FILE", value_parser = parse_name_and_file)]
    pub images: Vec<(ImageName, PathBuf)>,
}

/// `key`
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// Print what an initrd that is built now need not take any more (/etc/rootswarm/swarm.minimum): the
    /// epoch and the versions of names
    #[arg(long)]
    pub minimum: bool,
}

/// `publish`
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Where nodes reach this host.
    #[command(flatten)]
    pub host: HostArgs,
    /// Chunk size, as in 256KiB [default: by the image's length]
    #[arg(long, value_name = "SIZE", value_parser = parse_chunk_size, env = "ROOTSWARM_CHUNK_SIZE")]
    pub chunk_size: Option<ChunkSize>,
    /// How many images of this name are kept from now on, this one among them: machines that hold the
    /// pin of an older one still boot it [default: what was given last with this name, else `keep` of the
    /// configuration file, else 3]
    #[arg(long, value_name = "N", value_parser = parse_keep, env = "ROOTSWARM_KEEP")]
    pub keep: Option<usize>,
    /// Publish it although no node can boot it
    #[arg(long)]
    pub force: bool,
    /// Print no progress
    #[arg(long, short)]
    pub quiet: bool,
    /// Name of the image: 1 to 64 of a-z 0-9 . _ -
    pub name: ImageName,
    /// The squashfs; it is copied, so it may change afterwards
    pub file: PathBuf,
}

/// `remove`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Name of the image
    pub name: ImageName,
}

/// `tag`
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Where nodes reach this host.
    #[command(flatten)]
    pub host: HostArgs,
    /// How many images of NAME are kept from now on, the current one among them; without it none is given
    /// up
    #[arg(long, value_name = "N", value_parser = parse_keep, env = "ROOTSWARM_KEEP")]
    pub keep: Option<usize>,
    /// The name to give
    pub name: ImageName,
    /// The name that the image has already
    pub existing: ImageName,
}

/// `rollback`
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Where nodes reach this host.
    #[command(flatten)]
    pub host: HostArgs,
    /// How many images of NAME are kept from now on, the current one among them; without it none is given
    /// up
    #[arg(long, value_name = "N", value_parser = parse_keep, env = "ROOTSWARM_KEEP")]
    pub keep: Option<usize>,
    /// The name
    pub name: ImageName,
    /// How many images to go back, or the first digits of the id of one, at least eight
    #[arg(value_name = "N|ID", default_value = "1")]
    pub which: Which,
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Show it again each second until interrupted
    #[arg(long, short)]
    pub watch: bool,
    /// Print the server's own JSON document, one a line
    #[arg(long)]
    pub json: bool,
}

/// How a node uses the image once it has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RootMode {
    /// The squashfs with a tmpfs over it.
    Overlay,
    /// The squashfs, read-only.
    Ro,
    /// Unpacked into a tmpfs.
    Copy,
}

impl RootMode {
    /// The word on the kernel's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            RootMode::Overlay => "overlay",
            RootMode::Ro => "ro",
            RootMode::Copy => "copy",
        }
    }
}

/// `pxe`
#[derive(Debug, Args)]
pub struct PxeArgs {
    /// The kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The initrd, made with rootswarm's hook
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,
    /// The published image to boot
    #[arg(long, value_name = "NAME")]
    pub image: ImageName,
    /// Directory to write, which is also dnsmasq's TFTP root
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// This host's address on the boot network [default: that of --interface, of the interface on
    /// --subnet, or of the default route]
    #[arg(long, value_name = "IP", env = "ROOTSWARM_PXE_HOST")]
    pub host: Option<IpAddr>,
    /// Another seed that nodes are told of, as a mirror of this one; repeat or separate with commas. By its
    /// address, unless nodes have a name server (--dns)
    #[arg(long = "seed", value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub seeds: Vec<HostPort>,
    /// Interface of the boot network
    #[arg(long, value_name = "IF")]
    pub interface: Option<String>,
    /// The boot network [default: the network of that address]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<Cidr>,
    /// Where the swarm listens [default: 0.0.0.0:7400]
    #[arg(long, value_name = "ADDR:PORT", env = "ROOTSWARM_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Where HTTP listens [default: 0.0.0.0:7480]
    #[arg(long = "http-listen", value_name = "ADDR:PORT", env = "ROOTSWARM_HTTP")]
    pub http_listen: Option<SocketAddr>,
    /// Let the boot loaders fetch kernel and initrd from `rootswarm serve` over HTTP, which is much
    /// faster than TFTP; they are copied into the state directory for it
    #[arg(long)]
    pub http: bool,
    /// How nodes use the image [default: the initrd's, which is overlay]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<RootMode>,
    /// More for the kernel's command line
    #[arg(
        long,
        value_name = "ARGS",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub append: String,
    /// Leave the pin out: nodes boot what the name means when they start, and trust the swarm key
    /// that is baked into the initrd
    #[arg(long)]
    pub no_pin: bool,
    /// A machine that gets a boot entry and a one-time token of its own, by its Ethernet address; repeat or
    /// separate with commas. To be done again before each boot of it
    #[arg(long = "machine", value_name = "MAC", value_delimiter = ',')]
    pub machines: Vec<Mac>,
    /// How long these tokens admit, as in 10m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h", requires = "machines")]
    pub token_lifetime: Duration,
    /// First and last address to lease [default: most of the network]
    #[arg(long, value_name = "FIRST,LAST", conflicts_with = "proxy_dhcp")]
    pub dhcp_range: Option<String>,
    /// Another server leases addresses; only add the boot information
    #[arg(long)]
    pub proxy_dhcp: bool,
    /// Default route that nodes are given [default: none]
    #[arg(long, value_name = "IP")]
    pub router: Option<IpAddr>,
    /// Name server that nodes are given [default: none]
    #[arg(long, value_name = "IP")]
    pub dns: Option<IpAddr>,
    /// Give pxelinux to iPXE firmware too, instead of an iPXE script
    #[arg(long)]
    pub no_ipxe: bool,
    /// Where pxelinux and its modules are installed
    #[arg(long, value_name = "DIR", default_value = "/usr/lib")]
    pub syslinux_dir: PathBuf,
}

/// `token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// `revoke`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("whom").required(true))]
pub struct RevokeArgs {
    /// The node: the first digits of its id or its address, as `rootswarm status` shows them, or all 64
    /// digits
    #[arg(value_name = "NODE", group = "whom")]
    pub node: Option<String>,
    /// Let a revoked NODE in again
    #[arg(long, requires = "node")]
    pub undo: bool,
    /// Every node: each has to join again
    #[arg(long, group = "whom")]
    pub all: bool,
    /// List the revoked nodes
    #[arg(long, group = "whom")]
    pub list: bool,
}

/// `token …`
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make tokens and print them; they are not shown again
    Create {
        /// Admits any number of times, not once
        #[arg(long)]
        reusable: bool,
        /// How long it admits, as in 10m, 12h or 7d
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10m")]
        lifetime: Duration,
        /// How many
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), default_value_t = 1)]
        count: u32,
        /// A note for `token list`
        #[arg(
            long,
            value_name = "TEXT",
            default_value = "",
            hide_default_value = true
        )]
        note: String,
    },
    /// List the tokens that admit
    List,
    /// Take a token out
    Revoke {
        /// Its number, or the token itself
        #[arg(value_name = "ID")]
        id: String,
    },
}

fn parse_name_and_file(text: &str) -> Result<(ImageName, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("expected NAME=FILE")?;
    let name = name
        .parse()
        .map_err(|e: rootswarm_image::ImageNameError| e.to_string())?;
    if file.is_empty() {
        return Err("expected NAME=FILE, the file is missing".to_owned());
    }
    Ok((name, file.into()))
}

impl Cli {
    /// Parses; what is wrong with the command line comes back as one line. Help and version are not
    /// errors: they are printed and end the process.
    pub fn parse_line(
        args: impl IntoIterator<Item = std::ffi::OsString>,
    ) -> Result<Cli, ConfigError> {
        Cli::try_parse_from(args).map_err(|error| {
            if !error.use_stderr() {
                error.exit();
            }
            ConfigError::CommandLine(one_line(&error.to_string()))
        })
    }

    /// What all layers come to.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let mut file = ConfigFile::read(self.common.config.as_deref())?;
        if let Some(state) = &self.common.state {
            file.state = Some(state.clone());
        }
        match &self.command {
            Command::Serve(args) => {
                args.host.apply(&mut file);
                file.http = args.http.or(file.http);
                file.upload_limit = args.upload_limit.or(file.upload_limit);
                file.admission = args.admission.or(file.admission);
                file.mirror = args.mirror.clone().or(file.mirror);
                file.verify = args.verify.or(file.verify);
                file.chunk_size = args.chunk_size.or(file.chunk_size);
                file.keep = args.keep.or(file.keep);
                if !args.allow.is_empty() {
                    file.allow = Some(args.allow.clone());
                }
                let mut names = BTreeSet::new();
                if let Some((name, _)) = args.images.iter().find(|(name, _)| !names.insert(name)) {
                    let line = format!("{name} is given twice: expected one file for each name");
                    return Err(ConfigError::CommandLine(line));
                }
                file.images.extend(args.images.iter().cloned());
            }
            Command::Publish(args) => {
                args.host.apply(&mut file);
                file.chunk_size = args.chunk_size.or(file.chunk_size);
                file.keep = args.keep.or(file.keep);
            }
            Command::Tag(args) => {
                args.host.apply(&mut file);
                file.keep = args.keep.or(file.keep);
            }
            Command::Rollback(args) => {
                args.host.apply(&mut file);
                file.keep = args.keep.or(file.keep);
            }
            Command::Pxe(args) => {
                file.listen = args.listen.or(file.listen);
                file.http = args.http_listen.or(file.http);
            }
            _ => {}
        }
        let mut settings = Settings::from(file);
        settings.force = match &self.command {
            Command::Serve(args) => args.force,
            Command::Publish(args) => args.force,
            _ => false,
        };
        Ok(settings)
    }
}

impl HostArgs {
    fn apply(&self, file: &mut ConfigFile) {
        file.host = self.host.clone().or(file.host.take());
        file.listen = self.listen.or(file.listen);
    }
}

/// clap's message without its usage, on one line.
fn one_line(message: &str) -> String {
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let message = message.split("\n\nUsage:").next().unwrap_or(message);
    let message = message
        .split("\n\nFor more information")
        .next()
        .unwrap_or(message);
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{words} (see rootswarm --help)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(line: &str) -> Result<Settings, ConfigError> {
        Cli::parse_line(line.split_whitespace().map(Into::into))?.settings()
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(
            &path,
            "state = \"/a\"\nverify = false\nupload-limit = \"1Mbit\"\nallow = [\"10.0.0.0/8\"]\n",
        )
        .unwrap();
        let path = path.display();
        let from_file = settings(&format!("rootswarm serve --config {path}")).unwrap();
        assert_eq!(from_file.state, PathBuf::from("/a"));
        assert!(!from_file.verify);
        assert_eq!(from_file.allow.len(), 1);
        let line = format!(
            "rootswarm serve --config {path} --state /b --allow ::/0 --allow 1.0.0.0/8 --upload-limit 1MB/s --verify w=f"
        );
        let overridden = settings(&line).unwrap();
        assert_eq!(overridden.state, PathBuf::from("/b"));
        assert!(overridden.verify);
        assert_eq!(overridden.allow.len(), 2);
        assert_eq!(overridden.upload_limit.unwrap().bytes_per_s(), 1_000_000);
        assert_eq!(overridden.images.len(), 1);
    }

    #[test]
    fn a_refusal_is_one_line() {
        for line in [
            "rootswarm",
            "rootswarm serve --frobnicate",
            "rootswarm publish",
            "rootswarm publish UPPER file",
            "rootswarm serve web",
            "rootswarm serve web=",
            "rootswarm serve ../x=file",
            "rootswarm serve --upload-limit fast",
            "rootswarm serve --allow 10.0.0.0/33",
            "rootswarm serve --listen 7400",
            "rootswarm publish --chunk-size 3KiB a b",
            "rootswarm publish --keep 0 a b",
            "rootswarm rollback web 0",
            "rootswarm rollback web abc",
            "rootswarm token create --lifetime never",
        ] {
            match settings(line) {
                Err(ConfigError::CommandLine(text)) => {
                    assert!(!text.contains('\n') && !text.is_empty(), "{line}: {text}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }
}
