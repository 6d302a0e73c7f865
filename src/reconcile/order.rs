//! The order of a plan's steps.
//!
//! Owns one rule: a step comes after everything it needs and before everything that needs it gone.
//!
//! Upholds I-06 (the order is total), I-10, A32/B24 (the `unreachable` route stands before the first peer and falls after the last).
//!
//! Deleting comes before creating for links and addresses, not after: an old device holds the UDP port that the new one needs, and Linux
//! removes an interface's secondary addresses together with their primary.

use super::plan::Step;
use crate::{
    action::Action,
    object::{Key, RouteSpec, Spec, Subsystem},
};

/// Sorts steps into the order in which they are safe. Steps of one rank keep the order of their keys.
pub fn sort(steps: &mut [Step]) {
    steps.sort_by(|a, b| {
        let place = |step: &Step| (rank(&step.action), step.action.key().clone());
        place(a).cmp(&place(b))
    });
}

fn rank(action: &Action) -> u8 {
    let key = action.key();
    match action {
        Action::Create { spec, .. } | Action::Update { to: spec, .. } => match key.subsystem() {
            Subsystem::Route if is_fallback(spec) => 0,
            Subsystem::Link => 4,
            Subsystem::Sysctl => 5,
            Subsystem::Device => 6,
            Subsystem::Address => 7,
            Subsystem::Peer => 8,
            Subsystem::Route => 10,
        },
        Action::Delete { was, .. } => match key.subsystem() {
            Subsystem::Route if is_fallback(was) => 11,
            Subsystem::Route => 1,
            Subsystem::Address => 2,
            Subsystem::Link => 3,
            // After the additions: an allowed IP that moves is moved by the peer that gains it.
            Subsystem::Peer => 9,
            Subsystem::Sysctl | Subsystem::Device => 3,
        },
    }
}

fn is_fallback(spec: &Spec) -> bool {
    matches!(spec, Spec::Route(RouteSpec::Unreachable))
}

/// True when `later` cannot be done once `failed` was not: what it stands on is missing.
pub fn depends_on(later: &Action, failed: &Action) -> bool {
    let needs_link = |spec: &Spec, name: &crate::ids::IfName| super::plan::link_of(later.key(), spec) == Some(name);
    match (failed, later) {
        (Action::Delete { key, .. }, Action::Create { key: same, .. }) => key == same,
        (
            Action::Create {
                key: Key::Link(name), ..
            },
            Action::Create { spec, .. } | Action::Update { to: spec, .. },
        ) => needs_link(spec, name),
        (
            Action::Create {
                key: Key::Device(name), ..
            },
            _,
        ) => {
            matches!(later.key(), Key::Peer { device, .. } if device == name)
        }
        // Without the route that refuses strays no peer may attract traffic.
        (Action::Create { spec, .. }, Action::Create { .. }) if is_fallback(spec) => {
            matches!(later.key(), Key::Peer { .. } | Key::Link(_))
        }
        _ => false,
    }
}
