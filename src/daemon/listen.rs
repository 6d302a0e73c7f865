//! The Unix socket: made safely, accepted from for ever.
//!
//! Owns the path and its permissions, who may connect, and what happens when descriptors run out. Leaves the talk to
//! [`connection`](super::connection).
//!
//! Upholds I-15 (B17).
//!
//! The socket is bound inside a directory of our own and then renamed into place, so there is no moment at which it stands at its path
//! with the wrong mode, and no process-wide umask to change.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{UnixListener, UnixStream};

use super::{agent::Agent, connection, connections::Connections, settings::Settings};

const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;
/// Pause after `accept` failed for want of a descriptor or memory: the connections that were closed for it need a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Descriptors that clients may never use up: the store, netlink, devices and the metrics page need some of their own.
const DESCRIPTORS_KEPT: usize = 64;
/// Connections that are allowed however low the descriptor limit is.
const CONNECTIONS_MIN: usize = 8;
/// Shortest time between two complaints about connections that cannot be accepted.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// Why the socket could not be made; says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another process listens on {0}; stop it, or choose another --socket")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket; move it away, or choose another --socket")]
    NotASocket(PathBuf),
    #[error("directory {0} can be written by everybody; choose a --socket in a directory of mode 0750")]
    OpenDirectory(PathBuf),
    #[error("{doing} {path}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
}

/// The socket's file: which one it is, so that only our own is ever removed.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), file: (metadata.dev(), metadata.ino()) })
    }

    /// Removes the file, unless another one stands at its path by now.
    pub fn clear(&self) {
        if Self::of(&self.path).is_ok_and(|now| now.file == self.file) {
            // A stale path would only make the next start look twice.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket.
///
/// # Errors
/// See [`ListenError`]. Whatever stands at the path is left alone, unless it is a socket that nobody listens on.
pub fn bind(settings: &Settings) -> Result<(UnixListener, Place), ListenError> {
    let path = &settings.socket;
    let failed = |doing| move |source| ListenError::Io { doing, path: path.clone(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    prepare_directory(directory, settings.socket_gid)?;
    check_place(path)?;
    let nest = directory.join(format!(".overlayd-{}", std::process::id()));
    let _ = fs::remove_dir_all(&nest);
    DirBuilder::new().mode(0o700).create(&nest).map_err(failed("make a private directory beside"))?;
    let egg = nest.join("s");
    let made = UnixListener::bind(&egg)
        .and_then(|listener| fs::set_permissions(&egg, Permissions::from_mode(SOCKET_MODE)).map(|()| listener))
        .and_then(|listener| std::os::unix::fs::chown(&egg, None, settings.socket_gid).map(|()| listener))
        .and_then(|listener| Place::of(&egg).map(|found| (listener, Place { path: path.clone(), ..found })))
        .and_then(|made| fs::rename(&egg, path).map(|()| made));
    let _ = fs::remove_dir_all(&nest);
    made.map_err(failed("listen on"))
}

fn prepare_directory(directory: &Path, gid: Option<u32>) -> Result<(), ListenError> {
    let failed = |doing| move |source| ListenError::Io { doing, path: directory.to_owned(), source };
    if !directory.exists() {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(failed("make directory"))?;
        // mkdir(2) applies the umask; the mode must be what the documentation says.
        fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE)).map_err(failed("set the mode of"))?;
        std::os::unix::fs::chown(directory, None, gid).map_err(failed("set the group of"))?;
    }
    let mode = fs::metadata(directory).map_err(failed("look at directory"))?.mode();
    let sticky = mode & 0o1000 != 0;
    if mode & 0o002 != 0 && !sticky {
        return Err(ListenError::OpenDirectory(directory.to_owned()));
    }
    Ok(())
}

fn check_place(path: &Path) -> Result<(), ListenError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Ok(_) | Err(_) => Err(ListenError::InUse(path.to_owned())),
    }
}

/// Accepts connections for as long as the process lives. Nothing that a client does ends it.
pub async fn accept(agent: Arc<Agent>, listener: UnixListener) {
    let connections = Arc::new(Connections::default());
    let connections_max = affordable(agent.settings.connections_max);
    let mut next_id: u64 = 0;
    let mut complained: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                next_id += 1;
                welcome(&agent, &connections, connections_max, next_id, stream);
            }
            Err(error) => {
                agent.metrics.socket.accept_errors.inc();
                let is_short = is_shortage(&error);
                if complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
                    complained = Some(Instant::now());
                    tracing::warn!(%error, open = connections.len(), is_short, "cannot accept a connection; when something is short the longest idle one is closed");
                }
                if is_short {
                    connections.close_idlest();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// As many connections as wanted, but never so many that the agent itself is left without descriptors.
fn affordable(wanted: usize) -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let limit =
        getrlimit(Resource::RLIMIT_NOFILE).map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
    let affordable = limit.saturating_sub(DESCRIPTORS_KEPT).max(CONNECTIONS_MIN);
    if affordable < wanted {
        tracing::warn!(
            limit,
            wanted,
            connections_max = affordable,
            "the descriptor limit allows fewer connections than configured"
        );
    }
    wanted.min(affordable)
}

/// Whether `accept` failed for want of descriptors or memory, and not because of the one client.
fn is_shortage(error: &io::Error) -> bool {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

fn welcome(agent: &Arc<Agent>, connections: &Arc<Connections>, connections_max: usize, id: u64, stream: UnixStream) {
    let caller = match stream.peer_cred() {
        Ok(caller) => caller,
        Err(error) => {
            tracing::warn!(%error, "a connection without credentials was closed");
            return;
        }
    };
    let settings = &agent.settings;
    let open_to_all = settings.allowed_uids.is_empty() && settings.allowed_gids.is_empty();
    let is_allowed =
        open_to_all || settings.allowed_uids.contains(&caller.uid()) || settings.allowed_gids.contains(&caller.gid());
    let origin = match caller.pid() {
        Some(pid) => format!("uid={} gid={} pid={pid}", caller.uid(), caller.gid()),
        None => format!("uid={} gid={}", caller.uid(), caller.gid()),
    };
    if !is_allowed {
        agent.metrics.socket.connections_closed.with_label_values(&["not allowed"]).inc();
        tracing::warn!(%origin, "a caller that is not in allowed_uids or allowed_gids was turned away");
        return;
    }
    while connections.len() >= connections_max {
        if !connections.close_idlest() {
            agent.metrics.socket.connections_closed.with_label_values(&["too many"]).inc();
            tracing::warn!(%origin, "every connection is busy; a new one was turned away");
            return;
        }
    }
    let seat = connections.enter(id);
    tracing::debug!(%origin, "connection opened");
    tokio::spawn(connection::serve(agent.clone(), connections.clone(), seat, stream, origin));
}
