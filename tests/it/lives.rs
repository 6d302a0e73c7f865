//! What holds of segments, addresses and attachments after any sequence of edits, deaths, reloads and reboots.
//!
//! The pools are small on purpose (three services, five pids): what goes wrong goes wrong where things meet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use overlayd::{
    desired::{
        AddressHolder, AddressRecord, AttachmentId, AttachmentRecord, Edit, OverlayRequest, PeerRequest, PeerScope,
        Place, RecordKey, SegmentMode, Subject,
    },
    ids::Networks,
};
use proptest::{collection::vec, prelude::*, sample::select};

use crate::{
    desk::{Desk, REST, address, dual, given, key, netns, pid, request, service, with},
    world::{cidr, overlay, peer, peer_key},
};

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Edit(Box<Edit>),
    Passes(u64),
    Reload,
    /// Every container of the boot before is noticed to be gone.
    Reboot,
}

fn names() -> impl Strategy<Value = &'static str> {
    select(vec!["web", "db", "job"])
}

fn modes() -> impl Strategy<Value = SegmentMode> {
    select(vec![SegmentMode::Auto, SegmentMode::Shared, SegmentMode::Dedicated, SegmentMode::Isolated])
}

fn subjects() -> impl Strategy<Value = Subject> {
    prop_oneof![
        6 => (1..6_u32, 1..3_u64).prop_map(|(number, start)| Subject::Container(netns(number, start))),
        1 => (select(vec![("a", 0), ("b", 128)]), 0..128_u8).prop_map(|((id, own), seed)| {
            // Keys are drawn at random, so two guests never have one key.
            Subject::Guest { id: given(id), fresh: key(own + seed) }
        }),
        1 => select(vec!["a", "b"]).prop_map(|id| Subject::HostShared(given(id))),
    ]
}

fn attaches() -> impl Strategy<Value = Edit> {
    let network = select(vec![None, Some("red"), Some("web")]);
    (subjects(), names(), any::<[bool; 2]>(), network).prop_map(|(subject, name, [global, ephemeral], network)| {
        with(Edit::Attach(request(subject, name)), |wanted| {
            wanted.join_global = global;
            wanted.ephemeral = ephemeral;
            wanted.isolation_network = network.map(|name| name.parse().unwrap());
        })
    })
}

fn overlays() -> impl Strategy<Value = OverlayRequest> {
    let tiny = OverlayRequest { slice: Some(cidr("10.200.3.0/29").into()), ..overlay() };
    let other = OverlayRequest { slice: Some(cidr("10.200.90.64/26").into()), ..overlay() };
    let renamed = OverlayRequest { instance: "1".parse().unwrap(), port: 51825, ..overlay() };
    let unsliced = OverlayRequest { slice: None, ..overlay() };
    select(vec![overlay(), overlay(), dual(), tiny, other, renamed, unsliced])
}

fn handed_out() -> impl Strategy<Value = IpAddr> {
    select(vec!["10.200.3.1", "10.200.3.2", "10.200.3.3", "10.200.90.66", "10.200.90.67", "8.8.8.8"]).prop_map(address)
}

fn scopes() -> impl Strategy<Value = PeerScope> {
    prop_oneof![Just(PeerScope::Node), names().prop_map(|name| PeerScope::Service(service(name)))]
}

fn scoped() -> impl Strategy<Value = Edit> {
    let ips = select(vec!["10.200.3.2/32", "10.200.90.64/26", "10.200.0.0/16", "10.9.0.0/24"]).prop_map(cidr);
    (scopes(), 1..4_u16, ips, 0..4_u8).prop_map(|(scope, number, allowed_ip, kind)| {
        let named = peer_key(number);
        match kind {
            0 => Edit::RemovePeer { scope, peer: named },
            1 => Edit::EnsureAllowedIp { scope, peer: named, allowed_ip },
            2 => Edit::RemoveAllowedIp { scope, peer: named, allowed_ip },
            _ => Edit::EnsurePeer(PeerRequest { scope, allowed_ips: [allowed_ip].into(), ..peer(number) }),
        }
    })
}

