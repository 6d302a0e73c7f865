//! What Linux does along with a change, each rule with the story of `fixtures/scripts` that shows it on a real kernel.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{
    ids::IfName,
    object::{InsideSpec, Key, LinkKind, MemberSpec, NetworkId, PeerSpec, RouteSpec, Spec},
};

/// A peer after an update: exactly the fields in which `from` and `to` differ are changed, and of the allowed IPs exactly those that
/// come or go. What the update does not name stays as it is, also where the agent's picture of it is out of date (`drift.txt`).
pub(super) fn changed_peer(is: &PeerSpec, from: &PeerSpec, to: &PeerSpec) -> PeerSpec {
    let address = |peer: &PeerSpec| peer.endpoint.map(|endpoint| endpoint.address);
    let kept = is.allowed_ips.iter().filter(|ip| !from.allowed_ips.contains(ip) || to.allowed_ips.contains(ip));
    let added = to.allowed_ips.difference(&from.allowed_ips);
    PeerSpec {
        endpoint: if address(from) == address(to) { is.endpoint } else { to.endpoint },
        keepalive: if from.keepalive == to.keepalive { is.keepalive } else { to.keepalive },
        allowed_ips: kept.chain(added).copied().collect(),
        preshared: if from.preshared == to.preshared { is.preshared } else { to.preshared },
    }
}

/// What is left of a container's side after somebody made it `to`: routes and IPv6 addresses go with the link's being up, and IPv4 routes with
/// the last IPv4 address (`inside-drift.txt`, `container-ipv6.txt`).
pub(super) fn what_is_left(is: &InsideSpec, mut to: InsideSpec) -> InsideSpec {
    if is.up && !to.up {
        to.routes.clear();
        to.addresses.retain(|address| matches!(address, IpNet::V4(_)));
    }
    if !to.addresses.iter().any(|address| matches!(address, IpNet::V4(_))) {
        to.routes.retain(|route| !route.destination.is_ipv4());
    }
    to
}

pub(super) fn is_ipv4_route(key: &Key) -> bool {
    matches!(key, Key::Route { destination, .. } if destination.is_ipv4())
}

pub(super) fn leads_through(spec: &Spec, link: &IfName) -> bool {
    matches!(spec, Spec::Route(RouteSpec::Through(name)) if name == link)
}

/// A spec as a dump would show it: a kernel does not know why an endpoint was set.
pub(super) fn without_intent(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    match &mut spec {
        Spec::Peer(peer) => {
            if let Some(endpoint) = &mut peer.endpoint {
                endpoint.pinned = false;
                endpoint.resolved = false;
            }
        }
        Spec::Device(device) => device.key.private = None,
        Spec::Link(link) => debug_assert!(!matches!(link.kind, LinkKind::Other(_)), "nothing else is ever created"),
        Spec::Address
        | Spec::Route(_)
        | Spec::Sysctl(_)
        | Spec::Inside(_)
        | Spec::Ruleset(_)
        | Spec::Member(_)
        | Spec::Guest(_)
        | Spec::File(_)
        | Spec::LinkDns(_) => {}
    }
    spec
}

/// Whether a link that goes down takes the object along: its routes (`bridge-deleted.txt`, `port-removed.txt`) and its IPv6 addresses, while
/// those of IPv4 stay (`container-ipv6.txt`).
pub(super) fn goes_down_with(link: &IfName, key: &Key, spec: &Spec) -> bool {
    leads_through(spec, link) || matches!(key, Key::Address { link: on, address: IpNet::V6(_) } if on == link)
}

/// The network that each port is in. A port is in one only: with a container's addresses in different ones it is in the lowest of those.
pub(super) fn networks_of_ports<'a>(members: impl Iterator<Item = &'a MemberSpec>) -> BTreeMap<&'a IfName, NetworkId> {
    let mut networks = BTreeMap::new();
    for member in members {
        let Some(network) = member.network else { continue };
        for port in &member.ports {
            let lowest = networks.entry(port).or_insert(network);
            *lowest = network.min(*lowest);
        }
    }
    networks
}

/// How a look reads a member: one whose network is not that of its ports has elements that do not fit together (`fences-refuse.txt`).
pub(super) fn read_behind(networks: &BTreeMap<&IfName, NetworkId>, member: &MemberSpec) -> MemberSpec {
    let is_torn = member.ports.iter().any(|port| networks.get(port).copied() != member.network);
    MemberSpec { ports: member.ports.clone(), network: if is_torn { Some(NetworkId::TORN) } else { member.network } }
}

/// A member of the firewall that was there as `from`, has gone without anybody knowing, and is changed to `to`; and whether something of its
/// port is then there without an address (`firewall-member.txt`).
///
/// A change is written as the elements that come and go. When one is to go that is not there, the whole of it fails, and is done again after a
/// look. When some only come, they come, and the member is there in part until the next look.
pub(super) fn changed_blindly(from: &MemberSpec, to: &MemberSpec) -> (Option<MemberSpec>, bool) {
    let same_network = from.network == to.network;
    if !from.ports.is_subset(&to.ports) || (from.network.is_some() && !same_network) {
        return (Some(to.clone()), false);
    }
    let ports: BTreeSet<IfName> = to.ports.difference(&from.ports).cloned().collect();
    let network = match to.network {
        Some(_) if same_network => (!ports.is_empty()).then_some(NetworkId::TORN),
        network => network,
    };
    let torn = !same_network && !from.ports.is_empty();
    let is_there = !ports.is_empty() || network.is_some();
    (is_there.then_some(MemberSpec { ports, network }), torn)
}
