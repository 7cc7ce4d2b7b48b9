//! Racks: one link to the core and one from it, shared by all that stand in a rack.
//!
//! What crosses the core goes through the sender's uplink, its rack's link to the core, the latency,
//! the link into the receiver's rack and the receiver's downlink, each a queue of its own. The seed
//! stands at the core. Within a rack the switch is not in the way.

use super::chunk::Burst;
use super::{SEED, World};
use crate::nic::{Passage, Port, Rate};
use crate::plan::Plan;

/// One rack's links to the core.
#[derive(Debug)]
pub(crate) struct Rack {
    out: Port,
    into: Port,
    /// Chunk bytes that came in from outside.
    pub(crate) entered_bytes: u64,
}

/// The plan's racks, with the share of the core that each has.
pub(crate) fn racks(plan: &Plan) -> Vec<Rack> {
    let Some(racks) = plan.racks else {
        return Vec::new();
    };
    let rack = |number| {
        let first = |rack: usize| (rack * plan.nodes).div_ceil(racks.count);
        let nodes = first(number + 1) - first(number);
        let share = nodes as f64 / racks.oversubscription;
        let port = |bits: f64| Port::new(Rate::new(bits * share, plan.efficiency));
        Rack {
            out: port(plan.node_link.up_bits),
            into: port(plan.node_link.down_bits),
            entered_bytes: 0,
        }
    };
    (0..racks.count).map(rack).collect()
}

/// What a node is told of where it stands.
pub(crate) fn rack_name(plan: &Plan, host: usize) -> Option<String> {
    let racks = plan.racks.filter(|racks| racks.known && host != SEED)?;
    let number = place(host, plan.nodes, racks.count);
    Some(format!("rack-{number}"))
}

/// The rack of a node that is not the seed: one is filled after the other, evenly.
fn place(host: usize, nodes: usize, count: usize) -> usize {
    (host - 1) * count / nodes
}

impl World<'_> {
    /// Where a host stands; `None` for the core.
    fn rack_of(&self, host: usize) -> Option<usize> {
        let count = self.racks.len();
        (count > 0 && host != SEED).then(|| place(host, self.plan.nodes, count))
    }

    /// The rack that a packet leaves on its way, if any.
    fn leaves(&self, from: usize, to: usize) -> Option<usize> {
        let rack = self.rack_of(from);
        rack.filter(|_| rack != self.rack_of(to))
    }

    /// The rack that a packet enters from the core, if any.
    pub(super) fn enters(&self, from: usize, to: usize) -> Option<usize> {
        self.leaves(to, from)
    }

    /// A burst goes out from its sender within `passage`: when it is at the core, or at its
    /// receiver if both are in one rack.
    pub(super) fn burst_to_core(
        &mut self,
        from: usize,
        to: usize,
        bytes: u64,
        passage: Passage,
    ) -> Passage {
        let Some(rack) = self.leaves(from, to) else {
            return passage;
        };
        let inflow_ns = passage.last_ns - passage.first_ns;
        self.racks[rack]
            .out
            .burst(bytes, inflow_ns, passage.first_ns)
    }

    /// The same for a control packet that leaves its sender at this time.
    pub(super) fn control_to_core(
        &mut self,
        from: usize,
        to: usize,
        bytes: u64,
        left_ns: u64,
    ) -> u64 {
        match self.leaves(from, to) {
            Some(rack) => self.racks[rack].out.control(bytes, left_ns),
            None => left_ns,
        }
    }

    /// A burst is at the link into its receiver's rack.
    pub(crate) fn burst_enters_rack(&mut self, place: u32) {
        let Some(burst) = self.bursts.take(place) else {
            return;
        };
        let Some(rack) = self.rack_of(burst.to as usize) else {
            return;
        };
        let rack = &mut self.racks[rack];
        rack.entered_bytes += u64::from(burst.bytes);
        let (bytes, inflow_ns) = (u64::from(burst.bytes), u64::from(burst.inflow_us) * 1000);
        let passage = rack.into.burst(bytes, inflow_ns, self.now_ns);
        let burst = Burst {
            inflow_us: micros(passage.last_ns - passage.first_ns),
            ..burst
        };
        self.arrives(burst, passage.first_ns);
    }

    /// The same for a control packet.
    pub(crate) fn control_enters_rack(&mut self, slot: u32) {
        let Some(packet) = self.packets.take(slot) else {
            return;
        };
        if let Some(rack) = self.rack_of(packet.to as usize) {
            let into = &mut self.racks[rack].into;
            let at_ns = into.control(u64::from(packet.bytes), self.now_ns);
            self.receive(packet, at_ns);
        }
    }
}

/// A duration for [`Burst::inflow_us`]: an hour at most.
pub(super) fn micros(ns: u64) -> u32 {
    u32::try_from(ns / 1000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Link, Racks};
    use crate::run;

    fn plan(nodes: usize, count: usize, oversubscription: f64) -> Plan {
        let mut plan = Plan::new("racks", nodes, 100.0, 100.0).image(8 << 20, 128 << 10);
        plan.racks = Some(Racks {
            count,
            oversubscription,
            known: true,
        });
        plan
    }

    /// Alone in its rack, a node gets every byte over the core; among its own, none but the first.
    #[test]
    fn what_enters_a_rack_is_counted() {
        let alone = run(&plan(3, 3, 1.0), 1);
        assert_eq!(alone.unfinished, 0);
        let exact = |copies: &f64| (copies - 1.0 - alone.waste).abs() < 0.02;
        assert!(
            alone.rack_copies.iter().all(exact),
            "{:?}",
            alone.rack_copies
        );

        // One rack: only what the seed sent came in.
        let together = run(&plan(3, 1, 1.0), 1);
        let copies = together.rack_copies[0];
        assert!((copies - together.seed_copies).abs() < 0.01, "{copies}");
    }

    /// A rack's link is shared by all in it: at 8:1 eight nodes have the rate of one between them.
    #[test]
    fn the_core_is_a_bottleneck() {
        let behind = |oversubscription, known| {
            let mut plan = plan(16, 2, oversubscription);
            plan.seed_link = Link::mbit(1_000.0);
            plan.racks = plan.racks.map(|racks| Racks { known, ..racks });
            run(&plan, 1)
        };
        let (wide, narrow) = (behind(1.0, false), behind(8.0, false));
        let (most, bound_s) = (narrow.rack_copies[0], narrow.bound_s);
        let least_s = narrow.rack_copies[0] * 8.388_608 * 8.0 / (100.0 * narrow.efficiency);
        let last_s = narrow.quantile_s(1.0);
        assert!(
            last_s >= least_s * 0.99,
            "{most} copies in {last_s} s, the bound is {bound_s} s"
        );
        assert!(last_s > 2.0 * wide.quantile_s(1.0));
        // Nodes that know where they stand do not need more than they have.
        let known = behind(8.0, true);
        let (known_s, copies) = (known.quantile_s(1.0), known.rack_copies);
        assert!(known_s < 0.7 * last_s, "{known_s} s of {last_s} s");
        assert!(copies.iter().all(|copies| *copies < 1.7), "{copies:?}");
    }

    #[test]
    fn racks_are_filled_one_after_the_other() {
        let plan = plan(10, 4, 4.0);
        assert_eq!(racks(&plan).len(), 4);
        assert_eq!(rack_name(&plan, SEED), None);
        let names: Vec<_> = (1..=10).flat_map(|host| rack_name(&plan, host)).collect();
        let expected = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3].map(|number| format!("rack-{number}"));
        assert_eq!(names, expected);
    }
}
