//! `rooturl=swarm://…`: the way to the image. Joins the swarm, with verified HTTP from the same host
//! as the way out when it cannot be reached, and ends with a whole image and what is left to serve.
//!
//! Here is only: how long to try, what to say, and when to fall back. What happens between joining and
//! the last chunk is [`crate::swarm_download`]'s business, and what is worth trying again is
//! [`crate::remedy`]'s. Both ways in are tried for as long as the other: a boot ends only when every
//! seed, by either way, has said no until then.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rootswarm_image::{HostPort, ImageId, ImageName, Manifest};
use rootswarm_transport::node::{
    JoinError, JoinRequest, Joined, Node, NodeConfig, Refusal, SeedTrust, StartError,
};
use rootswarm_transport::socket::BindError;
use rootswarm_transport::store::ChunkStore;
use rootswarm_transport::tuning::Tuning;

use crate::exit::{Classified, Exit};
use crate::fetch::{Destination, FetchError, Fetched, part_of};
use crate::http::HttpClient;
use crate::http_chunks::{self, ChunkSink, StoreSink};
use crate::http_fetch::open_store;
use crate::http_image::{self, HttpImage};
use crate::minimum::Minimum;
use crate::patience::{FOREVER, Patience};
use crate::plan::{FetchPlan, Trust};
use crate::progress::Snapshot;
use crate::rack;
use crate::remedy::{Remedy, remedy};
use crate::report::Reporter;
use crate::seed_names::SeedNames;
use crate::serving::{Serving, State};
use crate::status::Phase;
use crate::swarm_download::Swarm;

/// Why the swarm is no way to the image.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// Nothing to hold the image to. The plan never lets this through.
    #[error("a swarm needs a key or a pin to hold the image to")]
    NoAnchor,
    /// No socket.
    #[error(transparent)]
    Node(#[from] StartError),
    /// Not let in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The download ended.
    #[error(transparent)]
    Download(#[from] rootswarm_transport::node::SwarmError),
    /// Opening or verifying the store was cut short.
    #[error("the image's store: {0}")]
    Store(String),
}

impl Classified for SwarmError {
    fn exit(&self) -> Exit {
        match self {
            SwarmError::NoAnchor => Exit::Refused,
            SwarmError::Node(error) => exit_of_node(error),
            SwarmError::Join(error) => match error {
                JoinError::Unreachable { .. }
                | JoinError::Undecided { .. }
                | JoinError::Protocol { .. } => Exit::Network,
                JoinError::NoSeeds => Exit::BadInput,
                JoinError::Trust { .. } | JoinError::Tag { .. } | JoinError::PinMismatch { .. } => {
                    Exit::Refused
                }
                JoinError::Refused { refusal, .. } => match refusal {
                    Refusal::UnknownImage => Exit::NoSuchImage,
                    Refusal::NotAdmitted(_) | Refusal::PinMismatch { .. } => Exit::Refused,
                    Refusal::Busy => Exit::Network,
                },
                JoinError::Local(error) => exit_of_node(error),
            },
            SwarmError::Download(error) => match error {
                rootswarm_transport::node::SwarmError::Store(_) => Exit::Resource,
                rootswarm_transport::node::SwarmError::Ended => Exit::Unexpected,
            },
            SwarmError::Store(_) => Exit::Unexpected,
        }
    }
}

fn exit_of_node(error: &StartError) -> Exit {
    match error {
        StartError::Bind(BindError::AddressInUse { .. }) => Exit::AddressInUse,
        StartError::Bind(_) | StartError::Endpoint { .. } => Exit::Resource,
        StartError::Identity(_) | StartError::Tls(_) => Exit::Unexpected,
    }
}

/// How long the swarm has before HTTP is tried beside it: one join attempt (4 s) and a bit. Of a
/// patience that is shorter than twice that, half: HTTP has its chance in any case.
const FALLBACK_AFTER: Duration = Duration::from_secs(5);
/// How long the end of patience waits for the first answer by HTTP: as long as connecting may take.
const FIRST_WORD: Duration = Duration::from_secs(6);
/// How often it is looked for.
const FIRST_WORD_TICK: Duration = Duration::from_millis(50);

/// A place for the image, opened.
struct Opened {
    path: PathBuf,
    store: ChunkStore,
}

/// What the way in by the swarm and the way in by HTTP share while both are open.
struct Start<'a> {
    destination: &'a mut dyn Destination,
    reporter: &'a mut Reporter,
    opened: Option<Opened>,
    http_bytes: u64,
    /// What the HTTP side says, for the line at the end, and the code that goes with it.
    http_cause: Option<(String, Exit)>,
}

