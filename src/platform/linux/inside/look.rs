//! How it is in a container, as far as it concerns us.
//!
//! Owns what counts as ours in there. Leaves what should be there to others.
//!
//! Upholds I-03 (what a container added for itself is not reported, so nobody thinks of removing it), I-05.
//!
//! Where the kernel does not tell who made an address (before 5.18), only those that are wanted are reported: one that is no longer wanted
//! stays in the container.

use std::collections::BTreeSet;

use netlink_packet_core::NlasIterator;
use netlink_packet_route::{
    AddressFamily,
    address::AddressMessage,
    route::{RouteAttribute, RouteHeader, RouteMessage},
};
use nix::errno::Errno;

use super::{conversation::Conversation, front::HostEnd, visitor::Visitor};
use crate::{
    ids::{Cidr, IfName},
    object::{ADDRESS_PROTOCOL, InsideRoute, InsideSpec, ROUTE_PROTOCOL},
    platform::linux::{
        addresses,
        answer::{Dump, u32_at},
        errno::Fault,
        links::{self, FoundLink, KIND_VETH, RTM_GETLINK},
        netns,
        routes::{RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_PRIORITY, RTA_TABLE, RTM_GETROUTE, RTM_NEWROUTE, RTMSG},
    },
};

/// Loopback is the first link of every namespace.
pub(super) const LOOPBACK_INDEX: u32 = 1;
/// What the kernel makes of a metric that was not given: nothing for IPv4, this for IPv6 (`IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;
const AF_INET: u8 = 2;
const RTN_UNICAST: u8 = 1;

/// One container to look at.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) veth: IfName,
    pub(super) spec: InsideSpec,
    pub(super) host: HostEnd,
}

/// What was seen of it.
pub(super) struct Sight {
    pub(super) wanted: Wanted,
    /// Whether the veth leads into the wanted namespace; `None`: it could not be asked.
    pub(super) leads_there: Option<bool>,
    /// `None`: there is no such side, or nobody looked. The error says why it could not be looked at.
    pub(super) spec: Result<Option<InsideSpec>, String>,
}

/// Looks at all of them; `enter` or only asks where their veths lead.
pub(super) fn at_all(visitor: &mut Visitor, wanted: Vec<Wanted>, enter: bool) -> Vec<Sight> {
    wanted.into_iter().map(|wanted| at_one(visitor, wanted, enter)).collect()
}

fn at_one(visitor: &mut Visitor, wanted: Wanted, enter: bool) -> Sight {
    let unseen = |wanted, leads_there, spec| Sight { wanted, leads_there, spec };
    if let Err(fault) = visitor.check_time() {
        return unseen(wanted, None, Err(fault.words()));
    }
    let namespace = match netns::open(&wanted.spec.netns) {
        Ok(namespace) => namespace,
        Err(error) if error.is_final() => return unseen(wanted, Some(false), Ok(None)),
        Err(error) => return unseen(wanted, None, Err(error.to_string())),
    };
    match visitor.is_known_as(&namespace, wanted.host.far_nsid) {
        Ok(true) => {}
        Ok(false) => return unseen(wanted, Some(false), Ok(None)),
        Err(fault) => return unseen(wanted, None, Err(fault.words())),
    }
    if !enter {
        return unseen(wanted, Some(true), Ok(None));
    }
    let seen = visitor.within(&namespace, |kernel| within(kernel, &wanted));
    match seen.and_then(|seen| seen) {
        Ok(spec) => unseen(wanted, Some(true), Ok(Some(spec))),
        // The pair went away since its host end was seen, and the number of the namespace that it led to may be this one's by now.
        Err(fault) if fault.is_gone() => unseen(wanted, Some(false), Ok(None)),
        Err(fault) => unseen(wanted, Some(true), Err(fault.words())),
    }
}

