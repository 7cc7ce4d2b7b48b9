//! Whose admission was taken back: seeds say it, nodes part from them at once.
//!
//! The list is whole in each message, so that it does not matter which one was missed, and carries a
//! version, so that of several seeds the newest word counts. Certificates, and with them the epoch,
//! are judged by the owner of the node ([`Output::Revoked`]).

use super::{CloseReason, Node, Output};
use crate::id::{ConnId, Role};
use crate::message::{Message, Revocations};
use crate::time::Instant;

impl Node {
    /// Takes a list, unless it is no newer than the one at hand.
    pub(super) fn revoke(&mut self, list: Revocations, now: Instant) {
        if list.version <= self.revocations.version {
            return;
        }
        self.revoked = list.nodes.iter().copied().collect();
        self.revocations = list.clone();
        for node in &list.nodes {
            self.membership.forget(*node);
            let Some(conn) = self.peers.conn_of(*node) else {
                continue;
            };
            // A seed's key ends with its process; it is not in such lists.
            if self
                .peers
                .get(conn)
                .is_some_and(|peer| peer.role == Role::Peer)
            {
                self.close(conn, CloseReason::Revoked, now);
            }
        }
        if self.role == Role::Seed {
            let told: Vec<ConnId> = self
                .peers
                .iter()
                .filter(|peer| peer.active)
                .map(|peer| peer.conn)
                .collect();
            for conn in told {
                self.tell_revoked(conn);
            }
        }
        self.outputs.push_back(Output::Revoked(list));
    }

    /// From a seed to a node: the list, if there ever was one.
    pub(super) fn tell_revoked(&mut self, conn: ConnId) {
        if self.revocations.version > 0 {
            self.send(conn, Message::Revoked(self.revocations.clone()));
        }
    }
}
