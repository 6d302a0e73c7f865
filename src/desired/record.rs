//! The stored form of the document: one record under one key.
//!
//! Owns the JSON of every record; `state/FORMAT.md` is its description and `state/v1/` its proof. Leaves checksums and files to
//! [`store`](super::store).
//!
//! Upholds I-02: a record that cannot be read is an error that names its key, never left out.
//!
//! Keys and credentials are stored in clear (the files are 0600); [`redact`](super::redact) is what makes an export fit for other eyes.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{
    attachment::{AddressRecord, AttachmentId, AttachmentRecord, Place},
    segment::{SegmentRecord, SharedBridgeRecord},
    stored_key::StoredKey,
};
use crate::{
    ids::{BadId, Cidr, DnsName, Endpoint, Label, Networks, ServiceName, WgPublicKey, Zone},
    object::KeyPair,
    secret::SecretText,
};

/// Which record. The text form is the key in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// What the driving daemon said about this node.
    Node,
    /// The node's WireGuard private key.
    NodeKey,
    /// The node overlay.
    Overlay,
    /// A peer of the node's device.
    Peer(WgPublicKey),
    Dns(DnsName),
    Resolver(Zone),
    /// A service's segment.
    Segment(ServiceName),
    /// The bridge of all shared segments.
    SharedBridge,
    Attachment(AttachmentId),
    /// An address that no attachment holds but that is not free either.
    Address(IpAddr),
    /// A peer of a service's own device; kept also while there is no such device.
    ServicePeer(ServiceName, WgPublicKey),
}

/// A record's value; the variant always fits the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Node(NodeRecord),
    NodeKey(KeyPair),
    Overlay(OverlayRecord),
    Peer(PeerRecord),
    Dns(DnsRecord),
    Resolver(ResolverRecord),
    Segment(SegmentRecord),
    SharedBridge(SharedBridgeRecord),
    Attachment(AttachmentRecord),
    Address(AddressRecord),
    ServicePeer(PeerRecord),
}

/// One record's new value; `None` removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    pub key: RecordKey,
    pub record: Option<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Raft id of this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<u64>,
    /// The public key that the driving daemon believes this node to have: a claim, never used as a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_key: Option<WgPublicKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayRecord {
    pub deployment: Label,
    pub instance: Label,
    pub cluster: Networks,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    /// At most one network of each family of the cluster.
    pub slice: Option<Networks>,
    /// UDP port of the node's WireGuard device.
    pub port: u16,
    #[serde(default)]
    pub host_adapter_mandatory: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatSettings>,
    /// Generation at which this record last changed.
    pub since: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatSettings {
    pub enabled: bool,
    pub stun_servers: Vec<String>,
    pub turn_servers: Vec<TurnServer>,
    pub hole_punch_timeout_secs: u64,
    pub stun_refresh_interval_secs: u64,
    pub max_candidate_pairs: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay_server: Option<RelayServer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnServer {
    pub addr: String,
    pub username: String,
    pub credential: SecretText,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayServer {
    pub listen_port: u16,
    pub external_addr: String,
    pub max_sessions: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_credential: Option<SecretText>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    pub allowed_ips: BTreeSet<Cidr>,
    /// Seconds; 0 means none.
    pub keepalive: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// Generation at which this record last changed.
    pub since: u64,
    /// Generation at which the endpoint last changed: newer than what the loop settled means that it must be set (A5).
    pub endpoint_since: u64,
}

/// An address at which a peer may be reached, as it advertised it when it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub candidate_type: String,
    pub address: String,
    pub priority: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsRecord {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub a: BTreeSet<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aaaa: BTreeSet<Ipv6Addr>,
}

impl DnsRecord {
    pub fn insert(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.a.insert(address),
            IpAddr::V6(address) => self.aaaa.insert(address),
        };
    }

    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let a = self.a.iter().copied().map(IpAddr::V4);
        a.chain(self.aaaa.iter().copied().map(IpAddr::V6))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverRecord {
    pub node_ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Generation at which this record last changed.
    #[serde(default)]
    pub since: u64,
}

/// A stored record that this program cannot read.
#[derive(Debug, thiserror::Error)]
#[error("record {key:?} cannot be read: {why}")]
pub struct BadRecord {
    key: String,
    why: String,
}

/// Longest reason in characters: a list of the names that are known fits in.
const WHY_MAX: usize = 256;

impl BadRecord {
    /// The reason may repeat a word of what was found: it is shown without control characters, and cut short.
    pub(super) fn new(key: &str, why: impl fmt::Display) -> Self {
        let why = why.to_string();
        let mut shown: String = why.chars().take(WHY_MAX).collect();
        if shown.len() < why.len() {
            shown.push('…');
        }
        let why = if shown.chars().any(char::is_control) { shown.escape_debug().to_string() } else { shown };
        Self { key: key.to_owned(), why }
    }
}

const PEER_PREFIX: &str = "peer/node/";
const DNS_PREFIX: &str = "dns/";
const RESOLVER_PREFIX: &str = "resolver/";
const SEGMENT_PREFIX: &str = "segment/";
const ATTACHMENT_PREFIX: &str = "attachment/";
const ADDRESS_PREFIX: &str = "address/";
const SERVICE_PEER_PREFIX: &str = "peer/service/";
/// Base64 of a key's 32 bytes. It may hold slashes, and so may a service's name: the length tells where the key begins.
const KEY_TEXT_LEN: usize = 44;

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordKey::Node => f.write_str("node"),
            RecordKey::NodeKey => f.write_str("node-key"),
            RecordKey::Overlay => f.write_str("overlay"),
            RecordKey::Peer(key) => write!(f, "{PEER_PREFIX}{key}"),
            RecordKey::Dns(name) => write!(f, "{DNS_PREFIX}{name}"),
            RecordKey::Resolver(zone) => write!(f, "{RESOLVER_PREFIX}{zone}"),
            RecordKey::Segment(service) => write!(f, "{SEGMENT_PREFIX}{service}"),
            RecordKey::SharedBridge => f.write_str("shared-bridge"),
            RecordKey::Attachment(id) => write!(f, "{ATTACHMENT_PREFIX}{id}"),
            RecordKey::Address(address) => write!(f, "{ADDRESS_PREFIX}{address}"),
            RecordKey::ServicePeer(service, key) => write!(f, "{SERVICE_PEER_PREFIX}{service}/{key}"),
        }
    }
}

