//! Boot files: a directory that a stock dnsmasq serves and that pxelinux, iPXE and GRUB boot from.
//!
//! Everything that can be wrong is looked at before the first file is written, and each file is
//! replaced whole. What the boot loaders read is made in [`loaders`], what dnsmasq reads in
//! [`dnsmasq`]. DHCP and TFTP themselves are dnsmasq's.

pub mod dnsmasq;
pub mod loaders;
pub mod machines;
mod place;

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use rootswarm_image::{ImageName, RootUrl, SWARM_PORT};

use crate::cli::PxeArgs;
use crate::config::Settings;
use crate::durable::{self, Owner};
use crate::exit::Exit;
use crate::network::host_port;
use crate::state::{StateDir, StateError};
use crate::token::{TokenError, Tokens, now_unix_s};

pub use place::BootNetwork;

/// What the kernel is called in the directory, whatever it was called before.
pub const KERNEL: &str = "vmlinuz";
/// The same for the initrd.
pub const INITRD: &str = "initrd.img";

/// After so many seconds a machine that cannot boot tries again: long enough to read its last line, and
/// for a thousand of them not to hammer the network.
pub const REBOOT_AFTER_S: u32 = 30;

/// Why no boot files were written.
#[derive(Debug, thiserror::Error)]
pub enum PxeError {
    /// The state directory, or the image's name.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machines' tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A mirror's tokens are its primary's.
    #[error(
        "state directory {} mirrors {primary}: tokens are made there (run `rootswarm pxe --machine` there)",
        path.display()
    )]
    MirrorTokens {
        /// The directory.
        path: PathBuf,
        /// The seed that is mirrored.
        primary: String,
    },
    /// The directory that would be served by TFTP.
    #[error("--out {} is {is}: whatever is in it could be had by TFTP (expected a directory of its own)", path.display())]
    Out {
        /// The directory.
        path: PathBuf,
        /// What it is.
        is: &'static str,
    },
    /// A file that is to be copied cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Input {
        /// `kernel`, `initrd`, …
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Kernel and initrd are the wrong way round.
    #[error("initrd {} is a Linux kernel: --kernel and --initrd are the wrong way round", .0.display())]
    Swapped(PathBuf),
    /// pxelinux is not installed.
    #[error("{} is missing: install pxelinux and syslinux-common (Debian: apt-get install pxelinux syslinux-common), or name their place with --syslinux-dir", .0.display())]
    NoPxelinux(PathBuf),
    /// The boot network is not known.
    #[error(
        "cannot tell which network {host} boots: no interface that is up there has an IPv4 address, which PXE needs (give --interface, or --host and --subnet)"
    )]
    NoNetwork {
        /// The address, or what was said about it.
        host: String,
    },
    /// PXE over IPv6 is another protocol.
    #[error("cannot boot over {0}: PXE needs an IPv4 address (give one with --host)")]
    NotIpv4(IpAddr),
    /// Something for a configuration file that would not mean there what it says.
    #[error("bad {what} {text:?}: {reason}")]
    Text {
        /// Which option.
        what: &'static str,
        /// What it says.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file of the directory cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl PxeError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            PxeError::State(e) => e.exit(),
            PxeError::Token(e) => e.exit(),
            PxeError::NoPxelinux(_) | PxeError::Output { .. } => Exit::Local,
            _ => Exit::BadInput,
        }
    }
}

/// Everything the files say.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The image's name, for titles.
    pub image: ImageName,
    /// Where nodes get it.
    pub root_url: RootUrl,
    /// This host on the boot network, and the network.
    pub network: BootNetwork,
    /// What else the kernel is told, one line.
    pub append: String,
    /// How nodes use the image, if that was said.
    pub mode: Option<crate::cli::RootMode>,
    /// `http://HOST:PORT/boot/` if boot loaders are to use it.
    pub http_boot: Option<String>,
    /// The directory that is written, absolute: dnsmasq's TFTP root.
    pub out: PathBuf,
    /// The addresses that are leased; `None`: another server does that.
    pub leases: Option<(Ipv4Addr, Ipv4Addr)>,
    /// The default route that nodes are given.
    pub router: Option<IpAddr>,
    /// The name server that nodes are given.
    pub dns: Option<IpAddr>,
    /// Whether machines have entries of their own.
    pub by_machine: bool,
    /// Whether iPXE firmware gets a script of its own.
    pub ipxe_script: bool,
    /// An iPXE for UEFI clients that is there to be copied.
    pub uefi_loader: Option<PathBuf>,
}

