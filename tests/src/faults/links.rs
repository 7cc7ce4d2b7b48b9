//! What switches and wires do: they lose packets, carry only small ones, and are pulled.
//!
//! Faults that take a cable with a mind of its own are in `bad_cables`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::drill::Running;
use super::{Added, Bound, Drill, Failure, Fault, Outcome};
use crate::netns::NetnsError;
use crate::network::{Network, wait_for_share};
use crate::sieve::{Counted, Sieve};

/// Long enough that the fault meets a steady flow and not only its start.
pub(super) const DRILL: Drill = Drill {
    nodes: 3,
    node_mbit: Some(50),
    seed_mbit: Some(50),
    image_bytes: 24_000_000,
};

/// Short enough for a test.
pub(super) const QUICK_DRILL: Drill = Drill {
    image_bytes: 10_000_000,
    ..DRILL
};

/// Slow, so that there is time to pull a cable in the middle.
const SLOW_DRILL: Drill = Drill {
    nodes: 3,
    node_mbit: Some(20),
    seed_mbit: Some(20),
    image_bytes: 12_000_000,
};

/// As fast as the machine: what a rate hides, because it is slower, is seen here. So long that joining
/// is a small part of it.
const FAST_DRILL: Drill = Drill {
    nodes: 2,
    node_mbit: None,
    seed_mbit: None,
    image_bytes: 64_000_000,
};

pub(super) const LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(10);

/// What IPv6 and UDP headers take, and how near to the largest the search has to come: it stops
/// within 20 bytes.
const MTU_SLACK_BYTES: u16 = 48 + 20;

const ETHERNET_MTU: u16 = 1500;

pub(super) const LOSS_1: Fault = Fault {
    name: "links: loss 1 %",
    need_bytes: DRILL.need_bytes(),
    // What is lost is sent again, and slows its sender down for a while: half as long again was
    // measured. A window that rests on its floor is many times slower.
    bound: Some(Bound::times(3.0)),
    inject: |directory| loss(directory, DRILL, 10),
};

pub(super) const LOSS_5: Fault = Fault {
    name: "links: loss 5 %",
    need_bytes: QUICK_DRILL.need_bytes(),
    // The same for one of twenty, in a download of two seconds: 2.7 times was measured, and a packet of
    // a handshake that is lost costs a second more.
    bound: Some(Bound::times(5.0)),
    inject: |directory| loss(directory, QUICK_DRILL, 50),
};

pub(super) const LOSS_3_NOT_SHAPED: Fault = Fault {
    name: "links: loss 3 %, not shaped",
    need_bytes: FAST_DRILL.need_bytes(),
    // The twin takes a third of a second, and ten times that was measured. Where losses were obeyed to the floor it was a hundred times as long.
    bound: Some(Bound::times(25.0)),
    inject: |directory| loss(directory, FAST_DRILL, 30),
};

pub(super) const MTU_9000: Fault = Fault {
    name: "links: MTU 9000",
    need_bytes: 2 * DRILL.need_bytes(),
    // Large packets carry less of headers: nothing but the search for them costs time.
    bound: Some(Bound::times(2.0)),
    inject: |directory| mtu(directory, DRILL, 9000),
};

pub(super) const MTU_9000_NOT_SHAPED: Fault = Fault {
    name: "links: MTU 9000, not shaped",
    need_bytes: 2 * FAST_DRILL.need_bytes(),
    // Large packets cost less: half the time was measured. The rest is for a busy machine, as the twin
    // takes half a second. Where the kernel refused batches of them it was 14 times as long.
    bound: Some(Bound::times(6.0)),
    inject: |directory| mtu(directory, FAST_DRILL, 9000),
};

pub(super) const MTU_1500: Fault = Fault {
    name: "links: MTU 1500",
    need_bytes: 2 * DRILL.need_bytes(),
    // Ethernet's is what the others are compared with: it differs from the plain download by the
    // counting alone.
    bound: Some(Bound::times(2.0)),
    inject: |directory| mtu(directory, DRILL, 1500),
};

pub(super) const MTU_1280: Fault = Fault {
    name: "links: MTU 1280",
    need_bytes: 2 * DRILL.need_bytes(),
    // A sixth more packets, each with its headers: about one in a hundred of the bytes.
    bound: Some(Bound::times(2.0)),
    inject: |directory| mtu(directory, DRILL, 1280),
};

pub(super) const BLACK_HOLE: Fault = Fault {
    name: "links: black hole over 1300 bytes",
    need_bytes: QUICK_DRILL.need_bytes(),
    // Each larger packet is a probe of the search that nobody waits for: none of them holds data.
    bound: Some(Bound::times(2.0)),
    inject: black_hole,
};

pub(super) const BLACK_HOLE_LATE: Fault = Fault {
    name: "links: black hole from the middle on",
    need_bytes: SLOW_DRILL.need_bytes(),
    // Every packet under way is lost, and all that follow, until several losses in a row are taken
    // for what they are: seconds, once for each connection.
    bound: Some(Bound::times(3.0)),
    inject: black_hole_late,
};