pub fn edits() -> impl Strategy<Value = Edit> {
    prop_oneof![
        12 => attaches(),
        5 => subjects().prop_map(|subject| Edit::Detach(subject.id().unwrap())),
        3 => (1..6_u32, 1..3_u64).prop_map(|(number, start)| Edit::Bury { id: pid(number), netns: netns(number, start) }),
        2 => (1..6_u32, 1..40_u64).prop_map(|(number, since)| Edit::Withdraw { id: pid(number), since }),
        5 => (names(), modes(), any::<u8>())
            .prop_map(|(name, mode, seed)| Edit::EnsureSegment { service: service(name), mode, fresh: key(seed) }),
        2 => names().prop_map(|name| Edit::RemoveSegment(service(name))),
        3 => names().prop_map(|name| Edit::AllocateAddress(service(name))),
        2 => handed_out().prop_map(Edit::ReleaseAddress),
        1 => Just(Edit::Prune(BTreeSet::from(["zl-prod-0-web-b".parse().unwrap()]))),
        1 => Just(Edit::ForgetRested),
        3 => overlays().prop_map(Edit::EnsureOverlay),
        1 => Just(Edit::RemoveOverlay),
        2 => scoped(),
        1 => (0..3_u64).prop_map(Edit::SetNodeId),
    ]
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => edits().prop_map(|edit| Event::Edit(Box::new(edit))),
        3 => (1..80_u64).prop_map(Event::Passes),
        1 => Just(Event::Reload),
        1 => Just(Event::Reboot),
    ]
}

impl Desk {
    /// The edits that an event comes to.
    fn happen(&mut self, event: &Event) -> Vec<Edit> {
        match event {
            Event::Edit(edit) => vec![Edit::clone(edit)],
            Event::Passes(seconds) => {
                self.now += seconds;
                Vec::new()
            }
            Event::Reload => {
                let before = self.document.clone();
                self.reload();
                assert_eq!(self.document, before);
                Vec::new()
            }
            Event::Reboot => {
                let dead = |(id, record): (&AttachmentId, &AttachmentRecord)| match &record.place {
                    Place::Container { netns } => Some(Edit::Bury { id: id.clone(), netns: netns.clone() }),
                    Place::Guest { .. } | Place::HostShared => None,
                };
                self.document.attachments().iter().filter_map(dead).collect()
            }
        }
    }

    /// Who has which address, read off the records and off nothing that is derived from them.
    fn holders(&self) -> BTreeMap<IpAddr, String> {
        let mut holders: BTreeMap<IpAddr, String> = BTreeMap::new();
        let mut hold = |address: IpAddr, who: String| {
            let former = holders.insert(address, who.clone());
            assert_eq!(former, None, "{address} of {who}");
        };
        for node in self.document.node_addresses() {
            hold(node.ip, "node".into());
        }
        for (name, segment) in self.document.segments() {
            for subnet in segment.subnets.iter().flat_map(Networks::iter) {
                hold(subnet.address_at(1).unwrap(), format!("bridge of {name}"));
            }
        }
        for subnet in self.document.shared_bridge().iter().flat_map(|bridge| bridge.subnets.iter()) {
            hold(subnet.address_at(1).unwrap(), "shared bridge".into());
        }
        for (id, record) in self.document.attachments() {
            for address in record.held() {
                hold(*address, id.to_string());
            }
        }
        for (address, record) in self.document.addresses() {
            let who = match record {
                AddressRecord::Reserved { service, .. } => format!("reserved {service}"),
                AddressRecord::Resting { .. } => "rest".into(),
            };
            hold(*address, who);
        }
        holders
    }

