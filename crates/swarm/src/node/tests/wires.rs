//! Real nodes, joined by wires without delay or loss, finish on their own.

use super::{CHUNKS, addr, id, node, some};
use crate::id::{ConnId, Role};
use crate::message::Wire;
use crate::node::{ChunkOutcome, Input, Node, Output, UploadOutcome};
use crate::time::Instant;
use rootswarm_image::Bitfield;
use std::collections::{BTreeMap, VecDeque};

/// Real nodes on wires without delay: what is sent arrives, and a chunk arrives whole.
struct Wires {
    nodes: Vec<Node>,
    now: Instant,
    conns: BTreeMap<ConnId, [usize; 2]>,
    inputs: VecDeque<(usize, Input)>,
    chunks: u64,
}

impl Wires {
    fn new(haves: Vec<Bitfield>) -> Self {
        let node = |(number, have)| {
            let role = if number == 0 { Role::Seed } else { Role::Peer };
            node(number as u64, role, have)
        };
        Self {
            nodes: haves.into_iter().enumerate().map(node).collect(),
            now: Instant(1_000),
            conns: BTreeMap::new(),
            inputs: VecDeque::new(),
            chunks: 0,
        }
    }

    fn connect(&mut self, from: usize, to: usize) {
        let conn = ConnId(self.conns.len() as u64);
        self.conns.insert(conn, [from, to]);
        for (host, other, dialed) in [(from, to, true), (to, from, false)] {
            let role = if other == 0 { Role::Seed } else { Role::Peer };
            let (node, addr) = (id(other as u64), addr(other as u64));
            self.inputs.push_back((
                host,
                Input::Connected {
                    conn,
                    node,
                    addr,
                    role,
                    dialed,
                    wire: Wire::V4,
                },
            ));
        }
        self.settle();
    }

    fn settle(&mut self) {
        while let Some((host, input)) = self.inputs.pop_front() {
            self.nodes[host].handle(self.now, input);
            while let Some(output) = self.nodes[host].poll_output() {
                self.carry_out(host, output);
            }
        }
    }

    fn carry_out(&mut self, host: usize, output: Output) {
        let other = |conn: &ConnId| {
            let [a, b] = self.conns[conn];
            a + b - host
        };
        match output {
            Output::Revoked(_) => {}
            Output::Hello { conn, hello } => {
                let to = other(&conn);
                self.inputs.push_back((to, Input::Hello { conn, hello }));
            }
            Output::Send { conn, message } => {
                let to = other(&conn);
                self.inputs
                    .push_back((to, Input::Message { conn, message }));
            }
            Output::Upload { conn, index } => {
                let to = other(&conn);
                self.chunks += 1;
                let (verified, delivered) = (ChunkOutcome::Verified, UploadOutcome::Delivered);
                for (host, input) in [
                    (to, Input::ChunkStarted { conn, index }),
                    (
                        to,
                        Input::ChunkEnded {
                            conn,
                            index,
                            outcome: verified,
                        },
                    ),
                    (
                        host,
                        Input::UploadEnded {
                            conn,
                            index,
                            outcome: delivered,
                        },
                    ),
                ] {
                    self.inputs.push_back((host, input));
                }
            }
            Output::Close { conn, .. } => {
                let to = other(&conn);
                self.inputs.push_back((to, Input::Disconnected { conn }));
            }
            Output::Dial { node, .. } => {
                let to = (0..self.nodes.len()).find(|number| id(*number as u64) == node);
                let conn = ConnId(self.conns.len() as u64);
                let to = to.unwrap();
                self.conns.insert(conn, [host, to]);
                for (host, other, dialed) in [(host, to, true), (to, host, false)] {
                    self.inputs.push_back((
                        host,
                        Input::Connected {
                            conn,
                            node: id(other as u64),
                            addr: addr(other as u64),
                            role: Role::Peer,
                            dialed,
                            wire: Wire::V4,
                        },
                    ));
                }
            }
            Output::CancelUpload { .. } | Output::StopChunk { .. } | Output::Complete => {}
        }
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.nodes.iter().all(Node::is_complete) {
                return;
            }
            let next = self.nodes.iter().map(Node::next_timeout).min().unwrap();
            assert!(next > self.now, "time stands still");
            self.now = next;
            for host in 0..self.nodes.len() {
                if self.nodes[host].next_timeout() <= self.now {
                    self.inputs.push_back((host, Input::Timeout));
                }
            }
            self.settle();
        }
        panic!(
            "not done: {:?}",
            self.nodes.iter().map(Node::have).collect::<Vec<_>>()
        );
    }
}

#[test]
fn two_and_three_nodes_finish() {
    for peers in 1..=3 {
        let mut wires = Wires::new(
            std::iter::once(Bitfield::full(CHUNKS))
                .chain((0..peers).map(|_| some(&[])))
                .collect(),
        );
        for peer in 1..=peers {
            wires.connect(peer, 0);
        }
        wires.run();
        assert_eq!(
            wires.chunks,
            peers as u64 * u64::from(CHUNKS),
            "no chunk twice"
        );
        let report = wires.nodes[0].report(wires.now);
        assert_eq!(report.peers.len(), peers);
    }
}

/// Nodes that hold parts finish among themselves; what they hold already is not sent.
#[test]
fn parts_make_a_whole_without_a_seed_that_gives() {
    let (even, odd): (Vec<u32>, Vec<u32>) = (0..CHUNKS).partition(|index| index % 2 == 0);
    let mut wires = Wires::new(vec![Bitfield::full(CHUNKS), some(&even), some(&odd)]);
    wires.connect(1, 2);
    wires.run();
    assert_eq!(wires.chunks, u64::from(CHUNKS));
    let report = wires.nodes[1].report(wires.now);
    assert_eq!(report.chunks_from_peers, u64::from(CHUNKS) / 2);
}
