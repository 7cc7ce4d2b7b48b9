//! What happens to files at the seed: sources that change, copies that are damaged, names that are
//! published again, a disk that is full.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use super::{Drill, Failure, Fault, Outcome};
use crate::network::{Network, all_finish, wait_for_share};
use crate::process::Process;
use crate::source;
use crate::swarm::{Agent, Place, STOP_GRACE, Seed, programs};

const DRILL: Drill = Drill {
    nodes: 3,
    node_mbit: Some(20),
    seed_mbit: Some(20),
    image_bytes: 8_000_000,
};
const LIMIT: Duration = Duration::from_secs(120);
/// The agent's exit code for an image that the seed does not serve.
const NO_SUCH_IMAGE: i32 = 6;

pub(super) const SOURCE_REPLACED: Fault = Fault {
    name: "disk: source replaced while served",
    need_bytes: DRILL.need_bytes() + DRILL.image_bytes,
    bound: None,
    inject: source_replaced,
};

pub(super) const COPY_DAMAGED: Fault = Fault {
    name: "disk: published copies damaged",
    need_bytes: 60_000_000,
    bound: None,
    inject: copy_damaged,
};

pub(super) const PUBLISHED_IN_A_LOOP: Fault = Fault {
    name: "disk: published in a loop",
    need_bytes: 16 * DRILL.image_bytes,
    bound: None,
    inject: published_in_a_loop,
};

pub(super) const STATE_FULL: Fault = Fault {
    name: "disk: state full",
    need_bytes: 60_000_000,
    bound: None,
    inject: state_full,
};

/// `rootswarm --state STATE WORDS…`: how it ended, and what it said.
pub(super) fn rootswarm(
    state: &Path,
    words: &[&str],
    log: &Path,
) -> Result<(ExitStatus, String), Failure> {
    let mut command = Place::loopback().command(&programs()?.server);
    command.arg("--state").arg(state).args(words);
    // A log of its own for each: what an earlier one said is not this one's.
    let _ = fs::remove_file(log);
    let mut process = Process::spawn("rootswarm", command, log)?;
    let status = process.wait(LIMIT)?;
    Ok((status, process.output()?))
}

pub(super) fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| "a path is not UTF-8".into())
}

/// The source is overwritten, then cut off, then another file takes its place, at three moments of a
/// download. Who comes afterwards gets the published image as well.
fn source_replaced(directory: &Path) -> Result<Outcome, Failure> {
    let mut running = DRILL.begin(directory, |_| Ok(()))?;
    let kept = directory.join("kept");
    fs::copy(&running.image, &kept)?;
    let path = std::mem::replace(&mut running.image, kept);
    let other = directory.join("other");
    source::write(&other, DRILL.image_bytes, 2)?;
    type Change = fn(&Path, &Path) -> std::io::Result<()>;
    let changes: [(f64, Change); 3] = [
        (0.1, |path, other| {
            let mut file = OpenOptions::new().write(true).open(path)?;
            std::io::copy(&mut File::open(other)?, &mut file).map(drop)
        }),
        (0.3, |path, _| {
            OpenOptions::new().write(true).open(path)?.set_len(1000)
        }),
        (0.5, |path, other| fs::rename(other, path)),
    ];
    let mut fired = 0;
    for (share, change) in changes {
        wait_for_share(&mut running.agents, DRILL.image_bytes, share, LIMIT)?;
        change(&path, &other)?;
        let incomplete = !running.agents.iter().any(Agent::is_complete);
        fired += u64::from(incomplete && !source::same(&path, &running.image)?);
    }
    let added = running.finish_compared(LIMIT)?;
    running.agents.clear();
    let place = running.network.nodes[0].place();
    let mut late = vec![Agent::fetch(place, directory, "late", &running.url, &[])?];
    all_finish(&mut late, &running.image, LIMIT)?;
    Ok(Outcome {
        fired,
        unit: "changes of the source",
        outcome: "nodes then and one later have the published image".to_owned(),
        added: Some(added),
    })
}

