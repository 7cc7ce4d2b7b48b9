//! A running swarm as its owner sees it: how far it is, when it is done, chunks from elsewhere.

use std::time::Duration;

use quinn::{Endpoint, VarInt};
use rootswarm_image::{ChunkError, ChunkIndex, Verifier};
use tokio::time::timeout;

use crate::driver::{Command, Handle};
use crate::status::{Phase, SwarmStatus};
use crate::store::{ChunkStore, StoreError};

/// A swarm that this node takes part in. The swarm ends when this is dropped.
pub struct SwarmHandle {
    pub(crate) handle: Handle,
    pub(crate) endpoint: Endpoint,
    pub(crate) store: Option<ChunkStore>,
    pub(crate) verifier: Verifier,
    pub(crate) tasks: tokio::task::JoinSet<()>,
}

/// Why a chunk that came by another way was not taken.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It is not the chunk it is said to be.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This node has the image already and takes nothing.
    #[error("this node holds the whole image")]
    NotFetching,
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

    /// Verifies, stores and announces a chunk that came by another way, such as HTTP. Blocks for
    /// as long as hashing and storing take.
    ///
    /// # Errors
    /// See [`OfferError`].
    pub fn offer(&self, index: ChunkIndex, bytes: Vec<u8>) -> Result<(), OfferError> {
        let store = self.store.as_ref().ok_or(OfferError::NotFetching)?;
        store.write(self.verifier.verify(index, bytes)?)?;
        // The queue is full only while the driver has much to do; it then learns of the chunk when
        // somebody sends it once more.
        let _ = self.handle.commands.try_send(Command::Stored(index));
        Ok(())
    }

    /// A reader waits for this chunk: it is fetched before all others.
    pub fn want(&self, index: ChunkIndex) {
        let _ = self.handle.commands.try_send(Command::Want(index));
    }

    /// Finishes the uploads under way within `grace`, then leaves the swarm.
    pub async fn shutdown(mut self, grace: Duration) {
        self.tasks.abort_all();
        self.handle.shutdown(grace).await;
        self.endpoint
            .close(VarInt::from_u32(0), b"this node leaves");
        let _ = timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}
