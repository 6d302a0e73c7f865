//! The settings of a step as fields of an object.

use overlayd::object::{EndpointSpec, InsideRoute, LinkKind, NetworkId, RouteSpec, Spec};

use super::{
    cast::list,
    language::{Step, parsed},
};

/// The object with the fields that the step names, each of them as it says.
pub fn with_fields(step: &Step, spec: &Spec) -> Spec {
    let mut spec = spec.clone();
    for (name, value) in &step.settings {
        if !(set_of_overlay(step, &mut spec, name, value) || set_of_containers(step, &mut spec, name, value)) {
            panic!("line {}: {spec:?} has no {name}", step.line);
        }
    }
    spec
}

fn set_of_overlay(step: &Step, spec: &mut Spec, name: &str, value: &str) -> bool {
    match (spec, name) {
        (Spec::Link(link), "mtu") => link.mtu = parsed(step, value),
        (Spec::Link(link), "up") => link.up = parsed(step, value),
        (Spec::Link(link), "stp") => link.stp = parsed(step, value),
        (Spec::Link(link), "kind") => link.kind = LinkKind::Other(value.to_owned()),
        (Spec::Link(link), "master") => link.master = (value != "none").then(|| parsed(step, value)),
        (Spec::Sysctl(is), "value") => *is = parsed(step, value),
        (Spec::Device(device), "port") => device.listen_port = parsed(step, value),
        (Spec::Device(device), "fwmark") => device.fwmark = parsed(step, value),
        (Spec::Route(route), "to") => {
            *route = if value == "unreachable" { RouteSpec::Unreachable } else { RouteSpec::Other(value.to_owned()) }
        }
        (Spec::Peer(peer), "keepalive") => peer.keepalive = parsed(step, value),
        (Spec::Peer(peer), "ips") => peer.allowed_ips = list(step, value),
        (Spec::Peer(peer), "preshared") => peer.preshared = parsed(step, value),
        (Spec::Peer(peer), "endpoint") => {
            peer.endpoint = (value != "none").then(|| EndpointSpec {
                address: parsed(step, value),
                pinned: false,
                resolved: false,
            });
        }
        _ => return false,
    }
    true
}

fn set_of_containers(step: &Step, spec: &mut Spec, name: &str, value: &str) -> bool {
    match (spec, name) {
        (Spec::Inside(inside), "mtu") => inside.mtu = parsed(step, value),
        (Spec::Inside(inside), "up") => inside.up = parsed(step, value),
        (Spec::Inside(inside), "addresses") => inside.addresses = list(step, value),
        (Spec::Inside(inside), "routes") => {
            let routes = value.split(',').filter(|text| *text != "none");
            inside.routes = routes.map(|text| inside_route(step, text)).collect();
        }
        (Spec::Ruleset(ruleset), "intact") => ruleset.intact = parsed(step, value),
        (Spec::Ruleset(ruleset), "overlay") => ruleset.overlay = list(step, value),
        (Spec::Ruleset(ruleset), "local") => ruleset.local = list(step, value),
        (Spec::Ruleset(ruleset), "node") => ruleset.node = list(step, value),
        (Spec::Ruleset(ruleset), "links") => ruleset.links = list(step, value),
        (Spec::Member(member), "ports") => member.ports = list(step, value),
        (Spec::Member(member), "network") => {
            member.network = (value != "none").then(|| NetworkId::of(&parsed(step, value)));
        }
        (Spec::Guest(guest), "networks") => guest.networks = list(step, value),
        _ => return false,
    }
    true
}

/// `NET` or `NET@GATEWAY`.
fn inside_route(step: &Step, text: &str) -> InsideRoute {
    match text.split_once('@') {
        Some((net, gateway)) => InsideRoute { destination: parsed(step, net), via: Some(parsed(step, gateway)) },
        None => InsideRoute { destination: parsed(step, text), via: None },
    }
}
