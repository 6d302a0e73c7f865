//! What was seen on the node, and how sure we are of it.
//!
//! Owns the [`Snapshot`]: objects with their owners, and for every part whether it was dumped whole. Also owns the rules that make two
//! kernels' reports of the same thing equal ([`normalise`]). Leaves looking to [`platform`](crate::platform).
//!
//! Upholds I-03 (every object seen carries its owner), I-05 (absence counts only in a part that was dumped whole), I-13.
//!
//! A snapshot is not only the last dump: the effects of acknowledged actions are written into it, which is what lets a small edit be
//! reconciled without reading ten thousand peers again.

pub mod normalise;
mod snapshot;

pub use snapshot::{Coverage, Neighbour, Observation, Observed, Owner, PeerStats, Snapshot, Surroundings};
