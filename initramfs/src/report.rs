//! Where everything that happens during a boot is told: lines on the console and the status
//! document, from the same numbers.

use std::fmt::Display;
use std::time::Duration;

use rootswarm_image::ImageId;
use tokio::time::Instant;

use crate::console;
use crate::progress::{Meter, Snapshot, Source};
use crate::status::{Document, Phase, StatusFile};

/// The voice of one boot or fetch.
#[derive(Debug)]
pub struct Reporter {
    started: Instant,
    meter: Meter,
    document: Document,
    status: Option<StatusFile>,
}

impl Reporter {
    /// Starts the clock. `rooturl` is shown in the status document.
    pub fn new(source: Source, rooturl: String) -> Reporter {
        Reporter {
            started: Instant::now(),
            meter: Meter::new(source),
            document: Document {
                rooturl,
                pid: std::process::id(),
                ..Document::default()
            },
            status: None,
        }
    }

    /// From now on the document is kept up to date in this file.
    pub fn keep_status_in(&mut self, file: StatusFile) {
        self.status = Some(file);
        self.write_status();
    }

    /// The descriptor that the document is written through, if there is one.
    pub fn status_descriptor(&self) -> Option<std::os::fd::RawFd> {
        self.status.as_ref().map(StatusFile::descriptor)
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The last snapshot seen.
    pub fn transfer(&self) -> &Snapshot {
        &self.document.transfer
    }

    /// A line for the console.
    pub fn say(&self, text: &str) {
        console::say(text);
    }

    /// Which image it is.
    pub fn image(&mut self, id: &ImageId) {
        self.document.image = Some(id.to_string());
    }

    /// A new phase.
    pub fn phase(&mut self, phase: Phase) {
        if phase != Phase::Fetching && self.document.phase == Phase::Fetching {
            self.document.fetch_seconds = Some(self.started.elapsed().as_secs_f64());
        }
        self.document.phase = phase;
        self.write_status();
    }

    /// When the first chunk came from the swarm, counted from the start.
    pub fn first_chunk(&mut self, after: Duration) {
        self.document.first_chunk_seconds = Some(after.as_secs_f64());
    }

    /// New numbers: a console line when one is due.
    pub fn progress(&mut self, snapshot: Snapshot) {
        self.document.transfer = snapshot;
        if let Some(line) = self.meter.line(self.started.elapsed(), &snapshot) {
            self.say(&line);
            self.write_status();
        }
    }

    /// New numbers while serving: the document only.
    pub fn serving(
        &mut self,
        snapshot: Snapshot,
        banned: Vec<(String, String)>,
        cut_off_from: u32,
    ) {
        self.document.transfer = snapshot;
        self.document.banned = banned;
        self.document.cut_off_from = cut_off_from;
        self.write_status();
    }

    /// Why something is tried again, and for how long at most unless that is for ever.
    pub fn retry(&mut self, cause: &dyn Display, left: Option<Duration>) {
        if !self.meter.may_say_cause(self.started.elapsed()) {
            return;
        }
        match left {
            Some(left) => self.say(&format!(
                "{cause}; trying again, for {} s more",
                left.as_secs_f64().ceil()
            )),
            None => self.say(&format!("{cause}; trying again")),
        }
    }

    fn write_status(&mut self) {
        self.document.uptime_seconds = self.started.elapsed().as_secs_f64();
        if let Some(status) = &mut self.status
            && status.write(&self.document).is_err()
        {
            // A full /run is no reason to fail, nor to try for ever.
            self.status = None;
        }
    }
}
