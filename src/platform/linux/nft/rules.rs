//! The rules of our tables. They are few, and the same on every node: what differs is in the sets.
//!
//! Owns what is let through and what is dropped. docs/FIREWALL.md says the same for operators. Leaves the encoding to
//! [`expression`](super::expression).
//!
//! Upholds I-06 (the rules of a version are a constant).
//!
//! A network has a chain, and sets of its members; a map leads there, so that a packet never meets the rules of other networks. (Looking up
//! network and destination together in one set would need no chains, but `nft` 1.0.6 ends with an assertion when it lists such a rule, and
//! with it every `nft list ruleset` on the host.) Nothing here needs a connection's state, except what comes in from outside: so that taking a member
//! out stops its flows at once.

use std::{borrow::Cow, hash::Hasher};

use super::{
    encode::Attributes,
    expression::{
        BEHIND_NAME, Base, Compare, ETHER_ARP, ETHER_IPV4, ETHER_IPV6, Expression, FIRST, ICMPV6, Meta, TCP, UDP,
        Verdict, bits, clamp_segments, compare, counter, decided_by, destination, known_connection, l4protocol,
        masquerade, meta, nfproto, outside, payload, protocol, source, verdict, within,
    },
    shape::{Half, Stem, chain_of, comment, members_of, of_family, ports_of},
};
use crate::object::Family;

/// A rule of ours: where it stands, what it says, and the comment by which it is known again.
pub(super) struct Rule {
    pub(super) chain: Cow<'static, str>,
    expressions: Attributes,
    words: &'static str,
}

impl Rule {
    fn new(chain: impl Into<Cow<'static, str>>, words: &'static str, parts: Vec<Vec<Expression>>) -> Self {
        let expressions =
            parts.into_iter().flatten().fold(Attributes::default(), |all, expression| all.join(&expression));
        Self { chain: chain.into(), expressions, words }
    }

    /// Words for people and a hash of the content: a rule of another version has another comment.
    pub(super) fn comment(&self) -> Vec<u8> {
        let mut hasher = siphasher::sip::SipHasher13::new_with_keys(0, 0);
        hasher.write(self.expressions.as_bytes());
        comment(&format!("{} [{:08x}]", self.words, hasher.finish() >> 32))
    }

    pub(super) fn request(&self, table: &str) -> Attributes {
        Attributes::default().text(1, table).text(2, &self.chain).nest(4, &self.expressions).bytes(7, &self.comment())
    }
}

/// All rules of a table; those of one chain in their order.
pub(super) fn rules(half: Half) -> Vec<Rule> {
    let mut all = from_port(half);
    all.push(Rule::new(
        "prerouting",
        "ports send only as themselves",
        vec![link_in(Meta::InputName, "ports"), then(Verdict::Jump("from_port"))],
    ));
    match half {
        Half::Inet => {
            for part in [to_node(), apart(), inward(), outward(), forward(), segments(), masquerading()] {
                all.extend(part);
            }
        }
        Half::Bridge => all.extend(between_ports()),
    }
    all
}

fn then(what: Verdict) -> Vec<Expression> {
    vec![verdict(what)]
}

fn dropped() -> Vec<Expression> {
    vec![counter(), verdict(Verdict::Drop)]
}

fn link_in(which: Meta, set: &str) -> Vec<Expression> {
    vec![meta(which, FIRST), within(set, FIRST)]
}

/// The packet is of this address family.
fn of(half: Half, family: Family) -> Vec<Expression> {
    match (half, family) {
        (Half::Inet, family) => nfproto(family),
        (Half::Bridge, Family::Ipv4) => protocol(ETHER_IPV4),
        (Half::Bridge, Family::Ipv6) => protocol(ETHER_IPV6),
    }
}

/// The packet came in through a port that does not have the address that `field` puts behind the port's name.
fn not_its_own(family: Family, field: Expression) -> Vec<Expression> {
    vec![meta(Meta::InputName, FIRST), field, outside(of_family(Stem::Own, family), FIRST)]
}

fn source_port(is: u16) -> Vec<Expression> {
    let mut all = l4protocol(UDP);
    all.extend([payload(Base::Transport, 0, 2, FIRST), compare(Compare::Equal, FIRST, &is.to_be_bytes())]);
    all
}