/// One copy has a flipped byte and one is cut off when the seed starts; a third is whole.
fn copy_damaged(directory: &Path) -> Result<Outcome, Failure> {
    const BYTES: u64 = 4_000_000;
    let network = Network::lay_out(1, 1000, 1000)?;
    let names = ["flipped", "short", "whole"];
    let sources = names.map(|name| directory.join(name));
    for (number, path) in sources.iter().enumerate() {
        source::write(path, BYTES, number as u64)?;
    }
    let images: Vec<(&str, &Path)> = names
        .into_iter()
        .zip(sources.iter().map(PathBuf::as_path))
        .collect();
    let mut seed = Seed::start(network.seed.place(), directory, &images, &[])?;
    let urls = [
        seed.url(names[0])?,
        seed.url(names[1])?,
        seed.url(names[2])?,
    ];
    seed.process.terminate(STOP_GRACE)?;

    let mut fired = 0;
    let mut damage = |url: &str, change: &dyn Fn(&mut File) -> std::io::Result<()>| {
        let id = url.rsplit_once("@blake3:").map_or("", |(_, id)| id);
        let copy = seed.state().join("images").join(id).join("image");
        let read_only = fs::metadata(&copy)?.permissions();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644))?;
        change(&mut OpenOptions::new().write(true).open(&copy)?)?;
        fs::set_permissions(&copy, read_only)?;
        fired += u64::from(blake3::hash(&fs::read(&copy)?).to_hex().as_str() != id);
        Ok::<(), std::io::Error>(())
    };
    damage(&urls[0], &|file| {
        file.seek(SeekFrom::Start(BYTES / 2))?;
        file.write_all(b"damaged")
    })?;
    damage(&urls[1], &|file| file.set_len(BYTES - 1))?;

    let mut seed = Seed::start(network.seed.place(), directory, &[], &[])?;
    seed.url("whole")?;
    let place = network.nodes[0].place();
    for (name, url) in names.iter().zip(&urls).take(2) {
        let line = format!("image {name} is damaged and not served");
        let found = |output: &str| output.contains(&line).then_some(());
        seed.process.wait_for_output(&line, LIMIT, found)?;
        let label = format!("{name}-damaged");
        let mut agent = Agent::fetch(place, directory, &label, url, &["--timeout", "5"])?;
        let status = agent.process.wait(LIMIT)?;
        if status.code() != Some(NO_SUCH_IMAGE) || agent.is_complete() {
            let said = agent.process.tail(1);
            return Err(format!("{name} was asked for: {status}: {said}").into());
        }
    }
    let mut agents = vec![Agent::fetch(place, directory, "node", &urls[2], &[])?];
    all_finish(&mut agents, &sources[2], LIMIT)?;

    // What the seed advises to do.
    for (name, path) in images.iter().take(2) {
        let words = ["publish", "-q", name, text(path)?];
        let (status, said) = rootswarm(seed.state(), &words, &directory.join("publish.log"))?;
        if !status.success() {
            return Err(format!("{name} cannot be published again: {said}").into());
        }
        seed.url(name)?;
    }
    let mut agents = Vec::new();
    for (name, url) in names.iter().zip(&urls).take(2) {
        let label = format!("{name}-again");
        let mut agent = [Agent::fetch(place, directory, &label, url, &[])?];
        all_finish(&mut agent, &directory.join(name), LIMIT)?;
        agents.extend(agent);
    }
    Ok(Outcome {
        fired,
        unit: "copies damaged",
        outcome: "both reported and refused, the third served; published again, they are served"
            .to_owned(),
        added: None,
    })
}

