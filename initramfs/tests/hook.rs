//! The hook that builds an initrd, as initramfs-tools runs it, in a directory of its own: what the agent
//! would refuse at boot is refused here, with the same words.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{agent, run};

/// The hook with its paths moved into `dir`.
fn build(dir: &Path) -> (i32, String) {
    let own = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/initramfs-tools/hooks/rootswarm"
    );
    let hook = fs::read_to_string(own).expect("the hook");
    let conf = dir.join("conf").display().to_string();
    let hook = hook
        .replace("/etc/rootswarm", "@CONF@")
        .replace("${DESTDIR}@CONF@", "${DESTDIR}/etc/rootswarm")
        .replace("${DESTDIR:?}@CONF@", "${DESTDIR}/etc/rootswarm")
        .replace("@CONF@", &conf)
        .replace(
            "/usr/sbin/rootswarm-agent /usr/local/sbin/rootswarm-agent",
            env!("CARGO_BIN_EXE_rootswarm-agent"),
        )
        .replace(
            "/usr/share/initramfs-tools/hook-functions",
            &dir.join("functions").display().to_string(),
        );
    let functions = "copy_exec() { mkdir -p \"${DESTDIR}$(dirname \"$2\")\" && cp \"$1\" \"${DESTDIR}$2\"; }\n\
                     manual_add_modules() { :; }\nmodinfo() { :; }\n";
    fs::write(dir.join("functions"), functions).expect("a file");
    let dest = dir.join("dest");
    fs::create_dir_all(&dest).expect("a directory");
    let output = Command::new("sh")
        .args(["-c", &hook])
        .env("DESTDIR", &dest)
        .env("version", "6.1.0")
        .output()
        .expect("a shell");
    let text = String::from_utf8(output.stderr).expect("text");
    (output.status.code().unwrap_or(-1), text)
}

const KEY: &str = "ed25519:1111111111111111111111111111111111111111111111111111111111111111";

#[test]
fn what_the_agent_would_refuse_is_not_built_in() {
    // swarm.pub, agent.conf, and what is said about them; nothing is fine.
    let cases: &[(Option<&str>, Option<&str>, &str)] = &[
        (None, None, ""),
        (Some(KEY), None, ""),
        (Some(KEY), Some("mode=ro\n# a remark\n"), ""),
        (Some(""), None, "swarm.pub is empty"),
        (Some("\n \n"), None, "swarm.pub is empty"),
        (
            Some("rootswarm: no such file\n"),
            None,
            "swarm.pub: no swarm key",
        ),
        (Some(&KEY[..40]), None, "swarm.pub: no swarm key"),
        (
            None,
            Some("requireverify=yes"),
            "agent.conf:1: unknown setting",
        ),
        (
            Some(KEY),
            Some("mode=ro\nmode=fast"),
            "agent.conf:2: mode=\"fast\"",
        ),
        (
            Some(KEY),
            Some("serve"),
            "agent.conf:1: \"serve\" is not a key=value line",
        ),
    ];
    for (key, conf, refusal) in cases {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join("conf").join(name);
        fs::create_dir(dir.path().join("conf")).expect("a directory");
        for (name, text) in [("swarm.pub", key), ("agent.conf", conf)] {
            if let Some(text) = text {
                fs::write(at(name), text).expect("a file");
            }
        }
        let (code, said) = build(dir.path());
        // What a boot with the same files says.
        let cmdline = dir.path().join("cmdline");
        fs::write(&cmdline, "rooturl=http://127.0.0.1:1/x rootdelay=0.1").expect("a file");
        let (_, _, boots) = run(agent()
            .args(["boot", "--rootmnt", "/nowhere", "--run-dir"])
            .arg(dir.path().join("run"))
            .arg("--cmdline")
            .arg(&cmdline)
            .arg("--conf")
            .arg(dir.path().join("conf")));
        if refusal.is_empty() {
            assert_eq!(code, 0, "{key:?} {conf:?}: {said}");
            assert!(
                !boots.contains("swarm.pub") && !boots.contains("agent.conf"),
                "{boots}"
            );
            for (name, text) in [("swarm.pub", key), ("agent.conf", conf)] {
                let built = dir.path().join("dest/etc/rootswarm").join(name);
                assert_eq!(built.exists(), text.is_some(), "{name}");
            }
            assert_eq!(
                said.contains("swarm.pub is missing"),
                key.is_none(),
                "{said}"
            );
        } else {
            assert_eq!(code, 1, "{key:?} {conf:?}: {said}");
            let place = dir.path().join("conf").display().to_string();
            assert!(said.starts_with("E: rootswarm: "), "{said}");
            assert!(said.contains(&format!("{place}/{refusal}")), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(boots.contains(&format!("{place}/{refusal}")), "{boots}");
        }
    }
}

/// A link that leads nowhere is no file that is missing: somebody meant it to be there.
#[test]
fn a_link_that_leads_nowhere_is_not_passed_over() {
    for name in ["swarm.pub", "agent.conf"] {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("conf")).expect("a directory");
        let link = dir.path().join("conf").join(name);
        std::os::unix::fs::symlink("/nowhere/at/all", &link).expect("a link");
        let (code, said) = build(dir.path());
        assert_eq!(code, 1, "{said}");
        let expected = format!("E: rootswarm: cannot read {}", link.display());
        assert!(said.starts_with(&expected), "{said}");
    }
}
