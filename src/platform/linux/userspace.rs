//! The userspace data plane: a device process behind a TUN, driven over its UAPI socket.
//!
//! Owns the seam between [`LinuxKernel`](super::LinuxKernel) and the device process. Leaves links that exist already (MTU, state,
//! addresses, routes) to the same code as for kernel devices.
//!
//! Upholds B1: a device process that does not answer is a condition of its device and never a hung round.
//!
//! The TUN is the link; the process is what serves it. A TUN without its process is a link that is there and a device that is missing.

use std::path::PathBuf;

use crate::{
    action::Action,
    ids::IfName,
    object::{Key, LinkSpec, Mark},
    observed::Observed,
    platform::ActionError,
};

/// Where userspace devices of this instance are made and reached.
#[derive(Debug, Clone)]
pub(super) struct Userspace {
    /// Directory of the UAPI sockets.
    #[expect(dead_code, reason = "read once the UAPI client is plugged in")]
    dir: PathBuf,
    #[expect(dead_code, reason = "the TUN gets the group when it is made")]
    mark: Mark,
}

fn not_here<T>() -> Result<T, ActionError> {
    Err(ActionError::Unsupported(
        "the userspace data plane is not part of this build".into(),
    ))
}

impl Userspace {
    pub(super) fn new(dir: PathBuf, mark: Mark) -> Self {
        Self { dir, mark }
    }

    /// Makes a persistent TUN with the mark. It is down; MTU and state are settled afterwards by the caller.
    pub(super) async fn create_link(&self, _name: &IfName, _spec: &LinkSpec) -> Result<(), ActionError> {
        not_here()
    }

    /// Ends the process that serves a TUN, before its link is deleted. Harmless when there is none.
    pub(super) async fn stop(&self, _name: &IfName) -> Result<(), ActionError> {
        Ok(())
    }

    /// The device and its peers as objects, or why they cannot be read.
    pub(super) async fn observe(&self, _name: &IfName) -> Result<Vec<(Key, Observed)>, ActionError> {
        not_here()
    }

    /// Starts the process if it is not running, and configures the device.
    pub(super) async fn configure(&self, _name: &IfName, _action: &Action) -> Result<(), ActionError> {
        not_here()
    }

    /// Changes peers of one device; one outcome for each action.
    pub(super) async fn apply(&self, _name: &IfName, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        actions.iter().map(|_| not_here()).collect()
    }
}
