//! Two nodes of a swarm and a connection between them, for tests.

use std::net::Ipv4Addr;
use std::sync::Arc;

use quinn::{Connection, Endpoint};
use rootswarm_image::SwarmKey;
use rootswarm_swarm::Role;

use crate::identity::{Identity, NodeKey, SwarmCa};
use crate::retries::RetryKey;
use crate::tls::{Dialer, Listener};
use crate::tuning::Tuning;

/// Two ends of a connection, and what must live as long.
pub(crate) async fn connected() -> ([Connection; 2], [Endpoint; 2]) {
    let ca = SwarmCa::new(Arc::new(SwarmKey::generate().unwrap()));
    let node = || {
        let key = NodeKey::generate().unwrap();
        let certificate = ca.issue_node(&key.public(), 1).unwrap().to_vec();
        Identity::node(&key, certificate, &ca.public()).unwrap()
    };
    let (tuning, retries) = (Tuning::default(), RetryKey::random().unwrap());
    let config = Listener::server_config(&node(), &tuning, &retries).unwrap();
    let loopback = (Ipv4Addr::LOCALHOST, 0).into();
    let receiver = Endpoint::server(config, loopback).unwrap();
    let address = receiver.local_addr().unwrap();
    let accepted = tokio::spawn({
        let receiver = receiver.clone();
        async move { receiver.accept().await.unwrap().await.unwrap() }
    });
    let sender = Endpoint::client(loopback).unwrap();
    let dialer = Dialer::data(node(), &tuning);
    let (sending, _) = dialer.connect(&sender, address, Role::Peer).await.unwrap();
    ([sending, accepted.await.unwrap()], [sender, receiver])
}
