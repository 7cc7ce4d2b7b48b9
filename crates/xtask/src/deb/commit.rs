//! What a package says of the commit that it was built from: its version and its dates.

use std::process::Command;

use anyhow::Context as _;
use rootswarm_tests::vm::binaries::workspace_root;

use super::output;

/// The commit that is checked out.
pub(super) struct Commit {
    hash: String,
    /// Files that git knows were changed and not committed.
    is_changed: bool,
    /// When it was made, in seconds: `SOURCE_DATE_EPOCH`.
    pub(super) epoch_s: String,
    /// The same, as a changelog wants it.
    date: String,
    /// The same day, for people.
    pub(super) day: String,
    /// The workspace's where the commit has its tag. Elsewhere with the commit's time behind it, so
    /// that apt takes what was built later for newer.
    pub(super) version: String,
}

impl Commit {
    /// # Errors
    /// When this is no git checkout.
    pub(super) fn of_head() -> anyhow::Result<Commit> {
        let release = env!("CARGO_PKG_VERSION");
        let show = |format: &str| git(&["log", "-1", &format!("--format={format}")]);
        let date_as = |format: &str| {
            let date = format!("--date=format-local:{format}");
            git(&["log", "-1", &date, "--format=%cd"])
        };
        let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        let tag = format!("v{release}");
        let is_release = git(&["tag", "--points-at", "HEAD"])?
            .lines()
            .any(|found| found == tag);
        let mut version = release.to_owned();
        if !is_release {
            version.push_str(&format!("+git{}", date_as("%Y%m%d.%H%M%S")?));
        }
        if is_changed {
            version.push_str("+changed");
        }
        Ok(Commit {
            hash: show("%H")?,
            is_changed,
            epoch_s: show("%ct")?,
            date: date_as("%a, %d %b %Y %H:%M:%S +0000")?,
            day: date_as("%Y-%m-%d")?,
            version,
        })
    }

    /// Debian's changelog of a package whose history is in git.
    pub(super) fn changelog(&self, maintainer: &str) -> String {
        let changed = if self.is_changed {
            ",\n    with changes that are not committed"
        } else {
            ""
        };
        format!(
            "rootswarm ({}) unstable; urgency=medium\n\n  * Built from commit\n    {}{changed}.\n\n -- {maintainer}  {}\n",
            self.version, self.hash, self.date
        )
    }
}

fn git(args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("git");
    command
        .args(args)
        .current_dir(workspace_root())
        // Dates are those of the commit, wherever and by whom it is built.
        .env("TZ", "UTC")
        .env("LC_ALL", "C");
    let said = output(command).context("a package carries the date of its commit")?;
    Ok(said.trim_end().to_owned())
}
