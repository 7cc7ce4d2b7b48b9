//! Node ids as they stand in state files and on command lines: 64 hexadecimal digits.

use std::fmt::Write as _;

use rootswarm_swarm::NodeId;

/// The whole id; what displays show is the first 16 digits.
pub fn node_hex(node: &NodeId) -> String {
    node.0
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Reads a whole id, in lower case as [`node_hex`] writes it.
pub fn parse_node(text: &str) -> Option<NodeId> {
    let legal = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    if text.len() != 64 || !text.as_bytes().iter().all(legal) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(NodeId(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let node = NodeId(std::array::from_fn(|index| index as u8 * 7));
        assert_eq!(parse_node(&node_hex(&node)), Some(node));
        assert!(node_hex(&node).starts_with(&node.to_string()));
        let text = node_hex(&node);
        for bad in [
            "",
            &text[1..],
            &text.to_uppercase(),
            &format!("{text}0"),
            &"g".repeat(64),
        ] {
            assert_eq!(parse_node(bad), None, "{bad}");
        }
    }
}
