//! The overlay end to end: real agents in namespaces, real packets, a real store.

use std::time::Duration;

use crate::{
    lab::isolated,
    overlay_node::{IPV4, IPV6, pair},
    overlay_ping::first_reply,
};

mod change;
mod drift;
mod flood;
mod meddling;
mod restart;
pub mod scale;
mod strangers;

/// Longest wait for the first ping, handshake included.
const TALK: Duration = Duration::from_secs(20);

#[test]
fn two_nodes_talk_through_an_ipv4_overlay() {
    isolated(|| {
        let pair = pair(IPV4);
        let time = first_reply(&pair.a.node, pair.far(), TALK).unwrap();
        println!("MEASURED: {}: first ping through a new IPv4 overlay {time:?}", pair.stage());
        pair.a.assert_no_difference();
        pair.b.assert_no_difference();
    });
}

#[test]
fn two_nodes_talk_through_an_ipv6_overlay() {
    isolated(|| {
        let pair = pair(IPV6);
        let time = first_reply(&pair.a.node, pair.far(), TALK).unwrap();
        println!("MEASURED: {}: first ping through a new IPv6 overlay {time:?}", pair.stage());
        assert!(first_reply(&pair.b.node, pair.near(), TALK).is_some());
        assert_eq!(pair.a.status().node_ip, Some(pair.near()));
        pair.a.assert_no_difference();
        pair.b.assert_no_difference();
    });
}