impl RecordKey {
    /// True for the records that more than one object's rules depend on: the overlay and its segments.
    pub(super) fn shapes_the_node(&self) -> bool {
        match self {
            RecordKey::Overlay | RecordKey::Segment(_) | RecordKey::SharedBridge => true,
            RecordKey::Node
            | RecordKey::NodeKey
            | RecordKey::Peer(_)
            | RecordKey::ServicePeer(..)
            | RecordKey::Dns(_)
            | RecordKey::Resolver(_)
            | RecordKey::Attachment(_)
            | RecordKey::Address(_) => false,
        }
    }
}

impl FromStr for RecordKey {
    type Err = BadRecord;
    /// One record, one spelling: with a second one a document would have one record less than its store, and nobody would be told (I-02).
    fn from_str(text: &str) -> Result<Self, BadRecord> {
        let key = Self::read(text)?;
        let spelled = key.to_string();
        if spelled != text {
            return Err(BadRecord::new(text, format_args!("must be written {spelled:?}")));
        }
        Ok(key)
    }
}

impl RecordKey {
    fn read(text: &str) -> Result<Self, BadRecord> {
        let bad = |why: BadId| BadRecord::new(text, why);
        match text {
            "node" => return Ok(RecordKey::Node),
            "node-key" => return Ok(RecordKey::NodeKey),
            "overlay" => return Ok(RecordKey::Overlay),
            "shared-bridge" => return Ok(RecordKey::SharedBridge),
            _ => {}
        }
        if let Some(key) = text.strip_prefix(PEER_PREFIX) {
            return key.parse().map(RecordKey::Peer).map_err(bad);
        }
        if let Some(name) = text.strip_prefix(DNS_PREFIX) {
            return name.parse().map(RecordKey::Dns).map_err(bad);
        }
        if let Some(zone) = text.strip_prefix(RESOLVER_PREFIX) {
            return zone.parse().map(RecordKey::Resolver).map_err(bad);
        }
        if let Some(service) = text.strip_prefix(SEGMENT_PREFIX) {
            return service.parse().map(RecordKey::Segment).map_err(bad);
        }
        if let Some(id) = text.strip_prefix(ATTACHMENT_PREFIX) {
            return id.parse().map(RecordKey::Attachment).map_err(bad);
        }
        if let Some(address) = text.strip_prefix(ADDRESS_PREFIX) {
            let bad = |_| BadRecord::new(text, "does not end in an address");
            return address.parse().map(RecordKey::Address).map_err(bad);
        }
        if let Some(rest) = text.strip_prefix(SERVICE_PEER_PREFIX) {
            return service_peer_key(rest).ok_or_else(|| BadRecord::new(text, "is not SERVICE/PUBLIC-KEY"));
        }
        Err(BadRecord::new(text, "this overlayd knows no record of that name"))
    }
}

fn service_peer_key(text: &str) -> Option<RecordKey> {
    let (service, key) = text.split_at_checked(text.len().checked_sub(KEY_TEXT_LEN)?)?;
    let service = service.strip_suffix('/')?.parse().ok()?;
    key.parse().ok().map(|key| RecordKey::ServicePeer(service, key))
}

impl Record {
    /// Generation at which a record that shapes the node last changed; 0 for every other record.
    pub(super) fn shapes_since(&self) -> u64 {
        match self {
            Record::Overlay(record) => record.since,
            Record::Segment(record) => record.since,
            Record::SharedBridge(record) => record.since,
            Record::Node(_)
            | Record::NodeKey(_)
            | Record::Peer(_)
            | Record::ServicePeer(_)
            | Record::Dns(_)
            | Record::Resolver(_)
            | Record::Attachment(_)
            | Record::Address(_) => 0,
        }
    }

