//! Attaching: an address, a place, a fence. Attaching again changes nothing, or exactly what is asked for differently (A17, B6).

use std::net::IpAddr;

use super::{
    super::{
        attachment::{AttachmentId, AttachmentRecord, Place},
        record::OverlayRecord,
        segment::{SegmentMode, SegmentRecord},
    },
    addresses::take_all,
    change::{Grant, GuestGrant},
    detach,
    draft::Draft,
    refusal::{ATTACHMENTS_MAX, Refusal},
    request::{AttachRequest, Subject},
    segments,
};
use crate::ids::{Networks, ServiceName};

pub(super) fn attach(draft: &mut Draft<'_>, wanted: &AttachRequest) -> Result<(), Refusal> {
    let overlay = draft.overlay()?;
    let id = wanted.subject.id().map_err(Refusal::NoPid)?;
    let (present, buried) = predecessor(draft, &id, &wanted.subject);
    if present.is_none() && draft.document.attachments().len() >= ATTACHMENTS_MAX {
        return Err(Refusal::TooManyAttachments);
    }
    let segment = segment_for(draft, wanted)?;
    let mut record = wanted_record(draft, overlay, wanted, segment.as_ref(), present.as_ref())?;
    let is_new_state = present.as_ref() != Some(&record) || lacks_key(present.as_ref());
    if is_new_state {
        record.since = draft.context.next;
        draft.set_attachment(&id, Some(record.clone()));
        if let Some(mut segment) = draft.segment(&wanted.service) {
            segment.lot = segment.lot.with(wanted.ephemeral);
            draft.set_segment(&wanted.service, Some(segment));
        }
    }
    let keys = detach::keys(draft, &id, &record);
    draft.touched.add(keys);
    if let Some(present) = &present {
        for address in present.held().filter(|address| !record.held().any(|kept| kept == *address)) {
            draft.rest(*address, format!("{id} of {}", present.service));
        }
        let keys = detach::keys(draft, &id, present);
        draft.touched.add(keys);
    }
    let left: Option<ServiceName> = buried.or(present.map(|present| present.service));
    if let Some(left) = left.filter(|left| *left != wanted.service) {
        segments::settle(draft, &left);
    }
    draft.grant = grant(overlay, &record);
    Ok(())
}

/// The record that is to be changed; and the service of one that is buried, because its pid is another process's now (A21).
fn predecessor(
    draft: &mut Draft<'_>,
    id: &AttachmentId,
    subject: &Subject,
) -> (Option<AttachmentRecord>, Option<ServiceName>) {
    let Some(present) = draft.attachment(id) else { return (None, None) };
    let is_other = match (&present.place, subject) {
        (Place::Container { netns }, Subject::Container(now)) => netns != now,
        (Place::Container { .. } | Place::Guest { .. } | Place::HostShared, _) => false,
    };
    if !is_other {
        return (Some(present), None);
    }
    draft.notes.push(format!("{id} was another process; its attachment to {} is buried", present.service));
    detach::let_go(draft, id, &present);
    detach::end_lot(draft, &present.service);
    (None, Some(present.service))
}

/// The segment of the service. A container needs one, so it is made; a guest or a host-shared workload sits on the node's device.
fn segment_for(draft: &mut Draft<'_>, wanted: &AttachRequest) -> Result<Option<SegmentRecord>, Refusal> {
    match (draft.segment(&wanted.service), &wanted.subject) {
        (Some(segment), _) => Ok(Some(segment)),
        (None, Subject::Container(_)) => segments::imply(draft, &wanted.service).map(Some),
        (None, Subject::Guest { .. } | Subject::HostShared(_)) => Ok(None),
    }
}

