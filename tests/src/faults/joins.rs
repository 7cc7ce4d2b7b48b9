//! What goes wrong when nodes join: answers that come twice, late or never, a seed that is not there
//! yet, and two nodes with one address.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::links::{DRILL, LIMIT, finished, sieves, total};
use super::{Added, Failure, Fault, Outcome};
use crate::bad_cable::{BadCable, Dice, Direction, Done, Fate};
use crate::netns::NODE_INTERFACE;
use crate::network::sum;
use crate::process::ProcessError;
use crate::sieve::Sieve;
use crate::source;
use crate::swarm::{Agent, HTTP_PORT, Place, SWARM_PORT, Seed};

const SECOND: Duration = Duration::from_secs(1);

/// A first handshake and its answers fit in so many datagrams, several times over.
const FIRST: u64 = 48;

/// A join attempt ends after 4 s without an answer, and the wait after it grows to 8 s.
const GAP_MAX: Duration = Duration::from_secs(13);

pub(super) const TWICE: Fault = Fault {
    name: "join: answers come twice",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: |directory| {
        let twice = Fate {
            copies: 2,
            ..Fate::PASS
        };
        let (outcome, _) = answers(
            directory,
            "answers doubled",
            |done| done.duplicated,
            move |_| twice,
        )?;
        Ok(outcome)
    },
};

pub(super) const LATE: Fault = Fault {
    name: "join: answers 1 to 3 s late",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: |directory| {
        let late = |dice: &mut Dice| Fate {
            hold: Duration::from_millis(1000 + dice.below(2000)),
            ..Fate::PASS
        };
        let (outcome, _) = answers(directory, "answers late", |done| done.held, late)?;
        Ok(outcome)
    },
};

pub(super) const MISSING: Fault = Fault {
    name: "join: first answers missing",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: missing,
};

pub(super) const SEED_LATE: Fault = Fault {
    name: "join: seed starts 60 s late",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: seed_late,
};

pub(super) const ONE_ADDRESS: Fault = Fault {
    name: "join: two nodes with one address",
    need_bytes: DRILL.need_bytes(),
    bound: None,
    inject: one_address,
};

/// When a node began to connect, by the id that it chose for the other side.
#[derive(Debug, Default)]
struct Knocks {
    seen: HashSet<Vec<u8>>,
    at: Vec<Instant>,
}

impl Knocks {
    /// Notes a QUIC Initial packet (RFC 9000, 17.2.2) with an id not seen before.
    fn note(&mut self, payload: &[u8]) {
        let is_initial = payload.first().is_some_and(|first| first & 0xf0 == 0xc0);
        let id = payload.get(5).map(|length| usize::from(*length));
        let Some(id) = id.and_then(|length| payload.get(6..6 + length)) else {
            return;
        };
        if is_initial && self.seen.insert(id.to_vec()) {
            self.at.push(Instant::now());
        }
    }
}

/// The first datagrams to each node meet `rule`; HTTP is shut, so that joining is the only way.
fn answers(
    directory: &Path,
    unit: &'static str,
    fired: impl Fn(Done) -> u64,
    rule: impl Fn(&mut Dice) -> Fate + Send + Copy + 'static,
) -> Result<(Outcome, Vec<Vec<Instant>>), Failure> {
    let shut = format!("tcp dport {HTTP_PORT} counter drop");
    let (mut cables, mut knocks) = (Vec::new(), Vec::new());
    let mut running = DRILL.begin(directory, |network| {
        for (seed, site) in (1..).zip(&network.nodes) {
            let known = Arc::new(Mutex::new(Knocks::default()));
            knocks.push(known.clone());
            let mut count = 0;
            let rule = Box::new(move |direction, payload: &[u8], dice: &mut Dice| {
                if direction == Direction::Up {
                    if let Ok(mut known) = known.lock() {
                        known.note(payload);
                    }
                    return Fate::PASS;
                }
                count += 1;
                if count > FIRST {
                    Fate::PASS
                } else {
                    rule(dice)
                }
            });
            Sieve::put_on(&site.link, &[&shut])?;
            cables.push(BadCable::splice(&network.bridge, &site.link, seed, rule)?);
        }
        Ok(())
    })?;
    let added = running.finish_compared(LIMIT)?;
    let outcome = Outcome {
        fired: cables.iter().map(|cable| fired(cable.done())).sum(),
        unit,
        outcome: finished(&running)?,
        added: Some(added),
    };
    let mut at = Vec::new();
    for known in &knocks {
        let known = known.lock().map_err(|_| "a cable's thread panicked")?;
        at.push(known.at.clone());
    }
    Ok((outcome, at))
}

/// Attempts go on, further and further apart, and not all nodes at once.
fn missing(directory: &Path) -> Result<Outcome, Failure> {
    let lost = Fate {
        copies: 0,
        ..Fate::PASS
    };
    let (mut outcome, knocks) =
        answers(directory, "answers lost", |done| done.lost, move |_| lost)?;
    // Only the attempts that met silence: three a node at least, or the fault proved little.
    const SILENT: usize = 3;
    let mut gaps = Vec::new();
    for at in &knocks {
        let Some(at) = at.get(..=SILENT) else {
            return Err(format!("only {} attempts: drop more", at.len()).into());
        };
        gaps.extend(at.windows(2).map(|pair| pair[1] - pair[0]));
    }
    let longest = gaps.iter().max().copied().unwrap_or_default();
    if longest > GAP_MAX {
        return Err(format!("{longest:.1?} between two attempts").into());
    }
    for pair in gaps
        .chunks(SILENT)
        .map(|gaps| gaps[SILENT - 1])
        .collect::<Vec<_>>()
        .windows(2)
    {
        if pair[0].abs_diff(pair[1]) < Duration::from_millis(1) {
            return Err(format!("two nodes waited {:.3?} alike: no jitter", pair[0]).into());
        }
    }
    let seconds: Vec<String> = gaps[..SILENT]
        .iter()
        .map(|gap| format!("{:.1}", gap.as_secs_f64()))
        .collect();
    outcome.outcome = format!(
        "{}; first node's attempts {} s apart",
        outcome.outcome,
        seconds.join(", ")
    );
    Ok(outcome)
}

