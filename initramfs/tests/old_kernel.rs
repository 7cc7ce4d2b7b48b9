//! Kernels that are older than the one the tests run on: a filter answers what they would.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use lab::{Lab, ends_within, kill};
use rustix::process::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use seed::{Published, TestSeed};
use support::{Server, eventually, in_mount_namespace, loops_of, run};

/// A call, and the arguments (by their number) with which it is not there.
type Missing = (libc::c_long, &'static [(u8, u64)]);

const LOOP_CONFIGURE: Missing = (libc::SYS_ioctl, &[(1, 0x4C0A)]);

/// What came after 4.14 and is asked for by this program or by the libraries in it.
const SINCE_4_14: [(libc::c_int, &[Missing]); 3] = [
    (
        libc::ENOSYS,
        &[
            (libc::SYS_rseq, &[]),
            (libc::SYS_clone3, &[]),
            (libc::SYS_close_range, &[]),
            (libc::SYS_openat2, &[]),
            (libc::SYS_faccessat2, &[]),
            (libc::SYS_pidfd_open, &[]),
            (libc::SYS_pidfd_send_signal, &[]),
            (libc::SYS_epoll_pwait2, &[]),
            (libc::SYS_io_uring_setup, &[]),
            (libc::SYS_open_tree, &[]),
            (libc::SYS_move_mount, &[]),
            (libc::SYS_fsopen, &[]),
            (libc::SYS_mount_setattr, &[]),
        ],
    ),
    (libc::EINVAL, &[LOOP_CONFIGURE]),
    // Batches of datagrams: UDP_SEGMENT and UDP_GRO.
    (
        libc::ENOPROTOOPT,
        &[
            (libc::SYS_setsockopt, &[(1, 17), (2, 103)]),
            (libc::SYS_setsockopt, &[(1, 17), (2, 104)]),
        ],
    ),
];

fn filter(error: libc::c_int, missing: &[Missing]) -> BpfProgram {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, arguments) in missing {
        let of_call = rules.entry(*call).or_default();
        let conditions: Vec<_> = arguments
            .iter()
            .map(|(index, value)| {
                let is = SeccompCmpOp::Eq;
                SeccompCondition::new(*index, SeccompCmpArgLen::Dword, is, *value)
                    .expect("a condition")
            })
            .collect();
        if !conditions.is_empty() {
            of_call.push(SeccompRule::new(conditions).expect("a rule"));
        }
    }
    let absent = SeccompAction::Errno(error.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().expect("an architecture");
    SeccompFilter::new(rules, SeccompAction::Allow, absent, arch)
        .expect("a filter")
        .try_into()
        .expect("a program")
}

/// Runs the command as a kernel without these would.
fn without(command: &mut Command, filters: Vec<BpfProgram>) -> &mut Command {
    // SAFETY: between fork and exec it makes system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for filter in &filters {
                seccompiler::apply_filter(filter).map_err(|_| std::io::ErrorKind::Other)?;
            }
            Ok(())
        })
    }
}

/// Each mode, and each of the errors that a kernel has for an ioctl it does not know.
#[test]
fn without_loop_configure_the_root_is_mounted_by_the_older_calls() {
    let name = "without_loop_configure_the_root_is_mounted_by_the_older_calls";
    in_mount_namespace(name, || {
        for (error, mode, root) in [
            (libc::EINVAL, "overlay", "overlay"),
            (libc::ENOTTY, "ro", "squashfs"),
            (libc::EINVAL, "copy", "tmpfs"),
            (libc::EOPNOTSUPP, "overlay", "overlay"),
        ] {
            let lab = Lab::new();
            let image = lab.image();
            let server = Server::of_file(image.clone());
            let url = format!("{}@blake3:{}", server.url("/i"), blake3::hash(&image));
            let mut boot = lab.boot(&format!("rooturl={url} rootswarm.mode={mode}"));
            let boot = without(&mut boot, vec![filter(error, &[LOOP_CONFIGURE])]);
            let (code, _, err) = run(boot);
            assert_eq!(code, 0, "{error} {mode}: {err}");
            assert_eq!(lab.at("root"), root);
            let hostname = fs::read_to_string(lab.path("root/etc/hostname"));
            assert_eq!(hostname.expect("a file"), "swarm\n");
            eventually("the end of the child", || lab.processes().is_empty());
            // Read-only, named after its file, and gone with the mount.
            let devices = loops_of(&lab.name());
            assert_eq!(devices.len(), usize::from(mode != "copy"), "{devices:?}");
            for device in &devices {
                let read = |what: &str| {
                    let path = format!("/sys/block/{device}/{what}");
                    fs::read_to_string(path).expect("a file").trim().to_owned()
                };
                assert_eq!(read("ro"), "1");
                assert_eq!(read("loop/autoclear"), "1");
            }
            for mounted in ["root", "run"] {
                let status = Command::new("umount")
                    .arg("-R")
                    .arg(lab.path(mounted))
                    .status();
                assert!(status.expect("umount").success());
            }
            eventually("the loop device clearing itself", || {
                loops_of(&lab.name()).is_empty()
            });
        }
    });
}

/// Everything later than the oldest kernel is missing at once: it boots from a swarm all the same, and
/// stays and serves without privileges.
#[test]
fn the_calls_of_an_old_kernel_are_enough() {
    in_mount_namespace("the_calls_of_an_old_kernel_are_enough", || {
        let lab = Lab::new();
        let published = Published::new(lab.image());
        let seed = TestSeed::start(&published, 0);
        fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
        let mut boot = lab.boot(&format!(
            "rooturl=swarm://127.0.0.1:{}/root",
            seed.addr.port()
        ));
        let filters = SINCE_4_14.map(|(error, missing)| filter(error, missing));
        let (code, _, err) = run(without(&mut boot, filters.into()));
        assert_eq!(code, 0, "{err}");
        // Other tests of this machine may have the port.
        let mut warnings = err.lines().filter(|line| line.contains("WARNING"));
        assert!(warnings.all(|line| line.contains("UDP port")), "{err}");
        assert_eq!(lab.at("root"), "overlay");
        let [pid] = lab.processes()[..] else {
            panic!("one process stays")
        };
        eventually("the seed", || lab.status()["seed_connected"] == true);
        kill(pid, Signal::TERM);
        ends_within(pid, std::time::Duration::from_secs(5));
    });
}
