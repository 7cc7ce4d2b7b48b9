//! A running server follows the list of revocations: the swarm is told at once what the admin, or the
//! mirror, has written down, and what names mean is signed anew when an epoch has begun.
//!
//! `revoke --all` writes the list first and signs the names after it. A command that was cut short between the
//! two leaves a server that would go on to give out tags of the epoch before, which an initrd that is built
//! then does not take.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use rootswarm_image::SwarmKey;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::revocation::{Contents, RevocationList};
use crate::state::StateDir;
use crate::swarm_side::SwarmSide;
use crate::token::{Tokens, now_unix_s};

/// How often the file of revocations is looked at: one `stat` call. A node that is revoked gets no
/// byte more after this.
const POLL: Duration = Duration::from_millis(100);

/// How long after a failure names are signed again.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// Tells the swarm of revocations as soon as the admin, or the mirror, has written them down.
/// `held` is what the swarm was told at start: an older file does not take its place. Who waits for a new
/// epoch is told by `epochs`, and at a mirror no download goes on with one of the `tokens` that was used before it.
pub(crate) async fn follow(
    revoked: RevocationList,
    mut held: Contents,
    tokens: Tokens,
    swarm: Arc<SwarmSide>,
    epochs: watch::Sender<u32>,
) {
    // Watched by what a rename changes; one that was written before the first look was read at start,
    // and once more is harmless.
    let stamp = |list: &RevocationList| {
        let found = std::fs::metadata(list.path()).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec()))
    };
    let mut seen = None;
    let mut told = String::new();
    let mut poll = tokio::time::interval(POLL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        poll.tick().await;
        let (list, before) = (revoked.clone(), held.clone());
        let look = move || {
            let now = stamp(&list);
            (now != seen).then(|| (now, list.put_back(&before)))
        };
        let end_used = |written: Option<(u64, i64, i64)>| {
            let (_, at_s, _) = written?;
            let (tokens, at_s) = (tokens.clone(), u64::try_from(at_s).ok()?);
            Some(spawn_blocking(move || tokens.end_used(at_s, now_unix_s())))
        };
        // A disk that hangs holds this up, and nothing else.
        let Ok(Some((now, loaded))) = spawn_blocking(look).await else {
            continue;
        };
        match loaded {
            Ok((contents, line)) => {
                if let Some(line) = line {
                    tracing::error!("{line}");
                }
                let has_begun = contents.epoch > held.epoch;
                held = contents;
                seen = now;
                told = String::new();
                swarm.revoke(held.to_wire()).await;
                // Where it was a command it has done that. A mirror may hold some that its first seed knows
                // nothing of.
                if has_begun
                    && tokens.are_a_mirrors()
                    && let Some(ended) = end_used(now)
                    && let Ok(Err(error)) = ended.await
                {
                    tracing::error!(
                        "downloads by HTTP may go on with tokens that were used before epoch {}: {error}",
                        held.epoch
                    );
                }
                epochs.send_if_modified(|epoch| std::mem::replace(epoch, held.epoch) != held.epoch);
            }
            // Looked at again, as a lock that is held passes; said once.
            Err(error) => {
                let line = format!("the last revocations go on to hold: {error}");
                if line != told {
                    tracing::error!("{line}");
                }
                told = line;
            }
        }
    }
}

/// Signs what names mean anew in each epoch that begins while the server runs, unless the command that began
/// it has done so; and once at the beginning. Ends with the last sender.
pub(crate) async fn renew_tags(
    state: StateDir,
    key: Arc<SwarmKey>,
    mut epochs: watch::Receiver<u32>,
) {
    // Nothing is given up for it.
    let state = state.keeping_all();
    let mut told = String::new();
    loop {
        let epoch = *epochs.borrow_and_update();
        let (writer, key) = (state.clone(), key.clone());
        let renewed = spawn_blocking(move || writer.renew_tags(&key)).await;
        let failed = match renewed {
            Ok(Ok(count)) => {
                if count > 0 {
                    tracing::info!("epoch {epoch} has begun: {count} names are signed anew");
                }
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        match failed {
            None => {
                told.clear();
                if epochs.changed().await.is_err() {
                    return;
                }
            }
            Some(reason) => {
                let line = format!(
                    "names are still signed in an epoch before {epoch}, and initrds that are built now \
                     do not take them: {reason} (tried again every second)"
                );
                if line != told {
                    tracing::error!("{line}");
                }
                told = line;
                tokio::time::sleep(RENEW_AGAIN).await;
            }
        }
    }
}
