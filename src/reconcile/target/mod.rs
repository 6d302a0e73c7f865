//! Says the document in kernel words.
//!
//! Owns the translation: which links, addresses, routes, settings, devices, peers, container sides, firewall members, files and names a
//! document stands for on this node. Leaves comparing to [`plan`](super::plan).
//!
//! Upholds I-07 (every choice comes from the document or the facts), B11, B13, B22, B23, B24.
//!
//! Our addresses are set without the kernel's own on-link routes; every route is an object of ours with our mark, so that somebody removing
//! it is seen and mended like anything else.

mod containers;
mod facts;
mod firewall;
mod link_dns;
mod lower;
mod neighbours;
mod overlay;
mod resolvers;
mod segments;
mod wanted;

pub use facts::{DEFAULT_MTU, Facts, Served};
pub use lower::{Places, companions, lower, objects_of_attachment, objects_of_overlay, objects_of_segment, places};
pub use resolvers::file_of;
pub use wanted::{Scope, Target, Wanted};
