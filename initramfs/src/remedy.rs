//! What helps when an image does not come: waiting, or nothing that this program can do.
//!
//! "Not now" is not "no". A server that does not know an image may be about to publish it, one that
//! knows another image under the name may be about to change it, a token file that cannot be read will
//! be put right, whoever answers with another key may be somebody else than the seed, and a seed of
//! another version is half of an upgrade. So whatever somebody else says is asked again, for as long
//! as the operator allows (ROOTDELAY), and ends a boot only when it was the answer until then. Final
//! at once is only what no waiting mends: this machine's own memory, disk and files, and what was
//! written wrongly on a command line.
//!
//! Everything that retries asks [`remedy`], and nothing else decides it.

use std::time::Duration;

use rootswarm_transport::node::{JoinError, Refusal, StartError};
use rootswarm_transport::socket::BindError;

use crate::fetch::FetchError;
use crate::http_error::HttpError;
use crate::network::NetworkError;
use crate::patience::Pace;
use crate::resolve::ResolveError;
use crate::swarm_fetch::SwarmError;

/// What helps against an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Trying again, at this pace.
    Wait(Pace),
    /// Nothing but the operator.
    Operator,
}

/// What helps against `error`.
pub fn remedy(error: &FetchError) -> Remedy {
    match error {
        FetchError::Http(error) => of_http(error),
        FetchError::Network(error) => of_network(error),
        FetchError::Swarm(error) => of_swarm(error),
        // What a server holds may change, and another server may hold something else.
        FetchError::WrongImage { .. }
        | FetchError::OldTag(_)
        | FetchError::DamagedChunk { .. }
        | FetchError::Document { .. } => Remedy::Wait(Pace::Answered),
        // There is less RAM or disk than the image needs, or a file of ours cannot be used.
        FetchError::Prepare(_) | FetchError::File { .. } | FetchError::Store(_) => Remedy::Operator,
        // It was waited for.
        FetchError::GaveUp { .. } => Remedy::Operator,
    }
}

fn of_http(error: &HttpError) -> Remedy {
    match error {
        HttpError::Resolve(error) => of_resolve(error),
        HttpError::Connect { .. }
        | HttpError::Timeout { .. }
        | HttpError::Protocol { .. }
        | HttpError::CutOff { .. } => Remedy::Wait(Pace::Silent),
        HttpError::Status {
            status,
            retry_after,
            ..
        } => match retry_after {
            Some(asked) => Remedy::Wait(Pace::Asked((*asked).min(ASKED_MAX))),
            // These say "come again"; the others, like 404 and 403, are an answer.
            None if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
                Remedy::Wait(Pace::Silent)
            }
            None => Remedy::Wait(Pace::Answered),
        },
        HttpError::Redirect { .. } | HttpError::TooLong { .. } | HttpError::OtherRange { .. } => {
            Remedy::Wait(Pace::Answered)
        }
    }
}

/// A server may send nodes away for this long. More would outlast ROOTDELAY, and the server's clock
/// may be as wrong as this machine's.
const ASKED_MAX: Duration = Duration::from_secs(60);

fn of_network(error: &NetworkError) -> Remedy {
    match error {
        // No carrier, no address yet, spanning tree, DHCP on its way.
        NetworkError::NoRoute { .. } => Remedy::Wait(Pace::Silent),
        NetworkError::Resolve(error) => of_resolve(error),
    }
}

fn of_resolve(error: &ResolveError) -> Remedy {
    match error {
        // A name server without the name yet, or not up after the same power cut, or not known yet.
        ResolveError::NoServer { .. }
        | ResolveError::NoAnswer { .. }
        | ResolveError::Unknown { .. } => Remedy::Wait(Pace::Silent),
        ResolveError::BadName { .. } => Remedy::Operator,
    }
}

fn of_swarm(error: &SwarmError) -> Remedy {
    match error {
        SwarmError::Join(error) => of_join(error),
        SwarmError::Node(error) => of_start(error),
        // Nobody else said these.
        SwarmError::NoAnchor | SwarmError::Download(_) | SwarmError::Store(_) => Remedy::Operator,
    }
}

fn of_join(error: &JoinError) -> Remedy {
    match error {
        JoinError::Unreachable { .. } => Remedy::Wait(Pace::Silent),
        JoinError::Refused { refusal, .. } => Remedy::Wait(match refusal {
            Refusal::Busy => Pace::Silent,
            Refusal::UnknownImage | Refusal::NotAdmitted(_) | Refusal::PinMismatch { .. } => {
                Pace::Answered
            }
        }),
        // Of an undecided attempt one seed has answered, and would each time.
        JoinError::Undecided { .. }
        | JoinError::PinMismatch { .. }
        | JoinError::Trust { .. }
        | JoinError::Tag { .. }
        | JoinError::Protocol { .. } => Remedy::Wait(Pace::Answered),
        JoinError::NoSeeds => Remedy::Operator,
        JoinError::Local(error) => of_start(error),
    }
}

