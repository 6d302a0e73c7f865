//! Actions of a plan → changes of a device.

use super::{AllowedIpChange, DeviceChange, PeerChange, SecretChange, UapiChange};
use crate::{
    action::Action,
    ids::WgPublicKey,
    object::{DeviceSpec, Key, PeerSpec, Spec},
};

/// The changes that carry out these actions, in their order; the caller passes actions of one device.
///
/// # Guarantees
/// - An update names the fields in which both sides differ and nothing else; one without a difference that can be sent gives no change.
/// - Nothing is replaced: allowed IPs are added and removed one by one (A2).
///
/// A device is deleted with its link, and an endpoint or a private key cannot be taken away through UAPI: these give no change either.
/// Actions on other objects are passed over.
pub fn changes_for(actions: &[Action]) -> Vec<UapiChange> {
    actions.iter().filter_map(change_for).collect()
}

fn change_for(action: &Action) -> Option<UapiChange> {
    match (action.key(), action) {
        (Key::Device(_), Action::Create { spec: Spec::Device(spec), .. }) => {
            Some(UapiChange::Device(whole_device(spec)))
        }
        (Key::Device(_), Action::Update { from: Spec::Device(from), to: Spec::Device(to), .. }) => {
            device_difference(from, to).map(UapiChange::Device)
        }
        (Key::Peer { public_key, .. }, Action::Create { spec: Spec::Peer(spec), .. }) => {
            Some(UapiChange::Peer(whole_peer(*public_key, spec)))
        }
        (Key::Peer { public_key, .. }, Action::Update { from: Spec::Peer(from), to: Spec::Peer(to), .. }) => {
            peer_difference(*public_key, from, to).map(UapiChange::Peer)
        }
        (Key::Peer { public_key, .. }, Action::Delete { .. }) => {
            Some(UapiChange::Peer(PeerChange { remove: true, ..PeerChange::of(*public_key) }))
        }
        _ => None,
    }
}

fn whole_device(spec: &DeviceSpec) -> DeviceChange {
    DeviceChange {
        private_key: spec.key.private.clone().map(SecretChange::Set),
        listen_port: Some(spec.listen_port),
        fwmark: Some(spec.fwmark),
    }
}

fn device_difference(from: &DeviceSpec, to: &DeviceSpec) -> Option<DeviceChange> {
    let change = DeviceChange {
        private_key: match &to.key.private {
            Some(key) if from.key != to.key => Some(SecretChange::Set(key.clone())),
            Some(_) | None => None,
        },
        listen_port: (from.listen_port != to.listen_port).then_some(to.listen_port),
        fwmark: (from.fwmark != to.fwmark).then_some(to.fwmark),
    };
    (change != DeviceChange::default()).then_some(change)
}

fn whole_peer(public_key: WgPublicKey, spec: &PeerSpec) -> PeerChange {
    PeerChange {
        endpoint: spec.endpoint.map(|endpoint| endpoint.address),
        keepalive: (spec.keepalive != 0).then_some(spec.keepalive),
        allowed_ips: spec.allowed_ips.iter().copied().map(AllowedIpChange::Add).collect(),
        ..PeerChange::of(public_key)
    }
}

