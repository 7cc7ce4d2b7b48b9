//! What long, old and broken cables do: they delay, reorder, duplicate and corrupt.
//!
//! Each node's cable is a [`BadCable`] with dice of its own; both directions suffer. The programs are
//! the shipped ones, and nothing in them knows.

use std::path::Path;
use std::time::Duration;

use super::links::{DRILL, LIMIT, QUICK_DRILL, finished};
use super::{Bound, Drill, Failure, Fault, Outcome};
use crate::bad_cable::{BadCable, Dice, Done, Fate};

const MS: Duration = Duration::from_millis(1);

pub(super) const DELAY: Fault = Fault {
    name: "cables: delay 25 ms each way",
    need_bytes: DRILL.need_bytes(),
    // Fifty milliseconds for each round trip of joining and of the first requests: a third more was
    // measured. A download that takes a trip for each chunk is many times slower.
    bound: Some(Bound::times(2.5)),
    inject: |directory| {
        spoil(
            directory,
            DRILL,
            "datagrams held",
            |done| done.held,
            |_| held(25 * MS),
        )
    },
};

pub(super) const REORDER: Fault = Fault {
    name: "cables: reorder 5 %",
    need_bytes: DRILL.need_bytes(),
    // What comes late is taken for lost and sent again, which slows its sender down: 1.6 times was
    // measured.
    bound: Some(Bound::times(3.0)),
    inject: |directory| {
        spoil(
            directory,
            DRILL,
            "datagrams overtaken",
            |done| done.overtaken,
            reordered,
        )
    },
};

pub(super) const DUPLICATE: Fault = Fault {
    name: "cables: duplicate 5 %",
    need_bytes: DRILL.need_bytes(),
    // The twentieth more that arrives is thrown away, and costs the sender nothing.
    bound: Some(Bound::times(2.0)),
    inject: |directory| {
        spoil(
            directory,
            DRILL,
            "datagrams doubled",
            |done| done.duplicated,
            |dice| Fate {
                copies: 1 + u8::from(dice.per_mille(50)),
                ..Fate::PASS
            },
        )
    },
};

pub(super) const CORRUPT: Fault = Fault {
    name: "cables: corrupt 1 %",
    need_bytes: DRILL.need_bytes(),
    // What fails its check is a loss of one in a hundred, as in `links: loss 1 %`.
    bound: Some(Bound::times(3.0)),
    inject: |directory| {
        spoil(
            directory,
            DRILL,
            "datagrams corrupted",
            |done| done.corrupted,
            |dice| Fate {
                is_corrupted: dice.per_mille(10),
                ..Fate::PASS
            },
        )
    },
};

pub(super) const ALL_AT_ONCE: Fault = Fault {
    name: "cables: all of these and loss 1 %",
    need_bytes: QUICK_DRILL.need_bytes(),
    // Losses of two in a hundred and all the rest, in a download of two seconds: three times as long was
    // measured.
    bound: Some(Bound::times(6.0)),
    inject: |directory| {
        // The scarcest of them: none may be missing.
        let least = |done: Done| {
            let kinds = [
                done.lost,
                done.held,
                done.overtaken,
                done.duplicated,
                done.corrupted,
            ];
            kinds.into_iter().min().unwrap_or_default()
        };
        spoil(
            directory,
            QUICK_DRILL,
            "datagrams at least, of each kind",
            least,
            |dice| {
                let late = reordered(dice);
                Fate {
                    copies: match dice.below(1000) {
                        0..10 => 0,
                        10..60 => 2,
                        _ => 1,
                    },
                    hold: late.hold + 5 * MS,
                    is_corrupted: dice.per_mille(10),
                }
            },
        )
    },
};

fn held(hold: Duration) -> Fate {
    Fate { hold, ..Fate::PASS }
}

/// One of twenty comes 1 to 8 ms late, when dozens of others have passed it.
fn reordered(dice: &mut Dice) -> Fate {
    match dice.per_mille(50) {
        true => held((1 + dice.below(8) as u32) * MS),
        false => Fate::PASS,
    }
}

/// A download through cables that follow `rule`; `fired` chooses what counts.
fn spoil(
    directory: &Path,
    drill: Drill,
    unit: &'static str,
    fired: impl Fn(Done) -> u64,
    rule: fn(&mut Dice) -> Fate,
) -> Result<Outcome, Failure> {
    let mut cables = Vec::new();
    let mut running = drill.begin(directory, |network| {
        for (seed, site) in (1..).zip(&network.nodes) {
            let rule = Box::new(move |_, _: &[u8], dice: &mut Dice| rule(dice));
            cables.push(BadCable::splice(&network.bridge, &site.link, seed, rule)?);
        }
        Ok(())
    })?;
    let added = running.finish_compared(LIMIT)?;
    let mut sum = Done::default();
    for done in cables.iter().map(BadCable::done) {
        sum.lost += done.lost;
        sum.held += done.held;
        sum.overtaken += done.overtaken;
        sum.duplicated += done.duplicated;
        sum.corrupted += done.corrupted;
    }
    let banned = banned(&running.agents)?;
    if banned > 0 {
        return Err(format!("{banned} honest peers were banned for what the cable did").into());
    }
    Ok(Outcome {
        fired: fired(sum),
        unit,
        outcome: format!("{}, no peer banned", finished(&running)?),
        added: Some(added),
    })
}

/// How many peers the nodes hold for liars.
fn banned(agents: &[crate::swarm::Agent]) -> Result<usize, Failure> {
    let mut count = 0;
    for agent in agents {
        count += agent.status()?["banned"].as_array().map_or(0, Vec::len);
    }
    Ok(count)
}
