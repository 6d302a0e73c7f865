use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    addressing::{NodeAddress, node_address},
    attachment::{AddressRecord, AttachmentId, AttachmentRecord},
    directory::Directory,
    edit::PeerScope,
    index::{AddressHolder, Index, gateways},
    naming::{Role, interface_name},
    peer_table::PeerTable,
    record::{
        BadRecord, DnsRecord, Mutation, NodeRecord, OverlayRecord, PeerRecord, Record, RecordKey, ResolverRecord,
    },
    segment::{SegmentMode, SegmentRecord, SharedBridgeRecord},
    store::Contents,
};
use crate::{
    ids::{Cidr, DnsName, IfName, NetworkName, Networks, ServiceName, WgPublicKey, Zone},
    object::{KeyPair, NetworkId},
};

/// What this node should look like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    generation: u64,
    settled: u64,
    node: NodeRecord,
    node_key: Option<KeyPair>,
    overlay: Option<OverlayRecord>,
    peers: PeerTable,
    service_peers: BTreeMap<ServiceName, PeerTable>,
    dns: BTreeMap<DnsName, DnsRecord>,
    resolvers: BTreeMap<Zone, ResolverRecord>,
    segments: BTreeMap<ServiceName, SegmentRecord>,
    shared_bridge: Option<SharedBridgeRecord>,
    attachments: BTreeMap<AttachmentId, AttachmentRecord>,
    addresses: BTreeMap<IpAddr, AddressRecord>,
    /// Derived from `attachments`, `segments` and `shared_bridge`.
    index: Index,
    /// Derived from `dns` and `attachments`.
    directory: Directory,
    /// Derived from the generations of what shapes the node.
    shaped: Moment,
}

/// A generation by which documents are not told apart: two that say the same are equal, whatever came before.
#[derive(Debug, Clone, Copy, Default)]
struct Moment(u64);

impl PartialEq for Moment {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Moment {}

/// The bridge that a service's containers are ports of, and what is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentNet {
    pub bridge: IfName,
    pub subnets: Networks,
    /// The bridge's own address in each of the subnets.
    pub gateways: Vec<IpAddr>,
}

/// How many addresses are held by attachments, reserved for a caller, and resting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressCounts {
    pub attached: usize,
    pub reserved: usize,
    pub resting: usize,
}

/// Stands where no device has peers.
static NO_PEERS: BTreeMap<WgPublicKey, PeerRecord> = BTreeMap::new();

impl Document {
    /// The document that was kept.
    ///
    /// # Errors
    /// When a record cannot be read, or two records claim one address. Nothing is left out silently (I-02).
    pub fn from_contents(contents: &Contents) -> Result<Self, BadRecord> {
        let mut document = Document::default();
        for (text, bytes) in &contents.records {
            let key: RecordKey = text.parse()?;
            let record = Record::decode(&key, bytes)?;
            document.check_holders(text, &record)?;
            document.shaped.0 = document.shaped.0.max(record.shapes_since());
            document.put(key, Some(record));
        }
        document.generation = contents.generation;
        document.settled = contents.settled;
        Ok(document)
    }

