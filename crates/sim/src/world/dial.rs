//! How hosts come to be connected: dials of nodes, and the agent's own dial of the seed.

use super::wire::Conn;
use super::{Event, SEED, State, World, chance};
use crate::faults::Happening;
use rootswarm_swarm::{Input, NodeId, Role, Wire};
use std::net::SocketAddr;

impl World<'_> {
    /// Whether a dial between these that begins now comes to nothing.
    pub(super) fn loses_dial(&mut self, from: usize, to: usize) -> bool {
        let (share, until_us) = self.lost_dials;
        let may_be_lost = share > 0.0
            && self.now_ns / 1000 < until_us
            && (self.hosts[from].loses_dials || self.hosts[to].loses_dials);
        may_be_lost && chance(&mut self.rng, share)
    }

    pub(crate) fn dial(&mut self, host: usize, node: NodeId, addr: SocketAddr) {
        let to = self.by_id.get(&node).copied();
        let at = to.filter(|to| self.hosts[*to as usize].addr == addr);
        self.sometimes.note(Happening::Dial);
        let Some(to) = at else {
            self.checkers.dialed_nobody(host, node);
            return;
        };
        let lost = self.loses_dial(host, to as usize);
        if lost {
            self.sometimes.note(Happening::LostDial);
        }
        let passes = self.firewalls.pass(host as u32, to, self.now_ns);
        if !passes {
            self.sometimes.note(Happening::FirewalledDial);
        }
        let answered = !lost && passes && self.states[to as usize] == State::Alive;
        let delay_us = if answered {
            let round_trip = 2 * self.plan.latency_us + self.rng.between(0, self.plan.jitter_us);
            self.plan.handshake_us + round_trip
        } else {
            self.plan.dial_timeout_us
        };
        let from = host as u32;
        self.events.push(
            self.now_ns + delay_us * 1000,
            Event::DialEnds { from, to, answered },
        );
    }

    pub(crate) fn dial_ends(&mut self, from: usize, to: usize, answered: bool) {
        if self.states[from] == State::Frozen {
            let (from_, to) = (from as u32, to as u32);
            let event = Event::DialEnds {
                from: from_,
                to,
                answered,
            };
            self.hosts[from].held.push(event);
            return;
        }
        if answered && self.states[to] == State::Alive {
            self.connect(from, to);
        } else {
            let node = self.hosts[to].id;
            self.input(
                from,
                Input::DialFailed {
                    node,
                    answered: false,
                },
            );
        }
    }

    /// The handshake is done: first the dialer knows, then the other side.
    fn connect(&mut self, from: usize, to: usize) {
        if self.states[from] != State::Alive {
            return;
        }
        let conn = self.conns.len() as u32;
        self.conns.push(Conn::new(from, to));
        self.open.push([true, false]);
        self.hosts[from].conns.push(conn);
        let after_ns = self.plan.latency_us * 1000;
        // Before anything that the dialer sends now: the handshake's last packet carries it.
        self.events
            .push(self.now_ns + after_ns - 1, Event::Accepted { conn });
        self.connected(conn, from, to, true);
    }

    pub(crate) fn accepted(&mut self, conn: u32) {
        let [from, to] = self.conns[conn as usize].hosts.map(|host| host as usize);
        if self.states[to] == State::Frozen {
            self.hosts[to].held.push(Event::Accepted { conn });
            return;
        }
        if self.states[to] != State::Alive {
            // It died within the handshake: the dialer has a connection to nobody.
            let at_ns = self.now_ns + self.plan.idle_us * 1000;
            self.events
                .push(at_ns, Event::IdleTimeout { conn, side: 0 });
            return;
        }
        if !self.open[conn as usize][0] {
            return;
        }
        self.open[conn as usize][1] = true;
        self.hosts[to].conns.push(conn);
        self.connected(conn, to, from, false);
    }

    fn connected(&mut self, conn: u32, host: usize, other: usize, dialed: bool) {
        let (node, addr, role) = {
            let other = &self.hosts[other];
            (other.id, other.addr, other.role)
        };
        self.input(
            host,
            Input::Connected {
                conn: Self::input_conn(conn),
                node,
                addr,
                role,
                dialed,
                wire: Wire::V4,
            },
        );
    }

    /// The agent dials its seed, again and again.
    pub(crate) fn dial_seed(&mut self, host: usize) {
        let round_trip = 2 * self.plan.latency_us + self.rng.between(0, self.plan.jitter_us);
        let delay_us = self.plan.handshake_us + round_trip;
        let from = host as u32;
        self.events
            .push(self.now_ns + delay_us * 1000, Event::SeedDialEnds { from });
    }

    pub(crate) fn seed_dial_ends(&mut self, host: usize) {
        if self.states[host] == State::Frozen {
            let from = host as u32;
            self.hosts[host].held.push(Event::SeedDialEnds { from });
            return;
        }
        if self.states[SEED] == State::Alive {
            self.hosts[host].seed_failures = 0;
            if self.hosts[host].is_member {
                self.connect(host, SEED);
            } else if self.states[host] == State::Alive {
                self.join(host);
            }
        } else {
            self.redial_seed(host);
        }
    }

    /// With jitter, and less and less often: a seed that comes back must not be run over.
    fn redial_seed(&mut self, host: usize) {
        let failures = self.hosts[host].seed_failures;
        self.hosts[host].seed_failures += 1;
        let most_us = 250_000u64 << failures.min(5);
        let delay_us = self.rng.between(most_us / 2, most_us);
        let from = host as u32;
        self.events
            .push(self.now_ns + delay_us * 1000, Event::SeedDialEnds { from });
    }

    /// A connection has ended; if it was the one to the seed, the agent dials again.
    pub(crate) fn seed_lost(&mut self, host: usize, conn: u32) {
        let it = &self.conns[conn as usize];
        let to_seed = it.hosts[1] as usize == SEED && it.hosts[0] as usize == host;
        if to_seed && self.hosts[host].role == Role::Peer {
            self.redial_seed(host);
        }
    }
}
