//! What a plan is made of: steps, their reasons, and what is left undone on purpose.
//!
//! Owns the vocabulary that the planner writes and everything after it reads. Leaves deciding to [`plan`](mod@super::plan), and the order
//! to [`order`](super::order).
//!
//! Upholds I-14: a field's text is made for people and holds no secret.
//!
//! A reason says how the node differs, not why: whether a difference is drift or an edit is known to the ledger.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    action::Action,
    ids::IfName,
    object::{Key, LinkKind, LinkSpec, RouteSpec, Spec},
};

/// What has to happen on the node, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Differences that are not acted upon, and why.
    pub withheld: BTreeMap<Key, Withheld>,
    /// Peers that lose an allowed IP without a step of their own for it, and the peers whose steps take it.
    pub moved: BTreeMap<Key, BTreeSet<Key>>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The objects of which a difference is left when only the steps about `done` were taken.
    pub fn left_after(&self, done: &BTreeSet<&Key>) -> BTreeSet<&Key> {
        let own = self.steps.iter().map(|step| step.action.key()).filter(|key| !done.contains(key));
        let moved = self.moved.iter().filter(|(_, takers)| takers.iter().any(|taker| !done.contains(taker)));
        own.chain(moved.map(|(key, _)| key)).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub reason: Reason,
}

/// Why a step is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "cause", content = "fields", rename_all = "snake_case")]
pub enum Reason {
    /// Wanted, and not there.
    Missing,
    /// There, but different.
    Changed(Vec<FieldChange>),
    /// There, ours, and not wanted.
    Extra,
    /// There, ours, and cannot be changed into the wanted one, or goes with something else that goes.
    Replaced,
}

impl Reason {
    /// The word used in metric labels.
    pub fn word(&self) -> &'static str {
        match self {
            Reason::Missing => "missing",
            Reason::Changed(_) => "changed",
            Reason::Extra => "extra",
            Reason::Replaced => "replaced",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    pub field: &'static str,
    /// As seen.
    pub from: String,
    /// As wanted.
    pub to: String,
}

/// Why a difference is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "why", rename_all = "snake_case")]
pub enum Withheld {
    /// Something that is not ours has the place.
    Blocked(String),
    /// It needs an object that is itself blocked, or that this plan does not bring about.
    WaitsFor(Key),
    /// The part of the node that it lives in could not be seen whole.
    Unseen(String),
}

/// The link that must be there before the object can be made or changed: of a port its bridge, of everything else the link it is on.
pub fn needed_link<'a>(key: &'a Key, spec: &'a Spec) -> Option<&'a IfName> {
    match spec {
        Spec::Link(link) => link.master.as_ref(),
        _ => link_of(key, spec),
    }
}

/// A container's veth: it needs its bridge, and the firewall must know it before it is there.
pub fn is_port(spec: &Spec) -> bool {
    matches!(spec, Spec::Link(LinkSpec { kind: LinkKind::Veth, .. }))
}

/// The link that an object cannot exist without: it goes when the link goes. A port outlives its bridge.
pub fn link_of<'a>(key: &'a Key, spec: &'a Spec) -> Option<&'a IfName> {
    match spec {
        Spec::Route(RouteSpec::Through(link)) => Some(link),
        Spec::Route(RouteSpec::Unreachable | RouteSpec::Other(_))
        | Spec::Link(_)
        | Spec::Address
        | Spec::Sysctl(_)
        | Spec::Inside(_)
        | Spec::Ruleset(_)
        | Spec::Member(_)
        | Spec::Guest(_)
        | Spec::File(_)
        | Spec::LinkDns(_)
        | Spec::Device(_)
        | Spec::Peer(_) => key.link(),
    }
}
