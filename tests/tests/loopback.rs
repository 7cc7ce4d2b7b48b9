//! Seed and agents over the loopback: real QUIC, real files, real signals, no root.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rootswarm_tests::process::Process;
use rootswarm_tests::scenario::scenario;
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Agent, HTTP_PORT, Place, STOP_GRACE, Seed, SwarmError, programs};

const MB: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);
/// Far beyond what each step takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// `@blake3:HEX` of a rooturl.
fn id_of(url: &str) -> &str {
    url.rsplit_once("@blake3:").map_or("", |(_, id)| id)
}

/// Runs `rootswarm` to its end and returns what it printed.
fn rootswarm(args: &[&str], log: &Path) -> Result<String, SwarmError> {
    let mut command = Place::loopback().command(&programs()?.server);
    command.args(args);
    let mut process = Process::spawn("rootswarm", command, log)?;
    let status = process.wait(LIMIT)?;
    assert!(
        status.success(),
        "rootswarm {args:?}: {status}: {}",
        process.tail(20)
    );
    Ok(process.output()?)
}

#[test]
fn every_copy_is_the_image_that_b3sum_names_and_most_of_it_came_from_peers() {
    scenario(200 * MB, |directory| {
        const AGENTS: u64 = 4;
        let image = directory.join("source");
        source::write(&image, 12 * MB, 1)?;
        // Published while no server runs, then served from the state directory alone.
        let state = directory.join("state");
        let state = state.to_str().ok_or("path")?;
        let source = image.to_str().ok_or("path")?;
        let publish = ["publish", "--quiet", "--state", state, "debian", source];
        let printed = rootswarm(&publish, &directory.join("publish.log"))?;
        let id = printed
            .lines()
            .find(|line| line.starts_with("swarm://"))
            .map(id_of);
        let b3sum = blake3::hash(&std::fs::read(&image)?).to_hex();
        assert_eq!(id, Some(b3sum.as_str()), "{printed}");
        // The tool itself: `cargo xtask test` installs it.
        let output = Command::new("b3sum").arg("--no-names").arg(&image).output();
        let output = output.expect("cannot run b3sum: apt-get install b3sum");
        assert_eq!(String::from_utf8(output.stdout)?.trim(), b3sum.as_str());
        // Nothing is served from the source.
        std::fs::write(&image, "overwritten")?;

        let mut seed = Seed::start(
            Place::loopback(),
            directory,
            &[],
            &["--upload-limit", "24Mbit"],
        )?;
        let url = seed.url("debian")?;
        let mut agents = Vec::new();
        for number in 0..AGENTS {
            let label = format!("node{number}");
            agents.push(Agent::fetch(
                Place::loopback(),
                directory,
                &label,
                &url,
                &["--stay"],
            )?);
        }
        for agent in &mut agents {
            agent.wait_complete(LIMIT)?;
        }
        for agent in &agents {
            let found = blake3::hash(&std::fs::read(agent.output())?).to_hex();
            assert_eq!(found, b3sum, "{}", agent.process.label());
        }
        let copies = seed.copies_sent("debian")?;
        assert!(
            (1.0..2.0).contains(&copies),
            "the seed sent {copies} copies to {AGENTS} nodes"
        );
        // The documents are written a moment after the file.
        let mut from_peers = 0;
        for agent in &mut agents {
            agent.wait_until("all bytes in the status", LIMIT, |agent| {
                Ok(agent.count("bytes_have")? == 12 * MB)
            })?;
            from_peers += agent.count("bytes_from_peers")?;
        }
        assert!(
            from_peers > (AGENTS - 2) * 12 * MB,
            "only {from_peers} bytes came from peers"
        );
        Ok(())
    });
}

#[test]
fn an_image_published_again_ends_no_download_and_starts_new_ones() {
    scenario(100 * MB, |directory| {
        let (old, new) = (directory.join("old"), directory.join("new"));
        source::write(&old, 6 * MB, 1)?;
        source::write(&new, 5 * MB, 2)?;
        let options = ["--upload-limit", "16Mbit"];
        let mut seed = Seed::start(Place::loopback(), directory, &[("debian", &old)], &options)?;
        let old_url = seed.url("debian")?;
        let mut under_way = Agent::fetch(Place::loopback(), directory, "under-way", &old_url, &[])?;
        under_way.wait_until("first chunk", LIMIT, |agent| {
            Ok(agent.count("bytes_have")? > 0)
        })?;

        let state = seed.state().to_str().ok_or("path")?.to_owned();
        let new_path = new.to_str().ok_or("path")?;
        let publish = ["publish", "--quiet", "--state", &state, "debian", new_path];
        let printed = rootswarm(&publish, &directory.join("publish.log"))?;
        let new_id = blake3::hash(&std::fs::read(&new)?).to_hex();
        assert!(printed.contains(new_id.as_str()), "{printed}");
        assert!(
            !under_way.is_complete(),
            "the download was to be under way; make it slower"
        );

        // The running server picks it up and says so, and a node that asks now gets it.
        seed.process
            .wait_for_output("ready line of the new image", LIMIT, |output| {
                let mut lines = output
                    .lines()
                    .filter(|line| line.starts_with("ready swarm://"));
                lines
                    .any(|line| line.ends_with(new_id.as_str()))
                    .then_some(())
            })?;
        let new_url = seed.url("debian")?;
        let mut after = Agent::fetch(Place::loopback(), directory, "after", &new_url, &[])?;
        after.wait_complete(LIMIT)?;
        assert!(source::same(&new, after.output())?);
        under_way.wait_complete(LIMIT)?;
        assert!(source::same(&old, under_way.output())?);
        for agent in [&mut after, &mut under_way] {
            assert_eq!(
                agent.process.wait(LIMIT)?.code(),
                Some(0),
                "without --stay it ends"
            );
        }
        Ok(())
    });
}

