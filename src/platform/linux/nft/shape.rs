//! The shape of our two tables: names, sets, chains.
//!
//! Owns what every version of this program writes in the same way on every node. Leaves the rules to [`rules`](super::rules) and what is in
//! the sets to [`element`](super::element).
//!
//! Upholds I-04 (name and comment of a table carry the mark).
//!
//! Two tables, because one family does not see everything: frames between two ports of a bridge meet only the bridge's hooks, and what is
//! routed meets only those of `inet`.

use std::borrow::Cow;

use super::encode::Attributes;
use crate::object::{Family, Mark};

/// One of our tables, by its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Half {
    /// What is routed, and what is for the node itself.
    Inet,
    /// What goes from port to port of a bridge.
    Bridge,
}

impl Half {
    pub(super) const BOTH: [Half; 2] = [Half::Inet, Half::Bridge];

    /// `NFPROTO_INET`, `NFPROTO_BRIDGE` (linux/netfilter.h).
    pub(super) fn family(self) -> u8 {
        match self {
            Half::Inet => 1,
            Half::Bridge => 7,
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Half::Inet => "inet",
            Half::Bridge => "bridge",
        }
    }
}

/// The name of both tables: the instance's tag is in it.
pub(super) fn table_name(mark: Mark) -> String {
    format!("overlayd_{:06x}", mark.link_group() & 0x00FF_FFFF)
}

/// Wraps a comment as `nft` does, so that it is shown by it.
pub(super) fn comment(text: &str) -> Vec<u8> {
    const COMMENT: u8 = 0;
    let length = u8::try_from(text.len() + 1).unwrap_or_else(|_| unreachable!("comments are short"));
    [&[COMMENT, length], text.as_bytes(), &[0]].concat()
}

/// The proof that a table is ours.
pub(super) fn table_comment(mark: Mark) -> Vec<u8> {
    comment(&format!("overlayd {mark}"))
}

/// What an element's key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyShape {
    Address(Family),
    Link,
    LinkAddress(Family),
}

impl KeyShape {
    /// Number by which `nft` knows how to print it, and bytes.
    fn numbers(self) -> (u32, u32) {
        // From `enum datatypes` of nft; a key of several parts has six bits for each.
        const IPV4: u32 = 7;
        const IPV6: u32 = 8;
        const NAME: u32 = 41;
        let address = |family| match family {
            Family::Ipv4 => (IPV4, 4),
            Family::Ipv6 => (IPV6, 16),
        };
        let pair = |(one, bytes): (u32, u32), (two, more): (u32, u32)| ((one << 6) | two, bytes + more);
        match self {
            KeyShape::Address(family) => address(family),
            KeyShape::Link => (NAME, 16),
            KeyShape::LinkAddress(family) => pair((NAME, 16), address(family)),
        }
    }
}

/// A set or map as it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SetShape {
    pub(super) name: Cow<'static, str>,
    pub(super) key: KeyShape,
    /// Whether each element leads to the chain of an isolation network.
    pub(super) map: bool,
    /// Whether the elements are the ends of ranges.
    pub(super) ranges: bool,
}

const fn set(name: &'static str, key: KeyShape) -> SetShape {
    SetShape { name: Cow::Borrowed(name), key, map: false, ranges: false }
}

const fn map(name: &'static str, key: KeyShape) -> SetShape {
    SetShape { name: Cow::Borrowed(name), key, map: true, ranges: false }
}

const fn ranges(name: &'static str, family: Family) -> SetShape {
    SetShape { name: Cow::Borrowed(name), key: KeyShape::Address(family), map: false, ranges: true }
}

static INET_SETS: [SetShape; 16] = [
    ranges("overlay4", Family::Ipv4),
    ranges("overlay6", Family::Ipv6),
    ranges("local4", Family::Ipv4),
    ranges("local6", Family::Ipv6),
    set("node4", KeyShape::Address(Family::Ipv4)),
    set("node6", KeyShape::Address(Family::Ipv6)),
    set("gateways4", KeyShape::LinkAddress(Family::Ipv4)),
    set("gateways6", KeyShape::LinkAddress(Family::Ipv6)),
    set("links", KeyShape::Link),
    set("ports", KeyShape::Link),
    set("own4", KeyShape::LinkAddress(Family::Ipv4)),
    set("own6", KeyShape::LinkAddress(Family::Ipv6)),
    set("isolated4", KeyShape::Address(Family::Ipv4)),
    set("isolated6", KeyShape::Address(Family::Ipv6)),
    map("network4", KeyShape::Address(Family::Ipv4)),
    map("network6", KeyShape::Address(Family::Ipv6)),
];

static BRIDGE_SETS: [SetShape; 4] = [
    set("ports", KeyShape::Link),
    set("own4", KeyShape::LinkAddress(Family::Ipv4)),
    set("own6", KeyShape::LinkAddress(Family::Ipv6)),
    map("network", KeyShape::Link),
];

/// The sets that are there whatever the node runs.
pub(super) fn sets(half: Half) -> &'static [SetShape] {
    match half {
        Half::Inet => &INET_SETS,
        Half::Bridge => &BRIDGE_SETS,
    }
}

/// The sets of one isolation network.
pub(super) fn network_sets(half: Half, network: u32) -> Vec<SetShape> {
    let of = |name: String, key| SetShape { name: Cow::Owned(name), key, map: false, ranges: false };
    match half {
        Half::Inet => Family::ALL.map(|family| of(members_of(network, family), KeyShape::Address(family))).into(),
        Half::Bridge => vec![of(ports_of(network), KeyShape::Link)],
    }
}

/// Name of the set of a network's members of a family.
pub(super) fn members_of(network: u32, family: Family) -> String {
    match family {
        Family::Ipv4 => format!("members4_{network:08x}"),
        Family::Ipv6 => format!("members6_{network:08x}"),
    }
}

