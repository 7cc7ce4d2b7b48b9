//! Reads ahead. In a large swarm nearly everything an event touches lies in memory, not in a cache: the
//! burst, then its receiver's link and upload, or a host's inbox and then its node. One after the other,
//! these waits are most of a run's time. So now and then a few events to come are looked at together, in
//! stages: the reads of one stage do not depend on each other, and the processor waits for all of them at
//! once. Nothing is changed here, and nothing follows from what is read.

use super::inbox::Arrival;
use super::{Event, World};
use rootswarm_swarm::Output;
use std::collections::VecDeque;
use std::hint::black_box;

/// Events looked at together: as many reads as a core has under way, or a few more.
pub(super) const AHEAD: usize = 16;

/// What an event to come is about.
#[derive(Clone, Copy, Default)]
struct Target {
    host: usize,
    /// For a host's links, or for its node too?
    node: bool,
    upload: Option<u32>,
}

impl World<'_> {
    /// Reads what the next events will need.
    pub(super) fn look_ahead(&self) {
        let mut targets = [Target::default(); AHEAD];
        let mut count = 0;
        for (target, event) in targets.iter_mut().zip(self.events.upcoming()) {
            *target = self.target(event);
            count += 1;
        }
        let targets = &targets[..count];
        let mut read = 0;
        for target in targets {
            if target.node {
                let items = self.inboxes[target.host].iter();
                read ^= items.fold(0, |read, item| read ^ item.at_ns);
                read ^= self.hosts[target.host].node.next_timeout().0;
            } else {
                read ^= self.down[target.host].queued_bytes_max;
            }
            if let Some(upload) = target
                .upload
                .and_then(|slot| self.uploads.get(slot as usize))
            {
                read ^= u64::from(upload.to);
            }
        }
        black_box(read);
    }

    /// Reads what the bursts of a round will need: their uploads, then their receivers' links. Says how
    /// many there are.
    pub(super) fn read_ahead_of_round(&self, host: usize) -> usize {
        let mut receivers = [0; AHEAD];
        let mut count = 0;
        for key in self.up[host].waiting() {
            let to = self.uploads.get(key.slot as usize).map(|upload| upload.to);
            if let (Some(to), Some(place)) = (to, receivers.get_mut(count)) {
                *place = to as usize;
            }
            count += 1;
        }
        let read = receivers.iter().take(count);
        black_box(read.fold(0, |read, host| read ^ self.down[*host].read_ahead()));
        count
    }

    /// Reads what the first things in a host's inbox are about: peers, and what is known of them.
    pub(super) fn read_ahead_of_turn(&self, host: usize, due: usize) {
        let node = &self.hosts[host].node;
        let mut read = 0;
        for item in self.inboxes[host].iter().take(due) {
            if let Arrival::Control { body, .. } = &item.what
                && let Some((conn, index)) = body.subject()
            {
                read ^= u64::from(node.read_ahead(Self::input_conn(conn), index));
                read ^= u64::from(self.open[conn as usize][0]);
            }
        }
        black_box(read);
    }

    /// Reads what it takes to send the messages among these outputs: their connections, and their
    /// receivers' links and inboxes.
    pub(super) fn read_ahead_of_outputs(&self, outputs: &VecDeque<Output>) {
        if outputs.len() < 2 {
            return;
        }
        let mut read = 0;
        for output in outputs {
            if let Output::Send { conn, .. } = output {
                let [one, other] = self.conns[conn.0 as usize].hosts.map(|host| host as usize);
                // One of the two is the sender, which is at hand.
                for host in [one, other] {
                    read ^= self.down[host].read_ahead();
                    read ^= self.inboxes[host]
                        .iter()
                        .next_back()
                        .map_or(0, |item| item.at_ns);
                }
            }
        }
        black_box(read);
    }

    fn target(&self, event: Event) -> Target {
        match event {
            Event::Turn(host) => Target {
                host: host as usize,
                node: true,
                upload: None,
            },
            Event::Burst(place) => {
                self.bursts
                    .get(place)
                    .map_or(Target::default(), |burst| Target {
                        host: burst.to as usize,
                        node: false,
                        upload: Some(burst.upload.slot),
                    })
            }
            Event::UplinkFree(host) => {
                let host = host as usize;
                Target {
                    host,
                    node: false,
                    upload: self.up[host].waiting().next().map(|key| key.slot),
                }
            }
            _ => Target::default(),
        }
    }
}
