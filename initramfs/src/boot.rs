//! `boot`: plan, check, fetch, mount, hand off, drop privileges, serve; in this order and nothing else.
//!
//! Each step is another module's; here is only what holds them together: what is undone when a
//! later one fails, and what stays when all went well.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::BootArgs;
use crate::baked;
use crate::cmdline::{self, BootPlan};
use crate::confine;
use crate::console;
use crate::exit::{Exit, Failure};
use crate::fetch::{self, Destination, Fetched};
use crate::handoff::{self, Detached};
use crate::mount::{self, Mode, MountPlan, MountedRoot};
use crate::preflight::{self, Kernel, Memory};
use crate::report::Reporter;
use crate::run_dir::RunDir;
use crate::serving::Serving;
use crate::status::{Phase, StatusFile};

/// The detached child: everything. Never returns a word on the console by itself; the parent
/// prints what this reports.
pub fn run_child(args: &BootArgs) -> ExitCode {
    let result = Detached::begin().and_then(|detached| {
        let runtime = fetch::runtime()?;
        runtime.block_on(boot_and_serve(args, detached))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            handoff::report_failure(&failure);
            failure.exit.into()
        }
    }
}

async fn boot_and_serve(args: &BootArgs, detached: Detached) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(fetch::no_signals)?;
    let plan = read_plan(args)?;
    for warning in &plan.warnings {
        console::say(&format!("WARNING: {warning}"));
    }
    let kernel = Kernel::default();
    preflight::check_version(&kernel)?;
    preflight::check_modules(&kernel, plan.mode)?;

    let source = fetch::source_of(&plan.fetch);
    let mut reporter = Reporter::new(source, plan.fetch.source.to_string());
    reporter.say(&format!(
        "booting from {} (mode {})",
        plan.fetch.source, plan.mode
    ));
    let mut room = BootRoom {
        path: args.run_dir.clone(),
        mode: plan.mode,
        kernel,
        made: None,
    };
    let mut booted = tokio::select! {
        booted = boot(args, &plan, &mut room, &mut reporter) => booted?,
        () = received(&mut terminate) => {
            return Err(Failure::new(Exit::Unexpected, "stopped by a signal before the root was mounted"));
        }
    };

    // What it cannot find out it goes without: it then wakes late and says nothing, and serves.
    let writable = confine::find_writable(reporter.status_descriptor()).unwrap_or_default();
    // Now, while its path is right: it is about to become "/".
    let root = std::fs::File::open(&args.rootmnt);
    if let Some(serving) = &mut booted.serving {
        serving.remember_names();
    }
    // From here on there is a root. If nobody is there to use it, dropping takes it apart.
    detached.hand_off().map_err(|e| {
        Failure::new(
            Exit::Unexpected,
            format!("the caller is gone, the root is unmounted: {e}"),
        )
    })?;
    booted.root.keep();
    if let Some(room) = room.made.take() {
        room.keep();
    }
    let Some(mut serving) = booted.serving else {
        return Ok(());
    };
    for failed in confine::confine(root, &writable) {
        reporter.say(&format!("WARNING: {failed}"));
    }
    tokio::select! {
        () = serving.serve(&mut reporter) => Ok(()),
        // At shutdown every process that lingers delays the poweroff: no goodbyes.
        () = received(&mut terminate) => std::process::exit(0),
    }
}

async fn received(signal: &mut Signal) {
    // `None` is "no more signals can come", which is no signal.
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

fn read_plan(args: &BootArgs) -> Result<BootPlan, Failure> {
    let text = std::fs::read_to_string(&args.cmdline).map_err(|e| {
        let message = format!(
            "cannot read the kernel command line {}: {e}",
            args.cmdline.display()
        );
        Failure::new(Exit::BadInput, message)
    })?;
    let baked = baked::read(&args.conf)?;
    Ok(cmdline::plan(&text, &baked)?)
}

/// A mounted root and who is served from its image.
struct Booted {
    root: MountedRoot,
    serving: Option<Serving>,
}

async fn boot(
    args: &BootArgs,
    plan: &BootPlan,
    room: &mut BootRoom,
    reporter: &mut Reporter,
) -> Result<Booted, Failure> {
    let fetched = fetch::fetch_image(&plan.fetch, room, reporter).await?;
    reporter.phase(Phase::Mounting);
    let mount_plan = MountPlan {
        mode: plan.mode,
        image: fetched.path.clone(),
        rootmnt: args.rootmnt.clone(),
        mnt: args.mnt.clone(),
        dev: room.kernel.dev.clone(),
        copy_budget_bytes: Memory::read(&room.kernel).map_or(u64::MAX, |m| {
            m.available_bytes.saturating_sub(preflight::SLACK_BYTES)
        }),
    };
    // Unpacking takes seconds, in which peers go on being served.
    let root = tokio::task::spawn_blocking(move || mount::mount_root(&mount_plan))
        .await
        .map_err(|e| Failure::new(Exit::Unexpected, format!("mounting stopped: {e}")))??;
    if root.report.attributes_lost > 0 {
        let example = root
            .report
            .example
            .as_ref()
            .map(|p| p.display().to_string());
        reporter.say(&format!(
            "WARNING: {} extended attributes do not fit into a tmpfs of this kernel, such as on {}",
            root.report.attributes_lost,
            example.unwrap_or_default()
        ));
    }
    let took = reporter.elapsed();
    let Fetched {
        path,
        transfer,
        serving,
        image,
    } = fetched;
    let what = image.map_or("image".to_owned(), |id| format!("image {id}"));
    reporter.say(&crate::progress::summary(&what, took, &transfer));
    let serving = match serving {
        Some(serving) if plan.serve => {
            reporter.phase(Phase::Serving);
            Some(serving)
        }
        other => {
            if let Some(serving) = other {
                serving.finish(FINISH_UPLOADS).await;
            }
            if plan.mode == Mode::Copy {
                // Nothing is mounted from it and nobody is served from it: the RAM comes back.
                std::fs::remove_file(&path).map_err(fetch::FetchError::file("remove", &path))?;
            }
            reporter.phase(Phase::Done);
            None
        }
    };
    Ok(Booted { root, serving })
}

/// What uploads in progress may delay a boot that will not serve.
const FINISH_UPLOADS: Duration = Duration::from_secs(2);

/// The run-time directory, made when the image's length is known.
struct BootRoom {
    path: PathBuf,
    mode: Mode,
    kernel: Kernel,
    made: Option<RunDir>,
}

impl Destination for BootRoom {
    fn prepare(
        &mut self,
        length: Option<u64>,
        reporter: &mut Reporter,
    ) -> Result<PathBuf, Failure> {
        let memory = Memory::read(&self.kernel);
        let size = match (length, memory) {
            (Some(length), Some(memory)) => {
                preflight::check_memory(memory, length, self.mode)?;
                length
            }
            (Some(length), None) => length,
            // A server that does not say: as much as there is, and the write says when it is full.
            (None, memory) => memory.map_or(u64::MAX / 4, |m| {
                m.available_bytes.saturating_sub(preflight::SLACK_BYTES)
            }),
        };
        let interleave = preflight::has_several_numa_nodes(&self.kernel);
        let dir = self
            .made
            .insert(RunDir::mount(&self.path, size, interleave)?);
        if let Ok(status) = StatusFile::create(&dir.status()) {
            reporter.keep_status_in(status);
        }
        Ok(dir.image())
    }
}
