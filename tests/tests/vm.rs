//! Real machines boot over real PXE from the seed and from each other.
//!
//! One lab for most of it, because a machine takes a minute: four that start together, then one of
//! each other kind, then one whose seed can hardly send and one whose first seed is destroyed. What
//! each must show is in the function of its group. In a second lab a machine becomes a seed. Needs root;
//! takes about ten minutes on two cores once the Debian root is made. More faults in machines:
//! `cargo xtask faults`.

#![allow(clippy::print_stderr)] // A test of minutes tells what it is doing.

use std::time::{Duration, Instant};

use rootswarm_tests::faults::{machines, power};
use rootswarm_tests::packages;
use rootswarm_tests::vm::facts::Facts;
use rootswarm_tests::vm::host::IMAGE;
use rootswarm_tests::vm::{Lab, Machine, MachineSpec, PACKAGES, Phase, host, seed_package};

/// Four together take 108 s on two idle cores. It only tells one that comes up from one that never
/// will: the machine that runs this may be as slow, and as busy, as it likes.
const BOOT_LIMIT: Duration = machines::BOOT_LIMIT;

/// `free -m` used after a boot of the same image by a shell script with wget, plus what the serving
/// agent may take.
const AGENT_MIB: u64 = 12;
const OVERLAY_LIMIT_MIB: u64 = 242 + AGENT_MIB;
const READ_ONLY_LIMIT_MIB: u64 = 235 + AGENT_MIB;
const COPY_LIMIT_MIB: u64 = 504 + AGENT_MIB;

/// A booted system's own files in tmpfs: the journal, udev's database, the overlay's upper layer.
const WRITTEN_MIB: u64 = 8;

/// A process that has to be killed by systemd at a shutdown adds eighty seconds and more.
const POWER_OFF_WAIT_MAX_S: f64 = 40.0;

#[test]
fn machines_boot_over_pxe() {
    packages::ensure(PACKAGES).expect("Debian packages of the lab");
    let started = Instant::now();
    let say = |what: &str| eprintln!("[{:6.1} s] {what}", started.elapsed().as_secs_f64());
    let mut lab = Lab::open(&say).expect("lab");

    say("four together");
    let first = four_together(&mut lab);
    say("an agent dies");
    a_machine_does_not_mind_its_agents_death(&mut lab, first[1]);
    say("one more, from the booted ones");
    one_more_from_the_booted(&mut lab);
    say("power off");
    power_off_is_not_delayed(&mut lab, first[0]);
    say("done");
}

/// Other roots, another scheme, a wrong pin, and a seed that is not the first one named.
#[test]
fn the_other_ways_to_boot() {
    packages::ensure(PACKAGES).expect("Debian packages of the lab");
    let started = Instant::now();
    let say = |what: &str| eprintln!("[{:6.1} s] {what}", started.elapsed().as_secs_f64());
    let mut lab = Lab::open(&say).expect("lab");
    say("the other ways to boot");
    let others = the_other_ways(&mut lab);
    for place in others {
        lab.switch_off(place).expect("switch off");
    }
    say("one after the first seed");
    one_more_after_the_first_seed(&mut lab);
    say("done");
}

/// A machine tries again by itself until somebody answers it, and says what it tried: first nobody is
/// there at all, then there is an address and no file, then a file that breaks off.
#[test]
fn machines_whose_firmware_gets_no_answer_try_again() {
    packages::ensure(PACKAGES).expect("Debian packages of the lab");
    let started = Instant::now();
    let say = |what: &str| eprintln!("[{:6.1} s] {what}", started.elapsed().as_secs_f64());
    let mut lab = Lab::open(&say).expect("lab");
    say("nobody answers");
    lab.host_mut().freeze_dnsmasq().expect("freeze");
    let places = [
        switch_on(&mut lab, MachineSpec::new("patient", 11)),
        // Another board, another firmware's idea of its devices.
        switch_on(&mut lab, MachineSpec::new("late", 12).with_clock(LATE)),
        switch_on(&mut lab, MachineSpec::new("small", 13).with_memory_mib(512)),
    ];
    // Twice, so that it is a habit.
    wait_for(&mut lab, &places, |machine| machine.resets() >= 2);
    for &place in &places {
        let machine = &lab.machines()[place];
        let screen = machine.console().tail(40);
        assert!(
            screen.contains("iPXE") && screen.contains("net0"),
            "{}: no firmware on its console:\n{screen}",
            machine.spec().name
        );
    }
    say("somebody does");
    lab.host_mut().thaw_dnsmasq().expect("thaw");
    wait_for(&mut lab, &places, |machine| {
        machine.console().first("Linux version ").is_some()
    });
    // From here on a reset is an end.
    let place = places[0];
    lab.machine_mut(place).reset().expect("reset");
    let ended = lab
        .wait(&[place], BOOT_LIMIT, |_, _| {})
        .expect_err("it ended");
    let told = ended.to_string();
    assert!(told.contains("host-qmp-system-reset"), "{told}");
    assert!(told.contains("DHCPACK"), "{told}");
    say("done");
}

