//! The Linux backend: links, addresses, routes and sysctls by rtnetlink and procfs, WireGuard by generic netlink or a device process.
//!
//! Owns [`LinuxKernel`] (a [`Kernel`](super::Kernel) over the network namespace that the process lives in),
//! [`host_candidates`] and [`netns`]. Leaves every decision to [`reconcile`](crate::reconcile).
//!
//! Upholds I-03 (the link group is read again right before a change), I-04 (group, protocol and metric are in the create request),
//! I-05 (a dump that was interrupted, or that held something unreadable, is `Partial`), I-13, I-14, I-15 (every call has a limit).
//!
//! There is no cache of interface indexes between calls: a link that was deleted and made again has the same name and another
//! index (A38), so each action asks for the link by name and then works on the index of the link whose mark it has just seen.

mod addresses;
mod answer;
mod candidates;
mod conntrack;
pub mod device_process;
mod errno;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod inside;
mod kernel;
pub mod lab;
mod link_actions;
mod link_changes;
mod links;
mod monitor;
pub mod netns;
mod nft;
mod nsid;
mod observe;
mod resolved;
mod routes;
mod socket;
mod surroundings;
mod sysctls;
pub mod uapi;
mod userspace;
mod wireguard;

pub use candidates::host_candidates;
pub use kernel::{DataPlane, DataPlaneChoice, LinuxKernel, LinuxOptions};
