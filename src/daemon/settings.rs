use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use crate::{
    desired::Policy,
    object::Mark,
    platform::DataPlaneChoice,
    reconcile::target::{Facts, Served},
};

/// Everything that an operator can choose. Flags, environment and file are read by [`cli`](crate::cli).
#[derive(Debug, Clone)]
pub struct Settings {
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    /// Group id of the socket; the process's own when `None`.
    pub socket_gid: Option<u32>,
    /// When both lists are empty, whoever the socket's mode lets in may speak.
    pub allowed_uids: Vec<u32>,
    pub allowed_gids: Vec<u32>,
    pub metrics_listen: SocketAddr,
    /// Connections that may be open at a time; beyond it the longest idle one is closed.
    pub connections_max: usize,
    /// Time between two full looks at the node when nothing happens.
    pub resync_every: Duration,
    /// MTU of the overlay device, bytes.
    pub mtu: u32,
    pub data_plane: DataPlaneChoice,
    /// Directory of the control sockets of userspace WireGuard devices.
    pub uapi_dir: PathBuf,
    pub policy: Policy,
    /// Address of the host that the free-port proxy listens on.
    pub proxy_listen: IpAddr,
    /// Where other programs keep what they know at run time: `/run`.
    pub run_dir: PathBuf,
    /// Where the system looks for a resolver of one zone; `None` where it does not.
    pub resolver_dir: Option<PathBuf>,
    pub log_format: LogFormat,
    /// `None`: the overlay's zone is not served.
    pub resolver: Option<ResolverSettings>,
}

/// How the overlay's zone is served.
#[derive(Debug, Clone)]
pub struct ResolverSettings {
    pub served: Served,
    /// Files that name the host's servers, the best first.
    pub configurations: Vec<PathBuf>,
}

impl Settings {
    /// What the loop knows besides the document before it has looked.
    pub fn facts(&self, mark: Mark) -> Facts {
        Facts {
            mtu: self.mtu,
            run_dir: self.run_dir.clone(),
            resolver_dir: self.resolver_dir.clone(),
            served: self.resolver.as_ref().map(|own| own.served.clone()),
            ..Facts::new(mark)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}
