//! The containers' side of veth pairs: addresses and routes in namespaces that are not ours.
//!
//! Owns one thread that visits namespaces, what it sets and what it sees there. Leaves naming and proving namespaces to
//! [`netns`](super::netns), making the pair to [`link_actions`](super::link_actions).
//!
//! Upholds A21 (a namespace is proven again for each visit, and the link in it must be the far end of *our* veth), I-03 (what a container
//! added for itself stays), I-08, I-15 (a visit has a time limit; who waits for it gives up by himself).
//!
//! The far end of a veth is not found by its name, which a container may change, but by index: the host's end tells the index of the far
//! end and the number of its namespace, and the kernel tells whether that number is the namespace at hand. No number is kept across a
//! restart of the agent, so where a veth leads is known only once its container was looked at: until then its `peer` is unknown.

mod act;
mod conversation;
mod front;
mod look;
mod reverse_path;
mod visitor;

pub(super) use front::InsideLook;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use look::parse_route;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use reverse_path::parse_filter;
pub(super) use visitor::Visits;
