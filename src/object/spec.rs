use std::{
    collections::BTreeSet,
    fmt,
    hash::Hasher,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{Cidr, IfName, Netns, NetworkName, WgPublicKey},
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
    Inside(InsideSpec),
    Ruleset(RulesetSpec),
    Member(MemberSpec),
    Guest(GuestSpec),
    File(FileSpec),
    LinkDns(LinkDnsSpec),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    pub kind: LinkKind,
    /// Bytes.
    pub mtu: u32,
    pub up: bool,
    /// The bridge that the link is a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<IfName>,
    /// Of a bridge: whether the spanning tree protocol runs. It would keep a new port silent for 30 seconds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stp: bool,
    /// Of a veth: where its other end was put. `None` as seen: in a namespace that no container of ours has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<VethPeer>,
}

impl LinkSpec {
    /// A link that is up and on its own.
    pub fn up(kind: LinkKind, mtu: u32) -> Self {
        Self { kind, mtu, up: true, master: None, stp: false, peer: None }
    }
}

/// The far end of a veth pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VethPeer {
    pub netns: Netns,
    /// Name that the end is made with. A container may rename it; that is no difference.
    pub name: IfName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// A WireGuard interface, whichever data plane carries it: a kernel device, or a TUN that a device process serves.
    WireGuard,
    Bridge,
    /// A veth pair, by the end that stays on the host.
    Veth,
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

/// The container's side of a veth pair. Compared as far as it is ours: what a container adds for itself is its own business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsideSpec {
    pub netns: Netns,
    /// Name of the link in the container.
    pub name: IfName,
    /// Bytes.
    pub mtu: u32,
    /// Whether the link *and* the container's loopback are up.
    pub up: bool,
    /// Addresses with the prefix length of the network that they are on-link with.
    pub addresses: BTreeSet<IpNet>,
    pub routes: BTreeSet<InsideRoute>,
}

/// A route in a container, through the link that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InsideRoute {
    pub destination: Cidr,
    /// `None`: on-link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
}

impl fmt::Display for InsideRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.via {
            None => self.destination.fmt(f),
            Some(via) => write!(f, "{} via {via}", self.destination),
        }
    }
}

/// What our firewall tables know besides their members. The rules themselves are the same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RulesetSpec {
    /// False as seen: a table, chain, set or rule is missing, or is not as this version writes it.
    pub intact: bool,
    /// The overlay: everything that an isolated member may not reach without a reason.
    pub overlay: BTreeSet<Cidr>,
    /// Networks of this node's containers: what leaves the overlay from here is masqueraded.
    pub local: BTreeSet<Cidr>,
    /// The node's own overlay addresses: every member may reach them.
    pub node: BTreeSet<IpAddr>,
    /// The bridges' addresses: an isolated member may reach that of the bridge it comes in through. From all of them, and from `node`, the
    /// node itself may reach every member.
    pub gateways: BTreeSet<(IfName, IpAddr)>,
    /// Our links that carry overlay traffic: devices and bridges. Ports of containers are members' ports.
    pub links: BTreeSet<IfName>,
}

/// One address of a container in the firewall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSpec {
    /// The ports that may send from this address, and no others: all that its container has, because it answers by whichever its routes say.
    /// None for an address that comes through a WireGuard device or is the node's own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ports: BTreeSet<IfName>,
    /// The isolation network; `None` is the flat overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkId>,
}

/// An isolation network as the firewall's maps know it: a hash of its name. The document refuses two names with one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NetworkId(pub u32);

impl NetworkId {
    /// Stands in an observed member for "its elements do not fit together": no network has this number.
    pub const TORN: NetworkId = NetworkId(0);

    pub fn of(name: &NetworkName) -> Self {
        let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0, 0);
        hasher.write(name.as_str().as_bytes());
        // Zero is kept for [`TORN`](Self::TORN).
        Self(((hasher.finish() >> 32) as u32).max(1))
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// Networks whose traffic another program's forward chain is asked to let through, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    pub networks: BTreeSet<Cidr>,
}

/// A file of ours: its first line names the owner, and a file without it is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// The whole text.
    pub content: String,
}

/// What the host's resolver does with names by way of a link.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinkDnsSpec {
    pub servers: BTreeSet<SocketAddr>,
    /// Names under these are asked of the servers. A `~` stands before one that short names are not searched in, as resolvectl(1) has it.
    pub domains: BTreeSet<String>,
    /// Whether the servers are also asked for names that no link has a domain for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default_route: bool,
    /// What is on besides plain questions to the servers.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub features: BTreeSet<ResolverFeature>,
}

/// What a resolver may do on a link that is of no use on an overlay's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolverFeature {
    /// Asking the link's neighbours (RFC 4795): a WireGuard device has none.
    Llmnr,
    /// The same by multicast (RFC 6762).
    MulticastDns,
    /// Asking the servers by TLS (RFC 7858), which the overlay's do not speak.
    DnsOverTls,
    /// Checking signatures (RFC 4035), which the overlay's zone does not have.
    Dnssec,
}

impl ResolverFeature {
    pub const ALL: [ResolverFeature; 4] =
        [ResolverFeature::Llmnr, ResolverFeature::MulticastDns, ResolverFeature::DnsOverTls, ResolverFeature::Dnssec];

    /// The word used in diffs: the resolver's own.
    pub fn word(self) -> &'static str {
        match self {
            ResolverFeature::Llmnr => "LLMNR",
            ResolverFeature::MulticastDns => "MulticastDNS",
            ResolverFeature::DnsOverTls => "DNSOverTLS",
            ResolverFeature::Dnssec => "DNSSEC",
        }
    }
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
