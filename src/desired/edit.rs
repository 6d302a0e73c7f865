//! Edits: the ways in which the document can change, each level-triggered and idempotent.
//!
//! Owns the checks that depend on the rest of the document. Leaves the spelling of names and addresses to [`ids`](crate::ids), and
//! keeping the outcome to the [`Committer`](super::Committer).
//!
//! Upholds I-07, I-11, I-12: an edit that changes nothing gives no mutation and no new generation.
//!
//! Moving an allowed IP from one peer to another is not a refusal: a node that comes back with a new key must not be locked out by its
//! old one (A4).

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Document,
    record::{
        Candidate, Mutation, NatSettings, NodeRecord, OverlayRecord, PeerRecord, Record, RecordKey, ResolverRecord,
    },
};
use crate::{
    ids::{Cidr, DnsName, Endpoint, IfName, Label, WgPublicKey, Zone},
    object::Key,
};

/// Most allowed IPs of one peer (I-15). A full routing table would be a mistake; the contract's own senders use a handful.
const ALLOWED_IPS_MAX: usize = 16_384;
/// Most addresses of one DNS name (I-15): what fits a DNS message over TCP with room to spare.
const DNS_ADDRESSES_MAX: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    SetNodeId(u64),
    ClaimPublicKey(WgPublicKey),
    EnsureOverlay(OverlayRequest),
    RemoveOverlay,
    EnsurePeer(PeerRequest),
    RemovePeer(WgPublicKey),
    EnsureAllowedIp { peer: WgPublicKey, allowed_ip: Cidr },
    RemoveAllowedIp { peer: WgPublicKey, allowed_ip: Cidr },
    EnsureDns { name: DnsName, ip: IpAddr },
    RemoveDns(DnsName),
    EnsureResolver { zone: Zone, node_ip: IpAddr, port: Option<u16> },
    RemoveResolver(Zone),
}

/// What a driving daemon asks the node overlay to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayRequest {
    pub deployment: Label,
    pub instance: Label,
    pub cluster: Cidr,
    pub slice: Option<Cidr>,
    pub port: u16,
    pub host_adapter_mandatory: bool,
    pub nat: Option<NatSettings>,
}

/// What a driving daemon asks a peer to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRequest {
    pub public_key: WgPublicKey,
    pub endpoint: Option<Endpoint>,
    pub allowed_ips: BTreeSet<Cidr>,
    /// Seconds.
    pub keepalive: u16,
    pub candidates: Vec<Candidate>,
}

/// What accepting an edit means: the records to write, the objects to look at, what to hand back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub mutations: Vec<Mutation>,
    pub touched: Touched,
    pub grant: Grant,
    /// One line without secrets, for the journal and the log.
    pub summary: String,
    /// Things the caller did not ask for by name: an allowed IP that moved away from another peer.
    pub notes: Vec<String>,
}

/// Which objects an edit is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// None: the document alone (a node id, a DNS record).
    Nothing,
    Keys(BTreeSet<Key>),
    Everything,
}

/// What an edit hands back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    Nothing,
    /// Name of the node's overlay device.
    Device(IfName),
}

/// A "no" to an edit; nothing was changed. Reads as a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("slice {slice} is not inside the cluster network {cluster}; send a slice of that network")]
    SliceOutsideCluster { slice: Cidr, cluster: Cidr },
    #[error("network {0} is too small to hold a node address; send a prefix shorter than the full length")]
    TooSmall(Cidr),
    #[error("WireGuard port 0 cannot be listened on; send a port from 1 to 65535")]
    PortZero,
    #[error("the key is this node's own; a node is not its own peer")]
    OwnKey,
    #[error("no peer has the public key {0}; add the peer first")]
    UnknownPeer(WgPublicKey),
    #[error("a peer may have at most {ALLOWED_IPS_MAX} allowed IPs; send shorter prefixes")]
    TooManyAllowedIps,
    #[error("{0} has {DNS_ADDRESSES_MAX} addresses already; unregister the name first")]
    TooManyAddresses(DnsName),
}

impl Edit {
    /// One line without secrets.
    pub fn summary(&self) -> String {
        match self {
            Edit::SetNodeId(id) => format!("set node id {id}"),
            Edit::ClaimPublicKey(key) => format!("claim public key {key}"),
            Edit::EnsureOverlay(wanted) => format!(
                "ensure overlay {} {} cluster {} slice {} port {}",
                wanted.deployment,
                wanted.instance,
                wanted.cluster,
                wanted.slice.map_or("none".into(), |slice| slice.to_string()),
                wanted.port
            ),
            Edit::RemoveOverlay => "remove overlay".into(),
            Edit::EnsurePeer(peer) => format!("ensure peer {}", peer.public_key),
            Edit::RemovePeer(key) => format!("remove peer {key}"),
            Edit::EnsureAllowedIp { peer, allowed_ip } => format!("ensure allowed ip {allowed_ip} of peer {peer}"),
            Edit::RemoveAllowedIp { peer, allowed_ip } => format!("remove allowed ip {allowed_ip} of peer {peer}"),
            Edit::EnsureDns { name, ip } => format!("ensure dns {name} {ip}"),
            Edit::RemoveDns(name) => format!("remove dns {name}"),
            Edit::EnsureResolver { zone, node_ip, .. } => format!("ensure resolver {zone} {node_ip}"),
            Edit::RemoveResolver(zone) => format!("remove resolver {zone}"),
        }
    }
}

