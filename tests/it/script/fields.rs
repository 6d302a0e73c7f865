//! The settings of a step as fields of an object.

use std::{fmt::Display, str::FromStr};

use overlayd::object::{EndpointSpec, InsideRoute, LinkKind, NetworkId, RouteSpec, Spec};

use super::{
    cast::list,
    language::{Step, Stop, parsed},
};

/// The object with the fields that the step names, each of them as it says.
///
/// # Errors
/// [`Stop::Malformed`] for a field that such an object does not have, and for a value that is none of it.
pub fn with_fields(step: &Step, spec: &Spec) -> Result<Spec, Stop> {
    let mut spec = spec.clone();
    for (name, value) in &step.settings {
        if !(set_of_overlay(step, &mut spec, name, value)? || set_of_containers(step, &mut spec, name, value)?) {
            return Err(step.malformed(&format!("{spec:?} has no {name}")));
        }
    }
    Ok(spec)
}

fn set_of_overlay(step: &Step, spec: &mut Spec, name: &str, value: &str) -> Result<bool, Stop> {
    match (spec, name) {
        (Spec::Link(link), "mtu") => link.mtu = parsed(step, value)?,
        (Spec::Link(link), "up") => link.up = parsed(step, value)?,
        (Spec::Link(link), "stp") => link.stp = parsed(step, value)?,
        (Spec::Link(link), "kind") => link.kind = LinkKind::Other(value.to_owned()),
        (Spec::Link(link), "master") => link.master = unless_none(step, value)?,
        (Spec::Sysctl(is), "value") => *is = parsed(step, value)?,
        (Spec::Device(device), "port") => device.listen_port = parsed(step, value)?,
        (Spec::Device(device), "fwmark") => device.fwmark = parsed(step, value)?,
        (Spec::Route(route), "to") => {
            *route = if value == "unreachable" { RouteSpec::Unreachable } else { RouteSpec::Other(value.to_owned()) }
        }
        (Spec::Peer(peer), "keepalive") => peer.keepalive = parsed(step, value)?,
        (Spec::Peer(peer), "ips") => peer.allowed_ips = list(step, value)?,
        (Spec::Peer(peer), "preshared") => peer.preshared = parsed(step, value)?,
        (Spec::Peer(peer), "endpoint") => {
            let plain = |address| EndpointSpec { address, pinned: false, resolved: false };
            peer.endpoint = unless_none(step, value)?.map(plain);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn set_of_containers(step: &Step, spec: &mut Spec, name: &str, value: &str) -> Result<bool, Stop> {
    match (spec, name) {
        (Spec::Inside(inside), "mtu") => inside.mtu = parsed(step, value)?,
        (Spec::Inside(inside), "up") => inside.up = parsed(step, value)?,
        (Spec::Inside(inside), "addresses") => inside.addresses = list(step, value)?,
        (Spec::Inside(inside), "routes") => {
            let routes = value.split(',').filter(|text| *text != "none");
            inside.routes = routes.map(|text| inside_route(step, text)).collect::<Result<_, _>>()?;
        }
        (Spec::Ruleset(ruleset), "intact") => ruleset.intact = parsed(step, value)?,
        (Spec::Ruleset(ruleset), "overlay") => ruleset.overlay = list(step, value)?,
        (Spec::Ruleset(ruleset), "local") => ruleset.local = list(step, value)?,
        (Spec::Ruleset(ruleset), "node") => ruleset.node = list(step, value)?,
        (Spec::Ruleset(ruleset), "links") => ruleset.links = list(step, value)?,
        (Spec::Member(member), "ports") => member.ports = list(step, value)?,
        (Spec::Member(member), "network") => {
            member.network = unless_none(step, value)?.map(|name| NetworkId::of(&name));
        }
        (Spec::Guest(guest), "networks") => guest.networks = list(step, value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn unless_none<T: FromStr<Err: Display>>(step: &Step, text: &str) -> Result<Option<T>, Stop> {
    if text == "none" { Ok(None) } else { parsed(step, text).map(Some) }
}

/// `NET` or `NET@GATEWAY`.
fn inside_route(step: &Step, text: &str) -> Result<InsideRoute, Stop> {
    Ok(match text.split_once('@') {
        Some((net, gateway)) => InsideRoute { destination: parsed(step, net)?, via: Some(parsed(step, gateway)?) },
        None => InsideRoute { destination: parsed(step, text)?, via: None },
    })
}
