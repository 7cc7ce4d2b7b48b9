//! Brings one verified image to its place, whichever way it comes, and the `fetch` command that
//! does just that.
//!
//! How the bytes come is [`crate::swarm_fetch`]'s and [`crate::http_fetch`]'s business; where they
//! go is the caller's, through [`Destination`]; what is done with the image afterwards is decided
//! elsewhere.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rootswarm_image::{ChunkError, ImageId, NODE_PORT, RootUrl};
use rootswarm_transport::store::StoreError;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::FetchArgs;
use crate::baked;
use crate::cmdline;
use crate::console;
use crate::exit::{Classified, Exit, Failure, exit_of_local_io};
use crate::http_error::HttpError;
use crate::http_fetch;
use crate::minimum::{Minimum, OldTag};
use crate::network::NetworkError;
use crate::plan::{self, Anchors, FetchPlan};
use crate::progress::{self, Snapshot, Source};
use crate::report::Reporter;
use crate::serving::Serving;
use crate::status::{Phase, StatusFile};
use crate::swarm_fetch::{self, SwarmError};
use crate::units;

/// Where an image goes. Asked once, when its length is known and before the first byte comes.
pub trait Destination {
    /// Makes room and says which file the whole image will be. `None` is a server that does not
    /// say how long its file is.
    fn prepare(
        &mut self,
        length_bytes: Option<u64>,
        reporter: &mut Reporter,
    ) -> Result<PathBuf, Failure>;
}

/// A verified image in its place.
#[derive(Debug)]
pub struct Fetched {
    /// The file.
    pub path: PathBuf,
    /// Its id, when it was held to one.
    pub image: Option<ImageId>,
    /// Numbers of the transfer.
    pub transfer: Snapshot,
    /// The swarm it is served to from now on, if it came from one.
    pub serving: Option<Serving>,
}

/// Why an image did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no room, or no place.
    #[error("{}", .0.message)]
    Prepare(Failure),
    /// Nothing more came for as long as it was allowed to.
    #[error("gave up after {} s without progress: {cause}", limit.as_secs())]
    GaveUp {
        /// ROOTDELAY.
        limit: Duration,
        /// The last reason.
        cause: String,
        /// The code that goes with it: an answer that did not change in all that time is what ends it.
        exit: Exit,
    },
    /// The web server's last word.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The network's last word.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The swarm's last word.
    #[error(transparent)]
    Swarm(#[from] SwarmError),
    /// Another image than the pinned one.
    #[error("refused: {url} is the image {found}, pinned is {pinned}")]
    WrongImage {
        /// Where it came from.
        url: String,
        /// From the rooturl.
        pinned: Box<ImageId>,
        /// What its bytes hash to.
        found: Box<ImageId>,
    },
    /// A tag from before the initrd was built.
    #[error(transparent)]
    OldTag(#[from] OldTag),
    /// The server keeps sending a damaged chunk.
    #[error("{url}: {source}, {tries} times in a row")]
    DamagedChunk {
        /// Where it came from.
        url: String,
        /// Which and how.
        source: ChunkError,
        /// How often.
        tries: u32,
    },
    /// What the server says about the image does not hold.
    #[error("{url}: {reason}")]
    Document {
        /// Where it came from.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image's file.
    #[error("cannot {step} {}: {source}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The image's store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FetchError {
    /// For `map_err` on file operations.
    pub fn file(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
        let path = path.to_owned();
        move |source| FetchError::File { step, path, source }
    }
}

impl Classified for FetchError {
    fn exit(&self) -> Exit {
        match self {
            FetchError::Prepare(failure) => failure.exit,
            FetchError::GaveUp { exit, .. } => *exit,
            FetchError::Http(error) => error.exit(),
            FetchError::Network(error) => error.exit(),
            FetchError::Swarm(error) => error.exit(),
            FetchError::WrongImage { .. } | FetchError::Document { .. } | FetchError::OldTag(_) => {
                Exit::Refused
            }
            FetchError::DamagedChunk { .. } => Exit::Damaged,
            FetchError::File { source, .. } => exit_of_local_io(source),
            FetchError::Store(error) => match error {
                StoreError::Io { source, .. } => exit_of_local_io(source),
                StoreError::NoSpace { .. } | StoreError::Busy { .. } => Exit::Resource,
                StoreError::WrongLength { .. } | StoreError::Damaged { .. } => Exit::Damaged,
                StoreError::Incomplete { .. } | StoreError::OtherImage { .. } => Exit::Unexpected,
            },
        }
    }
}

/// Fetches what the plan names.
pub async fn fetch_image(
    plan: &FetchPlan,
    destination: &mut dyn Destination,
    reporter: &mut Reporter,
) -> Result<Fetched, FetchError> {
    match &plan.source {
        RootUrl::Swarm { hosts, name, .. } => {
            swarm_fetch::fetch(plan, hosts, name, destination, reporter).await
        }
        RootUrl::Http { url, .. } => http_fetch::fetch(plan, url, destination, reporter).await,
    }
}

/// Which lines suit the source.
pub fn source_of(plan: &FetchPlan) -> Source {
    match plan.source {
        RootUrl::Swarm { .. } => Source::Swarm,
        RootUrl::Http { .. } => Source::Http,
    }
}

/// The incomplete file beside the whole one.
pub fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// A file that the operator named.
struct OutputFile(PathBuf);

/// The image takes the place of what is there: of `/dev/null`, too, if root asks for it.
fn check_replaceable(output: &Path) -> Result<(), Failure> {
    let is = match std::fs::symlink_metadata(output).map(|there| there.file_type()) {
        Ok(kind) if kind.is_dir() => "a directory",
        Ok(kind) if kind.is_symlink() => "a symbolic link",
        Ok(kind) if !kind.is_file() => "no regular file",
        // What is not there, or cannot be looked at, is told when it is written.
        _ => return Ok(()),
    };
    let output = output.display();
    let message = format!("--output {output} is {is}: expected a new file, or one to replace");
    Err(Failure::new(Exit::BadInput, message))
}

impl Destination for OutputFile {
    fn prepare(&mut self, length: Option<u64>, _: &mut Reporter) -> Result<PathBuf, Failure> {
        let part = part_of(&self.0);
        let dir = match self.0.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let space = rustix::fs::statvfs(dir).map_err(|e| {
            let message = format!("cannot write to {}: {}", dir.display(), io::Error::from(e));
            Failure::new(Exit::Resource, message)
        })?;
        use std::os::unix::fs::MetadataExt;
        let held = std::fs::metadata(&part).map_or(0, |meta| meta.blocks() * 512);
        let free = space
            .f_bavail
            .saturating_mul(space.f_frsize)
            .saturating_add(held);
        match length {
            Some(length) if length > free => Err(Failure::new(
                Exit::Resource,
                format!(
                    "the image has {}, {} has {} free",
                    units::size(length),
                    dir.display(),
                    units::size(free)
                ),
            )),
            _ => Ok(self.0.clone()),
        }
    }
}

/// `rootswarm-agent fetch`.
pub fn run(args: &FetchArgs) -> Result<(), Failure> {
    let plan = plan_of(args)?;
    check_replaceable(&args.output)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let mut reporter = Reporter::new(source_of(&plan), plan.source.to_string());
        if let Some(path) = &args.status {
            let file = StatusFile::create(path).map_err(|e| {
                let message = format!("cannot create {}: {e}", path.display());
                Failure::new(exit_of_local_io(&e), message)
            })?;
            reporter.keep_status_in(file);
        }
        let mut destination = OutputFile(args.output.clone());
        let fetched = tokio::select! {
            fetched = fetch_image(&plan, &mut destination, &mut reporter) => fetched?,
            () = stop.asked() => {
                let message = "stopped by a signal; what is there is kept for the next time";
                return Err(Failure::new(Exit::Unexpected, message));
            }
        };
        let what = match fetched.image {
            Some(id) => format!("{}@blake3:{id}", args.output.display()),
            None => args.output.display().to_string(),
        };
        let took = reporter.elapsed();
        console::print_out(&format!(
            "{}\n",
            progress::summary(&what, took, &fetched.transfer)
        ))?;
        let Some(mut serving) = fetched.serving else {
            reporter.phase(Phase::Done);
            return Ok(());
        };
        reporter.phase(Phase::Serving);
        if args.stay {
            tokio::select! {
                () = serving.serve(&mut reporter) => {}
                () = stop.asked() => {}
            }
        }
        // Uploads in progress are finished, within bounds; a second signal ends that too.
        tokio::select! {
            () = serving.finish(FINISH_UPLOADS) => {}
            () = stop.asked() => {}
        }
        reporter.phase(Phase::Done);
        Ok(())
    })
}

