//! Waits until the server that runs on a state directory serves what was just changed in it.
//!
//! Whoever publishes and at once boots a machine finds the image. The server is asked what it serves
//! ([`crate::status`]); it looks at the state directory by itself, so a server of an earlier release is
//! waited for as well. That a server runs is told by the lock it holds, not by its answer: one that hangs
//! is not taken for none.

use std::time::{Duration, Instant};

use rootswarm_image::{ImageName, Tag};

use crate::revocation::Contents;
use crate::state::StateDir;
use crate::status::{self, ImageEntry, StatusDocument};

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// That answers, or that should.
    answering: Duration,
    /// That is checking what the very name means, as it found it at its start.
    loading: Duration,
}

/// 20 TB from a disk of 10 GB/s, or 1 TB from one of 0.5, may be checked.
const PATIENCE: Patience = Patience {
    answering: Duration::from_secs(30),
    loading: Duration::from_secs(2_000),
};

/// A list of revocations is read ten times a second.
const PATIENCE_REVOKING: Patience = Patience {
    answering: Duration::from_secs(5),
    loading: Duration::from_secs(5),
};

/// How often it is asked.
const POLL: Duration = Duration::from_millis(50);

/// Why the server is not known to serve what was changed.
#[derive(Debug, thiserror::Error)]
#[error("{change} in the state directory {}, but the server that runs on it {reason} (see its log, and `rootswarm status`)", state.display())]
pub struct NotServed {
    change: String,
    state: std::path::PathBuf,
    reason: String,
}

/// Waits until the server, if one runs, serves this tag. One that still waits for its address is not
/// waited for, which is said.
///
/// # Errors
/// It does not within half a minute, or, if it is still loading that name, a good half hour.
pub fn until_served(state: &StateDir, tag: &Tag) -> Result<(), NotServed> {
    let serves = |document: &StatusDocument| {
        // Something newer may have come meanwhile, under another image: then this is over, too.
        document.images.iter().any(|image| has_version(image, tag))
    };
    let change = format!("{} is published", tag.name);
    wait(state, Some(&tag.name), &change, PATIENCE, serves)
}

/// Waits until the server, if one runs, does not serve this name any more.
///
/// # Errors
/// As with [`until_served`].
pub fn until_gone(state: &StateDir, name: &ImageName) -> Result<(), NotServed> {
    let is_gone = |document: &StatusDocument| {
        let mut names = document.images.iter().flat_map(|image| &image.names);
        !names.any(|found| found == name.as_str())
    };
    let change = format!("{name} is removed");
    wait(state, Some(name), &change, PATIENCE, is_gone)
}

/// Waits until this list of revocations, or a newer one, holds at the server, if one runs; `change` is what was
/// done to it. A server of an earlier release does not say.
///
/// # Errors
/// It does not within five seconds: whoever was revoked goes on.
pub fn until_it_holds(state: &StateDir, list: &Contents, change: &str) -> Result<(), NotServed> {
    let holds = |document: &StatusDocument| {
        let has_none = document.revocations.is_none() && document.waiting_for.is_none();
        has_none || document.revocations >= Some(list.version)
    };
    wait(state, None, change, PATIENCE_REVOKING, holds)
}

/// A server of an earlier release does not say which version it serves, only which image.
fn has_version(image: &ImageEntry, tag: &Tag) -> bool {
    let name = tag.name.as_str();
    match image.versions.get(name) {
        Some(version) => *version >= tag.version,
        None => {
            image.id == tag.id.to_string()
                && image.versions.is_empty()
                && image.names.iter().any(|found| found == name)
        }
    }
}

/// Whether what was signed just now is nothing to the server.
fn runs_with_another_key(state: &StateDir, document: &StatusDocument) -> bool {
    let here = || Some(state.existing_key().ok()??.public().to_string());
    let there = document.swarm_key.as_ref();
    there.is_some_and(|there| here().is_some_and(|here| here != *there))
}

fn wait(
    state: &StateDir,
    name: Option<&ImageName>,
    change: &str,
    patience: Patience,
    is_done: impl Fn(&StatusDocument) -> bool,
) -> Result<(), NotServed> {
    let begin = Instant::now();
    // What else it loads, perhaps a file that never comes, is none of this name's business.
    let is_loading = |document: &StatusDocument| {
        let mut loading = document.loading.iter();
        name.is_some_and(|name| loading.any(|loading| loading == name.as_str()))
    };
    let mut loading_since = None;
    let mut said = false;
    loop {
        let asked = Instant::now();
        let answer = status::ask(&state.control_socket());
        let reason = match &answer {
            Ok(document) if is_done(document) => return Ok(()),
            Ok(StatusDocument {
                waiting_for: Some(address),
                ..
            }) => {
                tracing::info!(
                    "{change}: the server waits for {address}, which no interface has yet, and takes it \
                     up as soon as it can listen there"
                );
                return Ok(());
            }
            Ok(document) if runs_with_another_key(state, document) => {
                return Err(NotServed {
                    change: change.to_owned(),
                    state: state.root().to_owned(),
                    reason: "runs with another swarm key than is there now; restart it: `systemctl restart \
                             rootswarm`"
                        .to_owned(),
                });
            }
            Ok(document) if is_loading(document) => {
                loading_since = Some(asked);
                if !said && begin.elapsed() > Duration::from_secs(2) {
                    tracing::info!(
                        "waiting for the server, which checks {}",
                        document.loading.join(", ")
                    );
                    said = true;
                }
                "is still loading".to_owned()
            }
            Ok(_) => format!(
                "did not take it up within {} s",
                patience.answering.as_secs()
            ),
            // It is not there, or not yet, or hangs.
            Err(_) if !state.is_served() => return Ok(()),
            Err(error) => format!("does not answer: {error}"),
        };
        // Loading ends, and then the change is taken up as at any other time.
        let late = begin.max(loading_since.unwrap_or(begin)).elapsed() >= patience.answering;
        if late || begin.elapsed() >= patience.loading {
            return Err(NotServed {
                change: change.to_owned(),
                state: state.root().to_owned(),
                reason,
            });
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use crate::status::FORMAT;

    /// A server that is loading something for ever, and serves nothing.
    fn server_that_loads(state: &StateDir, loading: &'static str) {
        let listener = UnixListener::bind(state.control_socket()).unwrap();
        let document = format!(
            r#"{{"format":{FORMAT},"host":"h","http":"h","pid":1,"uptime_s":1,
                "upload_limit_bytes_per_s":null,"images":[],"loading":[{loading}]}}"#
        );
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.unwrap().write_all(document.as_bytes());
            }
        });
    }

    /// How long is waited for a server that loads something, whatever loads.
    #[test]
    fn only_the_name_that_loads_is_waited_for_longer() {
        let patience = Patience {
            answering: Duration::from_millis(400),
            loading: Duration::from_millis(1_600),
        };
        for (loading, takes) in [
            ("", patience.answering),
            (r#""web""#, patience.answering),
            (r#""os-2","web""#, patience.answering),
            (r#""os""#, patience.loading),
            (r#""web","os""#, patience.loading),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let state = StateDir::open(dir.path()).unwrap();
            let _served = state.lock_for_serving().unwrap().unwrap();
            server_that_loads(&state, loading);
            let begin = Instant::now();
            let name = "os".parse().unwrap();
            let waited = wait(&state, Some(&name), "os is published", patience, |_| false);
            let took = begin.elapsed();
            let most = takes + Duration::from_millis(700);
            assert!(
                waited.is_err() && takes <= took && took < most,
                "{loading}: {took:?}"
            );
        }
    }
}
