//! Nodes whose address changes while they serve, and nodes behind firewalls.

use super::{Fault, Outcome};
use crate::reaching::{
    CHANGES, Firewalled, a_node_that_moved_serves, firewalls, one_that_drops_everything,
};

const NEED_BYTES: u64 = 200_000_000;

pub(super) const MOVED: Fault = Fault {
    name: "reach: address changed while serving",
    need_bytes: NEED_BYTES,
    bound: None,
    inject: |directory| moved(directory, |name| name != "a link that flaps"),
};

pub(super) const FLAPS: Fault = Fault {
    name: "reach: link flaps while serving",
    need_bytes: NEED_BYTES,
    bound: None,
    inject: |directory| moved(directory, |name| name == "a link that flaps"),
};

pub(super) const FIREWALLS: Fault = Fault {
    name: "reach: firewall on every node",
    need_bytes: NEED_BYTES,
    bound: None,
    inject: |directory| {
        let case = Firewalled {
            complete: 2,
            late: 4,
            open: 0,
            v6: false,
        };
        let (dropped, copies) = firewalls(directory, &case)?;
        if copies > 1.5 {
            return Err(format!("{copies:.2} copies left the seed for four nodes").into());
        }
        Ok(Outcome {
            fired: dropped,
            unit: "packets dropped",
            outcome: format!("four nodes took {copies:.2} copies from the seed, the rest from two"),
            added: None,
        })
    },
};

pub(super) const CLOSED: Fault = Fault {
    name: "reach: a node drops everything",
    need_bytes: NEED_BYTES,
    bound: None,
    inject: |directory| {
        Ok(Outcome {
            fired: one_that_drops_everything(directory, 4)?,
            unit: "packets dropped",
            outcome: "it alone is named, by the seed and by itself; all finish".to_owned(),
            added: None,
        })
    },
};

fn moved(
    directory: &std::path::Path,
    chosen: impl Fn(&str) -> bool,
) -> Result<Outcome, super::Failure> {
    let (mut fired, mut known, mut took) = (0, 0.0_f64, 0.0_f64);
    for case in CHANGES.iter().filter(|case| chosen(case.name)) {
        let directory = directory.join(fired.to_string());
        std::fs::create_dir(&directory)?;
        let (after, next) = a_node_that_moved_serves(&directory, case)?;
        known = known.max(after.as_secs_f64());
        took = took.max(next.as_secs_f64());
        fired += 1;
    }
    Ok(Outcome {
        fired,
        unit: "changes",
        outcome: format!(
            "named at the new address after {known:.2} s at most, the next node took {took:.1} s"
        ),
        added: None,
    })
}
