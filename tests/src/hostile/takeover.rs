//! An agent that was taken over: its own main thread is made to do system calls that its program never
//! would, with its descriptors, its mappings and its filter.
//!
//! A tracer puts the calls in, one instruction each, so that what is tried is tried by that very
//! process. What must come of it is for the tests to say.
//!
//! Used by the agent's own tests too, by its path: it needs nothing but the C library.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// A call that was tried, and the kernel's answer: negative is an error's number.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What was tried.
    pub what: String,
    /// What came of it.
    pub result: i64,
}

impl Attempt {
    /// Whether it was refused.
    pub fn is_refused(&self) -> bool {
        (-4095..0).contains(&self.result)
    }
}

/// A descriptor of a process, as /proc shows it.
#[derive(Debug, Clone)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it leads to.
    pub target: String,
    /// Whether it was opened for writing.
    pub is_writable: bool,
}

/// Every descriptor of a process.
///
/// # Errors
/// When /proc does not say.
pub fn descriptors(pid: i32) -> io::Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}"));
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
        let (target, info) = match (link, info) {
            (Ok(target), Ok(info)) => (target, info),
            // It was closed since the directory was read.
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
        found.push(Descriptor {
            number,
            target: target.to_string_lossy().into_owned(),
            is_writable: flags.is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY),
        });
    }
    Ok(found)
}

/// Whether an agent has given up what it gives up last: both its filters of system calls are there, beside
/// those that whoever started it has. Between the two nothing is refused yet.
///
/// # Errors
/// When /proc does not say.
pub fn is_confined(pid: i32) -> io::Result<bool> {
    let filters = |process: &str| -> io::Result<u32> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp_filters:"));
        let number = line.and_then(|number| number.trim().parse().ok());
        number.ok_or_else(|| io::Error::other("a kernel (before 5.9) that does not count filters"))
    };
    Ok(filters(&pid.to_string())? >= filters("self")? + 2)
}

/// A mapping of a file that others see.
#[derive(Debug, Clone)]
pub struct SharedMapping {
    /// Where it begins.
    pub start: u64,
    /// The file.
    pub file: String,
    /// Whether it is, or could be made, writable.
    pub may_write: bool,
}

/// Every shared mapping of a process.
///
/// # Errors
/// When /proc does not say.
pub fn shared_mappings(pid: i32) -> io::Result<Vec<SharedMapping>> {
    let mut found: Vec<SharedMapping> = Vec::new();
    let mut is_shared = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let range = first
            .split_once('-')
            .and_then(|(start, _)| u64::from_str_radix(start, 16).ok());
        match range {
            Some(start) => {
                is_shared = words.next().is_some_and(|rights| rights.ends_with('s'));
                if is_shared {
                    let file = words.skip(3).collect::<Vec<_>>().join(" ");
                    let may_write = true;
                    found.push(SharedMapping {
                        start,
                        file,
                        may_write,
                    });
                }
            }
            None if is_shared && first == "VmFlags:" => {
                if let Some(last) = found.last_mut() {
                    // "wr" is writable, "mw" may be made so.
                    last.may_write = words.any(|flag| flag == "wr" || flag == "mw");
                }
            }
            None => {}
        }
    }
    Ok(found)
}

/// The main thread of a process, stopped. Let go, and as it was, when this is dropped.
pub struct Captive {
    pid: i32,
    saved: libc::user_regs_struct,
}

/// Below the stack pointer, where nothing lives: beyond what a function may use without moving it.
const SCRATCH_BELOW: u64 = 1024;

/// How long a call may take, none of which waits for anything.
const STOPS_WITHIN: Duration = Duration::from_secs(10);

impl Captive {
    /// Stops it where it waits for the kernel.
    ///
    /// # Errors
    /// When it cannot be traced, or does not wait.
    pub fn seize(pid: i32) -> io::Result<Captive> {
        for _ in 0..500 {
            trace(libc::PTRACE_ATTACH, pid, 0, 0)?;
            wait_stopped(pid)?;
            // SAFETY: plain numbers, for which zero is a value.
            let mut saved: libc::user_regs_struct = unsafe { std::mem::zeroed() };
            let to = &raw mut saved as u64;
            trace(libc::PTRACE_GETREGS, pid, 0, to)?;
            let captive = Captive { pid, saved };
            // It has just come out of a call: the instruction before the next is one.
            if captive.peek(saved.rip - 2)? & 0xffff == 0x050f {
                return Ok(captive);
            }
            drop(captive);
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::other("it never waits for the kernel"))
    }

