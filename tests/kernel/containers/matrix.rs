//! Isolation as a matrix: everybody tries everybody, by TCP and by ping, and what may pass passes and nothing else does.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use overlayd::wire::OverlayMode;

use super::scene::{DUAL, Wish, inner, pair_with};
use crate::{
    container::Container,
    lab::{Node, isolated, skip_part},
    overlay_node::{OverlayNode, Pair, stage},
    overlay_ping::Pinger,
    probe::{SILENCE, Server, start_reach},
};

/// Two services on two bridges of each node.
const SERVICES: [&str; 2] = ["one", "two"];
const NETWORKS: [&str; 3] = ["red", "green", "blue"];

/// Where a packet comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    name: String,
    /// 0 or 1.
    on: usize,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Member(&'static str),
    Flat,
    Node,
    /// Of the segment of this service.
    Gateway(&'static str),
}

/// A container and the service that it is attached to.
struct Resident {
    place: Place,
    service: &'static str,
    container: Container,
}

/// What the contract says of one way. A node knows its own members only, so the same network stays closed between nodes.
fn may_pass(from: &Place, service: Option<&str>, to: &Place) -> bool {
    let same_node = from.on == to.on;
    match (&from.kind, &to.kind) {
        (Kind::Member(own), Kind::Member(other)) => own == other && same_node,
        (Kind::Member(_), Kind::Flat) | (Kind::Flat, Kind::Member(_)) => false,
        (Kind::Member(_), Kind::Node) | (Kind::Node, Kind::Member(_)) => same_node,
        (Kind::Member(_), Kind::Gateway(of)) => same_node && service == Some(of),
        (Kind::Flat | Kind::Node | Kind::Gateway(_), _) => true,
    }
}

struct Town {
    pair: Pair,
    residents: Vec<Resident>,
    /// All that can be reached, both families.
    targets: BTreeMap<IpAddr, Place>,
    _servers: Vec<Server>,
}

impl Town {
    fn new() -> Self {
        let (pair, bridges) = pair_with(DUAL, &SERVICES.map(|service| (service, OverlayMode::Auto)));
        let mut residents = Vec::new();
        let mut settle = |on: usize, service: &'static str, kind: Kind, number: usize| {
            let name = format!("{kind:?} {number} on {service} of {on}");
            let place = Place { name, on, kind };
            let container = Container::new();
            let network = match &place.kind {
                Kind::Member(network) => Some(*network),
                Kind::Flat | Kind::Node | Kind::Gateway(_) => None,
            };
            let node = if on == 0 { &pair.a } else { &pair.b };
            node.attach(&container, Wish { network, ..Wish::to(service) });
            residents.push(Resident { place, service, container });
        };
        for network in NETWORKS {
            settle(0, "one", Kind::Member(network), 1);
            settle(0, "one", Kind::Member(network), 2);
            settle(0, "two", Kind::Member(network), 3);
            settle(1, "one", Kind::Member(network), 4);
        }
        settle(0, "one", Kind::Flat, 1);
        settle(0, "two", Kind::Flat, 2);
        settle(1, "one", Kind::Flat, 3);
        let mut targets = BTreeMap::new();
        for resident in &residents {
            let addresses = inner(&resident.container, "eth0");
            assert_eq!(addresses.len(), 2, "{:?} has {addresses:?}", resident.place);
            targets.extend(addresses.into_iter().map(|address| (address, resident.place.clone())));
        }
        for (on, node) in [&pair.a, &pair.b].into_iter().enumerate() {
            let place = |name: &str, kind: Kind| Place { name: format!("{name} of {on}"), on, kind };
            let own = crate::probe::addresses(&node.node, pair.device.as_str());
            targets.extend(own.iter().map(|net| (net.addr(), place("node", Kind::Node))));
            for service in SERVICES {
                let gateways = node.gateways(&bridges[service]);
                assert_eq!(gateways.len(), 2, "{gateways:?}");
                targets.extend(gateways.iter().map(|net| (net.addr(), place(service, Kind::Gateway(service)))));
            }
        }
        let mut servers: Vec<Server> =
            residents.iter().map(|resident| Server::start(&resident.container.node())).collect();
        servers.extend([&pair.a, &pair.b].map(|node| Server::start(&node.node)));
        Self { pair, residents, targets, _servers: servers }
    }

    fn node(&self, on: usize) -> &OverlayNode {
        if on == 0 { &self.pair.a } else { &self.pair.b }
    }

    /// Everybody tries everybody. Answers how many ways were tried, allowed and denied, and those that are not as they should be.
    fn walk(&self) -> (usize, usize, Vec<String>) {
        let node_place = |on| Place { name: format!("node {on}"), on, kind: Kind::Node };
        let mut sources: Vec<(Place, Option<&str>, Node)> = self
            .residents
            .iter()
            .map(|resident| (resident.place.clone(), Some(resident.service), resident.container.node()))
            .collect();
        for on in [0, 1] {
            let namespace = self.node(on).node.twin();
            sources.push((node_place(on), None, namespace));
        }
        let (mut allowed, mut denied, mut wrong) = (0, 0, Vec::new());
        // A few at a time: two processors must answer within the silence that stands for a "no".
        for some in sources.chunks(6) {
            let running: Vec<_> = some
                .iter()
                .map(|(place, service, node)| {
                    let others: Vec<IpAddr> = self.targets_of(place).collect();
                    (place, service, start_reach(node, &others, SILENCE))
                })
                .collect();
            for (place, service, reaching) in running {
                for (address, reach) in reaching.join().unwrap() {
                    let to = &self.targets[&address];
                    let should = may_pass(place, *service, to);
                    *(if should { &mut allowed } else { &mut denied }) += 2;
                    if !(if should { reach.is_whole() } else { reach.is_none() }) {
                        wrong
                            .push(format!("{} -> {} {address}: {reach:?}, should pass: {should}", place.name, to.name));
                    }
                }
            }
        }
        (allowed, denied, wrong)
    }

    fn targets_of(&self, from: &Place) -> impl Iterator<Item = IpAddr> {
        let others = self.targets.iter().filter(move |(_, to)| to != &from);
        others.map(|(address, _)| *address)
    }

    fn member(&self, network: &str, number: usize) -> &Resident {
        let mut wanted =
            self.residents.iter().filter(|resident| matches!(resident.place.kind, Kind::Member(of) if of == network));
        wanted.nth(number).unwrap()
    }

    fn assert_matrix(&self, when: &str) {
        let begin = Instant::now();
        let (allowed, denied, wrong) = self.walk();
        println!(
            "MEASURED: {}: matrix {when}: {} checks by TCP and ping, IPv4 and IPv6 ({allowed} allowed, {denied} denied), {} mismatches, {:?}",
            stage(&self.pair.a, &self.pair.device),
            allowed + denied,
            wrong.len(),
            begin.elapsed()
        );
        assert!(wrong.is_empty(), "{when}: {wrong:#?}");
    }
}

