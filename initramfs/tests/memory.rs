//! What an agent takes beside its image, whatever the chunks' size: the kernel refuses it more.

#[path = "support/swarm.rs"]
mod seed;
mod support;

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rootswarm_image::{ChunkSize, hash_file};
use seed::{Published, TestSeed};
use support::{Running, agent, in_mount_namespace, manifest_in, noise};

/// What is promised (server/SECURITY.md), stacks of threads and the allocator's reserves included.
const MEMORY_BYTES: u64 = 64 << 20;

/// The least file descriptors, threads and time do not matter here; memory of its own does.
fn within_bounds(command: &mut Command) -> &mut Command {
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit {
                rlim_cur: MEMORY_BYTES,
                rlim_max: MEMORY_BYTES,
            };
            match libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    }
}

fn fetch(url: &str, dir: &Path, name: &str, more: &[&str]) -> Running {
    let mut command = agent();
    command
        .args(["fetch", url, "--timeout", "60", "--status"])
        .arg(dir.join(format!("{name}.json")))
        .arg("--output")
        .arg(dir.join(name))
        .args(more)
        .stdout(Stdio::null());
    let child = within_bounds(&mut command).spawn();
    Running(child.expect("the agent starts"))
}

fn have(dir: &Path, name: &str) -> u64 {
    let text = fs::read(dir.join(format!("{name}.json"))).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    status["bytes_have"].as_u64().unwrap_or(0)
}

/// Memory of its own, shared with nobody.
fn anonymous_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let number = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// Until it has so much, or has ended with success. Returns the most that it had of its own.
#[track_caller]
fn watch(child: &mut Child, dir: &Path, name: &str, until: u64, limit: Duration) -> u64 {
    let start = Instant::now();
    let mut most = 0;
    loop {
        most = most.max(anonymous_bytes(child.id()));
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "{name}: {status}");
            return most;
        }
        if have(dir, name) >= until {
            return most;
        }
        assert!(start.elapsed() < limit, "{name}: {} bytes", have(dir, name));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn end(mut child: Running) {
    let pid = rustix::process::Pid::from_child(&child);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    child.wait().expect("an end");
}

const LIMIT: Duration = Duration::from_secs(120);

/// From a seed, from a seed and a peer, going on with what an earlier run left, and over HTTP.
#[test]
fn memory_does_not_grow_with_the_chunks() {
    for log2 in [19, 23, 24] {
        let chunks = ChunkSize::from_log2(log2).expect("a size");
        // Ten chunks at least, so that many are on their way at once, and the last one short.
        let image = noise((chunks.bytes() as usize * 10).max(20_000_000) + 12_345);
        let manifest = manifest_in(&image, chunks);
        let published = Published::with(image, manifest);
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let seed = TestSeed::start(&published, 0);
        let port = seed.addr.port();
        let pin = published.manifest.id();
        let url = format!("swarm://127.0.0.1:{port}/root@blake3:{pin}");
        let whole = published.image.len() as u64;
        let same = |name: &str| fs::read(dir.join(name)).expect("the image") == published.image;

        let mut first = fetch(&url, dir, "first", &["--stay"]);
        let most_first = watch(&mut first, dir, "first", whole, LIMIT);
        support::eventually("its place", || dir.join("first").exists());
        assert!(same("first"));
        let mut second = fetch(&url, dir, "second", &[]);
        let most_second = watch(&mut second, dir, "second", u64::MAX, LIMIT);
        assert!(same("second"));
        end(first);

        // Half of what an earlier run left is damaged.
        let half = whole as usize / 2;
        let mut part = published.image.clone();
        part[half..].fill(7);
        fs::write(dir.join("third.part"), part).expect("a file");
        let mut third = fetch(&url, dir, "third", &[]);
        let most_third = watch(&mut third, dir, "third", u64::MAX, LIMIT);
        assert!(same("third"));
        drop(seed);

        let http = published.http(Duration::ZERO);
        let http_port = http.addr.port().to_string();
        let options = ["--http-port", http_port.as_str()];
        let mut fourth = fetch(&url, dir, "fourth", &options);
        let most_fourth = watch(&mut fourth, dir, "fourth", u64::MAX, LIMIT);
        assert!(same("fourth"));
        // Shown with --nocapture.
        #[allow(clippy::print_stderr)]
        {
            let mib = [most_first, most_second, most_third, most_fourth].map(|b| b >> 20);
            eprintln!("chunks of {chunks}: {mib:?} MiB");
        }
    }
}