    /// What has to hold of every document.
    fn check(&self) {
        for (address, who) in self.holders() {
            let indexed = self.document.address_holder(&address).expect("the index knows every holder");
            let said = match indexed {
                AddressHolder::Node => "node".into(),
                AddressHolder::Gateway(name) => format!("bridge of {name}"),
                AddressHolder::SharedGateway => "shared bridge".into(),
                AddressHolder::Attachment(id) => id.to_string(),
                AddressHolder::Reserved(name) => format!("reserved {name}"),
                AddressHolder::Resting(_) => "rest".to_owned(),
            };
            assert_eq!(said, who, "{address}");
        }
        let mut networks: Vec<_> = self.document.overlay().iter().filter_map(|overlay| overlay.slice).collect();
        networks.extend(self.document.segments().values().filter_map(|segment| segment.subnets));
        networks.extend(self.document.shared_bridge().map(|bridge| bridge.subnets));
        for (at, one) in networks.iter().enumerate() {
            assert!(!networks[at + 1..].iter().any(|other| other.iter().any(|net| one.overlaps(net))), "{networks:?}");
        }
        let shared = self.document.segments().values().any(|segment| segment.mode == SegmentMode::Shared);
        assert_eq!(self.document.shared_bridge().is_some(), shared);
        for (id, record) in self.document.attachments() {
            if matches!(record.place, Place::Container { .. }) {
                let net = self.document.segment_net(&record.service).expect("a container has a segment");
                assert!(record.addresses.iter().all(|address| net.subnets.contains_address(address)), "{id}");
            }
            let segment = self.document.segments().get(&record.service);
            let is_isolated = segment.is_some_and(|segment| segment.mode == SegmentMode::Isolated);
            assert!(!is_isolated || record.network.is_some(), "{id} of an isolated service is fenced in");
        }
        assert!(self.document.overlay().is_some() || self.document.segments().is_empty());
    }
}

/// Edits that hand out something else with each call, or say what they just did.
fn answers_otherwise(edit: &Edit) -> bool {
    matches!(edit, Edit::AllocateAddress(_) | Edit::Prune(_))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_ever_has_two_holders_or_is_given_out_while_it_rests(events in vec(events(), 1..60)) {
        let mut desk = Desk::empty();
        // When each address was let go of: a model that knows nothing of records.
        let mut let_go: BTreeMap<IpAddr, u64> = BTreeMap::new();
        let held = |desk: &Desk| -> BTreeMap<IpAddr, String> {
            let by_someone = |who: &String| who.starts_with("reserved") || who.contains('/');
            desk.holders().into_iter().filter(|(_, who)| by_someone(who)).collect()
        };
        for event in &events {
            for edit in desk.happen(event) {
                let (before, generation) = (held(&desk), desk.document.generation());
                let cluster = desk.document.overlay().map(|overlay| overlay.cluster);
                let Ok(change) = desk.consider(&edit) else { continue };
                let inverse = desk.document.inverse(&change.mutations);
                let mut undone = desk.document.clone();
                undone.absorb(generation + 1, &change.mutations);
                undone.absorb(generation, &inverse);
                prop_assert_eq!(&undone, &desk.document);
                let keys: BTreeSet<&RecordKey> = change.mutations.iter().map(|mutation| &mutation.key).collect();
                prop_assert_eq!(keys.len(), change.mutations.len(), "one mutation for each record");
                desk.attempt(&edit).unwrap();
                prop_assert_eq!(desk.document.generation(), generation + u64::from(!change.mutations.is_empty()));
                desk.check();
                let after = held(&desk);
                for (address, _) in after.iter().filter(|(address, who)| before.get(address) != Some(who)) {
                    if let Some(since) = let_go.get(address) {
                        prop_assert!(desk.now >= since + REST, "{} was given out at rest by {:?}", address, edit);
                    }
                }
                for address in before.keys().filter(|address| !after.contains_key(address)) {
                    let_go.insert(*address, desk.now);
                }
                // In another cluster nobody remembers an address of the one before.
                if desk.document.overlay().map(|overlay| overlay.cluster) != cluster {
                    let_go.clear();
                }
                if !answers_otherwise(&edit) {
                    let again = desk.consider(&edit);
                    prop_assert!(again.is_ok(), "{:?} again: {:?}", edit, again);
                    let again = again.unwrap();
                    prop_assert_eq!(&again.mutations, &[], "{:?}", edit);
                    prop_assert_eq!(again.grant, change.grant);
                }
            }
        }
        // Everybody leaves, the addresses have rested, and the pool is as it was.
        for id in desk.document.attachments().keys().cloned().collect::<Vec<_>>() {
            desk.edit(&Edit::Detach(id));
        }
        for (address, record) in desk.document.addresses().clone() {
            if matches!(record, AddressRecord::Reserved { .. }) {
                desk.edit(&Edit::ReleaseAddress(address));
            }
        }
        desk.now += REST;
        desk.edit(&Edit::ForgetRested);
        prop_assert!(desk.document.addresses().is_empty() && desk.document.attachments().is_empty());
        desk.reload();
        desk.check();
    }
}