    /// I-11 for what comes from a disk: an edit never writes such records.
    fn check_holders(&self, key: &str, record: &Record) -> Result<(), BadRecord> {
        let Record::Attachment(attachment) = record else { return Ok(()) };
        let mut seen = BTreeSet::new();
        for address in attachment.held() {
            if !seen.insert(address) || self.index.held.contains_key(address) || self.addresses.contains_key(address) {
                return Err(BadRecord::new(key, format_args!("address {address} has two holders")));
            }
        }
        Ok(())
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The last generation known to have reached the kernel before this process started.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    pub fn node(&self) -> &NodeRecord {
        &self.node
    }

    pub fn node_key(&self) -> Option<&KeyPair> {
        self.node_key.as_ref()
    }

    pub fn overlay(&self) -> Option<&OverlayRecord> {
        self.overlay.as_ref()
    }

    /// Peers of the node's device.
    pub fn peers(&self) -> &BTreeMap<WgPublicKey, PeerRecord> {
        self.peers.peers()
    }

    /// Peers of a service's own device, also while there is no such device.
    pub fn service_peers(&self, service: &ServiceName) -> &BTreeMap<WgPublicKey, PeerRecord> {
        self.service_peers.get(service).map_or(&NO_PEERS, PeerTable::peers)
    }

    /// The services that have peers of their own.
    pub fn services_with_peers(&self) -> impl Iterator<Item = &ServiceName> {
        self.service_peers.keys()
    }

    /// Every peer of every device, the node's first.
    pub fn all_peers(&self) -> impl Iterator<Item = (PeerScope, &WgPublicKey, &PeerRecord)> {
        let of =
            |scope: PeerScope, table| PeerTable::peers(table).iter().map(move |(key, peer)| (scope.clone(), key, peer));
        let services =
            self.service_peers.iter().flat_map(move |(name, table)| of(PeerScope::Service(name.clone()), table));
        of(PeerScope::Node, &self.peers).chain(services)
    }

    pub fn peers_of(&self, scope: &PeerScope) -> &BTreeMap<WgPublicKey, PeerRecord> {
        match scope {
            PeerScope::Node => self.peers(),
            PeerScope::Service(service) => self.service_peers(service),
        }
    }

    pub fn dns(&self) -> &BTreeMap<DnsName, DnsRecord> {
        &self.dns
    }

    /// The names of the overlay's zone.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    pub fn resolvers(&self) -> &BTreeMap<Zone, ResolverRecord> {
        &self.resolvers
    }

    pub fn segments(&self) -> &BTreeMap<ServiceName, SegmentRecord> {
        &self.segments
    }

    pub fn shared_bridge(&self) -> Option<&SharedBridgeRecord> {
        self.shared_bridge.as_ref()
    }

    pub fn attachments(&self) -> &BTreeMap<AttachmentId, AttachmentRecord> {
        &self.attachments
    }

    /// Addresses that no attachment holds but that are not free either.
    pub fn addresses(&self) -> &BTreeMap<IpAddr, AddressRecord> {
        &self.addresses
    }

    /// How many addresses are not free, and why: what a leak would show in first.
    pub fn address_counts(&self) -> AddressCounts {
        let is_reserved = |record: &&AddressRecord| matches!(record, AddressRecord::Reserved { .. });
        let reserved = self.addresses.values().filter(is_reserved).count();
        AddressCounts { attached: self.index.held.len(), reserved, resting: self.addresses.len() - reserved }
    }

    /// The attachments of a service.
    pub fn attached(&self, service: &ServiceName) -> impl Iterator<Item = &AttachmentId> {
        self.index.attached.get(service).into_iter().flatten()
    }

    pub fn attached_count(&self, service: &ServiceName) -> usize {
        self.index.attached.get(service).map_or(0, BTreeSet::len)
    }

    /// The addresses that attachments hold, and their holders, in the order of addresses.
    pub(super) fn held(&self) -> &BTreeMap<IpAddr, AttachmentId> {
        &self.index.held
    }

    /// The container that a link is the host end of.
    pub fn attachment_of_link(&self, link: &IfName) -> Option<(AttachmentId, &AttachmentRecord)> {
        let id = AttachmentId::of_link(link)?;
        self.attachments.get(&id).map(|record| (id, record))
    }

    /// The guest with this public key: a peer of the node's device that is not among [`peers`](Self::peers).
    pub fn guest_of_key(&self, key: &WgPublicKey) -> Option<&AttachmentId> {
        self.index.guests.get(key)
    }

    /// Who has an address.
    pub fn address_holder(&self, address: &IpAddr) -> Option<AddressHolder> {
        if self.node_addresses().iter().any(|node| node.ip == *address) {
            return Some(AddressHolder::Node);
        }
        if let Some(gateway) = self.index.gateways.get(address) {
            return Some(gateway.clone().map_or(AddressHolder::SharedGateway, AddressHolder::Gateway));
        }
        if let Some(id) = self.index.held.get(address) {
            return Some(AddressHolder::Attachment(id.clone()));
        }
        self.addresses.get(address).map(|record| match record {
            AddressRecord::Reserved { service, .. } => AddressHolder::Reserved(service.clone()),
            AddressRecord::Resting { until, .. } => AddressHolder::Resting(*until),
        })
    }

