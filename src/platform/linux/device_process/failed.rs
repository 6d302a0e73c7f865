use std::io;

use super::tun::TunError;

/// Why a device process could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("serve the interface: another device process does")]
    AlreadyRunning,
    #[error("serve the interface: something else is at the path of its socket")]
    SocketTaken,
    #[error("use the socket directory")]
    Place(#[source] io::Error),
    #[error(transparent)]
    Tun(#[from] TunError),
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    #[error("start the WireGuard device: {0}")]
    Device(String),
}

impl DeviceError {
    /// True for what a predecessor that is just ending would cause.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            DeviceError::AlreadyRunning | DeviceError::SocketTaken => true,
            DeviceError::Tun(TunError::Attach(_, error)) => error.raw_os_error() == Some(libc::EBUSY),
            DeviceError::Place(_) | DeviceError::Tun(_) | DeviceError::Runtime(_) | DeviceError::Device(_) => false,
        }
    }

    /// Exit status of the process, so that its starter can tell the cases apart.
    pub fn exit_code(&self) -> u8 {
        match self {
            DeviceError::AlreadyRunning => 10,
            DeviceError::SocketTaken => 11,
            DeviceError::Place(_) => 12,
            DeviceError::Tun(TunError::Missing(_)) => 13,
            DeviceError::Tun(_) => 14,
            DeviceError::Runtime(_) => 15,
            DeviceError::Device(_) => 16,
        }
    }
}
