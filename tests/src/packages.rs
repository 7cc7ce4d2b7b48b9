//! Installs the Debian packages that a lab needs, only those whose program is missing.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why a program is not there.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// apt is not there either.
    #[error("{programs} missing, and apt-get cannot be run: {source}")]
    NoApt {
        /// The programs.
        programs: String,
        /// Why.
        source: std::io::Error,
    },
    /// apt failed.
    #[error("`apt-get {command}` failed ({status}); run it by hand to see why")]
    Failed {
        /// Its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A package was installed and the program is still missing.
    #[error("{program} is missing although the package {package} is installed")]
    StillMissing {
        /// The program.
        program: String,
        /// Its package.
        package: String,
    },
}

/// Where a program is, searched in PATH and in the directories of the administrator's programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).collect::<Vec<_>>();
    let more = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    directories
        .into_iter()
        .chain(more)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Makes sure that each program is there, installing its package where it is not. A service that a
/// package starts (nginx does) is stopped again: the lab runs its own.
///
/// # Errors
/// When apt cannot install a package.
pub fn ensure(needs: &[(&str, &str)]) -> Result<(), PackageError> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing
        .iter()
        .map(|(program, _)| *program)
        .collect::<Vec<_>>()
        .join(", ");
    let apt = |args: &[&str]| {
        let status = Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .map_err(|source| PackageError::NoApt {
                programs: programs.clone(),
                source,
            })?;
        if status.success() {
            return Ok(());
        }
        Err(PackageError::Failed {
            command: args.join(" "),
            status,
        })
    };
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
    install.extend(missing.iter().map(|(_, package)| *package));
    apt(&install)?;
    for (program, package) in missing {
        if find(program).is_none() {
            return Err(PackageError::StillMissing {
                program: (*program).to_owned(),
                package: (*package).to_owned(),
            });
        }
        // Without systemd nothing was started; a program that is no service is no matter either.
        let _ = Command::new("systemctl")
            .args(["disable", "--now", program])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
    Ok(())
}
