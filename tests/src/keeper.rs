//! Removes what must not outlive this process, even when this process is killed.
//!
//! `Drop` covers the ordinary end and a panic. A SIGKILL, a Ctrl-C or an abort runs no destructor,
//! and a network namespace or a mount would stay on the machine. The keeper is a small shell that
//! reads what to remove from a pipe; when the pipe closes, because its writer ended in whatever
//! way, it removes what is still there, last registered first.
//!
//! It leaves to others: ending processes outside the registered namespaces (see `process`, which
//! asks the kernel to do it).

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Signals are ignored: Ctrl-C goes to the whole terminal group, and this is the one process that
/// has to survive it.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
list=
while read -r kind name; do
    list="$kind $name
$list"
done
printf '%s' "$list" | while read -r kind name; do
    case $kind in
    netns)
        [ -e "/run/netns/$name" ] || continue
        ip netns pids "$name" | xargs -r kill -9
        ip netns del "$name"
        ;;
    mount)
        mountpoint -q "$name" && umount -l "$name"
        ;;
    directory)
        rm -rf --one-file-system -- "$name"
        ;;
    esac
done
"#;

static KEEPER: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// One thing that has to go when this process has gone.
#[derive(Debug, Clone, Copy)]
pub enum Kept<'a> {
    /// A named network namespace and every process in it.
    Namespace(&'a str),
    /// A mount point.
    Mount(&'a Path),
    /// A directory and what is in it, on its own file system only.
    Directory(&'a Path),
}

/// Registers `kept`. Call it before the thing is made: removing what is not there does no harm.
///
/// # Errors
/// When the shell cannot be started or has gone, or the name holds a line break.
pub fn register(kept: Kept<'_>) -> std::io::Result<()> {
    let (kind, name): (&str, &OsStr) = match kept {
        Kept::Namespace(name) => ("netns", name.as_ref()),
        Kept::Mount(path) => ("mount", path.as_os_str()),
        Kept::Directory(path) => ("directory", path.as_os_str()),
    };
    if name.as_bytes().contains(&b'\n') {
        return Err(std::io::Error::other(format!(
            "a name with a line break cannot be kept: {}",
            name.display()
        )));
    }
    let mut line = Vec::with_capacity(kind.len() + name.len() + 2);
    line.extend_from_slice(kind.as_bytes());
    line.push(b' ');
    line.extend_from_slice(name.as_bytes());
    line.push(b'\n');

    let mut keeper = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    if keeper.is_none() {
        *keeper = Some(start()?);
    }
    match keeper.as_mut() {
        Some(pipe) => pipe.write_all(&line),
        None => Ok(()),
    }
}

fn start() -> std::io::Result<ChildStdin> {
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(SCRIPT)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    child
        .stdin
        .take()
        .ok_or_else(|| std::io::Error::other("the keeper has no standard input"))
}