#[test]
fn who_may_reach_whom_is_as_the_contract_says_also_after_the_agent_was_killed() {
    isolated(|| {
        let mut town = Town::new();
        town.assert_matrix("of a new node");
        town.pair.a.kill();
        town.assert_matrix("without an agent");
        town.pair.a.start();
        assert_eq!(town.pair.a.actions(), 0.0, "{:?}", town.pair.a.metric("overlayd_actions_total"));
        town.assert_matrix("after kill -9 and a start");
        town.pair.a.assert_no_difference();
        town.pair.b.assert_no_difference();
    });
}

#[test]
fn the_matrix_can_fail_because_without_the_tables_members_reach_each_other() {
    isolated(|| {
        let mut town = Town::new();
        town.pair.a.kill();
        let Some(flushed) = super::scene::nft(&town.pair.a, &["flush", "ruleset"]) else { return };
        assert!(flushed.status.success(), "{flushed:?}");
        let (allowed, denied, wrong) = town.walk();
        println!(
            "MEASURED: matrix without the tables of one node: {} checks, {} mismatches",
            allowed + denied,
            wrong.len()
        );
        assert!(wrong.len() > 100, "the lab does not connect: {wrong:#?}");
        let begin = Instant::now();
        town.pair.a.start();
        println!("MEASURED: tables back {:?} after the agent started", begin.elapsed());
        town.assert_matrix("after the tables were flushed with the agent dead");
    });
}

