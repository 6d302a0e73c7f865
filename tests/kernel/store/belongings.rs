//! What one client has asked for, and what an export shows of it.
//!
//! Owns the edits that the tests send and the model of what each does. Clients share nothing: each has two peers, three names and a
//! network of its own.
//!
//! The network goes from one peer to the other by an edit of two records, so an edit that was kept by half would be seen.

use std::collections::{BTreeMap, BTreeSet};

use overlayd::wire::{PeerScope, PeerSpec, Request};
use serde_json::Value;

use crate::{agent_process::peer_key, dice::Dice};

const PEERS: u16 = 2;
const NAMES: u16 = 3;

/// One change that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    AddPeer {
        peer: u16,
        port: u16,
        /// With the network that the other peer may have.
        with_network: bool,
    },
    RemovePeer(u16),
    Register(u16, u8),
    Unregister(u16),
}

/// The part of a document that belongs to one client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Belongings {
    /// Endpoint and allowed IPs, by peer.
    peers: BTreeMap<u16, (String, BTreeSet<String>)>,
    names: BTreeMap<u16, BTreeSet<String>>,
}

impl Edit {
    pub fn any(chance: &mut Dice) -> Self {
        let peer = u16::try_from(chance.below(PEERS.into())).unwrap();
        let name = u16::try_from(chance.below(NAMES.into())).unwrap();
        let number = u8::try_from(chance.below(20)).unwrap();
        match chance.below(8) {
            0..=2 => Self::AddPeer { peer, port: 51_800 + u16::from(number), with_network: chance.below(2) == 0 },
            3 => Self::RemovePeer(peer),
            4..=6 => Self::Register(name, number),
            _ => Self::Unregister(name),
        }
    }

    pub fn request(&self, client: u16) -> Request {
        match *self {
            Self::AddPeer { peer, port, with_network } => {
                let allowed_ips = allowed_ips(client, peer, with_network).into_iter().collect::<Vec<_>>().join(",");
                let peer = PeerSpec {
                    public_key: key(client, peer),
                    endpoint: format!("192.0.2.1:{port}"),
                    allowed_ips,
                    persistent_keepalive_secs: 0,
                    candidates: Vec::new(),
                };
                Request::AddPeer { peer, scope: PeerScope::Global }
            }
            Self::RemovePeer(peer) => Request::RemovePeer { pubkey: key(client, peer), scope: PeerScope::Global },
            Self::Register(name, number) => {
                Request::RegisterDns { name: dns_name(client, name), ip: [10, 9, 9, number].into() }
            }
            Self::Unregister(name) => Request::UnregisterDns { name: dns_name(client, name) },
        }
    }
}

impl Belongings {
    /// What they are once the edit is made.
    pub fn after(&self, client: u16, edit: &Edit) -> Self {
        let mut after = self.clone();
        match *edit {
            Edit::AddPeer { peer, port, with_network } => {
                if with_network {
                    for (_, allowed_ips) in after.peers.values_mut() {
                        allowed_ips.remove(&network(client));
                    }
                }
                after.peers.insert(peer, (format!("192.0.2.1:{port}"), allowed_ips(client, peer, with_network)));
            }
            Edit::RemovePeer(peer) => drop(after.peers.remove(&peer)),
            Edit::Register(name, number) => {
                after.names.entry(name).or_default().insert(format!("10.9.9.{number}"));
            }
            Edit::Unregister(name) => drop(after.names.remove(&name)),
        }
        after
    }
}

/// The belongings of the first so many clients in an export. Nothing else but the node's own records may be in it.
pub fn belongings(export: &Value, clients: u16) -> Vec<Belongings> {
    let mut of = vec![Belongings::default(); clients.into()];
    let mut owners = BTreeMap::new();
    for client in 0..clients {
        owners.extend((0..PEERS).map(|peer| (format!("peer/node/{}", key(client, peer)), (client, peer))));
        owners.extend((0..NAMES).map(|name| (format!("dns/{}", dns_name(client, name)), (client, name))));
    }
    let texts = |value: &Value| -> BTreeSet<String> {
        value.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    for (record, value) in export["records"].as_object().unwrap() {
        let Some((client, number)) = owners.get(record) else {
            assert!(["node", "node-key"].contains(&record.as_str()), "nobody asked for {record}: {value}");
            continue;
        };
        let own = &mut of[usize::from(*client)];
        if record.starts_with("dns/") {
            own.names.insert(*number, texts(&value["a"]));
        } else {
            let endpoint = value["endpoint"].as_str().unwrap().to_owned();
            own.peers.insert(*number, (endpoint, texts(&value["allowed_ips"])));
        }
    }
    of
}

fn key(client: u16, peer: u16) -> String {
    peer_key(client * PEERS + peer)
}

fn dns_name(client: u16, name: u16) -> String {
    format!("n{name}.c{client}.zone")
}

fn network(client: u16) -> String {
    format!("10.250.{client}.0/24")
}

fn allowed_ips(client: u16, peer: u16, with_network: bool) -> BTreeSet<String> {
    let own = format!("10.251.{client}.{peer}/32");
    with_network.then(|| network(client)).into_iter().chain([own]).collect()
}