fn within(kernel: &mut Conversation, wanted: &Wanted) -> Result<InsideSpec, Fault> {
    let link = far_end(kernel, wanted.host)?;
    let loopback = kernel.get(RTM_GETLINK, &links::by_index(LOOPBACK_INDEX), links::parse)?;
    let mut cut = None;
    let mut whole = |part: Option<String>| cut = cut.take().or(part);

    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Unspec;
    request.header.index = link.index;
    let dump = kernel.dump(addresses::RTM_GETADDR, &request, addresses::parse)?;
    whole(dump.cut);
    let is_ours = |found: &addresses::FoundAddress| {
        found.index == link.index
            && (found.protocol == Some(ADDRESS_PROTOCOL) || wanted.spec.addresses.contains(&found.net))
    };
    let found = dump.items.into_iter().filter(is_ours).map(|found| found.net).collect();

    let mut seen = BTreeSet::new();
    for is_ipv4 in [true, false] {
        let dump = routes(kernel, is_ipv4, Some(link.index))?;
        whole(dump.cut);
        let ours = dump.items.into_iter().filter(|found| {
            found.output == Some(link.index)
                && (found.protocol == ROUTE_PROTOCOL || wanted.spec.routes.contains(&found.route))
        });
        seen.extend(ours.map(|found| found.route));
    }
    if cut.is_some() {
        return Err(Fault::Garbled("the container changed while it was looked at"));
    }
    Ok(InsideSpec {
        netns: wanted.spec.netns.clone(),
        // The name it was made with: what a container calls it is the container's business.
        name: wanted.spec.name.clone(),
        mtu: link.mtu,
        up: link.up && loopback.up,
        addresses: found,
        routes: seen,
    })
}

/// The far end of our veth, in the namespace at hand, which is proven to be the one that it leads to.
pub(super) fn far_end(kernel: &mut Conversation, host: HostEnd) -> Result<FoundLink, Fault> {
    let link = kernel.get(RTM_GETLINK, &links::by_index(host.far_index), links::parse)?;
    if link.kind == KIND_VETH && link.is_ours(host.mark) && link.far_index == host.index {
        Ok(link)
    } else {
        Err(Fault::Refused(Errno::ENODEV, "the link of that index is another one".into()))
    }
}

/// A route of the main table in a container.
#[derive(Debug)]
pub(in crate::platform::linux) struct SeenRoute {
    pub(in crate::platform::linux) route: InsideRoute,
    pub(super) output: Option<u32>,
    pub(super) metric: u32,
    pub(super) protocol: u8,
}

/// The metric that a route of ours has in a container: the kernel's own for a route of which none was said.
pub(super) fn default_metric(route: &InsideRoute) -> u32 {
    if route.destination.is_ipv4() { 0 } else { IPV6_METRIC }
}

/// Routes of the main table in one family, of one link or of all.
pub(super) fn routes(kernel: &mut Conversation, is_ipv4: bool, link: Option<u32>) -> Result<Dump<SeenRoute>, Fault> {
    let mut request = RouteMessage::default();
    request.header.address_family = if is_ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.attributes.extend(link.map(RouteAttribute::Oif));
    match kernel.dump(RTM_GETROUTE, &request, parse_route) {
        Ok(dump) => {
            let main =
                |(table, seen): (u32, SeenRoute)| (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(seen);
            Ok(Dump { items: dump.items.into_iter().filter_map(main).collect(), cut: dump.cut })
        }
        // The table comes into being with its first route; a kernel without IPv6 has none.
        Err(fault) if matches!(fault.errno(), Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {
            Ok(Dump { items: Vec::new(), cut: None })
        }
        Err(fault) => Err(fault),
    }
}

pub(in crate::platform::linux) fn parse_route(kind: u16, body: &[u8]) -> Option<(u32, SeenRoute)> {
    if kind != RTM_NEWROUTE {
        return None;
    }
    let header = body.get(..RTMSG)?;
    let (mut destination, mut via, mut output, mut metric, mut table) = (None, None, None, 0, u32::from(header[4]));
    for attribute in NlasIterator::new(&body[RTMSG..]) {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            RTA_DST => destination = Some(addresses::ip(value)?),
            RTA_GATEWAY => via = Some(addresses::ip(value)?),
            RTA_OIF => output = Some(u32_at(value, 0)?),
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    let destination = destination.unwrap_or(if header[0] == AF_INET {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    });
    let destination = Cidr::containing(ipnet::IpNet::new(destination, header[1]).ok()?);
    // A route that refuses packets is never the one that we mean, whatever link it names.
    let output = output.filter(|_| header[7] == RTN_UNICAST);
    Some((table, SeenRoute { route: InsideRoute { destination, via }, output, metric, protocol: header[5] }))
}
