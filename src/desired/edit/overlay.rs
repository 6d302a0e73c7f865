use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::{
        attachment::AddressRecord,
        record::{OverlayRecord, Record, RecordKey},
        segment::{SegmentMode, SharedBridgeRecord},
    },
    change::{Grant, Touched},
    draft::Draft,
    refusal::Refusal,
    request::OverlayRequest,
    subnets::{Chooser, choose},
};
use crate::ids::{IfName, Networks, ServiceName};

pub(super) fn ensure(draft: &mut Draft<'_>, wanted: &OverlayRequest) -> Result<(), Refusal> {
    check(wanted)?;
    let mut record = OverlayRecord {
        deployment: wanted.deployment.clone(),
        instance: wanted.instance.clone(),
        cluster: wanted.cluster,
        slice: wanted.slice,
        port: wanted.port,
        host_adapter_mandatory: wanted.host_adapter_mandatory,
        nat: wanted.nat.clone(),
        since: draft.context.next,
    };
    draft.grant = Grant::Device(record.device_name());
    draft.touched = Touched::Everything;
    if let Some(present) = draft.document.overlay() {
        record.since = present.since;
        if *present == record {
            return Ok(());
        }
        record.since = draft.context.next;
        change_live(draft, present, &record)?;
    }
    draft.set(RecordKey::Overlay, Some(Record::Overlay(record)));
    Ok(())
}

/// What a request contradicts by itself.
fn check(wanted: &OverlayRequest) -> Result<(), Refusal> {
    if wanted.port == 0 {
        return Err(Refusal::PortZero);
    }
    for network in wanted.cluster.iter() {
        if network.address_at(1).is_none() {
            return Err(Refusal::TooSmall(*network));
        }
    }
    for slice in wanted.slice.iter().flat_map(Networks::iter) {
        if !wanted.cluster.iter().any(|cluster| cluster.contains(slice)) {
            return Err(Refusal::SliceOutsideCluster { slice: *slice, cluster: wanted.cluster });
        }
        if slice.address_at(1).is_none() {
            return Err(Refusal::TooSmall(*slice));
        }
    }
    Ok(())
}

/// What a change of a live overlay means for what hangs on it.
fn change_live(draft: &mut Draft<'_>, present: &OverlayRecord, record: &OverlayRecord) -> Result<(), Refusal> {
    let is_moved = present.cluster != record.cluster;
    let is_renamed = (&present.deployment, &present.instance) != (&record.deployment, &record.instance);
    let attached = draft.document.attachments().len();
    if (is_moved || is_renamed) && attached > 0 {
        return Err(Refusal::OverlayInUse { attached });
    }
    let mut segments = draft.document.segments().iter();
    if let Some((service, _)) =
        segments.find(|(_, segment)| segment.dedicated.as_ref().is_some_and(|device| device.port == record.port))
    {
        return Err(Refusal::PortTaken { port: record.port, service: service.clone() });
    }
    if is_moved {
        forget_addresses(draft);
        return renumber(draft, record);
    }
    if is_renamed {
        check_names(draft, record)?;
        for (service, mut segment) in draft.segments() {
            segment.since = draft.context.next;
            draft.set_segment(&service, Some(segment));
        }
        if let Some(bridge) = draft.shared_bridge() {
            let bridge = SharedBridgeRecord { since: draft.context.next, ..bridge };
            draft.set(RecordKey::SharedBridge, Some(Record::SharedBridge(bridge)));
        }
    }
    if present.slice != record.slice { move_slice(draft, present, record) } else { Ok(()) }
}

/// Every address of a network that is no more.
fn forget_addresses(draft: &mut Draft<'_>) {
    for address in draft.document.addresses().keys() {
        draft.set_address(*address, None);
    }
}