/// Waits until each of `places` is as `it_is` says.
fn wait_for(lab: &mut Lab, places: &[usize], it_is: impl Fn(&Machine) -> bool) {
    let started = Instant::now();
    loop {
        for &place in places {
            lab.update(place).unwrap_or_else(|error| panic!("{error}"));
        }
        let machines = lab.machines();
        if places.iter().all(|&place| it_is(&machines[place])) {
            return;
        }
        if started.elapsed() > BOOT_LIMIT {
            for &place in places {
                let machine = &machines[place];
                eprintln!("{}:\n{}", machine.spec().name, machine.console().tail(40));
            }
            panic!("not so after {BOOT_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The server as its package installs it, under a real systemd: a machine that booted from the site's seed
/// becomes a seed under the site's key, and the next machine boots from it alone.
#[test]
fn a_machine_becomes_a_seed() {
    packages::ensure(PACKAGES).expect("Debian packages of the lab");
    let started = Instant::now();
    let say = |what: &str| eprintln!("[{:6.1} s] {what}", started.elapsed().as_secs_f64());
    let mut lab = Lab::open(&say).expect("lab");
    // The image twice: as its root, and in the seed's state directory.
    let host = machines::machine("host", 11).with_memory_mib(1536);
    let host = switch_on(&mut lab, host);
    wait_until_up(&mut lab, &[host]);

    say("installing the package");
    let seed = seed_package::install(&mut lab, host, BOOT_LIMIT);
    let seed = seed.unwrap_or_else(|error| {
        let journal = seed_package::journal(&mut lab, host, BOOT_LIMIT);
        panic!("{error}; the unit's journal:\n{journal}")
    });
    eprintln!("{seed:?}");
    let spec = lab.machines()[host].spec().clone();
    let expected = lab
        .host()
        .rooturl()
        .replace(&host::ADDRESS.to_string(), &spec.address().to_string());
    assert_eq!(seed.rooturl, expected);
    assert!(seed.exposure < 2.0, "{seed:?}");
    assert_ne!(seed.user, "root");
    assert_eq!(seed.owners, [seed.user.as_str()]);

    say("a machine boots from it");
    let next = machines::machine("next", 12).with(&format!("rooturl={}", seed.rooturl));
    let next = switch_on(&mut lab, next);
    wait_until_up(&mut lab, &[next]);
    let machine = &lab.machines()[next];
    check_up(machine, 1);
    assert_eq!(
        number(machine, "bytes_from_seed"),
        number(machine, "bytes_total"),
        "it was told of no other seed"
    );

    say("purging the package");
    let purged = seed_package::purge(&mut lab, host, BOOT_LIMIT).expect("purge");
    assert_eq!(
        (purged.left.as_str(), purged.systemd.as_str()),
        ("", "running")
    );
    say("done");
}

/// What the clocks of two machines say when they are switched on.
const EARLY: &str = "1970-01-01T00:00:00";
const LATE: &str = "2100-01-01T00:00:00";

/// Overlay roots over PXE. They get of the image from each other, and the seed sends less than four copies for
/// four machines. The last one has no pin on its command line: its trust is the
/// key in the initramfs. Two have a clock that is decades wrong.
fn four_together(lab: &mut Lab) -> Vec<usize> {
    let by_name = format!("rooturl=swarm://{}/{IMAGE}", host::ADDRESS);
    let places = vec![
        switch_on(lab, MachineSpec::new("first", 11).with_clock(EARLY)),
        switch_on(lab, MachineSpec::new("second", 12).with_clock(LATE)),
        switch_on(lab, MachineSpec::new("third", 13)),
        switch_on(lab, MachineSpec::new("unpinned", 14).with(&by_name)),
    ];
    wait_until_up(lab, &places);
    for (&place, clock) in places.iter().zip([EARLY, LATE]) {
        machines::check_clock(&lab.machines()[place], &clock[..4])
            .unwrap_or_else(|error| panic!("{error}"));
    }

    let mut from_seed_bytes = Vec::new();
    for &place in &places {
        let machine = &lab.machines()[place];
        let facts = check_up(machine, 1);
        check_overlay(machine, facts);
        let from_seed = number(machine, "bytes_from_seed");
        let from_peers = number(machine, "bytes_from_peers");
        assert_eq!(
            from_seed + from_peers,
            number(machine, "bytes_total"),
            "{}: where its bytes came from",
            machine.spec().name
        );
        from_seed_bytes.push(from_seed);
    }
    // How much depends on how busy this machine is beside its four: 1.5 to 1.7 copies where it is not, and 2.7
    // were seen. By HTTP it is four.
    let image_bytes = number(&lab.machines()[places[0]], "bytes_total");
    let sent_bytes: u64 = from_seed_bytes.iter().sum();
    eprintln!(
        "the seed sent {sent_bytes} bytes for four copies of {image_bytes}: {from_seed_bytes:?}"
    );
    assert!(
        sent_bytes < image_bytes * 7 / 2,
        "the seed sent {sent_bytes} bytes for four copies of {image_bytes}"
    );
    // Whoever is first may have found nobody but the seed. The others have met somebody.
    from_seed_bytes.sort_unstable();
    let others = &from_seed_bytes[..3];
    assert!(
        others.iter().all(|bytes| *bytes < image_bytes * 9 / 10),
        "three of four get some of it from peers; from the seed: {from_seed_bytes:?} of {image_bytes}"
    );
    places
}

/// A read-only root; one copied to a tmpfs, which gives the image's RAM back and so serves nobody;
/// one from a plain `http://` rooturl, which knows no peers; and one whose pin names another image,
/// which must not boot and must say why.
fn the_other_ways(lab: &mut Lab) -> Vec<usize> {
    let http = format!("rooturl=http://{}:7480/images/{IMAGE}", host::ADDRESS);
    let other_id = "0123456789abcdef".repeat(4);
    let wrong_pin = format!(
        "rooturl=swarm://{}/{IMAGE}@blake3:{other_id}",
        host::ADDRESS
    );
    let ro = switch_on(lab, MachineSpec::new("ro", 21).with("rootswarm.mode=ro"));
    let copy = switch_on(
        lab,
        MachineSpec::new("copy", 22).with("rootswarm.mode=copy"),
    );
    let http = switch_on(lab, MachineSpec::new("http", 23).with(&http));
    // It is the seed's answer for as long as the machine is patient.
    let wrong = MachineSpec::new("wrong-pin", 24).with(&wrong_pin);
    let wrong = switch_on(lab, wrong.with("ROOTDELAY=20"));
    wait_until_up(lab, &[ro, copy, http]);
    let wrong_phase = wait(lab, &[wrong]).remove(0);

    let machine = &lab.machines()[ro];
    let facts = check_up(machine, 1);
    check_mounts(machine, facts, &[("/", "squashfs"), ("/mnt/rw", "")]);
    check_memory(machine, facts, READ_ONLY_LIMIT_MIB);

    let machine = &lab.machines()[copy];
    let facts = check_up(machine, 0);
    check_mounts(machine, facts, &[("/", "tmpfs")]);
    check_memory(machine, facts, COPY_LIMIT_MIB);

    let machine = &lab.machines()[http];
    let facts = check_up(machine, 0);
    check_overlay(machine, facts);
    assert_eq!(
        number(machine, "bytes_from_http"),
        number(machine, "bytes_total")
    );
    assert!(
        machine
            .console()
            .texts()
            .any(|line| line.contains("not verified")),
        "an http rooturl without a pin is warned of on the console:\n{}",
        machine.console().tail(60)
    );

    let machine = &lab.machines()[wrong];
    let Phase::Stopped(why) = wrong_phase else {
        panic!("a machine with a wrong pin is {wrong_phase:?}");
    };
    assert!(
        why.contains("pin") && why.contains(&other_id),
        "the console says `{why}`"
    );
    assert_eq!(machine.image_complete_at(), None);

    vec![ro, copy, http, wrong]
}

/// The seed can send a hundredth of the image in the time this takes; the rest comes from the
/// machines that booted before.
fn one_more_from_the_booted(lab: &mut Lab) {
    lab.host_mut()
        .start_seed(Some("1Mbit"))
        .expect("seed with a limit");
    let place = switch_on(lab, MachineSpec::new("late", 31));
    wait_until_up(lab, &[place]);
    let machine = &lab.machines()[place];
    let facts = check_up(machine, 1);
    check_overlay(machine, facts);
    let (seed, peers) = (
        number(machine, "bytes_from_seed"),
        number(machine, "bytes_from_peers"),
    );
    assert!(
        peers > 4 * seed,
        "{seed} bytes from the seed, {peers} from peers"
    );
}

/// The image in memory outlives the agent that fetched it, and all that is read from it.
fn a_machine_does_not_mind_its_agents_death(lab: &mut Lab, place: usize) {
    machines::kill_agent(lab.machine_mut(place), BOOT_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The agent outlives the handoff and must not outlive its system.
fn power_off_is_not_delayed(lab: &mut Lab, place: usize) {
    let machine = lab.machine_mut(place);
    let off = power::off(machine).unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{}: {off:?}", machine.spec().name);
    assert!(
        off.waited_s < POWER_OFF_WAIT_MAX_S,
        "systemd waited for the last processes: {off:?}"
    );
}

/// The first seed's process and disk are gone; the second has all that it had.
fn one_more_after_the_first_seed(lab: &mut Lab) {
    lab.host_mut().start_seed(None).expect("seed without limit");
    let second = lab.second_seed().expect("second seed");
    lab.host_mut().destroy_seed().expect("the first seed goes");
    let place = switch_on(lab, machines::two_seeds("orphan", 41, second.address()));
    wait_until_up(lab, &[place]);
    let machine = &lab.machines()[place];
    check_overlay(machine, check_up(machine, 1));
}

fn switch_on(lab: &mut Lab, spec: MachineSpec) -> usize {
    lab.switch_on(spec).expect("switch on")
}

fn wait(lab: &mut Lab, places: &[usize]) -> Vec<Phase> {
    lab.wait(places, BOOT_LIMIT, |_, _| {})
        .unwrap_or_else(|error| panic!("{error}"))
}

fn wait_until_up(lab: &mut Lab, places: &[usize]) {
    let phases = wait(lab, places);
    for (&place, phase) in places.iter().zip(phases) {
        let machine = &lab.machines()[place];
        let tail = || machine.console().tail(40);
        assert_eq!(
            phase,
            Phase::Up,
            "{}; its console:\n{}",
            machine.spec().name,
            tail()
        );
        let seconds = |at: Option<Duration>| at.map_or(f64::NAN, |at| at.as_secs_f64());
        eprintln!(
            "{}: image after {:.1} s, up after {:.1} s, {:?}",
            machine.spec().name,
            seconds(machine.image_complete_at()),
            seconds(machine.up_at()),
            machine.facts()
        );
    }
}

/// What every booted machine must show, however it booted.
fn check_up(machine: &Machine, agents: usize) -> &Facts {
    let name = &machine.spec().name;
    let facts = machine.facts().expect("it is up");
    assert_eq!(
        facts.systemd, "running",
        "{name}; failed: {:?}",
        facts.failed_units
    );
    assert_eq!(facts.failed_units, [""; 0], "{name}");
    assert_eq!(
        facts.agents.len(),
        agents,
        "{name}: agents that serve: {facts:?}"
    );
    check_mounts(machine, facts, &[("/run/rootswarm", "tmpfs")]);
    facts
}

fn check_overlay(machine: &Machine, facts: &Facts) {
    check_mounts(
        machine,
        facts,
        &[
            ("/", "overlay"),
            ("/mnt/ro", "squashfs"),
            ("/mnt/rw", "tmpfs"),
        ],
    );
    check_memory(machine, facts, OVERLAY_LIMIT_MIB);
}

fn check_mounts(machine: &Machine, facts: &Facts, expected: &[(&str, &str)]) {
    for (target, fs_type) in expected {
        assert_eq!(
            facts.fs_type(target),
            *fs_type,
            "{}: {target}",
            machine.spec().name
        );
    }
}

/// Holds the boot to its RAM. What the system's own services write varies from boot to boot: once a
/// machine had 10 MiB more in tmpfs than the three beside it. Beyond what such systems write at
/// most, that is not the boot's; nor is a udevd that Debian's scripts left running in the initramfs.
fn check_memory(machine: &Machine, facts: &Facts, limit_mib: u64) {
    let (name, used_mib) = (&machine.spec().name, facts.memory.used_mib);
    let written_mib = match facts.fs_type("/run/rootswarm") {
        "tmpfs" if facts.fs_type("/mnt/ro") == "squashfs" || facts.fs_type("/") == "squashfs" => {
            facts
                .written_mib("/run/rootswarm")
                .saturating_sub(WRITTEN_MIB)
        }
        _ => 0,
    };
    let udevd_mib = facts.left_udevd_mib();
    assert!(
        used_mib.saturating_sub(written_mib + udevd_mib) <= limit_mib,
        "{name}: {used_mib} MiB used, {written_mib} of them by files of its services, {udevd_mib} \
         by the udevd of the initramfs, at most {limit_mib} expected; {} MiB shared; agents: {:?}; \
         left behind: {:?}; tmpfs, KiB: {:?}; large files: {:?}; meminfo, KiB: {:?}; processes, \
         KiB: {:?}",
        facts.memory.shared_mib,
        facts.agents,
        facts.left,
        facts.tmpfs,
        facts.large_files,
        facts.meminfo,
        facts.processes
    );
}

fn number(machine: &Machine, key: &str) -> u64 {
    let facts = machine.facts().expect("it is up");
    facts.status_number(key).unwrap_or_else(|| {
        panic!(
            "{}: no {key} in its status {:?}",
            machine.spec().name,
            facts.status
        )
    })
}
