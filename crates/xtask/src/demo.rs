//! `cargo xtask demo`: four virtual machines boot over PXE from one seed and from each other.
//!
//! This file is what a person sees: what is installed, a live view, a summary. The lab itself is
//! `rootswarm_tests::vm`, which the VM test runs too.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rootswarm_tests::packages;
use rootswarm_tests::vm::facts::Facts;
use rootswarm_tests::vm::{Lab, Machine, MachineSpec, PACKAGES, Phase};
use serde_json::Value;

/// Four machines take about two minutes on two idle cores.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// Machines have addresses from 10.78.0.11 on, and 1 GiB each.
const FIRST_NUMBER: u8 = 11;
/// How often a log gets a line for each machine that changed.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// How often a terminal is painted and the seed is asked.
const PAINT_INTERVAL: Duration = Duration::from_secs(1);

/// Boot virtual machines over PXE from one seed and from each other.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many machines; each takes 1 GiB of memory
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    nodes: u8,
    /// Do not install missing Debian packages
    #[arg(long)]
    no_install: bool,
    /// Install the Debian packages and end
    #[arg(long, conflicts_with = "no_install")]
    install_only: bool,
}

/// Runs the demo.
///
/// # Errors
/// When something cannot be installed, made or started, or a machine does not come up as it should.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes a Debian root, network namespaces and taps: run it as root"
    );
    install(&args)?;
    if args.install_only {
        return Ok(());
    }

    let started = Instant::now();
    let mut lab = Lab::open(&|what| {
        say(&format!(
            "[{:6.1} s] {what}",
            started.elapsed().as_secs_f64()
        ))
    })?;
    say(&format!("seed: {}", lab.host().rooturl()));
    say(&format!(
        "consoles and logs while it runs: {}",
        lab.directory().display()
    ));

    let mut places = Vec::new();
    for node in 0..args.nodes {
        let spec = MachineSpec::new(&format!("node{}", node + 1), FIRST_NUMBER + node);
        places.push(lab.switch_on(spec)?);
    }
    say(&format!("{} machines switched on", args.nodes));
    let view = View::default();
    let phases = lab.wait(&places, BOOT_LIMIT, |lab, phases| view.show(lab, phases));
    view.leave();
    let phases = phases?;

    let machines = lab.machines();
    out(&summary(machines));
    let failures = failures(machines, &phases);
    if !failures.is_empty() {
        for machine in machines.iter().filter(|machine| machine.facts().is_none()) {
            let console = machine.console().tail(20);
            say(&format!(
                "the end of {}'s console:\n{console}",
                machine.spec().name
            ));
        }
        bail!("not as it should be: {}", failures.join("; "));
    }
    Ok(())
}

fn install(args: &Args) -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(file, _)| packages::find(file).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    ensure!(
        !args.no_install,
        "not installed: {missing} (apt-get install --no-install-recommends {missing})"
    );
    say(&format!("installing with apt-get: {missing}"));
    packages::ensure(PACKAGES).context("cannot install what the demo needs")
}

/// What is shown while machines boot: repainted on a terminal, lines in a log.
#[derive(Default)]
struct View {
    last: Cell<Option<Instant>>,
    painted_lines: Cell<usize>,
    logged: std::cell::RefCell<Vec<String>>,
}

impl View {
    fn show(&self, lab: &Lab, phases: &[Phase]) {
        let terminal = std::io::stdout().is_terminal();
        let interval = if terminal {
            PAINT_INTERVAL
        } else {
            LOG_INTERVAL
        };
        if self
            .last
            .get()
            .is_some_and(|last| last.elapsed() < interval)
        {
            return;
        }
        self.last.set(Some(Instant::now()));
        let machines = lab.machines().iter().zip(phases);
        let mut lines: Vec<String> = machines
            .map(|(machine, phase)| format!("{:<6} {}", machine.spec().name, describe(phase)))
            .collect();
        // A seed that does not answer now answers a second later; the machines' lines matter more.
        if let Some(seed) = lab
            .host()
            .status()
            .ok()
            .and_then(|status| seed_line(&status))
        {
            lines.push(seed);
        }
        if terminal {
            self.paint(&lines);
        } else {
            self.log(lines);
        }
    }

    fn paint(&self, lines: &[String]) {
        let mut text = String::new();
        let painted = self.painted_lines.replace(lines.len());
        if painted > 0 {
            // Up to the first line of what was painted before.
            let _ = write!(text, "\x1b[{painted}A");
        }
        for line in lines {
            // A longer line would wrap, and the next repaint would start too low.
            let line: String = line.chars().take(terminal_columns()).collect();
            let _ = writeln!(text, "\x1b[2K{line}");
        }
        // Left over when there are fewer lines than before.
        text.push_str("\x1b[J");
        out(&text);
    }

