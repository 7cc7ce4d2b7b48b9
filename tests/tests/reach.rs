//! Who reaches whom: addresses that change, firewalls on nodes. Each node is in a network namespace of its
//! own. Needs root.

use rootswarm_tests::reaching::{
    self, CHANGES, Change, Firewalled, firewalls, moved_in_the_middle, one_that_drops_everything,
};
use rootswarm_tests::scenario::scenario;

const NEED_BYTES: u64 = 200_000_000;

/// The case of this name.
fn case(name: &str) -> &'static Change {
    let found = CHANGES.iter().find(|case| case.name == name);
    found.unwrap_or_else(|| panic!("no such case: {name}"))
}

fn others_find_it(name: &str) {
    scenario(NEED_BYTES, |directory| {
        reaching::a_node_that_moved_serves(directory, case(name))?;
        Ok(())
    });
}

#[test]
fn an_address_is_replaced() {
    others_find_it("replaced");
}

#[test]
fn there_is_no_address_for_a_while() {
    others_find_it("none for three seconds");
}

#[test]
fn one_of_two_addresses_is_removed() {
    others_find_it("a second one, then the first is removed");
}

#[test]
fn the_link_flaps() {
    others_find_it("a link that flaps");
}

#[test]
fn an_ipv6_address_is_replaced() {
    others_find_it("IPv6, replaced");
}

#[test]
fn ipv6_privacy_addresses_follow_each_other() {
    others_find_it("IPv6 privacy: a new one, the old one deprecated");
}

#[test]
fn a_node_moves_in_the_middle_of_its_download() {
    scenario(NEED_BYTES, |directory| {
        for name in ["replaced", "none for three seconds", "IPv6, replaced"] {
            let case = case(name);
            let directory = directory.join(case.at);
            std::fs::create_dir(&directory)?;
            let (held, twice) = moved_in_the_middle(&directory, case.steps, case.v6)?;
            assert!(
                twice < held,
                "{name}: {twice} bytes twice, {held} were held"
            );
        }
        Ok(())
    });
}

#[test]
fn firewalls_on_every_node_let_peers_through() {
    scenario(NEED_BYTES * 2, |directory| {
        for (number, case) in [
            Firewalled {
                complete: 2,
                late: 4,
                open: 0,
                v6: false,
            },
            Firewalled {
                complete: 1,
                late: 2,
                open: 0,
                v6: true,
            },
            Firewalled {
                complete: 1,
                late: 4,
                open: 1,
                v6: false,
            },
            Firewalled {
                complete: 3,
                late: 1,
                open: 2,
                v6: false,
            },
        ]
        .iter()
        .enumerate()
        {
            let directory = directory.join(number.to_string());
            std::fs::create_dir(&directory)?;
            let (dropped, copies) = firewalls(&directory, case)?;
            assert!(
                dropped > 0 || case.open > 0,
                "{case:?}: nothing was dropped"
            );
            assert!(copies <= 1.5, "{case:?}: {copies} copies from the seed");
        }
        Ok(())
    });
}

#[test]
fn a_node_that_drops_everything_is_named() {
    scenario(NEED_BYTES, |directory| {
        for nodes in [3, 4] {
            let directory = directory.join(nodes.to_string());
            std::fs::create_dir(&directory)?;
            let dropped = one_that_drops_everything(&directory, nodes)?;
            assert!(dropped > 0);
        }
        Ok(())
    });
}
