//! `boot` as the initramfs calls it: the real binary, as root, in a mount namespace of its own.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lab::{Lab, ends_within, kill};
use rustix::process::Signal;
use seed::{Published, TestSeed};
use support::{Reply, Server, agent, eventually, in_mount_namespace, mounts, noise, run};

#[test]
fn every_mode_over_http() {
    in_mount_namespace("every_mode_over_http", || {
        for mode in ["overlay", "ro", "copy"] {
            let lab = Lab::new();
            let image = lab.image();
            let server = Server::of_file(image.clone());
            let url = format!("{}@blake3:{}", server.url("/i"), blake3::hash(&image));
            fs::write(lab.path("run.error"), "of an earlier try").expect("a file");
            let cmdline = format!("quiet rooturl={url} rootswarm.mode={mode} ip=dhcp");
            let (code, out, err) = run(&mut lab.boot(&cmdline));
            assert_eq!((code, out.as_str()), (0, ""), "{mode}: {err}");
            let expected = match mode {
                "overlay" => ["overlay", "squashfs", "tmpfs"],
                "ro" => ["squashfs", "", ""],
                _ => ["tmpfs", "", ""],
            };
            assert_eq!(
                [lab.at("root"), lab.at("root/mnt/ro"), lab.at("root/mnt/rw")],
                expected
            );
            assert_eq!(lab.at("run"), "tmpfs");
            assert!(!lab.path("run.error").exists());
            let hostname = fs::read_to_string(lab.path("root/etc/hostname"));
            assert_eq!(hostname.expect("a file"), "swarm\n");
            assert_eq!(fs::write(lab.path("root/new"), "x").is_ok(), mode != "ro");
            // The image stays where it is mounted from, and only there.
            assert_eq!(lab.path("run/image.squashfs").exists(), mode != "copy");
            assert_eq!(lab.status()["phase"], "done");
            assert_eq!(lab.status()["bytes_have"], image.len());
            eventually("the end of the child", || lab.processes().is_empty());
            let (code, out, _) = run(agent().args(["status", "--run-dir"]).arg(lab.path("run")));
            assert_eq!(code, 0);
            assert!(out.starts_with("phase     done"), "{out}");
            let status = Command::new("umount")
                .arg("-R")
                .arg(lab.path("root"))
                .status();
            assert!(status.expect("umount").success());
            let status = Command::new("umount").arg(lab.path("run")).status();
            assert!(status.expect("umount").success());
        }
    });
}

/// What a process of its own user may do, in every thread: nothing.
fn has_no_privileges(pid: i32) {
    let mut threads = 0;
    let user = rootswarm_agent::confine::USER.to_string();
    // Real, effective, saved, of the file system.
    let four = [user.as_str(); 4].join("\t");
    for task in fs::read_dir(format!("/proc/{pid}/task")).expect("a process") {
        let status = task.expect("a thread").path().join("status");
        // A thread that was idle for long enough ends.
        let Ok(status) = fs::read_to_string(status) else {
            continue;
        };
        threads += 1;
        for (name, expected) in [
            ("Uid", four.clone()),
            ("Gid", four.clone()),
            ("Groups", String::new()),
            ("CapInh", "0".repeat(16)),
            ("CapPrm", "0".repeat(16)),
            ("CapEff", "0".repeat(16)),
            ("CapAmb", "0".repeat(16)),
            ("NoNewPrivs", "1".to_owned()),
            // A filter.
            ("Seccomp", "2".to_owned()),
        ] {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            assert_eq!(line.map(str::trim), Some(expected.as_str()), "{name}");
        }
    }
    assert!(threads > 0);
    let own = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    assert!(
        own.contains(&format!("CapBnd:\t{}\n", "0".repeat(16))),
        "{own}"
    );
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("a process");
    for (name, most) in [("Max core file size", "0"), ("Max open files", "128")] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let found: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
        assert_eq!(found[..2], [most, most], "{name}");
    }
    // Not dumpable: what is its own in /proc is root's.
    let owner = fs::metadata(format!("/proc/{pid}/status")).expect("a process");
    assert_eq!(owner.uid(), 0);
}

/// A tracer of a process that runs; its word is that nothing was refused to it.
struct Watched {
    tracer: Child,
    trace: PathBuf,
}

impl Watched {
    fn new(pid: i32, trace: PathBuf) -> Watched {
        let tracer = Command::new("strace")
            .args(["-f", "-qq", "-p", &pid.to_string(), "-o"])
            .arg(&trace)
            .stdin(Stdio::null())
            .spawn()
            .expect("strace is there (cargo xtask test installs it)");
        let watched = Watched { tracer, trace };
        // It wakes up every two seconds, if nobody asks for anything.
        eventually("the tracer", || !watched.text().is_empty());
        watched
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.trace).unwrap_or_default()
    }

    fn nothing_was_refused(mut self, worked: &[&str]) {
        // Its end lets the process go on.
        kill(
            i32::try_from(self.tracer.id()).expect("a number"),
            Signal::INT,
        );
        self.tracer.wait().expect("an end");
        let text = self.text();
        let refused: Vec<&str> = text.lines().filter(|line| line.contains("EPERM")).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        for call in worked {
            assert!(text.contains(&format!(" {call}(")), "no {call}");
        }
    }
}

