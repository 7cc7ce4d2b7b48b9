//! How many images of a name are kept: said once, it holds; what is given up is said.

mod common;

use common::{Place, listed, run, run_ok, serve, squashfs, stderr, stdout};

/// Whoever once said how many are kept need not say it again; what is given up is said.
#[test]
fn what_was_once_to_be_kept_is_kept_and_what_is_given_up_is_said() {
    let place = Place::new();
    let publish = |seed: u64, options: &[&str]| -> String {
        let file = place.file("next.squashfs", &squashfs(20_000, seed));
        let words = [&["publish", "-q"], options, &["web", &file]].concat();
        let output = run(&place.state(), &words);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("@blake3:"));
        stderr(&output)
    };
    let given_up = |said: &str| said.matches("is no longer kept").count();
    for seed in 0..4 {
        assert_eq!(publish(11 + 2 * seed, &["--keep", "6"]), "");
    }
    let before = listed(&place);
    assert_eq!(before.len(), 5);
    // Without the option, and with that of another name.
    assert_eq!(publish(31, &[]), "");
    assert_eq!(listed(&place).len(), 6);
    let said = publish(33, &[]);
    assert_eq!((listed(&place).len(), given_up(&said)), (6, 1), "{said}");
    let oldest = before.last().unwrap();
    assert!(said.contains(oldest) && said.contains("--keep 7"), "{said}");
    // A server that publishes the name keeps as many.
    let file = place.file("served.squashfs", &squashfs(20_000, 35));
    assert_eq!(serve(&place, &file).1.stop(), Some(0));
    assert_eq!(listed(&place).len(), 6);
    // Another number holds from then on.
    let said = publish(37, &["--keep", "2"]);
    assert_eq!((listed(&place).len(), given_up(&said)), (2, 5), "{said}");
    let said = publish(39, &[]);
    assert_eq!((listed(&place).len(), given_up(&said)), (2, 1), "{said}");
    // Another name has its own number, and one that is removed none.
    let output = run(&place.state(), &["tag", "--keep", "4", "other", "web"]);
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );
    run_ok(&place.state(), &["remove", "web"]);
    for seed in 0..4 {
        publish(51 + 2 * seed, &[]);
    }
    assert_eq!(listed(&place).len(), 3);
}

/// Another name for an image gives up what that name meant, if that is what was asked for.
#[test]
fn a_name_that_is_given_anew_keeps_what_it_is_told_to() {
    let place = Place::new();
    for seed in 0..3 {
        let file = place.file("next.squashfs", &squashfs(20_000, 11 + 2 * seed));
        run_ok(&place.state(), &["publish", "-q", "web", &file]);
    }
    let other = place.file("other.squashfs", &squashfs(20_000, 91));
    run_ok(&place.state(), &["publish", "-q", "other", &other]);
    run_ok(&place.state(), &["tag", "web", "other"]);
    assert_eq!(listed(&place).len(), 4, "nothing is given up unasked");
    let output = run(&place.state(), &["tag", "--keep", "2", "web", "other"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(listed(&place).len(), 2);
    assert_eq!(stderr(&output).matches("is no longer kept").count(), 2);
}
