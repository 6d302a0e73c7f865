//! Segments: made, converted, removed.

use std::collections::BTreeSet;

use super::{
    super::{
        index::gateways,
        record::{OverlayRecord, Record, RecordKey},
        segment::{Dedicated, Lot, SegmentMode, SegmentRecord, SharedBridgeRecord},
    },
    addresses::strand,
    change::{Grant, ServiceGrant, Touched},
    draft::Draft,
    refusal::{DEDICATED_PORTS, Refusal, SEGMENTS_MAX},
    request::PeerScope,
    subnets::{Chooser, choose},
};
use crate::{
    ids::{IfName, NetworkName, ServiceName},
    object::KeyPair,
};

pub(super) fn ensure(
    draft: &mut Draft<'_>,
    service: &ServiceName,
    mode: SegmentMode,
    fresh: &KeyPair,
) -> Result<(), Refusal> {
    let overlay = draft.overlay()?;
    let mut record = match draft.segment(service) {
        None => make(draft, overlay, service, mode)?,
        Some(present) if present.mode == mode => present,
        Some(present) => convert(draft, overlay, service, present, mode)?,
    };
    record.implied = false;
    record.leaving = false;
    if mode == SegmentMode::Dedicated {
        record.dedicated = Some(device(draft, overlay, service, &record, fresh)?);
    }
    fence(draft, service, mode)?;
    draft.touched = Touched::Everything;
    draft.grant = grant(draft, overlay, service, &record);
    put(draft, service, record);
    drop_unused_shared_bridge(draft);
    Ok(())
}

/// A segment that an attach needs and nobody has set up.
pub(super) fn imply(draft: &mut Draft<'_>, service: &ServiceName) -> Result<SegmentRecord, Refusal> {
    let overlay = draft.overlay()?;
    let record = make(draft, overlay, service, SegmentMode::Auto)?;
    draft.touched = Touched::Everything;
    put(draft, service, record.clone());
    Ok(record)
}

/// Writes a segment; `since` grows only with what an object depends on.
fn put(draft: &mut Draft<'_>, service: &ServiceName, mut record: SegmentRecord) {
    let is_same = |present: &SegmentRecord| {
        (present.mode, present.subnets, &present.dedicated) == (record.mode, record.subnets, &record.dedicated)
    };
    if !draft.segment(service).is_some_and(|present| is_same(&present)) {
        record.since = draft.context.next;
    }
    draft.set_segment(service, Some(record));
}

/// A new segment, without its device.
fn make(
    draft: &mut Draft<'_>,
    overlay: &OverlayRecord,
    service: &ServiceName,
    mode: SegmentMode,
) -> Result<SegmentRecord, Refusal> {
    if draft.document.segments().len() >= SEGMENTS_MAX {
        return Err(Refusal::TooManySegments);
    }
    let mut record = SegmentRecord {
        mode,
        subnets: None,
        dedicated: None,
        implied: true,
        leaving: false,
        lot: Lot::default(),
        created: draft.context.now,
        since: draft.context.next,
    };
    bridge(draft, overlay, service, &mut record)?;
    Ok(record)
}

fn convert(
    draft: &mut Draft<'_>,
    overlay: &OverlayRecord,
    service: &ServiceName,
    mut record: SegmentRecord,
    mode: SegmentMode,
) -> Result<SegmentRecord, Refusal> {
    let attached = draft.attached_count(service);
    let keeps_bridge = record.mode != SegmentMode::Shared && mode != SegmentMode::Shared;
    if attached > 0 && !(record.implied && keeps_bridge) {
        return Err(Refusal::SegmentInUse { service: service.clone(), mode: record.mode, attached });
    }
    if !keeps_bridge && let Some(net) = draft.document.segment_net(service) {
        strand(draft, service, &net.subnets);
    }
    record.mode = mode;
    record.dedicated = None;
    bridge(draft, overlay, service, &mut record)?;
    Ok(record)
}