impl Plan {
    /// The kernel's command line.
    pub fn kernel_line(&self) -> String {
        let mut line = format!("boot=ram rooturl={} ip=dhcp", self.root_url);
        if let Some(mode) = self.mode {
            line.push_str(" rootswarm.mode=");
            line.push_str(mode.as_str());
        }
        let append = self.append.trim();
        // A machine that gave up boots again by itself; without this it stands in a shell until somebody
        // comes. What the admin says about it wins.
        if !append
            .split_whitespace()
            .any(|word| word.starts_with("panic="))
        {
            line.push_str(&format!(" panic={REBOOT_AFTER_S}"));
        }
        if !append.is_empty() {
            line.push(' ');
            line.push_str(append);
        }
        line
    }

    /// Where a boot loader finds a file: below the HTTP server, or relative to where it came from.
    pub fn file(&self, name: &str) -> String {
        match &self.http_boot {
            Some(base) => format!("{base}{name}"),
            None => name.to_owned(),
        }
    }
}

/// Writes the directory and returns what it says.
pub fn write(settings: &Settings, args: &PxeArgs) -> Result<Plan, PxeError> {
    let state = StateDir::open_existing(&settings.state)?;
    let tag = state
        .read_tag(&args.image)?
        .ok_or_else(|| StateError::UnknownImage(args.image.clone()))?;
    let kernel = open("kernel", &args.kernel)?;
    let initrd = open("initrd", &args.initrd)?;
    if is_linux_kernel(&initrd) {
        return Err(PxeError::Swapped(args.initrd.clone()));
    }
    let pxelinux = [
        (
            "lpxelinux.0",
            args.syslinux_dir.join("PXELINUX/lpxelinux.0"),
        ),
        (
            "ldlinux.c32",
            args.syslinux_dir.join("syslinux/modules/bios/ldlinux.c32"),
        ),
    ];
    if let Some((_, missing)) = pxelinux.iter().find(|(_, path)| !path.is_file()) {
        return Err(PxeError::NoPxelinux(missing.clone()));
    }
    if let Some(primary) = state.mirrors().filter(|_| !args.machines.is_empty()) {
        let path = state.root().to_owned();
        return Err(PxeError::MirrorTokens { path, primary });
    }
    let network = place::find(args)?;
    let host = IpAddr::V4(network.host);
    let http_host = host_port(host, settings.http.port(), 80);
    let leases = match &args.dhcp_range {
        _ if args.proxy_dhcp => None,
        Some(text) => Some(place::parse_range(text)?),
        None => Some(place::default_range(&network)?),
    };
    check_text("--append", &args.append)?;
    let own = host_port(host, settings.listen.port(), SWARM_PORT);
    let root_url = RootUrl::Swarm {
        hosts: [own].into_iter().chain(args.seeds.clone()).collect(),
        name: args.image.clone(),
        pin: (!args.no_pin).then_some(tag.unverified().id),
    };
    if root_url.to_string().parse::<RootUrl>().is_err() {
        return Err(PxeError::Text {
            what: "--seed",
            text: root_url.to_string(),
            reason: "too many or too long (expected at most 16 seeds with this one)",
        });
    }
    let uefi_loader = args.syslinux_dir.join("ipxe/snponly.efi");
    let mut plan = Plan {
        image: args.image.clone(),
        root_url,
        network,
        append: args.append.clone(),
        mode: args.mode,
        http_boot: args.http.then(|| format!("http://{http_host}/boot/")),
        out: PathBuf::new(),
        leases,
        router: args.router,
        dns: args.dns,
        by_machine: !args.machines.is_empty(),
        ipxe_script: !args.no_ipxe,
        uefi_loader: (!args.no_ipxe && uefi_loader.is_file()).then_some(uefi_loader),
    };

    let output = |path: &Path| {
        let path = path.to_owned();
        move |source| PxeError::Output { path, source }
    };
    check_out(&args.out, &settings.state)?;
    fs::create_dir_all(args.out.join("pxelinux.cfg")).map_err(output(&args.out))?;
    fs::create_dir_all(args.out.join("grub")).map_err(output(&args.out))?;
    plan.out = fs::canonicalize(&args.out).map_err(output(&args.out))?;
    check_text("--out", &plan.out.to_string_lossy())?;

    let directory = Directory {
        path: plan.out.clone(),
        owner: None,
    };
    let boot = match args.http {
        // From `open`, because it also makes the boot directory if this state never had one.
        true => Some(StateDir::open(&settings.state)?),
        false => None,
    };
    let boot = boot.map(|state| Directory {
        path: state.boot(),
        owner: state.owner(),
    });
    directory.copy(KERNEL, &kernel)?;
    directory.copy(INITRD, &initrd)?;
    for (name, path) in &pxelinux {
        directory.copy(name, &open("boot loader", path)?)?;
    }
    if let Some(path) = &plan.uefi_loader {
        directory.copy("snponly.efi", &open("boot loader", path)?)?;
    }
    if let Some(boot) = &boot {
        boot.copy(KERNEL, &kernel)?;
        boot.copy(INITRD, &initrd)?;
        boot.write("boot.ipxe", &loaders::ipxe_script(&plan))?;
    }
    if !args.machines.is_empty() {
        let tokens = Tokens::new(StateDir::open(&settings.state)?);
        let made = machines::tokens(&tokens, &args.machines, args.token_lifetime, now_unix_s())?;
        for (machine, token) in made {
            let own = Plan {
                by_machine: false,
                ..machines::with_token(&plan, &token)
            };
            let mac = machine.hyphens();
            directory.write(
                &format!("pxelinux.cfg/01-{mac}"),
                &loaders::pxelinux_config(&own),
            )?;
            directory.write(
                &format!("grub/grub.cfg-01-{mac}"),
                &loaders::grub_config(&own),
            )?;
            for place in [Some(&directory), boot.as_ref()].into_iter().flatten() {
                place.write(&loaders::ipxe_name(&mac), &loaders::ipxe_script(&own))?;
            }
        }
    }
    directory.write("pxelinux.cfg/default", &loaders::pxelinux_config(&plan))?;
    directory.write("boot.ipxe", &loaders::ipxe_script(&plan))?;
    directory.write("grub/grub.cfg", &loaders::grub_config(&plan))?;
    directory.write("dnsmasq.conf", &dnsmasq::config(&plan))?;
    Ok(plan)
}

