//! The download from a swarm that has let this node in: waits for the whole image, says when it
//! stands still, and lets HTTP help out where nobody else is there.
//!
//! How the node got in is [`crate::swarm_fetch`]'s business, and life after the download is
//! [`crate::serving`]'s, which goes on with the same [`Swarm`]. Which chunk comes from whom is decided
//! in the transport crate's node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rootswarm_image::{ChunkIndex, Host, HostPort};
use rootswarm_transport::node::{Joined, Node, SwarmHandle, SwarmStatus};
use rootswarm_transport::store::ChunkStore;
use rootswarm_transport::tuning::for_chunks_of;
use tokio::time::Instant;

use crate::exit::Exit;
use crate::fetch::FetchError;
use crate::http::HttpClient;
use crate::http_chunks::{self, ChunkSink, StoreSink};
use crate::http_image::HttpImage;
use crate::patience::{Pace, Patience};
use crate::plan::FetchPlan;
use crate::progress::Snapshot;
use crate::remedy::{Remedy, remedy};
use crate::report::Reporter;
use crate::seed_names::SeedNames;
use crate::swarm_fetch::SwarmError;

/// How long a started download may be without seed, peers and progress before HTTP helps out.
const ISOLATED_AFTER: Duration = Duration::from_secs(5);
/// How long nothing new may come before that is said, and HTTP helps out where no seed is connected.
/// Longer than a peer that froze holds a chunk up (`limits.rs` in rootswarm-swarm).
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// After how long the HTTP side of a connected seed is asked, too; that and [`STALLED_AFTER`] for chunks of the
/// usual length, as what has come of one does not count. Before that it would send no more than it does by the
/// swarm: it may have thousands to feed, and each of them would have to get all of it.
const ITS_HTTP_AFTER: Duration = Duration::from_secs(60);
/// How often a running download is looked at.
const TICK: Duration = Duration::from_millis(200);

/// A swarm this node takes part in.
pub struct Swarm {
    /// To the running swarm.
    pub handle: SwarmHandle,
    /// Where its seeds are.
    pub names: SeedNames,
    store: ChunkStore,
    http_bytes: u64,
}

impl Swarm {
    /// Takes part with what `store` holds.
    ///
    /// # Errors
    /// The TLS configuration.
    pub fn start(
        node: Node,
        names: SeedNames,
        joined: Joined,
        store: ChunkStore,
        http_bytes: u64,
    ) -> Result<Swarm, SwarmError> {
        let handle = node.start(joined, store.clone())?;
        Ok(Swarm {
            handle,
            names,
            store,
            http_bytes,
        })
    }

    /// The numbers of `status`, and ours.
    pub fn snapshot(&self, status: &SwarmStatus) -> Snapshot {
        Snapshot {
            bytes_total: status.bytes_total,
            bytes_have: status.bytes_have,
            bytes_from_seed: status.bytes_from_seed,
            bytes_from_peers: status.bytes_from_peers,
            bytes_from_http: self.http_bytes,
            bytes_uploaded: status.bytes_uploaded,
            duplicate_bytes: status.duplicate_bytes,
            peers: status.peers,
            seed_connected: status.seed_connected,
        }
    }

    /// To be called every now and then: a seed that has moved is looked for where its name leads now.
    pub async fn follow_seeds(&mut self, status: &SwarmStatus) {
        if let Some(addresses) = self.names.addresses(status.seed_connected).await {
            self.handle.seeds_are_at(&addresses);
        }
    }

    /// Waits for the whole image, with HTTP's help when nobody else is there.
    ///
    /// # Errors
    /// When patience ends, or the store or the running swarm does.
    pub async fn download(
        &mut self,
        plan: &FetchPlan,
        hosts: &[HostPort],
        reporter: &mut Reporter,
    ) -> Result<(), FetchError> {
        let mut client = HttpClient::of_plan(plan);
        let mut patience = Patience::of_transfer(plan.patience);
        // The swarm was started a moment ago.
        let began = reporter.elapsed();
        let mut have = 0;
        let mut connected = Instant::now();
        let mut moved = Instant::now();
        let mut progressed = Instant::now();
        let chunk_bytes = self.store.manifest().geometry().chunk_size().bytes();
        let mut cause = "neither seed nor peers send anything".to_owned();
        loop {
            let completed = tokio::time::timeout(TICK, self.handle.completed()).await;
            let status = self.handle.status();
            let mut snapshot = self.snapshot(&status);
            if let Some(first_chunk_ms) = status.first_chunk_ms {
                reporter.first_chunk(began + Duration::from_millis(first_chunk_ms));
            }
            if let Ok(completed) = completed {
                completed.map_err(SwarmError::Download)?;
                // The status is a little older than the news.
                snapshot.bytes_have = snapshot.bytes_total;
                reporter.progress(snapshot);
                return Ok(());
            }
            self.follow_seeds(&status).await;
            reporter.progress(snapshot);
            if self.store.is_complete() {
                // The swarm finds what it was not told of.
                continue;
            }
            if snapshot.bytes_have > have {
                have = snapshot.bytes_have;
                patience.progressed();
                moved = Instant::now();
                progressed = moved;
            }
            if patience.is_exhausted() {
                return Err(FetchError::GaveUp {
                    limit: patience.limit(),
                    cause,
                    exit: Exit::Network,
                });
            }
            if status.seed_connected || status.peers > 0 {
                connected = Instant::now();
            }
            cause = if connected.elapsed() >= ISOLATED_AFTER {
                "neither the seed nor a peer can be reached".to_owned()
            } else if moved.elapsed() >= STALLED_AFTER {
                standstill(&snapshot)
            } else {
                continue;
            };
            reporter.retry(&cause, patience.left());
            // It may have been let in anew; a token may have been used up long ago.
            client.member = self.handle.http_member().or(client.member);
            let stands_for = |usual| progressed.elapsed() >= for_chunks_of(chunk_bytes, usual);
            let helps = |host: &&HostPort| {
                !status.seed_connected
                    || stands_for(ITS_HTTP_AFTER)
                    || (stands_for(STALLED_AFTER) && is_elsewhere(host, &status))
            };
            for host in hosts.iter().filter(helps) {
                // By its id: the name may mean another image by now.
                let manifest = Arc::clone(self.store.manifest());
                let image = HttpImage::at(host, plan.http_port, manifest);
                match self.fill_by_http(&client, &image, reporter).await {
                    Ok(()) => break,
                    Err(error) if remedy(&error) == Remedy::Operator => return Err(error),
                    Err(error) => {
                        reporter.retry(&error, patience.left());
                        cause = format!("{cause}; by http: {error}");
                    }
                }
            }
            if status.seed_connected {
                // Said again when as much time has passed.
                moved = Instant::now();
            } else if !self.store.is_complete() {
                tokio::select! {
                    _ = patience.wait(Pace::Silent) => {}
                    () = moves_again(&self.handle) => {}
                }
            }
        }
    }

