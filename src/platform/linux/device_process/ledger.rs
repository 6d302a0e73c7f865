//! What the device was told, and which steps turn it into what it is told next. PURE.
//!
//! gotatun can list its peers only by walking all of them, and it leaves an allowed IP that moved listed at its former owner, who takes it
//! back at the next change. So the process keeps its own list, and finds a peer or an owner without a walk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crate::{
    ids::{Cidr, WgPublicKey},
    platform::linux::uapi::{AllowedIpChange, PeerChange, PresharedKey, SecretChange},
};

/// A peer as it was configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peer {
    pub preshared_key: Option<PresharedKey>,
    /// Seconds; 0 means none.
    pub keepalive: u16,
    /// The last endpoint that was set; the peer may have roamed since.
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: BTreeSet<Cidr>,
    last_handshake: Option<SystemTime>,
}

/// One call on gotatun. The steps of one peer change belong into one transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Add(WgPublicKey, Peer),
    Modify(WgPublicKey, Modification),
    Remove(WgPublicKey),
}

/// `None` leaves a field alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Modification {
    pub preshared_key: Option<Option<PresharedKey>>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive: Option<u16>,
    /// The whole new list.
    pub allowed_ips: Option<BTreeSet<Cidr>>,
}

/// All peers of the device.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    peers: BTreeMap<WgPublicKey, Peer>,
    owners: HashMap<Cidr, WgPublicKey>,
}

