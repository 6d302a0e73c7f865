use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    ops::Bound,
};

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::{
    action::Action,
    clock::UnixTime,
    ids::{Cidr, IfName, WgPublicKey},
    object::{Family, Key, Setting, Spec, Subsystem},
};

/// Whether the absence of an object from a part means that it does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    /// Not looked at.
    #[default]
    Unknown,
    /// Dumped to the end without an interruption.
    Whole,
    /// Seen in part only; the text says why.
    Partial(String),
}

/// Whose an object is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// It carries this instance's mark.
    Ours,
    /// It does not. The text says what it is instead, for the person who has to resolve it.
    Stranger(String),
}

/// What a WireGuard device counts for a peer. Never compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerStats {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<UnixTime>,
    #[serde(default)]
    pub rx_bytes: u64,
    #[serde(default)]
    pub tx_bytes: u64,
}

/// One object as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    pub spec: Spec,
    pub owner: Owner,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<PeerStats>,
}

impl Observed {
    pub fn ours(spec: Spec) -> Self {
        Self { spec, owner: Owner::Ours, stats: None }
    }

    pub fn is_ours(&self) -> bool {
        self.owner == Owner::Ours
    }
}

/// The result of looking once at the whole node: what a platform hands up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// One entry for each subsystem that was looked at; one that is missing was not.
    pub coverage: BTreeMap<Subsystem, Coverage>,
    pub objects: BTreeMap<Key, Observed>,
    /// `None`: they were not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surroundings: Option<Surroundings>,
}

/// What the node has besides our objects that the target depends on: none of it is ours to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// Links that the default routes lead through.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub uplinks: BTreeSet<IfName>,
    /// Whether IPv6 can be forwarded link by link ([`Setting::Ipv6ForceForwarding`](crate::object::Setting)).
    #[serde(default)]
    pub force_forwarding: bool,
    /// Whether the host forwards IPv6 for all links (`net.ipv6.conf.all.forwarding`).
    #[serde(default)]
    pub forwards_ipv6: bool,
    /// Families whose packets another program's forward chain drops unless a rule lets them through (A30).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forward_drop: BTreeSet<Family>,
    /// Programs on this node that would configure links of ours if nobody told them not to (A11), and the resolver that knows of links.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub neighbours: BTreeSet<Neighbour>,
}

/// A program that configures links, or goes by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Neighbour {
    Networkd,
    NetworkManager,
    /// Configures none, but asks for names through them.
    Resolved,
}

impl Neighbour {
    pub const ALL: [Neighbour; 3] = [Neighbour::Networkd, Neighbour::NetworkManager, Neighbour::Resolved];
}

/// The objects of the node as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    coverage: BTreeMap<Subsystem, Coverage>,
    objects: BTreeMap<Key, Observed>,
    /// Which peer of a device holds an allowed IP: derived from `objects`.
    holders: BTreeMap<(IfName, Cidr), WgPublicKey>,
    surroundings: Surroundings,
}

impl Snapshot {
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    pub fn coverage(&self, subsystem: Subsystem) -> &Coverage {
        self.coverage.get(&subsystem).unwrap_or(&Coverage::Unknown)
    }

    /// True when the absence of a key of this subsystem is a fact (I-05).
    pub fn is_whole(&self, subsystem: Subsystem) -> bool {
        *self.coverage(subsystem) == Coverage::Whole
    }

    pub fn find(&self, key: &Key) -> Option<&Observed> {
        self.objects.get(key)
    }

    pub fn iter(&self) -> btree_map::Iter<'_, Key, Observed> {
        self.objects.iter()
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The peer of `device` that holds this allowed IP now.
    pub fn holder(&self, device: &IfName, allowed_ip: &Cidr) -> Option<&WgPublicKey> {
        self.holders.get(&(device.clone(), *allowed_ip))
    }

    /// Takes in what was seen. A part that was dumped whole replaces what was known of it; a partial one only adds.
    pub fn absorb(&mut self, observation: Observation) {
        if let Some(surroundings) = observation.surroundings {
            self.surroundings = surroundings;
        }
        for (subsystem, coverage) in observation.coverage {
            if coverage == Coverage::Whole {
                let gone: Vec<Key> = self
                    .objects
                    .keys()
                    .filter(|key| key.subsystem() == subsystem && !observation.objects.contains_key(key))
                    .cloned()
                    .collect();
                for key in gone {
                    self.remove(&key);
                    // A container's side is looked at less often than the host's, and went with it.
                    if let Key::Link(name) = &key {
                        self.remove(&Key::Inside(name.clone()));
                    }
                }
            }
            self.coverage.insert(subsystem, coverage);
        }
        for (key, observed) in observation.objects {
            self.insert(key, observed);
        }
    }