/// Name of the set of a network's ports.
pub(super) fn ports_of(network: u32) -> String {
    format!("ports_{network:08x}")
}

/// Name of the chain that decides about a network's members.
pub(super) fn chain_of(network: u32) -> String {
    format!("network_{network:08x}")
}

/// The network whose chain has this name.
pub(super) fn network_of_chain(chain: &str) -> Option<u32> {
    let network = u32::from_str_radix(chain.strip_prefix("network_")?, 16).ok()?;
    (chain_of(network) == chain).then_some(network)
}

/// Name of the set that holds a family's part: `own` and IPv4 give `own4`.
pub(super) fn of_family(stem: Stem, family: Family) -> &'static str {
    match (stem, family) {
        (Stem::Overlay, Family::Ipv4) => "overlay4",
        (Stem::Overlay, Family::Ipv6) => "overlay6",
        (Stem::Local, Family::Ipv4) => "local4",
        (Stem::Local, Family::Ipv6) => "local6",
        (Stem::Node, Family::Ipv4) => "node4",
        (Stem::Node, Family::Ipv6) => "node6",
        (Stem::Gateways, Family::Ipv4) => "gateways4",
        (Stem::Gateways, Family::Ipv6) => "gateways6",
        (Stem::Own, Family::Ipv4) => "own4",
        (Stem::Own, Family::Ipv6) => "own6",
        (Stem::Network, Family::Ipv4) => "network4",
        (Stem::Network, Family::Ipv6) => "network6",
        (Stem::Isolated, Family::Ipv4) => "isolated4",
        (Stem::Isolated, Family::Ipv6) => "isolated6",
    }
}

/// The sets of which there is one for each address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stem {
    Overlay,
    Local,
    Node,
    Gateways,
    Own,
    Network,
    Isolated,
}

impl SetShape {
    /// Flags, type and length of keys, type of what a map leads to: what makes two sets the same.
    pub(super) fn fingerprint(&self) -> [u32; 4] {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        /// `NFT_DATA_VERDICT`.
        const VERDICT: u32 = 0xffff_ff00;
        let (kind, length) = self.key.numbers();
        let flags = if self.map { MAP } else { 0 } | if self.ranges { INTERVAL } else { 0 };
        [flags, kind, length, if self.map { VERDICT } else { 0 }]
    }

    /// The request that makes it. `number` tells it apart from the others of one transaction.
    pub(super) fn request(&self, table: &str, number: u32) -> Attributes {
        let [flags, key_type, key_length, value_type] = self.fingerprint();
        let mut request = Attributes::default()
            .text(1, table)
            .text(2, &self.name)
            .number(3, flags)
            .number(4, key_type)
            .number(5, key_length)
            .number(10, number);
        if self.map {
            request = request.number(6, value_type);
        }
        // Byte order of the key, for the eyes of `nft` (udata of libnftnl: 1 is the host's order, 2 the network's).
        let order: u32 = if self.key == KeyShape::Link { 1 } else { 2 };
        request.bytes(13, &[&[0, 4][..], &order.to_ne_bytes()].concat())
    }
}

/// Where a chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) kind: &'static str,
    pub(super) number: u32,
    pub(super) priority: i32,
}

impl Hook {
    const fn new(kind: &'static str, number: u32, priority: i32) -> Self {
        Self { kind, number, priority }
    }
}

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;

/// A chain: hooked in, or jumped to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainShape {
    pub(super) name: Cow<'static, str>,
    pub(super) hook: Option<Hook>,
}

const fn hooked(name: &'static str, kind: &'static str, number: u32, priority: i32) -> ChainShape {
    ChainShape { name: Cow::Borrowed(name), hook: Some(Hook::new(kind, number, priority)) }
}

const fn plain(name: &'static str) -> ChainShape {
    ChainShape { name: Cow::Borrowed(name), hook: None }
}

/// The chains of a table; one that is jumped to stands before the one that jumps.
///
/// Forged packets are dropped before anything else sees them (`raw`). Ours stands five before the usual filters, so that a drop of ours
/// comes before an accept of theirs is even considered.
pub(super) fn chains(half: Half) -> &'static [ChainShape] {
    static INET: [ChainShape; 10] = [
        plain("from_port"),
        hooked("prerouting", "filter", PREROUTING, -300),
        plain("to_node"),
        hooked("input", "filter", INPUT, -5),
        plain("apart"),
        plain("inward"),
        plain("outward"),
        hooked("forward", "filter", FORWARD, -5),
        hooked("segments", "filter", FORWARD, -150),
        hooked("masquerade", "nat", POSTROUTING, 100),
    ];
    static BRIDGE: [ChainShape; 3] = [
        plain("from_port"),
        hooked("prerouting", "filter", PREROUTING, -300),
        hooked("forward", "filter", FORWARD, -200),
    ];
    match half {
        Half::Inet => &INET,
        Half::Bridge => &BRIDGE,
    }
}

/// The chain of one isolation network: the same name in both tables.
pub(super) fn network_chain(network: u32) -> ChainShape {
    ChainShape { name: Cow::Owned(chain_of(network)), hook: None }
}

impl ChainShape {
    pub(super) fn request(&self, table: &str) -> Attributes {
        const POLICY_ACCEPT: u32 = 1;
        let mut request = Attributes::default().text(1, table).text(3, &self.name);
        if let Some(hook) = self.hook {
            let place = Attributes::default().number(1, hook.number).number(2, hook.priority.cast_unsigned());
            request = request.nest(4, &place).number(5, POLICY_ACCEPT).text(7, hook.kind);
        }
        request
    }
}