/// Flows for as long as a test meddles.
struct Flows {
    allowed: Vec<(String, Pinger)>,
    denied: Vec<(String, Pinger)>,
}

impl Flows {
    fn start(town: &Town) -> Self {
        let pause = Duration::from_millis(5);
        let mut flows = Self { allowed: Vec::new(), denied: Vec::new() };
        let (red1, red2, red3) = (town.member("red", 0), town.member("red", 1), town.member("red", 2));
        let (green1, green3) = (town.member("green", 0), town.member("green", 2));
        for (from, to) in [(red1, red2), (red1, red3), (red1, green1), (red1, green3)] {
            for address in inner(&to.container, "eth0") {
                let name = format!("{} -> {} {address}", from.place.name, to.place.name);
                let is_allowed = may_pass(&from.place, Some(from.service), &to.place);
                let pinger = Pinger::start(&from.container.node(), address, pause);
                if is_allowed { flows.allowed.push((name, pinger)) } else { flows.denied.push((name, pinger)) }
            }
        }
        flows
    }

    fn finish(self, when: &str) {
        let (mut sent, mut lost, mut denied, mut passed) = (0, 0, 0, 0);
        let mut wrong = Vec::new();
        for (name, pinger) in self.allowed {
            let pings = pinger.finish();
            sent += pings.sent;
            lost += pings.lost;
            if pings.lost > 0 {
                wrong.push(format!("{name}: {pings:?}"));
            }
        }
        for (name, pinger) in self.denied {
            let pings = pinger.finish();
            denied += pings.sent;
            passed += pings.sent - pings.lost;
            if pings.lost < pings.sent {
                wrong.push(format!("{name}: {pings:?}"));
            }
        }
        println!("MEASURED: {when}: allowed flows lost {lost} of {sent}, denied flows passed {passed} of {denied}");
        assert!(wrong.is_empty(), "{when}: {wrong:#?}");
        assert!(sent > 100 && denied > 100);
    }
}

