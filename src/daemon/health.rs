//! Notices when peers fall silent and when they are heard again.
//!
//! Owns the comparison of two looks. Leaves sending to the connections.
//!
//! The first look at a peer is no change, whatever it shows: a restart of the agent must not announce a thousand peers.

use std::collections::BTreeMap;

use crate::{
    clock::UnixTime, ids::WgPublicKey, object::Key, observed::Snapshot, reconcile::plan::SESSION_LIFETIME, wire::Event,
};

/// The health of each peer at the last look.
#[derive(Debug, Default)]
pub struct PeerHealth {
    known: BTreeMap<WgPublicKey, bool>,
}

impl PeerHealth {
    /// The changes since the last look.
    pub fn compare(&mut self, snapshot: &Snapshot, now: UnixTime) -> Vec<Event> {
        let mut present = BTreeMap::new();
        let mut events = Vec::new();
        for (key, seen) in snapshot.iter() {
            let Key::Peer { public_key, .. } = key else { continue };
            let handshake = seen.stats.and_then(|stats| stats.last_handshake);
            let healthy = handshake.is_some_and(|at| now.since(at) <= SESSION_LIFETIME);
            if self.known.get(public_key).is_some_and(|before| *before != healthy) {
                events.push(Event::PeerHealthChanged { pubkey: public_key.to_string(), healthy });
            }
            present.insert(*public_key, healthy);
        }
        self.known = present;
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::{PeerSpec, Spec},
        observed::{Observation, Observed, PeerStats},
    };

    fn snapshot(handshake: Option<u64>) -> Snapshot {
        let key = Key::Peer { device: "zl-a-b-g".parse().unwrap(), public_key: WgPublicKey::from_bytes([7; 32]) };
        let stats = PeerStats { last_handshake: handshake.map(UnixTime), ..PeerStats::default() };
        let seen = Observed { stats: Some(stats), ..Observed::ours(Spec::Peer(PeerSpec::default())) };
        let mut snapshot = Snapshot::default();
        snapshot.absorb(Observation { objects: BTreeMap::from([(key, seen)]), ..Observation::default() });
        snapshot
    }

    #[test]
    fn only_a_change_is_an_event_and_the_first_look_is_none() {
        let mut health = PeerHealth::default();
        assert!(health.compare(&snapshot(Some(1000)), UnixTime(1010)).is_empty());
        assert!(health.compare(&snapshot(Some(1000)), UnixTime(1180)).is_empty());
        let fell_silent = health.compare(&snapshot(Some(1000)), UnixTime(1181));
        assert!(matches!(fell_silent[..], [Event::PeerHealthChanged { healthy: false, .. }]));
        assert!(health.compare(&snapshot(Some(1000)), UnixTime(1300)).is_empty());
        let is_back = health.compare(&snapshot(Some(1300)), UnixTime(1301));
        assert!(matches!(is_back[..], [Event::PeerHealthChanged { healthy: true, .. }]));
    }
}
