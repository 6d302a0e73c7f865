//! What this node answers on its own authority: the overlay's zone, and the reverse zones of its cluster networks.
//!
//! Owns which question is ours, and the records, `NODATA` and `NXDOMAIN` that answer it. Leaves messages and sockets to
//! [`serve`](super::serve), and every other question to [`forward`](super::forward).
//!
//! Upholds A26: an answer is read from the document as it is now, and lives for seconds.
//!
//! A reverse name belongs to us when its address lies in a cluster network, whether or not that network ends at a dot of the name.

use std::net::IpAddr;

use hickory_resolver::proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{NS, PTR, SOA},
};
use ipnet::IpNet;

use crate::{
    desired::Document,
    ids::{Cidr, DnsName},
};

/// Time for which an answer holds, seconds. A container that is gone is soon forgotten.
pub const ANSWER_TTL: u32 = 5;
/// Time for which it holds that there is no such name or record, seconds (RFC 2308 section 4).
pub const NEGATIVE_TTL: u32 = 2;

/// Names that are told of one address; a site may give it any number, and a message has an end.
const NAMES_MAX: usize = 64;

/// Of no use to anybody, since nobody copies the zone; the values of RFC 1912 section 2.2 for one that may change at any time.
const REFRESH: i32 = 1_200;
const RETRY: i32 = 180;
const EXPIRE: i32 = 1_209_600;

/// What the zone says to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The records that were asked for; never empty.
    Records(Vec<Record>),
    /// The name exists and has no such record. With the zone's SOA.
    NoData(Box<Record>),
    /// There is no such name. With the zone's SOA.
    NoName(Box<Record>),
}

/// Answers a question; `None` when it is about something else than the overlay.
///
/// *Guarantees*: pure. A name is compared without regard to case and given back as it was asked for (RFC 4343).
pub fn answer(document: &Document, zone: &DnsName, name: &Name, kind: RecordType) -> Option<Verdict> {
    let place = Place::of(document, zone, name)?;
    let soa = || Box::new(place.soa(document, zone));
    let Some(all) = place.records(document, zone, name) else { return Some(Verdict::NoName(soa())) };
    let asked = |record: &Record| kind == RecordType::ANY || record.record_type() == kind;
    let records: Vec<Record> = all.into_iter().filter(asked).collect();
    Some(if records.is_empty() { Verdict::NoData(soa()) } else { Verdict::Records(records) })
}

/// Where in our zones a name is.
enum Place {
    /// The zone itself, or a name under it. `None`: one that cannot have records, because it is no host's name.
    Zone(Option<Relative>),
    /// The addresses that a reverse name stands for, and the name of its zone. `None`: under such a name, but not an address.
    Reverse { apex: Name, net: Option<IpNet> },
}

enum Relative {
    Apex,
    Name(DnsName),
}

impl Place {
    fn of(document: &Document, zone: &DnsName, name: &Name) -> Option<Self> {
        let apex = absolute(zone);
        if apex.zone_of(name) {
            let text = name.to_ascii();
            let relative = text.parse::<DnsName>().ok().and_then(|name| match name.within(zone)? {
                "" => Some(Relative::Apex),
                before => before.parse().ok().map(Relative::Name),
            });
            return Some(Place::Zone(relative));
        }
        let cluster = &document.overlay()?.cluster;
        // `num_labels` leaves out a `*`, which is a label like any other in a question.
        let all = name.iter().count();
        // What stands before the part that is an address, if anything, makes it a name that nobody has.
        let (labels, net) = (2..=all).rev().find_map(|labels| {
            let net = name.trim_to(labels).parse_arpa_name().ok()?;
            Some((labels, net))
        })?;
        let ours = cluster.iter().find(|cluster| cluster.net().contains(&net))?;
        // The labels `+1` and `001` are read as numbers too.
        let spelled = Name::from(net.addr()).trim_to(labels);
        let is_exact = labels == all && spelled.zone_of(name);
        Some(Place::Reverse { apex: reverse_apex(ours, name), net: is_exact.then_some(net) })
    }

    fn apex(&self, zone: &DnsName) -> Name {
        match self {
            Place::Zone(_) => absolute(zone),
            Place::Reverse { apex, .. } => apex.clone(),
        }
    }

