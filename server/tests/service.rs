//! The systemd unit: how much it leaves to a server that was taken over, and that the server does
//! all of its work within it.
//!
//! There is no systemd to start the unit here (there is one in tests/tests/vm.rs). What it says is done by other means: the user, the
//! file systems, the limits and the lost privileges by util-linux's programs, and the filters of
//! system calls, address families and memory by looking at all that the server asked the kernel for.

#![allow(clippy::print_stdout)] // The figures, for whoever asks with --nocapture.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::{Server, key, node, request, run_ok, squashfs, stdout, until};
use rootswarm_transport::node::SwarmHandle;
use rootswarm_transport::store::ChunkStore;

/// Of 10, by `systemd-analyze security`; 2.0 is what it calls the end of OK.
const MAX_EXPOSURE: f64 = 2.0;

/// Nobody's: what systemd would make up for the unit.
const USER: u32 = 61_234;

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/rootswarm.service")
}

/// The values of one setting, in order.
fn settings(unit: &str, name: &str) -> Vec<String> {
    unit.lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .map(str::to_owned)
        .collect()
}

fn analyze(arguments: &[&str]) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .output()
        .expect("systemd-analyze is there (cargo xtask test installs it)")
}

/// The exposure of a unit of this text, and what `systemd-analyze` says to it against the limit.
fn exposure(text: &str) -> (f64, bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rootswarm.service");
    fs::write(&path, text).unwrap();
    let threshold = format!("--threshold={}", (MAX_EXPOSURE * 10.0) as u32);
    let path = path.display().to_string();
    let output = analyze(&["security", "--offline=yes", &threshold, &path]);
    let said = stdout(&output);
    let (_, level) = said
        .split_once("Overall exposure level for rootswarm.service: ")
        .unwrap_or_else(|| panic!("{output:?}"));
    let level = level.split(' ').next().unwrap().parse().unwrap();
    (level, output.status.success())
}

#[test]
fn the_unit_is_exposed_to_little() {
    let text = fs::read_to_string(unit()).unwrap();
    let (level, below) = exposure(&text);
    println!("exposure {level}, at most {MAX_EXPOSURE}");
    assert!(below && level < MAX_EXPOSURE, "exposure {level}");
    // The measure measures: without one of its pillars the unit is over the limit.
    for pillar in ["SystemCallFilter=", "CapabilityBoundingSet="] {
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with(pillar))
            .collect();
        let (without, below) = exposure(&kept.join("\n"));
        assert!(!below && without > level, "without {pillar} {without}");
    }
}

#[test]
fn the_unit_has_no_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    // The program is not installed here; any will do.
    let text = fs::read_to_string(unit())
        .unwrap()
        .replace("/usr/bin/rootswarm serve", "/bin/true");
    let path = dir.path().join("rootswarm.service");
    fs::write(&path, text).unwrap();
    let output = analyze(&["verify", "--man=no", &path.display().to_string()]);
    let said = common::stderr(&output);
    // What other units of this machine do wrong is said too.
    assert!(
        !said.lines().any(|line| line.contains("rootswarm")),
        "{said}"
    );
}

/// The system calls that the unit's filter lets through.
fn allowed_calls(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for line in settings(unit, "SystemCallFilter") {
        let (denies, line) = match line.strip_prefix('~') {
            Some(rest) => (true, rest),
            None => (false, line.as_str()),
        };
        for name in line.split_whitespace() {
            let mut calls = BTreeSet::new();
            expand(name, &mut calls);
            match denies {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.append(&mut calls),
            }
        }
    }
    allowed
}

/// A set is made of calls and of other sets.
fn expand(name: &str, calls: &mut BTreeSet<String>) {
    if !name.starts_with('@') {
        calls.insert(name.to_owned());
        return;
    }
    let said = stdout(&analyze(&["syscall-filter", name]));
    let members = said
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for member in members {
        expand(member, calls);
    }
}

