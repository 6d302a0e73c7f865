use std::{collections::BTreeSet, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Cidr, IfName, WgPublicKey},
    secret::PrivateKey,
};

/// How an object should be, or is. The variant always fits the key's kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spec {
    Link(LinkSpec),
    /// An address is wholly described by its key.
    Address,
    Route(RouteSpec),
    /// The value of the setting.
    Sysctl(i64),
    Device(DeviceSpec),
    Peer(PeerSpec),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    pub kind: LinkKind,
    /// Bytes.
    pub mtu: u32,
    pub up: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// A WireGuard interface, whichever data plane carries it: a kernel device, or a TUN that a device process serves.
    WireGuard,
    /// Any other kind, by the kernel's name for it; never wanted, only seen.
    Other(String),
}

/// Where packets for a destination go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteSpec {
    Through(IfName),
    /// Packets are refused instead of following the default route to the public interface (A32, B24).
    Unreachable,
    /// Any other form, in words; never wanted, only seen.
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    pub key: KeyPair,
    /// UDP port.
    pub listen_port: u16,
    /// Firewall mark of the device's own packets; 0 means none.
    pub fwmark: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PeerSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointSpec>,
    /// Seconds between keepalives; 0 means none.
    pub keepalive: u16,
    pub allowed_ips: BTreeSet<Cidr>,
    /// Whether a preshared key is set. The contract has none, so a key that appears is somebody else's and breaks the tunnel.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preshared: bool,
}

/// An endpoint and how firmly it is wanted: WireGuard moves it by itself when the peer roams (A5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub address: SocketAddr,
    /// True when the document's endpoint is newer than anything the peer can have taught the kernel: it is set even if another one is there.
    #[serde(default)]
    pub pinned: bool,
    /// True when it came from a host name: it is set again when the peer has been silent for longer than a session lives.
    #[serde(default)]
    pub resolved: bool,
}

/// A device's key pair. Compared, printed and serialised by its public half only (I-14).
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyPair {
    /// `None`: the device has no key yet.
    pub public: Option<WgPublicKey>,
    #[serde(skip)]
    pub private: Option<PrivateKey>,
}

impl KeyPair {
    pub fn from_private(private: PrivateKey) -> Self {
        Self { public: Some(private.public_key()), private: Some(private) }
    }

    pub fn from_public(public: Option<WgPublicKey>) -> Self {
        Self { public, private: None }
    }
}

impl PartialEq for KeyPair {
    fn eq(&self, other: &Self) -> bool {
        self.public == other.public
    }
}

impl Eq for KeyPair {}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.public {
            Some(key) => write!(f, "KeyPair({key})"),
            None => f.write_str("KeyPair(none)"),
        }
    }
}