/// What `rootswarm pxe` wrote yesterday names yesterday's image, which is kept: it boots by each way that there
/// is, with the swarm's key on the node and without.
#[test]
fn yesterdays_pin_is_good_over_http_too() {
    scenario(100 * MB, |directory| {
        let images = [6, 5, 4].map(|mb| (directory.join(format!("of-{mb}")), mb * MB));
        for (path, length) in &images {
            source::write(path, *length, *length)?;
        }
        let [oldest, old, new] = &images.map(|(path, _)| path);
        let mut seed = Seed::start(Place::loopback(), directory, &[("debian", oldest)], &[])?;
        let state = seed.state().to_str().ok_or("path")?.to_owned();
        let log = directory.join("command.log");
        let key = rootswarm(&["key", "--state", &state], &log)?;
        for later in [old, new] {
            let path = later.to_str().ok_or("path")?;
            let publish = ["publish", "--quiet", "--state", &state, "debian", path];
            rootswarm(&publish, &directory.join("publish.log"))?;
        }
        let swarm = seed.url("debian")?;
        let server = swarm
            .strip_prefix("swarm://")
            .and_then(|rest| rest.split(['/', ':']).next());
        let server = server.ok_or("an address")?;
        let http_port = HTTP_PORT.to_string();
        for (number, wanted) in [oldest, old, new].into_iter().enumerate() {
            let pin = format!("@blake3:{}", blake3::hash(&std::fs::read(wanted)?).to_hex());
            // Nobody listens at the second port: HTTP is all that is left of the swarm.
            let by_fallback = format!("swarm://{server}:9/debian{pin}");
            let by_http = format!("http://{server}:{HTTP_PORT}/images/debian{pin}");
            let keyed: &[&str] = &["--key", key.trim()];
            let cases = [(&by_fallback, keyed), (&by_http, keyed), (&by_http, &[])];
            for (case, (url, words)) in cases.into_iter().enumerate() {
                let output = directory.join(format!("fetched-{number}-{case}"));
                let mut command = Place::loopback().command(&programs()?.agent);
                command.args(["fetch", url, "--timeout", "30", "--http-port", &http_port]);
                command
                    .args(words)
                    .arg("--conf")
                    .arg(directory)
                    .arg("--output")
                    .arg(&output);
                let mut process = Process::spawn("agent", command, &directory.join("agent.log"))?;
                let status = process.wait(LIMIT)?;
                assert!(status.success(), "{url} {words:?}: {}", process.tail(20));
                assert!(source::same(wanted, &output)?, "{url} {words:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_seed_that_comes_back_is_found_again() {
    scenario(100 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, 12 * MB, 1)?;
        let place = Place::loopback();
        let options = ["--upload-limit", "8Mbit"];
        let mut seed = Seed::start(place, directory, &[("debian", &image)], &options)?;
        let url = seed.url("debian")?;
        let mut agent = Agent::fetch(Place::loopback(), directory, "node", &url, &[])?;
        agent.wait_until("some of it", LIMIT, |agent| {
            Ok(agent.count("bytes_have")? > MB)
        })?;

        // It may use its grace of some seconds to send on; the image takes longer than that.
        let asked = Instant::now();
        let status = seed.process.terminate(STOP_GRACE)?;
        assert_eq!(
            status.code(),
            Some(0),
            "SIGTERM is how it is stopped: {}",
            seed.process.tail(5)
        );
        assert!(asked.elapsed() < STOP_GRACE, "it had to be killed");
        assert!(
            !agent.is_complete(),
            "the seed was to be stopped before the end; make it slower"
        );
        let held = agent.count("bytes_have")?;
        std::thread::sleep(2 * SECOND);
        assert_eq!(
            agent.process.try_wait()?,
            None,
            "it gave up: {}",
            agent.process.tail(5)
        );

        let mut seed = Seed::start(place, directory, &[], &[])?;
        assert_eq!(seed.url("debian")?, url, "the state directory holds all");
        agent.wait_complete(LIMIT)?;
        assert!(source::same(&image, agent.output())?);
        // What it held it kept: the second seed sent the rest only.
        let sent = seed.copies_sent("debian")? * 12.0 * MB as f64;
        let chunk_slack = 2.0 * MB as f64;
        assert!(
            sent <= (12 * MB - held) as f64 + chunk_slack,
            "{held} held, {sent} sent again"
        );
        Ok(())
    });
}

/// Whichever way the node came first: the other is open to it with the same one-time token, and to nobody else.
#[test]
fn a_one_time_token_is_good_by_swarm_and_by_http() {
    scenario(100 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, 12 * MB, 1)?;
        let options = ["--admission", "token", "--upload-limit", "8Mbit"];
        let place = Place::loopback();
        let mut seed = Seed::start(place, directory, &[("debian", &image)], &options)?;
        let url = seed.url("debian")?;
        let state = seed.state().display().to_string();
        let asked = |args: &[&str], log: &str| {
            let args = [args, &["--state", &state]].concat();
            rootswarm(&args, &directory.join(log))
        };
        let by_swarm = asked(&["token", "create"], "by-swarm.log")?;
        let by_http = asked(&["token", "create"], "by-http.log")?;
        let key = asked(&["key"], "key.log")?;
        let fetch = |label: &str, token: &str| {
            let options = ["--key", key.trim(), "--token", token.trim(), "--stay"];
            Agent::fetch(Place::loopback(), directory, label, &url, &options)
        };
        let some = |agent: &mut Agent, from: &str| {
            agent.wait_until("some of it", LIMIT, |agent| Ok(agent.count(from)? > MB))
        };
        let mut first = fetch("by-swarm", &by_swarm)?;
        some(&mut first, "bytes_from_seed")?;
        seed.process.terminate(STOP_GRACE)?;

        let mut seed = Seed::start_filtered(place, directory, &options)?;
        let mut second = fetch("by-http", &by_http)?;
        first.wait_complete(LIMIT)?;
        assert!(first.count("bytes_from_http")? > MB);
        some(&mut second, "bytes_from_http")?;
        first.process.kill()?;
        seed.process.terminate(STOP_GRACE)?;

        let seed = Seed::start(place, directory, &[], &options)?;
        second.wait_until("it to join", LIMIT, |agent| {
            Ok(agent.status()?["seed_connected"] == true)
        })?;
        second.wait_complete(LIMIT)?;
        assert!(source::same(&image, second.output())?);
        let mut third = fetch("another", &by_http)?;
        let refused = |output: &str| output.contains("used up").then_some(());
        third.process.wait_for_output("a refusal", LIMIT, refused)?;
        drop(seed);
        Ok(())
    });
}

#[test]
fn a_seed_sends_no_faster_than_its_limit() {
    scenario(100 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, 6 * MB, 1)?;
        let options = ["--upload-limit", "16Mbit"];
        let mut seed = Seed::start(
            Place::loopback(),
            directory,
            &[("debian", &image)],
            &options,
        )?;
        let url = seed.url("debian")?;
        let start = Instant::now();
        let mut agent = Agent::fetch(Place::loopback(), directory, "node", &url, &[])?;
        agent.wait_complete(LIMIT)?;
        // 6 MB at 2 MB/s are 3 s; a limiter may let a burst through first.
        let took_s = start.elapsed().as_secs_f64();
        assert!(
            (2.4..6.0).contains(&took_s),
            "{took_s} s instead of about 3 s"
        );
        assert!(source::same(&image, agent.output())?);
        Ok(())
    });
}

#[test]
fn an_agent_that_stays_serves_until_it_is_told_to_end() {
    scenario(100 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, 3 * MB, 1)?;
        let mut seed = Seed::start(Place::loopback(), directory, &[("debian", &image)], &[])?;
        let url = seed.url("debian")?;
        let mut agent = Agent::fetch(Place::loopback(), directory, "node", &url, &["--stay"])?;
        agent.wait_complete(LIMIT)?;
        std::thread::sleep(SECOND);
        assert_eq!(agent.process.try_wait()?, None, "it stays");
        let asked = Instant::now();
        let status = agent.process.terminate(STOP_GRACE)?;
        assert_eq!(status.code(), Some(0), "{}", agent.process.tail(5));
        // More would delay a poweroff.
        assert!(asked.elapsed() < 2 * SECOND, "{:?}", asked.elapsed());
        assert!(
            source::same(&image, agent.output())?,
            "the image stays where it is"
        );
        Ok(())
    });
}