/// Boots from the swarm, and the child that stays behind serves the next node with the seed cut
/// down to nearly nothing.
#[test]
fn a_child_stays_and_serves() {
    in_mount_namespace("a_child_stays_and_serves", || {
        let lab = Lab::new();
        let mut image = lab.image();
        // Padding behind a squashfs does no harm and makes it worth serving.
        image.extend(noise(3_000_000));
        let published = Published::new(image);
        let port = seed::free_udp_port();
        let seed = TestSeed::start(&published, port);
        fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
        let url = format!("swarm://127.0.0.1:{port}/root");
        let (code, out, err) = run(&mut lab.boot(&format!("rooturl={url}")));
        assert_eq!((code, out.as_str()), (0, ""), "{err}");
        assert!(err.contains("rootswarm: fetched image "), "{err}");
        assert_eq!(lab.at("root"), "overlay");
        assert_eq!(lab.status()["phase"], "serving");

        let pids = lab.processes();
        let [pid] = pids[..] else {
            panic!("one process stays, found {pids:?}")
        };
        assert_eq!(lab.status()["pid"], pid);
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let stat = read("stat").expect("a process");
        let fields = stat
            .rsplit(") ")
            .next()
            .unwrap_or_default()
            .split(' ')
            .collect::<Vec<_>>();
        assert_eq!(fields[3], pid.to_string(), "a session of its own");
        assert_eq!(read("oom_score_adj").expect("a process").trim(), "1000");
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("a link");
        assert_eq!(link("cwd"), lab.path("root"));
        assert_eq!(link("root"), lab.path("root"));
        assert_eq!(link("fd/1"), Path::new("/dev/null"));
        let log = link("fd/2");
        let silent = log == Path::new("/dev/kmsg") || log == Path::new("/dev/null");
        assert!(silent, "{}", log.display());
        // Its own memory, without the image it maps.
        let kib = |name: &str| {
            let status = read("status").expect("a process");
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            number.expect("a number of kB")
        };
        assert!(kib("RssAnon") < 24 * 1024, "{} kB", kib("RssAnon"));

        eventually("the filter", || {
            read("status").is_ok_and(|status| status.contains("Seccomp:\t2"))
        });
        has_no_privileges(pid);
        let watched = Watched::new(pid, lab.path("trace"));

        drop(seed);
        let _slow = TestSeed::with(&published, port, None, Some(20_000));
        let (code, out, err) = run(agent()
            .args(["fetch", &url, "--timeout", "20", "--conf"])
            .arg(lab.path("conf"))
            .arg("--output")
            .arg(lab.path("second")));
        assert_eq!(code, 0, "{err}");
        assert!(fs::read(lab.path("second")).expect("the image") == published.image);
        assert!(!out.contains(" 0 from peers"), "{out}");
        eventually("the count of what was served", || {
            lab.status()["bytes_uploaded"].as_u64() > Some(2_000_000)
        });
        has_no_privileges(pid);
        watched.nothing_was_refused(&["sendmsg", "pwrite64"]);

        // Shutdown: it ends at once, and the root does not notice.
        kill(pid, Signal::TERM);
        ends_within(pid, Duration::from_secs(1));
        let hostname = fs::read_to_string(lab.path("root/etc/hostname"));
        assert_eq!(hostname.expect("a file"), "swarm\n");
    });
}

/// Boots over HTTP because no seed is there, and finds its way into the swarm without privileges:
/// names, routes, the join.
#[test]
fn who_stays_without_privileges_finds_the_swarm() {
    in_mount_namespace("who_stays_without_privileges_finds_the_swarm", || {
        let lab = Lab::new();
        let published = Published::new(lab.image());
        let (port, http) = (seed::free_udp_port(), published.http(Duration::ZERO));
        fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
        let cmdline = format!(
            "rooturl=swarm://localhost:{port}/root rootswarm.http-port={}",
            http.addr.port()
        );
        let (code, _, err) = run(&mut lab.boot(&cmdline));
        assert_eq!(code, 0, "{err}");
        let [pid] = lab.processes()[..] else {
            panic!("one process stays")
        };
        eventually("the filter", || {
            fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| status.contains("Seccomp:\t2"))
        });
        let watched = Watched::new(pid, lab.path("trace"));
        eventually("another try", || watched.text().contains("etc/hosts"));
        let _seed = TestSeed::start(&published, port);
        eventually("the swarm", || lab.status()["seed_connected"] == true);
        has_no_privileges(pid);
        watched.nothing_was_refused(&["openat", "socket", "connect", "sendmsg"]);
        kill(pid, Signal::TERM);
        ends_within(pid, Duration::from_secs(1));
    });
}

