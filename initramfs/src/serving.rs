//! Life after the download: the image is served to others until somebody ends it, and whatever
//! happens here must not matter to the node that booted from it.

use std::time::Duration;

use rootswarm_transport::store::ChunkStore;

use crate::patience::{FOREVER, Pace, Patience};
use crate::remedy::{Remedy, remedy};
use crate::report::Reporter;
use crate::swarm_download::Swarm;
use crate::swarm_fetch::Seeker;

/// How often the status document is brought up to date. Rare enough to cost nothing in a booted
/// system, often enough to watch.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// The image, served to others from now on.
pub struct Serving {
    state: State,
    store: ChunkStore,
}

/// How far into the swarm a node with a whole image is.
pub enum State {
    /// It takes part.
    Running(Swarm),
    /// The image came over HTTP; the swarm has not been reached yet.
    Seeking(Seeker),
    /// Nothing is left to do.
    Ended,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.state {
            State::Running(_) => "Serving(running)",
            State::Seeking(_) => "Serving(seeking)",
            State::Ended => "Serving(ended)",
        })
    }
}

impl Serving {
    /// Serves what is in `store`, which is whole.
    pub fn new(state: State, store: ChunkStore) -> Serving {
        Serving { state, store }
    }

    /// The root is about to be another one, with other things to say about names.
    pub fn remember_names(&mut self) {
        match &mut self.state {
            State::Running(swarm) => swarm.names.remember(),
            State::Seeking(seeker) => seeker.names.get_mut().remember(),
            State::Ended => {}
        }
    }

    /// Serves, and keeps the status document up to date, for as long as it is polled. Ends only
    /// when there is nothing to serve to any more.
    pub async fn serve(&mut self, reporter: &mut Reporter) {
        let fetched = *reporter.transfer();
        if let State::Seeking(_) = &self.state {
            self.seek(reporter).await;
        }
        let State::Running(swarm) = &mut self.state else {
            return;
        };
        loop {
            let status = swarm.handle.status();
            swarm.follow_seeds(&status).await;
            let mut snapshot = swarm.snapshot(&status);
            snapshot.bytes_from_http = fetched.bytes_from_http;
            let banned = status
                .banned
                .into_iter()
                .map(|ban| (ban.node, ban.reason))
                .collect();
            reporter.serving(snapshot, banned, status.cut_off_from);
            tokio::time::sleep(STATUS_INTERVAL).await;
        }
    }

    /// Goes on trying to join, for as long as it takes.
    async fn seek(&mut self, reporter: &mut Reporter) {
        let State::Seeking(seeker) = std::mem::replace(&mut self.state, State::Ended) else {
            return;
        };
        let image = Some(*self.store.manifest().id());
        let mut patience = Patience::new(FOREVER);
        let joined = loop {
            match seeker.try_join(image).await {
                Ok(joined) => break joined,
                // Whatever the reason, the node has booted: nobody needs to hear of it.
                Err(error) => {
                    let pace = match remedy(&error) {
                        Remedy::Wait(pace) => pace,
                        Remedy::Operator => Pace::Answered,
                    };
                    patience.wait(pace).await;
                }
            }
        };
        let fetched = *reporter.transfer();
        match Swarm::start(
            seeker.node,
            seeker.names.into_inner(),
            joined,
            self.store.clone(),
            fetched.bytes_from_http,
        ) {
            Ok(swarm) => {
                reporter.say("joined the swarm: the image is served to others");
                self.state = State::Running(swarm);
            }
            Err(error) => reporter.say(&format!("the image is not served to others: {error}")),
        }
    }

    /// Ends it: uploads in progress are finished within `grace`.
    pub async fn finish(self, grace: Duration) {
        if let State::Running(swarm) = self.state {
            swarm.handle.shutdown(grace).await;
        }
    }
}
