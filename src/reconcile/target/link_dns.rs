//! What the host's resolver is told about the node's device: the overlay's names are asked for there, and no others (A25).
//!
//! Owns which zones those are. It is no part of the overlay's own objects: no request waits for the resolver.
//!
//! A cluster network that does not end at a dot of its reverse name lies in several zones.

use std::net::SocketAddr;

use super::{Facts, Served, Target};
use crate::{
    desired::OverlayRecord,
    ids::Cidr,
    object::{Key, LinkDnsSpec, Spec},
    observed::Neighbour,
};

pub(super) fn lower(overlay: &OverlayRecord, facts: &Facts, target: &mut Target) {
    let Some(Served { zone, port }) = &facts.served else { return };
    let addresses = overlay.node_addresses();
    if facts.suspended || addresses.is_empty() || !facts.surroundings.neighbours.contains(&Neighbour::Resolved) {
        return;
    }
    let reverse = overlay.cluster.iter().flat_map(Cidr::reverse_zones);
    let zones = [zone.to_string()].into_iter().chain(reverse);
    let spec = LinkDnsSpec {
        servers: addresses.into_iter().map(|own| SocketAddr::new(own.ip, *port)).collect(),
        domains: zones.map(|zone| format!("~{zone}")).collect(),
        ..LinkDnsSpec::default()
    };
    target.want(Key::LinkDns(overlay.device_name()), Spec::LinkDns(spec), overlay.since);
}
