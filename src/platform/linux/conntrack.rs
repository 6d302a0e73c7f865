//! Forgetting connections: what conntrack remembers of an address whose holder changed.
//!
//! Owns finding and deleting the entries over ctnetlink. Leaves when to its callers.
//!
//! Upholds I-15 (one dump for any number of addresses).
//!
//! A UDP sender that never stops keeps its entry alive for ever: without this its packets would go on being translated for the container
//! that had the address before (A27).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::errno::Errno;

use super::{
    errno::Fault,
    nft::{Attributes, Body, GENERIC, value},
    socket::{CALL_LIMIT, Channel},
};

/// `NFNL_SUBSYS_CTNETLINK` in the upper byte, `enum ctnl_msg_types` in the lower.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `CTA_TUPLE_IP`, and in it IPv4 source and destination, IPv6 source and destination.
const TUPLE_IP: u16 = 1;

/// One entry: enough to tell it apart, and the addresses in it.
pub(super) struct Entry {
    family: u8,
    identity: Attributes,
    addresses: BTreeSet<IpAddr>,
}

/// Deletes every entry that has one of the addresses on any side.
pub(super) async fn forget(channel: &mut Channel, addresses: &[IpAddr]) -> Result<(), Fault> {
    if addresses.is_empty() {
        return Ok(());
    }
    let wanted: BTreeSet<IpAddr> = addresses.iter().copied().collect();
    let families = [
        (libc::AF_INET, addresses.iter().any(IpAddr::is_ipv4)),
        (libc::AF_INET6, addresses.iter().any(IpAddr::is_ipv6)),
    ];
    for (family, _) in families.into_iter().filter(|(_, is_wanted)| *is_wanted) {
        let family = u8::try_from(family).unwrap_or_else(|_| unreachable!("address families are small numbers"));
        let body = Body::new(family, &Attributes::default());
        let dump = match channel.dump(GET, &body, |_, body| concerned(body, &wanted)).await {
            Ok(dump) => dump,
            // This kernel follows no connections: there is nothing to forget.
            Err(fault) if matches!(fault.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL)) => return Ok(()),
            Err(fault) => return Err(fault),
        };
        for entry in dump.items.into_iter().flatten() {
            debug_assert!(!entry.addresses.is_disjoint(&wanted));
            match channel.change(DELETE, 0, &Body::new(entry.family, &entry.identity), CALL_LIMIT).await {
                Err(fault) if !fault.is_gone() => return Err(fault),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

/// The entry if it has a wanted address; the outer `None` is for one that cannot be read.
#[expect(clippy::option_option, reason = "an entry that does not matter is not one that cannot be read")]
pub(super) fn concerned(body: &[u8], wanted: &BTreeSet<IpAddr>) -> Option<Option<Entry>> {
    let family = *body.first()?;
    let attributes = body.get(GENERIC..)?;
    let original = value(attributes, ORIGINAL)?;
    let mut addresses = addresses(original);
    addresses.extend(value(attributes, REPLY).map(self::addresses).unwrap_or_default());
    if addresses.is_disjoint(wanted) {
        return Some(None);
    }
    let mut identity = Attributes::default().bytes(ORIGINAL | 0x8000, original);
    for kind in [ID, ZONE] {
        if let Some(bytes) = value(attributes, kind) {
            identity = identity.bytes(kind, bytes);
        }
    }
    Some(Some(Entry { family, identity, addresses }))
}

fn addresses(tuple: &[u8]) -> BTreeSet<IpAddr> {
    let Some(ends) = value(tuple, TUPLE_IP) else { return BTreeSet::new() };
    let v4 = [1, 2]
        .into_iter()
        .filter_map(|kind| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(value(ends, kind)?).ok()?))));
    let v6 = [3, 4]
        .into_iter()
        .filter_map(|kind| Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(value(ends, kind)?).ok()?))));
    v4.chain(v6).collect()
}
