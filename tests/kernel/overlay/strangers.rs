//! What is not ours stays as it is, also where it stands in our way.

use futures::TryStreamExt;
use overlayd::{ids::IfName, platform::linux::device_process::create_persistent, wire::Response};
use rtnetlink::{LinkBridge, LinkUnspec, LinkWireguard};

use super::TALK;
use crate::{
    lab::{Node, add_address, delete_link, isolated, skip},
    overlay_node::{IPV4, OverlayNode, PORT, add_peer, endpoint, setup_request, stage, two_nodes, until},
    overlay_ping::first_reply,
};

/// A stranger's link takes our name before the overlay is set up.
fn blocked_by(what: &str, make: impl FnOnce(&OverlayNode, &IfName)) {
    let (a, b) = two_nodes();
    // The same overlay has the same name everywhere.
    let device = b.setup(IPV4.cluster, Some(IPV4.slices[1]), PORT);
    make(&a, &device);
    let name = device.to_string();
    a.node.block_on({
        let name = name.clone();
        || async move { add_address(&name, [10, 66, 0, 1].into(), 24).await }
    });
    let about = |lines: Vec<String>| -> Vec<String> {
        lines.into_iter().filter(|line| !line.contains("Unreachable")).collect()
    };
    let before = about(a.dump(&[]));
    let raw = raw_link(&a, &name);
    let Response::Err { message } = a.ask(setup_request(IPV4.cluster, Some(IPV4.slices[0]), PORT)) else {
        panic!("a stranger's {what} was accepted")
    };
    assert!(message.contains(&name) && message.contains("blocked"), "{message}");
    a.resync();
    let (lines, status) = a.diff();
    assert_eq!(status, 2);
    assert!(lines.iter().any(|line| line.contains(&format!("! link/{name}: blocked: "))), "{lines:?}");
    assert_eq!(a.metric("overlayd_errors_current")["{kind=\"link\"}"], 1.0);
    assert_eq!(raw_link(&a, &name), raw, "byte for byte");
    assert_eq!(about(a.dump(&[])), before);
    println!("MEASURED: {what} in our place: {message}");
    for line in lines {
        println!("MEASURED: diff: {line}");
    }
    a.request_anyway(&b);
    a.node.block_on(|| async move { delete_link(&name).await });
    let took = until("the overlay comes up by itself", || a.peer(&b.public_key()).is_some());
    b.request(add_peer(&a.public_key(), &endpoint(1), IPV4.slices[0]));
    let ping = first_reply(&a.node, IPV4.nodes[1].parse().unwrap(), TALK).unwrap();
    until("nothing differs", || a.diff() == (vec![], 0));
    println!("MEASURED: {}: the {what} gone, ours up after {took:?}; first ping {ping:?}", stage(&a, &device));
}

impl OverlayNode {
    /// A peer that waits in the document while the overlay is blocked: kept, and the answer says that it is not in effect.
    fn request_anyway(&self, other: &OverlayNode) {
        let answer = self.ask(add_peer(&other.public_key(), &endpoint(2), IPV4.slices[1]));
        assert!(matches!(&answer, Response::Err { message } if message.contains("kept")), "{answer:?}");
    }
}

/// The link as the kernel describes it, without its counters.
fn raw_link(node: &OverlayNode, name: &str) -> Vec<u8> {
    use rtnetlink::packet_core::Emitable;
    let name = name.to_owned();
    node.netlink(|handle| async move {
        let mut link = handle.link().get().match_name(name).execute().try_next().await.unwrap().unwrap();
        link.attributes.retain(|attribute| {
            use rtnetlink::packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkInfo};
            match attribute {
                // Timers that run by themselves.
                LinkAttribute::LinkInfo(infos) => !infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge) | LinkInfo::Data(InfoData::Bridge(_)))),
                LinkAttribute::Stats(_) | LinkAttribute::Stats64(_) | LinkAttribute::AfSpecUnspec(_) => false,
                _ => true,
            }
        });
        let mut bytes = vec![0; link.buffer_len()];
        link.emit(&mut bytes);
        bytes
    })
}

#[test]
fn a_strangers_bridge_with_our_name_blocks_and_is_not_touched() {
    isolated(|| {
        blocked_by("bridge", |node, device| {
            let name = device.to_string();
            node.netlink(|handle| async move {
                handle.link().add(LinkBridge::new(&name).up().build()).execute().await.unwrap();
            });
        });
    });
}

#[test]
fn a_strangers_tun_with_our_name_blocks_and_is_not_touched() {
    isolated(|| {
        crate::lab::need_tun();
        blocked_by("TUN", |node, device| {
            let device = device.clone();
            node.node.run(move || create_persistent(&device, 0, 1400)).unwrap();
        });
    });
}

fn make_wireguard(node: &Node, name: &str) -> bool {
    let name = name.to_owned();
    node.block_on(move || async move {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        handle.link().add(LinkWireguard::new(&name).build()).execute().await.is_ok()
    })
}

#[test]
fn a_strangers_wireguard_link_with_our_name_blocks_and_is_not_touched() {
    isolated(|| {
        if !make_wireguard(&Node::new(), "probe") {
            skip("no kernel WireGuard");
        }
        blocked_by("wireguard link", |node, device| assert!(make_wireguard(&node.node, device.as_str())));
    });
}

#[test]
fn a_link_that_lost_our_mark_is_a_strangers_until_it_has_it_again() {
    isolated(|| {
        let (a, b) = two_nodes();
        let device = a.setup(IPV4.cluster, Some(IPV4.slices[0]), PORT);
        let group = a.mark().link_group();
        let set_group = |node: &OverlayNode, group: u32| {
            let name = device.to_string();
            node.netlink(move |handle| async move {
                let index = nix::net::if_::if_nametoindex(name.as_str()).unwrap();
                let mut change = LinkUnspec::new_with_index(index).build();
                change.attributes.push(rtnetlink::packet_route::link::LinkAttribute::Group(group));
                handle.link().change(change).execute().await.unwrap();
            });
        };
        set_group(&a, 0);
        let before = a.dump(&[]);
        a.resync();
        until("it is blocked", || a.diff().0.iter().any(|line| line.contains("blocked")));
        assert_eq!(a.dump(&[]), before);
        set_group(&a, group);
        until("it is ours again", || a.diff() == (vec![], 0));
        drop(b);
    });
}