    /// An isolation network in use that the firewall could not tell from this one.
    pub(super) fn network_like(&self, name: &NetworkName) -> Option<&NetworkName> {
        self.index.networks_with(NetworkId::of(name)).find(|other| *other != name)
    }

    /// The peer of the node's device whose allowed IPs hold exactly this network.
    pub fn holder(&self, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        self.peers.holder(allowed_ip)
    }

    /// The same for the device of a scope.
    pub fn holder_in(&self, scope: &PeerScope, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        match scope {
            PeerScope::Node => self.holder(allowed_ip),
            PeerScope::Service(service) => self.service_peers.get(service)?.holder(allowed_ip),
        }
    }

    /// Every network that is routed to a peer, but for those of one service's own device.
    pub(super) fn routed_elsewhere(&self, service: Option<&ServiceName>) -> impl Iterator<Item = &Cidr> {
        let others = self.service_peers.iter().filter(move |(name, _)| Some(*name) != service);
        self.peers.allowed_ips().chain(others.flat_map(|(_, table)| table.allowed_ips()))
    }

    /// Name of the node's overlay device, once there is an overlay.
    pub fn device_name(&self) -> Option<IfName> {
        self.overlay.as_ref().map(OverlayRecord::device_name)
    }

    /// Name of a service's own device, while its segment is a dedicated one.
    pub fn dedicated_device_name(&self, service: &ServiceName) -> Option<IfName> {
        self.segments.get(service)?.dedicated.as_ref()?;
        self.overlay.as_ref().map(|overlay| overlay.dedicated_device_name(service))
    }

    /// Generation at which the overlay or a segment was last made, changed or removed.
    pub fn segments_since(&self) -> u64 {
        self.shaped.0
    }

    /// Whose peers are on the device with this name.
    pub fn scope_of_device(&self, device: &IfName) -> Option<PeerScope> {
        let services = self.segments.keys().map(|service| PeerScope::Service(service.clone()));
        std::iter::once(PeerScope::Node).chain(services).find(|scope| self.device_of(scope).as_ref() == Some(device))
    }

    /// Name of the device that a scope's peers are on, while there is one.
    pub fn device_of(&self, scope: &PeerScope) -> Option<IfName> {
        match scope {
            PeerScope::Node => self.device_name(),
            PeerScope::Service(service) => self.dedicated_device_name(service),
        }
    }

    /// The bridge of a service's segment.
    pub fn segment_net(&self, service: &ServiceName) -> Option<SegmentNet> {
        let segment = self.segments.get(service)?;
        let overlay = self.overlay.as_ref()?;
        match segment.subnets {
            Some(subnets) => Some(SegmentNet::new(overlay.bridge_name(service), subnets)),
            None => self.shared_net(),
        }
    }

    /// The bridge of all shared segments.
    pub fn shared_net(&self) -> Option<SegmentNet> {
        Some(SegmentNet::new(self.overlay.as_ref()?.shared_bridge_name(), self.shared_bridge.as_ref()?.subnets))
    }

    /// True when packets of others pass through this node.
    pub fn serves_others(&self) -> bool {
        !self.segments.is_empty() || !self.attachments.is_empty()
    }

    /// The node's overlay addresses, one for each family of its slice; none until it has one.
    pub fn node_addresses(&self) -> Vec<NodeAddress> {
        self.overlay.as_ref().map(OverlayRecord::node_addresses).unwrap_or_default()
    }

    /// The first of [`node_addresses`](Self::node_addresses).
    pub fn node_ip(&self) -> Option<IpAddr> {
        self.node_addresses().first().map(|address| address.ip)
    }