/// What `edit` would change in `document`, whose next generation would be `next`.
///
/// *Guarantees*: pure; considering an edit again after its change was absorbed gives no mutation.
///
/// # Errors
/// The refusal, when the edit contradicts itself or the document.
pub fn consider(document: &Document, edit: &Edit, next: u64) -> Result<Change, Refusal> {
    let mut change = Change {
        mutations: Vec::new(),
        touched: Touched::Nothing,
        grant: Grant::Nothing,
        summary: edit.summary(),
        notes: Vec::new(),
    };
    match edit {
        Edit::SetNodeId(id) => {
            let node = NodeRecord { node_id: Some(*id), ..document.node().clone() };
            propose(document, &mut change, RecordKey::Node, Record::Node(node));
        }
        Edit::ClaimPublicKey(key) => {
            let node = NodeRecord { claimed_key: Some(*key), ..document.node().clone() };
            propose(document, &mut change, RecordKey::Node, Record::Node(node));
        }
        Edit::EnsureOverlay(wanted) => ensure_overlay(document, wanted, next, &mut change)?,
        Edit::RemoveOverlay => remove_overlay(document, &mut change),
        Edit::EnsurePeer(wanted) => ensure_peer(document, wanted, next, &mut change)?,
        Edit::RemovePeer(key) => {
            withdraw(document, &mut change, RecordKey::Peer(*key));
            touch_peers(document, &mut change);
        }
        Edit::EnsureAllowedIp { peer, allowed_ip } => {
            let mut record = document.peers().get(peer).ok_or(Refusal::UnknownPeer(*peer))?.clone();
            record.allowed_ips.insert(*allowed_ip);
            ensure_peer_record(document, *peer, record, next, &mut change)?;
        }
        Edit::RemoveAllowedIp { peer, allowed_ip } => {
            if let Some(mut record) = document.peers().get(peer).cloned() {
                record.allowed_ips.remove(allowed_ip);
                ensure_peer_record(document, *peer, record, next, &mut change)?;
            }
        }
        Edit::EnsureDns { name, ip } => ensure_dns(document, name, *ip, &mut change)?,
        Edit::RemoveDns(name) => withdraw(document, &mut change, RecordKey::Dns(name.clone())),
        Edit::EnsureResolver { zone, node_ip, port } => {
            let record = ResolverRecord { node_ip: *node_ip, port: *port };
            propose(document, &mut change, RecordKey::Resolver(zone.clone()), Record::Resolver(record));
        }
        Edit::RemoveResolver(zone) => withdraw(document, &mut change, RecordKey::Resolver(zone.clone())),
    }
    Ok(change)
}

/// Adds the mutation that brings the record about, unless it is there already.
fn propose(document: &Document, change: &mut Change, key: RecordKey, record: Record) {
    if document.record(&key).as_ref() != Some(&record) {
        change.mutations.push(Mutation { key, record: Some(record) });
    }
}

/// Adds the mutation that removes the record, unless there is none.
fn withdraw(document: &Document, change: &mut Change, key: RecordKey) {
    if document.record(&key).is_some() {
        change.mutations.push(Mutation { key, record: None });
    }
}

fn ensure_overlay(document: &Document, wanted: &OverlayRequest, next: u64, change: &mut Change) -> Result<(), Refusal> {
    if wanted.port == 0 {
        return Err(Refusal::PortZero);
    }
    if wanted.cluster.address_at(1).is_none() {
        return Err(Refusal::TooSmall(wanted.cluster));
    }
    if let Some(slice) = wanted.slice {
        if !wanted.cluster.contains(&slice) {
            return Err(Refusal::SliceOutsideCluster { slice, cluster: wanted.cluster });
        }
        if slice.address_at(1).is_none() {
            return Err(Refusal::TooSmall(slice));
        }
    }
    let mut record = OverlayRecord {
        deployment: wanted.deployment.clone(),
        instance: wanted.instance.clone(),
        cluster: wanted.cluster,
        slice: wanted.slice,
        port: wanted.port,
        host_adapter_mandatory: wanted.host_adapter_mandatory,
        nat: wanted.nat.clone(),
        since: next,
    };
    change.grant = Grant::Device(record.device_name());
    change.touched = Touched::Everything;
    if let Some(present) = document.overlay() {
        record.since = present.since;
        if *present == record {
            return Ok(());
        }
        record.since = next;
    }
    change.mutations.push(Mutation { key: RecordKey::Overlay, record: Some(Record::Overlay(record)) });
    Ok(())
}

