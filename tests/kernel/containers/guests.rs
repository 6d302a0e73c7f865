//! Guests with a WireGuard device of their own, and workloads that share the host's network: over the socket, and by real packets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use overlayd::{
    ids::{Cidr, IfName, WgPublicKey},
    platform::linux::{
        device_process::{create_persistent, start},
        uapi::{AllowedIpChange, DeviceChange, PeerChange, SecretChange, UapiChange, UapiClient},
    },
    secret::PrivateKey,
    wire::{AttachHandle, GuestConfig, OverlayMode, Request, Response},
};

use super::scene::{Wish, inner, single, single_with};
use crate::{
    container::Container,
    lab::{Node, add_address, delete_link, isolated, need_tun, set_up_link},
    overlay_node::{IPV4, OverlayNode, add_peer, endpoint, until},
    probe::{Reach, SILENCE, Server, addresses, reach, reach_one},
    tunnel::GROUP,
};

/// Addresses of the wire between the node and the machine that the guest runs on.
const NODE_ON_WIRE: [u8; 4] = [192, 0, 2, 1];
const GUEST_ON_WIRE: [u8; 4] = [192, 0, 2, 9];

fn guest(id: &str) -> AttachHandle {
    AttachHandle::GuestManaged { id: id.into() }
}

fn host_shared(id: &str) -> AttachHandle {
    AttachHandle::HostShared { id: id.into() }
}

fn config(node: &OverlayNode, id: &str, wish: Wish<'_>) -> GuestConfig {
    match node.request(wish.request(guest(id))) {
        Response::GuestConfig(config) => config,
        other => panic!("{other:?}"),
    }
}

fn shared_address(node: &OverlayNode, id: &str, wish: Wish<'_>) -> IpAddr {
    match node.request(wish.request(host_shared(id))) {
        Response::Attached(attached) => attached.ip,
        other => panic!("{other:?}"),
    }
}

/// The addresses of the node's device, with prefix lengths.
fn on_device(node: &OverlayNode) -> BTreeSet<String> {
    addresses(&node.node, "zl-e2e-0-g").iter().map(ToString::to_string).collect()
}

/// The machine that a guest is: all it knows is what the answer to its attach said.
struct Machine {
    node: Node,
    uapi: UapiClient,
}

