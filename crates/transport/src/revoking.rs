//! The swarm key's signature under a list of revocations.
//!
//! A seed's certificate says that a TLS key is a seed's. That key may have been stolen, and a list takes
//! everybody's admission back, so the swarm key signs the list itself, and a node believes no other. The
//! message of `rootswarm/3` has no place for a signature: its 64 bytes go as the last two of the node ids.
//! A node of an earlier release takes them for two nodes that nobody has ever met.

use rootswarm_image::{SwarmKey, SwarmPublicKey};
use rootswarm_swarm::limits::REVOKED_MAX;
use rootswarm_swarm::{NodeId, Revocations};

/// In front of what is signed: no other message that the swarm key signs begins with it.
const SIGNED_PREFIX: &[u8] = b"rootswarm revoked v1\0";

/// How many ids the signature takes.
const SIGNATURE_IDS: usize = 2;

/// How many nodes can be on a list that is signed.
pub const REVOKED_NAMED_MAX: usize = REVOKED_MAX - SIGNATURE_IDS;

fn message(version: u64, epoch: u32, nodes: &[NodeId]) -> Vec<u8> {
    let mut message = SIGNED_PREFIX.to_vec();
    message.extend(version.to_le_bytes());
    message.extend(epoch.to_le_bytes());
    message.extend(nodes.iter().flat_map(|node| node.0));
    message
}

/// The list as it is sent. Of one that is too long, which a release before this one may have left, the
/// oldest entries are left out: a machine that boots again has a new key anyway.
pub(crate) fn sign(list: &Revocations, key: &SwarmKey) -> Revocations {
    let surplus = list.nodes.len().saturating_sub(REVOKED_NAMED_MAX);
    let mut nodes = list.nodes[surplus..].to_vec();
    let signature = key.sign(&message(list.version, list.epoch, &nodes));
    let (ids, _) = signature.as_chunks::<32>();
    nodes.extend(ids.iter().map(|half| NodeId(*half)));
    Revocations {
        nodes,
        ..list.clone()
    }
}

/// Whether the swarm key has signed the list.
pub(crate) fn is_signed(list: &Revocations, swarm: &SwarmPublicKey) -> bool {
    let Some((nodes, [first, second])) = list.nodes.split_last_chunk::<SIGNATURE_IDS>() else {
        return false;
    };
    let signature = [first.0, second.0].concat();
    swarm.verifies(&message(list.version, list.epoch, nodes), &signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_swarm_key_signs_a_list() {
        let key = SwarmKey::generate().unwrap();
        let other = SwarmKey::generate().unwrap();
        for count in [0, 1, 7, REVOKED_NAMED_MAX, REVOKED_MAX] {
            let list = Revocations {
                version: 300,
                epoch: 3,
                nodes: (0..count).map(|it| NodeId([it as u8; 32])).collect(),
            };
            let signed = sign(&list, &key);
            assert!(signed.nodes.len() <= REVOKED_MAX, "{count}");
            assert!(is_signed(&signed, &key.public()), "{count}");
            assert!(!is_signed(&signed, &other.public()), "{count}");
            assert!(!is_signed(&list, &key.public()), "{count}");
            for changed in [
                Revocations {
                    version: u64::MAX,
                    ..signed.clone()
                },
                Revocations {
                    epoch: 4,
                    ..signed.clone()
                },
                Revocations {
                    nodes: [&[NodeId([9; 32])], &signed.nodes[..]].concat(),
                    ..signed.clone()
                },
                Revocations {
                    nodes: signed.nodes[1..].to_vec(),
                    ..signed.clone()
                },
            ] {
                assert!(!is_signed(&changed, &key.public()), "{count}: {changed:?}");
            }
        }
    }
}
