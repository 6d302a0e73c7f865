//! Single addresses: handed out, taken back, resting.
//!
//! Upholds I-11, A16 to A18: what is free is read off the document, so that it is the same after a crash as before it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    super::{attachment::AddressRecord, index::AddressHolder},
    change::Grant,
    draft::Draft,
    refusal::{RESERVED_MAX, Refusal},
};
use crate::ids::{Cidr, Networks, ServiceName};

/// Where in a subnet the addresses begin that are given out: after the network's own and the gateway's (or the node's).
const FIRST_OFFSET: u128 = 2;

/// Hands out an address of the service's subnet, or of the node's slice while the service has no segment.
pub(super) fn allocate(draft: &mut Draft<'_>, service: &ServiceName) -> Result<(), Refusal> {
    let overlay = draft.overlay()?;
    if draft.document.addresses().len() >= RESERVED_MAX {
        return Err(Refusal::TooManyReserved);
    }
    let subnets = match draft.document.segment_net(service) {
        Some(net) => net.subnets,
        None => overlay.slice.ok_or(Refusal::NoSlice)?,
    };
    let address = take(draft, subnets.first())?;
    let since = draft.context.next;
    draft.set_address(address, Some(AddressRecord::Reserved { service: service.clone(), since }));
    draft.grant = Grant::Address(address);
    Ok(())
}

pub(super) fn release(draft: &mut Draft<'_>, address: IpAddr) -> Result<(), Refusal> {
    match draft.document.address_holder(&address) {
        Some(AddressHolder::Reserved(service)) => {
            draft.rest(address, format!("reserved for {service}"));
            Ok(())
        }
        Some(AddressHolder::Resting(_)) => Ok(()),
        Some(AddressHolder::Attachment(holder)) => Err(Refusal::AddressAttached { address, holder }),
        Some(AddressHolder::Node | AddressHolder::Gateway(_) | AddressHolder::SharedGateway) => {
            Err(Refusal::AddressOfNode(address))
        }
        None => Err(Refusal::NeverHandedOut(address)),
    }
}

pub(super) fn forget_rested(draft: &mut Draft<'_>) {
    let now = draft.context.now;
    for (address, record) in draft.document.addresses() {
        if matches!(record, AddressRecord::Resting { until, .. } if *until <= now) {
            draft.set_address(*address, None);
        }
    }
}

/// Lets the addresses that are reserved for a service in these subnets rest: the subnets are about to go.
pub(super) fn strand(draft: &mut Draft<'_>, service: &ServiceName, subnets: &Networks) {
    for subnet in subnets.iter() {
        let (first, last) = bounds(subnet);
        for (address, record) in draft.document.addresses().range(first..=last) {
            if matches!(record, AddressRecord::Reserved { service: of, .. } if of == service) {
                draft.rest(*address, format!("reserved for {service}"));
            }
        }
    }
}

/// One address of each of the networks, or none at all.
pub(super) fn take_all(draft: &mut Draft<'_>, networks: &Networks) -> Result<Vec<IpAddr>, Refusal> {
    networks.iter().map(|network| take(draft, network)).collect()
}

/// The lowest free address of a subnet, which is not free any more then.
fn take(draft: &mut Draft<'_>, subnet: &Cidr) -> Result<IpAddr, Refusal> {
    let address = lowest_free(draft, subnet).ok_or_else(|| exhausted(draft, subnet))?;
    draft.claim(address);
    Ok(address)
}

/// Walks along what is held, so that it costs as much as there is in the subnet and not in the document.
fn lowest_free(draft: &Draft<'_>, subnet: &Cidr) -> Option<IpAddr> {
    let first = subnet.address_at(FIRST_OFFSET)?;
    let last = last_assignable(subnet);
    if first > last {
        return None;
    }
    let now = draft.context.now;
    let mut held = draft.document.held().range(first..=last).map(|(address, _)| *address).peekable();
    let rests_no_more =
        |record: &AddressRecord| matches!(record, AddressRecord::Resting { until, .. } if *until <= now);
    let kept = draft.document.addresses().range(first..=last);
    let mut kept = kept.filter(|(_, record)| !rests_no_more(record)).map(|(address, _)| *address).peekable();
    let mut candidate = first;
    loop {
        let is_held = held.next_if_eq(&candidate).is_some();
        let is_kept = kept.next_if_eq(&candidate).is_some();
        let is_free = !draft.is_occupied(&candidate).unwrap_or(is_held || is_kept);
        // A peer that is routed exactly this address would fight with a guest for it.
        if is_free && draft.document.holder(&Cidr::host(candidate)).is_none() {
            return Some(candidate);
        }
        if candidate == last {
            return None;
        }
        candidate = successor(candidate);
    }
}

fn exhausted(draft: &Draft<'_>, subnet: &Cidr) -> Refusal {
    let (first, last) = bounds(subnet);
    let now = draft.context.now;
    let kept = || draft.document.addresses().range(first..=last).map(|(_, record)| record);
    let reserved = kept().filter(|record| matches!(record, AddressRecord::Reserved { .. })).count();
    let resting =
        kept().filter(|record| matches!(record, AddressRecord::Resting { until, .. } if *until > now)).count();
    let in_use = draft.document.held().range(first..=last).count() + reserved;
    Refusal::Exhausted { subnet: *subnet, in_use, resting }
}

fn bounds(subnet: &Cidr) -> (IpAddr, IpAddr) {
    (subnet.network(), subnet.net().broadcast())
}

/// The last address but for the broadcast address of IPv4, which a host does not take as its own.
fn last_assignable(subnet: &Cidr) -> IpAddr {
    match subnet.net().broadcast() {
        IpAddr::V4(last) => IpAddr::V4(Ipv4Addr::from(u32::from(last).saturating_sub(1))),
        IpAddr::V6(last) => IpAddr::V6(last),
    }
}

fn successor(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from(u32::from(address).saturating_add(1))),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address).saturating_add(1))),
    }
}
