//! Changes while traffic flows: keys, endpoints, and the order in which an overlay comes and goes.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use overlayd::wire::{Request, Response};
use rtnetlink::{
    MulticastGroup, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        link::LinkAttribute,
        route::{RouteProtocol, RouteType},
    },
};

use super::TALK;
use crate::{
    lab::{add_address, isolated},
    overlay_node::{IPV4, OverlayNode, PORT, Pair, add_peer, endpoint, pair, setup_request, stage, two_nodes, until},
    overlay_ping::{Pinger, first_reply, refusal},
};

#[test]
fn a_peer_that_comes_back_with_a_new_key_takes_its_allowed_ips_over_in_one_step() {
    isolated(|| {
        let Pair { a, mut b, device, network } = pair(IPV4);
        let far: IpAddr = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        let old = b.public_key();
        b.kill();
        let purged = b.command(&["purge"]);
        assert!(purged.status.success(), "{purged:?}");
        b.forget_state();
        b.start();
        b.setup(network.cluster, Some(network.slices[1]), PORT);
        b.request(add_peer(&a.public_key(), &endpoint(1), network.slices[0]));
        let new = b.public_key();
        assert_ne!(new, old);
        let actions = a.actions();
        let begin = Instant::now();
        a.request(add_peer(&new, &endpoint(2), network.slices[1]));
        let answered = begin.elapsed();
        let traffic = first_reply(&a.node, far, TALK).unwrap();
        assert_eq!(a.actions() - actions, 1.0, "{:?}", a.metric("overlayd_actions_total"));
        a.resync();
        assert_eq!(a.actions() - actions, 1.0, "the next full round has nothing to do");
        let (old_spec, _) = a.peer(&old).unwrap();
        let (new_spec, stats) = a.peer(&new).unwrap();
        assert!(old_spec.allowed_ips.is_empty(), "{old_spec:?}");
        assert_eq!(new_spec.allowed_ips.len(), 1);
        assert!(stats.last_handshake.is_some());
        a.assert_no_difference();
        println!(
            "MEASURED: {}: new key: AddPeer answered in {answered:?}, traffic {traffic:?} later, one action",
            stage(&a, &device)
        );
    });
}

#[test]
fn an_endpoint_that_roamed_is_not_pushed_back_and_a_new_one_is_applied_once() {
    isolated(|| {
        let Pair { a, b, device, network } = pair(IPV4);
        let (near, far): (IpAddr, IpAddr) = (network.nodes[0].parse().unwrap(), network.nodes[1].parse().unwrap());
        first_reply(&a.node, far, TALK).unwrap();
        let key = b.public_key();
        let at = |node: &OverlayNode| node.peer(&key).unwrap().0.endpoint.map(|endpoint| endpoint.address.to_string());
        assert_eq!(at(&a), Some("192.0.2.2:51820".into()));
        // The far side moves to another address and another port.
        b.remove_address("wire", [192, 0, 2, 2].into());
        b.node.block_on(|| async { add_address("wire", [192, 0, 2, 22].into(), 24).await });
        b.setup(network.cluster, Some(network.slices[1]), 51999);
        let moved = until("the far side has moved", || {
            first_reply(&b.node, near, Duration::from_millis(200)).is_some()
                && at(&a) == Some("192.0.2.22:51999".into())
        });
        let actions = a.actions();
        for _ in 0..3 {
            a.resync();
        }
        a.signal(nix::sys::signal::Signal::SIGHUP);
        a.resync();
        assert_eq!(at(&a), Some("192.0.2.22:51999".into()));
        assert_eq!(a.actions(), actions, "{:?}", a.metric("overlayd_actions_total"));
        a.assert_no_difference();
        // A new endpoint in the document is newer than what the peer taught the kernel.
        a.request(add_peer(&key, "192.0.2.22:52000", network.slices[1]));
        assert_eq!(at(&a), Some("192.0.2.22:52000".into()));
        assert_eq!(a.actions() - actions, 1.0);
        until("the far side has been heard again", || {
            first_reply(&b.node, near, Duration::from_millis(200)).is_some()
                && at(&a) == Some("192.0.2.22:51999".into())
        });
        for _ in 0..3 {
            a.resync();
        }
        assert_eq!(at(&a), Some("192.0.2.22:51999".into()));
        assert_eq!(a.actions() - actions, 1.0, "applied exactly once");
        // The same AddPeer again says nothing new.
        a.request(add_peer(&key, "192.0.2.22:52000", network.slices[1]));
        assert_eq!(a.actions() - actions, 1.0);
        assert_eq!(at(&a), Some("192.0.2.22:51999".into()));
        println!(
            "MEASURED: {}: roamed in {moved:?}; 5 full rounds, 0 changes; new endpoint applied once",
            stage(&a, &device)
        );
    });
}