/// Nothing is attached, so every segment chooses anew, in the new cluster network.
fn renumber(draft: &mut Draft<'_>, record: &OverlayRecord) -> Result<(), Refusal> {
    check_names(draft, record)?;
    let next = draft.context.next;
    let mut chosen = draft.segments();
    let has_shared_bridge = draft.shared_bridge().is_some();
    for (_, segment) in &mut chosen {
        segment.subnets = None;
        segment.since = next;
    }
    draft.set(RecordKey::SharedBridge, None);
    for at in 0..chosen.len() {
        let service = chosen[at].0.clone();
        if chosen[at].1.mode != SegmentMode::Shared {
            chosen[at].1.subnets = Some(choose(draft, record, Chooser::Segment(&service), &chosen)?);
        }
        draft.set_segment(&service, Some(chosen[at].1.clone()));
    }
    if has_shared_bridge {
        let subnets = choose(draft, record, Chooser::SharedBridge, &chosen)?;
        let bridge = SharedBridgeRecord { subnets, since: next };
        draft.set(RecordKey::SharedBridge, Some(Record::SharedBridge(bridge)));
    }
    Ok(())
}

/// Names are hashes of deployment and instance too, so other services may meet in one name now.
fn check_names(draft: &Draft<'_>, record: &OverlayRecord) -> Result<(), Refusal> {
    let mut names: BTreeMap<IfName, ServiceName> = BTreeMap::new();
    for (service, segment) in draft.segments() {
        let bridge = segment.subnets.map(|_| record.bridge_name(&service));
        let device = segment.dedicated.as_ref().map(|_| record.dedicated_device_name(&service));
        for name in bridge.into_iter().chain(device) {
            if let Some(other) = names.insert(name.clone(), service.clone()) {
                return Err(Refusal::NameTaken { one: service, other, name });
            }
        }
    }
    Ok(())
}

/// The slice moves, grows or shrinks: whoever has an address of it must still have it, and the node its own.
fn move_slice(draft: &mut Draft<'_>, present: &OverlayRecord, record: &OverlayRecord) -> Result<(), Refusal> {
    let document = draft.document;
    for slice in record.slice.iter().flat_map(Networks::iter) {
        let of_segments =
            document.segments().iter().map(|(service, record)| (record.subnets, format!("service {service}")));
        let of_shared = document.shared_bridge().map(|bridge| (Some(bridge.subnets), "the shared bridge".to_owned()));
        for (subnets, of) in of_segments.chain(of_shared) {
            let overlapping =
                subnets.as_ref().and_then(|all| all.iter().find(|subnet| subnet.overlaps(slice)).copied());
            if let Some(subnet) = overlapping {
                return Err(Refusal::SliceOverlaps { slice: *slice, subnet, of });
            }
        }
    }
    let own: Vec<IpAddr> = record.node_addresses().iter().map(|address| address.ip).collect();
    let stays =
        |address: &IpAddr| record.slice.is_some_and(|slice| slice.contains_address(address)) && !own.contains(address);
    let was_in_slice = |address: &IpAddr| present.slice.is_some_and(|slice| slice.contains_address(address));
    for (address, holder) in document.held() {
        if was_in_slice(address) && !stays(address) {
            return Err(Refusal::SliceInUse { address: *address, holder: holder.to_string() });
        }
    }
    for (address, kept) in document.addresses() {
        match kept {
            AddressRecord::Reserved { service, .. } if was_in_slice(address) && !stays(address) => {
                return Err(Refusal::SliceInUse { address: *address, holder: format!("a reservation for {service}") });
            }
            AddressRecord::Resting { .. } if own.contains(address) => draft.set_address(*address, None),
            AddressRecord::Reserved { .. } | AddressRecord::Resting { .. } => {}
        }
    }
    Ok(())
}

/// The overlay goes, and with it all that hangs on it. Its peers and those of services: they are the configuration of a device that no longer exists
/// (docs/decisions/0005-teardown-removes-peers.md). The node's key and DNS records stay.
pub(super) fn remove(draft: &mut Draft<'_>) {
    draft.touched = Touched::Everything;
    if draft.document.overlay().is_none() {
        return;
    }
    draft.set(RecordKey::Overlay, None);
    let document = draft.document;
    for (scope, key, _) in document.all_peers() {
        draft.set_peer(&scope, *key, None);
    }
    for id in document.attachments().keys() {
        draft.set_attachment(id, None);
    }
    for service in document.segments().keys() {
        draft.set_segment(service, None);
    }
    draft.set(RecordKey::SharedBridge, None);
    forget_addresses(draft);
}
