//! Addresses that change under connections, on this side and on the other. What follows is the node's to
//! decide.

use std::collections::BTreeMap;
use std::time::Duration;

use rootswarm_swarm::{ConnId, Input};

use super::Driver;
use crate::addresses::is_local;

/// How long a seed waits for a node whose address has changed to connect anew, before it makes it do so.
const MOVED_PATIENCE: Duration = Duration::from_millis(500);

impl Driver {
    /// Parts from those who dialed this host at an address that is gone: they cannot follow.
    pub(super) fn drop_unaddressed(&mut self) {
        let mut known = BTreeMap::new();
        let mut gone = Vec::new();
        for (conn, link) in &self.links {
            let Some(address) = link.local_address() else {
                continue;
            };
            if !*known.entry(address).or_insert_with(|| is_local(address)) {
                gone.push(*conn);
            }
        }
        for conn in gone {
            self.tell(Input::LocalGone { conn });
        }
    }

    /// Looks whether those who dialed this host send from elsewhere by now. A seed lets a moment pass, in
    /// which a node connects anew by itself.
    pub(super) fn look_for_moved(&mut self) {
        let patience = match self.dialer {
            None => MOVED_PATIENCE,
            Some(_) => Duration::ZERO,
        };
        let moved: Vec<ConnId> = self
            .links
            .iter_mut()
            .filter_map(|(conn, link)| link.has_moved(patience).then_some(*conn))
            .collect();
        for conn in moved {
            self.tell(Input::RemoteMoved { conn });
        }
    }
}
