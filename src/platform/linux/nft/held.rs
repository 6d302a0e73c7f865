//! What the sets hold, by whom it is there for, and the smallest change of it.
//!
//! Owns the copy of the sets' elements that changes are computed against. Leaves keeping it true to [`firewall`](super::firewall).
//!
//! Upholds I-08 (a change names exactly the elements that differ).
//!
//! A port stands in the sets for as long as one of its addresses does: it goes with the last of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::element::{self, Element, Owner};
use crate::{
    ids::IfName,
    object::{MemberSpec, NetworkId},
};

/// The elements of our sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Those of the ruleset itself.
    pub(super) fixed: BTreeSet<Element>,
    owned: BTreeMap<Owner, BTreeSet<Element>>,
    /// What the elements of each address say, as far as they agree.
    members: BTreeMap<IpAddr, MemberSpec>,
    ports: BTreeMap<IfName, BTreeSet<IpAddr>>,
    /// How many addresses each network has.
    networks: BTreeMap<u32, usize>,
}

/// What has to be done to the sets, and what they hold then.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) remove: Vec<Element>,
    pub(super) add: Vec<Element>,
    /// Networks that get their first member.
    pub(super) begun: BTreeSet<u32>,
    /// Networks that lose their last member.
    pub(super) ended: BTreeSet<u32>,
    after: BTreeMap<Owner, BTreeSet<Element>>,
    members: BTreeMap<IpAddr, Option<MemberSpec>>,
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

impl Held {
    /// Sorts elements by whom they are there for; those that make no sense are left out.
    pub(super) fn new(elements: impl IntoIterator<Item = Element>) -> Self {
        let mut held = Self::default();
        for element in elements {
            match element.owner() {
                Ok(Some(owner)) => held.owned.entry(owner).or_default().insert(element),
                Ok(None) => held.fixed.insert(element),
                Err(element::Unreadable) => false,
            };
        }
        for (owner, elements) in &held.owned {
            if let Owner::Address(address) = owner {
                let ports: BTreeSet<IfName> = elements.iter().filter_map(Element::own_port).collect();
                let network = elements.iter().find_map(|element| element.value).map(NetworkId);
                for port in &ports {
                    held.ports.entry(port.clone()).or_default().insert(*address);
                }
                if let Some(network) = network {
                    *held.networks.entry(network.0).or_default() += 1;
                }
                held.members.insert(*address, MemberSpec { ports, network });
            }
        }
        held
    }

    /// Each address with its spec as it works now; one whose elements do not fit together has a network that nobody can want.
    pub(super) fn members(&self) -> BTreeMap<IpAddr, MemberSpec> {
        let none = BTreeSet::new();
        let held = |owner: &Owner| self.owned.get(owner).unwrap_or(&none).clone();
        let port_fits: BTreeMap<&IfName, bool> = self
            .ports
            .keys()
            .map(|port| {
                let wanted = element::of_port(port, self.network_of(port, &BTreeMap::new()));
                (port, held(&Owner::Port(port.clone())) == wanted)
            })
            .collect();
        let fits = |address: &IpAddr, spec: &MemberSpec| {
            held(&Owner::Address(*address)) == element::of_member(address, spec)
                && spec.ports.iter().all(|port| port_fits.get(port) == Some(&true))
                && spec.ports.iter().all(|port| self.network_of(port, &BTreeMap::new()) == spec.network)
        };
        let told = |(address, spec): (&IpAddr, &MemberSpec)| {
            let network = if fits(address, spec) { spec.network } else { Some(NetworkId::TORN) };
            (*address, MemberSpec { network, ports: spec.ports.clone() })
        };
        self.members.iter().map(told).collect()
    }

    /// True when a port is there without an address: nothing of ours leaves that behind.
    pub(super) fn has_strays(&self) -> bool {
        self.owned.keys().any(|owner| matches!(owner, Owner::Port(port) if !self.ports.contains_key(port)))
    }

    /// The network of a port: that of its addresses. While they change one after the other they may differ; then it is one of them, and
    /// never none.
    fn network_of(&self, port: &IfName, changed: &BTreeMap<IpAddr, Option<MemberSpec>>) -> Option<NetworkId> {
        self.addresses_of(port, changed).filter_map(|(_, spec)| spec.network).min()
    }

