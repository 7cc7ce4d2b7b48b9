//! What each command does: settings in, the library's work, lines out.
//!
//! Standard output is for what scripts read; progress, warnings and the one line of a failure go to
//! standard error.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use rootswarm_image::{ImageName, SwarmKey, Tag};

use crate::advertised::{self, Told};
use crate::cli::{
    Cli, Command, PublishArgs, PxeArgs, RemoveArgs, RevokeArgs, RollbackArgs, StatusArgs, TagArgs,
    TokenCommand,
};
use crate::config::Settings;
use crate::exit::Failure;
use crate::log;
use crate::network::root_url;
use crate::node_name::node_hex;
use crate::progress::{self, Quiet};
use crate::publish::{self, Unchanged};
use crate::pxe;
use crate::revocation::{self, RevocationError, RevocationList};
use crate::serve;
use crate::state::{StateDir, StateError};
use crate::status;
use crate::token::{Tokens, Use, now_unix_s};
use crate::units::{Bytes, format_utc};
use crate::waiting;
use crate::which_node;

/// Runs the command line and returns the process's exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    log::start();
    let outcome = Cli::parse_line(args).map_err(Failure::from).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`rootswarm images | head -1`) is no failure.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let line = log::one_line(&failure.to_string());
            let _ = writeln!(io::stderr(), "rootswarm: {line}");
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
        Command::Remove(args) => remove(&settings, args),
        Command::Rollback(args) => rollback(&settings, args),
        Command::Tag(args) => tag(&settings, args),
        Command::Status(args) => show_status(&settings, args),
        Command::Pxe(args) => write_boot_files(&settings, args),
        Command::Token(args) => token(&settings, &args.command),
        Command::Revoke(args) => revoke(&settings, args),
        Command::Key(args) => {
            let (state, key) = key_to_read(&settings)?;
            match args.minimum {
                true => minimum(&state),
                false => print(&key.public()),
            }
        }
    }
}

/// The key that is there, for which nothing need be writable; else a new one.
fn key_to_read(settings: &Settings) -> Result<(StateDir, SwarmKey), StateError> {
    if let Ok(state) = StateDir::open_existing(&settings.state)
        && let Some(key) = state.existing_key()?
    {
        return Ok((state, key));
    }
    let state = StateDir::open(&settings.state)?;
    let key = state.key()?;
    // Whoever mistyped --state would bake a key into his initrds that no seed of his has.
    tracing::warn!(
        "no swarm key was in state directory {}: it has a new one now",
        settings.state.display()
    );
    Ok((state, key))
}

