//! Why each object is as it is: the text and the JSON of a diff.
//!
//! Owns the wording. One line per difference: the verb, the object, what differs, who wants it. Pure, so that a dry run cannot have effects (A37).
//!
//! Upholds I-14: specs print keys by their public half only.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    plan::plan,
    step::{Plan, Reason, Step, Withheld},
    target::{Facts, Scope, Target, lower},
};
use crate::{
    action::Action,
    clock::UnixTime,
    desired::{AddressHolder, Document},
    ids::IfName,
    object::{Key, LinkKind, MemberSpec, RouteSpec, Spec},
    observed::{Observation, Snapshot},
};

/// Version of the JSON below; grows with every change that a reader could trip over.
pub const DIFF_FORMAT: u32 = 1;

/// A plan, fit for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    pub format: u32,
    /// Generation of the document that was compared.
    pub generation: u64,
    pub differences: Vec<Difference>,
    /// Differences that overlayd will not act upon, with the reason.
    pub withheld: Vec<WithheldObject>,
    /// Wanted objects that lack something from outside the kernel.
    pub incomplete: Vec<Note>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub action: &'static str,
    pub kind: &'static str,
    pub key: Key,
    #[serde(flatten)]
    pub reason: Reason,
    /// What the object is, in words.
    pub what: String,
    /// Which part of the document wants it, and since which generation; empty for something that nothing wants.
    pub wanted_by: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WithheldObject {
    pub key: Key,
    #[serde(flatten)]
    pub withheld: Withheld,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    pub key: Key,
    pub why: String,
}

impl Diff {
    /// How a node differs from a document: the whole pure way, from both sides to the differences.
    pub fn between(
        document: &Document,
        facts: &Facts,
        told: &impl Fn(&Key) -> u64,
        seen: Observation,
        now: UnixTime,
    ) -> Self {
        let facts = Facts { surroundings: seen.surroundings.clone().unwrap_or_default(), ..facts.clone() };
        let target = lower(document, &facts, told, &Scope::Everything);
        let mut snapshot = Snapshot::default();
        snapshot.absorb(seen);
        let plan = plan(&target, &snapshot, &Scope::Everything, now);
        Self::new(document, &target, &plan)
    }

    pub fn new(document: &Document, target: &Target, plan: &Plan) -> Self {
        let differences = plan.steps.iter().map(|step| difference(document, target, step)).collect();
        let withheld = plan
            .withheld
            .iter()
            .map(|(key, withheld)| WithheldObject { key: key.clone(), withheld: withheld.clone() })
            .collect();
        let incomplete =
            target.incomplete.iter().map(|(key, why)| Note { key: key.clone(), why: why.clone() }).collect();
        Self { format: DIFF_FORMAT, generation: document.generation(), differences, withheld, incomplete }
    }

    /// True when the node is as the document says.
    pub fn is_empty(&self) -> bool {
        self.differences.is_empty() && self.withheld.is_empty()
    }

    /// The diff as text: one line per difference, nothing at all when there is none.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for difference in &self.differences {
            let _ = writeln!(text, "{}", line(difference));
        }
        for WithheldObject { key, withheld } in &self.withheld {
            let why = match withheld {
                Withheld::Blocked(why) => format!("blocked: {why}"),
                Withheld::WaitsFor(other) => format!("waits for {other}"),
                Withheld::Unseen(why) => format!("not seen whole: {why}"),
            };
            let _ = writeln!(text, "! {key}: {why}");
        }
        for Note { key, why } in &self.incomplete {
            let _ = writeln!(text, "? {key}: {why}");
        }
        text
    }
}

fn difference(document: &Document, target: &Target, step: &Step) -> Difference {
    let key = step.action.key();
    let spec = match &step.action {
        Action::Create { spec, .. } => spec,
        Action::Update { to, .. } => to,
        Action::Delete { was, .. } => was,
    };
    Difference {
        action: step.action.verb(),
        kind: key.subsystem().word(),
        key: key.clone(),
        reason: step.reason.clone(),
        what: describe(spec),
        wanted_by: target.objects.get(key).map_or_else(String::new, |wanted| wanted_by(document, key, wanted.since)),
    }
}

