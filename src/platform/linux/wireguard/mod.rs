//! Kernel WireGuard devices and their peers, by generic netlink.
//!
//! Owns reading a device whole and changing exactly what an action names. Leaves links to [`links`](super::links) and the userspace
//! data plane to [`userspace`](super::userspace).
//!
//! Upholds I-05, I-08 (neither `WGDEVICE_F_REPLACE_PEERS` nor `WGPEER_F_REPLACE_ALLOWEDIPS` is ever sent), I-11 (an allowed IP that
//! moves is added at its new peer, which is atomic, and not removed first), I-14.
//!
//! An update of a peer that is not there is *acknowledged* by the kernel (`WGPEER_F_UPDATE_ONLY`) and does nothing; only the next
//! dump shows it.

mod device;
mod read;
mod write;

pub(super) use device::WireGuard;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use read::{assemble, parse};
