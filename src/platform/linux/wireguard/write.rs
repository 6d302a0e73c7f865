//! Turns peer actions into as few configuration messages as they fit in.
//!
//! Owns what each action says about a peer, and the packing. Leaves sending, and what to do about a refusal, to
//! [`device`](super::device).
//!
//! Upholds I-08 (an update names only the fields that differ, and no replace flag exists here), I-11.
//!
//! All peers of a message are one netlink attribute, whose length is a 16-bit number: 64 KiB bound the *message*, not only a peer's
//! allowed IPs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::Emitable;
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAllowedIpFlags, WireguardPeer,
    WireguardPeerAttribute, WireguardPeerFlags,
};

use crate::{
    action::Action,
    ids::{Cidr, WgPublicKey},
    object::{Key, PeerSpec, Spec},
    platform::ActionError,
};

/// Bytes of peers in one message: half of what an attribute can hold, and far below the default send buffer (208 KiB).
const MESSAGE_BYTES: usize = 32 * 1024;
/// Header of a netlink attribute.
const NLA_HEADER: usize = 4;

/// A key that takes allowed IPs away from their peer and is deleted with them, on kernels that cannot remove one by itself.
/// Nobody has its private half: it is text.
pub(super) const PARKING: [u8; 32] = *b"overlayd: parking of allowed IPs";

/// What is to happen to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerChange {
    pub(super) public_key: [u8; 32],
    pub(super) kind: Kind,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) keepalive: Option<u16>,
    pub(super) clear_preshared: bool,
    pub(super) add: BTreeSet<Cidr>,
    pub(super) drop: BTreeSet<Cidr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Create,
    Update,
    Delete,
}

impl PeerChange {
    fn new(public_key: [u8; 32], kind: Kind) -> Self {
        Self {
            public_key,
            kind,
            endpoint: None,
            keepalive: None,
            clear_preshared: false,
            add: BTreeSet::new(),
            drop: BTreeSet::new(),
        }
    }

    /// What an action says. An update carries only what differs between its two sides.
    pub(super) fn of(action: &Action) -> Result<Self, ActionError> {
        let Key::Peer { public_key, .. } = action.key() else { unreachable!("only peer actions are batched") };
        let spec_of = |spec: &Spec| match spec {
            Spec::Peer(peer) => Ok(peer.clone()),
            _ => Err(ActionError::Failed("a peer's action must carry a peer".into())),
        };
        match action {
            Action::Create { spec, .. } => {
                let to = spec_of(spec)?;
                let mut change = Self::new(*public_key.as_bytes(), Kind::Create);
                change.endpoint = to.endpoint.map(|endpoint| endpoint.address);
                change.keepalive = Some(to.keepalive);
                change.add = to.allowed_ips;
                Ok(change)
            }
            Action::Update { from, to, .. } => Ok(Self::between(public_key, &spec_of(from)?, &spec_of(to)?)),
            Action::Delete { .. } => Ok(Self::new(*public_key.as_bytes(), Kind::Delete)),
        }
    }

    fn between(public_key: &WgPublicKey, from: &PeerSpec, to: &PeerSpec) -> Self {
        let mut change = Self::new(*public_key.as_bytes(), Kind::Update);
        let address = |spec: &PeerSpec| spec.endpoint.map(|endpoint| endpoint.address);
        change.endpoint = address(to).filter(|_| address(to) != address(from));
        change.keepalive = Some(to.keepalive).filter(|seconds| *seconds != from.keepalive);
        change.clear_preshared = from.preshared && !to.preshared;
        change.add = &to.allowed_ips - &from.allowed_ips;
        change.drop = &from.allowed_ips - &to.allowed_ips;
        change
    }

    fn is_empty(&self) -> bool {
        *self == Self::new(self.public_key, Kind::Update)
    }
}

/// Leaves out removals of allowed IPs that the same batch gives to another peer: the kernel moves them in one step.
pub(super) fn elide_moves(changes: &mut [PeerChange]) {
    let mut takers: BTreeMap<Cidr, [u8; 32]> = BTreeMap::new();
    for change in changes.iter() {
        for network in &change.add {
            takers.insert(*network, change.public_key);
        }
    }
    for change in changes.iter_mut() {
        let own = change.public_key;
        change.drop.retain(|network| takers.get(network).is_none_or(|taker| *taker == own));
    }
}

