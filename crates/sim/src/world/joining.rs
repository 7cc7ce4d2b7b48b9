//! How nodes become members: what that costs the seed's link, and from whom they get the manifest.
//!
//! The transport decides here, not the swarm: a seed sends the manifest to a few newcomers at a time and
//! names a member to the others (crates/transport/src/handouts.rs). This is that policy once more, with
//! the bytes that it moves.

use super::{Event, SEED, State, World};
use crate::faults::Happening;
use rootswarm_swarm::limits::SEED_NEIGHBOURS_MAX;

/// Newcomers to whom the seed, and a member, is handing the manifest at a time.
const OWN: u8 = 4;
const EACH: u8 = 2;
/// How long a member has to itself before the newcomer asks the seed as well.
const HEAD_START_NS: u64 = 300_000_000;
/// How long a newcomer waits for somebody who is not busy, and how often the model looks.
const WAIT_NS: u64 = 500_000_000;
const LOOK_NS: u64 = 1_000_000;
/// Members looked at for one that is not busy.
const TRIES: usize = 16;
/// Beyond so many members a seed no longer searches for the path's MTU: a packet less.
const CROWD: usize = SEED_NEIGHBOURS_MAX;
const PROBE_BYTES: u64 = 1_452;
/// A manifest up to this length comes from the seed.
const SMALL_BYTES: u64 = 4 << 10;
/// A manifest's hash for each chunk, and its header.
const HASH_BYTES: u64 = 32;
const HEADER_BYTES: u64 = 48;

impl World<'_> {
    fn manifest_bytes(&self) -> u64 {
        HEADER_BYTES + u64::from(self.geometry.chunk_count()) * HASH_BYTES
    }

    /// A node has reached its seed for the first time: it is admitted, and told where the manifest is.
    pub(super) fn join(&mut self, host: usize) {
        let waited_ns = self.now_ns - self.hosts[host].started_ns;
        let is_small = self.manifest_bytes() <= SMALL_BYTES;
        let holder = match self.holder() {
            _ if is_small => SEED,
            Some(holder) => holder,
            None if waited_ns > WAIT_NS => SEED,
            None => {
                let from = host as u32;
                return self
                    .events
                    .push(self.now_ns + LOOK_NS, Event::SeedDialEnds { from });
            }
        };
        self.handing[holder] = self.handing[holder].saturating_add(1);
        let saved = if self.members.len() < CROWD {
            0
        } else {
            PROBE_BYTES
        };
        let bytes = self.plan.join_bytes.saturating_sub(saved);
        let admitted_ns = self.carry(SEED, host, bytes);
        let (from, member) = (host as u32, holder as u32);
        let ask_ns = if holder == SEED {
            admitted_ns
        } else {
            admitted_ns + self.plan.handshake_us * 1000 + 2 * self.latency_ns()
        };
        self.events.push(ask_ns, Event::Admitted { from, member });
    }

    /// It is admitted, and has reached who has the manifest.
    pub(super) fn admitted(&mut self, host: usize, holder: usize) {
        let lost = holder != SEED && self.loses_dial(host, holder);
        if holder != SEED && (lost || self.states[holder] != State::Alive) {
            // No answer: the seed is asked after all.
            self.handing[holder] = self.handing[holder].saturating_sub(1);
            self.handing[SEED] = self.handing[SEED].saturating_add(1);
            let (from, member) = (host as u32, SEED as u32);
            let event = Event::Admitted { from, member };
            return self.events.push(self.now_ns + HEAD_START_NS, event);
        }
        let had_ns = self.carry(holder, host, self.manifest_bytes());
        if holder != SEED {
            self.sometimes.note(Happening::ManifestFromMember);
        }
        let (from, member) = (host as u32, holder as u32);
        self.events.push(had_ns, Event::Joined { from, member });
    }

    /// It has the manifest: its holder is free for the next one, and its connection to the seed is a
    /// member's from now on.
    pub(super) fn joined(&mut self, host: usize, holder: usize) {
        self.handing[holder] = self.handing[holder].saturating_sub(1);
        self.hosts[host].is_member = true;
        self.members.push(host as u32);
        self.seed_dial_ends(host);
    }

    /// Somebody who has the manifest and is not busy.
    fn holder(&mut self) -> Option<usize> {
        let count = self.members.len();
        for _ in 0..TRIES.min(count) {
            let member = self.members[self.rng.below(count)] as usize;
            if self.handing[member] < EACH && self.states[member] == State::Alive {
                return Some(member);
            }
        }
        (self.handing[SEED] < OWN).then_some(SEED)
    }

    /// Moves bytes that are no chunk from one host to another. Returns when they are there.
    fn carry(&mut self, from: usize, to: usize, bytes: u64) -> u64 {
        self.traffic[from].control_bytes += bytes;
        let left_ns = self.up[from].control(bytes, self.now_ns);
        let left_ns = self.control_to_core(from, to, bytes, left_ns);
        let arrival_ns = left_ns + self.latency_ns();
        let down = &mut self.down[to];
        down.advance(self.now_ns);
        down.control(bytes, arrival_ns)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Plan, run};

    /// 200 nodes and a manifest of 13 kB: all of it from the seed would be 2.6 MB before the first
    /// chunk.
    #[test]
    fn members_hand_the_manifest_on() {
        let plan = Plan::new("joining", 200, 1_000.0, 1_000.0).image(100 << 20, 256 << 10);
        let outcome = run(&plan, 1);
        assert_eq!((outcome.unfinished, outcome.violations.len()), (0, 0));
        let from_members = outcome.sometimes.count("manifest from a member");
        assert!(from_members >= 150, "{from_members} of 200");
    }

    #[test]
    fn a_short_manifest_comes_from_the_seed() {
        let plan = Plan::new("joining", 20, 1_000.0, 1_000.0).image(8 << 20, 256 << 10);
        let outcome = run(&plan, 1);
        assert_eq!(outcome.unfinished, 0);
        assert_eq!(outcome.sometimes.count("manifest from a member"), 0);
    }

    /// What a node costs its seed counts: a link that is busy admitting has less for chunks.
    #[test]
    fn joins_take_their_part_of_the_seeds_link() {
        let with = |join_bytes| {
            let mut plan = Plan::new("joining", 50, 100.0, 100.0).image(16 << 20, 256 << 10);
            plan.join_bytes = join_bytes;
            run(&plan, 1).quantile_s(1.0)
        };
        let (cheap_s, dear_s) = (with(0), with(64 << 10));
        // 3.3 MB at 95 Mbit/s of payload: 0.28 s.
        assert!(dear_s > cheap_s + 0.2, "{cheap_s} s, {dear_s} s");
    }
}
