//! The real world under the swarm: QUIC, TLS identity, stores.
