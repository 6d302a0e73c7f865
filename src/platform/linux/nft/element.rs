//! What the objects of the document mean as elements of sets, and back.
//!
//! Owns the translation of [`RulesetSpec`] and [`MemberSpec`]. Leaves comparing with what is there to [`held`](super::held).
//!
//! Upholds I-07 (an element says what the spec says, nothing is chosen here), I-09 (what is written is read back as it was).
//!
//! A port belongs to one network, that of its addresses: on a bridge the port decides, because there are frames without an address.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::shape::{Half, Stem, members_of, of_family, ports_of};
use crate::{
    ids::{Cidr, IfName},
    object::{Family, MemberSpec, NetworkId, RulesetSpec},
};

/// Bytes of an interface name in a key (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;

/// One element of one set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Element {
    pub(super) half: Half,
    pub(super) set: Cow<'static, str>,
    pub(super) key: Vec<u8>,
    /// Of a range: true for the first address *behind* it.
    pub(super) end: bool,
    /// Of a map: the network.
    pub(super) value: Option<u32>,
}

/// Whom an element of a member's set is there for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Address(IpAddr),
    Port(IfName),
}

impl Element {
    fn new(half: Half, set: impl Into<Cow<'static, str>>, key: Vec<u8>) -> Self {
        Self { half, set: set.into(), key, end: false, value: None }
    }

    fn leading_to(self, network: NetworkId) -> Self {
        Self { value: Some(network.0), ..self }
    }

    /// `None` for an element of the ruleset itself; an error for a key that no version of this program writes.
    pub(super) fn owner(&self) -> Result<Option<Owner>, Unreadable> {
        let behind = |skip: usize| self.key.get(skip..).and_then(address).map(Owner::Address).ok_or(Unreadable);
        let named = |bytes: Option<&[u8]>| bytes.and_then(name).map(Owner::Port).ok_or(Unreadable);
        let of_network = |stem: &str| self.set.starts_with(stem);
        match (self.half, &*self.set) {
            (_, "own4" | "own6") => behind(NAME_BYTES).map(Some),
            (Half::Inet, "network4" | "network6" | "isolated4" | "isolated6") => behind(0).map(Some),
            (Half::Inet, _) if of_network("members4_") || of_network("members6_") => behind(0).map(Some),
            (_, "ports") | (Half::Bridge, "network") => named(Some(&self.key)).map(Some),
            (Half::Bridge, _) if of_network("ports_") => named(Some(&self.key)).map(Some),
            _ => Ok(None),
        }
    }

    /// The port that an element of `own4` or `own6` is about.
    pub(super) fn own_port(&self) -> Option<IfName> {
        matches!(&*self.set, "own4" | "own6").then(|| self.key.get(..NAME_BYTES).and_then(name)).flatten()
    }
}

/// A key that cannot be what it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

fn name_bytes(link: &IfName) -> Vec<u8> {
    let mut bytes = link.as_str().as_bytes().to_vec();
    bytes.resize(NAME_BYTES, 0);
    bytes
}

fn name(bytes: &[u8]) -> Option<IfName> {
    let bytes = bytes.get(..NAME_BYTES)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}

fn address_bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The elements of one address of a container.
pub(super) fn of_member(address: &IpAddr, spec: &MemberSpec) -> BTreeSet<Element> {
    let family = Family::of(address);
    let bytes = address_bytes(address);
    let mut all = BTreeSet::new();
    for port in &spec.ports {
        let key = [name_bytes(port), bytes.clone()].concat();
        all.extend(Half::BOTH.map(|half| Element::new(half, of_family(Stem::Own, family), key.clone())));
    }
    if let Some(network) = spec.network {
        all.insert(Element::new(Half::Inet, of_family(Stem::Isolated, family), bytes.clone()));
        all.insert(Element::new(Half::Inet, members_of(network.0, family), bytes.clone()));
        all.insert(Element::new(Half::Inet, of_family(Stem::Network, family), bytes).leading_to(network));
    }
    all
}

