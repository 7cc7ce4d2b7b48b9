//! Bad input at the agent's edge: each gets one clear line and its exit code, and leaves nothing
//! behind. Everything here ends before or at the first contact with a server.

mod support;

use std::path::Path;

use support::{Reply, Server, agent, run};

const PIN: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

/// Runs `fetch` with this rooturl; checks code, the one line, and that no file appeared.
fn check_fetch(rooturl: &str, extra: &[&str], code: i32, part: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let output = dir.path().join("image");
    let (found, out, err) = run(agent()
        .args(["fetch", rooturl, "--timeout", "1", "--conf"])
        .arg(dir.path())
        .arg("--output")
        .arg(&output)
        .args(extra));
    assert_eq!((found, out.as_str()), (code, ""), "{rooturl}: {err}");
    check_lines(&err, part);
    assert!(!output.exists(), "{rooturl}");
}

/// The last line is the agent's; before it only progress is said.
fn check_lines(err: &str, part: &str) {
    let lines = err.lines().collect::<Vec<_>>();
    let last = lines.last().expect("a line");
    assert!(last.starts_with("rootswarm-agent: "), "{err}");
    assert!(last.contains(part), "expected \"{part}\" in: {err}");
    assert!(
        lines[..lines.len() - 1]
            .iter()
            .all(|l| l.starts_with("rootswarm: ")),
        "{err}"
    );
}

/// Runs `boot` with this kernel command line; checks code, line, and that nothing was made.
fn check_boot(cmdline: &str, conf: &[(&str, &str)], code: i32, part: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("conf")).expect("a directory");
    for (name, text) in conf {
        std::fs::write(path("conf").join(name), text).expect("a file");
    }
    std::fs::write(path("cmdline"), cmdline).expect("a file");
    let mounts = support::mounts();
    let (found, out, err) = run(agent()
        .arg("boot")
        .arg("--rootmnt")
        .arg(path("root"))
        .arg("--cmdline")
        .arg(path("cmdline"))
        .arg("--run-dir")
        .arg(path("run"))
        .arg("--conf")
        .arg(path("conf"))
        .arg("--mnt")
        .arg(path("mnt")));
    assert_eq!((found, out.as_str()), (code, ""), "{cmdline}: {err}");
    check_lines(&err, part);
    for made in ["root", "run", "mnt"] {
        assert!(!path(made).exists(), "{cmdline} left {made} behind");
    }
    assert_eq!(support::mounts(), mounts, "{cmdline} left a mount behind");
}

#[test]
fn arguments() {
    for (args, part) in [
        (&[][..], "no command given"),
        (&["fly"], "unknown command \"fly\""),
        (&["boot"], "--rootmnt DIR is missing"),
        (&["fetch", "--output", "x"], "ROOTURL is missing"),
        (&["fetch", "swarm://h/n"], "--output FILE is missing"),
        (&["status", "--colour"], "unknown option \"--colour\""),
    ] {
        let (code, out, err) = run(agent().args(args));
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}");
        assert_eq!(err.lines().count(), 1, "{err}");
        check_lines(&err, part);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [
        &["--help"][..],
        &["boot", "--help"],
        &["fetch", "-h"],
        &["status", "--help"],
    ] {
        let (code, out, err) = run(agent().args(args));
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        assert!(out.contains("usage: rootswarm-agent"), "{out}");
    }
    let (code, out, _) = run(agent().arg("--version"));
    assert_eq!((code, out.starts_with("rootswarm-agent ")), (0, true));
}

#[test]
fn rooturls() {
    let pinned = |url: &str| format!("{url}@blake3:{PIN}");
    check_fetch("", &[], 2, "rooturl= is empty");
    check_fetch("ftp://h/x", &[], 2, "no scheme that is known");
    check_fetch("https://h/x", &[], 2, "https");
    check_fetch("swarm:///x", &[], 2, "host is missing");
    check_fetch("swarm://300.0.0.1/x", &[], 2, "no IPv4 address");
    check_fetch("swarm://h:99999/x", &[], 2, "port");
    check_fetch("swarm://h", &[], 2, "names no image");
    check_fetch("swarm://h/UPPER", &[], 2, "UPPER");
    check_fetch("swarm://h/..", &[], 2, "..");
    check_fetch(&format!("swarm://h/{}", "n".repeat(65)), &[], 2, "name");
    check_fetch("swarm://h/x@blake3:1234", &[], 2, "pin");
    check_fetch(
        &pinned("swarm://h/x").replace("blake3", "md5"),
        &[],
        2,
        "pin",
    );
    check_fetch(
        "swarm://127.0.0.1/x",
        &[],
        3,
        "nothing says which image to trust",
    );
    check_fetch(
        "http://127.0.0.1:9/x",
        &["--require-verify"],
        3,
        "has no pin",
    );
    check_fetch(
        "http://127.0.0.1:9/x",
        &[],
        4,
        "cannot connect to 127.0.0.1:9",
    );
    check_fetch(
        &pinned("http://nobody.invalid/x"),
        &[],
        4,
        "host nobody.invalid",
    );
}

