use std::collections::{BTreeMap, BTreeSet};

use crate::{
    action::Action,
    clock::UnixTime,
    ids::{Cidr, IfName, WgPublicKey},
    object::{Key, LinkKind, LinkSpec, RouteSpec, Spec, Subsystem},
    observed::{Coverage, Observation, Observed, Owner, PeerStats},
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
    peers: BTreeMap<(IfName, WgPublicKey), SimPeer>,
    /// Every change that was applied, in order: what a capture of netlink messages is on a real node.
    journal: Vec<Action>,
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
        if let Key::Peer { device, public_key } = &key {
            let peer = self.peers.entry((device.clone(), *public_key)).or_default();
            peer.stats = seen.stats.unwrap_or(peer.stats);
            self.claim_allowed_ips(device, public_key, &seen.spec);
        }
        self.objects.insert(key, seen);
    }

    /// Somebody removes an object, and with it what the kernel removes with it. False when it was not there.
    pub fn remove(&mut self, key: &Key) -> bool {
        if self.objects.remove(key).is_none() {
            return false;
        }
        match key {
            Key::Link(name) => {
                self.objects
                    .retain(|other, seen| other.link() != Some(name) && !leads_through(&seen.spec, name));
                self.peers.retain(|(device, _), _| device != name);
            }
            Key::Peer { device, public_key } => {
                self.peers.remove(&(device.clone(), *public_key));
            }
            Key::Address { .. } | Key::Route { .. } | Key::Sysctl { .. } | Key::Device(_) => {}
        }
        true
    }

    /// A handshake of this peer, at this time.
    pub fn handshake(&mut self, device: &IfName, key: &WgPublicKey, at: UnixTime) {
        if let Some(peer) = self.peers.get_mut(&(device.clone(), *key)) {
            peer.stats.last_handshake = Some(at);
        }
    }

    pub fn observe(&self, interest: &Interest) -> Observation {
        let wanted = |key: &Key, seen: &Observed| {
            interest.subsystems.contains(&key.subsystem()) && (seen.is_ours() || in_the_way(key, interest))
        };
        let with_stats = |key: &Key, seen: &Observed| {
            let mut seen = seen.clone();
            if let Key::Peer { device, public_key } = key {
                seen.stats = self.peer(device, public_key).map(|peer| peer.stats);
            }
            seen
        };
        let objects = self.objects.iter().filter(|(key, seen)| wanted(key, seen));
        Observation {
            coverage: interest
                .subsystems
                .iter()
                .map(|part| (*part, Coverage::Whole))
                .collect(),
            objects: objects
                .map(|(key, seen)| (key.clone(), with_stats(key, seen)))
                .collect(),
        }
    }

    pub fn execute(&mut self, action: &Action) -> Result<(), ActionError> {
        match action {
            Action::Create { key, spec } => self.create(key, spec)?,
            Action::Update { key, to, .. } => self.update(key, to)?,
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
                Owner::Ours => self.update(key, spec),
            };
        }
        if let Key::Link(name) = key {
            // A kernel WireGuard device exists as soon as its link does, without key and port.
            let device = Spec::Device(crate::object::DeviceSpec {
                key: crate::object::KeyPair::from_public(None),
                listen_port: 0,
                fwmark: 0,
            });
            self.objects.insert(Key::Device(name.clone()), Observed::ours(device));
        }
        self.place(key.clone(), Observed::ours(without_intent(spec)));
        Ok(())
    }

    fn update(&mut self, key: &Key, to: &Spec) -> Result<(), ActionError> {
        let Some(seen) = self.objects.get(key) else {
            return Err(ActionError::Gone(key.to_string()));
        };
        if let Owner::Stranger(what) = &seen.owner {
            return Err(ActionError::Stranger(what.clone()));
        }
        if let (Key::Link(name), Spec::Link(LinkSpec { up: false, .. })) = (key, to) {
            // Linux drops the routes of an interface that goes down.
            let name = name.clone();
            self.objects.retain(|_, seen| !leads_through(&seen.spec, &name));
        }
        self.place(key.clone(), Observed::ours(without_intent(to)));
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

    fn check_prerequisites(&self, key: &Key, spec: &Spec) -> Result<(), ActionError> {
        let through = match spec {
            Spec::Route(RouteSpec::Through(link)) => Some(link),
            _ => key.link(),
        };
        let Some(link) = through else { return Ok(()) };
        match self.objects.get(&Key::Link(link.clone())).map(|seen| &seen.spec) {
            None => Err(ActionError::Gone(format!("link/{link}"))),
            Some(Spec::Link(LinkSpec { up: false, .. })) if key.subsystem() == Subsystem::Route => {
                Err(ActionError::Failed(format!("link/{link} is down")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Gives the allowed IPs of `spec` to this peer: the kernel takes them from whoever has them, in the same step.
    fn claim_allowed_ips(&mut self, device: &IfName, winner: &WgPublicKey, spec: &Spec) {
        let Spec::Peer(peer) = spec else { return };
        let claimed: BTreeSet<Cidr> = peer.allowed_ips.clone();
        for (key, seen) in &mut self.objects {
            if let (Key::Peer { device: of, public_key }, Spec::Peer(other)) = (key, &mut seen.spec)
                && of == device
                && public_key != winner
            {
                other.allowed_ips.retain(|allowed_ip| !claimed.contains(allowed_ip));
            }
        }
    }
}

fn in_the_way(key: &Key, interest: &Interest) -> bool {
    match key {
        Key::Link(name) => interest.links.contains(name),
        other => interest.keys.contains(other),
    }
}

fn leads_through(spec: &Spec, link: &IfName) -> bool {
    matches!(spec, Spec::Route(RouteSpec::Through(name)) if name == link)
}

/// A spec as a dump would show it: a kernel does not know why an endpoint was set.
fn without_intent(spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    match &mut spec {
        Spec::Peer(peer) => {
            if let Some(endpoint) = &mut peer.endpoint {
                endpoint.pinned = false;
                endpoint.resolved = false;
            }
        }
        Spec::Device(device) => device.key.private = None,
        Spec::Link(link) => debug_assert_eq!(link.kind, LinkKind::WireGuard, "nothing else is ever created"),
        Spec::Address | Spec::Route(_) | Spec::Sysctl(_) => {}
    }
    spec
}
