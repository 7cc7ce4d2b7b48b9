//! Which node an operator means: the first digits of its id, or where it is, as `rootswarm status` shows
//! either.

use std::net::{IpAddr, SocketAddr};

use rootswarm_swarm::NodeId;

use crate::node_name::parse_node;
use crate::revocation::{self, RevocationError};
use crate::state::StateDir;
use crate::status::{self, NodeEntry, StatusDocument};

/// The node of a running server's that `text` means; a whole id needs no server.
///
/// # Errors
/// Nobody is meant, or several are, or there is no server that could tell.
pub fn connected(state: &StateDir, text: &str) -> Result<NodeId, RevocationError> {
    if let Some(node) = parse_node(&text.to_ascii_lowercase()) {
        return Ok(node);
    }
    match status::ask(&state.control_socket()) {
        Ok(document) => among(&document, text),
        Err(source) => {
            // What is no node at all is said first.
            if let (None, Err(error @ RevocationError::NotAnId(_))) =
                (place(text), revocation::resolve(text, "connected", []))
            {
                return Err(error);
            }
            let node = text.to_owned();
            Err(match state.is_served() {
                true => RevocationError::NoAnswer { node, source },
                false => RevocationError::NoServer { node },
            })
        }
    }
}

/// An address, or one with a port.
fn place(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(address), _) => Some((address.ip().to_canonical(), Some(address.port()))),
        (_, Ok(address)) => Some((address.to_canonical(), None)),
        _ => None,
    }
}

fn among(document: &StatusDocument, text: &str) -> Result<NodeId, RevocationError> {
    let nodes = document.images.iter().flat_map(|image| &image.nodes);
    let Some((ip, port)) = place(text) else {
        let ids = nodes.filter_map(|node| parse_node(&node.id));
        return revocation::resolve(text, "connected", ids);
    };
    let is_there = |node: &&NodeEntry| {
        let found = place(&node.address);
        found.is_some_and(|(it, at)| it == ip && (port.is_none() || port == at))
    };
    let mut ids: Vec<NodeId> = nodes
        .filter(is_there)
        .filter_map(|node| parse_node(&node.id))
        .collect();
    ids.sort();
    // It may be in the swarms of several images.
    ids.dedup();
    let place = text.to_owned();
    match ids.as_slice() {
        [node] => Ok(*node),
        [] => Err(RevocationError::NotThere { place }),
        several => Err(RevocationError::SeveralThere {
            place,
            found: several.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_addresses() {
        let node = |id: &str, address: &str| {
            let id = id.repeat(32);
            format!(
                r#"{{"node":"x","id":"{id}","address":"{address}","chunks_have":0,"complete":false,
                    "complete_after_ms":null,"rate_bytes_per_s":0}}"#
            )
        };
        let nodes = [
            node("11", "10.0.0.7:7401"),
            node("12", "10.0.0.8:7401"),
            node("13", "10.0.0.8:7402"),
            node("14", "[fd00::7]:7401"),
            node("15", "[::ffff:10.0.0.9]:7401"),
            // Of two images at once.
            node("16", "10.0.0.10:7401"),
            node("16", "10.0.0.10:7401"),
        ];
        let text = format!(
            r#"{{"format":1,"host":"h","http":"h","pid":1,"uptime_s":1,"upload_limit_bytes_per_s":null,
                "images":[{{"names":[],"id":"","length_bytes":1,"chunks":1,"uploaded_bytes":0,
                "seed_copies":0,"banned":[],"nodes":[{}]}}]}}"#,
            nodes.join(",")
        );
        let document: StatusDocument = serde_json::from_str(&text).unwrap();
        for (said, id) in [
            ("11", Some(0x11)),
            ("10.0.0.7", Some(0x11)),
            ("10.0.0.7:7401", Some(0x11)),
            ("10.0.0.7:7402", None),
            ("10.0.0.8:7402", Some(0x13)),
            ("fd00::7", Some(0x14)),
            ("[fd00::7]", Some(0x14)),
            ("[fd00::7]:7401", Some(0x14)),
            ("10.0.0.9", Some(0x15)),
            ("10.0.0.10", Some(0x16)),
            ("10.0.0.1", None),
        ] {
            let found = among(&document, said).ok();
            assert_eq!(found, id.map(|digit| NodeId([digit; 32])), "{said}");
        }
        for (said, words) in [
            ("10.0.0.8", "2 connected nodes are at 10.0.0.8 ("),
            ("1", "1 is ambiguous"),
            ("10.0.0.1", "no connected node is at 10.0.0.1 ("),
            ("ff", "no connected node's id begins with ff ("),
            ("web", "bad node \"web\""),
        ] {
            let error = among(&document, said).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
