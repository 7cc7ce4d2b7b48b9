//! How faults strike: the plan's faults turned into events, and what becomes of the hosts.

use super::{Event, Lie, SEED, State, World};
use crate::faults::{Fault, Happening, When, Who};
use crate::nic::Rate;
use rootswarm_image::Bitfield;
use rootswarm_swarm::{Config, Node, Role};

impl World<'_> {
    /// Prepares the faults: those that are a node's nature at once, the others for their time.
    pub(crate) fn plan_faults(&mut self) {
        for (number, fault) in self.plan.faults.iter().enumerate() {
            match *fault {
                Fault::SeedKilled { when, .. }
                | Fault::Vanish { when, .. }
                | Fault::Freeze { when, .. } => {
                    if let When::AtUs(at_us) = when {
                        self.events.push(at_us * 1000, Event::Strike(number as u32));
                    }
                }
                Fault::Corrupt { share, chunks } => {
                    for host in self.victims(Who::Share(share)) {
                        self.hosts[host].corrupts = chunks;
                        // Nobody talks to it for long, so nobody waits for it either.
                        self.give_up(host);
                    }
                }
                Fault::Lie { share, silent } => {
                    for host in self.victims(Who::Share(share)) {
                        self.hosts[host].lies = Some(if silent { Lie::Silent } else { Lie::Busy });
                        // Who claims to hold everything is fed by nobody: its own time is its affair.
                        self.give_up(host);
                    }
                }
                Fault::LostDials {
                    share,
                    nodes,
                    until_us,
                } => {
                    self.lost_dials = (share, until_us);
                    for host in self.victims(Who::Share(nodes)) {
                        self.hosts[host].loses_dials = true;
                    }
                }
                Fault::Firewall { share, answers } => {
                    for host in self.victims(Who::Share(share)) {
                        self.firewalls.put(host as u32, answers);
                    }
                }
                Fault::Slow { who, factor } => {
                    for host in self.victims(who) {
                        let (link, efficiency) = (self.plan.node_link, self.plan.efficiency);
                        self.hosts[host].factor = factor;
                        self.up[host].set_rate(Rate::new(link.up_bits * factor, efficiency));
                        self.down[host].set_rate(Rate::new(link.down_bits * factor, efficiency));
                        self.sometimes.note(Happening::SlowNode);
                    }
                }
            }
        }
    }

    /// The nodes that a fault strikes.
    fn victims(&mut self, who: Who) -> Vec<usize> {
        let mut nodes: Vec<usize> = (1..self.hosts.len()).collect();
        if matches!(who, Who::Share(_)) {
            self.rng.shuffle(&mut nodes);
        }
        nodes.truncate(who.count(self.plan.nodes));
        nodes
    }

    /// Faults that wait for the seed to have sent so much.
    pub(crate) fn strike_by_copies(&mut self) {
        let copies = self.traffic[SEED].chunk_bytes_sent as f64 / self.plan.image_bytes as f64;
        for number in 0..self.plan.faults.len() {
            let due = match self.plan.faults[number] {
                Fault::SeedKilled { when, .. }
                | Fault::Vanish { when, .. }
                | Fault::Freeze { when, .. } => {
                    matches!(when, When::SeedCopies(after) if copies >= after)
                }
                _ => false,
            };
            if due && !self.struck[number] {
                self.strike(number);
            }
        }
    }

    pub(crate) fn strike(&mut self, number: usize) {
        self.struck[number] = true;
        match self.plan.faults[number] {
            Fault::SeedKilled { back_after_us, .. } => {
                self.sometimes.note(Happening::SeedKilled);
                self.kill(SEED);
                if let Some(after_us) = back_after_us {
                    self.events
                        .push(self.now_ns + after_us * 1000, Event::SeedBack);
                }
            }
            Fault::Vanish { who, .. } => {
                for host in self.victims(who) {
                    self.sometimes.note(Happening::Vanished);
                    if self.hosts[host].finished_ns.is_none() {
                        self.sometimes.note(Happening::VanishedWhileFetching);
                    }
                    self.kill(host);
                }
            }
            Fault::Freeze { who, for_us, .. } => {
                for host in self.victims(who) {
                    self.freeze(host, for_us);
                }
            }
            _ => {}
        }
    }

    /// The run does not wait for this host any more.
    fn give_up(&mut self, host: usize) {
        if self.must_finish(host) && !self.hosts[host].node.is_complete() {
            self.unfinished -= 1;
        }
        self.hosts[host].gone |= host != SEED;
    }

    fn kill(&mut self, host: usize) {
        if self.states[host] == State::Dead {
            return;
        }
        self.give_up(host);
        self.states[host] = State::Dead;
        self.up[host].silence();
        self.inboxes[host].clear();
        for event in std::mem::take(&mut self.hosts[host].held) {
            if let Event::Burst(burst) = event {
                self.bursts.take(burst);
            }
        }
        self.await_silence(host);
        for conn in self.hosts[host].conns.clone() {
            self.shut(conn, host);
        }
    }

    /// Those who are connected to a silent host notice after the idle timeout.
    fn await_silence(&mut self, host: usize) {
        let at_ns = self.now_ns + self.plan.idle_us * 1000;
        for conn in self.hosts[host].conns.clone() {
            let side = 1 - self.conns[conn as usize].side_of(host) as u8;
            self.events.push(at_ns, Event::IdleTimeout { conn, side });
        }
    }

    fn freeze(&mut self, host: usize, for_us: Option<u64>) {
        if self.states[host] != State::Alive {
            return;
        }
        self.sometimes.note(Happening::Frozen);
        self.states[host] = State::Frozen;
        match for_us {
            Some(for_us) => {
                self.events
                    .push(self.now_ns + for_us * 1000, Event::Thaw(host as u32));
            }
            None => self.give_up(host),
        }
        self.await_silence(host);
    }

    pub(crate) fn thaw(&mut self, host: usize) {
        if self.states[host] != State::Frozen {
            return;
        }
        self.sometimes.note(Happening::Thawed);
        self.states[host] = State::Alive;
        // Its own idle timers have run out too where the others' have.
        for conn in self.hosts[host].conns.clone() {
            let side = self.conns[conn as usize].side_of(host);
            if !self.open[conn as usize][1 - side] {
                self.lose(conn, host);
            }
        }
        for event in std::mem::take(&mut self.hosts[host].held) {
            self.events.push(self.now_ns, event);
        }
        self.take_up(host);
        self.pump(host);
    }

    pub(crate) fn idle_timeout(&mut self, conn: u32, side: u8) {
        let it = &self.conns[conn as usize];
        let host = it.hosts[side as usize] as usize;
        let silent = it.hosts[1 - side as usize] as usize;
        let gone = matches!(self.states[silent], State::Dead | State::Frozen)
            || !self.open[conn as usize][1 - side as usize];
        if gone && self.open[conn as usize][side as usize] && self.states[host] != State::Dead {
            self.sometimes.note(Happening::IdleTimeout);
            if self.states[host] == State::Frozen {
                let event = Event::IdleTimeout { conn, side };
                self.hosts[host].held.push(event);
            } else {
                self.lose(conn, host);
            }
        }
    }

    /// The seed is started again: the same key and image, no memory.
    pub(crate) fn seed_back(&mut self) {
        if self.states[SEED] != State::Dead {
            return;
        }
        self.sometimes.note(Happening::SeedBack);
        let config = Config {
            node: self.hosts[SEED].id,
            role: Role::Seed,
            image: self.image,
            geometry: self.geometry,
            have: Bitfield::full(self.geometry.chunk_count()),
            rack: None,
            rng_seed: self.rng.next_u64(),
        };
        self.hosts[SEED].node = Node::new(config, self.now());
        self.states[SEED] = State::Alive;
        self.down[SEED].clear();
        self.take_up(SEED);
    }
}
