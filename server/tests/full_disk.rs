//! A state directory without room, or that cannot be written: what each command says, and what still works.

mod common;
#[path = "common/script.rs"]
mod script;

use std::fs;

use common::Place;
use script::run_in_namespace;

/// Runs a script beside a small file system of its own, gone with it.
fn on_a_disk(place: &Place, script: &str) -> String {
    let mount = place.path("disk");
    fs::create_dir(&mount).unwrap();
    let setup = r#"
        set -e
        mount -t tmpfs -o size=3m tmpfs "$MOUNT"
        rootswarm() { "$PROGRAM" --state "$MOUNT/state" "$@"; }
        rootswarm publish -q web "$FILE" > /dev/null
        rootswarm publish -q web "$NEWER" > /dev/null
        rootswarm tag other web > /dev/null
    "#;
    let newer = place.file("newer", &common::squashfs(300_000, 5));
    let variables = [
        ("MOUNT", &*mount),
        ("FILE", &*place.path("web.squashfs")),
        ("NEWER", &*newer),
        ("NODE", &*"ab".repeat(32)),
    ];
    run_in_namespace('m', &format!("{setup}{script}"), &variables)
}

#[test]
fn what_cannot_be_written_says_how_room_is_made() {
    let place = Place::new();
    let said = on_a_disk(
        &place,
        r#"
        if cat /dev/zero > "$MOUNT/fill" 2> /dev/null; then echo "there is room"; exit 1; fi
        before=$(find "$MOUNT/state" -type f -printf '%P %s\n' | sort)
        for command in "revoke $NODE" "revoke --all" "rollback web" "token create"; do
            code=0
            rootswarm $command 2> "$MOUNT/../said" > /dev/null || code=$?
            test $code = 5 || { echo "$command: $code"; cat "$MOUNT/../said"; exit 1; }
            echo "$command: $(cat "$MOUNT/../said")"
        done
        after=$(find "$MOUNT/state" -type f -printf '%P %s\n' | sort)
        test "$before" = "$after" || { echo "left: $before / $after"; exit 1; }
        # What is said to help does.
        rootswarm remove web
        rm "$MOUNT/fill"
        rootswarm revoke $NODE > /dev/null
        "#,
    );
    for line in said.lines() {
        assert!(
            line.contains("No space left on device") && line.contains("rootswarm remove NAME"),
            "{line}"
        );
    }
    assert_eq!(said.lines().count(), 4, "{said}");
    assert_eq!(said.matches("nothing is revoked").count(), 2, "{said}");
}

#[test]
fn what_only_reads_needs_nothing_written() {
    let place = Place::new();
    let said = on_a_disk(
        &place,
        r#"
        rootswarm key > "$MOUNT/../key"
        rootswarm key --minimum > "$MOUNT/../minimum"
        mount -o remount,ro "$MOUNT"
        test "$(rootswarm key)" = "$(cat "$MOUNT/../key")"
        test "$(rootswarm key --minimum)" = "$(cat "$MOUNT/../minimum")"
        rootswarm images > /dev/null
        rootswarm revoke --list > /dev/null
        rootswarm token list > /dev/null
        "#,
    );
    assert_eq!(said, "");
}

/// A damaged tag is signed anew when its name is removed, which needs room as anything else: there is some once
/// the name has gone.
#[test]
fn a_damaged_name_is_removed_where_there_is_no_room() {
    let place = Place::new();
    let said = on_a_disk(
        &place,
        r#"
        echo nothing > "$MOUNT/state/tags/web"
        rm "$MOUNT/state/retired/web" 2> /dev/null || true
        cat /dev/zero > "$MOUNT/fill" 2> /dev/null || true
        rootswarm remove web
        test ! -e "$MOUNT/state/tags/web"
        rm "$MOUNT/fill"
        rootswarm key --minimum | grep '^version web'
        rootswarm publish -q web "$FILE" > /dev/null
        rootswarm key --minimum | grep '^version web'
        "#,
    );
    // Twice published before.
    assert_eq!(said, "version web 2\nversion web 3\n");
}
