//! A running swarm as its owner sees it: how far it is, when it is done, chunks from elsewhere.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Endpoint, VarInt};
use rootswarm_image::ChunkIndex;
use tokio::time::timeout;

use crate::driver::{Command, Handle};
use crate::seed_keeper::SeedKeepers;
use crate::status::{Phase, SwarmStatus};
use crate::store::ChunkStore;

/// A swarm that this node takes part in. The swarm ends when this is dropped.
pub struct SwarmHandle {
    pub(crate) handle: Handle,
    pub(crate) endpoint: Endpoint,
    pub(crate) store: Option<ChunkStore>,
    pub(crate) seeds: SeedKeepers,
    pub(crate) tasks: tokio::task::JoinSet<()>,
}

/// The image will not be completed.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// This machine cannot store it.
    #[error("{0}")]
    Store(String),
    /// The swarm was shut down.
    #[error("the download was ended before it was complete")]
    Ended,
}

impl SwarmHandle {
    /// A snapshot, at most a second old.
    pub fn status(&self) -> SwarmStatus {
        self.handle.status()
    }

    /// Waits until every chunk is here.
    ///
    /// # Errors
    /// See [`SwarmError`].
    pub async fn completed(&self) -> Result<(), SwarmError> {
        let mut phase = self.handle.phase.clone();
        match phase
            .wait_for(|phase| *phase != Phase::Fetching)
            .await
            .as_deref()
        {
            Ok(Phase::Complete) => Ok(()),
            Ok(Phase::Failed(reason)) => Err(SwarmError::Store(reason.clone())),
            Ok(Phase::Fetching) | Err(_) => Err(SwarmError::Ended),
        }
    }

    /// The chunks that are not here yet.
    pub fn missing(&self) -> Vec<ChunkIndex> {
        self.store
            .as_ref()
            .map(|store| store.have().iter_missing().collect())
            .unwrap_or_default()
    }

    /// A chunk came into the store by another way, such as HTTP: it is announced to the others.
    pub fn stored(&self, index: ChunkIndex) {
        // The queue is full only while the driver has much to do; it then finds the chunk in the store.
        let _ = self.handle.commands.try_send(Command::Stored(index));
    }

    /// The seeds are at these addresses from now on: what their names mean changes.
    pub fn seeds_are_at(&mut self, addresses: &[SocketAddr]) {
        self.seeds.keep(addresses, None);
    }

    /// What this node shows to a seed's HTTP side as a member ([`crate::http_proof::MEMBER`]); `None` while it
    /// is being let in anew.
    #[must_use]
    pub fn http_member(&self) -> Option<String> {
        self.seeds.http_member()
    }

    /// A reader waits for this chunk: it is fetched before all others.
    pub fn want(&self, index: ChunkIndex) {
        let _ = self.handle.commands.try_send(Command::Want(index));
    }

    /// Finishes the uploads under way within `grace`, then leaves the swarm.
    pub async fn shutdown(mut self, grace: Duration) {
        self.tasks.abort_all();
        drop(self.seeds);
        self.handle.shutdown(grace).await;
        self.endpoint
            .close(VarInt::from_u32(0), b"this node leaves");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}