impl Start<'_> {
    /// Opens the place for this image, once.
    async fn open(
        start: &RefCell<Start<'_>>,
        manifest: &Arc<Manifest>,
    ) -> Result<ChunkStore, FetchError> {
        let path = {
            let mut guard = start.borrow_mut();
            let this = &mut *guard;
            if let Some(opened) = &this.opened {
                return Ok(opened.store.clone());
            }
            this.reporter.image(manifest.id());
            let length = manifest.geometry().length();
            this.destination
                .prepare(Some(length), this.reporter)
                .map_err(FetchError::Prepare)?
        };
        let (part, manifest) = (part_of(&path), Arc::clone(manifest));
        // Allocates, or reads and verifies what is there: seconds for a large image.
        let store = tokio::task::spawn_blocking(move || open_store(&part, manifest))
            .await
            .map_err(|e| SwarmError::Store(e.to_string()))??;
        start.borrow_mut().opened = Some(Opened {
            path,
            store: store.clone(),
        });
        let mut this = start.borrow_mut();
        this.reporter.phase(Phase::Fetching);
        // What an earlier run left is not this run's speed.
        this.reporter
            .progress(StoreSink::new(store.clone()).snapshot());
        Ok(store)
    }

    /// HTTP goes on although something was wrong.
    fn http_failed(&mut self, error: &FetchError) {
        self.http_cause = Some((error.to_string(), error.exit()));
    }

    fn image(&self) -> Option<ImageId> {
        self.opened
            .as_ref()
            .map(|opened| *opened.store.manifest().id())
    }
}

/// Fetches the image called `name` from the swarm of `hosts`.
pub async fn fetch(
    plan: &FetchPlan,
    hosts: &[HostPort],
    name: &ImageName,
    destination: &mut dyn Destination,
    reporter: &mut Reporter,
) -> Result<Fetched, FetchError> {
    let trust = match &plan.trust {
        Trust::Key { key, .. } => SeedTrust::Key(*key),
        Trust::Pin(_) => {
            reporter.say(
                "the seed's key is not known: the first one met is kept, the pin decides about \
                 the image",
            );
            SeedTrust::FirstUse
        }
        Trust::Unverified => return Err(SwarmError::NoAnchor.into()),
    };
    let mut patience = Patience::new(plan.patience);
    let config = NodeConfig {
        bind: plan.bind,
        port: plan.port,
        trust,
        upload_limit_bytes_per_s: plan.upload_limit_bytes_per_s,
        tuning: Tuning::for_host(),
    };
    let node = bind(plan, config, &mut patience, reporter).await?;
    let node = node.since_epoch(plan.minimum.epoch);
    let seeker = Seeker {
        node,
        names: RefCell::new(SeedNames::new(hosts, plan.bind)),
        minimum: Arc::new(plan.minimum.clone()),
        request: JoinRequest {
            name: name.clone(),
            pin: plan.trust.pin(),
            token: plan.token.clone(),
            rack: plan.rack.clone(),
        },
    };
    let start = RefCell::new(Start {
        destination,
        reporter,
        opened: None,
        http_bytes: 0,
        http_cause: None,
    });

    let way_in = tokio::select! {
        joined = join(&seeker, patience, &start) => Some(joined?),
        done = all_by_http(plan, hosts, name, &seeker.node, &start) => { done?; None }
    };
    if let Some(joined) = &way_in {
        let tag = &joined.tag;
        start.borrow().reporter.say(&format!(
            "joined the swarm: {} is image {}, {} in {} chunks",
            tag.name,
            tag.id,
            crate::units::size(tag.length),
            joined.manifest.geometry().chunk_count()
        ));
        Start::open(&start, &joined.manifest).await?;
    }
    let mut start = start.into_inner();
    // Both ways in end with an open place.
    let Some(Opened { path, store }) = start.opened.take() else {
        return Err(SwarmError::Store("it was never opened".to_owned()).into());
    };
    let state = match way_in {
        Some(joined) => {
            let names = seeker.names.into_inner();
            let mut swarm =
                Swarm::start(seeker.node, names, joined, store.clone(), start.http_bytes)?;
            swarm.download(plan, hosts, start.reporter).await?;
            State::Running(swarm)
        }
        None => State::Seeking(seeker),
    };
    // Every chunk was verified before it was stored, or as it was found: nothing is left to read.
    store.ensure_complete()?;
    std::fs::rename(part_of(&path), &path).map_err(FetchError::file("rename to", &path))?;
    let image = Some(*store.manifest().id());
    let transfer = *start.reporter.transfer();
    let serving = Some(Serving::new(state, store));
    Ok(Fetched {
        path,
        image,
        transfer,
        serving,
    })
}