/// The lines that an agent prints, with the time at which each was seen.
fn watch(agents: &[Agent], seen: &mut [Vec<Instant>]) -> Result<(), ProcessError> {
    for (agent, seen) in agents.iter().zip(seen) {
        let lines = agent.process.output()?.lines().count();
        seen.resize(lines.max(seen.len()), Instant::now());
    }
    Ok(())
}

/// The most lines within any second.
fn most_in_a_second(seen: &[Instant]) -> usize {
    let within = |first: &Instant| {
        let end = *first + SECOND;
        seen.iter()
            .filter(|at| **at >= *first && **at < end)
            .count()
    };
    seen.iter().map(within).max().unwrap_or_default()
}

fn seed_late(directory: &Path) -> Result<Outcome, Failure> {
    const LATE: Duration = Duration::from_secs(60);
    /// What an agent says of itself before its first attempt.
    const START: Duration = Duration::from_secs(1);
    let knock = format!("udp dport {SWARM_PORT} counter");
    let mut sieved = Vec::new();
    let mut running = DRILL.begin_without_seed(directory, |network| {
        sieved = sieves(network, &[&knock])?;
        Ok(())
    })?;
    let mut seen = vec![Vec::new(); running.agents.len()];
    let start = Instant::now();
    while start.elapsed() < LATE {
        watch(&running.agents, &mut seen)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let knocks = total(&sieved)?[0].packets;
    let lines = seen.iter().map(Vec::len).max().unwrap_or_default();
    for seen in &mut seen {
        seen.retain(|at| *at - start > START);
    }
    let most = seen
        .iter()
        .map(|seen| most_in_a_second(seen))
        .max()
        .unwrap_or_default();
    if most > 1 || lines > 60 {
        let tail = running.agents[0].process.tail(4);
        return Err(format!("{lines} lines in 60 s, up to {most} in one: {tail}").into());
    }
    let published = [("debian", running.image.as_path())];
    running.seed = Seed::start(running.network.seed.place(), directory, &published, &[])?;
    let there = Instant::now();
    let added = running.finish_compared(LIMIT)?;
    let after_s = there.elapsed().as_secs_f64();
    Ok(Outcome {
        fired: knocks,
        unit: "datagrams to nobody",
        outcome: format!(
            "{}, {after_s:.1} s after the seed; {lines} lines in 60 s, {most} in a second",
            finished(&running)?
        ),
        added: Some(added),
    })
}

/// The first two nodes have one address, each on its own cable. Whom packets reach is decided by the
/// switch and by whoever was heard last: the fault fires as often as they reach the one that gets fewer.
fn one_address(directory: &Path) -> Result<Outcome, Failure> {
    let image = directory.join("source");
    source::write(&image, DRILL.image_bytes, 1)?;
    let network = DRILL.lay_out()?;
    let mut seed = Seed::start(network.seed.place(), directory, &[("debian", &image)], &[])?;
    let url = seed.url("debian")?;
    let address = network.nodes[0].link.address();
    let second = &network.nodes[1].namespace;
    second.ip(["address", "flush", "dev", NODE_INTERFACE])?;
    second.add_address(NODE_INTERFACE, address, 24)?;
    let arrived = format!("ip daddr {address} counter");
    let sieves = sieves(&network, &[&arrived])?;
    let start = Instant::now();
    let mut agents = Vec::new();
    for (number, site) in network.nodes.iter().enumerate() {
        let place = match number {
            1 => Place::inside(second, address),
            _ => site.place(),
        };
        let label = format!("node{number}");
        agents.push(Agent::fetch(place, directory, &label, &url, &["--stay"])?);
    }
    let mut complete = Vec::new();
    let mut said = Vec::new();
    for agent in &mut agents {
        match agent.wait_complete(LIMIT.saturating_sub(start.elapsed())) {
            Ok(()) if source::same(&image, agent.output())? => complete.push(()),
            Ok(()) => return Err("a node ended with other bytes than the image's".into()),
            // It may fail, if it says why.
            Err(error) => match agent.process.tail(1) {
                line if line.is_empty() => return Err(error.into()),
                line => said.push(format!("; {}: {line}", agent.process.label())),
            },
        }
    }
    let with = start.elapsed();
    let mut fired = u64::MAX;
    for sieve in &sieves[..2] {
        fired = fired.min(sieve.counted()?[0].packets);
    }
    let by_http = sum(&agents, "bytes_from_http")?;
    Ok(Outcome {
        fired,
        unit: "packets at the other node",
        outcome: format!(
            "{} of {} nodes have the image, {by_http} bytes of it by http{}",
            complete.len(),
            agents.len(),
            said.concat()
        ),
        added: Some(Added {
            with,
            without: DRILL.without()?,
        }),
    })
}