/// The record as it is asked for, with whatever can be kept of the present one.
fn wanted_record(
    draft: &mut Draft<'_>,
    overlay: &OverlayRecord,
    wanted: &AttachRequest,
    segment: Option<&SegmentRecord>,
    present: Option<&AttachmentRecord>,
) -> Result<AttachmentRecord, Refusal> {
    let by_mode = || segments::default_network(&wanted.service, segment?.mode);
    let network = wanted.isolation_network.clone().or_else(by_mode);
    if let Some(network) = &network {
        if matches!(wanted.subject, Subject::HostShared(_)) {
            return Err(Refusal::HostSharedIsolated(network.clone()));
        }
        segments::check_network(draft, network)?;
    }
    let is_container = matches!(wanted.subject, Subject::Container(_));
    let addresses = if is_container {
        let subnets = container_subnets(draft, segment);
        let same_service = present.filter(|present| present.service == wanted.service);
        keep_or_take(draft, same_service.map(|present| &present.addresses), &subnets)?
    } else {
        let slice = overlay.slice.ok_or(Refusal::NoSlice)?;
        keep_or_take(draft, present.map(|present| &present.addresses), &slice)?
    };
    let global = if is_container && wanted.join_global {
        let slice = overlay.slice.ok_or(Refusal::NoSlice)?;
        keep_or_take(draft, present.map(|present| &present.global), &slice)?
    } else {
        Vec::new()
    };
    Ok(AttachmentRecord {
        service: wanted.service.clone(),
        place: place(&wanted.subject, present),
        addresses,
        global,
        join_global: wanted.join_global,
        ephemeral: wanted.ephemeral,
        network,
        dns_server: wanted.dns_server,
        dns_domain: wanted.dns_domain.clone(),
        forwards: present.filter(|_| is_shared(segment)).map(|present| present.forwards.clone()).unwrap_or_default(),
        created: present.map_or(draft.context.now, |present| present.created),
        since: present.map_or(draft.context.next, |present| present.since),
    })
}

fn is_shared(segment: Option<&SegmentRecord>) -> bool {
    segment.is_some_and(|segment| segment.mode == SegmentMode::Shared)
}

fn container_subnets(draft: &Draft<'_>, segment: Option<&SegmentRecord>) -> Networks {
    let shared = || draft.shared_bridge().map(|bridge| bridge.subnets);
    match segment.and_then(|segment| segment.subnets).or_else(shared) {
        Some(subnets) => subnets,
        None => unreachable!("a container's segment was made, and one without subnets is on the shared bridge"),
    }
}

/// The present addresses, if they are one of each of the networks, else new ones.
fn keep_or_take(
    draft: &mut Draft<'_>,
    present: Option<&Vec<IpAddr>>,
    networks: &Networks,
) -> Result<Vec<IpAddr>, Refusal> {
    let fits = |present: &&Vec<IpAddr>| {
        present.len() == networks.iter().count()
            && present.iter().zip(networks.iter()).all(|(address, network)| network.contains_address(address))
    };
    match present.filter(fits) {
        Some(present) => Ok(present.clone()),
        None => take_all(draft, networks),
    }
}

fn place(subject: &Subject, present: Option<&AttachmentRecord>) -> Place {
    match subject {
        Subject::Container(netns) => Place::Container { netns: netns.clone() },
        Subject::HostShared(_) => Place::HostShared,
        Subject::Guest { fresh, .. } => {
            let kept = present.and_then(AttachmentRecord::guest_key).filter(|key| key.private.is_some());
            Place::Guest { key: kept.unwrap_or(fresh).clone() }
        }
    }
}

/// True for a guest of a store that was imported without its secrets.
fn lacks_key(present: Option<&AttachmentRecord>) -> bool {
    present.and_then(AttachmentRecord::guest_key).is_some_and(|key| key.private.is_none())
}

fn grant(overlay: &OverlayRecord, record: &AttachmentRecord) -> Grant {
    let Some(ip) = record.addresses.first().copied() else {
        unreachable!("one address of each network was taken, and there is one network at least")
    };
    match &record.place {
        Place::Container { .. } | Place::HostShared => Grant::Attached { ip, since: record.since },
        Place::Guest { key } => {
            let cluster = overlay.cluster.iter().find(|network| network.contains_address(&ip));
            Grant::Guest(GuestGrant {
                overlay_ip: ip,
                prefix_len: cluster.unwrap_or(overlay.cluster.first()).prefix_len(),
                key: key.clone(),
                listen_port: overlay.port,
                dns_server: record.dns_server,
                dns_domain: record.dns_domain.clone(),
                all_peers: record.join_global,
                since: record.since,
            })
        }
    }
}
