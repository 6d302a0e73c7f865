//! Routes of the main table that carry our protocol number and this instance's metric.
//!
//! Owns how a route of ours is recognised, made and removed. Leaves all other routes alone, and does not even read them: a node can
//! hold a million (A8), so a stranger in the way is found by the kernel's own `EEXIST`.
//!
//! Upholds I-03 (protocol and metric are part of the delete request, so the kernel itself refuses to match anything else),
//! I-04 (both are in the create request).
//!
//! An IPv6 `unreachable` route comes back with device `lo`; that is how the kernel stores it and not a difference.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use nix::errno::Errno;

use super::{
    addresses::ip,
    answer::{Dump, u32_at},
    errno::Fault,
    links,
    socket::{CALL_LIMIT, Channel},
};
use crate::{
    ids::Cidr,
    object::{Mark, ROUTE_PROTOCOL, RouteSpec},
    platform::ActionError,
};

pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_DELROUTE: u16 = 25;
pub(super) const RTM_GETROUTE: u16 = 26;
/// `rtmsg` in bytes; destination length, table, protocol and type stand at 1, 4, 5 and 7 (linux/rtnetlink.h).
pub(super) const RTMSG: usize = 12;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_GATEWAY: u16 = 5;
pub(super) const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;

/// Where a route leads, before the index is turned into a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Device(u32),
    Unreachable,
    Other(String),
}

/// A route with our protocol number as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundRoute {
    pub(super) destination: Cidr,
    pub(super) metric: u32,
    pub(super) table: u32,
    pub(super) protocol: u8,
    pub(super) target: Target,
}

impl FoundRoute {
    /// True when it carries this instance's mark.
    pub(super) fn is_ours(&self, mark: Mark) -> bool {
        self.protocol == ROUTE_PROTOCOL
            && self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
            && mark.owns_metric(self.metric)
    }
}

/// Reads an `RTM_NEWROUTE`; `None` when it is not one.
pub(super) fn parse(kind: u16, body: &[u8]) -> Option<FoundRoute> {
    if kind != RTM_NEWROUTE {
        return None;
    }
    let header = body.get(..RTMSG)?;
    let (mut destination, mut metric, mut table, mut device, mut hop) = (None, 0, u32::from(header[4]), None, None);
    for attribute in NlasIterator::new(&body[RTMSG..]) {
        let attribute = attribute.ok()?;
        let value = attribute.value();
        match attribute.kind() {
            RTA_DST => destination = Some(ip(value)?),
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            RTA_OIF => device = Some(u32_at(value, 0)?),
            RTA_GATEWAY | RTA_VIA => hop = Some("a route through a gateway"),
            RTA_MULTIPATH => hop = Some("a route with several next hops"),
            RTA_NH_ID => hop = Some("a route through a next-hop object"),
            _ => {}
        }
    }
    let network = match (destination, header[0]) {
        (Some(network), _) => network,
        (None, AF_INET) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        (None, AF_INET6) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        (None, _) => return None,
    };
    let target = match (header[7], device, hop) {
        (RTN_UNREACHABLE, _, _) => Target::Unreachable,
        (RTN_UNICAST, _, Some(text)) => Target::Other(text.to_owned()),
        (RTN_UNICAST, Some(index), None) => Target::Device(index),
        (other, _, _) => Target::Other(format!("a route of type {other}")),
    };
    Some(FoundRoute {
        destination: Cidr::containing(ipnet::IpNet::new(network, header[1]).ok()?),
        metric,
        table,
        protocol: header[5],
        target,
    })
}

/// Every route of the main table with our protocol number; the kernel filters.
pub(super) async fn dump(route: &mut Channel) -> Result<Dump<FoundRoute>, Fault> {
    let mut all = Dump { items: Vec::new(), cut: None };
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = RouteHeader::RT_TABLE_MAIN;
        request.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        match route.dump(RTM_GETROUTE, &request, parse).await {
            Ok(part) => {
                all.items.extend(part.items);
                all.cut = all.cut.or(part.cut);
            }
            // The table comes into being with its first route; a kernel without IPv6 has none.
            Err(fault) if matches!(fault.errno(), Some(Errno::ENOENT | Errno::EOPNOTSUPP)) => {}
            Err(fault) => return Err(fault),
        }
    }
    all.items.retain(|found| found.protocol == ROUTE_PROTOCOL && found.table == u32::from(RouteHeader::RT_TABLE_MAIN));
    Ok(all)
}

/// The fields that tell the route apart from every other, and nothing about where it leads.
fn identity(destination: &Cidr, metric: u32) -> RouteMessage {
    let mut request = RouteMessage::default();
    let header = &mut request.header;
    header.address_family = if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    header.destination_prefix_length = destination.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    request.attributes.extend([
        RouteAttribute::Destination(RouteAddress::from(destination.network())),
        RouteAttribute::Priority(metric),
    ]);
    request
}

