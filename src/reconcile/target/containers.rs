//! The attachments: a container's two veth pairs with both their sides, a guest's peer, a host-shared container's address.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    Facts, Target,
    overlay::{LINK_LOCAL_GATEWAY, filter_loosely, forward, link_local_gateway},
};
use crate::{
    desired::{AttachmentId, AttachmentRecord, Document, OverlayRecord, Place},
    ids::{Cidr, IfName, Netns},
    object::{
        InsideRoute, InsideSpec, Key, LinkKind, LinkSpec, MemberSpec, NetworkId, PeerSpec, RouteSpec, Spec, VethPeer,
    },
};

pub(super) fn lower(document: &Document, overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    for (id, attachment) in document.attachments() {
        lower_one(document, overlay, id, attachment, facts, target);
    }
}

pub(super) fn lower_one(
    document: &Document,
    overlay: &OverlayRecord,
    id: &AttachmentId,
    attachment: &AttachmentRecord,
    facts: &Facts,
    target: &mut Target,
) {
    let since = attachment.since;
    match &attachment.place {
        Place::Container { netns } => {
            let Some([service_link, global_link]) = id.links() else { return };
            lower_service_side(document, attachment, &service_link, netns, facts, target);
            if !attachment.global.is_empty() {
                lower_global_side(overlay, attachment, &global_link, netns, facts, target);
            }
            // Which leg an answer takes is for the container's routes to say, and they do not ask which one the question came by.
            let global_link = Some(global_link).filter(|_| !attachment.global.is_empty());
            let ports = [service_link].into_iter().chain(global_link).collect();
            fence(attachment, &ports, target);
        }
        Place::Guest { key } => {
            if let Some(public_key) = key.public.filter(|_| !facts.suspended) {
                let allowed_ips = attachment.addresses.iter().map(|ip| Cidr::host(*ip)).collect();
                let peer = PeerSpec { allowed_ips, ..PeerSpec::default() };
                target.want(Key::Peer { device: overlay.device_name(), public_key }, Spec::Peer(peer), since);
            }
            fence(attachment, &BTreeSet::new(), target);
        }
        Place::HostShared => {
            for ip in attachment.addresses.iter().filter(|_| !facts.suspended) {
                let key = Key::Address { link: overlay.device_name(), address: IpNet::from(*ip) };
                target.want(key, Spec::Address, since);
            }
            fence(attachment, &BTreeSet::new(), target);
        }
    }
}

/// eth0: a port of the service's bridge, and the container's way out.
fn lower_service_side(
    document: &Document,
    attachment: &AttachmentRecord,
    link: &IfName,
    netns: &Netns,
    facts: &Facts,
    target: &mut Target,
) {
    let Some(net) = document.segment_net(&attachment.service) else { return };
    let since = attachment.since;
    let peer = VethPeer { netns: netns.clone(), name: inner_name("eth0") };
    let port =
        LinkSpec { master: Some(net.bridge.clone()), peer: Some(peer), ..LinkSpec::up(LinkKind::Veth, facts.mtu) };
    target.want(Key::Link(link.clone()), Spec::Link(port), since);
    let on_link = |ip: &IpAddr| {
        let subnet = net.subnets.iter().find(|subnet| subnet.contains_address(ip))?;
        IpNet::new(*ip, subnet.prefix_len()).ok()
    };
    let routes =
        net.gateways.iter().map(|gateway| InsideRoute { destination: everywhere(gateway), via: Some(*gateway) });
    let inside = InsideSpec {
        netns: netns.clone(),
        name: inner_name("eth0"),
        mtu: facts.mtu,
        up: true,
        addresses: attachment.addresses.iter().filter_map(on_link).collect(),
        routes: routes.collect(),
    };
    target.want(Key::Inside(link.clone()), Spec::Inside(inside), since);
}

/// eth1: an address of the node's slice, reached by a route and not by a bridge, and the container's way to the rest of the overlay.
fn lower_global_side(
    overlay: &OverlayRecord,
    attachment: &AttachmentRecord,
    link: &IfName,
    netns: &Netns,
    facts: &Facts,
    target: &mut Target,
) {
    let since = attachment.since;
    let peer = VethPeer { netns: netns.clone(), name: inner_name("eth1") };
    let spec = LinkSpec { peer: Some(peer), ..LinkSpec::up(LinkKind::Veth, facts.mtu) };
    target.want(Key::Link(link.clone()), Spec::Link(spec), since);
    // What the node itself sends to a container has to come from an address that the container answers by the same way.
    for node in overlay.node_addresses() {
        target.want(Key::Address { link: link.clone(), address: IpNet::from(node.ip) }, Spec::Address, since);
    }
    let mut routes = BTreeSet::new();
    for ip in &attachment.global {
        let host = Cidr::host(*ip);
        let route = Key::Route { destination: host, metric: facts.mark.route_metric() };
        target.want(route, Spec::Route(RouteSpec::Through(link.clone())), since);
        filter_loosely(link, &host, since, target);
        forward(link, &host, facts, since, target);
        let via = match ip {
            // The host answers for every IPv4 address of its own on any link, but for an IPv6 address only where it is.
            IpAddr::V4(_) => overlay.node_addresses().iter().map(|node| node.ip).find(IpAddr::is_ipv4),
            IpAddr::V6(_) => {
                target.want(link_local_gateway(link), Spec::Address, since);
                Some(LINK_LOCAL_GATEWAY.into())
            }
        };
        if let Some(cluster) = overlay.cluster.of_family(&host) {
            routes.insert(InsideRoute { destination: *cluster, via });
        }
    }
    let inside = InsideSpec {
        netns: netns.clone(),
        name: inner_name("eth1"),
        mtu: facts.mtu,
        up: true,
        addresses: attachment.global.iter().map(|ip| IpNet::from(*ip)).collect(),
        routes,
    };
    target.want(Key::Inside(link.clone()), Spec::Inside(inside), since);
}

/// Tells the firewall who may send from these addresses, and whom they may reach.
fn fence(attachment: &AttachmentRecord, ports: &BTreeSet<IfName>, target: &mut Target) {
    let network = attachment.network.as_ref().map(NetworkId::of);
    if ports.is_empty() && network.is_none() {
        return;
    }
    for ip in attachment.held() {
        let spec = MemberSpec { ports: ports.clone(), network };
        target.want(Key::Member(*ip), Spec::Member(spec), attachment.since);
    }
}

fn everywhere(address: &IpAddr) -> Cidr {
    match IpNet::new(*address, 0) {
        Ok(net) => Cidr::containing(net),
        Err(_) => unreachable!("every family has a prefix of no bits"),
    }
}

fn inner_name(name: &str) -> IfName {
    match name.parse() {
        Ok(name) => name,
        Err(_) => unreachable!("a constant name is a valid name"),
    }
}
