//! Containers end without a word, agents are killed, requests are sent twice: no address leaks and none is given twice.

use std::net::IpAddr;

use overlayd::wire::{OverlayMode, Request};

use super::scene::{Wish, single_with};
use crate::{
    container::Container,
    lab::isolated,
    overlay_node::{IPV4, PORT, setup_request, until},
};

#[test]
fn deaths_attaches_and_restarts_in_any_mix_leave_the_pool_as_it_was() {
    isolated(|| {
        let mut node = single_with(IPV4, &["--address-rest-secs", "0"]);
        node.segment("web", OverlayMode::Auto);
        let mut living: Vec<(Container, IpAddr)> = Vec::new();
        let mut deaths = 0;
        for turn in 0..300_usize {
            let container = Container::new();
            let address = node.attach(&container, Wish::to("web"));
            assert!(living.iter().all(|(_, other)| *other != address), "{address} twice");
            living.push((container, address));
            // A handful live at a time; who ends, and how, goes round.
            while living.len() > 1 + turn % 12 {
                let (mut victim, _) = living.swap_remove((turn * 7) % living.len());
                if turn % 5 == 0 {
                    node.request(victim.detach());
                }
                let is_watched = turn % 40 != 0;
                if !is_watched {
                    node.kill();
                }
                victim.kill();
                deaths += 1;
                if !is_watched {
                    node.start();
                }
            }
        }
        living.clear();
        until("every end was noticed", || {
            node.total("overlayd_attachments") == 0.0 && node.total("overlayd_in_sync") == 1.0
        });
        until("every port and member has gone", || node.ports().is_empty() && node.members().is_empty());
        let container = Container::new();
        let first = node.attach(&container, Wish::to("web"));
        let lowest = node.gateways("zl-e2e-0-web-b").first().unwrap().addr();
        let IpAddr::V4(lowest) = lowest else { panic!("{lowest}") };
        assert_eq!(first, IpAddr::from((u32::from(lowest) + 1).to_be_bytes()), "the first address is free again");
        node.assert_no_difference();
        println!(
            "MEASURED: {deaths} deaths among 300 attaches, the agent killed every 40th turn: the pool is as it was"
        );
    });
}

#[test]
fn the_driving_daemons_sequence_after_a_broken_connection_gives_the_same_address_and_changes_nothing() {
    isolated(|| {
        let node = single_with(IPV4, &[]);
        node.segment("web", OverlayMode::Auto);
        let container = Container::new();
        let address = node.attach(&container, Wish::to("web").global());
        let (before, actions) = (node.observe().objects, node.actions());
        node.request(Request::SetLocalNodeId { node_id: 0 });
        node.request(Request::SetLocalWgPubkey { pubkey: node.public_key().to_string() });
        node.request(setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT));
        assert_eq!(node.attach(&container, Wish::to("web").global()), address);
        assert_eq!(node.actions(), actions);
        assert_eq!(node.observe().objects, before);
    });
}
