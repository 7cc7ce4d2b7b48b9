//! The system calls of a booted node's agent, as one table: what is in it is allowed, with these
//! arguments, and everything else fails with EPERM.
//!
//! The table does not stand alone. What a descriptor may do was decided when it was opened, and what
//! of that is left is [`crate::confine`]'s part; here the same is held once more, so that neither a
//! descriptor that slipped through nor a kernel that forgets a check is enough. A filter sees numbers
//! and no memory: whatever a call reads through a pointer (a path, an address, a `struct clone_args`)
//! it cannot judge, so that such calls are allowed only where no value of it would do harm.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use rustix::process::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The descriptors that are written to with `write` and `pwrite`. Everything else that leaves this
/// process does so through a socket, by `send`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writable {
    /// The status document.
    pub status: Option<RawFd>,
    /// What wakes the event loop: eight bytes at a time, into a counter of its own.
    pub wakers: Vec<RawFd>,
    /// What a signal handler tells the event loop through: one byte at a time, to this very process.
    pub signals: Vec<RawFd>,
}

/// Standard error, which is the kernel log by now.
const LOG: RawFd = 2;

/// The longest status document, which names everybody who was banned: it bounds what the file can
/// grow to, in a tmpfs that has a MiB to spare (`crate::run_dir`).
pub const STATUS_BYTES_MAX: usize = 512 << 10;

/// For every thread. Nothing that is run or that is left of this process can get a privilege back.
///
/// # Errors
/// The kernel's.
pub fn apply(writable: &Writable) -> io::Result<()> {
    // Two filters, and the stricter answer counts. ENOSYS for clone3 makes the C library start its
    // threads with clone, whose flags are a number that can be looked at.
    let no_clone3 = [(libc::SYS_clone3, Vec::new())].into();
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let programs = [
        compile(no_clone3, SeccompAction::Allow, absent)?,
        compile(table(writable)?, refused, SeccompAction::Allow)?,
    ];
    for program in &programs {
        seccompiler::apply_filter_all_threads(program).map_err(io::Error::other)?;
    }
    Ok(())
}

type Table = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(table: Table, other: SeccompAction, listed: SeccompAction) -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    SeccompFilter::new(table, other, listed, arch)
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)
}

/// Calls with any arguments.
const ANY: &[libc::c_long] = &[
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
    // Files, for reading.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_close,
    // Memory. What is mapped shared is mapped from descriptors that only read.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    // Threads, and their end.
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
    libc::SYS_exit,
    libc::SYS_exit_group,
    // The other filter says that there is none.
    libc::SYS_clone3,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
];

/// What a thread shares with the one that starts it: everything. Without any of these it would be a
/// process.
const THREAD: libc::c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;

