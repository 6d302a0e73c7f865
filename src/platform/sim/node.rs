use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::consequences::{
    changed_blindly, changed_peer, goes_down_with, is_ipv4_route, leads_through, networks_of_ports, read_behind,
    what_is_left, without_intent,
};
use crate::{
    action::Action,
    clock::UnixTime,
    ids::{Cidr, IfName, Netns, WgPublicKey},
    object::{DeviceSpec, InsideSpec, Key, KeyPair, LinkKind, LinkSpec, PeerSpec, RouteSpec, Spec, Subsystem},
    observed::{Coverage, Observation, Observed, Owner, PeerStats, Surroundings},
    platform::{ActionError, Interest},
};

/// What a WireGuard peer has besides its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimPeer {
    /// Counts the sessions that were lost to a change; zero is what a good agent leaves behind.
    pub sessions_lost: u32,
    pub stats: PeerStats,
}

/// The state of a simulated node.
#[derive(Debug, Clone, Default)]
pub struct SimNode {
    objects: BTreeMap<Key, Observed>,
    /// Also of peers that were removed, so that a session that was lost with one is not forgotten.
    peers: BTreeMap<(IfName, WgPublicKey), SimPeer>,
    /// Which peer of a device has an allowed IP: derived from `objects`, so that a change of one peer does not read all others.
    holders: BTreeMap<(IfName, Cidr), WgPublicKey>,
    /// Every change that was applied, in order: what a capture of netlink messages is on a real node.
    journal: Vec<Action>,
    /// What a look finds around our objects.
    pub surroundings: Surroundings,
    /// Namespaces whose container has ended: nothing can be put into them.
    dead: BTreeSet<Netns>,
}

impl SimNode {
    /// A node that holds exactly these objects.
    pub fn from_observation(observation: &Observation) -> Self {
        let mut node = SimNode::default();
        for (key, seen) in &observation.objects {
            node.place(key.clone(), seen.clone());
        }
        node
    }

    pub fn objects(&self) -> &BTreeMap<Key, Observed> {
        &self.objects
    }

    pub fn journal(&self) -> &[Action] {
        &self.journal
    }

    pub fn forget_journal(&mut self) {
        self.journal.clear();
    }

    pub fn peer(&self, device: &IfName, key: &WgPublicKey) -> Option<&SimPeer> {
        self.peers.get(&(device.clone(), *key))
    }

    /// Puts an object on the node without an action: somebody else's doing, or a state to start from.
    pub fn place(&mut self, key: Key, seen: Observed) {
        self.note_lost_sessions(&key, &seen.spec);
        if let (Key::Peer { device, public_key }, Spec::Peer(peer)) = (&key, &seen.spec) {
            let known = self.peers.entry((device.clone(), *public_key)).or_default();
            known.stats = seen.stats.unwrap_or(known.stats);
            self.release_allowed_ips(&key);
            self.claim_allowed_ips(device, public_key, peer);
        }
        self.objects.insert(key, seen);
    }

    /// Somebody changes an object of ours, or adds one, and the kernel changes along what it ties to that.
    pub fn alter(&mut self, key: Key, spec: Spec) {
        let spec = match (self.objects.get(&key).map(|seen| &seen.spec), spec) {
            (Some(Spec::Inside(is)), Spec::Inside(to)) => Spec::Inside(what_is_left(is, to)),
            (_, spec) => spec,
        };
        if let (Key::Link(name), Spec::Link(LinkSpec { up: false, .. })) = (&key, &spec) {
            self.link_goes_down(&name.clone());
        }
        self.place(key, Observed::ours(spec));
    }