#[test]
fn no_packet_is_lost_or_let_through_while_the_ruleset_is_flushed_again_and_again() {
    isolated(|| {
        let town = Town::new();
        if super::scene::nft(&town.pair.a, &["--version"]).is_none() {
            return;
        }
        let flows = Flows::start(&town);
        let (stop, flushes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let flushing = town.pair.a.node.spawn({
            let (stop, flushes) = (Arc::clone(&stop), Arc::clone(&flushes));
            move || {
                let mut failed = BTreeSet::new();
                while !stop.load(Ordering::Relaxed) {
                    let output = std::process::Command::new("nft").args(["flush", "ruleset"]).output().unwrap();
                    flushes.fetch_add(1, Ordering::Relaxed);
                    if !output.status.success() {
                        failed.insert(String::from_utf8_lossy(&output.stderr).into_owned());
                    }
                }
                failed
            }
        });
        crate::overlay_node::until("it was flushed 300 times", || flushes.load(Ordering::Relaxed) >= 300);
        stop.store(true, Ordering::Relaxed);
        let said = flushing.join().unwrap();
        let flushes = flushes.load(Ordering::Relaxed);
        flows.finish(&format!("while `nft flush ruleset` ran {flushes} times (it said {said:?})"));
        town.pair.a.assert_no_difference();
        town.assert_matrix("after the flushes");
    });
}

#[test]
fn no_packet_is_lost_or_let_through_while_the_agent_is_killed_and_started() {
    isolated(|| {
        let mut town = Town::new();
        let flows = Flows::start(&town);
        for _ in 0..10 {
            town.pair.a.kill();
            town.pair.a.start();
            assert_eq!(town.pair.a.actions(), 0.0, "{:?}", town.pair.a.metric("overlayd_actions_total"));
        }
        flows.finish("while the agent was killed and started 10 times");
    });
}

#[test]
fn a_member_that_changes_its_network_is_let_in_and_out_at_once_also_on_live_flows() {
    isolated(|| {
        let town = Town::new();
        let (red, green) = (town.member("red", 0), town.member("green", 0));
        let a = &town.pair.a;
        let to: Vec<IpAddr> = inner(&green.container, "eth0").into_iter().collect();
        let before = inner(&red.container, "eth0");
        let reach = |limit| crate::probe::reach(&red.container.node(), &to, limit);
        assert!(reach(SILENCE).values().all(crate::probe::Reach::is_none));
        a.attach(&red.container, Wish::to("one").fenced("green"));
        assert_eq!(inner(&red.container, "eth0"), before, "the addresses stay");
        let (let_in, limit) = (Instant::now(), SILENCE);
        let reached = reach(limit);
        assert!(reached.values().all(crate::probe::Reach::is_whole), "{reached:?}");
        let took = let_in.elapsed();
        // A flow that lives.
        let flow = Pinger::start(&red.container.node(), to[0], Duration::from_millis(5));
        crate::overlay_node::until("the flow flows", || crate::probe::reach_one(&red.container.node(), to[0]).ping);
        a.attach(&red.container, Wish::to("one").fenced("red"));
        let after = Pinger::start(&red.container.node(), to[0], Duration::from_millis(5));
        assert!(reach(SILENCE).values().all(crate::probe::Reach::is_none));
        let (flow, after) = (flow.finish(), after.finish());
        assert!(flow.lost < flow.sent, "{flow:?}");
        assert_eq!(after.lost, after.sent, "{after:?}");
        println!(
            "MEASURED: another network: reached {took:?} after the answer; back again: {after:?} of a flow that lived"
        );
        a.assert_no_difference();
    });
}

#[test]
fn a_member_that_takes_anothers_address_is_not_heard() {
    isolated(|| {
        let town = Town::new();
        let (red1, red2, green) = (town.member("red", 0), town.member("red", 1), town.member("green", 0));
        let mut passed = Vec::new();
        for stolen in inner(&green.container, "eth0") {
            let prefix = if stolen.is_ipv4() { 32 } else { 128 };
            red1.container.node().add_address("eth0", stolen, prefix);
            for target in [red2, green].iter().flat_map(|to| inner(&to.container, "eth0")) {
                if target.is_ipv4() == stolen.is_ipv4() && target != stolen {
                    let heard = red1.container.node().run(move || hears_udp_from(stolen, target));
                    passed.push((stolen, target, heard));
                }
            }
        }
        let heard = |container: &Container| container.node().run(received_udp);
        let counts = [heard(&red2.container), heard(&green.container)];
        println!("MEASURED: sent with a neighbour's address: {passed:?}; UDP datagrams that arrived: {counts:?}");
        assert_eq!(counts, [0, 0]);
        if town.pair.a.diff().1 != 0 {
            skip_part("the diff names what a container did inside");
        }
        drop(town);
    });
}

/// Sends datagrams from a stolen address; answers how many the kernel took.
fn hears_udp_from(source: IpAddr, target: IpAddr) -> usize {
    let Ok(socket) = std::net::UdpSocket::bind((source, 0)) else { return 0 };
    (0..20).filter(|_| socket.send_to(b"stolen", (target, 9)).is_ok()).count()
}

/// Datagrams that arrived in this namespace, with a listener or without.
fn received_udp() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let line = text.lines().filter(|line| line.starts_with("Udp:")).nth(1).unwrap();
    let figures: Vec<u64> = line.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    let six = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let six = six.lines().filter(|line| line.starts_with("Udp6InDatagrams") || line.starts_with("Udp6NoPorts"));
    let six: u64 = six.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum();
    // InDatagrams and NoPorts.
    figures[0] + figures[1] + six
}
