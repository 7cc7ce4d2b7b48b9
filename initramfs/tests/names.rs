//! Seeds that are named: after the handoff, when the initramfs and its files are gone, and when they move.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, ends_within, kill};
use rustix::process::Signal;
use seed::{Published, TestSeed};
use support::{agent, in_mount_namespace, run};

/// What this mount namespace, as the initramfs, says about names.
struct Hosts(std::path::PathBuf);

impl Hosts {
    fn new(dir: &Path, text: &str) -> Hosts {
        let path = dir.join("hosts");
        fs::write(&path, text).expect("a file");
        let mounted = Command::new("mount")
            .arg("--bind")
            .arg(&path)
            .arg("/etc/hosts")
            .status();
        assert!(mounted.expect("mount").success());
        Hosts(path)
    }

    fn say(&self, text: &str) {
        fs::write(&self.0, text).expect("a file");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("/etc/hosts").status();
    }
}

fn seed_at(published: &Published, address: &str, port: u16) -> TestSeed {
    let address: IpAddr = address.parse().expect("an address");
    TestSeed::at(published, SocketAddr::new(address, port), None, None)
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Answers every question about an address of this family with this one.
fn name_server(listen: &str, answer: IpAddr) {
    let socket = UdpSocket::bind((listen, 53)).expect("port 53, as root");
    let (kind, answer) = match answer {
        IpAddr::V4(answer) => (1, answer.octets().to_vec()),
        IpAddr::V6(answer) => (28, answer.octets().to_vec()),
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut message = buffer[..length].to_vec();
            message[2] = 0x81;
            if message[length - 3] == kind {
                message[7] = 1;
                message.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0, answer.len() as u8]);
                message.extend(&answer);
            }
            let _ = socket.send_to(&message, from);
        }
    });
}

/// What the booted system says about names, written into its root once it is there.
type Say = fn(&Path);

/// Nobody but HTTP was there at boot; then the initramfs is emptied, as switch_root does, and the seed
/// comes up.
#[test]
fn who_came_by_http_joins_by_name_after_the_handoff() {
    in_mount_namespace("who_came_by_http_joins_by_name_after_the_handoff", || {
        let nothing: Say = |_| {};
        let hosts: Say = |etc| {
            fs::write(etc.join("hosts"), "127.0.0.5 other seed.lab\n").expect("a file");
        };
        // As systemd-resolved has it, but absolute.
        let resolv: Say = |etc| {
            fs::create_dir_all(etc.join("resolve")).expect("a directory");
            fs::write(etc.join("resolve/stub"), "nameserver 127.0.0.53\n").expect("a file");
            symlink("/etc/resolve/stub", etc.join("resolv.conf")).expect("a link");
        };
        // Through links of its own root, at a server of IPv6 behind one that is silent.
        let relative: Say = |etc| {
            let run = etc.join("../run/resolve");
            fs::create_dir_all(&run).expect("a directory");
            let servers = "search lab\nnameserver 127.0.0.99\nnameserver ::1\n";
            fs::write(run.join("stub"), servers).expect("a file");
            symlink("../run/resolve/stub", etc.join("resolv.conf")).expect("a link");
        };
        name_server("127.0.0.53", [127, 0, 0, 6].into());
        name_server("::1", IpAddr::from(Ipv6Addr::LOCALHOST));
        let one = "seed.lab:PORT";
        for (boots_with, says, seed_is_at, seeds, mode) in [
            ("127.0.0.1 seed.lab\n", nothing, "127.0.0.1", one, "overlay"),
            ("127.0.0.1 seed.lab\n", hosts, "127.0.0.5", one, "overlay"),
            ("127.0.0.1 seed.lab\n", resolv, "127.0.0.6", one, "overlay"),
            (
                "127.0.0.1 seed.lab\n::1 seed.lab\n",
                nothing,
                "::1",
                one,
                "overlay",
            ),
            ("127.0.0.1 seed.lab\n", relative, "::1", one, "overlay"),
            // Two seeds, the first of which has no address, then or now; and roots of other kinds.
            (
                "127.0.0.1 seed.lab\n",
                hosts,
                "127.0.0.5",
                "gone.lab:PORT,seed.lab:PORT",
                "copy rootswarm.serve=yes",
            ),
            (
                "127.0.0.1 other.lab\n127.0.0.1 seed.lab\n",
                nothing,
                "127.0.0.1",
                "seed.lab:PORT,other.lab:PORT",
                "ro",
            ),
        ] {
            let lab = Lab::new();
            let published = Published::new(lab.image());
            let (port, http) = (seed::free_udp_port(), published.http(Duration::ZERO));
            fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
            let initramfs = Hosts::new(&lab.path("conf"), boots_with);
            let seeds = seeds.replace("PORT", &port.to_string());
            let cmdline = format!(
                "rooturl=swarm://{seeds}/root rootswarm.http-port={} rootswarm.mode={mode}",
                http.addr.port()
            );
            let (code, _, err) = run(&mut lab.boot(&cmdline));
            assert_eq!(code, 0, "{err}");
            let [pid] = lab.processes()[..] else {
                panic!("one process stays")
            };
            initramfs.say("");
            says(&lab.path("root/etc"));
            let _seed = seed_at(&published, seed_is_at, port);
            wait_for(seed_is_at, || lab.status()["seed_connected"] == true);
            kill(pid, Signal::TERM);
            ends_within(pid, Duration::from_secs(5));
        }
    });
}

