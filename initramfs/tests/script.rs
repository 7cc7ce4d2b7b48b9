//! The boot script's own decisions: how long it tries for a network, and what it says and does when a
//! boot gave up. Run by the shell that an initramfs has, with initramfs-tools' part left out.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The script, its settings moved into `dir`, and then `then`: what that printed.
fn run(dir: &Path, then: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("initramfs-tools/scripts/ram");
    let text = format!(
        "set -e\nram_cmdline={dir}/cmdline ram_conf={dir}/agent.conf\n. {script}\n{then}\n",
        dir = dir.display(),
        script = script.display(),
    );
    let output = Command::new("sh")
        .args(["-c", &text])
        .output()
        .expect("a shell");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{then}: {err}");
    assert_eq!(err, "", "{then}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn patience_is_the_agents() {
    for (cmdline, conf, expected) in [
        ("boot=ram", "", "180"),
        ("boot=ram ROOTDELAY=20", "", "20"),
        ("rootdelay=20 quiet", "", "20"),
        ("rootdelay=20 ROOTDELAY=30", "", "30"),
        ("ROOTDELAY=30 rootdelay=20", "", "20"),
        ("ROOTDELAY=forever", "", "forever"),
        ("ROOTDELAY=forever ROOTDELAY=7", "", "7"),
        ("ROOTDELAY=7 -- ROOTDELAY=9", "", "7"),
        ("ROOTDELAY=0", "", "0"),
        ("ROOTDELAY=2.5", "", "2"),
        // The agent says what is wrong with these.
        ("ROOTDELAY=soon", "", "180"),
        ("ROOTDELAY=", "", "180"),
        // What is baked in is the default.
        ("quiet", "# rootdelay=5\nmode=ro\nrootdelay=40\n", "40"),
        ("quiet", "rootdelay=forever\n", "forever"),
        ("ROOTDELAY=20", "rootdelay=40\n", "20"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("cmdline"), format!("{cmdline}\n")).expect("a file");
        if !conf.is_empty() {
            fs::write(dir.path().join("agent.conf"), conf).expect("a file");
        }
        let found = run(dir.path(), "ram_patience");
        assert_eq!(found.trim(), expected, "{cmdline:?} and {conf:?}");
    }
}

/// A network that comes late: waited for within patience, and without end where it is for ever.
#[test]
fn the_network_is_waited_for() {
    // Time passes with each look; the interface comes at the tenth.
    let late = "looks=0 clock=0\nquiet=y\n\
                configure_networking() { :; }\nsleep() { :; }\nlog_warning_msg() { :; }\n\
                time_elapsed() { echo \"${clock}\"; }\n\
                ram_source_netconf() { looks=$((looks + 1)); clock=$((clock + 100)); [ ${looks} -ge 10 ]; }\n\
                if ram_network; then echo up after ${looks}; else echo gave up after ${looks}; fi";
    for (cmdline, expected) in [
        ("ROOTDELAY=forever", "up after 10"),
        ("ROOTDELAY=2000", "up after 10"),
        ("ROOTDELAY=500", "gave up after 5"),
        ("quiet", "gave up after 2"),
        ("ROOTDELAY=0", "gave up after 1"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("cmdline"), cmdline).expect("a file");
        assert_eq!(run(dir.path(), late).trim(), expected, "{cmdline}");
    }
}

/// The console says what comes next, which is what initramfs-tools' panic does (`panic=`).
#[test]
fn who_gave_up_says_what_comes_next() {
    for (panic, part) in [
        ("60", "it reboots in 60 s, by panic=60, and tries again"),
        ("5", "it reboots in 5 s"),
        ("-1", "it reboots now, by panic=-1"),
        ("0", "it halts, by panic=0"),
        ("soon", "it halts, by panic=soon"),
        ("", "leave this shell (exit) for another try; with panic=60"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let then = format!(
            "panic='{panic}'\nquiet=y\nram_failure='gave up after 180 s'\n\
             panic() {{ echo \"$@\"; }}\nram_give_up"
        );
        let said = run(dir.path(), &then);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[0],
            "rootswarm: cannot mount the root: gave up after 180 s"
        );
        assert!(
            lines[1].starts_with("rootswarm: ") && lines[1].contains(part),
            "{said}"
        );
        assert_eq!(lines.len(), 2, "{said}");
    }
}
