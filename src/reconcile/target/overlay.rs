//! The node overlay: its device, addresses, routes, settings and peers.

use std::net::{Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{Facts, Target};
use crate::{
    desired::{Document, OverlayRecord, PeerRecord},
    ids::{Cidr, Host, IfName, WgPublicKey},
    object::{DeviceSpec, EndpointSpec, Key, LinkKind, LinkSpec, PeerSpec, RouteSpec, Setting, Spec},
};

pub(super) const LINK_LOCAL_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL_PREFIX: u8 = 64;

/// Loose reverse-path filtering (RFC 3704 section 2.4): an overlay's packets may return by another way (A29).
const RP_FILTER_LOOSE: i64 = 2;

pub(super) fn lower(document: &Document, overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    let device = overlay.device_name();
    let since = overlay.since;
    for network in overlay.cluster.iter() {
        let fallback = Key::Route { destination: *network, metric: facts.mark.fallback_metric() };
        target.want(fallback, Spec::Route(RouteSpec::Unreachable), since);
    }
    if facts.suspended {
        return;
    }
    target.want(Key::Link(device.clone()), Spec::Link(LinkSpec::up(LinkKind::WireGuard, facts.mtu)), since);
    if let Some(key) = document.node_key() {
        let spec = DeviceSpec { key: key.clone(), listen_port: overlay.port, fwmark: 0 };
        target.want(Key::Device(device.clone()), Spec::Device(spec), since);
    }
    let addresses = overlay.node_addresses();
    if addresses.is_empty() {
        let why = "no slice is assigned yet, so the overlay has no node address";
        target.lacks(Key::Device(device.clone()), why.into());
    }
    for address in addresses {
        let key = Key::Address { link: device.clone(), address: address.on_device };
        target.want(key, Spec::Address, since);
    }
    for network in overlay.cluster.iter() {
        filter_loosely(&device, network, since, target);
        let route = Key::Route { destination: *network, metric: facts.mark.route_metric() };
        target.want(route, Spec::Route(RouteSpec::Through(device.clone())), since);
        if document.serves_others() {
            forward(&device, network, facts, since, target);
        }
    }
}

/// What a link of ours needs so that packets of one family, coming in by whichever way, are neither dropped nor answered by strangers.
pub(super) fn filter_loosely(link: &IfName, network: &Cidr, since: u64, target: &mut Target) {
    let (setting, value) =
        if network.is_ipv4() { (Setting::Ipv4RpFilter, RP_FILTER_LOOSE) } else { (Setting::Ipv6AcceptRa, 0) };
    target.want(Key::Sysctl { link: link.clone(), setting }, Spec::Sysctl(value), since);
}

/// The host's own end of a link to containers, for IPv6: they find it without asking, and it means the same on each link. The kernel asks for
/// neighbours from a link-local address only, and would wait for two seconds before it trusts one that it made itself.
pub(super) fn link_local_gateway(link: &IfName) -> Key {
    match IpNet::new(LINK_LOCAL_GATEWAY.into(), LINK_LOCAL_PREFIX) {
        Ok(address) => Key::Address { link: link.clone(), address },
        Err(_) => unreachable!("64 bits fit an IPv6 address"),
    }
}

/// Lets packets of one family that come in through `link` be sent on.
pub(super) fn forward(link: &IfName, network: &Cidr, facts: &Facts, since: u64, target: &mut Target) {
    let setting = match network.is_ipv4() {
        true => Setting::Ipv4Forwarding,
        false if facts.surroundings.force_forwarding => Setting::Ipv6ForceForwarding,
        // Only the setting of `all` would do, and that is the host's (B22).
        false => return,
    };
    target.want(Key::Sysctl { link: link.clone(), setting }, Spec::Sysctl(1), since);
}

/// One peer of a device. `told`: see [`lower`](super::lower()).
pub(super) fn lower_peer(
    device: &IfName,
    public_key: &WgPublicKey,
    peer: &PeerRecord,
    facts: &Facts,
    told: &impl Fn(&Key) -> u64,
    target: &mut Target,
) {
    if facts.suspended {
        return;
    }
    let key = Key::Peer { device: device.clone(), public_key: *public_key };
    let endpoint = match &peer.endpoint {
        None => None,
        Some(endpoint) => {
            let pinned = peer.endpoint_since > told(&key);
            match &endpoint.host {
                Host::Address(ip) => {
                    Some(EndpointSpec { address: SocketAddr::new(*ip, endpoint.port), pinned, resolved: false })
                }
                Host::Name(name) => match facts.resolved.get(name) {
                    Some(ip) => {
                        Some(EndpointSpec { address: SocketAddr::new(*ip, endpoint.port), pinned, resolved: true })
                    }
                    None => {
                        target.lacks(key.clone(), format!("endpoint host name {name} does not resolve yet"));
                        None
                    }
                },
            }
        }
    };
    let spec =
        PeerSpec { endpoint, keepalive: peer.keepalive, allowed_ips: peer.allowed_ips.clone(), preshared: false };
    target.want(key, Spec::Peer(spec), peer.since);
}
