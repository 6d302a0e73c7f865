//! Addresses of our links.
//!
//! Owns which address counts as ours and how one is made and removed. Leaves finding the links to [`links`](super::links).
//!
//! Upholds I-03 (only addresses of links with our mark are looked at; one of another program on such a link is told apart by
//! `IFA_PROTO` where the kernel has it), I-04 (link and protocol are in the create request), I-08 (no flush).
//!
//! `IFA_F_NOPREFIXROUTE` is always set: otherwise the kernel adds a route to the prefix that nobody wrote into a document.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NlasIterator};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope},
};
use nix::errno::Errno;

use super::{
    answer::{Dump, u32_at},
    errno::Fault,
    links::FoundLink,
    socket::{CALL_LIMIT, Channel},
};
use crate::{
    ids::IfName,
    object::{ADDRESS_PROTOCOL, Spec},
    observed::{Observed, Owner, normalise},
    platform::ActionError,
};

pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
/// `ifaddrmsg` in bytes: family, prefix length, flags and scope in one byte each, then the index (linux/if_addr.h).
const IFADDR: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const LOOPBACK_INDEX: u32 = 1;

/// The next hop that containers have for the overlay in IPv6: `fe80::1`, the same on every link of ours.
const GATEWAY_OF_NODE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Up to so many links are asked for one by one; above it one dump of each family is cheaper.
const FILTER_LINKS_MAX: usize = 4;

/// An address as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundAddress {
    pub(super) index: u32,
    pub(super) net: IpNet,
    /// The far end of a point-to-point address, when it is another.
    pub(super) far: Option<IpAddr>,
    pub(super) scope: u8,
    pub(super) flags: u32,
    /// `IFA_PROTO`: who made it; `None` when the kernel does not say.
    pub(super) protocol: Option<u8>,
}

/// Reads an `RTM_NEWADDR`; `None` when it is not one.
pub(super) fn parse(kind: u16, body: &[u8]) -> Option<FoundAddress> {
    if kind != RTM_NEWADDR {
        return None;
    }
    let header = body.get(..IFADDR)?;
    let (mut local, mut address, mut flags, mut protocol) = (None, None, u32::from(header[2]), None);
    for attribute in NlasIterator::new(&body[IFADDR..]) {
        let attribute = attribute.ok()?;
        match attribute.kind() {
            IFA_ADDRESS => address = Some(ip(attribute.value())?),
            IFA_LOCAL => local = Some(ip(attribute.value())?),
            IFA_FLAGS => flags = u32_at(attribute.value(), 0)?,
            IFA_PROTO => protocol = attribute.value().first().copied(),
            _ => {}
        }
    }
    let own = local.or(address)?;
    Some(FoundAddress {
        index: u32_at(header, 4)?,
        net: IpNet::new(own, header[1]).ok()?,
        far: address.filter(|address| *address != own),
        scope: header[3],
        flags,
        protocol,
    })
}

/// The address that some bytes are, as netlink and D-Bus carry it.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// The addresses of these links, filtered in the kernel when there are few.
pub(super) async fn dump(route: &mut Channel, links: &[&FoundLink]) -> Result<Dump<FoundAddress>, Fault> {
    let mut all = Dump { items: Vec::new(), cut: None };
    let indexes: Vec<u32> = match links.len() {
        0 => return Ok(all),
        1..=FILTER_LINKS_MAX => links.iter().map(|link| link.index).collect(),
        // Index 0 asks for every link.
        _ => vec![0],
    };
    for index in indexes {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let part = dump_of(route, family, index).await?;
            all.items.extend(part.items);
            all.cut = all.cut.or(part.cut);
        }
    }
    // Kernels before 4.20 know no filter and answer with everything, each time.
    let indexes: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
    all.items.retain(|found| indexes.contains(&found.index));
    Ok(all)
}

/// Addresses of one family, of one link or (index 0) of all.
pub(super) async fn dump_of(
    route: &mut Channel,
    family: AddressFamily,
    index: u32,
) -> Result<Dump<FoundAddress>, Fault> {
    let mut request = AddressMessage::default();
    request.header.family = family;
    request.header.index = index;
    match route.dump(RTM_GETADDR, &request, parse).await {
        // The link went away since it was found: it has no addresses.
        Err(fault) if fault.errno() == Some(Errno::ENODEV) => Ok(Dump { items: Vec::new(), cut: None }),
        // IPv6 is not in this kernel.
        Err(fault) if fault.errno() == Some(Errno::EOPNOTSUPP) => Ok(Dump { items: Vec::new(), cut: None }),
        other => other,
    }
}