    /// Lets it do one call.
    ///
    /// # Errors
    /// When it cannot be made to.
    pub fn call(&self, number: libc::c_long, arguments: &[u64]) -> io::Result<i64> {
        let at = |index: usize| arguments.get(index).copied().unwrap_or(0);
        let mut regs = self.saved;
        regs.rip -= 2;
        regs.rax = number as u64;
        // No call to begin again.
        regs.orig_rax = u64::MAX;
        (regs.rdi, regs.rsi, regs.rdx) = (at(0), at(1), at(2));
        (regs.r10, regs.r8, regs.r9) = (at(3), at(4), at(5));
        trace(libc::PTRACE_SETREGS, self.pid, 0, &raw const regs as u64)?;
        trace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0)?;
        wait_stopped(self.pid)?;
        trace(libc::PTRACE_GETREGS, self.pid, 0, &raw mut regs as u64)?;
        Ok(regs.rax as i64)
    }

    /// Puts bytes where a call can read them, and says where.
    ///
    /// # Errors
    /// When its memory cannot be written.
    pub fn place(&self, bytes: &[u8]) -> io::Result<u64> {
        let start = (self.saved.rsp - SCRATCH_BELOW - bytes.len() as u64) & !15;
        for (index, word) in bytes.chunks(8).enumerate() {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            let address = start + 8 * index as u64;
            let word = u64::from_ne_bytes(padded);
            trace(libc::PTRACE_POKEDATA, self.pid, address, word)?;
        }
        Ok(start)
    }

    fn peek(&self, address: u64) -> io::Result<u64> {
        let mut word = 0_u64;
        // The C library's wrapper returns the word; the system call writes it.
        // SAFETY: `word` is where the kernel writes eight bytes.
        let done = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                u64::from(libc::PTRACE_PEEKDATA),
                self.pid as u64,
                address,
                &raw mut word as u64,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(word)
    }
}

impl Drop for Captive {
    fn drop(&mut self) {
        let _ = trace(
            libc::PTRACE_SETREGS,
            self.pid,
            0,
            &raw const self.saved as u64,
        );
        let _ = trace(libc::PTRACE_DETACH, self.pid, 0, 0);
    }
}

