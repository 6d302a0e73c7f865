use std::collections::BTreeMap;

use super::record::PeerRecord;
use crate::ids::{Cidr, WgPublicKey};

/// The peers of one device, and which of them has which allowed IP (I-11).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PeerTable {
    peers: BTreeMap<WgPublicKey, PeerRecord>,
    /// Derived from `peers`.
    holders: BTreeMap<Cidr, WgPublicKey>,
}

impl PeerTable {
    pub(super) fn peers(&self) -> &BTreeMap<WgPublicKey, PeerRecord> {
        &self.peers
    }

    pub(super) fn holder(&self, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        self.holders.get(allowed_ip)
    }

    /// The networks that are routed to a peer.
    pub(super) fn allowed_ips(&self) -> impl Iterator<Item = &Cidr> {
        self.holders.keys()
    }

    pub(super) fn put(&mut self, key: WgPublicKey, record: PeerRecord) {
        self.remove(&key);
        for allowed_ip in &record.allowed_ips {
            self.holders.insert(*allowed_ip, key);
        }
        self.peers.insert(key, record);
    }

    pub(super) fn remove(&mut self, key: &WgPublicKey) {
        let Some(record) = self.peers.remove(key) else { return };
        for allowed_ip in &record.allowed_ips {
            if self.holders.get(allowed_ip) == Some(key) {
                self.holders.remove(allowed_ip);
            }
        }
    }
}