fn of_start(error: &StartError) -> Remedy {
    match error {
        // DHCP may bring it.
        StartError::Bind(BindError::NoSuchAddress { .. }) => Remedy::Wait(Pace::Silent),
        StartError::Bind(BindError::Io { source, .. }) | StartError::Endpoint { source, .. } => {
            match is_shortage(source) {
                true => Remedy::Wait(Pace::Silent),
                false => Remedy::Operator,
            }
        }
        StartError::Bind(BindError::AddressInUse { .. })
        | StartError::Identity(_)
        | StartError::Tls(_) => Remedy::Operator,
    }
}

/// Memory or descriptors that somebody else may give back.
fn is_shortage(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let code = error.raw_os_error();
    [
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::MFILE,
        Errno::NFILE,
        Errno::AGAIN,
    ]
    .iter()
    .any(|shortage| code == Some(shortage.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::io;

    use rootswarm_image::{ImageId, TagError};
    use rootswarm_transport::node::SwarmError as DownloadError;
    use rootswarm_transport::store::StoreError;
    use rootswarm_transport::trust::TrustError;

    use super::*;
    use crate::exit::{Classified, Exit, Failure};

    fn id() -> ImageId {
        ImageId::from_bytes([7; 32])
    }

    fn os(errno: rustix::io::Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    fn join(error: JoinError) -> FetchError {
        SwarmError::Join(error).into()
    }

    fn refused(refusal: Refusal) -> FetchError {
        let seed = "10.0.0.1:7400".parse().unwrap();
        join(JoinError::Refused { seed, refusal })
    }

    fn status(code: u16, retry_after_s: Option<u64>) -> FetchError {
        HttpError::Status {
            url: "http://h/x".to_owned(),
            status: hyper::StatusCode::from_u16(code).unwrap(),
            retry_after: retry_after_s.map(Duration::from_secs),
        }
        .into()
    }

    fn bind(errno: rustix::io::Errno) -> FetchError {
        let address = "10.0.0.2:0".parse().unwrap();
        let source = os(errno);
        SwarmError::Node(StartError::Bind(BindError::Io { address, source })).into()
    }

    /// Every way in which an image does not come, what helps, and the code that the process ends with
    /// when nothing did.
    #[test]
    fn the_table() {
        use rustix::io::Errno;
        let seed = "10.0.0.1:7400".parse().unwrap();
        let address = "10.0.0.2:7401".parse().unwrap();
        let host = || "seed.lab".to_owned();
        let url = || "http://h/x".to_owned();
        let wait = Remedy::Wait;
        let asked = |seconds| wait(Pace::Asked(Duration::from_secs(seconds)));
        let unreachable = || JoinError::Unreachable {
            seed,
            reason: "silence".to_owned(),
        };
        let pin = || JoinError::PinMismatch {
            seed,
            expected: id(),
            found: id(),
        };
        let table: Vec<(FetchError, Remedy, Exit)> = vec![
            // What a seed says.
            (join(unreachable()), wait(Pace::Silent), Exit::Network),
            (
                join(JoinError::Undecided {
                    refused: Box::new(pin()),
                    network: Box::new(unreachable()),
                }),
                wait(Pace::Answered),
                Exit::Network,
            ),
            (refused(Refusal::Busy), wait(Pace::Silent), Exit::Network),
            (
                refused(Refusal::UnknownImage),
                wait(Pace::Answered),
                Exit::NoSuchImage,
            ),
            (
                refused(Refusal::NotAdmitted(
                    "tokens cannot be read at the moment".to_owned(),
                )),
                wait(Pace::Answered),
                Exit::Refused,
            ),
            (
                refused(Refusal::PinMismatch { current: id() }),
                wait(Pace::Answered),
                Exit::Refused,
            ),
            (join(pin()), wait(Pace::Answered), Exit::Refused),
            (
                join(JoinError::Trust {
                    seed,
                    source: TrustError::ForeignIssuer,
                }),
                wait(Pace::Answered),
                Exit::Refused,
            ),
            (
                join(JoinError::Tag {
                    seed,
                    source: TagError::Malformed { found: 3 },
                }),
                wait(Pace::Answered),
                Exit::Refused,
            ),
            (
                join(JoinError::Protocol {
                    seed,
                    reason: "another version".to_owned(),
                }),
                wait(Pace::Answered),
                Exit::Network,
            ),
            // What a web server says.
            (status(404, None), wait(Pace::Answered), Exit::NoSuchImage),
            (status(410, None), wait(Pace::Answered), Exit::NoSuchImage),
            (status(403, None), wait(Pace::Answered), Exit::Refused),
            (status(401, None), wait(Pace::Answered), Exit::Refused),
            (status(400, None), wait(Pace::Answered), Exit::Network),
            (status(503, None), wait(Pace::Silent), Exit::Network),
            (status(500, None), wait(Pace::Silent), Exit::Network),
            (status(429, None), wait(Pace::Silent), Exit::Network),
            (status(503, Some(7)), asked(7), Exit::Network),
            (status(429, Some(0)), asked(0), Exit::Network),
            (status(503, Some(86_400)), asked(60), Exit::Network),
            (
                HttpError::Redirect {
                    url: url(),
                    location: "https://h/x".to_owned(),
                    reason: "https",
                }
                .into(),
                wait(Pace::Answered),
                Exit::Network,
            ),
            (
                HttpError::CutOff {
                    url: url(),
                    expected: 2,
                    found: 1,
                }
                .into(),
                wait(Pace::Silent),
                Exit::Network,
            ),
            (
                HttpError::Connect {
                    server: host(),
                    source: os(Errno::CONNREFUSED),
                }
                .into(),
                wait(Pace::Silent),
                Exit::Network,
            ),
            (
                FetchError::WrongImage {
                    url: url(),
                    pinned: Box::new(id()),
                    found: Box::new(id()),
                },
                wait(Pace::Answered),
                Exit::Refused,
            ),
            (
                FetchError::Document {
                    url: url(),
                    reason: "no tag".to_owned(),
                },
                wait(Pace::Answered),
                Exit::Refused,
            ),
            // What the network does.
            (
                NetworkError::NoRoute {
                    address: seed,
                    source: os(Errno::NETUNREACH),
                    interfaces: "eth0 down".to_owned(),
                }
                .into(),
                wait(Pace::Silent),
                Exit::Network,
            ),
            (
                NetworkError::from(ResolveError::NoServer { name: host() }).into(),
                wait(Pace::Silent),
                Exit::Network,
            ),
            (
                NetworkError::from(ResolveError::Unknown {
                    name: host(),
                    server: "10.0.0.1".parse().unwrap(),
                })
                .into(),
                wait(Pace::Silent),
                Exit::Network,
            ),
            (
                HttpError::Resolve(ResolveError::NoAnswer {
                    name: host(),
                    servers: "10.0.0.1".to_owned(),
                })
                .into(),
                wait(Pace::Silent),
                Exit::Network,
            ),
            (
                SwarmError::Node(StartError::Bind(BindError::NoSuchAddress { address })).into(),
                wait(Pace::Silent),
                Exit::Resource,
            ),
            (bind(Errno::NOMEM), wait(Pace::Silent), Exit::Resource),
            (bind(Errno::MFILE), wait(Pace::Silent), Exit::Resource),
            // What nobody but the operator mends.
            (bind(Errno::ACCESS), Remedy::Operator, Exit::Resource),
            (
                SwarmError::Node(StartError::Bind(BindError::AddressInUse { address })).into(),
                Remedy::Operator,
                Exit::AddressInUse,
            ),
            (
                NetworkError::from(ResolveError::BadName { name: host() }).into(),
                Remedy::Operator,
                Exit::BadInput,
            ),
            (
                HttpError::Resolve(ResolveError::BadName { name: host() }).into(),
                Remedy::Operator,
                Exit::BadInput,
            ),
            (join(JoinError::NoSeeds), Remedy::Operator, Exit::BadInput),
            (SwarmError::NoAnchor.into(), Remedy::Operator, Exit::Refused),
            (
                SwarmError::Download(DownloadError::Ended).into(),
                Remedy::Operator,
                Exit::Unexpected,
            ),
            (
                FetchError::Prepare(Failure::new(Exit::Resource, "too little RAM")),
                Remedy::Operator,
                Exit::Resource,
            ),
            (
                StoreError::Busy { path: "x".into() }.into(),
                Remedy::Operator,
                Exit::Resource,
            ),
            (
                FetchError::File {
                    step: "write",
                    path: "x".into(),
                    source: os(Errno::NOSPC),
                },
                Remedy::Operator,
                Exit::Resource,
            ),
        ];
        for (error, expected, exit) in table {
            assert_eq!(remedy(&error), expected, "{error}");
            assert_eq!(error.exit(), exit, "{error}");
        }
    }
}