pub(super) const DOWN_1: Fault = Fault {
    name: "links: down for 1 s",
    need_bytes: SLOW_DRILL.need_bytes(),
    // Shorter than any connection's patience: what was under way is sent again when the next probe
    // after the link's return, whose waits double, has got through.
    bound: Some(Bound::after(1, 2.0)),
    inject: |directory| down(directory, 1),
};

pub(super) const DOWN_10: Fault = Fault {
    name: "links: down for 10 s",
    need_bytes: SLOW_DRILL.need_bytes(),
    // Connections are given up meanwhile, and dialled again in waits that grow.
    bound: Some(Bound::after(10, 3.0)),
    inject: |directory| down(directory, 10),
};

pub(super) const DOWN_60: Fault = Fault {
    name: "links: down for 60 s",
    need_bytes: SLOW_DRILL.need_bytes(),
    // The same, when those waits have long grown as far as they do.
    bound: Some(Bound::after(60, 3.0)),
    inject: |directory| down(directory, 60),
};

/// The same rules on every node's cable.
pub(super) fn sieves(network: &Network, rules: &[&str]) -> Result<Vec<Sieve>, NetnsError> {
    let sieve = |site: &crate::network::Site| Sieve::put_on(&site.link, rules);
    network.nodes.iter().map(sieve).collect()
}

/// What all cables' rules counted together, rule by rule.
pub(super) fn total(sieves: &[Sieve]) -> Result<Vec<Counted>, NetnsError> {
    let mut sums: Vec<Counted> = Vec::new();
    for sieve in sieves {
        let counted = sieve.counted()?;
        sums.resize(counted.len(), Counted::default());
        for (sum, counted) in sums.iter_mut().zip(counted) {
            sum.packets += counted.packets;
            sum.bytes += counted.bytes;
        }
    }
    Ok(sums)
}

/// Says how often HTTP had to help, which is no failure and yet no success of the swarm.
pub(super) fn finished(running: &Running) -> Result<String, Failure> {
    let nodes = running.agents.len();
    let by_http = crate::network::sum(&running.agents, "bytes_from_http")?;
    Ok(match by_http {
        0 => format!("all {nodes} nodes have the image"),
        bytes => format!("all {nodes} nodes have the image, {bytes} bytes of it by http"),
    })
}

/// Every node's cable loses so many of a thousand packets, each way.
fn loss(directory: &Path, drill: Drill, per_mille: u32) -> Result<Outcome, Failure> {
    let rule = format!("numgen random mod 1000 < {per_mille} counter drop");
    let mut sieved = Vec::new();
    let mut running = drill.begin(directory, |network| {
        sieved = sieves(network, &[&rule, "counter"])?;
        Ok(())
    })?;
    let added = running.finish_compared(LIMIT)?;
    let counted = total(&sieved)?;
    let packets = counted[0].packets + counted[1].packets;
    let share = 100.0 * counted[0].packets as f64 / packets.max(1) as f64;
    Ok(Outcome {
        fired: counted[0].packets,
        unit: "packets dropped",
        outcome: format!("{}; {share:.1} % lost", finished(&running)?),
        added: Some(added),
    })
}

/// What went through all cables whose packets are counted.
struct Sized {
    /// When the last node had the image.
    took: Duration,
    /// Packets of about the largest size.
    full: Counted,
    /// Packets of at least [`least_of_most`] bytes.
    most: Counted,
    /// All of them.
    all: Counted,
    /// What came of it.
    finished: String,
}

impl Sized {
    /// The share of the bytes in such packets, in percent.
    fn share(&self, part: Counted) -> f64 {
        100.0 * part.bytes as f64 / self.all.bytes.max(1) as f64
    }
}

/// Most bytes have to travel in packets of more. A search from 1,200 to 9,000 takes ten round trips, each
/// behind the data's queue: what counts is that Ethernet's size is left behind at once, and that the
/// end is reached.
fn least_of_most(mtu: u16) -> u16 {
    (mtu - MTU_SLACK_BYTES).min(ETHERNET_MTU)
}

/// A download in which every cable and every interface carries packets of at most `mtu` bytes. Most
/// bytes have to travel in packets of about that size.
fn with_mtu(directory: &Path, drill: Drill, mtu: u16) -> Result<Sized, Failure> {
    std::fs::create_dir(directory)?;
    let full = format!("meta length > {} counter", mtu - MTU_SLACK_BYTES);
    let most = format!("meta length > {} counter", least_of_most(mtu));
    let mut sieved = Vec::new();
    let mut running = drill.begin(directory, |network| {
        for site in network.nodes.iter().chain([&network.seed]) {
            site.link.set_mtu(mtu)?;
        }
        sieved = sieves(network, &[&full, &most, "counter"])?;
        Ok(())
    })?;
    let took = running.finish(LIMIT)?;
    for (number, sieve) in sieved.iter().enumerate() {
        if sieve.counted()?[0].packets == 0 {
            return Err(format!("node{number}: no packet of nearly {mtu} bytes").into());
        }
    }
    let counted = total(&sieved)?;
    let sized = Sized {
        took,
        full: counted[0],
        most: counted[1],
        all: counted[2],
        finished: finished(&running)?,
    };
    let share = sized.share(sized.most);
    if share < 80.0 {
        return Err(format!(
            "the path MTU was not found: {share:.0} % of {} bytes in packets of more than {} bytes",
            sized.all.bytes,
            least_of_most(mtu)
        )
        .into());
    }
    Ok(sized)
}

