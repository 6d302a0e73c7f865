//! The userspace data plane: a device process behind a TUN, driven over its UAPI socket.
//!
//! Owns the seam between [`LinuxKernel`](super::LinuxKernel) and the device process. Leaves links that exist already (MTU, state,
//! addresses, routes) to the same code as for kernel devices.
//!
//! Upholds B1: a device process that does not answer is a condition of its device and never a hung round.
//!
//! The TUN is the link; the process is what serves it. A TUN without its process is a link that is there and a device that is missing.
//! Deleting the link ends the process; there is nothing else to stop.

use std::path::{Path, PathBuf};

use super::{
    device_process::{TunError, create_persistent, start},
    uapi::{UapiClient, UapiError, changes_for},
};
use crate::{
    action::Action,
    failure::with_causes,
    ids::IfName,
    object::{Key, LinkSpec, Mark, Spec},
    observed::Observed,
    platform::ActionError,
};

/// Where userspace devices of this instance are made and reached.
#[derive(Debug, Clone)]
pub(super) struct Userspace {
    /// Directory of the UAPI sockets, absolute.
    dir: PathBuf,
    mark: Mark,
    /// What device processes are run by.
    program: PathBuf,
}

impl Userspace {
    pub(super) fn new(dir: &Path, mark: Mark, program: PathBuf) -> std::io::Result<Self> {
        Ok(Self { dir: std::path::absolute(dir)?, mark, program })
    }

    /// Makes a persistent TUN with the mark. It is down; its state is settled afterwards by the caller.
    pub(super) fn create_link(&self, name: &IfName, spec: &LinkSpec) -> Result<(), ActionError> {
        match create_persistent(name, self.mark.link_group(), spec.mtu) {
            Ok(_) => Ok(()),
            Err(TunError::Exists(_)) => Err(ActionError::Stranger(format!("an interface is named {name} already"))),
            Err(error @ TunError::Open(_)) => Err(ActionError::Unsupported(with_causes(&error))),
            Err(error) => Err(ActionError::Failed(with_causes(&error))),
        }
    }

    /// The device and its peers as objects; nothing when no process serves it.
    ///
    /// # Errors
    /// When the process does not answer, or is not one to speak to: then nothing is known of the device.
    pub(super) async fn observe(&self, name: &IfName) -> Result<Vec<(Key, Observed)>, ActionError> {
        let state = match self.client(name).get().await {
            Ok(state) => state,
            Err(UapiError::NotRunning) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut objects = vec![(Key::Device(name.clone()), Observed::ours(Spec::Device(state.spec())))];
        objects.extend(state.peers.iter().map(|peer| {
            let key = Key::Peer { device: name.clone(), public_key: peer.public_key };
            let stats = Some(peer.stats());
            (key, Observed { stats, ..Observed::ours(Spec::Peer(peer.spec())) })
        }));
        Ok(objects)
    }

    /// Configures the device; a device that is to be created gets its process first.
    pub(super) async fn configure(&self, name: &IfName, action: &Action) -> Result<(), ActionError> {
        if let Action::Create { .. } = action {
            let started = start(&self.program, name, &self.dir).await;
            started.map_err(|error| ActionError::Failed(with_causes(&error)))?;
        }
        let changes = changes_for(std::slice::from_ref(action));
        self.client(name).set(&changes).await.map_err(ActionError::from)
    }

    /// Changes peers of one device; one outcome for each action.
    pub(super) async fn apply(&self, name: &IfName, actions: &[Action]) -> Vec<Result<(), ActionError>> {
        let client = self.client(name);
        match client.set(&changes_for(actions)).await {
            Ok(()) => vec![Ok(()); actions.len()],
            Err(UapiError::Errno(_)) if actions.len() > 1 => {
                // A message is refused whole; one by one, only the bad peer fails (A34).
                let mut outcomes = Vec::with_capacity(actions.len());
                for action in actions {
                    let changes = changes_for(std::slice::from_ref(action));
                    outcomes.push(client.set(&changes).await.map_err(ActionError::from));
                }
                outcomes
            }
            Err(error) => vec![Err(error.into()); actions.len()],
        }
    }

    fn client(&self, name: &IfName) -> UapiClient {
        UapiClient::new(&self.dir, name)
    }
}