fn icmpv6(kind: u8) -> Vec<Expression> {
    let mut all = l4protocol(ICMPV6);
    all.extend([payload(Base::Transport, 0, 1, FIRST), compare(Compare::Equal, FIRST, &[kind])]);
    all
}

/// Where an IPv6 header has its hop limit (RFC 8200 section 3).
const HOP_LIMIT: u32 = 7;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// What a container may say about itself: its own addresses, and nothing that only a router or a DHCP server may say.
fn from_port(half: Half) -> Vec<Rule> {
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const REDIRECT: u8 = 137;
    /// Multicast listener queries and reports (RFC 2710, RFC 3810).
    const LISTENERS: [u8; 4] = [130, 131, 132, 143];
    const DHCP_SERVER: u16 = 67;
    const DHCPV6_SERVER: u16 = 547;
    let chain = "from_port";
    let rule = |words, parts| Rule::new(chain, words, parts);
    let (ipv4, ipv6) = (|| of(half, Family::Ipv4), || of(half, Family::Ipv6));
    let mut all = Vec::new();
    if half == Half::Bridge {
        let sender = payload(Base::Network, 14, 4, BEHIND_NAME);
        all.push(rule("forged ARP", vec![protocol(ETHER_ARP), not_its_own(Family::Ipv4, sender), dropped()]));
        all.push(rule("ARP", vec![protocol(ETHER_ARP), then(Verdict::Return)]));
    }
    let source4 = source(Family::Ipv4, BEHIND_NAME);
    all.push(rule("no DHCP server", vec![ipv4(), source_port(DHCP_SERVER), dropped()]));
    all.push(rule("forged source", vec![ipv4(), not_its_own(Family::Ipv4, source4), dropped()]));
    all.push(rule("IPv4", vec![ipv4(), then(Verdict::Return)]));
    if half == Half::Bridge {
        let other = vec![meta(Meta::Protocol, FIRST), compare(Compare::Different, FIRST, &ETHER_IPV6.to_be_bytes())];
        all.push(rule("neither ARP nor IP", vec![other, dropped()]));
    }
    let target = payload(Base::Transport, 8, 16, BEHIND_NAME);
    let source6 = source(Family::Ipv6, BEHIND_NAME);
    let link_local = vec![
        source(Family::Ipv6, FIRST),
        bits(FIRST, &prefix_mask(10)),
        compare(Compare::Equal, FIRST, &[&[0xfe, 0x80][..], &[0; 14]].concat()),
    ];
    let nobody = vec![source(Family::Ipv6, FIRST), compare(Compare::Equal, FIRST, &[0; 16])];
    let is_link_local = vec![
        payload(Base::Transport, 8, 16, FIRST),
        bits(FIRST, &prefix_mask(10)),
        compare(Compare::Equal, FIRST, &[&[0xfe, 0x80][..], &[0; 14]].concat()),
    ];
    all.extend([rule("no router", vec![ipv6(), icmpv6(ROUTER_ADVERTISEMENT), dropped()])]);
    // Who listens to which group is of use to a multicast router, which no container is; a bridge that hears a query begins to believe what it hears.
    all.extend(LISTENERS.map(|kind| rule("no multicast router", vec![ipv6(), icmpv6(kind), dropped()])));
    all.extend([
        rule("no redirects", vec![ipv6(), icmpv6(REDIRECT), dropped()]),
        rule("no DHCPv6 server", vec![ipv6(), source_port(DHCPV6_SERVER), dropped()]),
        rule(
            "its link-local neighbour",
            vec![ipv6(), icmpv6(ADVERTISEMENT), is_link_local, link_local.clone(), then(Verdict::Return)],
        ),
        rule("forged neighbour", vec![ipv6(), icmpv6(ADVERTISEMENT), not_its_own(Family::Ipv6, target), dropped()]),
        // Duplicate address detection has no source yet.
        rule("no address yet", vec![ipv6(), nobody, l4protocol(ICMPV6), then(Verdict::Return)]),
        rule("on its link", vec![ipv6(), link_local, then(Verdict::Return)]),
        rule("forged source", vec![ipv6(), not_its_own(Family::Ipv6, source6), dropped()]),
    ]);
    all
}