fn trace(request: libc::c_uint, pid: i32, address: u64, data: u64) -> io::Result<()> {
    // SAFETY: addresses are of the traced process; data is a number, or points to registers of ours that
    // live longer than the call.
    let done = unsafe { libc::ptrace(request, pid, address, data) };
    match done {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits until it has stopped. A call that does not return, such as a vfork that was let through, is the end
/// of the process and an error.
fn wait_stopped(pid: i32) -> io::Result<()> {
    let asked = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one number.
        let found = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match found {
            -1 => return Err(io::Error::last_os_error()),
            0 if asked.elapsed() > STOPS_WITHIN => {
                // SAFETY: takes numbers only.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                return Err(io::Error::other("it does not come back from a call"));
            }
            0 => std::thread::sleep(Duration::from_micros(100)),
            _ if libc::WIFSTOPPED(status) => return Ok(()),
            _ => return Err(io::Error::other("it has ended")),
        }
    }
}

/// Tries, in the process `pid`, every way there is to change a file through what it holds: its
/// descriptors but sockets, and its mappings. `status` is the file that it may write.
///
/// # Errors
/// When it cannot be traced.
pub fn write_what_it_holds(pid: i32, status: &str) -> io::Result<Vec<Attempt>> {
    let held = descriptors(pid)?;
    let mappings = shared_mappings(pid)?;
    let captive = Captive::seize(pid)?;
    let mut attempts = Vec::new();
    let text = captive.place(b"taken over\n\0")?;
    for descriptor in &held {
        let fd = descriptor.number as u64;
        let target = descriptor.target.as_str();
        if target.starts_with("socket:") {
            continue;
        }
        let mut attempt = |what: &str, call, arguments: &[u64]| -> io::Result<()> {
            let what = format!("{what} on descriptor {fd}, {target}");
            let result = captive.call(call, arguments)?;
            attempts.push(Attempt { what, result });
            Ok(())
        };
        let vector = captive.place(&[text.to_ne_bytes(), 4_u64.to_ne_bytes()].concat())?;
        // What it says in the kernel's log, and wakes itself with, is its own affair.
        let is_log = descriptor.number == 2;
        let is_counter = target.contains("eventfd");
        if !is_log {
            attempt("write", libc::SYS_write, &[fd, text, 4])?;
        }
        if target != status {
            attempt("pwrite", libc::SYS_pwrite64, &[fd, text, 4, 0])?;
        }
        // Beyond what a status document is.
        attempt(
            "pwrite far out",
            libc::SYS_pwrite64,
            &[fd, text, 4, 1 << 30],
        )?;
        if !is_log && !is_counter {
            attempt("writev", libc::SYS_writev, &[fd, vector, 1])?;
        }
        attempt("pwritev", libc::SYS_pwritev, &[fd, vector, 1, 0])?;
        attempt("pwritev2", libc::SYS_pwritev2, &[fd, vector, 1, 0, 0, 0])?;
        attempt("ftruncate", libc::SYS_ftruncate, &[fd, 0])?;
        attempt("fallocate", libc::SYS_fallocate, &[fd, 3, 0, 4096])?;
        attempt("fchmod", libc::SYS_fchmod, &[fd, 0o666])?;
        attempt("sendfile", libc::SYS_sendfile, &[fd, fd, 0, 16])?;
        attempt("splice", libc::SYS_splice, &[fd, 0, fd, 0, 16, 0])?;
        let copy = libc::SYS_copy_file_range;
        attempt("copy_file_range", copy, &[fd, 0, fd, 0, 16, 0])?;
        attempt("ioctl", libc::SYS_ioctl, &[fd, 0x4C00, fd])?;
        attempt(
            "set its flags to O_ASYNC",
            libc::SYS_fcntl,
            &[fd, 4, 0o20002],
        )?;
        attempt("dup2 to the status document", libc::SYS_dup2, &[fd, 9])?;
        let shared = [0, 4096, 3, 1, fd, 0];
        attempt("map it shared and writable", libc::SYS_mmap, &shared)?;
        let path = captive.place(format!("/proc/self/fd/{fd}\0").as_bytes())?;
        let here = libc::AT_FDCWD as u64;
        for (how, flags) in [("read and write", 2), ("write", 1), ("truncate", 0o1000)] {
            let what = format!("reopen to {how}");
            attempt(&what, libc::SYS_openat, &[here, path, flags, 0])?;
        }
        attempt("reopen by open", libc::SYS_open, &[path, 2, 0])?;
        let how = captive.place(&[2_u64.to_ne_bytes(), [0; 8], [0; 8]].concat())?;
        attempt("reopen by openat2", 437, &[here, path, how, 24])?;
        attempt("truncate", libc::SYS_truncate, &[path, 0])?;
    }
    for mapping in &mappings {
        let mut attempt = |what: &str, call, arguments: &[u64]| -> io::Result<()> {
            let what = format!("{what} of the mapping of {}", mapping.file);
            let result = captive.call(call, arguments)?;
            attempts.push(Attempt { what, result });
            Ok(())
        };
        let start = mapping.start;
        for (how, rights) in [("write", 3), ("write alone", 2), ("run", 5)] {
            let what = format!("mprotect to {how}");
            attempt(&what, libc::SYS_mprotect, &[start, 4096, rights])?;
        }
        attempt("a hole in it", libc::SYS_madvise, &[start, 4096, 9])?;
        let parts = captive.place(&[text, 4, start, 4].map(u64::to_ne_bytes).concat())?;
        let own = [pid as u64, parts, 1, parts + 16, 1, 0];
        attempt("process_vm_writev", libc::SYS_process_vm_writev, &own)?;
    }
    let mut attempt = |what: &str, call, arguments: &[u64]| -> io::Result<()> {
        let result = captive.call(call, arguments)?;
        let what = what.to_owned();
        attempts.push(Attempt { what, result });
        Ok(())
    };
    let memory = captive.place(b"/proc/self/mem\0")?;
    let here = libc::AT_FDCWD as u64;
    attempt(
        "its memory as a file",
        libc::SYS_openat,
        &[here, memory, 2, 0],
    )?;
    let made = captive.place(b"/made\0")?;
    attempt("a new file", libc::SYS_openat, &[here, made, 0o101, 0o644])?;
    attempt(
        "a new file without a name",
        libc::SYS_openat,
        &[here, made, 0o20200002, 0o600],
    )?;
    attempt("memfd_create", libc::SYS_memfd_create, &[made, 0])?;
    attempt("io_uring_setup", 425, &[8, made])?;
    attempt("ptrace", libc::SYS_ptrace, &[0, 0, 0, 0])?;
    attempt("pidfd_open", 434, &[pid as u64, 0])?;
    attempt("pidfd_getfd", 438, &[2, 2, 0])?;
    attempt("mount", libc::SYS_mount, &[made, made, 0, 0, 0])?;
    attempt("execve", libc::SYS_execve, &[made, 0, 0])?;
    attempt("bpf", libc::SYS_bpf, &[0, 0, 0])?;
    Ok(attempts)
}

/// Tries, in the process `pid`, every way out of the namespaces and the networks that it is in: new
/// ones, a process of its own, and every kind of socket but UDP.
///
/// # Errors
/// When it cannot be traced.
pub fn leave_its_place(pid: i32) -> io::Result<Vec<Attempt>> {
    let held = descriptors(pid)?;
    let captive = Captive::seize(pid)?;
    let mut attempts = other_sockets(&captive)?;
    attempts.extend(local_names(&captive, &held)?);
    let mut attempt = |what: String, call, arguments: &[u64]| -> io::Result<i64> {
        let result = captive.call(call, arguments)?;
        if result > 0 && [libc::SYS_clone, libc::SYS_fork, libc::SYS_vfork].contains(&call) {
            // It was let: what was made goes at once.
            // SAFETY: takes numbers only.
            unsafe { libc::kill(result as i32, libc::SIGKILL) };
        }
        attempts.push(Attempt { what, result });
        Ok(result)
    };
    let thread = 0x003d_0f00_u64;
    let namespaces = [
        ("user", libc::CLONE_NEWUSER),
        ("network", libc::CLONE_NEWNET),
        ("mount", libc::CLONE_NEWNS),
        ("process", libc::CLONE_NEWPID),
        ("host name", libc::CLONE_NEWUTS),
        ("message", libc::CLONE_NEWIPC),
        ("control group", libc::CLONE_NEWCGROUP),
        ("user and network", libc::CLONE_NEWUSER | libc::CLONE_NEWNET),
    ];
    for (name, flags) in namespaces {
        let flags = u64::from(flags.cast_unsigned());
        let end = libc::SIGCHLD as u64;
        attempt(
            format!("clone into a new {name} namespace"),
            libc::SYS_clone,
            &[flags | end],
        )?;
        // As a thread, which some kernels take for some of them.
        attempt(
            format!("a thread in a new {name} namespace"),
            libc::SYS_clone,
            &[flags | thread],
        )?;
        attempt(
            format!("unshare the {name} namespace"),
            libc::SYS_unshare,
            &[flags],
        )?;
        attempt(
            format!("setns to a {name} namespace"),
            libc::SYS_setns,
            &[0, flags],
        )?;
    }
    attempt(
        "clone into a new time namespace".into(),
        libc::SYS_unshare,
        &[0x80],
    )?;
    attempt(
        "fork by clone".into(),
        libc::SYS_clone,
        &[libc::SIGCHLD as u64],
    )?;
    attempt("fork".into(), libc::SYS_fork, &[])?;
    attempt("vfork".into(), libc::SYS_vfork, &[])?;
    attempt(
        "a traced thread".into(),
        libc::SYS_clone,
        &[thread | 0x2000],
    )?;
    attempt(
        "a process that shares its memory".into(),
        libc::SYS_clone,
        &[0x100 | 17],
    )?;
    let flags = u64::from((libc::CLONE_NEWUSER | libc::CLONE_NEWNET).cast_unsigned());
    let mut arguments = [0_u64; 11];
    arguments[0] = flags;
    let arguments = captive.place(&arguments.map(u64::to_ne_bytes).concat())?;
    // It must say that there is no such call, or the C library would start no threads.
    let result = captive.call(libc::SYS_clone3, &[arguments, 88])?;
    let what = "clone3, which must not be there".to_owned();
    let result = if result == -i64::from(libc::ENOSYS) {
        result
    } else {
        0
    };
    attempts.push(Attempt { what, result });

    // Another process: the first one.
    for (what, call, arguments) in [
        ("kill", libc::SYS_kill, [1, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [1, 1, 0]),
    ] {
        let (what, result) = (
            format!("{what} another process"),
            captive.call(call, &arguments)?,
        );
        attempts.push(Attempt { what, result });
    }
    Ok(attempts)
}

/// A name for each socket that it holds, in the file system and beside it.
fn local_names(captive: &Captive, held: &[Descriptor]) -> io::Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for socket in held.iter().filter(|it| it.target.starts_with("socket:")) {
        for (how, name) in [
            ("as a file", &b"/tmp/taken-over\0"[..]),
            ("as none", b"\0taken-over"),
        ] {
            let family = (libc::AF_UNIX as u16).to_ne_bytes();
            let address = captive.place(&[&family[..], name].concat())?;
            let length = (family.len() + name.len()) as u64;
            // Also by another number.
            let copy = captive.call(
                libc::SYS_fcntl,
                &[socket.number as u64, libc::F_DUPFD_CLOEXEC as u64, 0],
            )?;
            let result = captive.call(libc::SYS_bind, &[copy as u64, address, length])?;
            captive.call(libc::SYS_close, &[copy as u64])?;
            let what = format!("a local name {how} for {}", socket.target);
            attempts.push(Attempt { what, result });
        }
    }
    Ok(attempts)
}

/// Every kind of socket but UDP.
fn other_sockets(captive: &Captive) -> io::Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let (stream, datagram, raw, packets) = (1, 2, 3, 5);
    let sockets: [(&str, u64, u64, u64); 24] = [
        ("raw ICMP", 2, raw, 1),
        ("raw IP", 2, raw, 255),
        ("raw IPv6", 10, raw, 58),
        ("raw, flags beside it", 2, raw | 0o2_004_000, 1),
        ("ping", 2, datagram, 1),
        ("ping over IPv6", 10, datagram, 58),
        ("UDP-Lite", 2, datagram, 136),
        ("TCP", 2, stream, 0),
        ("TCP over IPv6", 10, stream, 6),
        ("MPTCP", 2, stream, 262),
        ("SCTP", 2, packets, 132),
        ("DCCP", 2, 6, 33),
        ("local stream", 1, stream, 0),
        ("local datagram", 1, datagram, 0),
        ("routes", 16, raw, 0),
        ("audit", 16, raw, 9),
        ("netfilter", 16, raw, 12),
        ("frames", 17, raw, 0x0300),
        ("frames without headers", 17, datagram, 0x0300),
        ("the hypervisor", 40, stream, 0),
        ("the kernel's ciphers", 38, packets, 0),
        ("Bluetooth", 31, raw, 1),
        ("XDP", 44, raw, 0),
        ("the CAN bus", 29, raw, 1),
    ];
    for (name, family, kind, protocol) in sockets {
        // Bits that the kernel does not look at hide nothing.
        for hidden in [0, 1 << 32] {
            let result = captive.call(libc::SYS_socket, &[family | hidden, kind, protocol])?;
            if result >= 0 {
                captive.call(libc::SYS_close, &[result as u64])?;
            }
            let what = format!("a socket for {name}");
            attempts.push(Attempt { what, result });
        }
    }
    let pair = captive.place(&[0; 8])?;
    let result = captive.call(libc::SYS_socketpair, &[1, stream, 0, pair])?;
    let what = "a pair of sockets".to_owned();
    attempts.push(Attempt { what, result });
    Ok(attempts)
}
