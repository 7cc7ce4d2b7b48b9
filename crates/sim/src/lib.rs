//! The other world under the swarm: a deterministic simulator.
