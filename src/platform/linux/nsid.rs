//! The number by which this network namespace knows another one.
//!
//! Owns the request for it. Leaves what it proves to the callers: the far end of a veth is in the namespace whose number the veth tells.
//!
//! Upholds A21.
//!
//! The kernel gives a number to a namespace only when somebody needs it. For the far end of a veth that is the first time anyone looks at the
//! veth, so whoever wants to compare looks at the veth first.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::NlasIterator;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::answer::u32_at;

pub(super) const RTM_GETNSID: u16 = 90;
const RTM_NEWNSID: u16 = 88;
/// `rtgenmsg` with its padding.
const RTGENMSG: usize = 4;
const NETNSA_NSID: u16 = 1;

/// Asks for the number of an open namespace.
pub(super) fn nsid_request(namespace: &OwnedFd) -> NsidMessage {
    let mut request = NsidMessage::default();
    let fd =
        u32::try_from(namespace.as_raw_fd()).unwrap_or_else(|_| unreachable!("an open descriptor is not negative"));
    request.attributes.push(NsidAttribute::Fd(fd));
    request
}

/// Reads the answer; -1 when no number was given yet.
pub(super) fn parse_nsid(kind: u16, body: &[u8]) -> Option<i32> {
    if kind != RTM_NEWNSID {
        return None;
    }
    NlasIterator::new(body.get(RTGENMSG..)?)
        .flatten()
        .find(|attribute| attribute.kind() == NETNSA_NSID)
        .and_then(|attribute| Some(u32_at(attribute.value(), 0)?.cast_signed()))
}
