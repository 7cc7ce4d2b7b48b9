//! A test with a directory of its own that says how to replay it when it fails.

use std::any::type_name;
use std::error::Error;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use crate::process::last_lines;
use crate::scratch::Scratch;

/// What a scenario returns: any error fails the test.
pub type Outcome = Result<(), Box<dyn Error>>;

/// Lines shown of each log after a failure.
const LOG_LINES: usize = 30;

/// Runs `body` with a fresh directory that has room for `need_bytes`. When it fails, prints the
/// command that replays it and the end of every log (`*.log`) in the directory.
///
/// The body has to be a closure written inside the test function: the test's name is taken from it.
///
/// # Panics
/// When the body fails: that is how a test fails.
#[allow(clippy::print_stderr, clippy::panic)] // Captured by the test harness and shown on failure.
pub fn scenario<F: FnOnce(&Path) -> Outcome>(need_bytes: u64, body: F) {
    let replay = replay_command(type_name::<F>());
    let scratch = match Scratch::create("test", need_bytes, &std::env::temp_dir()) {
        Ok(scratch) => scratch,
        Err(error) => panic!("{error}\nreplay: {replay}"),
    };
    let result = catch_unwind(AssertUnwindSafe(|| body(scratch.path())));
    if matches!(result, Ok(Ok(()))) {
        return;
    }
    eprintln!("{}replay: {replay}", logs(scratch.path()));
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{error}\nreplay: {replay}"),
        Err(panic) => resume_unwind(panic),
    }
}

/// `target::test::{{closure}}` is how the compiler names a test's closure.
fn replay_command(closure: &str) -> String {
    let path = closure.trim_end_matches("::{{closure}}");
    let (target, test) = path.split_once("::").unwrap_or(("", path));
    format!("cargo test -p rootswarm-tests --test {target} -- --exact {test} --nocapture")
}

fn logs(directory: &Path) -> String {
    let mut found = Vec::new();
    find_logs(directory, &mut found);
    found.sort();
    let mut text = String::new();
    for path in found {
        let output = std::fs::read(&path).unwrap_or_default();
        let lines = last_lines(&String::from_utf8_lossy(&output), LOG_LINES);
        let name = path.strip_prefix(directory).unwrap_or(&path);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "--- {}\n{lines}", name.display());
    }
    text
}

fn find_logs(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_logs(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_command_names_target_and_test() {
        assert_eq!(
            replay_command("loopback::a_test::{{closure}}"),
            "cargo test -p rootswarm-tests --test loopback -- --exact a_test --nocapture"
        );
    }
}