/// Replaces removals by a move to the parking peer, which is deleted right after.
///
/// `holders` says who holds an allowed IP now. One that the peer does not hold (any more) is left alone: moving it would take it
/// from its new owner.
pub(super) fn park_removals(changes: &mut Vec<PeerChange>, holders: &BTreeMap<Cidr, WgPublicKey>) {
    let mut parked = BTreeSet::new();
    for change in changes.iter_mut() {
        for network in std::mem::take(&mut change.drop) {
            if holders.get(&network).is_some_and(|holder| *holder.as_bytes() == change.public_key) {
                parked.insert(network);
            }
        }
    }
    if parked.is_empty() {
        return;
    }
    let mut parking = PeerChange::new(PARKING, Kind::Create);
    parking.add = parked;
    changes.push(parking);
    changes.push(PeerChange::new(PARKING, Kind::Delete));
}

/// The changes as messages: each a list of peers that fits one attribute. Changes without content take no room.
pub(super) fn pack(changes: &[PeerChange]) -> Vec<Vec<WireguardPeer>> {
    let mut packer = Packer { full: Vec::new(), current: Vec::new(), used: 0 };
    for change in changes.iter().filter(|change| !change.is_empty()) {
        packer.push(change);
    }
    packer.flush();
    packer.full
}

struct Packer {
    full: Vec<Vec<WireguardPeer>>,
    current: Vec<WireguardPeer>,
    used: usize,
}

impl Packer {
    fn push(&mut self, change: &PeerChange) {
        let mut networks = change
            .drop
            .iter()
            .map(|network| entry(network, true))
            .chain(change.add.iter().map(|network| entry(network, false)))
            .peekable();
        let mut attributes = fields(change);
        loop {
            let base = NLA_HEADER + attributes.as_slice().buffer_len() + NLA_HEADER;
            let first = networks.peek().map_or(0, Emitable::buffer_len);
            if self.used + base + first > MESSAGE_BYTES {
                self.flush();
            }
            self.used += base;
            let mut list = Vec::new();
            while let Some(next) = networks.next_if(|next| self.used + next.buffer_len() <= MESSAGE_BYTES) {
                self.used += next.buffer_len();
                list.push(next);
            }
            if !list.is_empty() {
                attributes.push(WireguardPeerAttribute::AllowedIps(list));
            }
            self.current.push(WireguardPeer(attributes));
            if networks.peek().is_none() {
                return;
            }
            self.flush();
            // The rest goes on in the next message; should the peer be gone by then, it must not come back half.
            attributes = vec![
                WireguardPeerAttribute::PublicKey(change.public_key),
                WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            ];
        }
    }

    fn flush(&mut self) {
        if !self.current.is_empty() {
            self.full.push(std::mem::take(&mut self.current));
        }
        self.used = 0;
    }
}

fn fields(change: &PeerChange) -> Vec<WireguardPeerAttribute> {
    let mut attributes = vec![WireguardPeerAttribute::PublicKey(change.public_key)];
    match change.kind {
        Kind::Create => {}
        Kind::Update => attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly)),
        Kind::Delete => attributes.push(WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe)),
    }
    if change.clear_preshared {
        // 32 zeros are WireGuard's "none".
        attributes.push(WireguardPeerAttribute::PresharedKey([0; 32]));
    }
    if let Some(endpoint) = change.endpoint {
        attributes.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    if let Some(seconds) = change.keepalive {
        attributes.push(WireguardPeerAttribute::PersistentKeepalive(seconds));
    }
    attributes
}

