//! Every mode carries what it should: container to container, to the node and back, to the other node, to the world; also large transfers.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use overlayd::wire::{OverlayMode, PeerScope, PeerSpec, Request, Response};

use super::scene::{DUAL, NODE_OUTSIDE, OUTSIDE, Wish, inner, outside, pair_with, single};
use crate::{
    container::Container,
    lab::isolated,
    overlay_node::{OverlayNode, endpoint, stage},
    probe::{Reach, SILENCE, Server, Tcp, addresses, counter, reach, routes, transfer},
};

/// Longest time of a transfer on this machine's two cores, which carry both tunnels and all stacks.
const TRANSFER_WITHIN: Duration = Duration::from_secs(120);

fn list(addresses: BTreeSet<IpAddr>) -> Vec<IpAddr> {
    addresses.into_iter().collect()
}

fn assert_reaches(what: &str, reached: std::collections::BTreeMap<IpAddr, Reach>) {
    assert!(reached.values().all(Reach::is_whole), "{what}: {reached:?}");
}

#[test]
fn in_every_mode_containers_reach_each_other_and_the_node_and_the_node_reaches_them() {
    isolated(|| {
        let node = single(DUAL);
        for (service, mode) in [
            ("auto", OverlayMode::Auto),
            ("isolated", OverlayMode::Isolated),
            ("shared", OverlayMode::Shared),
            ("dedicated", OverlayMode::Dedicated),
        ] {
            node.segment(service, mode);
            let (one, other) = (Container::new(), Container::new());
            for container in [&one, &other] {
                node.attach(container, Wish::to(service));
            }
            let _servers = [Server::start(&one.node()), Server::start(&other.node()), Server::start(&node.node)];
            let own = list(addresses(&node.node, "zl-e2e-0-g").into_iter().map(|net| net.addr()).collect());
            assert_eq!(own.len(), 2);
            assert_reaches(service, reach(&one.node(), &list(inner(&other, "eth0")), SILENCE));
            assert_reaches(service, reach(&one.node(), &own, SILENCE));
            assert_reaches(service, reach(&node.node, &list(inner(&one, "eth0")), SILENCE));
            node.assert_no_difference();
        }
    });
}

#[test]
fn flat_containers_of_two_nodes_reach_each_other_and_a_large_transfer_arrives_whole_at_the_right_size() {
    isolated(|| {
        let services = [("web", OverlayMode::Auto), ("shared", OverlayMode::Shared)];
        let (pair, _) = pair_with(DUAL, &services);
        for (service, _) in services {
            let (near, far) = (Container::new(), Container::new());
            pair.a.attach(&near, Wish::to(service));
            pair.b.attach(&far, Wish::to(service));
            let _server = Server::start(&far.node());
            assert_reaches(service, reach(&near.node(), &list(inner(&far, "eth0")), SILENCE));
            if service == "web" {
                for address in inner(&far, "eth0") {
                    let took = transfer(&near.node(), &far.node(), address, 100_000_000, TRANSFER_WITHIN).unwrap();
                    println!(
                        "MEASURED: {}: 100 MB between containers of two nodes to {address}: {took:?}",
                        stage(&pair.a, &pair.device)
                    );
                }
                for figure in ["Ip.ReasmReqds", "Ip6ReasmReqds"] {
                    assert_eq!(counter(&far.node(), figure), 0, "fragments arrived");
                }
            }
        }
    });
}

/// Makes the dedicated device of `other` a peer of that of `node`.
fn join(node: &OverlayNode, other: &OverlayNode, number: u8, port: u16) {
    let status = other.status();
    let device = &status.dedicated_services[0];
    let subnets = addresses(&other.node, "zl-e2e-0-ded-b").into_iter();
    let peer = PeerSpec {
        public_key: device.public_key.clone(),
        endpoint: format!("{}:{port}", endpoint(number).rsplit_once(':').unwrap().0),
        allowed_ips: subnets.map(|net| net.trunc().to_string()).collect::<Vec<_>>().join(","),
        persistent_keepalive_secs: 25,
        candidates: Vec::new(),
    };
    node.request(Request::AddPeer { peer, scope: PeerScope::Service { service: "ded".into() } });
}

