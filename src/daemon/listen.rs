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
    time::Duration,
};

use tokio::net::{UnixListener, UnixStream};

use super::{agent::Agent, connection, connections::Connections, settings::Settings};

const DIRECTORY_MODE: u32 = 0o750;
const SOCKET_MODE: u32 = 0o660;
/// Pause after `accept` failed for want of a descriptor or memory: the connections that were closed for it need a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Makes the socket.
///
/// # Errors
/// See [`ListenError`]. Whatever stands at the path is left alone, unless it is a socket that nobody listens on.
pub fn bind(settings: &Settings) -> Result<UnixListener, ListenError> {
    let path = &settings.socket;
    let failed = |doing| {
        move |source| ListenError::Io {
            doing,
            path: path.clone(),
            source,
        }
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    prepare_directory(directory, settings.socket_gid)?;
    check_place(path)?;
    let nest = directory.join(format!(".overlayd-{}", std::process::id()));
    let _ = fs::remove_dir_all(&nest);
    DirBuilder::new()
        .mode(0o700)
        .create(&nest)
        .map_err(failed("make a private directory beside"))?;
    let egg = nest.join("s");
    let made = UnixListener::bind(&egg)
        .and_then(|listener| fs::set_permissions(&egg, Permissions::from_mode(SOCKET_MODE)).map(|()| listener))
        .and_then(|listener| std::os::unix::fs::chown(&egg, None, settings.socket_gid).map(|()| listener))
        .and_then(|listener| fs::rename(&egg, path).map(|()| listener));
    let _ = fs::remove_dir_all(&nest);
    made.map_err(failed("listen on"))
}

fn prepare_directory(directory: &Path, gid: Option<u32>) -> Result<(), ListenError> {
    let failed = |doing| {
        move |source| ListenError::Io {
            doing,
            path: directory.to_owned(),
            source,
        }
    };
    if !directory.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(failed("make directory"))?;
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
    let mut next_id: u64 = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                next_id += 1;
                welcome(&agent, &connections, next_id, stream);
            }
            Err(error) => {
                agent.metrics.socket.accept_errors.inc();
                tracing::warn!(%error, open = connections.len(), "cannot accept a connection; closing the longest idle one");
                connections.close_idlest();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        agent
            .metrics
            .socket
            .connections
            .set(i64::try_from(connections.len()).unwrap_or(i64::MAX));
    }
}

fn welcome(agent: &Arc<Agent>, connections: &Arc<Connections>, id: u64, stream: UnixStream) {
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
        agent
            .metrics
            .socket
            .connections_closed
            .with_label_values(&["not allowed"])
            .inc();
        tracing::warn!(%origin, "a caller that is not in allowed_uids or allowed_gids was turned away");
        return;
    }
    while connections.len() >= settings.connections_max {
        if !connections.close_idlest() {
            agent
                .metrics
                .socket
                .connections_closed
                .with_label_values(&["too many"])
                .inc();
            tracing::warn!(%origin, "every connection is busy; a new one was turned away");
            return;
        }
    }
    let seat = connections.enter(id);
    tracing::debug!(%origin, "connection opened");
    tokio::spawn(connection::serve(
        agent.clone(),
        connections.clone(),
        seat,
        stream,
        origin,
    ));
}
