//! Detaching, whoever asks for it: the client, the death of a container, an attach that failed.

use ipnet::IpNet;

use super::{
    super::{
        attachment::{AttachmentId, AttachmentRecord, Place},
        segment::Lot,
    },
    draft::Draft,
    segments,
};
use crate::{
    ids::{Netns, ServiceName},
    object::Key,
};

pub(super) fn detach(draft: &mut Draft<'_>, id: &AttachmentId) {
    let Some(present) = draft.attachment(id) else { return };
    let_go(draft, id, &present);
    segments::settle(draft, &present.service);
}

pub(super) fn bury(draft: &mut Draft<'_>, id: &AttachmentId, dead: &Netns) {
    let is_it = |record: &AttachmentRecord| match &record.place {
        Place::Container { netns } => netns == dead,
        Place::Guest { .. } | Place::HostShared => false,
    };
    if draft.attachment(id).as_ref().is_some_and(is_it) {
        detach(draft, id);
    }
}

/// An `Err` to an attach means that nothing is left of it: also not the segment that it alone has made.
pub(super) fn withdraw(draft: &mut Draft<'_>, id: &AttachmentId, since: u64) {
    let Some(present) = draft.attachment(id).filter(|present| present.since == since) else { return };
    detach(draft, id);
    let service = &present.service;
    let made_by_it = |segment: &super::super::segment::SegmentRecord| segment.implied && segment.since == since;
    if draft.attached_count(service) == 0 && draft.segment(service).as_ref().is_some_and(made_by_it) {
        segments::drop_segment(draft, service);
    }
}

/// Removes the record; its addresses rest.
pub(super) fn let_go(draft: &mut Draft<'_>, id: &AttachmentId, record: &AttachmentRecord) {
    draft.set_attachment(id, None);
    for address in record.held() {
        draft.rest(*address, format!("{id} of {}", record.service));
    }
    let keys = keys(draft, id, record);
    draft.touched.add(keys);
}

/// What the attachments of a segment have asked for counts no more when there are none.
pub(super) fn end_lot(draft: &mut Draft<'_>, service: &ServiceName) {
    if draft.attached_count(service) == 0
        && let Some(mut segment) = draft.segment(service)
    {
        segment.lot = Lot::default();
        draft.set_segment(service, Some(segment));
    }
}

/// The objects that stand for an attachment.
pub(super) fn keys(draft: &Draft<'_>, id: &AttachmentId, record: &AttachmentRecord) -> Vec<Key> {
    let mut keys: Vec<Key> = record.held().map(|address| Key::Member(*address)).collect();
    for link in record.links(id) {
        keys.push(Key::Link(link.clone()));
        keys.push(Key::Inside(link));
    }
    let Some(device) = draft.document.device_name() else { return keys };
    match &record.place {
        Place::Container { .. } => {}
        Place::Guest { key } => {
            keys.extend(key.public.map(|public_key| Key::Peer { device, public_key }));
        }
        Place::HostShared => {
            let address = |address| Key::Address { link: device.clone(), address: IpNet::from(address) };
            keys.extend(record.addresses.iter().copied().map(address));
        }
    }
    keys
}
