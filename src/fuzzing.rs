//! The doors for bytes that nobody wrote: one function for each target of `fuzz/`.
//!
//! Owns the list. Leaves what must hold to the file `fuzz.rs` of each room. Nothing that ships contains this file: it is there in tests and
//! with the feature `fuzzing`.
//!
//! Each returns when everything held and panics when something did not. The script target is not here: its interpreter is in `tests/it/`.

use crate::{
    clock::UnixTime,
    daemon,
    desired::{Document, store},
    object::Mark,
    observed::Snapshot,
    reconcile::{
        explain::Diff,
        plan::plan,
        target::{Facts, Scope, lower},
    },
};

/// A stream of bytes from a client: frames, requests, edits.
pub fn frame(bytes: &[u8]) {
    daemon::fuzz::frame(bytes);
}

/// What a disk gives back: records, checkpoint rows, journal segments, exported copies. A document that comes of it can be planned.
pub fn document(bytes: &[u8]) {
    if let Some(document) = store::fuzz::stored(bytes) {
        plan_of(&document);
    }
}

/// A datagram of netlink.
#[cfg(target_os = "linux")]
pub fn netlink(bytes: &[u8]) {
    crate::platform::linux::fuzz::netlink(bytes);
}

/// A text of the socket of a userspace WireGuard device.
#[cfg(target_os = "linux")]
pub fn uapi(bytes: &[u8]) {
    crate::platform::linux::fuzz::uapi(bytes);
}

/// A message to the overlay's resolver.
pub fn dns(bytes: &[u8]) {
    crate::dns::fuzz::message(bytes);
}

/// The first plan on a node that has nothing.
fn plan_of(document: &Document) {
    let (facts, snapshot) = (Facts::new(Mark::of_instance("/var/lib/overlayd")), Snapshot::default());
    let target = lower(document, &facts, &|_| 0, &Scope::Everything);
    let plan = plan(&target, &snapshot, &Scope::Everything, UnixTime(1_700_000_000));
    let diff = Diff::new(document, &target, &plan);
    assert!(diff.is_empty() == diff.to_text().is_empty(), "a difference without words");
}

#[cfg(test)]
mod tests;