fn entry(network: &Cidr, remove: bool) -> WireguardAllowedIp {
    let family = match network.network() {
        IpAddr::V4(_) => WireguardAddressFamily::Ipv4,
        IpAddr::V6(_) => WireguardAddressFamily::Ipv6,
    };
    let mut attributes = vec![
        WireguardAllowedIpAttr::Family(family),
        WireguardAllowedIpAttr::IpAddr(network.network()),
        WireguardAllowedIpAttr::Cidr(network.prefix_len()),
    ];
    if remove {
        attributes.push(WireguardAllowedIpAttr::Flags(WireguardAllowedIpFlags::RemoveMe));
    }
    WireguardAllowedIp(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn create(key: u8, networks: impl IntoIterator<Item = Cidr>) -> PeerChange {
        let mut change = PeerChange::new([key; 32], Kind::Create);
        change.add = networks.into_iter().collect();
        change.keepalive = Some(0);
        change
    }

    fn size(message: &[WireguardPeer]) -> usize {
        message.buffer_len()
    }

    #[test]
    fn many_peers_share_a_message_and_none_is_too_long() {
        let changes: Vec<_> = (0..2000u32)
            .map(|n| {
                let mut change = create(1, [Cidr::host(IpAddr::from((0x0a00_0000 + n).to_be_bytes()))]);
                change.public_key[..4].copy_from_slice(&n.to_be_bytes());
                change
            })
            .collect();
        let messages = pack(&changes);
        assert!(messages.len() < 10, "{} messages", messages.len());
        assert_eq!(messages.iter().map(Vec::len).sum::<usize>(), 2000);
    }

    #[test]
    fn a_peer_with_many_allowed_ips_goes_on_in_the_next_message_as_an_update() {
        let networks = (0..5000u32).map(|n| Cidr::host(IpAddr::from((0x0a00_0000 + n).to_be_bytes())));
        let messages = pack(&[create(1, networks)]);
        assert!(messages.len() > 1);
        let flags = |peer: &WireguardPeer| {
            peer.0.iter().find_map(|attribute| match attribute {
                WireguardPeerAttribute::Flags(flags) => Some(*flags),
                _ => None,
            })
        };
        assert_eq!(flags(&messages[0][0]), None);
        assert_eq!(flags(&messages[1][0]), Some(WireguardPeerFlags::UpdateOnly));
        assert!(messages.iter().all(|message| size(message) <= MESSAGE_BYTES));
    }

    #[test]
    fn an_update_names_only_what_differs() {
        let from = PeerSpec {
            keepalive: 25,
            preshared: true,
            allowed_ips: [cidr("10.0.0.0/24"), cidr("10.0.1.0/24")].into(),
            ..PeerSpec::default()
        };
        let to = PeerSpec {
            keepalive: 25,
            allowed_ips: [cidr("10.0.0.0/24"), cidr("10.0.2.0/24")].into(),
            ..PeerSpec::default()
        };
        let change = PeerChange::between(&WgPublicKey::from_bytes([1; 32]), &from, &to);
        assert_eq!((change.endpoint, change.keepalive), (None, None));
        assert!(change.clear_preshared);
        assert_eq!(change.add, [cidr("10.0.2.0/24")].into());
        assert_eq!(change.drop, [cidr("10.0.1.0/24")].into());
    }

    #[test]
    fn an_update_without_a_difference_sends_nothing() {
        let same = PeerSpec::default();
        let change = PeerChange::between(&WgPublicKey::from_bytes([1; 32]), &same, &same);
        assert!(pack(&[change]).is_empty());
    }

    #[test]
    fn an_allowed_ip_that_moves_within_a_batch_is_not_removed() {
        let mut old = PeerChange::new([1; 32], Kind::Update);
        old.drop = [cidr("10.0.0.0/24"), cidr("10.0.1.0/24")].into();
        let mut changes = vec![old, create(2, [cidr("10.0.0.0/24")])];
        elide_moves(&mut changes);
        assert_eq!(changes[0].drop, [cidr("10.0.1.0/24")].into());
    }

    #[test]
    fn only_what_a_peer_still_holds_is_parked() {
        let mut old = PeerChange::new([1; 32], Kind::Update);
        old.drop = [cidr("10.0.0.0/24"), cidr("10.0.1.0/24")].into();
        let mut changes = vec![old];
        let holders = [
            (cidr("10.0.0.0/24"), WgPublicKey::from_bytes([1; 32])),
            (cidr("10.0.1.0/24"), WgPublicKey::from_bytes([2; 32])),
        ];
        park_removals(&mut changes, &holders.into());
        assert_eq!(changes.len(), 3);
        assert_eq!(changes[1].add, [cidr("10.0.0.0/24")].into());
        assert_eq!(changes[2].kind, Kind::Delete);
    }
}