/// `1G` as systemd means it, in bytes, for prlimit.
fn bytes(size: &str) -> u64 {
    let digits = size.trim_end_matches(['K', 'M', 'G']);
    let factor = match &size[digits.len()..] {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().unwrap() * factor
}

/// A place like the unit's: a program that an unprivileged user can read, and state directories that
/// belong to it.
struct Unit {
    dir: tempfile::TempDir,
    text: String,
}

impl Unit {
    fn new() -> Unit {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(
            env!("CARGO_BIN_EXE_rootswarm"),
            dir.path().join("rootswarm"),
        )
        .unwrap();
        Unit {
            dir,
            text: fs::read_to_string(unit()).unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What `StateDirectory=` makes.
    fn state(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(USER), Some(USER)).unwrap();
        path
    }

    /// A limit of the unit, as prlimit's option.
    fn limit(&self, setting: &str, option: &str) -> String {
        let values = settings(&self.text, setting);
        format!("--{option}={}", bytes(values.last().unwrap()))
    }

    /// Starts the server with what the unit gives it, and writes down what it asks the kernel for.
    fn start(&self, state: &Path, args: &[&str]) -> (Server, PathBuf) {
        let trace = state.with_extension("trace");
        let mut command = Command::new("strace");
        // As a grandchild, so that signals reach the server itself.
        command.args(["-D", "-f", "-qq", "-s", "32", "-o"]);
        command.arg(&trace);
        command.args(["unshare", "--mount", "--propagation", "private"]);
        // ProtectSystem=strict and StateDirectory=.
        let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro / && exec \"$@\"";
        command.args(["sh", "-c", script]).arg(state);
        command.arg("prlimit");
        command.arg(self.limit("LimitDATA", "data"));
        command.arg(self.limit("LimitNOFILE", "nofile"));
        command.arg(self.limit("LimitCORE", "core"));
        let user = format!("{USER}");
        command.args(["setpriv", "--reuid", &user, "--regid", &user]);
        command.args(["--clear-groups", "--no-new-privs"]);
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
        command.arg(self.path("rootswarm"));
        (Server::spawn(command, state, args), trace)
    }
}

/// Every call in a trace, from the moment that the program itself runs, with its arguments.
fn calls(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    let began = text
        .lines()
        .position(|line| line.contains("execve(") && line.contains("rootswarm\", [\""))
        .expect("the program was run");
    text.lines()
        .skip(began + 1)
        .filter_map(|line| line.split_once(' '))
        .map(|(_process, call)| call.trim_start().to_owned())
        // Signals, ends, and the second halves of calls that were interrupted by other threads' lines.
        .filter(|call| call.starts_with(|c: char| c.is_ascii_lowercase() || c == '_'))
        .collect()
}

fn holds_what_it_asked(unit: &str, trace: &Path) {
    let allowed = allowed_calls(unit);
    assert!(allowed.contains("sendmmsg") && !allowed.contains("mount"));
    let families = settings(unit, "RestrictAddressFamilies").join(" ");
    let calls = calls(trace);
    let mut names = BTreeSet::new();
    for call in &calls {
        let (name, arguments) = call.split_once('(').unwrap_or((call, ""));
        assert!(allowed.contains(name), "the unit forbids {call}");
        names.insert(name);
        if name == "socket" || name == "socketpair" {
            let family = arguments.split(',').next().unwrap();
            assert!(families.split(' ').any(|known| known == family), "{call}");
        }
        // MemoryDenyWriteExecute=
        assert!(
            !(arguments.contains("PROT_EXEC")
                && (name == "mprotect" || arguments.contains("PROT_WRITE"))),
            "{call}"
        );
    }
    // The trace saw it at work.
    for worked in ["sendmsg", "recvmmsg", "accept4", "mmap", "rename", "fsync"] {
        let one_of = |name: &str| name == worked || (worked == "recvmmsg" && name == "recvmsg");
        assert!(
            names.iter().any(|name| one_of(name)),
            "no {worked}: {names:?}"
        );
    }
    println!("{} calls of {} kinds", calls.len(), names.len());
}

/// Whatever root did in it, the state directory is the service's.
fn belongs_to_the_service(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!(found.uid(), USER, "{}", path.display());
        if found.is_dir() {
            belongs_to_the_service(&path);
        }
    }
}

async fn fetch(seed: SocketAddr, state: &Path, to: PathBuf, token: &str) -> SwarmHandle {
    let node = node(key(state), Ipv4Addr::LOCALHOST.into()).await;
    let joined = node.join(&[seed], &request(Some(token))).await.unwrap();
    let store = ChunkStore::create(to, joined.manifest.clone()).unwrap();
    let handle = node.start(joined, store).unwrap();
    tokio::time::timeout(Duration::from_secs(60), handle.completed())
        .await
        .expect("the download ends")
        .unwrap();
    handle
}

/// All that a server and its admin, who is root, do with each other; a mirror beside it.
#[tokio::test(flavor = "multi_thread")]
async fn the_server_does_all_its_work_within_the_unit() {
    if !rustix::process::geteuid().is_root() {
        println!("not root: passed over");
        return;
    }
    let unit = Unit::new();
    let (first, second) = (unit.state("first"), unit.state("second"));
    let file = |name: &str, bytes: &[u8]| {
        fs::write(unit.path(name), bytes).unwrap();
        unit.path(name).display().to_string()
    };
    let web = squashfs(3_000_000, 1);
    let web_file = file("web.squashfs", &web);
    let db_file = file("db.squashfs", &squashfs(2_000_000, 2));

    // Before the first start and beside the running server it is root who publishes; `own` is
    // published by the server itself.
    run_ok(&first, &["publish", "--quiet", "web", &web_file]);
    let own = format!("own={db_file}");
    let (server, trace) = unit.start(&first, &["--admission", "token", &own]);
    server.line();
    server.line();
    run_ok(&first, &["publish", "--quiet", "db", &db_file]);
    assert!(server.line().contains("/db@"));
    run_ok(&first, &["tag", "alias", "web"]);
    assert!(server.line().contains("/alias@"));
    fs::write(first.join("boot/vmlinuz"), b"kernel").unwrap();
    chown(first.join("boot/vmlinuz"), Some(USER), Some(USER)).unwrap();

    fs::copy(first.join("swarm.key"), second.join("swarm.key")).unwrap();
    chown(second.join("swarm.key"), Some(USER), Some(USER)).unwrap();
    let of = format!("swarm://{}", server.swarm);
    let (mirror, mirror_trace) = unit.start(&second, &["--mirror", &of, "--admission", "token"]);
    for _ in 0..4 {
        mirror.line();
    }

    let token = run_ok(&first, &["token", "create", "--reusable"]);
    let handle = fetch(server.swarm, &first, unit.path("fetched"), &token).await;
    assert!(fs::read(unit.path("fetched")).unwrap() == web);
    let authorization = format!("Bearer {}", token.trim());
    let with_token = [("authorization", authorization.as_str())];
    // The kernel is found with the next change of the catalogue.
    run_ok(&first, &["remove", "alias"]);
    until("the kernel", || {
        server.request("GET", "/boot/vmlinuz", &[]).status == 200
    })
    .await;
    let image = server.request("GET", "/images/web", &with_token);
    assert!(image.body == web);
    // The status is made anew from time to time, and its images are in the order of their ids.
    let mut node = String::new();
    until("the node in the status", || {
        let status: serde_json::Value =
            serde_json::from_str(&run_ok(&first, &["status", "--json"])).unwrap();
        let images = status["images"].as_array().unwrap().iter();
        let nodes = images.filter_map(|image| image["nodes"].as_array());
        let mut ids = nodes.flatten().filter_map(|node| node["id"].as_str());
        node = ids.next().unwrap_or_default().to_owned();
        !node.is_empty() && ids.next().is_none()
    })
    .await;
    let node = node.as_str();
    run_ok(&first, &["revoke", node]);
    until("the end of the revoked node", || {
        !run_ok(&first, &["status", "--json"]).contains(node)
    })
    .await;
    handle.shutdown(Duration::ZERO).await;
    until("the mirror's tokens", || second.join("tokens").exists()).await;
    let copy = unit.path("from the mirror");
    let handle = fetch(mirror.swarm, &second, copy.clone(), &token).await;
    assert!(fs::read(copy).unwrap() == web);
    handle.shutdown(Duration::ZERO).await;
    let image = mirror.request("GET", "/images/web", &with_token);
    assert!(image.body == web);

    assert_eq!(mirror.stop(), Some(0));
    assert_eq!(server.stop(), Some(0));
    for (state, trace) in [(&first, trace), (&second, mirror_trace)] {
        belongs_to_the_service(state);
        holds_what_it_asked(&unit.text, &trace);
    }
}