#[test]
fn a_copy_serves_only_when_asked() {
    in_mount_namespace("a_copy_serves_only_when_asked", || {
        for (asked, stays) in [("", false), (" rootswarm.serve=yes", true)] {
            let lab = Lab::new();
            let published = Published::new(lab.image());
            let seed = TestSeed::start(&published, 0);
            let pin = published.manifest.id();
            let url = format!("swarm://127.0.0.1:{}/root@blake3:{pin}", seed.addr.port());
            let cmdline = format!("rooturl={url} rootswarm.mode=copy{asked}");
            let (code, _, err) = run(&mut lab.boot(&cmdline));
            assert_eq!(code, 0, "{err}");
            assert_eq!(lab.at("root"), "tmpfs");
            assert_eq!(lab.path("run/image.squashfs").exists(), stays);
            match lab.processes()[..] {
                [pid] if stays => {
                    kill(pid, Signal::TERM);
                    ends_within(pid, Duration::from_secs(1));
                }
                [] if !stays => {}
                // Without serving it is gone, or just going.
                [pid] => ends_within(pid, Duration::from_secs(5)),
                ref pids => panic!("{pids:?}"),
            }
        }
    });
}

#[test]
fn failures_leave_nothing() {
    in_mount_namespace("failures_leave_nothing", || {
        let lab = Lab::new();
        let server = Server::of_file(noise(100_000));
        let plain = format!("rooturl={} rootdelay=2", server.url("/i"));
        lab.check_fails(&plain, 7, "not a squashfs image");
        let pin = blake3::hash(b"other");
        lab.check_fails(
            &format!("rooturl={}@blake3:{pin} ROOTDELAY=2", server.url("/i")),
            3,
            "gave up after 2 s without progress: refused: http://",
        );

        // A terabyte: refused before the download.
        let huge = Server::start(|_, _| {
            let headers = vec!["Content-Length: 1000000000000".to_owned()];
            Reply {
                headers,
                ..Reply::new("200 OK", "hsqs")
            }
        });
        let cmdline = format!("rooturl={} rootdelay=2", huge.url("/i"));
        lab.check_fails(
            &cmdline,
            5,
            "the image has 1000.0 GB: mode overlay needs 1005.1 GB of RAM",
        );

        // The image is good, the place is not.
        fs::remove_dir(lab.path("root")).expect("a directory");
        fs::write(lab.path("root"), "a file").expect("a file");
        let server = Server::of_file(lab.image());
        let cmdline = format!("rooturl={}", server.url("/i"));
        lab.check_fails(&cmdline, 7, "cannot use as a mount point");
    });
}

/// A boot from a server that is too slow to finish.
fn begin(lab: &Lab, server: &Server) -> (Child, i32) {
    let parent = lab
        .boot(&format!("rooturl={}", server.url("/i")))
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent starts");
    let mut child = 0;
    // Not by a document that an earlier, killed boot left.
    eventually("the download", || {
        child = lab.status()["pid"]
            .as_i64()
            .and_then(|pid| pid.try_into().ok())
            .unwrap_or(0);
        lab.status()["bytes_have"].as_u64() > Some(0) && lab.processes().contains(&child)
    });
    (parent, child)
}

fn slow_server() -> Server {
    let image = noise(10_000_000);
    Server::start(move |request, _| Reply {
        pause: Duration::from_millis(50),
        ..Reply::file(request, &image)
    })
}

#[test]
fn without_its_parent_the_child_gives_up() {
    in_mount_namespace("without_its_parent_the_child_gives_up", || {
        let (lab, server, before) = (Lab::new(), slow_server(), mounts());
        let (mut parent, child) = begin(&lab, &server);
        parent.kill().expect("a process");
        parent.wait().expect("an end");
        ends_within(child, Duration::from_secs(2));
        lab.check_nothing_left(&before);
    });
}

#[test]
fn a_child_that_is_killed_is_reported() {
    in_mount_namespace("a_child_that_is_killed_is_reported", || {
        let (lab, server) = (Lab::new(), slow_server());
        let (mut parent, child) = begin(&lab, &server);
        kill(child, Signal::KILL);
        assert_eq!(parent.wait().expect("an end").code(), Some(1));
        // SIGTERM is in time to clean up, and says so. The next boot clears what the kill left.
        let (parent, child) = begin(&lab, &server);
        kill(child, Signal::TERM);
        assert_eq!(
            parent.wait_with_output().expect("an end").status.code(),
            Some(1)
        );
        assert_eq!(lab.at("run"), "");
    });
}
