//! The loop: observe, lower, plan, apply, verify, record.
//!
//! Owns every decision about the node. The pure half ([`target`], [`plan`], [`order`], [`explain`]) says what should be done and why; the
//! other half ([`apply`], [`engine`], [`runtime`]) does it, again and again, until nothing is left to do.
//! Leaves the document to [`desired`](crate::desired) and the machine to [`platform`](crate::platform).
//!
//! Upholds I-03, I-05 to I-10, I-13, I-15, I-16.
//!
//! There is no start-up code, no repair code and no clean-up code here: a crash, an orphan and an ordinary edit differ only in the plan.

pub mod apply;
pub mod engine;
pub mod explain;
pub mod ledger;
pub mod order;
pub mod plan;
pub mod runtime;
pub mod step;
pub mod target;
pub mod view;
