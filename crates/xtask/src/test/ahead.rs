//! What the last suites build, built while the first ones wait: tests of seed and agent mostly sleep, and a
//! build that only has what they leave costs them nothing.

use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use rootswarm_tests::last_landed;
use rootswarm_tests::vm::cache::Cache;
use rootswarm_tests::vm::debian::Debian;
use rootswarm_tests::vm::debs::Debs;

/// The priority that takes nothing from anybody else.
const LAST: i32 = 19;

/// Builds under way.
pub(super) struct Ahead(JoinHandle<anyhow::Result<()>>);

/// Begins: the last landed version, and with `machines` the Debian packages and what they are installed in.
pub(super) fn begin(machines: bool) -> Ahead {
    Ahead(std::thread::spawn(move || {
        // Of this thread, and so of all that it starts.
        let _ = rustix::process::nice(LAST);
        last_landed::programs().map_err(|error| anyhow!(error))?;
        if machines {
            let cache = Cache::open(&|_| {})?;
            Debs::build(&cache.path().join("deb"), cache.logs())?;
            Debian::make(cache.path(), cache.logs(), &|_| {})?;
        }
        Ok(())
    }))
}

impl Ahead {
    /// Waits for all of it.
    ///
    /// # Errors
    /// What could not be built.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let built = self.0.join().map_err(|_| anyhow!("a build panicked"))?;
        built.context("cannot build what the last tests need")
    }
}
