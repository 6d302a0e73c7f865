//! Ways of meddling with an overlay, on a node where much is not ours.

use nix::sys::signal::{Signal, kill};
use overlayd::{
    action::Action,
    ids::{Cidr, IfName, WgPublicKey},
    object::{DeviceSpec, Key, KeyPair, LinkKind, LinkSpec, Mark, PeerSpec, RouteSpec, Spec},
    platform::linux::{
        DataPlane,
        uapi::{PeerChange, PresharedKey, SecretChange, UapiChange},
    },
    secret::PrivateKey,
};
use rtnetlink::{LinkBridge, LinkUnspec, RouteMessageBuilder, packet_route::route::RouteProtocol};

use super::TALK;
use crate::{
    lab::{add_address, delete_link, set_mtu},
    overlay_node::{IPV4, OverlayNode, Pair, pair, until},
    overlay_ping::first_reply,
};

/// Two nodes, and much on the first that is not ours.
pub struct Scene {
    pub pair: Pair,
    pub peer: WgPublicKey,
    pub decoy: Mark,
}

impl Scene {
    pub fn new(resync_secs: u32) -> Self {
        let mut pair = pair(IPV4);
        if resync_secs != 3600 {
            pair.a.kill();
            pair.a.flags = vec![format!("--resync-secs={resync_secs}")];
            pair.a.start();
        }
        first_reply(&pair.a.node, pair.far(), TALK).unwrap();
        let peer = pair.b.public_key();
        let scene = Self { pair, peer, decoy: Mark::of_instance("/somebody/else") };
        scene.place_decoys();
        scene.a().resync();
        scene
    }

    pub fn a(&self) -> &OverlayNode {
        &self.pair.a
    }

    pub fn device(&self) -> IfName {
        self.pair.device.clone()
    }

    fn place_decoys(&self) {
        self.a().netlink(|handle| async move {
            handle.link().add(LinkBridge::new("stranger0").up().build()).execute().await.unwrap();
            let wire = nix::net::if_::if_nametoindex("wire").unwrap();
            let routes = [
                ([10, 79, 0, 0], 16, 4_u8, 20_u32),
                // Our protocol number and our cluster, but no metric of ours.
                ([10, 200, 0, 0], 16, 157, 0x7000_0000),
                ([10, 200, 0, 0], 16, 4, 0x7100_0000),
            ];
            for (destination, prefix, protocol, metric) in routes {
                let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                    .destination_prefix(destination.into(), prefix)
                    .output_interface(wire)
                    .protocol(RouteProtocol::from(protocol))
                    .priority(metric)
                    .build();
                handle.route().add(route).execute().await.unwrap();
            }
        });
        self.a().node.block_on(|| async {
            add_address("stranger0", [10, 77, 0, 1].into(), 24).await;
            add_address("wire", [10, 78, 0, 1].into(), 24).await;
        });
        self.place_another_instance();
    }

    /// A WireGuard device of another instance, with a peer.
    fn place_another_instance(&self) {
        let link: IfName = "zl-decoy".parse().unwrap();
        let spec = LinkSpec::up(LinkKind::WireGuard, 1400);
        let none = DeviceSpec { key: KeyPair::from_public(None), listen_port: 0, fwmark: 0 };
        let key = KeyPair::from_private(PrivateKey::from_random_bytes([77; 32]));
        let device = DeviceSpec { key, listen_port: 51777, fwmark: 0 };
        let run = |actions| self.a().execute_as(self.decoy, actions).into_iter().for_each(|outcome| outcome.unwrap());
        run(vec![create(Key::Link(link.clone()), Spec::Link(spec))]);
        if self.a().plane(&self.device()) == DataPlane::Userspace {
            // The backend would start the binary that it is part of, which is this test's.
            self.a().start_device(&link);
        }
        run(vec![
            Action::Update { key: Key::Device(link.clone()), from: Spec::Device(none), to: Spec::Device(device) },
            create(Key::Address { link: link.clone(), address: "10.88.0.1/24".parse().unwrap() }, Spec::Address),
            create(peer_key(&link, 88), Spec::Peer(peer_spec("10.88.1.0/24"))),
        ]);
    }

    pub fn dump(&self) -> Vec<String> {
        self.a().dump(&[self.a().mark(), self.decoy])
    }

    fn route_key(&self) -> Key {
        Key::Route { destination: IPV4.cluster.parse().unwrap(), metric: self.a().mark().route_metric() }
    }

    fn fallback_key(&self) -> Key {
        Key::Route { destination: IPV4.cluster.parse().unwrap(), metric: self.a().mark().fallback_metric() }
    }

    pub fn address_key(&self, address: &str) -> Key {
        Key::Address { link: self.device(), address: address.parse().unwrap() }
    }

    fn ours(&self) -> Key {
        Key::Peer { device: self.device(), public_key: self.peer }
    }

    fn change_peer(&self, change: impl FnOnce(&mut PeerSpec)) {
        let from = self.a().peer(&self.peer).unwrap().0;
        let mut to = from.clone();
        change(&mut to);
        self.execute(Action::Update { key: self.ours(), from: Spec::Peer(from), to: Spec::Peer(to) });
    }

