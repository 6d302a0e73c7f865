//! What can be done to one object: the only thing a plan may hold and a platform may execute.
//!
//! Owns the shape of a change. Leaves deciding on it to [`reconcile::plan`](crate::reconcile::plan) and doing it to [`platform`](crate::platform).
//!
//! Upholds I-07 (an action says everything; a platform chooses nothing), I-08 (an update names the fields that differ by carrying both sides).
//!
//! In an update a field that must be left alone is *equal on both sides*, even where the document has another value:
//! an endpoint that a peer roamed to is copied into `to`.

use crate::object::{Key, Spec};

/// One change of one object: one kernel transaction (peers of one device may share a message).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Create {
        key: Key,
        spec: Spec,
    },
    /// Changes exactly the fields in which `from` and `to` differ.
    Update {
        key: Key,
        from: Spec,
        to: Spec,
    },
    Delete {
        key: Key,
        was: Spec,
    },
}

impl Action {
    pub fn key(&self) -> &Key {
        match self {
            Action::Create { key, .. } | Action::Update { key, .. } | Action::Delete { key, .. } => key,
        }
    }

    /// The word used in metric labels, diffs and logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Action::Create { .. } => "create",
            Action::Update { .. } => "update",
            Action::Delete { .. } => "delete",
        }
    }

    /// The object as it is once the action took effect; `None` when it is gone.
    pub fn result(&self) -> Option<&Spec> {
        match self {
            Action::Create { spec, .. } => Some(spec),
            Action::Update { to, .. } => Some(to),
            Action::Delete { .. } => None,
        }
    }
}
