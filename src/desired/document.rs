use std::{collections::BTreeMap, net::IpAddr};

use super::{
    addressing::{NodeAddress, node_address},
    naming::{Role, interface_name},
    record::{
        BadRecord, DnsRecord, Mutation, NodeRecord, OverlayRecord, PeerRecord, Record, RecordKey, ResolverRecord,
    },
    store::Contents,
};
use crate::{
    ids::{Cidr, DnsName, IfName, WgPublicKey, Zone},
    object::KeyPair,
};

/// What this node should look like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    generation: u64,
    settled: u64,
    node: NodeRecord,
    node_key: Option<KeyPair>,
    overlay: Option<OverlayRecord>,
    peers: BTreeMap<WgPublicKey, PeerRecord>,
    dns: BTreeMap<DnsName, DnsRecord>,
    resolvers: BTreeMap<Zone, ResolverRecord>,
    /// Which peer has an allowed IP: derived from `peers` (I-11).
    holders: BTreeMap<Cidr, WgPublicKey>,
}

impl Document {
    /// The document that was kept.
    ///
    /// # Errors
    /// When a record cannot be read. Nothing is left out silently (I-02).
    pub fn from_contents(contents: &Contents) -> Result<Self, BadRecord> {
        let mut document = Document::default();
        for (text, bytes) in &contents.records {
            let key: RecordKey = text.parse()?;
            let record = Record::decode(&key, bytes)?;
            document.put(key, Some(record));
        }
        document.generation = contents.generation;
        document.settled = contents.settled;
        Ok(document)
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

    pub fn peers(&self) -> &BTreeMap<WgPublicKey, PeerRecord> {
        &self.peers
    }

    pub fn dns(&self) -> &BTreeMap<DnsName, DnsRecord> {
        &self.dns
    }

    pub fn resolvers(&self) -> &BTreeMap<Zone, ResolverRecord> {
        &self.resolvers
    }

    /// The peer whose allowed IPs hold exactly this network.
    pub fn holder(&self, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        self.holders.get(allowed_ip)
    }

    /// Name of the node's overlay device, once there is an overlay.
    pub fn device_name(&self) -> Option<IfName> {
        self.overlay.as_ref().map(OverlayRecord::device_name)
    }

    /// The node's overlay address, once it has a slice.
    pub fn node_address(&self) -> Option<NodeAddress> {
        self.overlay.as_ref().and_then(OverlayRecord::node_address)
    }

    pub fn node_ip(&self) -> Option<IpAddr> {
        self.node_address().map(|address| address.ip)
    }

    /// The record under a key, as it would have to be written to bring it back.
    pub fn record(&self, key: &RecordKey) -> Option<Record> {
        match key {
            RecordKey::Node => (self.node != NodeRecord::default()).then(|| Record::Node(self.node.clone())),
            RecordKey::NodeKey => self.node_key.clone().map(Record::NodeKey),
            RecordKey::Overlay => self.overlay.clone().map(Record::Overlay),
            RecordKey::Peer(key) => self.peers.get(key).cloned().map(Record::Peer),
            RecordKey::Dns(name) => self.dns.get(name).cloned().map(Record::Dns),
            RecordKey::Resolver(zone) => self.resolvers.get(zone).cloned().map(Record::Resolver),
        }
    }

    /// Takes in mutations; the document then has this generation. The only way a document changes.
    pub fn absorb(&mut self, generation: u64, mutations: &[Mutation]) {
        for mutation in mutations {
            self.put(mutation.key.clone(), mutation.record.clone());
        }
        self.generation = generation;
    }

    /// The mutations that undo `mutations`, were they absorbed now.
    pub fn inverse(&self, mutations: &[Mutation]) -> Vec<Mutation> {
        let undo = |mutation: &Mutation| Mutation { key: mutation.key.clone(), record: self.record(&mutation.key) };
        mutations.iter().map(undo).collect()
    }

    fn put(&mut self, key: RecordKey, record: Option<Record>) {
        match (key, record) {
            (RecordKey::Node, Some(Record::Node(record))) => self.node = record,
            (RecordKey::Node, None) => self.node = NodeRecord::default(),
            (RecordKey::NodeKey, Some(Record::NodeKey(key))) => self.node_key = Some(key),
            (RecordKey::NodeKey, None) => self.node_key = None,
            (RecordKey::Overlay, Some(Record::Overlay(record))) => self.overlay = Some(record),
            (RecordKey::Overlay, None) => self.overlay = None,
            (RecordKey::Peer(key), Some(Record::Peer(record))) => self.put_peer(key, record),
            (RecordKey::Peer(key), None) => self.remove_peer(&key),
            (RecordKey::Dns(name), Some(Record::Dns(record))) => {
                self.dns.insert(name, record);
            }
            (RecordKey::Dns(name), None) => {
                self.dns.remove(&name);
            }
            (RecordKey::Resolver(zone), Some(Record::Resolver(record))) => {
                self.resolvers.insert(zone, record);
            }
            (RecordKey::Resolver(zone), None) => {
                self.resolvers.remove(&zone);
            }
            (key, Some(_)) => unreachable!("decode gives the record that fits its key, {key}"),
        }
    }

    fn put_peer(&mut self, key: WgPublicKey, record: PeerRecord) {
        self.remove_peer(&key);
        for allowed_ip in &record.allowed_ips {
            self.holders.insert(*allowed_ip, key);
        }
        self.peers.insert(key, record);
    }

    fn remove_peer(&mut self, key: &WgPublicKey) {
        let Some(record) = self.peers.remove(key) else { return };
        for allowed_ip in &record.allowed_ips {
            if self.holders.get(allowed_ip) == Some(key) {
                self.holders.remove(allowed_ip);
            }
        }
    }
}

impl OverlayRecord {
    pub fn device_name(&self) -> IfName {
        interface_name(&[self.deployment.as_str(), self.instance.as_str()], Role::NodeDevice)
    }

    pub fn node_address(&self) -> Option<NodeAddress> {
        node_address(&self.cluster, &self.slice?)
    }
}