    /// Somebody removes an object, and with it what the kernel removes with it. False when it was not there.
    pub fn remove(&mut self, key: &Key) -> bool {
        if !self.objects.contains_key(key) {
            return false;
        }
        self.release_allowed_ips(key);
        let was = self.objects.remove(key);
        match key {
            // The far end of a pair stays for as long as the pair does, without anything of ours (`inside-drift.txt`).
            Key::Inside(veth) if self.objects.contains_key(&Key::Link(veth.clone())) => {
                if let Some(Observed { spec: Spec::Inside(mut inside), owner, stats }) = was {
                    inside.addresses.clear();
                    inside.routes.clear();
                    self.objects.insert(key.clone(), Observed { spec: Spec::Inside(inside), owner, stats });
                }
            }
            // With a link go its far end, its addresses, settings and peers, and the routes through it (`link-deleted.txt`, `port-removed.txt`).
            Key::Link(name) => {
                self.objects.retain(|other, seen| other.link() != Some(name) && !leads_through(&seen.spec, name));
                self.release_ports(name);
                self.holders.retain(|(device, _), _| device != name);
                self.lose_sessions(name);
            }
            // The data plane of the device died: its peers went with it.
            Key::Device(name) => {
                self.objects.retain(|other, _| !matches!(other, Key::Peer { device, .. } if device == name));
                self.holders.retain(|(device, _), _| device != name);
                self.lose_sessions(name);
            }
            Key::Peer { device, public_key } => {
                if let Some(peer) = self.peers.get_mut(&(device.clone(), *public_key)) {
                    peer.lose_session();
                }
            }
            // The tables go with everything in them (`firewall-flushed.txt`).
            Key::Ruleset => self.objects.retain(|other, _| !matches!(other, Key::Member(_))),
            // With its last IPv4 address a link loses its IPv4 routes (`drift.txt`); IPv6 has no such rule.
            Key::Address { link, address: IpNet::V4(_) } if !self.has_ipv4_address(link) => {
                self.objects.retain(|other, seen| !is_ipv4_route(other) || !leads_through(&seen.spec, link));
            }
            Key::Address { .. }
            | Key::Route { .. }
            | Key::Sysctl { .. }
            | Key::Inside(_)
            | Key::Member(_)
            | Key::Guest(_)
            | Key::File(_)
            | Key::LinkDns(_) => {}
        }
        true
    }

    fn link_goes_down(&mut self, name: &IfName) {
        self.objects.retain(|key, seen| !goes_down_with(name, key, &seen.spec));
    }

    fn has_ipv4_address(&self, on: &IfName) -> bool {
        let is = |key: &Key| matches!(key, Key::Address { link, address: IpNet::V4(_) } if link == on);
        self.objects.keys().any(is)
    }

    /// A container ends, and with its namespace every pair that led there (`container-death.txt`).
    pub fn end_container(&mut self, netns: &Netns) {
        self.dead.insert(netns.clone());
        let leads_there = |seen: &Observed| matches!(&seen.spec, Spec::Link(link) if link.peer.as_ref().is_some_and(|peer| peer.netns == *netns));
        let pairs: Vec<Key> =
            self.objects.iter().filter(|(_, seen)| leads_there(seen)).map(|(key, _)| key.clone()).collect();
        for pair in pairs {
            self.remove(&pair);
        }
    }

    /// A handshake of this peer, at this time.
    pub fn handshake(&mut self, device: &IfName, key: &WgPublicKey, at: UnixTime) {
        if let Some(peer) = self.peers.get_mut(&(device.clone(), *key)) {
            peer.stats.last_handshake = Some(at);
        }
    }

    pub fn observe(&self, interest: &Interest) -> Observation {
        let wanted = |key: &Key, seen: &Observed| {
            interest.subsystems.contains(&key.subsystem())
                && (seen.is_ours() || in_the_way(key, interest))
                && is_entered(key, &seen.spec, interest)
        };
        let members = self.objects.values().filter_map(|seen| match &seen.spec {
            Spec::Member(member) if seen.is_ours() => Some(member),
            _ => None,
        });
        let networks = networks_of_ports(members);
        let as_read = |key: &Key, seen: &Observed| {
            let mut seen = seen.clone();
            if let Spec::Member(member) = &seen.spec {
                seen.spec = Spec::Member(read_behind(&networks, member));
            }
            if let Key::Peer { device, public_key } = key {
                seen.stats = self.peer(device, public_key).map(|peer| peer.stats);
            }
            seen
        };
        let objects = self.objects.iter().filter(|(key, seen)| wanted(key, seen));
        Observation {
            coverage: interest.subsystems.iter().map(|part| (*part, Coverage::Whole)).collect(),
            objects: objects.map(|(key, seen)| (key.clone(), as_read(key, seen))).collect(),
            surroundings: Some(self.surroundings.clone()),
        }
    }

    pub fn execute(&mut self, action: &Action) -> Result<(), ActionError> {
        match action {
            Action::Create { key, spec } => self.create(key, spec)?,
            Action::Update { key, from, to } => self.update(key, from, to)?,
            Action::Delete { key, .. } => self.delete(key)?,
        }
        self.journal.push(action.clone());
        Ok(())
    }

