//! Publishing a container's port on a port of the host: what the shared mode is about.

use super::{
    super::{
        attachment::{AttachmentId, Forward},
        segment::SegmentMode,
    },
    change::Grant,
    draft::Draft,
    refusal::{FORWARDS_MAX, Refusal},
};
use crate::ids::Protocol;

pub(super) fn ensure(draft: &mut Draft<'_>, id: &AttachmentId, forward: Forward) -> Result<(), Refusal> {
    let mut record = draft.attachment(id).ok_or_else(|| Refusal::UnknownAttachment(id.clone()))?;
    if draft.segment(&record.service).is_none_or(|segment| segment.mode != SegmentMode::Shared) {
        return Err(Refusal::NotShared(record.service));
    }
    if forward.port == 0 || forward.host_port == 0 {
        return Err(Refusal::PortZeroPublished);
    }
    let is_same = |present: &&Forward| (present.protocol, present.port) == (forward.protocol, forward.port);
    if let Some(present) = record.forwards.iter().find(is_same) {
        draft.grant = Grant::Forward(present.host_port);
        return Ok(());
    }
    if record.forwards.len() >= FORWARDS_MAX {
        return Err(Refusal::TooManyForwards(id.clone()));
    }
    let all = draft.document.attachments().values().flat_map(|attachment| &attachment.forwards);
    if all.into_iter().any(|other| (other.protocol, other.host_port) == (forward.protocol, forward.host_port)) {
        return Err(Refusal::HostPortTaken { protocol: forward.protocol, port: forward.host_port });
    }
    record.forwards.insert(forward);
    draft.set_attachment(id, Some(record));
    draft.grant = Grant::Forward(forward.host_port);
    Ok(())
}

pub(super) fn remove(draft: &mut Draft<'_>, id: &AttachmentId, protocol: Protocol, port: u16) {
    let Some(mut record) = draft.attachment(id) else { return };
    record.forwards.retain(|forward| (forward.protocol, forward.port) != (protocol, port));
    draft.set_attachment(id, Some(record));
}