fn line(difference: &Difference) -> String {
    let sign = match difference.action {
        "create" => '+',
        "delete" => '-',
        _ => '~',
    };
    let cause = match &difference.reason {
        Reason::Missing => format!("missing, {}", difference.wanted_by),
        Reason::Changed(fields) => {
            let changes: Vec<String> =
                fields.iter().map(|change| format!("{} {} -> {}", change.field, change.from, change.to)).collect();
            format!("{}; {}", changes.join(", "), difference.wanted_by)
        }
        Reason::Extra => "ours, but not in the document".into(),
        Reason::Replaced => format!("has to be made anew, {}", difference.wanted_by),
    };
    if difference.what.is_empty() {
        format!("{sign} {}: {cause}", difference.key)
    } else {
        format!("{sign} {} ({}): {cause}", difference.key, difference.what)
    }
}

/// What a spec is, in a few words without secrets.
fn describe(spec: &Spec) -> String {
    match spec {
        Spec::Link(link) => match &link.kind {
            LinkKind::WireGuard => format!("wireguard, mtu {}", link.mtu),
            LinkKind::Bridge => format!("bridge, mtu {}", link.mtu),
            LinkKind::Veth => match (&link.master, &link.peer) {
                (Some(master), _) => format!("veth, port of {master}"),
                (None, Some(peer)) => format!("veth into {}", peer.netns),
                (None, None) => "veth".into(),
            },
            LinkKind::Other(kind) => kind.clone(),
        },
        Spec::Address => String::new(),
        Spec::Route(RouteSpec::Through(link)) => format!("through {link}"),
        Spec::Route(RouteSpec::Unreachable) => "unreachable".into(),
        Spec::Route(RouteSpec::Other(what)) => what.clone(),
        Spec::Sysctl(value) => format!("= {value}"),
        Spec::Device(device) => format!("port {}", device.listen_port),
        Spec::Peer(peer) => {
            let ips: Vec<String> = peer.allowed_ips.iter().take(4).map(ToString::to_string).collect();
            let more = if peer.allowed_ips.len() > ips.len() { ",…" } else { "" };
            format!("allowed ips {}{more}", if ips.is_empty() { "none".into() } else { ips.join(",") })
        }
        Spec::Inside(inside) => {
            let addresses: Vec<String> = inside.addresses.iter().map(ToString::to_string).collect();
            format!("{} with {} in {}", inside.name, addresses.join(","), inside.netns)
        }
        Spec::Ruleset(ruleset) => format!("{} links, {} networks", ruleset.links.len(), ruleset.overlay.len()),
        Spec::Member(MemberSpec { ports, network }) => {
            let names: Vec<&str> = ports.iter().map(IfName::as_str).collect();
            let ports = if names.is_empty() { "no port".into() } else { names.join(",") };
            match network {
                Some(network) => format!("{ports}, network {network}"),
                None => ports,
            }
        }
        Spec::Guest(guest) => {
            let networks: Vec<String> = guest.networks.iter().map(ToString::to_string).collect();
            format!("accepts {}", networks.join(","))
        }
        Spec::File(file) => format!("{} bytes", file.content.len()),
        Spec::LinkDns(dns) => {
            let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
            format!("{} domains of {}", dns.domains.len(), servers.join(","))
        }
    }
}

fn wanted_by(document: &Document, key: &Key, since: u64) -> String {
    match key {
        Key::Peer { .. } => format!("wanted by this peer's entry since generation {since}"),
        Key::Inside(link) => wanted_by_link(document, link, since),
        Key::Link(link) | Key::Address { link, .. } | Key::Sysctl { link, .. }
            if document.attachment_of_link(link).is_some() =>
        {
            wanted_by_link(document, link, since)
        }
        Key::Member(ip) => match document.address_holder(ip) {
            Some(AddressHolder::Attachment(id)) => format!("wanted by attachment {id} since generation {since}"),
            Some(_) | None => String::new(),
        },
        Key::Link(_)
        | Key::Address { .. }
        | Key::Route { .. }
        | Key::Sysctl { .. }
        | Key::Device(_)
        | Key::Ruleset
        | Key::Guest(_)
        | Key::File(_)
        | Key::LinkDns(_) => match document.overlay() {
            Some(overlay) => {
                format!("wanted by overlay {}/{} since generation {since}", overlay.deployment, overlay.instance)
            }
            None => String::new(),
        },
    }
}

fn wanted_by_link(document: &Document, link: &IfName, since: u64) -> String {
    let by = |(id, _)| format!("wanted by attachment {id} since generation {since}");
    document.attachment_of_link(link).map_or_else(String::new, by)
}