/// What an initrd that is built now need not take any more: `swarm.minimum`, beside `swarm.pub`.
fn minimum(state: &StateDir) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "rootswarm-minimum 1\nepoch {}", state.epoch()?)?;
    let mut names = BTreeSet::new();
    for (_, found) in state.read_tags()? {
        names.insert(found?.unverified().name.clone());
    }
    // Of removed names too: their old tags are still signed.
    names.extend(
        state
            .read_retired()
            .iter()
            .map(|tag| tag.unverified().name.clone()),
    );
    for name in names {
        let (version, _) = state.newest(&name);
        writeln!(out, "version {name} {version}")?;
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
    let state = match args.keep {
        Some(keep) => state.keeping_said(keep),
        None => state,
    };
    let request = publish::Request {
        name: &args.name,
        source: &args.file,
        chunk_size: settings.chunk_size,
        unchanged: Unchanged::NewVersion,
        force: settings.force,
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
    for remark in published.remarks(&args.file) {
        tracing::warn!("{remark}");
    }
    print_root_url(settings, &state, &published.tag)
}

fn remove(settings: &Settings, args: &RemoveArgs) -> Result<(), Failure> {
    let state = own_state(settings)?;
    let key = state.key()?;
    state.retire(&args.name, &key)?;
    Ok(waiting::until_gone(&state, &args.name)?)
}

fn rollback(settings: &Settings, args: &RollbackArgs) -> Result<(), Failure> {
    let (state, key) = published_with_key(settings, &args.name)?;
    let state = giving_up_only_what_was_said(state, args.keep);
    let signed = state.rollback(&args.name, &args.which, &key)?;
    print_root_url(settings, &state, signed.unverified())
}

fn tag(settings: &Settings, args: &TagArgs) -> Result<(), Failure> {
    let (state, key) = published_with_key(settings, &args.existing)?;
    let state = giving_up_only_what_was_said(state, args.keep);
    let signed = state.retag(&args.name, &args.existing, &key)?;
    print_root_url(settings, &state, signed.unverified())
}

/// Unasked, only publishing makes place: what is kept here may be what somebody wants to go back to next.
fn giving_up_only_what_was_said(state: StateDir, said: Option<usize>) -> StateDir {
    match said {
        Some(keep) => state.keeping_said(keep),
        None => state.keeping_all(),
    }
}

fn open_with_key(settings: &Settings) -> Result<(StateDir, SwarmKey), StateError> {
    let state = StateDir::open(&settings.state)?.keeping(settings.keep);
    refuse_mirror(&state)?;
    mend_revocations(&state);
    let key = state.key()?;
    Ok((state, key))
}

/// The same of a directory that is there, in which something was published: a mistyped `--state` makes none.
fn published_with_key(
    settings: &Settings,
    name: &ImageName,
) -> Result<(StateDir, SwarmKey), StateError> {
    let state = StateDir::open_existing(&settings.state)?;
    match state.existing_key()? {
        None if state.read_tags()?.is_empty() => Err(StateError::UnknownImage(name.clone())),
        _ => open_with_key(settings),
    }
}

/// The state directory, to change something in it that is there.
fn own_state(settings: &Settings) -> Result<StateDir, StateError> {
    let state = StateDir::open_existing(&settings.state)?;
    refuse_mirror(&state)?;
    mend_revocations(&state);
    Ok(state)
}

/// Nothing is signed or changed by an older list of revocations. What else is wrong with the file is said by
/// who needs it.
fn mend_revocations(state: &StateDir) {
    if let Ok(Some(line)) = RevocationList::new(state.clone()).mend() {
        tracing::warn!("{line}");
    }
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
    // Tags are signed anew, and nothing is given up for that.
    let state = own_state(settings)?.keeping_all();
    let list = RevocationList::new(state.clone());
    let Some(node) = &args.node else {
        let key = state.key()?;
        let epoch = list.revoke_all().map_err(RevocationError::not_done)?;
        // Nor does a download by HTTP go on with what admitted it.
        Tokens::new(state.clone()).end_used(now_unix_s(), now_unix_s())?;
        state.renew_tags(&key)?;
        print(&format!("epoch {epoch}"))?;
        let change = format!("epoch {epoch} has begun");
        return Ok(waiting::until_it_holds(&state, &list.load()?, &change)?);
    };
    let (node, done) = if args.undo {
        let revoked = list.load()?.nodes.into_iter().map(|(node, _)| node);
        let node = revocation::resolve(node, "revoked", revoked)?;
        list.undo(node)?;
        (node, "let in again")
    } else {
        let node = which_node::connected(&state, node)?;
        let revoked = list.revoke(node, now_unix_s());
        revoked.map_err(RevocationError::not_done)?;
        (node, "revoked")
    };
    let id = node_hex(&node);
    print(&id)?;
    let change = format!("node {} is {done}", &id[..12]);
    Ok(waiting::until_it_holds(&state, &list.load()?, &change)?)
}

/// Prints what a node is told to boot, once it can: when the server that runs serves it. When it is
/// published and the server does not, both are said.
fn print_root_url(settings: &Settings, state: &StateDir, tag: &Tag) -> Result<(), Failure> {
    let served = waiting::until_served(state, tag);
    let told = told_to_nodes(settings, state);
    if let Some(doubt) = told.doubt {
        tracing::warn!("{doubt}");
    }
    print(&root_url(&told.host, &tag.name, Some(tag.id)))?;
    Ok(served?)
}

/// What was configured; else what the server that runs on this state directory tells its nodes;
/// else what it would.
fn told_to_nodes(settings: &Settings, state: &StateDir) -> Told {
    let from_server = || {
        let document = status::ask(&state.control_socket()).ok()?;
        Some(Told {
            host: document.host.parse().ok()?,
            doubt: document.no_address,
        })
    };
    let is_open = settings.host.is_none() && settings.listen.ip().is_unspecified();
    is_open
        .then(from_server)
        .flatten()
        .unwrap_or_else(|| advertised::told(settings.host.as_ref(), settings.listen))
}

fn images(settings: &Settings) -> Result<(), Failure> {
    let state = StateDir::open_existing(&settings.state)?;
    let tags = state.read_tags()?;
    let mut out = io::stdout().lock();
    let longest = tags.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    // An older generation is NAME~1, NAME~2: what `rollback NAME 1` goes back to.
    let width = (longest + "~99".len()).max("NAME".len());
    writeln!(
        out,
        "{:width$}  {:>9}  {:>7}  {:16}  ID",
        "NAME", "SIZE", "VERSION", "PUBLISHED (UTC)"
    )?;
    let mut line = |shown: &str, tag: &Tag, path: &std::path::Path| {
        let published = published_at(path).map_or_else(|| "-".to_owned(), format_utc);
        writeln!(
            out,
            "{shown:width$}  {:>9}  {:>7}  {published:16}  {}",
            Bytes(tag.length),
            tag.version,
            tag.id
        )
    };
    let mut damaged = Vec::new();
    for (name, tag) in tags {
        match tag {
            Ok(signed) => {
                let tag = signed.unverified();
                let path = state.tags_directory().join(tag.name.as_str());
                line(&name, tag, &path)?;
                for (back, older) in (1..).zip(state.generations(&tag.name)?) {
                    let older = older.unverified();
                    let path = state.generation_file(&older.name, older.version);
                    line(&format!("{name}~{back}"), older, &path)?;
                }
            }
            Err(error) => damaged.push((name, error)),
        }
    }
    for (name, _) in &damaged {
        writeln!(out, "{name:width$}  damaged")?;
    }
    out.flush()?;
    let first = damaged.into_iter().next();
    first.map_or(Ok(()), |(_, error)| Err(error.into()))
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
            let notes = vec![note.as_str(); *count as usize];
            for token in tokens.create_all(usage, Some(*lifetime), &notes, now_unix_s())? {
                print(&token)?;
            }
            Ok(())
        }
        TokenCommand::List => {
            let tokens = Tokens::new(StateDir::open_existing(&settings.state)?);
            let records = tokens.good(now_unix_s())?;
            let mut out = io::stdout().lock();
            writeln!(out, "{:8}  {:8}  {:16}  NOTE", "ID", "USE", "EXPIRES (UTC)")?;
            for record in records {
                let usage = match (record.usage, record.used) {
                    (_, Some(_)) => "in use",
                    (Use::OneTime, None) => "one-time",
                    (Use::Reusable, None) => "reusable",
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
        TokenCommand::Revoke { id } => {
            Ok(Tokens::new(own_state(settings)?).revoke(id, now_unix_s())?)
        }
    }
}
