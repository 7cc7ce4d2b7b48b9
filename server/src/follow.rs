//! A running server follows its state directory: what is published is offered to the swarm and
//! announced, what was there at the start is checked first, what the server was told to publish is
//! published, and what nothing names any more is let go of when no node fetches it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rootswarm_image::{ChunkSize, HostPort, ImageId, ImageName, SwarmKey};
use rootswarm_transport::store::StoreError;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};

use crate::advertised::Advertised;
use crate::catalogue::{Catalogue, Copy, Damage, Snapshot};
use crate::config::Settings;
use crate::limits::CHECKS_AT_ONCE;
use crate::network::root_url;
use crate::progress;
use crate::publish::{self, Left, PublishError, Published, Request, Unchanged};
use crate::serve_error::ServeError;
use crate::sources;
use crate::state::StateError;
use crate::swarm_side::SwarmSide;

/// How often the state directory is looked at: four `stat` calls. Whoever publishes waits for it.
const POLL: Duration = Duration::from_millis(200);

/// How often the swarm is looked at.
const SAMPLE: Duration = Duration::from_secs(1);

/// How long a copy that nothing names any more stays in the swarm although nobody fetches it: a node
/// that was let in a moment ago may not be connected yet.
const RETIRE_AFTER: Duration = Duration::from_secs(5);

/// …and after somebody was seen to fetch it: a node whose link is down for a minute comes back within
/// ten seconds of that, and finds what it began with.
const LET_GO_AFTER: Duration = Duration::from_secs(90);

/// However slowly it is fetched: so long, and as long as its length takes at [`LEAVES_AT_BYTES_PER_S`].
/// Who takes a few bytes now and then would otherwise keep it on the disk for ever.
const LEAVES_AFTER: Duration = Duration::from_secs(3_600);

/// See [`LEAVES_AFTER`]: the least rate of an upload in the swarm.
const LEAVES_AT_BYTES_PER_S: u64 = 32 * 1024;

/// …but a day at most: no boot takes longer.
const LEAVES_AFTER_MAX: Duration = Duration::from_secs(24 * 3_600);

/// How long uploads may take of an image that leaves the swarm.
const DRAIN: Duration = Duration::from_secs(5);

/// How long after it failed a source is tried again.
const SOURCE_RETRY: Duration = Duration::from_secs(30);

/// A copy that nothing names any more.
struct Retiring {
    since: Instant,
    /// When somebody was last seen to fetch it.
    fetched: Option<Instant>,
}

/// Whether a copy is let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    Stays,
    /// Nobody fetches it.
    Idle,
    /// Somebody still does, and has had time enough.
    Overdue,
}

impl Retiring {
    fn leaving(&self, length: u64, now: Instant) -> Leaving {
        let is_idle = match self.fetched {
            Some(last) => now.duration_since(last) >= LET_GO_AFTER,
            None => now.duration_since(self.since) >= RETIRE_AFTER,
        };
        let slowest = Duration::from_secs(length / LEAVES_AT_BYTES_PER_S);
        let most = LEAVES_AFTER.saturating_add(slowest).min(LEAVES_AFTER_MAX);
        match is_idle {
            true => Leaving::Idle,
            false if now.duration_since(self.since) >= most => Leaving::Overdue,
            false => Leaving::Stays,
        }
    }
}

/// A file that the server was told to publish.
struct Told {
    name: ImageName,
    path: PathBuf,
    /// When it is tried next; `None`: it is published.
    due: Option<Instant>,
    /// Why it could not be published.
    failed: Option<PublishError>,
}

type Publishing = (usize, JoinHandle<Result<Published, PublishError>>);

/// Until then, or for ever.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// What follows.
pub(crate) struct Follower {
    catalogue: Arc<Catalogue>,
    swarm: Arc<SwarmSide>,
    key: Arc<SwarmKey>,
    advertised: Advertised,
    chunk_size: Option<ChunkSize>,
    force: bool,
    /// What ready lines were printed for, and the host in them.
    host: HostPort,
    announced: BTreeMap<ImageName, ImageId>,
    retiring: BTreeMap<ImageId, Retiring>,
    /// What was reported already: the directory is read again for every change.
    reported: BTreeSet<String>,
    damaged: Vec<Damage>,
    told: Vec<Told>,
    checks: JoinSet<(Arc<Copy>, Result<(), StoreError>)>,
    checking: Vec<Arc<Copy>>,
    publishing: Option<Publishing>,
    is_started: bool,
    /// When the directory is read again because copies were checked, and how long that took last.
    reload_due: Option<Instant>,
    reload_took: Duration,
    /// Told once everything that was there at the start has been tried.
    loaded: Option<oneshot::Sender<()>>,
}

