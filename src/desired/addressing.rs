//! Which addresses a node and its services have.
//!
//! Owns the arithmetic. Leaves remembering the outcome to the document: a subnet that was chosen never moves (I-07).
//!
//! The node's address carries the prefix length of the *cluster*, so that the whole cluster is on-link; the slice only says which address (B11).

use std::{hash::Hasher, net::IpAddr};

use fnv::FnvHasher;
use ipnet::IpNet;

use crate::ids::{Cidr, ServiceName};

/// Prefix length of a service's subnet: 64 addresses.
pub const DEFAULT_SERVICE_PREFIX_V4: u8 = 26;
/// Prefix length of a service's subnet: 256 addresses.
pub const DEFAULT_SERVICE_PREFIX_V6: u8 = 120;

/// Separates service and node in the slot hash.
const UNIT_SEPARATOR: u8 = 0x1f;

/// The address of this node and the network it is on-link with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddress {
    pub ip: IpAddr,
    /// `ip` with the prefix length of the cluster: what the device carries.
    pub on_device: IpNet,
}

/// The node's address: the first after the slice's network address. `None` when the slice has no such address (/32, /128).
pub fn node_address(cluster: &Cidr, slice: &Cidr) -> Option<NodeAddress> {
    let ip = slice.address_at(1)?;
    let on_device = IpNet::new(ip, cluster.prefix_len()).ok()?;
    Some(NodeAddress { ip, on_device })
}

/// The subnet of a service on a node: slot FNV-1a-64(service, 0x1f, node id in decimal) modulo the number of slots, then the next free one.
///
/// `taken` says whether a candidate overlaps something: another service, the slice, the node address, a peer's allowed IPs.
/// `None` when every slot is taken or `prefix_len` does not fit the cluster.
pub fn service_subnet(
    cluster: &Cidr,
    service: &ServiceName,
    node_id: u64,
    prefix_len: u8,
    taken: impl Fn(&Cidr) -> bool,
) -> Option<Cidr> {
    let slot_bits = prefix_len.checked_sub(cluster.prefix_len())?;
    let address_bits: u8 = if cluster.is_ipv4() { 32 } else { 128 };
    let host_bits = address_bits.checked_sub(prefix_len)?;
    // More than 2^32 slots are never searched: the hash spreads over 64 bits and probing is linear.
    let slots: u64 = 1 << slot_bits.min(32);
    let mut hasher = FnvHasher::default();
    hasher.write(service.as_str().as_bytes());
    hasher.write(&[UNIT_SEPARATOR]);
    hasher.write(node_id.to_string().as_bytes());
    let first = hasher.finish() % slots;
    (0..slots.min(PROBES_MAX)).find_map(|step| {
        let slot = (first + step) % slots;
        let network = cluster.address_at(u128::from(slot) << host_bits)?;
        let subnet = Cidr::containing(IpNet::new(network, prefix_len).ok()?);
        (!taken(&subnet)).then_some(subnet)
    })
}

/// Slots that are tried before the cluster counts as full (I-15): every slot of a /10 with /26 subnets.
const PROBES_MAX: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn service_subnets_equal_those_of_the_contract() {
        for (service, expected) in [
            ("web-auto", "10.200.95.0/26"),
            ("__zlayer_shared_bridge__", "10.200.90.64/26"),
            ("web-dedicated", "10.200.128.128/26"),
        ] {
            let subnet = service_subnet(&cidr("10.200.0.0/16"), &service.parse().unwrap(), 0, 26, |_| false);
            assert_eq!(subnet, Some(cidr(expected)), "{service}");
        }
    }

    #[test]
    fn a_taken_slot_is_passed_over_and_the_last_is_followed_by_the_first() {
        let cluster = cidr("10.0.0.0/24");
        let first = service_subnet(&cluster, &"s".parse().unwrap(), 0, 26, |_| false).unwrap();
        let mut seen = vec![first];
        for _ in 0..3 {
            let next = service_subnet(&cluster, &"s".parse().unwrap(), 0, 26, |c| seen.contains(c)).unwrap();
            seen.push(next);
        }
        assert_eq!(service_subnet(&cluster, &"s".parse().unwrap(), 0, 26, |c| seen.contains(c)), None);
    }

    #[test]
    fn the_node_has_the_first_address_of_its_slice_with_the_prefix_of_the_cluster() {
        let address = node_address(&cidr("10.200.0.0/16"), &cidr("10.200.3.16/28")).unwrap();
        assert_eq!(address.on_device.to_string(), "10.200.3.17/16");
        let v6 = node_address(&cidr("fd00:1::/32"), &cidr("fd00:1:0:5::/64")).unwrap();
        assert_eq!(v6.on_device.to_string(), "fd00:1:0:5::1/32");
    }

    #[test]
    fn a_slice_of_one_address_has_no_node_address() {
        assert_eq!(node_address(&cidr("10.0.0.0/8"), &cidr("10.0.0.1/32")), None);
    }
}