#[test]
fn an_endpoint_that_roamed_is_not_pushed_back_by_the_next_agent() {
    isolated(|| {
        let Pair { mut a, b, network, .. } = pair(IPV4);
        let (near, far): (IpAddr, IpAddr) = (network.nodes[0].parse().unwrap(), network.nodes[1].parse().unwrap());
        first_reply(&a.node, far, TALK).unwrap();
        let key = b.public_key();
        b.setup(network.cluster, Some(network.slices[1]), 51999);
        let at = |node: &OverlayNode| node.peer(&key).unwrap().0.endpoint.map(|endpoint| endpoint.address.port());
        until("the far side has moved", || {
            first_reply(&b.node, near, Duration::from_millis(200)).is_some() && at(&a) == Some(51999)
        });
        for _ in 0..3 {
            a.kill();
            a.start();
            a.resync();
            assert_eq!(a.actions(), 0.0, "{}", a.log_tail());
            assert_eq!(at(&a), Some(51999));
        }
    });
}

#[test]
fn an_endpoint_that_roamed_is_not_pushed_back_by_the_next_agent_where_something_else_is_blocked() {
    isolated(|| {
        let (mut a, b) = two_nodes();
        // A stranger has the place of our route, for as long as this test lasts.
        let metric = a.mark().route_metric();
        a.netlink(move |handle| async move {
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix([10, 200, 0, 0].into(), 16)
                .output_interface(nix::net::if_::if_nametoindex("wire").unwrap())
                .protocol(RouteProtocol::Static)
                .priority(metric)
                .build();
            handle.route().add(route).execute().await.unwrap();
        });
        let answer = a.ask(setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT));
        assert!(matches!(&answer, Response::Err { message } if message.contains("blocked")), "{answer:?}");
        b.setup(IPV4.cluster, Some(IPV4.slices[1]), PORT);
        a.request(add_peer(&b.public_key(), &endpoint(2), IPV4.slices[1]));
        b.request(add_peer(&a.public_key(), &endpoint(1), IPV4.slices[0]));
        let key = b.public_key();
        let near: IpAddr = IPV4.nodes[0].parse().unwrap();
        let at = |node: &OverlayNode| node.peer(&key).unwrap().0.endpoint.map(|endpoint| endpoint.address.port());
        b.setup(IPV4.cluster, Some(IPV4.slices[1]), 51999);
        until("the far side has moved", || {
            let _ = first_reply(&b.node, near, Duration::from_millis(200));
            at(&a) == Some(51999)
        });
        a.resync();
        assert_eq!(at(&a), Some(51999));
        let (lines, _) = a.diff();
        assert!(!lines.iter().any(|line| line.contains("endpoint")), "{lines:?}");
        a.kill();
        a.start();
        a.resync();
        assert_eq!(at(&a), Some(51999), "{}", a.log_tail());
        let actions = a.metric("overlayd_actions_total");
        assert!(actions.keys().all(|labels| labels.contains("route")), "{actions:?}");
    });
}

/// One thing that the kernel told about, in few words.
fn word(message: &RouteNetlinkMessage, device: &str) -> Option<String> {
    match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Unreachable => {
            (u8::from(route.header.protocol) == 157).then(|| "unreachable route".into())
        }
        RouteNetlinkMessage::NewRoute(route) if u8::from(route.header.protocol) == 157 => Some("route".into()),
        RouteNetlinkMessage::NewLink(link) => {
            let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == device);
            link.attributes.iter().any(named).then(|| "link".into())
        }
        RouteNetlinkMessage::NewAddress(_) => Some("address".into()),
        _ => None,
    }
}