    /// The record under a key, as it would have to be written to bring it back.
    pub fn record(&self, key: &RecordKey) -> Option<Record> {
        match key {
            RecordKey::Node => (self.node != NodeRecord::default()).then(|| Record::Node(self.node.clone())),
            RecordKey::NodeKey => self.node_key.clone().map(Record::NodeKey),
            RecordKey::Overlay => self.overlay.clone().map(Record::Overlay),
            RecordKey::Peer(key) => self.peers().get(key).cloned().map(Record::Peer),
            RecordKey::Dns(name) => self.dns.get(name).cloned().map(Record::Dns),
            RecordKey::Resolver(zone) => self.resolvers.get(zone).cloned().map(Record::Resolver),
            RecordKey::Segment(service) => self.segments.get(service).cloned().map(Record::Segment),
            RecordKey::SharedBridge => self.shared_bridge.clone().map(Record::SharedBridge),
            RecordKey::Attachment(id) => self.attachments.get(id).cloned().map(Record::Attachment),
            RecordKey::Address(address) => self.addresses.get(address).cloned().map(Record::Address),
            RecordKey::ServicePeer(service, key) => {
                self.service_peers(service).get(key).cloned().map(Record::ServicePeer)
            }
        }
    }

    /// Takes in mutations; the document then has this generation. The only way a document changes.
    pub fn absorb(&mut self, generation: u64, mutations: &[Mutation]) {
        for mutation in mutations {
            self.put(mutation.key.clone(), mutation.record.clone());
            if mutation.key.shapes_the_node() {
                self.shaped.0 = generation;
            }
        }
        self.generation = generation;
    }

    /// The mutations that undo `mutations`, were they absorbed now.
    pub fn inverse(&self, mutations: &[Mutation]) -> Vec<Mutation> {
        let undo = |mutation: &Mutation| Mutation { key: mutation.key.clone(), record: self.record(&mutation.key) };
        // Backwards, so that what was freed for a new holder is given back only after that one has let go.
        mutations.iter().rev().map(undo).collect()
    }

    fn put(&mut self, key: RecordKey, record: Option<Record>) {
        match (key, record) {
            (RecordKey::Node, Some(Record::Node(record))) => self.node = record,
            (RecordKey::Node, None) => self.node = NodeRecord::default(),
            (RecordKey::NodeKey, Some(Record::NodeKey(key))) => self.node_key = Some(key),
            (RecordKey::NodeKey, None) => self.node_key = None,
            (RecordKey::Overlay, Some(Record::Overlay(record))) => self.overlay = Some(record),
            (RecordKey::Overlay, None) => self.overlay = None,
            (RecordKey::Peer(key), Some(Record::Peer(record))) => self.peers.put(key, record),
            (RecordKey::Peer(key), None) => self.peers.remove(&key),
            (RecordKey::Dns(name), Some(Record::Dns(record))) => self.put_dns(name, Some(record)),
            (RecordKey::Dns(name), None) => self.put_dns(name, None),
            (RecordKey::Resolver(zone), Some(Record::Resolver(record))) => {
                set(&mut self.resolvers, zone, Some(record));
            }
            (RecordKey::Resolver(zone), None) => set(&mut self.resolvers, zone, None),
            (RecordKey::Segment(service), Some(Record::Segment(record))) => self.put_segment(service, Some(record)),
            (RecordKey::Segment(service), None) => self.put_segment(service, None),
            (RecordKey::SharedBridge, Some(Record::SharedBridge(record))) => self.put_shared_bridge(Some(record)),
            (RecordKey::SharedBridge, None) => self.put_shared_bridge(None),
            (RecordKey::Attachment(id), Some(Record::Attachment(record))) => self.put_attachment(id, Some(record)),
            (RecordKey::Attachment(id), None) => self.put_attachment(id, None),
            (RecordKey::Address(address), Some(Record::Address(record))) => {
                debug_assert!(!self.index.held.contains_key(&address), "{address} is held by an attachment (I-11)");
                set(&mut self.addresses, address, Some(record));
            }
            (RecordKey::Address(address), None) => set(&mut self.addresses, address, None),
            (RecordKey::ServicePeer(service, key), Some(Record::ServicePeer(record))) => {
                self.service_peers.entry(service).or_default().put(key, record);
            }
            (RecordKey::ServicePeer(service, key), None) => self.remove_service_peer(&service, &key),
            (key, Some(_)) => unreachable!("decode gives the record that fits its key, {key}"),
        }
    }

