//! The firewall: two nftables tables of our own, written and read over netlink.
//!
//! Owns [`Firewall`]: the tables `inet overlayd_…` and `bridge overlayd_…`, their sets, and our rules in another program's forward chain.
//! Leaves which members and networks there are to [`reconcile::target`](crate::reconcile::target).
//!
//! Upholds I-03 (the table's name and comment carry the mark), I-04, I-05, I-08 (a change of members touches only their elements),
//! I-15 (one transaction for each action, however many members there are).
//!
//! The rules are the same on every node and never change with what runs there: everything that differs is an element of a set. An `accept`
//! in a table of ours does not overrule a `drop` in another program's, and the other way round: so our drops always hold, and our accepts
//! may not be enough (see `guest`).

mod element;
mod encode;
mod expression;
mod firewall;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzz;
mod guest;
mod held;
mod read;
mod rules;
mod shape;
mod watch;

pub(super) use encode::{Attributes, Body, GENERIC};
pub(super) use firewall::Firewall;
pub(super) use read::value;
pub(super) use watch::Watch;