/// Gives a segment the bridge that its mode needs: its own, which it keeps once it has it, or the shared one.
fn bridge(
    draft: &mut Draft<'_>,
    overlay: &OverlayRecord,
    service: &ServiceName,
    record: &mut SegmentRecord,
) -> Result<(), Refusal> {
    if record.mode == SegmentMode::Shared {
        record.subnets = None;
        if draft.shared_bridge().is_none() {
            let subnets = choose(draft, overlay, Chooser::SharedBridge, &draft.segments())?;
            let bridge = SharedBridgeRecord { subnets, since: draft.context.next };
            draft.set(RecordKey::SharedBridge, Some(Record::SharedBridge(bridge)));
        }
    } else if record.subnets.is_none() {
        check_name(draft, service, &overlay.bridge_name(service), |other| {
            other.1.subnets.map(|_| overlay.bridge_name(&other.0))
        })?;
        record.subnets = Some(choose(draft, overlay, Chooser::Segment(service), &draft.segments())?);
    }
    Ok(())
}

/// The device that a dedicated segment has, or gets.
fn device(
    draft: &Draft<'_>,
    overlay: &OverlayRecord,
    service: &ServiceName,
    record: &SegmentRecord,
    fresh: &KeyPair,
) -> Result<Dedicated, Refusal> {
    match &record.dedicated {
        Some(present) if present.key.private.is_some() => Ok(present.clone()),
        // The store was imported without its secrets.
        Some(present) => Ok(Dedicated { key: fresh.clone(), port: present.port }),
        None => {
            check_name(draft, service, &overlay.dedicated_device_name(service), |other| {
                other.1.dedicated.as_ref().map(|_| overlay.dedicated_device_name(&other.0))
            })?;
            Ok(Dedicated { key: fresh.clone(), port: free_port(draft, overlay, service)? })
        }
    }
}

fn free_port(draft: &Draft<'_>, overlay: &OverlayRecord, service: &ServiceName) -> Result<u16, Refusal> {
    let taken: BTreeSet<u16> =
        draft.document.segments().values().filter_map(|segment| Some(segment.dedicated.as_ref()?.port)).collect();
    let (first, last) = (overlay.port.saturating_add(1), overlay.port.saturating_add(DEDICATED_PORTS));
    let mut ports = (first..=last).filter(|port| *port != overlay.port && !taken.contains(port));
    ports.next().ok_or_else(|| Refusal::NoPort { service: service.clone(), first, last })
}

/// Refuses a name that another segment's link has. Names are hashes, so two services can meet in one.
fn check_name(
    draft: &Draft<'_>,
    service: &ServiceName,
    name: &IfName,
    name_of: impl Fn(&(ServiceName, SegmentRecord)) -> Option<IfName>,
) -> Result<(), Refusal> {
    let others = draft.segments();
    let other = others.iter().find(|other| other.0 != *service && name_of(other).as_ref() == Some(name));
    match other {
        Some((other, _)) => Err(Refusal::NameTaken { one: service.clone(), other: other.clone(), name: name.clone() }),
        None => Ok(()),
    }
}

/// The isolation network of an attachment that asked for none.
pub(super) fn default_network(service: &ServiceName, mode: SegmentMode) -> Option<NetworkName> {
    match mode {
        SegmentMode::Isolated => match service.as_str().parse() {
            Ok(name) => Some(name),
            Err(_) => unreachable!("what is a service name is the name of an isolation network too"),
        },
        SegmentMode::Auto | SegmentMode::Shared | SegmentMode::Dedicated => None,
    }
}

/// # Errors
/// When the firewall could not tell the network from another one in use.
pub(super) fn check_network(draft: &Draft<'_>, wanted: &NetworkName) -> Result<(), Refusal> {
    match draft.document.network_like(wanted) {
        Some(present) => Err(Refusal::NetworkTaken { wanted: wanted.clone(), present: present.clone() }),
        None => Ok(()),
    }
}

/// Fences in what was attached before the segment was told to be isolated.
fn fence(draft: &mut Draft<'_>, service: &ServiceName, mode: SegmentMode) -> Result<(), Refusal> {
    let Some(network) = default_network(service, mode) else { return Ok(()) };
    let document = draft.document;
    for id in document.attached(service) {
        let Some(mut record) = draft.attachment(id).filter(|record| record.network.is_none()) else { continue };
        check_network(draft, &network)?;
        record.network = Some(network.clone());
        record.since = draft.context.next;
        draft.set_attachment(id, Some(record));
    }
    Ok(())
}

