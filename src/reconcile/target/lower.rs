use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Facts, Scope, Target, containers, firewall, link_dns, neighbours, overlay, resolvers, segments};
use crate::{
    desired::{AddressHolder, AttachmentId, Document, OverlayRecord, PeerRecord},
    ids::{Cidr, IfName, ServiceName, WgPublicKey},
    object::{InsideSpec, Key, Setting, Spec},
    observed::{Neighbour, Surroundings},
};

/// The objects that `document` stands for, as far as they are in `scope`.
///
/// `told` gives the generation up to which the kernel is known to have been told of an object: an endpoint that changed later is
/// [pinned](crate::object::EndpointSpec::pinned), an older one gives way to what the peer taught the kernel by roaming (A5).
pub fn lower(document: &Document, facts: &Facts, told: &impl Fn(&Key) -> u64, scope: &Scope) -> Target {
    let mut target = Target::default();
    resolvers::lower(document, facts, &mut target);
    let Some(overlay) = document.overlay() else {
        if let Scope::Keys(keys) = scope {
            target.objects.retain(|key, _| keys.contains(key));
        }
        return target;
    };
    match scope {
        Scope::Everything => {
            lower_structure(document, overlay, facts, &mut target);
            containers::lower(document, overlay, facts, &mut target);
            for (device, public_key, peer) in peers(document) {
                overlay::lower_peer(&device, public_key, peer, facts, told, &mut target);
            }
        }
        Scope::Keys(keys) => {
            if keys.iter().any(is_structural) {
                lower_structure(document, overlay, facts, &mut target);
            }
            for id in attachments_of(document, keys) {
                let attachment = &document.attachments()[&id];
                containers::lower_one(document, overlay, &id, attachment, facts, &mut target);
            }
            target.objects.retain(|key, _| keys.contains(key));
            target.incomplete.retain(|key, _| keys.contains(key));
            for key in keys {
                if let Some((device, public_key, peer)) = peer_of(document, key) {
                    overlay::lower_peer(&device, public_key, peer, facts, told, &mut target);
                }
            }
        }
    }
    target
}

/// The places that the target takes on the node: a stranger in one of them must be seen, and the containers' namespaces must be entered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    pub links: BTreeSet<IfName>,
    /// Routes and files that a stranger can have taken, settings whose value is wanted, and links that the host's resolver is to know.
    pub keys: BTreeSet<Key>,
    pub insides: BTreeMap<IfName, InsideSpec>,
}

/// What a look has to look for.
pub fn places(document: &Document, facts: &Facts) -> Places {
    let mut places = Places::default();
    let mut target = Target::default();
    resolvers::lower(document, facts, &mut target);
    places.keys.extend(target.objects.into_keys());
    let Some(overlay) = document.overlay() else {
        return places;
    };
    // Also what a suspended overlay does not want: it is there until it has been taken down. And what depends on the surroundings, which this
    // very look has to find out.
    let surroundings =
        Surroundings { force_forwarding: true, neighbours: Neighbour::ALL.into(), ..facts.surroundings.clone() };
    let facts = Facts { suspended: false, surroundings, ..facts.clone() };
    let mut target = Target::default();
    lower_structure(document, overlay, &facts, &mut target);
    containers::lower(document, overlay, &facts, &mut target);
    for (key, wanted) in target.objects {
        match (key, wanted.spec) {
            (Key::Link(name), _) => drop(places.links.insert(name)),
            (Key::Inside(name), Spec::Inside(inside)) => drop(places.insides.insert(name, inside)),
            (key @ (Key::Route { .. } | Key::Sysctl { .. } | Key::File(_) | Key::LinkDns(_)), _) => {
                places.keys.insert(key);
            }
            _ => {}
        }
    }
    places
}

/// The keys that belong to `keys`: what else stands for the same attachments.
pub fn companions(document: &Document, facts: &Facts, keys: &BTreeSet<Key>) -> BTreeSet<Key> {
    let ids = attachments_of(document, keys);
    let mut companions: BTreeSet<Key> = ids.iter().flat_map(|id| objects_of_attachment(document, facts, id)).collect();
    // Of an attachment that is gone only the keys tell what it had: each address of the slice has a route of its own, and each link has
    // settings and addresses, of which something may be remembered though they never came to be.
    for key in keys {
        match key {
            Key::Member(ip) => {
                let destination = Cidr::host(*ip);
                companions.insert(Key::Route { destination, metric: facts.mark.route_metric() });
            }
            Key::Link(link) if AttachmentId::of_link(link).is_some() => {
                companions.extend(on_port(document, link));
            }
            _ => {}
        }
    }
    companions
}