fn peer_difference(public_key: WgPublicKey, from: &PeerSpec, to: &PeerSpec) -> Option<PeerChange> {
    let removed = from.allowed_ips.difference(&to.allowed_ips).copied();
    let added = to.allowed_ips.difference(&from.allowed_ips).copied();
    let unchanged = PeerChange { update_only: true, ..PeerChange::of(public_key) };
    let (before, after) = (from.endpoint.map(|e| e.address), to.endpoint.map(|e| e.address));
    let change = PeerChange {
        preshared_key: (from.preshared && !to.preshared).then_some(SecretChange::Clear),
        endpoint: after.filter(|_| before != after),
        keepalive: (from.keepalive != to.keepalive).then_some(to.keepalive),
        allowed_ips: removed.map(AllowedIpChange::Remove).chain(added.map(AllowedIpChange::Add)).collect(),
        ..unchanged.clone()
    };
    (change != unchanged).then_some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::{EndpointSpec, KeyPair},
        secret::PrivateKey,
    };

    const PEER: [u8; 32] = [7; 32];

    fn key() -> Key {
        Key::Peer { device: "wg0".parse().unwrap(), public_key: WgPublicKey::from_bytes(PEER) }
    }

    fn spec(endpoint: &str, keepalive: u16, allowed_ips: &[&str]) -> PeerSpec {
        PeerSpec {
            endpoint: Some(EndpointSpec { address: endpoint.parse().unwrap(), pinned: false, resolved: false }),
            keepalive,
            allowed_ips: allowed_ips.iter().map(|net| net.parse().unwrap()).collect(),
            preshared: false,
        }
    }

    fn update(from: PeerSpec, to: PeerSpec) -> Vec<UapiChange> {
        changes_for(&[Action::Update { key: key(), from: Spec::Peer(from), to: Spec::Peer(to) }])
    }

    #[test]
    fn an_update_names_only_the_fields_that_differ() {
        let from = spec("192.0.2.1:1", 25, &["10.1.0.0/16", "10.2.0.0/16"]);
        let to = spec("192.0.2.1:1", 25, &["10.2.0.0/16", "10.3.0.0/16"]);
        let expected = PeerChange {
            update_only: true,
            allowed_ips: vec![
                AllowedIpChange::Remove("10.1.0.0/16".parse().unwrap()),
                AllowedIpChange::Add("10.3.0.0/16".parse().unwrap()),
            ],
            ..PeerChange::of(WgPublicKey::from_bytes(PEER))
        };
        assert_eq!(update(from, to), [UapiChange::Peer(expected)]);
    }

    #[test]
    fn an_update_without_a_difference_sends_nothing() {
        let from = spec("192.0.2.1:1", 25, &["10.1.0.0/16"]);
        let mut to = from.clone();
        to.endpoint.as_mut().unwrap().pinned = true;
        assert_eq!(update(from, to), []);
    }

    #[test]
    fn a_strange_preshared_key_is_cleared() {
        let to = spec("192.0.2.1:1", 0, &[]);
        let from = PeerSpec { preshared: true, ..to.clone() };
        let [UapiChange::Peer(change)] = &update(from, to)[..] else { panic!() };
        assert_eq!(change.preshared_key, Some(SecretChange::Clear));
    }

    #[test]
    fn a_new_peer_is_sent_whole_and_a_deleted_one_by_its_key() {
        let spec = spec("192.0.2.1:1", 0, &["10.1.0.0/16"]);
        let actions = [
            Action::Create { key: key(), spec: Spec::Peer(spec.clone()) },
            Action::Delete { key: key(), was: Spec::Peer(spec) },
        ];
        let changes = changes_for(&actions);
        let [UapiChange::Peer(create), UapiChange::Peer(delete)] = &changes[..] else { panic!() };
        assert!(!create.update_only && !create.replace_allowed_ips && create.keepalive.is_none());
        assert_eq!(create.endpoint, Some("192.0.2.1:1".parse().unwrap()));
        assert!(delete.remove && delete.allowed_ips.is_empty());
    }

    #[test]
    fn a_device_update_sends_the_private_key_only_when_it_is_another_one() {
        let device = |port, byte| DeviceSpec {
            key: KeyPair::from_private(PrivateKey::from_random_bytes([byte; 32])),
            listen_port: port,
            fwmark: 0,
        };
        let action = |to| Action::Update {
            key: Key::Device("wg0".parse().unwrap()),
            from: Spec::Device(device(1, 1)),
            to: Spec::Device(to),
        };
        let changes = changes_for(&[action(device(2, 1)), action(device(1, 2)), action(device(1, 1))]);
        let [UapiChange::Device(port), UapiChange::Device(key)] = &changes[..] else { panic!() };
        assert_eq!((port.listen_port, port.private_key.is_none()), (Some(2), true));
        assert_eq!((key.listen_port, key.private_key.is_some()), (None, true));
    }
}