#[test]
fn the_unreachable_route_stands_before_the_first_peer_and_refuses_when_the_device_is_gone() {
    isolated(|| {
        let (mut a, b) = two_nodes();
        let device = b.setup(IPV4.cluster, Some(IPV4.slices[1]), PORT);
        // The peer waits in the document, so that everything comes in one round.
        a.request(add_peer(&b.public_key(), &endpoint(2), IPV4.slices[1]));
        let (ready, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let events = a.node.spawn({
            let (ready, done, device) = (Arc::clone(&ready), Arc::clone(&done), device.to_string());
            move || {
                crate::overlay_node::block_on(async move {
                    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Ifaddr];
                    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&groups).unwrap();
                    tokio::spawn(connection);
                    ready.store(true, Ordering::Relaxed);
                    let mut words: Vec<String> = Vec::new();
                    while !done.load(Ordering::Relaxed) || words.is_empty() {
                        let next = tokio::time::timeout(Duration::from_millis(50), messages.next()).await;
                        let Ok(Some((message, _))) = next else { continue };
                        if let NetlinkPayload::InnerMessage(message) = message.payload
                            && let Some(word) = word(&message, &device)
                            && !words.contains(&word)
                        {
                            words.push(word);
                        }
                    }
                    words
                })
            }
        });
        until("the monitor listens", || ready.load(Ordering::Relaxed));
        a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        assert!(a.peer(&b.public_key()).is_some());
        done.store(true, Ordering::Relaxed);
        let events = events.join().unwrap();
        println!(
            "MEASURED: {}: first setup, in the order of the kernel's events: {events:?}; no peer can be there before its link",
            stage(&a, &device)
        );
        assert_eq!(events.first().map(String::as_str), Some("unreachable route"));
        assert!(events.contains(&"link".to_owned()), "{events:?}");

        // A default route towards the public network, which must never see a cluster address.
        a.netlink(|handle| async move {
            let index = nix::net::if_::if_nametoindex("wire").unwrap();
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway([192, 0, 2, 2].into())
                .output_interface(index)
                .build();
            handle.route().add(route).execute().await.unwrap();
        });
        let far: IpAddr = IPV4.nodes[1].parse().unwrap();
        assert_eq!(refusal(&a.node, far), None);
        assert_eq!(refusal(&a.node, [8, 8, 8, 8].into()), None, "the default route takes strangers");
        a.request(Request::Shutdown);
        a.ended();
        assert!(a.node.block_on(move || async move { nix::net::if_::if_nametoindex(device.as_str()).is_err() }));
        let begin = Instant::now();
        let said = refusal(&a.node, far);
        println!("MEASURED: device gone: a packet to {far} is answered {said:?} after {:?}", begin.elapsed());
        assert_eq!(said, Some(std::io::ErrorKind::HostUnreachable));
        // The next start brings the overlay back.
        a.start();
        b.request(add_peer(&a.public_key(), &endpoint(1), IPV4.slices[0]));
        let back = first_reply(&a.node, far, TALK).unwrap();
        println!("MEASURED: after the next start, first ping {back:?}");
    });
}

#[test]
fn no_ping_is_lost_while_peers_come_change_and_go() {
    isolated(|| {
        let Pair { a, b, device, network } = pair(IPV4);
        let far: IpAddr = network.nodes[1].parse().unwrap();
        first_reply(&a.node, far, TALK).unwrap();
        let pinger = Pinger::start(&a.node, far, Duration::from_millis(10));
        let key = b.public_key();
        for number in 1..=60_u8 {
            let other = overlayd::ids::WgPublicKey::from_bytes([number; 32]);
            a.request(add_peer(&other, "192.0.2.99:9", &format!("10.200.{}.0/24", number + 10)));
            let ips = format!("{},10.200.{}.0/24", network.slices[1], number + 100);
            a.request(add_peer(&key, &endpoint(2), &ips));
            a.request(add_peer(&key, &endpoint(2), network.slices[1]));
            let scope = overlayd::wire::PeerScope::Global;
            a.request(Request::RemovePeer { pubkey: other.to_string(), scope });
        }
        let pings = pinger.finish();
        println!("MEASURED: {}: 240 edits of peers under pings: {pings:?}", stage(&a, &device));
        assert_eq!(pings.lost, 0);
        a.assert_no_difference();
    });
}
