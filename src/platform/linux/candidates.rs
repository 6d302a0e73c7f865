//! Addresses at which other nodes may reach this host directly.
//!
//! Owns which of the host's addresses are worth telling to peers. Leaves testing them to `nat`.
//!
//! Upholds I-15 through the limit of each netlink call.
//!
//! Private addresses are candidates too: two nodes of one data centre or home network reach each other by them.

use std::{collections::BTreeMap, net::IpAddr};

use netlink_packet_route::AddressFamily;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::{
    addresses::{self, FoundAddress},
    errno::Fault,
    links::{self, FoundLink},
    socket::Channel,
};
use crate::{object::Mark, platform::ObserveError};

/// Beginnings of names of links that lead to containers or through tunnels.
const INNER_PREFIXES: [&str; 7] = ["veth", "docker", "br-", "cni", "tun", "wg", "zl-"];
const IFA_F_TEMPORARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const SCOPE_UNIVERSE: u8 = 0;
const AF_INET6_BITS: u8 = 128;

/// The host's own addresses, in the order of its links; empty is a valid answer.
///
/// # Errors
/// When links or addresses could not be dumped.
pub async fn host_candidates(mark: Mark) -> Result<Vec<IpAddr>, ObserveError> {
    let what = "host addresses";
    let failed = |fault: Fault| fault.to_observe(what);
    let mut route = Channel::open(NETLINK_ROUTE).map_err(|error| failed(Fault::from_io(&error)))?;
    let links = links::dump(&mut route).await.map_err(failed)?;
    let outer: BTreeMap<u32, FoundLink> =
        links.items.into_iter().filter(|link| is_outer(link, mark)).map(|link| (link.index, link)).collect();
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let dump = addresses::dump_of(&mut route, family, 0).await.map_err(failed)?;
        found.extend(dump.items);
    }
    found.retain(|address| outer.contains_key(&address.index) && is_candidate(address));
    found.sort_by_key(|address| address.index);
    Ok(found.into_iter().map(|address| address.net.addr()).collect())
}

fn is_outer(link: &FoundLink, mark: Mark) -> bool {
    link.up
        && link.name != "lo"
        && !link.is_ours(mark)
        && !Mark::is_overlayd_group(link.group)
        && !INNER_PREFIXES.iter().any(|prefix| link.name.starts_with(prefix))
}

fn is_candidate(address: &FoundAddress) -> bool {
    let unusable = match address.net.addr() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast(),
    };
    // Bit 0 means "temporary" for IPv6 and "secondary" for IPv4, which is as good as any.
    let refused = if address.net.max_prefix_len() == AF_INET6_BITS {
        IFA_F_TEMPORARY | IFA_F_DADFAILED | IFA_F_DEPRECATED | IFA_F_TENTATIVE
    } else {
        IFA_F_DEPRECATED
    };
    !unusable && address.scope == SCOPE_UNIVERSE && address.flags & refused == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, flags: u32) -> FoundAddress {
        FoundAddress { index: 2, net: text.parse().unwrap(), far: None, scope: 0, flags, protocol: None }
    }

    fn link(name: &str) -> FoundLink {
        FoundLink { index: 2, name: name.to_owned(), mtu: 1500, up: true, ..FoundLink::default() }
    }

    #[test]
    fn global_and_private_addresses_are_candidates() {
        assert!(is_candidate(&address("192.168.1.2/24", 0x80)));
        assert!(is_candidate(&address("2001:db8::1/64", 0x80)));
        // A second address of the same IPv4 network.
        assert!(is_candidate(&address("192.168.1.3/24", 0x81)));
    }

    #[test]
    fn temporary_deprecated_and_link_local_addresses_are_not() {
        assert!(!is_candidate(&address("2001:db8::1/64", 0x01)));
        assert!(!is_candidate(&address("2001:db8::1/64", 0x20)));
        assert!(!is_candidate(&address("fe80::1/64", 0)));
        assert!(!is_candidate(&address("169.254.0.1/16", 0)));
    }

    #[test]
    fn container_and_tunnel_links_do_not_count() {
        let mark = Mark::of_instance("/a");
        for name in ["lo", "veth12ab", "docker0", "br-0123", "cni0", "tun0", "wg0", "zl-prod-0-g"] {
            assert!(!is_outer(&link(name), mark), "{name}");
        }
        assert!(is_outer(&link("eth0"), mark));
    }
}
