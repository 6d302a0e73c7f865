//! The machine behind a trait: the only floor that touches the kernel.
//!
//! Owns [`Kernel`] and its backends. A backend observes, executes actions and gives hints; it never decides.
//! Leaves *what* to do to [`reconcile`](crate::reconcile).
//!
//! Upholds I-03 (the mark is checked again right before something is changed), I-04, I-13, I-15 (every call has a time limit).
//!
//! `execute` gets a slice: consecutive peers of one device travel in one message. Each action still has its own outcome.

#[cfg(target_os = "linux")]
pub mod linux;
mod port;
pub mod sim;

#[cfg(target_os = "linux")]
pub use linux::{
    DataPlaneChoice, LinuxKernel as NativeKernel, LinuxOptions as NativeOptions, device_process,
    host_candidates as host_addresses, lab, netns,
};
pub use port::{ActionError, Hint, Interest, Kernel, ObserveError};
