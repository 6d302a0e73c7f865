use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ids::{Cidr, IfName, WgPublicKey},
    object::{Key, Spec},
};

/// One wanted object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub spec: Spec,
    /// Generation at which the part of the document that wants it last changed.
    pub since: u64,
}

/// The document as objects, for the whole node or for some keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    pub objects: BTreeMap<Key, Wanted>,
    /// Objects that are wanted but lack something that is not the kernel's to give: a host name that does not resolve.
    pub incomplete: BTreeMap<Key, String>,
    /// Which peer of a device has an allowed IP: derived from `objects`.
    holders: BTreeMap<(IfName, Cidr), WgPublicKey>,
}

impl Target {
    pub fn wants(&self, key: &Key) -> Option<&Spec> {
        self.objects.get(key).map(|wanted| &wanted.spec)
    }

    /// The peer of `device` that is to have this allowed IP, as far as the target reaches.
    pub fn holder(&self, device: &IfName, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        self.holders.get(&(device.clone(), *allowed_ip))
    }

    pub(super) fn want(&mut self, key: Key, spec: Spec, since: u64) {
        if let (Key::Peer { device, public_key }, Spec::Peer(peer)) = (&key, &spec) {
            for allowed_ip in &peer.allowed_ips {
                self.holders.insert((device.clone(), *allowed_ip), *public_key);
            }
        }
        self.objects.insert(key, Wanted { spec, since });
    }

    pub(super) fn lacks(&mut self, key: Key, why: String) {
        self.incomplete.insert(key, why);
    }
}

/// Which objects a round is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Keys(BTreeSet<Key>),
}