/// Whether this kernel says who made an address (`IFA_PROTO`, Linux 5.18).
///
/// The loopback addresses tell: a kernel that has the attribute marks its own with it. Where `lo` is down there is nothing to
/// look at, and the kernel's release number has to do.
pub(super) async fn has_protocol(route: &mut Channel) -> Result<bool, Fault> {
    let mut seen = 0;
    for family in [AddressFamily::Inet6, AddressFamily::Inet] {
        let found = dump_of(route, family, LOOPBACK_INDEX).await?;
        let loopback: Vec<_> = found.items.iter().filter(|found| found.index == LOOPBACK_INDEX).collect();
        if loopback.iter().any(|found| found.protocol.is_some()) {
            return Ok(true);
        }
        seen += loopback.len();
    }
    Ok(seen == 0 && release_has_protocol())
}

fn release_has_protocol() -> bool {
    let release =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(18))
}

/// True for the link-local address that the kernel gives to a link by itself. Ours is told by its protocol or, where the kernel has none
/// (5.18), by being the one that we use: the kernel derives its own from the hardware address.
pub(super) fn is_kernels_own(found: &FoundAddress) -> bool {
    let ours = match found.protocol {
        Some(protocol) => protocol == ADDRESS_PROTOCOL,
        None => found.net.addr() == IpAddr::V6(GATEWAY_OF_NODE),
    };
    normalise::is_kernel_made(&found.net.addr()) && !ours
}

/// The address as an observed object; `None` for what the kernel makes by itself and nobody wants reported.
pub(super) fn observed(found: &FoundAddress, kernel_has_protocol: bool) -> Option<Observed> {
    if is_kernels_own(found) {
        return None;
    }
    let owner = match (found.protocol, found.far) {
        (_, Some(far)) => Owner::Stranger(format!("a point-to-point address towards {far}")),
        (Some(ADDRESS_PROTOCOL), None) => Owner::Ours,
        (None, None) if !kernel_has_protocol => Owner::Ours,
        (protocol, None) => Owner::Stranger(format!(
            "an address that another program put on our link (protocol {})",
            protocol.unwrap_or(0)
        )),
    };
    Some(Observed { spec: Spec::Address, owner, stats: None })
}

/// The fields that tell an address apart from every other.
pub(super) fn request(index: u32, net: IpNet) -> AddressMessage {
    let mut request = AddressMessage::default();
    request.header.family = match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    request.header.index = index;
    request.header.prefix_len = net.prefix_len();
    // The kernel finds the scope of an IPv6 address by itself.
    request.header.scope = AddressScope::Universe;
    request.attributes.push(AddressAttribute::Local(net.addr()));
    request.attributes.push(AddressAttribute::Address(net.addr()));
    request
}

/// Puts an address on a link whose mark was seen. One that is there already, whoever made it, is what was wanted.
pub(super) async fn create(route: &mut Channel, link: &FoundLink, net: IpNet) -> Result<(), ActionError> {
    let mut request = request(link.index, net);
    // A tunnel has no neighbours that could answer a duplicate address probe.
    request.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Nodad));
    // Kernels before 5.18 ignore it.
    request.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(ADDRESS_PROTOCOL)));
    match route.change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &request, CALL_LIMIT).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.errno() == Some(Errno::EEXIST) => Ok(()),
        Err(fault) => Err(fault.to_action(&format!("add address {net} to {}", link.name))),
    }
}

/// Takes an address from a link whose mark was seen, unless another program put it there.
pub(super) async fn delete(
    route: &mut Channel,
    link: &FoundLink,
    name: &IfName,
    net: IpNet,
    kernel_has_protocol: bool,
) -> Result<(), ActionError> {
    let what = format!("remove address {net} from {name}");
    let found = dump(route, &[link]).await.map_err(|fault| fault.to_action(&what))?;
    match found.items.iter().find(|found| found.net == net) {
        None if found.cut.is_none() => return Ok(()),
        None => {}
        Some(found) => {
            if let Some(Owner::Stranger(text)) = observed(found, kernel_has_protocol).map(|seen| seen.owner) {
                return Err(ActionError::Stranger(format!("{net} on {name} is {text}")));
            }
        }
    }
    match route.change(RTM_DELADDR, 0, &request(link.index, net), CALL_LIMIT).await {
        Ok(()) => Ok(()),
        Err(fault) if fault.is_gone() => Ok(()),
        Err(fault) => Err(fault.to_action(&what)),
    }
}