/// A socket and a key, as soon as this machine has them to give: on the port of the plan, or on another one
/// where that is taken and none was insisted on.
async fn bind(
    plan: &FetchPlan,
    mut config: NodeConfig,
    patience: &mut Patience,
    reporter: &mut Reporter,
) -> Result<Node, FetchError> {
    loop {
        let error = match Node::bind(config.clone()).await {
            Ok(node) => {
                if config.port != plan.port {
                    reporter.say(&format!(
                        "WARNING: UDP port {} is in use by another process: this node takes {} \
                         instead, which a firewall may not let through",
                        plan.port,
                        node.local_addr().port()
                    ));
                }
                return Ok(node);
            }
            Err(StartError::Bind(BindError::AddressInUse { .. }))
                if config.port != 0 && !plan.is_port_required =>
            {
                config.port = 0;
                continue;
            }
            Err(error) => FetchError::from(SwarmError::Node(error)),
        };
        let Remedy::Wait(pace) = remedy(&error) else {
            return Err(error);
        };
        reporter.retry(&error, patience.left());
        if !patience.wait(pace).await {
            return Err(FetchError::GaveUp {
                limit: patience.limit(),
                cause: error.to_string(),
                exit: error.exit(),
            });
        }
    }
}

/// A node on its way into the swarm.
pub struct Seeker {
    /// Not in any swarm yet.
    pub node: Node,
    /// Where its seeds are.
    pub names: RefCell<SeedNames>,
    minimum: Arc<Minimum>,
    request: JoinRequest,
}

impl Seeker {
    /// One attempt, at every seed that has a route.
    // One attempt at a time, and nobody else looks at the names meanwhile.
    #[allow(clippy::await_holding_refcell_ref)]
    pub async fn try_join(&self, image: Option<ImageId>) -> Result<Joined, FetchError> {
        let routes = self.names.borrow_mut().look_up().await?;
        let seeds: Vec<_> = routes.iter().map(|route| route.host).collect();
        let subnet = || {
            routes
                .iter()
                .find_map(|route| rack::of_address(route.local))
        };
        // A boot stays with the image it began, whatever its name means by now.
        let request = JoinRequest {
            pin: image.or(self.request.pin),
            rack: self.request.rack.clone().or_else(subnet),
            ..self.request.clone()
        };
        let joined = self.node.join(&seeds, &request).await;
        let joined = joined.map_err(SwarmError::Join)?;
        if request.pin.is_none() {
            self.minimum.check(&joined.tag, "the seed")?;
        }
        Ok(joined)
    }
}

/// Tries to join until it works or patience ends, which is as long as neither way gets any further.
async fn join(
    seeker: &Seeker,
    mut patience: Patience,
    start: &RefCell<Start<'_>>,
) -> Result<Joined, FetchError> {
    let mut http_began = false;
    let mut http_bytes = 0;
    loop {
        let image = start.borrow().image();
        let error = match seeker.try_join(image).await {
            Ok(joined) => return Ok(joined),
            Err(error) => error,
        };
        let Remedy::Wait(pace) = remedy(&error) else {
            return Err(error);
        };
        let left = patience.left();
        start.borrow_mut().reporter.retry(&error, left);
        let goes_on = patience.wait(pace).await;
        if !goes_on {
            first_word_by_http(start).await;
        }
        // What came by HTTP meanwhile is progress, and so is that something is about to come.
        let began = start.borrow().image().is_some() && !http_began;
        let bytes = start.borrow().http_bytes;
        if began {
            http_began = true;
            patience = Patience::of_transfer(patience.limit());
            if !goes_on {
                // Not waited yet: whoever refused a moment ago is not asked again at once.
                patience.wait(pace).await;
            }
        } else if bytes > http_bytes {
            http_bytes = bytes;
            patience.progressed_elsewhere();
        } else if !goes_on {
            return Err(gave_up(
                &error,
                start.borrow().http_cause.as_ref(),
                &patience,
            ));
        }
    }
}

