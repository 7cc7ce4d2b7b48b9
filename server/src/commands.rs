//! What each command does: settings in, the library's work, lines out.
//!
//! Standard output is for what scripts read; progress, warnings and the one line of a failure go to
//! standard error.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use rootswarm_image::{HostPort, SwarmKey, Tag};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{
    Cli, Command, PublishArgs, PxeArgs, RevokeArgs, StatusArgs, TagArgs, TokenCommand,
};
use crate::config::Settings;
use crate::exit::Failure;
use crate::network::{advertised_host, root_url};
use crate::node_name::{node_hex, parse_node};
use crate::progress::{self, Quiet};
use crate::publish::{self, Unchanged};
use crate::pxe;
use crate::revocation::{self, RevocationList};
use crate::serve;
use crate::state::{StateDir, StateError};
use crate::status;
use crate::token::{Tokens, Use, now_unix_s};
use crate::units::{Bytes, format_utc};

/// Runs the command line and returns the process's exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    start_log();
    let outcome = Cli::parse_line(args).map_err(Failure::from).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`rootswarm images | head -1`) is no failure.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let _ = writeln!(io::stderr(), "rootswarm: {failure}");
            failure.exit().into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let settings = cli.settings()?;
    match &cli.command {
        Command::Serve(_) => Ok(serve::serve(settings)?),
        Command::Publish(args) => publish(&settings, args),
        Command::Images => images(&settings),
        Command::Remove(args) => Ok(own_state(&settings)?.remove(&args.name)?),
        Command::Tag(args) => tag(&settings, args),
        Command::Status(args) => show_status(&settings, args),
        Command::Pxe(args) => write_boot_files(&settings, args),
        Command::Token(args) => token(&settings, &args.command),
        Command::Revoke(args) => revoke(&settings, args),
        Command::Key(args) => {
            let state = StateDir::open(&settings.state)?;
            let key = state.key()?;
            match args.minimum {
                true => minimum(&state),
                false => print(&key.public()),
            }
        }
    }
}

/// What an initrd that is built now need not take any more: `swarm.minimum`, beside `swarm.pub`.
fn minimum(state: &StateDir) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "rootswarm-minimum 1\nepoch {}", state.epoch()?)?;
    for (_, found) in state.read_tags()? {
        let tag = found?.unverified().clone();
        let (version, _) = state.newest(&tag.name);
        writeln!(out, "version {} {version}", tag.name)?;
    }
    Ok(out.flush()?)
}

