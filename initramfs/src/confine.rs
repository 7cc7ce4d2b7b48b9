//! What the agent gives up when the root is mounted: from then on it sends an image to strangers,
//! and needs nothing of what it needed to boot.
//!
//! It keeps its sockets, the image it has mapped, the status document and the kernel log. It loses
//! root, every capability, and all system calls but those that a process needs to talk UDP: no
//! program can be run, no file written or made, no memory made executable.
//!
//! Each step is taken whether or not the others worked: a kernel without system call filters is no
//! reason to stay root. When in the boot this happens is [`crate::boot`]'s to say.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

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

/// Gives up, in every thread of this process, what serving does not need. Returns what could not be
/// given up, which is worth a warning: a node that has booted is not stopped for it.
pub fn confine() -> Vec<StepError> {
    let mut failed = Vec::new();
    let mut step = |step, result: io::Result<()>| {
        if let Err(source) = result {
            failed.push(StepError { step, source });
        }
    };
    step("limit resources", limit_resources());
    // Of this thread, and of those it starts. Without it a program that is run could at most get
    // back what its file gives, and none can be run.
    step("empty the bounding set", empty_bounding_set());
    // With the user goes every capability.
    step("become an unprivileged user", become_user(USER));
    // After the change of user, which sets it to what the system says.
    let undumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    step("forbid being traced", undumpable.map_err(io::Error::from));
    step("filter system calls", filter_system_calls());
    failed
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

/// For every thread; what is not on the list fails with EPERM. Nothing that is run or that is
/// left of this process can get a privilege back.
fn filter_system_calls() -> io::Result<()> {
    let program = allow_list()?;
    seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other)
}

/// Calls with any arguments.
const ALLOWED: &[libc::c_long] = &[
    // Sockets, and the loop that waits for them.
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_recvfrom,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Files that are open: the status document, the kernel log, the event loop's own.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_fcntl,
    libc::SYS_close,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads, and their end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

fn allow_list() -> io::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    // Name servers are asked over UDP, and the kernel for its routes by "connecting" such a socket.
    let families = [libc::AF_INET, libc::AF_INET6];
    let is_family = |family| only(0, SeccompCmpOp::Eq, family);
    let families = families.into_iter().map(is_family);
    rules.insert(libc::SYS_socket, families.collect::<io::Result<_>>()?);
    // hosts and resolv.conf are read while the swarm has yet to be found; nothing is written.
    let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let reading = only(2, SeccompCmpOp::MaskedEq(mask(writing)), libc::O_RDONLY)?;
    rules.insert(libc::SYS_openat, vec![reading]);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let executable = SeccompCmpOp::MaskedEq(mask(libc::PROT_EXEC));
        rules.insert(call, vec![only(2, executable, 0)?]);
    }
    // A thread gives itself a name.
    let name = only(0, SeccompCmpOp::Eq, libc::PR_SET_NAME)?;
    rules.insert(libc::SYS_prctl, vec![name]);
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let refused = SeccompAction::Errno(mask(libc::EPERM) as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

/// The constants are positive numbers, whatever type the C library gives them.
fn mask(bits: libc::c_int) -> u64 {
    u64::from(bits.unsigned_abs())
}

/// Allows a call when this argument is such.
fn only(argument: u8, is: SeccompCmpOp, value: libc::c_int) -> io::Result<SeccompRule> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, mask(value))
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)
}
