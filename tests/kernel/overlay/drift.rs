//! Somebody changes what is ours: it is named, mended, counted, and nothing else is touched.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
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
use rtnetlink::{
    LinkBridge, LinkUnspec, RouteMessageBuilder,
    packet_route::{link::LinkAttribute, route::RouteProtocol},
};

use super::TALK;
use crate::{
    lab::{add_address, delete_link, isolated, set_mtu},
    overlay_node::{IPV4, IPV6, OverlayNode, Pair, pair, until},
    overlay_ping::first_reply,
};

/// Two nodes, and much on the first that is not ours.
struct Scene {
    pair: Pair,
    peer: WgPublicKey,
    decoy: Mark,
}

impl Scene {
    fn new(resync_secs: u32) -> Self {
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

    fn a(&self) -> &OverlayNode {
        &self.pair.a
    }

    fn device(&self) -> IfName {
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
        let spec = LinkSpec { kind: LinkKind::WireGuard, mtu: 1400, up: true };
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

    fn dump(&self) -> Vec<String> {
        self.a().dump(&[self.a().mark(), self.decoy])
    }

    fn route_key(&self) -> Key {
        Key::Route { destination: IPV4.cluster.parse().unwrap(), metric: self.a().mark().route_metric() }
    }

    fn fallback_key(&self) -> Key {
        Key::Route { destination: IPV4.cluster.parse().unwrap(), metric: self.a().mark().fallback_metric() }
    }

    fn address_key(&self, address: &str) -> Key {
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
struct Meddling {
    what: &'static str,
    /// Answers false when it cannot be done on this data plane.
    act: fn(&Scene) -> bool,
    /// How the lines of the diff begin, and what each contains.
    lines: &'static [(&'static str, &'static str)],
    /// Kind and cause of what is counted.
    drift: &'static [(&'static str, &'static str)],
    /// The kernel tells of it.
    hinted: bool,
}

fn remove_address(scene: &Scene) -> bool {
    scene.a().remove_address(scene.device().as_str(), [10, 200, 0, 1].into());
    true
}

fn remove_route(scene: &Scene) -> bool {
    scene.delete(scene.route_key(), Spec::Route(RouteSpec::Through(scene.device())));
    true
}

fn remove_peer(scene: &Scene) -> bool {
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

fn change_port(scene: &Scene) -> bool {
    let key = Key::Device(scene.device());
    let Spec::Device(from) = scene.a().observe().objects[&key].spec.clone() else { panic!() };
    let to = DeviceSpec { listen_port: 51999, ..from.clone() };
    scene.execute(Action::Update { key, from: Spec::Device(from), to: Spec::Device(to) });
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

const MISSING: &str = "missing, wanted by ";

const MEDDLINGS: [Meddling; 15] = [
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
        hinted: false,
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

fn drift_of(node: &OverlayNode) -> BTreeMap<String, f64> {
    node.metric("overlayd_drift_total")
}

/// By how much each series grew.
fn growth(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let grown = after.iter().map(|(labels, value)| (labels.clone(), value - before.get(labels).unwrap_or(&0.0)));
    grown.filter(|(_, by)| *by != 0.0).collect()
}

fn assert_named(what: &str, lines: &[String], wanted: &[(&str, &str)]) {
    assert_eq!(lines.len(), wanted.len(), "{what}: {lines:#?}");
    for (begin, content) in wanted {
        let names = |line: &&String| line.starts_with(begin) && line.contains(content);
        assert!(lines.iter().any(|line| names(&line)), "{what}: {begin}…{content} in {lines:#?}");
    }
}

fn assert_counted(what: &str, grown: &BTreeMap<String, f64>, wanted: &[(&str, &str)]) {
    for (kind, cause) in wanted {
        let label = format!("{{cause=\"{cause}\",kind=\"{kind}\"}}");
        assert_eq!(grown.get(&label), Some(&1.0), "{what}: {label} in {grown:?}");
    }
}

fn assert_same(what: &str, before: &[String], after: &[String]) {
    let gone: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
    let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
    assert!(gone.is_empty() && new.is_empty(), "{what}: gone {gone:#?}\nnew {new:#?}");
}

/// The lines that are not about the session of our peer: it is made anew with its peer.
fn without_session(lines: Vec<String>) -> Vec<String> {
    let about_session = |line: &String| line.starts_with("peer/zl-e2e");
    lines.into_iter().filter(|line| !about_session(line)).collect()
}

#[test]
fn every_drift_is_named_with_the_agent_stopped_and_mended_when_it_goes_on() {
    isolated(|| {
        let scene = Scene::new(3600);
        let (a, stage) = (scene.a(), scene.pair.stage());
        for meddling in &MEDDLINGS {
            let what = meddling.what;
            assert_eq!(a.diff(), (vec![], 0), "before: {what}");
            let (before, counted) = (scene.dump(), drift_of(a));
            let decoy = a.counters(scene.decoy);
            a.signal(Signal::SIGSTOP);
            if !(meddling.act)(&scene) {
                a.signal(Signal::SIGCONT);
                println!("MEASURED: {stage}: {what}: not possible on this data plane");
                continue;
            }
            let (lines, status) = a.diff();
            assert_eq!(status, 2, "{what}");
            assert_named(what, &lines, meddling.lines);
            let begin = Instant::now();
            a.signal(Signal::SIGCONT);
            until(&format!("{what} is counted: {lines:?}"), || {
                growth(&counted, &drift_of(a)).len() >= meddling.drift.len()
            });
            let took = begin.elapsed();
            a.resync();
            let grown = growth(&counted, &drift_of(a));
            assert_counted(what, &grown, meddling.drift);
            assert_eq!(a.diff(), (vec![], 0), "after: {what}");
            assert_same(what, &without_session(before), &without_session(scene.dump()));
            for (peer, (received, sent)) in a.counters(scene.decoy) {
                let was = decoy[&peer];
                assert!(received >= was.0 && sent >= was.1, "{what}: {peer} was reset");
            }
            println!(
                "MEASURED: {stage}: {what}: mended {took:?} after SIGCONT; counted {grown:?}; {}",
                lines.join(" | ")
            );
            assert!(first_reply(&a.node, scene.pair.far(), TALK).is_some(), "traffic after {what}");
        }
    });
}

#[test]
fn three_drifts_at_once_are_named_each_in_one_line_and_mended() {
    isolated(|| {
        let scene = Scene::new(3600);
        let a = scene.a();
        let (before, counted) = (scene.dump(), drift_of(a));
        a.signal(Signal::SIGSTOP);
        assert!(remove_address(&scene) && remove_route(&scene) && remove_peer(&scene));
        let (lines, _) = a.diff();
        assert_named("three", &lines, &[("+ address/", MISSING), ("+ route/", MISSING), ("+ peer/", MISSING)]);
        let begin = Instant::now();
        a.signal(Signal::SIGCONT);
        until("all three are counted", || drift_of(a).values().sum::<f64>() - counted.values().sum::<f64>() >= 3.0);
        let took = begin.elapsed();
        a.resync();
        let grown = growth(&counted, &drift_of(a));
        assert_counted("three", &grown, &[("address", "missing"), ("route", "missing"), ("peer", "missing")]);
        assert_same("three", &without_session(before), &without_session(scene.dump()));
        a.assert_no_difference();
        println!(
            "MEASURED: {}: address, route and peer removed: mended {took:?} after SIGCONT; counted {grown:?}",
            scene.pair.stage()
        );
        for line in lines {
            println!("MEASURED: diff: {line}");
        }
    });
}

#[test]
fn the_live_agent_mends_by_itself_what_the_kernel_tells_of_and_soon_what_it_does_not() {
    isolated(|| {
        for (resync_secs, hinted) in [(3600, true), (1, false)] {
            let scene = Scene::new(resync_secs);
            let (a, stage) = (scene.a(), scene.pair.stage());
            for meddling in MEDDLINGS.iter().filter(|meddling| meddling.hinted == hinted) {
                let (before, counted, what) = (scene.dump(), drift_of(a), meddling.what);
                if !(meddling.act)(&scene) {
                    continue;
                }
                let begin = Instant::now();
                until(&format!("{what} is counted"), || growth(&counted, &drift_of(a)).len() >= meddling.drift.len());
                let took = begin.elapsed();
                until(&format!("nothing differs after {what}"), || a.diff() == (vec![], 0));
                assert_counted(what, &growth(&counted, &drift_of(a)), meddling.drift);
                assert_same(what, &without_session(before), &without_session(scene.dump()));
                let how = if hinted { "told by the kernel" } else { "found by a look every second" };
                println!("MEASURED: {stage}: live, {what}: mended after {took:?} ({how})");
                assert!(first_reply(&a.node, scene.pair.far(), TALK).is_some(), "traffic after {what}");
            }
        }
    });
}

/// Removes the device's address and waits until it is there again.
fn remove_and_wait(node: &OverlayNode, link: &str, address: IpAddr) -> Duration {
    let name = link.to_owned();
    node.remove_address(link, address);
    let begin = Instant::now();
    node.netlink(move |handle| async move {
        let index = nix::net::if_::if_nametoindex(name.as_str()).unwrap();
        loop {
            let mut addresses =
                handle.address().get().set_link_index_filter(index).set_address_filter(address).execute();
            if addresses.try_next().await.unwrap().is_some() {
                return begin.elapsed();
            }
            assert!(begin.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    })
}

#[test]
fn a_removed_address_is_back_within_milliseconds() {
    isolated(|| {
        let scene = Scene::new(3600);
        let device = scene.device().to_string();
        let mut times: Vec<Duration> =
            (0..30).map(|_| remove_and_wait(scene.a(), &device, [10, 200, 0, 1].into())).collect();
        times.sort();
        println!(
            "MEASURED: {}: address removed and back, 30 times: p50 {:?}, p99 {:?} (20 ms of it wait for the end of a burst)",
            scene.pair.stage(),
            times[15],
            times[29]
        );
        until("all are counted", || drift_of(scene.a()).values().sum::<f64>() >= 30.0);
        scene.a().assert_no_difference();
    });
}

#[test]
fn a_strangers_objects_on_our_link_stay() {
    isolated(|| {
        let scene = Scene::new(3600);
        let (a, name) = (scene.a(), scene.device().to_string());
        a.node.block_on({
            let name = name.clone();
            || async move { add_address(&name, [10, 99, 0, 1].into(), 24).await }
        });
        let key = scene.address_key("10.99.0.1/24");
        a.resync();
        assert!(a.observe().objects.contains_key(&key));
        a.assert_no_difference();
        assert!(remove_address(&scene));
        until("ours is back", || a.diff() == (vec![], 0));
        assert!(a.observe().objects.contains_key(&key));
        let alias = a.netlink(|handle| async move {
            let mut found = handle.link().get().match_name(name).execute();
            found.try_next().await.unwrap().unwrap().attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfAlias(alias) => Some(alias),
                _ => None,
            })
        });
        println!("MEASURED: alias of our link for people: {alias:?}");
    });
}

#[test]
fn an_ipv6_overlay_is_mended_like_an_ipv4_one() {
    isolated(|| {
        let pair = pair(IPV6);
        let (a, device, stage) = (&pair.a, pair.device.to_string(), pair.stage());
        first_reply(&a.node, pair.far(), TALK).unwrap();
        let near = pair.near();
        let remove_address = || a.remove_address(&device, near);
        let fallback = Key::Route { destination: IPV6.cluster.parse().unwrap(), metric: a.mark().fallback_metric() };
        let through = Key::Route { destination: IPV6.cluster.parse().unwrap(), metric: a.mark().route_metric() };
        let delete = |key: &Key, was: RouteSpec| {
            a.execute(vec![Action::Delete { key: key.clone(), was: Spec::Route(was) }]).remove(0).unwrap();
        };
        let set_down = || {
            let name = device.clone();
            a.netlink(|handle| async move {
                let index = nix::net::if_::if_nametoindex(name.as_str()).unwrap();
                handle.link().change(LinkUnspec::new_with_index(index).down().build()).execute().await.unwrap();
            });
        };
        let delete_link = || {
            let name = device.clone();
            a.node.block_on(|| async move { delete_link(&name).await });
        };
        let acts: [(&str, &dyn Fn()); 5] = [
            ("address removed", &remove_address),
            ("unreachable route removed", &|| delete(&fallback, RouteSpec::Unreachable)),
            ("route removed", &|| delete(&through, RouteSpec::Through(pair.device.clone()))),
            ("device set down", &set_down),
            ("link deleted", &delete_link),
        ];
        for (what, act) in acts {
            let (before, counted) = (a.dump(&[a.mark()]), drift_of(a));
            a.signal(Signal::SIGSTOP);
            act();
            let (lines, _) = a.diff();
            assert!(!lines.is_empty(), "{what}");
            let begin = Instant::now();
            a.signal(Signal::SIGCONT);
            until(&format!("{what} is mended"), || a.diff() == (vec![], 0));
            let took = begin.elapsed();
            let grown = growth(&counted, &drift_of(a));
            assert_same(what, &without_session(before), &without_session(a.dump(&[a.mark()])));
            assert!(first_reply(&a.node, pair.far(), TALK).is_some(), "traffic after {what}");
            println!(
                "MEASURED: {stage}: IPv6, {what}: mended within {took:?} of SIGCONT; {grown:?}; {}",
                lines.join(" | ")
            );
        }
    });
}
