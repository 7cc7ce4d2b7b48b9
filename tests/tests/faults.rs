//! Some of the faults that `cargo xtask faults` injects, as tests: a quick one of each group. Needs
//! root.

use std::path::Path;

use rootswarm_tests::faults::{ALL, Fault};
use rootswarm_tests::scenario::{self, scenario};

/// Room for the largest of the rows chosen here.
const NEED_BYTES: u64 = 400_000_000;

/// Injects the fault of this name.
fn survive(name: &str, directory: &Path) -> scenario::Outcome {
    let named = |fault: &&Fault| fault.name == name;
    let fault = ALL.iter().find(named).ok_or("no such fault")?;
    fault.run(directory)?;
    Ok(())
}

#[test]
fn five_of_a_hundred_packets_lost() {
    scenario(NEED_BYTES, |directory| {
        survive("links: loss 5 %", directory)
    });
}

#[test]
fn large_packets_vanish_without_a_word() {
    scenario(NEED_BYTES, |directory| {
        survive("links: black hole over 1300 bytes", directory)
    });
}

#[test]
fn the_seed_killed_when_little_was_sent() {
    scenario(NEED_BYTES, |directory| {
        survive("seeds: killed at 10 %", directory)
    });
}

#[test]
fn a_cable_that_reorders_doubles_corrupts_and_loses() {
    scenario(NEED_BYTES, |directory| {
        survive("cables: all of these and loss 1 %", directory)
    });
}

#[test]
fn half_of_the_peers_frozen() {
    scenario(NEED_BYTES, |directory| {
        survive("peers: half freeze", directory)
    });
}

#[test]
fn an_image_that_is_published_too_late() {
    scenario(NEED_BYTES, |directory| {
        survive("join: image published after the nodes asked", directory)
    });
}

#[test]
fn a_seed_that_comes_after_the_nodes_gave_up() {
    scenario(NEED_BYTES, |directory| {
        survive("join: seed away longer than ROOTDELAY", directory)
    });
}

#[test]
fn a_full_state_disk() {
    scenario(NEED_BYTES, |directory| {
        survive("disk: state full", directory)
    });
}