    fn execute(&self, action: Action) {
        self.a().execute(vec![action]).remove(0).unwrap();
    }

    fn delete(&self, key: Key, was: Spec) {
        self.execute(Action::Delete { key, was });
    }
}

fn create(key: Key, spec: Spec) -> Action {
    Action::Create { key, spec }
}

fn peer_key(device: &IfName, number: u8) -> Key {
    Key::Peer { device: device.clone(), public_key: WgPublicKey::from_bytes([number; 32]) }
}

fn peer_spec(network: &str) -> PeerSpec {
    PeerSpec { allowed_ips: [network.parse::<Cidr>().unwrap()].into(), ..PeerSpec::default() }
}

/// One way of meddling.
pub struct Meddling {
    pub what: &'static str,
    /// Answers false when it cannot be done on this data plane.
    pub act: fn(&Scene) -> bool,
    /// How the lines of the diff begin, and what each contains.
    pub lines: &'static [(&'static str, &'static str)],
    /// Kind and cause of what is counted.
    pub drift: &'static [(&'static str, &'static str)],
    /// The kernel tells of it.
    pub hinted: bool,
}

pub fn remove_address(scene: &Scene) -> bool {
    scene.a().remove_address(scene.device().as_str(), [10, 200, 0, 1].into());
    true
}

pub fn remove_route(scene: &Scene) -> bool {
    scene.delete(scene.route_key(), Spec::Route(RouteSpec::Through(scene.device())));
    true
}

pub fn remove_peer(scene: &Scene) -> bool {
    scene.delete(scene.ours(), Spec::Peer(PeerSpec::default()));
    true
}

fn remove_fallback(scene: &Scene) -> bool {
    scene.delete(scene.fallback_key(), Spec::Route(RouteSpec::Unreachable));
    true
}

fn set_down(scene: &Scene) -> bool {
    let name = scene.device().to_string();
    scene.a().netlink(|handle| async move {
        let index = nix::net::if_::if_nametoindex(name.as_str()).unwrap();
        handle.link().change(LinkUnspec::new_with_index(index).down().build()).execute().await.unwrap();
    });
    true
}

fn change_mtu(scene: &Scene) -> bool {
    let name = scene.device().to_string();
    scene.a().node.block_on(|| async move { set_mtu(&name, 1300).await });
    true
}

fn change_sysctl(scene: &Scene) -> bool {
    let path = format!("/proc/sys/net/ipv4/conf/{}/rp_filter", scene.device());
    scene.a().node.run(move || std::fs::write(path, "1\n")).unwrap();
    true
}

fn add_an_address(scene: &Scene) -> bool {
    scene.execute(create(scene.address_key("10.200.0.99/16"), Spec::Address));
    true
}

fn add_a_peer(scene: &Scene) -> bool {
    scene.execute(create(peer_key(&scene.device(), 99), Spec::Peer(peer_spec("10.200.99.0/24"))));
    true
}

fn remove_an_allowed_ip(scene: &Scene) -> bool {
    scene.change_peer(|peer| peer.allowed_ips.clear());
    true
}

fn change_keepalive(scene: &Scene) -> bool {
    scene.change_peer(|peer| peer.keepalive = 17);
    true
}

fn change_device(scene: &Scene, change: impl FnOnce(&mut DeviceSpec)) {
    let key = Key::Device(scene.device());
    let Spec::Device(from) = scene.a().observe().objects[&key].spec.clone() else { panic!() };
    let mut to = from.clone();
    change(&mut to);
    scene.execute(Action::Update { key, from: Spec::Device(from), to: Spec::Device(to) });
}

fn change_port(scene: &Scene) -> bool {
    change_device(scene, |device| device.listen_port = 51999);
    true
}

fn change_key(scene: &Scene) -> bool {
    change_device(scene, |device| device.key = KeyPair::from_private(PrivateKey::from_random_bytes([66; 32])));
    true
}

fn change_fwmark(scene: &Scene) -> bool {
    change_device(scene, |device| device.fwmark = 5);
    true
}

fn take_the_allowed_ip(scene: &Scene) -> bool {
    let thief = peer_key(&scene.device(), 98);
    scene.execute(create(thief, Spec::Peer(peer_spec(IPV4.slices[1]))));
    true
}

fn set_preshared_key(scene: &Scene) -> bool {
    match scene.a().plane(&scene.device()) {
        DataPlane::Userspace => {
            let change = PeerChange {
                preshared_key: Some(SecretChange::Set(PresharedKey::from_bytes([5; 32]))),
                update_only: true,
                ..PeerChange::of(scene.peer)
            };
            scene.a().uapi(&scene.device(), vec![UapiChange::Peer(change)]);
            true
        }
        // Neither overlayd nor the libraries at hand set one: the system's own tool has to.
        DataPlane::Kernel => {
            std::fs::write("/run/psk", "BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\n").unwrap();
            let (device, peer) = (scene.device().to_string(), scene.peer.to_string());
            let set = scene.a().node.run(move || {
                std::process::Command::new("wg")
                    .args(["set", &device, "peer", &peer, "preshared-key", "/run/psk"])
                    .status()
            });
            set.is_ok_and(|status| status.success())
        }
    }
}