    fn log(&self, lines: Vec<String>) {
        let mut logged = self.logged.borrow_mut();
        for line in lines.iter().filter(|line| !logged.contains(line)) {
            say(line);
        }
        *logged = lines;
    }

    /// The next output goes below what was painted.
    fn leave(&self) {
        self.painted_lines.set(0);
    }
}

fn terminal_columns() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .unwrap_or(80)
}

fn describe(phase: &Phase) -> String {
    match phase {
        Phase::Netboot => "firmware, DHCP, TFTP".to_owned(),
        Phase::Kernel => "kernel started, network".to_owned(),
        Phase::Fetching(said) => said.clone(),
        Phase::Starting => "root mounted, systemd starts".to_owned(),
        Phase::Up => "up".to_owned(),
        Phase::Stopped(why) => format!("stopped: {why}"),
    }
}

/// What the seed says of its image, in one line.
fn seed_line(status: &Value) -> Option<String> {
    let image = status.get("images")?.as_array()?.first()?;
    let nodes = image.get("nodes")?.as_array()?;
    let complete = nodes
        .iter()
        .filter(|node| node.get("complete").and_then(Value::as_bool) == Some(true))
        .count();
    let uploaded_bytes = image.get("uploaded_bytes")?.as_u64()?;
    let copies = image.get("seed_copies")?.as_f64()?;
    Some(format!(
        "seed   {} nodes, {complete} complete, {:.1} MB sent ({copies:.2} copies)",
        nodes.len(),
        uploaded_bytes as f64 / 1e6,
    ))
}

/// One row a machine, and what the columns mean.
fn summary(machines: &[Machine]) -> String {
    let mut text = String::from(
        "\n        image     up  from seed  from peers  RAM used  shared  agent  systemd     /        /mnt/ro   /mnt/rw\n",
    );
    let seconds =
        |at: Option<Duration>| at.map_or("-".to_owned(), |at| format!("{:.1} s", at.as_secs_f64()));
    for machine in machines {
        let none = Facts::default();
        let facts = machine.facts().unwrap_or(&none);
        let megabytes = |key| {
            facts.status_number(key).map_or("-".to_owned(), |bytes| {
                format!("{:.1} MB", bytes as f64 / 1e6)
            })
        };
        let agent = facts.agents.first().map_or("-".to_owned(), |agent| {
            format!("{:.1}", agent.anon_kib as f64 / 1024.0)
        });
        let _ = writeln!(
            text,
            "{:<6} {:>6} {:>6}  {:>9}  {:>10}  {:>8}  {:>6}  {:>5}  {:<10}  {:<7}  {:<8}  {:<7}",
            machine.spec().name,
            seconds(machine.image_complete_at()),
            seconds(machine.up_at()),
            megabytes("bytes_from_seed"),
            megabytes("bytes_from_peers"),
            facts.memory.used_mib,
            facts.memory.shared_mib,
            agent,
            facts.systemd,
            facts.fs_type("/"),
            facts.fs_type("/mnt/ro"),
            facts.fs_type("/mnt/rw"),
        );
    }
    text.push_str(
        "\nTimes are from power-on, firmware and TFTP included. RAM is `free -m` (MiB, used includes shared);\n\
         agent is the serving process's own memory in MiB, beside the image. The machines are emulated,\n\
         some twenty times slower than real ones.\n",
    );
    text
}

/// What the demo promises, and what of it is not so.
fn failures(machines: &[Machine], phases: &[Phase]) -> Vec<String> {
    let mut failures = Vec::new();
    for (machine, phase) in machines.iter().zip(phases) {
        let name = &machine.spec().name;
        let Some(facts) = machine.facts() else {
            failures.push(format!("{name} {}", describe(phase)));
            continue;
        };
        let mut check = |what: &str, found: &str, expected: &str| {
            if found != expected {
                failures.push(format!(
                    "{name}: {what} is `{found}`, expected `{expected}`"
                ));
            }
        };
        check("systemd", &facts.systemd, "running");
        check("/", facts.fs_type("/"), "overlay");
        check("/mnt/ro", facts.fs_type("/mnt/ro"), "squashfs");
        check("/mnt/rw", facts.fs_type("/mnt/rw"), "tmpfs");
        if facts.agents.is_empty() {
            failures.push(format!("{name}: no agent serves"));
        }
    }
    failures
}

#[allow(clippy::print_stdout)] // A command that people watch.
fn say(line: &str) {
    println!("{line}");
}

fn out(text: &str) {
    // A closed pipe must not keep the guards from being dropped in order.
    let mut stdout = std::io::stdout().lock();
    let _ = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
}