fn prefix_mask(bits: usize) -> Vec<u8> {
    (0..16).map(|byte| (0..8).filter(|bit| byte * 8 + bit < bits).fold(0, |mask, bit| mask | (0x80 >> bit))).collect()
}

/// The rules of one isolation network; those of other networks are in other chains.
///
/// In both directions: the chain is asked when either end is a member of the network.
pub(super) fn network_rules(half: Half, network: u32) -> Vec<Rule> {
    let rule = |words, parts| Rule::new(chain_of(network), words, parts);
    match half {
        Half::Inet => {
            let same = |family| {
                let members = members_of(network, family);
                let mut all = nfproto(family);
                for end in [source, destination] {
                    all.extend([end(family, FIRST), within(&members, FIRST)]);
                }
                rule("same network", vec![all, then(Verdict::Return)])
            };
            let mut all: Vec<Rule> = Family::ALL.into_iter().map(same).collect();
            all.push(rule("everything else", vec![then(Verdict::Jump("apart"))]));
            all
        }
        Half::Bridge => {
            let ports = ports_of(network);
            let same = [link_in(Meta::InputName, &ports), link_in(Meta::OutputName, &ports)].concat();
            vec![rule("same network", vec![same, then(Verdict::Accept)]), rule("isolation", vec![dropped()])]
        }
    }
}

fn end_in(family: Family, end: fn(Family, u32) -> Expression, stem: Stem) -> Vec<Expression> {
    let mut all = nfproto(family);
    all.extend([end(family, FIRST), within(of_family(stem, family), FIRST)]);
    all
}

/// What an isolated member may say to the node: of the overlay's addresses, only to those of its own gateway.
fn to_node() -> Vec<Rule> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let gateway = vec![
            meta(Meta::InputName, FIRST),
            destination(family, BEHIND_NAME),
            within(of_family(Stem::Gateways, family), FIRST),
        ];
        let isolated = end_in(family, source, Stem::Isolated);
        all.push(Rule::new("input", "from isolated members", vec![isolated, then(Verdict::Jump("to_node"))]));
        let node = end_in(family, destination, Stem::Node);
        all.push(Rule::new("to_node", "the node", vec![node, then(Verdict::Return)]));
        all.push(Rule::new("to_node", "own gateway", vec![nfproto(family), gateway, then(Verdict::Return)]));
        all.push(Rule::new("to_node", "isolation", vec![end_in(family, destination, Stem::Overlay), dropped()]));
    }
    all
}

/// Between an isolated member and what is not of its network: the node may, the rest of the overlay may not.
fn apart() -> Vec<Rule> {
    let rule = |words, parts| Rule::new("apart", words, parts);
    let mut all = Vec::new();
    for family in Family::ALL {
        for end in [source, destination] {
            all.push(rule("the node", vec![end_in(family, end, Stem::Node), then(Verdict::Return)]));
        }
        let both = [end_in(family, source, Stem::Overlay), end_in(family, destination, Stem::Overlay)].concat();
        all.push(rule("isolation", vec![both, dropped()]));
    }
    all
}

/// What leaves through a link of ours: only from links of ours, or because it was asked for.
fn inward() -> Vec<Rule> {
    let rule = |words, parts| Rule::new("inward", words, parts);
    vec![
        rule("from the overlay", vec![link_in(Meta::InputName, "links"), then(Verdict::Return)]),
        rule("from a container", vec![link_in(Meta::InputName, "ports"), then(Verdict::Return)]),
        rule("answers", vec![known_connection(), then(Verdict::Return)]),
        rule("not asked for", vec![dropped()]),
    ]
}

/// What leaves the overlay here: only what this node's containers send. The node is nobody else's way into the world.
fn outward() -> Vec<Rule> {
    let rule = |words, parts| Rule::new("outward", words, parts);
    let mut all = vec![
        rule("stays inside", vec![link_in(Meta::OutputName, "links"), then(Verdict::Return)]),
        rule("stays inside", vec![link_in(Meta::OutputName, "ports"), then(Verdict::Return)]),
    ];
    for family in Family::ALL {
        all.push(rule("from here", vec![end_in(family, source, Stem::Local), then(Verdict::Return)]));
        all.push(rule("from elsewhere", vec![end_in(family, source, Stem::Overlay), dropped()]));
    }
    all
}