    /// All records of the name; `None` when there is no such name.
    fn records(&self, document: &Document, zone: &DnsName, name: &Name) -> Option<Vec<Record>> {
        let directory = document.directory();
        let record = |data: RData| Record::from_rdata(name.clone(), ANSWER_TTL, data);
        let at_the_top = || {
            let mut soa = self.soa(document, zone);
            soa.name = name.clone();
            soa.ttl = ANSWER_TTL;
            vec![soa, record(RData::NS(NS(server(zone))))]
        };
        match self {
            Place::Zone(None) | Place::Reverse { net: None, .. } => None,
            Place::Zone(Some(Relative::Apex)) => Some(at_the_top()),
            Place::Zone(Some(Relative::Name(relative))) => {
                let mut addresses: Vec<IpAddr> = directory.addresses(relative).copied().collect();
                if relative.as_str() == SERVER {
                    addresses.extend(document.node_addresses().iter().map(|own| own.ip));
                    addresses.sort_unstable();
                    addresses.dedup();
                }
                let exists = !addresses.is_empty() || directory.has(relative);
                exists.then(|| addresses.into_iter().map(|ip| record(ip.into())).collect())
            }
            Place::Reverse { apex, net: Some(net) } => {
                if apex.zone_of(name) && name.zone_of(apex) {
                    return Some(at_the_top());
                }
                let full = |name: &DnsName| absolute(name).append_domain(&absolute(zone)).ok();
                let address = net.addr();
                let names = directory.names(&address).take(NAMES_MAX).filter_map(full);
                let pointers: Vec<Record> = names.map(|full| record(RData::PTR(PTR(full)))).collect();
                let is_address = net.prefix_len() == net.max_prefix_len();
                let exists = if is_address {
                    !pointers.is_empty()
                } else {
                    directory.has_names_between(net.network(), net.broadcast())
                };
                exists.then(|| if is_address { pointers } else { Vec::new() })
            }
        }
    }

    fn soa(&self, document: &Document, zone: &DnsName) -> Record {
        let mailbox = absolute(zone).prepend_label("hostmaster").unwrap_or_else(|_| absolute(zone));
        #[expect(clippy::cast_possible_truncation, reason = "serial numbers wrap (RFC 1982)")]
        let serial = document.generation() as u32;
        let soa = SOA::new(server(zone), mailbox, serial, REFRESH, RETRY, EXPIRE, NEGATIVE_TTL);
        Record::from_rdata(self.apex(zone), NEGATIVE_TTL, RData::SOA(soa))
    }
}

/// What this node is called as the server of the zone.
const SERVER: &str = "ns";

fn server(zone: &DnsName) -> Name {
    absolute(zone).prepend_label(SERVER).unwrap_or_else(|_| absolute(zone))
}

fn absolute(name: &DnsName) -> Name {
    match Name::from_ascii(format!("{name}.")) {
        Ok(name) => name,
        Err(_) => unreachable!("a DNS name is made of labels that a message can carry"),
    }
}

/// The zone that a reverse name in a cluster network is in: the part of the name that all addresses of the zone share.
///
/// One address is no zone, unlike for [`Cidr::reverse_zones`]: a zone's own name always exists, and that of an address may be nobody's.
fn reverse_apex(cluster: &Cidr, name: &Name) -> Name {
    let of_one_address = Cidr::host(cluster.network()).reverse_labels();
    name.trim_to(usize::from(cluster.reverse_labels().min(of_one_address - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apex(cluster: &str, name: &str) -> String {
        reverse_apex(&cluster.parse().unwrap(), &Name::from_ascii(name).unwrap()).to_ascii()
    }

    #[test]
    fn a_cluster_network_has_the_reverse_zones_that_its_prefix_asks_for() {
        let v4 = "4.3.201.10.in-addr.arpa.";
        assert_eq!(apex("10.201.0.0/16", v4), "201.10.in-addr.arpa.");
        assert_eq!(apex("10.200.0.0/14", v4), "201.10.in-addr.arpa.");
        assert_eq!(apex("10.201.3.0/26", v4), "3.201.10.in-addr.arpa.");
        assert_eq!(apex("10.201.3.4/32", v4), "3.201.10.in-addr.arpa.");
        assert_eq!(apex("10.200.0.0/14", "201.10.in-addr.arpa."), "201.10.in-addr.arpa.");
        let v6 = format!("1.{}1.0.0.0.0.0.2.0.0.0.d.f.ip6.arpa.", "0.".repeat(19));
        assert_eq!(apex("fd00:200::/48", &v6), "1.0.0.0.0.0.2.0.0.0.d.f.ip6.arpa.");
        assert_eq!(apex("fd00:200::/46", &v6), "1.0.0.0.0.0.2.0.0.0.d.f.ip6.arpa.");
        assert_eq!(apex("fd00:200:1::/127", &v6), v6[2..]);
    }

    #[test]
    fn an_address_that_is_spelled_in_another_way_has_no_records() {
        let document = crate::dns::fuzz::document();
        let ask = |name: &str| {
            let name = Name::from_ascii(name).unwrap();
            answer(&document, &"overlay".parse().unwrap(), &name, RecordType::PTR)
        };
        assert!(matches!(ask("1.9.200.10.IN-ADDR.arpa."), Some(Verdict::Records(_))));
        for other in ["*.1.9.200.10.in-addr.arpa.", "01.9.200.10.in-addr.arpa.", "1.9.200.010.in-addr.arpa."] {
            let Some(Verdict::NoName(soa)) = ask(other) else { panic!("{other}") };
            assert!(soa.name.zone_of(&Name::from_ascii(other).unwrap()), "{soa}");
        }
    }
}
