//! One image on its way to a mirror, and what becomes of one that could not be fetched.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rootswarm_image::{Manifest, SignedTag, SwarmKey};
use rootswarm_transport::mirror::{MirrorError, Primary};
use rootswarm_transport::store::{ChunkStore, StoreError};
use tokio::task::spawn_blocking;

use super::{POLL, node};
use crate::publish::Workspace;
use crate::state::StateDir;

/// A download without a new chunk for so long is ended, and gone on with after [`RETRY`].
const STALLED: Duration = Duration::from_secs(60);

/// An image that could not be fetched is left alone for so long.
pub(super) const RETRY: Duration = Duration::from_secs(20);

/// How long the mirror goes on serving, as a node, what it has just fetched; then it is its seed.
const LEAVE: Duration = Duration::from_secs(2);

/// Why an image was not fetched.
#[derive(Debug)]
pub(super) enum NotMirrored {
    /// The primary has not begun to serve it, or does not any more.
    NotServed(String),
    /// Something is wrong.
    Failed(String),
}

/// An image that could not be fetched.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) since: Instant,
    last: Instant,
    pub(super) wait: Duration,
    said: Option<String>,
}

impl Default for Failed {
    fn default() -> Failed {
        let now = Instant::now();
        Failed {
            since: now,
            last: now,
            wait: RETRY,
            said: None,
        }
    }
}

impl Failed {
    /// Takes note of an attempt that has just failed; returns what is to be said. The primary tells what is
    /// published a moment before it serves it: it is asked again soon, and nothing is said for some time.
    pub(super) fn again(&mut self, reason: NotMirrored) -> Option<String> {
        self.last = Instant::now();
        let (is_passing, reason) = match reason {
            NotMirrored::NotServed(reason) => (self.since.elapsed() < RETRY, reason),
            NotMirrored::Failed(reason) => (false, reason),
        };
        self.wait = if is_passing { POLL } else { RETRY };
        if is_passing || self.said.as_ref() == Some(&reason) {
            return None;
        }
        self.said = Some(reason.clone());
        Some(reason)
    }

    /// Whether it is time for the next attempt.
    pub(super) fn is_over(&self) -> bool {
        self.last.elapsed() >= self.wait
    }
}

/// One image on its way here.
pub(super) struct Download {
    pub(super) primary: Arc<Primary>,
    pub(super) state: StateDir,
    pub(super) key: Arc<SwarmKey>,
    pub(super) tag: SignedTag,
    pub(super) epoch: u32,
    pub(super) bind: Option<IpAddr>,
    pub(super) upload_limit_bytes_per_s: Option<u64>,
}

impl Download {
    pub(super) async fn run(self) -> Result<(), NotMirrored> {
        let manifest = self.primary.manifest(self.tag.unverified()).await;
        let manifest = manifest.map_err(|error| match error {
            MirrorError::Refused { .. } => NotMirrored::NotServed(error.to_string()),
            _ => NotMirrored::Failed(error.to_string()),
        })?;
        self.fetch(manifest).await.map_err(NotMirrored::Failed)
    }

    async fn fetch(self, manifest: Arc<Manifest>) -> Result<(), String> {
        let tag = self.tag.unverified().clone();
        let said = |error: &dyn fmt::Display| error.to_string();
        let node = node(self.bind, &self.key, self.upload_limit_bytes_per_s);
        let node = node.await.map_err(|e| said(&e))?;
        let joined = self
            .primary
            .admit(&node, self.epoch, &tag, manifest.clone())
            .map_err(|e| said(&e))?;
        let opened = {
            let (state, manifest) = (self.state.clone(), manifest.clone());
            spawn_blocking(move || open(&state, manifest)).await
        };
        let (workspace, store) = opened.map_err(|e| said(&e))??;
        let swarm = node.start(joined, store.clone()).map_err(|e| said(&e))?;
        loop {
            match tokio::time::timeout(POLL, swarm.completed()).await {
                Ok(completed) => break completed.map_err(|e| said(&e))?,
                Err(_) if Duration::from_millis(swarm.status().idle_ms) > STALLED => {
                    return Err(format!("nothing came for {} s", STALLED.as_secs()));
                }
                Err(_) => {}
            }
        }
        swarm.shutdown(LEAVE).await;
        let (state, signed) = (self.state, self.tag);
        let publish = move || {
            store.ensure_complete().map_err(|e| e.to_string())?;
            store.sync().map_err(|e| e.to_string())?;
            drop(store);
            workspace
                .adopt(&state, &manifest, &signed)
                .map_err(|e| e.to_string())
        };
        spawn_blocking(publish).await.map_err(|e| said(&e))?
    }
}

/// Room for the whole image, taken now; with what an earlier attempt got of it, verified again.
fn open(state: &StateDir, manifest: Arc<Manifest>) -> Result<(Workspace, ChunkStore), String> {
    let workspace = Workspace::resume(state, manifest.id()).map_err(|error| error.to_string())?;
    let path = workspace.path().join("image");
    let store = match path.exists() {
        true => match ChunkStore::resume(&path, manifest.clone()) {
            // Cut off while room was taken for it.
            Err(StoreError::WrongLength { .. }) => ChunkStore::create(&path, manifest),
            resumed => resumed,
        },
        false => ChunkStore::create(&path, manifest),
    };
    Ok((workspace, store.map_err(|error| error.to_string())?))
}