    /// Until nothing is missing, or the swarm is back.
    async fn fill_by_http(
        &mut self,
        client: &HttpClient,
        image: &HttpImage,
        reporter: &mut Reporter,
    ) -> Result<(), FetchError> {
        let swarm = match self.handle.status().seed_connected {
            true => "sends nothing",
            false => "is out of reach",
        };
        reporter.say(&format!("the swarm {swarm}: fetching over {}", image.blob));
        let (handle, store) = (&self.handle, &self.store);
        let mut sink = OfferSink {
            handle,
            store,
            bytes: self.http_bytes,
        };
        let mut told = |snapshot| reporter.progress(snapshot);
        let filled = http_chunks::fill(client, &image.blob, &image.manifest, &mut sink, &mut told);
        let result = tokio::select! {
            result = filled => result,
            () = moves_again(handle) => Ok(()),
        };
        self.http_bytes = sink.bytes;
        result
    }
}

/// Whether this is known to be another host than those whose seeds are connected: what it may have for HTTP
/// is nothing that they would send.
fn is_elsewhere(host: &HostPort, status: &SwarmStatus) -> bool {
    let mut seeds = status.nodes.iter().filter(|node| node.is_seed);
    let ip: IpAddr = match host.host {
        Host::V4(ip) => ip.into(),
        Host::V6(ip) => ip.into(),
        // Where it leads may be where they are.
        Host::Name(_) => return false,
    };
    !seeds.any(|seed| {
        let at: Option<SocketAddr> = seed.addr.parse().ok();
        at.is_none_or(|at| at.ip().to_canonical() == ip.to_canonical())
    })
}

/// Returns when the swarm does what it did not: a seed or one more peer is there, or bytes come.
async fn moves_again(handle: &SwarmHandle) {
    let received = |status: &SwarmStatus| status.bytes_from_seed + status.bytes_from_peers;
    let before = handle.status();
    loop {
        tokio::time::sleep(TICK).await;
        let status = handle.status();
        if (status.seed_connected && !before.seed_connected)
            || status.peers > before.peers
            || received(&status) > received(&before)
        {
            return;
        }
    }
}

/// Why a node that is connected gets no further, for the console: without this line it would look
/// dead while it waits for a seed that has what no peer has.
fn standstill(snapshot: &Snapshot) -> String {
    let missing = snapshot.bytes_total.saturating_sub(snapshot.bytes_have);
    let seed = match snapshot.seed_connected {
        true => "a seed is connected",
        false => "no seed is connected",
    };
    let peers = match snapshot.peers {
        1 => "1 peer sends".to_owned(),
        peers => format!("{peers} peers send"),
    };
    format!(
        "{} missing and nothing new for {} s: {seed}, {peers} nothing",
        crate::units::size(missing),
        STALLED_AFTER.as_secs(),
    )
}

/// Chunks from HTTP for a running swarm, which announces them to the others.
struct OfferSink<'a> {
    handle: &'a SwarmHandle,
    store: &'a ChunkStore,
    bytes: u64,
}

impl ChunkSink for OfferSink<'_> {
    fn store(&self) -> &ChunkStore {
        self.store
    }

    fn stored(&mut self, index: ChunkIndex, length: u64) {
        self.bytes += length;
        self.handle.stored(index);
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = StoreSink::new(self.store.clone()).snapshot();
        let status = self.handle.status();
        snapshot.bytes_from_http = self.bytes;
        snapshot.bytes_from_seed = status.bytes_from_seed;
        snapshot.bytes_from_peers = status.bytes_from_peers;
        snapshot.bytes_uploaded = status.bytes_uploaded;
        snapshot
    }
}
