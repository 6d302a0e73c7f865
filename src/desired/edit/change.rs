use std::{collections::BTreeSet, net::IpAddr};

use super::super::{attachment::SearchDomains, record::Mutation, segment::SegmentMode};
use crate::{
    ids::{Cidr, IfName, WgPublicKey},
    object::{Key, KeyPair},
};

/// What accepting an edit means: the records to write, the objects to look at, what to hand back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub mutations: Vec<Mutation>,
    pub touched: Touched,
    pub grant: Grant,
    /// One line without secrets, for the journal and the log.
    pub summary: String,
    /// Things the caller did not ask for by name: an allowed IP that moved away from another peer.
    pub notes: Vec<String>,
}

/// Which objects an edit is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// None: the document alone (a node id, a DNS record).
    Nothing,
    Keys(BTreeSet<Key>),
    Everything,
}

impl Touched {
    /// Adds keys, unless everything is touched already.
    pub fn add(&mut self, more: impl IntoIterator<Item = Key>) {
        let mut more = more.into_iter().peekable();
        if more.peek().is_none() {
            return;
        }
        match self {
            Touched::Nothing => *self = Touched::Keys(more.collect()),
            Touched::Keys(keys) => keys.extend(more),
            Touched::Everything => {}
        }
    }
}

/// What an edit hands back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    Nothing,
    /// Name of the node's overlay device.
    Device(IfName),
    /// Name of a service's bridge.
    Bridge(IfName),
    /// A segment that is more than a bridge of its own.
    Service(ServiceGrant),
    /// An address that was reserved.
    Address(IpAddr),
    /// The first address of what was attached.
    Attached {
        ip: IpAddr,
        /// `since` of the attachment's record: names this very state of it to [`Edit::Withdraw`](super::Edit::Withdraw).
        since: u64,
    },
    Guest(GuestGrant),
    /// The port of the host.
    Forward(u16),
    /// The bridges that were removed.
    Pruned(Vec<IfName>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceGrant {
    /// The bridge that containers are ports of.
    pub name: IfName,
    pub mode: SegmentMode,
    /// Of the service's own device, as all that follows.
    pub public_key: Option<WgPublicKey>,
    /// UDP port.
    pub port: Option<u16>,
    pub overlay_ip: Option<IpAddr>,
    pub subnet: Option<Cidr>,
}

/// What a guest needs for its own device, but for its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestGrant {
    pub overlay_ip: IpAddr,
    /// Of the guest's interface address: that of the cluster network, as on the node's own device.
    pub prefix_len: u8,
    /// With its private half.
    pub key: KeyPair,
    /// UDP port.
    pub listen_port: u16,
    pub dns_server: Option<IpAddr>,
    pub dns_domain: SearchDomains,
    /// Whether the guest is to know every peer of this node, besides the node itself.
    pub all_peers: bool,
    /// `since` of the attachment's record.
    pub since: u64,
}