/// The overlay goes, and with it its peers: they are the configuration of a device that no longer exists
/// (docs/decisions/0005-teardown-removes-peers.md). The node's key and DNS records stay.
fn remove_overlay(document: &Document, change: &mut Change) {
    withdraw(document, change, RecordKey::Overlay);
    if document.overlay().is_some() {
        for key in document.peers().keys() {
            change.mutations.push(Mutation { key: RecordKey::Peer(*key), record: None });
        }
    }
    change.touched = Touched::Everything;
}

fn ensure_peer(document: &Document, wanted: &PeerRequest, next: u64, change: &mut Change) -> Result<(), Refusal> {
    if document.node_key().is_some_and(|own| own.public == Some(wanted.public_key)) {
        return Err(Refusal::OwnKey);
    }
    let present = document.peers().get(&wanted.public_key);
    let endpoint_since = match present {
        Some(present) if present.endpoint == wanted.endpoint => present.endpoint_since,
        Some(_) | None => next,
    };
    let record = PeerRecord {
        endpoint: wanted.endpoint.clone(),
        allowed_ips: wanted.allowed_ips.clone(),
        keepalive: wanted.keepalive,
        candidates: wanted.candidates.clone(),
        since: next,
        endpoint_since,
    };
    ensure_peer_record(document, wanted.public_key, record, next, change)
}

/// Ensures the record of one peer, and takes its allowed IPs from whichever peers have them now.
fn ensure_peer_record(
    document: &Document,
    key: WgPublicKey,
    mut record: PeerRecord,
    next: u64,
    change: &mut Change,
) -> Result<(), Refusal> {
    if record.allowed_ips.len() > ALLOWED_IPS_MAX {
        return Err(Refusal::TooManyAllowedIps);
    }
    record.since = document.peers().get(&key).map_or(next, |present| present.since);
    if document.peers().get(&key) != Some(&record) {
        record.since = next;
        let losers: BTreeSet<WgPublicKey> = record
            .allowed_ips
            .iter()
            .filter_map(|allowed_ip| document.holder(allowed_ip))
            .filter(|holder| **holder != key)
            .copied()
            .collect();
        for loser in losers {
            let Some(mut shrunk) = document.peers().get(&loser).cloned() else {
                continue;
            };
            for moved in shrunk.allowed_ips.intersection(&record.allowed_ips) {
                change.notes.push(format!("allowed ip {moved} moves from peer {loser} to peer {key}"));
            }
            shrunk.allowed_ips.retain(|allowed_ip| !record.allowed_ips.contains(allowed_ip));
            shrunk.since = next;
            // First in the list: absorbing the winner last leaves it as the holder.
            change.mutations.push(Mutation { key: RecordKey::Peer(loser), record: Some(Record::Peer(shrunk)) });
        }
        change.mutations.push(Mutation { key: RecordKey::Peer(key), record: Some(Record::Peer(record)) });
    }
    touch_peers(document, change);
    if change.mutations.is_empty() {
        touch_peer(document, change, key);
    }
    Ok(())
}

fn ensure_dns(document: &Document, name: &DnsName, ip: IpAddr, change: &mut Change) -> Result<(), Refusal> {
    let mut record = document.dns().get(name).cloned().unwrap_or_default();
    match ip {
        IpAddr::V4(ip) => record.a.insert(ip),
        IpAddr::V6(ip) => record.aaaa.insert(ip),
    };
    if record.a.len() + record.aaaa.len() > DNS_ADDRESSES_MAX {
        return Err(Refusal::TooManyAddresses(name.clone()));
    }
    propose(document, change, RecordKey::Dns(name.clone()), Record::Dns(record));
    Ok(())
}

/// Names the peers of the change as objects to look at, where there is a device to look on.
fn touch_peers(document: &Document, change: &mut Change) {
    let keys: Vec<WgPublicKey> = change
        .mutations
        .iter()
        .filter_map(|mutation| match &mutation.key {
            RecordKey::Peer(key) => Some(*key),
            RecordKey::Node | RecordKey::NodeKey | RecordKey::Overlay | RecordKey::Dns(_) | RecordKey::Resolver(_) => {
                None
            }
        })
        .collect();
    for key in keys {
        touch_peer(document, change, key);
    }
}

fn touch_peer(document: &Document, change: &mut Change, public_key: WgPublicKey) {
    let Some(device) = document.device_name() else { return };
    let key = Key::Peer { device, public_key };
    match &mut change.touched {
        Touched::Keys(keys) => {
            keys.insert(key);
        }
        Touched::Nothing => change.touched = Touched::Keys(BTreeSet::from([key])),
        Touched::Everything => {}
    }
}
