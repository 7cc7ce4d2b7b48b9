//! The fuzzer: libFuzzer around one of the targets, which the environment names.
//!
//! `cargo xtask fuzz` builds it with the coverage counters that libFuzzer reads and runs it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rootswarm_fuzz::{TARGETS, Target};

/// The target of this process: libFuzzer owns the command line.
static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let wanted = std::env::var("ROOTSWARM_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == wanted);
    found.unwrap_or_else(|| panic!("ROOTSWARM_FUZZ_TARGET={wanted:?} is no target"))
});

fuzz_target!(|input: &[u8]| TARGET.check(input));
