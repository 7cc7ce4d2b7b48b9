//! Several seeds, and what a node holds them to: the real programs over the loopback.

use std::path::Path;
use std::time::Duration;

use rootswarm_tests::process::Process;
use rootswarm_tests::scenario::scenario;
use rootswarm_tests::source;
use rootswarm_tests::swarm::{Agent, Place, SWARM_PORT, Seed, SwarmError};

const MB: u64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(60);

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// A second seed in `directory`, with the key of `first` and all that it has.
fn mirror(first: &Seed, directory: &Path, options: &[&str]) -> Fallible<Seed> {
    std::fs::create_dir_all(directory.join("state"))?;
    std::fs::copy(
        first.state().join("swarm.key"),
        directory.join("state/swarm.key"),
    )?;
    let of = format!("swarm://{}", first.address);
    let options = [&["--mirror", &of], options].concat();
    Ok(Seed::start(Place::loopback(), directory, &[], &options)?)
}

#[test]
fn a_download_goes_on_when_the_first_of_two_seeds_is_destroyed() {
    scenario(100 * MB, |directory| {
        let image = directory.join("source");
        source::write(&image, 8 * MB, 1)?;
        let slow = ["--upload-limit", "12Mbit"];
        let published = [("debian", image.as_path())];
        let mut first = Seed::start(Place::loopback(), directory, &published, &slow)?;
        let second = mirror(&first, &directory.join("second"), &slow)?;
        let host = first.address.to_string();
        let both = format!("{host}:{SWARM_PORT},{}", second.address);
        let url = first.url("debian")?;
        let url = url
            .replace(&format!("{host}:{SWARM_PORT}"), &host)
            .replace(&host, &both);
        let mut under_way = Agent::fetch(Place::loopback(), directory, "under-way", &url, &[])?;
        under_way.wait_until("some of it", LIMIT, |agent| {
            Ok(agent.count("bytes_have")? > MB)
        })?;
        // As by SIGKILL, and its disk is gone.
        let state = first.state().to_owned();
        drop(first);
        std::fs::remove_dir_all(state)?;
        assert!(
            !under_way.is_complete(),
            "it was to be under way; make it slower"
        );
        let mut after = Agent::fetch(Place::loopback(), directory, "after", &url, &[])?;
        for agent in [&mut under_way, &mut after] {
            agent.wait_complete(LIMIT)?;
            assert!(
                source::same(&image, agent.output())?,
                "{}",
                agent.process.label()
            );
        }
        Ok(())
    });
}

/// Runs `rootswarm-agent fetch` to its end: its code and its last line.
fn fetch(
    directory: &Path,
    label: &str,
    url: &str,
    more: &[&str],
) -> Result<(Option<i32>, String), SwarmError> {
    let options = [&["--timeout", "2"], more].concat();
    let mut agent = Agent::fetch(Place::loopback(), directory, label, url, &options)?;
    let status = agent.process.wait(LIMIT)?;
    Ok((status.code(), last_line(&agent.process)))
}

fn last_line(process: &Process) -> String {
    process.tail(1).trim_end().to_owned()
}