fn grant(draft: &Draft<'_>, overlay: &OverlayRecord, service: &ServiceName, record: &SegmentRecord) -> Grant {
    let plain =
        |name| ServiceGrant { name, mode: record.mode, public_key: None, port: None, overlay_ip: None, subnet: None };
    match (record.mode, &record.dedicated, record.subnets) {
        (SegmentMode::Auto | SegmentMode::Isolated, _, _) => Grant::Bridge(overlay.bridge_name(service)),
        (SegmentMode::Shared, _, _) => Grant::Service(plain(overlay.shared_bridge_name())),
        (SegmentMode::Dedicated, Some(device), Some(subnets)) => Grant::Service(ServiceGrant {
            public_key: device.key.public,
            port: Some(device.port),
            overlay_ip: gateways(&subnets).first().copied(),
            subnet: Some(*subnets.first()),
            ..plain(overlay.bridge_name(service))
        }),
        (SegmentMode::Dedicated, _, _) => {
            unreachable!("a dedicated segment has a device and subnets, at generation {}", draft.context.next)
        }
    }
}

pub(super) fn remove(draft: &mut Draft<'_>, service: &ServiceName) {
    let Some(mut record) = draft.segment(service) else { return };
    if draft.attached_count(service) == 0 {
        drop_segment(draft, service);
    } else {
        record.leaving = true;
        draft.set_segment(service, Some(record));
    }
}

pub(super) fn prune(draft: &mut Draft<'_>, live: &BTreeSet<IfName>) {
    let mut removed = BTreeSet::new();
    if let Ok(overlay) = draft.overlay() {
        let age = |record: &SegmentRecord| draft.context.now.since(record.created);
        let is_orphan = |(service, record): &(&ServiceName, &SegmentRecord)| {
            !live.contains(&overlay.bridge_of(service, record.mode))
                && draft.document.attached_count(service) == 0
                && age(record) > draft.context.policy.prune_after
        };
        let orphans: Vec<ServiceName> =
            draft.document.segments().iter().filter(is_orphan).map(|(service, _)| service.clone()).collect();
        for service in orphans {
            let own = draft.segment(&service).and_then(|record| record.subnets);
            removed.extend(own.map(|_| overlay.bridge_name(&service)));
            drop_segment(draft, &service);
        }
        if draft.document.shared_bridge().is_some() && draft.shared_bridge().is_none() {
            removed.insert(overlay.shared_bridge_name());
        }
    }
    // Links that carry our mark and belong to no segment are swept by any full round.
    draft.touched = Touched::Everything;
    draft.grant = Grant::Pruned(removed.into_iter().collect());
}

/// What becomes of a segment that something was just detached from.
pub(super) fn settle(draft: &mut Draft<'_>, service: &ServiceName) {
    let Some(mut record) = draft.segment(service) else { return };
    if draft.attached_count(service) > 0 {
        return;
    }
    if record.leaving || record.lot.goes_with_the_last() {
        draft.notes.push(format!("the segment of {service} goes with its last attachment"));
        drop_segment(draft, service);
    } else {
        record.lot = Lot::default();
        draft.set_segment(service, Some(record));
    }
}

/// Removes a segment with what is only there for it: reserved addresses and the peers of its device (docs/decisions/0005 says why).
pub(super) fn drop_segment(draft: &mut Draft<'_>, service: &ServiceName) {
    if let Some(net) = draft.document.segment_net(service) {
        strand(draft, service, &net.subnets);
    }
    let peers: Vec<_> = draft.document.service_peers(service).keys().copied().collect();
    for peer in peers {
        draft.set_peer(&PeerScope::Service(service.clone()), peer, None);
    }
    draft.set_segment(service, None);
    drop_unused_shared_bridge(draft);
    draft.touched = Touched::Everything;
}

fn drop_unused_shared_bridge(draft: &mut Draft<'_>) {
    if draft.shared_bridge().is_some() && !draft.segments().iter().any(|(_, record)| record.mode == SegmentMode::Shared)
    {
        draft.set(RecordKey::SharedBridge, None);
    }
}