/// A node that others fetch from, all at the same time, over IPv6 as well: in the shortest chunks, in the
/// longest ones, and of an image that is shorter than one chunk.
#[test]
fn memory_does_not_grow_with_those_who_are_served() {
    for (host, log2, length, others) in [
        ("[::1]", 24, 90_000_001, 4),
        ("127.0.0.1", 16, 30_000_007, 3),
        ("[::1]", 22, 3_000_000, 5),
    ] {
        let case = format!("{others} over {host}, chunks of 2^{log2}");
        let image = noise(length);
        let chunks = ChunkSize::from_log2(log2).expect("a size");
        let manifest = manifest_in(&image, chunks);
        let published = Published::with(image, manifest);
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let listen = format!("{host}:0").parse().expect("an address");
        let seed = TestSeed::at(&published, listen, None, None);
        let pin = published.manifest.id();
        let url = format!("swarm://{}/root@blake3:{pin}", seed.addr);
        let whole = published.image.len() as u64;
        let mut holder = fetch(&url, dir, "holder", &["--stay"]);
        watch(&mut holder, dir, "holder", whole, LIMIT);
        let names: Vec<String> = (0..others).map(|n| format!("node-{n}")).collect();
        let mut nodes: Vec<Running> = names.iter().map(|n| fetch(&url, dir, n, &[])).collect();
        let mut most = 0;
        for (node, name) in nodes.iter_mut().zip(&names) {
            // Whoever takes more than the limit has ended without success.
            most = most.max(watch(node, dir, name, u64::MAX, LIMIT));
            let fetched = fs::read(dir.join(name)).expect("the image");
            assert!(fetched == published.image, "{case}: {name}");
        }
        most = most.max(anonymous_bytes(holder.id()));
        assert!(holder.try_wait().expect("a child").is_none(), "{case}");
        assert!(most < MEMORY_BYTES, "{case}: {most}");
        end(holder);
        drop(seed);
    }
}

/// An image of 20 GB that is one hole: 1,193 chunks of 16 MiB. As much of it is fetched as there is room
/// for in a test.
#[test]
fn an_image_of_20_gb_takes_no_more() {
    in_mount_namespace("an_image_of_20_gb_takes_no_more", || {
        let length = 20_000_012_345;
        assert_eq!(ChunkSize::for_length(length), ChunkSize::MAX);
        a_hole(length, ChunkSize::MAX, "127.0.0.1", 700_000_000);
    });
}

/// Others that are one hole, over IPv6 too: in many short chunks, whose manifest is long, and in a few long
/// ones.
#[test]
fn other_long_images_take_no_more() {
    in_mount_namespace("other_long_images_take_no_more", || {
        for (length, log2, host) in [
            (4_290_000_001, 16, "[::1]"),
            (2_000_000_000, 20, "127.0.0.1"),
            (1_100_000_000, 23, "[::1]"),
        ] {
            let chunks = ChunkSize::from_log2(log2).expect("a size");
            a_hole(length, chunks, host, 300_000_000);
        }
    });
}

/// A node fetches so many bytes of an image of zeros, within the bounds.
fn a_hole(length: u64, chunks: ChunkSize, host: &str, until: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=60g", "tmpfs"])
        .arg(dir)
        .status();
    assert!(mounted.expect("mount").success());
    let path = dir.join("sparse");
    let file = File::create_new(&path).expect("a file");
    file.set_len(length).expect("a length");
    let file = File::open(&path).expect("a file");
    let two = NonZeroUsize::new(2).expect("two");
    let manifest = hash_file(&file, chunks, two, &|_| {}).expect("a hash");
    drop(file);
    let published = Published::with(Vec::new(), manifest);
    let listen = format!("{host}:0").parse().expect("an address");
    let seed = TestSeed::of_file(&published, listen, &path);
    let pin = published.manifest.id();
    let url = format!("swarm://{}/root@blake3:{pin}", seed.addr);
    let mut child = fetch(&url, dir, "node", &[]);
    let most = watch(&mut child, dir, "node", until, 2 * LIMIT);
    assert!(have(dir, "node") >= until);
    end(child);
    drop(seed);
    let unmounted = Command::new("umount").arg("-l").arg(dir).status();
    assert!(unmounted.expect("umount").success());
    // Shown with --nocapture.
    #[allow(clippy::print_stderr)]
    {
        eprintln!("{length} bytes in chunks of {chunks}: {} MiB", most >> 20);
    }
}
