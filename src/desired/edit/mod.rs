//! Edits: the ways in which the document can change, each level-triggered and idempotent.
//!
//! Owns the checks that depend on the rest of the document, and every choice: subnets, addresses, ports. Leaves the spelling of names and
//! addresses to [`ids`](crate::ids), and keeping the outcome to the [`Committer`](super::Committer).
//!
//! Upholds I-07, I-11, I-12: an edit that changes nothing gives no mutation and no new generation. I-16: time and fresh keys are given.
//!
//! Moving an allowed IP from one peer to another is not a refusal: a node that comes back with a new key must not be locked out by its
//! old one (A4).

mod addresses;
mod attach;
mod change;
mod consider;
mod context;
mod detach;
mod draft;
mod forwards;
mod overlay;
mod peers;
mod refusal;
mod request;
mod segments;
mod subnets;

pub use change::{Change, Grant, GuestGrant, ServiceGrant, Touched};
pub use consider::consider;
pub use context::{Context, Policy};
pub use refusal::Refusal;
pub use request::{AttachRequest, Edit, OverlayRequest, PeerRequest, PeerScope, Subject};