/// Waits until HTTP has been tried once, within bounds: it has its chance however short patience is.
async fn first_word_by_http(start: &RefCell<Start<'_>>) {
    let came = async {
        while start.borrow().http_cause.is_none() && start.borrow().image().is_none() {
            tokio::time::sleep(FIRST_WORD_TICK).await;
        }
    };
    // Without a word in all that time, what the swarm said has to do.
    let _ = tokio::time::timeout(FIRST_WORD, came).await;
}

/// Both ways' last words. The code is the swarm's, unless nobody was there to say anything and what
/// came by HTTP was damaged.
fn gave_up(
    error: &FetchError,
    by_http: Option<&(String, Exit)>,
    patience: &Patience,
) -> FetchError {
    let (mut cause, mut exit) = (error.to_string(), error.exit());
    if let Some((said, code)) = by_http {
        cause = format!("{cause}; by http: {said}");
        if (exit, *code) == (Exit::Network, Exit::Damaged) {
            exit = Exit::Damaged;
        }
    }
    FetchError::GaveUp {
        limit: patience.limit(),
        cause,
        exit,
    }
}

/// Fetches everything over HTTP, beginning when the swarm has had its chance. Returns when the
/// image is whole; what goes wrong on the way is tried again for as long as the join is, at the next
/// host where there is one.
async fn all_by_http(
    plan: &FetchPlan,
    hosts: &[HostPort],
    name: &ImageName,
    node: &Node,
    start: &RefCell<Start<'_>>,
) -> Result<(), FetchError> {
    tokio::time::sleep(FALLBACK_AFTER.min(plan.patience / 2)).await;
    let mut client = HttpClient::of_plan(plan);
    // A seed lets in the same node, once it comes by the swarm.
    client.session = plan.token.as_deref().map(|token| node.http_session(token));
    // Its own end never comes: giving up is the join's to say.
    let mut patience = Patience::new(FOREVER);
    let mut begun: Option<(HttpImage, StoreSink)> = None;
    let mut turn = 0;
    loop {
        let (image, sink) = match &mut begun {
            Some(begun) => begun,
            None => match http_image::find(&client, plan, hosts, name).await {
                Ok(image) => {
                    let store = Start::open(start, &image.manifest).await?;
                    let url = &image.blob;
                    start.borrow_mut().reporter.say(&format!(
                        "the swarm does not answer: fetching over {url}, verified chunk by chunk, \
                         and trying the swarm on the side"
                    ));
                    turn = hosts
                        .iter()
                        .position(|host| host.host == image.blob.host)
                        .unwrap_or_default();
                    begun.insert((image, StoreSink::new(store)))
                }
                Err(error) => {
                    let Remedy::Wait(pace) = remedy(&error) else {
                        return Err(error);
                    };
                    start.borrow_mut().http_failed(&error);
                    patience.wait(pace).await;
                    continue;
                }
            },
        };
        let before = sink.bytes_stored;
        let mut told = |snapshot: Snapshot| {
            let mut start = start.borrow_mut();
            start.http_bytes = snapshot.bytes_from_http;
            start.reporter.progress(snapshot);
        };
        let result =
            http_chunks::fill(&client, &image.blob, &image.manifest, sink, &mut told).await;
        let pace = match result {
            Ok(()) => {
                told(sink.snapshot());
                return Ok(());
            }
            Err(error) => {
                let Remedy::Wait(pace) = remedy(&error) else {
                    return Err(error);
                };
                start.borrow_mut().http_failed(&error);
                start.borrow_mut().reporter.retry(&error, None);
                pace
            }
        };
        // By its id: the next host may have another image under the name.
        turn = (turn + 1) % hosts.len().max(1);
        if let Some(host) = hosts.get(turn) {
            let manifest = Arc::clone(&image.manifest);
            *image = HttpImage::at(host, plan.http_port, manifest);
        }
        if sink.bytes_stored > before {
            patience.progressed();
        }
        patience.wait(pace).await;
    }
}
