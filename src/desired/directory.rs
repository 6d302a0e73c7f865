//! The names of the overlay's zone: which addresses a name has, and which names an address.
//!
//! Owns what a DNS record and an attachment are called. Leaves the zone's own name, and everything about DNS messages, to
//! [`dns`](crate::dns): every name here is relative to the zone.
//!
//! Derived from the document and changed with it, so that an answer is never older than the last edit (A26).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    attachment::{AttachmentId, AttachmentRecord},
    record::DnsRecord,
};
use crate::ids::DnsName;

/// How often each of several things was said: the same address may be given to a name by a record and by an attachment.
type Counted<T> = BTreeMap<T, usize>;

/// Names and addresses, both ways.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    addresses: BTreeMap<DnsName, Counted<IpAddr>>,
    names: BTreeMap<IpAddr, Counted<DnsName>>,
    /// Names under which there are others.
    parents: Counted<DnsName>,
}

impl Directory {
    /// The addresses of a name, each once.
    pub fn addresses(&self, name: &DnsName) -> impl Iterator<Item = &IpAddr> {
        self.addresses.get(name).into_iter().flat_map(BTreeMap::keys)
    }

    /// True for a name that has addresses, and for one under which there is a name that has.
    pub fn has(&self, name: &DnsName) -> bool {
        self.addresses.contains_key(name) || self.parents.contains_key(name)
    }

    /// What an address is called. The name of a service, which many may have, is not among it.
    pub fn names(&self, address: &IpAddr) -> impl Iterator<Item = &DnsName> {
        self.names.get(address).into_iter().flat_map(BTreeMap::keys)
    }

    /// True when an address in this range has a name.
    pub fn has_names_between(&self, first: IpAddr, last: IpAddr) -> bool {
        self.names.range(first..=last).next().is_some()
    }

    /// How many names have addresses.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Every name that has addresses.
    pub fn iter(&self) -> impl Iterator<Item = (&DnsName, BTreeSet<&IpAddr>)> {
        self.addresses.iter().map(|(name, addresses)| (name, addresses.keys().collect()))
    }

    pub(super) fn add_record(&mut self, name: &DnsName, record: &DnsRecord) {
        record.addresses().for_each(|address| self.add(name, address, true));
    }

    pub(super) fn drop_record(&mut self, name: &DnsName, record: &DnsRecord) {
        record.addresses().for_each(|address| self.drop(name, address, true));
    }

    pub(super) fn add_attachment(&mut self, id: &AttachmentId, record: &AttachmentRecord) {
        said_by(id, record).for_each(|(name, address, is_its_own)| self.add(&name, address, is_its_own));
    }

    pub(super) fn drop_attachment(&mut self, id: &AttachmentId, record: &AttachmentRecord) {
        said_by(id, record).for_each(|(name, address, is_its_own)| self.drop(&name, address, is_its_own));
    }

    fn add(&mut self, name: &DnsName, address: IpAddr, leads_back: bool) {
        if !self.addresses.contains_key(name) {
            name.ancestors().for_each(|parent| more(&mut self.parents, parent));
        }
        more(self.addresses.entry(name.clone()).or_default(), address);
        if leads_back {
            more(self.names.entry(address).or_default(), name.clone());
        }
    }

    fn drop(&mut self, name: &DnsName, address: IpAddr, leads_back: bool) {
        if let Some(addresses) = self.addresses.get_mut(name) {
            fewer(addresses, &address);
            if addresses.is_empty() {
                self.addresses.remove(name);
                name.ancestors().for_each(|parent| fewer(&mut self.parents, &parent));
            }
        }
        if leads_back && let Some(names) = self.names.get_mut(&address) {
            fewer(names, name);
            if names.is_empty() {
                self.names.remove(&address);
            }
        }
    }
}

/// The names that an attachment brings, and whether they are its alone. Of a service or an id that is no DNS name there are none.
fn said_by(id: &AttachmentId, record: &AttachmentRecord) -> impl Iterator<Item = (DnsName, IpAddr, bool)> {
    let service: Option<DnsName> = record.service.as_str().parse().ok();
    let own = service.as_ref().and_then(|service| service.child(&id.label()));
    let shared = service.into_iter().flat_map(|name| record.addresses.iter().map(move |ip| (name.clone(), *ip, false)));
    let own = own.into_iter().flat_map(|name| record.held().map(move |ip| (name.clone(), *ip, true)));
    shared.chain(own)
}

fn more<T: Ord>(counted: &mut Counted<T>, what: T) {
    *counted.entry(what).or_default() += 1;
}

fn fewer<T: Ord>(counted: &mut Counted<T>, what: &T) {
    match counted.get_mut(what) {
        Some(count) if *count > 1 => *count -= 1,
        Some(_) | None => {
            counted.remove(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    fn record(addresses: &[&str]) -> DnsRecord {
        let mut record = DnsRecord::default();
        addresses.iter().for_each(|address| record.insert(address.parse().unwrap()));
        record
    }

    #[test]
    fn what_was_added_is_found_both_ways_and_what_was_dropped_leaves_nothing() {
        let mut directory = Directory::default();
        let both = record(&["10.200.3.2", "fd00::2"]);
        directory.add_record(&name("a.b.c"), &both);
        directory.add_record(&name("x.b.c"), &record(&["10.200.3.2"]));
        assert_eq!(directory.addresses(&name("a.b.c")).count(), 2);
        assert!(directory.has(&name("b.c")) && directory.has(&name("c")) && !directory.has(&name("b")));
        let names: Vec<&DnsName> = directory.names(&"10.200.3.2".parse().unwrap()).collect();
        assert_eq!(names, [&name("a.b.c"), &name("x.b.c")]);
        directory.drop_record(&name("a.b.c"), &both);
        assert!(directory.has(&name("b.c")) && !directory.has(&name("a.b.c")));
        directory.drop_record(&name("x.b.c"), &record(&["10.200.3.2"]));
        assert_eq!(directory, Directory::default());
    }

    #[test]
    fn an_address_that_two_gave_to_a_name_stays_until_both_took_it_back() {
        let mut directory = Directory::default();
        let one = record(&["10.200.3.2"]);
        directory.add_record(&name("db"), &one);
        directory.add_record(&name("db"), &one);
        directory.drop_record(&name("db"), &one);
        assert_eq!(directory.addresses(&name("db")).count(), 1);
        directory.drop_record(&name("db"), &one);
        assert_eq!(directory, Directory::default());
    }
}
