//! The reverse path filter of a container's link.
//!
//! Owns loosening it, so that a container with two legs hears what comes by the one when its answer goes by the other. Leaves a filter that is
//! off or loose as it is.
//!
//! Over netlink and not through procfs: under one name, as `eth0` in every container, procfs keeps an entry for each namespace and compares
//! them one by one, so that the thousandth container would cost more than the first.

use netlink_packet_core::{DefaultNla, NlasIterator};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::conversation::Conversation;
use crate::platform::linux::{
    answer::u32_at,
    errno::Fault,
    links::{FoundLink, RTM_NEWLINK},
    nft::{Attributes, Body},
};

const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
/// `struct netconfmsg` with its padding.
const NETCONFMSG: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_RP_FILTER: u16 = 3;
/// The settings of `all` (`NETCONFA_IFINDEX_ALL`).
const ALL: i32 = -1;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_RP_FILTER` (linux/ip.h).
const DEVCONF_RP_FILTER: u16 = 8;
const AF_INET: u8 = 2;
/// RFC 3704 section 2.2.
const STRICT: u32 = 1;
/// RFC 3704 section 2.4.
const LOOSE: u32 = 2;

/// Makes the filter loose where it is strict. A namespace begins with the host's settings. A container can do without, so that it failed is
/// no failure.
pub(super) fn loosen(kernel: &mut Conversation, link: &FoundLink) {
    if let Err(fault) = try_to_loosen(kernel, link) {
        tracing::debug!(
            link = link.name,
            reason = fault.words(),
            "the container may filter strictly by the reverse path"
        );
    }
}

fn try_to_loosen(kernel: &mut Conversation, link: &FoundLink) -> Result<(), Fault> {
    // The kernel goes by the larger of the two.
    let in_force = filter(kernel, ALL)?.max(filter(kernel, link.index.cast_signed())?);
    if in_force != STRICT {
        return Ok(());
    }
    let setting = Attributes::default().bytes(DEVCONF_RP_FILTER, &LOOSE.to_ne_bytes());
    let of_family = Attributes::default().nest(AF_INET.into(), &Attributes::default().nest(IFLA_INET_CONF, &setting));
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    request.attributes.push(LinkAttribute::Other(DefaultNla::new(IFLA_AF_SPEC, of_family.as_bytes().to_vec())));
    kernel.change(RTM_NEWLINK, 0, &request)
}

fn filter(kernel: &mut Conversation, of: i32) -> Result<u32, Fault> {
    let request = Body::new(AF_INET, &Attributes::default().bytes(NETCONFA_IFINDEX, &of.to_ne_bytes()));
    kernel.get(RTM_GETNETCONF, &request, parse_filter)
}

pub(in crate::platform::linux) fn parse_filter(kind: u16, body: &[u8]) -> Option<u32> {
    let body = body.get(NETCONFMSG..).filter(|_| kind == RTM_NEWNETCONF)?;
    let mut attributes = NlasIterator::new(body).flatten();
    u32_at(attributes.find(|attribute| attribute.kind() == NETCONFA_RP_FILTER)?.value(), 0)
}
