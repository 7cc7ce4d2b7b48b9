//! The last landed version beside this one: its state directory, its nodes and its mirrors go on working,
//! whichever side is upgraded first. Its programs are built from this repository's history
//! (`last_landed`), and none of them is changed.

use std::path::Path;
use std::time::Duration;

use rootswarm_tests::last_landed;
use rootswarm_tests::process::Process;
use rootswarm_tests::scenario::scenario;
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Agent, Place, STOP_GRACE, SWARM_PORT, Seed, programs};
use rootswarm_tests::vm::binaries::Binaries;

const MB: u64 = 1_000_000;
/// Far beyond what each step takes on an idle machine.
const LIMIT: Duration = Duration::from_secs(90);

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs `rootswarm` of some build to its end: what it printed.
fn rootswarm(of: &Binaries, state: &Path, args: &[&str], log: &Path) -> Fallible<String> {
    let mut command = Place::loopback().command(&of.server);
    command.args(args).arg("--state").arg(state);
    let mut process = Process::spawn("rootswarm", command, log)?;
    let status = process.wait(LIMIT)?;
    let output = process.output()?;
    assert!(status.success(), "rootswarm {args:?}: {status}: {output}");
    Ok(output)
}

fn has_the_image(agent: &mut Agent, image: &Path) -> Fallible<()> {
    agent.wait_complete(LIMIT)?;
    assert!(
        source::same(image, agent.output())?,
        "{} has another image",
        agent.process.label()
    );
    Ok(())
}

/// The rooturl without its pin: what the name means now.
fn unpinned(url: &str) -> &str {
    url.split('@').next().unwrap_or(url)
}

#[test]
fn a_state_directory_of_the_last_version_is_served_as_it_was() {
    let last = last_landed::programs().expect("the last landed version");
    let now = programs().expect("the programs under test");
    // Three sizes: one chunk, many, and not a multiple of anything.
    for (round, bytes) in [60_000, 4 * MB, 7 * MB + 13].into_iter().enumerate() {
        scenario(100 * MB, |directory| {
            let (first, second) = (directory.join("first"), directory.join("second"));
            source::write(&first, bytes, round as u64)?;
            source::write(&second, bytes / 2 + 1, 100 + round as u64)?;
            let published = [("debian", first.as_path()), ("other", second.as_path())];
            let tokens = ["--admission", "token"];
            let place = Place::loopback();
            let log = directory.join("commands.log");

            let mut seed = Seed::start_of(last, place, directory, &published, &tokens)?;
            let urls = [seed.url("debian")?, seed.url("other")?];
            let state = seed.state().to_owned();
            let create = ["token", "create", "--reusable", "--lifetime", "1h"];
            let printed = rootswarm(last, &state, &create, &log)?;
            let token = printed.lines().last().unwrap_or_default().trim().to_owned();
            // An epoch that has moved on, and a list of revocations with a version.
            rootswarm(last, &state, &["revoke", "--all"], &log)?;
            let key = std::fs::read_to_string(state.join("swarm.pub"))?;
            seed.process.terminate(STOP_GRACE)?;

            let mut seed = Seed::start_of(now, place, directory, &[], &tokens)?;
            assert_eq!([seed.url("debian")?, seed.url("other")?], urls);
            assert_eq!(std::fs::read_to_string(state.join("swarm.pub"))?, key);
            let with_token = ["--token", token.as_str()];
            for (label, build) in [("node-of-last", last), ("node-of-now", now)] {
                let place = Place::loopback();
                let url = urls[0].as_str();
                let mut agent = Agent::fetch_of(build, place, directory, label, url, &with_token)?;
                has_the_image(&mut agent, &first)?;
            }
            // Who has no token stays out, as before.
            let options = ["--timeout", "2"];
            let place = Place::loopback();
            let mut stranger =
                Agent::fetch_of(last, place, directory, "stranger", &urls[0], &options)?;
            assert!(!stranger.process.wait(LIMIT)?.success());
            assert!(!stranger.is_complete());
            // What the last version published can be replaced and removed.
            let listed = rootswarm(now, &state, &["images"], &log)?;
            assert!(
                listed.contains("debian") && listed.contains("other"),
                "{listed}"
            );
            rootswarm(now, &state, &["remove", "other"], &log)?;
            Ok(())
        });
    }
}

