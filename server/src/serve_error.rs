//! Why a server does not serve, and the exit code of each reason.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use rootswarm_image::ImageName;
use rootswarm_transport::mirror::MirrorError;
use rootswarm_transport::seed::StartError;
use rootswarm_transport::socket::BindError;

use crate::admission::Looser;
use crate::catalogue::Damage;
use crate::exit::Exit;
use crate::mirror::MirrorOf;
use crate::policy::PolicyError;
use crate::publish::PublishError;
use crate::revocation::RevocationError;
use crate::state::StateError;

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Publishing what the command line or the configuration names.
    #[error("cannot publish {name}: {source}")]
    Publish {
        /// As what.
        name: ImageName,
        /// Why not.
        source: PublishError,
    },
    /// Another server runs on the same state directory.
    #[error("state directory {} is already served by another process (end that: `systemctl stop rootswarm`; or let it do what this one is to do: /etc/rootswarm/rootswarm.toml, then `systemctl restart rootswarm`)", .0.display())]
    AlreadyServed(PathBuf),
    /// The port is taken.
    #[error(
        "address {address} for {what} is already in use (another `rootswarm serve`? choose one with {option})"
    )]
    AddressInUse {
        /// `the swarm (udp)` or `http (tcp)`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The option that chooses another.
        option: &'static str,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// `the swarm (udp)` or `http (tcp)`.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// Everything that is published is damaged.
    #[error("nothing can be served, {count} of {count} published images are damaged: {first}")]
    AllDamaged {
        /// How many.
        count: usize,
        /// The first.
        first: Box<Damage>,
    },
    /// A mirror without the key.
    #[error("cannot mirror {of}: {} is missing (copy swarm.key from that host's state directory, mode 0600)", key.display())]
    MirrorKey {
        /// The seed to mirror.
        of: Box<MirrorOf>,
        /// Where its key must be.
        key: PathBuf,
    },
    /// A mirror that was told to publish something.
    #[error("a mirror publishes what {of} does: take NAME=FILE and [images] away, or --mirror")]
    MirrorPublishes {
        /// The seed to mirror.
        of: Box<MirrorOf>,
    },
    /// The seed to mirror is this one.
    #[error(
        "cannot mirror {of}: it is this very seed (name the other host, or leave --mirror out)"
    )]
    MirrorsItself {
        /// The seed to mirror.
        of: Box<MirrorOf>,
    },
    /// The seed to mirror has another key.
    #[error("cannot mirror {of}: {source} (copy swarm.key from that host's state directory)")]
    MirrorTrust {
        /// The seed to mirror.
        of: Box<MirrorOf>,
        /// What was found.
        source: Box<MirrorError>,
    },
    /// A mirror that would let in whom the seed to mirror does not.
    #[error(
        "this mirror would be looser than {of}: {source} (take admission and allow out of this host's configuration: they come with the mirroring)"
    )]
    MirrorLooser {
        /// The seed to mirror.
        of: Box<MirrorOf>,
        /// In what.
        source: Looser,
    },
    /// What is remembered of the seed to mirror.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The revocations.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The swarm's endpoint.
    #[error(transparent)]
    Seed(#[from] StartError),
    /// The process could not get what it needs to run.
    #[error("cannot start: {0}")]
    Start(io::Error),
}

impl ServeError {
    /// The exit code of this failure.
    pub fn exit(&self) -> Exit {
        match self {
            ServeError::State(e) => e.exit(),
            ServeError::AlreadyServed(_) | ServeError::AddressInUse { .. } => Exit::AddressInUse,
            ServeError::Seed(StartError::Bind(BindError::AddressInUse { .. })) => {
                Exit::AddressInUse
            }
            // A source that is not there yet may come: whoever started the server starts it again.
            ServeError::Publish {
                source: PublishError::Source { .. },
                ..
            } => Exit::Local,
            ServeError::Publish { source, .. } => source.exit(),
            // A port that needs root.
            ServeError::Listen { .. } => Exit::BadInput,
            ServeError::AllDamaged { .. } => Exit::Damaged,
            ServeError::MirrorKey { .. }
            | ServeError::MirrorTrust { .. }
            | ServeError::MirrorLooser { .. } => Exit::Refused,
            ServeError::Policy(PolicyError::State(error)) => error.exit(),
            ServeError::Policy(PolicyError::Damaged { .. }) => Exit::Damaged,
            ServeError::MirrorPublishes { .. } | ServeError::MirrorsItself { .. } => Exit::BadInput,
            ServeError::Revocation(error) => error.exit(),
            ServeError::Seed(_) | ServeError::Start(_) => Exit::Unexpected,
        }
    }

    pub(crate) fn listen(
        what: &'static str,
        address: SocketAddr,
        option: &'static str,
    ) -> impl FnOnce(io::Error) -> ServeError {
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => ServeError::AddressInUse {
                what,
                address,
                option,
            },
            _ => ServeError::Listen {
                what,
                address,
                source,
            },
        }
    }
}
