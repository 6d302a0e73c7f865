//! The choice of a segment's subnets. Made once: the outcome is in the document and never moves (I-07).

use std::net::IpAddr;

use super::{
    super::{addressing::service_subnet, record::OverlayRecord, segment::SegmentRecord},
    context::Policy,
    draft::Draft,
    refusal::Refusal,
};
use crate::ids::{Cidr, Networks, ServiceName};

/// The service that the subnet of the shared bridge is chosen for: part of the contract.
const SHARED_BRIDGE: &str = "__zlayer_shared_bridge__";

/// Whose subnets are chosen.
#[derive(Clone, Copy)]
pub(super) enum Chooser<'a> {
    Segment(&'a ServiceName),
    SharedBridge,
}

/// One free subnet in each network of the cluster.
///
/// Passed over is what another segment, the slice or a peer has: two nodes that do not know their number yet would otherwise choose the
/// same subnet (B12).
pub(super) fn choose(
    draft: &Draft<'_>,
    overlay: &OverlayRecord,
    chooser: Chooser<'_>,
    others: &[(ServiceName, SegmentRecord)],
) -> Result<Networks, Refusal> {
    let shared_bridge: ServiceName = match SHARED_BRIDGE.parse() {
        Ok(name) => name,
        Err(_) => unreachable!("a name without spaces is a service name"),
    };
    let (service, own) = match chooser {
        Chooser::Segment(service) => (service, Some(service)),
        Chooser::SharedBridge => (&shared_bridge, None),
    };
    let mut taken: Vec<Cidr> = overlay.slice.iter().flat_map(Networks::iter).copied().collect();
    let segments = others.iter().filter(|(name, _)| Some(name) != own).filter_map(|(_, record)| record.subnets);
    taken.extend(segments.flat_map(|subnets| subnets.iter().copied().collect::<Vec<_>>()));
    if own.is_some() {
        taken
            .extend(draft.shared_bridge().iter().flat_map(|bridge| bridge.subnets.iter().copied().collect::<Vec<_>>()));
    }
    let is_part = |network: &&Cidr| {
        overlay.cluster.of_family(network).is_some_and(|all| all != *network && all.contains(network))
    };
    taken.extend(draft.document.routed_elsewhere(own).filter(is_part).copied());
    let taken = Spans::of(&taken);
    let node_id = draft.document.node().node_id.unwrap_or(0);
    let mut subnets = Vec::new();
    for cluster in overlay.cluster.iter() {
        let prefix_len = prefix_len(draft.context.policy, cluster);
        let subnet = service_subnet(cluster, service, node_id, prefix_len, |subnet| taken.overlap(subnet));
        subnets.push(subnet.ok_or_else(|| Refusal::NoSubnet {
            cluster: *cluster,
            prefix_len,
            service: service.clone(),
        })?);
    }
    match Networks::of(subnets) {
        Some(subnets) => Ok(subnets),
        None => unreachable!("one subnet of each family of the cluster was chosen"),
    }
}

fn prefix_len(policy: &Policy, cluster: &Cidr) -> u8 {
    if cluster.is_ipv4() { policy.service_prefix_v4 } else { policy.service_prefix_v6 }
}

/// Networks as ranges that do not overlap: thousands of peers must not be looked through for each candidate.
struct Spans(Vec<(IpAddr, IpAddr)>);

impl Spans {
    fn of(networks: &[Cidr]) -> Self {
        let mut all: Vec<_> = networks.iter().map(|network| (network.network(), network.net().broadcast())).collect();
        all.sort_unstable();
        let mut spans: Vec<(IpAddr, IpAddr)> = Vec::new();
        for (first, last) in all {
            match spans.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                Some(_) | None => spans.push((first, last)),
            }
        }
        Self(spans)
    }

    fn overlap(&self, network: &Cidr) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= network.net().broadcast());
        behind.checked_sub(1).is_some_and(|last| self.0[last].1 >= network.network())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_overlaps_what_it_holds_and_what_holds_it() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let taken = Spans::of(&["10.0.1.0/24", "10.0.0.0/26", "10.0.1.64/26", "fd00::/64", "10.0.9.9/32"].map(cidr));
        for overlapping in ["10.0.1.128/26", "10.0.0.0/8", "10.0.0.7/32", "fd00::/120", "10.0.9.0/26"] {
            assert!(taken.overlap(&cidr(overlapping)), "{overlapping}");
        }
        for free in ["10.0.0.64/26", "10.0.2.0/24", "9.0.0.0/8", "fd00:0:0:1::/64", "fc00::/8", "::/120"] {
            assert!(!taken.overlap(&cidr(free)), "{free}");
        }
    }
}
