//! Names: those that peers' endpoints have. (The overlay's own zone is a later part of this room.)
//!
//! Owns asking the host's resolvers. Leaves when to ask, and what an answer means for a peer, to the daemon.
//!
//! Upholds I-15: every question has a time limit.
//!
//! An endpoint's name is resolved by the agent and never by the kernel or a data plane, so that one name that does not resolve concerns
//! one peer (A34).

mod lookup;

pub use lookup::{Addresses, Lookup};