/// Somebody wants this process to end: SIGTERM, or Ctrl-C.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> Result<Stop, Failure> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate()).map_err(no_signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(no_signals)?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What uploads in progress have at the end of a fetch without `--stay`.
const FINISH_UPLOADS: Duration = Duration::from_secs(10);

/// One thread for all that waits; what computes or blocks for long goes to the runtime's blocking
/// threads.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        // Idle threads end soon: after the handoff this process should be as small as can be.
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .map_err(|e| Failure::new(Exit::Resource, format!("cannot start the event loop: {e}")))
}

/// Verifying and writing chunks is bound by memory: a few threads fill it.
const MAX_BLOCKING_THREADS: usize = 4;

/// The runtime cannot listen for signals.
pub fn no_signals(e: io::Error) -> Failure {
    Failure::new(Exit::Resource, format!("cannot listen for signals: {e}"))
}

fn plan_of(args: &FetchArgs) -> Result<FetchPlan, Failure> {
    let source = cmdline::parse_rooturl(&args.rooturl)?;
    // A key given here is the operator's own word, as the baked-in one is on a node.
    let (key, key_place, minimum) = match &args.key {
        Some(key) => (Some(*key), String::new(), Minimum::default()),
        None => {
            let baked = baked::read(&args.conf)?;
            let key_place = baked.key_path.display().to_string();
            (baked.key, key_place, baked.minimum)
        }
    };
    let anchors = Anchors {
        baked: key,
        given: None,
        require_verify: args.require_verify,
        require_key: args.require_key,
        key_place,
    };
    let trust = plan::decide_trust(&source, &anchors)?;
    Ok(FetchPlan {
        source,
        trust,
        minimum,
        patience: args.timeout,
        token: args.token.clone(),
        rack: args.rack.clone(),
        upload_limit_bytes_per_s: args.upload_limit_bytes_per_s,
        bind: args.bind,
        port: args.port.unwrap_or(NODE_PORT),
        is_port_required: args.port.is_some(),
        http_port: args.http_port,
    })
}
