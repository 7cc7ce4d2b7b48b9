//! What nodes are told to connect to by a seed that listens on all addresses: the one that the host has at the
//! time, of whichever family.

mod common;
#[path = "common/script.rs"]
mod script;

use common::Place;
use script::run_in_namespace;

/// Runs a script in a network of its own; `wait_for SECONDS FILE WORDS` is one of its commands.
fn in_a_network(place: &Place, script: &str) -> String {
    let common = r#"
        set -e
        wait_for() {
            for try in $(seq 150); do grep -qF -- "$2" "$1" && return 0; sleep 0.1; done
            echo "no $2 in $1:"; cat "$1"; exit 1
        }
        expect() {
            case "$1" in *"$2"*) ;; *) echo "expected $2 in $1"; cat "$STATE/err"; exit 1 ;; esac
        }
        rootswarm() { "$PROGRAM" --state "$STATE" "$@"; }
        server=
        trap '[ -z "$server" ] || kill $server 2> /dev/null || true' EXIT
        ip link set lo up
    "#;
    let (state, file) = (
        place.state().display().to_string(),
        place.path("web.squashfs"),
    );
    let variables = [("STATE", &*state), ("FILE", &*file)];
    run_in_namespace('n', &format!("{common}{script}"), &variables)
}

/// The network comes up after the seed, and changes.
#[test]
fn an_address_that_comes_late_or_changes_is_told() {
    let place = Place::new();
    in_a_network(
        &place,
        r#"
        "$PROGRAM" --state "$STATE" serve > "$STATE/out" 2> "$STATE/err" &
        server=$!
        wait_for "$STATE/err" 'no node can connect: no interface has an address yet'
        wait_for "$STATE/out" 'ready '
        published=$(rootswarm publish -q early "$FILE" 2>&1)
        expect "$published" 'no node can connect'
        ip address add 10.77.0.1/24 dev lo
        wait_for "$STATE/out" 'ready swarm://10.77.0.1/web@'
        wait_for "$STATE/out" 'ready swarm://10.77.0.1/early@'
        wait_for "$STATE/err" 'nodes can connect to 10.77.0.1'
        published=$(rootswarm publish -q late "$FILE" 2>&1)
        expect "$published" 'swarm://10.77.0.1/late@'
        expect "$(rootswarm status)" 'seed 10.77.0.1,'
        ip address add 10.78.0.1/24 dev lo
        ip address del 10.77.0.1/24 dev lo
        wait_for "$STATE/out" 'ready swarm://10.78.0.1/web@'
        expect "$(rootswarm status)" 'seed 10.78.0.1,'
        kill $server
        wait $server
        server=
        "#,
    );
}

/// A host that has IPv6 alone: the seed tells that address where it listens on it, and says what to do where
/// it does not. PXE says which family it needs.
#[test]
fn a_host_with_ipv6_alone() {
    let place = Place::new();
    let said = in_a_network(
        &place,
        r#"
        ip address add fd77::1/64 dev lo nodad
        "$PROGRAM" --state "$STATE" serve --listen [::]:7400 --http [::]:7480 > "$STATE/out" 2> "$STATE/err" &
        server=$!
        wait_for "$STATE/out" 'ready swarm://[fd77::1]/web@'
        expect "$(rootswarm status)" 'seed [fd77::1],'
        kill $server
        wait $server
        server=
        "$PROGRAM" --state "$STATE" serve > "$STATE/out" 2> "$STATE/err" &
        server=$!
        wait_for "$STATE/err" 'for fd77::1: listen = "[::]:7400" and http = "[::]:7480"'
        kill $server
        wait $server
        server=
        printf x > "$STATE/kernel"
        rootswarm pxe --kernel "$STATE/kernel" --initrd "$STATE/kernel" --image web --out "$STATE/pxe" 2>&1 \
            && exit 1
        exit 0
        "#,
    );
    assert!(
        said.contains("has an IPv4 address, which PXE needs"),
        "{said}"
    );
}
