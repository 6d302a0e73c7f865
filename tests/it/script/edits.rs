//! Steps that are edits.

use overlayd::{
    desired::{AttachRequest, Document, Edit, Forward, OverlayRequest, PeerRequest, PeerScope, SegmentMode, Subject},
    ids::Protocol,
    object::KeyPair,
    secret::PrivateKey,
};

use super::{
    cast::{Cast, list, named},
    language::{Step, Stop, chosen, parsed, setting},
};
use crate::world::overlay;

/// The edit that the words of a step are.
///
/// # Errors
/// [`Stop::Malformed`] when they are none, [`Stop::Wrong`] when they are about somebody who is not there.
pub fn the_edit(step: &Step, words: &[&str], cast: &Cast, document: &Document) -> Result<Edit, Stop> {
    Ok(match words {
        ["ensure", "overlay"] => ensure_overlay(step)?,
        ["remove", "overlay"] => Edit::RemoveOverlay,
        ["ensure" | "remove", "peer" | "allowed-ip", ..] => of_peers(step, words)?,
        ["ensure", "segment", name] => {
            Edit::EnsureSegment { service: parsed(step, name)?, mode: mode(step)?, fresh: fresh(document) }
        }
        ["remove", "segment", name] => Edit::RemoveSegment(parsed(step, name)?),
        ["prune"] => {
            let live: Vec<&str> = step.setting("live").map(|names| names.split(',').collect()).unwrap_or_default();
            Edit::Prune(live.into_iter().map(|segment| cast.bridge(step, segment)).collect::<Result<_, _>>()?)
        }
        ["attach", name, "to", segment] => Edit::Attach(AttachRequest {
            subject: Subject::Container(cast.actor(step, name)?.netns.clone()),
            service: parsed(step, segment)?,
            join_global: step.setting("global") == Some("yes"),
            ephemeral: step.setting("ephemeral") == Some("yes"),
            isolation_network: step.setting("isolation").map(|network| parsed(step, network)).transpose()?,
            dns_server: None,
            dns_domain: Default::default(),
        }),
        ["detach", name] => Edit::Detach(cast.actor(step, name)?.id()),
        ["withdraw", name] => {
            let id = cast.actor(step, name)?.id();
            let record = document.attachments().get(&id);
            let since = record.ok_or_else(|| step.wrong(format_args!("{name} is not attached")))?.since;
            Edit::Withdraw { id, since }
        }
        ["publish", name, port] => Edit::EnsureForward {
            id: cast.actor(step, name)?.id(),
            forward: Forward {
                protocol: protocol(step)?,
                port: parsed(step, port)?,
                host_port: setting(step, "at", 0)?,
            },
        },
        ["unpublish", name, port] => Edit::RemoveForward {
            id: cast.actor(step, name)?.id(),
            protocol: protocol(step)?,
            port: parsed(step, port)?,
        },
        _ => return Err(step.malformed("no such edit; write one of the first block in tests/it/script/language.rs")),
    })
}

fn ensure_overlay(step: &Step) -> Result<Edit, Stop> {
    let plain = overlay();
    Ok(Edit::EnsureOverlay(OverlayRequest {
        instance: setting(step, "instance", plain.instance.clone())?,
        cluster: setting(step, "cluster", plain.cluster)?,
        slice: match step.setting("slice") {
            Some("none") => None,
            Some(text) => Some(parsed(step, text)?),
            None => plain.slice,
        },
        port: setting(step, "port", plain.port)?,
        ..plain
    }))
}

fn of_peers(step: &Step, words: &[&str]) -> Result<Edit, Stop> {
    let scope = PeerScope::Node;
    Ok(match words {
        ["ensure", "peer", name] => Edit::EnsurePeer(PeerRequest {
            scope,
            public_key: named(step, name)?,
            endpoint: match step.setting("endpoint") {
                Some("none") | None => None,
                Some(text) => Some(parsed(step, text)?),
            },
            allowed_ips: list(step, step.setting("ips").unwrap_or("none"))?,
            keepalive: setting(step, "keepalive", 25)?,
            candidates: Vec::new(),
        }),
        ["remove", "peer", name] => Edit::RemovePeer { scope, peer: named(step, name)? },
        ["ensure", "allowed-ip", name, net] => {
            Edit::EnsureAllowedIp { scope, peer: named(step, name)?, allowed_ip: parsed(step, net)? }
        }
        ["remove", "allowed-ip", name, net] => {
            Edit::RemoveAllowedIp { scope, peer: named(step, name)?, allowed_ip: parsed(step, net)? }
        }
        _ => return Err(step.malformed("peer takes a NAME, and allowed-ip a NAME and a NET")),
    })
}

fn mode(step: &Step) -> Result<SegmentMode, Stop> {
    let all = [SegmentMode::Auto, SegmentMode::Shared, SegmentMode::Dedicated, SegmentMode::Isolated];
    chosen(step, step.setting("mode").unwrap_or("auto"), &all, SegmentMode::word)
}

/// # Errors
/// [`Stop::Malformed`].
pub fn protocol(step: &Step) -> Result<Protocol, Stop> {
    setting(step, "protocol", Protocol::Tcp)
}

/// A key that this document has not seen.
fn fresh(document: &Document) -> KeyPair {
    let mut bytes = [0x3C; 32];
    bytes[..8].copy_from_slice(&document.generation().to_be_bytes());
    KeyPair::from_private(PrivateKey::from_random_bytes(bytes))
}
