//! The exit codes, which scripts and admins rely on, and the one line that goes with them.
//!
//! Each operation has its own error type and says through [`Classified`] which code it means.
//! Nothing here prints.

use std::fmt;
use std::process::ExitCode;

/// Why the program ends. The numbers are a promise: the boot script and the admin's tools read
/// them, and the server's binary uses the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Something that no other code names.
    Unexpected = 1,
    /// Bad arguments, rooturl, kernel command line or configuration file.
    BadInput = 2,
    /// Refused for trust or admission: wrong pin, other key, bad signature, no token.
    Refused = 3,
    /// Gave up on the network.
    Network = 4,
    /// A local resource is missing: RAM, disk, file descriptors.
    Resource = 5,
    /// The server is there, the image is not.
    NoSuchImage = 6,
    /// The image cannot be mounted: no squashfs, or the kernel lacks a module.
    NotMountable = 7,
    /// The local address or port is taken.
    AddressInUse = 8,
    /// Damaged data where good data was expected.
    Damaged = 9,
}

impl Exit {
    /// The code for a number that a child process reported; unknown numbers are unexpected.
    pub fn from_code(code: u8) -> Exit {
        match code {
            2 => Exit::BadInput,
            3 => Exit::Refused,
            4 => Exit::Network,
            5 => Exit::Resource,
            6 => Exit::NoSuchImage,
            7 => Exit::NotMountable,
            8 => Exit::AddressInUse,
            9 => Exit::Damaged,
            _ => Exit::Unexpected,
        }
    }

    /// The number the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// An error that knows which exit code it means.
pub trait Classified: std::error::Error {
    /// The code the process ends with when this error ends it.
    fn exit(&self) -> Exit;
}

/// What ends the program: a code and one line for the person at the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line, without the program's name in front.
    pub message: String,
}

impl Failure {
    /// A failure with this code and line.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure {
            exit,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: Classified> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure {
            exit: error.exit(),
            message: error.to_string(),
        }
    }
}

/// Which code an I/O error on a local file means: a full disk or exhausted memory is a resource,
/// anything else is unexpected.
pub fn exit_of_local_io(error: &std::io::Error) -> Exit {
    use std::io::ErrorKind::{OutOfMemory, QuotaExceeded, StorageFull};
    match error.kind() {
        OutOfMemory | QuotaExceeded | StorageFull => Exit::Resource,
        _ => Exit::Unexpected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for code in 1..=9 {
            assert_eq!(Exit::from_code(code).code(), code);
        }
        assert_eq!(Exit::from_code(0), Exit::Unexpected);
        assert_eq!(Exit::from_code(77), Exit::Unexpected);
    }

    #[test]
    fn a_full_disk_is_a_resource() {
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert_eq!(exit_of_local_io(&full), Exit::Resource);
        let denied = std::io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error());
        assert_eq!(exit_of_local_io(&denied), Exit::Unexpected);
    }
}