impl Follower {
    /// One that has not begun; `loaded` is told when all that was there at the start is served.
    pub(crate) fn new(
        settings: &Settings,
        key: Arc<SwarmKey>,
        catalogue: Arc<Catalogue>,
        swarm: Arc<SwarmSide>,
        advertised: Advertised,
        loaded: oneshot::Sender<()>,
    ) -> Follower {
        let told = settings.images.iter().map(|(name, path)| Told {
            name: name.clone(),
            path: path.clone(),
            due: Some(Instant::now()),
            failed: None,
        });
        Follower {
            told: told.collect(),
            catalogue,
            swarm,
            key,
            host: advertised.now().host,
            advertised,
            chunk_size: settings.chunk_size,
            force: settings.force,
            announced: BTreeMap::new(),
            retiring: BTreeMap::new(),
            reported: BTreeSet::new(),
            damaged: Vec::new(),
            checks: JoinSet::new(),
            checking: Vec::new(),
            publishing: None,
            is_started: false,
            reload_due: None,
            reload_took: Duration::ZERO,
            loaded: Some(loaded),
        }
    }

    /// Follows for ever, or until it is clear that there is nothing to serve.
    pub(crate) async fn run(mut self) -> ServeError {
        self.reload().await;
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sample = tokio::time::interval(SAMPLE);
        sample.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.check_more();
            if !self.is_started && self.checks.is_empty() && self.catalogue.is_checked() {
                self.is_started = true;
                self.catalogue.start();
                self.reload().await;
            }
            self.publish_more();
            if let Some(error) = self.end_of_loading() {
                return error;
            }
            let published = async {
                match &mut self.publishing {
                    Some((_, task)) => task.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = poll.tick() => {
                    if self.catalogue.is_stale() {
                        self.reload().await;
                    }
                }
                _ = sample.tick() => {
                    self.announce_anew();
                    self.swarm.sample().await;
                    self.retire().await;
                }
                Some(checked) = self.checks.join_next() => {
                    match checked {
                        Ok((copy, result)) => {
                            self.checking.retain(|it| !Arc::ptr_eq(it, &copy));
                            self.catalogue.checked(&copy, result);
                        }
                        Err(error) => {
                            tracing::error!("checking a copy failed: {error}");
                            self.checking.clear();
                        }
                    }
                    // A reading looks at every name: it takes no more time than lies between two.
                    let due = Instant::now() + self.reload_took;
                    self.reload_due.get_or_insert(due);
                }
                () = until(self.reload_due) => self.reload().await,
                result = published => {
                    // Whatever became of it: a task that has ended must not be waited for again.
                    let under_way = self.publishing.take();
                    match (under_way, result) {
                        (Some((index, _)), Ok(result)) => self.published(index, result),
                        (_, Ok(_)) => {}
                        (_, Err(error)) => tracing::error!("publishing failed: {error}"),
                    }
                    self.reload().await;
                }
            }
        }
    }

    /// Has the next copies hashed: several at a time while nothing is served yet, and one at a time
    /// beside serving.
    fn check_more(&mut self) {
        let most = match self.is_started {
            false => CHECKS_AT_ONCE,
            true => 1,
        };
        while self.checks.len() < most {
            // Each reading opens what is not served yet anew.
            let checking = &self.checking;
            let is_busy = |copy: &Arc<Copy>| checking.iter().any(|it| it.stamp() == copy.stamp());
            let Some(copy) = self.catalogue.next_unchecked(is_busy) else {
                return;
            };
            self.checking.push(copy.clone());
            self.checks.spawn_blocking(move || {
                let result = copy.store().verify(copy.manifest());
                (copy, result)
            });
        }
    }

    /// Publishes the next file that the server was told to, once what is published already is served.
    fn publish_more(&mut self) {
        if !self.is_started || self.publishing.is_some() {
            return;
        }
        let now = Instant::now();
        let due = |told: &Told| told.due.is_some_and(|due| due <= now);
        let Some(index) = self.told.iter().position(due) else {
            return;
        };
        let (name, path) = (self.told[index].name.clone(), self.told[index].path.clone());
        let (state, key) = (self.catalogue.state().clone(), self.key.clone());
        let (chunk_size, force) = (self.chunk_size, self.force);
        // A damaged copy is not served, and the note of its source must not stand for it.
        let is_served = self.catalogue.snapshot().image(&name).is_some();
        let task = spawn_blocking(move || {
            if !is_served {
                sources::forget(&state, &name)?;
            }
            let request = Request {
                name: &name,
                source: &path,
                chunk_size,
                unchanged: Unchanged::Keep,
                force,
            };
            publish::publish(&state, &key, &request, &*progress::to_stderr(name.as_str()))
        });
        self.publishing = Some((index, task));
    }