/// The name means another image every fraction of a second while nodes boot by name alone, held to the
/// swarm key. Each has to end on the image that it began with.
fn published_in_a_loop(directory: &Path) -> Result<Outcome, Failure> {
    const VERSIONS: u64 = 4;
    let version = |number: u64| directory.join(format!("version{}", number % VERSIONS));
    for number in 0..VERSIONS {
        source::write(&version(number), DRILL.image_bytes, number)?;
    }
    let network = DRILL.lay_out()?;
    let published = [("debian", &*version(0))];
    let mut seed = Seed::start(network.seed.place(), directory, &published, &[])?;
    let url = seed.url("debian")?;
    let (url, _) = url.split_once('@').ok_or("no pin in the ready line")?;
    let log = directory.join("publish.log");
    let (_, key) = rootswarm(seed.state(), &["key"], &log)?;
    let key = key.lines().last().unwrap_or_default().trim().to_owned();
    let node = |number: usize| {
        let (place, label) = (network.nodes[number].place(), format!("node{number}"));
        Agent::fetch(place, directory, &label, url, &["--stay", "--key", &key])
    };

    // The nodes are started one after the other, so that they begin with different images.
    let mut agents = vec![node(0)?];
    let mut fired = 0;
    while !agents.iter().all(Agent::is_complete) || agents.len() < network.nodes.len() {
        fired += 1;
        let source = version(fired);
        let words = ["publish", "-q", "debian", text(&source)?];
        let (status, said) = rootswarm(seed.state(), &words, &log)?;
        if !status.success() {
            return Err(format!("publishing number {fired}: {status}: {said}").into());
        }
        if fired.is_multiple_of(3) && agents.len() < network.nodes.len() {
            agents.push(node(agents.len())?);
        }
        for agent in &mut agents {
            if let Some(status) = agent.process.try_wait()? {
                let said = agent.process.tail(1);
                return Err(format!("{} ended ({status}): {said}", agent.process.label()).into());
            }
        }
        if fired > 1000 {
            return Err("the nodes do not finish while images are published".into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut began = Vec::new();
    for agent in &agents {
        let said = agent.process.output()?;
        let id = said
            .lines()
            .find_map(|line| line.split_once("debian is image ")?.1.get(..64))
            .ok_or("a node did not say which image it began with")?;
        let found = blake3::hash(&fs::read(agent.output())?).to_hex();
        if found.as_str() != id {
            let label = agent.process.label();
            return Err(format!("{label} began with {id} and ended with {found}").into());
        }
        began.push(id.to_owned());
    }
    began.sort();
    began.dedup();
    Ok(Outcome {
        fired,
        unit: "images published",
        outcome: format!(
            "{} nodes began with {} images, each ended on its own",
            agents.len(),
            began.len()
        ),
        added: None,
    })
}

/// A file system of `bytes` over `directory`/state that only this program's descendants see, through
/// the process that holds it. It is gone with that process.
fn small_state(directory: &Path, bytes: u64) -> Result<(Process, PathBuf), Failure> {
    let state = directory.join("state");
    fs::create_dir(&state)?;
    let mut command = Place::loopback().command(Path::new("unshare"));
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!(
        r#"mount -t tmpfs -o size={bytes},mode=755 none "$1" && echo mounted && exec sleep infinity"#
    ));
    command.arg("sh").arg(&state);
    let mut holder = Process::spawn("holder", command, &directory.join("holder.log"))?;
    holder.wait_for_line("mounted", LIMIT)?;
    let root = PathBuf::from(format!("/proc/{}/root", holder.pid()));
    let inside = root.join(directory.strip_prefix("/")?);
    Ok((holder, inside))
}

/// The state directory has room for the image but not for all that belongs to it, in several degrees.
fn state_full(directory: &Path) -> Result<Outcome, Failure> {
    const OLD_BYTES: u64 = 3_000_000;
    const NEW_BYTES: u64 = 4 << 20;
    const PAGE_BYTES: u64 = 4096;
    let (old, new) = (directory.join("old"), directory.join("new"));
    source::write(&old, OLD_BYTES, 1)?;
    source::write(&new, NEW_BYTES, 2)?;
    let network = Network::lay_out(1, 1000, 1000)?;
    let (_holder, inside) = small_state(directory, 12 << 20)?;
    let mut seed = Seed::start(network.seed.place(), &inside, &[("debian", &old)], &[])?;
    let url = seed.url("debian")?;
    let state = seed.state().to_owned();
    let tag = || fs::read(state.join("tags/debian"));
    let (tag_before, log) = (tag()?, directory.join("publish.log"));
    let publish = || rootswarm(&state, &["publish", "-q", "debian", text(&new)?], &log);
    let copies = || fs::read_dir(state.join("images")).map(Iterator::count);

    let filler = state.join("filler");
    let free = || {
        let stat = rustix::fs::statvfs(&state)?;
        Ok::<_, std::io::Error>(stat.f_bavail * stat.f_frsize)
    };
    let (mut fired, mut late) = (0, 0);
    // From a page too little for the image to a page too little for what follows it.
    for pages in [-1, 0, 1, 2] {
        let _ = fs::remove_file(&filler);
        let room = NEW_BYTES.saturating_add_signed(pages * PAGE_BYTES as i64);
        let fill = free()?.saturating_sub(room);
        source::write(&filler, fill, 3)?;
        let (status, said) = publish()?;
        if status.success() {
            break;
        }
        fired += 1;
        late += u64::from(!said.contains("no space for a copy"));
        if tag()? != tag_before || copies()? != 1 || said.lines().count() != 1 {
            return Err(format!("with {room} bytes free, {status} left something: {said}").into());
        }
        let label = format!("node{pages}");
        let place = network.nodes[0].place();
        let mut agents = vec![Agent::fetch(place, directory, &label, &url, &[])?];
        all_finish(&mut agents, &old, LIMIT)?;
    }
    fs::remove_file(&filler)?;
    let (status, said) = publish()?;
    if fired < 2 || !status.success() {
        return Err(format!("{fired} failed; with room again: {status}: {said}").into());
    }
    Ok(Outcome {
        fired,
        unit: "publishes without room",
        outcome: format!(
            "whole failures ({late} after the copy), the old image goes on; with room it works"
        ),
        added: None,
    })
}
