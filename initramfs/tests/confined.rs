//! What an agent can still do after the handoff when somebody else decides what it does: its own
//! process is made to try.

#![cfg(target_arch = "x86_64")]

#[path = "support/lab.rs"]
mod lab;
#[path = "support/swarm.rs"]
mod seed;
mod support;
#[path = "../../tests/src/hostile/takeover.rs"]
mod takeover;

use std::fs;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use lab::{Lab, ends_within, kill};
use rustix::process::Signal;
use seed::{Published, TestSeed};
use support::{eventually, in_mount_namespace, noise, run};
use takeover::{
    Attempt, descriptors, is_confined, leave_its_place, shared_mappings, write_what_it_holds,
};

/// How a machine came to its root, and the root that it has.
struct Variant {
    /// More of the kernel command line.
    options: &'static str,
    /// Bytes behind the squashfs: more chunks.
    padding: usize,
    /// Whether the image came over HTTP, and the swarm is still looked for.
    by_http: bool,
}

const VARIANTS: [Variant; 4] = [
    Variant {
        options: "",
        padding: 3_000_000,
        by_http: false,
    },
    // One chunk more than the squashfs has.
    Variant {
        options: "rootswarm.mode=ro",
        padding: 1,
        by_http: false,
    },
    Variant {
        options: "rootswarm.mode=copy rootswarm.serve=yes",
        padding: 0,
        by_http: false,
    },
    Variant {
        options: "rootswarm.mode=ro",
        padding: 200_000,
        by_http: true,
    },
];

/// Boots each of them and hands the agent that stays behind to `check`.
fn booted(check: impl Fn(&Lab, i32)) {
    for variant in VARIANTS {
        let lab = Lab::new();
        let mut image = lab.image();
        image.extend(noise(variant.padding));
        let published = Published::new(image);
        let port = seed::free_udp_port();
        let _seed = (!variant.by_http).then(|| TestSeed::start(&published, port));
        let http = published.http(Duration::ZERO);
        fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
        let cmdline = format!(
            "rooturl=swarm://127.0.0.1:{port}/root rootswarm.http-port={} {}",
            http.addr.port(),
            variant.options
        );
        let mut boot = lab.boot(&cmdline);
        // What a shell of the initramfs forgot: a writable descriptor, given to whatever it runs.
        let forgotten = fs::File::create(lab.path("forgotten")).expect("a file");
        let number = forgotten.as_raw_fd();
        rustix::io::fcntl_setfd(&forgotten, rustix::io::FdFlags::empty()).expect("a descriptor");
        assert!(number > 2);
        let (code, _, err) = run(&mut boot);
        assert_eq!(code, 0, "{err}");
        let [pid] = lab.processes()[..] else {
            panic!("one process stays")
        };
        eventually("the filters", || is_confined(pid).expect("/proc"));
        check(&lab, pid);
        // It goes on as if nothing had been, and listens to nobody but its own loop.
        let before = lab.status()["uptime_seconds"].as_f64();
        if !variant.by_http {
            eventually("a later status", || {
                lab.status()["uptime_seconds"].as_f64() > before
            });
        }
        kill(pid, Signal::TERM);
        ends_within(pid, Duration::from_secs(5));
    }
}

#[track_caller]
fn all_refused(attempts: &[Attempt], at_least: usize) {
    assert!(attempts.len() >= at_least, "{} attempts", attempts.len());
    let let_through: Vec<_> = attempts.iter().filter(|it| !it.is_refused()).collect();
    assert!(let_through.is_empty(), "{let_through:#?}");
}

#[test]
fn nothing_it_holds_is_writable_but_its_status() {
    in_mount_namespace("nothing_it_holds_is_writable_but_its_status", || {
        booted(|lab, pid| {
            let status = lab.path("run/status.json").display().to_string();
            let image = lab.path("run/image.squashfs");
            let content = fs::read(&image).expect("the image");
            for held in descriptors(pid).expect("/proc") {
                let harmless = held.target == status
                    || held.target.starts_with("socket:")
                    // The loop and its own counters: no file.
                    || held.target.starts_with("anon_inode:")
                    // The kernel's log, for lines; where there is none, nothing.
                    || held.number == 2
                        && ["/dev/kmsg", "/dev/null"].contains(&held.target.as_str());
                assert!(!held.is_writable || harmless, "{held:?}");
                assert_ne!(held.target, lab.path("forgotten").display().to_string());
            }
            let mappings = shared_mappings(pid).expect("/proc");
            assert!(!mappings.is_empty(), "the image is mapped");
            for mapping in &mappings {
                assert!(!mapping.may_write, "{mapping:?}");
            }

            let attempts = write_what_it_holds(pid, &status).expect("a process that can be traced");
            all_refused(&attempts, 100);
            // The kernel itself refuses this, whatever the filter lets pass: the mapping comes from a
            // descriptor that only reads.
            let refused = |part: &str| {
                let mut found = attempts.iter().filter(|it| it.what.starts_with(part));
                found.all(|it| it.result == -i64::from(libc::EACCES))
            };
            assert!(refused("mprotect to write"), "{attempts:#?}");
            assert_eq!(fs::read(&image).expect("the image"), content);
            assert!(!lab.path("root/made").exists());
        });
    });
}

/// As the attack did it: root copies the descriptors out of the process and uses them elsewhere, where
/// no filter is.
#[test]
fn a_descriptor_copied_out_changes_nothing() {
    in_mount_namespace("a_descriptor_copied_out_changes_nothing", || {
        booted(|lab, pid| {
            let image = lab.path("run/image.squashfs");
            let content = fs::read(&image).expect("the image");
            // SAFETY: takes numbers, returns a descriptor.
            let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            assert!(process >= 0, "pidfd_open");
            let mut of_the_image = 0;
            for held in descriptors(pid).expect("/proc") {
                if held.target != image.display().to_string()
                    && !held.target.ends_with("/image.squashfs.part")
                {
                    continue;
                }
                of_the_image += 1;
                // SAFETY: the same.
                let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, held.number, 0) };
                assert!(copy >= 0, "pidfd_getfd");
                let copy = copy as libc::c_int;
                let text = b"taken over";
                // SAFETY: the buffer is as long as is said.
                let written = unsafe { libc::pwrite(copy, text.as_ptr().cast(), text.len(), 0) };
                assert_eq!(written, -1);
                // SAFETY: a new mapping at a place that the kernel chooses.
                let mapped = unsafe {
                    let rights = libc::PROT_READ | libc::PROT_WRITE;
                    libc::mmap(
                        std::ptr::null_mut(),
                        4096,
                        rights,
                        libc::MAP_SHARED,
                        copy,
                        0,
                    )
                };
                assert_eq!(mapped, libc::MAP_FAILED);
                // SAFETY: both descriptors are this test's own.
                unsafe {
                    assert_eq!(libc::ftruncate(copy, 0), -1);
                    libc::close(copy);
                }
            }
            // SAFETY: it is this test's own.
            unsafe { libc::close(process as libc::c_int) };
            assert!(of_the_image > 0, "it serves from a descriptor");
            assert_eq!(fs::read(&image).expect("the image"), content);
        });
    });
}

#[test]
fn it_cannot_leave_its_namespaces_nor_talk_anything_but_udp() {
    let name = "it_cannot_leave_its_namespaces_nor_talk_anything_but_udp";
    in_mount_namespace(name, || {
        booted(|_, pid| {
            all_refused(
                &leave_its_place(pid).expect("a process that can be traced"),
                80,
            );
        });
    });
}