    fn published(&mut self, index: usize, result: Result<Published, PublishError>) {
        let told = &mut self.told[index];
        match result {
            Ok(published) => {
                told.due = None;
                told.failed = None;
                self.catalogue.publishing_name(&told.name, false);
                if let Some(left) = published.left {
                    let (name, path, now) = (&told.name, told.path.display(), published.tag.id);
                    let again = format!("to publish it again: `rootswarm publish {name} {path}`");
                    match left {
                        Left::RolledBack(id) => tracing::warn!(
                            "{name} stays what it was rolled back to ({now}): {path} is still {id}, which \
                             it was rolled back from ({again})"
                        ),
                        Left::MadeAnother(id) => tracing::warn!(
                            "{name} stays what it was made to mean since ({now}): {path} is still {id}, as \
                             at the last start ({again})"
                        ),
                    }
                }
                for remark in published.remarks(&told.path) {
                    tracing::warn!("{remark}");
                }
            }
            Err(error) => {
                told.due = Some(Instant::now() + SOURCE_RETRY);
                // Who asks for a name whose file may still come is told to come again.
                self.catalogue.publishing_name(&told.name, may_pass(&error));
                let served = self.catalogue.snapshot().image(&told.name).is_some();
                let line = match served {
                    true => format!(
                        "{} stays what it is: cannot publish it anew: {error}",
                        told.name
                    ),
                    false => format!("cannot publish {}: {error}", told.name),
                };
                told.failed = Some(error);
                let anything = self.catalogue.snapshot().images().next().is_some();
                if (anything || self.loaded.is_none()) && self.reported.insert(line.clone()) {
                    match served {
                        true => tracing::warn!("{line}"),
                        false => tracing::error!("{line}"),
                    }
                }
            }
        }
    }

    /// Says that loading is over once it is; the error is why there is nothing to serve at all.
    fn end_of_loading(&mut self) -> Option<ServeError> {
        let untried = |told: &Told| told.due.is_some() && told.failed.is_none();
        if !self.is_started || self.loaded.is_none() || self.told.iter().any(untried) {
            return None;
        }
        if self.catalogue.snapshot().images().next().is_none() {
            for told in &mut self.told {
                if let Some(source) = told.failed.take() {
                    return Some(ServeError::Publish {
                        name: told.name.clone(),
                        source,
                    });
                }
            }
            if !self.damaged.is_empty() {
                return Some(ServeError::AllDamaged {
                    count: self.damaged.len(),
                    first: Box::new(self.damaged.swap_remove(0)),
                });
            }
        }
        self.report();
        if let Some(loaded) = self.loaded.take() {
            // The server may have been told to end meanwhile.
            let _ = loaded.send(());
        }
        None
    }

    /// Each damage once; while it may still turn out that everything is, the one line of that comes
    /// instead.
    fn report(&mut self) {
        for damage in &self.damaged {
            let line = damage.to_string();
            if self.reported.insert(line.clone()) {
                tracing::error!("{line}");
            }
        }
    }

    /// Looks at the state directory, and follows it.
    async fn reload(&mut self) {
        let began = Instant::now();
        self.read_again().await;
        (self.reload_due, self.reload_took) = (None, began.elapsed());
    }

    async fn read_again(&mut self) {
        let before = self.catalogue.snapshot();
        let catalogue = self.catalogue.clone();
        let read = move || {
            let damages = catalogue.reload()?;
            // What cannot be removed takes room, and keeps nobody from what is new.
            Ok::<_, StateError>((damages, catalogue.tidy()))
        };
        match spawn_blocking(read).await {
            Ok(Ok((damages, tidied))) => {
                self.damaged = damages;
                if self.loaded.is_none() || self.catalogue.snapshot().images().next().is_some() {
                    self.report();
                }
                self.follow(&before).await;
                if let Err(error) = tidied {
                    let line = format!("a copy that nothing names any more stays: {error}");
                    if self.reported.insert(line.clone()) {
                        tracing::warn!("{line}");
                    }
                }
            }
            Ok(Err(error)) => {
                let line = format!("cannot read the state directory again: {error}");
                if self.reported.insert(line.clone()) {
                    tracing::error!("{line}");
                }
            }
            Err(error) => tracing::error!("reading the state directory again failed: {error}"),
        }
    }

