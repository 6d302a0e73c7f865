//! What is derived from attachments and segments, so that a question about one address costs the same with one container and with many.
//!
//! Upholds I-11: an address has one holder.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::attachment::{AttachmentId, AttachmentRecord};
use crate::{
    ids::{NetworkName, Networks, ServiceName, WgPublicKey},
    object::NetworkId,
};

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressHolder {
    /// This node itself.
    Node,
    /// The bridge of this service.
    Gateway(ServiceName),
    /// The bridge of all shared segments.
    SharedGateway,
    Attachment(AttachmentId),
    /// Handed out for a container of this service.
    Reserved(ServiceName),
    /// Nobody any more; not to be given out before this time.
    Resting(crate::clock::UnixTime),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Index {
    pub(super) held: BTreeMap<IpAddr, AttachmentId>,
    pub(super) attached: BTreeMap<ServiceName, BTreeSet<AttachmentId>>,
    pub(super) guests: BTreeMap<WgPublicKey, AttachmentId>,
    /// How many attachments are fenced to each network.
    networks: BTreeMap<NetworkId, BTreeMap<NetworkName, usize>>,
    /// `None`: of the shared bridge.
    pub(super) gateways: BTreeMap<IpAddr, Option<ServiceName>>,
}

impl Index {
    pub(super) fn add(&mut self, id: &AttachmentId, record: &AttachmentRecord) {
        for address in record.held() {
            let former = self.held.insert(*address, id.clone());
            debug_assert!(former.is_none(), "{address} of {id} is held by {former:?} (I-11)");
        }
        self.attached.entry(record.service.clone()).or_default().insert(id.clone());
        if let Some(key) = record.guest_key().and_then(|key| key.public) {
            self.guests.insert(key, id.clone());
        }
        if let Some(name) = &record.network {
            *self.networks.entry(NetworkId::of(name)).or_default().entry(name.clone()).or_default() += 1;
        }
    }

    pub(super) fn drop(&mut self, id: &AttachmentId, record: &AttachmentRecord) {
        for address in record.held() {
            if self.held.get(address) == Some(id) {
                self.held.remove(address);
            }
        }
        if let Some(members) = self.attached.get_mut(&record.service) {
            members.remove(id);
            if members.is_empty() {
                self.attached.remove(&record.service);
            }
        }
        if let Some(key) = record.guest_key().and_then(|key| key.public)
            && self.guests.get(&key) == Some(id)
        {
            self.guests.remove(&key);
        }
        if let Some(name) = &record.network {
            self.drop_network(name);
        }
    }

    fn drop_network(&mut self, name: &NetworkName) {
        let id = NetworkId::of(name);
        let Some(names) = self.networks.get_mut(&id) else { return };
        match names.get_mut(name) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                names.remove(name);
            }
        }
        if names.is_empty() {
            self.networks.remove(&id);
        }
    }

    /// The names of isolation networks in use that have this number.
    pub(super) fn networks_with(&self, id: NetworkId) -> impl Iterator<Item = &NetworkName> {
        self.networks.get(&id).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn add_gateways(&mut self, subnets: &Networks, service: Option<&ServiceName>) {
        for address in gateways(subnets) {
            self.gateways.insert(address, service.cloned());
        }
    }

    pub(super) fn drop_gateways(&mut self, subnets: &Networks, service: Option<&ServiceName>) {
        for address in gateways(subnets) {
            // Two segments may change places in one edit: only what is still this one's goes.
            if self.gateways.get(&address).is_some_and(|of| of.as_ref() == service) {
                self.gateways.remove(&address);
            }
        }
    }
}

/// The address of the bridge in each subnet: the first after the network address.
pub(super) fn gateways(subnets: &Networks) -> Vec<IpAddr> {
    subnets.iter().filter_map(|subnet| subnet.address_at(1)).collect()
}