impl Machine {
    fn new(config: &GuestConfig) -> Self {
        let device: IfName = "wgt".parse().unwrap();
        let dir = PathBuf::from("/run/guest-wireguard");
        let machine = Self { node: Node::new(), uapi: UapiClient::new(&dir, &device) };
        machine.node.run(|| create_persistent(&"wgt".parse().unwrap(), GROUP, 1420)).unwrap();
        machine.node.block_on(move || async move {
            start(Path::new(env!("CARGO_BIN_EXE_overlayd")), &device, &dir).await.unwrap();
        });
        let private = PrivateKey::from_base64(config.private_key.reveal()).unwrap();
        assert_eq!(private.public_key().to_string(), config.public_key);
        let own = DeviceChange {
            private_key: Some(SecretChange::Set(private)),
            listen_port: Some(config.listen_port),
            fwmark: None,
        };
        let mut changes = vec![UapiChange::Device(own)];
        for peer in &config.peers {
            let allowed = peer.allowed_ips.split(',').map(|network| network.trim().parse::<Cidr>().unwrap());
            changes.push(UapiChange::Peer(PeerChange {
                endpoint: Some(peer.endpoint.parse::<SocketAddr>().unwrap()),
                keepalive: Some(u16::try_from(peer.persistent_keepalive_secs).unwrap()),
                allowed_ips: allowed.map(AllowedIpChange::Add).collect(),
                ..PeerChange::of(peer.public_key.parse::<WgPublicKey>().unwrap())
            }));
        }
        let uapi = machine.uapi.clone();
        let (address, prefix) = (config.overlay_ip, config.prefix_len);
        machine.node.block_on(move || async move {
            uapi.set(&changes).await.unwrap();
            add_address("wgt", address, prefix).await;
            set_up_link("wgt").await;
        });
        machine
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let uapi = self.uapi.clone();
        if let Ok(pid) = self.node.block_on(move || async move { uapi.server_pid().await }) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

#[test]
fn a_guest_keeps_its_identity_however_often_it_is_attached_and_leaves_nothing_when_it_goes() {
    isolated(|| {
        let mut node = single_with(IPV4, &["--address-rest-secs", "0"]);
        let before = node.link_names();
        let other = PrivateKey::from_random_bytes([42; 32]).public_key();
        node.request(add_peer(&other, &endpoint(7), "10.200.9.0/24"));
        let first = config(&node, "vm", Wish::to("web"));
        assert_eq!((first.overlay_ip.to_string().as_str(), first.prefix_len), ("10.200.0.2", 16));
        assert_eq!(first.peers.len(), 1, "this node: {:?}", first.peers);
        assert_eq!(first.peers[0].public_key, node.public_key().to_string());
        assert_eq!(first.peers[0].allowed_ips, IPV4.cluster);
        let key: WgPublicKey = first.public_key.parse().unwrap();
        let (peer, _) = node.peer(&key).expect("the guest is a peer of the node's device");
        assert_eq!(peer.allowed_ips, BTreeSet::from([Cidr::host(first.overlay_ip)]));
        let actions = node.actions();
        for _ in 0..3 {
            assert_eq!(config(&node, "vm", Wish::to("web")), first);
        }
        assert_eq!(node.actions(), actions, "nothing was changed");
        node.kill();
        node.start();
        assert_eq!((config(&node, "vm", Wish::to("web")), node.actions()), (first.clone(), 0.0));
        let second = config(&node, "other", Wish::to("web").global());
        assert_ne!((second.overlay_ip, &second.public_key), (first.overlay_ip, &first.public_key));
        let known: BTreeSet<&str> = second.peers.iter().map(|peer| peer.public_key.as_str()).collect();
        assert_eq!(known, BTreeSet::from([node.public_key().to_string().as_str(), &other.to_string()]));
        node.assert_no_difference();
        for id in ["vm", "vm", "other", "nobody"] {
            assert_eq!(node.request(Request::DetachContainer { handle: guest(id) }), Response::Ok);
        }
        assert!(node.peer(&key).is_none() && node.peer(&other).is_some());
        assert_eq!((node.link_names(), node.members()), (before, BTreeSet::new()));
        assert_eq!(node.total("overlayd_attachments"), 0.0);
        node.assert_no_difference();
        let again = config(&node, "vm", Wish::to("web"));
        assert_ne!(again.public_key, first.public_key, "what was detached is another one when it comes again");
    });
}

#[test]
fn a_guests_own_device_reaches_node_and_containers_and_is_reached_until_it_is_detached() {
    isolated(|| {
        need_tun();
        let mut node = single(IPV4);
        let wire = Node::new();
        node.node.wire(&wire, NODE_ON_WIRE.into(), GUEST_ON_WIRE.into(), 24);
        let told = config(&node, "vm", Wish::to("web"));
        assert_eq!(told.peers[0].endpoint, endpoint(1));
        // The machine comes with what the answer said. A namespace ends some time after its last user; a link at once.
        node.node.block_on(|| delete_link("wire"));
        drop(wire);
        let machine = Machine::new(&told);
        node.node.wire(&machine.node, NODE_ON_WIRE.into(), GUEST_ON_WIRE.into(), 24);
        node.segment("web", OverlayMode::Auto);
        let (plain, fenced) = (Container::new(), Container::new());
        node.attach(&plain, Wish::to("web"));
        node.attach(&fenced, Wish::to("web").fenced("red"));
        let _servers = [&machine.node, &plain.node(), &fenced.node(), &node.node].map(Server::start);
        let own: IpAddr = IPV4.nodes[0].parse().unwrap();
        let plain_ip = *inner(&plain, "eth0").first().unwrap();
        let fenced_ip = *inner(&fenced, "eth0").first().unwrap();
        until("the guest reaches the node", || reach_one(&machine.node, own).is_whole());
        let serves = |node: &OverlayNode, when: &str| {
            assert!(reach_one(&machine.node, plain_ip).is_whole(), "{when}");
            assert!(reach_one(&plain.node(), told.overlay_ip).is_whole(), "{when}");
            assert!(reach_one(&node.node, told.overlay_ip).is_whole(), "{when}");
            let denied = [reach_one(&machine.node, fenced_ip), reach_one(&fenced.node(), told.overlay_ip)];
            assert!(denied.iter().all(Reach::is_none), "{when}: {denied:?}");
        };
        serves(&node, "flat");
        node.kill();
        serves(&node, "without an agent");
        node.start();
        assert_eq!(node.actions(), 0.0);
        // The same guest, fenced in to the network of one container.
        assert_eq!(config(&node, "vm", Wish::to("web").fenced("red")), told);
        let inside = [reach_one(&machine.node, fenced_ip), reach_one(&fenced.node(), told.overlay_ip)];
        assert!(inside.iter().all(Reach::is_whole), "{inside:?}");
        assert!(reach_one(&machine.node, own).is_whole(), "the node is always reached");
        let outside = [reach_one(&machine.node, plain_ip), reach_one(&plain.node(), told.overlay_ip)];
        assert!(outside.iter().all(Reach::is_none), "{outside:?}");
        node.assert_no_difference();
        node.request(Request::DetachContainer { handle: guest("vm") });
        let gone = reach(&machine.node, &[own, plain_ip, fenced_ip], SILENCE);
        assert!(gone.values().all(Reach::is_none), "{gone:?}");
        node.assert_no_difference();
    });
}

#[test]
fn the_first_thing_on_a_node_may_be_a_fenced_guest_or_a_host_shared_workload() {
    isolated(|| {
        let node = single_with(IPV4, &["--address-rest-secs", "0"]);
        let empty = node.observe().objects;
        for request in [
            Wish::to("web").fenced("red").request(guest("vm")),
            Wish::to("web").request(guest("vm")),
            Wish::to("web").request(host_shared("job")),
        ] {
            let Request::AttachContainer { handle, .. } = request.clone() else { unreachable!("made as one") };
            node.request(request);
            node.assert_no_difference();
            node.request(Request::DetachContainer { handle });
            node.assert_no_difference();
            let left = node.observe().objects;
            assert_eq!(left.keys().collect::<Vec<_>>(), empty.keys().collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_host_shared_workload_has_an_address_on_the_nodes_device_until_it_is_detached() {
    isolated(|| {
        let mut node = single(IPV4);
        let before = on_device(&node);
        let address = shared_address(&node, "job", Wish::to("web"));
        assert_eq!(address.to_string(), "10.200.0.2");
        let container = Container::new();
        node.attach(&container, Wish::to("web"));
        let server = Server::start(&node.node);
        let actions = node.actions();
        assert_eq!(shared_address(&node, "job", Wish::to("web")), address);
        assert_eq!(node.actions(), actions);
        assert!(reach_one(&container.node(), address).is_whole());
        node.kill();
        assert!(reach_one(&container.node(), address).is_whole(), "without an agent");
        node.start();
        assert_eq!((shared_address(&node, "job", Wish::to("web")), node.actions()), (address, 0.0));
        let other = shared_address(&node, "other", Wish::to("api"));
        assert_ne!(other, address);
        let with_both: BTreeSet<String> =
            before.iter().cloned().chain([address, other].map(|ip| format!("{ip}/32"))).collect();
        assert_eq!(on_device(&node), with_both);
        let refused = node.refused(Wish::to("web").fenced("red").request(host_shared("third")));
        assert!(refused.contains("cannot be fenced"), "{refused}");
        assert_eq!(on_device(&node), with_both, "nothing of the refused one");
        node.assert_no_difference();
        for id in ["job", "other", "job", "nobody"] {
            assert_eq!(node.request(Request::DetachContainer { handle: host_shared(id) }), Response::Ok);
        }
        assert_eq!(on_device(&node), before);
        assert!(!reach_one(&container.node(), address).is_whole());
        drop(server);
        node.assert_no_difference();
    });
}