#[test]
fn dedicated_containers_of_two_nodes_reach_each_other_through_devices_of_their_own() {
    isolated(|| {
        let (pair, _) = pair_with(DUAL, &[]);
        let mut ports = Vec::new();
        for node in [&pair.a, &pair.b] {
            match node.segment("ded", OverlayMode::Dedicated) {
                Response::ServiceOverlay(service) => ports.push(service.wg_port.unwrap()),
                other => panic!("{other:?}"),
            }
        }
        join(&pair.a, &pair.b, 2, ports[1]);
        join(&pair.b, &pair.a, 1, ports[0]);
        let (near, far) = (Container::new(), Container::new());
        pair.a.attach(&near, Wish::to("ded"));
        pair.b.attach(&far, Wish::to("ded"));
        let _servers = [Server::start(&near.node()), Server::start(&far.node())];
        crate::overlay_node::until("the tunnel carries", || {
            reach(&near.node(), &list(inner(&far, "eth0")), SILENCE).values().all(Reach::is_whole)
        });
        assert_reaches("from the node", reach(&pair.a.node, &list(inner(&near, "eth0")), SILENCE));
        pair.a.assert_no_difference();
    });
}

#[test]
fn what_leaves_for_the_world_has_the_nodes_address_and_the_world_gets_in_only_with_answers() {
    isolated(|| {
        let node = single(DUAL);
        node.segment("web", OverlayMode::Auto);
        node.segment("iso", OverlayMode::Isolated);
        let world = outside(&node, &["10.200.0.0/16", "fd00:200::/48"]);
        node.resync();
        let _server = Server::start(&world);
        // An address of the uplink is used once nobody else has claimed it.
        crate::overlay_node::until("the uplink's address is settled", || {
            reach(&node.node, &OUTSIDE, SILENCE)
                .into_iter()
                .all(|(_, reached)| matches!(reached.tcp, Tcp::Answered(from) if NODE_OUTSIDE.contains(&from)))
        });
        for service in ["web", "iso"] {
            let container = Container::new();
            node.attach(&container, Wish::to(service));
            let _own = Server::start(&container.node());
            for (address, seen_as) in OUTSIDE.into_iter().zip(NODE_OUTSIDE) {
                let reached = reach(&container.node(), &[address], SILENCE).remove(&address).unwrap();
                assert!(reached.ping, "{service} {address}");
                assert!(matches!(reached.tcp, Tcp::Answered(from) if from == seen_as), "{service}: {:?}", reached.tcp);
            }
            let from_outside = reach(&world, &list(inner(&container, "eth0")), SILENCE);
            assert!(from_outside.values().all(Reach::is_none), "{from_outside:?}");
            node.assert_no_difference();
        }
    });
}

#[test]
fn a_container_that_joins_the_slice_has_a_second_way_into_the_overlay_and_one_default_route() {
    isolated(|| {
        let (pair, _) = pair_with(DUAL, &[("web", OverlayMode::Auto)]);
        let container = Container::new();
        pair.a.attach(&container, Wish::to("web").global());
        let _servers = [Server::start(&container.node()), Server::start(&pair.b.node)];
        let global = list(inner(&container, "eth1"));
        assert_eq!(global.len(), 2, "{global:?}");
        let all = routes(&container.node());
        assert_eq!(
            all.iter().filter(|route| route.starts_with("default") || route.contains("/0")).count(),
            2,
            "{all:?}"
        );
        crate::overlay_node::until("the other node is reached", || {
            reach(&container.node(), &[pair.far()], SILENCE).values().all(Reach::is_whole)
        });
        crate::overlay_node::until("and reaches it", || {
            reach(&pair.b.node, &global, SILENCE).values().all(Reach::is_whole)
        });
        assert_reaches("from the node", reach(&pair.a.node, &global, SILENCE));
        pair.a.assert_no_difference();
    });
}