#[test]
fn nodes_of_both_versions_are_one_swarm_with_a_seed_of_either() {
    let last = last_landed::programs().expect("the last landed version");
    let now = programs().expect("the programs under test");
    for (round, (seed_of, first, then)) in [(now, last, now), (now, now, last), (last, now, last)]
        .into_iter()
        .enumerate()
    {
        scenario(200 * MB, |directory| {
            let image = directory.join("source");
            source::write(&image, 8 * MB, round as u64)?;
            let published = [("debian", image.as_path())];
            // One copy takes it 5 s: what comes sooner, or twice, came from nodes.
            let limit = ["--upload-limit", "12Mbit"];
            let mut seed =
                Seed::start_of(seed_of, Place::loopback(), directory, &published, &limit)?;
            let url = seed.url("debian")?;
            let mut agents = Vec::new();
            for (number, build) in [first, then, first, then].into_iter().enumerate() {
                let label = format!("node-{number}");
                let place = Place::loopback();
                let stay = ["--stay"];
                agents.push(Agent::fetch_of(
                    build, place, directory, &label, &url, &stay,
                )?);
            }
            for agent in &mut agents {
                has_the_image(agent, &image)?;
            }
            // Neither version fetched all from the seed: they gave to each other.
            for pair in [[0, 2], [1, 3]] {
                let mut from_peers = 0;
                for number in pair {
                    from_peers += agents[number].count("bytes_from_peers")?;
                }
                assert!(from_peers > 4 * MB, "round {round}, {pair:?}: {from_peers}");
            }
            assert!(seed.copies_sent("debian")? < 3.0);
            Ok(())
        });
    }
}

#[test]
fn a_seed_is_upgraded_while_nodes_of_the_last_version_fetch() {
    let last = last_landed::programs().expect("the last landed version");
    let now = programs().expect("the programs under test");
    // And back: an upgrade that is regretted.
    for (from, to) in [(last, now), (now, last)] {
        scenario(200 * MB, |directory| {
            let image = directory.join("source");
            source::write(&image, 6 * MB, 1)?;
            let published = [("debian", image.as_path())];
            let place = Place::loopback();
            let limit = ["--upload-limit", "8Mbit"];
            let mut seed = Seed::start_of(from, place, directory, &published, &limit)?;
            let url = seed.url("debian")?;
            let mut agents = Vec::new();
            for (label, build) in [("last-0", last), ("last-1", last), ("now", now)] {
                let place = Place::loopback();
                agents.push(Agent::fetch_of(build, place, directory, label, &url, &[])?);
            }
            agents[0].wait_until("some of it", LIMIT, |agent| {
                Ok(agent.count("bytes_have")? > MB / 2)
            })?;
            seed.process.kill()?;
            assert!(agents.iter().any(|agent| !agent.is_complete()));
            let mut seed = Seed::start_of(to, place, directory, &[], &limit)?;
            assert_eq!(seed.url("debian")?, url);
            for agent in &mut agents {
                has_the_image(agent, &image)?;
            }
            Ok(())
        });
    }
}

#[test]
fn seed_and_mirror_are_upgraded_in_either_order() {
    let last = last_landed::programs().expect("the last landed version");
    let now = programs().expect("the programs under test");
    for (first_of, second_of) in [(last, now), (now, last), (now, now)] {
        scenario(100 * MB, |directory| {
            let image = directory.join("source");
            source::write(&image, 3 * MB, 1)?;
            let published = [("debian", image.as_path())];
            let place = Place::loopback();
            let mut first = Seed::start_of(first_of, place, directory, &published, &[])?;
            let url = first.url("debian")?;
            let second_directory = directory.join("second");
            std::fs::create_dir_all(second_directory.join("state"))?;
            let key = second_directory.join("state/swarm.key");
            std::fs::copy(first.state().join("swarm.key"), key)?;
            let of = format!("swarm://{}", first.address);
            let place = Place::loopback();
            let mirror = ["--mirror", &of];
            let mut second = Seed::start_of(second_of, place, &second_directory, &[], &mirror)?;
            let second_url = second.url("debian")?;
            assert_eq!(second_url.rsplit('@').next(), url.rsplit('@').next());
            first.process.kill()?;
            // By name, held to the key: what the mirror says of it counts.
            let key = second.state().join("swarm.pub");
            let key = std::fs::read_to_string(key)?;
            for (label, build) in [("last", last), ("now", now)] {
                let pinned = second_url.as_str();
                let place = Place::loopback();
                let mut agent = Agent::fetch_of(
                    build,
                    place,
                    directory,
                    &format!("{label}-pin"),
                    pinned,
                    &[],
                )?;
                has_the_image(&mut agent, &image)?;
                let conf = directory.join(format!("{label}-key/no-conf"));
                std::fs::create_dir_all(&conf)?;
                std::fs::write(conf.join("swarm.pub"), &key)?;
                let named = unpinned(pinned);
                let place = Place::loopback();
                let mut agent =
                    Agent::fetch_of(build, place, directory, &format!("{label}-key"), named, &[])?;
                has_the_image(&mut agent, &image)?;
            }
            assert!(
                second_url.contains(&format!("{}:{SWARM_PORT}", second.address))
                    || second_url.contains(&second.address.to_string())
            );
            Ok(())
        });
    }
}