    fn addresses_of<'a>(
        &'a self,
        port: &'a IfName,
        changed: &'a BTreeMap<IpAddr, Option<MemberSpec>>,
    ) -> impl Iterator<Item = (&'a IpAddr, &'a MemberSpec)> {
        let before = self.ports.get(port).into_iter().flatten().filter(|address| !changed.contains_key(address));
        let before = before.filter_map(|address| self.members.get_key_value(address));
        let after = changed.iter().filter_map(|(address, spec)| Some((address, spec.as_ref()?)));
        before.chain(after.filter(move |(_, spec)| spec.ports.contains(port)))
    }

    /// What makes each address as wanted; `None`: gone.
    pub(super) fn change(&self, wanted: BTreeMap<IpAddr, Option<MemberSpec>>) -> Change {
        let mut change = Change::default();
        let mut ports = BTreeSet::new();
        for (address, spec) in &wanted {
            let owner = Owner::Address(*address);
            ports.extend(spec.iter().flat_map(|spec| spec.ports.iter().cloned()));
            ports.extend(self.owned.get(&owner).into_iter().flatten().filter_map(Element::own_port));
            let after = spec.as_ref().map(|spec| element::of_member(address, spec)).unwrap_or_default();
            change.after.insert(owner, after);
        }
        for port in ports {
            let stays = self.addresses_of(&port, &wanted).next().is_some();
            let network = self.network_of(&port, &wanted);
            let after = if stays { element::of_port(&port, network) } else { BTreeSet::new() };
            change.after.insert(Owner::Port(port), after);
        }
        let none = BTreeSet::new();
        for (owner, after) in &change.after {
            let before = self.owned.get(owner).unwrap_or(&none);
            change.remove.extend(before.difference(after).cloned());
            change.add.extend(after.difference(before).cloned());
        }
        self.count_networks(&wanted, &mut change);
        change.members = wanted;
        change
    }

    fn count_networks(&self, wanted: &BTreeMap<IpAddr, Option<MemberSpec>>, change: &mut Change) {
        let mut after: BTreeMap<u32, usize> = BTreeMap::new();
        let mut count = |spec: Option<&MemberSpec>, joins: bool| {
            let Some(network) = spec.and_then(|spec| spec.network) else { return };
            let members = after.entry(network.0).or_insert_with(|| self.networks.get(&network.0).copied().unwrap_or(0));
            *members = if joins { *members + 1 } else { members.saturating_sub(1) };
        };
        for (address, spec) in wanted {
            count(spec.as_ref(), true);
            count(self.members.get(address), false);
        }
        for (network, members) in after {
            match (self.networks.contains_key(&network), members > 0) {
                (false, true) => change.begun.insert(network),
                (true, false) => change.ended.insert(network),
                (false, false) | (true, true) => false,
            };
        }
    }

    /// The networks that have a member.
    pub(super) fn networks(&self) -> impl Iterator<Item = u32> {
        self.networks.keys().copied()
    }

    /// Takes in a change that the kernel has acknowledged.
    pub(super) fn accept(&mut self, change: Change) {
        for (owner, after) in change.after {
            if after.is_empty() {
                self.owned.remove(&owner);
            } else {
                self.owned.insert(owner, after);
            }
        }
        for (address, spec) in change.members {
            if let Some(before) = self.members.remove(&address) {
                self.leave(&before, &address);
            }
            if let Some(spec) = spec {
                if let Some(network) = spec.network {
                    *self.networks.entry(network.0).or_default() += 1;
                }
                for port in &spec.ports {
                    self.ports.entry(port.clone()).or_default().insert(address);
                }
                self.members.insert(address, spec);
            }
        }
    }

    fn leave(&mut self, before: &MemberSpec, address: &IpAddr) {
        for port in &before.ports {
            let Some(addresses) = self.ports.get_mut(port) else { continue };
            addresses.remove(address);
            if addresses.is_empty() {
                self.ports.remove(port);
            }
        }
        if let Some(network) = before.network
            && let Some(members) = self.networks.get_mut(&network.0)
        {
            *members -= 1;
            if *members == 0 {
                self.networks.remove(&network.0);
            }
        }
    }

    /// The same members with everything that belongs to them and nothing that does not. An address of which neither port nor network is left
    /// is no member: it would have no elements.
    pub(super) fn mended(&self) -> Self {
        let mut mended = Self::default();
        let says_something = |spec: &MemberSpec| !spec.ports.is_empty() || spec.network.is_some();
        let members = self.members.iter().filter(|(_, spec)| says_something(spec));
        let change = mended.change(members.map(|(address, spec)| (*address, Some(spec.clone()))).collect());
        mended.accept(change);
        mended
    }

    pub(super) fn elements(&self) -> impl Iterator<Item = &Element> {
        self.fixed.iter().chain(self.owned.values().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(port: &str, network: u32) -> MemberSpec {
        let ports = port.split(',').map(|port| port.parse().unwrap()).collect();
        MemberSpec { ports, network: (network > 0).then_some(NetworkId(network)) }
    }

    fn set(held: &mut Held, address: &str, spec: Option<MemberSpec>) -> (usize, usize) {
        let change = held.change(BTreeMap::from([(address.parse().unwrap(), spec)]));
        let counts = (change.remove.len(), change.add.len());
        held.accept(change);
        assert_eq!(*held, Held::new(held.elements().cloned()), "the copy is what the sets would say");
        counts
    }

    #[test]
    fn a_port_comes_with_its_first_address_and_goes_with_its_last() {
        let mut held = Held::default();
        assert_eq!(set(&mut held, "10.0.0.2", Some(spec("veth-1-s", 7))), (0, 9));
        assert_eq!(set(&mut held, "fd00::2", Some(spec("veth-1-s", 7))), (0, 5));
        assert_eq!(set(&mut held, "10.0.0.2", Some(spec("veth-1-s", 7))), (0, 0));
        assert_eq!(set(&mut held, "10.0.0.2", None), (5, 0));
        assert_eq!(set(&mut held, "fd00::2", None), (9, 0));
        assert_eq!(held, Held::default());
    }

    #[test]
    fn a_move_to_another_port_or_network_leaves_nothing_of_the_old_one() {
        let mut held = Held::default();
        set(&mut held, "10.0.0.2", Some(spec("veth-1-s", 7)));
        set(&mut held, "10.0.0.2", Some(spec("veth-2-s", 8)));
        assert_eq!(held.members(), BTreeMap::from([("10.0.0.2".parse().unwrap(), spec("veth-2-s", 8))]));
        set(&mut held, "10.0.0.2", Some(spec("veth-2-s", 0)));
        assert_eq!(held.elements().count(), 4);
        assert!(!held.has_strays());
    }

    #[test]
    fn an_address_of_two_ports_fences_both_in_and_gives_one_up_alone() {
        let mut held = Held::default();
        assert_eq!(set(&mut held, "10.0.0.2", Some(spec("veth-1-g,veth-1-s", 7))), (0, 15));
        assert_eq!(held.members(), BTreeMap::from([("10.0.0.2".parse().unwrap(), spec("veth-1-g,veth-1-s", 7))]));
        assert_eq!(set(&mut held, "10.9.0.2", Some(spec("veth-1-g,veth-1-s", 7))), (0, 7));
        assert_eq!(
            set(&mut held, "10.0.0.2", Some(spec("veth-1-s", 7))),
            (2, 0),
            "the other address still needs the port"
        );
        assert_eq!(set(&mut held, "10.9.0.2", None), (11, 0), "and takes it along");
        assert_eq!(held.members(), BTreeMap::from([("10.0.0.2".parse().unwrap(), spec("veth-1-s", 7))]));
        assert!(!held.has_strays());
    }

    #[test]
    fn a_port_is_fenced_in_while_one_of_its_addresses_is_isolated() {
        let mut held = Held::default();
        set(&mut held, "10.0.0.2", Some(spec("veth-1-s", 7)));
        set(&mut held, "fd00::2", Some(spec("veth-1-s", 0)));
        assert_eq!(held.elements().filter(|element| element.set == "network").count(), 1);
    }

    #[test]
    fn a_member_whose_elements_do_not_fit_together_is_not_as_anybody_wants_it_and_is_mended_by_its_update() {
        for ports in ["veth-1-s", "veth-1-g,veth-1-s"] {
            without_each_of_its_elements(&spec(ports, 7));
        }
    }

    #[test]
    fn an_address_of_which_neither_port_nor_network_is_left_is_not_mended_into_a_member_without_elements() {
        let mut whole = Held::default();
        set(&mut whole, "10.0.0.2", Some(spec("veth-1-s", 7)));
        let torn = Held::new(whole.elements().filter(|element| element.set == "isolated4").cloned());
        assert_eq!(torn.mended(), Held::default());
    }

    fn without_each_of_its_elements(member: &MemberSpec) {
        let mut whole = Held::default();
        set(&mut whole, "10.0.0.2", Some(member.clone()));
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        for missing in whole.elements() {
            let torn = Held::new(whole.elements().filter(|element| *element != missing).cloned());
            let seen = torn.members();
            assert_ne!(seen.get(&address), Some(member), "without {missing:?}");
            let mut torn = torn;
            let change = torn.change(BTreeMap::from([(address, Some(member.clone()))]));
            assert_eq!(change.add, std::slice::from_ref(missing));
            torn.accept(change);
            assert_eq!(torn, whole);
        }
    }
}
