//! What the process says when it ends: one exit code per class of failure, one line per failure.
//!
//! The codes are a promise to scripts and are shared with `rootswarm-agent`. The messages are made
//! where the failure happens; this file only sorts them.

use std::process::ExitCode;

use crate::config::ConfigError;
use crate::publish::PublishError;
use crate::pxe::PxeError;
use crate::revocation::RevocationError;
use crate::serve::ServeError;
use crate::state::StateError;
use crate::status::StatusError;
use crate::token::TokenError;
use crate::waiting::NotServed;

/// Why the process ended, as a number that scripts can test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something nobody foresaw.
    Unexpected = 1,
    /// A bad argument, configuration file or name.
    BadInput = 2,
    /// Trust: a key that is not the one expected, or one that others can read.
    Refused = 3,
    /// The network, or a server that should be running, is not there.
    Network = 4,
    /// A local resource: a full disk, a missing file.
    Local = 5,
    /// No image by that name.
    NoSuchImage = 6,
    /// Another process holds the address or the state directory.
    AddressInUse = 8,
    /// A damaged copy or state file.
    Damaged = 9,
    /// The source file changed, or was not complete, while it was read.
    SourceChanged = 10,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Any failure of any subcommand.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line or the configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Publishing an image.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Serving.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Admission tokens.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Revocations.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// Boot files.
    #[error(transparent)]
    Pxe(#[from] PxeError),
    /// Asking a running server.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// A running server does not do what it should.
    #[error(transparent)]
    NotServed(#[from] NotServed),
    /// Standard output went away or cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    /// The code the process ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Config(e) => e.exit(),
            Failure::State(e) => e.exit(),
            Failure::Publish(e) => e.exit(),
            Failure::Serve(e) => e.exit(),
            Failure::Token(e) => e.exit(),
            Failure::Revocation(e) => e.exit(),
            Failure::Pxe(e) => e.exit(),
            Failure::Status(e) => e.exit(),
            Failure::NotServed(_) => Exit::Network,
            Failure::Output(_) => Exit::Local,
        }
    }
}