/// The elements of a port whose addresses are in this network.
pub(super) fn of_port(port: &IfName, network: Option<NetworkId>) -> BTreeSet<Element> {
    let bytes = name_bytes(port);
    let mut all = BTreeSet::from(Half::BOTH.map(|half| Element::new(half, "ports", bytes.clone())));
    if let Some(network) = network {
        all.insert(Element::new(Half::Bridge, ports_of(network.0), bytes.clone()));
        all.insert(Element::new(Half::Bridge, "network", bytes).leading_to(network));
    }
    all
}

/// The elements of the ruleset itself.
pub(super) fn of_ruleset(spec: &RulesetSpec) -> BTreeSet<Element> {
    let mut all = BTreeSet::new();
    for (stem, networks) in [(Stem::Overlay, &spec.overlay), (Stem::Local, &spec.local)] {
        for network in outermost(networks) {
            all.extend(range(stem, &network));
        }
    }
    for address in &spec.node {
        all.insert(Element::new(Half::Inet, of_family(Stem::Node, Family::of(address)), address_bytes(address)));
    }
    for (link, address) in &spec.gateways {
        let key = [name_bytes(link), address_bytes(address)].concat();
        all.insert(Element::new(Half::Inet, of_family(Stem::Gateways, Family::of(address)), key));
    }
    all.extend(spec.links.iter().map(|link| Element::new(Half::Inet, "links", name_bytes(link))));
    all
}

/// The networks without those that lie in another one: ranges of a set must not overlap.
pub(super) fn outermost(networks: &BTreeSet<Cidr>) -> BTreeSet<Cidr> {
    let inside = |inner: &&Cidr| {
        let contains = |outer: &Cidr| {
            outer != *inner && outer.contains_address(&inner.network()) && outer.prefix_len() < inner.prefix_len()
        };
        networks.iter().any(contains)
    };
    networks.iter().filter(|network| !inside(network)).copied().collect()
}

fn range(stem: Stem, network: &Cidr) -> Vec<Element> {
    let first = network.network();
    let set = of_family(stem, Family::of(&first));
    let bits = address_bytes(&first).len() * 8;
    let width = address_bytes(&first).len();
    let size = 1_u128.checked_shl(u32::try_from(bits).unwrap_or(0) - u32::from(network.prefix_len()));
    let begin = number(&address_bytes(&first));
    let mut all = vec![Element::new(Half::Inet, set, address_bytes(&first))];
    // Nothing lies behind the last address of all.
    let behind = size.and_then(|size| begin.checked_add(size)).filter(|behind| bits == 128 || *behind >> bits == 0);
    if let Some(behind) = behind {
        let key = behind.to_be_bytes()[16 - width..].to_vec();
        all.push(Element { end: true, ..Element::new(Half::Inet, set, key) });
    }
    all
}

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| (number << 8) | u128::from(*byte))
}

/// What elements that are nobody's say. `intact` is false when they cannot have been written by [`of_ruleset`].
pub(super) fn to_ruleset(elements: &BTreeSet<Element>) -> RulesetSpec {
    let mut spec = RulesetSpec { intact: true, ..RulesetSpec::default() };
    for element in elements {
        let understood = match &*element.set {
            "node4" | "node6" => address(&element.key).map(|address| spec.node.insert(address)),
            "links" => name(&element.key).map(|link| spec.links.insert(link)),
            "gateways4" | "gateways6" => {
                let pair = name(&element.key).zip(element.key.get(NAME_BYTES..).and_then(address));
                pair.map(|pair| spec.gateways.insert(pair))
            }
            "overlay4" | "overlay6" | "local4" | "local6" => Some(true),
            _ => None,
        };
        spec.intact &= understood == Some(true);
    }
    let of = |sets: [&str; 2]| networks(&mut elements.iter().filter(|element| sets.contains(&&*element.set)));
    match (of(["overlay4", "overlay6"]), of(["local4", "local6"])) {
        (Some(overlay), Some(local)) => (spec.overlay, spec.local) = (overlay, local),
        (overlay, local) => {
            spec.intact = false;
            (spec.overlay, spec.local) = (overlay.unwrap_or_default(), local.unwrap_or_default());
        }
    }
    spec
}