#[test]
fn one_thing_removed_or_forged_at_a_time() {
    scenario(50 * MB, |directory| {
        let (image, other) = (directory.join("source"), directory.join("other"));
        source::write(&image, 2 * MB, 1)?;
        source::write(&other, MB, 2)?;
        let published = [("debian", image.as_path()), ("other", other.as_path())];
        let mut seed = Seed::start(Place::loopback(), directory, &published, &[])?;
        let at = format!("{}:{SWARM_PORT}", seed.address);
        let key = std::fs::read_to_string(seed.state().join("swarm.pub"))?;
        let key = key.trim();
        std::fs::create_dir_all(directory.join("foreign"))?;
        let foreign = Seed::start(
            Place::loopback(),
            &directory.join("foreign"),
            &published[..1],
            &[],
        )?;
        let foreign_at = format!("{}:{SWARM_PORT}", foreign.address);
        let foreign_key = std::fs::read_to_string(foreign.state().join("swarm.pub"))?;
        let foreign_key = foreign_key.trim();
        let pin = |url: &str| url.rsplit_once(':').map_or("", |(_, pin)| pin).to_owned();
        let (right, wrong) = (pin(&seed.url("debian")?), pin(&seed.url("other")?));
        let nobodys = "0123456789abcdef".repeat(4);
        let url = format!("swarm://{at}/debian");
        let cases: Vec<(&str, String, Vec<&str>, i32, String)> = vec![
            (
                "neither pin nor key",
                url.clone(),
                vec![],
                3,
                format!(
                    "nothing says which image to trust: {url} has no pin and {}/swarm.pub is \
                     missing; append @blake3:HEX to the rooturl or bake the swarm key into the initrd",
                    directory.join("no-anchor/no-conf").display()
                ),
            ),
            (
                "a pin of no image of theirs",
                format!("{url}@blake3:{nobodys}"),
                vec![],
                3,
                format!(
                    "the pin does not match: {nobodys} was asked for, the seed {at} has {right}"
                ),
            ),
            (
                "another image's pin beside the key",
                format!("{url}@blake3:{wrong}"),
                vec!["--key", key],
                3,
                format!("the pin does not match: {wrong} was asked for, the seed {at} has {right}"),
            ),
            (
                "another key",
                url.clone(),
                vec!["--key", foreign_key],
                3,
                format!(
                    "the seed {at} is not trusted: wrong swarm key: expected {foreign_key}, found {key}"
                ),
            ),
            (
                "another key beside the right pin",
                format!("{url}@blake3:{right}"),
                vec!["--key", foreign_key],
                3,
                format!(
                    "the seed {at} is not trusted: wrong swarm key: expected {foreign_key}, found {key}"
                ),
            ),
            (
                "another installation's seed that has the very image",
                format!("swarm://{foreign_at}/debian@blake3:{right}"),
                vec!["--key", key],
                3,
                format!(
                    "the seed {foreign_at} is not trusted: wrong swarm key: expected {key}, found {foreign_key}"
                ),
            ),
        ];
        for (number, (what, url, more, code, line)) in cases.into_iter().enumerate() {
            let label = match number {
                0 => "no-anchor".to_owned(),
                number => format!("case{number}"),
            };
            // A server's answer is what ends it when it was the answer for all of its patience.
            let (found, said) = fetch(directory, &label, &url, &more)?;
            assert_eq!(found, Some(code), "{what}: {said}");
            assert!(
                said.starts_with("rootswarm-agent: ") && said.contains(&line),
                "{what}: expected `{line}` in: {said}"
            );
            assert!(!directory.join(&label).join("image").exists(), "{what}");
        }
        // In front of the right one, that seed does no harm.
        let both = format!("swarm://{foreign_at},{at}/debian");
        assert_eq!(fetch(directory, "both", &both, &["--key", key])?.0, Some(0));
        assert!(source::same(&image, &directory.join("both/image"))?);

        // A tag that is another name's, and one that is signed by another key, are not served.
        let tags = seed.state().join("tags");
        let forged = foreign.state().join("tags/debian");
        let refused = format!(
            "the seed {at} refused: the seed has no image of that name (see `rootswarm images` there)"
        );
        for (number, tag) in [tags.join("other"), forged].into_iter().enumerate() {
            let swapped = tags.join("debian.new");
            std::fs::copy(tag, &swapped)?;
            // Not a name of an image for the moment that it is there.
            std::fs::rename(&swapped, tags.join("debian"))?;
            // It looks every second.
            std::thread::sleep(Duration::from_secs(3));
            let label = format!("tag{number}");
            let (code, said) = fetch(directory, &label, &url, &["--key", key])?;
            assert_eq!(code, Some(6), "{said}");
            assert!(said.contains(&refused), "{said}");
        }
        Ok(())
    });
}
