//! Every input that was ever kept, against its target: what `cargo xtask fuzz` found stays found.

use std::fs;
use std::path::{Path, PathBuf};

use rootswarm_fuzz::TARGETS;

/// A corpus is read by people and by every clone of the repository: small inputs, and few.
const CORPUS_BYTES_MAX: u64 = 16 * 1024;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_corpus_replays() {
    for target in TARGETS {
        let directory = corpora().join(target.name);
        let inputs = names_in(&directory);
        assert!(!inputs.is_empty(), "{}: no inputs", target.name);
        let mut total_bytes = 0;
        for input in inputs {
            let path = directory.join(&input);
            let bytes = fs::read(&path).unwrap();
            total_bytes += bytes.len() as u64;
            let result = std::panic::catch_unwind(|| target.check(&bytes));
            assert!(
                result.is_ok(),
                "{} breaks a promise of its target; replay: cargo xtask fuzz {} --replay {}",
                path.display(),
                target.name,
                path.display()
            );
        }
        assert!(
            total_bytes <= CORPUS_BYTES_MAX,
            "{}: {total_bytes} bytes",
            target.name
        );
    }
}

#[test]
fn every_corpus_has_a_target() {
    let mut targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    targets.sort_unstable();
    assert_eq!(names_in(&corpora()), targets);
}

/// The targets judge: each of these inputs is one that a worse decoder would let pass.
#[test]
fn a_promise_that_does_not_hold_is_noticed() {
    let greedy = TARGETS
        .iter()
        .find(|target| target.name == "cmdline")
        .unwrap();
    let mut bounded = *greedy;
    bounded.memory_bytes = 16;
    let input = b"rooturl=http://h/x quiet";
    greedy.check(input);
    assert!(std::panic::catch_unwind(|| bounded.check(input)).is_err());
}