/// What can be wanted on a container's port.
fn on_port(document: &Document, link: &IfName) -> impl Iterator<Item = Key> {
    let settings = Setting::ALL.map(|setting| Key::Sysctl { link: link.clone(), setting });
    let own = document.overlay().map(OverlayRecord::node_addresses).unwrap_or_default();
    let own = own.into_iter().map(|node| Key::Address { link: link.clone(), address: IpNet::from(node.ip) });
    settings.into_iter().chain(own).chain([overlay::link_local_gateway(link)])
}

/// Every object that stands for the node overlay itself, without peers, segments and attachments.
pub fn objects_of_overlay(document: &Document, facts: &Facts) -> BTreeSet<Key> {
    let mut target = Target::default();
    if let Some(overlay) = document.overlay() {
        overlay::lower(document, overlay, facts, &mut target);
    }
    target.objects.into_keys().collect()
}

/// Every object that stands for one attachment.
pub fn objects_of_attachment(document: &Document, facts: &Facts, id: &AttachmentId) -> BTreeSet<Key> {
    let mut target = Target::default();
    if let (Some(overlay), Some(attachment)) = (document.overlay(), document.attachments().get(id)) {
        containers::lower_one(document, overlay, id, attachment, facts, &mut target);
    }
    target.objects.into_keys().collect()
}

/// Every object that stands for one service's segment.
pub fn objects_of_segment(document: &Document, facts: &Facts, service: &ServiceName) -> BTreeSet<Key> {
    let mut target = Target::default();
    if let Some(overlay) = document.overlay() {
        segments::lower_one(document, overlay, service, facts, &mut target);
    }
    target.objects.into_keys().collect()
}

/// What there is on the node besides peers and attachments.
fn lower_structure(document: &Document, overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    overlay::lower(document, overlay, facts, target);
    segments::lower(document, overlay, facts, target);
    firewall::lower(document, overlay, facts, target);
    neighbours::lower(overlay, facts, target);
    link_dns::lower(overlay, facts, target);
}

/// Every declared peer with its device. Guests are peers too, but of their attachments.
fn peers(document: &Document) -> impl Iterator<Item = (IfName, &WgPublicKey, &PeerRecord)> {
    let of_node = document
        .device_name()
        .into_iter()
        .flat_map(|device| document.peers().iter().map(move |(public_key, peer)| (device.clone(), public_key, peer)));
    let of_services = document.segments().keys().flat_map(move |service| {
        let device = document.dedicated_device_name(service);
        let peers = document.service_peers(service).iter();
        peers.filter_map(move |(public_key, peer)| Some((device.clone()?, public_key, peer)))
    });
    of_node.chain(of_services)
}

fn peer_of<'a>(document: &'a Document, key: &'a Key) -> Option<(IfName, &'a WgPublicKey, &'a PeerRecord)> {
    let Key::Peer { device, public_key } = key else { return None };
    let scope = document.scope_of_device(device)?;
    document.peers_of(&scope).get(public_key).map(|peer| (device.clone(), public_key, peer))
}

/// The attachments that objects with these keys stand for.
fn attachments_of(document: &Document, keys: &BTreeSet<Key>) -> BTreeSet<AttachmentId> {
    let of_link = |link: &IfName| document.attachment_of_link(link).map(|(id, _)| id);
    let of_address = |ip: &IpAddr| match document.address_holder(ip) {
        Some(AddressHolder::Attachment(id)) => Some(id),
        Some(_) | None => None,
    };
    let of = |key: &Key| match key {
        Key::Link(link) | Key::Inside(link) | Key::Sysctl { link, .. } => of_link(link),
        Key::Member(ip) => of_address(ip),
        Key::Address { link, address } => of_link(link).or_else(|| of_address(&address.addr())),
        Key::Route { destination, .. } => of_address(&destination.network()),
        Key::Peer { public_key, .. } => document.guest_of_key(public_key).cloned(),
        Key::Device(_) | Key::Ruleset | Key::Guest(_) | Key::File(_) | Key::LinkDns(_) => None,
    };
    keys.iter().filter_map(of).collect()
}

/// False for the objects of attachments and peers: a round about those need not know how the whole node is built.
fn is_structural(key: &Key) -> bool {
    match key {
        Key::Link(link) | Key::Inside(link) | Key::Sysctl { link, .. } => AttachmentId::of_link(link).is_none(),
        Key::Address { link, address } => {
            AttachmentId::of_link(link).is_none() && address.prefix_len() != address.max_prefix_len()
        }
        Key::Route { destination, .. } => destination.prefix_len() != destination.net().max_prefix_len(),
        Key::Member(_) | Key::Peer { .. } => false,
        Key::Device(_) | Key::Ruleset | Key::Guest(_) | Key::File(_) | Key::LinkDns(_) => true,
    }
}