/// What may be said beside it. No namespace is among them, nor a signal at its end, nor a tracer.
const THREAD_DETAILS: libc::c_int = libc::CLONE_SYSVSEM
    | libc::CLONE_DETACHED
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// Calls with these arguments: of one call's rules one must hold, and of a rule all conditions.
fn table(writable: &Writable) -> io::Result<Table> {
    let mut table: Table = ANY.iter().map(|call| (*call, Vec::new())).collect();
    let mut allow = |call: libc::c_long, conditions: &[Condition]| -> io::Result<()> {
        table.entry(call).or_default().push(rule(conditions)?);
        Ok(())
    };

    // Writing: one descriptor for each purpose, and no more at a time than it takes.
    allow(libc::SYS_write, &[is(0, LOG)])?;
    for waker in &writable.wakers {
        allow(libc::SYS_write, &[is(0, *waker), is(2, 8)])?;
    }
    for signal in &writable.signals {
        allow(libc::SYS_write, &[is(0, *signal), is(2, 1)])?;
    }
    if let Some(status) = writable.status {
        let length = Condition(2, Size::Long, SeccompCmpOp::Le, STATUS_BYTES_MAX as u64);
        let start = Condition(3, Size::Long, SeccompCmpOp::Eq, 0);
        allow(libc::SYS_pwrite64, &[is(0, status), length, start])?;
    }

    // Names are looked up with what the booted system says about them; nothing is written or made.
    let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    allow(libc::SYS_openat, &[of(2, writing, libc::O_RDONLY)])?;

    // UDP, and no other kind of socket: no raw one, and none that talks to this machine's own
    // programs or to its kernel.
    let details = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_UDP] {
            let datagrams = of(1, !details, libc::SOCK_DGRAM);
            allow(
                libc::SYS_socket,
                &[is(0, family), datagrams, is(2, protocol)],
            )?;
        }
    }

    // A second descriptor of a socket, and what is asked of one. Neither gives it more rights.
    for command in [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
    ] {
        allow(libc::SYS_fcntl, &[is(1, command)])?;
    }
    // Not O_ASYNC, which sends signals.
    let blocking = [is(1, libc::F_SETFL), of(2, libc::O_ASYNC, 0)];
    allow(libc::SYS_fcntl, &blocking)?;

    // Memory of its own, and none that can be run.
    let private = of(3, libc::MAP_SHARED, 0);
    allow(libc::SYS_mmap, &[of(2, libc::PROT_EXEC, 0), private])?;
    allow(libc::SYS_mprotect, &[of(2, libc::PROT_EXEC, 0)])?;
    // Given back. Not MADV_REMOVE, which makes a hole in a file.
    for advice in [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_NOHUGEPAGE] {
        allow(libc::SYS_madvise, &[is(2, advice)])?;
    }

    // Threads, their names, and signals among themselves.
    allow(libc::SYS_clone, &[of(0, !THREAD_DETAILS, THREAD)])?;
    allow(libc::SYS_prctl, &[is(0, libc::PR_SET_NAME)])?;
    let own = getpid().as_raw_nonzero().get();
    allow(libc::SYS_tgkill, &[is(0, own)])?;
    Ok(table)
}

/// An argument, how much of it counts, and what it must be.
#[derive(Clone)]
struct Condition(u8, Size, SeccompCmpOp, u64);

/// How wide the kernel's type of an argument is: what is beyond it is not looked at by the kernel
/// either.
#[derive(Clone, Copy)]
enum Size {
    /// `int`, `unsigned int`.
    Int,
    /// `size_t`, `loff_t`.
    Long,
}

/// The argument is this number.
fn is(argument: u8, value: libc::c_int) -> Condition {
    // A descriptor, a command: the C library counts them as `int` and so does the kernel.
    Condition(argument, Size::Int, SeccompCmpOp::Eq, bits(value))
}

/// Of the bits in `mask` the argument has these.
fn of(argument: u8, mask: libc::c_int, value: libc::c_int) -> Condition {
    let is = SeccompCmpOp::MaskedEq(bits(mask));
    Condition(argument, Size::Int, is, bits(value))
}

/// The 32 bits of an `int`, whatever its sign.
fn bits(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

fn rule(conditions: &[Condition]) -> io::Result<SeccompRule> {
    let condition = |Condition(argument, size, is, value): &Condition| {
        let size = match size {
            Size::Int => SeccompCmpArgLen::Dword,
            Size::Long => SeccompCmpArgLen::Qword,
        };
        SeccompCondition::new(*argument, size, is.clone(), *value)
    };
    let conditions: Result<_, _> = conditions.iter().map(condition).collect();
    conditions
        .and_then(SeccompRule::new)
        .map_err(io::Error::other)
}

const _: () = assert!(STATUS_BYTES_MAX < crate::run_dir::SLACK_BYTES as usize);

#[cfg(test)]
mod tests {
    use super::*;

    /// A mistake in the table would be a warning on some node's console.
    #[test]
    fn it_compiles_with_any_number_of_descriptors() {
        for many in [0, 1, 2, 40] {
            let writable = Writable {
                status: (many > 0).then_some(7),
                wakers: (3..3 + many).collect(),
                signals: (50..50 + many).collect(),
            };
            let rules = table(&writable).unwrap();
            assert_eq!(
                rules[&libc::SYS_write].len(),
                1 + 2 * many.unsigned_abs() as usize
            );
            assert_eq!(rules.contains_key(&libc::SYS_pwrite64), many > 0);
            let program = compile(rules, SeccompAction::KillProcess, SeccompAction::Allow);
            assert!(!program.unwrap().is_empty());
        }
    }
}