fn print(line: &dyn fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn publish(settings: &Settings, args: &PublishArgs) -> Result<(), Failure> {
    let (state, key) = open_with_key(settings)?;
    let request = publish::Request {
        name: &args.name,
        source: &args.file,
        chunk_size: settings.chunk_size,
        unchanged: Unchanged::NewVersion,
    };
    let published = if args.quiet {
        publish::publish(&state, &key, &request, &Quiet)?
    } else {
        publish::publish(
            &state,
            &key,
            &request,
            &*progress::to_stderr(args.name.as_str()),
        )?
    };
    if published.not_squashfs {
        tracing::warn!(
            "{} is no squashfs: it can be fetched, and no node can boot it",
            args.file.display()
        );
    }
    print_root_url(settings, &state, &published.tag)
}

fn tag(settings: &Settings, args: &TagArgs) -> Result<(), Failure> {
    let (state, key) = open_with_key(settings)?;
    let signed = state.retag(&args.name, &args.existing, &key)?;
    print_root_url(settings, &state, signed.unverified())
}

fn open_with_key(settings: &Settings) -> Result<(StateDir, SwarmKey), StateError> {
    let state = StateDir::open(&settings.state)?;
    refuse_mirror(&state)?;
    let key = state.key()?;
    Ok((state, key))
}

/// The state directory, to change something in it that is there.
fn own_state(settings: &Settings) -> Result<StateDir, StateError> {
    let state = StateDir::open_existing(&settings.state)?;
    refuse_mirror(&state)?;
    Ok(state)
}

/// What is changed in a mirror would be undone a second later.
fn refuse_mirror(state: &StateDir) -> Result<(), StateError> {
    match state.mirrors() {
        Some(primary) => Err(StateError::Mirrors {
            path: state.root().to_owned(),
            primary,
        }),
        None => Ok(()),
    }
}

fn revoke(settings: &Settings, args: &RevokeArgs) -> Result<(), Failure> {
    if args.list {
        let list = RevocationList::new(StateDir::open_existing(&settings.state)?);
        let nodes = list.load()?.nodes;
        let mut out = io::stdout().lock();
        writeln!(out, "{:64}  REVOKED (UTC)", "NODE")?;
        for (node, when) in nodes {
            writeln!(out, "{}  {}", node_hex(&node), format_utc(when))?;
        }
        return Ok(out.flush()?);
    }
    let state = own_state(settings)?;
    let list = RevocationList::new(state.clone());
    let Some(node) = &args.node else {
        let key = state.key()?;
        let epoch = list.revoke_all()?;
        state.renew_tags(&key)?;
        return print(&format!("epoch {epoch}"));
    };
    let node = if args.undo {
        let revoked = list.load()?.nodes.into_iter().map(|(node, _)| node);
        let node = revocation::resolve(node, "revoked", revoked)?;
        list.undo(node)?;
        node
    } else {
        // Without a server nobody is connected.
        let images = status::ask(&state.control_socket()).map_or(Vec::new(), |found| found.images);
        let connected = images.iter().flat_map(|image| &image.nodes);
        let connected = connected.filter_map(|node| parse_node(&node.id));
        let node = revocation::resolve(node, "connected", connected)?;
        list.revoke(node, now_unix_s())?;
        node
    };
    print(&node_hex(&node))
}

fn print_root_url(settings: &Settings, state: &StateDir, tag: &Tag) -> Result<(), Failure> {
    print(&root_url(
        &host_for_nodes(settings, state),
        &tag.name,
        Some(tag.id),
    ))
}

/// What was configured; else what the server that runs on this state directory tells its nodes;
/// else what it would.
fn host_for_nodes(settings: &Settings, state: &StateDir) -> HostPort {
    let from_server = || status::ask(&state.control_socket()).ok()?.host.parse().ok();
    settings
        .host
        .clone()
        .or_else(|| {
            settings
                .listen
                .ip()
                .is_unspecified()
                .then(from_server)
                .flatten()
        })
        .unwrap_or_else(|| advertised_host(settings.listen))
}

fn images(settings: &Settings) -> Result<(), Failure> {
    let tags = StateDir::open_existing(&settings.state)?.read_tags()?;
    let mut out = io::stdout().lock();
    let width = tags
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max("NAME".len());
    writeln!(
        out,
        "{:width$}  {:>9}  {:>7}  {:16}  ID",
        "NAME", "SIZE", "VERSION", "PUBLISHED (UTC)"
    )?;
    let mut damaged = None;
    for (name, tag) in tags {
        match tag {
            Ok(signed) => {
                let tag = signed.unverified();
                let path = settings.state.join("tags").join(tag.name.as_str());
                let published = published_at(&path).map_or_else(|| "-".to_owned(), format_utc);
                writeln!(
                    out,
                    "{name:width$}  {:>9}  {:>7}  {published:16}  {}",
                    Bytes(tag.length),
                    tag.version,
                    tag.id
                )?;
            }
            Err(error) => {
                writeln!(out, "{name:width$}  damaged")?;
                damaged.get_or_insert(error);
            }
        }
    }
    out.flush()?;
    damaged.map_or(Ok(()), |error| Err(error.into()))
}

fn published_at(path: &std::path::Path) -> Option<u64> {
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    Some(
        modified
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .ok()?
            .as_secs(),
    )
}

fn show_status(settings: &Settings, args: &StatusArgs) -> Result<(), Failure> {
    let socket = settings.state.join("control.sock");
    let clear = args.watch && !args.json && io::stdout().is_terminal();
    loop {
        let document = status::ask(&socket)?;
        let text = if args.json {
            // The document is numbers, strings and lists: always JSON.
            serde_json::to_string(&document).unwrap_or_default()
        } else {
            status::table(&document).trim_end().to_owned()
        };
        // Home, the text, then clear below it: no flicker.
        let text = if clear {
            format!("\x1b[H\x1b[2J{text}")
        } else {
            text
        };
        print(&text)?;
        if !args.watch {
            return Ok(());
        }
        if !clear && !args.json {
            print(&"")?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn write_boot_files(settings: &Settings, args: &PxeArgs) -> Result<(), Failure> {
    let plan = pxe::write(settings, args)?;
    if plan.network.interface.is_none() {
        tracing::warn!(
            "no interface has {} now: dnsmasq will look for it on all of them",
            plan.network.host
        );
    }
    print(&plan.kernel_line())?;
    let _ = writeln!(
        io::stderr(),
        "rootswarm: wrote {}; start DHCP and TFTP with: dnsmasq --keep-in-foreground --conf-file={}",
        plan.out.display(),
        plan.out.join("dnsmasq.conf").display()
    );
    Ok(())
}

fn token(settings: &Settings, command: &TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create {
            reusable,
            lifetime,
            count,
            note,
        } => {
            let state = StateDir::open(&settings.state)?;
            refuse_mirror(&state)?;
            let tokens = Tokens::new(state);
            let usage = if *reusable {
                Use::Reusable
            } else {
                Use::OneTime
            };
            for _ in 0..*count {
                print(&tokens.create(usage, Some(*lifetime), note, now_unix_s())?)?;
            }
            Ok(())
        }
        TokenCommand::List => {
            let tokens = Tokens::new(StateDir::open_existing(&settings.state)?);
            let records = tokens.list(now_unix_s())?;
            let mut out = io::stdout().lock();
            writeln!(out, "{:8}  {:8}  {:16}  NOTE", "ID", "USE", "EXPIRES (UTC)")?;
            for record in records {
                let usage = match record.usage {
                    Use::OneTime => "one-time",
                    Use::Reusable => "reusable",
                };
                let expires = record
                    .expires_unix_s
                    .map_or_else(|| "never".to_owned(), format_utc);
                writeln!(
                    out,
                    "{:8}  {usage:8}  {expires:16}  {}",
                    record.id, record.note
                )?;
            }
            Ok(out.flush()?)
        }
        TokenCommand::Revoke { id } => Ok(Tokens::new(own_state(settings)?).revoke(id)?),
    }
}

/// Log lines look like the rest of what goes to standard error; a journal adds time and unit.
struct LogLine;

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        writer.write_str("rootswarm: ")?;
        match *event.metadata().level() {
            tracing::Level::ERROR => writer.write_str("error: ")?,
            tracing::Level::WARN => writer.write_str("warning: ")?,
            _ => {}
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// `ROOTSWARM_LOG` is error, warn, info (the default), debug or trace.
fn start_log() {
    let level = std::env::var("ROOTSWARM_LOG")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(false)
        .event_format(LogLine)
        .finish();
    // Only fails if a log was started before, as in a test that calls `main` twice.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
