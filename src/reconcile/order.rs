//! The order of a plan's steps.
//!
//! Owns one rule: a step comes after everything it needs and before everything that needs it gone.
//!
//! Upholds I-06 (the order is total), I-10, A32/B24 (the `unreachable` route stands before the first peer and falls after the last).
//!
//! Deleting comes before creating for links and addresses, not after: an old device holds the UDP port that the new one needs, and Linux
//! removes an interface's secondary addresses together with their primary.

use std::collections::BTreeSet;

use super::step::{Reason, Step, is_port, needed_link};
use crate::{
    action::Action,
    ids::IfName,
    object::{Key, MemberSpec, RouteSpec, Spec, Subsystem},
};

/// Sorts steps into the order in which they are safe. Steps of one rank keep the order of their keys.
///
/// *Assumes*: of an object that is replaced, the deletion comes before the creation. They keep that order.
pub fn sort(steps: &mut [Step]) {
    let fallbacks: BTreeSet<Key> =
        steps.iter().filter(|step| creates_fallback(step)).map(|step| step.action.key().clone()).collect();
    steps.sort_by_cached_key(|step| {
        let key = step.action.key();
        let rank = match (&step.action, &step.reason) {
            // A route that makes room goes before its successor comes; a fallback leaves no more than that one gap.
            (Action::Delete { .. }, Reason::Replaced) if fallbacks.contains(key) => 0,
            (Action::Delete { .. }, Reason::Replaced) if key.subsystem() == Subsystem::Route => 4,
            (action, _) => rank(action),
        };
        (rank, key.clone())
    });
}

fn creates_fallback(step: &Step) -> bool {
    matches!(&step.action, Action::Create { spec, .. } if is_fallback(spec))
}

fn rank(action: &Action) -> u8 {
    let key = action.key();
    match action {
        // An address leaves a port when that has gone, and before the next one is made.
        Action::Update { from: Spec::Member(from), to: Spec::Member(to), .. } if !from.ports.is_subset(&to.ports) => 8,
        Action::Create { spec, .. } | Action::Update { to: spec, .. } => match key.subsystem() {
            Subsystem::Route if is_fallback(spec) => 0,
            Subsystem::File => 1,
            Subsystem::Ruleset => 2,
            Subsystem::Member => 3,
            Subsystem::Link if is_port(spec) => 9,
            Subsystem::Link => 8,
            Subsystem::Sysctl => 10,
            Subsystem::Device => 11,
            Subsystem::Address => 12,
            Subsystem::Peer => 13,
            Subsystem::Inside => 15,
            Subsystem::Route => 16,
            // Names are asked for by way of the overlay when it is there.
            Subsystem::Guest | Subsystem::LinkDns => 17,
        },
        Action::Delete { was, .. } => match key.subsystem() {
            Subsystem::Guest | Subsystem::Route if !is_fallback(was) => 4,
            Subsystem::LinkDns => 4,
            Subsystem::Address | Subsystem::Inside => 5,
            Subsystem::Link if is_port(was) => 6,
            Subsystem::Link | Subsystem::Sysctl | Subsystem::Device => 7,
            // After the additions: an allowed IP that moves is moved by the peer that gains it.
            Subsystem::Peer => 14,
            // A port that is still there is still fenced in.
            Subsystem::Member => 18,
            Subsystem::Ruleset => 19,
            Subsystem::Guest | Subsystem::Route => 20,
            Subsystem::File => 21,
        },
    }
}

fn is_fallback(spec: &Spec) -> bool {
    matches!(spec, Spec::Route(RouteSpec::Unreachable))
}

/// Steps that were not done, as far as others stand on them.
#[derive(Default)]
pub struct Undone<'a>(Vec<&'a Action>);

impl<'a> Undone<'a> {
    /// Notes a step. The list stays short whatever happens to ten thousand peers: nothing stands on a peer.
    pub fn note(&mut self, action: &'a Action) {
        let carries_others = match action {
            Action::Create { key: Key::Link(_) | Key::Device(_), .. } => true,
            Action::Create { key: Key::Ruleset | Key::Member(_), .. } => true,
            Action::Update { key: Key::Ruleset | Key::Member(_) | Key::Inside(_), .. } => true,
            Action::Create { spec, .. } => is_fallback(spec),
            Action::Delete { key, .. } => key.subsystem() != Subsystem::Peer,
            Action::Update { .. } => false,
        };
        if carries_others {
            self.0.push(action);
        }
    }

    /// The object for want of which `later` cannot be done.
    pub fn cause(&self, later: &Action) -> Option<&'a Key> {
        self.0.iter().find(|undone| depends_on(later, undone)).map(|undone| undone.key())
    }
}

/// True when `later` cannot be done once `failed` was not: what it stands on is missing.
fn depends_on(later: &Action, failed: &Action) -> bool {
    let needs_link = |spec: &Spec, name: &IfName| needed_link(later.key(), spec) == Some(name);
    match (failed, later) {
        // A port comes after the rules that fence it in, and not without them; nor is a container that is there already wired again.
        (
            Action::Create { key: Key::Ruleset, .. } | Action::Update { key: Key::Ruleset, .. },
            Action::Create { key, spec },
        ) => matches!(key, Key::Member(_) | Key::Inside(_)) || is_port(spec),
        (
            Action::Create { key: Key::Ruleset, .. } | Action::Update { key: Key::Ruleset, .. },
            Action::Update { key: Key::Inside(_), .. },
        ) => true,
        (
            Action::Create { spec: Spec::Member(MemberSpec { ports, .. }), .. }
            | Action::Update { to: Spec::Member(MemberSpec { ports, .. }), .. },
            Action::Create { key: Key::Link(name) | Key::Inside(name), .. }
            // A container that is there already gets no address that the firewall does not know.
            | Action::Update { key: Key::Inside(name), .. },
        ) => ports.contains(name),
        // Nor do they go before it has gone, or while the container may still have their address.
        (
            Action::Delete { key: Key::Link(name) | Key::Inside(name), .. }
            | Action::Update { key: Key::Inside(name), .. },
            Action::Delete { was: Spec::Member(MemberSpec { ports, .. }), .. },
        ) => ports.contains(name),
        (
            Action::Delete { key: Key::Link(name) | Key::Inside(name), .. },
            Action::Update { from: Spec::Member(from), to: Spec::Member(to), .. },
        ) => from.ports.contains(name) && !to.ports.contains(name),
        (Action::Delete { was, .. }, Action::Delete { key: Key::Ruleset, .. }) => is_port(was),
        (Action::Delete { key, .. }, Action::Create { key: same, .. }) => key == same,
        (
            Action::Create { key: Key::Link(name), .. },
            Action::Create { spec, .. } | Action::Update { to: spec, .. },
        ) => needs_link(spec, name),
        (Action::Create { key: Key::Device(name), .. }, _) => {
            matches!(later.key(), Key::Peer { device, .. } if device == name)
        }
        // Without the route that refuses strays no peer may attract traffic.
        (Action::Create { spec, .. }, Action::Create { .. }) if is_fallback(spec) => {
            matches!(later.key(), Key::Peer { .. } | Key::Link(_))
        }
        _ => false,
    }
}
