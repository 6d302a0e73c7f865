//! Puts the messages of a device dump together.
//!
//! Owns joining the parts of a peer whose allowed IPs did not fit one message. Leaves asking to [`device`](super::device).
//!
//! Upholds I-14 (the device's private key is overwritten as soon as it is read).
//!
//! A peer that goes on in a second message comes again with its key and further allowed IPs only: no endpoint, no counters. Taking
//! the last message as the whole peer would lose both.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netlink_packet_core::{NlasIterator, Parseable};
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardPeer, WireguardPeerAttribute,
};
use zeroize::Zeroize;

use crate::{
    clock::UnixTime,
    ids::{Cidr, IfName, WgPublicKey},
    object::{DeviceSpec, EndpointSpec, Key, KeyPair, PeerSpec, Spec},
    observed::{Observed, Owner, PeerStats, normalise},
};

/// `genlmsghdr` in bytes (linux/genetlink.h).
pub(super) const GENL_HEADER: usize = 4;

/// A device as it was read.
#[derive(Debug, Default)]
pub(in crate::platform::linux) struct DeviceReading {
    pub(super) public_key: Option<WgPublicKey>,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
    pub(in crate::platform::linux) peers: BTreeMap<WgPublicKey, (PeerSpec, PeerStats)>,
}

/// What one message says; `None` when it cannot be read.
pub(in crate::platform::linux) fn parse(body: &[u8]) -> Option<Vec<WireguardAttribute>> {
    let mut attributes = Vec::new();
    for attribute in NlasIterator::new(body.get(GENL_HEADER..)?) {
        let mut parsed = WireguardAttribute::parse(&attribute.ok()?).ok()?;
        if let WireguardAttribute::PrivateKey(key) = &mut parsed {
            key.zeroize();
        } else {
            attributes.push(parsed);
        }
    }
    Some(attributes)
}

/// Joins the messages of one dump.
pub(in crate::platform::linux) fn assemble(messages: Vec<Vec<WireguardAttribute>>) -> Option<DeviceReading> {
    let mut device = DeviceReading::default();
    for attribute in messages.into_iter().flatten() {
        match attribute {
            WireguardAttribute::PublicKey(key) => {
                device.public_key = Some(WgPublicKey::from_bytes(key)).filter(|_| key != [0; 32]);
            }
            WireguardAttribute::ListenPort(port) => device.listen_port = port,
            WireguardAttribute::Fwmark(mark) => device.fwmark = mark,
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    join(&mut device.peers, peer)?;
                }
            }
            // The private key was dropped in parse(); the rest says nothing that is compared.
            _ => {}
        }
    }
    Some(device)
}

fn join(peers: &mut BTreeMap<WgPublicKey, (PeerSpec, PeerStats)>, part: WireguardPeer) -> Option<()> {
    let key = part.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(WgPublicKey::from_bytes(*key)),
        _ => None,
    })?;
    let (spec, stats) = peers.entry(key).or_default();
    for attribute in part.0 {
        match attribute {
            WireguardPeerAttribute::PresharedKey(mut key) => {
                spec.preshared = key != [0; 32];
                key.zeroize();
            }
            WireguardPeerAttribute::Endpoint(address) => {
                spec.endpoint =
                    Some(EndpointSpec { address: normalise::endpoint(address), pinned: false, resolved: false });
            }
            WireguardPeerAttribute::PersistentKeepalive(seconds) => spec.keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(time) => {
                // Zero means never.
                stats.last_handshake = u64::try_from(time.seconds).ok().filter(|seconds| *seconds > 0).map(UnixTime);
            }
            WireguardPeerAttribute::RxBytes(bytes) => stats.rx_bytes = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => stats.tx_bytes = bytes,
            WireguardPeerAttribute::AllowedIps(allowed) => {
                for entry in allowed {
                    spec.allowed_ips.insert(network(&entry)?);
                }
            }
            _ => {}
        }
    }
    Some(())
}

fn network(entry: &WireguardAllowedIp) -> Option<Cidr> {
    let (mut address, mut prefix) = (None, None);
    for attribute in &entry.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(ip) => address = Some(*ip),
            WireguardAllowedIpAttr::Cidr(length) => prefix = Some(*length),
            _ => {}
        }
    }
    Some(Cidr::containing(IpNet::new(address?, prefix?).ok()?))
}

impl DeviceReading {
    /// The device and its peers as objects. Both are ours because the link is.
    pub(in crate::platform::linux) fn into_objects(self, device: &IfName) -> Vec<(Key, Observed)> {
        let spec = DeviceSpec {
            key: KeyPair::from_public(self.public_key),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
        };
        let mut objects = vec![(Key::Device(device.clone()), Observed::ours(Spec::Device(spec)))];
        objects.extend(self.peers.into_iter().map(|(public_key, (spec, stats))| {
            let key = Key::Peer { device: device.clone(), public_key };
            let observed = Observed { spec: Spec::Peer(spec), owner: Owner::Ours, stats: Some(stats) };
            (key, observed)
        }));
        objects
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_wireguard::WireguardAddressFamily;

    use super::*;

    fn allowed(last: u8) -> WireguardAllowedIp {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv4),
            WireguardAllowedIpAttr::IpAddr(IpAddr::from([10, 0, 0, last])),
            WireguardAllowedIpAttr::Cidr(32),
        ])
    }

    #[test]
    fn a_peer_that_goes_on_in_the_next_message_keeps_what_the_first_said() {
        let first = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey([1; 32]),
            WireguardPeerAttribute::PersistentKeepalive(25),
            WireguardPeerAttribute::RxBytes(5),
            WireguardPeerAttribute::AllowedIps(vec![allowed(1)]),
        ]);
        let second = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey([1; 32]),
            WireguardPeerAttribute::AllowedIps(vec![allowed(2)]),
        ]);
        let device =
            assemble(vec![vec![WireguardAttribute::Peers(vec![first])], vec![WireguardAttribute::Peers(vec![second])]])
                .unwrap();
        let (spec, stats) = &device.peers[&WgPublicKey::from_bytes([1; 32])];
        assert_eq!(spec.keepalive, 25);
        assert_eq!(stats.rx_bytes, 5);
        assert_eq!(spec.allowed_ips.len(), 2);
        assert!(!spec.preshared);
    }
}
