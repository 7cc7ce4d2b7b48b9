//! Reads ahead. In a large swarm nearly everything an event touches lies in memory, not in a cache: the
//! packet, then its receiver's link and node, then what that node knows of the sender. One after the
//! other, these waits are most of a run's time. So now and then a few events to come are looked at
//! together, in stages: the reads of one stage do not depend on each other, and the processor waits
//! for all of them at once. Nothing is changed here, and nothing follows from what is read.

use super::wire::Body;
use super::{Event, World};
use rootswarm_image::ChunkIndex;
use rootswarm_swarm::{ConnId, Message};
use std::hint::black_box;

/// Events looked at together: as many reads as a core has under way, or a few more.
pub(super) const AHEAD: usize = 16;

/// What an event to come is about.
#[derive(Clone, Copy, Default)]
struct Target {
    host: usize,
    /// For a host's links, or for its node too?
    node: bool,
    /// A message of this connection, which names this chunk.
    message: Option<(ConnId, ChunkIndex)>,
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
            read ^= self
                .down
                .get(target.host)
                .map_or(0, |port| port.queued_bytes_max);
            read ^= self.wake_ns.get(target.host).copied().unwrap_or(0);
            if let Some(upload) = target
                .upload
                .and_then(|slot| self.uploads.get(slot as usize))
            {
                read ^= u64::from(upload.to);
            }
        }
        for target in targets.iter().filter(|target| target.node) {
            let node = &self.hosts[target.host].node;
            read ^= node.next_timeout().0;
            if let Some((conn, index)) = target.message {
                read ^= u64::from(node.peer_holds(conn, index));
                read ^= u64::from(node.replicas(index));
            }
        }
        black_box(read);
    }

    fn target(&self, event: Event) -> Target {
        match event {
            Event::Arrive(slot) | Event::Deliver(slot) => {
                let Some(packet) = self.packets.get(slot) else {
                    return Target::default();
                };
                let message = match &packet.body {
                    Body::Message { conn, message } => {
                        Some((Self::input_conn(*conn), named_chunk(message)))
                    }
                    _ => None,
                };
                Target {
                    host: packet.to as usize,
                    node: matches!(event, Event::Deliver(_)),
                    message,
                    upload: None,
                }
            }
            Event::Burst(place) => {
                self.bursts
                    .get(place)
                    .map_or(Target::default(), |burst| Target {
                        host: burst.to as usize,
                        upload: Some(burst.upload.slot),
                        ..Target::default()
                    })
            }
            Event::UplinkFree(host) => {
                let host = host as usize;
                Target {
                    host,
                    upload: self.up[host].ring.front().map(|key| key.slot),
                    ..Target::default()
                }
            }
            Event::Wake(host) => Target {
                host: host as usize,
                node: true,
                ..Target::default()
            },
            Event::VerifyDone(key) | Event::UploadOver { upload: key, .. } => Target {
                upload: Some(key.slot),
                ..Target::default()
            },
            _ => Target::default(),
        }
    }
}

fn named_chunk(message: &Message) -> ChunkIndex {
    match message {
        Message::Have(runs) => runs.first().map_or(ChunkIndex(0), |run| run.first),
        Message::Request(index) | Message::Busy(index) | Message::Cancel(index) => *index,
        Message::Offer(chunks) => chunks.first().copied().unwrap_or(ChunkIndex(0)),
        _ => ChunkIndex(0),
    }
}
