//! The lab of `cargo xtask bench`: every tool brings true copies on links that are as slow as they
//! say, and a run that fails leaves nothing behind. How fast anything is, is not tested here.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rootswarm_tests::bench::{BenchError, Case, Image, Tool, Trial, run};
use rootswarm_tests::scratch::Scratch;
use rootswarm_tests::swarm::programs;

type TestResult = Result<(), Box<dyn std::error::Error>>;

const BYTES: u64 = 3_000_000;

/// One test at a time: each counts what its process has left.
static LAB: Mutex<()> = Mutex::new(());

fn namespaces() -> usize {
    // Only this process's: others may have theirs.
    let own = format!("rsw-{}-", std::process::id());
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten();
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with(&own))
        .count()
}

#[test]
fn every_tool_brings_true_copies() -> TestResult {
    let _alone = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::create("bench", 10 * BYTES, &std::env::temp_dir())?;
    let image = Image::generate(&scratch.path().join("source"), BYTES)?;
    let case: Case = "2x100".parse()?;
    for tool in Tool::ALL {
        let trial = Trial {
            case,
            tool,
            run: 1,
            image: &image,
            binaries: Some(programs()?),
            timeout: None,
        };
        let outcome = run(&trial, &scratch).map_err(|error| format!("{tool}: {error}"))?;
        assert_eq!(outcome.node_s.len(), 2, "{outcome:?}");
        assert!(outcome.node_s.is_sorted(), "{outcome:?}");
        // The bucket lets the first 96 KiB through at once; nobody is faster than that.
        let over = outcome.last_over_bound.ok_or("the links are shaped")?;
        assert!(over > 0.9, "{outcome:?}");
        assert!((1.0..3.0).contains(&outcome.seed_copies), "{outcome:?}");
        let first_bytes = match tool {
            Tool::Aria2 | Tool::Uftp => 0,
            _ => 2,
        };
        assert_eq!(outcome.first_byte_s.len(), first_bytes, "{outcome:?}");
        assert!(!scratch.path().join("run").exists());
    }
    assert_eq!(namespaces(), 0);
    Ok(())
}

/// Jumbo packets, short queues, a node at a tenth, one that is killed, and nodes that come one after the other: what
/// is said of them is what was laid out.
#[test]
fn hard_cases_are_what_they_say() -> TestResult {
    let _alone = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::create("bench", 10 * BYTES, &std::env::temp_dir())?;
    let image = Image::generate(&scratch.path().join("source"), BYTES)?;
    for (text, finished) in [
        ("2x50@9000", 2),
        ("3x50~15", 3),
        ("3x50+slow", 2),
        ("3x50+killed", 2),
        ("3x50+over2", 3),
        ("3x50@4000~25+over1", 3),
    ] {
        let case: Case = text.parse()?;
        for tool in [Tool::Rootswarm, Tool::Nginx] {
            let trial = Trial {
                case,
                tool,
                run: 1,
                image: &image,
                binaries: Some(programs()?),
                timeout: None,
            };
            let outcome =
                run(&trial, &scratch).map_err(|error| format!("{text} {tool}: {error}"))?;
            assert_eq!(outcome.node_s.len(), finished, "{outcome:?}");
            let over = outcome.last_over_bound.ok_or("the links are shaped")?;
            assert!(over > 0.8, "{outcome:?}");
        }
    }
    assert_eq!(namespaces(), 0);
    Ok(())
}

#[test]
fn a_run_that_is_given_up_says_so_and_leaves_nothing() -> TestResult {
    let _alone = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let scratch = Scratch::create("bench", 10 * BYTES, &std::env::temp_dir())?;
    let image = Image::generate(&scratch.path().join("source"), BYTES)?;
    let trial = |image| Trial {
        case: Case {
            // Half a minute for this image.
            node_bit_per_s: Some(1_000_000),
            seed_bit_per_s: Some(1_000_000),
            nodes: 1,
            ..Case::default()
        },
        tool: Tool::Nginx,
        run: 1,
        image,
        binaries: None,
        timeout: Some(Duration::from_millis(200)),
    };
    let error = run(&trial(&image), &scratch).expect_err("too short");
    assert!(
        matches!(
            error,
            BenchError::Unfinished {
                done: 0,
                nodes: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().starts_with("0 of 1 nodes have the image"),
        "{error}"
    );

    let nothing = Image {
        path: Path::new("/nowhere/image").to_owned(),
        bytes: BYTES,
    };
    let error = run(&trial(&nothing), &scratch).expect_err("no image");
    assert!(error.to_string().contains("cannot write"), "{error}");

    assert!(!scratch.path().join("run").exists());
    assert_eq!(namespaces(), 0);
    Ok(())
}
