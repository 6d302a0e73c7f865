use std::collections::BTreeSet;

use super::{
    super::{attachment::AttachmentId, record::PeerRecord},
    change::Touched,
    draft::Draft,
    refusal::{ALLOWED_IPS_MAX, Refusal, SEGMENTS_MAX},
    request::{PeerRequest, PeerScope},
};
use crate::{
    ids::{Cidr, WgPublicKey},
    object::Key,
};

pub(super) fn ensure(draft: &mut Draft<'_>, wanted: &PeerRequest) -> Result<(), Refusal> {
    if own_key(draft, &wanted.scope) == Some(wanted.public_key) {
        return Err(Refusal::OwnKey);
    }
    check_guests(draft, wanted)?;
    check_scope(draft, &wanted.scope)?;
    let next = draft.context.next;
    let endpoint_since = match draft.document.peers_of(&wanted.scope).get(&wanted.public_key) {
        Some(present) if present.endpoint == wanted.endpoint => present.endpoint_since,
        Some(_) | None => next,
    };
    let record = PeerRecord {
        endpoint: wanted.endpoint.clone(),
        allowed_ips: wanted.allowed_ips.clone(),
        keepalive: wanted.keepalive,
        candidates: wanted.candidates.clone(),
        since: next,
        endpoint_since,
    };
    ensure_record(draft, &wanted.scope, wanted.public_key, record)
}

fn own_key(draft: &Draft<'_>, scope: &PeerScope) -> Option<WgPublicKey> {
    match scope {
        PeerScope::Node => draft.document.node_key()?.public,
        PeerScope::Service(service) => draft.document.segments().get(service)?.dedicated.as_ref()?.key.public,
    }
}

/// A guest is a peer of the node's device as well, with addresses that are nobody else's.
fn check_guests(draft: &Draft<'_>, wanted: &PeerRequest) -> Result<(), Refusal> {
    if wanted.scope != PeerScope::Node {
        return Ok(());
    }
    if let Some(guest) = draft.document.guest_of_key(&wanted.public_key) {
        return Err(Refusal::KeyOfGuest(guest.clone()));
    }
    wanted.allowed_ips.iter().try_for_each(|allowed_ip| check_allowed_ip(draft, &wanted.scope, allowed_ip))
}

fn check_allowed_ip(draft: &Draft<'_>, scope: &PeerScope, allowed_ip: &Cidr) -> Result<(), Refusal> {
    if *scope != PeerScope::Node || *allowed_ip != Cidr::host(allowed_ip.network()) {
        return Ok(());
    }
    match draft.document.held().get(&allowed_ip.network()) {
        Some(guest @ AttachmentId::Guest(_)) => {
            Err(Refusal::AllowedIpOfGuest { address: *allowed_ip, guest: guest.clone() })
        }
        Some(AttachmentId::Container(_) | AttachmentId::HostShared(_)) | None => Ok(()),
    }
}

fn check_scope(draft: &Draft<'_>, scope: &PeerScope) -> Result<(), Refusal> {
    match scope {
        PeerScope::Service(service)
            if draft.document.service_peers(service).is_empty()
                && draft.document.services_with_peers().count() >= SEGMENTS_MAX =>
        {
            Err(Refusal::TooManySegments)
        }
        PeerScope::Node | PeerScope::Service(_) => Ok(()),
    }
}

pub(super) fn remove(draft: &mut Draft<'_>, scope: &PeerScope, peer: WgPublicKey) {
    let Some(present) = draft.document.peers_of(scope).get(&peer) else { return };
    let had_networks = !present.allowed_ips.is_empty();
    draft.set_peer(scope, peer, None);
    touch(draft, scope, [peer], had_networks);
}

pub(super) fn ensure_allowed_ip(
    draft: &mut Draft<'_>,
    scope: &PeerScope,
    peer: WgPublicKey,
    allowed_ip: Cidr,
) -> Result<(), Refusal> {
    check_allowed_ip(draft, scope, &allowed_ip)?;
    let peers = draft.document.peers_of(scope);
    let mut record = peers.get(&peer).ok_or(Refusal::UnknownPeer(peer))?.clone();
    record.allowed_ips.insert(allowed_ip);
    ensure_record(draft, scope, peer, record)
}

pub(super) fn remove_allowed_ip(
    draft: &mut Draft<'_>,
    scope: &PeerScope,
    peer: WgPublicKey,
    allowed_ip: &Cidr,
) -> Result<(), Refusal> {
    let Some(mut record) = draft.document.peers_of(scope).get(&peer).cloned() else { return Ok(()) };
    record.allowed_ips.remove(allowed_ip);
    ensure_record(draft, scope, peer, record)
}

/// Ensures the record of one peer, and takes its allowed IPs from whichever peers have them now.
fn ensure_record(
    draft: &mut Draft<'_>,
    scope: &PeerScope,
    key: WgPublicKey,
    mut record: PeerRecord,
) -> Result<(), Refusal> {
    if record.allowed_ips.len() > ALLOWED_IPS_MAX {
        return Err(Refusal::TooManyAllowedIps);
    }
    let document = draft.document;
    let present = document.peers_of(scope).get(&key);
    record.since = present.map_or(draft.context.next, |present| present.since);
    if present == Some(&record) {
        touch(draft, scope, [key], false);
        return Ok(());
    }
    record.since = draft.context.next;
    let others = record.allowed_ips.iter().filter_map(|allowed_ip| document.holder_in(scope, allowed_ip));
    let losers: BTreeSet<WgPublicKey> = others.filter(|holder| **holder != key).copied().collect();
    for loser in &losers {
        let Some(mut shrunk) = document.peers_of(scope).get(loser).cloned() else { continue };
        for moved in shrunk.allowed_ips.intersection(&record.allowed_ips) {
            draft.notes.push(format!("allowed ip {moved} moves from peer {loser} to peer {key}{scope}"));
        }
        shrunk.allowed_ips.retain(|allowed_ip| !record.allowed_ips.contains(allowed_ip));
        shrunk.since = draft.context.next;
        // First in the list: absorbing the winner last leaves it as the holder.
        draft.set_peer(scope, *loser, Some(shrunk));
    }
    let routes = present.map(|present| &present.allowed_ips) != Some(&record.allowed_ips);
    draft.set_peer(scope, key, Some(record));
    touch(draft, scope, losers.into_iter().chain([key]), routes);
    Ok(())
}

/// Names the peers as objects to look at, where there is a device to look on.
///
/// Routes to a service's own device follow the allowed IPs of its peers; those to the node's device do not.
fn touch(draft: &mut Draft<'_>, scope: &PeerScope, peers: impl IntoIterator<Item = WgPublicKey>, routes: bool) {
    let Some(device) = draft.document.device_of(scope) else { return };
    if routes && *scope != PeerScope::Node {
        draft.touched = Touched::Everything;
    }
    draft.touched.add(peers.into_iter().map(|public_key| Key::Peer { device: device.clone(), public_key }));
}