/// A network with this MTU against the same one with Ethernet's, in which packets are counted as well:
/// that costs time where no link is slow.
fn mtu(directory: &Path, drill: Drill, mtu: u16) -> Result<Outcome, Failure> {
    let with = with_mtu(&directory.join("with"), drill, mtu)?;
    let without = match mtu {
        ETHERNET_MTU => drill.without()?,
        _ => with_mtu(&directory.join("without"), drill, ETHERNET_MTU)?.took,
    };
    Ok(Outcome {
        fired: with.full.packets,
        unit: "packets of full size",
        outcome: format!(
            "{}; {:.0} % of the bytes in packets of {} bytes, {:.0} % of more than {}",
            with.finished,
            with.share(with.full),
            with.full.bytes / with.full.packets.max(1),
            with.share(with.most),
            least_of_most(mtu)
        ),
        added: Some(Added {
            with: with.took,
            without,
        }),
    })
}

/// Interfaces say 1500, and packets above 1300 bytes vanish. Nobody is told: no ICMP.
const HOLE: &str = "meta length > 1300 counter drop";

fn black_hole(directory: &Path) -> Result<Outcome, Failure> {
    let mut sieved = Vec::new();
    let mut running = QUICK_DRILL.begin(directory, |network| {
        sieved = sieves(network, &[HOLE])?;
        Ok(())
    })?;
    let added = running.finish_compared(LIMIT)?;
    Ok(Outcome {
        fired: total(&sieved)?[0].packets,
        unit: "packets swallowed",
        outcome: finished(&running)?,
        added: Some(added),
    })
}

/// The hole opens when 1452 bytes of payload have long been found to pass.
fn black_hole_late(directory: &Path) -> Result<Outcome, Failure> {
    let mut running = SLOW_DRILL.begin(directory, |_| Ok(()))?;
    wait_for_share(&mut running.agents, SLOW_DRILL.image_bytes, 0.3, LIMIT)?;
    let sieved = sieves(&running.network, &[HOLE])?;
    let added = running.finish_compared(LIMIT)?;
    Ok(Outcome {
        fired: total(&sieved)?[0].packets,
        unit: "packets swallowed",
        outcome: finished(&running)?,
        added: Some(added),
    })
}

/// The first node's cable is pulled in the middle and put back.
fn down(directory: &Path, seconds: u64) -> Result<Outcome, Failure> {
    let mut running = SLOW_DRILL.begin(directory, |_| Ok(()))?;
    wait_for_share(&mut running.agents, SLOW_DRILL.image_bytes, 0.3, LIMIT)?;
    let site = &running.network.nodes[0];
    // Not 0: the cable was without a carrier while it was laid.
    let losses_before = site.namespace.carrier_losses()?;
    site.link.set_up(false)?;
    std::thread::sleep(Duration::from_secs(seconds));
    if running.agents[0].is_complete() {
        return Err("the cable was pulled too late: the node has the image".into());
    }
    let held = running.agents[0].count("bytes_have")?;
    let before = site.namespace.traffic(crate::netns::NODE_INTERFACE)?;
    site.link.set_up(true)?;
    let back = Instant::now();
    while running.agents[0].count("bytes_have")? <= held && !running.agents[0].is_complete() {
        if back.elapsed() > LIMIT {
            return Err(format!("no byte more within {} s", LIMIT.as_secs()).into());
        }
        std::thread::sleep(POLL);
    }
    let resumed_s = back.elapsed().as_secs_f64();
    let added = running.finish_compared(LIMIT)?;
    let site = &running.network.nodes[0];
    let losses = site.namespace.carrier_losses()? - losses_before;
    let received = site
        .namespace
        .traffic(crate::netns::NODE_INTERFACE)?
        .rx_bytes
        - before.rx_bytes;
    let again = running.agents[0].count("duplicate_bytes")?;
    if again >= held {
        return Err(format!("{again} bytes were fetched again, {held} were held").into());
    }
    // Headers and acknowledgements of what it sends to others come on top of the payload.
    let missing = SLOW_DRILL.image_bytes - held;
    if received > missing + missing / 4 + held / 2 {
        return Err(format!("{received} bytes received for {missing} that were missing").into());
    }
    Ok(Outcome {
        fired: losses,
        unit: "losses of carrier",
        outcome: format!(
            "{}; kept {held} bytes, {again} fetched again, next ones {resumed_s:.1} s after the link",
            finished(&running)?
        ),
        added: Some(added),
    })
}