    fn create(&mut self, key: &Key, spec: &Spec) -> Result<(), ActionError> {
        self.check_prerequisites(key, spec)?;
        if let Some(seen) = self.objects.get(key) {
            return match &seen.owner {
                Owner::Stranger(what) => Err(ActionError::Stranger(what.clone())),
                Owner::Ours => {
                    let is = seen.spec.clone();
                    self.update(key, &is, spec)
                }
            };
        }
        match (key, spec) {
            (Key::Link(name), Spec::Link(LinkSpec { kind: LinkKind::WireGuard, .. })) => {
                // A WireGuard device exists as soon as its link does, without key and port.
                let device = Spec::Device(DeviceSpec { key: KeyPair::from_public(None), listen_port: 0, fwmark: 0 });
                self.objects.insert(Key::Device(name.clone()), Observed::ours(device));
            }
            (Key::Link(name), Spec::Link(LinkSpec { peer: Some(peer), mtu, .. })) => {
                // Both ends of a pair come into being at once; the far one is bare and down (`port-answer-lost.txt`).
                let bare = InsideSpec {
                    netns: peer.netns.clone(),
                    name: peer.name.clone(),
                    mtu: *mtu,
                    up: false,
                    addresses: BTreeSet::new(),
                    routes: BTreeSet::new(),
                };
                self.objects.insert(Key::Inside(name.clone()), Observed::ours(Spec::Inside(bare)));
            }
            _ => {}
        }
        self.place(key.clone(), Observed::ours(without_intent(spec)));
        Ok(())
    }

    fn update(&mut self, key: &Key, from: &Spec, to: &Spec) -> Result<(), ActionError> {
        let Some(seen) = self.objects.get(key) else {
            return self.update_blindly(key, from, to);
        };
        if let Owner::Stranger(what) = &seen.owner {
            return Err(ActionError::Stranger(what.clone()));
        }
        if let Spec::Link(LinkSpec { master: Some(master), .. }) = to {
            self.check_link(master)?;
        }
        let after = match (&seen.spec, from, to) {
            (Spec::Peer(is), Spec::Peer(from), Spec::Peer(to)) => Spec::Peer(changed_peer(is, from, to)),
            (_, _, to) => to.clone(),
        };
        if let (Key::Link(name), Spec::Link(LinkSpec { up: false, .. })) = (key, to) {
            self.link_goes_down(name);
        }
        self.place(key.clone(), Observed::ours(without_intent(&after)));
        Ok(())
    }

