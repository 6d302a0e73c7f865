//! Says the document in kernel words.
//!
//! Owns the translation: which links, addresses, routes, settings, devices and peers a document stands for on this node.
//! Leaves comparing to [`plan`](super::plan).
//!
//! Upholds I-07 (every choice comes from the document or the facts), B11, B22, B24.
//!
//! The device's address is set without the kernel's own on-link route; the route to the cluster is an object of ours with our mark,
//! so that somebody removing it is seen and mended like anything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{
    desired::{Document, OverlayRecord, PeerRecord},
    ids::{Cidr, DnsName, Host, IfName, WgPublicKey},
    object::{DeviceSpec, EndpointSpec, Key, LinkKind, LinkSpec, Mark, PeerSpec, RouteSpec, Setting, Spec, Subsystem},
    observed::Surroundings,
};

/// MTU of the overlay device in bytes: an Ethernet underlay of 1500 less 80 for IPv6, UDP and WireGuard (A28).
pub const DEFAULT_MTU: u32 = 1420;

/// Loose reverse-path filtering (RFC 3704 section 2.4): an overlay's packets may return by another way (A29).
const RP_FILTER_LOOSE: i64 = 2;

/// What the translation needs to know besides the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub mark: Mark,
    /// MTU of the overlay device, bytes.
    pub mtu: u32,
    /// The addresses that endpoint host names resolve to at present.
    pub resolved: BTreeMap<DnsName, IpAddr>,
    /// What the last look found around our objects.
    pub surroundings: Surroundings,
    /// True after a `Shutdown`: the device is taken down, the document stays (the next start brings it back).
    pub suspended: bool,
}

impl Facts {
    pub fn new(mark: Mark) -> Self {
        Self {
            mark,
            mtu: DEFAULT_MTU,
            resolved: BTreeMap::new(),
            surroundings: Surroundings::default(),
            suspended: false,
        }
    }
}

/// One wanted object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub spec: Spec,
    /// Generation at which the part of the document that wants it last changed.
    pub since: u64,
}

/// The document as objects, for the whole node or for some keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub objects: BTreeMap<Key, Wanted>,
    /// Objects that are wanted but lack something that is not the kernel's to give: a host name that does not resolve.
    pub incomplete: BTreeMap<Key, String>,
    /// Which peer of a device has an allowed IP: derived from `objects`.
    holders: BTreeMap<(IfName, Cidr), WgPublicKey>,
}

impl Target {
    pub fn wants(&self, key: &Key) -> Option<&Spec> {
        self.objects.get(key).map(|wanted| &wanted.spec)
    }

    /// The peer of `device` that is to have this allowed IP, as far as the target reaches.
    pub fn holder(&self, device: &IfName, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        self.holders.get(&(device.clone(), *allowed_ip))
    }

    fn want(&mut self, key: Key, spec: Spec, since: u64) {
        if let (Key::Peer { device, public_key }, Spec::Peer(peer)) = (&key, &spec) {
            for allowed_ip in &peer.allowed_ips {
                self.holders.insert((device.clone(), *allowed_ip), *public_key);
            }
        }
        self.objects.insert(key, Wanted { spec, since });
    }
}

/// Which objects a round is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Keys(BTreeSet<Key>),
}

/// The objects that `document` stands for, as far as they are in `scope`.
///
/// `told` gives the generation up to which the kernel is known to have been told of an object: an endpoint that changed later is
/// [pinned](EndpointSpec::pinned), an older one gives way to what the peer taught the kernel by roaming (A5).
pub fn lower(document: &Document, facts: &Facts, told: &impl Fn(&Key) -> u64, scope: &Scope) -> Target {
    let mut target = Target::default();
    let Some(overlay) = document.overlay() else {
        return target;
    };
    let device = overlay.device_name();
    match scope {
        Scope::Everything => {
            lower_overlay(document, overlay, &device, facts, &mut target);
            for (public_key, peer) in document.peers() {
                lower_peer(&device, public_key, peer, facts, told, &mut target);
            }
        }
        Scope::Keys(keys) => {
            let (peers, others): (Vec<&Key>, Vec<&Key>) =
                keys.iter().partition(|key| key.subsystem() == Subsystem::Peer);
            if !others.is_empty() {
                lower_overlay(document, overlay, &device, facts, &mut target);
                target.objects.retain(|key, _| keys.contains(key));
            }
            for key in peers {
                if let Key::Peer { device: of, public_key } = key
                    && *of == device
                    && let Some(peer) = document.peers().get(public_key)
                {
                    lower_peer(&device, public_key, peer, facts, told, &mut target);
                }
            }
        }
    }
    target
}

/// The places that the target takes on the node: names of links, and keys of routes. A stranger in one of them must be seen.
pub fn places(document: &Document, facts: &Facts) -> (BTreeSet<IfName>, BTreeSet<Key>) {
    let Some(overlay) = document.overlay() else {
        return Default::default();
    };
    let route = |metric| Key::Route { destination: overlay.cluster, metric };
    let routes = [route(facts.mark.route_metric()), route(facts.mark.fallback_metric())];
    (BTreeSet::from([overlay.device_name()]), BTreeSet::from(routes))
}

fn lower_overlay(document: &Document, overlay: &OverlayRecord, device: &IfName, facts: &Facts, target: &mut Target) {
    let since = overlay.since;
    let fallback = Key::Route { destination: overlay.cluster, metric: facts.mark.fallback_metric() };
    target.want(fallback, Spec::Route(RouteSpec::Unreachable), since);
    if facts.suspended {
        return;
    }
    let link = LinkSpec::up(LinkKind::WireGuard, facts.mtu);
    target.want(Key::Link(device.clone()), Spec::Link(link), since);
    let (setting, value) = setting_for(&overlay.cluster);
    target.want(Key::Sysctl { link: device.clone(), setting }, Spec::Sysctl(value), since);
    if let Some(key) = document.node_key() {
        let spec = DeviceSpec { key: key.clone(), listen_port: overlay.port, fwmark: 0 };
        target.want(Key::Device(device.clone()), Spec::Device(spec), since);
    }
    match overlay.node_address() {
        Some(address) => {
            let key = Key::Address { link: device.clone(), address: address.on_device };
            target.want(key, Spec::Address, since);
        }
        None => {
            target.incomplete.insert(
                Key::Device(device.clone()),
                "no slice is assigned yet, so the overlay has no node address".into(),
            );
        }
    }
    let route = Key::Route { destination: overlay.cluster, metric: facts.mark.route_metric() };
    target.want(route, Spec::Route(RouteSpec::Through(device.clone())), since);
}

fn setting_for(cluster: &Cidr) -> (Setting, i64) {
    if cluster.is_ipv4() { (Setting::Ipv4RpFilter, RP_FILTER_LOOSE) } else { (Setting::Ipv6AcceptRa, 0) }
}

fn lower_peer(
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
                        target
                            .incomplete
                            .insert(key.clone(), format!("endpoint host name {name} does not resolve yet"));
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
