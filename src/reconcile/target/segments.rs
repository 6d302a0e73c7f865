//! The segments: a bridge for each service, one for all shared services, and a device of its own for each dedicated service.

use ipnet::IpNet;

use super::{
    Facts, Target,
    overlay::{filter_loosely, forward, link_local_gateway},
};
use crate::{
    desired::{Document, OverlayRecord, SegmentNet},
    ids::{Cidr, IfName, ServiceName},
    object::{DeviceSpec, Key, LinkKind, LinkSpec, RouteSpec, Spec},
};

pub(super) fn lower(document: &Document, overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    for service in document.segments().keys() {
        lower_one(document, overlay, service, facts, target);
    }
}

/// The objects of one service's segment. Those of the shared bridge belong to each shared service.
pub(super) fn lower_one(
    document: &Document,
    overlay: &OverlayRecord,
    service: &ServiceName,
    facts: &Facts,
    target: &mut Target,
) {
    let (Some(segment), Some(net)) = (document.segments().get(service), document.segment_net(service)) else { return };
    let since = document.shared_bridge().filter(|_| segment.subnets.is_none()).map_or(segment.since, |it| it.since);
    lower_bridge(&net, facts, since, target);
    let Some(dedicated) = segment.dedicated.as_ref().filter(|_| !facts.suspended) else { return };
    let Some(device) = document.dedicated_device_name(service) else { return };
    let since = segment.since;
    target.want(Key::Link(device.clone()), Spec::Link(LinkSpec::up(LinkKind::WireGuard, facts.mtu)), since);
    let spec = DeviceSpec { key: dedicated.key.clone(), listen_port: dedicated.port, fwmark: 0 };
    target.want(Key::Device(device.clone()), Spec::Device(spec), since);
    for gateway in &net.gateways {
        // The bridge has it with the subnet's prefix. The same prefix here would be a second way to the containers (B13).
        let key = Key::Address { link: device.clone(), address: IpNet::from(*gateway) };
        target.want(key, Spec::Address, since);
    }
    for network in overlay.cluster.iter() {
        filter_loosely(&device, network, since, target);
        forward(&device, network, facts, since, target);
    }
    lower_routes(document, overlay, service, (&device, since), facts, target);
}

fn lower_bridge(net: &SegmentNet, facts: &Facts, since: u64, target: &mut Target) {
    let bridge = &net.bridge;
    target.want(Key::Link(bridge.clone()), Spec::Link(LinkSpec::up(LinkKind::Bridge, facts.mtu)), since);
    for (subnet, gateway) in net.subnets.iter().zip(&net.gateways) {
        if let Ok(address) = IpNet::new(*gateway, subnet.prefix_len()) {
            target.want(Key::Address { link: bridge.clone(), address }, Spec::Address, since);
        }
        if !subnet.is_ipv4() {
            target.want(link_local_gateway(bridge), Spec::Address, since);
        }
        let route = Key::Route { destination: *subnet, metric: facts.mark.route_metric() };
        target.want(route, Spec::Route(RouteSpec::Through(bridge.clone())), since);
        filter_loosely(bridge, subnet, since, target);
        forward(bridge, subnet, facts, since, target);
    }
}

/// What a dedicated device's peers have is reached through it, although the cluster's route leads through the node's device.
fn lower_routes(
    document: &Document,
    overlay: &OverlayRecord,
    service: &ServiceName,
    (device, since): (&IfName, u64),
    facts: &Facts,
    target: &mut Target,
) {
    let is_inside = |network: &Cidr| {
        overlay.cluster.iter().any(|cluster| cluster.contains(network) && cluster != network)
            // What is on this node stays on this node, whatever a peer claims.
            && !is_local(document, overlay, network)
    };
    for peer in document.service_peers(service).values() {
        for network in peer.allowed_ips.iter().filter(|network| is_inside(network)) {
            let route = Key::Route { destination: *network, metric: facts.mark.route_metric() };
            // The device's name changes with the overlay's, and is no peer's doing.
            target.want(route, Spec::Route(RouteSpec::Through(device.clone())), peer.since.max(since));
        }
    }
}

fn is_local(document: &Document, overlay: &OverlayRecord, network: &Cidr) -> bool {
    let shared = document.shared_bridge().map(|bridge| &bridge.subnets);
    let own = document.segments().values().filter_map(|segment| segment.subnets.as_ref());
    overlay.slice.iter().chain(shared).chain(own).any(|local| local.overlaps(network))
}
