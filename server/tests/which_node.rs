//! Which node `rootswarm revoke` means: as `rootswarm status` shows it, and what is said where no server tells.

mod common;

use std::net::Ipv4Addr;

use common::{Place, Server, key, node, request, run, run_ok, stderr, stdout, until};
use rootswarm_transport::node::SwarmHandle;
use rootswarm_transport::store::ChunkStore;

async fn fetch(place: &Place, server: &Server, file: &str) -> SwarmHandle {
    let node = node(key(&place.state()), Ipv4Addr::LOCALHOST.into()).await;
    let joined = node.join(&[server.swarm], &request(None)).await.unwrap();
    let store = ChunkStore::create(place.path(file), joined.manifest.clone()).unwrap();
    let swarm = node.start(joined, store).unwrap();
    swarm.completed().await.unwrap();
    swarm
}

/// Each node that is connected: its id, and where it is.
fn nodes(place: &Place) -> Vec<(String, String)> {
    let text = run_ok(&place.state(), &["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let nodes = status["images"][0]["nodes"].as_array().cloned();
    let field = |node: &serde_json::Value, name: &str| node[name].as_str().unwrap().to_owned();
    nodes
        .unwrap_or_default()
        .iter()
        .map(|node| (field(node, "id"), field(node, "address")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_named_as_status_shows_it() {
    let place = Place::new();
    let state = place.state();
    let server = Server::start(&state, &[]);
    server.line();
    let _kept = [
        fetch(&place, &server, "one").await,
        fetch(&place, &server, "two").await,
        fetch(&place, &server, "three").await,
    ];
    until("three nodes", || nodes(&place).len() == 3).await;
    let shown = run_ok(&state, &["status"]);
    let all = nodes(&place);
    let [(by_digits, _), (by_address, address), (last, last_address)] = &all[..] else {
        panic!("{all:?}");
    };
    for (id, address) in &all {
        let line = shown.lines().find(|line| line.contains(address.as_str()));
        let line = line.unwrap_or_else(|| panic!("no {address} in {shown}"));
        assert!(line.trim_start().starts_with(&id[..8]), "{line}");
    }
    assert_eq!(
        run_ok(&state, &["revoke", &by_digits[..8]]).trim(),
        by_digits
    );
    assert_eq!(run_ok(&state, &["revoke", address]).trim(), by_address);
    let refused = |node: &str, code: i32, words: &str| {
        let output = run(&state, &["revoke", node]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{node}: {said}");
        assert!(said.contains(words), "{node}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    refused("10.0.0.1", 2, "no connected node is at 10.0.0.1");
    refused("rack7", 2, "bad node");

    // The node is connected, and the server does not say so: it hangs.
    server.signal("STOP");
    for node in [&last[..8], last_address] {
        refused(node, 4, "did not answer within 5 s");
        refused(node, 4, "all 64 digits");
    }
    let output = run(&state, &["status"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    let pid = format!("(process {})", server.pid());
    assert!(
        said.contains(&pid) && said.contains("did not answer within 5 s"),
        "{said}"
    );
    // All of its digits name it, and what is written down is obeyed later.
    let output = run(&state, &["revoke", last]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim(), last);
    server.signal("CONT");
    until("the end of all nodes", || nodes(&place).is_empty()).await;
    assert_eq!(server.stop(), Some(0));
    refused(&"ab".repeat(4), 2, "no server runs");
}