    /// An update of an object that is not there.
    fn update_blindly(&mut self, key: &Key, from: &Spec, to: &Spec) -> Result<(), ActionError> {
        let (Spec::Member(from), Spec::Member(to)) = (from, to) else {
            return Err(ActionError::Gone(key.to_string()));
        };
        if !self.has_rules() {
            return Err(ActionError::Gone(Key::Ruleset.to_string()));
        }
        let (member, torn) = changed_blindly(from, to);
        if let Some(member) = member {
            self.place(key.clone(), Observed::ours(Spec::Member(member)));
        }
        if let (true, Some(Spec::Ruleset(ruleset))) =
            (torn, self.objects.get_mut(&Key::Ruleset).map(|seen| &mut seen.spec))
        {
            ruleset.intact = false;
        }
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Result<(), ActionError> {
        match self.objects.get(key).map(|seen| seen.owner.clone()) {
            Some(Owner::Stranger(what)) => Err(ActionError::Stranger(what)),
            // Gone already: deleting twice is harmless.
            None => Ok(()),
            Some(Owner::Ours) => {
                self.remove(key);
                Ok(())
            }
        }
    }

    /// Into a table that is a stranger's nothing is put (`firewall-stranger.txt`).
    fn has_rules(&self) -> bool {
        self.objects.get(&Key::Ruleset).is_some_and(Observed::is_ours)
    }

    fn check_prerequisites(&self, key: &Key, spec: &Spec) -> Result<(), ActionError> {
        match (key, spec) {
            // An address stands in a set of the tables (`stale-cache.txt`).
            (Key::Member(_), _) if !self.has_rules() => {
                return Err(ActionError::Gone(Key::Ruleset.to_string()));
            }
            (Key::Sysctl { link, .. }, _) if self.surroundings.uplinks.contains(link) => return Ok(()),
            // Nor into that of a pid's next owner (`container-death-between.txt`, `container-pid-reused.txt`).
            (_, Spec::Link(LinkSpec { peer: Some(peer), .. })) if self.dead.contains(&peer.netns) => {
                return Err(ActionError::Gone(peer.netns.to_string()));
            }
            _ => {}
        }
        let through = match spec {
            Spec::Route(RouteSpec::Through(link)) => Some(link),
            Spec::Link(LinkSpec { master, .. }) => master.as_ref(),
            _ => key.link(),
        };
        let Some(link) = through else { return Ok(()) };
        match self.check_link(link)? {
            LinkSpec { up: false, .. } if key.subsystem() == Subsystem::Route => {
                Err(ActionError::Failed(format!("link/{link} is down")))
            }
            _ => Ok(()),
        }
    }

    /// The link of ours with this name. Whatever is to be done on it, one that is a stranger's is not touched (`stale-cache.txt`).
    fn check_link(&self, link: &IfName) -> Result<&LinkSpec, ActionError> {
        match self.objects.get(&Key::Link(link.clone())) {
            None => Err(ActionError::Gone(format!("link/{link}"))),
            Some(Observed { owner: Owner::Stranger(what), .. }) => Err(ActionError::Stranger(what.clone())),
            Some(Observed { spec: Spec::Link(spec), .. }) => Ok(spec),
            Some(_) => unreachable!("the spec of a link is one of links"),
        }
    }

    /// The ports of a bridge that goes stay, on their own (`bridge-deleted.txt`).
    fn release_ports(&mut self, bridge: &IfName) {
        for seen in self.objects.values_mut() {
            if let Spec::Link(port) = &mut seen.spec
                && port.master.as_ref() == Some(bridge)
            {
                port.master = None;
            }
        }
    }

    /// Gives the allowed IPs of `peer` to it: the kernel takes them from whoever has them, in the same step
    /// (`allowed-ip-moves.txt`).
    fn claim_allowed_ips(&mut self, device: &IfName, winner: &WgPublicKey, peer: &PeerSpec) {
        for allowed_ip in &peer.allowed_ips {
            let loser = self.holders.insert((device.clone(), *allowed_ip), *winner);
            let Some(public_key) = loser.filter(|loser| loser != winner) else {
                continue;
            };
            let key = Key::Peer { device: device.clone(), public_key };
            if let Some(Spec::Peer(other)) = self.objects.get_mut(&key).map(|seen| &mut seen.spec) {
                other.allowed_ips.remove(allowed_ip);
            }
        }
    }

    /// Forgets that the object, a peer, has the allowed IPs that it has.
    fn release_allowed_ips(&mut self, key: &Key) {
        let (Key::Peer { device, .. }, Some(Spec::Peer(peer))) = (key, self.objects.get(key).map(|seen| &seen.spec))
        else {
            return;
        };
        for allowed_ip in &peer.allowed_ips {
            self.holders.remove(&(device.clone(), *allowed_ip));
        }
    }

    /// A session ends with the keys it was agreed upon: the device's own, or the one shared with the peer.
    fn note_lost_sessions(&mut self, key: &Key, after: &Spec) {
        let before = self.objects.get(key).map(|seen| &seen.spec);
        match (key, before, after) {
            (Key::Device(name), Some(Spec::Device(before)), Spec::Device(after)) if before.key != after.key => {
                self.lose_sessions(&name.clone());
            }
            (Key::Peer { device, public_key }, Some(Spec::Peer(before)), Spec::Peer(after))
                if before.preshared != after.preshared =>
            {
                if let Some(peer) = self.peers.get_mut(&(device.clone(), *public_key)) {
                    peer.lose_session();
                }
            }
            _ => {}
        }
    }

    fn lose_sessions(&mut self, device: &IfName) {
        let on_device = self.peers.iter_mut().filter(|((of, _), _)| of == device);
        on_device.for_each(|(_, peer)| peer.lose_session());
    }
}

impl SimPeer {
    /// A peer that never shook hands has no session to lose.
    fn lose_session(&mut self) {
        if self.stats.last_handshake.is_some() {
            self.sessions_lost += 1;
        }
        self.stats = PeerStats::default();
    }
}

/// False for the side of a container that nobody asks for: its namespace is found by what is wanted in it (`detach-half-seen.txt`).
fn is_entered(key: &Key, is: &Spec, interest: &Interest) -> bool {
    match (key, is) {
        (Key::Inside(veth), Spec::Inside(is)) => {
            interest.insides.get(veth).is_some_and(|wanted| wanted.netns == is.netns)
        }
        _ => true,
    }
}

fn in_the_way(key: &Key, interest: &Interest) -> bool {
    match key {
        Key::Link(name) => interest.links.contains(name),
        // There is only one place for it (`firewall-stranger.txt`).
        Key::Ruleset => true,
        other => interest.keys.contains(other),
    }
}