fn forward() -> Vec<Rule> {
    let rule = |words, parts| Rule::new("forward", words, parts);
    let mut all = Vec::new();
    // Where the host has bridged frames pass through here as well (br_netfilter), neighbours must still find each other. What was routed has lost
    // one of its 255 hops by now, so nothing else can pass for it (RFC 4861 section 7.1).
    for kind in [SOLICITATION, ADVERTISEMENT] {
        let fresh = vec![payload(Base::Network, HOP_LIMIT, 1, FIRST), compare(Compare::Equal, FIRST, &[255])];
        all.push(rule("neighbours", vec![nfproto(Family::Ipv6), fresh, icmpv6(kind), then(Verdict::Return)]));
    }
    for family in Family::ALL {
        for end in [source, destination] {
            let asked = vec![end(family, FIRST), decided_by(of_family(Stem::Network, family), FIRST)];
            all.push(rule("isolated members", vec![nfproto(family), asked]));
        }
    }
    for set in ["links", "ports"] {
        all.push(rule("to containers", vec![link_in(Meta::OutputName, set), then(Verdict::Jump("inward"))]));
    }
    all.push(rule("out of the overlay", vec![link_in(Meta::InputName, "links"), then(Verdict::Jump("outward"))]));
    all
}

/// Tunnels carry less than the links around them, and not every path says so (A28).
fn segments() -> Vec<Rule> {
    let handshake = || {
        const FLAGS: u32 = 13;
        const SYN: u8 = 0x02;
        const SYN_OR_RST: u8 = 0x06;
        let mut all = l4protocol(TCP);
        all.extend([
            payload(Base::Transport, FLAGS, 1, FIRST),
            bits(FIRST, &[SYN_OR_RST]),
            compare(Compare::Equal, FIRST, &[SYN]),
        ]);
        all
    };
    let through =
        |which, set| Rule::new("segments", "fit the route", vec![link_in(which, set), handshake(), clamp_segments()]);
    vec![
        through(Meta::InputName, "links"),
        through(Meta::OutputName, "links"),
        through(Meta::InputName, "ports"),
        through(Meta::OutputName, "ports"),
    ]
}

/// What leaves the overlay from this node's containers leaves with an address of the node.
fn masquerading() -> Vec<Rule> {
    let rule = |words, parts| Rule::new("masquerade", words, parts);
    let multicast4 = vec![destination(Family::Ipv4, FIRST), compare(Compare::AtLeast, FIRST, &[224, 0, 0, 0])];
    let multicast6 =
        vec![destination(Family::Ipv6, FIRST), compare(Compare::AtLeast, FIRST, &[&[0xff][..], &[0; 15]].concat())];
    let mut all = vec![
        rule("stays inside", vec![link_in(Meta::OutputName, "links"), then(Verdict::Return)]),
        rule("stays inside", vec![link_in(Meta::OutputName, "ports"), then(Verdict::Return)]),
        rule("to nobody in particular", vec![nfproto(Family::Ipv4), multicast4, then(Verdict::Return)]),
        rule("to nobody in particular", vec![nfproto(Family::Ipv6), multicast6, then(Verdict::Return)]),
    ];
    for family in Family::ALL {
        let elsewhere = vec![destination(family, FIRST), outside(of_family(Stem::Overlay, family), FIRST)];
        let local = end_in(family, source, Stem::Local);
        all.push(rule("to the world", vec![local, elsewhere, vec![masquerade()]]));
    }
    all
}

/// Between two ports of a bridge: what finds neighbours may pass, the rest is for the networks of the ports to decide.
fn between_ports() -> Vec<Rule> {
    let rule = |words, parts| Rule::new("forward", words, parts);
    let mut all = vec![rule("ARP", vec![protocol(ETHER_ARP), then(Verdict::Accept)])];
    for kind in [SOLICITATION, ADVERTISEMENT] {
        all.push(rule("neighbours", vec![protocol(ETHER_IPV6), icmpv6(kind), then(Verdict::Accept)]));
    }
    for which in [Meta::InputName, Meta::OutputName] {
        all.push(rule("isolated ports", vec![vec![meta(which, FIRST), decided_by("network", FIRST)]]));
    }
    all
}
