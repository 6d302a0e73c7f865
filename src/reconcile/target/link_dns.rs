//! What the host's resolver is told about the node's device: the overlay's names are asked for there, and no others (A25).
//!
//! Owns which zones those are. It is no part of the overlay's own objects: no request waits for the resolver.
//!
//! A cluster network that does not end at a dot of its reverse name lies in several zones.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

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
    let reverse = overlay.cluster.iter().flat_map(reverse_zones);
    let zones = [zone.to_string()].into_iter().chain(reverse);
    let spec = LinkDnsSpec {
        servers: addresses.into_iter().map(|own| SocketAddr::new(own.ip, *port)).collect(),
        domains: zones.map(|zone| format!("~{zone}")).collect(),
        ..LinkDnsSpec::default()
    };
    target.want(Key::LinkDns(overlay.device_name()), Spec::LinkDns(spec), overlay.since);
}

/// The zones of a network's addresses: at most 128 (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse_zones(network: &Cidr) -> Vec<String> {
    // Bits of an address that one label stands for.
    let unit = if network.is_ipv4() { 8 } else { 4 };
    let bits = network.prefix_len().next_multiple_of(unit);
    let Ok(parts) = network.net().subnets(bits) else { return Vec::new() };
    parts.map(reverse_zone).collect()
}

/// The zone of a network that ends at a dot of it.
fn reverse_zone(network: IpNet) -> String {
    let (labels, top): (Vec<String>, _) = match network.addr() {
        IpAddr::V4(address) => {
            let octets = address.octets().into_iter().take(usize::from(network.prefix_len() / 8));
            (octets.map(|octet| octet.to_string()).collect(), "in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().flat_map(|octet| [octet >> 4, octet & 0xf]);
            let nibbles = nibbles.take(usize::from(network.prefix_len() / 4));
            (nibbles.map(|nibble| format!("{nibble:x}")).collect(), "ip6.arpa")
        }
    };
    let labels = labels.into_iter().rev().chain([top.to_owned()]);
    labels.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_network_is_in_one_of_its_zones_and_no_other_is() {
        let zones = |text: &str| reverse_zones(&text.parse().unwrap());
        assert_eq!(zones("10.0.0.0/8"), ["10.in-addr.arpa"]);
        assert_eq!(zones("10.200.0.0/16"), ["200.10.in-addr.arpa"]);
        assert_eq!(zones("10.200.16.0/23"), ["16.200.10.in-addr.arpa", "17.200.10.in-addr.arpa"]);
        assert_eq!(zones("10.128.0.0/9").len(), 128);
        assert_eq!(zones("10.0.0.4/30").len(), 4);
        assert_eq!(zones("fd00:200::/32"), ["0.0.2.0.0.0.d.f.ip6.arpa"]);
        assert_eq!(zones("fd00:200::/31"), ["0.0.2.0.0.0.d.f.ip6.arpa", "1.0.2.0.0.0.d.f.ip6.arpa"]);
    }
}
