use std::{fmt, net::SocketAddr};

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    ids::{Cidr, WgPublicKey},
    secret::PrivateKey,
};

/// One thing to change on a device. Everything is typed: no text from outside can reach the socket (B27).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UapiChange {
    Device(DeviceChange),
    Peer(PeerChange),
}

/// A whole `set=1` message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetRequest {
    pub device: DeviceChange,
    /// Peers that are not named go. Only `wg setconf` sends it; the agent never does (A2).
    pub replace_peers: bool,
    pub peers: Vec<PeerChange>,
}

/// What to change on the device itself; `None` leaves a field alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceChange {
    pub private_key: Option<SecretChange<PrivateKey>>,
    /// UDP port; 0 asks for any free one.
    pub listen_port: Option<u16>,
    /// Mark of the device's own packets; 0 means none.
    pub fwmark: Option<u32>,
}

/// What to change on one peer; `None` leaves a field alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    pub public_key: WgPublicKey,
    pub remove: bool,
    /// A peer that does not exist is not made.
    pub update_only: bool,
    pub preshared_key: Option<SecretChange<PresharedKey>>,
    pub endpoint: Option<SocketAddr>,
    /// Seconds; 0 means none.
    pub keepalive: Option<u16>,
    /// Allowed IPs that are not listed go. Only `wg` sends it; the agent never does (A2).
    pub replace_allowed_ips: bool,
    /// Applied in this order.
    pub allowed_ips: Vec<AllowedIpChange>,
}

impl PeerChange {
    /// A change of this peer that changes nothing yet.
    pub fn of(public_key: WgPublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIpChange {
    /// The address range is this peer's from now on; who had it before loses it.
    Add(Cidr),
    Remove(Cidr),
}

/// A key that is set or taken away; on the wire the second is 32 zero bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretChange<T> {
    Set(T),
    Clear,
}

/// A preshared key; cannot be printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw key, for the message that configures the device.
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(redacted)")
    }
}