#[test]
fn kernel_command_lines() {
    let key = format!("ed25519:{}", "1".repeat(64));
    let other = format!("rootswarm.key=ed25519:{}", "2".repeat(64));
    let baked = [("swarm.pub", key.as_str())];
    check_boot("quiet ip=dhcp", &[], 2, "rooturl= is missing");
    check_boot("rooturl= quiet", &[], 2, "rooturl= is empty");
    check_boot("rooturl=nfs://h/x", &[], 2, "no scheme that is known");
    check_boot(
        "rooturl=swarm://h/x rootswarm.mode=fast",
        &baked,
        2,
        "overlay, ro or copy",
    );
    check_boot(
        "rooturl=swarm://h/x rootdelay=soon",
        &baked,
        2,
        "rootdelay=",
    );
    check_boot(
        "rooturl=swarm://h/x rootswarm.upload-limit=all",
        &baked,
        2,
        "bad rate",
    );
    check_boot(
        "rooturl=swarm://h/x",
        &[("agent.conf", "requireverify=1")],
        2,
        "agent.conf:1",
    );
    check_boot(
        "rooturl=swarm://h/x",
        &[],
        3,
        "nothing says which image to trust",
    );
    check_boot(
        &format!("rooturl=swarm://h/x {other}"),
        &baked,
        3,
        "never move it",
    );
    check_boot(
        &format!("rooturl=swarm://h/x {other}"),
        &[],
        3,
        "nothing says which image",
    );
    check_boot(
        "rooturl=swarm://h/x",
        &[("swarm.pub", "ed25519:0")],
        3,
        "no swarm key",
    );
    let strict = [("agent.conf", "require-verify=yes")];
    check_boot(
        "rooturl=http://h/x rootswarm.require-verify=no",
        &strict,
        3,
        "has no pin",
    );
    let unknown = "rooturl=http://127.0.0.1:9/x rootdelay=1 rootswarm.colour=red";
    check_boot(
        unknown,
        &[],
        4,
        "gave up after 1 s without progress: cannot connect",
    );
}

#[test]
fn answers_of_a_server() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/forbidden" => Reply::new("403 Forbidden", ""),
        "/broken" => Reply::new("500 Internal Server Error", ""),
        "/loop" => Reply::new("302 Found", "").header("Location: /loop"),
        "/away" => Reply::new("302 Found", "").header("Location: https://elsewhere/x"),
        "/small" => Reply::new("200 OK", "no squashfs"),
        _ => Reply::new("404 Not Found", ""),
    });
    check_fetch(&server.url("/absent"), &[], 6, "404 Not Found");
    check_fetch(&server.url("/forbidden"), &[], 3, "403 Forbidden");
    check_fetch(&server.url("/broken"), &[], 4, "500 Internal Server Error");
    check_fetch(&server.url("/loop"), &[], 4, "too many redirects");
    check_fetch(&server.url("/away"), &[], 4, "https://elsewhere/x");
    let pinned = format!("{}@blake3:{PIN}", server.url("/small"));
    check_fetch(&pinned, &[], 3, &format!("pinned is {PIN}"));
}

#[test]
fn a_status_that_is_not_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let status = |dir: &Path| run(agent().args(["status", "--run-dir"]).arg(dir));
    let (code, _, err) = status(dir.path());
    assert_eq!(code, 1);
    check_lines(&err, "was this node booted by rootswarm?");
    std::fs::write(dir.path().join("status.json"), "{").expect("a file");
    let (code, _, err) = status(dir.path());
    assert_eq!(code, 9);
    check_lines(&err, "is no status document");
}

/// The image would take the place of a device or of a directory's name.
#[test]
fn only_a_file_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("directory")).expect("a directory");
    std::fs::write(at("file"), "").expect("a file");
    std::os::unix::fs::symlink(at("file"), at("link")).expect("a link");
    std::os::unix::fs::symlink("nowhere", at("loose")).expect("a link");
    rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), 0o600.into()).expect("a fifo");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    for (output, is) in [
        (at("directory"), "a directory"),
        (at("link"), "a symbolic link"),
        (at("loose"), "a symbolic link"),
        (at("fifo"), "no regular file"),
        (at("socket"), "no regular file"),
    ] {
        let before = std::fs::symlink_metadata(&output)
            .expect("there")
            .file_type();
        let url = "http://127.0.0.1:9/image";
        let (code, _, err) = run(agent()
            .args(["fetch", url, "--timeout", "0", "--conf"])
            .arg(dir.path())
            .arg("--output")
            .arg(&output));
        let words = format!("--output {} is {is}: expected", output.display());
        assert!(code == 2 && err.contains(&words), "{code}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        let after = std::fs::symlink_metadata(&output)
            .expect("there")
            .file_type();
        assert!(before == after, "{}", output.display());
    }
}