impl Ledger {
    pub(super) fn get(&self, key: &WgPublicKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = WgPublicKey> {
        self.peers.keys().copied()
    }

    /// Forgets the peer and says how to take it out.
    pub(super) fn remove(&mut self, key: &WgPublicKey) -> Option<Step> {
        let peer = self.peers.remove(key)?;
        for net in &peer.allowed_ips {
            self.owners.remove(net);
        }
        Some(Step::Remove(*key))
    }

    /// Writes one change down and answers the steps that carry it out, former owners of allowed IPs first.
    ///
    /// `fresh`: the message replaces all peers, so a field that it does not name goes back to its default. `live`: where packets go now, when
    /// that is known; an endpoint that is in use already is not set again.
    pub(super) fn apply(
        &mut self,
        change: &PeerChange,
        fresh: bool,
        live: Option<&HashMap<WgPublicKey, SocketAddr>>,
    ) -> Vec<Step> {
        let key = change.public_key;
        if change.remove {
            return self.remove(&key).into_iter().collect();
        }
        let Some(before) = self.peers.get(&key).cloned() else {
            if change.update_only {
                return Vec::new();
            }
            let (after, mut steps) = self.with_change(Peer::default(), change);
            steps.push(Step::Add(key, after.clone()));
            self.peers.insert(key, after);
            return steps;
        };
        let base = if fresh {
            Peer { preshared_key: None, keepalive: 0, allowed_ips: BTreeSet::new(), ..before.clone() }
        } else {
            before.clone()
        };
        let (after, mut steps) = self.with_change(base, change);
        for net in before.allowed_ips.difference(&after.allowed_ips) {
            // Unless somebody else took it over in this very change.
            if self.owners.get(net) == Some(&key) {
                self.owners.remove(net);
            }
        }
        let in_use = live.and_then(|live| live.get(&key)).copied();
        let difference = Modification {
            preshared_key: (before.preshared_key != after.preshared_key).then(|| after.preshared_key.clone()),
            endpoint: change.endpoint.filter(|endpoint| in_use != Some(*endpoint)),
            keepalive: (before.keepalive != after.keepalive).then_some(after.keepalive),
            allowed_ips: (before.allowed_ips != after.allowed_ips).then(|| after.allowed_ips.clone()),
        };
        if difference != Modification::default() {
            steps.push(Step::Modify(key, difference));
        }
        self.peers.insert(key, after);
        steps
    }

    /// When the last handshake was, given how long ago it is. The same handshake gets the same time again, though both clocks are read anew.
    pub(super) fn handshake_time(&mut self, key: &WgPublicKey, age: Duration, now: SystemTime) -> Option<SystemTime> {
        // Two handshakes of one peer are at least 5 s apart (REKEY_TIMEOUT, WireGuard paper section 6.1).
        const SAME: Duration = Duration::from_secs(1);
        let peer = self.peers.get_mut(key)?;
        let computed = now.checked_sub(age)?;
        let apart = |a: SystemTime, b: SystemTime| a.duration_since(b).unwrap_or_else(|ahead| ahead.duration());
        match peer.last_handshake {
            Some(known) if apart(known, computed) < SAME => Some(known),
            Some(_) | None => {
                peer.last_handshake = Some(computed);
                Some(computed)
            }
        }
    }

    /// The peer with the change written into it, and one step for each other peer that loses an allowed IP to it.
    fn with_change(&mut self, mut peer: Peer, change: &PeerChange) -> (Peer, Vec<Step>) {
        let key = change.public_key;
        match &change.preshared_key {
            Some(SecretChange::Set(psk)) => peer.preshared_key = Some(psk.clone()),
            Some(SecretChange::Clear) => peer.preshared_key = None,
            None => {}
        }
        peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
        peer.endpoint = change.endpoint.or(peer.endpoint);
        if change.replace_allowed_ips {
            peer.allowed_ips.clear();
        }
        let mut losers = BTreeSet::new();
        for allowed_ip in &change.allowed_ips {
            match allowed_ip {
                AllowedIpChange::Add(net) => {
                    peer.allowed_ips.insert(*net);
                    let former = self.owners.insert(*net, key).filter(|former| *former != key);
                    if let Some((former, loser)) = former.and_then(|f| self.peers.get_mut(&f).map(|peer| (f, peer))) {
                        loser.allowed_ips.remove(net);
                        losers.insert(former);
                    }
                }
                AllowedIpChange::Remove(net) => {
                    if peer.allowed_ips.remove(net) && self.owners.get(net) == Some(&key) {
                        self.owners.remove(net);
                    }
                }
            }
        }
        let shrink = |loser: WgPublicKey| {
            let allowed_ips = self.peers.get(&loser).map(|peer| peer.allowed_ips.clone());
            let modification = Modification { allowed_ips, ..Modification::default() };
            Step::Modify(loser, modification)
        };
        let steps = losers.into_iter().map(shrink).collect();
        (peer, steps)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> WgPublicKey {
        WgPublicKey::from_bytes([byte; 32])
    }

    fn net(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn with_ips(byte: u8, add: &[&str], remove: &[&str]) -> PeerChange {
        let add = add.iter().map(|text| AllowedIpChange::Add(net(text)));
        let remove = remove.iter().map(|text| AllowedIpChange::Remove(net(text)));
        PeerChange { allowed_ips: remove.chain(add).collect(), ..PeerChange::of(key(byte)) }
    }

    #[test]
    fn an_allowed_ip_that_moves_leaves_its_former_owner_first() {
        let mut ledger = Ledger::default();
        ledger.apply(&with_ips(1, &["10.1.0.0/16", "10.2.0.0/16"], &[]), false, None);
        let steps = ledger.apply(&with_ips(2, &["10.2.0.0/16"], &[]), false, None);
        let [Step::Modify(loser, shrunk), Step::Add(winner, peer)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!((*loser, *winner), (key(1), key(2)));
        assert_eq!(shrunk.allowed_ips, Some([net("10.1.0.0/16")].into()));
        assert_eq!(peer.allowed_ips, [net("10.2.0.0/16")].into());
    }

    #[test]
    fn the_same_values_again_are_no_step() {
        let mut ledger = Ledger::default();
        let change = with_ips(1, &["10.1.0.0/16"], &[]);
        assert_eq!(ledger.apply(&change, false, None).len(), 1);
        assert_eq!(ledger.apply(&change, false, None), []);
        assert_eq!(ledger.apply(&change, true, None), []);
    }

    #[test]
    fn an_endpoint_in_use_is_not_set_again_and_one_that_roamed_is() {
        let mut ledger = Ledger::default();
        let change = PeerChange { endpoint: Some("192.0.2.1:1".parse().unwrap()), ..PeerChange::of(key(1)) };
        ledger.apply(&change, false, None);
        let live = HashMap::from([(key(1), "192.0.2.1:1".parse().unwrap())]);
        assert_eq!(ledger.apply(&change, false, Some(&live)), []);
        let live = HashMap::from([(key(1), "192.0.2.9:1".parse().unwrap())]);
        assert_eq!(ledger.apply(&change, false, Some(&live)).len(), 1);
        assert_eq!(ledger.apply(&change, false, None).len(), 1);
    }

    #[test]
    fn update_only_makes_no_peer() {
        let mut ledger = Ledger::default();
        let change = PeerChange { update_only: true, ..with_ips(1, &["10.1.0.0/16"], &[]) };
        assert_eq!(ledger.apply(&change, false, None), []);
        assert!(ledger.get(&key(1)).is_none());
    }

    #[test]
    fn a_replacement_resets_what_it_does_not_name() {
        let mut ledger = Ledger::default();
        let change = PeerChange {
            keepalive: Some(25),
            preshared_key: Some(SecretChange::Set(PresharedKey::from_bytes([1; 32]))),
            ..with_ips(1, &["10.1.0.0/16"], &[])
        };
        ledger.apply(&change, false, None);
        let steps = ledger.apply(&with_ips(1, &["10.2.0.0/16"], &[]), true, None);
        let [Step::Modify(_, modification)] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(modification.keepalive, Some(0));
        assert_eq!(modification.preshared_key, Some(None));
        assert_eq!(modification.allowed_ips, Some([net("10.2.0.0/16")].into()));
    }

    #[test]
    fn one_handshake_has_one_time() {
        let mut ledger = Ledger::default();
        ledger.apply(&PeerChange::of(key(1)), false, None);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let first = ledger.handshake_time(&key(1), Duration::from_millis(10_000), now);
        let again = ledger.handshake_time(&key(1), Duration::from_millis(11_400), now + Duration::from_secs(1));
        assert_eq!(first, again);
        let next = ledger.handshake_time(&key(1), Duration::ZERO, now + Duration::from_secs(100));
        assert_ne!(first, next);
    }

    fn numbered(number: u32) -> PeerChange {
        let mut bytes = [1; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let net = Cidr::host(std::net::Ipv4Addr::from(0x0a00_0000 + number).into());
        PeerChange { allowed_ips: vec![AllowedIpChange::Add(net)], ..PeerChange::of(WgPublicKey::from_bytes(bytes)) }
    }

    #[test]
    fn one_more_peer_costs_our_side_next_to_nothing_whatever_number_is_there() {
        use crate::platform::linux::uapi::{Request, SetRequest, decode_request, encode_set};
        let mut ledger = Ledger::default();
        let mut present = 0;
        for count in [100, 1_000, 10_000] {
            for number in present..count {
                ledger.apply(&numbered(number), false, None);
            }
            let request = SetRequest { peers: (count..count + 100).map(numbered).collect(), ..SetRequest::default() };
            let text = encode_set(&request);
            let begin = std::time::Instant::now();
            let Ok(Request::Set(request)) = decode_request(text.trim_end().as_bytes()) else { panic!() };
            for change in &request.peers {
                assert_eq!(ledger.apply(change, false, None).len(), 1);
            }
            let each = begin.elapsed() / 100;
            println!("MEASURED: own share of one more peer with {count} present: {each:?}");
            assert!(each < Duration::from_millis(1), "{each:?}");
            present = count + 100;
        }
    }

    fn change() -> impl Strategy<Value = PeerChange> {
        let allowed_ip = (0u8..6, any::<bool>()).prop_map(|(third, add)| {
            let net = net(&format!("10.0.{third}.0/24"));
            if add { AllowedIpChange::Add(net) } else { AllowedIpChange::Remove(net) }
        });
        (1u8..4, any::<[bool; 3]>(), prop::collection::vec(allowed_ip, 0..4)).prop_map(|(byte, flags, allowed_ips)| {
            PeerChange {
                remove: flags[0] && flags[1],
                update_only: flags[2],
                replace_allowed_ips: flags[0],
                allowed_ips,
                ..PeerChange::of(key(byte))
            }
        })
    }

    proptest! {
        /// I-11; and a device that carries out the steps one by one never lists an allowed IP twice either.
        #[test]
        fn an_allowed_ip_has_one_owner_whatever_is_asked(changes in prop::collection::vec((change(), any::<bool>()), 0..40)) {
            let mut ledger = Ledger::default();
            let mut device: BTreeMap<WgPublicKey, BTreeSet<Cidr>> = BTreeMap::new();
            for (change, fresh) in changes {
                for step in ledger.apply(&change, fresh, None) {
                    match step {
                        Step::Add(key, peer) => prop_assert!(device.insert(key, peer.allowed_ips).is_none()),
                        Step::Remove(key) => prop_assert!(device.remove(&key).is_some()),
                        Step::Modify(key, modification) => {
                            let listed = device.get_mut(&key).expect("a peer that exists");
                            if let Some(allowed_ips) = modification.allowed_ips { *listed = allowed_ips; }
                        }
                    }
                    let mut seen = BTreeSet::new();
                    prop_assert!(device.values().flatten().all(|net| seen.insert(*net)));
                }
                let listed: BTreeMap<_, _> = ledger.peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect();
                prop_assert_eq!(&device, &listed);
                let owners: HashMap<_, _> = listed.iter().flat_map(|(key, nets)| nets.iter().map(|net| (*net, *key))).collect();
                prop_assert_eq!(&ledger.owners, &owners);
            }
        }
    }
}
