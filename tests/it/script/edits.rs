//! Steps that are edits.

use overlayd::{
    desired::{AttachRequest, Document, Edit, Forward, OverlayRequest, PeerRequest, PeerScope, SegmentMode, Subject},
    ids::Protocol,
    object::KeyPair,
    secret::PrivateKey,
};

use super::{
    cast::{Cast, list, named},
    language::{Step, parsed},
};
use crate::world::overlay;

/// The edit that the words of a step are.
pub fn the_edit(step: &Step, words: &[&str], cast: &Cast, document: &Document) -> Edit {
    match words {
        ["ensure", "overlay"] => ensure_overlay(step),
        ["remove", "overlay"] => Edit::RemoveOverlay,
        ["ensure" | "remove", "peer" | "allowed-ip", ..] => of_peers(step, words),
        ["ensure", "segment", name] => {
            Edit::EnsureSegment { service: parsed(step, name), mode: mode(step), fresh: fresh(document) }
        }
        ["remove", "segment", name] => Edit::RemoveSegment(parsed(step, name)),
        ["prune"] => {
            let live: Vec<&str> = step.setting("live").map(|names| names.split(',').collect()).unwrap_or_default();
            Edit::Prune(live.into_iter().map(|segment| cast.bridge(step, segment)).collect())
        }
        ["attach", name, "to", segment] => Edit::Attach(AttachRequest {
            subject: Subject::Container(cast.actor(step, name).netns.clone()),
            service: parsed(step, segment),
            join_global: step.setting("global") == Some("yes"),
            ephemeral: step.setting("ephemeral") == Some("yes"),
            isolation_network: step.setting("isolation").map(|network| parsed(step, network)),
            dns_server: None,
            dns_domain: Default::default(),
        }),
        ["detach", name] => Edit::Detach(cast.actor(step, name).id()),
        ["withdraw", name] => {
            let id = cast.actor(step, name).id();
            let record = document.attachments().get(&id);
            let since = record.unwrap_or_else(|| panic!("line {}: {name} is not attached", step.line)).since;
            Edit::Withdraw { id, since }
        }
        ["publish", name, port] => Edit::EnsureForward {
            id: cast.actor(step, name).id(),
            forward: Forward {
                protocol: protocol(step),
                port: parsed(step, port),
                host_port: step.setting("at").map_or(0, |port| parsed(step, port)),
            },
        },
        ["unpublish", name, port] => {
            Edit::RemoveForward { id: cast.actor(step, name).id(), protocol: protocol(step), port: parsed(step, port) }
        }
        _ => panic!("line {}: unknown edit {words:?}", step.line),
    }
}

fn ensure_overlay(step: &Step) -> Edit {
    let plain = overlay();
    Edit::EnsureOverlay(OverlayRequest {
        instance: step.setting("instance").map_or(plain.instance.clone(), |text| parsed(step, text)),
        cluster: step.setting("cluster").map_or(plain.cluster, |text| parsed(step, text)),
        slice: match step.setting("slice") {
            Some("none") => None,
            Some(text) => Some(parsed(step, text)),
            None => plain.slice,
        },
        port: step.setting("port").map_or(plain.port, |text| parsed(step, text)),
        ..plain
    })
}

fn of_peers(step: &Step, words: &[&str]) -> Edit {
    let scope = PeerScope::Node;
    match words {
        ["ensure", "peer", name] => Edit::EnsurePeer(PeerRequest {
            scope,
            public_key: named(name),
            endpoint: step.setting("endpoint").filter(|text| *text != "none").map(|text| parsed(step, text)),
            allowed_ips: list(step, step.setting("ips").unwrap_or("none")),
            keepalive: step.setting("keepalive").map_or(25, |text| parsed(step, text)),
            candidates: Vec::new(),
        }),
        ["remove", "peer", name] => Edit::RemovePeer { scope, peer: named(name) },
        ["ensure", "allowed-ip", name, net] => {
            Edit::EnsureAllowedIp { scope, peer: named(name), allowed_ip: parsed(step, net) }
        }
        ["remove", "allowed-ip", name, net] => {
            Edit::RemoveAllowedIp { scope, peer: named(name), allowed_ip: parsed(step, net) }
        }
        _ => panic!("line {}: unknown edit {words:?}", step.line),
    }
}

fn mode(step: &Step) -> SegmentMode {
    let word = step.setting("mode").unwrap_or("auto");
    let all = [SegmentMode::Auto, SegmentMode::Shared, SegmentMode::Dedicated, SegmentMode::Isolated];
    let mode = all.into_iter().find(|mode| mode.word() == word);
    mode.unwrap_or_else(|| panic!("line {}: no mode {word}", step.line))
}

pub fn protocol(step: &Step) -> Protocol {
    step.setting("protocol").map_or(Protocol::Tcp, |word| parsed(step, word))
}

/// A key that this document has not seen.
fn fresh(document: &Document) -> KeyPair {
    let mut bytes = [0x3C; 32];
    bytes[..8].copy_from_slice(&document.generation().to_be_bytes());
    KeyPair::from_private(PrivateKey::from_random_bytes(bytes))
}
