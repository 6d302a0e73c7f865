//! The files of a device process: its lock and its socket.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;

use super::failed::DeviceError;
use crate::ids::IfName;

/// The right to serve one interface, held until the process ends however it ends.
pub(super) struct Place {
    _lock: Flock<File>,
    socket: PathBuf,
}

/// A listening socket and the identity of its file.
pub(super) struct Listening {
    pub listener: UnixListener,
    file: (u64, u64),
}

impl Place {
    /// Takes the lock of the interface; makes the directory when it is missing.
    ///
    /// # Errors
    /// [`DeviceError::AlreadyRunning`] when another process has it.
    pub(super) fn take(dir: &Path, ifname: &IfName) -> Result<Self, DeviceError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(DeviceError::Place)?;
        // The file stays: removing it would let two processes lock two files of one name.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(dir.join(format!("{ifname}.lock")))
            .map_err(DeviceError::Place)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::Error::EWOULDBLOCK => DeviceError::AlreadyRunning,
            errno => DeviceError::Place(errno.into()),
        })?;
        Ok(Self { _lock: lock, socket: dir.join(format!("{ifname}.sock")) })
    }

    /// Listens on the socket, in place of one that nobody serves.
    ///
    /// # Errors
    /// [`DeviceError::SocketTaken`] when something else lives at the path.
    pub(super) fn listen(&self) -> Result<Listening, DeviceError> {
        match std::fs::symlink_metadata(&self.socket) {
            Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(&self.socket) {
                Ok(_) => return Err(DeviceError::SocketTaken),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(&self.socket).map_err(DeviceError::Place)?;
                }
                Err(error) => return Err(DeviceError::Place(error)),
            },
            Ok(_) => return Err(DeviceError::SocketTaken),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(DeviceError::Place(error)),
        }
        let listener = UnixListener::bind(&self.socket).map_err(DeviceError::Place)?;
        let file = (|| {
            std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o600))?;
            identity(&self.socket)
        })()
        .map_err(DeviceError::Place)?;
        Ok(Listening { listener, file })
    }

    /// True while the path still leads to this socket; without it nobody can ask or change the device.
    pub(super) fn still_reachable(&self, listening: &Listening) -> bool {
        identity(&self.socket).is_ok_and(|file| file == listening.file)
    }

    /// Removes the socket file, if it is this one.
    pub(super) fn clear(&self, listening: &Listening) {
        if self.still_reachable(listening) {
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> IfName {
        "wgt".parse().unwrap()
    }

    #[tokio::test]
    async fn one_interface_has_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path(), &name()).unwrap();
        assert!(matches!(Place::take(dir.path(), &name()), Err(DeviceError::AlreadyRunning)));
        drop(place);
        assert!(Place::take(dir.path(), &name()).is_ok());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_served_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path(), &name()).unwrap();
        let path = dir.path().join("wgt.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listening = place.listen().unwrap();
        assert!(place.still_reachable(&listening));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(place.listen(), Err(DeviceError::SocketTaken)));
        std::fs::remove_file(&path).unwrap();
        assert!(!place.still_reachable(&listening));
    }

    #[tokio::test]
    async fn a_file_at_the_path_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::take(dir.path(), &name()).unwrap();
        std::fs::write(dir.path().join("wgt.sock"), "mine").unwrap();
        assert!(matches!(place.listen(), Err(DeviceError::SocketTaken)));
        assert_eq!(std::fs::read(dir.path().join("wgt.sock")).unwrap(), b"mine");
    }
}