    /// Writes the effect of an action that the kernel acknowledged. What goes with a deleted link goes with it.
    pub fn acknowledge(&mut self, action: &Action) {
        let key = action.key();
        match action.result() {
            Some(spec) => {
                let stats = self.objects.get(key).and_then(|seen| seen.stats);
                let observed = Observed { spec: spec.clone(), owner: Owner::Ours, stats };
                self.insert(key.clone(), observed);
            }
            None => {
                self.remove(key);
                match key {
                    Key::Link(name) => self.forget_dependents(name),
                    Key::Ruleset => self.forget_members(),
                    _ => {}
                }
            }
        }
    }

    /// Marks parts as not looked at: after a failed action or a lost event nothing cached is trusted.
    pub fn distrust(&mut self, parts: &BTreeSet<Subsystem>) {
        self.coverage.retain(|part, _| !parts.contains(part));
    }

    /// Every object on this link, or on this port.
    pub fn on_link(&self, link: &IfName) -> impl Iterator<Item = &Key> {
        let addresses = (Bound::Included(first_address(link)), Bound::Unbounded);
        let is_on = move |key: &&Key| key.link() == Some(link);
        let settings = Setting::ALL.map(|setting| Key::Sysctl { link: link.clone(), setting });
        let single = settings.into_iter().chain([Key::Inside(link.clone()), Key::LinkDns(link.clone())]);
        let single = single.filter_map(|key| self.objects.get_key_value(&key).map(|(key, _)| key));
        self.objects.range(addresses).map(|(key, _)| key).take_while(is_on).chain(single)
    }

    /// The snapshot as plain data, for `diff --observed` and fixtures.
    pub fn to_observation(&self) -> Observation {
        Observation {
            coverage: self.coverage.clone(),
            objects: self.objects.clone(),
            surroundings: Some(self.surroundings.clone()),
        }
    }

    fn insert(&mut self, key: Key, observed: Observed) {
        self.unindex(&key);
        if let (Key::Peer { device, public_key }, Spec::Peer(peer)) = (&key, &observed.spec) {
            for allowed_ip in &peer.allowed_ips {
                let before = self.holders.insert((device.clone(), *allowed_ip), *public_key);
                // The kernel moved it from its former holder in the same step.
                if let Some(other) = before.filter(|other| other != public_key) {
                    self.take_allowed_ip(device, &other, allowed_ip);
                }
            }
        }
        self.objects.insert(key, observed);
    }

    fn remove(&mut self, key: &Key) {
        self.unindex(key);
        self.objects.remove(key);
    }

    fn unindex(&mut self, key: &Key) {
        let Key::Peer { device, public_key } = key else { return };
        let Some(Spec::Peer(peer)) = self.objects.get(key).map(|seen| &seen.spec) else {
            return;
        };
        for allowed_ip in &peer.allowed_ips {
            let place = (device.clone(), *allowed_ip);
            if self.holders.get(&place) == Some(public_key) {
                self.holders.remove(&place);
            }
        }
    }

    fn take_allowed_ip(&mut self, device: &IfName, from: &WgPublicKey, allowed_ip: &Cidr) {
        let key = Key::Peer { device: device.clone(), public_key: *from };
        if let Some(Spec::Peer(peer)) = self.objects.get_mut(&key).map(|seen| &mut seen.spec) {
            peer.allowed_ips.remove(allowed_ip);
        }
    }

    fn forget_dependents(&mut self, link: &IfName) {
        let gone: Vec<Key> = self
            .objects
            .iter()
            .filter(|(key, seen)| key.link() == Some(link) || routes_through(&seen.spec, link))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.remove(&key);
        }
        // The ports of a bridge outlive it.
        for seen in self.objects.values_mut() {
            if let Spec::Link(port) = &mut seen.spec
                && port.master.as_ref() == Some(link)
            {
                port.master = None;
            }
        }
    }

    fn forget_members(&mut self) {
        self.objects.retain(|key, _| key.subsystem() != Subsystem::Member);
    }
}

/// Where the addresses of a link begin in the order of keys.
fn first_address(link: &IfName) -> Key {
    // The derived order puts IPv4 before IPv6, and the shortest prefix of the lowest address first.
    Key::Address { link: link.clone(), address: IpNet::V4(Ipv4Net::default()) }
}

fn routes_through(spec: &Spec, link: &IfName) -> bool {
    matches!(spec, Spec::Route(crate::object::RouteSpec::Through(name)) if name == link)
}