    /// The bytes to store. Holds secrets in clear.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = match self {
            Record::Node(record) => serde_json::to_vec(record),
            Record::NodeKey(key) => serde_json::to_vec(&StoredKey::of(key)),
            Record::Overlay(record) => serde_json::to_vec(record),
            Record::Peer(record) => serde_json::to_vec(record),
            Record::Dns(record) => serde_json::to_vec(record),
            Record::Resolver(record) => serde_json::to_vec(record),
            Record::Segment(record) => serde_json::to_vec(record),
            Record::SharedBridge(record) => serde_json::to_vec(record),
            Record::Attachment(record) => serde_json::to_vec(record),
            Record::Address(record) => serde_json::to_vec(record),
            Record::ServicePeer(record) => serde_json::to_vec(record),
        };
        match encoded {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a record of plain fields always has a JSON form: {error}"),
        }
    }

    /// # Errors
    /// When the bytes are not the JSON of the record that `key` names.
    pub fn decode(key: &RecordKey, bytes: &[u8]) -> Result<Self, BadRecord> {
        let text = key.to_string();
        let bad = |error: serde_json::Error| BadRecord::new(&text, error);
        // An error of serde may repeat what it found, which may be a private key in the wrong place (I-14).
        let hidden = |error: serde_json::Error| {
            let (line, column) = (error.line(), error.column());
            BadRecord::new(&text, format_args!("is not such a record, at line {line} column {column}"))
        };
        match key {
            RecordKey::Node => serde_json::from_slice(bytes).map(Record::Node).map_err(bad),
            RecordKey::NodeKey => {
                let stored: StoredKey =
                    serde_json::from_slice(bytes).map_err(|_| BadRecord::new(&text, "is not a stored key"))?;
                stored.pair().map(Record::NodeKey).map_err(|why| BadRecord::new(&text, why))
            }
            RecordKey::Overlay => serde_json::from_slice(bytes).map(Record::Overlay).map_err(hidden),
            RecordKey::Peer(_) => serde_json::from_slice(bytes).map(Record::Peer).map_err(bad),
            RecordKey::Dns(_) => serde_json::from_slice(bytes).map(Record::Dns).map_err(bad),
            RecordKey::Resolver(_) => serde_json::from_slice(bytes).map(Record::Resolver).map_err(bad),
            RecordKey::Segment(_) => serde_json::from_slice(bytes).map(Record::Segment).map_err(hidden),
            RecordKey::SharedBridge => serde_json::from_slice(bytes).map(Record::SharedBridge).map_err(bad),
            RecordKey::Attachment(id) => {
                let record: AttachmentRecord = serde_json::from_slice(bytes).map_err(hidden)?;
                let fits = match (id, &record.place) {
                    (AttachmentId::Container(pid), Place::Container { netns }) => netns.pid == pid.number(),
                    (AttachmentId::Guest(_), Place::Guest { .. })
                    | (AttachmentId::HostShared(_), Place::HostShared) => true,
                    (AttachmentId::Container(_) | AttachmentId::Guest(_) | AttachmentId::HostShared(_), _) => false,
                };
                if !fits {
                    return Err(BadRecord::new(&text, "is about another kind of attachment or another process"));
                }
                Ok(Record::Attachment(record))
            }
            RecordKey::Address(_) => serde_json::from_slice(bytes).map(Record::Address).map_err(bad),
            RecordKey::ServicePeer(..) => serde_json::from_slice(bytes).map(Record::ServicePeer).map_err(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Document, store::Contents};

    fn told(key: &str, value: &str) -> String {
        Record::decode(&key.parse().unwrap(), value.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn why_a_record_cannot_be_read_is_one_short_line_and_no_credential() {
        let text = told("address/10.0.0.1", "{\"state\":\"reser\x7fed\"}");
        assert!(text.contains("reser\\u{7f}ed") && !text.chars().any(char::is_control), "{text}");
        let text = told("address/10.0.0.1", &format!(r#"{{"state":"{}"}}"#, "x".repeat(1000)));
        assert!(text.len() < 400 && text.ends_with('…'), "{text}");
        let text = told("overlay", r#"{"deployment":"a","instance":"b","cluster":"10.0.0.0/8","port":"hunter2"}"#);
        assert!(!text.contains("hunter2") && text.contains("line 1"), "{text}");
    }

    #[test]
    fn a_record_has_one_spelling_and_a_document_is_not_smaller_than_its_store() {
        for (second, first) in [
            ("dns/A.b", "dns/a.b"),
            ("dns/a.b.", "dns/a.b"),
            ("resolver/Zone", "resolver/zone"),
            ("address/fd00:0::1", "address/fd00::1"),
        ] {
            assert!(first.parse::<RecordKey>().is_ok());
            let why = second.parse::<RecordKey>().unwrap_err().to_string();
            assert!(why.contains(first), "{why}");
        }
        let row = |key: &str| (key.to_owned(), br#"{"a":["10.0.0.1"]}"#.to_vec());
        let contents = Contents { generation: 1, records: [row("dns/A.b"), row("dns/a.b")].into(), settled: 0 };
        assert!(Document::from_contents(&contents).is_err());
    }
}
