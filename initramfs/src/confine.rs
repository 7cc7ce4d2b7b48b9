//! What the agent gives up when the root is mounted: from then on it sends an image to strangers,
//! and needs nothing of what it needed to boot.
//!
//! It keeps its sockets, the image it has mapped, the status document and the kernel log, and of these
//! the image only for reading: it is the root of the node by now. It loses root, every capability, and
//! all system calls but those that a process needs to talk UDP ([`crate::syscalls`]): no program can be
//! run, no process made, no file written or made, no memory made executable.
//!
//! Each step is taken whether or not the others worked: a kernel without system call filters is no
//! reason to stay root. When in the boot this happens is [`crate::boot`]'s to say.

use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::syscalls::{self, Writable};

/// Nobody's: below `nobody` (65534), which other programs use, above systemd's dynamic users
/// (61184-65519), and in Debian's reserved range (65000-65533).
pub const USER: u32 = 65_533;

/// Sockets, the image, the status document, the kernel log, the event loop: some fifteen. Name
/// servers are asked one socket each.
const MAX_OPEN_FILES: u64 = 128;

/// One thread waits, at most four work (`crate::fetch`); of this user there is nobody else, unless
/// it is an agent in a container of this machine.
const MAX_PROCESSES: u64 = 64;

/// A step that did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct StepError {
    step: &'static str,
    source: io::Error,
}

/// Finds what stays writable: the status document at `status`, and what the event loop wakes itself
/// with. To be called while /proc is still there, which the initramfs moves away with the handoff.
pub fn find_writable(status: Option<RawFd>) -> io::Result<Writable> {
    let mut found = Writable {
        status,
        ..Writable::default()
    };
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number: Option<RawFd> = entry.file_name().to_str().and_then(|n| n.parse().ok());
        // The descriptor that lists them is gone by the time its own link is read.
        let (Some(number), Ok(target)) = (number, fs::read_link(entry.path())) else {
            continue;
        };
        let target = target.to_string_lossy();
        if target == "anon_inode:[eventfd]" {
            found.wakers.push(number);
        } else if target.starts_with("socket:") {
            found.signals.push(number);
        }
    }
    Ok(found)
}

/// Gives up, in every thread of this process, what serving does not need. Returns what could not be
/// given up, which is worth a warning: a node that has booted is not stopped for it.
///
/// `root` is the new root, which becomes this process's own: names are looked up with what the booted
/// system says about them, and its name servers, whose files the initramfs does not have.
pub fn confine(root: io::Result<File>, writable: &Writable) -> Vec<StepError> {
    let mut failed = Vec::new();
    let mut step = |step, result: io::Result<()>| {
        if let Err(source) = result {
            failed.push(StepError { step, source });
        }
    };
    step("enter the new root", root.and_then(|root| enter(&root)));
    step("limit resources", limit_resources());
    for socket in &writable.signals {
        step("give a pair of sockets its name", name_for_good(*socket));
    }
    // Of this thread, and of those it starts. Without it a program that is run could at most get
    // back what its file gives, and none can be run.
    step("empty the bounding set", empty_bounding_set());
    // With the user goes every capability.
    step("become an unprivileged user", become_user(USER));
    // After the change of user, which sets it to what the system says.
    let undumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    step("forbid being traced", undumpable.map_err(io::Error::from));
    step("filter system calls", syscalls::apply(writable));
    failed
}

/// By the directory itself: its path may have changed since, and it stays the same directory.
fn enter(root: &File) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// A local socket without a name could be given one later, which makes a file, and a filter of system calls
/// does not see which. One that has a name keeps it (unix(7)): here it is a number that the kernel chooses.
/// Sockets of other kinds are left alone.
fn name_for_good(socket: RawFd) -> io::Result<()> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::sockaddr>() as libc::socklen_t;
    let mut length = size;
    // SAFETY: the kernel writes no more than `length` says there is room for.
    let done = unsafe { libc::getsockname(socket, &raw mut address, &raw mut length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let family_alone = size_of::<libc::sa_family_t>() as libc::socklen_t;
    if i32::from(address.sa_family) != libc::AF_UNIX || length > family_alone {
        return Ok(());
    }
    // SAFETY: the kernel reads the family, and nothing behind it.
    match unsafe { libc::bind(socket, &raw const address, family_alone) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn limit_resources() -> io::Result<()> {
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Nofile, MAX_OPEN_FILES),
        (Resource::Nproc, MAX_PROCESSES),
        // No lock on memory, no message queue: it has none.
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ] {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit)?;
    }
    Ok(())
}

fn empty_bounding_set() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // A kernel older than the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Through the C library, which changes every thread: the system call changes the caller's only.
fn become_user(id: u32) -> io::Result<()> {
    let done = |result: libc::c_int| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: no group is read from the pointer, there are 0.
    done(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: takes numbers only.
    done(unsafe { libc::setresgid(id, id, id) })?;
    // SAFETY: takes numbers only.
    done(unsafe { libc::setresuid(id, id, id) })
}