fn delete_the_link(scene: &Scene) -> bool {
    let name = scene.device().to_string();
    scene.a().node.block_on(|| async move { delete_link(&name).await });
    true
}

fn kill_the_device_process(scene: &Scene) -> bool {
    let Some(pid) = scene.a().device_process(&scene.device()) else {
        return false;
    };
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("nobody serves the device", || scene.a().device_process(&scene.device()).is_none());
    true
}

pub const MISSING: &str = "missing, wanted by ";

pub const MEDDLINGS: [Meddling; 18] = [
    Meddling {
        what: "private key changed",
        act: change_key,
        lines: &[("~ device/", "public_key EyxEK+AQ+9V+cmAzKKp25x/MwVA6riGTJ9FNnJmT9HI= -> ")],
        drift: &[("device", "changed")],
        hinted: false,
    },
    Meddling {
        what: "fwmark changed",
        act: change_fwmark,
        lines: &[("~ device/", "fwmark 5 -> 0")],
        drift: &[("device", "changed")],
        hinted: false,
    },
    Meddling {
        what: "allowed IP taken by another peer",
        act: take_the_allowed_ip,
        lines: &[("~ peer/", "allowed_ips none -> 10.200.1.0/24"), ("- peer/", "ours, but not in the document")],
        drift: &[("peer", "changed"), ("peer", "extra")],
        hinted: false,
    },
    Meddling {
        what: "address removed",
        act: remove_address,
        // With a link's last IPv4 address the kernel removes the routes through it.
        lines: &[("+ address/", MISSING), ("+ route/", MISSING)],
        drift: &[("address", "missing"), ("route", "missing")],
        hinted: true,
    },
    Meddling {
        what: "route removed",
        act: remove_route,
        lines: &[("+ route/", MISSING)],
        drift: &[("route", "missing")],
        hinted: true,
    },
    Meddling {
        what: "peer removed",
        act: remove_peer,
        lines: &[("+ peer/", MISSING)],
        drift: &[("peer", "missing")],
        hinted: false,
    },
    Meddling {
        what: "unreachable route removed",
        act: remove_fallback,
        lines: &[("+ route/", "unreachable")],
        drift: &[("route", "missing")],
        hinted: true,
    },
    Meddling {
        what: "device set down",
        act: set_down,
        lines: &[("~ link/", "up false -> true"), ("+ route/", MISSING)],
        drift: &[("link", "changed"), ("route", "missing")],
        hinted: true,
    },
    Meddling {
        what: "MTU changed",
        act: change_mtu,
        lines: &[("~ link/", "mtu 1300 -> 1420")],
        drift: &[("link", "changed")],
        hinted: true,
    },
    Meddling {
        what: "sysctl changed",
        act: change_sysctl,
        lines: &[("~ sysctl/", "value 1 -> 2")],
        drift: &[("sysctl", "changed")],
        hinted: true,
    },
    Meddling {
        what: "extra address of ours",
        act: add_an_address,
        lines: &[("- address/", "ours, but not in the document")],
        drift: &[("address", "extra")],
        hinted: true,
    },
    Meddling {
        what: "extra peer",
        act: add_a_peer,
        lines: &[("- peer/", "ours, but not in the document")],
        drift: &[("peer", "extra")],
        hinted: false,
    },
    Meddling {
        what: "allowed IP removed",
        act: remove_an_allowed_ip,
        lines: &[("~ peer/", "allowed_ips none -> 10.200.1.0/24")],
        drift: &[("peer", "changed")],
        hinted: false,
    },
    Meddling {
        what: "keepalive changed",
        act: change_keepalive,
        lines: &[("~ peer/", "keepalive 17 -> 0")],
        drift: &[("peer", "changed")],
        hinted: false,
    },
    Meddling {
        what: "listen port changed",
        act: change_port,
        lines: &[("~ device/", "listen_port 51999 -> 51820")],
        drift: &[("device", "changed")],
        hinted: false,
    },
    Meddling {
        what: "preshared key set",
        act: set_preshared_key,
        lines: &[("~ peer/", "preshared_key set -> none")],
        drift: &[("peer", "changed")],
        hinted: false,
    },
    Meddling {
        what: "device process killed",
        act: kill_the_device_process,
        lines: &[("+ device/", MISSING), ("+ peer/", MISSING)],
        drift: &[("device", "missing"), ("peer", "missing")],
        hinted: false,
    },
    Meddling {
        what: "link deleted",
        act: delete_the_link,
        lines: &[
            ("+ link/", MISSING),
            ("+ sysctl/", MISSING),
            ("+ device/", MISSING),
            ("+ address/", MISSING),
            ("+ peer/", MISSING),
            ("+ route/", MISSING),
        ],
        drift: &[
            ("link", "missing"),
            ("device", "missing"),
            ("address", "missing"),
            ("peer", "missing"),
            ("route", "missing"),
        ],
        hinted: true,
    },
];
