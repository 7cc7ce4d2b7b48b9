//! A booted machine whose address changes: what is left of the agent, without privileges and behind its
//! filter of system calls, still learns of it. The machine and the seed are in network namespaces of
//! their own. Needs root.

#[path = "support/lab.rs"]
mod lab;
#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use lab::{Lab, ends_within, kill};
use rustix::process::Signal;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use seed::{Published, TestSeed};
use support::{eventually, in_mount_namespace, noise, run};

const PORT: u16 = 7400;

/// Leaves this machine's network; threads and programs that are started from here on are in the new one.
fn leave_the_network() {
    // SAFETY: descriptors and memory are shared as before.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace (needs root)");
    ip("link set lo up");
}

#[track_caller]
fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output();
    let output = output.expect("ip (iproute2)");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {error}");
}

/// One machine, one change after the other.
struct Variant {
    options: &'static str,
    seed: &'static str,
    at_first: &'static str,
    changes: &'static [(&'static [&'static str], &'static str)],
}

const VARIANTS: [Variant; 3] = [
    Variant {
        options: "",
        seed: "10.79.0.1/24",
        at_first: "10.79.0.10/24",
        changes: &[
            (
                &[
                    "address del 10.79.0.10/24 dev eth0",
                    "address add 10.79.0.77/24 dev eth0",
                ],
                "10.79.0.77:7401",
            ),
            (
                &[
                    "link set eth0 down",
                    "address flush dev eth0",
                    "link set eth0 up",
                    "address add 10.79.0.78/24 dev eth0",
                ],
                "10.79.0.78:7401",
            ),
        ],
    },
    Variant {
        options: "rootswarm.mode=copy rootswarm.serve=yes rootswarm.port=7499",
        seed: "10.79.0.1/24",
        at_first: "10.79.0.10/24",
        changes: &[(
            &[
                "address add 10.79.0.79/23 dev eth0",
                "address del 10.79.0.10/24 dev eth0",
            ],
            "10.79.0.79:7499",
        )],
    },
    Variant {
        options: "rootswarm.mode=ro",
        seed: "fd79::1/64",
        at_first: "fd79::10/64",
        changes: &[(
            &[
                "address del fd79::10/64 dev eth0",
                "address add fd79::77/64 dev eth0 nodad",
            ],
            "[fd79::77]:7401",
        )],
    },
];

/// A seed at the other end of a cable from here, which is `eth0`.
fn seed_at_the_other_end(published: Published, address: &'static str) -> (TestSeed, SocketAddr) {
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let seed = std::thread::spawn(move || {
        leave_the_network();
        tell.send(rustix::thread::gettid().as_raw_nonzero())
            .expect("who waits");
        gone.recv().expect("a cable");
        let nodad = if address.contains(':') { " nodad" } else { "" };
        ip(&format!("address add {address} dev seed0{nodad}"));
        ip("link set seed0 up");
        let (address, _) = address.split_once('/').expect("a prefix");
        let listen = SocketAddr::new(address.parse().expect("an address"), PORT);
        (TestSeed::at(&published, listen, None, None), listen)
    });
    let thread = told.recv().expect("a thread");
    ip(&format!(
        "link add eth0 type veth peer name seed0 netns {thread}"
    ));
    ip("link set eth0 up");
    go.send(()).expect("the thread");
    seed.join().expect("a seed")
}

#[test]
fn a_confined_agent_notices_that_its_address_changed() {
    in_mount_namespace("a_confined_agent_notices_that_its_address_changed", || {
        for variant in VARIANTS {
            leave_the_network();
            let lab = Lab::new();
            let mut image = lab.image();
            image.extend(noise(1_000_000));
            let published = Published::new(image);
            fs::write(lab.path("conf/swarm.pub"), published.key_text() + "\n").expect("a file");
            let (seed, listen) = seed_at_the_other_end(published, variant.seed);
            let nodad = if listen.is_ipv6() { " nodad" } else { "" };
            ip(&format!("address add {} dev eth0{nodad}", variant.at_first));
            let options = variant.options;
            let (code, _, err) =
                run(&mut lab.boot(&format!("rooturl=swarm://{listen}/root {options}")));
            assert_eq!(code, 0, "{err}");
            let [pid] = lab.processes()[..] else {
                panic!("one process stays")
            };
            eventually("the filter", || {
                fs::read_to_string(format!("/proc/{pid}/status"))
                    .is_ok_and(|status| status.contains("Seccomp:\t2"))
            });
            eventually("a complete node", || seed.complete_at().len() == 1);
            for (steps, at) in variant.changes {
                for step in *steps {
                    ip(step);
                }
                eventually(at, || seed.complete_at().iter().any(|known| known == at));
            }
            kill(pid, Signal::TERM);
            ends_within(pid, Duration::from_secs(5));
        }
    });
}
