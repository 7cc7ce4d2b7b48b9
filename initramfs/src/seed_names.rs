//! Where the seeds are by now: names mean other addresses after a while, and a node that runs for weeks
//! should find a seed that has moved.
//!
//! Names are looked up again only while no seed is connected. What an address is good for is the
//! transport's to find out.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rootswarm_image::{Host, HostPort, SWARM_PORT};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::network::{self, NetworkError, Route};
use crate::resolve::Resolver;

/// What the other seeds' name servers have when one seed has a route: little at first, because that
/// seed is mostly there; when it was not, as long as a lookup takes (`crate::resolve`).
const FIRST_NAMES: Duration = Duration::from_millis(500);
const LATE_NAMES: Duration = Duration::from_secs(9);

/// How long no seed may be connected before its name is looked up, and between two look-ups: a seed that
/// only restarts is back by then.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The seeds of a rooturl.
#[derive(Debug)]
pub struct SeedNames {
    hosts: Vec<HostPort>,
    bind: Option<IpAddr>,
    resolver: Resolver,
    /// Whether they were looked up already.
    tried: bool,
    due: Instant,
    lookup: Option<JoinHandle<Result<Vec<Route>, NetworkError>>>,
}

impl SeedNames {
    /// Of these hosts, as seen from `bind`.
    pub fn new(hosts: &[HostPort], bind: Option<IpAddr>) -> SeedNames {
        SeedNames {
            hosts: hosts.to_vec(),
            bind,
            resolver: Resolver::default(),
            tried: false,
            due: Instant::now() + LOOK_AGAIN,
            lookup: None,
        }
    }

    /// Keeps what is known about names now: the root is about to be another one.
    pub fn remember(&mut self) {
        self.resolver.remember();
    }

    /// Looks them up.
    ///
    /// # Errors
    /// None of them has an address with a route.
    pub async fn look_up(&mut self) -> Result<Vec<Route>, NetworkError> {
        let tried = std::mem::replace(&mut self.tried, true);
        let others_have = if tried { LATE_NAMES } else { FIRST_NAMES };
        let (resolver, hosts) = (&self.resolver, &self.hosts);
        network::reachable(resolver, hosts, SWARM_PORT, self.bind, others_have).await
    }

    /// To be called every now and then with whether a seed is connected. Gives their addresses when it
    /// has looked them up again.
    pub async fn addresses(&mut self, is_connected: bool) -> Option<Vec<SocketAddr>> {
        if is_connected {
            self.due = Instant::now() + LOOK_AGAIN;
            return None;
        }
        if let Some(lookup) = self.lookup.take_if(|lookup| lookup.is_finished()) {
            self.due = Instant::now() + LOOK_AGAIN;
            let routes = lookup.await.ok()?.ok()?;
            return Some(routes.into_iter().map(|route| route.host).collect());
        }
        let is_named = |host: &HostPort| matches!(host.host, Host::Name(_));
        if self.lookup.is_none() && Instant::now() >= self.due && self.hosts.iter().any(is_named) {
            let (resolver, hosts) = (self.resolver.clone(), self.hosts.clone());
            let bind = self.bind;
            self.lookup = Some(tokio::spawn(async move {
                network::reachable(&resolver, &hosts, SWARM_PORT, bind, LATE_NAMES).await
            }));
        }
        None
    }
}

impl Drop for SeedNames {
    fn drop(&mut self) {
        if let Some(lookup) = &self.lookup {
            lookup.abort();
        }
    }
}
