//! What cables and switches do: they lose packets.

use std::path::Path;
use std::time::Duration;

use super::{Drill, Failure, Fault, Outcome};

const DRILL: Drill = Drill {
    nodes: 3,
    node_mbit: 50,
    seed_mbit: 50,
    image_bytes: 12_000_000,
};
const LIMIT: Duration = Duration::from_secs(120);

pub(super) const LOSS_1: Fault = Fault {
    name: "links: loss 1 %",
    need_bytes: DRILL.need_bytes(),
    inject: |directory| loss(directory, 0.01),
};

pub(super) const LOSS_5: Fault = Fault {
    name: "links: loss 5 %",
    need_bytes: DRILL.need_bytes(),
    inject: |directory| loss(directory, 0.05),
};

/// Every node's namespace drops this share of what arrives and of what leaves.
fn loss(directory: &Path, share: f64) -> Result<Outcome, Failure> {
    let mut running = DRILL.begin(directory, |network| {
        for site in &network.nodes {
            site.namespace.lose(share)?;
        }
        Ok(())
    })?;
    let added = running.finish_compared(LIMIT)?;
    let mut fired = 0;
    for site in &running.network.nodes {
        fired += site.namespace.dropped()?;
    }
    Ok(Outcome {
        fired,
        unit: "packets dropped",
        outcome: format!("{} of {} nodes have the image", DRILL.nodes, DRILL.nodes),
        added: Some(added),
    })
}
