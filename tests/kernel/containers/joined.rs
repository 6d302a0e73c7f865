//! Containers with a second leg: each of their addresses answers whoever asks, by whichever leg the answer leaves.

use std::{collections::BTreeMap, net::IpAddr};

use overlayd::wire::OverlayMode;

use super::scene::{DUAL, Wish, inner, pair_with, single};
use crate::{
    container::Container,
    lab::isolated,
    overlay_node::{Pair, until},
    probe::{Reach, SILENCE, Server, reach},
};

/// A container and its name in what a test says.
struct Resident {
    name: &'static str,
    container: Container,
}

impl Resident {
    fn new(name: &'static str, node: &crate::overlay_node::OverlayNode, wish: Wish<'_>) -> Self {
        let container = Container::new();
        node.attach(&container, wish);
        Self { name, container }
    }

    fn targets(&self) -> Vec<IpAddr> {
        ["eth0", "eth1"].into_iter().flat_map(|link| inner(&self.container, link)).collect()
    }
}

/// Who could not reach whom, of those that `may` reach each other; and who could, of the others.
fn mismatches(residents: &[Resident], may: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for from in residents {
        let others = residents.iter().filter(|to| to.name != from.name);
        let targets: BTreeMap<IpAddr, &str> =
            others.flat_map(|to| to.targets().into_iter().map(|address| (address, to.name))).collect();
        let addresses: Vec<IpAddr> = targets.keys().copied().collect();
        for (address, reached) in reach(&from.container.node(), &addresses, SILENCE) {
            let to = targets[&address];
            let should = may(from.name, to);
            if !(if should { reached.is_whole() } else { reached.is_none() }) {
                wrong.push(format!("{} -> {to} {address}: {reached:?}, should pass: {should}", from.name));
            }
        }
    }
    wrong
}

fn until_tunnels_carry(pair: &Pair) {
    until("the other node is reached", || reach(&pair.a.node, &[pair.far()], SILENCE).values().all(|seen| seen.ping));
}

#[test]
fn every_address_of_a_container_that_joins_the_slice_is_reached_from_other_services_and_the_other_node() {
    isolated(|| {
        let (pair, _) = pair_with(DUAL, &[("web", OverlayMode::Auto), ("api", OverlayMode::Auto)]);
        until_tunnels_carry(&pair);
        let residents = [
            Resident::new("joined web", &pair.a, Wish::to("web").global()),
            Resident::new("plain web", &pair.a, Wish::to("web")),
            Resident::new("joined api", &pair.a, Wish::to("api").global()),
            Resident::new("plain api", &pair.a, Wish::to("api")),
            Resident::new("far joined web", &pair.b, Wish::to("web").global()),
            Resident::new("far plain api", &pair.b, Wish::to("api")),
        ];
        let _servers: Vec<Server> = residents.iter().map(|one| Server::start(&one.container.node())).collect();
        let wrong = mismatches(&residents, |_, _| true);
        assert!(wrong.is_empty(), "{wrong:#?}");
        for node in [&pair.a, &pair.b] {
            let own: Vec<IpAddr> = residents[..4].iter().flat_map(Resident::targets).collect();
            let reached = reach(&node.node, &own, SILENCE);
            assert!(reached.values().all(Reach::is_whole), "from a node: {reached:?}");
            node.assert_no_difference();
        }
    });
}

#[test]
fn two_legs_lead_no_member_out_of_its_network() {
    isolated(|| {
        let (pair, _) = pair_with(DUAL, &[("web", OverlayMode::Auto), ("api", OverlayMode::Auto)]);
        until_tunnels_carry(&pair);
        let residents = [
            Resident::new("red 1", &pair.a, Wish::to("web").fenced("red").global()),
            Resident::new("red 2", &pair.a, Wish::to("api").fenced("red").global()),
            Resident::new("red 3", &pair.a, Wish::to("api").fenced("red")),
            Resident::new("green", &pair.a, Wish::to("web").fenced("green").global()),
            Resident::new("flat", &pair.a, Wish::to("web").global()),
            Resident::new("far red", &pair.b, Wish::to("web").fenced("red").global()),
            Resident::new("far flat", &pair.b, Wish::to("web")),
        ];
        let _servers: Vec<Server> = residents.iter().map(|one| Server::start(&one.container.node())).collect();
        let is_red = |name: &str| name.starts_with("red");
        let is_flat = |name: &str| name.ends_with("flat");
        let wrong = mismatches(&residents, |from, to| is_red(from) && is_red(to) || is_flat(from) && is_flat(to));
        assert!(wrong.is_empty(), "{wrong:#?}");
        pair.a.assert_no_difference();
    });
}

#[test]
fn a_container_that_began_with_a_strict_reverse_path_filter_is_reached_at_both_its_addresses_too() {
    isolated(|| {
        let node = single(DUAL);
        let strict = Container::new();
        strict.node().run(|| {
            for of in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter"), "1\n").unwrap();
            }
        });
        node.attach(&strict, Wish::to("web").global());
        let residents = [
            Resident { name: "strict web", container: strict },
            Resident::new("plain web", &node, Wish::to("web")),
            Resident::new("plain api", &node, Wish::to("api")),
            Resident::new("joined api", &node, Wish::to("api").global()),
        ];
        let _servers: Vec<Server> = residents.iter().map(|one| Server::start(&one.container.node())).collect();
        let wrong = mismatches(&residents, |_, _| true);
        assert!(wrong.is_empty(), "{wrong:#?}");
        node.assert_no_difference();
    });
}