    /// Brings the swarm from what was served `before` to what the catalogue has now.
    async fn follow(&mut self, before: &Snapshot) {
        let now = self.catalogue.snapshot();
        let started = Instant::now();
        for copy in now.copies() {
            self.retiring.remove(copy.id());
            let is_another = |old: &Arc<Copy>| old.stamp() != copy.stamp();
            if before.copy(copy.id()).is_some_and(is_another) {
                // A damaged copy was replaced: what the swarm has mapped is the old one.
                self.swarm.remove(copy.id(), Duration::ZERO).await;
            }
            self.swarm.add(copy).await;
        }
        for copy in now.leaving() {
            self.swarm.add(copy).await;
            // What an earlier server left was being fetched when that ended.
            let fetched = (!self.is_started).then_some(started);
            self.retiring.entry(*copy.id()).or_insert(Retiring {
                since: started,
                fetched,
            });
        }
        for copy in before.copies().filter(|copy| now.copy(copy.id()).is_none()) {
            // It was found to be damaged.
            self.swarm.remove(copy.id(), Duration::ZERO).await;
        }
        self.announced.retain(|name, _| now.image(name).is_some());
        for published in now.images() {
            let tag = published.tag.unverified();
            if self.announced.insert(tag.name.clone(), tag.id) != Some(tag.id) {
                self.announce(&tag.name, tag.id);
            }
        }
    }

    /// Takes images that nothing names any more out of the swarm and off the disk, once nobody fetches
    /// them: a boot that began with one ends with it, however long it takes.
    async fn retire(&mut self) {
        let now = Instant::now();
        let snapshot = self.catalogue.snapshot();
        let mut done = Vec::new();
        for (id, retiring) in &mut self.retiring {
            if self.swarm.fetching(id).await > 0 {
                retiring.fetched = Some(now);
            }
            let copy = snapshot.copy(id);
            let http = copy.and_then(|copy| copy.idle_http());
            let http = http.and_then(|idle| now.checked_sub(idle));
            retiring.fetched = retiring.fetched.max(http);
            let length = copy.map_or(0, |copy| copy.length());
            match retiring.leaving(length, now) {
                Leaving::Stays => continue,
                Leaving::Idle => {}
                Leaving::Overdue => tracing::warn!(
                    "{id}, which nothing names since {} min, is let go of although it is still being \
                     fetched (publish it again to keep it)",
                    now.duration_since(retiring.since).as_secs() / 60
                ),
            }
            done.push(*id);
        }
        if done.is_empty() {
            return;
        }
        for id in done {
            self.retiring.remove(&id);
            self.catalogue.release(&id);
            let swarm = self.swarm.clone();
            tokio::spawn(async move { swarm.remove(&id, DRAIN).await });
        }
        let catalogue = self.catalogue.clone();
        match spawn_blocking(move || catalogue.tidy()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("a copy that is no longer kept stays: {error}"),
            Err(error) => tracing::error!("a copy that is no longer kept stays: {error}"),
        }
    }

    /// Says where the images are once that has changed.
    fn announce_anew(&mut self) {
        let host = self.advertised.now().host;
        if host != self.host {
            self.host = host;
            for (name, id) in &self.announced {
                self.announce(name, *id);
            }
        }
    }

    fn announce(&self, name: &ImageName, id: ImageId) {
        let mut out = io::stdout().lock();
        let line = format!("ready {}\n", root_url(&self.host, name, Some(id)));
        // Who stopped reading does not want to know; nodes are served all the same.
        if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            tracing::warn!("cannot print {}: {error}", line.trim_end());
        }
    }
}

/// Whether the next attempt may succeed without somebody changing what the server was told.
fn may_pass(error: &PublishError) -> bool {
    matches!(
        error,
        PublishError::State(_)
            | PublishError::Source { .. }
            | PublishError::Changed { .. }
            | PublishError::CutOff { .. }
            | PublishError::DiskFull { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who fetches keeps a copy for as long as an honest download can take, and not for ever.
    #[test]
    fn no_reader_keeps_a_copy_for_ever() {
        const MIB: u64 = 1 << 20;
        for (length, most_s) in [
            (96, 3_600),
            (MIB, 3_632),
            (1_024 * MIB, 3_600 + 32_768),
            (u64::MAX, 24 * 3_600),
        ] {
            let since = Instant::now();
            let after = |s: u64, fetched_before: Option<u64>| {
                let now = since + Duration::from_secs(s);
                let fetched = fetched_before.map(|before| now - Duration::from_secs(before));
                Retiring { since, fetched }.leaving(length, now)
            };
            for fetched in [0, 1, 89] {
                let overdue = after(most_s, Some(fetched));
                assert_eq!(overdue, Leaving::Overdue, "{length}");
                let stays = after(most_s - 1, Some(fetched));
                assert_eq!(stays, Leaving::Stays, "{length}");
            }
            assert_eq!(after(100, Some(90)), Leaving::Idle);
            assert_eq!(
                (after(4, None), after(5, None)),
                (Leaving::Stays, Leaving::Idle)
            );
        }
    }
}