    fn put_dns(&mut self, name: DnsName, record: Option<DnsRecord>) {
        if let Some(former) = self.dns.remove(&name) {
            self.directory.drop_record(&name, &former);
        }
        if let Some(record) = &record {
            self.directory.add_record(&name, record);
        }
        set(&mut self.dns, name, record);
    }

    fn put_segment(&mut self, service: ServiceName, record: Option<SegmentRecord>) {
        let subnets = |record: &Option<SegmentRecord>| record.as_ref().and_then(|record| record.subnets);
        let former = self.segments.remove(&service);
        if let Some(subnets) = subnets(&former) {
            self.index.drop_gateways(&subnets, Some(&service));
        }
        if let Some(subnets) = subnets(&record) {
            self.index.add_gateways(&subnets, Some(&service));
        }
        set(&mut self.segments, service, record);
    }

    fn put_shared_bridge(&mut self, record: Option<SharedBridgeRecord>) {
        if let Some(former) = self.shared_bridge.take() {
            self.index.drop_gateways(&former.subnets, None);
        }
        if let Some(record) = &record {
            self.index.add_gateways(&record.subnets, None);
        }
        self.shared_bridge = record;
    }

    fn put_attachment(&mut self, id: AttachmentId, record: Option<AttachmentRecord>) {
        if let Some(former) = self.attachments.remove(&id) {
            self.index.drop(&id, &former);
            self.directory.drop_attachment(&id, &former);
        }
        if let Some(record) = &record {
            debug_assert!(
                !record.held().any(|address| self.addresses.contains_key(address)),
                "an address of {id} is reserved or rests (I-11)"
            );
            self.index.add(&id, record);
            self.directory.add_attachment(&id, record);
        }
        set(&mut self.attachments, id, record);
    }

    fn remove_service_peer(&mut self, service: &ServiceName, key: &WgPublicKey) {
        let Some(table) = self.service_peers.get_mut(service) else { return };
        table.remove(key);
        if table.peers().is_empty() {
            self.service_peers.remove(service);
        }
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}

impl SegmentNet {
    pub(super) fn new(bridge: IfName, subnets: Networks) -> Self {
        Self { bridge, subnets, gateways: gateways(&subnets) }
    }
}

impl OverlayRecord {
    pub fn device_name(&self) -> IfName {
        interface_name(&self.parts(), Role::NodeDevice)
    }

    pub fn bridge_name(&self, service: &ServiceName) -> IfName {
        let [deployment, instance] = self.parts();
        interface_name(&[deployment, instance, service.as_str()], Role::ServiceBridge)
    }

    pub fn dedicated_device_name(&self, service: &ServiceName) -> IfName {
        let [deployment, instance] = self.parts();
        interface_name(&[deployment, instance, service.as_str()], Role::DedicatedDevice)
    }

    pub fn shared_bridge_name(&self) -> IfName {
        let [deployment, instance] = self.parts();
        interface_name(&[deployment, instance, SHARED], Role::SharedBridge)
    }

    /// The name of the bridge that a segment of this mode has.
    pub fn bridge_of(&self, service: &ServiceName, mode: SegmentMode) -> IfName {
        match mode {
            SegmentMode::Auto | SegmentMode::Isolated | SegmentMode::Dedicated => self.bridge_name(service),
            SegmentMode::Shared => self.shared_bridge_name(),
        }
    }

    fn parts(&self) -> [&str; 2] {
        [self.deployment.as_str(), self.instance.as_str()]
    }

    /// One for each family of the slice, in the slice's order.
    pub fn node_addresses(&self) -> Vec<NodeAddress> {
        let address = |slice: &Cidr| node_address(self.cluster.of_family(slice)?, slice);
        self.slice.iter().flat_map(Networks::iter).filter_map(address).collect()
    }
}

/// Stands where a service's name stands in the name of the shared bridge.
const SHARED: &str = "shared";