/// The whole route as a request; the link it leads through must carry our mark.
async fn complete(
    route: &mut Channel,
    mark: Mark,
    destination: &Cidr,
    metric: u32,
    spec: &RouteSpec,
) -> Result<RouteMessage, ActionError> {
    let mut request = identity(destination, metric);
    match spec {
        RouteSpec::Through(name) => {
            let link = links::find_ours(route, mark, name).await?;
            request.header.kind = RouteType::Unicast;
            request.header.scope = RouteScope::Link;
            request.attributes.push(RouteAttribute::Oif(link.index));
        }
        RouteSpec::Unreachable => {
            request.header.kind = RouteType::Unreachable;
            request.header.scope = RouteScope::Universe;
        }
        RouteSpec::Other(text) => {
            return Err(ActionError::Failed(format!("{destination}: overlayd does not make {text}")));
        }
    }
    Ok(request)
}

fn checked_metric(mark: Mark, destination: &Cidr, metric: u32) -> Result<(), ActionError> {
    if mark.owns_metric(metric) {
        return Ok(());
    }
    Err(ActionError::Stranger(format!("the route to {destination} with metric {metric} is not of this instance")))
}

/// Makes a route with its mark. One of ours that is already there is what was wanted.
pub(super) async fn create(
    route: &mut Channel,
    mark: Mark,
    destination: &Cidr,
    metric: u32,
    spec: &RouteSpec,
) -> Result<(), ActionError> {
    checked_metric(mark, destination, metric)?;
    let request = complete(route, mark, destination, metric, spec).await?;
    let what = format!("add the route to {destination}");
    match route.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &request, CALL_LIMIT).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => {
            let found = dump(route).await.map_err(|fault| fault.to_action(&what))?;
            match find(&found, mark, destination, metric) {
                Some(found) if same(found, &request) => Ok(()),
                Some(_) => Err(ActionError::Failed(format!("{what}: ours is there and leads elsewhere"))),
                None => Err(ActionError::Stranger(format!(
                    "another program has a route to {destination} with metric {metric}"
                ))),
            }
        }
        Err(fault) => Err(fault.to_action(&what)),
    }
}

fn find<'a>(found: &'a Dump<FoundRoute>, mark: Mark, destination: &Cidr, metric: u32) -> Option<&'a FoundRoute> {
    let wanted = |route: &&FoundRoute| route.destination == *destination && route.metric == metric;
    found.items.iter().filter(|route| route.is_ours(mark)).find(wanted)
}

fn same(found: &FoundRoute, request: &RouteMessage) -> bool {
    let device = request.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    match (&found.target, device) {
        (Target::Device(index), Some(wanted)) => *index == wanted,
        (Target::Unreachable, None) => true,
        (Target::Device(_) | Target::Unreachable | Target::Other(_), _) => false,
    }
}

/// Points a route of ours elsewhere in one step: there is no moment without a route.
pub(super) async fn update(
    route: &mut Channel,
    mark: Mark,
    destination: &Cidr,
    metric: u32,
    to: &RouteSpec,
) -> Result<(), ActionError> {
    checked_metric(mark, destination, metric)?;
    let what = format!("change the route to {destination}");
    let found = dump(route).await.map_err(|fault| fault.to_action(&what))?;
    if find(&found, mark, destination, metric).is_none() {
        return Err(ActionError::Gone(format!("{what}: it is not there")));
    }
    let request = complete(route, mark, destination, metric, to).await?;
    route
        .change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &request, CALL_LIMIT)
        .await
        .map_err(|fault| fault.to_action(&what))
}

/// Removes a route of ours. One that is not there any more is removed.
pub(super) async fn delete(
    route: &mut Channel,
    mark: Mark,
    destination: &Cidr,
    metric: u32,
    was: &RouteSpec,
) -> Result<(), ActionError> {
    checked_metric(mark, destination, metric)?;
    let what = format!("remove the route to {destination}");
    let mut request = identity(destination, metric);
    match was {
        RouteSpec::Through(name) => match links::find(route, name).await {
            Ok(Some(link)) => request.attributes.push(RouteAttribute::Oif(link.index)),
            // The kernel removed the route together with its link.
            Ok(None) => return Ok(()),
            Err(fault) => return Err(fault.to_action(&what)),
        },
        RouteSpec::Unreachable => request.header.kind = RouteType::Unreachable,
        RouteSpec::Other(_) => {}
    }
    // Of IPv4 routes the scope is matched too, unless it is this one.
    request.header.scope = RouteScope::NoWhere;
    match route.change(RTM_DELROUTE, 0, &request, CALL_LIMIT).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.is_gone() => Ok(()),
        Err(fault) => Err(fault.to_action(&what)),
    }
}