/// The seed of a node that serves is switched off and comes up at another address.
#[test]
fn a_seed_that_has_moved_is_found_by_its_name() {
    in_mount_namespace("a_seed_that_has_moved_is_found_by_its_name", || {
        for (first, then) in [
            ("127.0.0.1", "127.0.0.7"),
            ("127.0.0.7", "::1"),
            ("::1", "127.0.0.1"),
        ] {
            let lab = Lab::new();
            let published = Published::new(lab.image());
            let port = seed::free_udp_port();
            fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
            let initramfs = Hosts::new(&lab.path("conf"), &format!("{first} seed.lab\n"));
            let seed = seed_at(&published, first, port);
            let url = format!("swarm://seed.lab:{port}/root");
            let (code, _, err) = run(&mut lab.boot(&format!("rooturl={url}")));
            assert_eq!(code, 0, "{err}");
            let [pid] = lab.processes()[..] else {
                panic!("one process stays")
            };
            // Beside it a node without a root of its own.
            let mut fetching = agent()
                .args(["fetch", &url, "--stay", "--conf"])
                .arg(lab.path("conf"))
                .arg("--output")
                .arg(lab.path("fetched"))
                .arg("--status")
                .arg(lab.path("fetched.json"))
                .stdout(Stdio::null())
                .spawn()
                .expect("the agent starts");
            let fetched = || -> serde_json::Value {
                let text = fs::read(lab.path("fetched.json")).unwrap_or_default();
                serde_json::from_slice(&text).unwrap_or_default()
            };
            wait_for("the first seed", || {
                lab.status()["seed_connected"] == true && fetched()["seed_connected"] == true
            });
            drop(seed);
            wait_for("its end", || {
                lab.status()["seed_connected"] == false && fetched()["seed_connected"] == false
            });
            let moved = format!("{then} seed.lab\n");
            initramfs.say(&moved);
            fs::write(lab.path("root/etc/hosts"), &moved).expect("a file");
            let _seed = seed_at(&published, then, port);
            wait_for(&format!("the seed at {then}"), || {
                lab.status()["seed_connected"] == true && fetched()["seed_connected"] == true
            });
            kill(pid, Signal::TERM);
            ends_within(pid, Duration::from_secs(5));
            fetching.kill().expect("a process");
            fetching.wait().expect("an end");
        }
    });
}
