use std::net::IpAddr;

use super::{
    super::{
        Document,
        record::{NodeRecord, Record, RecordKey, ResolverRecord},
    },
    addresses, attach,
    change::{Change, Touched},
    context::Context,
    detach,
    draft::Draft,
    forwards, overlay, peers,
    refusal::{DNS_ADDRESSES_MAX, Refusal},
    request::Edit,
    segments,
};
use crate::ids::DnsName;

/// What `edit` would change in `document`.
///
/// *Guarantees*: pure; considering an edit again after its change was absorbed gives no mutation, but for
/// [`Edit::AllocateAddress`], which hands out another address each time.
///
/// # Errors
/// The refusal, when the edit contradicts itself or the document.
pub fn consider(document: &Document, edit: &Edit, context: &Context<'_>) -> Result<Change, Refusal> {
    let mut draft = Draft::new(document, *context);
    match edit {
        Edit::SetNodeId(id) => {
            let node = NodeRecord { node_id: Some(*id), ..document.node().clone() };
            draft.set(RecordKey::Node, Some(Record::Node(node)));
        }
        Edit::ClaimPublicKey(key) => {
            let node = NodeRecord { claimed_key: Some(*key), ..document.node().clone() };
            draft.set(RecordKey::Node, Some(Record::Node(node)));
        }
        Edit::EnsureOverlay(wanted) => overlay::ensure(&mut draft, wanted)?,
        Edit::RemoveOverlay => overlay::remove(&mut draft),
        Edit::EnsurePeer(wanted) => peers::ensure(&mut draft, wanted)?,
        Edit::RemovePeer { scope, peer } => peers::remove(&mut draft, scope, *peer),
        Edit::EnsureAllowedIp { scope, peer, allowed_ip } => {
            peers::ensure_allowed_ip(&mut draft, scope, *peer, *allowed_ip)?;
        }
        Edit::RemoveAllowedIp { scope, peer, allowed_ip } => {
            peers::remove_allowed_ip(&mut draft, scope, *peer, allowed_ip)?;
        }
        Edit::EnsureDns { name, ip } => ensure_dns(&mut draft, name, *ip)?,
        Edit::RemoveDns(name) => draft.set(RecordKey::Dns(name.clone()), None),
        Edit::EnsureResolver { zone, node_ip, port } => {
            let present = draft.document.resolvers().get(zone);
            let same = present.filter(|present| present.node_ip == *node_ip && present.port == *port);
            let since = same.map_or(draft.context.next, |same| same.since);
            let record = ResolverRecord { node_ip: *node_ip, port: *port, since };
            draft.set(RecordKey::Resolver(zone.clone()), Some(Record::Resolver(record)));
            // Where its file is, the document does not know.
            draft.touched = Touched::Everything;
        }
        Edit::RemoveResolver(zone) => {
            draft.set(RecordKey::Resolver(zone.clone()), None);
            draft.touched = Touched::Everything;
        }
        Edit::EnsureSegment { service, mode, fresh } => segments::ensure(&mut draft, service, *mode, fresh)?,
        Edit::RemoveSegment(service) => segments::remove(&mut draft, service),
        Edit::Prune(live) => segments::prune(&mut draft, live),
        Edit::AllocateAddress(service) => addresses::allocate(&mut draft, service)?,
        Edit::ReleaseAddress(address) => addresses::release(&mut draft, *address)?,
        Edit::ForgetRested => addresses::forget_rested(&mut draft),
        Edit::Attach(wanted) => attach::attach(&mut draft, wanted)?,
        Edit::EnsureForward { id, forward } => forwards::ensure(&mut draft, id, *forward)?,
        Edit::RemoveForward { id, protocol, port } => forwards::remove(&mut draft, id, *protocol, *port),
        Edit::Detach(id) => detach::detach(&mut draft, id),
        Edit::Bury { id, netns } => detach::bury(&mut draft, id, netns),
        Edit::Withdraw { id, since } => detach::withdraw(&mut draft, id, *since),
    }
    Ok(draft.into_change(edit.summary()))
}

fn ensure_dns(draft: &mut Draft<'_>, name: &DnsName, ip: IpAddr) -> Result<(), Refusal> {
    let mut record = draft.document.dns().get(name).cloned().unwrap_or_default();
    record.insert(ip);
    if record.a.len() + record.aaaa.len() > DNS_ADDRESSES_MAX {
        return Err(Refusal::TooManyAddresses(name.clone()));
    }
    draft.set(RecordKey::Dns(name.clone()), Some(Record::Dns(record)));
    Ok(())
}