/// The networks that the ends of ranges stand for; `None` when a range is no network.
fn networks(ends: &mut dyn Iterator<Item = &Element>) -> Option<BTreeSet<Cidr>> {
    let mut ends: Vec<&Element> = ends.collect();
    // Where one range ends another may begin.
    ends.sort_by_key(|element| (element.set.clone(), element.key.clone(), !element.end));
    let mut all = BTreeSet::new();
    let mut rest = ends.into_iter().peekable();
    while let Some(begin) = rest.next() {
        if begin.end {
            return None;
        }
        let network = address(&begin.key)?;
        let bits: u32 = if network.is_ipv4() { 32 } else { 128 };
        let first = number(&begin.key);
        let size = match rest.peek() {
            Some(end) if end.set == begin.set && end.end => number(&rest.next()?.key).checked_sub(first)?,
            Some(next) if next.set == begin.set => return None,
            Some(_) | None if bits == 128 => 0_u128.wrapping_sub(first),
            Some(_) | None => (1 << bits) - first,
        };
        // A size of zero is the whole of IPv6.
        let prefix = if size == 0 { 0 } else { bits.checked_sub(size.trailing_zeros())? };
        let whole = size == 0 || size.is_power_of_two();
        let cidr: Cidr = format!("{network}/{prefix}").parse().ok()?;
        all.insert(whole.then_some(cidr)?);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> BTreeSet<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_ruleset_is_read_back_as_it_was_written() {
        for overlay in [
            &["10.200.0.0/16", "fd00:200::/48"][..],
            &["0.0.0.0/0", "::/0"],
            &["255.255.255.255/32", "10.0.0.0/25", "10.0.0.128/25", "ffff::/16"],
            &[],
        ] {
            let spec = RulesetSpec {
                intact: true,
                overlay: cidrs(overlay),
                local: cidrs(&["10.200.95.0/26", "10.200.95.64/26"]),
                node: ["10.200.0.1".parse().unwrap(), "fd00:200::1".parse().unwrap()].into(),
                gateways: [("zl-a-b".parse().unwrap(), "10.200.95.1".parse().unwrap())].into(),
                links: ["zl-a-b".parse().unwrap(), "zl-fifteen-byte".parse().unwrap()].into(),
            };
            assert_eq!(to_ruleset(&of_ruleset(&spec)), spec);
        }
    }

    #[test]
    fn a_network_inside_another_adds_nothing() {
        assert_eq!(
            outermost(&cidrs(&["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8"])),
            cidrs(&["10.0.0.0/8", "11.0.0.0/8"])
        );
    }

    #[test]
    fn a_range_that_is_no_network_is_not_ours() {
        let mut elements = of_ruleset(&RulesetSpec { overlay: cidrs(&["10.0.0.0/8"]), ..RulesetSpec::default() });
        let end = elements.iter().find(|element| element.end).unwrap().clone();
        elements.remove(&end);
        elements.insert(Element { key: vec![11, 0, 0, 1], ..end });
        assert!(!to_ruleset(&elements).intact);
    }

    #[test]
    fn a_range_of_keys_that_are_no_addresses_or_that_ends_before_it_begins_is_not_ours() {
        let element = |key: &[u8], end| Element { end, ..Element::new(Half::Inet, "overlay4", key.to_vec()) };
        for elements in [
            vec![element(&[0; 17], false)],
            vec![element(&[], false)],
            vec![element(&[10, 0, 0, 0], false), element(&[11], true)],
        ] {
            assert!(!to_ruleset(&elements.into_iter().collect()).intact);
        }
    }

    #[test]
    fn every_element_of_a_member_knows_whose_it_is() {
        let port: IfName = "veth-4242-s".parse().unwrap();
        for address in ["10.200.95.2", "fd00:200::2"] {
            let address: IpAddr = address.parse().unwrap();
            let spec = MemberSpec { ports: [port.clone()].into(), network: Some(NetworkId(7)) };
            let elements = of_member(&address, &spec);
            assert_eq!(elements.len(), 5);
            for element in elements {
                assert_eq!(element.owner(), Ok(Some(Owner::Address(address))));
            }
        }
        for element in of_port(&port, Some(NetworkId(7))) {
            assert_eq!(element.owner(), Ok(Some(Owner::Port(port.clone()))));
        }
    }
}
