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

use crate::{
    ids::{BadId, Cidr, DnsName, Endpoint, Label, WgPublicKey, Zone},
    object::KeyPair,
    secret::{PrivateKey, SecretText},
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
    pub cluster: Cidr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<Cidr>,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverRecord {
    pub node_ip: IpAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A stored record that this program cannot read.
#[derive(Debug, thiserror::Error)]
#[error("record {key:?} cannot be read: {why}")]
pub struct BadRecord {
    key: String,
    why: String,
}

impl BadRecord {
    pub(super) fn new(key: &str, why: impl fmt::Display) -> Self {
        Self { key: key.to_owned(), why: why.to_string() }
    }
}

const PEER_PREFIX: &str = "peer/node/";
const DNS_PREFIX: &str = "dns/";
const RESOLVER_PREFIX: &str = "resolver/";

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordKey::Node => f.write_str("node"),
            RecordKey::NodeKey => f.write_str("node-key"),
            RecordKey::Overlay => f.write_str("overlay"),
            RecordKey::Peer(key) => write!(f, "{PEER_PREFIX}{key}"),
            RecordKey::Dns(name) => write!(f, "{DNS_PREFIX}{name}"),
            RecordKey::Resolver(zone) => write!(f, "{RESOLVER_PREFIX}{zone}"),
        }
    }
}

impl FromStr for RecordKey {
    type Err = BadRecord;
    fn from_str(text: &str) -> Result<Self, BadRecord> {
        let bad = |why: BadId| BadRecord::new(text, why);
        match text {
            "node" => return Ok(RecordKey::Node),
            "node-key" => return Ok(RecordKey::NodeKey),
            "overlay" => return Ok(RecordKey::Overlay),
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
        Err(BadRecord::new(text, "this overlayd knows no record of that name"))
    }
}

/// The node's key as it is stored. An export without secrets has the public half only.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<WgPublicKey>,
}

impl StoredKey {
    fn of(pair: &KeyPair) -> Self {
        match &pair.private {
            Some(private) => Self { private_key: Some(private.reveal().as_str().to_owned()), public_key: None },
            None => Self { private_key: None, public_key: pair.public },
        }
    }

    fn pair(&self) -> Result<KeyPair, BadId> {
        match (&self.private_key, self.public_key) {
            (Some(text), _) if text != super::redact::REDACTED => {
                PrivateKey::from_base64(text).map(KeyPair::from_private)
            }
            (_, public) => Ok(KeyPair::from_public(public)),
        }
    }
}

impl Record {
    /// The bytes to store. Holds secrets in clear.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = match self {
            Record::Node(record) => serde_json::to_vec(record),
            Record::NodeKey(key) => serde_json::to_vec(&StoredKey::of(key)),
            Record::Overlay(record) => serde_json::to_vec(record),
            Record::Peer(record) => serde_json::to_vec(record),
            Record::Dns(record) => serde_json::to_vec(record),
            Record::Resolver(record) => serde_json::to_vec(record),
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
        match key {
            RecordKey::Node => serde_json::from_slice(bytes).map(Record::Node).map_err(bad),
            RecordKey::NodeKey => {
                let stored: StoredKey =
                    serde_json::from_slice(bytes).map_err(|_| BadRecord::new(&text, "is not a stored key"))?;
                stored.pair().map(Record::NodeKey).map_err(|why| BadRecord::new(&text, why))
            }
            RecordKey::Overlay => serde_json::from_slice(bytes).map(Record::Overlay).map_err(bad),
            RecordKey::Peer(_) => serde_json::from_slice(bytes).map(Record::Peer).map_err(bad),
            RecordKey::Dns(_) => serde_json::from_slice(bytes).map(Record::Dns).map_err(bad),
            RecordKey::Resolver(_) => serde_json::from_slice(bytes).map(Record::Resolver).map_err(bad),
        }
    }
}