fn open(what: &'static str, path: &Path) -> Result<File, PxeError> {
    let failed = |source| PxeError::Input {
        what,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    Ok(file)
}

/// The magic of the x86 boot protocol (`HdrS` at 0x202) or of an arm64 Image (`ARM\x64` at 0x38).
fn is_linux_kernel(file: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let holds = |offset, magic: &[u8; 4]| {
        let mut found = [0; 4];
        file.read_exact_at(&mut found, offset).is_ok() && found == *magic
    };
    holds(0x202, b"HdrS") || holds(0x38, b"ARM\x64")
}

/// What is in the directory can be had by everybody on the boot network.
fn check_out(out: &Path, state: &Path) -> Result<(), PxeError> {
    let refuse = |is| {
        let path = out.to_owned();
        Err(PxeError::Out { path, is })
    };
    // One that is not there yet is neither.
    let Ok(found) = fs::canonicalize(out) else {
        return Ok(());
    };
    match fs::canonicalize(state) {
        Ok(state) if state == found => refuse("the state directory"),
        Ok(state) if state.starts_with(&found) => refuse("above the state directory"),
        _ if found == Path::new("/") => refuse("the root of this host"),
        _ => Ok(()),
    }
}

/// What goes into four configuration languages must not be special in any of them.
fn check_text(what: &'static str, text: &str) -> Result<(), PxeError> {
    let bad = |reason| {
        Err(PxeError::Text {
            what,
            text: text.to_owned(),
            reason,
        })
    };
    if text.chars().any(char::is_control) {
        return bad("it has control characters");
    }
    if text.contains("${") {
        return bad("iPXE and GRUB would replace ${…}");
    }
    if what == "--out" && text.contains(['"', '#', '\\']) {
        return bad("dnsmasq reads \", # and \\ in a path as something else");
    }
    Ok(())
}

/// A directory that files are put into, whole.
struct Directory {
    path: PathBuf,
    owner: Option<Owner>,
}

impl Directory {
    fn write(&self, name: &str, contents: &str) -> Result<(), PxeError> {
        self.replace(name, contents.as_bytes())
    }

    fn copy(&self, name: &str, source: &File) -> Result<(), PxeError> {
        use std::io::Seek;
        let path = self.path.join(name);
        let mut contents = Vec::new();
        let mut source = source;
        // A kernel or an initrd: tens of megabytes.
        source
            .rewind()
            .and_then(|()| source.read_to_end(&mut contents))
            .map_err(|source| PxeError::Input {
                what: "the source of",
                path,
                source,
            })?;
        self.replace(name, &contents)
    }

    fn replace(&self, name: &str, contents: &[u8]) -> Result<(), PxeError> {
        let path = self.path.join(name);
        durable::replace_file(&path, &durable::beside(&path), contents, 0o644, self.owner)
            .map_err(|source| PxeError::Output { path, source })
    }
}
